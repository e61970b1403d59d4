"""What can go wrong with the twin, on demand: the entries of `faults` in its settings, and when they act."""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from realtime_skyseg.devices import DriverSettings


class _Fault(DriverSettings):
    """Begins at a frame or at a time, one of them."""

    at_frame: Annotated[int, Field(ge=0)] | None = None
    """Begins with the frame of this number."""
    at_s: Annotated[float, Field(ge=0)] | None = None
    """Begins this long after the first frame, in the sample's time."""

    @model_validator(mode="after")
    def _check_begin(self) -> Self:
        if (self.at_frame is None) == (self.at_s is None):
            raise ValueError("a fault begins at_frame or at_s; allowed: one of them")
        return self


class _OfFrames(_Fault):
    frames: Annotated[int, Field(ge=1)] = 1
    """How many."""


class _Lasting(_Fault):
    for_s: Annotated[float, Field(gt=0)] | None = None
    """It lasts so long, in the sample's time; absent: to the end."""


class LostFrames(_OfFrames):
    """Frames that the camera never hands over: a gap in their numbers."""

    kind: Literal["lost_frames"]


class LateFrames(_OfFrames):
    """Frames that come late, and hold up those after them."""

    kind: Literal["late_frames"]
    by_s: Annotated[float, Field(gt=0, le=60)] = 0.5


class FrozenFrames(_OfFrames):
    """Frames that show the image before them once more."""

    kind: Literal["frozen_frames"]


class TornFrames(_OfFrames):
    """Frames whose lower half is of the next one; they come when that one does."""

    kind: Literal["torn_frames"]


class CameraGone(_Fault):
    """The camera is gone for a while; the numbers go on as if nothing had been."""

    kind: Literal["camera_gone"]
    for_s: Annotated[float, Field(gt=0)] = 2.0


class CameraDies(_Fault):
    """The camera is gone for good; the magnet is not."""

    kind: Literal["camera_dies"]


class ProcessDies(_Fault):
    """The whole virtual microscope is gone, magnet included."""

    kind: Literal["process_dies"]


class MagnetIgnores(_Lasting):
    """The supply takes what it is told, and does nothing."""

    kind: Literal["magnet_ignores"]


class MagnetOvershoots(_Lasting):
    """The supply gives more than it is told, from the next change on."""

    kind: Literal["magnet_overshoots"]
    by: Annotated[float, Field(ge=-1, le=10)] = 0.5
    """As a share of what it is told."""


class Defocus(_Lasting):
    """The image is blurred."""

    kind: Literal["defocus"]
    px: Annotated[float, Field(gt=0, le=100)] = 3.0
    """Standard deviation of the blur."""


class DriftJump(_Lasting):
    """The sample jumps."""

    kind: Literal["drift_jump"]
    px: tuple[float, float] = (6.0, -9.0)
    """(down, right)."""


class Lamp(_Lasting):
    """The light changes."""

    kind: Literal["lamp"]
    brightness: Annotated[float, Field(ge=0, le=10)] = 0.7
    """Relative to what it was."""


Fault = Annotated[
    LostFrames
    | LateFrames
    | FrozenFrames
    | TornFrames
    | CameraGone
    | CameraDies
    | ProcessDies
    | MagnetIgnores
    | MagnetOvershoots
    | Defocus
    | DriftJump
    | Lamp,
    Field(discriminator="kind"),
]

AnyFault = TypeVar("AnyFault", bound=_Fault)


class Schedule:
    """Which faults act now."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self._waiting = list(faults)
        self._begun: list[tuple[Fault, int, float]] = []  # with the frame and the time at which it began

    def move_on(self, number: int, sample_s: float) -> None:
        """Come to the frame of this number, at this time of the sample."""
        for fault in list(self._waiting):
            by_frame = fault.at_frame is not None and number >= fault.at_frame
            if by_frame or (fault.at_s is not None and sample_s >= fault.at_s):
                self._waiting.remove(fault)
                self._begun.append((fault, number, sample_s))
        self._begun = [one for one in self._begun if not _over(*one, number, sample_s)]

    def acting(self, kind: type[AnyFault]) -> list[AnyFault]:
        """The faults of a kind that act now."""
        return [fault for fault, _, _ in self._begun if isinstance(fault, kind)]


def _over(fault: Fault, began: int, began_s: float, number: int, sample_s: float) -> bool:
    if isinstance(fault, _OfFrames):
        return number >= began + fault.frames
    length_s = getattr(fault, "for_s", None)
    return length_s is not None and sample_s >= began_s + length_s - 1e-9
