"""Field programmes and feedback rules as data: the section `experiment` of the settings, and what it asks of a magnet.

A programme is a list of parts (`hold`, `staircase`, `loop`, ...). `expand` turns it into a finite list of steps without
touching anything; `check` compares those with the limits of the magnet; `estimate` says how long they take.
"""

from realtime_skyseg.programme.checking import check, check_quantities
from realtime_skyseg.programme.duration import Estimate, estimate
from realtime_skyseg.programme.limits import Limits
from realtime_skyseg.programme.parts import (
    AC_POINT_S,
    MAX_STEPS,
    RAMP_POINT_S,
    AlternatingField,
    Demagnetise,
    FieldList,
    Hold,
    InPlanePulse,
    Loop,
    Part,
    Positive,
    Ramp,
    Repeat,
    Staircase,
    grid,
)
from realtime_skyseg.programme.rules import (
    QUANTITIES,
    AdaptiveSteps,
    Condition,
    EventName,
    HoldCount,
    OnEvent,
    PythonRule,
    Rule,
    StopWhen,
)
from realtime_skyseg.programme.settings import ExperimentSettings, Interlocks
from realtime_skyseg.programme.steps import Step, alternating, expand

__all__ = [
    "AC_POINT_S",
    "MAX_STEPS",
    "QUANTITIES",
    "RAMP_POINT_S",
    "AdaptiveSteps",
    "AlternatingField",
    "Condition",
    "Demagnetise",
    "Estimate",
    "EventName",
    "ExperimentSettings",
    "FieldList",
    "Hold",
    "HoldCount",
    "InPlanePulse",
    "Interlocks",
    "Limits",
    "Loop",
    "OnEvent",
    "Part",
    "Positive",
    "PythonRule",
    "Ramp",
    "Repeat",
    "Rule",
    "Staircase",
    "Step",
    "StopWhen",
    "alternating",
    "check",
    "check_quantities",
    "estimate",
    "expand",
    "grid",
]
