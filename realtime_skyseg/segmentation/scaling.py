"""The one place where grey levels become the network's input, in training and live alike."""

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import FrameError
from realtime_skyseg.records import Image

#: Percentiles are taken on at most about this many pixels, on a regular grid: sorting all of them costs more
#: than the network on a small frame, and 1 % of 20,000 pixels is known to a few per cent of itself.
_SAMPLE_PX = 20_000

_MIN_SIDE_PX = 16


def scale(image: Image, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Scale an image to (image - median) / (99th percentile - 1st percentile).

    Independent of offset and contrast, and odd under inversion: scale(255 - image) == -scale(image) up to
    rounding. A constant image gives zeros. Pixels that are not finite count as the median.

    Args:
        image: (height, width), uint8, uint16 or float32.
        out: (height, width) float32 to write to; allocated where absent.

    Returns:
        (height, width) float32.

    Raises:
        FrameError: the shape or dtype is not one of the above.
    """
    check(image)
    if out is None:
        out = np.empty(image.shape, np.float32)
    step = max(1, int((image.size / _SAMPLE_PX) ** 0.5))
    sample = image[::step, ::step].ravel()
    floating = image.dtype == np.float32
    if floating:
        sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        out.fill(0.0)
        return out
    low, median, high = _order_statistics(sample)
    spread = high - low
    if not spread > 0:
        # A constant background with few bright pixels on it still deserves a scale.
        finite = image[np.isfinite(image)] if floating else image
        spread = float(finite.max()) - float(finite.min())
    gain = 1.0 / spread if spread > 0 else 0.0
    with np.errstate(invalid="ignore", over="ignore"):  # pixels that are not finite are put right below
        np.multiply(image, np.float32(gain), out=out, casting="unsafe")
        out -= np.float32(median * gain)
    if floating:
        np.copyto(out, np.float32(0.0), where=~np.isfinite(out))
    return out


def scale_mirrored(image: Image, out: NDArray[np.float32]) -> None:
    """Scale an image into the upper left of a larger array, and mirror it into the rest.

    Args:
        image: (height, width), see `scale`.
        out: float32 to write to, at least (height, width).
    """
    height, width = image.shape
    scale(image, out[:height, :width])
    below, right = out.shape[0] - height, out.shape[1] - width
    if below:
        out[height:, :width] = out[_mirrored(height, below), :width]
    if right:
        out[:, width:] = out[:, _mirrored(width, right)]


def check(image: Image) -> None:
    """Raise `FrameError` unless an image has a shape and dtype that can be segmented."""
    if not isinstance(image, np.ndarray) or image.ndim != 2:
        raise FrameError(f"image of shape {np.shape(image)} cannot be segmented; allowed: (height, width)")
    if min(image.shape) < _MIN_SIDE_PX:
        raise FrameError(
            f"image of shape {image.shape} cannot be segmented; allowed: sides of {_MIN_SIDE_PX} px or more"
        )
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise FrameError(f"image of dtype {image.dtype} cannot be segmented; allowed: uint8, uint16, float32")


def _mirrored(n: int, more: int) -> NDArray[np.intp]:
    """Which of `n` rows stand in the `more` rows beyond them: the last one first, back and forth as often as needed."""
    return np.pad(np.arange(n), (0, more), mode="symmetric")[n:]


def _order_statistics(
    sample: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32],
) -> tuple[float, float, float]:
    """1st percentile, median and 99th percentile, mirrored into each other when the sample is inverted."""
    last = sample.size - 1
    rank = last // 100
    ranks = [rank, last // 2, last - last // 2, last - rank]
    ordered = np.partition(sample, sorted(set(ranks)))
    low, below, above, high = (float(ordered[r]) for r in ranks)
    return low, (below + above) / 2, high
