"""What fixes the layers of a network."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from realtime_skyseg.records import Class


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What fixes a network's layers.

    U-Net after Ronneberger et al., MICCAI 2015; the stem after Shi et al., CVPR 2016 (sub-pixel convolution); skips
    are added, not concatenated, after Chaurasia and Culurciello, VCIP 2017, which saves a quarter of the work; split
    convolutions after Romera et al., IEEE T-ITS 19, 263 (2018), need two thirds of it, and decide once more between
    their halves. With `up_multiplier` skips are concatenated and upsampling is a transposed convolution, as in the
    "Skyrmion U-Net".
    """

    unshuffle: int = 2  # the network works on 1/unshuffle of the image's grid
    filters: int = 16  # channels of the first level
    depth: int = 3  # levels above the lowest
    doubled_from: int = 1  # the first level, counted from 0, that has twice the channels of the one above; so on below
    split_levels: int = 0  # levels, from the first, with 1x3 and 3x1 convolutions for 3x3; never the very first one
    classes: int = len(Class)  # the first ones of `Class`
    kernel: int = 3  # side of the convolutions
    activation: Literal["relu", "mish"] = "relu"
    up_multiplier: int = 0  # 0: nearest neighbours, added; else transposed convolution to so many times the channels

    @property
    def margin(self) -> int:
        """How far (px) the network looks around a pixel, rounded up to `multiple`."""
        reach = 0
        for level in range(self.depth + 1):
            convolutions = 2 if level == self.depth else 4
            # Pooling and upsampling look at most one pixel of their level further.
            reach += (convolutions * (self.kernel // 2) + (level > 0) * max(1, self.kernel // 2)) * 2**level
        return -(-reach * self.unshuffle // self.multiple) * self.multiple

    def channels(self, level: int) -> int:
        """Of a level, counted from 0."""
        return self.filters << max(0, level - self.doubled_from + 1)

    @property
    def bytes_per_pixel(self) -> float:
        """Memory of the widest layer per pixel of the image, in float32."""
        return 4 * self.filters * (1 + self.up_multiplier) / self.unshuffle**2

    @property
    def multiple(self) -> int:
        """Both sides of the input must be a multiple of this many px."""
        return int(self.unshuffle * 2**self.depth)

    def padded(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The smallest (height, width) not below `shape` that the network takes."""
        height, width = (-(-side // self.multiple) * self.multiple for side in shape)
        return height, width

    def as_dict(self) -> dict[str, Any]:
        """As stored in a model file."""
        return asdict(self)
