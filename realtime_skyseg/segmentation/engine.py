"""What runs a model: one small protocol, the choice among engines, and the parity gate."""

import ctypes
import importlib.util
import itertools
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import platformdirs
from numpy.typing import NDArray

from realtime_skyseg.caches import can_write, of_this_process
from realtime_skyseg.config import EngineChoice
from realtime_skyseg.errors import MissingExtraError, ModelError, ParityError, SkysegError
from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.model import Model, NetworkShape
from realtime_skyseg.segmentation.scaling import Scaling, scale

log = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")

#: Smallest share of pixels on which an engine must agree with torch float32.
MIN_AGREEMENT = 0.995

#: The same for a network quantised to 8 bits, whose accuracy was measured on labelled images when it was made.
MIN_AGREEMENT_INT8 = 0.975

#: On a GPU: half precision, or float32 where a model does not stand it.
GPU_PRECISIONS = ("float16", "float32")

#: Largest layer of a network, in bytes of float32; images that need more are cut into tiles.
_MAX_LAYER_BYTES = 256 * 2**20


class Engine(Protocol):
    """A model made ready for one frame size. Used by one thread at a time."""

    name: str  # "tensorrt", "torch" or "openvino"
    device: str  # name of the processor
    precision: str  # of the arithmetic: "float32", "bfloat16", "float16" or "int8"
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
        choice: which engine; `auto` is on a CUDA GPU TensorRT, else torch, and without one OpenVINO, else torch. Where
            one cannot be made `auto` logs why and takes the next.
        threads: CPU threads; None: one per core.
        cache: folder for built engines; None: the user's cache folder.
        max_layer_bytes: where one layer of the network would take more, the image is cut into tiles.

    Raises:
        MissingExtraError: the chosen engine is not installed.
        SettingsError: the chosen engine needs a GPU, and there is none.
        ModelError: the chosen engine cannot be built for this model.
        ParityError: the engine's masks differ too much from those of torch float32.
    """
    padded = model.shape.padded(shape)
    tile = tile_shape(model.shape, padded, max_layer_bytes)
    engine = _first_that_works(_candidates(choice), lambda name: _open(name, model, tile, threads, cache))
    return engine if tile == padded else TiledEngine(engine, padded, model.shape.margin)


def check_parity(
    model: Model,
    engine: str,
    found: Callable[[NDArray[np.float32]], Mask],
    shape: tuple[int, int],
    allowed: float = MIN_AGREEMENT,
) -> float:
    """Share of pixels on which `found` (scaled image -> mask) agrees with torch float32 on synthetic skyrmion images.

    Raises:
        ParityError: the share is below `allowed`.
    """
    from realtime_skyseg.segmentation.torch_engine import reference

    # One large image holds as many objects as several small ones, and the reference is slow.
    n_images = 1 if shape[0] * shape[1] > 1_000_000 else 3
    images = [_parity_image(shape, seed, model.scaling) for seed in range(n_images)]
    expected = reference(model)
    agreement = float(np.mean([np.mean(found(image) == expected(image)) for image in images]))
    log.info("engine %s agrees with torch float32 on %.4f %% of the pixels", engine, 100 * agreement)
    if agreement < allowed:
        raise ParityError(
            f"engine {engine} agrees with torch float32 on {agreement:.4%} of the pixels for model {model.name}; "
            f"allowed: {allowed:.1%} or more (set analysis.engine: torch)"
        )
    return agreement


def first_exact(
    model: Model, name: str, precisions: Sequence[str], load: Callable[[str], None], engine: Engine
) -> tuple[str, float]:
    """Load the engine in each precision in turn, until one passes the parity gate: that precision and the agreement.

    Raises:
        ParityError: none passes.
    """

    def found(image: NDArray[np.float32]) -> Mask:
        engine.input[...] = image
        return engine.run()

    height, width = engine.input.shape
    for precision in precisions:
        load(precision)
        try:
            allowed = MIN_AGREEMENT_INT8 if precision == "int8" else MIN_AGREEMENT
            agreement = check_parity(model, name, found, (height, width), allowed)
        except ParityError as error:
            if precision == precisions[-1]:
                raise
            log.warning("%s is not exact enough for model %s: %s", precision, model.name, error)
        else:
            break
    engine.input.fill(0)
    return precision, agreement


def cache_folder() -> Path:
    """The user's folder for built engines; where it cannot be written, one of this process."""
    folder = Path(platformdirs.user_cache_dir("realtime_skyseg"))
    if can_write(folder):
        return folder
    log.warning("'%s' cannot be written: engines are built at each start, in a folder of this process", folder)
    return of_this_process()


def cached(folder: Path, load: Callable[[Path], _Loaded], build: Callable[[Path], None]) -> _Loaded:
    """What `load` makes of `folder`. Where it is absent or `load` raises, `build` fills it anew.

    Services may build at once: each fills a folder of its own, and the first to rename wins.
    """
    if folder.exists():
        try:
            return load(folder)
        except (ModelError, OSError, ValueError, KeyError) as error:
            log.warning("the engine in %s cannot be used and is built again: %s", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        build(building)
        try:
            building.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return load(folder)


def _first_that_works(candidates: Sequence[tuple[str, str]], make: Callable[[str], Engine]) -> Engine:
    """Make the first candidate (name, why); where that fails, say so and make the next."""
    for name, why in candidates[:-1]:
        log.info("engine %s: %s", name, why)
        try:
            return make(name)
        except (SkysegError, RuntimeError) as error:  # torch reports its CUDA errors as RuntimeError
            log.warning("engine %s cannot be used, the next is tried: %s", name, error)
    name, why = candidates[-1]
    log.info("engine %s: %s", name, why)
    try:
        return make(name)
    except RuntimeError as error:
        raise ModelError(f"engine {name} cannot be made: {error}") from error


def _open(name: str, model: Model, shape: tuple[int, int], threads: int | None, cache: Path | None) -> Engine:
    if name == "tensorrt":
        from realtime_skyseg.segmentation.tensorrt_engine import TensorRtEngine

        return TensorRtEngine(model, shape, cache)
    if name in ("openvino", "openvino-int8"):
        if importlib.util.find_spec("openvino") is None:
            raise MissingExtraError(f"engine '{name}' needs the package openvino: pip install openvino")
        from realtime_skyseg.segmentation.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(model, shape, threads, cache, int8=name == "openvino-int8")
    import torch

    from realtime_skyseg.segmentation.torch_engine import TorchCudaEngine, TorchEngine

    return TorchCudaEngine(model, shape) if torch.cuda.is_available() else TorchEngine(model, shape, threads)


def _candidates(choice: EngineChoice) -> list[tuple[str, str]]:
    """The engines to try in turn, each with why."""
    if choice != "auto":
        return [(choice, "as set")]
    found = []
    # torch takes seconds to import: ask it only where there can be a CUDA driver.
    if _has_nvidia_driver():
        import torch

        if torch.cuda.is_available():
            gpu = f"auto found the CUDA GPU {torch.cuda.get_device_name()}"
            if importlib.util.find_spec("tensorrt") is not None:
                found.append(("tensorrt", f"{gpu} and TensorRT"))
            found.append(("torch", gpu))
    if importlib.util.find_spec("openvino") is not None:
        found.append(("openvino", "auto found no other engine" if found else "auto found no CUDA GPU"))
    return found or [("torch", "auto found neither a CUDA GPU nor OpenVINO")]


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
