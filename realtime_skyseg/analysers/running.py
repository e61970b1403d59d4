"""Analysers at work: what they answer is checked, what fails is counted, and none can hold the frame's path up."""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg import devices
from realtime_skyseg.analysers.api import NETWORK_OUTPUTS, Analyser, AnalyserSettings, View
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import OBJECT_DTYPE, Objects, printable

log = logging.getLogger(__name__)

#: So many failures in a row, or calls of an `every_frame` analyser beyond its budget, and it is switched off.
MOST_FAILURES, MOST_LATE = 10, 3

#: What one frame may cost in the frame's own path, where frames do not wait.
BUDGET_MS = 20.0

#: Names that stand for something else in a run file or a message.
RESERVED = {
    "frame", "number", "htype", "run", "msg_number", "shape", "type", "compression", "object_dtype", "objects_base64",
    "drift_px", "field_mT", "time_s", "diameter_px", "area_px", *(OBJECT_DTYPE.names or ()),
    "written", "camera_lost", "camera_ns", "received_ns", "written_ns", "write_ns", "field_age_ns", "raw_crc32",
    "row_crc32", "skipped", "segmented_ns", "published_ns", "drift_x_px", "drift_y_px", "drift_quality", "polarity",
    "source_crc32", "mask_crc32", "objects_crc32", "result_crc32",
}  # fmt: skip


@dataclass(slots=True)
class Found:
    """What an analyser found in one frame."""

    values: dict[str, float] = field(default_factory=dict)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)  # of the objects
    maps: dict[str, NDArray[Any]] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)  # kind and sentence, for the file and the stream


class RunningAnalyser:
    """One analyser of a run.

    Attributes:
        frames: that it was asked about.
        failed: that it gave no proper answer for.
        empty: values that are no number (NaN).
        off: it was switched off.
        took_ns: how long it took for the frame before.
    """

    def __init__(self, name: str, analyser: Analyser, budget_ms: float = BUDGET_MS) -> None:
        self.name = name
        self.budget_ms = budget_ms
        self.analyser = analyser
        self.pace = analyser.pace
        self.quantities: dict[str, Quantity] = {quantity.name: quantity for quantity in analyser.quantities}
        self.frames = self.failed = self.empty = 0
        self.off = False
        self.took_ns = 0
        self._in_a_row = self._late = 0

    def of(self, kind: str) -> list[Quantity]:
        """Its quantities of a kind: "frame", "object" or "map"."""
        return [quantity for quantity in self.quantities.values() if quantity.of == kind]

    def __call__(self, view: View) -> Found:
        """Ask it about a frame. Raises nothing."""
        if self.off:
            return Found()
        self.frames += 1
        begun = time.perf_counter_ns()
        view = replace(view, told=[]) if self.pace == "when_idle" else view  # which others look at meanwhile
        try:
            found = self._checked(self.analyser(view), view)
        except BaseException as error:  # an analyser may raise SystemExit, too
            log.debug("analyser %s failed at frame %d", self.name, view.frame, exc_info=True)
            found = Found(events=self._failure(f"{type(error).__name__}: {printable(error)[:300]}", view.frame))
        else:
            self._in_a_row = 0
        self.took_ns = time.perf_counter_ns() - begun
        found.events += [*view.told, *self._watch_budget(view.frame)]
        view.told.clear()
        return found

    def summary(self) -> dict[str, Any]:
        """For the summary of the run."""
        own = self.analyser.summary() if hasattr(self.analyser, "summary") else {}
        return {"frames": self.frames, "failed": self.failed, "empty": self.empty, "switched_off": self.off, **own}

    def _checked(self, answer: Mapping[str, Any], view: View) -> Found:
        if not isinstance(answer, Mapping):
            raise TypeError(f"it gives {type(answer).__name__}; allowed: a dictionary of its quantities")
        if unknown := set(answer) - set(self.quantities):
            raise ValueError(f"it gives {sorted(map(str, unknown))}; allowed: {', '.join(self.quantities)}")
        found = Found()
        for name, value in answer.items():
            quantity, kind = self.quantities[name], np.dtype(self.quantities[name].dtype)
            if quantity.of == "frame":
                number = float(value)
                found.values[name] = float(np.array(number).astype(kind)) if kind.kind == "f" else int(number)
                self.empty += math.isnan(number)
                continue
            array = np.asarray(value)
            expected = (len(view.objects),) if quantity.of == "object" else quantity.map_shape(view.mask.shape)
            if array.shape != expected or array.dtype.kind not in "iufb":
                raise ValueError(f"{name} is {array.shape} of {array.dtype}; allowed: numbers, {expected}")
            (found.columns if quantity.of == "object" else found.maps)[name] = array.astype(kind)
            self.empty += int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
        return found

    def _failure(self, what: str, frame: int) -> list[tuple[str, str]]:
        self.failed += 1
        self._in_a_row += 1
        if self._in_a_row == 1:
            return [("analyser_failed", f"analyser '{self.name}' failed at frame {frame}: {what}")]
        if self._in_a_row >= MOST_FAILURES:
            self.off = True
            return [
                ("analyser_off", f"analyser '{self.name}' is switched off: it failed {self._in_a_row} times in a row")
            ]
        return []

    def _watch_budget(self, frame: int) -> list[tuple[str, str]]:
        if self.pace != "every_frame" or self.off:
            return []
        self._late = self._late + 1 if self.took_ns > 1e6 * self.budget_ms else 0
        if self._late < MOST_LATE:
            return []
        self.off = True
        message = (
            f"analyser '{self.name}' is switched off at frame {frame}: it took {self.took_ns / 1e6:.0f} ms, the "
            f'{self._late}th time in a row; allowed: {self.budget_ms:g} ms in the frame\'s path, or pace = "when_idle"'
        )
        return [("analyser_off", message)]


def with_columns(objects: Objects, columns: Mapping[str, NDArray[Any]], wanted: Iterable[Quantity]) -> Objects:
    """A table of objects with more columns; fill values where there is none."""
    wanted = list(wanted)
    if not wanted:
        return objects
    names = objects.dtype.names or ()
    rows = np.empty(
        len(objects), [*((name, objects.dtype[name]) for name in names), *((q.name, q.dtype) for q in wanted)]
    )
    for name in names:
        rows[name] = objects[name]
    for quantity in wanted:
        rows[quantity.name] = columns.get(quantity.name, quantity.fill)
    return rows


def load_settings(name: str, tree: Mapping[str, Any]) -> tuple[type[Analyser], AnalyserSettings]:
    """The class behind a name, and its settings.

    Raises:
        SettingsError: there is no such analyser, or it declares what cannot be; it begins with "driver".
        ValidationError: the settings are not its own.
    """
    kind = devices.driver("analysers", name)
    for quantity in kind.quantities:
        if (
            not quantity.name.isidentifier()
            or quantity.name in RESERVED
            or quantity.of not in ("frame", "object", "map")
        ):
            raise SettingsError(
                f"'{name}' declares '{quantity.name}' of '{quantity.of}'; allowed: a new name of frame, object or map"
            )
        if np.dtype(quantity.dtype).kind not in "iuf":
            raise SettingsError(f"'{name}' declares '{quantity.name}' as {quantity.dtype!r}; allowed: a kind of number")
        if quantity.of == "object" and kind.pace == "when_idle":
            raise SettingsError(f"'{name}' declares '{quantity.name}' of objects; allowed: pace every_frame")
    if unknown := set(kind.needs) - set(NETWORK_OUTPUTS) - {"image", "mask", "objects"}:
        raise SettingsError(f"'{name}' needs {sorted(unknown)}; allowed: {', '.join(NETWORK_OUTPUTS)}")
    return kind, kind.Settings.model_validate(dict(tree))
