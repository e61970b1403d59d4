"""The process that looks at the images of an open Micro-Manager, for mode `attach` of the driver `micromanager`.

A process, because a call through Micro-Manager's bridge to a server that hangs or has died never returns, and neither
does the destructor of anything it ever handed out: only the end of a process ends it. `micromanager` starts
it, listens to it on a loopback socket, and kills it when it falls silent. It ends by itself when its standard input
closes, which is when whoever started it has gone.

It only ever asks: how many images wait, which is the last, which came a few before it, does the sequence run. What
takes, clears, starts, stops or sets something belongs to the person at the microscope.

A message has three parts: the token, JSON with the key `kind`, and the pixels of an image or nothing.

    alive    nothing new                                      info     what the camera is: strings and numbers
    gone     there are no images, and `message` says why      image    `tags` of the image
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import types
import warnings
from typing import Any

import pyjavaz.bridge
import zmq
from mmpycorex import Core

#: Between two looks for a new image; each costs a round trip, and nothing announces an image.
_LOOK_S = 0.001
#: Longest time between two signs of life, calls apart.
_ALIVE_S = 0.25
#: After this long without a new image it is asked whether the sequence still runs.
_QUIET_S = 0.3
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.2, 2.0
#: A gap of at most so many images is filled, at most once in this time. More would make an overload worse.
_FILL_IMAGES, _FILL_EVERY_S = 5, 0.5
#: What the service needs of an image's tags.
_TAGS = ("ImageNumber", "Height", "Width", "PixelType", "ROI-X-start", "ROI-Y-start", "TimeReceivedByCore")


class Report:
    """The way to the service. An image that it does not take at once is dropped: its number will be missing."""

    def __init__(self, address: str, token: str) -> None:
        self._token = token.encode()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 2 + _FILL_IMAGES)
        self._socket.connect(address)
        self._next_alive = 0.0

    def send(self, kind: str, pixels: Any = b"", **content: Any) -> None:
        """Send a message, unless the service has not taken those before."""
        self._next_alive = time.monotonic() + _ALIVE_S
        with contextlib.suppress(zmq.Again):
            message = json.dumps({"kind": kind, **content}).encode()
            self._socket.send_multipart([self._token, message, pixels], zmq.NOBLOCK)

    def alive(self) -> None:
        """Give a sign of life, if one is due."""
        if time.monotonic() >= self._next_alive:
            self.send("alive")

    def close(self) -> None:
        """Send what is on its way, and release the socket."""
        self._context.destroy(linger=1000)


def main(port: int, address: str, token: str) -> None:
    """Send images until something goes wrong, and then say what."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's matter
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The bridge leaves a handler for the end of the process behind with every image, at 20 ms 1.6 GB a day. This
    # process ends without them.
    pyjavaz.bridge.atexit = types.SimpleNamespace(register=lambda _: None)
    report = Report(address, token)
    try:
        _wait_for_server(port, report)
        core = _connect(port, report)
        _peek(core, report)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:300]
        report.send("gone", message=f"the server of Micro-Manager at port {port} fails: {reason}")
    report.close()


def _wait_for_server(port: int, report: Report) -> None:
    """The bridge itself would burn a second of CPU time on each try."""
    retry_s = _FIRST_RETRY_S
    while True:
        report.alive()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
        except OSError:
            report.send(
                "gone",
                message=f"nothing listens at 127.0.0.1:{port}; in Micro-Manager tick Tools > Options > "
                f"'Run pycro-manager server on port {port}', or start it",
            )
        else:
            return
        end = time.monotonic() + retry_s
        while time.monotonic() < end:
            report.alive()
            time.sleep(min(_ALIVE_S, max(0.0, end - time.monotonic())))
        retry_s = min(2 * retry_s, _LONGEST_RETRY_S)


def _connect(port: int, report: Report) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        core = Core(port=port, timeout=1000)
    for warning in caught:
        if "Java ZMQ server version" in str(warning.message):
            theirs = str(warning.message).partition("server version: ")[2].split("\n")[0]
            needed = pyjavaz.bridge.Bridge._EXPECTED_ZMQ_SERVER_VERSION
            raise RuntimeError(
                f"it speaks version {theirs} of the bridge, and the installed pycromanager {needed}; install a newer "
                "Micro-Manager where its version is the lower one, else a newer pycromanager"
            )
    camera = core.get_camera_device()
    if not camera:
        raise RuntimeError("no camera is configured")
    report.send(
        "info",
        camera=camera,
        adapter=f"{core.get_device_library(camera)}/{core.get_device_name(camera)}",
        micromanager=f"{core.get_version_info()}, {core.get_api_version_info()}",
        exposure_ms=core.get_exposure(),
    )
    return core


def _peek(core: Any, report: Report) -> None:
    waiting = last = None
    new_s = 0.0  # when there last was something new
    fill_s = 0.0  # when a gap may be filled again
    while True:
        report.alive()
        count = core.get_remaining_image_count()
        if count and count != waiting and (new_s or core.is_sequence_running()):
            waiting, new_s = count, time.monotonic()
            try:
                image = core.get_last_tagged_image()
            except Exception:
                # The buffer was emptied between the two calls. If it is more, the next call says so.
                continue
            tags = image.tags  # each look at an attribute is a transfer
            number = _number(tags)
            if number is not None and number != last:
                pixels = image.pix
                if last is not None and new_s >= fill_s and 1 < number - last <= _FILL_IMAGES + 1:
                    fill_s = new_s + _FILL_EVERY_S
                    _fill(core, report, last, number)
                report.send("image", pixels, tags=_needed(tags))
                last = number
            continue
        if time.monotonic() - new_s > _QUIET_S:
            if not core.is_sequence_running():
                report.send("gone", message="Micro-Manager takes no images; press Live there")
                waiting = last = None
                new_s = 0.0
                time.sleep(_QUIET_S / 2)
            else:
                new_s = time.monotonic()
        time.sleep(_LOOK_S)


def _fill(core: Any, report: Report, last: int, number: int) -> None:
    """Send the images between two numbers, as far as they are still there."""
    ahead = 0  # images that came since the one with `number`
    for wanted in range(last + 1, number):
        for _ in range(2):
            try:
                image = core.get_n_before_last_tagged_image(number - wanted + ahead)
                tags = image.tags
            except Exception:
                # Micro-Manager has emptied its buffer, or is too old to be asked this.
                return
            found = _number(tags)
            if found == wanted:
                report.send("image", image.pix, tags=_needed(tags))
                break
            if found is None or found < wanted:
                return
            ahead += found - wanted


def _number(tags: dict[str, Any]) -> int | None:
    return int(tags["ImageNumber"]) if "ImageNumber" in tags else None


def _needed(tags: dict[str, Any]) -> dict[str, Any]:
    return {name: tags[name] for name in _TAGS if name in tags}


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    os._exit(0)
