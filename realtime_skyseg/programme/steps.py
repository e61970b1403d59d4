"""From the parts of a programme to its single steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from realtime_skyseg.programme.parts import (
    AC_POINT_S,
    AC_POINTS,
    MAX_STEPS,
    AlternatingField,
    Demagnetise,
    FieldList,
    Hold,
    InPlanePulse,
    Loop,
    Measured,
    Part,
    Ramp,
    Repeat,
    Staircase,
    grid,
)
from realtime_skyseg.programme.settings import ExperimentSettings


@dataclass(frozen=True, slots=True)
class Step:
    """One field of a programme, and what is done there. What a rule changes on the way is not in it."""

    plan: int  # position in the expanded programme
    part: str  # name, or place in the settings, for example "2.0"
    kind: str  # `do` of the part
    cycle: int  # how many times the part began before, in `repeat` and minor loops
    occurrence: int  # parts in the order they come; the same for all steps of a part, until it is repeated
    branch: int  # steps with the same branch go one way; -1: alone
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
        self._plan = self._branch = 0
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

    def _part(self, part: "Measured", where: str) -> Iterator[Step]:
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
                branch = self._next_branch()
                for value in grid(start, part.to_mT, part.step_mT)[part.from_mT is None :]:
                    yield make(value, branch, ac=part.ac)
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
        branch = self._next_branch()
        for value in grid(start, part.to_mT, part.step_mT)[1:]:
            yield make(value, branch, rate_mT_per_s=part.rate_mT_per_s, moving=True, settle_s=0.0, frames=0)

    def _loop(self, part: Loop, name: str, cycle: int) -> Iterator[Step]:
        for number, turn in enumerate(part.turns_mT):
            make = _Maker(self, part, name, cycle * len(part.turns_mT) + number)
            for a, b in ((part.high_mT, turn), (turn, part.high_mT)):
                branch = self._next_branch()
                for value in grid(a, b, part.step_mT)[1:]:
                    yield make(value, branch, ac=part.ac)

    def _start(self, given: float | None, where: str, key: str) -> float:
        if given is not None:
            return given
        if self._at is None:
            raise ValueError(f"programme.{where}.{key}: this key is missing, because no part before tells the field")
        return self._at

    def _next_branch(self) -> int:
        self._branch += 1
        return self._branch


class _Maker:
    """Makes the steps of one part."""

    def __init__(self, expansion: _Expansion, part: Measured, name: str, cycle: int) -> None:
        self._expansion, self._part, self._name, self._cycle = expansion, part, name, cycle

    def __call__(  # noqa: PLR0913  keywords, each with a default
        self,
        field_mT: float,
        branch: int = -1,
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
            branch,
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


def alternating(ac: AlternatingField) -> list[tuple[float, float]]:
    """Points (s after its begin, mT from the field of the step) of an alternating field, ending at 0."""
    per_period = max(AC_POINTS, min(32, round(1 / (ac.frequency_hz * AC_POINT_S))))
    n = per_period * ac.periods
    return [
        (k / (per_period * ac.frequency_hz), ac.amplitude_mT * math.sin(2 * math.pi * k / per_period) if k < n else 0.0)
        for k in range(1, n + 1)
    ]
