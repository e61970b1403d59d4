"""The one place where grey levels become the network's input, in training and live alike."""

import math
from typing import Any, Literal

import numpy as np
from numba import float32, float64, njit, uint8, uint16, void
from numba.core.types import Array
from numpy.typing import NDArray

from realtime_skyseg.errors import FrameError
from realtime_skyseg.grey_levels import percentiles
from realtime_skyseg.records import Image

_MIN_SIDE_PX = 16

_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
_NUMBA_TYPES = (uint8, uint16, float32)

#: Scaled pixels are cut at plus and minus this much. Nothing magnetic gets beyond 1; a hot pixel of 16 bits would
#: reach hundreds, and with it as far as the network looks.
LIMIT = 4.0

#: With more than this share of overexposed pixels, or of such that are no finite number, an image tells nothing.
_LOST = 0.9


#: `percentiles`: see `scale`. `range`: value / largest of its integer type, floats as they are, for guests that were
#: trained on x / 255.
Scaling = Literal["percentiles", "range"]


def scale(image: Image, how: Scaling = "percentiles") -> NDArray[np.float32]:
    """Scale an image to (image - median) / (99th percentile - 1st percentile).

    Independent of offset and contrast, and odd under inversion: scale(255 - image) == -scale(image) up to
    rounding. A constant image gives zeros. Pixels that are not finite count as the median; what lies beyond
    plus or minus `LIMIT` is cut.

    Args:
        image: (height, width), uint8, uint16 or float32.
        how: `range` gives value / largest of its integer type instead.

    Returns:
        (height, width) float32.

    Raises:
        FrameError: the shape or dtype is not one of the above.
    """
    check(image)
    out = np.empty(image.shape, np.float32)
    _scale_into(image, out, how)
    return out


def _scale_into(image: Image, out: NDArray[np.float32], how: Scaling, inverted: bool = False) -> None:
    """Scale an image into the upper left of an array."""
    offset, gain = percentiles(image) if how == "percentiles" else _range(image)
    gain = -gain if inverted else gain
    limit = LIMIT if how == "percentiles" else math.inf
    _scale_pixels(image if image.flags.c_contiguous else image.copy(), gain, offset * gain, limit, out)


# For the kinds of pixels that there are, at import: no frame waits for a compiler. Python's lock is kept: the loops are
# shorter than what another thread would do with it, which the frame would then wait for (0.7 -> 0.3 ms in a run).
@njit(
    [void(Array(kind, 2, "C", readonly=True), float64, float64, float64, float32[:, ::1]) for kind in _NUMBA_TYPES],
    cache=True,
)
def _scale_pixels(image: Image, gain: float, offset: float, limit: float, out: NDArray[np.float32]) -> None:
    """In one pass and written without `min` and `isfinite`, so that the compiler takes many pixels at a time."""
    factor, shift = np.float32(gain), np.float32(offset)  # a gain beyond float32 leaves nothing finite
    low, high = np.float32(-limit), np.float32(limit)
    for y in range(image.shape[0]):
        pixels, scaled = image[y], out[y]
        for x in range(len(pixels)):
            value = np.float32(pixels[x]) * factor - shift
            value = value if abs(value) < np.float32(np.inf) else np.float32(0)
            value = high if value > high else value
            scaled[x] = low if value < low else value


def _range(image: Image) -> tuple[float, float]:
    return 0.0, {"uint8": 1 / 255, "uint16": 1 / 65535}.get(image.dtype.name, 1.0)


def scale_mirrored(
    image: Image, out: NDArray[np.float32], how: Scaling = "percentiles", inverted: bool = False
) -> None:
    """Scale an image into the upper left of a larger array, and mirror it into the rest.

    Args:
        image: (height, width), see `scale`.
        out: float32 to write to, at least (height, width), contiguous.
        how: see `scale`.
        inverted: scale the negative instead; needs `percentiles`.
    """
    check(image)
    height, width = image.shape
    _scale_into(image, out, how, inverted)
    below, right = out.shape[0] - height, out.shape[1] - width
    if below:
        out[height:, :width] = out[_mirrored(height, below), :width]
    if right:
        out[:, width:] = out[:, _mirrored(width, right)]


def shows_nothing(image: NDArray[Any]) -> bool:
    """Whether an image is the same everywhere, or most of it is overexposed or no finite number: it tells nothing."""
    few = image[:: max(1, image.shape[0] // 8), :: max(1, image.shape[1] // 8)]
    lost = _lost_share(few)
    if lost > _LOST / 2 and _lost_share(image) > _LOST:
        return True
    if lost == 0 and few.min() < few.max():
        return False
    held = image[np.isfinite(image)] if image.dtype.kind == "f" else image
    return held.size == 0 or bool(held.min() == held.max())


def _lost_share(image: NDArray[Any]) -> float:
    """Of pixels that are at the largest value of their type, or not finite."""
    lost = ~np.isfinite(image) if image.dtype.kind == "f" else image == np.iinfo(image.dtype).max
    return float(np.count_nonzero(lost)) / max(1, image.size)


def as_image(pixels: NDArray[Any]) -> Image:
    """Turn what notebooks and files hold into an image: float64, float16, other integers and byte orders.

    Other integers and floats become float32; float64 beyond its range counts as not finite, as do masked pixels.

    Raises:
        FrameError: as `check`.
    """
    if type(pixels) is np.ndarray and pixels.dtype in _DTYPES:
        check(pixels)
        return pixels
    if isinstance(pixels, np.ma.MaskedArray) and pixels.dtype.kind in "iuf":
        pixels = np.ma.filled(pixels.astype(np.float32), np.nan)
    if isinstance(pixels, np.ndarray) and pixels.dtype.kind in "iuf":
        native = pixels.dtype.newbyteorder("=")
        with np.errstate(over="ignore"):
            image: Image = pixels.astype(native if native in _DTYPES else np.float32, copy=False)
        check(image)
        return image
    check(pixels)
    return pixels


def check(image: Image) -> None:
    """Raise `FrameError` unless an image has a shape and dtype that can be segmented."""
    if not isinstance(image, np.ndarray) or image.ndim != 2:
        raise FrameError(f"image of shape {np.shape(image)} cannot be segmented; allowed: (height, width)")
    if min(image.shape) < _MIN_SIDE_PX:
        raise FrameError(
            f"image of shape {image.shape} cannot be segmented; allowed: sides of {_MIN_SIDE_PX} px or more"
        )
    if image.dtype not in _DTYPES:
        raise FrameError(f"image of dtype {image.dtype} cannot be segmented; allowed: uint8, uint16, float32")


def _mirrored(n: int, more: int) -> NDArray[np.intp]:
    """Which of `n` rows stand in the `more` rows beyond them: the last one first, back and forth as often as needed."""
    return np.pad(np.arange(n), (0, more), mode="symmetric")[n:]
