"""The virtual microscope of the twin: sample, magnet and Kerr camera in a process of their own.

`python -m simulator.microscope`, started by the camera driver `twin`, takes its settings as a line of JSON on standard
input, answers with a line on standard output, and from then on serves a loopback port. Whoever connects says who he is
with a line of JSON:

    {"role": "camera"}   one at a time. Sends a byte for every message that it is ready to take, and receives messages:
                         4 bytes (little endian) with the length of a head in JSON, the head, and `bytes` of pixels.
    {"role": "field"}    any number. Sends lines of JSON, `{"do": "set", "volts": 1.5}`, `{"do": "read"}`,
                         `{"do": "pulse", "in_plane_mT": 40, "seconds": 0.5}`, and receives a line for each.

A process of its own, because the simulation must not share the interpreter's lock with the analysis, and because a
service that is killed must leave the magnet alive, so that the field guard can still bring it to zero: the process
ends once the camera's connection and every field connection are gone.
"""

import contextlib
import json
import math
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from realtime_skyseg.errors import SettingsError, SkysegError
from realtime_skyseg.records import Image
from realtime_skyseg_simulator.faults import (
    CameraDies,
    CameraGone,
    Defocus,
    DriftJump,
    FrozenFrames,
    Lamp,
    LateFrames,
    LostFrames,
    MagnetIgnores,
    MagnetOvershoots,
    ProcessDies,
    Schedule,
    TornFrames,
)
from realtime_skyseg_simulator.kerr_camera import KerrCamera
from realtime_skyseg_simulator.kinds import open_sample
from realtime_skyseg_simulator.magnet import TwinMagnet
from realtime_skyseg_simulator.patterns import edge_of
from realtime_skyseg_simulator.samples import class_mask, truth_of
from realtime_skyseg_simulator.truth_file import TruthFile
from realtime_skyseg_simulator.twin_settings import TwinSettings

#: How long the camera may take to connect.
_CONNECT_S = 20.0
#: A computer that falls behind by no more than this makes frames late; by more, some are lost.
_LATE_PERIODS = 4.0
#: A frame covers at most so many periods of the sample's time: a computer that cannot keep up slows the sample down.
_LONGEST_PERIODS = 2.0
#: Largest request of a field connection.
_LINE_BYTES = 4096


def main() -> None:
    """Be a microscope until nobody is connected any more."""
    # Ctrl-C and a closed terminal are the service's matter.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cv2.setNumThreads(1)
    try:
        settings = TwinSettings.model_validate_json(sys.stdin.readline())
        server = _bind(settings.port)
        scope = Microscope(settings)
        server.listen()  # not before there is something to answer
    except SkysegError as error:
        _say({"refused": type(error).__name__, "message": str(error)})
        return
    _say({"port": server.getsockname()[1], "dtype": str(scope.dtype), "truth": str(scope.truth_path)})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the other end is closed from now on
    Connections(server, scope).serve()


# --- what is simulated ---


@dataclass(slots=True)
class Exposure:
    """An image and when it was taken."""

    image: Image
    number: int
    camera_ns: int
    late_s: float = 0.0


class Microscope:
    """Sample, magnet and Kerr camera. The magnet may be used by any thread, the rest by one.

    Raises:
        SettingsError: a part cannot be made with these settings, or the truth cannot be written.
    """

    def __init__(self, settings: TwinSettings) -> None:
        self.settings = settings
        view = (settings.height_px, settings.width_px)
        try:
            self.sample = open_sample(settings.sample, *view)
        except SettingsError as error:
            raise SettingsError(f"sample.{error}") from error
        self.camera = KerrCamera(self.sample.shape, view, settings.seed, settings.optics, self.sample.element)
        self.magnet = TwinMagnet(settings.magnet, settings.seed + 1, time.monotonic())
        difference = np.dtype(np.uint8 if settings.optics.bits == 8 else np.uint16)
        self.dtype = self.camera.dtype if settings.image == "raw" else difference
        self.sample_s = 0.0  # the sample's time
        self._edge = None if self.sample.element is None else edge_of(self.sample.element)
        self._truth = TruthFile(settings) if settings.truth else None
        self.truth_path = self._truth.path if self._truth else None
        # Field in mT that the sample saw last, out of plane and in plane.
        self._seen = (self.magnet.field_mT(time.monotonic()), 0.0)

    def advance(self, seconds: float, from_s: float, to_s: float) -> None:
        """Let time pass in the sample, while the magnet does what it did between two times of the monotonic clock."""
        if seconds > 0:
            for part_s, field_mT, in_plane_mT in self.magnet.parts(seconds, self.sample_s, from_s, to_s):
                self.sample.advance(part_s, field_mT, in_plane_mT)
                self._seen = (field_mT, in_plane_mT)
            self.sample_s += seconds

    def expose(self, number: int, camera_ns: int) -> Exposure:
        """Take an image, and note the truth."""
        magnetisation = self.sample.magnetisation()
        raw = self.camera.take(magnetisation)
        if self._truth:
            mask = self.camera.take_truth(class_mask(magnetisation, self.sample.element, self._edge))
            values = (number, camera_ns, self.sample_s, *self._seen, *self.camera.shift_px)
            self._truth.add(values, truth_of(mask))
        return Exposure(raw if self.settings.image == "raw" else self.camera.difference(raw), number, camera_ns)

    def note_set(self, time_ns: int, volts: float) -> None:
        """Note in the truth that the supply was told something. For any thread."""
        if self._truth:
            self._truth.sets.append((time_ns, volts))

    def close(self) -> None:
        """Finish the truth. Safe to call twice."""
        if self._truth:
            self._truth.close(self.magnet.field_mT(time.monotonic()))


# --- who is connected ---


class CameraLine:
    """The way of the images to the service: a bounded queue and a thread that sends as much as the service takes."""

    def __init__(self, connection: socket.socket, room: int) -> None:
        self._connection = connection
        self._room = room
        self._items: deque[tuple[float, dict[str, Any], Image | None]] = deque()
        self._credit = 0
        self._changed = threading.Condition()
        self.open = True
        for work in (self._take_credit, self._send):
            threading.Thread(target=work, daemon=True).start()

    def put(self, head: dict[str, Any], image: Image | None = None, wait: bool = True, late_s: float = 0.0) -> bool:
        """Send a message, not before `late_s` from now. False where the camera has gone, or there is no room."""
        with self._changed:
            while self.open and len(self._items) >= self._room:
                if not wait:
                    return False
                self._changed.wait()
            self._items.append((time.monotonic() + late_s, head, image))
            self._changed.notify_all()
            return self.open

    def wait_for_first(self) -> bool:
        """Wait until the service asks for its first message. False where it has gone instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._credit or not self.open)
            return self.open

    def wait_gone(self, timeout_s: float | None = None) -> bool:
        """Wait until the service has gone. False where it is still there."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.open, timeout_s)

    def _take_credit(self) -> None:
        with contextlib.suppress(OSError):
            while asked := self._connection.recv(4096):
                with self._changed:
                    self._credit += len(asked)
                    self._changed.notify_all()
        self._close()

    def _send(self) -> None:
        try:
            while True:
                with self._changed:
                    while self.open and not (self._items and self._credit and self._due_s() <= 0):
                        self._changed.wait(self._due_s() if self._items and self._credit else None)
                    if not self.open:
                        return
                    _, head, image = self._items.popleft()
                    self._credit -= 1
                    self._changed.notify_all()
                if head["kind"] == "process_dies":
                    os._exit(1)
                if head["kind"] == "camera_dies":
                    self._close()
                    return
                content = json.dumps({**head, "bytes": 0 if image is None else image.nbytes}).encode()
                self._connection.sendall(struct.pack("<I", len(content)) + content)
                if image is not None:
                    self._connection.sendall(image.data)
        except OSError:
            self._close()

    def _due_s(self) -> float:
        return self._items[0][0] - time.monotonic()

    def _close(self) -> None:
        with self._changed:
            self.open = False
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Connections:
    """Takes whoever connects, and runs the camera."""

    def __init__(self, server: socket.socket, scope: Microscope) -> None:
        self._server = server
        self._scope = scope
        self._camera: CameraLine | None = None
        self._fields = 0
        self._changed = threading.Condition()

    def serve(self) -> None:
        """Give images until the camera's connection is gone, then wait for the fields' to go."""
        threading.Thread(target=self._accept, daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self._camera, _CONNECT_S)
        try:
            if self._camera:
                run(self._scope, self._camera)
                self._camera.wait_gone()
            with self._changed:
                self._changed.wait_for(lambda: not self._fields)
        finally:
            self._scope.close()

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._welcome, args=(connection,), daemon=True).start()

    def _welcome(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            first = b""
            while not first.endswith(b"\n") and len(first) < _LINE_BYTES:
                # Byte by byte: what follows may be the camera's.
                first += connection.recv(1) or b"\n"
            role = json.loads(first)["role"]
            if role == "camera" and self._camera is None:
                room = self._scope.settings.buffer_frames if self._scope.settings.rate_hz else 1
                with self._changed:
                    self._camera = CameraLine(connection, room)
                    self._changed.notify_all()
                return
            if role == "field":
                self._serve_field(connection)
        connection.close()

    def _serve_field(self, connection: socket.socket) -> None:
        with self._changed:
            self._fields += 1
        try:
            with connection.makefile("rb") as requests:
                _reply(connection, self._scope.settings.magnet.model_dump())
                while line := requests.readline(_LINE_BYTES):
                    _reply(connection, self._answer(line))
        finally:
            with self._changed:
                self._fields -= 1
                self._changed.notify_all()

    def _answer(self, line: bytes) -> dict[str, Any]:
        magnet, now_s = self._scope.magnet, time.monotonic()
        try:
            match json.loads(line):
                case {"do": "set", "volts": float(volts)} if abs(volts) <= magnet.settings.limit_V:
                    magnet.set(volts, now_s)
                    self._scope.note_set(time.time_ns(), volts)
                    return {}
                case {"do": "read"}:
                    return {"volts": magnet.read(now_s)}
                case {"do": "pulse", "in_plane_mT": float(height), "seconds": float(seconds)} if (
                    abs(height) <= magnet.settings.in_plane_limit_mT and 0 <= seconds <= 60
                ):
                    magnet.pulse(height, seconds)
                    return {}
        except ValueError:
            pass
        return {"error": f"the twin microscope refuses {line!r}"}


def run(scope: Microscope, line: CameraLine) -> None:
    """Take images and send them until the settings' last, or until the camera's connection is gone."""
    if not line.wait_for_first():
        return
    try:
        _Run(scope, line).run()
    except Exception as error:
        line.put({"kind": "error", "message": f"the twin microscope failed: {error!r}"})
        raise


class _Run:
    def __init__(self, scope: Microscope, line: CameraLine) -> None:
        self._scope = scope
        self._line = line
        self._faults = Schedule(scope.settings.faults)
        self._last: Image | None = None  # what was shown last, for frozen frames
        self._torn: list[Exposure] = []  # waits for the next one
        self._gone = False

    def run(self) -> None:
        scope, line, settings = self._scope, self._line, self._scope.settings
        period_s = settings.period_s
        start_s = before_s = time.monotonic()
        tick = number = 0
        while line.open and (settings.frames is None or number < settings.frames):
            now_s = time.monotonic()
            if settings.rate_hz:
                behind = (now_s - start_s) / period_s - tick
                missed = math.floor(behind) if behind > _LATE_PERIODS else 0
                tick += missed
                number += 0 if self._gone else missed
                if settings.frames is not None and number >= settings.frames:
                    break
                due_s = start_s + tick * period_s
                if due_s > now_s and line.wait_gone(due_s - now_s):
                    break
                passed_s = min(due_s - before_s, _LONGEST_PERIODS * period_s)
                camera_ns = time.time_ns() - round((time.monotonic() - due_s) * 1e9)
            else:
                due_s, passed_s = now_s, period_s if tick else 0.0
                camera_ns = round((scope.sample_s + passed_s) * 1e9)
            scope.advance(passed_s, before_s, due_s)
            before_s = due_s
            tick += 1
            number += self._take(number, camera_ns)
        for exposure in self._torn:
            self._hand_over(exposure)
        line.put({"kind": "ended"})

    def _take(self, number: int, camera_ns: int) -> int:
        """Take and send the image of this number, faults included. How many numbers that uses up: 0 or 1."""
        scope, faults = self._scope, self._faults
        faults.move_on(number, scope.sample_s)
        camera, magnet = scope.camera, scope.magnet
        camera.lamp = math.prod(fault.brightness for fault in faults.acting(Lamp))
        camera.defocus_px = math.hypot(*(fault.px for fault in faults.acting(Defocus)))
        jumps = [fault.px for fault in faults.acting(DriftJump)]
        camera.drift_px = (sum(down for down, _ in jumps), sum(right for _, right in jumps))
        magnet.ignores = bool(faults.acting(MagnetIgnores))
        magnet.gain = math.prod(1 + fault.by for fault in faults.acting(MagnetOvershoots))
        whole = bool(faults.acting(ProcessDies))
        if whole or faults.acting(CameraDies):
            # In line with the images: those that were taken still come.
            if whole:
                scope.close()
            self._line.put({"kind": "process_dies" if whole else "camera_dies"})
            self._line.wait_gone()
            return 0
        gone, was_gone = bool(faults.acting(CameraGone)), self._gone
        self._gone = gone
        if gone != was_gone:
            kind, message = ("camera_gone", "the camera is gone") if gone else ("camera_back", "the camera is back")
            self._line.put({"kind": "notice", "notice": kind, "message": f"twin: {message}"})
        if gone:
            return 0
        exposure = scope.expose(number, camera_ns)
        if faults.acting(FrozenFrames) and self._last is not None:
            exposure.image = self._last
        for torn in self._torn:
            half = torn.image.shape[0] // 2
            torn.image = torn.image.copy()
            torn.image[half:] = exposure.image[half:]
            self._hand_over(torn)
        self._torn = []
        self._last = exposure.image
        exposure.late_s = sum(fault.by_s for fault in faults.acting(LateFrames))
        if faults.acting(TornFrames):
            self._torn.append(exposure)
        elif not faults.acting(LostFrames):
            self._hand_over(exposure)
        return 1

    def _hand_over(self, exposure: Exposure) -> None:
        head = {"kind": "frame", "number": exposure.number, "camera_ns": exposure.camera_ns}
        wait = not self._scope.settings.rate_hz
        self._line.put(head, exposure.image, wait, exposure.late_s)


def _bind(port: int) -> socket.socket:
    server = socket.socket()
    if os.name == "posix":
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("127.0.0.1", port))
    except OSError as error:
        server.close()
        raise SettingsError(
            f"port: {port} cannot be used: {os.strerror(error.errno or 0)}; is another twin running? "
            "allowed: a free port, the same in camera and field"
        ) from error
    return server


def _reply(connection: socket.socket, answer: dict[str, Any]) -> None:
    connection.sendall(json.dumps(answer).encode() + b"\n")


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
