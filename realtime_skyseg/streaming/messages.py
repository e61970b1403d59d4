"""The messages of schema `skyseg-1`.

Follows the MAX IV "STINS / stream1" convention: part one is JSON that begins with `{"htype":"..."`, so that a
subscription to that prefix selects a kind; `image` has the mask as part two, `preview` its pixels; all other kinds are
one part. Keys beyond the convention are ours. Every message of a run carries the next `msg_number`, so a gap is a loss.
"""

import base64
import binascii
import functools
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError
from pydantic_core import to_json

from realtime_skyseg.errors import StreamError
from realtime_skyseg.records import FRAME_QUANTITIES, Mask, Objects, Result

SCHEMA = "skyseg-1"

#: No mask is larger than this in a message that is accepted.
MAX_SIDE_PX = 16_384

#: Previews at most: per second, and px of their longer side.
MAX_PREVIEW_HZ, MAX_PREVIEW_PX = 60, 4096

_Count = Annotated[int, Field(ge=0)]
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]
_NumpyType = Annotated[str, Field(pattern=r"^[<|][uif][1248]$")]


class _Base(BaseModel):
    # Unknown keys are kept: a newer service may send more than this client knows.
    model_config = ConfigDict(extra="allow", frozen=True)

    htype: str
    msg_number: _Count
    run: str


class HeaderMessage(_Base):
    """What the run is. Sent at the start, and again whenever a subscriber joins."""

    htype: Literal["header"] = "header"
    filename: str  # of the run file
    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    shape: tuple[_Side, _Side]  # of a mask: height, width
    type: Literal["uint8"] = "uint8"
    classes: dict[str, int]  # class name: value in a mask
    model: str
    engine: str
    started_ns: int
    clock: str  # name of the clock behind camera_ns
    pixel_size_um: float | None = None
    quantities: list[dict[str, str]] = []  # what else is found: name, unit, meaning, "of" frame, object or map
    control: str = ""  # address of the control socket, for clients on the service's own computer


class ImageMessage(_Base):
    """One frame's mask and what was measured on it."""

    htype: Literal["image"] = "image"
    frame: _Count  # index in the run
    shape: tuple[_Side, _Side]
    type: Literal["uint8"] = "uint8"
    compression: Literal["none"] = "none"
    number: int  # the camera's own numbering
    count: _Count | None  # null: the frame shows nothing, so that nothing can be told; the mask is 255
    stripes: _Count | None
    area_fraction: float | None
    field_mT: float | None
    camera_ns: int  # -1: the camera gives no time stamp
    received_ns: int
    segmented_ns: int
    drift_px: tuple[float, float] | None = None  # (right, down) of the frame against its background, where sought
    object_dtype: list[tuple[str, _NumpyType]]  # numpy type of each column of a row of `objects_base64`
    objects_base64: str  # rows of `object_dtype`, one per object, base64

    _mask: Mask = PrivateAttr()

    @property
    def mask(self) -> Mask:
        """(height, width) uint8 of `Class` values, read-only."""
        return self._mask

    @property
    def objects(self) -> Objects:
        """The table of objects, one row each."""
        return np.frombuffer(base64.b64decode(self.objects_base64, validate=True), np.dtype(self.object_dtype))


class PreviewMessage(_Base):
    """A frame for viewers, smaller and in 8 bits. Sent only while somebody subscribes to `preview_topic`."""

    htype: Literal["preview"] = "preview"
    of: Literal["raw", "prepared"] = "raw"  # prepared: the difference image that was segmented; raw without `prepare`
    rate_hz: Annotated[int, Field(ge=1, le=MAX_PREVIEW_HZ)]  # as asked for: the most
    side_px: Annotated[int, Field(ge=16, le=MAX_PREVIEW_PX)]  # as asked for: of the longer side, the most
    frame: _Count
    shape: tuple[_Side, _Side]  # of the preview: height, width
    type: Literal["uint8"] = "uint8"
    compression: Literal["none"] = "none"
    low: float  # grey level of the raw frame that 0 stands for
    high: float  # and 255
    received_ns: int
    _image: NDArray[np.uint8] = PrivateAttr()

    @property
    def image(self) -> NDArray[np.uint8]:
        """(height, width) uint8, read-only."""
        return self._image


class SeriesEndMessage(_Base):
    """The run is over; its counters balance unless `status` says otherwise."""

    htype: Literal["series_end"] = "series_end"
    status: str  # "ok", "stopped", "lost" or "fault"
    message: str  # one sentence where the run did not end well
    frames: dict[str, Any]  # `Counters.as_dict`


class CountsMessage(_Base):
    """The numbers of an image message without its mask, in one part."""

    htype: Literal["skyseg_counts-1"] = "skyseg_counts-1"
    frame: _Count
    count: _Count | None
    stripes: _Count | None
    area_fraction: float | None
    field_mT: float | None
    received_ns: int
    segmented_ns: int
    drift_px: tuple[float, float] | None = None  # (right, down) of the frame against its background, where sought


class HeartbeatMessage(_Base):
    """The service is alive."""

    htype: Literal["skyseg_heartbeat-1"] = "skyseg_heartbeat-1"
    time_ns: int
    frames: dict[str, Any]  # `Counters.as_dict` so far
    lost_messages: _Count  # messages that at least one slow subscriber did not get


class EventMessage(_Base):
    """Something happened: kept in the run file too."""

    htype: Literal["skyseg_event-1"] = "skyseg_event-1"
    time_ns: int
    kind: str
    message: str
    frame: int  # -1: belongs to no frame


class LateMessage(_Base):
    """What an analyser beside the frames' path has found in a frame that was published before."""

    htype: Literal["skyseg_late-1"] = "skyseg_late-1"
    analyser: str
    frame: _Count
    values: dict[str, float | None]


Message = (
    HeaderMessage
    | ImageMessage
    | PreviewMessage
    | SeriesEndMessage
    | CountsMessage
    | HeartbeatMessage
    | EventMessage
    | LateMessage
)

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="htype")])


@functools.cache
def _descr(dtype: np.dtype[Any]) -> list[Any]:
    return list(dtype.descr)


def object_columns(objects: Objects) -> dict[str, Any]:
    """The keys of an image message that hold a table of objects."""
    return {"object_dtype": _descr(objects.dtype), "objects_base64": base64.b64encode(objects.data).decode()}


def encode(message: Message) -> bytes:
    """The JSON part of a message. NaN becomes null."""
    return message.model_dump_json(by_alias=True).encode()


def encode_result(result: Result, run: str, msg_number: int) -> tuple[bytes, bytes]:
    """The JSON of the image message of a frame, and of its counts message, which has the number after.

    What `encode` gives for an `ImageMessage` and a `CountsMessage`, in half the time: what is ours is not validated.
    """
    frame, found = result.frame, result.segmentation
    shared = {
        "frame": frame.index,
        "count": found.count,
        "stripes": found.stripes,
        "area_fraction": found.area_fraction,
        **{name: value for name, value in result.values.items() if name not in FRAME_QUANTITIES},
        "field_mT": frame.field_mT if math.isfinite(frame.field_mT) else None,
        "received_ns": frame.received_ns,
        "segmented_ns": result.segmented_ns,
        "drift_px": result.drift_px if math.isfinite(result.drift_px[0]) else None,
    }
    image = {
        "htype": "image",
        "msg_number": msg_number,
        "run": run,
        "shape": found.mask.shape,
        "type": "uint8",
        "compression": "none",
        "number": frame.number,
        "camera_ns": frame.camera_ns,
        **shared,
        **object_columns(found.objects),
    }
    counts = {"htype": "skyseg_counts-1", "msg_number": msg_number + 1, "run": run, **shared}
    return to_json(image, inf_nan_mode="null"), to_json(counts, inf_nan_mode="null")


class Preview(NamedTuple):
    """What a viewer asks for."""

    rate_hz: int  # at most
    side_px: int  # of the longer side, at most
    prepared: bool = False  # the image that was segmented; else the raw frame


def preview_topic(preview: Preview) -> bytes:
    """What to subscribe to for such previews. Their JSON begins so."""
    of = '"of":"prepared",' if preview.prepared else ""
    return f'{{"htype":"preview",{of}"rate_hz":{preview.rate_hz},"side_px":{preview.side_px},'.encode()


def asked_preview(topic: bytes) -> Preview | None:
    """What previews a subscription asks for; None: for none."""
    asked = re.fullmatch(rb'\{"htype":"preview",("of":"prepared",)?"rate_hz":(\d{1,3}),"side_px":(\d{2,4}),', topic)
    if asked is None:
        return None
    rate_hz, side_px = int(asked[2]), int(asked[3])
    within = 1 <= rate_hz <= MAX_PREVIEW_HZ and 16 <= side_px <= MAX_PREVIEW_PX
    return Preview(rate_hz, side_px, asked[1] is not None) if within else None


def decode(parts: Sequence[bytes]) -> Message:
    """Parse the parts of a message.

    Raises:
        StreamError: the parts are not a message of this schema; nothing else, whatever the bytes.
    """
    if not 1 <= len(parts) <= 2:
        raise StreamError(f"a message of {len(parts)} parts is malformed; allowed: 1 or 2")
    try:
        message = _MESSAGE.validate_json(parts[0])
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "message"
        raise StreamError(f"malformed message: {place}: {fault['msg']}") from None
    expected = 2 if isinstance(message, ImageMessage | PreviewMessage) else 1
    if len(parts) != expected:
        raise StreamError(f"malformed message: '{message.htype}' has {len(parts)} parts; allowed: {expected}")
    if isinstance(message, ImageMessage | PreviewMessage):
        height, width = message.shape
        if len(parts[1]) != height * width:
            raise StreamError(f"malformed message: image of {len(parts[1])} bytes; allowed: {height} x {width}")
        pixels = np.frombuffer(parts[1], np.uint8).reshape(height, width)
        if isinstance(message, PreviewMessage):
            message._image = pixels
            return message
        message._mask = pixels
        try:
            message.objects  # noqa: B018  refuse a broken table now, not when it is used
        except (binascii.Error, ValueError, TypeError) as error:
            raise StreamError(f"malformed message: objects_base64: {error}") from None
    return message
