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
    skyrmion = mask == Class.SKYRMION
    foreground = skyrmion.view(np.uint8)
    n_labels, labels, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8, ltype=cv2.CV_32S)
    pixels = np.flatnonzero(skyrmion)
    if image is not None and polarity != "both" and pixels.size:
        label = labels.ravel()[pixels]
        contrast = _contrast(image, mask, label, stats, pixels)
        sign = {"auto": np.sign(contrast @ stats[:, cv2.CC_STAT_AREA]), "dark": -1.0, "bright": 1.0}[polarity]
        other = contrast * sign < 0
        if other.any():
            dropped = pixels[other[label]]
            mask.flat[dropped] = Class.BACKGROUND
            foreground.flat[dropped] = 0
            stats[other, cv2.CC_STAT_AREA] = 0
            pixels = pixels[~other[label]]
    objects = _table(foreground, labels, stats, n_labels, pixels, min_area_px, stripe_slenderness)
    stripes = int(np.count_nonzero(objects["kind"] == Kind.STRIPE))
    on_sample = mask.size - int(np.count_nonzero(mask == Class.OUTSIDE))
    return Segmentation(
        mask=mask,
        objects=objects,
        count=len(objects) - stripes,
        stripes=stripes,
        area_fraction=pixels.size / on_sample if on_sample else 0.0,
    )


def _contrast(
    image: NDArray[np.float32], mask: Mask, label: np.ndarray, stats: np.ndarray, pixels: np.ndarray
) -> NDArray[np.float64]:
    """Mean of each object minus the mean of the background around it; 0 for label 0.

    The background is averaged on a coarse grid, and only where the mask says so: neither illumination nor a
    substrate or dirt nearby turns an object's sign.
    """
    size = (-(-image.shape[1] // _COARSE), -(-image.shape[0] // _COARSE))
    is_background = (mask == Class.BACKGROUND).astype(np.float32)
    box = (_NEIGHBOURHOOD, _NEIGHBOURHOOD)
    weight, total = (
        np.asarray(cv2.blur(cv2.resize(values, size, interpolation=cv2.INTER_AREA), box))
        for values in (is_background, image * is_background)
    )
    area = np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
    # Without any background pixel the box of label 0 is nonsense.
    row = np.clip((stats[:, cv2.CC_STAT_TOP] + stats[:, cv2.CC_STAT_HEIGHT] // 2) // _COARSE, 0, size[1] - 1)
    column = np.clip((stats[:, cv2.CC_STAT_LEFT] + stats[:, cv2.CC_STAT_WIDTH] // 2) // _COARSE, 0, size[0] - 1)
    # The median of a scaled image is 0: what an object without any background around it is compared with.
    around = total[row, column] / np.maximum(weight[row, column], 1e-6)
    contrast: NDArray[np.float64] = np.bincount(label, image.ravel()[pixels], len(stats)) / area - around
    contrast[0] = 0
    return contrast


def _table(
    foreground: np.ndarray,
    labels: np.ndarray,
    stats: np.ndarray,
    n_labels: int,
    pixels: np.ndarray,
    min_area_px: int,
    stripe_slenderness: float,
) -> Objects:
    height, width = foreground.shape
    area = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
    kept = np.flatnonzero(area >= min_area_px)
    kept = kept[kept > 0]  # label 0 is everything else
    objects: Objects = np.zeros(len(kept), OBJECT_DTYPE)
    if not len(kept):
        return objects

    # Second moments from sums over the foreground's pixels alone. Coordinates are taken relative to each box's
    # corner, so that the sums stay small and exact.
    label = labels.ravel()[pixels]
    rows, columns = np.divmod(pixels, width)
    y = rows - stats[label, cv2.CC_STAT_TOP]
    x = columns - stats[label, cv2.CC_STAT_LEFT]

    def mean(values: np.ndarray) -> np.ndarray:
        total: np.ndarray = np.bincount(label, values, n_labels)[kept]
        return total / area[kept]

    mean_x, mean_y = mean(x), mean(y)
    # 1/12: a pixel is a square, not a point.
    var_x = mean(x * x) - mean_x**2 + 1 / 12
    var_y = mean(y * y) - mean_y**2 + 1 / 12
    covariance = mean(x * y) - mean_x * mean_y
    middle, half = (var_x + var_y) / 2, np.hypot((var_x - var_y) / 2, covariance)

    # A border of one pixel, so that an object that the image cuts off is no wider than what is seen of it.
    framed = cv2.copyMakeBorder(foreground, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
    radius = np.zeros(n_labels, np.float32)
    np.maximum.at(radius, label, inside[rows, columns])
    disc = np.pi * np.maximum(radius[kept], 1.0) ** 2

    left, top, box_width, box_height = (stats[kept, column] for column in range(4))
    objects["x"], objects["y"] = left + mean_x, top + mean_y
    objects["area"] = area[kept]
    objects["left"], objects["top"], objects["width"], objects["height"] = left, top, box_width, box_height
    objects["diameter"] = np.sqrt(4 * area[kept] / np.pi)
    objects["elongation"] = np.sqrt((middle + half) / (middle - half))
    objects["kind"] = np.where(area[kept] >= stripe_slenderness * disc, Kind.STRIPE, Kind.SKYRMION)
    objects["border"] = (left == 0) | (top == 0) | (left + box_width == width) | (top + box_height == height)
    return objects
