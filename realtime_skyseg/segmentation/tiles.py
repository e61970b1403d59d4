"""Large images in tiles that leave no seam."""

import itertools

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.engine import Engine
from realtime_skyseg.segmentation.shape import NetworkShape

#: Largest layer of a network, in bytes of float32; images that need more are cut into tiles.
MAX_LAYER_BYTES = 256 * 2**20


class TiledEngine:
    """`Engine` for a large image: runs the engine of one tile on overlapping tiles.

    Neighbouring tiles overlap by twice the network's reach and are cut in the middle. Each pixel is thus decided
    with all that the network can see around it: the mask is that of the whole image, without seams or blending.
    """

    def __init__(self, tile: Engine, shape: tuple[int, int], margin: int) -> None:
        self.name, self.device, self.precision, self.agreement = tile.name, tile.device, tile.precision, tile.agreement
        self.input: NDArray[np.float32] = np.zeros(shape, np.float32)
        self._tile = tile
        self._mask: Mask = np.zeros(shape, np.uint8)
        rows, columns = (_tiles(n, side, margin) for n, side in zip(shape, tile.input.shape, strict=True))
        self._places = [(row, column) for row in rows for column in columns]

    def run(self) -> Mask:
        """See `Engine`."""
        height, width = self._tile.input.shape
        for (top, first_row, end_row), (left, first_column, end_column) in self._places:
            self._tile.input[...] = self.input[top : top + height, left : left + width]
            part = self._tile.run()[first_row - top : end_row - top, first_column - left : end_column - left]
            self._mask[first_row:end_row, first_column:end_column] = part
        return self._mask


def _tiles(n: int, side: int, margin: int) -> list[tuple[int, int, int]]:
    """Along one axis of `n` px: where each tile of `side` px begins, and from where to where it decides."""
    step = side - 2 * margin
    begins = [*range(0, n - side, step), n - side]
    cuts = [0, *((here + side + there) // 2 for here, there in itertools.pairwise(begins)), n]
    return list(zip(begins, cuts, cuts[1:], strict=False))


def tile_shape(network: NetworkShape, shape: tuple[int, int], max_bytes: int = MAX_LAYER_BYTES) -> tuple[int, int]:
    """The tile (height, width) for an image of `shape`, a multiple of the network's: the image itself if it fits."""
    height, width = shape
    if height * width * network.bytes_per_pixel <= max_bytes:
        return shape
    side = int((max_bytes / network.bytes_per_pixel) ** 0.5) // network.multiple * network.multiple
    side = max(side, 4 * network.margin)  # at least a quarter of each pass is new
    return min(height, side), min(width, side)
