"""Mode `attach` of the camera driver `micromanager`: a process beside it that only looks."""

import json
import secrets
import subprocess
import sys
import time
from importlib.metadata import version

import zmq

from realtime_skyseg.errors import CameraError
from realtime_skyseg_drivers.micromanager_own import missing_package
from realtime_skyseg_drivers.micromanager_picture import FIRST_RETRY_S, LONGEST_RETRY_S, Gone, Picture, read_picture

#: A bridge call, or a start of the peeking process, that takes longer hangs.
_HANG_S, _START_S = 1.5, 20.0
#: Mode `attach`: how long the constructor waits for an image of a live view that runs.
_FIRST_IMAGE_S = 5.0
#: Mode `attach`: images that wait here while the service begins another run file.
_WAITING_IMAGES = 64


class Peek:
    """Images of a live view that somebody else runs, by way of the process `realtime_skyseg_drivers.micromanager_peek`.

    That process is ended when it falls silent for `_HANG_S`, and begun anew.
    """

    def __init__(self, port: int) -> None:
        try:
            import mmpycorex  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing_package(error) from error
        self._port = port
        self.description: dict[str, str | int | float | bool] = {"mode": "attach"}
        self._retry_at_s = 0.0  # monotonic
        self._retry_s = FIRST_RETRY_S
        self._process: subprocess.Popen[bytes] | None = None
        self._token = b""
        self._silent_after_s = 0.0  # monotonic
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, _WAITING_IMAGES)
        self._address = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"

    def first(self) -> Picture:
        """An image, to know its size. The process is ended: nobody takes its images until the run begins."""
        try:
            deadline = time.monotonic() + _START_S
            while time.monotonic() < deadline:
                try:
                    picture = self.next(0.1)
                except Gone as gone:
                    raise CameraError(f"no live images: {gone}") from gone
                if picture:
                    self._end_process()
                    return picture
                if "camera" in self.description:
                    deadline = min(deadline, time.monotonic() + _FIRST_IMAGE_S)
            raise CameraError("no live images: Micro-Manager says that its camera runs, but there is no image")
        except BaseException:
            self.close()
            raise

    def next(self, timeout_s: float) -> Picture | None:
        """See `Source`."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            if self._process is None and now >= self._retry_at_s:
                self._start_process()
            due = deadline if self._process else min(deadline, self._retry_at_s)
            if not self._socket.poll(max(0, round(1000 * (due - now)))):
                self._check_process()
                if time.monotonic() >= deadline:
                    return None
                continue
            token, head, pixels = self._socket.recv_multipart(copy=False)
            if token.bytes != self._token:
                continue  # of a process that was ended
            self._silent_after_s = time.monotonic() + _HANG_S
            content = json.loads(head.bytes)
            match content.pop("kind"):
                case "image":
                    self._retry_s = FIRST_RETRY_S
                    return read_picture(content["tags"], pixels.buffer)
                case "gone":
                    raise Gone(content["message"])
                case "info":
                    versions = {"pycromanager": version("pycromanager")}
                    self.description = {"mode": "attach", "port": self._port, **versions, **content}

    def close(self) -> None:
        """See `Source`."""
        self._end_process()
        self._context.destroy(linger=0)

    def _start_process(self) -> None:
        self._token = secrets.token_hex(16).encode()
        # -P: nothing in the working directory stands in for a module. Its errors come as messages; what the bridge
        # prints besides is noise.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "realtime_skyseg_drivers.micromanager_peek",
             str(self._port), self._address, self._token.decode()],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._silent_after_s = time.monotonic() + _START_S

    def _check_process(self) -> None:
        if self._process is None:
            return
        ended = self._process.poll() is not None
        if ended or time.monotonic() > self._silent_after_s:
            self._end_process()
            self._retry_at_s = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
            reason = "the connection broke off" if ended else f"a call has not returned for {_HANG_S:g} s"
            raise Gone(f"Micro-Manager at port {self._port}: {reason}")

    def _end_process(self) -> None:
        if self._process:
            assert self._process.stdin is not None
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process = None
        self._token = b""
