"""The camera of the twin, which starts the virtual microscope: the camera driver `twin`."""

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np

from realtime_skyseg import errors
from realtime_skyseg.devices import CameraEnded, CameraNotice, DriverSettings
from realtime_skyseg.errors import CameraError
from realtime_skyseg.records import Frame
from realtime_skyseg_simulator.twin_settings import TwinSettings

#: A message that has begun has to come within this time.
_HANG_S = 5.0
#: How long the microscope may take to end once it is left.
_CLOSE_S = 5.0
#: Messages that the microscope may send ahead: in real time, so that none waits for a round trip.
_AHEAD = 4

_AS_FAST = "as fast as frames are taken; the magnet stays in real time"
_REAL_TIME = "real time; where the computer cannot keep up, frames come late, then some are lost: gaps in the numbers"


class TwinCamera:
    """The camera of a virtual microscope (`microscope.py`), as a `realtime_skyseg.devices.Camera`.

    The first frame is exposed at the first `read`.
    """

    Settings: ClassVar[type[DriverSettings]] = TwinSettings

    def __init__(self, settings: TwinSettings) -> None:
        """Start the microscope.

        Raises:
            SettingsError: it cannot be made with these settings.
            CameraError: it does not start.
        """
        self.waits = settings.rate_hz is None
        self.shape = (settings.height_px, settings.width_px)
        self.rate_hz = settings.rate_hz
        self.clock = (
            "time of the simulated sample since its first frame"
            if self.waits
            else "Unix time, simulated: middle of the exposure"
        )
        self._process = _start(settings)
        try:
            assert self._process.stdout is not None
            with self._process.stdout as said:
                started = json.loads(said.readline() or "{}")
            if "port" not in started:
                kind = getattr(errors, started.get("refused", ""), CameraError)
                raise kind(started.get("message", "the twin microscope did not start"))
            self._port: int = started["port"]
            self.dtype: np.dtype[Any] = np.dtype(started["dtype"])
            self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=_HANG_S)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(b'{"role": "camera"}\n')
        self._asked = False
        self.description: dict[str, str | int | float | bool] = {
            "kind": "twin: simulated sample, magnet and Kerr microscope",
            "synthetic": True,
            "sample": settings.sample.kind,
            "image": settings.image,
            "sample_seed": settings.sample.seed,
            "seed": settings.seed,
            "port": self._port,
            "pace": _AS_FAST if self.waits else _REAL_TIME,
        }
        if settings.truth:
            self.description["truth"] = started["truth"]

    def read(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame, at most `timeout_s`; None when none came. Raises as `Camera.read`."""
        try:
            if not self._asked:
                self._connection.sendall(b"+" * (1 if self.waits else _AHEAD))
                self._asked = True
            if not select.select([self._connection], [], [], max(timeout_s, 0.0))[0]:
                return None
            (length,) = struct.unpack("<I", self._receive(4))
            head = json.loads(self._receive(length))
            image = np.empty(self.shape, self.dtype) if head["bytes"] else None
            if image is not None:
                self._fill(image.data.cast("B"))
            self._connection.sendall(b"+")
        except (OSError, ValueError) as error:
            raise CameraError(f"the camera of the twin has gone: {error}") from error
        match head["kind"]:
            case "frame":
                assert image is not None
                return Frame(image, head["number"], head["camera_ns"])
            case "notice":
                raise CameraNotice(head["notice"], head["message"])
            case "ended":
                raise CameraEnded("the twin has given its last frame")
            case _:
                raise CameraError(head["message"])

    def close(self) -> None:
        """Leave the microscope, which ends unless its magnet is still in use. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, place: memoryview) -> None:
        while place:
            got = self._connection.recv_into(place)
            if not got:
                raise OSError("the connection broke off")
            place = place[got:]


def _start(settings: TwinSettings) -> "subprocess.Popen[bytes]":
    """The microscope, which neither Ctrl-C nor the end of the terminal or of this process reaches: its magnet may have
    to be made safe.
    """
    own: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    # -P: nothing in the working directory stands in for a module.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "realtime_skyseg_simulator.microscope"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        **own,
    )
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as way:
        way.write(settings.model_dump_json().encode() + b"\n")
    return process
