"""What runs a model: one small protocol, the choice among engines, and the parity gate."""

import ctypes
import importlib.util
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
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.scaling import scale

log = logging.getLogger(__name__)

#: Smallest share of pixels on which an engine must agree with torch float32.
MIN_AGREEMENT = 0.995


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


def open_engine(
    model: Model,
    shape: tuple[int, int],
    choice: EngineChoice = "auto",
    threads: int | None = None,
    cache: Path | None = None,
) -> Engine:
    """Make an engine for images of `shape` (height, width), padded up to the network's multiple.

    Args:
        model: the model to run.
        shape: (height, width) of the images.
        choice: which engine; `auto` is torch on a CUDA GPU, else OpenVINO, else torch on the CPU.
        threads: CPU threads; None: one per core.
        cache: folder for built engines; None: the user's cache folder.

    Raises:
        MissingExtraError: the chosen engine is not installed.
        ParityError: the engine's masks differ too much from those of torch float32.
    """
    padded = model.shape.padded(shape)
    chosen, why = _choose(choice)
    log.info("engine %s: %s", chosen, why)
    if chosen == "openvino":
        from realtime_skyseg.segmentation.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(model, padded, threads, cache)
    from realtime_skyseg.segmentation.torch_engine import TorchEngine

    return TorchEngine(model, padded, threads)


def check_parity(
    model: Model, engine: str, found: Callable[[NDArray[np.float32]], Mask], shape: tuple[int, int]
) -> float:
    """Share of pixels on which `found` (scaled image -> mask) agrees with torch float32 on synthetic skyrmion images.

    Raises:
        ParityError: the share is below `MIN_AGREEMENT`.
    """
    from realtime_skyseg.segmentation.torch_engine import reference

    images = [_parity_image(shape, seed) for seed in range(3)]
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


def _parity_image(shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
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
    return scale(np.clip(image, 0, 255).astype(np.uint8))
