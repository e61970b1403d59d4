"""A frame with its mask and objects, packed for the browser.

One binary message: the length of the head (4 bytes, little-endian), the head as JSON, then the parts whose lengths the
head tells: the frame as JPEG, the mask as runs (class of a byte, length of four bytes, over all pixels row by row), and
the objects as 32 bit floats, column by column.
"""

import json
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.dashboard.feed import Shown
from realtime_skyseg.records import Mask

#: Good enough for the eye; the mask is lossless.
_QUALITY = 85


def pack(shown: Shown, number: int) -> bytes:
    """The message of a frame.

    Args:
        shown: the frame.
        number: comes back when the browser has drawn it.
    """
    image = cv2.imencode(".jpg", shown.image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    runs = pack_runs(shown.mask)
    objects = shown.objects
    names = list(objects.dtype.names or ())
    table = np.stack([objects[name].astype("<f4") for name in names]) if names else np.zeros((0, 0), "<f4")
    head: dict[str, Any] = {
        "number": number, "frame": shown.frame, "count": shown.count, "stripes": shown.stripes,
        "area_fraction": shown.area_fraction, "field_mT": shown.field_mT, "shape": shown.mask.shape,
        "prepared": shown.prepared, "low": shown.low, "high": shown.high,
        "received_ms": shown.received_ns / 1e6 if shown.received_ns else None,
        "columns": names, "objects": len(objects), "parts": [len(image), len(runs), table.nbytes],
    }  # fmt: skip
    told = json.dumps(head).encode()
    return b"".join((len(told).to_bytes(4, "little"), told, image, runs, table.tobytes()))


def pack_runs(mask: Mask) -> bytes:
    """A mask as (class, length) of its runs: 5 bytes each."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), len(flat) - 1) if len(flat) else np.zeros(0, np.int64)
    runs = np.empty(len(ends), [("value", "u1"), ("length", "<u4")])
    runs["value"], runs["length"] = flat[ends], np.diff(ends, prepend=-1)
    return runs.tobytes()


def unpack_runs(content: bytes, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask again."""
    runs = np.frombuffer(content, [("value", "u1"), ("length", "<u4")])
    return np.repeat(runs["value"], runs["length"]).reshape(shape)
