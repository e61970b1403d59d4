"""Field programmes and feedback rules as data: the section `experiment` of the settings, and what it asks of a magnet.

A programme is a list of parts (`hold`, `staircase`, `loop`, ...). `expand` turns it into a finite list of steps without
touching anything; `check` compares those with the limits of the magnet; `estimate` says how long they take.
"""

from realtime_skyseg.programme.checking import check, check_quantities
from realtime_skyseg.programme.duration import estimate
from realtime_skyseg.programme.limits import Limits
from realtime_skyseg.programme.parts import (
    AC_POINT_S,
    RAMP_POINT_S,
    Demagnetise,
    Hold,
    grid,
)
from realtime_skyseg.programme.rules import (
    AdaptiveSteps,
    Condition,
    EventName,
    HoldCount,
    OnEvent,
    PythonRule,
    Rule,
    StopWhen,
)
from realtime_skyseg.programme.settings import ExperimentSettings
from realtime_skyseg.programme.steps import Step, alternating, expand

__all__ = [
    "AC_POINT_S",
    "RAMP_POINT_S",
    "AdaptiveSteps",
    "Condition",
    "Demagnetise",
    "EventName",
    "ExperimentSettings",
    "Hold",
    "HoldCount",
    "Limits",
    "OnEvent",
    "PythonRule",
    "Rule",
    "Step",
    "StopWhen",
    "alternating",
    "check",
    "check_quantities",
    "estimate",
    "expand",
    "grid",
]
