"""A camera of Micro-Manager: the driver `micromanager`.

Mode `own`: the service has the camera to itself, through pycromanager's Python backend (MMCore in this process).
Mode `attach`: a Micro-Manager is open and shows live images; the service looks at them and takes none away.
"""

import time
from typing import ClassVar

from realtime_skyseg.devices import CameraChanged, CameraNotice, DriverSettings
from realtime_skyseg.errors import CameraError
from realtime_skyseg.records import Frame
from realtime_skyseg_drivers.micromanager_attach import Peek
from realtime_skyseg_drivers.micromanager_own import OwnCore
from realtime_skyseg_drivers.micromanager_picture import Gone, Picture, Source
from realtime_skyseg_drivers.micromanager_settings import MicroManagerSettings


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
        self._picture: Picture | None = None  # has come, but something must be said first
        self._source: Source
        if settings.mode == "own":
            core = OwnCore(settings)
            self._source = core
            self.shape, self.dtype = core.shape, core.dtype
            self._corner_px: tuple[int, int] | None = None
        else:
            self._source = peek = Peek(settings.port)
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

    def _next(self, timeout_s: float) -> Picture | None:
        begun = time.monotonic()
        try:
            picture = self._source.next(timeout_s)
            reason = ""
        except Gone as gone:
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
