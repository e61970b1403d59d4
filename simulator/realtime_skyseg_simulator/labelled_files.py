"""Labelled recordings as files: HDF5, TIFF, folders of images with their masks."""

import csv
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import cv2
import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from realtime_skyseg import yaml_text
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.hdf5_filters import bitshuffle
from realtime_skyseg.recordings import LabelledRecording
from realtime_skyseg.records import Class
from realtime_skyseg_simulator.samples import Truth
from realtime_skyseg_simulator.simulate_settings import RecordingSettings, SequenceSettings

LAYOUT = LabelledRecording.layout

_FOLDS = 5  # that the sources of a folder are dealt to

#: Blue, green, red of a label picture, as labels of real images are coloured.
_COLOURS = {
    Class.BACKGROUND: (255, 0, 0),
    Class.SKYRMION: (0, 0, 255),
    Class.DEFECT: (0, 255, 0),
    Class.OUTSIDE: (0, 255, 255),
    Class.EDGE: (255, 255, 0),
}


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """One image of the simulated microscope, and what is truly in it."""

    image: NDArray[np.uint8] | NDArray[np.uint16]  # (H, W)
    truth: Truth  # of the view
    time_s: float
    field_mT: float
    in_plane_mT: float
    source: int  # frames of one source show the same sample
    shift_px: tuple[float, float]  # (down, right): where the sample has drifted to since the background


class Writer(Protocol):
    """Takes labelled frames, one after the other."""

    def add(self, frame: LabelledFrame) -> None:
        """Take a frame."""


class Hdf5Writer(AbstractContextManager["Hdf5Writer"]):
    """Writes labelled frames into one HDF5 file; see the module for its layout. It has its name only when complete."""

    def __init__(self, path: Path, settings: RecordingSettings) -> None:
        """Make the file. Raises `SettingsError` where that is not possible, or the file exists."""
        self._path, self._settings = path, settings
        self._partial = path.with_name(path.name + ".partial")
        _refuse_existing(path)
        try:
            self._file = h5py.File(self._partial, "w")
        except OSError as error:
            raise SettingsError(f"--out: '{path}' cannot be written: {error}") from error
        rate_hz = settings.rate_hz if isinstance(settings, SequenceSettings) else 1.0
        self._file.attrs.update(
            layout=LAYOUT, synthetic=True, rate_hz=rate_hz, settings=yaml_text.dump(settings.model_dump(mode="json"))
        )

    def add(self, frame: LabelledFrame) -> None:
        """Append one frame."""
        index = len(self._file["count"]) if "count" in self._file else 0
        for name, value in (("frames", frame.image), ("masks", frame.truth.mask)):
            self._append(name, value, **bitshuffle)
        for name in ("time_s", "field_mT", "in_plane_mT", "source"):
            self._append(name, np.asarray(getattr(frame, name)))
        self._append("count", np.asarray(frame.truth.count, np.int32))
        self._append("shift_px", np.asarray(frame.shift_px))
        rows = np.zeros(frame.truth.count, [("frame", "<u4"), ("x", "<f4"), ("y", "<f4")])
        rows["frame"] = index
        rows["x"], rows["y"] = frame.truth.positions_px.T
        if "positions" not in self._file:
            self._file.create_dataset("positions", (0,), rows.dtype, maxshape=(None,), chunks=(1024,))
        table = self._file["positions"]
        table.resize(len(table) + len(rows), axis=0)
        table[len(table) - len(rows) :] = rows

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def _append(self, name: str, value: NDArray[Any], **compression: Any) -> None:
        if name not in self._file:
            chunks = (1, *value.shape) if value.ndim == 2 else (1024, *value.shape)
            self._file.create_dataset(
                name, (0, *value.shape), value.dtype, maxshape=(None, *value.shape), chunks=chunks, **compression
            )
        values = self._file[name]
        values.resize(len(values) + 1, axis=0)
        values[-1] = value


class TiffWriter(AbstractContextManager["TiffWriter"]):
    """Writes the frames as pages of one TIFF file; what is true of them goes into the first page's description."""

    def __init__(self, path: Path, settings: RecordingSettings) -> None:
        """Prepare; the file is written at the end. Raises `SettingsError` where it exists."""
        _refuse_existing(path)
        self._path, self._settings = path, settings
        self._frames: list[LabelledFrame] = []

    def add(self, frame: LabelledFrame) -> None:
        """Keep one frame."""
        self._frames.append(frame)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        description: dict[str, Any] = {"synthetic": True, "generator": "skyseg simulate"}
        if isinstance(self._settings, SequenceSettings):
            description["rate_hz"] = self._settings.rate_hz
        description["field_mT"] = [round(frame.field_mT, 6) for frame in self._frames]
        description["true_count"] = [frame.truth.count for frame in self._frames]
        try:
            with tifffile.TiffWriter(self._path) as tiff:
                for i, frame in enumerate(self._frames):
                    tiff.write(
                        frame.image,
                        compression="zlib",
                        compressionargs={"level": 9},
                        rowsperstrip=frame.image.shape[0],
                        photometric="minisblack",
                        description=json.dumps(description) if i == 0 else None,
                        metadata=None,
                    )
        except OSError as error:
            raise SettingsError(f"--out: '{self._path}' cannot be written: {error.strerror}") from error


class FolderWriter(AbstractContextManager["FolderWriter"]):
    """Writes each frame as a pair of PNG files, and a table that says which frames show the same sample."""

    def __init__(self, folder: Path) -> None:
        """Make the folders. Raises `SettingsError` where that is not possible, or there are images already."""
        self._images, self._labels = folder / "images", folder / "labels"
        _refuse_existing(self._images)
        try:
            for one in (self._images, self._labels):
                one.mkdir(parents=True, exist_ok=True)
            self._table = (folder / "table.csv").open("w", newline="")
        except OSError as error:
            raise SettingsError(f"--folder: '{folder}' cannot be written: {error.strerror}") from error
        self._rows = csv.writer(self._table)
        self._rows.writerow(["image", "label", "source_id", "fold", "field_mT", "true_count"])
        self._colours = np.array([_COLOURS[value] for value in Class], np.uint8)
        self._n = 0

    def add(self, frame: LabelledFrame) -> None:
        """Write one pair."""
        name = f"{self._n:06d}.png"
        for folder, pixels in ((self._images, frame.image), (self._labels, self._colours[frame.truth.mask])):
            _, data = cv2.imencode(".png", pixels)
            (folder / name).write_bytes(data.tobytes())  # cv2.imwrite cannot write every Windows path
        row = (f"images/{name}", f"labels/{name}", frame.source, frame.source % _FOLDS, frame.field_mT)
        self._rows.writerow([*row, frame.truth.count])
        self._n += 1

    def __exit__(self, *_: object) -> None:
        self._table.close()


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise SettingsError(f"'{path}' exists already and is not overwritten; choose another name")
