"""A Python rule at work, in a process of its own: whatever it does, the experiment goes on.

`python -m realtime_skyseg.experiment.rule_process` is that process. It takes pickled lists of results on its standard
input, and answers each with a line of JSON. What the rule itself prints goes nowhere.
"""

import json
import math
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from queue import SimpleQueue
from typing import Any

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.experiment.rules import Seen, load_function
from realtime_skyseg.programme import PythonRule

#: A pipe takes so much at once, whether it is read or not.
_PIPE_BYTES = 4_000

#: Starting Python, and running the file of the rule.
_LOAD_S = 20.0

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rule says to the newest result that it was given."""

    frame: int
    field_mT: float | None = None  # where the field is to go; None: nothing
    failed: str = ""  # one sentence: it is not asked again


class RuleProcess:
    """Asks a Python rule about results, one list at a time. Owns a process and a thread until `close`.

    Args:
        rule: its settings.
        limit_s: how long an answer may take.
        on_answer: called from the thread, once an answer can be taken.

    Raises:
        SettingsError: the file cannot be read or run, or has no such function.
    """

    def __init__(self, rule: PythonRule, limit_s: float, on_answer: Callable[[], None] = lambda: None) -> None:
        self._rule = rule
        self._limit_s = limit_s
        self._on_answer = on_answer
        self._changed = threading.Condition()
        self._waiting: deque[Seen] = deque(maxlen=rule.window_frames)
        self._answers: deque[Answer] = deque()
        self._asked: tuple[int, float] | None = None  # frame, and when it was asked
        self._late = self._closing = False
        self._process = _start()
        load_by = threading.Timer(_LOAD_S, self._process.kill)
        load_by.start()
        try:
            self._send(pickle.dumps(rule.model_dump(mode="json")))
            said = self._read()
        finally:
            load_by.cancel()
        if said != {"loaded": True}:
            self._end()
            sentence = said.get("refused") or f"file '{rule.file}' ended its process, or took longer than {_LOAD_S:g} s"
            raise SettingsError(f"experiment.rules: {str(sentence).removeprefix('experiment.rules: ')}")
        self._thread = threading.Thread(target=self._work, name="skyseg-rule", daemon=True)
        self._thread.start()

    def ask(self, seen: Seen) -> None:
        """Ask about a result. Where the rule is still at an older one, it gets what has come since all at once."""
        with self._changed:
            self._waiting.append(seen)
            if self._asked is None:
                data = pickle.dumps(list(self._waiting))
                if len(data) < _PIPE_BYTES:  # from here: a thread less to wait for
                    self._asked = (seen.frame, time.monotonic())
                    self._waiting.clear()
                    with suppress(OSError):  # it has ended, as the thread will see
                        self._send(data)
            self._changed.notify_all()

    def answer(self) -> Answer | None:
        """The next answer, or None. A rule that takes too long is ended here."""
        with self._changed:
            if self._asked and time.monotonic() - self._asked[1] > self._limit_s and not self._late:
                self._late = True
                self._process.kill()
            return self._answers.popleft() if self._answers else None

    def ask_all(self, results: Sequence[Seen]) -> Answer:
        """Ask about the last of some results, and wait for the answer, which takes no longer than the limit."""
        with self._changed:
            self._waiting.extend(results)
            self._changed.notify_all()
        while (answer := self.answer()) is None:
            with self._changed:
                self._changed.wait_for(lambda: self._answers, 0.05)
        return answer

    def close(self) -> None:
        """End the process, whatever the rule is at. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._process.kill()
        self._thread.join()
        self._end()

    # --- the thread ---

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._waiting or self._closing)
                if self._closing:
                    return
                results = [] if self._asked else list(self._waiting)
                if results:
                    self._asked = (results[-1].frame, time.monotonic())
                    self._waiting.clear()
                assert self._asked is not None
                frame = self._asked[0]
            try:
                if results:
                    self._send(pickle.dumps(results))
                said = self._read()
            except OSError:
                said = {}
            answer = self._understood(frame, said)
            with self._changed:
                self._asked = None
                self._answers.append(answer)
                self._changed.notify_all()
            self._on_answer()
            if answer.failed:
                return

    def _understood(self, frame: int, said: dict[str, Any]) -> Answer:
        where = f"{self._rule.file}: {self._rule.function}"
        if "value" in said:
            return Answer(frame, None if said["value"] is None else float(said["value"]))
        if self._late:
            reason = f"took longer than {self._limit_s:g} s (limit_s)"
        elif "failed" in said:
            reason = said["failed"]
        else:
            reason = f"ended its process (exit status {self._process.wait()})"
        sentence = f"{where} failed and is not asked again: {reason}"[:300]
        return Answer(frame, None, sentence.encode(errors="replace").decode())

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(_LENGTH.pack(len(data)) + data)
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        """The next line of the process; nothing where it has ended, or says what it cannot have said."""
        assert self._process.stdout is not None
        try:
            said = json.loads(self._process.stdout.readline(10_000))
        except ValueError:
            self._process.kill()
            return {}
        return said if isinstance(said, dict) else {}

    def _end(self) -> None:
        self._process.kill()
        for way in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if way is not None:
                    way.close()
        self._process.wait()


def _start() -> "subprocess.Popen[bytes]":
    own: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    paths = os.pathsep.join(str(path or os.getcwd()) for path in sys.path)  # noqa: PTH109  imports are found as here
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "realtime_skyseg.experiment.rule_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
        **own,
    )


# --- the process ---


def main() -> None:
    """Load a rule, and answer until the experiment has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The ways to the experiment are ours; what the rule prints, or reads, is nobody's.
    asked, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)

    def say(**message: Any) -> None:
        told.write(json.dumps(message).encode() + b"\n")
        told.flush()

    try:
        rule = PythonRule.model_validate(_next(asked))
        function = load_function(rule)
    except BaseException as error:
        say(refused=str(error) if isinstance(error, SettingsError) else f"the rule cannot be run: {error!r}")
        os._exit(0)
    say(loaded=True)
    recent: deque[Seen] = deque(maxlen=rule.window_frames)
    results: SimpleQueue[list[Seen]] = SimpleQueue()
    threading.Thread(target=_listen, args=(asked, results), daemon=True).start()
    while True:
        recent.extend(results.get())
        try:
            said = function(list(recent))
        except BaseException as error:  # whatever it raises, also what is meant to end a program
            say(failed=f"{type(error).__name__}: {error}"[:300])
            continue
        try:
            say(value=judged(said))
        except Exception as error:
            say(failed=str(error))


def _listen(asked: Any, results: "SimpleQueue[list[Seen]]") -> None:
    """Take what the experiment asks; once it has gone, end, whatever the rule and threads that it has left are at."""
    while (message := _next(asked)) is not None:
        results.put(message)
    os._exit(0)


def judged(value: object) -> float | None:
    """What a rule returned, as a field. Raises `ValueError` where it is none."""
    if value is None:
        return None
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    raise ValueError(f"{value!r:.100} was returned; allowed: None or a finite number of mT")


def _next(asked: Any) -> Any:
    """The next message; None where there is no more."""
    head = asked.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return pickle.loads(asked.read(_LENGTH.unpack(head)[0]))


def check_rules(rules: Sequence[object]) -> None:
    """Load every Python rule once. Raises `SettingsError` for one that cannot be loaded."""
    for rule in rules:
        if isinstance(rule, PythonRule):
            RuleProcess(rule, 1.0).close()


if __name__ == "__main__":
    main()
