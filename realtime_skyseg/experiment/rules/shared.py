"""What several rules share."""

import math

from realtime_skyseg.experiment.rules.seen import Decision, Seen, Situation
from realtime_skyseg.programme import Condition

#: A wipe is given up after so many frames at `AdaptiveSteps.reset_mT`.
WIPE_FRAMES = 64


class LeavesSteps:
    """A rule that leaves the steps as they are."""

    def next_field(self, count: float, at: Situation) -> Decision | None:
        """See `Decider`."""
        return None


class Truth:
    """Whether a condition holds, with its hysteresis and dwell."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        self._agree = 0
        self.holds = False

    def see(self, now: Seen) -> bool:
        """Take one more frame; True while the condition holds."""
        value = now.value(self._condition.quantity)
        high, low, slack = self._condition.at_least, self._condition.at_most, self._condition.hysteresis
        if math.isnan(value):
            self._agree = 0
            return self.holds
        if high is not None:
            inside = value >= (high - slack if self.holds else high)
        else:
            inside = value <= ((low or 0.0) + slack if self.holds else (low or 0.0))
        self._agree = self._agree + 1 if inside != self.holds else 0
        if self._agree >= self._condition.dwell_frames:
            self.holds, self._agree = not self.holds, 0
        return self.holds
