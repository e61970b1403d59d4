"""The field guard: a process that alone has the magnet's supply, and outlives the service to make it safe.

The service starts it with `python -m realtime_skyseg.field` and tells it on standard input where to connect.
Both then speak lines of JSON over a loopback socket. The guard goes to the safe state when that socket closes (the
service ended, or was killed), when nothing comes over it for `heartbeat_s` (the service hangs), when it is told to
terminate, and on every fault; then, once nobody is connected, it releases the supply and exits.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.errors import FieldError, SkysegError
from realtime_skyseg.field.magnet import GIVE_UP_S, Magnet

#: The service waits so long for an answer.
ANSWER_S = 5.0

#: A request that waited longer, behind a supply that hung, is not carried out: whoever asked may have given up.
_LATE_S = 4.0

#: What a service that does not read may leave behind; further readings are dropped, so that the guard never waits.
_UNREAD_BYTES = 1_000_000


class Line:
    """Lines of JSON over a socket that never make their sender wait."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._incoming = b""
        self._outgoing = bytearray()
        self.open = True

    def send(self, message: dict[str, Any]) -> None:
        """Send as much as the receiver takes; a message is dropped where too much is unread."""
        if len(self._outgoing) < _UNREAD_BYTES:
            self._outgoing += json.dumps(message).encode() + b"\n"
        with contextlib.suppress(BlockingIOError):
            try:
                while self.open and self._outgoing:
                    del self._outgoing[: self._connection.send(self._outgoing)]
            except BlockingIOError:
                raise
            except OSError:
                self.open = False

    def receive(self, timeout_s: float) -> list[dict[str, Any]]:
        """The messages that have come, after at most `timeout_s`; `open` is False once there will be none any more."""
        if not select.select([self._connection], [], [], timeout_s)[0]:
            return []
        try:
            data = self._connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.open = self.open and bool(data)
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        return [json.loads(line) for line in lines]


def main() -> None:
    """Guard one supply until the service has gone and the field is safe."""
    # Ctrl-C and a closed terminal are the service's matter.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    told_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told_to_end.append(number))
    start = json.loads(sys.stdin.readline())
    with socket.create_connection(("127.0.0.1", start["port"]), timeout=10) as connection:
        connection.sendall(start["token"].encode() + b"\n")
        line = Line(connection)
        try:
            settings = FieldSettings.model_validate(start["field"])
            device = settings.open()
        except Exception as error:
            line.send({"refused": _fault(error)})
            return
        try:
            magnet = Magnet(settings, device, _noter(line), start["inherit"])
            line.send(
                {
                    "opened": {
                        "unit": device.unit,
                        "range": device.range,
                        "description": {**device.description, "unit": device.unit},
                    }
                }
            )
        except Exception as error:
            line.send({"refused": _fault(error)})
            device.close()
            return
        guard = _Guard(line, settings, magnet)
        while not guard.done:
            try:
                guard.turn(bool(told_to_end))
            except Exception as error:
                guard.fail(error)
        device.close()


class _Guard:
    def __init__(self, line: Line, settings: FieldSettings, magnet: Magnet) -> None:
        self._line = line
        self._magnet = magnet
        self._period_s = settings.read_every_ms / 1e3
        self._heartbeat_s = settings.heartbeat_s
        self._next_tick = self._last_heard = time.monotonic()
        self._closing = False
        self._failed_s = math.inf

    @property
    def done(self) -> bool:
        return self._closing and self._magnet.resting

    def turn(self, told_to_end: bool) -> None:
        """Answer requests until the next tick is due, notice what calls for the safe state, and tick."""
        wait_s = max(0.0, self._next_tick - time.monotonic())
        if self._line.open:
            requests = self._line.receive(wait_s)
            if requests:
                self._last_heard = time.monotonic()
            for request in requests:
                self._answer(request)
        else:
            time.sleep(wait_s)
        if not self._closing and (told_to_end or not self._line.open):
            self._close("the service has gone" if not self._line.open else "the guard was told to terminate")
        if not self._closing and time.monotonic() - self._last_heard > self._heartbeat_s:
            self._magnet.trip(f"the service gave no sign of life for {self._heartbeat_s:g} s (field.heartbeat_s)")
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + self._period_s
            reading = self._magnet.tick()
            if reading and self._line.open:
                self._line.send({"reading": reading})

    def fail(self, error: Exception) -> None:
        """After an error of the guard itself: leave the service, make the field safe, and end; raises the error where
        the guard fails at that too.
        """
        self._failed_s = min(self._failed_s, time.monotonic())
        if time.monotonic() - self._failed_s > GIVE_UP_S:
            raise error
        self._line.open = False
        self._closing = True
        self._magnet.trip(f"the field guard failed: {error!r}")
        time.sleep(self._period_s)

    def _close(self, reason: str) -> None:
        self._closing = True
        self._magnet.make_safe(reason)

    def _answer(self, request: dict[str, Any]) -> None:
        error = value = None
        try:
            if "sent_ns" in request and time.time_ns() - request["sent_ns"] > _LATE_S * 1e9:
                raise FieldError(f"the request came more than {_LATE_S:g} s late and is not carried out")
            if self._closing:
                raise FieldError("the field guard is closing and takes no request")
            match request["do"]:
                case "set":
                    self._magnet.aim(request["field_mT"])
                case "stand_still":
                    value = self._magnet.stand_still()
                case "demagnetise":
                    values = (request[key] for key in ("amplitude_mT", "ratio", "smallest_mT", "dwell_s"))
                    self._magnet.demagnetise(*values)
                case "pulse":
                    self._magnet.pulse(request["in_plane_mT"], request["seconds"])
                case "enter":
                    self._magnet.enter(request["field_mT"])
                case "safe":
                    self._magnet.make_safe(request["reason"])
                case "close":
                    self._close("the service ends")
        except Exception as caught:
            error = _fault(caught)
        if "id" in request:
            self._line.send({"answer": request["id"], "error": error, "value": value})


def _noter(line: Line) -> Callable[[str, str], None]:
    def note(kind: str, message: str) -> None:
        if line.open:
            line.send({"event": {"time_ns": time.time_ns(), "kind": kind, "message": message}})
        else:
            # Nobody else is left to tell. A terminal or pipe that takes nothing must not hold up the guard.
            text = f"skyseg field guard: {message}\n".encode()
            threading.Thread(target=_print, args=(text,), daemon=True).start()

    return note


def _print(text: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text)


def _fault(error: Exception) -> dict[str, str]:
    if isinstance(error, SkysegError):
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "FieldError", "message": f"{type(error).__name__}: {error}"}
