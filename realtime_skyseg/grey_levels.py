"""Where the grey levels of an image lie."""

import numpy as np
from numba import int64, njit, uint8, uint16
from numba.core.types import Array
from numba.extending import register_jitable

from realtime_skyseg.records import Image

#: Percentiles are taken on at most about this many pixels, on a regular grid: to sort all of them (floats) costs
#: more than the network on a small frame, and 1 % of 20,000 pixels is known to a few per cent of itself.
_SAMPLE_PX = 20_000


def percentiles(image: Image) -> tuple[float, float]:
    """Median and 1 / (99th - 1st percentile); a gain of 0 where all pixels are equal or none is finite.

    The median is the mean of its two neighbours, and the percentiles mirror each other, so that an inverted image
    gives the inverted result.
    """
    step = max(1, int((image.size / _SAMPLE_PX) ** 0.5))
    if image.dtype == np.float32:
        sample = image[::step, ::step]
        sample = sample[np.isfinite(sample)]
        if sample.size == 0:
            return 0.0, 0.0
        ranks = _ranks(sample.size)
        ordered = np.partition(sample, sorted(set(ranks)))
        low, below, above, high = (float(ordered[rank]) for rank in ranks)
    else:
        low, below, above, high = _count_levels(image, step)
    spread = high - low
    if not spread > 0:
        # A constant background with few bright pixels on it still deserves a scale.
        finite = image[np.isfinite(image)] if image.dtype == np.float32 else image
        spread = float(finite.max()) - float(finite.min())
    return (below + above) / 2, 1.0 / spread if spread > 0 else 0.0


@register_jitable
def _ranks(size: int) -> tuple[int, int, int, int]:
    """Of the 1st percentile, the two next to the median, and the 99th percentile."""
    last = size - 1
    return last // 100, last // 2, last - last // 2, last - last // 100


@njit(
    [(Array(kind, 2, "A", readonly=True), int64) for kind in (uint8, uint16)],
    cache=True,
)
def _count_levels(image: Image, step: int) -> tuple[float, float, float, float]:
    """Grey levels at the four ranks, on every so many pixels: by counting all levels, in a tenth of sorting's time."""
    sample = image[::step, ::step]
    counts = np.zeros(256 if image.itemsize == 1 else 65536, np.int32)
    for y in range(sample.shape[0]):
        for x in range(sample.shape[1]):
            counts[sample[y, x]] += 1
    levels = np.empty(4)
    upto = level = 0
    for number, rank in enumerate(_ranks(sample.size)):
        while upto + counts[level] <= rank:
            upto += counts[level]
            level += 1
        levels[number] = level
    return levels[0], levels[1], levels[2], levels[3]
