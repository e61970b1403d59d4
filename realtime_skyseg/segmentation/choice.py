"""The choice among engines."""

import ctypes
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from realtime_skyseg.config import EngineChoice
from realtime_skyseg.errors import MissingExtraError, ModelError, SkysegError
from realtime_skyseg.segmentation.engine import Engine
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.tiles import MAX_LAYER_BYTES, TiledEngine, tile_shape

log = logging.getLogger(__name__)


def open_engine(
    model: Model,
    shape: tuple[int, int],
    choice: EngineChoice = "auto",
    threads: int | None = None,
    cache: Path | None = None,
    max_layer_bytes: int = MAX_LAYER_BYTES,
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
