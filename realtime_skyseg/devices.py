"""What a camera and a field source must offer, and how they are found by name.

A driver is a class under the entry point group `realtime_skyseg.cameras` (or `realtime_skyseg.fields`). A lab adds
its own in its own package:

    [project.entry-points."realtime_skyseg.cameras"]
    my_camera = "my_package.my_module:MyCamera"

and names it in the settings as `camera: {driver: my_camera, ...}`. Every other key of that block goes to the
driver's `Settings`.
"""

import math
from importlib.metadata import entry_points
from numbers import Real
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from realtime_skyseg.errors import FieldError, MissingExtraError, SettingsError
from realtime_skyseg.records import Frame, printable
from realtime_skyseg.section import Section


class DriverSettings(Section):
    """Base of a driver's settings."""

    #: Of a field driver: the keys that tell one supply from another, which only one run may have; empty: all keys;
    #: None: there is nothing to have.
    identity: ClassVar[tuple[str, ...] | None] = ()

    def check(self) -> None:
        """Look at what can be looked at without the device, such as files; for `skyseg check`.

        Raises:
            SettingsError: it begins with the key.
        """


class CameraEnded(Exception):  # noqa: N818  no error
    """The camera has no more frames: the regular end of a recording, no fault."""


class CameraNotice(Exception):  # noqa: N818  no error
    """Raised by `Camera.read` in place of a frame: something to log as an event, after which the camera goes on.

    A live source that is gone for a while raises one when it goes and one when it is back, and returns None between.

    Args:
        kind: of the event, for example "camera_gone", "camera_back", "camera_restarted".
        message: one sentence.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class CameraChanged(CameraNotice):
    """The frames have another size or pixel type from now on: `shape` and `dtype` are the new ones already, and the
    next `read` gives the first such frame. The run file is ended and another one begun.
    """


@runtime_checkable
class Camera(Protocol):
    """A source of frames. Constructed with its `Settings`, which opens the device.

    Its methods never run at the same time, but not all in the thread that constructed it.

    Raises `CameraError` (or `RecordingError`) from the constructor and from `read` when the source is broken.
    """

    Settings: ClassVar[type[DriverSettings]]

    #: True: frames wait for the reader (a recording), so a full queue slows it down and loses nothing.
    waits: bool
    #: (height, width) of the frames.
    shape: tuple[int, int]
    #: Pixel type of the frames: uint8, uint16 or float32.
    dtype: np.dtype[Any]
    #: Frames per second that the source aims at; None where it is not known.
    rate_hz: float | None
    #: Name of the clock behind `Frame.camera_ns`. It begins with "Unix time" only where it agrees with `time.time_ns()`
    #: of this computer to better than a frame: then the field is taken at that time, else at the hand-over.
    clock: str
    #: What the run file should say of the source: plain strings and numbers.
    description: dict[str, str | int | float | bool]

    def read(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame, at most `timeout_s`; None when none came.

        Raises `CameraEnded` after the last, `CameraNotice` or `CameraChanged` where there is something to say.
        """

    def close(self) -> None:
        """Release the device. Safe to call twice."""


@runtime_checkable
class FieldSource(Protocol):
    """A magnet's supply, in its own unit. Constructed with its `Settings`, which opens the device and sets nothing.

    Only the field guard (`realtime_skyseg.field`) uses it, in a process of its own: limits, slew rate, calibration,
    read-back, heartbeat and the safe state are the guard's, so that a driver is a few lines. Still a driver refuses
    what its device would take silently and wrongly: text, values that are not finite, values out of range.

    Raises `FieldError` where the device refuses or is gone.
    """

    Settings: ClassVar[type[DriverSettings]]

    #: Of `set` and `read`: "V", "A" or "mT".
    unit: str
    #: Lowest and highest value the device takes, in its unit; None where it can only be read.
    range: tuple[float, float] | None
    #: What the run file should say of the supply: plain strings and numbers.
    description: dict[str, str | int | float | bool]

    def set(self, value: float) -> None:
        """Set the output; returns when the device has taken it, and never blocks for ever."""

    def read(self) -> float:
        """Read the output back: measured where the device can, else the value it was set to. Never blocks for ever."""

    def close(self) -> None:
        """Release the device; its output stays as it is. Safe to call twice."""


@runtime_checkable
class EnteredField(Protocol):
    """A field source whose value a person enters, beside the methods of `FieldSource`."""

    def enter(self, value: float) -> None:
        """Take a value in the source's unit as the field of now."""


@runtime_checkable
class PulseSource(Protocol):
    """A field source that can give in-plane pulses too, beside the methods of `FieldSource`."""

    #: Lowest and highest in-plane field it can give.
    pulse_limit_mT: tuple[float, float]

    def pulse(self, in_plane_mT: float, seconds: float) -> None:
        """Begin a pulse, which ends by itself after `seconds`, even where this process dies; returns at once."""


def finite_within(value: object, limits: tuple[float, float], what: str, unit: str) -> float:
    """A value as a float, if it is a finite number within the limits; nothing is clamped.

    Raises:
        FieldError: names `what`, the value and the limits. Text is refused even where it spells a number.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and limits[0] <= number <= limits[1]):
        raise FieldError(f"{what}: {value!r} {unit} is refused; allowed: a number from {limits[0]:g} to {limits[1]:g}")
    return number


def missing(name: str, error: ModuleNotFoundError, extra: str) -> MissingExtraError:
    """The error of a driver whose packages, which an extra of this product installs, are absent."""
    return MissingExtraError(
        f"driver '{name}' needs the package '{error.name}', which is not installed: "
        f"pip install 'realtime_skyseg[{extra}]'"
    )


def drivers(kind: str) -> list[str]:
    """Names of the installed drivers of a kind: "cameras" or "fields"."""
    return sorted(entry.name for entry in entry_points(group=f"realtime_skyseg.{kind}"))


def driver(kind: str, name: str) -> Any:
    """The driver class behind a name. Raises `SettingsError` for an unknown one, `MissingExtraError` when its
    packages are absent.
    """
    for entry in entry_points(group=f"realtime_skyseg.{kind}"):
        if entry.name == name:
            try:
                return entry.load()
            except ModuleNotFoundError as error:
                if entry.dist and entry.dist.name != "realtime_skyseg":
                    raise MissingExtraError(
                        f"driver '{name}' of the package '{entry.dist.name}' needs the module '{error.name}', which is "
                        "not installed; allowed: with it"
                    ) from error
                raise missing(name, error, entry.extras[0] if entry.extras else name) from error
            except Exception as error:
                raise SettingsError(
                    f"driver: '{name}' ({entry.value}) cannot be loaded: {type(error).__name__}: {printable(error)}"
                ) from error
    raise SettingsError(
        f"driver: '{name}' is not among the installed {kind}; allowed: {', '.join(drivers(kind)) or 'none'}"
    )
