"""The parity gate: no engine is used whose masks differ from those of torch float32."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import ParityError
from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.engine import Engine
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.scaling import Scaling, scale

log = logging.getLogger(__name__)

#: Smallest share of pixels on which an engine must agree with torch float32.
MIN_AGREEMENT = 0.995

#: The same for a network quantised to 8 bits, whose accuracy was measured on labelled images when it was made.
MIN_AGREEMENT_INT8 = 0.975

#: On a GPU: half precision, or float32 where a model does not stand it.
GPU_PRECISIONS = ("float16", "float32")


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
    from realtime_skyseg.segmentation.reference import reference

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
