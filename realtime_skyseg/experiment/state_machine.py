"""The experiment as a state machine: told what happens, it answers with orders to the magnet and rows for the file.

It knows no clock, no thread and no device. The same moments lead to the same orders: live, when a run is decided again
from its file, and when one that was killed goes on.

Longer than other files: one state machine, whose every state may be left by the same stops.
"""

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from realtime_skyseg.experiment.orders import (
    AskRule,
    Demagnetise,
    Finished,
    GivePulse,
    Moment,
    Note,
    Order,
    Row,
    SetField,
    StandStill,
    Told,
)
from realtime_skyseg.experiment.rules import Decider, Decision, Seen, Situation, decider
from realtime_skyseg.programme import (
    RAMP_POINT_S,
    AdaptiveSteps,
    ExperimentSettings,
    Limits,
    OnEvent,
    PythonRule,
    Step,
    alternating,
    check,
    estimate,
)

#: How much later than planned the field may be where it should be, beside `field.settle_s`.
_PATIENCE_S = 5.0

#: Frames at most that a Python rule was asked about and has not answered: a minute's worth, the longest it may take.
_UNANSWERED = 10_000

#: A ramp goes on by no more than this after a standstill.
_LONGEST_S = 0.2

_Phase = Literal["moving", "alternating", "demagnetising", "pulse", "settling", "measuring"]


#: What ends an experiment: status and sentence.
_ENDS: dict[Told, tuple[Literal["aborted", "fault"], str]] = {
    Told.ABORT: ("aborted", "aborted on request"),
    Told.ENDED: ("aborted", "the run ended before the programme"),
    Told.REFUSED: ("fault", "the field guard refused an order"),
    Told.FAULT: ("fault", "the magnet has a fault"),
}


class StateMachine:
    """Carries out a programme with its rules.

    Args:
        settings: programme, rules, interlocks.
        field: limits of the magnet.

    Raises:
        ValueError: the programme asks more than the magnet may give.
    """

    def __init__(self, settings: ExperimentSettings, field: Limits) -> None:
        self._settings = settings
        self._field = field
        self.steps = check(settings, field)
        self._rules: list[tuple[Any, Decider | None]] = [
            (rule, None if isinstance(rule, PythonRule) else decider(rule)) for rule in settings.rules
        ]
        self._asked: dict[int, deque[tuple[Seen, Step]]] = {  # what Python rules have not answered yet
            place: deque(maxlen=_UNANSWERED) for place, (_, one) in enumerate(self._rules) if one is None
        }
        self._acted_frame = -1  # the newest when a rule was obeyed last
        self._branches = _branches(self.steps)
        self.finished: Finished | None = None
        self.paused = False
        self.waiting = False  # for a fresh result
        self._orders: list[Order] = []
        self._m = Moment(Told.TICK, 0, 0.0, 0, math.nan, math.nan, False)
        self._at = -1
        self._step: Step | None = None
        self._phase: _Phase = "moving"
        self._target = math.nan
        self._came_from = math.nan
        self._turn = math.nan  # where the field last turned
        self._direction = 0
        self._ordered_ns = 0
        self._deadline_s = 0.0
        self._least_s = 0.0  # that demagnetising takes
        self._ready_s = math.inf  # when settling ended
        self._elapsed_s = 0.0  # in the phase, standstills left out
        self._ramp_at = math.nan
        self._point_s = -math.inf  # when the last point of a ramp was ordered
        self._points: list[tuple[float, float]] = []
        self._began_ns = self._settled_ns = 0
        self._collected: list[Seen] = []
        self._rows = 0
        self._last: Seen | None = None
        self._period_s = math.inf  # between two frames
        self._fresh_s = 0.0  # hand-over of the newest result
        self._begun = False  # there was a fresh result
        self._hot_since_s: float | None = None
        self._out_of_range = False  # for long enough to do something about it
        self._otherwise_s = math.inf  # since when frames are otherwise
        self._paused_by_range = False
        self._ending: Finished | None = None
        self._resumed = False
        self._refusals: dict[int, float] = {}

    @property
    def step(self) -> Step | None:
        """The step under way."""
        return self._step

    @property
    def target_mT(self) -> float:
        """Where the field was ordered to last."""
        return self._target

    def advance(self, moment: Moment) -> list[Order]:
        """Take one moment; what is to be done now, in order."""
        if self.finished:
            return []
        self._orders = []
        passed_s = min(max(0.0, moment.now_s - self._m.now_s), _LONGEST_S)
        self._m = moment
        self._take(moment)
        if not self.finished:
            self._interlocks()
        if not (self.finished or self.paused or self.waiting):
            self._elapsed_s += passed_s
            self._progress(passed_s)
        return self._orders

    def _take(self, moment: Moment) -> None:
        if moment.told in _ENDS:
            self._finish(*_ENDS[moment.told])
            return
        match moment.told:
            case Told.PAUSE:
                self._pause()
            case Told.RESUME:
                self._resume()
            case Told.RESUMED:
                self._go_on()
            case Told.STOOD:
                self._ramp_at = moment.set_mT
            case Told.ANSWER:
                self._hear(moment)
            case Told.FRAME:
                self._see()

    # --- frames ---

    def _see(self) -> None:
        now = self._m.seen
        assert now is not None
        if self._last is not None and now.frame > self._last.frame:
            self._period_s = max(0.0, now.time_s - self._last.time_s) / (now.frame - self._last.frame)
        self._last = now
        fresh = self._m.now_s - now.time_s <= self._settings.max_age_s
        if fresh:
            self._fresh_s = max(self._fresh_s, now.time_s)
            self._begun = True
        step = self._step
        if step is None:
            return
        if step.moving and self._phase == "moving":
            self._collected.append(now)
        # Its exposure began after settling: it was handed over a frame's time later at least.
        near = abs(now.field_mT - self._target) <= self._field.tolerance_mT
        settled = self._phase == "measuring" and near and now.time_s - self._period_s >= self._ready_s
        lowest = self._settings.min_domain
        known = lowest is None or (now.domain is not None and now.domain >= lowest)
        if settled and (known or self._settings.out_of_range != "pause"):
            self._collected.append(now)
        self._watch_range(now, known)
        if self.finished:
            return
        if fresh and known and not self.paused and self._phase not in ("demagnetising", "pulse"):
            self._ask_rules(now, settled)

    def _watch_range(self, now: Seen, known: bool) -> None:
        """Pause or end where frames have been out of the model's range for long, and go on where they are in it."""
        settings = self._settings
        if known != self._out_of_range:
            self._otherwise_s = math.inf
            return
        self._otherwise_s = min(self._otherwise_s, now.time_s)
        if settings.out_of_range == "go_on" or now.time_s - self._otherwise_s < settings.out_of_range_s:
            return
        self._out_of_range, self._otherwise_s = not known, math.inf
        lasted = f"for {settings.out_of_range_s:g} s (out_of_range)"
        if known and self._paused_by_range:
            self._orders.append(Note("in_range", f"frames have been in the model's range {lasted}", now.frame))
            self._resume()
        elif not known and settings.out_of_range == "abort":
            self._finish("aborted", f"frames have been out of the model's range {lasted}")
        elif not known and not self.paused:
            self._orders.append(Note("out_of_range", f"frames have been out of the model's range {lasted}", now.frame))
            self._pause()
            self._paused_by_range = True

    def _ask_rules(self, now: Seen, settled: bool) -> None:
        """The first rule that decides, acts; those that only mark are asked in any case."""
        step, taken = self._step, False
        assert step is not None
        at = self._situation(step, settled)
        for place, (rule, one) in enumerate(self._rules):
            if self._ending or (taken and not isinstance(rule, OnEvent)) or not _applies(rule, step):
                continue
            if one is None:
                self._ask(place, now, step)
                continue
            decision = one.decide(now, at)
            if decision is None:
                continue
            taken = taken or (decision.action != "mark" and not self._settings.dry_run)
            if decision.action != "wait":
                self._decide(place, decision, step)

    def _ask(self, place: int, now: Seen, step: Step) -> None:
        if place in self._asked:
            self._asked[place].append((now, step))
            self._orders.append(AskRule(place, now))

    def _hear(self, moment: Moment) -> None:
        """Take what a Python rule says, if it may still act on what it was asked about."""
        place, asked = moment.rule, self._asked.get(moment.rule)
        now = then = None
        while asked and asked[0][0].frame <= moment.frame:
            now, then = asked.popleft()
        step = self._step or then
        if now is None or then is None or step is None or self._ending:
            return
        if moment.failed:
            del self._asked[place]
            self._decide(place, Decision("mark", moment.failed), step, now)
            return
        new = moment.answer
        if math.isnan(new) or new == self._target:
            return
        age_s = moment.now_s - now.time_s
        function = self._rules[place][0].function
        why = ""
        if age_s > self._settings.max_age_s:
            why = f"the result is {age_s:.3g} s old, allowed: {self._settings.max_age_s:g} s (max_age_s)"
        elif self._step is None or self._step.plan != then.plan or self._acted_frame >= now.frame:
            why = "another rule, or the programme, has gone on since"
        elif self.paused or self.waiting or self._phase in ("demagnetising", "pulse"):
            why = "the experiment is paused, or at a pulse or demagnetisation"
        self._decide(place, Decision("set", f"{function} returned {new:g}", new), step, now, why)

    def _situation(self, step: Step, settled: bool) -> Situation:
        return Situation(
            step, self._target, self._m.set_mT, settled, self._direction,
            self._branches.get(step.branch, (step.field_mT, step.field_mT)),
        )  # fmt: skip

    # --- decisions ---

    def _decide(self, place: int, decision: Decision, step: Step, about: Seen | None = None, refused: str = "") -> None:
        """Record what a rule wants during a step, and do it unless it may not be done.

        Args:
            place: of the rule.
            decision: what it wants.
            step: under way.
            about: the result that it looked at; None: the last one.
            refused: why it may not have it, beyond the limits.
        """
        now, moment = about or self._last, self._m
        there = moment.set_mT if math.isfinite(moment.set_mT) else self._target
        new = self._target if decision.field_mT is None else decision.field_mT
        refused = refused or ("" if decision.action == "mark" else self._refusal(step, new, decision.pulse))
        if refused and decision.action in ("stop", "end_part"):
            new, refused = there, f"{refused}; stays at {there:g} mT"
        elif refused:
            if self._refusals.get(place) == new:
                return
            self._refusals[place] = new
            new = self._target
        acts = not self._settings.dry_run and (not refused or decision.action in ("stop", "end_part"))
        inputs: dict[str, Any] = {
            "count": now.count if now else None,
            "stripes": now.stripes if now else None,
            "area_fraction": round(now.area_fraction, 6) if now else None,
            "field_mT": _plain(now.field_mT) if now else None,
            "age_s": round(moment.now_s - now.time_s, 4) if now else None,
            "set_mT": _plain(moment.set_mT),
            "domain": now.domain if now else None,
        }
        if decision.pulse:
            inputs["pulse"] = list(decision.pulse)
        if decision.span:
            inputs["span_s"] = list(decision.span)
        self._orders.append(
            Row(
                "decisions",
                {
                    "time_ns": moment.time_ns,
                    "frame": now.frame if now else -1,
                    "plan": step.plan,
                    "rule": f"{place}.{self._settings.rules[place].rule}",
                    "action": decision.action,
                    "old_mT": self._target,
                    "new_mT": new,
                    "acted": acts,
                    "reason": f"refused: {refused}; {decision.reason}" if refused else decision.reason,
                    "inputs": json.dumps(inputs),
                },
            )
        )
        if acts:
            if decision.action != "mark" and self._last is not None:
                self._acted_frame = self._last.frame
            self._act(step, decision, new)

    def _refusal(self, step: Step, field_mT: float, pulse: tuple[float, float] | None) -> str:
        """Why a rule may not have this; empty where it may."""
        low, high = step.limit_mT or self._field.limit_mT
        if not low <= field_mT <= high:
            return f"{field_mT:g} mT, allowed: {low:g} to {high:g} mT"
        limits = self._field.pulse_limit_mT
        if pulse and not (limits and limits[0] <= pulse[0] <= limits[1] and pulse[1] <= self._field.pulse_limit_s):
            return f"a pulse of {pulse[0]:g} mT for {pulse[1]:g} s, allowed: as field.pulse_limit_mT and _s say"
        return ""

    def _act(self, step: Step, decision: Decision, new: float) -> None:
        match decision.action:
            case "set":
                if step.branch >= 0:
                    self._collected = []
                settle_s = step.settle_s if decision.settle_s is None else max(step.settle_s, decision.settle_s)
                frames = step.frames if decision.frames is None else decision.frames
                self._step = replace(
                    step, field_mT=new, ac=None, pulse=None, rate_mT_per_s=None, settle_s=settle_s, frames=frames
                )
                self._move(self._step)
            case "pulse":
                self._step = replace(step, field_mT=new, ac=None, pulse=decision.pulse, rate_mT_per_s=None)
                self._move(self._step)
            case "stop":
                self._close("stopped")
                self._ending = Finished("stopped", decision.reason)
                self._begin(
                    replace(
                        step, kind="after", branch=-1, field_mT=new, frames=decision.frames or 0, stay_s=0.0,
                        moving=False, ac=None, pulse=None, demagnetise=None, rate_mT_per_s=None,
                    )
                )  # fmt: skip
            case "end_part":
                self._close("stopped")
                self._step = None
                while self._at + 1 < len(self.steps) and self.steps[self._at + 1].occurrence == step.occurrence:
                    self._at += 1
                if decision.field_mT is not None:
                    self._order(new)

    # --- requests ---

    def _pause(self) -> None:
        if self.paused:
            return
        self.paused = True
        self._stand_still()
        self._orders.append(Note("experiment_paused", f"paused near {self._m.field_mT:g} mT", self._m.frame))

    def _resume(self) -> None:
        if not self.paused:
            return
        self.paused = self._paused_by_range = False
        self._orders.append(Note("experiment_resumed", "goes on", self._m.frame))
        self._again()

    def _go_on(self) -> None:
        """After a kill: the field is in its safe state, and whatever the sample remembered may be gone."""
        self.paused = self.waiting = False
        self._resumed = True
        self._last, self._period_s = None, math.inf
        self._fresh_s = self._m.now_s
        self._hot_since_s = None
        self._collected.clear()
        self._orders.append(Note("experiment_resumed", f"a run that broke off goes on at step {max(self._at, 0)}"))
        self._target = self._ramp_at = self._m.set_mT if math.isfinite(self._m.set_mT) else self._m.field_mT
        self._again(afresh=True)

    def _again(self, afresh: bool = False) -> None:
        """Take up the step where it stood."""
        step = self._step
        if step is None:
            return
        if self._phase in ("settling", "measuring") and not afresh:
            self._settle(step)
        else:
            # From where the field is; at its full rate where the way was left.
            self._move(replace(step, rate_mT_per_s=None) if afresh else step)

    def _stand_still(self) -> None:
        """Stop a field on its way."""
        if self._step is not None and self._phase not in ("settling", "measuring", "pulse"):
            self._orders.append(StandStill())

    # --- interlocks ---

    def _interlocks(self) -> None:
        moment, locks = self._m, self._settings.interlocks
        silent_s = moment.now_s - self._fresh_s
        if silent_s > locks.dead_man_s:
            self._finish("fault", f"no fresh result for {locks.dead_man_s:g} s (interlocks.dead_man_s)")
        elif (moment.time_ns - moment.reading_ns) / 1e9 > locks.dead_man_s:
            self._finish("fault", f"the field was not read back for {locks.dead_man_s:g} s (interlocks.dead_man_s)")
        elif moment.now_s > locks.max_duration_s:
            self._finish("fault", f"it took longer than {locks.max_duration_s:g} s (interlocks.max_duration_s)")
        elif self._too_hot():
            self._finish("fault", f"the field was beyond {locks.hot_mT:g} mT for {locks.hot_s:g} s (interlocks.hot_s)")
        if self.finished:
            return
        waits = silent_s > self._settings.max_age_s or not self._begun
        if waits and not self.waiting:
            if self._step is not None and self._phase in ("moving", "alternating") and not self.paused:
                self._stand_still()
            if self._begun:
                self._orders.append(Note("experiment_waits", f"no result younger than {self._settings.max_age_s:g} s"))
        if self.waiting and not waits and self._step is not None:
            self._orders.append(Note("experiment_goes_on", "results are fresh again", moment.frame))
            if not self.paused and self._phase in ("moving", "alternating"):
                self._again()
        self.waiting = waits

    def _too_hot(self) -> bool:
        moment, locks = self._m, self._settings.interlocks
        if locks.hot_mT is None:
            return False
        strength = max((abs(value) for value in (moment.field_mT, moment.set_mT) if math.isfinite(value)), default=0.0)
        if strength < locks.hot_mT:
            self._hot_since_s = None
            return False
        if self._hot_since_s is None:
            self._hot_since_s = moment.now_s
        return moment.now_s - self._hot_since_s > locks.hot_s

    # --- steps ---

    def _progress(self, passed_s: float) -> None:
        """Go from phase to phase, as far as it goes now."""
        for _ in range(len(self.steps) + 8):  # steps without frames and stay take no time of their own
            if self.finished:
                return
            if self._step is None:
                if self._ending:
                    self._finish(self._ending.status, self._ending.message)
                elif self._at + 1 >= len(self.steps):
                    self._finish("complete", "")
                else:
                    self._at += 1
                    self._begin(self.steps[self._at])
            elif not self._phase_done(self._step, passed_s):
                return
            passed_s = 0.0

    def _begin(self, step: Step) -> None:
        if step.branch < 0 or (self._step is not None and step.branch != self._step.branch):
            self._resumed = False
        self._step = step
        self._collected = []
        self._began_ns = self._m.time_ns
        self._settled_ns = 0
        self._came_from = self._target
        self._move(step)

    def _move(self, step: Step) -> None:
        """Begin with the way to the step's field."""
        self._elapsed_s = 0.0
        self._ready_s = math.inf
        if step.demagnetise:
            ask = step.demagnetise
            self._phase = "demagnetising"
            self._ordered_ns = self._m.time_ns
            self._elapsed_s = 0.0
            self._orders.append(Demagnetise(ask.amplitude_mT, ask.ratio, ask.smallest_mT, ask.dwell_s))
            self._turned(0.0)
            way = [replace(step, from_mT=self._here(), settle_s=0.0, frames=0, stay_s=0.0)]
            self._least_s = estimate(way, self._field, None).seconds
            turns = math.log(self._field.tolerance_mT / (ask.amplitude_mT + 1e-9)) / math.log(ask.ratio)
            self._deadline_s = 1.5 * self._least_s + max(turns, 1) * self._field.settle_s + _PATIENCE_S
            return
        self._phase = "moving"
        if step.rate_mT_per_s is not None and math.isfinite(self._target):
            self._ramp_at = self._ramp_at if math.isfinite(self._ramp_at) else self._target
            way_s = abs(step.field_mT - self._ramp_at) / step.rate_mT_per_s
            self._point_s = -math.inf
            self._turned(step.field_mT)
        else:
            here = self._here()
            way_s = abs(step.field_mT - here) / self._field.slew_mT_per_s if here is not None else 0.0
            self._order(step.field_mT)
        self._deadline_s = 1.5 * way_s + self._field.settle_s + _PATIENCE_S

    def _here(self) -> float | None:
        """Where the field is, as far as the read-back tells."""
        known = (value for value in (self._m.set_mT, self._m.field_mT) if math.isfinite(value))
        return next(known, None)

    def _order(self, field_mT: float) -> None:
        self._turned(field_mT)
        self._ramp_at = field_mT
        self._ordered_ns = self._m.time_ns
        self._orders.append(SetField(field_mT))

    def _turned(self, field_mT: float) -> None:
        """Keep the direction and the last turning point."""
        before = self._target if math.isfinite(self._target) else self._m.field_mT
        # As found, the field is only as exact as its read-back.
        least = 0.0 if math.isfinite(self._target) else self._field.tolerance_mT
        if abs(field_mT - before) > least:  # False where it is not known
            direction = 1 if field_mT > before else -1
            if direction != self._direction:
                self._turn = before
            self._direction = direction
        self._target = field_mT

    def _there(self) -> bool:
        moment = self._m
        return moment.settled and abs(moment.set_mT - self._target) < 1e-6 and moment.reading_ns >= self._ordered_ns

    def _phase_done(self, step: Step, passed_s: float) -> bool:
        """One phase after the other; True where there is more to do at once."""
        match self._phase:
            case "moving":
                return self._moved(step, passed_s)
            case "alternating":
                return self._alternated(step)
            case "demagnetising":
                # The field may be at zero already when this begins, so "at zero" counts only after the swings.
                if self._elapsed_s >= 0.9 * self._least_s and self._there():
                    self._settle(step)
                    return True
                return self._late()
            case "pulse":
                if step.pulse and self._elapsed_s >= step.pulse[1]:
                    self._step = replace(step, pulse=None)
                    self._settle(self._step)
                    return True
                return False
            case "settling":
                if self._m.now_s < self._ready_s:
                    return False
                self._phase = "measuring"
                return True
            case "measuring":
                if len(self._collected) < step.frames or self._m.now_s - self._ready_s < step.stay_s:
                    return False
                self._close("complete")
                self._next(step)
                return True

    def _moved(self, step: Step, passed_s: float) -> bool:
        if step.rate_mT_per_s is not None and self._ramp_at != self._target:
            left = self._target - self._ramp_at
            stride = step.rate_mT_per_s * passed_s
            self._ramp_at = self._target if abs(left) <= stride else self._ramp_at + math.copysign(stride, left)
            if self._m.now_s - self._point_s >= RAMP_POINT_S or self._ramp_at == self._target:
                self._point_s = self._m.now_s
                self._ordered_ns = self._m.time_ns
                self._orders.append(SetField(self._ramp_at))
            return False
        if step.moving:
            if abs(self._m.set_mT - self._target) < 1e-6:
                self._close("complete")
                self._next(step)
                return True
            return self._late()
        if not self._there():
            return self._late()
        self._settled_ns = self._m.time_ns
        self._elapsed_s = 0.0
        if step.ac:
            self._phase = "alternating"
            self._points = alternating(step.ac)
        elif step.pulse:
            self._phase = "pulse"
            self._orders.append(GivePulse(*step.pulse))
            return False
        else:
            self._settle(step)
        return True

    def _alternated(self, step: Step) -> bool:
        due = [point for point in self._points if point[0] <= self._elapsed_s]
        if not due:
            return False
        self._points = self._points[len(due) :]
        self._ordered_ns = self._m.time_ns
        self._orders.append(SetField(step.field_mT + due[-1][1]))
        if not self._points:
            self._step = replace(step, ac=None)
            self._phase = "moving"
            self._elapsed_s = 0.0
            assert step.ac is not None
            way_s = step.ac.amplitude_mT / self._field.slew_mT_per_s
            self._deadline_s = way_s + self._field.settle_s + _PATIENCE_S
        return False

    def _settle(self, step: Step) -> None:
        self._phase = "settling"
        self._ready_s = self._m.now_s + step.settle_s

    def _late(self) -> bool:
        if self._elapsed_s > self._deadline_s:
            self._finish(
                "fault", f"{self._target:g} mT was not reached in time; the field is at {self._m.field_mT:g} mT"
            )
        return False

    def _next(self, step: Step) -> None:
        """Go on after a step that is complete: with the programme's next one, or with one that a rule chooses."""
        self._step = None
        if self._ending:
            return
        for place, (rule, one) in enumerate(self._rules):
            if not (isinstance(rule, AdaptiveSteps) and _applies(rule, step)):
                continue
            counts = [seen.count for seen in self._closed] or [self._last.count if self._last else 0]
            self._step = step
            assert one is not None
            decision = one.next_field(float(np.mean(counts)), self._situation(step, True))
            if decision is None or decision.field_mT is None:
                self._step = None
                continue
            self._decide_step(place, decision, step)
            return

    def _decide_step(self, place: int, decision: Decision, step: Step) -> None:
        new = decision.field_mT
        assert new is not None
        self._decide(place, replace(decision, action="mark", reason=f"{decision.reason} to {new:g} mT"), step)
        self._step = None
        if self._settings.dry_run or self._refusal(step, new, None):
            return
        # The last planned step of this branch that is passed: the next branch begins after the branch's last one.
        at = self._at
        way = 1 if new > step.field_mT else -1
        while at + 1 < len(self.steps) and self.steps[at + 1].branch == step.branch:
            if (self.steps[at + 1].field_mT - new) * way > 1e-9:
                break
            at += 1
        self._at = at
        planned = self.steps[at]
        # Planned around another field: what alternates has to fit around this one too.
        swings = [new + sign * planned.ac.amplitude_mT for sign in (-1, 1)] if planned.ac else []
        fits = not any(self._refusal(planned, value, None) for value in swings)
        self._begin(replace(planned, field_mT=new, from_mT=step.field_mT, plan=at, ac=planned.ac if fits else None))

    _closed: Sequence[Seen] = ()

    def _close(self, end: str) -> None:
        """A row for the step under way."""
        step = self._step
        if step is None:
            return
        self._closed = collected = self._collected
        numbers = {
            name: np.array([float(getattr(one, name)) for one in collected])
            for name in ("field_mT", "count", "stripes", "diameter_px", "area_px", "area_fraction")
        }
        values: dict[str, Any] = {
            "number": self._rows,
            "plan": step.plan,
            "part": step.part,
            "kind": step.kind,
            "cycle": step.cycle,
            "target_mT": self._target,
            "from_mT": self._came_from,
            "turn_mT": self._turn,
            "direction": self._direction if self._came_from != self._target else 0,
            "resumed": self._resumed,
            "frames": len(collected),
            "first_frame": collected[0].frame if collected else -1,
            "last_frame": collected[-1].frame if collected else -1,
            "began_ns": self._began_ns,
            "settled_ns": self._settled_ns,
            "ended_ns": self._m.time_ns,
            "end": end,
        }
        for name, column in numbers.items():
            known = column[np.isfinite(column)]
            values[name] = float(known.mean()) if len(known) else math.nan
            values[f"{name}_std"] = float(known.std(ddof=1)) if len(known) > 1 else math.nan
        if not collected:
            values["field_mT"] = self._m.field_mT
        self._rows += 1
        self._collected = []
        self._orders.append(Row("steps", values))

    def _finish(self, status: Literal["complete", "stopped", "aborted", "fault"], message: str) -> None:
        self._close(status)
        self._step = None
        self.finished = Finished(status, message)
        self._orders.append(self.finished)


def _applies(rule: Any, step: Step) -> bool:
    return rule.during is None or step.part in rule.during


def _branches(steps: Sequence[Step]) -> dict[int, tuple[float, float]]:
    """Where the steps of each branch begin and end."""
    branches: dict[int, tuple[float, float]] = {}
    for step in steps:
        if step.branch >= 0:
            begin = step.from_mT if step.from_mT is not None else step.field_mT
            branches[step.branch] = (branches[step.branch][0] if step.branch in branches else begin, step.field_mT)
    return branches


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
