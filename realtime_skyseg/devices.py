"""What a camera and a field source must offer, and how they are found by name.

A driver is a class under the entry point group `realtime_skyseg.cameras` (or `realtime_skyseg.fields`). A lab adds
its own in its own package:

    [project.entry-points."realtime_skyseg.cameras"]
    my_camera = "my_package.my_module:MyCamera"

and names it in the settings as `camera: {driver: my_camera, ...}`. Every other key of that block goes to the
driver's `Settings`.
"""

from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict

from realtime_skyseg.errors import MissingExtraError, SettingsError
from realtime_skyseg.records import Frame


class DriverSettings(BaseModel):
    """Base of a driver's settings: unknown keys are refused, values cannot change after validation.

    A docstring below a key becomes its description in the JSON Schema for editors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CameraEnded(Exception):  # noqa: N818  no error
    """The camera has no more frames: the regular end of a recording, no fault."""


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
    #: Name of the clock behind `Frame.camera_ns`.
    clock: str
    #: What the run file should say of the source: plain strings and numbers.
    description: dict[str, str | int | float | bool]

    def read(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame, at most `timeout_s`; None when none came. Raises `CameraEnded` after the last."""

    def close(self) -> None:
        """Release the device. Safe to call twice."""


@runtime_checkable
class FieldSource(Protocol):
    """A magnet's supply. Out-of-range or non-finite values are refused, never clamped."""

    Settings: ClassVar[type[DriverSettings]]

    def set_mT(self, field_mT: float) -> None:
        """Drive the field towards `field_mT`; raises `SettingsError` when it is outside the limits."""

    def read_mT(self) -> float:
        """Read the actual field back."""

    def safe(self) -> None:
        """Go to the configured safe state."""

    def close(self) -> None:
        """Go to the safe state and release the device. Safe to call twice."""


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
                raise MissingExtraError(
                    f"driver '{name}' needs the package '{error.name}', which is not installed: "
                    f"pip install 'realtime_skyseg[{entry.extras[0] if entry.extras else name}]'"
                ) from error
    raise SettingsError(
        f"driver: '{name}' is not among the installed {kind}; allowed: {', '.join(drivers(kind)) or 'none'}"
    )
