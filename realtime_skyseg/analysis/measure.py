"""Connected components of class skyrmion, measured."""

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.config import Polarity
from realtime_skyseg.records import OBJECT_DTYPE, Class, Kind, Mask, Objects, Segmentation

#: Side of the neighbourhood whose background an object is compared with, in steps of `_COARSE` px.
_NEIGHBOURHOOD = 17
_COARSE = 4


def measure(
    mask: Mask,
    min_area_px: int = 10,
    stripe_slenderness: float = 3.0,
    image: NDArray[np.float32] | None = None,
    polarity: Polarity = "auto",
) -> Segmentation:
    """Find and measure the objects of a mask.

    An object is an 8-connected component of class skyrmion of at least `min_area_px`. It is a stripe where its
    area is at least `stripe_slenderness` times that of the largest disc inside it, else a skyrmion: unlike the
    ratio of axes this also tells a bent stripe and a maze from a disc.

    All skyrmions of an image are dark, or all are bright: they are reversed domains of one film. Where the image is
    given, objects of the other polarity become background in the mask, which is changed in place. An object's
    polarity is that of its mean against the background around it.

    Args:
        mask: (height, width) uint8 of `Class` values.
        min_area_px: smallest area of an object.
        stripe_slenderness: > 1; 4 / pi * length / width for a long stripe.
        image: (height, width) float32, scaled, of which the mask was made.
        polarity: `auto` keeps that of the larger part of what was found, by area and contrast.

    Returns:
        The mask itself with its table of objects and its counts.
    """
    runs = _Runs(mask)
    if image is not None and polarity != "both" and len(runs.label):
        contrast = _contrast(image, mask, runs)
        sign = {"auto": float(np.sign(contrast @ runs.area)), "dark": -1.0, "bright": 1.0}[polarity]
        other = contrast * sign < 0
        if other.any():
            runs = runs.without(other, mask)
    objects = _table(runs, min_area_px, stripe_slenderness)
    stripes = int(np.count_nonzero(objects["kind"] == Kind.STRIPE))
    on_sample = mask.size - int(np.count_nonzero(mask == Class.OUTSIDE))
    return Segmentation(
        mask=mask,
        objects=objects,
        count=len(objects) - stripes,
        stripes=stripes,
        area_fraction=float(runs.length.sum()) / on_sample if on_sample else 0.0,
    )


class _Runs:
    """The skyrmion pixels of a mask as runs along rows: some ten times fewer than pixels.

    Attributes:
        foreground: (height + 2, width + 2) uint8, 1 where the mask is skyrmion, with a border of 0: no run reaches
            from row to row, and an object that the image cuts off is no wider than what is seen of it.
        ends: of the runs in the flattened foreground, start and end (exclusive) in turn, rising.
        label: of each run, 1 and up; row, column and length of each in px.
        area: of each label in px, float64; 0 for label 0, which is everything else.
        left, top, right, bottom: of each label, inclusive.
    """

    def __init__(self, mask: Mask) -> None:
        height, width = mask.shape
        self.foreground = np.zeros((height + 2, width + 2), np.uint8)
        np.equal(mask, Class.SKYRMION, out=self.foreground[1:-1, 1:-1].view(np.bool_))
        n_labels, labels = cv2.connectedComponents(self.foreground, connectivity=8, ltype=cv2.CV_32S)
        flat = self.foreground.ravel()
        self.ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        start = self.ends[::2]
        self.label: NDArray[np.int32] = np.asarray(labels, np.int32).ravel()[start]
        self.length = self.ends[1::2] - start
        self.row, self.column = np.divmod(start, width + 2)
        self.row -= 1
        self.column -= 1
        self.area = np.bincount(self.label, self.length, n_labels)
        self.left = np.full(n_labels, width)
        self.right = np.zeros(n_labels, int)
        np.minimum.at(self.left, self.label, self.column)
        np.maximum.at(self.right, self.label, self.column + self.length - 1)
        # Of a repeated index the last assignment counts, and runs are in the order of rows.
        self.top, self.bottom = np.zeros(n_labels, int), np.zeros(n_labels, int)
        self.top[self.label[::-1]] = self.row[::-1]
        self.bottom[self.label] = self.row

    def without(self, labels: NDArray[np.bool_], mask: Mask) -> "_Runs":
        """The runs of the other labels; those given become background in the mask."""
        drop = labels[self.label]
        start, length = self.row[drop] * mask.shape[1] + self.column[drop], self.length[drop]
        first = np.repeat(start - (np.cumsum(length) - length), length)
        mask.flat[first + np.arange(len(first))] = Class.BACKGROUND
        return _Runs(mask)


def _contrast(image: NDArray[np.float32], mask: Mask, runs: _Runs) -> NDArray[np.float64]:
    """Mean of each object minus the mean of the background around it; 0 for label 0.

    The background is sampled on a coarse grid, and only where the mask says so: neither illumination nor a
    substrate or dirt nearby turns an object's sign.
    """
    is_background = (mask[::_COARSE, ::_COARSE] == Class.BACKGROUND).astype(np.float32)
    box = (_NEIGHBOURHOOD, _NEIGHBOURHOOD)
    weight = np.asarray(cv2.blur(is_background, box))
    total = np.asarray(cv2.blur(image[::_COARSE, ::_COARSE] * is_background, box))
    height, width = weight.shape
    row = np.minimum((runs.top + runs.bottom + 1) // 2 // _COARSE, height - 1)
    column = np.clip((runs.left + runs.right + 1) // 2 // _COARSE, 0, width - 1)
    # The median of a scaled image is 0: what an object without any background around it is compared with.
    around = total[row, column] / np.maximum(weight[row, column], 1e-6)
    ends = np.empty_like(runs.ends)
    ends[::2] = runs.row * image.shape[1] + runs.column
    ends[1::2] = ends[::2] + runs.length
    sums = _reduce(np.add, image, ends)
    contrast: NDArray[np.float64] = np.bincount(runs.label, sums, len(runs.area)) / np.maximum(runs.area, 1) - around
    contrast[0] = 0
    return contrast


def _reduce(function: np.ufunc, values: NDArray[np.float32], ends: NDArray[np.int64]) -> NDArray[np.float32]:
    """Reduce the values (2-D) of each run."""
    flat = values.ravel()
    # The last run may end with the values, and then its end is no index.
    inner = ends[:-1] if ends[-1] == flat.size else ends
    return np.asarray(function.reduceat(flat, inner)[::2], np.float32)


def _table(runs: _Runs, min_area_px: int, stripe_slenderness: float) -> Objects:
    kept = np.flatnonzero(runs.area >= min_area_px)
    kept = kept[kept > 0]  # label 0 is everything else
    objects: Objects = np.zeros(len(kept), OBJECT_DTYPE)
    if not len(kept):
        return objects
    label, n, n_labels = runs.label, runs.length, len(runs.area)
    area, left, top, right, bottom = (
        values[kept] for values in (runs.area, runs.left, runs.top, runs.right, runs.bottom)
    )

    # Second moments from sums over each run in closed form. Coordinates are taken relative to each box's corner, so
    # that the sums stay small and exact.
    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.bincount(label, values, n_labels)[kept] / area)

    x, y = runs.column - runs.left[label], runs.row - runs.top[label]
    sum_x = n * x + n * (n - 1) // 2
    sum_xx = n * x * x + x * n * (n - 1) + (n - 1) * n * (2 * n - 1) // 6
    mean_x, mean_y = mean(sum_x), mean(n * y)
    # 1/12: a pixel is a square, not a point.
    var_x = mean(sum_xx) - mean_x**2 + 1 / 12
    var_y = mean(n * y * y) - mean_y**2 + 1 / 12
    covariance = mean(sum_x * y) - mean_x * mean_y
    middle, half = (var_x + var_y) / 2, np.hypot((var_x - var_y) / 2, covariance)

    inside = cv2.distanceTransform(runs.foreground, cv2.DIST_L2, 3)
    radius = np.zeros(n_labels, np.float32)
    np.maximum.at(radius, label, _reduce(np.maximum, np.asarray(inside), runs.ends))
    disc = np.pi * np.maximum(radius[kept], 1.0) ** 2

    height, width = runs.foreground.shape[0] - 2, runs.foreground.shape[1] - 2
    objects["x"], objects["y"] = left + mean_x, top + mean_y
    objects["area"] = area
    objects["left"], objects["top"] = left, top
    objects["width"], objects["height"] = right - left + 1, bottom - top + 1
    objects["diameter"] = np.sqrt(4 * area / np.pi)
    objects["elongation"] = np.sqrt((middle + half) / (middle - half))
    objects["kind"] = np.where(area >= stripe_slenderness * disc, Kind.STRIPE, Kind.SKYRMION)
    objects["border"] = (left == 0) | (top == 0) | (right == width - 1) | (bottom == height - 1)
    return objects
