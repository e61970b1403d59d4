"""Stripes and mazes by their middle lines: length, width, ends, junctions, curvature."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.analysers.objects import label_image
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import Kind

#: Rows and columns of the eight neighbours, clockwise from above.
_DOWN = np.array([-1, -1, 0, 1, 1, 1, 0, -1])
_ACROSS = np.array([0, 1, 1, 1, 0, -1, -1, -1])

#: Columns of what `_measure` fills.
_LENGTH, _ENDS, _JUNCTIONS, _TURNED, _ALONG = range(5)


class SkeletonSettings(AnalyserSettings):
    """Of what, and how fine."""

    skyrmions: bool = False
    """True: of skyrmions, too, not of stripes only."""
    smooth_px: Annotated[int, Field(ge=1, le=50)] = 4
    """Middle lines are smoothed over so many px in both directions; curvature is that over twice so many."""
    spur: Annotated[float, Field(ge=0, le=5)] = 1.5
    """Side branches shorter than so many times the half width are bumps of the border, and are left out."""


class SkeletonAnalyser(Analyser):
    """Middle lines of the stripes of each frame."""

    Settings = SkeletonSettings
    quantities = (
        Quantity("skeleton_length_px", "f4", np.nan, "px", "of the middle line, with all of its branches", "object"),
        Quantity(
            "width_px", "f4", np.nan, "px", "width of a stripe of that length and ends, and of the area", "object"
        ),
        Quantity("ends", "i4", -1, "", "of the middle line; -1: a skyrmion", "object"),
        Quantity("junctions", "i4", -1, "", "of the middle line; -1: a skyrmion", "object"),
        Quantity("curvature", "f4", np.nan, "1/px", "mean modulus along the middle line", "object"),
        Quantity("total_skeleton_px", "f4", np.nan, "px", "length of all middle lines", "frame"),
        Quantity("total_ends", "f4", np.nan, "", "ends of all middle lines", "frame"),
        Quantity("total_junctions", "f4", np.nan, "", "junctions of all middle lines", "frame"),
        Quantity("mean_width_px", "f4", np.nan, "px", "of stripes, weighted by their length", "frame"),
        Quantity("mean_curvature", "f4", np.nan, "1/px", "mean modulus along all middle lines", "frame"),
    )

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        assert isinstance(self.settings, SkeletonSettings)
        objects = view.objects
        chosen = (objects["kind"] == Kind.STRIPE) | self.settings.skyrmions
        labels = label_image(view.mask, objects, view.runs)
        inside = np.concatenate([[False], chosen])[labels] if chosen.any() else np.zeros(labels.shape, np.bool_)
        skeleton = thin(inside)
        if self.settings.spur > 0 and skeleton.any():
            radius = cv2.distanceTransform((labels > 0).astype(np.uint8), cv2.DIST_L2, 5).astype(np.float32)
            _take_spurs(skeleton, radius, self.settings.spur)
        found = np.zeros((len(objects), 5))
        _measure(skeleton, labels, self.settings.smooth_px, found)
        length, ends = found[:, _LENGTH], found[:, _ENDS]
        width = _width(objects["area"].astype(np.float64), length, ends)
        curved, along = found[:, _TURNED], found[:, _ALONG]
        none = ~chosen
        total = float(length.sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "skeleton_length_px": np.where(none, np.nan, length),
                "width_px": np.where(none, np.nan, width),
                "ends": np.where(none, -1, ends),
                "junctions": np.where(none, -1, found[:, _JUNCTIONS]),
                "curvature": np.where(none | (along == 0), np.nan, curved / along),
                "total_skeleton_px": total,
                "total_ends": float(ends.sum()),
                "total_junctions": float(found[:, _JUNCTIONS].sum()),
                "mean_width_px": float((width * length).sum() / total) if total else math.nan,
                "mean_curvature": float(curved.sum() / along.sum()) if along.any() else math.nan,
            }


def thin(inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The middle lines, one pixel wide, as Z. Guo and R. W. Hall, Commun. ACM 32, 359 (1989), find them.

    Corners of steps, which their method may leave, are taken away, so that no pixel can go without a line breaking.

    Args:
        inside: (height, width).

    Returns:
        (height + 2, width + 2) uint8, 1 on a line: with a border of one pixel.
    """
    on = np.pad(inside, 1).astype(np.uint8)
    _thin(on)
    return on


def _width(area: NDArray[np.float64], length: NDArray[np.float64], ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a stripe with round ends beyond those of its middle line: area = length width + ends pi / 8 width^2."""
    caps = math.pi / 8 * np.where(length > 0, ends, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(
            caps > 0, (np.sqrt(length**2 + 4 * caps * area) - length) / (2 * np.maximum(caps, 1e-9)), area / length
        )


@njit(cache=True, nogil=True)
def _around(on: NDArray[np.uint8], y: int, x: int) -> tuple[int, int]:
    """How many neighbours a pixel has, and how many lines meet in it: what is joined at a corner is one."""
    n = lines = 0
    for k in range(8):
        here = on[y + _DOWN[k], x + _ACROSS[k]]
        n += here
        if k % 2 == 0 and here == 0:
            after = on[y + _DOWN[k + 1], x + _ACROSS[k + 1]] | on[y + _DOWN[(k + 2) % 8], x + _ACROSS[(k + 2) % 8]]
            lines += after
    return n, lines


@njit(cache=True, nogil=True)
def _may_go(on: NDArray[np.uint8], y: int, x: int, step: int) -> bool:
    """Whether one of both passes of thinning takes the pixel away."""
    n, ne, e, se = on[y - 1, x], on[y - 1, x + 1], on[y, x + 1], on[y + 1, x + 1]
    s, sw, w, nw = on[y + 1, x], on[y + 1, x - 1], on[y, x - 1], on[y - 1, x - 1]
    if n & e & s & w:
        return False  # inside: most are
    lines = (1 - n) * (ne | e) + (1 - e) * (se | s) + (1 - s) * (sw | w) + (1 - w) * (nw | n)
    pairs = min((nw | n) + (ne | e) + (se | s) + (sw | w), (n | ne) + (e | se) + (s | sw) + (w | nw))
    barred = (n | ne | (1 - se)) & e if step == 0 else (s | sw | (1 - nw)) & w
    return bool(lines == 1 and 2 <= pairs <= 3 and barred == 0)


@njit(cache=True, nogil=True)
def _thin(on: NDArray[np.uint8]) -> None:
    ys, xs = np.nonzero(on)
    taken = np.zeros(len(ys), np.bool_)
    n, changed = len(ys), True
    while changed:
        changed = False
        for step in range(2):
            for k in range(n):
                taken[k] = _may_go(on, ys[k], xs[k], step)
            left = 0
            for k in range(n):
                if taken[k]:
                    on[ys[k], xs[k]] = 0
                    changed = True
                else:
                    ys[left], xs[left] = ys[k], xs[k]
                    left += 1
            n = left
    _take_corners(on)


@njit(cache=True, nogil=True)
def _take_corners(on: NDArray[np.uint8]) -> None:
    """Take pixels, one after the other, without which the lines hold together as well."""
    ys, xs = np.nonzero(on)
    for k in range(len(ys)):
        n, lines = _around(on, ys[k], xs[k])
        if n >= 2 and lines == 1:
            on[ys[k], xs[k]] = 0


@njit(cache=True, nogil=True)
def _steps(on: NDArray[np.uint8], y: int, x: int, out: NDArray[np.int64]) -> int:
    """Fill in to which of the eight neighbours lines go on, corners only where no side leads there; return how many."""
    n = 0
    for k in range(8):
        if not on[y + _DOWN[k], x + _ACROSS[k]]:
            continue
        before, after = (k + 7) % 8, (k + 1) % 8
        if k % 2 and (on[y + _DOWN[before], x + _ACROSS[before]] or on[y + _DOWN[after], x + _ACROSS[after]]):
            continue
        out[n] = k
        n += 1
    return n


@njit(cache=True, nogil=True)
def _branches(on: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lines from node to node, and closed ones: pixels (n, 2), one line after the other, and (m, 3) of each line: where
    it begins, and how many lines meet in its first and its last pixel.
    """
    ys, xs = np.nonzero(on)
    most = 5 * len(ys) + 8
    pixels, lines = np.empty((most, 2), np.int64), np.empty((most, 3), np.int64)
    seen = np.zeros(on.shape, np.bool_)
    ahead, there = np.empty(8, np.int64), np.empty(8, np.int64)
    n = m = 0
    for closed in (False, True):  # closed ones are what is left over
        for k in range(len(ys)):
            degree = _steps(on, ys[k], xs[k], ahead)
            if (degree == 2) != closed or (closed and seen[ys[k], xs[k]]):
                continue
            for way in range(1 if closed else degree):
                y, x, step = ys[k], xs[k], ahead[way]
                lines[m] = n, degree, 0
                pixels[n] = y, x
                n += 1
                while True:
                    y, x = y + _DOWN[step], x + _ACROSS[step]
                    pixels[n] = y, x
                    n += 1
                    at_end = _steps(on, y, x, there)
                    if at_end != 2 or (y == ys[k] and x == xs[k]):
                        break
                    seen[y, x] = True
                    step = there[1] if there[0] == (step + 4) % 8 else there[0]
                lines[m, 2] = at_end
                seen[ys[k], xs[k]] = True
                # Each open line is found from both of its ends.
                first, second = pixels[lines[m, 0]], pixels[lines[m, 0] + 1]
                last, last_but_one = pixels[n - 1], pixels[n - 2]
                forward = (first[0], first[1], second[0], second[1])
                if closed or forward <= (last[0], last[1], last_but_one[0], last_but_one[1]):
                    m += 1
                else:
                    n = lines[m, 0]
            if degree == 0:
                pixels[n] = ys[k], xs[k]
                lines[m] = n, 0, 0
                n, m = n + 1, m + 1
    lines[m] = n, 0, 0
    return pixels[:n], lines[: m + 1]


@njit(cache=True, nogil=True)
def _take_spurs(on: NDArray[np.uint8], radius: NDArray[np.float32], share: float) -> None:
    pixels, lines = _branches(on)
    for k in range(len(lines) - 1):
        begin, end = lines[k, 0], lines[k + 1, 0]
        at_begin, at_end = lines[k, 1], lines[k, 2]
        if not ((at_begin == 1 and at_end > 2) or (at_end == 1 and at_begin > 2)):
            continue
        node = pixels[end - 1] if at_begin == 1 else pixels[begin]
        if end - begin - 1 > share * radius[node[0] - 1, node[1] - 1]:
            continue
        for at in range(begin, end):
            if not (pixels[at, 0] == node[0] and pixels[at, 1] == node[1]):
                on[pixels[at, 0], pixels[at, 1]] = 0
    _take_corners(on)


@njit(cache=True, nogil=True)
def _measure(on: NDArray[np.uint8], labels: NDArray[np.int32], smooth: int, out: NDArray[np.float64]) -> None:
    pixels, lines = _branches(on)
    counted = np.zeros(on.shape, np.bool_)
    for k in range(len(lines) - 1):
        begin, end = lines[k, 0], lines[k + 1, 0]
        one = labels[pixels[begin, 0] - 1, pixels[begin, 1] - 1] - 1
        for at, degree in ((begin, lines[k, 1]), (end - 1, lines[k, 2])):
            y, x = pixels[at]
            if degree != 2 and not counted[y, x]:
                counted[y, x] = True
                out[one, _ENDS] += degree == 1
                near = False  # pixels of one junction that stand side by side
                for j in range(8):
                    near |= degree > 2 and counted[y + _DOWN[j], x + _ACROSS[j]] and _meets(on, y, x, j)
                out[one, _JUNCTIONS] += degree > 2 and not near
        _follow(pixels[begin:end], lines[k, 1] == 2, smooth, out[one])


@njit(cache=True, nogil=True)
def _meets(on: NDArray[np.uint8], y: int, x: int, k: int) -> bool:
    """Whether the neighbour is a junction."""
    found = np.empty(8, np.int64)
    return _steps(on, y + _DOWN[k], x + _ACROSS[k], found) > 2


@njit(cache=True, nogil=True)
def _follow(line: NDArray[np.int64], closed: bool, smooth: int, out: NDArray[np.float64]) -> None:
    """Length and turning of a line that is smoothed."""
    n = len(line) - 1 if closed else len(line)  # a closed one ends where it begins
    path = np.empty((n, 2))
    for k in range(n):
        reach = smooth if closed else min(smooth, k, n - 1 - k)  # so that ends stay where they are
        reach = min(reach, (n - 1) // 2)
        y = x = 0.0
        for j in range(k - reach, k + reach + 1):
            y, x = y + line[j % n, 0], x + line[j % n, 1]
        path[k] = y / (2 * reach + 1), x / (2 * reach + 1)
    steps = n if closed else n - 1
    for k in range(steps):
        here, there = path[k], path[(k + 1) % n]
        out[_LENGTH] += math.hypot(there[0] - here[0], there[1] - here[1])
    if n < 2 * smooth + 1:
        return
    for k in range(0 if closed else smooth, n if closed else n - smooth):
        before, here, after = path[(k - smooth) % n], path[k], path[(k + smooth) % n]
        v, u = here[0] - before[0], here[1] - before[1]
        q, p = after[0] - here[0], after[1] - here[1]
        out[_TURNED] += abs(math.atan2(u * q - v * p, u * p + v * q))
        out[_ALONG] += (math.hypot(u, v) + math.hypot(p, q)) / 2
