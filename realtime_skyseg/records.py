"""What is passed from stage to stage: frames, masks, objects, results."""

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.quantities import Columns, Quantity, columns, row_dtype

#: An image as a camera gives it: (height, width), integers or floats, native byte order. Most are uint8, uint16 or
#: float32, which the network takes as they are.
Image = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]

#: Class per pixel: (height, width), uint8, values of `Class`.
Mask = NDArray[np.uint8]

#: One row per object, dtype `OBJECT_DTYPE`.
Objects = NDArray[np.void]


class Class(IntEnum):
    """The class of a pixel in a mask."""

    BACKGROUND = 0
    SKYRMION = 1
    DEFECT = 2
    OUTSIDE = 3  # outside the magnetic material
    EDGE = 4  # edge of the sample


class Skipped(IntEnum):
    """Why a frame was not analysed."""

    NOT_SKIPPED = 0
    SUPERSEDED = 1  # policy `latest`: a newer frame came before this one's turn
    QUEUE_FULL = 2  # policy `every`: a live camera was faster than the analysis
    FAILED = 3  # the analysis of this frame raised an error
    CHANGED_SIZE = 4  # not of the size or pixel type that the run began with
    PENDING = 255  # the file ended before it was known


#: The value of a mask's pixels in a run file where a frame was not analysed.
NOT_ANALYSED = 255


#: Which objects are skyrmions: the darker or the brighter ones, those of the larger part, or both.
Polarity = Literal["auto", "dark", "bright", "both"]


class Kind(IntEnum):
    """The kind of an object."""

    SKYRMION = 0  # compact
    STRIPE = 1  # elongated


#: Of one object.
OBJECT_QUANTITIES: Columns = columns(
    Quantity("x", "f4", 0, "px", "centroid, along columns; the centre of the first pixel is (0, 0)", of="object"),
    Quantity("y", "f4", 0, "px", "centroid, along rows, downwards", of="object"),
    Quantity("area", "u4", 0, "px^2", "pixels of the object", of="object"),
    Quantity("left", "u2", 0, "px", "first column of the bounding box", of="object"),
    Quantity("top", "u2", 0, "px", "first row of the bounding box", of="object"),
    Quantity("width", "u2", 0, "px", "of the bounding box", of="object"),
    Quantity("height", "u2", 0, "px", "of the bounding box", of="object"),
    Quantity("diameter", "f4", 0, "px", "of the disc of equal area", of="object"),
    Quantity("elongation", "f4", 0, "", "major axis / minor axis of the ellipse of equal second moments", of="object"),
    Quantity("kind", "u1", 0, "", "0: skyrmion, 1: stripe", of="object"),
    Quantity("border", "u1", 0, "", "1 where the object touches the border of the image", of="object"),
)

OBJECT_DTYPE = row_dtype(OBJECT_QUANTITIES)

#: Of one frame, besides its objects.
FRAME_QUANTITIES: Columns = columns(
    Quantity("count", "f8", np.nan, "", "skyrmions; NaN: not analysed, or the frame shows nothing", of="frame"),
    Quantity("stripes", "f8", np.nan, "", "stripes; NaN as for count", of="frame"),
    Quantity("area_fraction", "f4", np.nan, "", "share of the sample's pixels of class skyrmion", of="frame"),
)


@dataclass(slots=True)
class Frame:
    """One camera image and when it was taken.

    `image` belongs to the receiver: a driver never writes to it after handing it over.
    A driver sets `image`, `number`, `camera_ns` and, without a field guard, `field_mT`; the pipeline sets
    the rest.
    """

    image: Image
    number: int  # the camera's own numbering; a gap is a frame the camera lost
    camera_ns: int = -1  # the camera's time stamp on the clock that `Camera.clock` names; -1: it gives none
    field_mT: float = float("nan")  # the applied field, where the source of frames or the field guard knows it
    field_age_ns: float = float("nan")  # time of exposure minus time of that read-back; NaN: no read-back of ours
    index: int = -1  # position in the run, counted from 0 as received
    camera_lost: int = 0  # frames that the camera lost right before this one, from its numbering
    received_ns: int = 0  # time.time_ns() at the hand-over
    handed_ns: int = 0  # time.perf_counter_ns() at the hand-over; latencies are measured from here
    crc32: int = -1  # of the image's bytes as the recorder wrote them; -1: not written (yet)


@dataclass(slots=True)
class Segmentation:
    """What is found in one image."""

    mask: Mask  # `NOT_ANALYSED` everywhere where nothing can be told
    objects: Objects
    count: int | None  # skyrmions: objects of kind SKYRMION; None: the image shows nothing, so that nothing can be told
    stripes: int | None  # objects of kind STRIPE; None as above
    area_fraction: float  # pixels of class SKYRMION / pixels on the sample (all but class OUTSIDE); NaN as above
    polarity: int = 0  # -1: its skyrmions are dark, 1: bright; 0: the network takes both
    guessed: bool = False  # the polarity, from too little to be held for the frames to come
    drawn: bool = False  # a caption or a scale bar was found in the image: class OUTSIDE there
    ringed: bool = False  # interference rings were taken out of the image before the network saw it

    @classmethod
    def of_nothing(cls, shape: tuple[int, int]) -> "Segmentation":
        """What can be told of an image that is the same everywhere, or holds no numbers: nothing."""
        return cls(np.full(shape, NOT_ANALYSED, np.uint8), np.empty(0, OBJECT_DTYPE), None, None, float("nan"))


@dataclass(frozen=True, slots=True)
class Background:
    """A reference image that is subtracted from the frames of a run."""

    image: NDArray[np.float32]  # (height, width) of a whole frame, in the camera's grey levels
    first_frame: int  # index of the first frame that it applies to
    source: str  # "taken", "rolling_median" or its file


@dataclass(slots=True)
class Result:
    """The segmentation of one frame of a run, and when it was ready."""

    frame: Frame
    segmentation: Segmentation
    segmented_ns: int = 0  # time.time_ns() after `measure`
    published_ns: int = 0  # time.time_ns() after `publish`; 0: not published
    drift_px: tuple[float, float] = (float("nan"), float("nan"))  # (right, down), see `Preparation`; NaN: not sought
    drift_quality: float = float("nan")  # of the correlation's peak; where it is poor, the drift before was held
    source_crc32: int = -1  # of the image's bytes as they were segmented; -1: not taken
    values: dict[str, float] = field(default_factory=dict)  # what analysers found, by the names of their quantities
    maps: dict[str, NDArray[Any]] = field(default_factory=dict)  # the same, of two dimensions


@dataclass(frozen=True, slots=True)
class LateResult:
    """What an analyser found that works beside the frames' path."""

    analyser: str
    frame: int  # index of the frame that it looked at
    values: dict[str, float]
    maps: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row for one of the tables of an experiment in the run file, see `storage.layout.EXPERIMENT_TABLES`."""

    table: str
    values: dict[str, Any]  # column: number, text or bool


#: Control characters, which would command a terminal, and halves of characters, which no file takes.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: object) -> str:
    """A text of a driver, a file or a client, in which what no terminal or file should get is a question mark."""
    return _UNPRINTABLE.sub("?", str(text))


@dataclass(slots=True)
class Event:
    """Something that happened during a run: kept in the file, sent in the stream. Its texts are made `printable`."""

    time_ns: int  # time.time_ns()
    kind: str  # for example "camera_lost", "fault", "stopped"
    message: str
    frame: int = -1  # index of the frame it belongs to; -1: none

    def __post_init__(self) -> None:
        self.kind, self.message = printable(self.kind), printable(self.message)


@dataclass(slots=True)
class Counters:
    """How many frames went where. The conservation law holds for these at the end of a run."""

    received: int = 0
    analysed: int = 0
    written: int = 0
    not_analysed: dict[str, int] = field(default_factory=dict)
    not_written: dict[str, int] = field(default_factory=dict)
    camera_lost: int = 0  # gaps in the camera's own numbering: frames that never were received

    def imbalance(self) -> str | None:
        """Say which side of the conservation law does not hold, or None."""
        analysed = self.analysed + sum(self.not_analysed.values())
        written = self.written + sum(self.not_written.values())
        if self.received != analysed:
            return f"received {self.received} frames but accounted for {analysed} in analysis"
        if self.received != written:
            return f"received {self.received} frames but accounted for {written} in recording"
        return None

    def add(self, other: "Counters") -> None:
        """Count in what another leg of the run counted."""
        self.received += other.received
        self.analysed += other.analysed
        self.written += other.written
        self.camera_lost += other.camera_lost
        for causes, more in ((self.not_analysed, other.not_analysed), (self.not_written, other.not_written)):
            for cause, count in more.items():
                causes[cause] = causes.get(cause, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """The counters as JSON: the stream, the run file and the summary show them like this."""
        return {
            "received": self.received,
            "analysed": self.analysed,
            "written": self.written,
            "not_analysed": dict(self.not_analysed),
            "not_written": dict(self.not_written),
            "camera_lost": self.camera_lost,
        }
