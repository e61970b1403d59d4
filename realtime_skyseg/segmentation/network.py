"""The family of U-Nets: the product's own, with a pixel-unshuffle stem, and the lab's original one."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from realtime_skyseg.segmentation.shape import NetworkShape


def _convolution(inputs: int, outputs: int, height: int, width: int) -> list[nn.Module]:
    if height % 2 and width % 2:
        return [nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2), bias=False)]
    # As TensorFlow pads: one more below and to the right.
    padding = nn.ZeroPad2d(((width - 1) // 2, width // 2, (height - 1) // 2, height // 2))
    return [padding, nn.Conv2d(inputs, outputs, (height, width), bias=False)]


def _block(inputs: int, level: int, shape: NetworkShape, stem: bool = False) -> nn.Sequential:
    side, outputs = shape.kernel, shape.channels(level)
    layers: list[nn.Module] = []
    for number in (0, 1):
        split = level < shape.split_levels and not (stem and number == 0)
        for height, width in ((1, side), (side, 1)) if split else ((side, side),):
            layers += _convolution(inputs, outputs, height, width)
            layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.Mish() if shape.activation == "mish" else nn.ReLU(inplace=True))
            inputs = outputs
    return nn.Sequential(*layers)


class _Enlarge(nn.Module):
    """Transposed convolution to twice the size, cut as TensorFlow's padding `same` does."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, kernel, stride=2)
        self._before = max(kernel - 2, 0) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, 2 height, 2 width)."""
        height, width = 2 * x.shape[-2], 2 * x.shape[-1]
        enlarged: Tensor = self.conv(x)
        cut = slice(self._before, self._before + height), slice(self._before, self._before + width)
        return enlarged[..., cut[0], cut[1]]


class UNet(nn.Module):
    """(batch, 1, height, width) float32 from `scale` -> logits (batch, classes * unshuffle^2, height / unshuffle,
    width / unshuffle): class c of pixel (i, j) inside a cell stands in channel c * unshuffle^2 + i * unshuffle + j.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        channels = shape.unshuffle**2
        self.down = nn.ModuleList()
        for level in range(shape.depth):
            self.down.append(_block(channels, level, shape, stem=level == 0))
            channels = shape.channels(level)
        self.lowest = _block(channels, shape.depth, shape, stem=shape.depth == 0)
        channels = shape.channels(shape.depth)
        self.reduce = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in reversed(range(shape.depth)):
            outputs = shape.channels(level)
            if shape.up_multiplier:
                more = outputs * shape.up_multiplier
                self.reduce.append(_Enlarge(channels, more, shape.kernel))
                self.up.append(_block(more + outputs, level, shape))
            else:
                self.reduce.append(nn.Conv2d(channels, outputs, 1))
                self.up.append(_block(outputs, level, shape))
            channels = outputs
        self.head = nn.Conv2d(channels, shape.classes * shape.unshuffle**2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        return self.decode(*self.encode(image))

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features at the lowest level, (batch, channels, height / cell, width / cell) with cells of
        `unshuffle * 2**depth` px, and those on the way there.
        """
        x = functional.pixel_unshuffle(image, self.shape.unshuffle) if self.shape.unshuffle > 1 else image
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        return self.lowest(x), skips

    def decode(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """The logits from what `encode` gives."""
        for reduce, block in zip(self.reduce, self.up, strict=True):
            if self.shape.up_multiplier:
                x = torch.cat([reduce(x), skips.pop()], 1)
            else:
                x = functional.interpolate(reduce(x), scale_factor=2.0, mode="nearest") + skips.pop()
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


class MaskNet(nn.Module):
    """The network with its decision: (1, 1, height, width) float32 -> mask (1, 1, height, width) uint8.

    The class is decided on the small grid, before the pixel shuffle: one byte per pixel is moved to full
    resolution instead of one float per pixel and class. Of equal logits the first class wins, as in `argmax`, which
    is not used: runtimes take comparisons in one pass, and have an argmax of 32 or 64 bit integers only.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        shape = self.network.shape
        highest, *others = self.network(image).split(shape.unshuffle**2, 1)
        decided = torch.zeros_like(highest)
        for number, logit in enumerate(others, 1):
            decided = torch.where(logit > highest, float(number), decided)
            highest = torch.maximum(highest, logit)
        return functional.pixel_shuffle(decided.to(torch.uint8), shape.unshuffle)
