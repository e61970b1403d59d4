"""Whether a programme keeps within the magnet's limits: known before anything moves."""

import math
from collections.abc import Iterable, Sequence

from realtime_skyseg.programme.duration import estimate, step_seconds
from realtime_skyseg.programme.limits import Limits
from realtime_skyseg.programme.rules import QUANTITIES, AdaptiveSteps, HoldCount, Rule, StopWhen
from realtime_skyseg.programme.settings import ExperimentSettings
from realtime_skyseg.programme.steps import Step, expand


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
        since_s = since_s + step_seconds(step, field, None) if abs(step.field_mT) >= hot_mT else 0.0
        if since_s > hot_s:
            raise ValueError(
                f"programme: step {step.plan} ({step.part}, {step.kind}) is at {step.field_mT:g} mT after "
                f"{since_s:.1f} s in a row beyond {hot_mT:g} mT; allowed: at most {hot_s:g} s (interlocks.hot_s)"
            )
