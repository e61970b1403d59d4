"""Connected components of class skyrmion, measured.

The loops over pixels are compiled by numba at their first call and kept beside this file, or in the user's cache
folder. They hold no lock of Python's, so that camera and recorder go on meanwhile.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from realtime_skyseg.config import Polarity
from realtime_skyseg.records import OBJECT_DTYPE, Class, Kind, Mask, Objects, Segmentation

#: Side of the neighbourhood whose background an object is compared with, in steps of `_COARSE` px.
_NEIGHBOURHOOD = 17
_COARSE = 4

_SKYRMION, _BACKGROUND = int(Class.SKYRMION), int(Class.BACKGROUND)


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
        The mask itself with its table of objects, in the order of their first pixels, and its counts.
    """
    runs, components = _find_runs(mask)
    shapes = _measure_shapes(runs, components)
    kept = np.ones(components, np.bool_)
    if image is not None and polarity != "both" and components:
        contrast = _contrast(image, mask, runs, shapes)
        sign = {"auto": float(np.sign(contrast @ shapes.area)), "dark": -1.0, "bright": 1.0}[polarity]
        kept = contrast * sign >= 0
        if not kept.all():
            _erase(mask, runs, kept)
    on_sample = mask.size - int(np.count_nonzero(mask == Class.OUTSIDE))
    area_fraction = float(shapes.area[kept].sum()) / on_sample if on_sample else 0.0
    kept &= shapes.area >= min_area_px
    disc = np.pi * _inner_radius(runs, mask.shape, components)[kept] ** 2
    objects = _table(_Shapes(*(column[kept] for column in shapes)), mask.shape)
    objects["kind"] = np.where(objects["area"] >= stripe_slenderness * disc, Kind.STRIPE, Kind.SKYRMION)
    stripes = int(np.count_nonzero(objects["kind"] == Kind.STRIPE))
    return Segmentation(
        mask=mask, objects=objects, count=len(objects) - stripes, stripes=stripes, area_fraction=area_fraction
    )


class _Runs(NamedTuple):
    """The skyrmion pixels of a mask as runs along rows, some ten times fewer than pixels; (runs,) int32 each."""

    row: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]  # exclusive
    component: NDArray[np.int32]  # 0 and up, in the order of their first pixels


class _Shapes(NamedTuple):
    """Of each component: area, box and second moments in px and px^2; (components,) float64 each."""

    area: NDArray[np.float64]
    left: NDArray[np.float64]
    top: NDArray[np.float64]
    right: NDArray[np.float64]  # inclusive, as bottom
    bottom: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    yy: NDArray[np.float64]
    xy: NDArray[np.float64]


@njit(cache=True, nogil=True)
def _root(parent: NDArray[np.int32], run: int) -> int:
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


@njit(cache=True, nogil=True)
def _find_runs(mask: Mask) -> tuple[_Runs, int]:
    """Find the runs, and unite those that touch, also at a corner, into components; return how many there are.

    Source: run-based labelling with union-find, as in L. He, Y. Chao, K. Suzuki, IEEE Trans. Image Process. 17, 749
    (2008), https://doi.org/10.1109/TIP.2008.919369.
    """
    height, width = mask.shape
    most = height * (width // 2 + 1)  # a page of memory that is not written to costs nothing
    row, start, end = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    parent = np.empty(most, np.int32)
    runs = above = above_end = 0  # runs[above:above_end]: those of the row above that were not passed yet
    for y in range(height):
        line, first, x = mask[y], runs, 0
        while x < width:
            if line[x] != _SKYRMION:
                x += 1
                continue
            begun = x
            while x < width and line[x] == _SKYRMION:
                x += 1
            row[runs], start[runs], end[runs], parent[runs] = y, begun, x, runs
            while above < above_end and end[above] < begun:
                above += 1
            touching = above
            while touching < above_end and start[touching] <= x:
                one, other = _root(parent, touching), _root(parent, runs)
                parent[max(one, other)] = min(one, other)
                touching += 1
            runs += 1
        above, above_end = first, runs
    component, components = np.empty(runs, np.int32), 0
    for run in range(runs):
        root = _root(parent, run)
        if root == run:
            component[run] = components
            components += 1
        else:
            component[run] = component[root]
    return _Runs(row[:runs].copy(), start[:runs].copy(), end[:runs].copy(), component), components


@njit(cache=True, nogil=True)
def _measure_shapes(runs: _Runs, components: int) -> _Shapes:
    """Second moments from sums over each run in closed form, relative to the first pixel: small and exact."""
    area, x, y = np.zeros(components), np.zeros(components), np.zeros(components)
    xx, yy, xy = np.zeros(components), np.zeros(components), np.zeros(components)
    left, top = np.full(components, np.inf), np.full(components, np.inf)
    right, bottom = np.zeros(components), np.zeros(components)
    first = np.zeros(components)  # column of the first pixel; its row is the top
    for run in range(len(runs.row)):
        c, row = runs.component[run], float(runs.row[run])
        start, end = float(runs.start[run]), float(runs.end[run])
        if area[c] == 0:
            top[c], first[c] = row, start
        n, u, v = end - start, start - first[c], row - top[c]
        along = n * u + n * (n - 1) / 2
        area[c] += n
        x[c] += along
        y[c] += n * v
        xx[c] += n * u * u + u * n * (n - 1) + (n - 1) * n * (2 * n - 1) / 6
        yy[c] += n * v * v
        xy[c] += along * v
        left[c], right[c], bottom[c] = min(left[c], start), max(right[c], end - 1), row
    x /= area
    y /= area
    # 1/12: a pixel is a square, not a point.
    xx = xx / area - x * x + 1 / 12
    yy = yy / area - y * y + 1 / 12
    xy = xy / area - x * y
    return _Shapes(area, left, top, right, bottom, x + first, y + top, xx, yy, xy)


@njit(cache=True, nogil=True)
def _sum_values(runs: _Runs, image: NDArray[np.float32], components: int) -> NDArray[np.float64]:
    sums = np.zeros(components)
    for run in range(len(runs.row)):
        line, total = image[runs.row[run]], np.float32(0)
        for x in range(runs.start[run], runs.end[run]):
            total += line[x]
        sums[runs.component[run]] += total
    return sums


@njit(cache=True, nogil=True)
def _erase(mask: Mask, runs: _Runs, kept: NDArray[np.bool_]) -> None:
    """Make background of the components that are not kept."""
    for run in range(len(runs.row)):
        if not kept[runs.component[run]]:
            mask[runs.row[run], runs.start[run] : runs.end[run]] = _BACKGROUND


@njit(cache=True, nogil=True)
def _inner_radius(runs: _Runs, shape: tuple[int, int], components: int) -> NDArray[np.float64]:
    """Radius of the largest disc inside each component, at least 1 px; the image's border counts as its edge.

    Source: the 3x3 chamfer distance, with its best steps of .955 and 1.3693 px, of G. Borgefors, Comput. Vis. Graph.
    Image Process. 34, 344 (1986), https://doi.org/10.1016/S0734-189X(86)80047-0; along the runs only.
    """
    straight, diagonal = np.float32(0.955), np.float32(1.3693)
    distance = np.zeros((shape[0] + 2, shape[1] + 2), np.float32)  # 0 around the image
    radius = np.ones(components)
    for run in range(len(runs.row)):
        row, start, end = runs.row[run], runs.start[run], runs.end[run]
        above, line, nearest = distance[row, start : end + 2], distance[row + 1, start + 1 : end + 1], np.float32(0)
        for x in range(end - start):
            through = min(above[x + 1] + straight, min(above[x], above[x + 2]) + diagonal)
            line[x] = nearest = min(nearest + straight, through)
    for run in range(len(runs.row) - 1, -1, -1):
        row, start, end = runs.row[run], runs.start[run], runs.end[run]
        below, line, nearest = distance[row + 2, start : end + 2], distance[row + 1, start + 1 : end + 1], np.float32(0)
        largest = np.float32(0)
        for x in range(end - start - 1, -1, -1):
            through = min(below[x + 1] + straight, min(below[x], below[x + 2]) + diagonal)
            line[x] = nearest = min(nearest + straight, min(line[x], through))
            largest = max(largest, nearest)
        radius[runs.component[run]] = max(radius[runs.component[run]], largest)
    return radius


def _contrast(image: NDArray[np.float32], mask: Mask, runs: _Runs, shapes: _Shapes) -> NDArray[np.float64]:
    """Mean of each component minus the mean of the background around it.

    The background is sampled on a coarse grid, and only where the mask says so: neither illumination nor a
    substrate or dirt nearby turns an object's sign.
    """
    is_background = (mask[::_COARSE, ::_COARSE] == Class.BACKGROUND).astype(np.float32)
    box = (_NEIGHBOURHOOD, _NEIGHBOURHOOD)
    weight = np.asarray(cv2.blur(is_background, box))
    total = np.asarray(cv2.blur(image[::_COARSE, ::_COARSE] * is_background, box))
    row = ((shapes.top + shapes.bottom + 1) / 2 / _COARSE).astype(np.intp)
    column = ((shapes.left + shapes.right + 1) / 2 / _COARSE).astype(np.intp)
    # The median of a scaled image is 0: what an object without any background around it is compared with.
    around = total[row, column] / np.maximum(weight[row, column], 1e-6)
    contrast: NDArray[np.float64] = _sum_values(runs, image, len(shapes.area)) / shapes.area - around
    return contrast


def _table(shapes: _Shapes, shape: tuple[int, int]) -> Objects:
    objects: Objects = np.zeros(len(shapes.area), OBJECT_DTYPE)
    middle, half = (shapes.xx + shapes.yy) / 2, np.hypot((shapes.xx - shapes.yy) / 2, shapes.xy)
    for name in ("x", "y", "area", "left", "top"):
        objects[name] = getattr(shapes, name)
    objects["width"] = shapes.right - shapes.left + 1
    objects["height"] = shapes.bottom - shapes.top + 1
    objects["diameter"] = np.sqrt(4 / np.pi * shapes.area)
    objects["elongation"] = np.sqrt((middle + half) / (middle - half))
    objects["border"] = (
        (shapes.left == 0) | (shapes.top == 0) | (shapes.right == shape[1] - 1) | (shapes.bottom == shape[0] - 1)
    )
    return objects
