"""Connected components of class skyrmion, measured.

The loops over pixels are compiled by numba at their first call and kept beside this file, or in the user's cache
folder. They hold no lock of Python's, so that camera and recorder go on meanwhile.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from realtime_skyseg.records import OBJECT_DTYPE, Class, Kind, Mask, Objects, Polarity, Segmentation

#: An object is compared with the background up to so far from its middle, in steps of `_COARSE` px.
_REACH = 8
_COARSE = 4

# numba knows no enumerations of integers by their own type.
_SKYRMION, _BACKGROUND, _OUTSIDE = int(Class.SKYRMION), int(Class.BACKGROUND), int(Class.OUTSIDE)
_BOTH = 2  # where -1 keeps dark objects, 1 bright ones, 0 those of the larger part
_NO_IMAGE = np.zeros((0, 0), np.float32)

#: Best steps of a 3x3 chamfer distance, px.
_STRAIGHT, _DIAGONAL = 0.955, 1.3693

_SKYRMION_KIND, _STRIPE = int(Kind.SKYRMION), int(Kind.STRIPE)


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
    sign = {"dark": -1, "auto": 0, "bright": 1, "both": _BOTH}[polarity if image is not None else "both"]
    objects, stripes, area_fraction = _measure(
        mask, _NO_IMAGE if image is None else image, sign, float(min_area_px), stripe_slenderness
    )
    return Segmentation(
        mask=mask, objects=objects, count=len(objects) - stripes, stripes=stripes, area_fraction=area_fraction
    )


class Runs(NamedTuple):
    """The skyrmion pixels of a mask as runs along rows, some ten times fewer than pixels; (runs,) int32 each."""

    row: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]  # exclusive
    component: NDArray[np.int32]  # 0 and up, in the order of their first pixels


_Runs = Runs  # so it was called: what numba keeps of an earlier version beside this file asks for it


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
def find_runs(mask: Mask) -> tuple[Runs, int]:
    """Find the runs, and unite those that touch, also at a corner, into components; return how many there are.

    Source: run-based labelling with union-find, as in L. He, Y. Chao, K. Suzuki, IEEE Trans. Image Process. 17, 749
    (2008), https://doi.org/10.1109/TIP.2008.919369.
    """
    height, width = mask.shape
    most = height * (width // 2 + 1)  # a page of memory that is not written to costs nothing
    row, start, end = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    parent = np.empty(most, np.int32)
    # Where a row turns into class skyrmion or out of it. Without branches, which the processor would guess wrongly at
    # every run: all pixels are compared many at a time, and of each eight with a turn in it all are written down, the
    # next one over those that are none.
    turns = np.zeros((width // 8 + 1) * 8, np.uint8)
    eights = turns.view(np.uint64)
    places = np.empty(len(turns) + 1, np.int32)
    runs = above = above_end = 0  # runs[above:above_end]: those of the row above that were not passed yet
    for y in range(height):
        line, first, found = mask[y], runs, 0
        turns[0], turns[width] = line[0] == _SKYRMION, line[-1] == _SKYRMION
        left, right, inner = line[:-1], line[1:], turns[1:]
        for x in range(width - 1):
            inner[x] = (left[x] == _SKYRMION) != (right[x] == _SKYRMION)
        for eight in range(len(eights)):
            if eights[eight]:
                for x in range(8 * eight, 8 * eight + 8):
                    places[found] = x
                    found += turns[x]
        for turn in range(0, found, 2):
            begun, ended = places[turn], places[turn + 1]
            row[runs], start[runs], end[runs], parent[runs] = y, begun, ended, runs
            while above < above_end and end[above] < begun:
                above += 1
            touching = above
            while touching < above_end and start[touching] <= ended:
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
    return Runs(row[:runs].copy(), start[:runs].copy(), end[:runs].copy(), component), components


def label_image(mask: Mask, objects: Objects, found: tuple[Runs, int] | None = None) -> NDArray[np.int32]:
    """Which object each pixel belongs to: (height, width) int32, 1 and up by row of the table; 0: to none.

    Args:
        mask: (height, width) uint8 of `Class`.
        objects: its table, as `measure` gives it, whole.
        found: what `find_runs` gives, if it was asked before.
    """
    labels = np.zeros(mask.shape, np.int32)
    runs, components = found or find_runs(mask)
    _paint(runs, components, objects["area"].astype(np.int64), objects["top"].astype(np.int64), labels)
    return labels


@njit(cache=True, nogil=True)
def _paint(
    runs: Runs, components: int, area: NDArray[np.int64], top: NDArray[np.int64], labels: NDArray[np.int32]
) -> None:
    number = rows_of_components(runs, components, area, top)
    for run in range(len(runs.row)):
        labels[runs.row[run], runs.start[run] : runs.end[run]] = number[runs.component[run]] + 1


@njit(cache=True, nogil=True)
def rows_of_components(
    runs: Runs, components: int, area: NDArray[np.int64], top: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(components,) row in the table of objects, -1: none. Both stand in the order of their first pixels, so that the
    small ones, which are no objects, are those that are passed over.
    """
    pixels, first = np.zeros(components, np.int64), np.full(components, -1, np.int64)
    for run in range(len(runs.row)):
        component = runs.component[run]
        pixels[component] += runs.end[run] - runs.start[run]
        if first[component] < 0:
            first[component] = runs.row[run]
    number, k = np.full(components, -1, np.int64), 0
    for component in range(components):
        if k < len(area) and pixels[component] == area[k] and first[component] == top[k]:
            number[component] = k
            k += 1
    return number


@njit(cache=True, nogil=True)
def _measure_shapes(runs: Runs, components: int) -> _Shapes:
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
def _keep_polarity(mask: Mask, image: NDArray[np.float32], runs: Runs, shapes: _Shapes, sign: int) -> NDArray[np.bool_]:
    """Make background of components of the other polarity; which are kept.

    Sign -1 keeps dark ones, 1 bright ones, 0 those of the larger part by area and contrast.
    """
    components = len(shapes.area)
    # Mean of each component minus the mean of the background around it.
    contrast = np.zeros(components)
    for run in range(len(runs.row)):
        total = np.float32(0)
        for value in image[runs.row[run], runs.start[run] : runs.end[run]]:
            total += value
        contrast[runs.component[run]] += total
    weights, totals = _sum_background(mask, image)
    rows, columns = weights.shape[0] - 1, weights.shape[1] - 1
    most = 0.0
    for c in range(components):
        row = int(shapes.top[c] + shapes.bottom[c] + 1) // 2 // _COARSE
        column = int(shapes.left[c] + shapes.right[c] + 1) // 2 // _COARSE
        top, bottom = max(row - _REACH, 0), min(row + _REACH + 1, rows)
        left, right = max(column - _REACH, 0), min(column + _REACH + 1, columns)
        weight = weights[bottom, right] - weights[top, right] - weights[bottom, left] + weights[top, left]
        total = totals[bottom, right] - totals[top, right] - totals[bottom, left] + totals[top, left]
        # The median of a scaled image is 0: what an object without any background around it is compared with.
        contrast[c] = contrast[c] / shapes.area[c] - (total / weight if weight else 0.0)
        most += contrast[c] * shapes.area[c]
    if sign == 0:
        sign = int(np.sign(most))
    kept = contrast * sign >= 0
    for run in range(len(runs.row)):
        if not kept[runs.component[run]]:
            mask[runs.row[run], runs.start[run] : runs.end[run]] = _BACKGROUND
    return kept


@njit(cache=True, nogil=True)
def _sum_background(mask: Mask, image: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summed-area tables of the background, how often and how bright it is, on a coarse grid.

    Only where the mask says so: neither illumination nor a substrate or dirt nearby turns an object's sign.
    Source: F. C. Crow, Computer Graphics 18(3), 207 (1984), https://doi.org/10.1145/964965.808600.
    """
    rows, columns = (mask.shape[0] - 1) // _COARSE + 1, (mask.shape[1] - 1) // _COARSE + 1
    weights, totals = np.zeros((rows + 1, columns + 1)), np.zeros((rows + 1, columns + 1))
    for row in range(rows):
        classes, values = mask[row * _COARSE], image[row * _COARSE]
        weight = total = 0.0
        for column in range(columns):
            if classes[column * _COARSE] == _BACKGROUND:
                weight += 1.0
                total += values[column * _COARSE]
            weights[row + 1, column + 1] = weights[row, column + 1] + weight
            totals[row + 1, column + 1] = totals[row, column + 1] + total
    return weights, totals


@njit(cache=True, nogil=True)
def _surely_compact(runs: Runs, shapes: _Shapes, stripe_slenderness: float) -> NDArray[np.bool_]:
    """Which components are no stripe by the disc around their middle alone; the largest one inside may be larger.

    The disc ends at the nearest pixel outside in the distance of `_inner_radius`. In the rows that the component
    covers at its middle column, without a gap from its middle row, that pixel is next to a run; else it is the first
    row that is not covered.
    """
    components = len(shapes.area)
    row, column = np.empty(components, np.int32), np.empty(components, np.int32)
    above, below, covered = (
        np.empty(components, np.int32),
        np.empty(components, np.int32),
        np.empty(components, np.int32),
    )
    for c in range(components):
        row[c], column[c] = round(shapes.y[c]), round(shapes.x[c])
        above[c], below[c], covered[c] = shapes.top[c] - 1, row[c], shapes.top[c] - 1
    for run in range(len(runs.row)):
        c, y = runs.component[run], runs.row[run]
        if runs.start[run] <= column[c] < runs.end[run]:
            if y <= row[c] and y != covered[c] + 1:
                above[c] = y - 1
            if y == below[c]:
                below[c] = y + 1
            covered[c] = y
    radius = np.empty(components)
    for c in range(components):
        inside = below[c] > row[c]
        radius[c] = _STRAIGHT * min(row[c] - above[c], below[c] - row[c]) if inside else 0.0
    for run in range(len(runs.row)):
        c, y = runs.component[run], runs.row[run]
        if above[c] < y < below[c] and runs.start[run] <= column[c] < runs.end[run]:
            along, across = min(column[c] - runs.start[run] + 1, runs.end[run] - column[c]), abs(y - row[c])
            radius[c] = min(radius[c], _STRAIGHT * abs(along - across) + _DIAGONAL * min(along, across))
    return shapes.area < stripe_slenderness * math.pi * radius**2 * (1 - 1e-5)


@njit(cache=True, nogil=True)
def _inner_radius(runs: Runs, wanted: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Radius of the largest disc inside each wanted component, at least 1 px; the image's border counts as its edge.

    Source: the 3x3 chamfer distance, with its best steps of .955 and 1.3693 px, of G. Borgefors, Comput. Vis. Graph.
    Image Process. 34, 344 (1986), https://doi.org/10.1016/S0734-189X(86)80047-0; along the runs only.
    """
    straight, diagonal = np.float32(_STRAIGHT), np.float32(_DIAGONAL)
    radius = np.ones(len(wanted))
    if not wanted.any():
        return radius
    distance = np.zeros((shape[0] + 2, shape[1] + 2), np.float32)  # 0 around the image
    for run in range(len(runs.row)):
        if not wanted[runs.component[run]]:
            continue
        row, start, end = runs.row[run], runs.start[run], runs.end[run]
        above, line, nearest = distance[row, start : end + 2], distance[row + 1, start + 1 : end + 1], np.float32(0)
        for x in range(end - start):
            through = min(above[x + 1] + straight, min(above[x], above[x + 2]) + diagonal)
            line[x] = nearest = min(nearest + straight, through)
    for run in range(len(runs.row) - 1, -1, -1):
        if not wanted[runs.component[run]]:
            continue
        row, start, end = runs.row[run], runs.start[run], runs.end[run]
        below, line, nearest = distance[row + 2, start : end + 2], distance[row + 1, start + 1 : end + 1], np.float32(0)
        largest = np.float32(0)
        for x in range(end - start - 1, -1, -1):
            through = min(below[x + 1] + straight, min(below[x], below[x + 2]) + diagonal)
            line[x] = nearest = min(nearest + straight, min(line[x], through))
            largest = max(largest, nearest)
        radius[runs.component[run]] = max(radius[runs.component[run]], largest)
    return radius


@njit(cache=True, nogil=True)
def _fill_table(
    objects: Objects,
    kept: NDArray[np.bool_],
    shapes: _Shapes,
    radius: NDArray[np.float64],
    stripe_slenderness: float,
    shape: tuple[int, int],
) -> int:
    """Write the objects that are kept; return how many of them are stripes."""
    row = stripes = 0
    for c in range(len(kept)):
        if not kept[c]:
            continue
        area, left, top, right, bottom = (
            shapes.area[c],
            shapes.left[c],
            shapes.top[c],
            shapes.right[c],
            shapes.bottom[c],
        )
        middle = (shapes.xx[c] + shapes.yy[c]) / 2
        half = math.hypot((shapes.xx[c] - shapes.yy[c]) / 2, shapes.xy[c])
        stripe = area >= stripe_slenderness * math.pi * radius[c] ** 2
        stripes += stripe
        found = objects[row]
        found["x"], found["y"], found["area"] = shapes.x[c], shapes.y[c], area
        found["left"], found["top"], found["width"], found["height"] = left, top, right - left + 1, bottom - top + 1
        found["diameter"] = math.sqrt(4 / math.pi * area)
        found["elongation"] = math.sqrt((middle + half) / (middle - half))
        found["kind"] = _STRIPE if stripe else _SKYRMION_KIND
        found["border"] = left == 0 or top == 0 or right == shape[1] - 1 or bottom == shape[0] - 1
        row += 1
    return stripes


@njit(cache=True, nogil=True)
def _measure(
    mask: Mask, image: NDArray[np.float32], sign: int, min_area_px: float, stripe_slenderness: float
) -> tuple[Objects, int, float]:
    """All steps in one call: the objects, how many of them are stripes, the share of the sample that is skyrmion."""
    outside = 0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            outside += mask[y, x] == _OUTSIDE
    runs, components = find_runs(mask)
    shapes = _measure_shapes(runs, components)
    kept = np.ones(components, np.bool_)
    if sign != _BOTH:
        kept = _keep_polarity(mask, image, runs, shapes, sign)
    found, rows = 0.0, 0
    for c in range(components):
        found += shapes.area[c] if kept[c] else 0.0
        kept[c] &= shapes.area[c] >= min_area_px
        rows += kept[c]
    objects = np.zeros(rows, OBJECT_DTYPE)
    compact = _surely_compact(runs, shapes, stripe_slenderness)
    radius = _inner_radius(runs, kept & ~compact, mask.shape)
    radius[compact] = np.inf
    stripes = _fill_table(objects, kept, shapes, radius, stripe_slenderness, mask.shape)
    on_sample = mask.size - outside
    return objects, stripes, found / on_sample if on_sample else 0.0
