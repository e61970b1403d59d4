"""Field programmes: what they expand to, what is refused, and that no programme and no rule gets past the limits."""

import math
import random
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from realtime_skyseg.config import FieldSettings, validate
from realtime_skyseg.errors import FieldError, SettingsError
from realtime_skyseg.experiment.orders import (
    AskRule,
    Demagnetise,
    GivePulse,
    Moment,
    Note,
    Row,
    SetField,
    StandStill,
    Told,
)
from realtime_skyseg.experiment.rule_process import judged
from realtime_skyseg.experiment.rules import Seen
from realtime_skyseg.experiment.state_machine import StateMachine
from realtime_skyseg.field.magnet import LONGEST_STEP_S, Magnet
from realtime_skyseg.programme import ExperimentSettings, check, estimate, expand
from realtime_skyseg.records import OBJECT_DTYPE

LIMIT_MT, SLEW, PULSE_MT = 4.0, 20.0, 50.0


def magnet_settings(**changes: Any) -> FieldSettings:
    """A magnet in mT, whose driver is never opened."""
    tree = {
        "driver": "manual", "limit_mT": [-LIMIT_MT, LIMIT_MT], "slew_mT_per_s": SLEW, "tolerance_mT": 0.05,
        "settle_s": 0.3, "pulse_limit_mT": [-PULSE_MT, PULSE_MT], "pulse_limit_s": 0.5,
    }  # fmt: skip
    return FieldSettings.model_validate(tree | changes)


def programme(*parts: dict[str, Any], **others: Any) -> ExperimentSettings:
    return ExperimentSettings.model_validate({"programme": list(parts), **others})


EXPANDED = [
    ([{"do": "hold", "field_mT": 1}], [1]),
    ([{"do": "staircase", "from_mT": 0, "to_mT": 1, "step_mT": 0.25}], [0, 0.25, 0.5, 0.75, 1]),
    ([{"do": "staircase", "from_mT": 0.3, "to_mT": 0, "step_mT": 0.1}], [0.3, 0.2, 0.1, 0]),  # no 0.1 + 0.2
    ([{"do": "staircase", "from_mT": 1, "to_mT": 0, "step_mT": 0.4}], [1, 0.6, 0.2, 0]),
    ([{"do": "hold", "field_mT": 1}, {"do": "staircase", "to_mT": 2, "step_mT": 0.5}], [1, 1.5, 2]),
    ([{"do": "list", "fields_mT": [1, -1, 1]}], [1, -1, 1]),
    ([{"do": "loop", "high_mT": 1, "low_mT": -1, "step_mT": 1}], [1, 0, -1, 0, 1]),
    ([{"do": "loop", "high_mT": 1, "reversals_mT": [0, 0.5], "step_mT": 0.5}], [1, 0.5, 0, 0.5, 1, 0.5, 1]),
    ([{"do": "demagnetise", "amplitude_mT": 2}, {"do": "ramp", "to_mT": 1, "rate_mT_per_s": 1, "step_mT": 0.5}],
     [0, 0.5, 1]),
    ([{"do": "pulse", "at_mT": 1, "in_plane_mT": 30, "seconds": 0.1}], [1]),
    ([{"do": "repeat", "times": 2, "programme": [{"do": "list", "fields_mT": [1, 2]}]}], [1, 2, 1, 2]),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "fields"), EXPANDED)
def test_a_programme_becomes_steps(parts: list[dict[str, Any]], fields: list[float]) -> None:
    steps = expand(programme(*parts))
    assert [step.field_mT for step in steps] == fields
    assert [step.plan for step in steps] == list(range(len(steps)))
    assert [step.from_mT for step in steps[1:]] == fields[:-1]


REFUSED = [
    ([{"do": "hold", "field_mT": 4.1}], {}, "step 0 (0, hold) goes to 4.1 mT; allowed: -4 to 4 mT (field.limit_mT)"),
    ([{"do": "list", "fields_mT": [1, 2, -5], "name": "x"}], {}, "step 2 (x, list) goes to -5 mT; allowed: -4 to 4"),
    ([{"do": "hold", "field_mT": 2, "limit_mT": [-1, 1]}], {}, "goes to 2 mT; allowed: -1 to 1 mT (its limit_mT)"),
    ([{"do": "hold", "field_mT": 0, "limit_mT": [-9, 1]}], {}, "limit_mT [-9, 1]; allowed: [lowest, highest] inside"),
    ([{"do": "demagnetise", "amplitude_mT": 5}], {}, "step 0 (0, demagnetise) goes to -5 mT"),
    ([{"do": "hold", "field_mT": 3.95, "ac": {"amplitude_mT": 0.1, "frequency_hz": 1}}], {}, "goes to 4.05 mT"),
    ([{"do": "hold", "field_mT": 0, "ac": {"amplitude_mT": 1, "frequency_hz": 5}}], {}, "moves at up to 31.42 mT/s; "
     "allowed: at most 20 (field.slew_mT_per_s)"),
    ([{"do": "ramp", "from_mT": 0, "to_mT": 1, "rate_mT_per_s": 21, "step_mT": 1}], {}, "moves at up to 21 mT/s"),
    ([{"do": "pulse", "at_mT": 0, "in_plane_mT": 51, "seconds": 0.1}], {}, "pulse of 51 mT; allowed: -50 to 50 mT"),
    ([{"do": "pulse", "at_mT": 0, "in_plane_mT": 5, "seconds": 0.6}], {}, "pulse of 0.6 s; allowed: at most 0.5 s"),
    ([{"do": "pulse", "in_plane_mT": 5, "seconds": 0.1}], {}, "programme.0.at_mT: this key is missing"),
    ([{"do": "staircase", "to_mT": 1, "step_mT": 1}], {}, "programme.0.from_mT: this key is missing"),
    ([{"do": "hold", "field_mT": 3, "for_s": 50}], {"interlocks": {"hot_mT": 3, "hot_s": 40}}, "allowed: at most 40 s"),
    ([{"do": "hold", "field_mT": 0, "for_s": 50}], {"interlocks": {"max_duration_s": 40}}, "allowed: at most 40 s"),
    ([{"do": "repeat", "times": 20000, "programme": [{"do": "list", "fields_mT": [1, 2]}]}], {}, "20000 steps"),
    ([{"do": "staircase", "from_mT": 0, "to_mT": 4, "step_mT": 1e-12}], {}, "allowed: at most 20000 steps"),
    ([{"do": "hold", "field_mT": 0}], {"rules": [{"rule": "adaptive_steps", "coarse_mT": 1, "fine_mT": 0.1,
     "reset_mT": 7}]}, "rules.0.reset_mT is 7 mT; allowed: -4 to 4 mT"),
    ([{"do": "hold", "field_mT": 0}], {"rules": [{"rule": "hold_count", "target": 5, "annihilation_mT": 3,
     "back_off_mT": 1, "step_mT": 0.1, "smallest_step_mT": 0.1, "pulse_in_plane_mT": 99}]}, "pulse of 99 mT"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "others", "sentence"), REFUSED)
def test_what_asks_too_much_is_refused_before_anything_moves(
    parts: list[dict[str, Any]], others: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is compared below
        check(programme(*parts, **others), magnet_settings())
    assert sentence in str(caught.value)


WRONG_SETTINGS = [
    ({"programme": [{"do": "hold", "field_mT": 1, "setle_s": 2}]}, "hold.setle_s: unknown key; did you mean"),
    ({"programme": [{"do": "hodl"}]}, "experiment.programme.0: input tag 'hodl' found"),
    ({"programme": [{"do": "hold", "field_mT": math.nan}]}, "experiment.programme.0.hold.field_mT"),
    ({"programme": []}, "experiment.programme"),
    ({"programme": [{"do": "hold", "field_mT": 99}]}, "experiment.programme: step 0 (0, hold) goes to 99 mT"),
    ({"programme": [{"do": "loop", "high_mT": 1, "step_mT": 1}]}, "a loop needs either low_mT or reversals_mT"),
    ({"programme": [{"do": "hold", "field_mT": 1}], "rules": [{"rule": "stop_when", "during": ["x"],
      "when": {"quantity": "count", "at_least": 1}}]}, "no part is named 'x'; allowed: none"),
    ({"programme": [{"do": "hold", "field_mT": 1}], "rules": [{"rule": "stop_when", "when": {"quantity": "count"}}]},
     "a condition needs either at_least or at_most"),
    ({"programme": [{"do": "hold", "field_mT": 1}], "rules": [{"rule": "on_event", "events": ["merge"],
      "rate_hz": 50}]},
     "experiment.rules.0.on_event: rate_hz is 50, but no camera driver changes its rate during a run"),
    ({"programme": [{"do": "hold", "field_mT": 1}], "rules": [{"rule": "stop_when", "whn": 1}]},
     "experiment.rules.0.stop_when.whn: unknown key; did you mean 'when'?"),
]  # fmt: skip


@pytest.mark.parametrize(("experiment", "sentence"), WRONG_SETTINGS)
def test_wrong_settings_are_one_sentence(experiment: dict[str, Any], sentence: str) -> None:
    field = {"driver": "manual", "limit_mT": [-4, 4], "slew_mT_per_s": 1, "tolerance_mT": 1}
    with pytest.raises(SettingsError) as caught:
        validate({"camera": {"driver": "replay"}, "field": field, "experiment": experiment})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_programme_needs_a_magnet() -> None:
    with pytest.raises(SettingsError, match="experiment: a field programme needs a magnet"):
        validate({"camera": {"driver": "replay"}, "experiment": {"programme": [{"do": "hold", "field_mT": 1}]}})


def test_what_a_programme_takes() -> None:
    parts = [
        {"do": "hold", "field_mT": 2, "for_s": 3, "settle_s": 1, "frames": 0},
        {"do": "ramp", "to_mT": -2, "rate_mT_per_s": 4, "step_mT": 1},
        {"do": "pulse", "in_plane_mT": 30, "seconds": 0.5, "settle_s": 0, "frames": 20},
    ]
    found = estimate(check(programme(*parts), magnet_settings()), magnet_settings(), rate_hz=10)
    assert found.seconds == pytest.approx(2 / SLEW + 1 + 3 + 4 / 4 + 0.5 + 20 / 10)
    assert (found.steps, found.frames, found.pulses) == (6, 20, 1)
    assert (found.lowest_mT, found.highest_mT, found.way_mT) == (-2, 2, 6)
    assert found.fastest_mT_per_s == pytest.approx(SLEW)


def test_what_a_programme_takes_from_the_field_at_its_begin() -> None:
    steps = check(programme({"do": "hold", "field_mT": 2, "settle_s": 0, "frames": 0}), magnet_settings())
    for initial_mT, way_mT in ((None, 2), (-3, 5), (2, 0)):
        found = estimate(steps, magnet_settings(initial_mT=initial_mT), rate_hz=None)
        assert found.seconds == pytest.approx(way_mT / SLEW)
        assert found.trace[0] == (0, initial_mT or 0)


# --- no field outside limits or slew is ever sent ---


class Clock:
    """For the magnet's own code."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return int(self.now_s * 1e9)


class Supply:
    """A supply in mT that fails the test where it is told something that it may not be told."""

    unit = "mT"
    range = (-10.0, 10.0)
    pulse_limit_mT = (-100.0, 100.0)
    description: dict[str, Any] = {}

    def __init__(self, clock: Clock, start_mT: float) -> None:
        self._clock = clock
        self.value = start_mT
        self._since_s = clock.now_s
        self.sets = 0

    def set(self, value: float) -> None:
        passed_s = self._clock.now_s - self._since_s
        assert isinstance(value, float)
        assert -LIMIT_MT <= value <= LIMIT_MT
        assert abs(value - self.value) <= SLEW * min(passed_s, LONGEST_STEP_S) * (1 + 1e-9) + 1e-9
        self.value, self._since_s = value, self._clock.now_s
        self.sets += 1

    def read(self) -> float:
        return self.value

    def pulse(self, in_plane_mT: float, seconds: float) -> None:
        assert abs(in_plane_mT) <= PULSE_MT
        assert 0 < seconds <= 0.5

    def close(self) -> None:
        pass


#: Values that a user's function may come up with, by the count of the frame.
VALUES = [None, 1.0, -3.9, 4.0, 4.0001, 1e308, float("nan"), float("inf"), -float("inf"), True, "2.5", -0.0, 3]


def said(tree: dict[str, Any], order: AskRule) -> dict[str, Any]:
    """What its process makes of such a value."""
    answer = {"rule": order.place, "frame": order.seen.frame}
    if tree["rules"][order.place]["function"] == "fails":
        return answer | {"failed": "RuntimeError: no"}
    try:
        value = judged(VALUES[order.seen.count % len(VALUES)])
    except ValueError as error:
        return answer | {"failed": str(error)}
    return answer | {"answer": math.nan if value is None else value}


near = st.floats(-1.05 * LIMIT_MT, 1.05 * LIMIT_MT)
small = st.floats(0.01, 2.0)
short = st.floats(0, 0.2)
common = {"settle_s": short, "frames": st.integers(0, 3)}
ac = st.none() | st.fixed_dictionaries(
    {"amplitude_mT": st.floats(0.01, 1), "frequency_hz": st.floats(0.5, 5), "periods": st.integers(1, 3)}
)
PARTS = st.one_of(
    st.fixed_dictionaries({"do": st.just("hold"), "field_mT": near, "for_s": short, "ac": ac, **common}),
    st.fixed_dictionaries({"do": st.just("list"), "fields_mT": st.lists(near, min_size=1, max_size=4), **common}),
    st.fixed_dictionaries({"do": st.just("staircase"), "from_mT": near, "to_mT": near, "step_mT": small, "ac": ac,
                           **common}),
    st.fixed_dictionaries({"do": st.just("loop"), "high_mT": near, "low_mT": near, "step_mT": st.floats(0.3, 3),
                           **common}),
    st.fixed_dictionaries({"do": st.just("ramp"), "from_mT": near, "to_mT": near, "rate_mT_per_s": st.floats(0.5, 22),
                           "step_mT": small}),
    st.fixed_dictionaries({"do": st.just("pulse"), "at_mT": near, "in_plane_mT": st.floats(-52, 52),
                           "seconds": st.floats(0.01, 0.5), **common}),
    st.fixed_dictionaries({"do": st.just("demagnetise"), "amplitude_mT": st.floats(0.1, 4.2),
                           "ratio": st.floats(0.1, 0.7), "dwell_s": st.floats(0, 0.05), **common}),
)  # fmt: skip
conditions = st.fixed_dictionaries(
    {"quantity": st.sampled_from(["count", "stripes", "area_fraction", "diameter_px", "field_mT"]),
     "at_least": st.floats(-5, 20), "hysteresis": st.floats(0, 5), "dwell_frames": st.integers(1, 3)}
)  # fmt: skip


def rules(file: Path) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.fixed_dictionaries({"rule": st.just("stop_when"), "when": conditions, "back_off_mT": st.floats(0, 9),
                               "then_frames": st.integers(0, 3), "ends": st.sampled_from(["programme", "part"])}),
        st.fixed_dictionaries({"rule": st.just("hold_count"), "target": st.integers(1, 20),
                               "annihilation_mT": st.sampled_from([-3.7, 3.7]), "back_off_mT": st.floats(0.1, 9),
                               "step_mT": st.floats(0.1, 5), "smallest_step_mT": st.just(0.1),
                               "relax_frames": st.just(1), "pulse_relax_frames": st.just(2),
                               "pulse_in_plane_mT": st.none() | st.floats(-52, 52), "pulse_s": st.floats(0.05, 0.6),
                               "pulses": st.lists(st.tuples(near, st.floats(0, 40)), max_size=3)}),
        st.fixed_dictionaries({"rule": st.just("adaptive_steps"), "coarse_mT": st.floats(0.5, 5),
                               "fine_mT": st.floats(0.05, 0.5), "change": st.floats(0.5, 5),
                               "reset_mT": st.none() | near, "reset_s": short}),
        st.fixed_dictionaries({"rule": st.just("on_event"), "events": st.just(["nucleation", "collapse", "merge"])}),
        st.fixed_dictionaries({"rule": st.just("python"), "file": st.just(str(file)),
                               "function": st.sampled_from(["decide", "fails"])}),
    )  # fmt: skip


def examples(file: Path) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "programme": st.lists(PARTS, min_size=1, max_size=4),
            "rules": st.lists(rules(file), max_size=3),
            "settle_s": short,
            "interlocks": st.fixed_dictionaries(
                {"dead_man_s": st.floats(0.5, 5), "hot_mT": st.none() | st.floats(1, 4), "hot_s": st.floats(2, 60)}
            ),
            "dry_run": st.booleans(),
        }
    )


def some_objects(chance: random.Random, count: int) -> np.ndarray:
    objects = np.zeros(count, OBJECT_DTYPE)
    for row in objects:
        row["x"], row["y"] = chance.uniform(0, 99), chance.uniform(0, 99)
        row["area"], row["diameter"], row["kind"] = 50, 8, chance.random() < 0.1
        row["left"], row["top"], row["width"], row["height"] = row["x"] - 4, max(row["y"] - 4, 0), 8, 8
    return objects


def drive(tree: dict[str, Any], seed: int, seconds: float = 6.0) -> str:
    """Run a programme with wild results and requests on the guard's own magnet; how it ended."""
    chance = random.Random(seed)
    clock = Clock()
    limits = magnet_settings()
    try:
        machine = StateMachine(ExperimentSettings.model_validate(tree), limits)
    except (ValueError, ValidationError, SettingsError):
        return "refused"
    supply = Supply(clock, chance.uniform(-LIMIT_MT, LIMIT_MT))
    guard = Magnet(limits, supply, lambda _: None, clock.monotonic, clock.time_ns)  # type: ignore[arg-type]
    reading = guard.tick()
    frame = 0
    start_s = clock.now_s
    silent_until = 0.0
    stood_mT = math.nan
    asked: deque[AskRule] = deque()  # Python rules answer when they like
    while clock.now_s - start_s < seconds and not machine.finished:
        clock.now_s += chance.choice([0.01, 0.025, 0.025, 0.06, 0.3])
        guard.hear({"do": "beat"})
        reading = guard.tick() or reading
        assert reading is not None
        now_s = clock.now_s - start_s
        told, seen, taken_s = Told.TICK, None, math.nan
        draw = chance.random()
        if draw < 0.01:
            told = chance.choice([Told.PAUSE, Told.RESUME, Told.RESUME, Told.RESUMED, Told.TICK])
        elif draw < 0.013:
            silent_until = now_s + chance.choice([0.5, 2.0, 6.0])
        elif draw < 0.15 and asked:
            told = Told.ANSWER
        elif draw < 0.6 and now_s > silent_until:
            told, taken_s = Told.FRAME, now_s - chance.choice([0.01, 0.05, 0.05, 1.5])
            count = chance.choice([0, 0, 1, 3, 5, 9, 15, chance.randrange(30)])
            objects = some_objects(chance, count)
            seen = Seen(frame, taken_s, reading["field_mT"], count, 0, count / 100, objects)
            frame += 1
        set_mT = math.nan if reading["set_mT"] is None else reading["set_mT"]
        if told == Told.PAUSE:
            stood_mT = supply.value
        moment = Moment(
            told, clock.time_ns(), now_s, reading["time_ns"], reading["field_mT"], set_mT, reading["settled"],
            frame - 1 if seen else -1, taken_s, seen,
        )  # fmt: skip
        if told == Told.ANSWER:
            moment = replace(moment, **said(tree, asked.popleft()))
        orders = deque(machine.advance(moment))
        while orders:
            match order := orders.popleft():  # what the guard refuses raises here
                case SetField():
                    guard.aim(order.field_mT)
                case AskRule():
                    asked.append(order)
                case StandStill() if (stands_mT := guard.stand_still()) is not None:
                    orders += machine.advance(replace(moment, told=Told.STOOD, set_mT=stands_mT, seen=None))
                case GivePulse():
                    guard.pulse(order.in_plane_mT, order.seconds)
                case Demagnetise():
                    guard.demagnetise(order.amplitude_mT, order.ratio, 0.05, order.dwell_s)
                case Row(table="decisions"):
                    assert order.values["acted"] in (True, False)
        assert not machine.paused or supply.value == stood_mT
    assert not guard.fault
    return machine.finished.status if machine.finished else "unfinished"


def test_demagnetising_may_begin_far_away() -> None:
    """The way from the field as found to the first swing takes 19 s of the 21; nothing is late."""
    clock = Clock()
    limits = magnet_settings(slew_mT_per_s=0.2)
    ask = {"do": "demagnetise", "amplitude_mT": 0.1, "ratio": 0.5, "dwell_s": 0, "frames": 0, "settle_s": 0}
    machine = StateMachine(programme(ask, max_age_s=60, interlocks={"dead_man_s": 99}), limits)
    guard = Magnet(limits, Supply(clock, LIMIT_MT), lambda _: None, clock.monotonic, clock.time_ns)  # type: ignore[arg-type]
    told = Told.FRAME
    seen: Seen | None = Seen(0, 0.0, LIMIT_MT, 0, 0, 0.0, np.zeros(0, OBJECT_DTYPE))
    while not machine.finished:
        guard.hear({"do": "beat"})
        reading = guard.tick()
        assert reading is not None
        set_mT = math.nan if reading["set_mT"] is None else reading["set_mT"]
        now_s = clock.now_s - 1000
        for order in machine.advance(
            Moment(told, clock.time_ns(), now_s, reading["time_ns"], reading["field_mT"], set_mT, reading["settled"],
                   seen=seen)
        ):  # fmt: skip
            if isinstance(order, Demagnetise):
                guard.demagnetise(order.amplitude_mT, order.ratio, 0.05, order.dwell_s)
        told, seen = Told.TICK, None
        clock.now_s += 0.025
    assert machine.finished.status == "complete", machine.finished.message
    assert 20 < now_s < 23


def no_field_beyond(n: int, tmp_path: Path) -> dict[str, int]:
    file = tmp_path / "rule.py"
    ends: dict[str, int] = {}

    @settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(examples(file), st.integers(0, 2**32))
    def check_one(tree: dict[str, Any], seed: int) -> None:
        end = drive(tree, seed)
        ends[end] = ends.get(end, 0) + 1

    check_one()
    return ends


def test_no_field_outside_limits_or_slew_is_ever_sent(tmp_path: Path) -> None:
    ends = no_field_beyond(200, tmp_path)
    assert sum(ends.values()) - ends.get("refused", 0) > 80, ends


@pytest.mark.slow
def test_no_field_outside_limits_or_slew_in_10000_programmes(tmp_path: Path) -> None:
    ends = no_field_beyond(10_000, tmp_path)
    print(ends)  # noqa: T201
    assert sum(ends.values()) >= 10_000
    assert ends["refused"] < 6_000, ends
    assert ends["complete"] > 100, ends


def test_the_supply_of_this_test_does_refuse() -> None:
    """What the property above rests on: the supply and the guard notice what is out of bounds."""
    clock = Clock()
    supply = Supply(clock, 0.0)
    with pytest.raises(AssertionError):
        supply.set(1.0)
    clock.now_s += 1
    with pytest.raises(AssertionError):
        supply.set(4.1)
    with pytest.raises(FieldError):
        Magnet(magnet_settings(), supply, lambda _: None, clock.monotonic, clock.time_ns).aim(4.1)  # type: ignore[arg-type]


# --- frames out of the model's range ---

KNOWN, UNKNOWN = 0.9, 0.1
RANGE = [
    # what happens, domain scores of frames 0.5 s apart, notes and how it ends
    ("go_on", [UNKNOWN] * 8, [], None),
    ("pause", [KNOWN, UNKNOWN, UNKNOWN, KNOWN, UNKNOWN, KNOWN], [], None),  # never for 1 s
    ("pause", [KNOWN, *[UNKNOWN] * 3], ["out_of_range", "experiment_paused"], None),
    ("pause", [*[UNKNOWN] * 4, *[KNOWN] * 3],
     ["out_of_range", "experiment_paused", "in_range", "experiment_resumed"], None),
    ("pause", [None] * 4, ["out_of_range", "experiment_paused"], None),  # nobody has judged them
    ("abort", [KNOWN, *[UNKNOWN] * 3], [], "aborted"),
]  # fmt: skip


@pytest.mark.parametrize(("does", "scores", "notes", "ends"), RANGE)
def test_frames_out_of_range(does: str, scores: list[float | None], notes: list[str], ends: str | None) -> None:
    """Rules are not asked about them, and the programme goes on, pauses or ends."""
    rule = {"rule": "stop_when", "when": {"quantity": "count", "at_least": 1, "dwell_frames": 1}}
    hold = {"do": "hold", "field_mT": 2, "for_s": 60}
    experiment = programme(hold, rules=[rule], min_domain=0.5, out_of_range=does, out_of_range_s=1, settle_s=0)
    machine = StateMachine(experiment, magnet_settings())
    told: list[Any] = machine.advance(Moment(Told.TICK, 0, 0.0, 0, 2.0, 2.0, True))
    for number, score in enumerate(scores):
        now_s = 0.5 * (number + 1)
        # One that is known shows nothing, so that the rule would act on the unknown ones only.
        count = 0 if score == KNOWN else 3
        seen = Seen(number, now_s, 2.0, count, 0, 0.0, np.zeros(0, OBJECT_DTYPE), score)
        moment = Moment(Told.FRAME, round(1e9 * now_s), now_s, round(1e9 * now_s), 2.0, 2.0, True, number, now_s, seen)
        told += machine.advance(moment)
    assert [order.kind for order in told if isinstance(order, Note)] == notes
    assert (machine.finished.status if machine.finished else None) == ends
    assert not [order for order in told if isinstance(order, Row) and order.table == "decisions"]
