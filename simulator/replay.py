"""A camera that plays a recording: the driver `replay`."""

import time
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from realtime_skyseg.devices import CameraEnded, DriverSettings
from realtime_skyseg.errors import CameraError, RecordingError, SettingsError
from realtime_skyseg.records import Frame
from simulator.readers import BUNDLED, open_recording

#: Longest pause between a frame and the decoding of the next one.
_PAUSE_S = 0.02


class ReplaySettings(DriverSettings):
    """Settings of the driver `replay`."""

    path: str = "bundled"
    """A file, a folder of images, or `bundled`: the recording that comes with the package."""
    rate_hz: Literal["recorded", "max"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "recorded"
    """Frames per second; `recorded`: as it was recorded; `max`: as fast as they are taken."""
    loop: bool = False
    """Begin again after the last frame."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """End after this many frames, loops included."""


class ReplayCamera:
    """Plays a recording at a fixed rate, as a `realtime_skyseg.devices.Camera`.

    Frame i is due i / rate after the first `read`. A late reader does not shift that schedule: it gets frames back to
    back until it has caught up. No frame is ever skipped.
    """

    Settings: ClassVar[type[DriverSettings]] = ReplaySettings
    waits = True

    def __init__(self, settings: ReplaySettings) -> None:
        """Open the recording and decode its first frame.

        Raises `SettingsError` and `RecordingError` as `open_recording` and `Recording.read` do.
        """
        self._settings = settings
        self._recording = recording = open_recording(settings.path)
        if settings.rate_hz == "recorded" and recording.rate_hz is None:
            recording.close()
            raise SettingsError(
                f"rate_hz: 'recorded' is not possible because {recording.path} ({recording.format}) states no rate; "
                f"allowed: a number of frames per second, or 'max'"
            )
        if isinstance(settings.rate_hz, float):
            self.rate_hz: float | None = settings.rate_hz
        else:
            self.rate_hz = recording.rate_hz if settings.rate_hz == "recorded" else None
        self._stamp_rate_hz = self.rate_hz or recording.rate_hz
        self.clock = "recorded" if recording.stamps_ns is not None else "schedule" if self._stamp_rate_hz else "none"
        self.description: dict[str, str | int | float | bool] = {
            "path": "bundled" if recording.path == BUNDLED else str(recording.path),
            "format": recording.format,
            "synthetic": recording.synthetic,
        }
        if recording.n_frames is not None:
            self.description["frames"] = recording.n_frames
        self._number = 0  # of the frame to decode next, going on over loops
        self._loop_began = 0  # number of the first frame of this pass
        self._loop_shift_ns = 0  # keeps recorded time stamps rising over loops
        self._start_s = -1.0
        self._decoding_s = 0.0  # that the slowest frame took
        self._closed = False
        try:
            first = self._decode()
        except CameraEnded:
            recording.close()
            raise RecordingError(f"{recording.path}: the recording holds no frames; allowed: at least 1") from None
        except RecordingError:
            recording.close()
            raise
        self.shape: tuple[int, int] = first.image.shape
        self.dtype: np.dtype[Any] = first.image.dtype
        self._next: Frame | None = first  # decoded ahead, so that it is handed over when due

    def read(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame, at most `timeout_s`; None when none is due by then.

        Raises `CameraEnded` after the last frame, and `RecordingError` at the first frame that cannot be read.
        """
        if self._closed:
            raise CameraError(f"{self._recording.path}: read after close; allowed: read before close")
        if self._start_s < 0:
            self._start_s = time.perf_counter()
        deadline_s = time.perf_counter() + timeout_s
        if self._next is None:
            if not self._sleep(self._due_s(self._number - 1) + self._pause_s(), deadline_s):
                return None
            begun_s = time.perf_counter()
            self._next = self._decode()
            self._decoding_s = max(self._decoding_s, time.perf_counter() - begun_s)
        if not self._sleep(self._due_s(self._next.number), deadline_s):
            return None
        frame, self._next = self._next, None
        return frame

    def _due_s(self, number: int) -> float:
        return self._start_s + number / self.rate_hz if self.rate_hz else 0.0

    def _pause_s(self) -> float:
        """After a frame, before the next is decoded: a camera would not take the processor from its analysis."""
        if self.rate_hz is None or self._decoding_s > 0.25 / self.rate_hz:
            return 0.0
        return min(0.5 / self.rate_hz, _PAUSE_S)

    def _sleep(self, until_s: float, deadline_s: float) -> bool:
        """Sleep until then; False where the deadline comes first."""
        if (wait_s := min(until_s, deadline_s) - time.perf_counter()) > 0:
            time.sleep(wait_s)
        return until_s <= deadline_s

    def close(self) -> None:
        """Close the recording. Safe to call twice."""
        self._closed = True
        self._next = None
        self._recording.close()

    def _decode(self) -> Frame:
        if self._number == self._settings.limit:
            raise CameraEnded(f"{self._recording.path}: the limit of {self._settings.limit} frames is reached")
        index = self._number - self._loop_began
        try:
            image = self._recording.read(index)
        except IndexError:
            if not self._settings.loop or index == 0:
                raise CameraEnded(f"{self._recording.path} has ended") from None
            self._begin_again()
            index = 0
            image = self._recording.read(index)
        frame = Frame(image, self._number, self._stamp_ns(index), self._field_mT(index))
        self._number += 1
        return frame

    def _begin_again(self) -> None:
        self._loop_began = self._number
        stamps, rate_hz = self._recording.stamps_ns, self._recording.rate_hz
        if stamps is not None and rate_hz is not None:
            self._loop_shift_ns += int(stamps[-1] - stamps[0] + 1e9 / rate_hz)

    def _stamp_ns(self, index: int) -> int:
        if self._recording.stamps_ns is not None:
            return int(self._recording.stamps_ns[index]) + self._loop_shift_ns
        return round(self._number * 1e9 / self._stamp_rate_hz) if self._stamp_rate_hz else -1

    def _field_mT(self, index: int) -> float:
        fields = self._recording.fields_mT
        return float(fields[index]) if fields is not None and index < len(fields) else float("nan")
