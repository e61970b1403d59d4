"""Writing a run file."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from realtime_skyseg.errors import DiskFullError, RunFileError, SettingsError
from realtime_skyseg.records import NOT_ANALYSED, Class, Event, Frame, Result, Skipped
from realtime_skyseg.storage import layout

#: Kept free on the disk beyond 32 frames, for what HDF5 still holds in its caches. It must never meet a full disk
#: itself: an error while it empties them ends the process by a segmentation fault (HDF5 2.0.0 in h5py 3.16).
_RESERVE_BYTES = 48_000_000

_RECORDED_PACKAGES = (
    "realtime_skyseg", "numpy", "torch", "openvino", "tensorrt", "opencv-python", "h5py", "hdf5plugin", "pyzmq",
    "pymmcore", "pycromanager",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a run's numbers come from."""

    run_id: str
    configuration: str  # the full settings, YAML
    model: str
    weights_sha256: str
    engine: str
    device: str
    precision: str
    agreement: float
    title: str = ""
    sample: str = ""
    operator: str = ""
    clock: str = ""
    camera: dict[str, str | int | float | bool] = field(default_factory=dict)
    pixel_size_um: float | None = None
    supply: dict[str, str | int | float | bool] = field(default_factory=dict)  # of the magnet
    calibration: str = ""  # of the magnet, YAML


class RunWriter:
    """One run file that is being written, by one thread.

    The file has the suffix `.partial` until `close`. Others may read it meanwhile (HDF5's single-writer,
    multiple-reader mode); what they see, and what survives a kill, is at most `flush_s` old.

    Args:
        path: of the finished file; never overwritten.
        shape: (height, width) of the frames.
        dtype: of the frames.
        provenance: what the file says of its origin.
        flush_s: longest time between two flushes while frames arrive.

    Raises:
        SettingsError: the file exists, cannot be made, or the disk is nearly full.
        DiskFullError: from `add_frame`, before the disk is full; results and events are still taken.
        RunFileError: from all methods, where the disk refuses.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], dtype: np.dtype[Any], provenance: Provenance, flush_s: float = 0.5
    ) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._flush_s = flush_s
        self._start_ns = time.time_ns()
        self._reserve = _RESERVE_BYTES + 32 * shape[0] * shape[1] * dtype.itemsize
        for existing in (self.path, self.partial):
            if existing.exists():
                raise SettingsError(
                    f"run file '{existing}' exists already and is not overwritten; choose another record.name"
                )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._free() < self._reserve:
                raise SettingsError(
                    f"record.folder: the disk of '{path.parent}' has {self._free() / 1e6:.0f} MB free; "
                    f"allowed: at least {self._reserve / 1e6:.0f} MB"
                )
            # HDF5 1.10's format, the oldest with single-writer-multiple-reader, so that old tools can read it.
            self._file = h5py.File(self.partial, "x", libver=("v110", "v110"))
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsError(f"record.folder: run file '{self.partial}' cannot be written: {reason}") from error
        try:
            self._create(shape, dtype, provenance)
            self._file.swmr_mode = True
        except BaseException:
            self._file.close()
            self.partial.unlink()
            raise
        self._raw, self._masks = self._file[layout.RAW], self._file[layout.MASK]
        self._frames = _Block(self._file[layout.FRAMES], layout.FRAME_COLUMNS)
        self._results = _Block(self._file[layout.FRAMES], layout.RESULT_COLUMNS)
        self._objects: list[np.ndarray] = []
        self._events: list[np.ndarray] = []
        self._next_flush = time.monotonic() + flush_s
        self._closed = False

    def add_frame(self, frame: Frame) -> None:
        """Write a raw frame at its index. Indices rise; a gap stays visible as `written` 0."""
        if self._free() < self._reserve:
            raise DiskFullError(
                f"the disk of '{self.path.parent}' is full but for the {self._reserve / 1e6:.0f} MB that finish the "
                f"run file: frame {frame.index} and those after it are not recorded"
            )
        try:
            self._raw.resize(frame.index + 1, axis=0)
            self._raw[frame.index] = frame.image
        except (OSError, RuntimeError) as error:
            raise RunFileError(f"run file '{self.partial}' cannot take frame {frame.index}: {error}") from error
        self._frames.add(
            frame.index,
            written=1,
            number=frame.number,
            camera_lost=frame.camera_lost,
            camera_ns=frame.camera_ns,
            received_ns=frame.received_ns,
            written_ns=time.time_ns(),
            time_s=(frame.received_ns - self._start_ns) / 1e9,
            field_mT=frame.field_mT,
            field_age_ns=frame.field_age_ns,
        )

    def add_result(self, result: Result) -> None:
        """Write a frame's mask, numbers and objects. Indices rise."""
        index, found = result.frame.index, result.segmentation
        try:
            self._masks.resize(index + 1, axis=0)
            self._masks[index] = found.mask
        except (OSError, RuntimeError) as error:
            raise RunFileError(f"run file '{self.partial}' cannot take the mask of frame {index}: {error}") from error
        self._results.add(
            index,
            skipped=Skipped.NOT_SKIPPED,
            count=found.count,
            stripes=found.stripes,
            area_fraction=found.area_fraction,
            segmented_ns=result.segmented_ns,
            published_ns=result.published_ns,
        )
        rows = np.empty(len(found.objects), layout.ROW_DTYPE)
        rows["frame"] = index
        for name in found.objects.dtype.names or ():
            rows[name] = found.objects[name]
        self._objects.append(rows)

    def add_skipped(self, index: int, cause: Skipped) -> None:
        """Note that a frame will not be analysed. Indices rise, together with those of `add_result`."""
        self._results.add(index, skipped=cause)

    def add_event(self, event: Event) -> None:
        """Note an event; its message is cut to 1000 bytes."""
        row = (event.time_ns, event.frame, event.kind.encode()[:32], event.message.encode()[:1000])
        self._events.append(np.array([row], layout.EVENT_DTYPE))

    def flush_if_due(self) -> None:
        """Bring everything to the disk when `flush_s` has passed since the last time."""
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Bring everything to the disk: what was added so far survives a kill."""
        try:
            self._frames.write()
            self._results.write()
            _append(self._file[layout.OBJECTS], self._objects)
            _append(self._file[layout.EVENTS], self._events)
            self._file.flush()
        except (OSError, RuntimeError) as error:
            raise RunFileError(f"run file '{self.partial}' cannot be flushed: {error}") from error
        self._next_flush = time.monotonic() + self._flush_s

    def close(self, summary: dict[str, Any], exit_status: int) -> None:
        """Write the summary, close the file and give it its final name. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            try:
                self.flush()
                self._file[layout.SUMMARY][()] = json.dumps(summary).encode()[: layout.SUMMARY_LENGTH]
                self._file["entry/end_time"][()] = _iso(time.time_ns()).encode()
                self._file["entry/exit_status"][()] = exit_status
            finally:
                self._file.close()
            if self.path.exists():
                raise FileExistsError(f"'{self.path}' has appeared meanwhile")
            self.partial.rename(self.path)
        except (OSError, RuntimeError) as error:
            raise RunFileError(f"run file '{self.partial}' cannot be finished: {error}") from error

    def _free(self) -> int:
        return shutil.disk_usage(self.path.parent).free

    def _create(self, shape: tuple[int, int], dtype: np.dtype[Any], provenance: Provenance) -> None:
        """Make every group, dataset and attribute: none can be added once others may read along."""
        root = self._file
        root.attrs["NX_class"] = "NXroot"
        root.attrs["default"] = "entry"
        root.attrs["layout"] = layout.LAYOUT_VERSION
        entry = _group(root, "entry", "NXentry")
        entry.attrs["default"] = "data"
        _text(entry, "title", provenance.title or "skyrmion run")
        _text(entry, "run_id", provenance.run_id)
        _text(entry, "entry_identifier", provenance.run_id)
        _text(entry, "program_name", "realtime_skyseg").attrs["version"] = _version("realtime_skyseg") or "unknown"
        _text(entry, "start_time", _iso(self._start_ns))
        entry.create_dataset("end_time", data=np.bytes_(b""), dtype="S40")
        entry.create_dataset("exit_status", data=np.int32(-1)).attrs["meaning"] = "-1: not finished"

        instrument = _group(entry, "instrument", "NXinstrument")
        _text(instrument, "name", "Kerr microscope")
        detector = _group(instrument, "detector", "NXdetector")
        raw = _stack(detector, "data", shape, dtype, fill=0)
        raw.attrs["long_name"] = "raw frames"
        for name, value in provenance.camera.items():
            detector.create_dataset(name, data=np.bytes_(str(value).encode()) if isinstance(value, str) else value)
        if provenance.pixel_size_um is not None:
            for name in ("x_pixel_size", "y_pixel_size"):
                detector.create_dataset(name, data=provenance.pixel_size_um).attrs["units"] = "um"

        process = _group(entry, "segmentation", "NXprocess")
        _text(process, "program", "realtime_skyseg")
        _text(process, "version", _version("realtime_skyseg") or "unknown")
        for name in ("model", "weights_sha256", "engine", "device", "precision"):
            _text(process, name, getattr(provenance, name))
        process.create_dataset("agreement", data=provenance.agreement).attrs["long_name"] = (
            "share of pixels equal to torch float32"
        )
        masks = _stack(process, "mask", shape, np.dtype(np.uint8), fill=NOT_ANALYSED)
        masks.attrs["long_name"] = "class per pixel"
        masks.attrs["classes"] = json.dumps(
            {value.name.lower(): value.value for value in Class} | {"not_analysed": NOT_ANALYSED}
        )

        frames = _group(entry, "frames", "NXcollection")
        for name, (kind, fill, unit, meaning) in (layout.FRAME_COLUMNS | layout.RESULT_COLUMNS).items():
            column = frames.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1024,), fillvalue=fill)
            column.attrs["long_name"] = meaning
            if unit:
                column.attrs["units"] = unit
        for name, kind in (("objects", layout.ROW_DTYPE), ("events", layout.EVENT_DTYPE)):
            entry.create_dataset(
                name, (0,), kind, maxshape=(None,), chunks=(1024,), compression="gzip", compression_opts=1
            )

        sample = _group(entry, "sample", "NXsample")
        _text(sample, "name", provenance.sample or "unnamed")
        log = _group(sample, "magnetic_field", "NXlog")
        log["value"], log["time"] = frames["field_mT"], frames["time_s"]
        if provenance.supply:
            supply = _group(log, "supply", "NXcollection")
            for name, value in provenance.supply.items():
                _text(supply, name, value) if isinstance(value, str) else supply.create_dataset(name, data=value)
        if provenance.calibration:
            note = _group(log, "calibration", "NXnote")
            _text(note, "type", "application/yaml")
            _text(note, "data", provenance.calibration)
        user = _group(entry, "user", "NXuser")
        _text(user, "name", provenance.operator or "unnamed")

        note = _group(entry, "configuration", "NXnote")
        _text(note, "type", "application/yaml")
        _text(note, "data", provenance.configuration)
        note = _group(entry, "summary", "NXnote")
        _text(note, "type", "application/json")
        note.create_dataset("data", data=np.bytes_(b""), dtype=f"S{layout.SUMMARY_LENGTH}")

        origin = _group(entry, "provenance", "NXcollection")
        _text(origin, "versions", json.dumps({name: found for name in _RECORDED_PACKAGES if (found := _version(name))}))
        _text(origin, "python", sys.version)
        _text(origin, "platform", sys.platform)
        _text(origin, "host", socket.gethostname())
        _text(origin, "git_commit", _git_commit())
        _text(origin, "camera_clock", provenance.clock or "none")
        _text(origin, "service_clock", "Unix time of the service's host (time.time_ns)")

        data = _group(entry, "data", "NXdata")
        data["raw"], data["mask"], data["time"] = raw, masks, frames["time_s"]
        data.attrs["signal"] = "raw"
        data.attrs["auxiliary_signals"] = ["mask"]
        data.attrs["axes"] = ["time", ".", "."]


class _Block:
    """Columns of one value per frame, collected in memory and written together. Frames without values keep the
    columns' fill values.
    """

    def __init__(self, group: h5py.Group, columns: dict[str, tuple[Any, float, str, str]]) -> None:
        self._columns = {name: group[name] for name in columns}
        self._written = 0
        self._indices: list[int] = []
        self._values: dict[str, list[float]] = {name: [] for name in columns}
        self._fill = {name: fill for name, (_, fill, _, _) in columns.items()}

    def add(self, index: int, **values: float) -> None:
        self._indices.append(index)
        for name, collected in self._values.items():
            collected.append(values.get(name, self._fill[name]))

    def write(self) -> None:
        if not self._indices:
            return
        first, end = self._written, self._indices[-1] + 1
        places = np.array(self._indices) - first
        for name, column in self._columns.items():
            block = np.full(end - first, self._fill[name], column.dtype)
            block[places] = self._values[name]
            column.resize(end, axis=0)
            column[first:end] = block
            self._values[name].clear()
        self._indices.clear()
        self._written = end


def _append(table: h5py.Dataset, blocks: list[np.ndarray]) -> None:
    new = sum(map(len, blocks))
    if new:
        start = len(table)
        table.resize(start + new, axis=0)
        table[start:] = np.concatenate(blocks)
    blocks.clear()


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _text(parent: h5py.Group, name: str, text: str) -> h5py.Dataset:
    # Fixed length: strings of variable length cannot be read safely while the file is written.
    data = text.encode() or b" "
    return parent.create_dataset(name, data=np.array(data, h5py.string_dtype("utf-8", len(data))))


def _stack(parent: h5py.Group, name: str, shape: tuple[int, int], dtype: np.dtype[Any], fill: int) -> h5py.Dataset:
    stack = parent.create_dataset(
        name,
        (0, *shape),
        dtype,
        maxshape=(None, *shape),
        chunks=(1, *shape),
        fillvalue=fill,
        **hdf5plugin.Bitshuffle(cname="lz4"),
    )
    stack.attrs["interpretation"] = "image"
    return stack


def _iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="microseconds")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _git_commit() -> str:
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(here.parent.parent.parent)},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
