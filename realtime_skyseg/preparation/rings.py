"""Interference rings of the light, which a network takes for stripes."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.records import Image

#: The image is looked at made smaller by these factors: by the first whether there may be rings, by the second which.
_FIRST, _SECOND = 4, 2

#: Illumination changes over some so many px, and is no ring.
_SLOW_PX = 80

#: The structure tensor is averaged over cells of this side, in pixels of the smaller image.
_CELL = 16

#: Share of the image's variance, without noise of single pixels, that the mean over circles around one centre has to
#: be: at the first look, and in the end. Of 119 labelled images the most is 0.40, in a film that is one round element;
#: of rings a fifth as strong as the noise, 0.65.
_PERHAPS, _RINGS = 0.3, 0.55

#: Straight stripes have a centre, too, infinitely far away. Rings have one that explains so much more.
_CURVED = 0.15

#: A round domain has a centre. Rings are bright and dark in turn, at least so often.
_ALTERNATIONS = 5

#: The centre may be so many diagonals of the image from its middle.
_FARTHEST = 1.6

#: Smaller than this (px), an image shows too little of rings.
_LEAST_PX = 128


def without_rings(image: Image) -> NDArray[np.float32] | None:
    """The image less its interference rings, which are what is equal along circles around one centre.

    The centre is the point that the directions of steepest change point to, by least squares over the structure tensor
    (J. Bigun and G. Granlund, "Optimal orientation detection of linear symmetry", ICCV 1987), and then where circles
    explain most.

    Args:
        image: (height, width), finite.

    Returns:
        None if there are no rings: the image is as it was.
    """
    if min(image.shape) < _LEAST_PX:
        return None
    small = _shrunk(image, _FIRST)
    if small is None:
        return None
    centre = _centre(small, rounds=5)
    if centre is None or _Circles(small, centre).explained < _PERHAPS:
        return None
    larger = _shrunk(image, _SECOND)
    centre = _centre(larger) if larger is not None else None
    if larger is None or centre is None:
        return None
    circles = _best(larger, centre)
    middle = np.array([larger.shape[1] / 2, larger.shape[0] / 2])
    distance, diagonal = float(np.hypot(*(circles.centre - middle))), float(np.hypot(*larger.shape))
    straight = _Circles(larger, middle + (circles.centre - middle) * (30 * diagonal / max(distance, 1.0)))
    if (
        circles.explained < _RINGS
        or circles.explained - straight.explained < _CURVED
        or circles.alternations() < _ALTERNATIONS
        or distance > _FARTHEST * diagonal
    ):
        return None
    whole = np.asarray(image, np.float32)
    return whole - _Circles(whole - whole.mean(), (circles.centre + 0.5) * _SECOND - 0.5).pattern()


class _Circles:
    """The mean over circles around a centre.

    Args:
        image: (height, width) float32 of mean 0.
        centre: x and y.
    """

    def __init__(self, image: NDArray[np.float32], centre: NDArray[np.float64]) -> None:
        self.centre = centre
        self._shape = image.shape
        y, x = np.ogrid[: image.shape[0], : image.shape[1]]
        x, y = (x - centre[0]).astype(np.float32), (y - centre[1]).astype(np.float32)
        radius = np.sqrt(x * x + y * y).ravel()
        self._radius = radius - radius.min()
        self._ring = self._radius.astype(np.int32)
        values = image.ravel()
        self._n = np.maximum(np.bincount(self._ring), 1)
        total = np.bincount(self._ring, values)
        self._mean = total / self._n
        by_chance = len(self._n) / values.size
        self.explained = float(total @ self._mean / max(float(values @ values), 1e-30)) - by_chance

    def pattern(self) -> NDArray[np.float32]:
        """What an image of nothing but the rings would be; (height, width)."""
        between: Any = np.interp(self._radius, np.arange(len(self._mean)) + 0.5, self._mean)
        return np.asarray(between, np.float32).reshape(self._shape)

    def alternations(self) -> int:
        """How often the mean goes from bright to dark or back, on circles of which the image has enough."""
        mean = np.where(self._n >= 20, self._mean, 0)
        strength = float(np.sqrt((mean**2 * self._n).sum() / self._n.sum()))
        signs = np.sign(mean)[np.abs(mean) > strength / 2]
        return int(np.count_nonzero(np.diff(signs)))


def _shrunk(image: Image, factor: int) -> NDArray[np.float32] | None:
    """The image made smaller, without what changes slowly and with less noise; None if nothing is left."""
    size = image.shape[1] // factor, image.shape[0] // factor
    small: Any = cv2.resize(np.asarray(image, np.float32), size, interpolation=cv2.INTER_AREA)
    slow = 2 * (_SLOW_PX // factor // 2) + 1
    small -= cv2.blur(cv2.blur(small, (slow, slow)), (slow, slow))
    small = cv2.GaussianBlur(small, (0, 0), 3 / factor)
    small -= small.mean()
    return np.asarray(small) if small.any() and np.isfinite(small).all() else None


def _centre(image: NDArray[np.float32], rounds: int = 12) -> NDArray[np.float64] | None:
    """The point (x, y) that what has a direction in each cell points to; None where nothing has."""
    height, width = image.shape
    across: Any = cv2.Sobel(image, cv2.CV_32F, 1, 0)
    down: Any = cv2.Sobel(image, cv2.CV_32F, 0, 1)
    cells = max(width // _CELL, 2), max(height // _CELL, 2)
    xx, yy, xy = (
        np.asarray(cv2.resize(product, cells, interpolation=cv2.INTER_AREA), np.float64)
        for product in (across * across, down * down, across * down)
    )
    # Noise has no direction: what all directions share in a cell says nothing.
    shared = (xx + yy) / 2 - np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    xx, yy = xx - shared, yy - shared
    x = (np.arange(cells[0]) + 0.5) * width / cells[0] - 0.5
    y = ((np.arange(cells[1]) + 0.5) * height / cells[1] - 0.5)[:, None]
    weight = np.ones_like(xx)
    centre = np.array([width / 2, height / 2])
    for _ in range(rounds):  # angles count, not the distances that they mean far away
        a, b, c = (float((weight * product).sum()) for product in (yy, xy, xx))
        right = np.array([(weight * (yy * x - xy * y)).sum(), (weight * (xx * y - xy * x)).sum()])
        if a * c - b * b <= 1e-6 * (a + c) ** 2:
            return None
        centre = np.linalg.solve(np.array([[a, -b], [-b, c]]), right)
        weight = 1 / ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + _CELL**2)
    return centre


def _best(image: NDArray[np.float32], centre: NDArray[np.float64]) -> _Circles:
    """The circles that explain most, around a centre near that one or farther away in its direction."""
    middle = np.array([image.shape[1] / 2, image.shape[0] / 2])
    tried = [_Circles(image, middle + (centre - middle) * farther) for farther in (1, 1.5, 2, 3)]
    best = max(tried, key=lambda circles: circles.explained)
    step = 24.0
    while step >= 0.5:
        around = [best.centre + np.array(move) * step for move in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        next_ = max((_Circles(image, point) for point in around), key=lambda circles: circles.explained)
        if next_.explained > best.explained:
            best = next_
        else:
            step /= 2
    return best
