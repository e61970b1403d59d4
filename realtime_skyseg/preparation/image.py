"""Images as they are prepared: float32, finite, brought to a crop."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.config import PrepareSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Image

FloatImage = NDArray[np.float32]

#: Darker parts of an illumination count as this much of its mean.
_DARKEST = 0.05


def crop(settings: PrepareSettings, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a frame of (height, width) that are analysed.

    Raises:
        SettingsError: they reach beyond the frame.
    """
    if settings.crop_px is None:
        return slice(0, shape[0]), slice(0, shape[1])
    left, top, width, height = settings.crop_px
    if left + width > shape[1] or top + height > shape[0]:
        raise SettingsError(
            f"prepare.crop_px: {list(settings.crop_px)} reaches beyond the frame; "
            f"allowed: [left, top, width, height] within {shape[1]} x {shape[0]} px"
        )
    return slice(top, top + height), slice(left, left + width)


def relative_to_mean(illumination: FloatImage) -> FloatImage:
    """An illumination in units of its mean, nowhere near zero."""
    mean = float(illumination.mean())
    if not mean > 0:
        return np.ones_like(illumination)
    relative: FloatImage = np.maximum(illumination / np.float32(mean), np.float32(_DARKEST))
    return relative


def gains_of(illumination: FloatImage, area: tuple[slice, slice]) -> FloatImage:
    """What an illumination is evened out with, in an area of the frame."""
    gains: FloatImage = np.ascontiguousarray(1 / illumination[area])
    return gains


def finite_copy(image: Image) -> FloatImage:
    """A copy as float32, in which pixels that are not finite have the median's value."""
    copy: FloatImage = image.astype(np.float32)
    if copy.dtype.kind == image.dtype.kind and not math.isfinite(cv2.mean(copy)[0]):
        bad = ~np.isfinite(copy)
        copy[bad] = np.median(copy[~bad]) if not bad.all() else 0.0
    return copy
