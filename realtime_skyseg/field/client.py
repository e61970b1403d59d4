"""`FieldGuard`: the service's way to the field guard.

Longer than other files: one class owns the connection, and most of it says what the service believes when it breaks.
"""

import contextlib
import hmac
import itertools
import json
import math
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from numbers import Real
from types import TracebackType
from typing import Any, Self

from realtime_skyseg import errors
from realtime_skyseg.config import FieldSettings
from realtime_skyseg.errors import FieldError, SkysegError
from realtime_skyseg.field.guard import ANSWER_S, SAY_S, TRY_AGAIN_S, Line
from realtime_skyseg.field.keeper import Keeper, Reading
from realtime_skyseg.field.magnet import Inherited
from realtime_skyseg.records import Event

#: Opening a supply may load a Micro-Manager configuration with many devices.
_OPEN_S = 60.0

#: Beyond the ramp itself, for the last read-backs and for a supply that is slow to be released.
_CLOSE_S = 12.0

#: Readings that `reading_nearest` compares in any case, beyond a jump of the computer's clock.
_NEAREST = 128

#: Guards that go on without this process.
_left_behind: "list[subprocess.Popen[bytes]]" = []


class FieldGuard:
    """A magnet, through its guard: a process that alone has the supply, and makes it safe if this one dies or hangs.

    The supply is opened and read, and nothing is set until `set_mT` or `demagnetise`. All methods may be called from
    any thread, and none waits longer than it says, even where the supply hangs.

    Owns a process, a socket and a thread, until `close`.

    Args:
        settings: the section `field`.

    Raises:
        SettingsError: the settings do not fit the supply; the message names the key.
        FieldError: the supply cannot be opened or read, or stands outside the limits.

    Attributes:
        unit: of the supply: "V", "A" or "mT".
        range: lowest and highest value it takes, in its unit; None where it can only be read.
        description: what it is.
    """

    def __init__(self, settings: FieldSettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()  # guards the keeper, and what stands below it
        self._keeper = Keeper(settings)
        self._readings = self._keeper.readings
        self._ids = itertools.count()
        self._gone = False
        self._closing = False
        self._stale = False
        self._sending = threading.Lock()  # guards the line's sending end, and `_halts`
        self._halts = 0
        self._safe_asked: int | None = None  # number of a request for safety that the guard has not answered yet
        self._give_up = threading.Event()
        self._line, opened = self._open()
        self.unit: str = opened["unit"]
        self.range: tuple[float, float] | None = tuple(opened["range"]) if opened["range"] else None
        self.description: dict[str, str | int | float | bool] = opened["description"]
        # A daemon: a program that ends without `close` must end, so that the guard makes the field safe.
        self._thread = threading.Thread(target=self._listen, name="skyseg-field", daemon=True)
        self._thread.start()
        with self._changed:
            read = self._changed.wait_for(lambda: self._readings or self._gone, ANSWER_S)
        if not read or self._gone:
            self.close()
            raise FieldError(self.fault or f"the field was not read back within {ANSWER_S:g} s")

    @property
    def fault(self) -> str:
        """What went wrong first, one sentence; empty where nothing did. From then on no target is taken."""
        with self._changed:
            return self._keeper.fault

    @property
    def latest(self) -> Reading:
        """The newest reading; `Reading.read_s` tells how old it is."""
        with self._changed:
            return self._readings[-1]

    @property
    def target(self) -> int:
        """Number of the last target that was accepted; 0: none yet."""
        with self._changed:
            return self._keeper.target

    @property
    def settled(self) -> bool:
        """The last target is reached, and read back within the tolerance; `safe` is one as soon as it is asked for."""
        with self._changed:
            return self._keeper.settled and self._safe_asked is None

    def reading_nearest(self, time_ns: int) -> tuple[float, int]:
        """The field in mT read back nearest to a Unix time, and how long before that time it was read, in ns.

        The age is negative for a reading after that time.
        """
        with self._changed:
            best = self._readings[-1]
            for back, reading in enumerate(reversed(self._readings)):
                if abs(reading.time_ns - time_ns) <= abs(best.time_ns - time_ns):
                    best = reading
                elif back > _NEAREST:
                    break
        return best.field_mT, time_ns - best.time_ns

    def notices(self) -> list[Event]:
        """What happened since the last call: fields set, reached and made safe, faults."""
        with self._changed:
            events = list(self._keeper.events)
            self._keeper.events.clear()
        return events

    @property
    def halts(self) -> int:
        """How many requests so far may not be overtaken: every `safe`, and every `stand_still` that says so."""
        return self._halts

    def set_mT(self, value: float, halts: int | None = None) -> int:
        """Go to a field; returns once the guard has accepted it, while the field is still on its way.

        Returns the number of this target, for `wait_settled`.

        Args:
            value: the field.
            halts: what `halts` was when the caller decided; where another halt has come since, nothing is sent.

        Raises:
            FieldError: the value is not finite, outside the limits, refused after a fault, overtaken by a halt, or not
                accepted within 5 s.
        """
        return int(self._request("set", halts, field_mT=_number(value))["target"])

    def stand_still(self, halt: bool = False) -> float:
        """Stop the field on its way, in place of whatever is under way; returns where it stays, in mT.

        The guard decides where, so that it goes neither on nor back. NaN: nothing was ever set, nothing moves.

        Args:
            halt: counts as one of `halts`, so that what was decided before it does not move the field after it.

        Raises:
            FieldError: as `set_mT`.
        """
        value = self._request("stand_still", halt=halt)["value"]
        return math.nan if value is None else float(value)

    def demagnetise(
        self,
        amplitude_mT: float,
        ratio: float = 0.8,
        smallest_mT: float | None = None,
        dwell_s: float = 0.2,
        halts: int | None = None,
    ) -> int:
        """Alternate the field, each swing smaller than the one before, and end at zero; returns once accepted.

        Returns the number of this target, for `wait_settled`. Any later one takes its place, and so does `safe`.

        Args:
            amplitude_mT: first swing; the limits have to allow it on both sides.
            ratio: of each swing to the one before, 0.1 to 0.99.
            smallest_mT: last swing at least; None: the tolerance.
            dwell_s: stay at each turn, once the read-back has settled.
            halts: as of `set_mT`.

        Raises:
            FieldError: as `set_mT`.
        """
        answer = self._request(
            "demagnetise",
            halts,
            amplitude_mT=_number(amplitude_mT),
            ratio=_number(ratio),
            smallest_mT=_number(self._settings.tolerance_mT if smallest_mT is None else smallest_mT),
            dwell_s=_number(dwell_s),
        )
        return int(answer["target"])

    def pulse(self, in_plane_mT: float, seconds: float, halts: int | None = None) -> None:
        """Give an in-plane pulse; returns once it has begun. The out-of-plane field stays as it is.

        Raises:
            FieldError: as `set_mT`; or the pulse is outside `pulse_limit_mT` and `pulse_limit_s`, or the supply gives
                none.
        """
        self._request("pulse", halts, in_plane_mT=_number(in_plane_mT), seconds=_number(seconds))

    def enter_mT(self, value: float) -> None:
        """Say what field a person has set; only for a source that can not be set by itself.

        Raises:
            FieldError: the value is not finite, outside the limits, or the source is of another kind.
        """
        self._request("enter", field_mT=_number(value))

    def safe(self, reason: str = "the service asks for it", wait_s: float = ANSWER_S) -> bool:
        """Go to the safe state, in place of whatever is under way, and of whatever was asked for before.

        It cannot be lost once this returns: a guard that hangs finds it first when it works again, and one that follows
        a guard that died makes the field safe in any case.

        Args:
            reason: for the event.
            wait_s: for the guard's answer; 0: not at all.

        Returns:
            Whether the guard has confirmed it.
        """
        number = next(self._ids)
        with self._sending:
            self._halts += 1
            with self._changed:
                self._safe_asked = number
            self._line.send({"do": "safe", "id": number, "reason": reason})
        with self._changed:
            answered = self._changed.wait_for(lambda: number in self._keeper.answers or self._gone, wait_s)
            answer = self._keeper.answers.pop(number, None)
            if answer is None:
                return bool(answered) and (self._keeper.safe or not self._keeper.was_set)
            return answer["error"] is None

    def wait_settled(self, timeout_s: float, target: int | None = None) -> bool:
        """Wait until a target is reached and read back within the tolerance; False where it is not in time.

        Args:
            timeout_s: longest wait.
            target: its number; None: the last one.

        Raises:
            FieldError: there was a fault, or another target has taken its place.
        """
        keeper = self._keeper
        with self._changed:
            wanted = keeper.target if target is None else target
            done = self._changed.wait_for(
                lambda: keeper.target > wanted or self.settled or keeper.fault or self._gone, timeout_s
            )
            if keeper.fault or self._gone:
                raise FieldError(keeper.fault or "the field guard is closed")
            if keeper.target > wanted:
                raise FieldError(f"target {wanted} of the field was given up for another one, {keeper.target}")
            return bool(done)

    def close(self) -> None:
        """Bring the field to its safe state and release the supply. Safe to call twice.

        Waits for the ramp. A guard that cannot make the field safe in time is left behind, and goes on trying; that is
        a fault.
        """
        with self._changed:
            first, self._closing = not self._closing, True
        if first:
            self._send({"do": "close"})
            low, high = self._settings.limit_mT
            ramp_s = max(abs(low), abs(high)) / self._settings.slew_mT_per_s if self._settings.safe == "zero" else 0.0
            self._thread.join(2 * ramp_s + self._settings.settle_s + _CLOSE_S)
            if self._thread.is_alive():
                with self._changed:
                    self._keeper.fail(
                        f"process {self._process.pid}, the field guard, has not made the field safe in time and goes "
                        "on trying; look at the supply"
                    )
                self._give_up.set()
                self._thread.join()
        self._line.close()
        _leave(self._process, 0.0 if self._give_up.is_set() else ANSWER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the guard's process ---

    def _open(self, inherited: Inherited | None = None) -> tuple[Line, dict[str, Any]]:
        """Start a guard, and wait until it has the supply; for one that follows another one, only until it is there."""
        token = secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._process = process = _start()
            try:
                start = {
                    "port": server.getsockname()[1],
                    "token": token,
                    "inherited": asdict(inherited) if inherited else None,
                    "field": self._settings.model_dump(mode="json"),
                }
                assert process.stdin is not None
                with contextlib.suppress(OSError), process.stdin as way:
                    way.write(json.dumps(start).encode() + b"\n")
                deadline = time.monotonic() + _OPEN_S
                line = Line(_accept(server, token, process, deadline, self._give_up))
                if inherited:
                    return line, {}
                try:
                    return line, self._first(line, deadline)
                except BaseException:
                    line.close()
                    raise
            except BaseException:
                if inherited is None:
                    process.kill()  # it has set nothing, so it may be ended at any point
                    process.wait()
                else:
                    _leave(process, 0.0)
                raise

    def _first(self, line: Line, deadline: float) -> dict[str, Any]:
        """What the guard has opened."""
        while line.open and time.monotonic() < deadline:
            for message in line.receive(0.5):
                if "refused" in message:
                    raise _error(message["refused"])
                if "opened" in message:
                    opened: dict[str, Any] = message["opened"]
                    return opened
                self._take(message)
        if line.open:
            raise FieldError(f"field.driver: '{self._settings.driver}' did not open within {_OPEN_S:g} s")
        raise FieldError(f"the field guard ended while it opened '{self._settings.driver}'")

    # --- requests ---

    def _request(self, do: str, halts: int | None = None, halt: bool = False, **values: object) -> dict[str, Any]:
        """Ask the guard, and return its answer."""
        number = next(self._ids)
        with self._changed:
            if self._keeper.fault or self._gone or self._closing:
                raise FieldError(f"the field guard takes no request: {self._keeper.fault or 'it is closed'}")
        self._send({"do": do, "id": number, "sent_s": time.monotonic(), **values}, halts, halt)
        with self._changed:
            answers, lost = self._keeper.answers, self._keeper.fault
            self._changed.wait_for(lambda: number in answers or self._gone or self._keeper.fault != lost, ANSWER_S)
            answer = answers.pop(number, None)
            if answer is None:
                reason = self._keeper.fault or ("it is closed" if self._gone else "")
                raise FieldError(
                    f"the field guard did not carry out '{do}': {reason}"
                    if reason
                    else f"the field guard did not answer within {ANSWER_S:g} s; the supply may hang"
                )
        if answer["error"] is not None:
            raise _error(answer["error"])
        return answer

    def _send(self, message: dict[str, Any], halts: int | None = None, halt: bool = False) -> None:
        with self._sending:
            if halts is not None and halts != self._halts:
                raise FieldError(f"'{message['do']}' was overtaken by a request to stop, and is not sent")
            self._halts += halt
            self._line.send(message)

    # --- the thread ---

    def _listen(self) -> None:
        """Take what the guard says, give it a sign of life, and replace it where it ends before the field is safe."""
        beat_s = self._settings.heartbeat_s / 4
        next_beat_s = 0.0
        try:
            while not self._give_up.is_set():
                if time.monotonic() >= next_beat_s:
                    next_beat_s = time.monotonic() + beat_s
                    self._send({"do": "beat"})
                for message in self._line.receive(beat_s) if self._line.open else ():
                    self._take(message)
                if not self._line.open and not self._replace():
                    break
                self._watch_age()
        finally:
            with self._changed:
                self._gone = True
                self._changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        with self._changed:
            self._keeper.take(message)
            if "answer" in message and message["answer"] == self._safe_asked:
                self._safe_asked = None
            self._changed.notify_all()

    def _replace(self) -> bool:
        """After the guard has ended: let another one make the field safe. False where there is nothing to guard."""
        self._line.close()
        _leave(self._process, ANSWER_S)
        with self._changed:
            inherited = self._keeper.ended(f"process {self._process.pid}")
            self._changed.notify_all()
        said_s = -math.inf
        while inherited:
            try:
                line, _ = self._open(inherited)
            except (SkysegError, OSError) as error:
                if time.monotonic() - said_s > SAY_S:
                    said_s = time.monotonic()
                    with self._changed:
                        self._keeper.note("field_unsafe", f"the field is not guarded, look at the supply: {error}")
                if self._give_up.wait(TRY_AGAIN_S):
                    break  # the one that was started goes on alone
                continue
            with self._sending:
                self._line = line
                if self._closing:
                    self._line.send({"do": "close"})
            return True
        return False

    def _watch_age(self) -> None:
        """Say when readings stay away, and when they come again."""
        with self._changed:
            age_s = time.monotonic() - self._keeper.last_reading_s
            stale = age_s > max(1.0, self._settings.heartbeat_s)
            if stale != self._stale and not self._closing:
                self._stale = stale
                self._keeper.note("field_stale" if stale else "field_back", "the field is not read back" if stale
                                  else "the field is read back again")  # fmt: skip


def _leave(process: "subprocess.Popen[bytes]", wait_s: float) -> None:
    """Wait for the end of a guard; one that takes longer goes on alone."""
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        _left_behind[:] = [process, *(one for one in _left_behind if one.poll() is None)]


def _start() -> "subprocess.Popen[bytes]":
    """A guard that neither Ctrl-C nor the end of the terminal or of this process reaches."""
    own: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    paths = os.pathsep.join(str(path or os.getcwd()) for path in sys.path)  # noqa: PTH109  drivers are found as here
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "realtime_skyseg.field"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # what a library prints has no place in the output of `skyseg run --json`
        env={**os.environ, "PYTHONPATH": paths},
        **own,
    )


def _accept(
    server: socket.socket,
    token: str,
    process: "subprocess.Popen[bytes]",
    deadline: float,
    give_up: threading.Event,
) -> socket.socket:
    """The guard's connection; others that connect are turned away."""
    server.settimeout(0.1)
    while time.monotonic() < deadline and not give_up.is_set():
        try:
            connection, _ = server.accept()
        except TimeoutError:
            if process.poll() is not None:
                raise FieldError(f"the field guard did not start (exit status {process.returncode})") from None
            continue
        connection.settimeout(ANSWER_S)
        with contextlib.suppress(OSError):
            said = b""
            while len(said) < len(token) + 1 and (data := connection.recv(len(token) + 1 - len(said))):
                said += data
            if hmac.compare_digest(said, token.encode() + b"\n"):
                return connection
        connection.close()
    raise FieldError(f"the field guard did not start within {_OPEN_S:g} s")


def _number(value: object) -> object:
    """A number of any library as a plain one; whatever else it is, the guard refuses it."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    return str(value)


def _error(fault: dict[str, str]) -> SkysegError:
    kind = getattr(errors, fault["kind"], FieldError)
    error: SkysegError = kind(fault["message"])
    return error
