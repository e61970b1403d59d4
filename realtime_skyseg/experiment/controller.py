"""The experiment's thread: tells the machine what happens, and carries out what it orders."""

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.errors import FieldError, SettingsError
from realtime_skyseg.experiment.decide_again import decide_again
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
from realtime_skyseg.experiment.rule_process import Answer, RuleProcess
from realtime_skyseg.experiment.rules import Seen, seen, sources
from realtime_skyseg.experiment.state_machine import StateMachine
from realtime_skyseg.field import FieldGuard
from realtime_skyseg.pipeline import Latency, Pipeline
from realtime_skyseg.programme import AC_POINT_S, ExperimentSettings, PythonRule, estimate
from realtime_skyseg.records import Event, Result, TableRow

log = logging.getLogger(__name__)

#: Results that may wait for the thread; then the oldest is left out.
_WAITING = 64

#: Rows that may wait for the run file: ten minutes' worth.
_ROWS = 50_000


#: Corners of the planned field, and rows of the table of steps, that displays get at most.
_CORNERS, _SHOWN_ROWS = 2000, 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an experiment ended."""

    status: Literal["complete", "stopped", "aborted", "fault"]
    message: str
    steps: int  # rows of the table
    decisions: int
    decision_ms: dict[str, float | None]  # frame handed over by the camera to the order accepted by the field guard


class Experiment:
    """A field programme with its rules, on a running pipeline. Owns a thread, from `start` until `close`.

    Args:
        settings: programme, rules, interlocks.
        magnet: the section `field`.
        field: the magnet; belongs to the caller.
        resume: run file of an experiment that broke off, which goes on.
        changes: keys whose values are not those of that file any more, which somebody has accepted.

    Raises:
        SettingsError: a Python rule cannot be loaded, or the file to resume has another experiment.
        RunFileError: it cannot be read.
    """

    def __init__(
        self,
        settings: ExperimentSettings,
        magnet: FieldSettings,
        field: FieldGuard,
        resume: Path | None = None,
        changes: Sequence[str] = (),
    ) -> None:
        self._field = field
        self._resume = resume
        self._past_s = 0.0
        self._rows_before = 0
        if resume is None:
            try:
                self._machine = StateMachine(settings, magnet)
            except ValueError as error:
                raise SettingsError(f"experiment.{error}") from None
        else:
            past = decide_again(resume, settings, magnet, ask=False)
            if past.machine.finished:
                ended = past.machine.finished
                raise SettingsError(
                    f"--resume: the experiment in '{resume}' is over ({ended.status}); allowed: one that broke off"
                )
            self._machine, self._past_s = past.machine, past.now_s
            self._rows_before = len(past.steps)
        self.texts = {
            "resumed_from": str(resume.resolve()) if resume else "",
            "python_rules": json.dumps(sources(settings.rules)),
            "accepted_changes": ", ".join(changes),
        }
        self._magnet = magnet
        self._pipeline: Pipeline | None = None
        self._changed = threading.Condition()
        self._results: deque[Result] = deque(maxlen=_WAITING)
        self._woken = False  # a rule has answered
        self._pausing: Told | None = None  # the last of pause and resume, until the machine is told
        self._ending: Told | None = None  # an abort, or the end of the run; nothing takes its place
        self._halts = 0  # of the magnet, when this experiment began
        self._begun_s = time.perf_counter()
        self._begun_ns = time.time_ns()
        self._rows: deque[TableRow] = deque(maxlen=_ROWS)
        self._steps = self._decisions = 0
        self._latency = Latency()
        self.table: deque[dict[str, Any]] = deque(maxlen=1000)  # the last rows of the table of steps, for display
        self._rules: dict[int, RuleProcess] = {}
        self._asked_ns: dict[int, int] = {}  # when the frame that a rule was asked about was handed over
        with ExitStack() as opened:
            for place, rule in enumerate(settings.rules):
                if isinstance(rule, PythonRule):
                    limit_s = rule.limit_s or settings.max_age_s
                    self._rules[place] = RuleProcess(rule, limit_s, self._wake)
                    opened.callback(self._rules[place].close)
            self._owned = opened.pop_all()
        self._thread = threading.Thread(target=self._run, name="skyseg-experiment")

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs."""
        finished = self._machine.finished
        if finished is None:
            return None
        return Outcome(finished.status, finished.message, self._steps, self._decisions, self._latency.percentiles_ms())

    def start(self, pipeline: Pipeline) -> None:
        """Begin; every result of the pipeline is seen from now on."""
        self._pipeline = pipeline
        pipeline.listen("experiment", self._offer)
        self._begun_s = time.perf_counter() - self._past_s
        self._begun_ns = time.time_ns() - round(1e9 * self._past_s)
        self._halts = self._field.halts
        self._thread.start()

    def pause(self) -> None:
        """Stand still at the field of now. For any thread, like the other requests."""
        with self._changed:
            self._pausing = Told.PAUSE
            self._changed.notify_all()

    def resume(self) -> None:
        """Go on."""
        with self._changed:
            self._pausing = Told.RESUME
            self._changed.notify_all()

    def abort(self) -> None:
        """Go to the safe state at once, whatever the experiment is at, and end. Not lost once this returns."""
        self._end(Told.ABORT)
        self._field.safe("the experiment was aborted", wait_s=0.0)

    def close(self) -> None:
        """End, aborting what is under way; the field goes to its safe state. Safe to call twice."""
        if self._thread.is_alive():
            self._end(Told.ENDED)
            self._thread.join()
        self._owned.close()

    def status(self) -> dict[str, Any]:
        """For the control socket and displays."""
        machine = self._machine
        step, finished = machine.step, machine.finished
        return {
            "state": finished.status
            if finished
            else "paused"
            if machine.paused
            else "waits"
            if machine.waiting
            else "runs",
            "step": step.plan if step else None,
            "steps": len(machine.steps),
            "part": step.part if step else None,
            "target_mT": machine.target_mT if math.isfinite(machine.target_mT) else None,
            "decisions": self._decisions,
        }

    def course(self) -> dict[str, Any]:
        """For displays: corners of the planned field over time (s, mT), when it began, and the steps so far."""
        rate_hz = self._pipeline.rate_hz if self._pipeline else 0.0
        planned = estimate(self._machine.steps, self._magnet, rate_hz or None)
        every = max(1, len(planned.trace) // _CORNERS)
        steps = [
            {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
            for row in list(self.table)[-_SHOWN_ROWS:]
        ]
        return {
            "planned": [[round(s, 3), round(mT, 5)] for s, mT in planned.trace[::every]],
            "began_ns": self._begun_ns,
            "steps": steps,
        }

    # --- other threads ---

    def _offer(self, result: Result) -> None:
        with self._changed:
            self._results.append(result)
            self._changed.notify_all()

    def _end(self, told: Told) -> None:
        with self._changed:
            self._ending = self._ending or told
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    # --- the thread ---

    def _run(self) -> None:
        try:
            if self._resume:
                self._tell(self._moment(Told.RESUMED))
                if self.texts["accepted_changes"]:
                    self._note(Note("experiment_changed", f"it goes on with other {self.texts['accepted_changes']}"))
            while self._machine.finished is None:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._results or self._pausing or self._ending or self._woken, AC_POINT_S
                    )
                    requests = [told for told in (self._pausing, self._ending) if told is not None]
                    results = list(self._results)
                    self._pausing, self._woken = None, False
                    self._results.clear()
                if self._field.fault:
                    requests.append(Told.FAULT)
                for told in requests:
                    self._tell(self._moment(told))
                for result in results:
                    self._tell(self._moment(Told.FRAME, result), result.frame.handed_ns)
                answered = self._hear_rules()
                if not (requests or results or answered):
                    self._tell(self._moment(Told.TICK))
                self._hand_over()
        except BaseException as error:
            # Whatever it is: the field is made safe, and the run says why it ended.
            log.exception("the experiment broke off")
            self._machine.finished = Finished("fault", f"the experiment broke off: {error!r}")
        finally:
            self._conclude()

    def _hear_rules(self) -> bool:
        """Tell the machine what Python rules have answered; True where there was something."""
        heard = False
        for place, rule in self._rules.items():
            while (answer := rule.answer()) is not None:
                heard = True
                self._tell(self._answered(place, answer), self._asked_ns.pop(place, None))
        return heard

    def _conclude(self) -> None:
        finished = self._machine.finished
        assert finished is not None
        assert self._pipeline is not None
        self._pipeline.unlisten("experiment")
        message = f"{finished.status}: {finished.message}" if finished.message else finished.status
        self._field.safe(f"the experiment ended, {message}")
        self._note(Note("experiment_ended", message))
        deadline = time.monotonic() + 5
        while self._rows and time.monotonic() < deadline:
            self._hand_over()
            if self._rows:
                time.sleep(0.02)
        self._pipeline.stop()

    def _moment(self, told: Told, result: Result | None = None) -> Moment:
        reading = self._field.latest
        now_s = time.perf_counter() - self._begun_s
        # Times of a clock that nobody sets: the computer's own may jump.
        time_ns = self._begun_ns + round(1e9 * now_s)
        reading_ns = time_ns - round(1e9 * (time.monotonic() - reading.read_s))
        known = math.nan if reading.set_mT is None else reading.set_mT
        moment = Moment(told, time_ns, now_s, reading_ns, reading.field_mT, known, reading.settled)
        if result is None:
            return moment
        frame = result.frame
        taken_s = frame.handed_ns / 1e9 - self._begun_s
        return replace(moment, frame=frame.index, taken_s=taken_s, seen=see(result, taken_s))

    def _answered(self, place: int, answer: Answer) -> Moment:
        field_mT = math.nan if answer.field_mT is None else answer.field_mT
        moment = self._moment(Told.ANSWER)
        if answer.failed and self._pipeline:
            self._pipeline.report_fault(answer.failed)
        return replace(moment, rule=place, frame=answer.frame, answer=field_mT, failed=answer.failed)

    def _tell(self, moment: Moment, handed_ns: int | None = None) -> None:
        """Let the machine answer, and do what it orders; `handed_ns`: when the frame it decides on was handed over."""
        self._rows.append(
            TableRow(
                "inputs",
                {
                    "told": int(moment.told),
                    "time_ns": moment.time_ns,
                    "now_s": moment.now_s,
                    "reading_ns": moment.reading_ns,
                    "field_mT": moment.field_mT,
                    "set_mT": moment.set_mT,
                    "settled": moment.settled,
                    "frame": moment.frame,
                    "taken_s": moment.taken_s,
                    "rule": moment.rule,
                    "answer": moment.answer,
                    "failed": bool(moment.failed),
                },
            )
        )
        decided, stood_mT = False, math.nan
        for order in self._machine.advance(moment):
            decided = decided or (isinstance(order, Row) and order.table == "decisions")
            try:
                if isinstance(order, StandStill):
                    stood_mT = self._field.stand_still()
                self._do(order, moment)
            except FieldError as error:
                if self._ending:
                    return  # what was decided before it does not move the field any more
                self._note(Note("experiment_refused", str(error), moment.frame))
                self._tell(self._moment(Told.REFUSED))
                return
            if handed_ns is None:
                continue
            if isinstance(order, AskRule):
                self._asked_ns[order.place] = handed_ns
            elif decided and isinstance(order, SetField | GivePulse):
                self._latency.add(time.perf_counter_ns() - handed_ns)
                decided = False
        if math.isfinite(stood_mT):
            self._tell(replace(self._moment(Told.STOOD), set_mT=stood_mT))

    def _do(self, order: Order, moment: Moment) -> None:
        match order:
            case SetField():
                self._field.set_mT(order.field_mT, self._halts)
            case GivePulse():
                self._field.pulse(order.in_plane_mT, order.seconds, self._halts)
            case Demagnetise():
                self._field.demagnetise(order.amplitude_mT, order.ratio, order.smallest_mT, order.dwell_s, self._halts)
            case AskRule():
                self._rules[order.place].ask(order.seen)
            case Row():
                self._rows.append(TableRow(order.table, order.values))
                if order.table == "steps":
                    self._steps += 1
                    self.table.append(order.values)
                else:
                    self._decisions += 1
                    self._tell_decision(order.values, moment)
            case Note():
                self._note(order)
            case StandStill() | Finished():
                pass

    def _tell_decision(self, values: dict[str, Any], moment: Moment) -> None:
        """A decision as an event, with all that led to it."""
        told = {
            "rule": values["rule"],
            "action": values["action"],
            "old_mT": values["old_mT"],
            "new_mT": values["new_mT"],
            "acted": bool(values["acted"]),
            "reason": values["reason"],
            "inputs": json.loads(values["inputs"]),
        }
        plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in told.items()}
        self._note(Note("decision", json.dumps(plain), moment.frame))

    def _note(self, note: Note) -> None:
        assert self._pipeline is not None
        self._pipeline.note(Event(time.time_ns(), note.kind, note.message, note.frame), wait=False)

    def _hand_over(self) -> None:
        """Rows to the recorder, as soon as it has a place; this thread never waits for the disk."""
        assert self._pipeline is not None
        if not self._rows:
            return
        rows = list(self._rows)
        if self._pipeline.rows(rows):
            self._rows.clear()


def see(result: Result, taken_s: float) -> Seen:
    """What rules see of a result."""
    domain = result.values.get("domain", math.nan)
    known = None if math.isnan(domain) else domain
    return seen(result.frame.index, taken_s, result.frame.field_mT, result.segmentation, known, result.values)
