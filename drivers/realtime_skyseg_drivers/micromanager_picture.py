"""An image as Micro-Manager hands it over, with its time."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np

from realtime_skyseg.records import Image

FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 2.0

_DTYPES: dict[str, np.dtype[Any]] = {"GRAY8": np.dtype(np.uint8), "GRAY16": np.dtype(np.uint16)}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of Micro-Manager."""

    pixels: Image
    number: int  # MMCore's ImageNumber, which begins with 0 at each start of a sequence
    camera_ns: int
    corner_px: tuple[int, int]  # left, top


class Gone(Exception):  # noqa: N818  no error
    """There are no images for now; the message says why. The source tries again by itself."""


class Source(Protocol):
    """Where the camera gets its images: one of the two modes."""

    description: dict[str, str | int | float | bool]

    def next(self, timeout_s: float) -> Picture | None:
        """The next image; None where none comes in time."""

    def close(self) -> None:
        """Release the camera."""


def read_picture(tags: dict[str, Any], pixels: Any) -> Picture | None:
    """The image; None where its pixels and its tags do not fit, as while the camera changes. It counts as lost then."""
    dtype = _DTYPES.get(tags["PixelType"])
    if dtype is None:
        raise Gone(f"the images are of type {tags['PixelType']}; allowed: {', '.join(_DTYPES)}")
    height, width = int(tags["Height"]), int(tags["Width"])
    if pixels.nbytes != height * width * dtype.itemsize:
        return None
    if not isinstance(pixels, np.ndarray):
        pixels = np.frombuffer(pixels, dtype).copy()
    return Picture(
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
