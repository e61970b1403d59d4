"""The shape of each object: axes, orientation, convex hull, holes, contrast."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.analysers.objects import Runs, label_image, rows_of_components
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import Class, Mask

_BACKGROUND = int(Class.BACKGROUND)

#: Pixels around the box of an object in which its probability is weighed.
_RIM = 2

#: Columns of what `_measure` fills.
_MAJOR, _MINOR, _ORIENTATION, _HULL, _HOLES, _CONTRAST, _NOISE = range(7)


class ShapeSettings(AnalyserSettings):
    """By which definitions."""

    point_pixels: bool = False
    """True: a pixel counts as a point in the second moments, as in the notebooks of the Skyrmion U-Net, and all columns
    are equal to theirs; else as a square, of which the moments are larger by 1/12 px^2."""
    weighted: bool = False
    """True: the centroid is weighted by the network's probability, too, which takes the network a second time."""
    ring_px: Annotated[int, Field(ge=1, le=50)] = 6
    """Contrast is that against the film inside the bounding box made larger by so much."""


class ShapeAnalyser(Analyser):
    """Shapes of skyrmions and stripes of each frame."""

    Settings = ShapeSettings
    quantities = (
        Quantity("major_axis_px", "f4", np.nan, "px", "4 sqrt of the larger principal second moment", "object"),
        Quantity("minor_axis_px", "f4", np.nan, "px", "4 sqrt of the smaller principal second moment", "object"),
        Quantity(
            "orientation_deg", "f4", np.nan, "deg", "of the major axis against the rows, upwards: -90 to 90", "object"
        ),
        Quantity("ellipticity", "f4", np.nan, "", "(major - minor axis) / major axis", "object"),
        Quantity("hull_diameter_px", "f4", np.nan, "px", "of the disc of the convex hull's area", "object"),
        Quantity("hull_deficit", "f4", np.nan, "", "(hull diameter - diameter) / hull diameter: 0 if convex", "object"),
        Quantity("hole_area", "f4", np.nan, "px^2", "pixels that the object encloses", "object"),
        Quantity("contrast", "f4", np.nan, "", "mean grey level of the film around minus that of the object", "object"),
        Quantity("cnr", "f4", np.nan, "", "contrast / standard deviation of the film around", "object"),
        Quantity(
            "x_weighted_px", "f4", np.nan, "px", "centroid weighted by probability, as x; NaN: not asked", "object"
        ),
        Quantity(
            "y_weighted_px", "f4", np.nan, "px", "centroid weighted by probability, as y; NaN: not asked", "object"
        ),
    )

    def __init__(self, settings: AnalyserSettings) -> None:
        super().__init__(settings)
        assert isinstance(settings, ShapeSettings)
        if settings.weighted:
            self.needs = frozenset({"probability"})  # type: ignore[misc]  # of this one
        else:
            self.quantities = self.quantities[:-2]  # type: ignore[misc, assignment]

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        assert isinstance(self.settings, ShapeSettings)
        objects = view.objects
        found = np.full((len(objects), 7), np.nan)
        boxes = np.stack([objects[name].astype(np.int64) for name in ("left", "top", "width", "height", "area")], 1)
        extra = 0.0 if self.settings.point_pixels else 1 / 12
        image = np.ascontiguousarray(view.image, np.float32)
        runs, components = view.runs
        _measure(view.mask, image, runs, components, boxes, extra, self.settings.ring_px, found)
        diameter = np.sqrt(4 / np.pi * objects["area"].astype(np.float64))
        hull = np.sqrt(4 / np.pi * found[:, _HULL])
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {
                "major_axis_px": found[:, _MAJOR],
                "minor_axis_px": found[:, _MINOR],
                "orientation_deg": found[:, _ORIENTATION],
                "ellipticity": np.where(found[:, _MAJOR] > 0, 1 - found[:, _MINOR] / found[:, _MAJOR], 0.0),
                "hull_diameter_px": hull,
                "hull_deficit": (hull - diameter) / hull,
                "hole_area": np.nan_to_num(found[:, _HOLES]),
                "contrast": found[:, _CONTRAST],
                "cnr": found[:, _CONTRAST] / found[:, _NOISE],
            }
        if self.settings.weighted:
            weighted = np.full((len(objects), 2), np.nan)
            _weigh(label_image(view.mask, objects, view.runs), view.probability, boxes, weighted)
            values |= {"x_weighted_px": weighted[:, 0], "y_weighted_px": weighted[:, 1]}
        return values


@njit(cache=True, nogil=True)
def _measure(
    mask: Mask,
    image: NDArray[np.float32],
    runs: Runs,
    components: int,
    boxes: NDArray[np.int64],
    extra: float,
    ring: int,
    out: NDArray[np.float64],
) -> None:
    """Of each object."""
    number = rows_of_components(runs, components, boxes[:, 4], boxes[:, 1])
    first = np.zeros(components + 1, np.int64)  # runs of each component, gathered
    for run in range(len(runs.row)):
        first[runs.component[run] + 1] += 1
    first = np.cumsum(first)
    order, filled = np.empty(len(runs.row), np.int64), first.copy()
    for run in range(len(runs.row)):
        order[filled[runs.component[run]]] = run
        filled[runs.component[run]] += 1
    for c in range(components):
        k = number[c]
        if k < 0:
            continue
        mine = order[first[c] : first[c + 1]]
        left, top, width, height, area = boxes[k]
        _moments(runs, mine, area, extra, out[k])
        out[k, _HULL] = _hull_area(runs, mine)
        out[k, _HOLES] = _holes(runs, mine, left, top, width, height) if _has_holes(runs, mine) else 0
        _contrast(mask, image, runs, mine, left, top, width, height, ring, out[k])


@njit(cache=True, nogil=True)
def _moments(
    runs: Runs,
    mine: NDArray[np.int64],
    area: int,
    extra: float,
    out: NDArray[np.float64],
) -> None:
    x = y = xx = yy = xy = 0
    u, v = np.int64(runs.start[mine[0]]), np.int64(runs.row[mine[0]])  # relative to the first pixel: small
    for run in mine:
        down, first, n = runs.row[run] - v, runs.start[run] - u, np.int64(runs.end[run] - runs.start[run])
        across = n * first + n * (n - 1) // 2  # sums over the run, whole numbers
        x, y, yy, xy = x + across, y + n * down, yy + n * down * down, xy + across * down
        xx += n * first * first + first * n * (n - 1) + (n - 1) * n * (2 * n - 1) // 6
    mx, my = x / area, y / area
    vx, vy, cxy = xx / area - mx * mx + extra, yy / area - my * my + extra, xy / area - mx * my
    middle, half = (vx + vy) / 2, math.hypot((vx - vy) / 2, cxy)
    out[_MAJOR], out[_MINOR] = 4 * math.sqrt(middle + half), 4 * math.sqrt(max(middle - half, 0.0))
    out[_ORIENTATION] = -math.degrees(math.atan2(2 * cxy, vx - vy)) / 2  # rows go downwards


@njit(cache=True, nogil=True)
def _hull_area(runs: Runs, mine: NDArray[np.int64]) -> float:
    """Area of the convex hull of the pixels' squares.

    Corners of a row's outermost runs are enough, sorted by row already. Source: the monotone chain of A. M. Andrew,
    Inf. Process. Lett. 9, 216 (1979), https://doi.org/10.1016/0020-0190(79)90072-3.
    """
    n = 0
    lows, highs, rows = np.empty(len(mine)), np.empty(len(mine)), np.empty(len(mine))
    for run in mine:
        if n and rows[n - 1] == runs.row[run]:
            lows[n - 1], highs[n - 1] = min(lows[n - 1], runs.start[run]), max(highs[n - 1], runs.end[run])
        else:
            lows[n], highs[n], rows[n] = runs.start[run], runs.end[run], runs.row[run]
            n += 1
    area = 0.0
    for side in (1.0, -1.0):  # the left chain and, mirrored, the right one
        xs, ys, m = np.empty(2 * n), np.empty(2 * n), 0
        for k in range(n):
            x = lows[k] if side > 0 else -highs[k]
            for y in (rows[k], rows[k] + 1):
                while (
                    m >= 2
                    and (xs[m - 1] - xs[m - 2]) * (y - ys[m - 2]) - (ys[m - 1] - ys[m - 2]) * (x - xs[m - 2]) >= 0
                ):
                    m -= 1
                xs[m], ys[m] = x, y
                m += 1
        for k in range(1, m):  # the area between the chain and x = 0
            area -= (xs[k] + xs[k - 1]) * (ys[k] - ys[k - 1]) / 2
    return area


@njit(cache=True, nogil=True)
def _has_holes(runs: Runs, mine: NDArray[np.int64]) -> bool:
    """Runs of one object that touch hang together as a tree, unless they go around a hole."""
    touching = above = 0
    for k in range(len(mine)):
        run = mine[k]
        while runs.row[mine[above]] < runs.row[run] - 1:
            above += 1
        at = above
        while runs.row[mine[at]] == runs.row[run] - 1:
            touching += runs.start[mine[at]] <= runs.end[run] and runs.end[mine[at]] >= runs.start[run]
            at += 1
    return touching > len(mine) - 1


@njit(cache=True, nogil=True)
def _holes(
    runs: Runs,
    mine: NDArray[np.int64],
    left: int,
    top: int,
    width: int,
    height: int,
) -> int:
    """Pixels of the bounding box that are no part of the object and not joined, by sides, with what is around it."""
    room = np.zeros((height + 2, width + 2), np.uint8)
    for run in mine:
        room[runs.row[run] - top + 1, runs.start[run] - left + 1 : runs.end[run] - left + 1] = 1
    stack = np.empty(((height + 2) * (width + 2), 2), np.int32)
    stack[0, 0] = stack[0, 1] = 0
    room[0, 0] = 2
    n = 1
    while n:
        n -= 1
        y, x = stack[n, 0], stack[n, 1]
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            v, u = y + dy, x + dx
            if 0 <= v < height + 2 and 0 <= u < width + 2 and room[v, u] == 0:
                room[v, u] = 2
                stack[n, 0], stack[n, 1] = v, u
                n += 1
    holes = 0
    for y in range(height + 2):
        for x in range(width + 2):
            holes += room[y, x] == 0
    return holes


@njit(cache=True, nogil=True)
def _weigh(
    labels: NDArray[np.int32], weight: NDArray[np.float32], boxes: NDArray[np.int64], out: NDArray[np.float64]
) -> None:
    """Centroids of weights, of each object's pixels and of those around it that belong to none."""
    for k in range(len(boxes)):
        left, top, width, height, _ = boxes[k]
        x = y = total = 0.0
        for v in range(max(top - _RIM, 0), min(top + height + _RIM, labels.shape[0])):
            for u in range(max(left - _RIM, 0), min(left + width + _RIM, labels.shape[1])):
                if labels[v, u] == k + 1 or labels[v, u] == 0:
                    x, y, total = x + u * weight[v, u], y + v * weight[v, u], total + weight[v, u]
        if total > 0:
            out[k] = x / total, y / total


@njit(cache=True, nogil=True)
def _contrast(  # noqa: PLR0913 - what runs are made of
    mask: Mask,
    image: NDArray[np.float32],
    runs: Runs,
    mine: NDArray[np.int64],
    left: int,
    top: int,
    width: int,
    height: int,
    ring: int,
    out: NDArray[np.float64],
) -> None:
    inside, n = 0.0, 0
    for run in mine:
        for x in range(runs.start[run], runs.end[run]):
            inside += image[runs.row[run], x]
            n += 1
    mean = np.float32(inside / n)  # differences from it are small, and their squares exact enough
    first, last = max(left - ring, 0), min(left + width + ring, mask.shape[1])
    total = squares = 0.0
    count = 0
    for y in range(max(top - ring, 0), min(top + height + ring, mask.shape[0])):
        found, of_row, squares_of_row = _around(mask[y, first:last], image[y, first:last], mean)
        count, total, squares = count + found, total + of_row, squares + squares_of_row
    if count > 1:
        over = total / count
        out[_CONTRAST] = over
        out[_NOISE] = math.sqrt(max(squares / count - over * over, 0.0) * count / (count - 1))


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})  # many pixels at a time
def _around(mask: Mask, image: NDArray[np.float32], mean: np.float32) -> tuple[int, float, float]:
    """Of the film in a row: pixels, sum of their differences from a value, and of the squares of these."""
    n, total, squares = np.int32(0), np.float32(0), np.float32(0)
    for x in range(len(mask)):
        film = mask[x] == _BACKGROUND
        value = image[x] - mean if film else np.float32(0)
        n += film
        total += value
        squares += value * value
    return int(n), float(total), float(squares)
