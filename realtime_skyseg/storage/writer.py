"""Writing a run file."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal

import h5py
import numpy as np

from realtime_skyseg.analysers import RunningAnalyser
from realtime_skyseg.errors import DiskFullError, RunFileError, SettingsError
from realtime_skyseg.hdf5_filters import bitshuffle
from realtime_skyseg.quantities import Columns, Quantity, blank_rows, columns, row_dtype
from realtime_skyseg.records import (
    FRAME_QUANTITIES,
    NOT_ANALYSED,
    Background,
    Class,
    Event,
    Frame,
    LateResult,
    Result,
    Skipped,
    TableRow,
)
from realtime_skyseg.storage import layout, tables
from realtime_skyseg.storage.chunk import Chunk, pack
from realtime_skyseg.storage.columns import Column, DirectDataset, TableWriter
from realtime_skyseg.storage.segments import Kind, Segments, end_virtual_stack, new_virtual_stack

#: Held back on the disk beyond 32 frames, for what is open when the disk is full.
_RESERVE_BYTES = 48_000_000

#: Frames are refused while less than this and two frames is free beside what is held back: two flushes' worth of
#: tables. What was held back is given back in pieces of this size.
_MARGIN_BYTES = 2_000_000

_STACKS: tuple[tuple[Kind, str], ...] = (("raw", layout.RAW), ("mask", layout.MASK))

#: Stands for the image of a frame that was skipped.
_NO_CHUNK: "Future[Chunk]" = Future()
_NO_CHUNK.set_result(Chunk(b"", -1))

#: Those that the end of the program must close.
_open_writers: "weakref.WeakSet[RunWriter]" = weakref.WeakSet()

_RECORDED_PACKAGES = (
    "realtime_skyseg", "numpy", "torch", "openvino", "tensorrt", "opencv-python", "h5py", "hdf5plugin", "imagecodecs",
    "pyzmq", "pymmcore", "pycromanager",
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
    #: What `time_s` counts from: a camera's frames are timed as they come, a recording's as they were recorded.
    timing: Literal["hand-over", "recording", "unknown"] = "hand-over"
    frame_names: Sequence[str] | None = None  # of the frames of a recording, by their numbers; it may begin again
    camera: dict[str, str | int | float | bool] = field(default_factory=dict)
    pixel_size_um: float | None = None
    supply: dict[str, str | int | float | bool] = field(default_factory=dict)  # of the magnet
    calibration: str = ""  # of the magnet, YAML
    experiment: dict[str, str] | None = None  # texts about a field programme; None: there is none


class RunWriter:
    """One run file that is being written, by one thread.

    Frames and masks are compressed by a few threads of its own, and written in the order they were added as soon as
    they are compressed, at the latest by `flush`.

    The file has the suffix `.partial` until `close`. Others may read it meanwhile (HDF5's single-writer,
    multiple-reader mode); what they see, and what survives a kill, is at most `flush_s` old. What survives a power cut
    is older by the time the disk takes.

    Args:
        path: of the finished file; never overwritten.
        shape: (height, width) of the frames.
        dtype: of the frames.
        provenance: what the file says of its origin.
        flush_s: longest time between two flushes while frames arrive.
        threads: that compress.
        segment_gb: raw frames and masks go to further files of about so many GB before compression (`segments`);
            None: all in one file.
        analysers: whose quantities have columns, tables and maps of their own.

    Attributes:
        frames_written: raw frames that are in the file.
        changed_frame: index of the first frame whose image was not the same when it was segmented as when it was
            written; -1: none.

    Raises:
        SettingsError: the file exists, cannot be made, or the disk is nearly full.
        DiskFullError: where no frame fits any more; results and events are still taken.
        RunFileError: from all methods, where the disk refuses. What was added before may be what is refused.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        provenance: Provenance,
        flush_s: float = 0.5,
        threads: int = 2,
        segment_gb: float | None = None,
        analysers: Sequence[RunningAnalyser] = (),
    ) -> None:
        in_path = [analyser for analyser in analysers if analyser.pace == "every_frame"]
        self._result_columns = layout.RESULT_COLUMNS | columns(*(q for one in in_path for q in one.of("frame")))
        self._object_columns = layout.OBJECT_COLUMNS | columns(*(q for one in in_path for q in one.of("object")))
        self._analysers = {one.name: extra for one in analysers if (extra := _Extra(one)).wanted}
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.frames_written = 0
        self.changed_frame = -1
        self._closed = True
        self._flush_s = flush_s
        self._start_ns = time.time_ns()
        self._shape, self._dtype = shape, dtype
        self._timing = provenance.timing
        self._first_camera_ns: int | None = None
        self._reserve_bytes = _RESERVE_BYTES + 32 * shape[0] * shape[1] * dtype.itemsize
        self._piece_bytes = _MARGIN_BYTES + 2 * shape[0] * shape[1] * dtype.itemsize
        self._full = False  # no frame is taken from here on
        folder = path.with_name(f"{path.stem}.segments")
        for existing in (self.path, self.partial, *([folder] if segment_gb else [])):
            if existing.exists():
                raise SettingsError(
                    f"run file '{existing}' exists already and is not overwritten; choose another record.name"
                )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._free() < self._reserve_bytes:
                raise SettingsError(
                    f"record.folder: the disk of '{path.parent}' has {self._free() / 1e6:.0f} MB free; "
                    f"allowed: at least {self._reserve_bytes / 1e6:.0f} MB"
                )
            # HDF5 1.10's format, the oldest with single-writer-multiple-reader, so that old tools can read it.
            self._file = h5py.File(self.partial, "x", libver=("v110", "v110"))
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsError(f"record.folder: run file '{self.partial}' cannot be written: {reason}") from error
        self._segments: Segments | None = None
        self._reserve: IO[bytes] | None = None
        try:
            if segment_gb:
                frames = max(1, int(segment_gb * 1e9 / (shape[0] * shape[1] * (dtype.itemsize + 1))))
                self._segments = Segments(folder, shape, dtype, frames)
            self._create(shape, dtype, provenance)
            self._file.swmr_mode = True
            self._reserve = _hold_back(path.parent, self._reserve_bytes - self._piece_bytes)
            self._handle = os.open(self.partial, os.O_RDWR)
        except BaseException as error:
            self._file.close()
            self.partial.unlink()
            if self._reserve:
                self._reserve.close()
            if self._segments:
                folder.rmdir()
            if isinstance(error, OSError):
                raise SettingsError(f"record.folder: run file '{self.partial}' cannot be written: {error}") from error
            raise
        self._stacks: dict[Kind, DirectDataset] = {}
        if not self._segments:
            self._stacks = {kind: DirectDataset(self._file, place) for kind, place in _STACKS}
        self._length = 0  # frames that are known of
        self._frames = _Block(self._file, layout.FRAME_COLUMNS, "row_crc32")
        self._results = _Block(self._file, self._result_columns, "result_crc32")
        self._objects = TableWriter(self._file, layout.OBJECTS, self._object_columns)
        for extra in self._analysers.values():
            extra.open(self._file)
        self._events = TableWriter(self._file, layout.EVENTS, layout.EVENT_COLUMNS)
        self._backgrounds: deque[Background] = deque()
        self._stored_backgrounds = 0
        self._preparation = {
            name: Column(self._file, f"{layout.PREPARATION}/{name}") for name in ("first_frame", "source")
        }
        self._background_images = DirectDataset(self._file, f"{layout.PREPARATION}/background")
        self._experiment: dict[str, TableWriter] = {}
        if provenance.experiment is not None:
            # What was decided is written after what it was told.
            self._experiment = {
                name: TableWriter(self._file, f"{layout.EXPERIMENT}/{name}", layout.EXPERIMENT_TABLES[name])
                for name in reversed(layout.EXPERIMENT_TABLES)
            }
        self._next_flush = time.monotonic() + flush_s
        self._most_waiting = 2 * threads + 2
        self._waiting: deque[tuple[Frame | Result | tuple[int, Skipped], Future[Chunk]]] = deque()
        self._pool = ThreadPoolExecutor(threads + 1, "skyseg-compress")  # and one that waits for the disk
        self._sync: Future[None] | None = None
        self._busy_since = 0.0
        self._sync_since = 0.0
        self._closed = False
        _open_writers.add(self)

    def __del__(self) -> None:
        if self._closed:
            return
        warnings.warn(f"run file '{self.partial}' was never closed", ResourceWarning, source=self, stacklevel=2)
        with suppress(RunFileError, RuntimeError):  # Python may be ending, and start no threads any more
            self.flush()
        self._release()

    @property
    def stalled_s(self) -> float:
        """For how long the disk has not answered; 0 where nothing is asked of it. For any thread."""
        since = [begun for begun in (self._busy_since, self._sync_since) if begun]
        return time.monotonic() - min(since) if since else 0.0

    def add_frame(self, frame: Frame) -> None:
        """Take a raw frame for its index. Indices rise; a gap stays visible as `written` 0."""
        if self._full or self._free() < self._piece_bytes:
            self._full = True
            raise self._disk_full(frame.index)
        self._take(frame, frame.image.astype(self._dtype, copy=False))

    def add_result(self, result: Result) -> None:
        """Take a frame's mask, numbers and objects. Indices rise."""
        self._take(result, result.segmentation.mask)

    def add_late(self, late: LateResult) -> None:
        """Take what an analyser beside the frames' path has found; it is written by `flush`."""
        self._analysers[late.analyser].add(late.frame, late.values, late.maps)

    def add_background(self, background: Background) -> None:
        """Take a background of the preparation; it is written by `flush`."""
        self._backgrounds.append(background)

    def add_skipped(self, index: int, cause: Skipped) -> None:
        """Note that a frame will not be analysed. Indices rise, together with those of `add_result`."""
        self._waiting.append(((index, cause), _NO_CHUNK))
        self._settle(self._most_waiting)

    def add_event(self, event: Event) -> None:
        """Note an event; its message is cut to 1000 bytes."""
        self._events.add(layout.event_row(event))

    def add_row(self, row: TableRow) -> None:
        """Take a row of an experiment's tables; it is written by `flush`. Texts are cut to their column."""
        table = self._experiment[row.table]
        values = tuple(_value(row.values[name]) for name in table.dtype.names or ())
        table.add(np.array([values], table.dtype))

    def flush_if_due(self) -> None:
        """Bring everything to the disk when `flush_s` has passed since the last time."""
        if time.monotonic() >= self._next_flush:
            self.flush()
        else:
            self._settle(self._most_waiting)

    def flush(self) -> None:
        """Write everything that was added: it survives a kill from now on, and a power cut once the disk has it.

        A `DiskFullError` means that frames were left out, and all else was written.
        """
        full: DiskFullError | None = None
        while self._waiting:
            try:
                self._settle(0)
            except DiskFullError as error:
                full = full or error
        self._next_flush = time.monotonic() + self._flush_s
        self._ask_disk("be flushed", self._flush)
        if self._sync is None or self._sync.done():
            if self._sync and (failed := self._sync.exception()):
                raise RunFileError(f"run file '{self.partial}' cannot be brought to the disk: {failed}") from failed
            self._sync = self._pool.submit(self._sync_to_disk)
        if full:
            raise full

    def close(self, summary: dict[str, Any], exit_status: int) -> None:
        """Write the summary, close the file and give it its final name. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            try:
                with suppress(DiskFullError):
                    self.flush()
                self._ask_disk("be finished", lambda: self._conclude(summary, exit_status))
            finally:
                self._release()
            if self._segments:
                self._end_stacks(self._segments)
            self._look()
            if self.path.exists():
                raise FileExistsError(f"'{self.path}' has appeared meanwhile")
            self.partial.rename(self.path)
        except (OSError, RuntimeError) as error:
            raise RunFileError(f"run file '{self.partial}' cannot be finished: {error}") from error

    def _conclude(self, summary: dict[str, Any], exit_status: int) -> None:
        self._file[layout.SUMMARY][()] = json.dumps(summary).encode()[: layout.SUMMARY_LENGTH]
        self._file["entry/end_time"][()] = iso(time.time_ns()).encode()
        self._file["entry/exit_status"][()] = exit_status
        self._file.flush()

    def _look(self) -> None:
        """See that what was written is there: another program may have deleted, replaced or cut the file."""
        if not self.partial.exists():
            self.frames_written = 0
            raise RunFileError(f"run file '{self.partial}' has been deleted or moved by another program")
        try:
            with h5py.File(self.partial, "r") as file:
                written = int(np.count_nonzero(file[f"{layout.FRAMES}/written"][()]))
                size = self.partial.stat().st_size
                for _, place in () if self._segments else _STACKS:
                    stack = file[place].id
                    chunks = [stack.get_chunk_info(number) for number in range(stack.get_num_chunks())]
                    if any(chunk.byte_offset + chunk.size > size for chunk in chunks):
                        raise OSError("it has been cut")
        except (OSError, RuntimeError, KeyError) as error:
            self.frames_written = 0
            raise RunFileError(
                f"run file '{self.partial}' has been changed by another program and cannot be read: {error}"
            ) from error
        if written != self.frames_written:
            taken, self.frames_written = self.frames_written, written
            raise RunFileError(
                f"run file '{self.partial}' holds {written} of {taken} frames: another program has changed it"
            )

    def _end_stacks(self, segments: Segments) -> None:
        with h5py.File(self.partial, "r+", libver=("v110", "v110")) as file:
            for kind, place in _STACKS:
                places = (place, f"entry/{'data' if kind == 'raw' else 'masks'}/{kind}")
                end_virtual_stack(file, places, segments.folder.name, segments.frames, kind, self._length)

    def _take(self, item: Frame | Result, image: np.ndarray) -> None:
        if image.shape != self._shape:
            raise RunFileError(
                f"run file '{self.partial}' cannot take an image of {image.shape}; allowed: {self._shape}"
            )
        self._waiting.append((item, self._pool.submit(pack, image)))
        self._settle(self._most_waiting)

    def _settle(self, most: int) -> None:
        """Write, in order, what is compressed; wait for the compression while more than `most` are on their way."""
        while self._waiting:
            item, chunk = self._waiting[0]
            if len(self._waiting) <= most and not chunk.done():
                return
            self._waiting.popleft()
            if isinstance(item, Frame):
                self._write_frame(item, chunk.result())
            elif isinstance(item, Result):
                self._write_result(item, chunk.result())
            else:
                self._results.add(item[0], skipped=item[1])
                if self._segments:
                    self._segments.pass_by("mask", item[0])

    def _write_frame(self, frame: Frame, chunk: Chunk) -> None:
        if self._full:
            raise self._disk_full(frame.index)
        begun = time.perf_counter_ns()
        self._ask_disk(f"take frame {frame.index}", lambda: self._put("raw", frame.index, chunk))
        took_ns = time.perf_counter_ns() - begun
        frame.crc32 = chunk.crc32
        self.frames_written += 1
        self._frames.add(
            frame.index,
            written=1,
            number=frame.number,
            camera_lost=frame.camera_lost,
            camera_ns=frame.camera_ns,
            received_ns=frame.received_ns,
            written_ns=time.time_ns(),
            write_ns=took_ns,
            time_s=self._time_s(frame),
            field_mT=frame.field_mT,
            field_age_ns=frame.field_age_ns,
            raw_crc32=chunk.crc32,
        )

    def _time_s(self, frame: Frame) -> float:
        if self._timing == "hand-over":
            return (frame.received_ns - self._start_ns) / 1e9
        if self._timing == "unknown" or frame.camera_ns < 0:
            return float("nan")
        if self._first_camera_ns is None:
            self._first_camera_ns = frame.camera_ns
        return (frame.camera_ns - self._first_camera_ns) / 1e9

    def _write_result(self, result: Result, chunk: Chunk) -> None:
        index = result.frame.index
        if self.changed_frame < 0 and -1 not in (checks := (result.frame.crc32, result.source_crc32)):
            self.changed_frame = index if checks[0] != checks[1] else -1
        self._ask_disk(f"take the mask of frame {index}", lambda: self._put("mask", index, chunk))
        values, rows = result_row(result, chunk.crc32)
        self._objects.add(rows)
        self._results.add(index, **values)
        for extra in self._analysers.values():
            if extra.in_path and any(name in result.maps for name in extra.maps):
                extra.add(index, {}, result.maps)

    def _put(self, kind: Kind, index: int, chunk: Chunk) -> None:
        self._length = max(self._length, index + 1)
        if self._segments:
            self._segments.put(kind, index, chunk)
            return
        self._stacks[kind].put(index, chunk.data, index + 1)

    def _flush(self) -> None:
        """Safe to call again where it failed."""
        if self._segments:
            self._segments.flush()
        self._frames.write()
        self._results.write()
        self._objects.write()
        self._events.write()
        for extra in self._analysers.values():
            extra.write()
        while self._backgrounds:
            background, number = self._backgrounds[0], self._stored_backgrounds
            self._background_images.put(number, pack(background.image).data, number + 1)
            self._preparation["first_frame"].add(np.array([background.first_frame]))
            self._preparation["source"].add(np.array([background.source.encode()[:200]]))
            self._stored_backgrounds += 1
            self._backgrounds.popleft()
        for column in self._preparation.values():
            column.write()
        for table in self._experiment.values():
            table.write()
        self._file.flush()

    def _ask_disk(self, what: str, operation: Callable[[], None]) -> None:
        """Let HDF5 write. Where the disk is full, it is asked again with a piece more of what was held back.

        A piece at a time, because another program that fills the disk may be quicker.
        """
        self._busy_since = time.monotonic()
        try:
            while True:
                try:
                    return operation()
                except (OSError, RuntimeError) as error:
                    self._full = True
                    if not self._give_back():
                        raise RunFileError(f"run file '{self.partial}' cannot {what}: {error}") from error
        finally:
            self._busy_since = 0.0

    def _sync_to_disk(self) -> None:
        self._sync_since = time.monotonic()
        try:
            for handle in (self._handle, *(self._segments.handles if self._segments else ())):
                with suppress(*() if handle == self._handle else (OSError,)):  # a segment may be closed meanwhile
                    os.fsync(handle)
        finally:
            self._sync_since = 0.0

    def _disk_full(self, index: int) -> DiskFullError:
        return DiskFullError(
            f"the disk of '{self.path.parent}' is full but for the {self._reserve_bytes / 1e6:.0f} MB that finish the "
            f"run file: frame {index} and those after it are not recorded"
        )

    def _give_back(self) -> bool:
        """Let go of a piece of what was held back; False: there is none."""
        if self._reserve is None:
            return False
        left = self._reserve.seek(0, os.SEEK_END) - self._piece_bytes
        if left > 0:
            self._reserve.truncate(left)
        else:
            self._reserve.close()
            self._reserve = None
        return True

    def _release(self) -> None:
        """Close everything that is open, whatever was written."""
        self._closed = True
        self._waiting.clear()
        try:
            if self._segments:
                self._segments.close()
            self._file.close()
        finally:
            self._pool.shutdown()
            if self._reserve:
                self._reserve.close()
            os.close(self._handle)

    def _new_stack(self, parent: h5py.Group, name: str, dtype: np.dtype[Any], fill: int, kind: Kind) -> h5py.Dataset:
        if not self._segments:
            return new_stack(parent, name, self._shape, dtype, fill)
        folder, frames = self._segments.folder.name, self._segments.frames
        return new_virtual_stack(parent, name, self._shape, dtype, fill, folder, frames, kind)

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
        _text(entry, "start_time", iso(self._start_ns))
        entry.create_dataset("end_time", data=np.bytes_(b""), dtype="S40")
        entry.create_dataset("exit_status", data=np.int32(-1)).attrs["meaning"] = "-1: not finished"

        instrument = _group(entry, "instrument", "NXinstrument")
        _text(instrument, "name", "Kerr microscope")
        detector = _group(instrument, "detector", "NXdetector")
        raw = self._new_stack(detector, "data", dtype, 0, "raw")
        raw.attrs["long_name"] = "raw frames"
        for name, value in provenance.camera.items():
            told = _scalar(detector, name, value)
            unit = layout.UNITS.get(name.rpartition("_")[2]) if not isinstance(value, str) else None
            if unit:
                told.attrs["units"] = unit
        if provenance.frame_names is not None:
            names = [name.encode("utf-8", "replace") for name in provenance.frame_names]
            width = max([1, *map(len, names)])
            kind = f"S{width}" if all(map(bytes.isascii, names)) else h5py.string_dtype("utf-8", width)
            stored = detector.create_dataset("frame_names", data=np.array(names, kind), compression="gzip")
            stored.attrs["long_name"] = "name of each frame of the recording, by frames/number; it may begin again"
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
        masks = self._new_stack(process, "mask", np.dtype(np.uint8), NOT_ANALYSED, "mask")
        masks.attrs["long_name"] = "class per pixel"
        masks.attrs["classes"] = json.dumps(
            {value.name.lower(): value.value for value in Class} | {"not_analysed": NOT_ANALYSED}
        )

        preparation = _group(entry, "preparation", "NXprocess")
        background = new_stack(preparation, "background", shape, np.dtype(np.float32), fill=0)
        background.attrs["long_name"] = "reference image in the camera's grey levels"
        for name, code, meaning in (
            ("first_frame", "i8", "index of the first frame that a background applies to"),
            ("source", "S200", "taken, rolling_median, or the background's file"),
        ):
            column = preparation.create_dataset(name, (0,), code, maxshape=(None,), chunks=(64,))
            column.attrs["long_name"] = meaning

        frames = _group(entry, "frames", "NXcollection")
        for quantity in (layout.FRAME_COLUMNS | self._result_columns).values():
            tables.create_column(frames, quantity, packed=False)
        frames["skipped"].attrs["codes"] = json.dumps({cause.name.lower(): cause.value for cause in Skipped})
        if provenance.timing == "hand-over":
            frames["time_s"].attrs["start"] = iso(self._start_ns)
        for check, covered in zip(layout.CHECKS, (layout.FRAME_COLUMNS, self._result_columns), strict=True):
            frames[check].attrs["covers"] = json.dumps([name for name in covered if name != check])
        tables.create(entry, "objects", self._object_columns)
        tables.create(entry, "events", layout.EVENT_COLUMNS)
        if self._analysers:
            group = _group(entry, "analysers", "NXcollection")
            for extra in self._analysers.values():
                extra.create(group, shape)

        if provenance.experiment is not None:
            _create_experiment(_group(entry, "experiment", "NXcollection"), provenance.experiment)

        sample = _group(entry, "sample", "NXsample")
        _text(sample, "name", provenance.sample or "unnamed")
        log = _group(sample, "magnetic_field", "NXlog")
        log["value"], log["time"] = frames["field_mT"], frames["time_s"]
        if provenance.supply:
            supply = _group(log, "supply", "NXcollection")
            for name, value in provenance.supply.items():
                _scalar(supply, name, value)
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
        axis = "number" if provenance.timing == "unknown" else "time"
        steps = frames["number" if axis == "number" else "time_s"]
        data["raw"], data[axis] = raw, steps
        data.attrs["signal"] = "raw"
        data.attrs["axes"] = [axis, ".", "."]
        if provenance.pixel_size_um is not None:
            data.attrs["axes"] = [axis, "y", "x"]
            for name, side in zip(("y", "x"), shape, strict=True):
                place = data.create_dataset(name, data=np.arange(side, dtype=np.float64) * provenance.pixel_size_um)
                place.attrs["units"] = "um"
                place.attrs["long_name"] = f"{name} (um), from the centre of the first pixel"
        # Not with the raw frames, which are there earlier: a plot wants one length.
        shown = _group(entry, "masks", "NXdata")
        shown["mask"], shown[axis] = masks, steps
        shown.attrs["signal"] = "mask"
        shown.attrs["axes"] = [axis, ".", "."]


@atexit.register
def _close_forgotten() -> None:
    for writer in list(_open_writers):
        writer.__del__()


def _create_experiment(group: h5py.Group, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        _text(group, name, text)
    for name, declared in layout.EXPERIMENT_TABLES.items():
        tables.create(group, name, declared, "NXdata" if name == "steps" else "NXcollection")
    steps = group["steps"]
    steps.attrs["signal"] = "count"
    steps.attrs["auxiliary_signals"] = ["area_fraction", "diameter_px"]
    steps.attrs["axes"] = ["field_mT"]
    for name in [name for name in layout.STEP_COLUMNS if name.endswith("_std")]:
        steps[name.removesuffix("_std") + "_errors"] = steps[name]  # as NeXus calls it


def _value(value: Any) -> Any:
    return value.encode(errors="replace") if isinstance(value, str) else value


class _Extra:
    """The table and the maps of an analyser in `layout.ANALYSERS`: of one beside the frames' path all that it finds, of
    one in the path its maps.
    """

    def __init__(self, analyser: RunningAnalyser) -> None:
        self.in_path = analyser.pace == "every_frame"
        self.maps: dict[str, Quantity] = columns(*analyser.of("map"))
        frame = Quantity("frame", "i8", -1, "", "index of the frame that it looked at")
        self._columns: Columns = columns(frame, *([] if self.in_path else analyser.of("frame")))
        self._name = analyser.name
        self._waiting: deque[dict[str, np.ndarray]] = deque()
        self._shapes: dict[str, tuple[int, int]] = {}
        self._stored = 0

    @property
    def wanted(self) -> bool:
        """It finds something that has no place elsewhere."""
        return bool(self.maps) or len(self._columns) > 1

    def create(self, group: h5py.Group, shape: tuple[int, int]) -> None:
        """Make its table and the stacks of its maps."""
        table = tables.create(group, self._name, self._columns)
        for name, quantity in self.maps.items():
            self._shapes[name] = quantity.map_shape(shape)
            stack = new_stack(table, name, self._shapes[name], np.dtype(quantity.dtype), quantity.fill)
            stack.attrs["long_name"], stack.attrs["description"] = quantity.label, quantity.meaning
            stack.attrs["cell_px"] = quantity.cell_px
            if quantity.unit:
                stack.attrs["units"] = quantity.unit

    def open(self, file: h5py.File) -> None:
        """Be ready to write."""
        place = f"{layout.ANALYSERS}/{self._name}"
        self._table = TableWriter(file, place, self._columns)
        self._stacks = {name: DirectDataset(file, f"{place}/{name}") for name in self.maps}

    def add(self, frame: int, values: dict[str, float], maps: dict[str, np.ndarray]) -> None:
        """Take a row."""
        row = blank_rows(self._columns, 1)
        for name, value in ({"frame": frame} | values).items():
            row[name] = value
        self._table.add(row)
        whole = {}
        for name, quantity in self.maps.items():
            blank = np.full(self._shapes[name], quantity.fill, quantity.dtype)
            whole[name] = maps.get(name, blank)
        self._waiting.append(whole)

    def write(self) -> None:
        """Safe to call again where it failed."""
        while self._waiting:
            for name, image in self._waiting[0].items():
                self._stacks[name].put(self._stored, pack(image).data, self._stored + 1)
            self._stored += 1
            self._waiting.popleft()
        self._table.write()


class _Block:
    """Columns of one value per frame, collected in memory and written together. Frames without values keep the
    columns' fill values.

    Args:
        file: that is being written.
        declared: the columns.
        check: the column that vouches for the others.
    """

    def __init__(self, file: h5py.File, declared: Columns, check: str) -> None:
        self._columns = {name: Column(file, f"{layout.FRAMES}/{name}") for name in declared}
        self._check = check
        self._length = 0
        self._indices: list[int] = []
        self._values: dict[str, list[float]] = {name: [] for name in declared if name != check}
        self._fill = {name: quantity.fill for name, quantity in declared.items()}
        self._row = row_dtype({name: declared[name] for name in self._values})

    def add(self, index: int, **values: float) -> None:
        self._indices.append(index)
        for name, collected in self._values.items():
            collected.append(values.get(name, self._fill[name]))

    def write(self) -> None:
        """Safe to call again where it failed."""
        if self._indices:
            self._pack()
        for column in self._columns.values():
            column.write()

    def _pack(self) -> None:
        first, end = self._length, self._indices[-1] + 1
        places = np.array(self._indices) - first
        rows = np.empty(len(places), self._row)
        for name, collected in self._values.items():
            rows[name] = collected
        checks = [zlib.crc32(row.tobytes()) for row in rows]
        for name, column in self._columns.items():
            block = np.full(end - first, self._fill[name], column.dtype)
            block[places] = checks if name == self._check else rows[name]
            column.add(block)
        for collected in self._values.values():
            collected.clear()
        self._indices.clear()
        self._length = end


def result_row(result: Result, mask_crc32: int) -> tuple[dict[str, float], np.ndarray]:
    """The values of a result in the columns of `layout.RESULT_COLUMNS`, and its rows in the table of objects."""
    found = result.segmentation
    rows = np.empty(len(found.objects), [("frame", "<u8"), *found.objects.dtype.descr])
    rows["frame"] = result.frame.index
    for name in found.objects.dtype.names or ():
        rows[name] = found.objects[name]
    values = {
        "skipped": Skipped.NOT_SKIPPED,
        **result.values,
        **{name: np.nan if (value := getattr(found, name)) is None else value for name in FRAME_QUANTITIES},
        "segmented_ns": result.segmented_ns,
        "published_ns": result.published_ns,
        "drift_x_px": result.drift_px[0],
        "drift_y_px": result.drift_px[1],
        "drift_quality": result.drift_quality,
        "source_crc32": result.source_crc32,
        "mask_crc32": mask_crc32,
        "objects_crc32": zlib.crc32(rows.tobytes()),
    }
    return values, rows


def _hold_back(folder: Path, size: int) -> IO[bytes]:
    """A nameless file that takes `size` bytes of a folder's disk until it is closed or the process ends."""
    reserve = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  stays open
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(reserve.fileno(), 0, size)
        else:
            for _ in range(0, size, 1 << 20):
                reserve.write(bytes(1 << 20))
    except BaseException:
        reserve.close()
        raise
    return reserve


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _text(parent: h5py.Group, name: str, text: str) -> h5py.Dataset:
    # Fixed length: strings of variable length cannot be read safely while the file is written. ASCII where it is: some
    # readers know nothing else of fixed length.
    if text.isascii() and "\0" not in text:
        return parent.create_dataset(name, data=np.bytes_(text.encode() or b" "))
    data = text.encode(errors="replace").replace(b"\0", b"?") or b" "
    return parent.create_dataset(name, data=np.array(data, h5py.string_dtype("utf-8", len(data))))


def _scalar(parent: h5py.Group, name: str, value: str | int | float | bool) -> h5py.Dataset:
    if isinstance(value, str):
        return _text(parent, name, value)
    # HDF5 has no booleans; h5py would make an enumeration of them, which few other readers know.
    return parent.create_dataset(name, data=np.uint8(value) if isinstance(value, bool) else value)


def new_stack(parent: h5py.Group, name: str, shape: tuple[int, int], dtype: np.dtype[Any], fill: int) -> h5py.Dataset:
    """An empty stack of images, (0, height, width), one chunk per image."""
    stack = parent.create_dataset(
        name,
        (0, *shape),
        dtype,
        maxshape=(None, *shape),
        chunks=(1, *shape),
        fillvalue=fill,
        fletcher32=True,
        **bitshuffle,
    )
    stack.attrs["interpretation"] = "image"
    return stack


def iso(time_ns: int) -> str:
    """Unix time as text."""
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
