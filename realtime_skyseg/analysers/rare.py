"""What happens seldom: skyrmions that come, go, merge and split; counts and images that leave what was expected."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial import KDTree

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.analysers.objects import Runs, rows_of_components
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import Objects

#: Objects of two frames are the same where they share so much of the smaller one.
_SHARED = 0.1

#: An object that was so much smaller than it had been has collapsed.
_SHRUNK = 0.6

#: An event's sentence tells so many places at most.
_PLACES = 5


class RareSettings(AnalyserSettings):
    """What counts as the same object, and as much at once."""

    reach: Annotated[float, Field(ge=0, le=5)] = 1.0
    """An object that overlaps none of the frame before is the nearest one of it up to so many of its diameters away, if
    that overlaps none of this frame."""
    avalanche: Annotated[float, Field(gt=0, le=1)] = 0.1
    """So large a share of the objects, and five at least, that come or go from frame to frame are an avalanche."""
    border: bool = False
    """True: what comes or goes at the border of the image counts too, which may only have walked in or out."""


@dataclass(slots=True)
class _Seen:
    """The objects of an analysed frame."""

    frame: int
    objects: Objects
    runs: Runs
    row_of: NDArray[np.int64]  # row in `objects` by component; -1: none
    peak: NDArray[np.float64]  # the largest area that each has had
    before: "Pairs"  # with the frame before
    beyond: "Pairs"  # with the one before that, those that overlap


class RareAnalyser(Analyser):
    """Compares four analysed frames in a row: what was so in two, and is otherwise in the two after, has happened.

    What is so in one frame alone is taken for the network's doubt. So an event is told with the second frame after it.
    """

    Settings = RareSettings
    quantities = (
        Quantity("nucleated", "f4", np.nan, "", "objects that came between the two analysed frames before", "frame"),
        Quantity("annihilated", "f4", np.nan, "", "objects that went then, collapsed ones too", "frame"),
        Quantity("collapsed", "f4", np.nan, "", "of these: those that had shrunk before", "frame"),
        Quantity("merged", "f4", np.nan, "", "objects that had been two or more until then", "frame"),
        Quantity("split", "f4", np.nan, "", "objects that became two or more then", "frame"),
    )

    def __init__(self, settings: AnalyserSettings) -> None:
        super().__init__(settings)
        self.reset()

    def reset(self) -> None:
        """See `Analyser`."""
        self._seen: deque[_Seen] = deque(maxlen=4)
        self.changes: dict[str, list[tuple[float, float]]] = {}  # kind and places, as last told
        self._outside = 0  # frames in a row whose count left the interval of those before
        self._held: deque[tuple[float, float, float]] = deque(maxlen=5)  # lowest and highest count, and the domain

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        assert isinstance(self.settings, RareSettings)
        runs, components = view.runs
        objects = view.objects
        area = objects["area"].astype(np.int64)
        row_of = rows_of_components(runs, components, area, objects["top"].astype(np.int64))
        nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
        now = _Seen(view.frame, objects, runs, row_of, area.astype(np.float64), nothing, nothing)
        self._expect(view)
        if self._seen:
            before = self._seen[-1]
            now.before = _pairs(before, now, self.settings.reach)
            np.maximum.at(now.peak, now.before[1], before.peak[now.before[0]])
        if len(self._seen) > 1:
            now.beyond = _pairs(self._seen[-2], now, 0)
        self._seen.append(now)
        self.changes = {}
        if len(self._seen) < 4:
            return {}
        _, then, here, last = self._seen
        found = self.changes = _changes(then, here, last, self.settings.border)
        for what, places in found.items():
            if len(places) and what != "collapsed":
                shown = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in places[:_PLACES])
                more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
                view.tell(what, f"{len(places)} {what} between frames {then.frame} and {here.frame}: at {shown}{more}")
        came, went = len(found["nucleated"]), len(found["annihilated"])
        changed = max(came, went) + len(found["merged"]) + len(found["split"])
        if changed >= max(5, self.settings.avalanche * len(then.objects)):
            view.tell("avalanche", f"{changed} of {len(then.objects)} objects changed between frames {then.frame} and "
                      f"{here.frame}: {came} came, {went} went")  # fmt: skip
        return {name: float(len(places)) for name, places in found.items()}

    def _expect(self, view: View) -> None:
        """Tell of a count that leaves its interval for two frames, and of a jump of the domain score."""
        values = view.values
        low, high, domain = (values.get(name, np.nan) for name in ("count_low", "count_high", "domain"))
        if len(self._held) == self._held.maxlen:
            least, most, score = np.median(np.array(self._held), 0)
            beyond = values["count"] < least or values["count"] > most
            self._outside = self._outside + 1 if beyond else 0
            if self._outside == 2:
                view.tell("count_jump", f"the count is {values['count']:.0f} for two frames; from those before it was "
                          f"to be {least:.0f} to {most:.0f}")  # fmt: skip
                self._held.clear()
            elif (score >= 0.5) != (domain >= 0.5) and abs(score - domain) > 0.3:
                view.tell("domain_jump", f"the domain score went from {score:.2f} to {domain:.2f}")
                self._held.clear()
        self._held.append((low, high, domain))


def _changes(then: _Seen, here: _Seen, last: _Seen, border: bool) -> dict[str, list[tuple[float, float]]]:
    """Where something has changed between the second and the third of four frames, and was settled before and after."""
    middle, before, after = here.before, then.before, last.before
    n_then, n_here = len(then.objects), len(here.objects)
    old, new = np.bincount(middle[0], minlength=n_then), np.bincount(middle[1], minlength=n_here)
    steady_then = np.bincount(before[1], minlength=n_then) > 0
    steady_here = np.bincount(after[0], minlength=n_here) > 0
    # What was missed in a single frame is there in the one beyond.
    back = np.bincount(here.beyond[1], minlength=n_here) > 0
    again = np.bincount(last.beyond[0], minlength=n_then) > 0
    came, went = (new == 0) & steady_here & ~back, (old == 0) & steady_then & ~again
    if not border:
        came &= here.objects["border"] == 0
        went &= then.objects["border"] == 0
    collapsed = went & (then.objects["area"] < _SHRUNK * then.peak)
    merged = [one for one in np.flatnonzero(new > 1) if _apart(before, middle[0][middle[1] == one], 1)
              and _together(last.beyond, middle[0][middle[1] == one])]  # fmt: skip
    split = [one for one in np.flatnonzero(old > 1) if _apart(after, middle[1][middle[0] == one], 0)
             and _together(here.beyond[::-1], middle[1][middle[0] == one])]  # fmt: skip
    return {
        "nucleated": _places(here.objects[came]),
        "annihilated": _places(then.objects[went]),
        "collapsed": _places(then.objects[collapsed]),
        "merged": _places(here.objects[merged]),
        "split": _places(then.objects[split]),
    }


Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def _apart(pairs: Pairs, ones: NDArray[np.int64], side: int) -> bool:
    """Whether these objects, which stand on that side of the pairs, each belong to another one of the other side."""
    others = [set(pairs[1 - side][pairs[side] == one].tolist()) for one in ones]
    return all(others) and len(set.union(*others)) == sum(map(len, others))


def _together(pairs: Pairs, ones: NDArray[np.int64]) -> bool:
    """Whether these objects, on the first side, belong to a single one on the second."""
    others = [set(pairs[1][pairs[0] == one].tolist()) for one in ones]
    return bool(set.intersection(*others)) if all(others) else False


def _places(objects: Objects) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(objects["x"], objects["y"], strict=True)]


def _pairs(one: _Seen, other: _Seen, reach: float) -> Pairs:
    """Rows of the same objects in two frames: those that overlap, then those that lie nearest."""
    overlap = _overlaps(one.runs, one.row_of, other.runs, other.row_of)
    n = max(1, len(other.objects))
    keys, at = np.unique(overlap[:, 0] * n + overlap[:, 1], return_inverse=True)
    shared = np.bincount(at, overlap[:, 2], len(keys))
    old, new = keys // n, keys % n
    smaller = np.minimum(one.objects["area"][old], other.objects["area"][new])
    same = shared >= _SHARED * smaller
    old, new = old[same], new[same]
    if reach and len(one.objects) and len(other.objects):
        lone = np.setdiff1d(np.arange(len(one.objects)), old)
        free = np.setdiff1d(np.arange(len(other.objects)), new)
        if len(lone) and len(free):
            points = [np.stack([seen.objects[rows]["x"], seen.objects[rows]["y"]], 1) for seen, rows in
                      ((one, lone), (other, free))]  # fmt: skip
            distance, nearest = _nearest(points[1], points[0])
            back = _nearest(points[0], points[1])[1]
            mutual = (distance <= reach * other.objects["diameter"][free]) & (back[nearest] == np.arange(len(free)))
            old, new = np.append(old, lone[nearest[mutual]]), np.append(new, free[mutual])
    return old, new


def _nearest(points: NDArray[Any], others: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance and row of the nearest of the others, for each point."""
    distance, row = KDTree(others).query(points)
    return np.asarray(distance), np.asarray(row)


@njit(cache=True, nogil=True)
def _overlaps(one: Runs, row_of: NDArray[np.int64], other: Runs, other_row_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """(m, 3): row of an object in one frame, in the other, and pixels that a run of each has in common."""
    found = np.empty((len(one.row) + len(other.row), 3), np.int64)
    n = j = 0
    for i in range(len(one.row)):
        row, start, end = one.row[i], one.start[i], one.end[i]
        while j < len(other.row) and (other.row[j] < row or (other.row[j] == row and other.end[j] <= start)):
            j += 1
        k = j
        while k < len(other.row) and other.row[k] == row and other.start[k] < end:
            a, b = row_of[one.component[i]], other_row_of[other.component[k]]
            if a >= 0 and b >= 0:
                found[n, 0], found[n, 1] = a, b
                found[n, 2] = min(end, other.end[k]) - max(start, other.start[k])
                n += 1
            k += 1
    return found[:n]
