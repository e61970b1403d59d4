"""A run told to the machine again, from its file: the same decisions, and the state to go on from after a kill."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import ValidationError

from realtime_skyseg import json_text
from realtime_skyseg.config import Config, validate
from realtime_skyseg.errors import RunFileUnusableError, SettingsError
from realtime_skyseg.experiment.orders import AskRule, Moment, Row, Told
from realtime_skyseg.experiment.rule_process import RuleProcess
from realtime_skyseg.experiment.rules import Seen, sources
from realtime_skyseg.experiment.state_machine import StateMachine
from realtime_skyseg.programme import ExperimentSettings, Limits, PythonRule
from realtime_skyseg.records import Skipped
from realtime_skyseg.storage import Run, open_run

#: Keys that a run which goes on may have another value of: they move nothing.
_MAY_CHANGE = {"read_every_ms", "heartbeat_s", "initial_mT", "dry_run", "min_domain"}


@dataclass
class Past:
    """What a run file says happened, decided again."""

    machine: StateMachine
    now_s: float = 0.0  # of the last moment
    steps: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    own: tuple[int, int] = (0, 0)  # rows of both before this file, where it goes on from another one
    missing: int = -1  # frame whose result is not in the file, so that its end could not be told; -1: none
    differences: list[str] = field(default_factory=list)  # answers of Python rules that were others


@dataclass(frozen=True)
class _StoredLimits:
    """The limits of the magnet that a run was made with: its driver need not be installed here."""

    limit_mT: tuple[float, float]
    slew_mT_per_s: float
    tolerance_mT: float
    settle_s: float
    pulse_limit_mT: tuple[float, float] | None
    pulse_limit_s: float
    initial_mT: float | None


def _settings_of(run: Run) -> tuple[ExperimentSettings, Limits]:
    """The programme with its rules, and the magnet's limits, that a run was made with."""
    tree = run.config
    try:
        pairs = {name: tuple(value) for name in ("limit_mT", "pulse_limit_mT") if (value := tree["field"][name])}
        names = ("slew_mT_per_s", "tolerance_mT", "settle_s", "pulse_limit_s", "initial_mT")
        plain = {name: tree["field"][name] for name in names}
        return ExperimentSettings.model_validate(tree["experiment"]), _StoredLimits(
            limit_mT=pairs["limit_mT"], pulse_limit_mT=pairs.get("pulse_limit_mT"), **plain
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise RunFileUnusableError(
            f"run file '{run.path}' has no settings of an experiment that are valid now"
        ) from error


def changed_since(path: Path, config: Config) -> list[str]:
    """Keys whose values are not those that a run was made with, by name: what decides where the field goes.

    Raises:
        RunFileUnusableError: there is no such file, or no experiment in it.
    """
    with open_run(path) as run:
        if run.experiment is None:
            raise RunFileUnusableError(f"run file '{path}' has no experiment")
        before, rules = run.config, json_text.load(run.experiment["python_rules"] or "{}")
    now = config.model_dump(mode="json")
    with suppress(SettingsError):  # with the defaults of keys that did not exist then
        before = validate(before).model_dump(mode="json")
    changed = [
        f"{section}.{key}"
        for section, left_out in (("experiment", _MAY_CHANGE), ("field", _MAY_CHANGE))
        for key in sorted({*(before.get(section) or {}), *(now[section] or {})} - left_out)
        if (before.get(section) or {}).get(key) != (now[section] or {}).get(key)
    ]
    if before["camera"].get("driver") != now["camera"]["driver"]:
        changed.append("camera.driver")
    files = sources(config.experiment.rules) if config.experiment else {}
    return changed + [f"the Python rule in '{file}'" for file, digest in files.items() if rules.get(file) != digest]


def decide_again(
    path: Path, settings: ExperimentSettings | None = None, magnet: Limits | None = None, ask: bool = True
) -> Past:
    """Tell a new machine everything that the run's was told.

    Args:
        path: the run file, finished or not; where it went on from another one, that is read first.
        settings: other than the file's own, to see what they would have decided.
        magnet: likewise.
        ask: ask Python rules again; else what they answered then is told.

    Raises:
        RunFileUnusableError: there is no such file, or no experiment in it.
        SettingsError: its settings, or the file of a Python rule, are not what they were.
    """
    with open_run(path) as run:
        experiment = run.experiment
        if experiment is None:
            raise RunFileUnusableError(f"run file '{path}' has no experiment")
        own = _settings_of(run)
        settings, magnet = settings or own[0], magnet or own[1]
        before = experiment["resumed_from"]
        if before:
            past = decide_again(_found(Path(before), path), settings, magnet, ask)
            past.own = (len(past.steps), len(past.decisions))
        else:
            past = Past(StateMachine(settings, magnet))
        known = "rule" in (experiment["inputs"].dtype.names or ())
        with _Rules(settings, past, ask or not known, known) as rules:
            for moment in _moments(run, experiment["inputs"], past):
                moments = deque([rules.answered(moment)])
                while moments:
                    now = moments.popleft()
                    past.now_s = now.now_s
                    for order in past.machine.advance(now):
                        if isinstance(order, Row):
                            (past.steps if order.table == "steps" else past.decisions).append(order.values)
                        elif isinstance(order, AskRule):
                            rules.ask(order)
                            if not known:  # from before rules worked beside the experiment: it waited for each
                                moments.append(rules.answered(_asked(now, order)))
    return past


def _asked(now: Moment, order: AskRule) -> Moment:
    return replace(now, told=Told.ANSWER, seen=None, rule=order.place, frame=order.seen.frame)


class _Rules:
    """The Python rules of a run, asked again about the same results."""

    def __init__(self, settings: ExperimentSettings, past: Past, ask: bool, known: bool) -> None:
        self._settings = settings
        self._past = past
        self._ask = ask
        self._known = known  # the file has what they answered then
        self._owned = ExitStack()
        self._results: dict[int, list[Seen]] = {}
        self._processes: dict[int, RuleProcess] = {}

    def __enter__(self) -> Self:
        if self._ask:
            for place, rule in enumerate(self._settings.rules):
                if isinstance(rule, PythonRule):
                    process = RuleProcess(rule, rule.limit_s or self._settings.max_age_s)
                    self._owned.callback(process.close)
                    self._processes[place] = process
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def ask(self, order: AskRule) -> None:
        """Keep what a rule is asked about, until its answer comes."""
        self._results.setdefault(order.place, []).append(order.seen)

    def answered(self, moment: Moment) -> Moment:
        """The moment, with what the rule answers now where it is an answer."""
        if moment.told != Told.ANSWER or moment.rule not in self._processes:
            return moment
        waiting = self._results.get(moment.rule, [])
        about = [seen for seen in waiting if seen.frame <= moment.frame]
        self._results[moment.rule] = waiting[len(about) :]
        if not about:
            return moment
        answer = self._processes[moment.rule].ask_all(about)
        value = math.nan if answer.field_mT is None else answer.field_mT
        same = value == moment.answer or (math.isnan(value) and math.isnan(moment.answer))
        if self._known and not (same and bool(answer.failed) == bool(moment.failed)):
            self._past.differences.append(
                f"rule {moment.rule} answered {moment.answer:g} to frame {moment.frame} in the file, "
                f"{answer.failed or f'{value:g}'} again"
            )
        return replace(moment, answer=value, failed=answer.failed)


def _found(before: Path, path: Path) -> Path:
    """A file that was resumed: where it was, or beside the one that went on; perhaps finished or recovered since."""
    plain = before.name.removesuffix(".partial")
    names = [before.name, plain, f"{plain}.partial", f"{plain.removesuffix('.h5')}.recovered.h5"]
    for folder in (before.parent, path.parent):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise RunFileUnusableError(f"run file '{path}' goes on from '{before}', which does not exist")


def _moments(run: Run, inputs: np.ndarray, past: Past) -> Iterator[Moment]:
    """What the machine was told, with the results from the file."""
    table, objects = run.table, run.objects()
    first = np.searchsorted(objects["frame"], np.arange(len(table) + 1))
    has_domain = "domain" in (table.dtype.names or ())
    extra = list(run.quantities)
    for row in inputs:
        told, frame = Told(int(row["told"])), int(row["frame"])
        common = (
            told, int(row["time_ns"]), float(row["now_s"]), int(row["reading_ns"]), float(row["field_mT"]),
            float(row["set_mT"]), bool(row["settled"]),
        )  # fmt: skip
        if told == Told.ANSWER:
            failed = "failed in the run that this one goes on from" if row["failed"] else ""
            yield Moment(*common, frame, rule=int(row["rule"]), answer=float(row["answer"]), failed=failed)
            continue
        if told != Told.FRAME:
            yield Moment(*common)
            continue
        if frame >= len(table) or table["skipped"][frame] != Skipped.NOT_SKIPPED:
            past.missing = frame  # a kill took the end of the file: what came after cannot be told either
            return
        values, taken_s = table[frame], float(row["taken_s"])
        score = float(values["domain"]) if has_domain else math.nan
        yield Moment(
            *common, frame, taken_s,
            Seen(
                frame, taken_s, float(values["field_mT"]), int(values["count"]), int(values["stripes"]),
                float(values["area_fraction"]), objects[first[frame] : first[frame + 1]],
                None if math.isnan(score) else score, {name: float(values[name]) for name in extra},
            ),
        )  # fmt: skip


def redecide(path: str | Path) -> list[str]:
    """Decide a run again from its file, and compare step by step; one sentence per difference, none where all agree.

    Raises as `decide_again`.
    """
    path = Path(path)
    past = decide_again(path)
    differences = past.differences
    with open_run(path) as run:
        experiment = run.experiment
        settings, _ = _settings_of(run)
        assert experiment is not None
        known = json_text.load(experiment["python_rules"] or "{}")
        for file, digest in sources(settings.rules).items():
            if known.get(file) != digest:
                differences.append(f"the Python rule in '{file}' is not the one that the run used")
        for name, again in (("decision", past.decisions[past.own[1] :]), ("step", past.steps[past.own[0] :])):
            rows = experiment[f"{name}s"]
            whole = run.state == "finished"
            if len(rows) != len(again) and (whole or len(again) < len(rows)) and past.missing < 0:
                differences.append(f"{len(rows)} {name}s are in the file, {len(again)} were reached again")
            for number, (row, values) in enumerate(zip(rows, again, strict=False)):
                differences += [
                    f"{name} {number}: {column} is {_shown(row[column])} in the file, {_shown(values[column])} again"
                    for column in rows.dtype.names
                    if not _same(row[column], values[column], rows.dtype[column])
                ]
    return differences


def _same(stored: Any, again: Any, kind: np.dtype[Any]) -> bool:
    if kind.kind == "S":
        return bool(stored == np.array(again.encode(), kind))
    value = np.array(again, kind)
    return bool(stored == value) or bool(kind.kind == "f" and np.isnan(stored) and np.isnan(value))


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else f"{value}"
