"""A camera of Micro-Manager: the driver `micromanager`.

Mode `own`: the service has the camera to itself, through pycromanager's Python backend (MMCore in this process).
Mode `attach`: a Micro-Manager is open and shows live images; the service looks at them and takes none away.
"""

import json
import logging
import re
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import zmq
from pydantic import Field, model_validator

from realtime_skyseg.devices import CameraChanged, CameraNotice, DriverSettings
from realtime_skyseg.errors import CameraError, MissingExtraError, SettingsError
from realtime_skyseg.records import Frame, Image

log = logging.getLogger(__name__)

#: MMCore announces no frame, so mode `own` looks for one this often. It is what a frame waits, half of it on average.
_LOOK_S = 0.0005
#: A bridge call, or a start of the peeking process, that takes longer hangs.
_HANG_S, _START_S = 1.5, 20.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.2, 2.0
#: Mode `attach`: how long the constructor waits for an image of a live view that runs.
_FIRST_IMAGE_S = 5.0
#: Mode `attach`: images that wait here while the service begins another run file.
_WAITING_IMAGES = 64

_DTYPES: dict[str, np.dtype[Any]] = {"GRAY8": np.dtype(np.uint8), "GRAY16": np.dtype(np.uint16)}

#: Device interface version: the Micro-Manager builds that have it, and the pymmcore that goes with them.
_INTERFACES = {
    70: ("up to 20221030", "10.1.1.70.6"),
    71: ("from 20221031 to 20250310", "11.2.1.71.0"),
    73: ("from 20250318 to 20250814", "11.9.0.73.0"),
    74: ("from 20250815 to 20260225", "11.10.0.74.1"),
    75: ("from 20260226", "12.5.1.75.0"),
}

_OWN_KEYS = {"adapters", "configuration", "exposure_ms", "roi_px", "binning", "properties", "buffer_mb"}
_ATTACH_KEYS = {"port"}


class MicroManagerSettings(DriverSettings):
    """Settings of the driver `micromanager`."""

    mode: Literal["own", "attach"]
    """`own`: the service has the camera to itself; `attach`: look at the live images of an open Micro-Manager."""
    adapters: str = ""
    """Mode `own`: folder of Micro-Manager with its device adapters; `mm-test-adapters`: those of that package."""
    configuration: Path = Path()
    """Mode `own`: Micro-Manager's system configuration file (.cfg); looked for in `adapters` too."""
    exposure_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Mode `own`: exposure; absent: as the configuration leaves it. So for the next three keys."""
    roi_px: tuple[int, int, int, int] | None = None
    """Mode `own`: part of the sensor that is read: left, top, width, height, after binning."""
    binning: Annotated[int, Field(ge=1)] | None = None
    """Mode `own`: sensor pixels per image pixel and direction."""
    properties: dict[str, dict[str, str | int | float]] = Field(default_factory=dict)
    """Mode `own`: device label, property, value; for example `{Camera: {PixelType: 16bit}}`. Set before the others."""
    buffer_mb: Annotated[int, Field(ge=16, le=65536)] = 512
    """Mode `own`: frames that wait for the service. What does not fit is lost and counted."""
    port: Annotated[int, Field(ge=1, le=65535)] = 4827
    """Mode `attach`: of Micro-Manager's server."""
    silence_s: Annotated[float, Field(ge=0.5, le=86400)] = 5.0
    """After this long without a frame an event says so. Longer than the exposure."""

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        foreign = self.model_fields_set & (_ATTACH_KEYS if self.mode == "own" else _OWN_KEYS)
        if foreign:
            other = "attach" if self.mode == "own" else "own"
            raise ValueError(f"{min(foreign)} is a key of mode {other}; leave it out in mode {self.mode}")
        if self.mode == "own":
            for name in ("adapters", "configuration"):
                if name not in self.model_fields_set:
                    raise ValueError(f"{name} is missing; mode own needs it")
        if self.exposure_ms is not None and self.exposure_ms >= 1000 * self.silence_s:
            raise ValueError(f"silence_s is {self.silence_s:g}; allowed: more than the exposure")
        return self


@dataclass(frozen=True, slots=True)
class _Picture:
    """An image of Micro-Manager."""

    pixels: Image
    number: int  # MMCore's ImageNumber, which begins with 0 at each start of a sequence
    camera_ns: int
    corner_px: tuple[int, int]  # left, top


class _Gone(Exception):  # noqa: N818  no error
    """There are no images for now; the message says why. The source tries again by itself."""


class _Source(Protocol):
    description: dict[str, str | int | float | bool]

    def next(self, timeout_s: float) -> _Picture | None: ...

    def close(self) -> None: ...


class MicroManagerCamera:
    """A camera of Micro-Manager, as a `realtime_skyseg.devices.Camera`.

    `Frame.number` goes on over restarts of the camera. A gap in MMCore's numbers within a sequence is a gap in it;
    what happened while there were no images cannot be counted: there is a notice when they go and when they are back.

    A change of size, pixel type, or place of the part that is read raises `CameraChanged`.
    """

    Settings: ClassVar[type[DriverSettings]] = MicroManagerSettings
    waits = False
    clock = "Unix time of Micro-Manager's host when MMCore received the image (TimeReceivedByCore)"
    rate_hz: float | None = None

    def __init__(self, settings: MicroManagerSettings) -> None:
        """Open the camera (`own`), or find an image of the live view (`attach`).

        Raises:
            SettingsError: a value is not usable.
            MissingExtraError: pycromanager is not installed.
            CameraError: the camera cannot be opened, or there is no Micro-Manager or no live image to look at.
        """
        self._silence_s = settings.silence_s
        self._number = -1  # of the last frame
        self._offset: int | None = None  # Frame.number - ImageNumber; None: anew with the next image
        self._quiet_s = 0.0  # time spent waiting since the last image
        self._last_s = time.monotonic()  # when the last image came
        self._gone = False  # there are no images, and this was said
        self._closed = False
        self._picture: _Picture | None = None  # has come, but something must be said first
        self._source: _Source
        if settings.mode == "own":
            core = _OwnCore(settings)
            self._source = core
            self.shape, self.dtype = core.shape, core.dtype
            self._corner_px: tuple[int, int] | None = None
        else:
            self._source = peek = _Peek(settings.port)
            picture = peek.first()
            self.shape, self.dtype = (picture.pixels.shape[0], picture.pixels.shape[1]), picture.pixels.dtype
            self._corner_px = picture.corner_px
        self._describe()

    def read(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame, at most `timeout_s`; None when none came. Raises as `Camera.read`."""
        if self._closed:
            raise CameraError("the camera of Micro-Manager was closed before; allowed: read before close")
        picture = self._picture or self._next(timeout_s)
        if picture is None:
            return None
        self._picture = picture
        without_s, self._last_s = time.monotonic() - self._last_s, time.monotonic()
        if self._gone:
            self._gone = False
            raise CameraNotice("camera_back", f"images of Micro-Manager again, after {without_s:.1f} s without")
        if self._offset is not None and picture.number + self._offset <= self._number:
            self._offset = None
            raise CameraNotice("camera_restarted", "the camera was stopped and started again; none counts as lost")
        height, width = picture.pixels.shape
        if self._corner_px is None:
            self._corner_px = picture.corner_px
        if ((height, width), picture.pixels.dtype, picture.corner_px) != (self.shape, self.dtype, self._corner_px):
            before = self.description["roi_px"], self.dtype
            self.shape, self.dtype, self._corner_px = (height, width), picture.pixels.dtype, picture.corner_px
            self._describe()
            raise CameraChanged(
                "camera_changed",
                f"the camera changed from left, top, width, height {before[0]} {before[1]} "
                f"to {self.description['roi_px']} {self.dtype}",
            )
        self._picture = None
        if self._offset is None:
            self._offset = self._number + 1 - picture.number
        self._number = picture.number + self._offset
        return Frame(picture.pixels, self._number, picture.camera_ns)

    def close(self) -> None:
        """Release the camera (`own`), or look away (`attach`). Safe to call twice."""
        self._closed = True
        self._source.close()

    def _next(self, timeout_s: float) -> _Picture | None:
        begun = time.monotonic()
        try:
            picture = self._source.next(timeout_s)
            reason = ""
        except _Gone as gone:
            # Whether the sequence will be the same cannot be known.
            picture, self._offset, reason = None, None, str(gone)
        if picture is not None:
            self._quiet_s = 0.0
            return picture
        self._quiet_s += time.monotonic() - begun
        if not reason and self._quiet_s > self._silence_s:
            reason = f"no image for {self._silence_s:g} s, though the camera seems to run"
        if reason and not self._gone:
            self._gone = True
            raise CameraNotice("camera_gone", reason)
        return None

    def _describe(self) -> None:
        left, top = self._corner_px or (0, 0)
        height, width = self.shape
        roi = {} if self._corner_px is None else {"roi_px": f"{left}, {top}, {width}, {height}"}
        self.description: dict[str, str | int | float | bool] = {**self._source.description, **roi}


# --- own ---


class _OwnCore:
    """The camera through an MMCore in this process, of which pycromanager allows one at a time."""

    def __init__(self, settings: MicroManagerSettings) -> None:
        self._settings = settings
        self._retry_at_s = 0.0  # monotonic
        self._retry_s = _FIRST_RETRY_S
        self._running = False
        self._closed = False
        self._core = _core()
        try:
            self._load()
            self.shape, self.dtype = self._form()
        except BaseException:
            self.close()
            raise
        core, camera = self._core, self._core.get_camera_device()
        self.description: dict[str, str | int | float | bool] = {
            "mode": "own",
            "camera": camera,
            "adapter": f"{core.get_device_library(camera)}/{core.get_device_name(camera)}",
            "micromanager": f"{core.get_version_info()}, {core.get_api_version_info()}",
            "pymmcore": version("pymmcore"),
            "pycromanager": version("pycromanager"),
            "exposure_ms": core.get_exposure(),
            "roi_px": ", ".join(map(str, core.get_roi())),
        }

    def next(self, timeout_s: float) -> _Picture | None:
        core, deadline = self._core, time.monotonic() + timeout_s
        try:
            if not self._running and not self._start(timeout_s):
                return None
            while not core.get_remaining_image_count():
                if time.monotonic() >= deadline:
                    if not core.is_sequence_running():
                        raise RuntimeError("it has stopped by itself")
                    return None
                time.sleep(_LOOK_S)
            tagged = core.pop_next_tagged_image()
            self._retry_s = _FIRST_RETRY_S
            return _picture(tagged.tags, tagged.pix)
        except IndexError:
            # A full buffer was emptied by MMCore between the two calls; the numbers will show what is lost.
            return None
        except (RuntimeError, OSError, SettingsError, CameraError) as error:
            self._running = False
            self._retry_at_s = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
            raise _Gone(f"the camera gives no images: {_first_line(error)}") from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        import mmpycorex

        try:
            if self._core.is_sequence_running():
                self._core.stop_sequence_acquisition()
        except (RuntimeError, OSError) as error:
            log.warning("the camera cannot be stopped: %s", _first_line(error))
        try:
            mmpycorex.terminate_core_instances()
        except (RuntimeError, OSError) as error:
            log.warning("the camera cannot be released: %s", _first_line(error))

    def _start(self, timeout_s: float) -> bool:
        """Start the sequence; False while it is not yet time to try again."""
        wait_s = self._retry_at_s - time.monotonic()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
            return False
        core = self._core
        try:
            if core.is_sequence_running():
                core.stop_sequence_acquisition()
            core.start_continuous_sequence_acquisition(0.0)
        except RuntimeError:
            # A camera that was unplugged must be initialised again.
            self._load()
            core.start_continuous_sequence_acquisition(0.0)
        self._running = True
        return True

    def _load(self) -> None:
        core, settings = self._core, self._settings
        adapters = _adapters(settings.adapters)
        configuration = next(
            (path for path in (settings.configuration, adapters / settings.configuration) if path.is_file()), None
        )
        if configuration is None:
            raise SettingsError(
                f"configuration: '{settings.configuration}' is no file, neither here nor in '{adapters}'; allowed: "
                "Micro-Manager's system configuration file (.cfg)"
            )
        core.set_device_adapter_search_paths([str(adapters)])
        try:
            core.load_system_configuration(str(configuration))
        except (RuntimeError, OSError) as error:
            raise CameraError(_loading_failed(configuration, adapters, str(error))) from error
        camera = core.get_camera_device()
        if not camera:
            raise SettingsError(f"configuration: '{configuration}' names no camera; allowed: one that does")
        for label, values in settings.properties.items():
            for name, value in values.items():
                self._set(f"properties.{label}.{name}", label, name, value)
        if settings.binning is not None:
            self._set("binning", camera, "Binning", settings.binning)
        if settings.roi_px is not None:
            self._set_roi(*settings.roi_px)
        if settings.exposure_ms is not None:
            core.set_exposure(settings.exposure_ms)
        try:
            core.set_circular_buffer_memory_footprint(settings.buffer_mb)
        except (MemoryError, RuntimeError) as error:
            raise SettingsError(f"buffer_mb: {settings.buffer_mb} is refused: {_first_line(error)}") from error

    def _set(self, key: str, label: str, name: str, value: str | int | float) -> None:
        core = self._core
        if label not in core.get_loaded_devices():
            raise SettingsError(f"{key}: no device '{label}'; allowed: {', '.join(core.get_loaded_devices())}")
        if not core.has_property(label, name):
            names = ", ".join(core.get_device_property_names(label))
            raise SettingsError(f"{key}: '{label}' has no property '{name}'; allowed: {names}")
        try:
            core.set_property(label, name, str(value))
            core.wait_for_device(label)
        except RuntimeError as error:
            allowed = ", ".join(core.get_allowed_property_values(label, name))
            if core.has_property_limits(label, name):
                low, high = core.get_property_lower_limit(label, name), core.get_property_upper_limit(label, name)
                allowed = f"{low:g} to {high:g}"
            raise SettingsError(f"{key}: '{value}' is refused; allowed: {allowed or _first_line(error)}") from error

    def _set_roi(self, left: int, top: int, width: int, height: int) -> None:
        core = self._core
        # Some adapters take a part beyond the sensor without a word.
        core.clear_roi()
        full_width, full_height = core.get_image_width(), core.get_image_height()
        inside = min(left, top) >= 0 and left + width <= full_width and top + height <= full_height
        if not inside or min(width, height) < 1:
            raise SettingsError(
                f"roi_px: [{left}, {top}, {width}, {height}] is not inside the image; allowed: left, top, width, "
                f"height within {full_width} x {full_height} px"
            )
        try:
            core.set_roi(left, top, width, height)
        except RuntimeError as error:
            raise SettingsError(
                f"roi_px: [{left}, {top}, {width}, {height}] is refused: {_first_line(error)}"
            ) from error

    def _form(self) -> tuple[tuple[int, int], np.dtype[Any]]:
        core = self._core
        depth, components = core.get_bytes_per_pixel(), core.get_number_of_components()
        if depth not in (1, 2) or components != 1:
            raise SettingsError(
                f"properties: the camera gives {depth} bytes and {components} colours per pixel; allowed: grey of 8 or "
                "16 bit, for most cameras by {Camera: {PixelType: 16bit}}"
            )
        return (core.get_image_height(), core.get_image_width()), np.dtype(np.uint8 if depth == 1 else np.uint16)


def _core() -> Any:
    try:
        # pycromanager's Python backend without its acquisition engine, which is not used here, and does not survive a
        # second start in one process.
        import mmpycorex
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    if mmpycorex.is_pymmcore_active():
        raise CameraError("a camera of Micro-Manager is open in this process already; allowed: one at a time")
    mmpycorex.create_core_instance("", None, python_backend=True, buffer_size_mb=16)
    core = mmpycorex.Core()
    core.enable_stderr_log(False)
    return core


def _adapters(text: str) -> Path:
    if text == "mm-test-adapters":
        try:
            from mm_test_adapters import device_adapter_path
        except ModuleNotFoundError as error:
            raise SettingsError(
                "adapters: the package 'mm-test-adapters' is not installed; pip install 'realtime_skyseg[test]', or "
                "give Micro-Manager's folder"
            ) from error
        return Path(device_adapter_path())
    if not Path(text).is_dir():
        raise SettingsError(f"adapters: '{text}' is no folder; allowed: Micro-Manager's folder, or mm-test-adapters")
    return Path(text)


def _loading_failed(configuration: Path, adapters: Path, reason: str) -> str:
    versions = re.search(r"device interface version.*requires (\d+).*has (\d+)", reason)
    if versions:
        needed, theirs = map(int, versions.groups())
        builds = _INTERFACES.get(needed, ("", ""))[0]
        pymmcore = _INTERFACES.get(theirs, ("", ""))[1]
        return (
            f"the device adapters in '{adapters}' have device interface {theirs}, but pymmcore "
            f"{version('pymmcore')} needs {needed}; install a Micro-Manager build {builds or 'with that interface'}, "
            + (f"or: pip install pymmcore=={pymmcore}" if pymmcore else f"or a pymmcore for interface {theirs}")
        )
    return f"Micro-Manager cannot load '{configuration}': {' '.join(reason.split())}"


# --- attach ---


class _Peek:
    """Images of a live view that somebody else runs, by way of the process `realtime_skyseg_drivers.micromanager_peek`.

    That process is ended when it falls silent for `_HANG_S`, and begun anew.
    """

    def __init__(self, port: int) -> None:
        try:
            import mmpycorex  # noqa: F401
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        self._port = port
        self.description: dict[str, str | int | float | bool] = {"mode": "attach"}
        self._retry_at_s = 0.0  # monotonic
        self._retry_s = _FIRST_RETRY_S
        self._process: subprocess.Popen[bytes] | None = None
        self._token = b""
        self._silent_after_s = 0.0  # monotonic
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, _WAITING_IMAGES)
        self._address = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"

    def first(self) -> _Picture:
        """An image, to know its size. The process is ended: nobody takes its images until the run begins."""
        try:
            deadline = time.monotonic() + _START_S
            while time.monotonic() < deadline:
                try:
                    picture = self.next(0.1)
                except _Gone as gone:
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

    def next(self, timeout_s: float) -> _Picture | None:
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
                    self._retry_s = _FIRST_RETRY_S
                    return _picture(content["tags"], pixels.buffer)
                case "gone":
                    raise _Gone(content["message"])
                case "info":
                    versions = {"pycromanager": version("pycromanager")}
                    self.description = {"mode": "attach", "port": self._port, **versions, **content}

    def close(self) -> None:
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
            self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
            reason = "the connection broke off" if ended else f"a call has not returned for {_HANG_S:g} s"
            raise _Gone(f"Micro-Manager at port {self._port}: {reason}")

    def _end_process(self) -> None:
        if self._process:
            assert self._process.stdin is not None
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process = None
        self._token = b""


# --- both ---


def _picture(tags: dict[str, Any], pixels: Any) -> _Picture | None:
    """The image; None where its pixels and its tags do not fit, as while the camera changes. It counts as lost then."""
    dtype = _DTYPES.get(tags["PixelType"])
    if dtype is None:
        raise _Gone(f"the images are of type {tags['PixelType']}; allowed: {', '.join(_DTYPES)}")
    height, width = int(tags["Height"]), int(tags["Width"])
    if pixels.nbytes != height * width * dtype.itemsize:
        return None
    if not isinstance(pixels, np.ndarray):
        pixels = np.frombuffer(pixels, dtype).copy()
    return _Picture(
        pixels.reshape(height, width),
        int(tags["ImageNumber"]),
        _unix_ns(tags.get("TimeReceivedByCore")),
        (int(tags.get("ROI-X-start", 0)), int(tags.get("ROI-Y-start", 0))),
    )


_HALF_AN_HOUR_NS = 1_800_000_000_000


class _LocalTime:
    """Unix ns of local times as MMCore writes them, one after the other; -1 where there is none.

    They do not say which of the two hours at the end of summer time they are of. Times of one camera never go back; the
    first one is near the computer's own.
    """

    def __init__(self) -> None:
        self._last_ns = 0

    def __call__(self, stamp: str | None) -> int:
        if not stamp:
            return -1
        local = datetime.fromisoformat(stamp)
        first, second = (round(local.replace(fold=fold).timestamp() * 1e6) * 1000 for fold in (0, 1))
        near = abs(second - time.time_ns()) < _HALF_AN_HOUR_NS < abs(first - time.time_ns())
        self._last_ns = second if near or first < self._last_ns <= second else first
        return self._last_ns


_unix_ns = _LocalTime()  # one camera at a time is open in a process


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).split("\n")[0]


def _missing(error: ModuleNotFoundError) -> MissingExtraError:
    return MissingExtraError(
        f"driver 'micromanager' needs the package '{error.name}', which is not installed: "
        "pip install 'realtime_skyseg[micromanager]'"
    )
