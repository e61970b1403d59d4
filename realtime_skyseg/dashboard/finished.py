"""What the page knows of a run that is over: its file."""

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from realtime_skyseg.afterwards import analysed_frames
from realtime_skyseg.config import validate
from realtime_skyseg.dashboard.feed import About, Series, Shown
from realtime_skyseg.preparation import Preparation
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import FRAME_QUANTITIES, Event, Image, Skipped
from realtime_skyseg.storage import open_run
from realtime_skyseg.streaming.preview import eight_bits


class FinishedRun:
    """A run file, shown frame by frame. Has what a `Feed` has; `show` chooses the frame. Close it.

    Args:
        path: of the run file.
        side_px: longer side of what is shown, at most.

    Raises:
        RunFileError: it is not one, or no frame of it was analysed.
    """

    live = False
    address = ""
    problem = ""
    lost = 0
    silent_s = 0.0
    control_address = ""

    def __init__(self, path: str | Path, side_px: int = 1024) -> None:
        self._run = open_run(path)
        self.path = Path(path)
        try:
            self.frames = analysed_frames(self._run)
            table = self._run.table
            quantities: dict[str, Quantity] = {
                name: one
                for name, one in self._run.quantities.items()
                if name in FRAME_QUANTITIES or (one.of == "frame" and name in (table.dtype.names or ()))
            }
            provenance = self._run.provenance
            self.about = About(
                provenance.get("run_id", ""), self.path.name, provenance.get("model", ""), provenance.get("engine", ""),
                self._run.pixel_size_um, FRAME_QUANTITIES | quantities,
            )  # fmt: skip
            self.series = _series(table[self.frames], [*self.about.quantities])
            self.events: deque[Event] = deque(
                Event(one["time_ns"], one["kind"], one["message"], one["frame"]) for one in self._run.events
            )
            summary = self._run.summary or {}
            self.counters: dict[str, Any] = dict(summary.get("frames", {}))
            self.ended: tuple[str, str] | None = (summary.get("status", "lost"), summary.get("message", ""))
            tree = {"camera": {"driver": "replay", "path": "bundled"}, "prepare": self._run.config.get("prepare")}
            self._prepare = validate(tree).prepare
        except BaseException:
            self._run.close()
            raise
        self._side_px = side_px
        self._raw = False
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self.shown: Shown | None = None
        self.show(0)

    def want(self, viewer: object, rate_hz: int, raw: bool = False) -> None:
        """The raw frame, or the image that was segmented."""
        del viewer, rate_hz
        if raw != self._raw and self.shown is not None:
            self._raw = raw
            self.show(self.frames.index(self.shown.frame))

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call this when another frame is shown. Gives what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def show(self, place: int) -> None:
        """Show the frame at that place among those that were analysed."""
        with self._lock:
            index = self.frames[place]
            row = self._run.table[index]
            image = None if self._raw else self._prepared(index)
            small, low, high = eight_bits(self._run.raw[index] if image is None else image, self._side_px)
            counted = np.isfinite(row["count"])
            self.shown = Shown(
                index, small, low, high, self._run.mask[index], self._run.objects(index),
                int(row["count"]) if counted else None, int(row["stripes"]) if counted else None,
                float(row["area_fraction"]) if counted else None,
                float(row["field_mT"]) if np.isfinite(row["field_mT"]) else None, 0, image is not None,
            )  # fmt: skip
        for listener in list(self._listeners):
            listener()

    def _prepared(self, index: int) -> Image | None:
        """The image that was segmented, but for how the drift was followed; None: the frame itself was."""
        if self._prepare is None:
            return None
        shape = self._run.raw.shape[1], self._run.raw.shape[2]
        preparation = Preparation(self._prepare, shape, self._run.backgrounds())
        live = self._run.table["skipped"] == Skipped.NOT_SKIPPED
        first = max(0, index - self._prepare.average_frames + 1)
        for before in range(first, index):
            preparation(self._run.raw[before], before, keep=bool(live[before]))
        return preparation.place_image(preparation(self._run.raw[index], index).image)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._run.close()


def _series(table: np.ndarray, names: list[str]) -> Series:
    columns = {"time_s": table["time_s"].astype(float).tolist()}
    for name in {*names, "field_mT"} & set(table.dtype.names or ()):
        columns[name] = table[name].astype(float).tolist()
    if {"received_ns", "segmented_ns"} <= set(table.dtype.names or ()):
        columns["latency_ms"] = ((table["segmented_ns"] - table["received_ns"]) / 1e6).tolist()
    return Series(columns)
