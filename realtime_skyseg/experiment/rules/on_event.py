"""The rule `on_event`."""

from dataclasses import dataclass

import numpy as np

from realtime_skyseg.analysers.selection import points_of
from realtime_skyseg.analysers.tracks import Linker
from realtime_skyseg.experiment.rules.seen import Decision, Seen, Situation
from realtime_skyseg.experiment.rules.shared import LeavesSteps
from realtime_skyseg.programme import EventName, OnEvent
from realtime_skyseg.records import Kind, Objects


class OnEventRule(LeavesSteps):
    """What happens to single skyrmions, from one analysed frame to the next.

    Those that touch the border of the image come and go there, and are left out.
    """

    def __init__(self, rule: OnEvent) -> None:
        self._rule = rule
        self._clips = 0
        self._some: bool | None = None  # whether there are skyrmions, that `dwell_frames` frames in a row agree on
        self._agree = 0
        self._tracked = np.empty((0, 4))  # x, y, area of each skyrmion of the last frame, frames in a row that show it
        self._linker, self._numbers = Linker(rule.match_px, memory=0), np.zeros(0, np.int64)  # of the same skyrmions
        self._pending: list[_Pending] = []

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        """See `Decider`."""
        found = [*self._extremes(now), *self._single(now)]
        events = [text for name, text in found if name in self._rule.events]
        if not events:
            return None
        span = None
        if self._rule.clip_s and self._clips < self._rule.max_clips:
            self._clips += 1
            span = (self._rule.clip_s, self._rule.clip_s)
        return Decision("mark", "; ".join(events)[:300], span=span)

    def _extremes(self, now: Seen) -> list[tuple[str, str]]:
        """From none to some, and back."""
        some = now.count >= self._rule.present_count
        if self._some is None:
            self._some = some
        self._agree = self._agree + 1 if some != self._some else 0
        if self._agree < self._rule.dwell_frames:
            return []
        self._some, self._agree = some, 0
        name = "nucleation" if some else "annihilation"
        return [(name, f"{name} near {now.field_mT:.4g} mT, count {now.count}")]

    def _single(self, now: Seen) -> list[tuple[str, str]]:
        """Collapses and merges that enough frames have confirmed."""
        dwell, objects = self._rule.dwell_frames, now.objects
        out: list[_Pending] = []
        waiting: list[_Pending] = []
        there = self._over(objects, np.array([(one.x, one.y) for one in self._pending]).reshape(-1, 2)).sum(axis=1)
        for one, n in zip(self._pending, there, strict=True):
            if n == (one.name == "merge"):
                one.frames += 1
                (out if one.frames >= dwell else waiting).append(one)
        before = self._tracked[self._tracked[:, 3] >= dwell]
        over = self._over(objects, before[:, :2])
        fresh: list[_Pending] = []
        if len(objects):  # else it was the last one: an annihilation
            fresh = [_Pending("collapse", x, y) for x, y, _, _ in before[~over.any(axis=1)].tolist()]
            inside = self._inside(objects, before[:, :2], self._rule.match_px / 3)
            for place in np.flatnonzero(inside.sum(axis=0) == 2):
                parents, area = before[inside[:, place], 2], float(objects["area"][place])
                if 0.6 * parents.sum() < area < 2 * parents.sum() and area > 1.3 * parents.max():
                    fresh.append(_Pending("merge", float(objects["x"][place]), float(objects["y"][place])))
        for one in fresh:
            (out if dwell == 1 else waiting).append(one)
        self._pending = waiting[:1000]
        self._track(objects)
        return [(one.name, f"{one.name} at ({one.x:.0f}, {one.y:.0f}) px near {now.field_mT:.4g} mT") for one in out]

    def _track(self, objects: Objects) -> None:
        """Keep the skyrmions of a frame, with the number of frames in a row that they were seen in."""
        whole = objects[(objects["kind"] == Kind.SKYRMION) & (objects["border"] == 0)]
        frames = dict(zip(self._numbers.tolist(), self._tracked[:, 3], strict=True))
        self._numbers = self._linker(points_of(whole))
        seen = [1 + frames.get(number, 0) for number in self._numbers.tolist()]
        self._tracked = np.stack([whole["x"], whole["y"], whole["area"], np.array(seen)], axis=1).astype(float)

    def _over(self, objects: Objects, places: np.ndarray) -> np.ndarray:
        """(place, object) bool: the object is near, or extends over the place."""
        apart = np.hypot(objects["x"][None] - places[:, :1], objects["y"][None] - places[:, 1:])
        over: np.ndarray = (apart <= self._rule.match_px) | self._inside(objects, places, 0.0)
        return over

    @staticmethod
    def _inside(objects: Objects, places: np.ndarray, slack: float) -> np.ndarray:
        """(place, object) bool: the place is in the object's bounding box, or at most `slack` px beside it."""
        found = np.ones((len(places), len(objects)), bool)
        for k, (start, size) in enumerate((("left", "width"), ("top", "height"))):
            low = objects[start].astype(float)
            found &= (places[:, k : k + 1] >= low - slack) & (places[:, k : k + 1] < low + objects[size] + slack)
        return found


@dataclass
class _Pending:
    """An event that more frames have to confirm."""

    name: EventName
    x: float
    y: float
    frames: int = 1
