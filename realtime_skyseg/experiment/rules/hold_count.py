"""The rule `hold_count`: keep so many skyrmions."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from realtime_skyseg.experiment.rules.seen import Decision, Seen, Situation
from realtime_skyseg.experiment.rules.shared import LeavesSteps
from realtime_skyseg.programme import HoldCount


@dataclass
class _Pulses:
    """Skyrmions after a pulse, by the out-of-plane field before it."""

    known: list[tuple[float, float]]
    sign: float  # of the field that destroys
    last: tuple[float, float] | None = None  # the own pulse that was looked at last

    def learn(self, field_mT: float, count: float) -> None:
        """Keep what an own pulse made; what contradicts it (a higher field leaves fewer) is forgotten."""
        self.last = (field_mT, count)
        self.known = [
            (field, known)
            for field, known in self.known
            if (self.sign * (field - field_mT) > 1e-6 and known <= count)
            or (self.sign * (field - field_mT) < -1e-6 and known >= count)
        ]
        self.known.append(self.last)

    def field_for(self, count: float) -> float | None:
        """The field where a pulse should give `count`, or a few more; None where nothing is known."""
        if not self.known:
            return None
        fields, counts = np.array(sorted(self.known, key=lambda pair: self.sign * pair[0])).T
        at_mT = float(fields[0]) if count >= counts[0] else float(np.interp(-count, -counts, fields))
        if self.last is not None and self.last[1] < count and len(fields) > 1:
            # At least as far below the last one as the mean slope says: neighbours that are wrong must not stop it.
            slope = (counts[0] - counts[-1]) / abs(fields[-1] - fields[0])
            if slope > 0:
                farther = self.last[0] - self.sign * (count - self.last[1]) / slope
                at_mT = min(at_mT, farther, key=lambda value: self.sign * value)
        return float(at_mT)


class HoldCountRule(LeavesSteps):
    """Trim from above in steps that shrink near the target, freeze below the field that destroys, pulse for more.

    Three states: "look" (frames to relax in, then the median), "frozen" (at rest, watching), "given_up".
    """

    def __init__(self, rule: HoldCount) -> None:
        self._rule = rule
        self._sign = math.copysign(1.0, rule.annihilation_mT)
        self._pulses = _Pulses([(at, float(count)) for at, count in rule.pulses], self._sign)
        self._recent: deque[int] = deque(maxlen=rule.window_frames)
        self._state: Literal["look", "frozen", "given_up"] = "look"
        self._wait = 1  # settled frames until the next look
        self._trim: tuple[float, float] | None = None  # field and count at the last look while trimming
        self._floor = 0.0  # field where trimming began
        self._slope = 0.0  # skyrmions lost per mT
        self._size = 0.0  # last step of trimming, mT
        self._falling = 0.0  # skyrmions lost per frame, smoothed
        self._last: deque[int] = deque(maxlen=3)  # counts, settled or not
        self._given = 0  # pulses since the target was held
        self._pulsed_mT: float | None = None  # a pulse whose yield is not known yet
        self._off = self._well = 0  # frames in a row out of, and within, tolerance while at rest
        # Skyrmions too small to be counted near annihilation, that reappear when it is frozen. Before the first freeze
        # tells: what three films of the twin had (docs/sweep.md).
        self._unseen = min(0.16 * rule.target, 8.0)
        self._corrected = False  # what reappeared after the freeze was trimmed already
        self._frozen_count: float | None = None  # counted when it was frozen, until that is compared
        self._rest: deque[int] = deque(maxlen=8 * rule.window_frames)  # counts at rest

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        """See `Decider`."""
        rule = self._rule
        self._falling = 0.5 * (self._falling + (self._last[-1] - now.count if self._last else 0))
        self._last.append(now.count)
        if self._state == "look" and self._trim and np.median(self._last) <= rule.target + self._lead():
            # At once, also while the field moves: what has begun to vanish goes on for some frames.
            return self._freeze(at, f"the count fell to {now.count}")
        if not at.settled:
            return None
        self._recent.append(now.count)
        if len(self._recent) < rule.window_frames:
            self._wait -= 1
            return None
        count = float(np.median(self._recent))
        if self._state != "look":
            return self._watch(count, at)
        self._wait -= 1
        return self._look(count, at) if self._wait <= 0 else None

    def _lead(self) -> float:
        """Skyrmions that still vanish once the field is lowered."""
        return min(0.02 * self._rule.target + 2 * max(0.0, self._falling), self._rule.within) - self._unseen

    def _watch(self, count: float, at: Situation) -> Decision | None:
        """At rest: do something only once the count has been off for a while."""
        rule = self._rule
        away = count - rule.target
        self._off = self._off + 1 if abs(away) > rule.within else 0
        self._well = 0 if self._off else self._well + 1
        if self._well > 20 * rule.window_frames:
            self._given = 0
        self._rest.append(int(self._recent[-1]))
        if self._frozen_count is not None and len(self._rest) == self._rest.maxlen:
            rest = float(np.median(self._rest))
            self._unseen = min(max(0.0, rest - self._frozen_count), 2 * rule.within)
            self._frozen_count = None
            # Once: a count that is well within the tolerance is better left alone than trimmed again and again.
            if rest - rule.target > rule.within / 2 and self._state == "frozen" and not self._corrected:
                self._corrected = True
                self._state, self._trim = "look", None
                return self._trim_on(rest, at)
        if self._off < 2 * rule.window_frames or (self._state == "given_up" and away < 0):
            return None
        self._off = self._well = 0
        self._state = "look"
        self._trim, self._corrected = None, False
        return self._look(count, at)

    def _look(self, count: float, at: Situation) -> Decision | None:
        rule = self._rule
        if self._pulsed_mT is not None:
            self._pulses.learn(self._pulsed_mT, count)
            self._pulsed_mT = None
        if count < rule.target - rule.within:
            return self._create(count, at)
        if count <= rule.target + self._lead() + (0.0 if self._trim else self._unseen):
            return self._freeze(at, f"the count is {count:g}")
        return self._trim_on(count, at)

    def _trim_on(self, count: float, at: Situation) -> Decision:
        rule = self._rule
        here, excess = at.target_mT, count - rule.target
        size = self._size * 1.5 or rule.step_mT * min(1.0, max(0.25, 2 * excess / rule.target))
        if self._trim is not None:
            moved = self._sign * (here - self._trim[0])
            lost = self._trim[1] - count
            if moved > 0:
                self._slope = max(lost / moved, 0.7 * self._slope)
            if self._slope * size > 0.02 * excess:
                # A fifth of what the last steps say: annihilation runs away in avalanches.
                size = min(size, 0.2 * excess / self._slope)
        self._size = min(max(size, rule.smallest_step_mT), rule.step_mT)
        if self._trim is None:
            self._floor, self._slope = here, 0.0
        self._trim = (here, count)
        self._wait = rule.relax_frames
        self._recent.clear()
        return Decision("set", f"{count:g} are more than {rule.target}: raise", here + self._sign * self._size)

    def _freeze(self, at: Situation, why: str) -> Decision:
        rule = self._rule
        here = at.set_mT if math.isfinite(at.set_mT) else at.target_mT
        trimmed = self._trim is not None
        self._frozen_count = float(np.median(self._last)) if trimmed else None
        self._rest.clear()
        self._state = "frozen"
        self._trim = None
        self._size = self._falling = 0.0
        self._off = self._well = 0
        self._recent.clear()
        if not trimmed:
            return Decision("mark", f"{why}: the target of {rule.target} is reached, the field stays")
        # Not lower than where trimming began: there is no need, and each time a little lower ends in a maze.
        lowest = max(self._sign * here - rule.back_off_mT, self._sign * self._floor)
        return Decision("set", f"{why}: freeze", self._sign * min(lowest, self._sign * here))

    def _create(self, count: float, at: Situation) -> Decision:
        rule = self._rule
        lacking = f"{count:g} are fewer than {rule.target}"
        self._trim, self._corrected = None, False
        self._size = self._falling = 0.0
        self._recent.clear()
        if rule.pulse_in_plane_mT is None or self._given >= rule.max_pulses:
            self._state = "given_up"
            why = f"after {self._given} pulses" if rule.pulse_in_plane_mT is not None else "and no pulse is allowed"
            return Decision("mark", f"{lacking} {why}: the field stays, nothing more is tried")
        # More than wanted: the rest is trimmed.
        at_mT = self._pulses.field_for(1.2 * rule.target + rule.within)
        if at_mT is None:
            at_mT = at.target_mT
        self._given += 1
        self._pulsed_mT = at_mT
        self._wait = rule.pulse_relax_frames
        self._state = "look"
        return Decision("pulse", f"{lacking}: pulse", at_mT, (rule.pulse_in_plane_mT, rule.pulse_s))
