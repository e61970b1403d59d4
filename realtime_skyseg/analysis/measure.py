"""Connected components of class skyrmion, measured."""

import cv2
import numpy as np

from realtime_skyseg.records import OBJECT_DTYPE, Class, Kind, Mask, Objects, Segmentation


def measure(mask: Mask, min_area_px: int = 10, stripe_slenderness: float = 3.0) -> Segmentation:
    """Find and measure the objects of a mask.

    An object is an 8-connected component of class skyrmion of at least `min_area_px`. It is a stripe where its
    area is at least `stripe_slenderness` times that of the largest disc inside it, else a skyrmion: unlike the
    ratio of axes this also tells a bent stripe and a maze from a disc.

    Args:
        mask: (height, width) uint8 of `Class` values.
        min_area_px: smallest area of an object.
        stripe_slenderness: > 1; 4 / pi * length / width for a long stripe.

    Returns:
        The mask itself with its table of objects and its counts.
    """
    skyrmion = mask == Class.SKYRMION
    foreground = skyrmion.view(np.uint8)
    n_labels, labels, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8, ltype=cv2.CV_32S)
    pixels = np.flatnonzero(skyrmion)
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
