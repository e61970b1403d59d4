"""How long a programme takes, and how far it goes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from realtime_skyseg.programme.limits import Limits
from realtime_skyseg.programme.steps import Step, alternating


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


def step_seconds(step: Step, field: Limits, rate_hz: float | None) -> float:
    """How long a step takes, in s."""
    return sum(seconds for _, seconds in _moves(step.field_mT, step, field, rate_hz))
