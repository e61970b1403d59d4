"""Which skyrmion is which in the next frame, and what their movement tells.

Linking: the drift that all share is taken out, candidates are pairs within a distance, and in each group of pairs that
share a skyrmion the links are those of the least sum of squared distances (Crocker and Grier, J. Colloid Interface Sci.
179, 298, 1996), by scipy's assignment. A search over all orders of a group, is not needed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import Kind

Points = NDArray[np.float64]  # (n, 2): x, y

#: Half of the distance to the nearest neighbour is the farthest that a link may be sure of, without being told.
_REACH = 0.5

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
        born: how many of the last points were linked to none.
        drift: (x, y) of the last step, which all points shared.
        steps: (n, 2) of the last points against the frame before, without the drift; NaN where there is no link.
    """

    reach: float | None = None
    memory: int = 2
    born: int = 0
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
        self.born = int(new.sum())
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
    distances, _ = KDTree(points).query(points, k=[2])
    return float(np.median(np.asarray(distances)))


def common_step(before: Points, after: Points, reach: float) -> tuple[float, float]:
    """What most points have moved by: the median step of mutual nearest neighbours within reach; (0, 0) without any."""
    if not len(before) or not len(after):
        return 0.0, 0.0
    there, nearest = _nearest(before, after)
    _, back = _nearest(after, before)
    mutual = (back[nearest] == np.arange(len(before))) & (there <= reach)
    if not mutual.any():
        return 0.0, 0.0
    step = np.median(after[nearest[mutual]] - before[mutual], axis=0)
    return float(step[0]), float(step[1])


def _nearest(of: Points, among: Points) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Distance and index of the nearest among others."""
    distances, places = KDTree(among).query(of)
    return np.asarray(distances, np.float64), np.asarray(places, np.intp)


def link(before: Points, after: Points, reach: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs (indices of `before`, of `after`): as many links as there can be, of the least sum of squared distances."""
    none = np.zeros(0, np.intp)
    if not len(before) or not len(after) or not math.isfinite(reach):
        return none, none
    near = KDTree(before).sparse_distance_matrix(KDTree(after), reach, output_type="ndarray")
    if not len(near):
        return none, none
    row, column, distance = near["i"].astype(np.intp), near["j"].astype(np.intp), near["v"]
    n = len(before) + len(after)
    ones = np.ones(len(row), np.int8)
    groups, group_of = connected_components(
        coo_array((ones, (row, len(before) + column)), shape=(n, n)), directed=False
    )
    of_pair = group_of[row]
    alone = np.bincount(of_pair, minlength=groups)[of_pair] == 1
    rows, columns = [row[alone]], [column[alone]]
    order = np.argsort(of_pair[~alone], kind="stable")
    shared = np.flatnonzero(~alone)[order]
    for pairs in np.split(shared, np.flatnonzero(np.diff(of_pair[shared])) + 1) if len(shared) else []:
        ours, at = np.unique(row[pairs], return_inverse=True)
        theirs, to = np.unique(column[pairs], return_inverse=True)
        # A pair beyond reach costs more than all links within it, so that there are as many links as can be.
        far = (len(pairs) + 1) * reach**2
        cost = np.full((len(ours), len(theirs)), far)
        cost[at, to] = distance[pairs] ** 2
        chosen, partner = linear_sum_assignment(cost)
        within = cost[chosen, partner] < far
        rows.append(ours[chosen[within]])
        columns.append(theirs[partner[within]])
    return np.concatenate(rows), np.concatenate(columns)


def mean_squared_displacement(
    track: NDArray[np.integer], frame: NDArray[np.integer], points: Points, longest: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Mean over all tracks and all pairs of frames so many apart.

    Args:
        track: (m,) of each point.
        frame: (m,) of each point.
        points: (m, 2), x and y, without drift.
        longest: lag, in frames.

    Returns:
        (longest,) MSD at lags 1, 2, ... in the points' unit squared; its standard error, from the scatter between
        tracks; and the number of tracks that bring something. NaN where none does.
    """
    order = np.lexsort((frame, track))
    track, frame, points = track[order], frame[order], points[order]
    msd, error, tracks = np.full(longest, np.nan), np.full(longest, np.nan), np.zeros(longest, np.intp)
    place = {(int(t), int(f)): k for k, (t, f) in enumerate(zip(track, frame, strict=True))}
    for lag in range(1, longest + 1):
        pairs = [(k, place[key]) for k in range(len(track)) if (key := (int(track[k]), int(frame[k]) + lag)) in place]
        if not pairs:
            continue
        first, second = np.array(pairs).T
        squares = ((points[second] - points[first]) ** 2).sum(1)
        names, at = np.unique(track[first], return_inverse=True)
        weight = np.bincount(at)
        means = np.bincount(at, squares) / weight
        msd[lag - 1] = squares.mean()
        tracks[lag - 1] = len(names)
        if len(names) > 1:
            scatter = float(((weight / weight.sum() * (means - squares.mean())) ** 2).sum())
            error[lag - 1] = math.sqrt(scatter * len(names) / (len(names) - 1))
    return msd, error, tracks


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
        Quantity("linked", "f4", np.nan, "", "skyrmions that were in the frame analysed before, too", "frame"),
        Quantity("new_tracks", "f4", np.nan, "", "skyrmions that are linked to none before", "frame"),
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
        self._begun = False

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        objects = view.objects
        chosen = objects["kind"] == Kind.SKYRMION
        points = np.stack([objects["x"][chosen], objects["y"][chosen]], 1).astype(np.float64)
        begun, self._begun = self._begun, True
        numbers = self._linker(points)
        track, steps = np.full(len(objects), -1, np.int64), np.full((len(objects), 2), np.nan)
        track[chosen], steps[chosen] = numbers, self._linker.steps
        linked = ~np.isnan(self._linker.steps[:, 0])
        values = {"track": track, "step_x_px": steps[:, 0], "step_y_px": steps[:, 1]}
        if not begun:
            return values
        rms = float(np.sqrt((self._linker.steps[linked] ** 2).sum(1).mean())) if linked.any() else math.nan
        spacing = spacing_of(points)
        share = rms / spacing if math.isfinite(spacing) else math.nan
        return values | {
            "linked": float(linked.sum()),
            "new_tracks": float(self._linker.born),
            "common_step_x_px": self._linker.drift[0],
            "common_step_y_px": self._linker.drift[1],
            "step_over_spacing": share,
            "links_trusted": math.nan if math.isnan(share) else float(share <= _TRUSTED),
        }
