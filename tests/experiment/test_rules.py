"""Rules: what they decide on made-up frames, one after the other."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.experiment.rule_process import Answer, RuleProcess
from realtime_skyseg.experiment.rules import WAIT, Decision, Seen, Situation, decider
from realtime_skyseg.programme import PythonRule, Rule, Step
from realtime_skyseg.records import OBJECT_DTYPE, Kind

STEP = Step(0, "down", "staircase", 0, 0, 1, 2.0, 2.1, 0.1, 5)


def situation(target_mT: float = 2.0, settled: bool = True, direction: int = -1, **changes: Any) -> Situation:
    values = {"step": STEP, "set_mT": target_mT, "leg_mT": (4.0, 0.0)} | changes
    return Situation(target_mT=target_mT, settled=settled, direction=direction, **values)


def disc(x: float, y: float, radius: float = 4, kind: Kind = Kind.SKYRMION, border: int = 0) -> tuple[float, ...]:
    side = round(2 * radius)
    area = round(math.pi * radius**2)
    return (x, y, area, max(0, x - radius), max(0, y - radius), side, side, 2 * radius, 1.0, kind, border)


def frame(number: int, discs: list[tuple[float, ...]] | int, field_mT: float = 2.0) -> Seen:
    """A frame with these objects, or with so many somewhere."""
    if isinstance(discs, int):
        discs = [disc(20 + 30 * (k % 30), 20 + 30 * (k // 30)) for k in range(discs)]
    objects = np.array(discs, OBJECT_DTYPE)
    count = int((objects["kind"] == Kind.SKYRMION).sum())
    return Seen(number, number / 16, field_mT, count, len(objects) - count, count / 100, objects)


def decide(rule: dict[str, Any], frames: list[Any], **at: Any) -> list[Decision | None]:
    one = decider(TypeAdapter(Rule).validate_python(rule))
    return [one.decide(frame(number, discs), situation(**at)) for number, discs in enumerate(frames)]


# --- stop_when ---

STOPS = [
    # condition, counts, frames in which it stops
    ({"at_least": 1, "dwell_frames": 1}, [0, 0, 1, 2], [2]),
    ({"at_least": 1, "dwell_frames": 2}, [0, 1, 0, 1, 1], [4]),
    ({"at_least": 5, "dwell_frames": 1, "hysteresis": 2}, [5, 3, 4, 5, 2, 5], [0, 5]),  # true until below 3
    ({"at_least": 5, "dwell_frames": 1}, [5, 4, 5], [0, 2]),
    ({"at_least": 5, "dwell_frames": 2, "hysteresis": 2}, [5, 5, 1, 5, 1, 1, 5, 5], [1, 7]),  # one frame is no end
    ({"at_most": 3, "dwell_frames": 1}, [9, 3, 2], [1]),
]


@pytest.mark.parametrize(("condition", "counts", "stops"), STOPS)
def test_a_condition_has_hysteresis_and_dwell(condition: dict[str, Any], counts: list[int], stops: list[int]) -> None:
    rule = {"rule": "stop_when", "when": {"quantity": "count", **condition}}
    assert [k for k, decision in enumerate(decide(rule, counts)) if decision] == stops


def test_a_quantity_that_is_not_there_decides_nothing() -> None:
    rule = {"rule": "stop_when", "when": {"quantity": "diameter_px", "at_most": 5, "dwell_frames": 1}}
    assert decide(rule, [0, 0, [disc(50, 50, 2)]])[:2] == [None, None]


@pytest.mark.parametrize(("direction", "field_mT"), [(-1, 2.3), (1, 1.7), (0, 2.0)])
def test_stopping_backs_off_against_the_last_move(direction: int, field_mT: float) -> None:
    rule = {"rule": "stop_when", "when": {"quantity": "count", "at_least": 1, "dwell_frames": 1}, "back_off_mT": 0.3,
            "then_frames": 7}  # fmt: skip
    (decision,) = decide(rule, [1], direction=direction)
    assert decision
    assert (decision.action, decision.field_mT, decision.frames) == ("stop", pytest.approx(field_mT), 7)
    assert decision.reason == "count is 1, at least 1"


# --- adaptive_steps ---


def walk(rule: dict[str, Any], count_at: Any, start_mT: float = 4.0, end_mT: float = 0.0) -> list[tuple[float, str]]:
    """The fields that steps choose where the count is a function of the field (which has no hysteresis)."""
    one = decider(TypeAdapter(Rule).validate_python({"rule": "adaptive_steps", **rule}))
    here, fields = start_mT, [(start_mT, "")]
    for number in range(500):
        step = Step(0, "down", "staircase", 0, 0, 1, here, None, 0, 1)
        at = situation(here, step=step, leg_mT=(start_mT, end_mT))
        decision = one.decide(frame(number, count_at(here), here), at)
        while decision and decision.action == "set" and decision.field_mT is not None:
            fields.append((decision.field_mT, decision.reason[:4]))
            here = decision.field_mT
            at = situation(
                here, step=Step(0, "down", "staircase", 0, 0, 1, here, None, 0, 1), leg_mT=(start_mT, end_mT)
            )
            decision = one.decide(frame(number, count_at(here), here), at)
        chosen = one.next_field(count_at(here), at)
        if chosen is None or chosen.field_mT is None:
            break
        here = chosen.field_mT
        fields.append((here, chosen.reason[:4]))
    return fields


def test_steps_are_fine_where_the_count_changes() -> None:
    fields = walk({"coarse_mT": 0.5, "fine_mT": 0.1, "quiet_steps": 2}, lambda here: 5 if here < 2.2 else 0)
    values = [round(field, 3) for field, _ in fields]
    assert values == [4, 3.5, 3, 2.5, 2, 1.9, 1.8, 1.3, 0.8, 0.3, 0]


def test_steps_are_fine_in_a_window_that_is_known() -> None:
    fields = walk({"coarse_mT": 0.5, "fine_mT": 0.25, "near_mT": [[2.1, 2.4]]}, lambda _: 0)
    assert [field for field, _ in fields] == [4, 3.5, 3, 2.5, 2.25, 2, 1.5, 1, 0.5, 0]


def test_the_first_change_is_looked_at_again_from_the_start() -> None:
    fields = walk(
        {"coarse_mT": 0.5, "fine_mT": 0.1, "reset_mT": 4.5, "dwell_frames": 1}, lambda here: 5 if here < 2.2 else 0
    )
    values = [round(field, 3) for field, _ in fields]
    assert values[:11] == [4, 3.5, 3, 2.5, 2, 4.5, 3, 2.9, 2.8, 2.7, 2.6]
    assert 2.2 in values
    assert values[-1] == 0


WIPES = [  # counts at reset_mT, how many of these frames it takes, what the rule says
    ([0, 0], 2, "back to 3 mT, to meet"),
    ([4, 3, 0, 4, 0, 0], 6, "back to 3 mT, to meet"),
    ([4] * 70, 64, "back to 3 mT, though 4 are left, to meet"),
]


@pytest.mark.parametrize(("counts", "n", "says"), WIPES)
def test_a_wipe_lasts_until_the_film_is_as_before(counts: list[int], n: int, says: str) -> None:
    """Skyrmions that survive are not taken for the change that is to be met again."""
    one = decider(
        TypeAdapter(Rule).validate_python(
            {"rule": "adaptive_steps", "coarse_mT": 0.5, "fine_mT": 0.1, "change": 2, "reset_mT": 4.5}
        )
    )
    for number, count in enumerate([0, 0, 0, 5, 5]):
        found = one.decide(frame(number, count), situation(2.0))
    assert found
    assert (found.field_mT, found.frames) == (4.5, 65)
    moving = one.decide(frame(9, 0), situation(4.5, settled=False))
    wiped = [one.decide(frame(10 + k, count), situation(4.5)) for k, count in enumerate(counts)]
    assert moving == WAIT
    assert wiped[: n - 1] == [WAIT] * (n - 1)
    back = wiped[n - 1]
    assert back
    assert (back.action, back.field_mT, back.frames) == ("set", 3.0, STEP.frames)
    assert back.reason.startswith(says)


# --- on_event ---

HERE, THERE, FAR = (50, 50), (60, 50), (150, 150)

EVENTS = [
    ("nucleation", [[], [], [disc(*HERE)], [disc(*HERE)]], {3: "nucleation near 2 mT, count 1"}),
    ("nucleation", [[], [disc(*HERE)], [], []], {}),  # one frame is none
    ("annihilation", [[disc(*HERE)]] * 3 + [[], []], {4: "annihilation near 2 mT, count 0"}),
    ("collapse", [[disc(*HERE), disc(*FAR)]] * 3 + [[disc(*FAR)]] * 3, {4: "collapse at (50, 50) px near 2 mT"}),
    ("collapse", [[disc(*HERE), disc(*FAR)]] * 3 + [[disc(*FAR)], [disc(*HERE), disc(*FAR)]], {}),  # it is back
    ("collapse", [[disc(*HERE, border=1), disc(*FAR)]] * 3 + [[disc(*FAR)]] * 3, {}),  # it left the view
    ("collapse", [[disc(*HERE), disc(*FAR)]] * 3 + [[disc(55, 55), disc(*FAR)]] * 3, {}),  # it moved
    ("collapse", [[disc(*HERE), disc(*FAR)]] * 3 + [[disc(55, 50, 9, Kind.STRIPE), disc(*FAR)]] * 3, {}),  # it grew
    ("merge", [[disc(*HERE), disc(*THERE)]] * 3 + [[disc(55, 50, 5.7)]] * 3, {4: "merge at (55, 50) px near 2 mT"}),
    ("merge", [[disc(*HERE), disc(*FAR)]] * 3 + [[disc(*HERE, 5.7)]] * 3, {}),
]  # fmt: skip


@pytest.mark.parametrize(("event", "frames", "marks"), EVENTS)
def test_events_of_single_skyrmions(event: str, frames: list[list[Any]], marks: dict[int, str]) -> None:
    decisions = decide({"rule": "on_event", "events": [event]}, frames)
    assert {k: decision.reason for k, decision in enumerate(decisions) if decision} == marks
    assert all(decision.action == "mark" and decision.span == (3, 3) for decision in decisions if decision)


def test_there_are_so_many_clips_and_no_more() -> None:
    frames = [[disc(*HERE)], [disc(*HERE)], [], []] * 4
    rule = {"rule": "on_event", "events": ["nucleation", "annihilation"], "max_clips": 2}
    spans = [decision.span is not None for decision in decide(rule, frames) if decision]
    assert spans[:2] == [True, True]
    assert len(spans) > 4
    assert not any(spans[2:])


# --- hold_count ---


class Film:
    """Skyrmions that each vanish for good at a field of their own, and come back by a pulse."""

    def __init__(self, seed: int, yield_at: Any) -> None:
        self._chance = np.random.default_rng(seed)
        self._yield_at = yield_at
        self.vanish_mT = np.empty(0)
        self.pulses = 0

    def go(self, field_mT: float) -> int:
        self.vanish_mT = self.vanish_mT[self.vanish_mT > field_mT]
        return len(self.vanish_mT)

    def pulse(self, field_mT: float) -> None:
        self.pulses += 1
        n = max(0, round(self._yield_at(field_mT) * self._chance.normal(1, 0.15)))
        self.vanish_mT = self._chance.normal(3.2, 0.15, n)


HOLD = {
    "rule": "hold_count", "annihilation_mT": 3.7, "back_off_mT": 0.5, "step_mT": 0.1, "smallest_step_mT": 0.002,
    "relax_frames": 1, "window_frames": 1, "pulse_relax_frames": 1, "pulse_in_plane_mT": 50,
    "pulses": [[1.5, 460], [2.0, 290], [2.5, 86], [3.0, 3]],
}  # fmt: skip


def hold(
    film: Film, target: int, frames: int = 600, stray: Any = lambda _: 0.0, **changes: Any
) -> list[tuple[float, int]]:
    """Field and count of each frame, on a film that follows at once."""
    one = decider(TypeAdapter(Rule).validate_python(HOLD | {"target": target} | changes))
    field_mT, out = 2.0, []
    for number in range(frames):
        count = film.go(field_mT + stray(number))
        out.append((field_mT, count))
        decision = one.decide(frame(number, count, field_mT), situation(field_mT))
        if decision and decision.field_mT is not None:
            field_mT = decision.field_mT
            if decision.action == "pulse":
                film.pulse(field_mT)
    return out


@pytest.mark.parametrize("target", [20, 40, 80, 160])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_count_is_held(target: int, seed: int) -> None:
    film = Film(seed, lambda field_mT: np.interp(field_mT, [1.5, 2.0, 2.5, 3.0], [400, 230, 60, 0]))
    stray = lambda number: 0.3 if 450 < number < 470 else 0.0  # noqa: E731
    counts = np.array([count for _, count in hold(film, target, 600, stray)])
    off = np.abs(counts - target) > max(3, 0.1 * target)
    assert not off[300:450].any(), counts[300:450]
    assert not off[520:].any(), counts[520:]


def test_a_count_that_pulses_do_not_reach_is_given_up_not_thrashed() -> None:
    film = Film(0, lambda _: 10)
    fields = hold(film, 160, max_pulses=4)
    assert film.pulses == 4
    assert len({field for field, _ in fields[-300:]}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_what_reappears_is_trimmed_once(seed: int) -> None:
    """Counts have noise, and some near annihilation are missed: a freeze that comes a little early is left alone."""
    one = decider(TypeAdapter(Rule).validate_python(HOLD | {"target": 40, "window_frames": 3}))
    chance, film, field_mT, freezes = np.random.default_rng(seed), Film(seed, lambda _: 60), 2.0, []
    film.pulse(2.0)
    for number in range(1500):
        missed = 2 if field_mT > 2.6 else 0
        count = max(0, film.go(field_mT) - missed + round(chance.normal(0, 1.0)))
        found = one.decide(frame(number, count, field_mT), situation(field_mT))
        if found and found.field_mT is not None:
            freezes += [number] if "freeze" in found.reason else []
            field_mT = found.field_mT
    assert 1 <= len(freezes) <= 2, freezes
    assert film.pulses == 1
    assert abs(len(film.vanish_mT) - 40) <= 4


def test_without_pulses_too_few_stay_too_few() -> None:
    film = Film(0, lambda _: 10)
    fields = hold(film, 20, frames=50, pulse_in_plane_mT=None)
    assert film.pulses == 0
    assert {field for field, _ in fields} == {2.0}


def test_the_other_sign_of_field_destroys() -> None:
    film = Film(1, lambda field_mT: np.interp(-field_mT, [1.5, 2.0, 2.5, 3.0], [400, 230, 60, 0]))
    film.go = lambda field_mT: Film.go(film, -field_mT)  # type: ignore[method-assign]
    pulses = [[-1.5, 460], [-2.0, 290], [-2.5, 86], [-3.0, 3]]
    counts = np.array([count for _, count in hold(film, 40, 400, annihilation_mT=-3.7, pulses=pulses)])
    assert (np.abs(counts[300:] - 40) <= 4).all()


# --- python ---


def python(tmp_path: Path, code: str) -> dict[str, Any]:
    (tmp_path / "mine.py").write_text(code)
    return {"rule": "python", "file": str(tmp_path / "mine.py"), "window_frames": 3}


def answers(rule: dict[str, Any], counts: list[int], limit_s: float = 20.0) -> list[Answer]:
    """What a rule at work in its process answers, until it fails."""
    process = RuleProcess(TypeAdapter(PythonRule).validate_python(rule), limit_s)
    found = []
    try:
        for k, count in enumerate(counts):
            found.append(process.ask_all([frame(k, count)]))
            if found[-1].failed:
                break
    finally:
        process.close()
    return found


def test_a_function_of_the_user(tmp_path: Path) -> None:
    code = "def decide(results):\n    return 1.5 if len(results) == 3 and results[-1].count > 2 else None\n"
    found = answers(python(tmp_path, code), [5, 5, 0, 5])
    assert found == [Answer(0), Answer(1), Answer(2), Answer(3, 1.5)]


#: What a rule may do to its process and to us: its code, and what is said of it; None: it works.
HOSTILE = {
    "blocks for ever": ("while True: time.sleep(1)", "took longer than 0.5 s (limit_s)"),
    "does not even sleep": ("while True: pass", "took longer than 0.5 s (limit_s)"),
    "sys.exit": ("sys.exit(3)", "SystemExit: 3"),
    "os._exit": ("os._exit(3)", "ended its process (exit status 3)"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
    "memory": ("raise MemoryError", "MemoryError: "),
    "recursion": ("return decide(results)", "RecursionError: "),
    "leaves threads": ("threading.Thread(target=time.sleep, args=(999,)).start(); return 1.5", None),
    "nan": ("return float('nan')", "nan was returned; allowed: None or a finite number of mT"),
    "numpy": ("return np.float32(1.5)", None),
    "list": ("return [1.5]", "[1.5] was returned; allowed"),
    "text": ("return '1.5'", "'1.5' was returned; allowed"),
    "truth": ("return True", "True was returned; allowed"),
    "huge": ("return 10**400", "1000"),
    "is slow": ("time.sleep(3); return 1.5", "took longer than 0.5 s (limit_s)"),
    "prints without end": ("while True: print('x' * 10_000)", "took longer than 0.5 s (limit_s)"),
    "writes where it should not": ("os.write(1, b'{}'); os.write(0, b'{}'); return 1.5", None),
    "lone surrogate": (r"raise ValueError('\ud800' * 1000)", "ValueError: ?"),
    "changes its inputs": ("results[-1].objects['x'] = 7; results.clear(); return 1.5", None),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_rule_harms_nobody(tmp_path: Path, name: str) -> None:
    body, sentence = HOSTILE[name]
    imports = "import os, sys, threading, time\nimport numpy as np\n"
    rule = python(tmp_path, f"{imports}def decide(results):\n    {body}\n")
    begun = time.monotonic()
    found = answers(rule, [1, 1], limit_s=0.5)
    assert time.monotonic() - begun < 10
    if sentence is None:
        assert found == [Answer(0, 1.5), Answer(1, 1.5)]
    else:
        assert len(found) == 1
        assert f"{rule['file']}: decide failed and is not asked again: {sentence}" in found[0].failed
        assert len(found[0].failed) <= 300


@pytest.mark.parametrize(
    ("code", "sentence"),
    [("x = 1", "has no function 'decide'"), ("import nothing_of_this_name", "cannot be run: ModuleNotFoundError"),
     ("def decide(", "cannot be run: SyntaxError"), ("raise SystemExit", "SystemExit"),
     ("import os; os._exit(1)", "ended its process")],
)  # fmt: skip
def test_a_function_that_is_not_there(tmp_path: Path, code: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RuleProcess(TypeAdapter(PythonRule).validate_python(python(tmp_path, code)), 1.0)
    assert sentence in str(caught.value)
