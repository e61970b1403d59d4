"""Field programmes and feedback rules as data: the section `experiment` of the settings, and what it asks of a magnet.

A programme is a list of parts (`hold`, `staircase`, `loop`, ...). `expand` turns it into a finite list of steps without
touching anything; `check` compares those with the limits of the magnet; `estimate` says how long they take.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from realtime_skyseg.records import FRAME_QUANTITIES
from realtime_skyseg.section import Section

#: No programme has more steps than this.
MAX_STEPS = 20_000

#: An alternating field is made of so many points per second at most, a slow ramp of so many.
AC_POINT_S, RAMP_POINT_S = 0.025, 0.1

#: Points per period that an alternating field has at least.
_AC_POINTS = 8


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


# --- parts of a programme ---


class AlternatingField(Section):
    """A sine around the field of a step, before it is measured: it helps walls over pinning sites."""

    amplitude_mT: Positive
    """Half of peak to peak."""
    frequency_hz: Annotated[float, Field(gt=0, le=1 / (_AC_POINTS * AC_POINT_S))]
    """Of a sine with at least 8 points per period."""
    periods: Annotated[int, Field(ge=1, le=10_000)] = 5
    """How many; then the field is at rest again, and settles."""


class _Measured(Section):
    """What every part of a programme can say of its steps."""

    name: Annotated[str, Field(max_length=40, pattern=r"^[\w .+-]*$")] = ""
    """For rules (`during`) and tables; absent: its place."""
    settle_s: NotNegative | None = None
    """Wait after the field is reached and read back; absent: `experiment.settle_s`."""
    frames: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Analysed frames to average at each step, whose exposure began after settling; absent: `experiment.frames`."""
    limit_mT: tuple[float, float] | None = None
    """Narrower limits than `field.limit_mT`, for this part and for the rules during it."""


class _Resting(_Measured):
    ac: AlternatingField | None = None
    """An alternating field at each step, before it settles."""


class Hold(_Resting):
    """Go to a field and stay."""

    do: Literal["hold"]
    field_mT: float
    for_s: NotNegative = 0.0
    """Stay at least so long, and until the frames are there."""


class Ramp(_Measured):
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


class InPlanePulse(_Measured):
    """Give an in-plane pulse at a fixed out-of-plane field: it nucleates."""

    do: Literal["pulse"]
    at_mT: float | None = None
    """Out-of-plane field; absent: where the part before ended."""
    in_plane_mT: float
    seconds: Positive


class Demagnetise(_Measured):
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


# --- rules ---

#: What a condition can be about, besides the quantities of analysers.
QUANTITIES = (*FRAME_QUANTITIES, "diameter_px", "field_mT")


class Condition(Section):
    """Something that is true of the latest frames, with hysteresis and dwell."""

    quantity: str
    """count, stripes, area_fraction, diameter_px, field_mT, or a quantity of frames that an analyser finds."""
    at_least: float | None = None
    """True from here up."""
    at_most: float | None = None
    """True from here down."""
    hysteresis: NotNegative = 0.0
    """Once true, it is false only where the quantity is on the other side by more than this."""
    dwell_frames: Annotated[int, Field(ge=1, le=10_000)] = 2
    """So many frames in a row have to agree before it becomes true, or false again."""

    @model_validator(mode="after")
    def _check_side(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a condition needs either at_least or at_most")
        return self


class _Rule(Section):
    during: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the parts during which it is asked; absent: always."""


class StopWhen(_Rule):
    """End the programme, or the part, once a condition holds; the field is frozen in the frame that shows it."""

    rule: Literal["stop_when"]
    when: Condition
    back_off_mT: NotNegative = 0.0
    """Go back by so much, against the direction of the last move."""
    then_frames: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Frames to record at the field where it stopped."""
    ends: Literal["programme", "part"] = "programme"
    """What ends then."""


class HoldCount(_Rule):
    """Keep a number of skyrmions: trim by raising the field, freeze by lowering it, create by in-plane pulses.

    A higher field destroys, only a pulse creates: the way to a number is from above.
    """

    rule: Literal["hold_count"]
    target: Annotated[int, Field(ge=1, le=100_000)]
    tolerance: NotNegative | None = None
    """Skyrmions more or less that are well; absent: 10 % of the target, at least 3."""
    annihilation_mT: float
    """Field at which the last skyrmion vanishes; its sign says which way destroys."""
    back_off_mT: Positive
    """Freeze: lower the field by so much from where skyrmions vanished last; more than the stray fields to expect."""
    step_mT: Positive
    """Largest step of trimming."""
    smallest_step_mT: Positive
    """Smallest step of trimming."""
    relax_frames: Annotated[int, Field(ge=1, le=1000)] = 5
    """Frames between two steps of trimming."""
    window_frames: Annotated[int, Field(ge=1, le=100)] = 3
    """The count is the median of so many frames."""
    pulse_in_plane_mT: float | None = None
    """Height of the pulses; absent: none is given, and too few skyrmions stay too few."""
    pulse_s: Positive = 0.2
    """Length of the pulses."""
    pulses: Annotated[list[tuple[float, NotNegative]], Field(max_length=100)] = []
    """What is known of pulses: [out-of-plane mT, skyrmions after it]. It learns more from its own."""
    pulse_relax_frames: Annotated[int, Field(ge=1, le=1000)] = 20
    """Frames between a pulse and the first look at what it made."""
    max_pulses: Annotated[int, Field(ge=0, le=100)] = 8
    """Without holding the target in between; then it says so, and gives no more."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.smallest_step_mT > self.step_mT:
            raise ValueError(
                f"smallest_step_mT is {self.smallest_step_mT:g}; allowed: at most step_mT ({self.step_mT:g})"
            )
        if self.annihilation_mT == 0:
            raise ValueError("annihilation_mT is 0; allowed: the field at which the last skyrmion vanishes")
        return self

    @property
    def within(self) -> float:
        """The tolerance in skyrmions."""
        return max(3.0, 0.1 * self.target) if self.tolerance is None else self.tolerance


class AdaptiveSteps(_Rule):
    """Choose the steps of staircases and loops: coarse where the count rests, fine where it changes."""

    rule: Literal["adaptive_steps"]
    coarse_mT: Positive
    fine_mT: Positive
    change: Positive = 1.0
    """A change of the count from step to step that calls for fine steps."""
    quiet_steps: Annotated[int, Field(ge=1, le=1000)] = 8
    """After so many fine steps in a row without such a change, the steps are coarse again."""
    near_mT: list[tuple[float, float]] = []
    """Fields [low, high] where the steps are fine in any case, from an earlier run."""
    reset_mT: float | None = None
    """A field that wipes the sample. With it, the first change sends the field there, and from there straight to
    `before_steps` coarse steps before the change, to meet it again in fine steps. Until then other rules are not asked.
    """
    dwell_frames: Annotated[int, Field(ge=1, le=100)] = 2
    """So many frames in a row have to show that first change."""
    before_steps: Positive = 2.0
    """See `reset_mT`."""
    reset_s: NotNegative = 0.5
    """Stay at `reset_mT`."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.fine_mT > self.coarse_mT:
            raise ValueError(f"fine_mT is {self.fine_mT:g}; allowed: at most coarse_mT ({self.coarse_mT:g})")
        return self


EventName = Literal["nucleation", "annihilation", "collapse", "merge"]


class OnEvent(_Rule):
    """Mark what happens to single skyrmions, and save the frames around it as a clip."""

    rule: Literal["on_event"]
    events: Annotated[list[EventName], Field(min_length=1)]
    """nucleation: the first skyrmion where there was none; annihilation: the last one vanishes; collapse: one vanishes
    among others; merge: two become one object."""
    present_count: Annotated[int, Field(ge=1)] = 1
    """Skyrmions from which on there are some, for nucleation and annihilation."""
    dwell_frames: Annotated[int, Field(ge=1, le=100)] = 2
    """So many frames in a row have to show it."""
    match_px: Positive = 12.0
    """How far a skyrmion moves between two analysed frames at most."""
    clip_s: Annotated[float, Field(ge=0, le=60)] = 3.0
    """Frames so long before and after go into the clip; 0: none."""
    max_clips: Annotated[int, Field(ge=0, le=1000)] = 20
    """Later events are marked only."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_rate(cls, tree: object) -> object:
        if isinstance(tree, dict) and "rate_hz" in tree:
            raise ValueError(
                f"rate_hz is {tree['rate_hz']}, but no camera driver changes its rate during a run, because another "
                "exposure makes another image; allowed: a rate for the whole run, in the section camera"
            )
        return tree


class PythonRule(_Rule):
    """A function of yours, given the latest results, that returns a field in mT, or None."""

    rule: Literal["python"]
    file: Path
    """The Python file. It is run in a process of its own, with the service's rights."""
    function: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "decide"
    """Called with a list of `realtime_skyseg.experiment.Seen`, the newest last."""
    window_frames: Annotated[int, Field(ge=1, le=10_000)] = 100
    """So many results at most."""
    limit_s: Annotated[float, Field(gt=0, le=60)] | None = None
    """It may take so long for an answer, or it is ended and not asked again; absent: `max_age_s`."""


Rule = Annotated[StopWhen | HoldCount | AdaptiveSteps | OnEvent | PythonRule, Field(discriminator="rule")]


class Interlocks(Section):
    """What no rule and no request can pass, beside `field.limit_mT` and `field.slew_mT_per_s`."""

    dead_man_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """No fresh result for so long: the safe state, and the end of the experiment."""
    max_duration_s: Positive = 86_400.0
    """Of the whole experiment, pauses included; then the safe state."""
    hot_mT: Positive | None = None
    """Fields at least this far from zero are hot ..."""
    hot_s: Positive = 60.0
    """... and may last so long in a row; then the safe state."""


class ExperimentSettings(Section):
    """A field programme and the rules that may change it."""

    programme: Annotated[list[Part], Field(min_length=1, max_length=1000)]
    rules: Annotated[list[Rule], Field(max_length=20)] = []
    """Asked in this order at every fresh result; the first that decides acts."""
    settle_s: NotNegative = 0.3
    """See the parts' own `settle_s`."""
    frames: Annotated[int, Field(ge=0, le=100_000)] = 5
    """See the parts' own `frames`."""
    present_count: Positive = 1.0
    """Mean count of a step from which skyrmions are there, for nucleation and annihilation fields; above what the model
    finds in a saturated film."""
    max_age_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """A result older than this is not acted upon, and the programme waits while there is none."""
    min_domain: float | None = None
    """Refused: no model gives a score of its domain yet."""
    interlocks: Interlocks = Interlocks()
    dry_run: bool = False
    """True: the programme runs, the rules decide and are recorded, but nothing is done about it."""

    @field_validator("min_domain")
    @classmethod
    def _check_domain(cls, value: float | None) -> float | None:
        if value is not None:
            raise ValueError(
                f"{value:g} would keep nothing back: no model gives a score of its domain yet; allowed: null"
            )
        return value

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        known = {part.name for part in _walk(self.programme) if part.name}
        for place, rule in enumerate(self.rules):
            for name in rule.during or ():
                if name not in known:
                    allowed = ", ".join(sorted(known)) or "none, because no part of the programme has a name"
                    raise ValueError(f"rules.{place}.during: no part is named '{name}'; allowed: {allowed}")
        return self


# --- steps ---


@dataclass(frozen=True, slots=True)
class Step:
    """One field of a programme, and what is done there. What a rule changes on the way is not in it."""

    plan: int  # position in the expanded programme
    part: str  # name, or place in the settings, for example "2.0"
    kind: str  # `do` of the part
    cycle: int  # how many times the part began before, in `repeat` and minor loops
    occurrence: int  # parts in the order they come; the same for all steps of a part, until it is repeated
    leg: int  # steps with the same leg go one way; -1: alone
    field_mT: float
    from_mT: float | None  # where the step before ended; None: not known before the run
    settle_s: float
    frames: int
    stay_s: float = 0.0
    rate_mT_per_s: float | None = None  # None: as fast as the magnet may
    moving: bool = False  # measured on the way
    ac: AlternatingField | None = None
    pulse: tuple[float, float] | None = None  # in-plane mT, s
    demagnetise: Demagnetise | None = None
    limit_mT: tuple[float, float] | None = None  # the part's own


class Limits(Protocol):
    """What `check` and `estimate` need to know of a magnet: `realtime_skyseg.config.FieldSettings`."""

    @property
    def limit_mT(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def slew_mT_per_s(self) -> float: ...  # noqa: D102
    @property
    def tolerance_mT(self) -> float: ...  # noqa: D102
    @property
    def settle_s(self) -> float: ...  # noqa: D102
    @property
    def pulse_limit_mT(self) -> tuple[float, float] | None: ...  # noqa: D102
    @property
    def pulse_limit_s(self) -> float: ...  # noqa: D102
    @property
    def initial_mT(self) -> float | None: ...  # noqa: D102


def expand(settings: ExperimentSettings) -> list[Step]:
    """The steps of a programme, in order; a pure function.

    Raises:
        ValueError: more than `MAX_STEPS` steps, or a part that goes on from a field that nothing tells.
    """
    steps = list(islice(_Expansion(settings).run(), MAX_STEPS + 1))
    if len(steps) > MAX_STEPS:
        raise ValueError(f"programme: it has more than {MAX_STEPS} steps; allowed: at most that")
    return steps


class _Expansion:
    def __init__(self, settings: ExperimentSettings) -> None:
        self._settings = settings
        self._plan = self._leg = 0
        self._occurrence = -1
        self._at: float | None = None
        self._cycles: dict[str, int] = {}

    def run(self) -> Iterator[Step]:
        yield from self._parts(self._settings.programme, "")

    def _parts(self, parts: Sequence[Part], place: str) -> Iterator[Step]:
        for number, part in enumerate(parts):
            where = f"{place}{number}"
            if isinstance(part, Repeat):
                for _ in range(part.times):
                    yield from self._parts(part.programme, f"{where}.")
            else:
                yield from self._part(part, where)

    def _part(self, part: "_Measured", where: str) -> Iterator[Step]:
        cycle = self._cycles[where] = self._cycles.get(where, -1) + 1
        self._occurrence += 1
        make = _Maker(self, part, part.name or where, cycle)
        match part:
            case Hold():
                yield make(part.field_mT, stay_s=part.for_s, ac=part.ac)
            case FieldList():
                for value in part.fields_mT:
                    yield make(value, ac=part.ac)
            case Ramp():
                yield from self._ramp(part, where, make)
            case Staircase():
                start = self._start(part.from_mT, where, "from_mT")
                leg = self._next_leg()
                for value in grid(start, part.to_mT, part.step_mT)[part.from_mT is None :]:
                    yield make(value, leg, ac=part.ac)
            case Loop():
                yield make(part.high_mT, ac=part.ac)
                yield from self._loop(part, part.name or where, cycle)
            case InPlanePulse():
                yield make(self._start(part.at_mT, where, "at_mT"), pulse=(part.in_plane_mT, part.seconds))
            case Demagnetise():
                yield make(0.0, demagnetise=part)

    def _ramp(self, part: Ramp, where: str, make: "_Maker") -> Iterator[Step]:
        start = self._start(part.from_mT, where, "from_mT")
        if part.from_mT is not None and part.from_mT != self._at:
            yield make(part.from_mT, frames=0)
        leg = self._next_leg()
        for value in grid(start, part.to_mT, part.step_mT)[1:]:
            yield make(value, leg, rate_mT_per_s=part.rate_mT_per_s, moving=True, settle_s=0.0, frames=0)

    def _loop(self, part: Loop, name: str, cycle: int) -> Iterator[Step]:
        for number, turn in enumerate(part.turns_mT):
            make = _Maker(self, part, name, cycle * len(part.turns_mT) + number)
            for a, b in ((part.high_mT, turn), (turn, part.high_mT)):
                leg = self._next_leg()
                for value in grid(a, b, part.step_mT)[1:]:
                    yield make(value, leg, ac=part.ac)

    def _start(self, given: float | None, where: str, key: str) -> float:
        if given is not None:
            return given
        if self._at is None:
            raise ValueError(f"programme.{where}.{key}: this key is missing, because no part before tells the field")
        return self._at

    def _next_leg(self) -> int:
        self._leg += 1
        return self._leg


class _Maker:
    """Makes the steps of one part."""

    def __init__(self, expansion: _Expansion, part: _Measured, name: str, cycle: int) -> None:
        self._expansion, self._part, self._name, self._cycle = expansion, part, name, cycle

    def __call__(  # noqa: PLR0913  keywords, each with a default
        self,
        field_mT: float,
        leg: int = -1,
        *,
        settle_s: float | None = None,
        frames: int | None = None,
        stay_s: float = 0.0,
        rate_mT_per_s: float | None = None,
        moving: bool = False,
        ac: AlternatingField | None = None,
        pulse: tuple[float, float] | None = None,
        demagnetise: Demagnetise | None = None,
    ) -> Step:
        whole, part = self._expansion, self._part
        common = whole._settings
        own_settle = common.settle_s if part.settle_s is None else part.settle_s
        own_frames = common.frames if part.frames is None else part.frames
        step = Step(
            whole._plan,
            self._name,
            getattr(part, "do"),  # noqa: B009  every part has one
            self._cycle,
            whole._occurrence,
            leg,
            field_mT,
            whole._at,
            own_settle if settle_s is None else settle_s,
            own_frames if frames is None else frames,
            stay_s,
            rate_mT_per_s,
            moving,
            ac,
            pulse,
            demagnetise,
            part.limit_mT,
        )
        whole._plan += 1
        whole._at = field_mT
        return step


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


def check_quantities(settings: ExperimentSettings, more: Iterable[str] = ()) -> None:
    """See that conditions are about something that is found; `more` than `QUANTITIES`.

    Raises:
        ValueError: names the condition and what is allowed.
    """
    known = [*QUANTITIES, *more]
    for place, rule in enumerate(settings.rules):
        if isinstance(rule, StopWhen) and rule.when.quantity not in known:
            raise ValueError(
                f"rules.{place}.when.quantity: '{rule.when.quantity}' is not found in frames; "
                f"allowed: {', '.join(known)}"
            )


def check(settings: ExperimentSettings, field: Limits) -> list[Step]:
    """The steps of a programme, none of which asks more of the magnet than it may give.

    Raises:
        ValueError: names the step, the value and what is allowed.
    """
    steps = expand(settings)
    for step in steps:
        _check_step(step, field)
    for place, rule in enumerate(settings.rules):
        _check_rule(f"rules.{place}", rule, field)
    hot = settings.interlocks.hot_mT
    if hot is not None:
        _check_hot(steps, hot, settings.interlocks.hot_s, field)
    needed = estimate(steps, field, None).seconds
    if needed > settings.interlocks.max_duration_s:
        raise ValueError(
            f"programme: it takes {needed:.0f} s without its frames; allowed: at most "
            f"{settings.interlocks.max_duration_s:g} s (interlocks.max_duration_s)"
        )
    return steps


def _check_step(step: Step, field: Limits) -> None:
    where = f"programme: step {step.plan} ({step.part}, {step.kind})"
    low, high = field.limit_mT
    whose = "field.limit_mT"
    if step.limit_mT is not None:
        own_low, own_high = step.limit_mT
        if not low <= own_low < own_high <= high:
            raise ValueError(f"{where} has limit_mT [{own_low:g}, {own_high:g}]; allowed: [lowest, highest] inside "
                             f"[{low:g}, {high:g}] (field.limit_mT)")  # fmt: skip
        (low, high), whose = step.limit_mT, "its limit_mT"
    swing = step.ac.amplitude_mT if step.ac else step.demagnetise.amplitude_mT if step.demagnetise else 0.0
    for value in (step.field_mT - swing, step.field_mT + swing):
        if not low <= value <= high:
            raise ValueError(f"{where} goes to {value:g} mT; allowed: {low:g} to {high:g} mT ({whose})")
    rate = max(step.rate_mT_per_s or 0.0, 2 * math.pi * step.ac.frequency_hz * step.ac.amplitude_mT if step.ac else 0.0)
    if rate > field.slew_mT_per_s:
        raise ValueError(f"{where} moves at up to {rate:.4g} mT/s; allowed: at most {field.slew_mT_per_s:g} "
                         "(field.slew_mT_per_s)")  # fmt: skip
    if step.pulse:
        _check_pulse(where, *step.pulse, field)


def _check_pulse(where: str, in_plane_mT: float, seconds: float, field: Limits) -> None:
    limits = field.pulse_limit_mT
    if limits is None:
        raise ValueError(f"{where} gives a pulse of {in_plane_mT:g} mT; allowed: with field.pulse_limit_mT")
    if not limits[0] <= in_plane_mT <= limits[1]:
        raise ValueError(f"{where} gives a pulse of {in_plane_mT:g} mT; allowed: {limits[0]:g} to {limits[1]:g} mT "
                         "(field.pulse_limit_mT)")  # fmt: skip
    if seconds > field.pulse_limit_s:
        raise ValueError(f"{where} gives a pulse of {seconds:g} s; allowed: at most {field.pulse_limit_s:g} s "
                         "(field.pulse_limit_s)")  # fmt: skip


def _check_rule(where: str, rule: Rule, field: Limits) -> None:
    low, high = field.limit_mT
    asked: list[tuple[str, float]] = []
    if isinstance(rule, HoldCount):
        asked += [(f"pulses.{number}", value) for number, (value, _) in enumerate(rule.pulses)]
        if rule.pulse_in_plane_mT is not None:
            _check_pulse(f"{where}.pulse_in_plane_mT", rule.pulse_in_plane_mT, rule.pulse_s, field)
    if isinstance(rule, AdaptiveSteps) and rule.reset_mT is not None:
        asked.append(("reset_mT", rule.reset_mT))
    for key, value in asked:
        if not low <= value <= high:
            raise ValueError(f"{where}.{key} is {value:g} mT; allowed: {low:g} to {high:g} mT (field.limit_mT)")


def _check_hot(steps: Sequence[Step], hot_mT: float, hot_s: float, field: Limits) -> None:
    """Refuse a programme that the interlock would end in any case."""
    since_s = 0.0
    for step in steps:
        since_s = since_s + _step_s(step, field, None) if abs(step.field_mT) >= hot_mT else 0.0
        if since_s > hot_s:
            raise ValueError(
                f"programme: step {step.plan} ({step.part}, {step.kind}) is at {step.field_mT:g} mT after "
                f"{since_s:.1f} s in a row beyond {hot_mT:g} mT; allowed: at most {hot_s:g} s (interlocks.hot_s)"
            )


# --- what a programme asks ---


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a programme will ask of the magnet, if no rule changes it."""

    steps: int
    seconds: float
    frames: int  # to average; without those of moving steps
    lowest_mT: float
    highest_mT: float
    way_mT: float  # sum of all moves
    fastest_mT_per_s: float
    pulses: int
    trace: list[tuple[float, float]]  # (s, mT), corners of the field over time


def estimate(steps: Sequence[Step], field: Limits, rate_hz: float | None) -> Estimate:
    """How long the steps take, and what they ask; frames take no time where `rate_hz` is None.

    It begins where the first step comes from, else at `field.initial_mT`, else at zero.
    """
    time_s = 0.0
    at = next((value for value in (steps[0].from_mT, field.initial_mT) if value is not None), 0.0)
    trace, way, fastest = [(0.0, at)], 0.0, 0.0
    for step in steps:
        for value, seconds in _moves(at, step, field, rate_hz):
            way += abs(value - at)
            if value != at and seconds > 0:
                fastest = max(fastest, abs(value - at) / seconds)
            time_s += seconds
            trace.append((time_s, value))
            at = value
    fields = [value for _, value in trace]
    return Estimate(
        steps=len(steps),
        seconds=time_s,
        frames=sum(step.frames for step in steps),
        lowest_mT=min(fields),
        highest_mT=max(fields),
        way_mT=way,
        fastest_mT_per_s=fastest,
        pulses=sum(step.pulse is not None for step in steps),
        trace=trace,
    )


def _moves(at: float, step: Step, field: Limits, rate_hz: float | None) -> Iterator[tuple[float, float]]:
    """(field in mT, seconds to get or stay there), in order."""
    slew = field.slew_mT_per_s
    if step.demagnetise:
        ask = step.demagnetise
        smallest = field.tolerance_mT if ask.smallest_mT is None else ask.smallest_mT
        swing = ask.amplitude_mT
        while abs(swing) >= smallest:
            yield swing, abs(swing - at) / slew
            yield swing, ask.dwell_s
            at, swing = swing, -swing * ask.ratio
    yield step.field_mT, abs(step.field_mT - at) / (step.rate_mT_per_s or slew)
    if step.ac:
        points = alternating(step.ac)
        for time_s, value in pairwise([(0.0, 0.0), *points]):
            yield step.field_mT + value[1], value[0] - time_s[0]
    if step.pulse:
        yield step.field_mT, step.pulse[1]
    yield step.field_mT, step.settle_s + max(step.stay_s, step.frames / rate_hz if rate_hz else 0.0)


def _step_s(step: Step, field: Limits, rate_hz: float | None) -> float:
    return sum(seconds for _, seconds in _moves(step.field_mT, step, field, rate_hz))


def alternating(ac: AlternatingField) -> list[tuple[float, float]]:
    """Points (s after its begin, mT from the field of the step) of an alternating field, ending at 0."""
    per_period = max(_AC_POINTS, min(32, round(1 / (ac.frequency_hz * AC_POINT_S))))
    n = per_period * ac.periods
    return [
        (k / (per_period * ac.frequency_hz), ac.amplitude_mT * math.sin(2 * math.pi * k / per_period) if k < n else 0.0)
        for k in range(1, n + 1)
    ]


def _walk(parts: Sequence[Part]) -> Iterator[_Measured]:
    for part in parts:
        if isinstance(part, Repeat):
            yield from _walk(part.programme)
        else:
            yield part
