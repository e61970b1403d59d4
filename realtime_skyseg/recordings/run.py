"""Recordings of this product: run files, and labelled recordings as `skyseg simulate` writes them."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import RunFileError
from realtime_skyseg.recordings.recording import Recording
from realtime_skyseg.storage import layout, open_run


class RunRecording(Recording):
    """The raw frames of a run file of this project: finished, live or killed. Frames it has lost are passed over."""

    format = "run"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._context: AbstractContextManager[Any] | None = open_run(path)
            self._run = self._context.__enter__()
        except (OSError, RunFileError) as error:
            self._broken(0, error)
        table = self._run.table
        self._rows = np.flatnonzero(table["written"])
        table = table[self._rows]
        self.n_frames = len(table)
        stamps = table["camera_ns"].astype(np.int64)
        if np.any(stamps < 0):
            stamps = table["received_ns"].astype(np.int64)
        self.stamps_ns = stamps
        self.fields_mT = table["field_mT"].astype(np.float64)
        names = self._run.frame_names
        self.names = None if names is None else [names[row] for row in self._rows]
        steps = np.diff(stamps)
        period = float(np.median(steps)) if steps.size else 0.0
        self.rate_hz = 1e9 / period if period > 0 else None

    def close(self) -> None:
        """Close the file."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= (self.n_frames or 0):
            raise self._ended()
        try:
            return np.asarray(self._run.raw[self._rows[index]])
        except (OSError, RunFileError) as error:
            self._broken(index, error)


class LabelledRecording(Recording):
    """The frames of a labelled recording, as `skyseg simulate` writes it; what is true of them is not looked at."""

    format = "labelled"
    layout = "skyseg-labelled-1"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = h5py.File(path, "r")
        try:
            self._frames = self._file["frames"]
            self.n_frames = len(self._frames)
            self.fields_mT = np.asarray(self._file["field_mT"], np.float64)
            self.rate_hz = float(self._file.attrs["rate_hz"])
        except (KeyError, OSError, ValueError, TypeError) as error:
            self._file.close()
            self._broken(0, error)
        self.synthetic = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= (self.n_frames or 0):
            raise self._ended()
        try:
            return np.asarray(self._frames[index])
        except OSError as error:
            self._broken(index, error)


def kind_of(path: Path) -> str:
    """What an HDF5 file is: "run", "labelled", or "" for another program's, and for what is none."""
    for swmr in (False, True):
        try:
            with h5py.File(path, "r", swmr=swmr) as file:
                told = file.attrs.get("layout")
                if isinstance(told, str):
                    return "labelled" if told == LabelledRecording.layout else "run"
                return "run" if layout.FRAMES in file and layout.RAW in file else ""
        except (OSError, KeyError, RuntimeError):
            continue
    return ""
