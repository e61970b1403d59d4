"""`FieldGuard`: the service's way to the field guard."""

import contextlib
import hmac
import itertools
import json
import math
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from numbers import Real
from types import TracebackType
from typing import Any, Self

from realtime_skyseg import errors
from realtime_skyseg.config import FieldSettings
from realtime_skyseg.errors import FieldError, SkysegError
from realtime_skyseg.field.guard import ANSWER_S
from realtime_skyseg.records import Event

#: Opening a supply may load a Micro-Manager configuration with many devices.
_OPEN_S = 60.0

#: Beyond the ramp itself, for the last read-backs and for a supply that is slow to be released.
_CLOSE_S = 12.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One read-back of the field."""

    time_ns: int  # Unix time, in the middle of the read-back
    device: float  # in the supply's unit
    field_mT: float  # by the calibration; NaN outside it
    set_mT: float | None  # what the supply was told last; None: nothing yet, the field is as it was found
    settled: bool  # the last target is reached, and this reading is within the tolerance of it


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
        self._readings: deque[Reading] = deque(maxlen=4096)
        self._events: deque[Event] = deque(maxlen=1000)
        self._changed = threading.Condition()  # guards everything that the thread below writes
        self._answers: dict[int, dict[str, Any]] = {}
        self._ids = itertools.count()
        self._settled = False
        self._halts = 0  # written under `_sending`
        self._was_set = False
        self._fault = ""
        self._gone = False
        self._closing = False
        self._sending = threading.Lock()
        self._incoming = b""
        self._last_reading_s = time.monotonic()
        self._stale = False
        self._give_up = threading.Event()
        self._open("")
        # A daemon: a program that ends without `close` must end, so that the guard makes the field safe.
        self._thread = threading.Thread(target=self._listen, name="skyseg-field", daemon=True)
        self._thread.start()
        with self._changed:
            read = self._changed.wait_for(lambda: self._readings or self._gone, ANSWER_S)
        if not read or self._gone:
            self.close()
            raise FieldError(self._fault or f"the field was not read back within {ANSWER_S:g} s")

    @property
    def fault(self) -> str:
        """What went wrong first, one sentence; empty where nothing did. From then on no target is taken."""
        with self._changed:
            return self._fault

    @property
    def latest(self) -> Reading:
        """The newest reading; `Reading.time_ns` tells how old it is."""
        with self._changed:
            return self._readings[-1]

    def reading_nearest(self, time_ns: int) -> tuple[float, int]:
        """The field in mT read back nearest to a Unix time, and how long before that time it was read, in ns.

        The age is negative for a reading after that time.
        """
        with self._changed:
            best = self._readings[-1]
            for reading in reversed(self._readings):
                if abs(reading.time_ns - time_ns) > abs(best.time_ns - time_ns):
                    break
                best = reading
        return best.field_mT, time_ns - best.time_ns

    def notices(self) -> list[Event]:
        """What happened since the last call: fields set, reached and made safe, faults."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
        return events

    @property
    def halts(self) -> int:
        """How many requests so far may not be overtaken: every `safe`, and every `stand_still` that says so."""
        return self._halts

    def set_mT(self, value: float, halts: int | None = None) -> None:
        """Go to a field; returns once the guard has accepted it, while the field is still on its way.

        Args:
            value: the field.
            halts: what `halts` was when the caller decided; where another halt has come since, nothing is sent.

        Raises:
            FieldError: the value is not finite, outside the limits, refused after a fault, overtaken by a halt, or not
                accepted within 5 s.
        """
        self._request("set", halts, field_mT=_number(value))

    def stand_still(self, halt: bool = False) -> float:
        """Stop the field on its way, in place of whatever is under way; returns where it stays, in mT.

        The guard decides where, so that it goes neither on nor back. NaN: nothing was ever set, nothing moves.

        Args:
            halt: counts as one of `halts`, so that what was decided before it does not move the field after it.

        Raises:
            FieldError: as `set_mT`.
        """
        return self._request("stand_still", halt=halt)

    def demagnetise(
        self,
        amplitude_mT: float,
        ratio: float = 0.8,
        smallest_mT: float | None = None,
        dwell_s: float = 0.2,
        halts: int | None = None,
    ) -> None:
        """Alternate the field, each swing smaller than the one before, and end at zero; returns once accepted.

        Any later `set_mT`, `demagnetise` or `safe` takes its place.

        Args:
            amplitude_mT: first swing; the limits have to allow it on both sides.
            ratio: of each swing to the one before, 0.1 to 0.99.
            smallest_mT: last swing at least; None: the tolerance.
            dwell_s: stay at each turn, once the read-back has settled.
            halts: as of `set_mT`.

        Raises:
            FieldError: as `set_mT`.
        """
        self._request(
            "demagnetise",
            halts,
            amplitude_mT=_number(amplitude_mT),
            ratio=_number(ratio),
            smallest_mT=_number(self._settings.tolerance_mT if smallest_mT is None else smallest_mT),
            dwell_s=_number(dwell_s),
        )

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

    def safe(self, reason: str = "the service asks for it") -> None:
        """Go to the safe state, in place of whatever is under way; returns once accepted.

        After a fault the field is on its way there already.

        Raises:
            FieldError: the guard does not answer within 5 s.
        """
        if not self.fault:
            self._request("safe", halt=True, reason=reason)

    def wait_settled(self, timeout_s: float) -> bool:
        """Wait until the last target is reached and read back within the tolerance; False where it is not in time.

        Raises:
            FieldError: there was a fault.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: self._settled or self._fault or self._gone, timeout_s)
            if self._fault or self._gone:
                raise FieldError(self._fault or "the field guard is closed")
            return bool(done)

    def close(self) -> None:
        """Bring the field to its safe state and release the supply. Safe to call twice.

        Waits for the ramp. A guard whose supply hangs is left behind: it alone can still make the field safe.
        """
        with self._changed:
            first, self._closing = not self._closing, True
        if first:
            with contextlib.suppress(OSError):
                self._send({"do": "close"})
            low, high = self._settings.limit_mT
            ramp_s = max(abs(low), abs(high)) / self._settings.slew_mT_per_s if self._settings.safe == "zero" else 0.0
            self._thread.join(2 * ramp_s + self._settings.settle_s + _CLOSE_S)
            if self._thread.is_alive():
                self._note("field_fault", f"process {self._process.pid}, the field guard, has not made the field safe "
                           "in time and goes on trying; look at the supply")  # fmt: skip
                self._give_up.set()
                self._thread.join()
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.0 if self._give_up.is_set() else ANSWER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the guard's process ---

    def _open(self, inherit: str) -> None:
        """Start a guard and wait until it has the supply."""
        token = secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._process = process = _start()
            try:
                start = {
                    "port": server.getsockname()[1],
                    "token": token,
                    "inherit": inherit,
                    "field": self._settings.model_dump(mode="json"),
                }
                assert process.stdin is not None
                with contextlib.suppress(OSError), process.stdin as way:
                    way.write(json.dumps(start).encode() + b"\n")
                deadline = time.monotonic() + _OPEN_S
                self._connection = _accept(server, token, process, deadline)
                try:
                    opened = self._first(deadline)
                except BaseException:
                    self._connection.close()
                    raise
            except BaseException:
                # It has set nothing, so it may be ended at any point.
                process.kill()
                process.wait()
                raise
        self.unit: str = opened["unit"]
        self.range: tuple[float, float] | None = tuple(opened["range"]) if opened["range"] else None
        self.description: dict[str, str | int | float | bool] = opened["description"]

    def _first(self, deadline: float) -> dict[str, Any]:
        """What the guard has opened."""
        self._incoming = b""
        while True:
            while b"\n" in self._incoming:
                line, self._incoming = self._incoming.split(b"\n", 1)
                message: dict[str, Any] = json.loads(line)
                if "refused" in message:
                    raise _error(message["refused"])
                if "opened" in message:
                    opened: dict[str, Any] = message["opened"]
                    return opened
                self._take(message)
            if time.monotonic() > deadline:
                raise FieldError(f"field.driver: '{self._settings.driver}' did not open within {_OPEN_S:g} s")
            if select.select([self._connection], [], [], 0.5)[0]:
                data = self._connection.recv(65536)
                if not data:
                    raise FieldError(f"the field guard ended while it opened '{self._settings.driver}'")
                self._incoming += data

    # --- requests ---

    def _request(self, do: str, halts: int | None = None, halt: bool = False, **values: object) -> float:
        """Ask the guard; returns what it answers with, NaN for most requests."""
        number = next(self._ids)
        with self._changed:
            if self._fault or self._gone or self._closing:
                raise FieldError(f"the field guard takes no request: {self._fault or 'it is closed'}")
        try:
            self._send({"do": do, "id": number, "sent_ns": time.time_ns(), **values}, halts, halt)
        except OSError as error:
            raise FieldError(f"the field guard cannot be reached: {error}") from error
        with self._changed:
            if not self._changed.wait_for(lambda: number in self._answers or self._gone, ANSWER_S):
                raise FieldError(f"the field guard did not answer within {ANSWER_S:g} s; the supply may hang")
            closed = {"error": {"kind": "FieldError", "message": self._fault or "it is closed"}}
            answer = self._answers.pop(number, closed)
            self._was_set = self._was_set or (answer["error"] is None and do in ("set", "demagnetise"))
        if answer["error"] is not None:
            raise _error(answer["error"])
        return math.nan if answer["value"] is None else float(answer["value"])

    def _send(self, message: dict[str, Any], halts: int | None = None, halt: bool = False) -> None:
        if not self._sending.acquire(timeout=ANSWER_S):
            raise OSError("it takes nothing any more")
        try:
            if halts is not None and halts != self._halts:
                raise FieldError(f"'{message['do']}' was overtaken by a request to stop, and is not sent")
            self._halts += halt
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        finally:
            self._sending.release()

    # --- the thread ---

    def _listen(self) -> None:
        """Take what the guard sends, and give it a sign of life."""
        beat_s = self._settings.heartbeat_s / 4
        next_beat = 0.0
        try:
            while not self._give_up.is_set():
                try:
                    if time.monotonic() >= next_beat:
                        next_beat = time.monotonic() + beat_s
                        self._send({"do": "beat"})
                    ready, _, _ = select.select([self._connection], [], [], beat_s)
                    data = self._connection.recv(65536) if ready else None
                except OSError:
                    data = b""
                if data == b"" and not self._take_over():
                    break
                if data:
                    *lines, self._incoming = (self._incoming + data).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line))
                self._watch_age()
        finally:
            with self._changed:
                self._gone = True
                self._changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        with self._changed:
            if "reading" in message:
                reading = Reading(**message["reading"])
                self._readings.append(reading)
                self._settled = reading.settled
                self._was_set = self._was_set or reading.set_mT is not None
                self._last_reading_s = time.monotonic()
            elif "answer" in message:
                self._settled = False  # what was read before does not belong to the new target
                self._answers[message["answer"]] = message
            elif "event" in message:
                event = Event(**message["event"])
                self._events.append(event)
                if event.kind == "field_fault":
                    self._fault = self._fault or event.message
            self._changed.notify_all()

    def _take_over(self) -> bool:
        """After the guard has ended: let another one make the field safe. False where there is nothing to guard."""
        with self._changed:
            if self._closing or self._gone:
                return False
            reason = f"process {self._process.pid}, the field guard, ended unexpectedly"
            again = not self._fault and self._was_set
            self._fault = self._fault or reason
            self._changed.notify_all()
        self._note("field_fault", reason)
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ANSWER_S)
        if not again:
            return False
        try:
            self._open(reason)
        except (SkysegError, OSError) as error:
            self._note("field_fault", f"the field is not guarded any more, look at the supply: {error}")
            return False
        if self._closing:
            with contextlib.suppress(OSError):
                self._send({"do": "close"})
        return True

    def _watch_age(self) -> None:
        """Say when readings stay away, and when they come again."""
        stale = time.monotonic() - self._last_reading_s > max(1.0, self._settings.heartbeat_s)
        if stale != self._stale and not self._closing:
            self._stale = stale
            self._note("field_stale" if stale else "field_back", "the field is not read back" if stale
                       else "the field is read back again")  # fmt: skip

    def _note(self, kind: str, message: str) -> None:
        with self._changed:
            self._events.append(Event(time.time_ns(), kind, message))


def _start() -> "subprocess.Popen[bytes]":
    """A guard that neither Ctrl-C nor the end of the terminal or of this process reaches."""
    own: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    paths = os.pathsep.join(str(path or os.getcwd()) for path in sys.path)  # noqa: PTH109  drivers are found as here
    return subprocess.Popen(
        [sys.executable, "-m", "realtime_skyseg.field"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # what a library prints has no place in the output of `skyseg run --json`
        env={**os.environ, "PYTHONPATH": paths},
        **own,
    )


def _accept(server: socket.socket, token: str, process: "subprocess.Popen[bytes]", deadline: float) -> socket.socket:
    """The guard's connection; others that connect are turned away."""
    server.settimeout(0.1)
    while time.monotonic() < deadline:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            if process.poll() is not None:
                raise FieldError(f"the field guard did not start (exit status {process.returncode})") from None
            continue
        connection.settimeout(ANSWER_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
