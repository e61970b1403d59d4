"""The field guard: a process that alone has the magnet's supply, and outlives the service to make it safe.

The service starts it with `python -m realtime_skyseg.field` and tells it on standard input where to connect.
Both then speak lines of JSON over a loopback socket. The guard goes to the safe state when that socket closes (the
service ended, or was killed), when nothing comes over it for `heartbeat_s` (the service hangs), when it is told to
terminate, and on every fault. It leaves once nobody is connected and safety was read back, however long that takes.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.devices import FieldSource
from realtime_skyseg.field.lock import only_one
from realtime_skyseg.field.magnet import Inherited, Magnet, described

#: The service waits so long for an answer.
ANSWER_S = 5.0

#: What keeps a guard from following another one is tried again this often, and told of this often.
TRY_AGAIN_S, SAY_S = 0.5, 5.0

#: A pipe for messages is left so long after the service has gone.
_PIPE_S = 10.0

#: What somebody who does not read may leave behind; further messages are dropped, so that nobody waits.
_UNREAD_BYTES = 1_000_000


class Line:
    """Lines of JSON over a socket that never make their sender wait. Without a connection nobody listens."""

    def __init__(self, connection: socket.socket | None) -> None:
        self.open = connection is not None
        self.closed_by_request = False  # the service has said that it ends
        self._incoming = b""
        self._outgoing = bytearray()
        self._connection = connection
        if connection is not None:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: dict[str, Any]) -> bool:
        """Send as much as the receiver takes. False where the message is dropped, because too much is unread."""
        taken = len(self._outgoing) < _UNREAD_BYTES
        if taken:
            self._outgoing += json.dumps(message).encode() + b"\n"
        self.flush()
        return taken and self.open

    def flush(self) -> None:
        """Send what is left of earlier messages."""
        try:
            while self.open and self._outgoing and self._connection is not None:
                del self._outgoing[: self._connection.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self.open = False

    def receive(self, timeout_s: float) -> list[dict[str, Any]]:
        """The messages that have come, after at most `timeout_s`; `open` is False once there will be none any more."""
        if self._connection is None or not select.select([self._connection], [], [], timeout_s)[0]:
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

    def close(self) -> None:
        """Release the socket. Safe to call twice."""
        self.open = False
        if self._connection is not None:
            self._connection.close()


def main() -> None:
    """Guard one supply until the service has gone and the field is safe."""
    # Ctrl-C and a closed terminal are the service's matter.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    told_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told_to_end.append(number))
    start = json.loads(sys.stdin.readline())
    inherited = Inherited(**start["inherited"]) if start["inherited"] else None
    line = Line(_connect(start["port"], start["token"], inherited is not None))
    tell = _teller(line)
    with ExitStack() as owned:
        try:
            magnet = _begin(start["field"], inherited, tell, owned)
        except Exception as error:
            line.send({"refused": described(error)})
            return
        _Loop(line, magnet, tell).run(told_to_end)
        reason = "" if line.closed_by_request else f"process {os.getpid()}, the field guard, was told to end"
        line.send({"left": reason})


def _connect(port: int, token: str, needed: bool) -> socket.socket | None:
    """The way to the service. Where the field was set before, this process goes on without one too."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.sendall(token.encode() + b"\n")
    except OSError:
        if needed:
            return None
        raise
    return connection


def _begin(
    tree: dict[str, Any], inherited: Inherited | None, tell: Callable[[dict[str, Any]], None], owned: ExitStack
) -> Magnet:
    """Open the supply, which nobody else may have. A guard that follows another one tries until it succeeds."""
    settings = FieldSettings.model_validate(tree)
    said_s = -math.inf
    while True:
        try:
            with ExitStack() as opened:
                opened.enter_context(only_one(settings))
                device = settings.open()
                opened.callback(_release, device)
                magnet = Magnet(settings, device, tell, inherited=inherited)
                owned.push(opened.pop_all())
                break
        except Exception as error:
            if inherited is None:
                raise
            if time.monotonic() - said_s > SAY_S:
                said_s = time.monotonic()
                message = f"the field is not guarded, look at the supply: {described(error)['message']}"
                tell({"event": {"time_ns": time.time_ns(), "kind": "field_unsafe", "message": message}})
            time.sleep(TRY_AGAIN_S)
    tell(
        {
            "opened": {
                "unit": device.unit,
                "range": device.range,
                "description": {**device.description, "unit": device.unit},
            }
        }
    )
    return magnet


def _release(device: FieldSource) -> None:
    with contextlib.suppress(Exception):  # whatever it is, the field is safe, and the next one can open the supply
        device.close()


class _Loop:
    """Hands requests to the magnet, and lets it tick, until it is done."""

    def __init__(self, line: Line, magnet: Magnet, tell: Callable[[dict[str, Any]], None]) -> None:
        self._line = line
        self._magnet = magnet
        self._tell = tell
        self._next_tick_s = self._ticked_s = self._gone_s = time.monotonic()

    def run(self, told_to_end: list[int]) -> None:
        """Until the service has gone, or says so, and the field is safe."""
        period_s = self._magnet.period_s
        while not self._magnet.done:
            try:
                self._turn(period_s, told_to_end)
            except Exception as error:
                # An error of the guard itself, or a service that sends nonsense: on to safety, and without the service.
                self._line.close()
                self._magnet.closing = True
                self._magnet.trip(f"the field guard failed: {error!r}")
                time.sleep(period_s)

    def _turn(self, period_s: float, told_to_end: list[int]) -> None:
        wait_s = max(0.0, self._next_tick_s - time.monotonic())
        if self._line.open:
            for request in self._line.receive(wait_s):
                self._line.closed_by_request |= request.get("do") == "close"
                answer = self._magnet.hear(request)
                if answer:
                    self._line.send(answer)
                    # It begins at once, but however many requests come, the supply is not asked much more often.
                    self._next_tick_s = min(self._next_tick_s, self._ticked_s + period_s / 4)
        else:
            _leave_pipe(self._gone_s)
            time.sleep(wait_s)
        if told_to_end:
            self._magnet.close("the guard was told to terminate")
        if self._line.open:
            self._gone_s = time.monotonic()
        else:
            self._magnet.close("the service has gone")
        if time.monotonic() >= self._next_tick_s:
            self._ticked_s = time.monotonic()
            self._next_tick_s = self._ticked_s + period_s
            reading = self._magnet.tick()
            if reading:
                self._tell({"reading": reading})


def _teller(line: Line) -> Callable[[dict[str, Any]], None]:
    def tell(message: dict[str, Any]) -> None:
        if line.open:
            line.send(message)
        elif "event" in message:
            # Nobody else is left to tell. A terminal or pipe that takes nothing must not hold up the guard.
            text = f"skyseg field guard (process {os.getpid()}): {message['event']['message']}\n".encode()
            threading.Thread(target=_print, args=(text,), daemon=True).start()

    return tell


def _print(text: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text)


def _leave_pipe(gone_s: float) -> None:
    """Who reads the service's messages through a pipe, waits for its end: go on in a file, some time after it."""
    if time.monotonic() - gone_s > _PIPE_S and stat.S_ISFIFO(os.fstat(2).st_mode):
        path = Path(tempfile.gettempdir()) / f"skyseg-field-guard-{os.getpid()}.log"
        _print(f"skyseg field guard (process {os.getpid()}): goes on in {path}\n".encode())
        with contextlib.suppress(OSError):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
