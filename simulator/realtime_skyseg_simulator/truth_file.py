"""The file of what the twin's film really did."""

import time
from collections import deque
from pathlib import Path
from typing import Any

import h5py

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.hdf5_filters import bitshuffle
from realtime_skyseg_simulator.samples import Truth
from realtime_skyseg_simulator.twin_settings import TwinSettings

#: Longest time between two flushes of the truth.
_FLUSH_S = 1.0


class TruthFile:
    """What really was in each frame, in an HDF5 file that only the simulation writes.

    /frames     one value per exposure and name, lost ones included; the number is that of the run file
    /positions  (M, 2) float32, x and y in px of all frames' skyrmions; `frames/positions_end` says where each ends
    /mask       (N, H, W) uint8, classes as in a run file
    /magnet     time_ns and set_V of everything that the supply was told

    The attribute `end_field_mT` is the field when the microscope ended.
    """

    COLUMNS = ("number", "camera_ns", "sample_s", "field_mT", "in_plane_mT", "shift_down_px", "shift_right_px")

    def __init__(self, settings: TwinSettings) -> None:
        assert settings.truth is not None
        self.path = Path(str(settings.truth).replace("{time}", time.strftime("%Y%m%d-%H%M%S")))
        self.sets: deque[tuple[int, float]] = deque(maxlen=1_000_000)
        self._positions = 0
        self._flushed_s = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self.path, "x")
        except OSError as error:
            reason = "it exists already" if self.path.exists() else str(error)
            raise SettingsError(f"truth: '{self.path}' cannot be written: {reason}; allowed: a new file") from error
        self._file.attrs.update(synthetic=True, settings=settings.model_dump_json())
        kinds = {name: "i8" if name in ("number", "camera_ns") else "f8" for name in self.COLUMNS}
        for name, kind in {**kinds, "count": "i4", "positions_end": "i8"}.items():
            self._file.create_dataset(f"frames/{name}", (0,), kind, maxshape=(None,), chunks=(1024,))
        for name, kind in (("time_ns", "i8"), ("set_V", "f8")):
            self._file.create_dataset(f"magnet/{name}", (0,), kind, maxshape=(None,), chunks=(1024,))
        self._file.create_dataset("positions", (0, 2), "f4", maxshape=(None, 2), chunks=(1024, 2))
        view = (settings.height_px, settings.width_px)
        self._file.create_dataset("mask", (0, *view), "u1", maxshape=(None, *view), chunks=(1, *view), **bitshuffle)

    def add(self, values: tuple[float, ...], truth: Truth) -> None:
        """Add an exposure: the values of `COLUMNS`, and what is in the view."""
        self._positions += len(truth.positions_px)
        row = {**dict(zip(self.COLUMNS, values, strict=True)), "count": truth.count, "positions_end": self._positions}
        for name, value in row.items():
            _append(self._file[f"frames/{name}"], [value])
        _append(self._file["positions"], truth.positions_px)
        _append(self._file["mask"], truth.mask[None])
        if time.monotonic() - self._flushed_s > _FLUSH_S:
            self._flushed_s = time.monotonic()
            self._take_sets()
            self._file.flush()

    def close(self, end_field_mT: float) -> None:
        """Finish the file. Safe to call twice."""
        if self._file:
            self._take_sets()
            self._file.attrs["end_field_mT"] = end_field_mT
            self._file.close()

    def _take_sets(self) -> None:
        rows = [self.sets.popleft() for _ in range(len(self.sets))]
        if rows:
            _append(self._file["magnet/time_ns"], [time_ns for time_ns, _ in rows])
            _append(self._file["magnet/set_V"], [volts for _, volts in rows])


def _append(dataset: h5py.Dataset, rows: Any) -> None:
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows
