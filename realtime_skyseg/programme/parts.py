"""The parts of a field programme, as settings."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from realtime_skyseg.section import Section

#: No programme has more steps than this.
MAX_STEPS = 20_000

#: An alternating field is made of so many points per second at most, a slow ramp of so many.
AC_POINT_S, RAMP_POINT_S = 0.025, 0.1

#: Points per period that an alternating field has at least.
AC_POINTS = 8


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class AlternatingField(Section):
    """A sine around the field of a step, before it is measured: it helps walls over pinning sites."""

    amplitude_mT: Positive
    """Half of peak to peak."""
    frequency_hz: Annotated[float, Field(gt=0, le=1 / (AC_POINTS * AC_POINT_S))]
    """Of a sine with at least 8 points per period."""
    periods: Annotated[int, Field(ge=1, le=10_000)] = 5
    """How many; then the field is at rest again, and settles."""


class Measured(Section):
    """What every part of a programme can say of its steps."""

    name: Annotated[str, Field(max_length=40, pattern=r"^[\w .+-]*$")] = ""
    """For rules (`during`) and tables; absent: its place."""
    settle_s: NotNegative | None = None
    """Wait after the field is reached and read back; absent: `experiment.settle_s`."""
    frames: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Analysed frames to average at each step, whose exposure began after settling; absent: `experiment.frames`."""
    limit_mT: tuple[float, float] | None = None
    """Narrower limits than `field.limit_mT`, for this part and for the rules during it."""


class _Resting(Measured):
    ac: AlternatingField | None = None
    """An alternating field at each step, before it settles."""


class Hold(_Resting):
    """Go to a field and stay."""

    do: Literal["hold"]
    field_mT: float
    for_s: NotNegative = 0.0
    """Stay at least so long, and until the frames are there."""


class Ramp(Measured):
    """Move steadily; the frames on the way are averaged over stretches of `step_mT`. Nothing settles."""

    do: Literal["ramp"]
    from_mT: float | None = None
    """Absent: where the part before ended."""
    to_mT: float
    rate_mT_per_s: Positive
    step_mT: Positive
    """One row of the table for each such stretch."""


class Staircase(_Resting):
    """Go from one field to another in equal steps; the last one is shorter where they do not fit."""

    do: Literal["staircase"]
    from_mT: float | None = None
    """Absent: where the part before ended, which is not measured again."""
    to_mT: float
    step_mT: Positive


class Loop(_Resting):
    """A hysteresis loop from `high_mT` down to `low_mT` and back; with `reversals_mT` minor loops instead."""

    do: Literal["loop"]
    high_mT: float
    """Where it begins and ends."""
    low_mT: float | None = None
    """Turning point of a major loop."""
    reversals_mT: Annotated[list[float], Field(min_length=1, max_length=1000)] | None = None
    """Turning points of minor loops, one after the other (first-order reversal curves)."""
    step_mT: Positive

    @model_validator(mode="after")
    def _check_turns(self) -> Self:
        if (self.low_mT is None) == (self.reversals_mT is None):
            raise ValueError("a loop needs either low_mT or reversals_mT")
        for turn in self.turns_mT:
            if turn == self.high_mT:
                raise ValueError(f"turns at {turn:g} mT, where it begins; allowed: another field than high_mT")
        return self

    @property
    def turns_mT(self) -> list[float]:
        """Where it turns back to `high_mT`."""
        return self.reversals_mT or [self.low_mT or 0.0]


class FieldList(_Resting):
    """Any fields, in order."""

    do: Literal["list"]
    fields_mT: Annotated[list[float], Field(min_length=1, max_length=MAX_STEPS)]


class InPlanePulse(Measured):
    """Give an in-plane pulse at a fixed out-of-plane field: it nucleates."""

    do: Literal["pulse"]
    at_mT: float | None = None
    """Out-of-plane field; absent: where the part before ended."""
    in_plane_mT: float
    seconds: Positive


class Demagnetise(Measured):
    """Alternate the field, each swing smaller than the one before, and end at zero."""

    do: Literal["demagnetise"]
    amplitude_mT: Positive
    ratio: Annotated[float, Field(ge=0.1, le=0.99)] = 0.8
    """Of each swing to the one before."""
    smallest_mT: Annotated[float, Field(ge=1e-6)] | None = None
    """Last swing at least; absent: `field.tolerance_mT`."""
    dwell_s: Annotated[float, Field(ge=0, le=60)] = 0.2
    """Stay at each turn."""


class Repeat(Section):
    """Parts, several times."""

    do: Literal["repeat"]
    times: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    programme: Annotated[list["Part"], Field(min_length=1, max_length=1000)]


Part = Annotated[
    Hold | Ramp | Staircase | Loop | FieldList | InPlanePulse | Demagnetise | Repeat, Field(discriminator="do")
]


def grid(start: float, end: float, step: float) -> list[float]:
    """Fields from `start` to `end` in steps of `step`; both ends are in it.

    Raises ValueError for more than `MAX_STEPS`.
    """
    n = abs(end - start) / step
    if n > MAX_STEPS:
        raise ValueError(
            f"programme: {abs(end - start):g} mT in steps of {step:g} mT; allowed: at most {MAX_STEPS} steps"
        )
    whole = math.ceil(n - 1e-6)
    inner = [round(start + math.copysign(step, end - start) * k, 9) for k in range(1, whole)]
    return [start, *inner, end] if whole else [start]


def walk_through(parts: Sequence[Part]) -> Iterator[Measured]:
    """Every part that is measured, those inside `repeat` too, once each."""
    for part in parts:
        if isinstance(part, Repeat):
            yield from walk_through(part.programme)
        else:
            yield part
