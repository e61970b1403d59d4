"""The rule `adaptive_steps`: fine where the count changes."""

import math
from collections import deque

import numpy as np

from realtime_skyseg.experiment.rules.seen import WAIT, Decision, Seen, Situation
from realtime_skyseg.experiment.rules.shared import WIPE_FRAMES
from realtime_skyseg.programme import AdaptiveSteps


class AdaptiveStepsRule:
    """Coarse and fine steps. With `reset_mT` the first change is only a hint where to look again from the start."""

    def __init__(self, rule: AdaptiveSteps) -> None:
        self._rule = rule
        self._branch = -2
        self._base: float | None = None  # count at the step before
        self._fine_left = 0  # fine steps until they are coarse again
        self._searching = rule.reset_mT is not None
        self._resetting: float | None = None  # where to go after the reset
        self._rest: deque[int] = deque(maxlen=9)  # counts before the change that is sought
        self._agree = 0  # frames in a row that differ from them
        self._before = 0.0  # their median when the change was met
        self._wiped = self._wiping = 0  # frames of the wipe: that show that count again, in a row; all
        self._frames = 0  # of the step that the wipe interrupted

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        """See `Decider`."""
        rule = self._rule
        self._enter(at)
        if self._resetting is not None:
            if not (at.settled and at.target_mT == rule.reset_mT):
                return WAIT
            # What survived the wipe would be taken for a new change on the way back.
            self._wiped = self._wiped + 1 if abs(now.count - self._before) < rule.change else 0
            self._wiping += 1
            if self._wiped < rule.dwell_frames and self._wiping < WIPE_FRAMES:
                return WAIT
            left = "" if self._wiped else f", though {now.count} are left"
            back, self._resetting = self._resetting, None
            return Decision(
                "set", f"back to {back:g} mT{left}, to meet the change in fine steps", back, frames=self._frames
            )
        if not self._searching or at.step.branch < 0:
            return None
        if len(self._rest) < 3 or abs(now.count - float(np.median(self._rest))) < rule.change:
            self._agree = 0
            if at.settled:
                self._rest.append(now.count)
            return WAIT
        self._agree += 1
        if self._agree < rule.dwell_frames:
            return WAIT
        self._agree = 0
        self._before, self._wiped, self._wiping = float(np.median(self._rest)), 0, 0
        self._frames = at.step.frames
        self._rest.clear()
        self._searching = False
        self._fine_left = math.ceil((rule.before_steps + 1) * rule.coarse_mT / rule.fine_mT) + rule.quiet_steps
        self._base = None
        assert rule.reset_mT is not None
        begin, end = at.leg_mT
        back = at.target_mT - math.copysign(rule.before_steps * rule.coarse_mT, end - begin)
        # Not beyond where this direction began.
        self._resetting = round(min(max(back, min(begin, at.target_mT)), max(begin, at.target_mT)), 9)
        return Decision(
            "set",
            f"the count changed to {now.count} near {at.target_mT:g} mT: wipe, then look there in fine steps",
            rule.reset_mT,
            settle_s=rule.reset_s,
            frames=WIPE_FRAMES + 1,
        )

    def next_field(self, count: float, at: Situation) -> Decision | None:
        """See `Decider`."""
        rule = self._rule
        self._enter(at)
        if at.step.branch < 0:
            return None
        here, end = at.step.field_mT, at.leg_mT[1]
        if here == end:
            return None
        if self._base is not None and abs(count - self._base) >= rule.change:
            self._fine_left = rule.quiet_steps
        elif self._fine_left:
            self._fine_left -= 1
            if not self._fine_left:  # it was a false alarm, or there is another change further on
                self._searching = rule.reset_mT is not None
        self._base = count
        way = 1 if end > here else -1
        coarse = here + way * rule.coarse_mT
        fine = self._fine_left > 0 or any(
            low <= here <= high or max(low, min(here, coarse)) <= min(high, max(here, coarse))
            for low, high in rule.near_mT
        )
        after = round(here + way * (rule.fine_mT if fine else rule.coarse_mT), 9)
        if (end - after) * way <= 0:
            after = end
        return Decision("set", "fine step" if fine else "coarse step", after)

    def _enter(self, at: Situation) -> None:
        """Forget the count of a branch that went another way."""
        if at.step.branch != self._branch:
            self._branch = at.step.branch
            self._base = None
            self._rest.clear()
            self._agree = 0
            self._fine_left = 0
            self._searching = self._rule.reset_mT is not None
            self._resetting = None
