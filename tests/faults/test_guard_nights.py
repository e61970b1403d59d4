"""Nights of `field_world` again, with real processes: a supply on a TCP socket behind PyVISA, guards and services that
are killed, stopped and continued.

`SKYSEG_NIGHTS` says how many (300, in some 20 minutes on 2 cores; the default of CI is none of them).
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from field_world import LIMIT_MT, SLEW, SUPPLY_FAULTS, TOLERANCE_MT, Night

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kills by signal, and looks into /proc"),
]

#: What a loaded computer may add between two values on their way to the supply.
LATE_S = 0.02

SUPPLY = {
    "unit": "mT", "range": [-100, 100], "identify": "*IDN?", "expect": "NIGHT", "set": "CURR {value:.4f}",
    "read": "MEAS?", "error": "SYST:ERR?", "timeout_s": 0.3,
}  # fmt: skip

SERVICE = """
import sys, json, threading
from realtime_skyseg.config import FieldSettings
from realtime_skyseg.field import FieldGuard
from realtime_skyseg.errors import FieldError

field = FieldGuard(FieldSettings.model_validate(json.loads(sys.argv[1])))
print("up", flush=True)

def ask(do):
    try:
        do()
    except FieldError:
        pass

for line in sys.stdin:
    name, *values = line.split()
    match name:
        case "set":
            do = lambda: field.set_mT(float(values[0]))
        case "safe":
            do = lambda: field.safe(wait_s=0)
        case "stand_still":
            do = field.stand_still
        case "demagnetise":
            do = lambda: field.demagnetise(30, 0.5, 5, 0)
        case "close":
            break
    threading.Thread(target=ask, args=(do,), daemon=True).start()
field.close()
print(json.dumps({"fault": field.fault, "events": [event.kind for event in field.notices()]}), flush=True)
"""


class SocketSupply:
    """A supply on a TCP socket that misbehaves as it is told. Owns its threads and sockets until `close`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._lock, self._one = threading.Lock(), threading.Lock()
        self.output = self.last_read = 0.0
        self.log: list[tuple[float, float, bool]] = []  # s, mT, and whether values were ignored before it
        self.until: dict[str, float] = {}
        self._ignored = False
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._listen, name="supply")]
        self._threads[0].start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), name="supply")
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        unread = b""
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(4096):
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    with self._one:  # one after the other, whichever way it came
                        answer = self._answer(line.decode().strip())
                    if answer is not None:
                        connection.sendall(answer.encode() + b"\n")

    def _hits(self, name: str) -> bool:
        with self._lock:
            until_s = self.until.get(name, 0.0)
            if until_s == float("inf"):
                del self.until[name]
                return True
            return time.monotonic() < until_s

    def _answer(self, line: str) -> str | None:
        if line == "*IDN?":
            return "NIGHT"
        if line == "SYST:ERR?":
            if self._refused:
                return '-222,"out of range"'
            return None if self._hits("set_fails_after") or self._hits("set_fails_once") else '0,"no error"'
        if line == "MEAS?":
            return self._read()
        self._set(float(line.removeprefix("CURR ")))
        return None

    _refused = False

    def _set(self, value: float) -> None:
        if self._hits("set_hangs"):
            time.sleep(self._random.uniform(0.1, 1.0))
        self._refused = self._hits("set_fails_before")
        if self._refused:
            return
        if self._hits("set_is_ignored"):
            self._ignored = True
            return
        with self._lock:
            if value != self.output:
                self.log.append((time.monotonic(), value, self._ignored))
            self.output, self._ignored = value, False

    def _read(self) -> str | None:
        if self._hits("read_hangs"):
            time.sleep(self._random.uniform(0.1, 0.6))
        if self._hits("read_fails"):
            return None
        if self._hits("read_nan"):
            return self._random.choice(["nan", "9.91E37"])
        if self._hits("read_jumps"):
            return f"{self._random.uniform(-100, 100):.4f}"
        if self._hits("read_slips"):
            return self._random.choice(["0", "1", "-99", "99", "1e9"])
        if self._hits("read_stands_still"):
            return f"{self.last_read:.4f}"
        self.last_read = self.output
        return f"{self.output:.4f}"


def guards_of(service: int) -> list[int]:
    """Processes of guards that this service has started and that still run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if b"realtime_skyseg.field" in (folder / "cmdline").read_bytes():
                    parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                    if int(parent) == service:
                        found.append(int(folder.name))
    return found


@contextlib.contextmanager
def running(seed: int, folder: Path) -> Iterator[tuple[SocketSupply, "subprocess.Popen[str]", dict[str, Any]]]:
    supply = SocketSupply(seed)
    (folder / f"{seed}.yaml").write_text(yaml.safe_dump(SUPPLY))
    night = Night(seed)
    tree = {
        "driver": "visa", "address": f"TCPIP::127.0.0.1::{supply.port}::SOCKET", "library": "@py",
        "supply": str(folder / f"{seed}.yaml"), "limit_mT": [-LIMIT_MT, LIMIT_MT], "slew_mT_per_s": SLEW,
        "tolerance_mT": TOLERANCE_MT, "settle_s": night.settings.settle_s + 0.1, "read_every_ms": 20,
        "heartbeat_s": 0.5, "safe": night.settings.safe,
    }  # fmt: skip
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, json.dumps(tree)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SKYSEG_NIGHT": str(supply.port)},
    )  # fmt: skip
    try:
        yield supply, service, tree
    finally:
        service.kill()
        service.wait()
        supply.close()


def real_night(seed: int, folder: Path) -> str:
    """Play the schedule of `Night(seed)`; what broke, one sentence, or nothing."""
    night = Night(seed)
    random_ = random.Random(seed)
    with running(seed, folder) as (supply, service, tree):
        assert service.stdin is not None
        assert service.stdout is not None
        with service.stdin, service.stdout:
            service.stdout.readline()
            begun, stopped, killed, promised = time.monotonic(), False, False, True
            for at_s, name in reversed(night.faults):
                time.sleep(max(0.0, begun + (at_s - 100.0) * 1.5 - time.monotonic()))
                guards = guards_of(service.pid)
                if killed:
                    break
                match name:
                    case "guard_killed":
                        for pid in guards[:1]:
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)
                    case "guard_hangs" | "guard_hangs_for_long":
                        for pid in guards[:1]:
                            hang(pid, random_.uniform(0.1, 3.0))
                    case "service_killed":
                        service.kill()
                        killed, promised = True, bool(guards)  # both dead at once: nobody acts
                    case "service_stopped":
                        service.send_signal(signal.SIGSTOP)
                        stopped = True
                        threading.Timer(random_.uniform(0.05, 1.0), service.send_signal, [signal.SIGCONT]).start()
                    case "wall_clock_jumps":
                        pass
                    case _ if name in SUPPLY_FAULTS:
                        longest_s = SUPPLY_FAULTS[name]
                        lasts_s = random_.uniform(0.0, longest_s) if longest_s else float("inf")
                        supply.until[name] = time.monotonic() + lasts_s
                    case _:
                        target = random_.choice([50.0, -50.0, 79.0, 20.0, 0.0])
                        with contextlib.suppress(BrokenPipeError):
                            service.stdin.write(f"{name} {target}\n")
                            service.stdin.flush()
            lines = []
            if not killed:
                lines = service.stdout.read().splitlines()
                service.wait(60)
            at_end = supply.output
            deadline = time.monotonic() + 15
            while (left := named(supply.port)) and time.monotonic() < deadline:
                time.sleep(0.02)
        if left:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return f"night {seed}: the guard never leaves; the field is at {supply.output:g} mT"
        safe = tree["safe"] if promised else "hold"
        return judged(seed, supply, safe, None if killed or (stopped and not lines) else lines, at_end)


def judged(seed: int, supply: SocketSupply, safe: str, lines: list[str] | None, at_end: float) -> str:
    """What broke."""
    before_s, before = -float("inf"), 0.0
    for now_s, value, ignored in supply.log:
        if abs(value) > LIMIT_MT:
            return f"night {seed}: {value:g} mT is outside the limits"
        if not ignored and abs(value - before) > SLEW * (now_s - before_s + LATE_S):
            return f"night {seed}: a step from {before:g} to {value:g} mT, {now_s - before_s:.4f} s after the last"
        before_s, before = now_s, value
    if safe == "zero" and abs(supply.output) > TOLERANCE_MT:
        return f"night {seed}: the last guard leaves the field at {supply.output:g} mT"
    if lines is not None:
        end = json.loads(lines[-1]) if lines else {"fault": ""}
        if safe == "zero" and abs(at_end) > TOLERANCE_MT and not end["fault"]:
            return f"night {seed}: the run ends without a word at {at_end:g} mT"
    return ""


def named(port: int) -> list[int]:
    """Processes of guards that have the supply at this port."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if b"realtime_skyseg.field" in (folder / "cmdline").read_bytes() and has(folder, port):
                    found.append(int(folder.name))
    return found


def has(folder: Path, port: int) -> bool:
    """The process says in its environment that it is of the night at this port."""
    return f"SKYSEG_NIGHT={port}".encode() in (folder / "environ").read_bytes().split(b"\0")


def hang(pid: int, seconds: float) -> None:
    """Stop a process for a while."""

    def go_on() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    threading.Timer(seconds, go_on).start()


def test_three_hundred_nights_with_real_processes(tmp_path: Path) -> None:
    pytest.importorskip("pyvisa_py")
    nights = random.Random(16).sample(range(100_000), int(os.environ.get("SKYSEG_NIGHTS", "300")))
    with ThreadPoolExecutor(4) as pool:
        found = [sentence for sentence in pool.map(lambda seed: real_night(seed, tmp_path), nights) if sentence]
    assert "\n".join(found) == ""
