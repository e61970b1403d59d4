"""What runs a model: one small protocol, the choice among engines, and the parity gate."""

import ctypes
import importlib.util
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.config import EngineChoice
from realtime_skyseg.errors import MissingExtraError, ParityError
from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.model import Model, NetworkShape
from realtime_skyseg.segmentation.scaling import Scaling, scale

log = logging.getLogger(__name__)

#: Smallest share of pixels on which an engine must agree with torch float32.
MIN_AGREEMENT = 0.995

#: Largest layer of a network, in bytes of float32; images that need more are cut into tiles.
_MAX_LAYER_BYTES = 256 * 2**20


class Engine(Protocol):
    """A model made ready for one frame size. Used by one thread at a time."""

    name: str  # "torch" or "openvino"
    device: str  # name of the processor
    precision: str  # of the arithmetic: "float32", "bfloat16" or "float16"
    agreement: float  # share of pixels that agree with torch float32

    #: Write the scaled image here, (height, width) float32, both sides a multiple of the network's.
    input: NDArray[np.float32]

    def run(self) -> Mask:
        """Segment `input`: a mask of its shape, overwritten by the next call."""


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


def tile_shape(network: NetworkShape, shape: tuple[int, int], max_bytes: int = _MAX_LAYER_BYTES) -> tuple[int, int]:
    """The tile (height, width) for an image of `shape`, a multiple of the network's: the image itself if it fits."""
    height, width = shape
    if height * width * network.bytes_per_pixel <= max_bytes:
        return shape
    side = int((max_bytes / network.bytes_per_pixel) ** 0.5) // network.multiple * network.multiple
    side = max(side, 4 * network.margin)  # at least a quarter of each pass is new
    return min(height, side), min(width, side)


def open_engine(
    model: Model,
    shape: tuple[int, int],
    choice: EngineChoice = "auto",
    threads: int | None = None,
    cache: Path | None = None,
    max_layer_bytes: int = _MAX_LAYER_BYTES,
) -> Engine:
    """Make an engine for images of `shape` (height, width), padded up to the network's multiple.

    A large image is cut into tiles (`TiledEngine`).

    Args:
        model: the model to run.
        shape: (height, width) of the images.
        choice: which engine; `auto` is torch on a CUDA GPU, else OpenVINO, else torch on the CPU.
        threads: CPU threads; None: one per core.
        cache: folder for built engines; None: the user's cache folder.
        max_layer_bytes: where one layer of the network would take more, the image is cut into tiles.

    Raises:
        MissingExtraError: the chosen engine is not installed.
        ParityError: the engine's masks differ too much from those of torch float32.
    """
    padded = model.shape.padded(shape)
    tile = tile_shape(model.shape, padded, max_layer_bytes)
    chosen, why = _choose(choice)
    log.info("engine %s: %s", chosen, why)
    engine: Engine
    if chosen == "openvino":
        from realtime_skyseg.segmentation.openvino_engine import OpenVinoEngine

        engine = OpenVinoEngine(model, tile, threads, cache)
    else:
        from realtime_skyseg.segmentation.torch_engine import TorchEngine

        engine = TorchEngine(model, tile, threads)
    return engine if tile == padded else TiledEngine(engine, padded, model.shape.margin)


def check_parity(
    model: Model, engine: str, found: Callable[[NDArray[np.float32]], Mask], shape: tuple[int, int]
) -> float:
    """Share of pixels on which `found` (scaled image -> mask) agrees with torch float32 on synthetic skyrmion images.

    Raises:
        ParityError: the share is below `MIN_AGREEMENT`.
    """
    from realtime_skyseg.segmentation.torch_engine import reference

    # One large image holds as many objects as several small ones, and the reference is slow.
    n_images = 1 if shape[0] * shape[1] > 1_000_000 else 3
    images = [_parity_image(shape, seed, model.scaling) for seed in range(n_images)]
    expected = reference(model)
    agreement = float(np.mean([np.mean(found(image) == expected(image)) for image in images]))
    log.info("engine %s agrees with torch float32 on %.4f %% of the pixels", engine, 100 * agreement)
    if agreement < MIN_AGREEMENT:
        raise ParityError(
            f"engine {engine} agrees with torch float32 on {agreement:.4%} of the pixels for model {model.name}; "
            f"allowed: {MIN_AGREEMENT:.1%} or more (set analysis.engine: torch)"
        )
    return agreement


def _choose(choice: EngineChoice) -> tuple[str, str]:
    openvino = importlib.util.find_spec("openvino") is not None
    if choice == "openvino" and not openvino:
        raise MissingExtraError("engine 'openvino' needs the package openvino: pip install openvino")
    if choice != "auto":
        return choice, "as set"
    # torch takes seconds to import: ask it only where there can be a CUDA driver.
    if _has_nvidia_driver():
        import torch

        if torch.cuda.is_available():
            return "torch", f"auto found the CUDA GPU {torch.cuda.get_device_name()}"
    if openvino:
        return "openvino", "auto found no CUDA GPU"
    return "torch", "auto found neither a CUDA GPU nor OpenVINO"


def _has_nvidia_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _parity_image(shape: tuple[int, int], seed: int, scaling: Scaling) -> NDArray[np.float32]:
    """Dark or bright discs of 4 to 24 px in white noise, scaled."""
    rng = np.random.default_rng(seed)
    height, width = shape
    rows, columns = np.ogrid[:height, :width]
    image = rng.normal(128, 12 + 4 * seed, shape)
    for _ in range(height * width // 4000):
        y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2, 12)
        top, left = max(0, int(y - radius)), max(0, int(x - radius))
        box = np.s_[top : int(y + radius) + 2, left : int(x + radius) + 2]
        inside = (rows[box[0]] - y) ** 2 + (columns[:, box[1]] - x) ** 2 < radius**2
        image[box][inside] += -45 if seed % 2 == 0 else 45
    return scale(np.clip(image, 0, 255).astype(np.uint8), how=scaling)
