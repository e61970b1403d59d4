"""A camera that plays a recording: the driver `replay`."""

import time
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from realtime_skyseg.devices import CameraEnded, CameraNotice, DriverSettings
from realtime_skyseg.errors import CameraError, RecordingError, RecordingUnusableError, SettingsError
from realtime_skyseg.recordings import Choice, Recording, open_recording
from realtime_skyseg.records import Frame

BUNDLED = Path(__file__).parent / "recordings" / "skyrmions_field_sweep.tif"

#: Longest pause between a frame and the decoding of the next one.
_PAUSE_S = 0.02


class ReplaySettings(DriverSettings):
    """Settings of the driver `replay`."""

    path: str = "bundled"
    """A file, a folder, or `bundled`: the recording that comes with the package."""
    rate_hz: Literal["recorded", "max"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "recorded"
    """Frames per second; `recorded`: at the times at which they were recorded; `max`: as fast as they are taken."""
    loop: bool = False
    """Begin again after the last frame."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """End after this many frames, loops included."""
    channel: int | str | None = None
    """Number (from 0) or name of the channel, where the recording has several."""
    position: int | str | None = None
    """Number (from 0) or name of the position, where it has several."""
    z: Annotated[int, Field(ge=0)] | None = None
    """Number (from 0) of the plane, where it has several at each time."""
    dataset: str | None = None
    """Path of the array in an HDF5, Zarr or NPZ file, where it has several."""

    def check(self) -> None:
        """Open the recording, and read its first frame."""
        ReplayCamera(self).close()


class ReplayCamera:
    """Plays a recording as a `realtime_skyseg.devices.Camera`.

    Frame i is due i / rate after the first `read`, or when it was in the recording. A late reader does not shift that
    schedule: it gets frames back to back until it has caught up. No frame is ever skipped.
    """

    Settings: ClassVar[type[DriverSettings]] = ReplaySettings
    waits = True

    def __init__(self, settings: ReplaySettings) -> None:
        """Open the recording and decode its first frame.

        Raises `SettingsError` and `RecordingError` as `open_recording` and `Recording.read` do.
        """
        self._settings = settings
        choice = Choice(settings.channel, settings.position, settings.z, settings.dataset)
        try:
            recording = open_recording(BUNDLED if settings.path == "bundled" else settings.path, choice)
        except RecordingError as error:
            raise RecordingUnusableError(str(error)) from error
        self._recording: Recording = recording
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
        self._own = False  # the recording knows the times of its frames
        self._stamp_rate_hz = recording.rate_hz or self.rate_hz
        self._number = 0  # of the frame to decode next, going on over loops
        self._loop_began = 0  # number of the first frame of this pass
        self._loop_shift_ns = 0  # keeps recorded time stamps rising over loops
        self._first_ns, self._last_ns = 0, 0  # of the recording's own stamps
        self._period_ns = round(1e9 / self._stamp_rate_hz) if self._stamp_rate_hz else 0
        self._start_s = -1.0
        self._due_s = 0.0  # of the frame that was decoded last, after the start
        self._decoding_s = 0.0  # that the slowest frame took
        self._closed = False
        self._noted = 0  # notes of the recording that were told
        try:
            first = self._decode()
        except CameraEnded:
            recording.close()
            raise RecordingUnusableError(
                f"{recording.path}: the recording holds no frames; allowed: at least 1"
            ) from None
        except RecordingError as error:
            recording.close()
            raise RecordingUnusableError(str(error)) from error
        except BaseException:
            recording.close()
            raise
        self.clock = "recorded" if recording.stamps_ns is not None else "schedule" if self._stamp_rate_hz else "none"
        self.description: dict[str, str | int | float | bool] = {
            "path": "bundled" if recording.path == BUNDLED else str(recording.path),
            "format": recording.format,
            "synthetic": recording.synthetic,
        }
        if recording.n_frames is not None:
            self.description["frames"] = recording.n_frames
        chosen = {key: getattr(choice, key) for key in ("channel", "position", "z", "dataset")}
        self.description |= {key: value for key, value in chosen.items() if value is not None}
        self.names = recording.names
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
        if self._noted < len(self._recording.notes):
            self._noted += 1
            raise CameraNotice("recording_note", self._recording.notes[self._noted - 1])
        deadline_s = time.perf_counter() + timeout_s
        if self._next is None:
            if not self._sleep(self._start_s + self._due_s + self._pause_s(), deadline_s):
                return None
            begun_s = time.perf_counter()
            self._next = self._decode()
            self._decoding_s = max(self._decoding_s, time.perf_counter() - begun_s)
        if not self._sleep(self._start_s + self._due_s, deadline_s):
            return None
        frame, self._next = self._next, None
        return frame

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
        self._due_s = self._due(frame)
        self._number += 1
        return frame

    def _begin_again(self) -> None:
        self._loop_began = self._number
        self._loop_shift_ns = self._last_ns - self._first_ns + self._period_ns

    def _stamp_ns(self, index: int) -> int:
        """The time of a frame on the recording's clock, which goes on over loops; -1: none is known."""
        own = self._recording.stamp_ns(index)
        if own < 0:
            return round(self._number * 1e9 / self._stamp_rate_hz) if self._stamp_rate_hz else -1
        self._own = True
        if self._number == 0:
            self._first_ns = own
        self._last_ns = own + self._loop_shift_ns
        return self._last_ns

    def _due(self, frame: Frame) -> float:
        """When a frame is due, in seconds after the first: never before the one that came last."""
        if self.rate_hz is None:
            return 0.0
        if self._settings.rate_hz == "recorded" and self._own:
            return max((frame.camera_ns - self._first_ns) / 1e9, self._due_s)
        return frame.number / self.rate_hz

    def _field_mT(self, index: int) -> float:
        fields = self._recording.fields_mT
        return float(fields[index]) if fields is not None and index < len(fields) else float("nan")
