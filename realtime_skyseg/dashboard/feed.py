"""What the page knows of a running service: a client of its stream, in a thread of its own."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import StreamError
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import FRAME_QUANTITIES, Event, Mask, Objects
from realtime_skyseg.streaming import (
    EventMessage,
    HeaderMessage,
    HeartbeatMessage,
    ImageMessage,
    Message,
    Preview,
    SeriesEndMessage,
    Subscriber,
)
from realtime_skyseg.streaming.messages import CountsMessage, PreviewMessage

#: Masks that may wait for the preview of their frame, which comes after them.
_WAITING = 16

#: Frames whose numbers are kept for the plots: 40 minutes at 25 per second, thinned out when it is more.
_MOST_POINTS = 60_000

#: Events that are kept for the page.
_MOST_EVENTS = 500

#: The service is said to be gone after so long without a word; it speaks every second.
SILENT_S = 2.5

#: Of every frame, besides what analysers find.
_ALWAYS = (*FRAME_QUANTITIES, "field_mT")


@dataclass(frozen=True, slots=True)
class About:
    """What a run is, for displays."""

    run: str
    filename: str
    model: str
    engine: str
    pixel_size_um: float | None
    quantities: Mapping[str, Quantity]  # of frames, by name


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame with its mask, as a page may show it."""

    frame: int
    image: NDArray[np.uint8]  # (height, width), smaller than the mask maybe
    low: float  # grey level that 0 stands for
    high: float  # and 255
    mask: Mask
    objects: Objects
    count: int | None
    stripes: int | None
    area_fraction: float | None
    field_mT: float | None
    received_ns: int  # 0: it is not live
    prepared: bool = False  # the image is the one that was segmented, not the raw frame


@dataclass(slots=True)
class Series:
    """The numbers of frames, for plots; the oldest half loses every second one when there are too many."""

    columns: dict[str, list[float]] = field(default_factory=lambda: {"time_s": []})

    def add(self, time_s: float, values: dict[str, float]) -> None:
        """One frame."""
        rows = len(self.columns["time_s"])
        for name in values.keys() - self.columns.keys():
            self.columns[name] = [math.nan] * rows
        self.columns["time_s"].append(time_s)
        for name, column in self.columns.items():
            if name != "time_s":
                column.append(values.get(name, math.nan))
        if rows + 1 >= _MOST_POINTS:
            half = _MOST_POINTS // 2
            for name, column in self.columns.items():
                self.columns[name] = column[:half:2] + column[half:]

    def arrays(self, *names: str, most: int = 2000) -> list[NDArray[np.float64]]:
        """Some columns, of at most so many frames, spread evenly."""
        n = len(self.columns["time_s"])
        step = max(1, -(-n // most))
        start = (n - 1) % step if n else 0  # so that the newest is among them
        return [np.array(self.columns.get(name, [math.nan] * n)[start::step]) for name in names]


class Feed:
    """Follows a service. Start it, read what it knows, close it. Reading is safe from any thread.

    Args:
        address: of the stream.
        keys: folder of keys, where the service asks for them.
        side_px: of the previews' longer side.

    Attributes:
        about: the run; None before the first word.
        control_address: of the service's control socket; "": it has none.
        shown: the newest frame with its mask; None before.
        series: the numbers of all frames of this run that came.
        events: the newest, oldest first.
        counters: of the last heartbeat.
        ended: the end of the run, if it is over: its status and a sentence.
        lost: messages that did not arrive.
        problem: why nothing can be heard, in a sentence; "": all is well.
    """

    live = True

    def __init__(self, address: str, keys: str | Path | None = None, side_px: int = 1024) -> None:
        self.address = address
        self.about: About | None = None
        self.control_address = ""
        self.shown: Shown | None = None
        self.series = Series()
        self.events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self.counters: dict[str, Any] = {}
        self.ended: tuple[str, str] | None = None
        self.problem = ""
        self._side_px = side_px
        self._stream = Subscriber(address, keys=keys)
        self._wanted: dict[object, tuple[int, bool]] = {}  # who watches: so many frames a second, raw or prepared
        self._last_s = self._frame_s = time.monotonic()
        self._results: dict[int, ImageMessage] = {}
        self.first_ns = 0
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, name="skyseg-dashboard-feed")

    @property
    def lost(self) -> int:
        """Messages that did not arrive."""
        return self._stream.lost

    @property
    def silent_s(self) -> float:
        """How long ago the service was last heard."""
        return time.monotonic() - self._last_s

    @property
    def still_s(self) -> float:
        """How long ago the last frame came."""
        return time.monotonic() - self._frame_s

    def want(self, viewer: object, rate_hz: int, raw: bool = False) -> None:
        """A viewer can draw so many frames a second; 0: none any more. The service makes what the fastest one wants.

        If one wants raw frames and another one what was segmented, both get what was segmented.
        """
        with self._lock:
            if rate_hz:
                self._wanted[viewer] = (rate_hz, raw)
            else:
                self._wanted.pop(viewer, None)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call this, from the feed's thread, when there is another frame to show. Gives what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def leave() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return leave

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        self._leave.set()
        if self._thread.is_alive():
            self._thread.join()
        self._stream.close()

    def _run(self) -> None:
        while not self._leave.is_set():
            with self._lock:
                wanted = list(self._wanted.values())
            rate_hz = max((rate for rate, _ in wanted), default=0)
            prepared = not all(raw for _, raw in wanted)
            self._stream.ask_previews(Preview(rate_hz, self._side_px, prepared) if rate_hz else None)
            try:
                message = self._stream.receive(0.2)
            except StreamError as error:
                self.problem = str(error)
                self._leave.wait(1.0)
                continue
            if message is not None:
                self._last_s = time.monotonic()
                self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, HeaderMessage):
            if self.about is None or (message.run, message.filename) != (self.about.run, self.about.filename):
                self._begin()
            self.about = About(
                message.run,
                message.filename,
                message.model,
                message.engine,
                message.pixel_size_um,
                _quantities(message),
            )
            self.control_address = message.control
        elif isinstance(message, ImageMessage):
            self._results[message.frame] = message
            while len(self._results) > _WAITING:
                self._results.pop(next(iter(self._results)))
        elif isinstance(message, PreviewMessage):
            if (result := self._results.get(message.frame)) is not None:
                self.shown = Shown(
                    message.frame, message.image, message.low, message.high, result.mask, result.objects, result.count,
                    result.stripes, result.area_fraction, result.field_mT, result.received_ns,
                    message.of == "prepared",
                )  # fmt: skip
                with self._lock:
                    listeners = list(self._listeners)
                for listener in listeners:
                    listener()
        elif isinstance(message, CountsMessage):
            self.first_ns = self.first_ns or message.received_ns
            self._frame_s = time.monotonic()
            values = {name: _number(getattr(message, name)) for name in _ALWAYS}
            values |= {name: _number(value) for name, value in (message.model_extra or {}).items()}
            values["latency_ms"] = (message.segmented_ns - message.received_ns) / 1e6
            self.series.add((message.received_ns - self.first_ns) / 1e9, values)
        elif isinstance(message, EventMessage):
            self.events.append(Event(message.time_ns, message.kind, message.message, message.frame))
        elif isinstance(message, HeartbeatMessage):
            self.counters = message.frames
        elif isinstance(message, SeriesEndMessage):
            self.ended, self.counters = (message.status, message.message), message.frames

    def _begin(self) -> None:
        """Another run, or another file of the same."""
        self.series, self.ended, self.counters = Series(), None, {}
        self.shown = None
        self._results.clear()
        self.events.clear()
        self.first_ns = 0


def _quantities(header: HeaderMessage) -> dict[str, Quantity]:
    """What there is to be plotted, by name."""
    found = dict(FRAME_QUANTITIES)
    for one in header.quantities:
        if one.get("of") == "frame":
            name = one.get("name", "")
            found[name] = Quantity(name, "f8", math.nan, one.get("unit", ""), one.get("meaning", ""), "frame")
    return found


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
