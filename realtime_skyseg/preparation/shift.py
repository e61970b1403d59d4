"""Shifting an image by a part of a px, without losing its noise's fineness: interpolation by Lanczos."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.preparation.image import FloatImage

#: Half the width of the interpolation (Lanczos) that shifts the background.
LANCZOS = 4


def pad(image: FloatImage, margin: int) -> FloatImage:
    """The image with `margin` px more on each side, that repeat its border."""
    return np.asarray(cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REPLICATE), np.float32)


def shift_image(image: FloatImage, right: float, down: float) -> FloatImage:
    """An image shifted by a part of a px or more."""
    margin = math.ceil(max(abs(right), abs(down))) + LANCZOS + 1
    out = np.empty([side + 2 * LANCZOS for side in image.shape], np.float32)
    return shift_inside(pad(image, margin), margin, right, down, out)


def shift_inside(padded: FloatImage, margin: int, right: float, down: float, out: FloatImage) -> FloatImage:
    """The inside of an image that has a margin, after a shift of less than the margin - `LANCZOS`.

    Args:
        padded: with `margin` px on each side.
        margin: see there.
        right: shift in px.
        down: shift in px.
        out: work space, `LANCZOS` px larger than the inside on each side; the answer is a view of it or of `padded`.
    """
    height, width = (side - 2 * margin for side in padded.shape)
    whole_x, whole_y = round(right), round(down)
    top, left = margin - whole_y, margin - whole_x
    if (whole_x, whole_y) == (right, down):
        return padded[top : top + height, left : left + width]
    seen = padded[
        top - LANCZOS : top + height + LANCZOS,
        left - LANCZOS : left + width + LANCZOS,
    ]
    cv2.sepFilter2D(seen, cv2.CV_32F, _lanczos(right - whole_x), _lanczos(down - whole_y), out)
    return out[LANCZOS:-LANCZOS, LANCZOS:-LANCZOS]


def _lanczos(shift: float) -> NDArray[np.float32]:
    """Weights of the px from `LANCZOS` before to `LANCZOS` after that shift by up to half a px."""
    weights = sinc_weights(np.array([-shift]), np.arange(-LANCZOS, LANCZOS + 1), LANCZOS)
    kernel: NDArray[np.float32] = weights[0].astype(np.float32)
    return kernel


def sinc_weights(at: NDArray[np.float64], places: NDArray[np.int_], width: int) -> NDArray[np.float64]:
    """Weights (at, places), of sum 1, that interpolate: a sinc under the window of Lanczos, `width` to each side."""
    distance = at[:, None] - places[None, :]
    weights = np.where(np.abs(distance) < width, np.sinc(distance) * np.sinc(distance / width), 0.0)
    normal: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normal


_Part = tuple[slice, slice]


def overlap_of(shape: tuple[int, int], right: int, down: int) -> tuple[_Part, _Part, tuple[_Part, _Part]]:
    """Where the pixels of an image go that moves by whole px, where they come from, and which ones get nothing."""
    to, of, beyond = [], [], []
    for side, move in zip(shape, (down, right), strict=True):
        to.append(slice(max(0, move), side + min(0, move)))
        of.append(slice(max(0, -move), side - max(0, move)))
        beyond.append(slice(0, move) if move > 0 else slice(side + move, side))
    return (to[0], to[1]), (of[0], of[1]), ((beyond[0], slice(None)), (to[0], beyond[1]))
