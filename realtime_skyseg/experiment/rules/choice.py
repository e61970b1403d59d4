"""Which code carries out which rule."""

from realtime_skyseg.experiment.rules.adaptive_steps import AdaptiveStepsRule
from realtime_skyseg.experiment.rules.hold_count import HoldCountRule
from realtime_skyseg.experiment.rules.on_event import OnEventRule
from realtime_skyseg.experiment.rules.seen import Decider
from realtime_skyseg.experiment.rules.stop_when import StopWhenRule
from realtime_skyseg.programme import AdaptiveSteps, HoldCount, OnEvent, PythonRule, Rule, StopWhen


def decider(rule: Rule) -> Decider:
    """The rule at work for its settings. A Python rule works in a process of its own, see `rule_process`."""
    match rule:
        case StopWhen():
            return StopWhenRule(rule)
        case HoldCount():
            return HoldCountRule(rule)
        case AdaptiveSteps():
            return AdaptiveStepsRule(rule)
        case OnEvent():
            return OnEventRule(rule)
        case PythonRule():
            raise TypeError("a Python rule is asked in a process of its own, see rule_process")
