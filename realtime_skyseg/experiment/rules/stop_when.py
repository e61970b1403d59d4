"""The rule `stop_when`."""

import math

from realtime_skyseg.experiment.rules.seen import Decision, Seen, Situation
from realtime_skyseg.experiment.rules.shared import LeavesSteps, Truth
from realtime_skyseg.programme import StopWhen


class StopWhenRule(LeavesSteps):
    """Ends the experiment when its condition begins to hold."""

    def __init__(self, rule: StopWhen) -> None:
        self._rule = rule
        self._truth = Truth(rule.when)
        self._was = False

    def decide(self, now: Seen, at: Situation) -> Decision | None:
        """See `Decider`."""
        rule, before = self._rule, self._was
        self._was = self._truth.see(now)
        if before or not self._was:
            return None
        side = (
            f"at least {rule.when.at_least:g}" if rule.when.at_least is not None else f"at most {rule.when.at_most:g}"
        )
        there = at.set_mT if math.isfinite(at.set_mT) else at.target_mT
        return Decision(
            "stop" if rule.ends == "programme" else "end_part",
            f"{rule.when.quantity} is {now.value(rule.when.quantity):g}, {side}",
            there - at.direction * rule.back_off_mT,
            frames=rule.then_frames,
        )
