"""Which skyrmion is which in the next frame, and what their movement tells.

Linking: the drift that all share is taken out, candidates are pairs within a distance, and in each group of pairs that
share a skyrmion the links are those of the least sum of squared distances (Crocker and Grier, J. Colloid Interface Sci.
179, 298, 1996), by scipy's assignment. A search over all orders of a group, is not needed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.analysers.objects import label_image
from realtime_skyseg.analysers.selection import chosen_skyrmions, points_of
from realtime_skyseg.quantities import Quantity

Points = NDArray[np.float64]  # (n, 2): x, y

#: Half of the distance to the nearest neighbour is the farthest that a link may be sure of, without being told.
_REACH = 0.5

#: So many have to share a step that it is called drift.
_FEWEST = 8

#: Links of steps (rms) beyond this share of the spacing are not to be trusted. In jittered lattices 3 % of them are
#: wrong there, a tenth at 0.3, whatever the linker; steps that are cut off at the reach make the share look smaller.
_TRUSTED = 0.2


@dataclass(slots=True)
class Linker:
    """Gives the points of each frame numbers that they keep.

    Args:
        reach: farthest step between two frames, in the points' unit, beyond the drift; None: half of the median
            distance of nearest neighbours, in each frame.
        memory: a point that is not found in so many frames keeps its number.

    Attributes:
        born, first_new: how many of the last points were linked to none, and the lowest of their numbers.
        drift: (x, y) of the last step, which all points shared.
        steps: (n, 2) of the last points against the frame before, without the drift; NaN where there is no link.
    """

    reach: float | None = None
    memory: int = 2
    born: int = 0
    first_new: int = 0
    drift: tuple[float, float] = (0.0, 0.0)
    steps: Points = field(default_factory=lambda: np.zeros((0, 2)))
    _known: Points = field(default_factory=lambda: np.zeros((0, 2)))  # last seen, moved along with the drift
    _numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # frames since
    _next: int = 0

    def __call__(self, points: Points) -> NDArray[np.int64]:
        """Numbers (n,) of the points of the next frame; new ones for those that are linked to none."""
        n = len(points)
        numbers = np.full(n, -1, np.int64)
        self.steps = np.full((n, 2), np.nan)
        self.drift = (0.0, 0.0)
        found = np.zeros(len(self._known), np.bool_)
        if n and len(self._known):
            reach = self.reach if self.reach is not None else _REACH * spacing_of(points)
            self.drift = common_step(self._known[self._missed == 0], points, reach)
            self._known = self._known + self.drift
            before, after = link(self._known, points, reach)
            numbers[after] = self._numbers[before]
            found[before] = True
            fresh = self._missed[before] == 0
            self.steps[after[fresh]] = points[after[fresh]] - self._known[before[fresh]]
        new = numbers < 0
        numbers[new] = self._next + np.arange(new.sum())
        self.first_new, self.born = self._next, int(new.sum())
        self._next += self.born
        kept = ~found & (self._missed < self.memory)
        self._known = np.concatenate([points, self._known[kept]])
        self._numbers = np.concatenate([numbers, self._numbers[kept]])
        self._missed = np.concatenate([np.zeros(n, np.int64), self._missed[kept] + 1])
        return numbers


def spacing_of(points: Points) -> float:
    """Median distance to the nearest neighbour; infinite for fewer than two points."""
    if len(points) < 2:
        return math.inf
    distances, _ = _nearest(points, points, True)
    return float(np.median(distances))


def common_step(before: Points, after: Points, reach: float) -> tuple[float, float]:
    """What most points have moved by: the median step of mutual nearest neighbours within reach.

    (0, 0) with fewer than eight of them, of which one's own movement could not be told from what they share.
    """
    if not len(before) or not len(after):
        return 0.0, 0.0
    there, nearest = _nearest(before, after, False)
    _, back = _nearest(after, before, False)
    mutual = (back[nearest] == np.arange(len(before))) & (there <= reach)
    if mutual.sum() < _FEWEST:
        return 0.0, 0.0
    step = np.median(after[nearest[mutual]] - before[mutual], axis=0)
    return float(step[0]), float(step[1])


def link(before: Points, after: Points, reach: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (indices of `before`, of `after`): as many links as there can be, of the least sum of squared distances."""
    none = np.zeros(0, np.int64)
    if not len(before) or not len(after) or not math.isfinite(reach):
        return none, none
    row, column, square, group = _near(before, after, reach)
    chosen, shared = _choose_alone(row, column, square, group)
    rows, columns = [row[chosen]], [column[chosen]]
    for pairs in np.split(shared, np.flatnonzero(np.diff(group[shared])) + 1) if len(shared) else []:
        ours, at = np.unique(row[pairs], return_inverse=True)
        theirs, to = np.unique(column[pairs], return_inverse=True)
        # A pair beyond reach costs more than all links within it, so that there are as many links as can be.
        far = (len(pairs) + 1) * reach**2
        cost = np.full((len(ours), len(theirs)), far)
        cost[at, to] = square[pairs]
        one, partner = linear_sum_assignment(cost)
        within = cost[one, partner] < far
        rows.append(ours[one[within]])
        columns.append(theirs[partner[within]])
    return np.concatenate(rows), np.concatenate(columns)


class _Grid(NamedTuple):
    """Points sorted into square cells."""

    left: float
    top: float
    side: float
    across: int
    down: int
    first: NDArray[np.int64]  # (across * down + 1,) where the cell's points begin in `order`
    order: NDArray[np.int64]


@njit(cache=True, nogil=True)
def _grid(points: Points, least: float) -> _Grid:
    """Cells of some one point each, at least so wide."""
    left, right, top, bottom = points[0, 0], points[0, 0], points[0, 1], points[0, 1]
    for k in range(len(points)):
        left, right = min(left, points[k, 0]), max(right, points[k, 0])
        top, bottom = min(top, points[k, 1]), max(bottom, points[k, 1])
    longest = max(right - left, bottom - top)
    side = max(least, math.sqrt((right - left) * (bottom - top) / len(points)), longest / len(points), 1e-9)
    across, down = int((right - left) / side) + 1, int((bottom - top) / side) + 1
    first = np.zeros(across * down + 1, np.int64)
    cell = np.empty(len(points), np.int64)
    for k in range(len(points)):
        cell[k] = int((points[k, 1] - top) / side) * across + int((points[k, 0] - left) / side)
        first[cell[k] + 1] += 1
    first = np.cumsum(first)
    order, filled = np.empty(len(points), np.int64), first.copy()
    for k in range(len(points)):
        order[filled[cell[k]]] = k
        filled[cell[k]] += 1
    return _Grid(left, top, side, across, down, first, order)


@njit(cache=True, nogil=True)
def _nearest(of: Points, among: Points, same: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance and index of the nearest among others; of a point of the same set, of all but itself."""
    grid = _grid(among, 0.0)
    distance, place = np.full(len(of), np.inf), np.zeros(len(of), np.int64)
    for k in range(len(of)):
        x, y = of[k, 0], of[k, 1]
        column = min(max(math.floor((x - grid.left) / grid.side), 0), grid.across - 1)
        row = min(max(math.floor((y - grid.top) / grid.side), 0), grid.down - 1)
        # How far the point lies outside of its cell, so that a ring of cells is at least so far away.
        beyond = max(
            grid.left + column * grid.side - x, x - grid.left - (column + 1) * grid.side,
            grid.top + row * grid.side - y, y - grid.top - (row + 1) * grid.side, 0.0,
        )  # fmt: skip
        best = np.inf
        for ring in range(max(grid.across, grid.down)):
            if best < np.inf and (ring - 1) * grid.side - beyond > 0 and best <= ((ring - 1) * grid.side - beyond) ** 2:
                break
            for v in range(max(row - ring, 0), min(row + ring, grid.down - 1) + 1):
                on_edge = v in (row - ring, row + ring)
                for u in range(column - ring, column + ring + 1, 1 if on_edge or ring == 0 else 2 * ring):
                    if not 0 <= u < grid.across:
                        continue
                    for at in range(grid.first[v * grid.across + u], grid.first[v * grid.across + u + 1]):
                        other = grid.order[at]
                        square = (among[other, 0] - x) ** 2 + (among[other, 1] - y) ** 2
                        if square < best and not (same and other == k):
                            best, place[k] = square, other
        distance[k] = math.sqrt(best)
    return distance, place


@njit(cache=True, nogil=True)
def _root(parent: NDArray[np.int64], at: int) -> int:
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@njit(cache=True, nogil=True)
def _near(
    before: Points, after: Points, reach: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Pairs within reach: index before, index after, square of the distance, group of pairs that compete."""
    grid = _grid(after, reach)
    n, most = 0, 4 * len(before) + 16
    row, column, square = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most)
    parent = np.arange(len(before) + len(after))
    for k in range(len(before)):
        x, y = before[k, 0], before[k, 1]
        left, right = math.floor((x - reach - grid.left) / grid.side), int((x + reach - grid.left) / grid.side)
        top, bottom = math.floor((y - reach - grid.top) / grid.side), int((y + reach - grid.top) / grid.side)
        for v in range(max(top, 0), min(bottom, grid.down - 1) + 1):
            for u in range(max(left, 0), min(right, grid.across - 1) + 1):
                for at in range(grid.first[v * grid.across + u], grid.first[v * grid.across + u + 1]):
                    other = grid.order[at]
                    apart = (after[other, 0] - x) ** 2 + (after[other, 1] - y) ** 2
                    if apart > reach * reach:
                        continue
                    if n == most:
                        most *= 2
                        row = np.concatenate((row, np.empty(n, np.int64)))
                        column = np.concatenate((column, np.empty(n, np.int64)))
                        square = np.concatenate((square, np.empty(n)))
                    row[n], column[n], square[n] = k, other, apart
                    n += 1
                    parent[_root(parent, k)] = _root(parent, len(before) + other)
    group = np.empty(n, np.int64)
    for pair in range(n):
        group[pair] = _root(parent, row[pair])
    return row[:n], column[:n], square[:n], group


@njit(cache=True, nogil=True)
def _choose_alone(
    row: NDArray[np.int64], column: NDArray[np.int64], square: NDArray[np.float64], group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs to take of groups around one point, the shortest of each; and pairs of all other groups, by group."""
    order = np.argsort(group, kind="mergesort")
    taken, shared, m, n, at = np.empty(len(row), np.int64), np.empty(len(row), np.int64), 0, 0, 0
    while at < len(order):
        end, best = at, order[at]
        one_row = one_column = True
        while end < len(order) and group[order[end]] == group[order[at]]:
            one_row &= row[order[end]] == row[best]
            one_column &= column[order[end]] == column[best]
            if square[order[end]] < square[best] and (one_row or one_column):
                best = order[end]
            end += 1
        if one_row or one_column:
            taken[m] = best
            m += 1
        else:
            shared[n : n + end - at] = order[at:end]
            n += end - at
        at = end
    return taken[:m], shared[:n]


class TrackSettings(AnalyserSettings):
    """How far, and for how long."""

    reach_px: Annotated[float, Field(gt=0)] | None = None
    """Farthest step between two analysed frames, beyond the drift; absent: half of the median distance of nearest
    neighbours."""
    memory_frames: Annotated[int, Field(ge=0, le=100)] = 2
    """A skyrmion that is not found in so many analysed frames keeps its number."""


class TrackAnalyser(Analyser):
    """Numbers that skyrmions keep from frame to frame."""

    Settings = TrackSettings
    quantities = (
        Quantity("track", "i8", -1, "", "number that the skyrmion keeps from frame to frame; -1: a stripe", "object"),
        Quantity("step_x_px", "f4", np.nan, "px", "step since the frame analysed before, without the drift", "object"),
        Quantity("step_y_px", "f4", np.nan, "px", "as step_x_px, downwards", "object"),
        Quantity("parent_track", "i8", -1, "", "new, and before part of this one; -1: it is not", "object"),
        Quantity("absorbed_track", "i8", -1, "", "what ended in this one; -1: none", "object"),
        Quantity("linked", "f4", np.nan, "", "skyrmions that were in the frame analysed before, too", "frame"),
        Quantity("new_tracks", "f4", np.nan, "", "skyrmions that are linked to none before", "frame"),
        Quantity("lost_tracks", "f4", np.nan, "", "skyrmions of the frame before that are linked to none", "frame"),
        Quantity("splits", "f4", np.nan, "", "of new_tracks: were part of one that is still there", "frame"),
        Quantity("merges", "f4", np.nan, "", "of lost_tracks: where it was another one is, or a stripe", "frame"),
        Quantity("common_step_x_px", "f4", np.nan, "px", "what all have moved by since the frame before", "frame"),
        Quantity("common_step_y_px", "f4", np.nan, "px", "as common_step_x_px, downwards", "frame"),
        Quantity("step_over_spacing", "f4", np.nan, "", "rms step / median distance of nearest neighbours", "frame"),
        Quantity("links_trusted", "f4", np.nan, "", "1: step_over_spacing is at most 0.2; 0: it is not", "frame"),
    )  # fmt: skip

    def __init__(self, settings: AnalyserSettings) -> None:
        super().__init__(settings)
        self.reset()

    def reset(self) -> None:
        """See `Analyser`."""
        assert isinstance(self.settings, TrackSettings)
        self._linker = Linker(self.settings.reach_px, self.settings.memory_frames)
        self._before: _Seen | None = None

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        chosen = chosen_skyrmions(view.objects)
        points = points_of(view.objects)[chosen]
        numbers, linker = self._linker(points), self._linker
        now = _Seen(
            np.full(len(chosen), -1, np.int64), points_of(view.objects), label_image(view.mask, view.objects, view.runs)
        )
        steps = np.full((len(chosen), 2), np.nan)
        now.track[chosen], steps[chosen] = numbers, linker.steps
        values = {"track": now.track, "step_x_px": steps[:, 0], "step_y_px": steps[:, 1]}
        before, self._before = self._before, now
        if before is None:
            return values
        drift = np.array(linker.drift)
        lost = (before.track >= 0) & ~np.isin(before.track, numbers)
        new = (now.track >= 0) & ~np.isin(now.track, before.track) & (now.track >= linker.first_new)
        absorbed, parents = np.full((2, len(chosen)), -1, np.int64)
        into = _object_at(now.labels, before.points[lost] + drift)
        absorbed[into[into >= 0]] = before.track[lost][into >= 0]
        came_from = _object_at(before.labels, now.points[new] - drift)
        # What it came from has to be still there, else it is the same one, too far for a link.
        still = (came_from >= 0) & ~lost[came_from]
        parents[np.flatnonzero(new)[still]] = before.track[came_from[still]]
        linked = ~np.isnan(linker.steps[:, 0])
        rms = float(np.sqrt((linker.steps[linked] ** 2).sum(1).mean())) if linked.any() else math.nan
        spacing = spacing_of(points)
        share = rms / spacing if math.isfinite(spacing) else math.nan
        return values | {
            "parent_track": parents,
            "absorbed_track": absorbed,
            "linked": float(linked.sum()),
            "new_tracks": float(linker.born),
            "lost_tracks": float(lost.sum()),
            "splits": float(still.sum()),
            "merges": float((into >= 0).sum()),
            "common_step_x_px": linker.drift[0],
            "common_step_y_px": linker.drift[1],
            "step_over_spacing": share,
            "links_trusted": math.nan if math.isnan(share) else float(share <= _TRUSTED),
        }


@dataclass(slots=True)
class _Seen:
    """The objects of a frame, by row."""

    track: NDArray[np.int64]
    points: Points
    labels: NDArray[np.int32]


def _object_at(labels: NDArray[np.int32], places: Points) -> NDArray[np.int64]:
    """Row of the object that covers each place; -1: none."""
    x, y = np.rint(places).astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < labels.shape[1]) & (y < labels.shape[0])
    row = np.full(len(places), -1, np.int64)
    row[inside] = labels[y[inside], x[inside]] - 1
    return row
