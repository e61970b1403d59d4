"""Writing a run file.

Longer than other files: one class owns the file, and each of its steps may be asked again where the disk refused it.
"""

import atexit
import json
import os
import shutil
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from realtime_skyseg.analysers import RunningAnalyser
from realtime_skyseg.errors import DiskFullError, RunFileError, SettingsError
from realtime_skyseg.quantities import columns
from realtime_skyseg.records import (
    Background,
    Event,
    Frame,
    LateResult,
    Result,
    Skipped,
    TableRow,
)
from realtime_skyseg.storage import layout
from realtime_skyseg.storage.chunk import Chunk, pack
from realtime_skyseg.storage.collected import AnalyserTable, FrameColumns, result_row
from realtime_skyseg.storage.columns import Column, DirectDataset, TableWriter
from realtime_skyseg.storage.create import Plan, create, new_stack
from realtime_skyseg.storage.disk import Reserve
from realtime_skyseg.storage.provenance import Provenance, iso
from realtime_skyseg.storage.volumes import Kind, Volumes, end_virtual_stack, new_virtual_stack

#: Held back on the disk beyond 32 frames, for what is open when the disk is full.
_RESERVE_BYTES = 48_000_000

#: Frames are refused while less than this and two frames is free beside what is held back: two flushes' worth of
#: tables. What was held back is given back in pieces of this size.
_MARGIN_BYTES = 2_000_000

_STACKS: tuple[tuple[Kind, str], ...] = (("raw", layout.RAW), ("mask", layout.MASK))

#: Stands for the image of a frame that was skipped.
_NO_CHUNK: "Future[Chunk]" = Future()
_NO_CHUNK.set_result(Chunk(b"", -1))

#: Writers that must be closed when the program ends.
_open_writers: "weakref.WeakSet[RunWriter]" = weakref.WeakSet()


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
        volume_gb: raw frames and masks go to further files of about so many GB before compression (`volumes`);
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
        volume_gb: float | None = None,
        analysers: Sequence[RunningAnalyser] = (),
    ) -> None:
        in_path = [analyser for analyser in analysers if analyser.pace == "every_frame"]
        self._result_columns = layout.RESULT_COLUMNS | columns(*(q for one in in_path for q in one.of("frame")))
        self._object_columns = layout.OBJECT_COLUMNS | columns(*(q for one in in_path for q in one.of("object")))
        self._analysers = {one.name: extra for one in analysers if (extra := AnalyserTable(one)).wanted}
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
        folder = path.with_name(path.stem + layout.VOLUMES[0])
        self._file = self._made([folder] if volume_gb else [])
        self._volumes: Volumes | None = None
        self._reserve: Reserve | None = None
        try:
            if volume_gb:
                frames = max(1, int(volume_gb * 1e9 / (shape[0] * shape[1] * (dtype.itemsize + 1))))
                self._volumes = Volumes(folder, shape, dtype, frames)
            plan = Plan(
                shape, dtype, provenance, self._start_ns, self._result_columns, self._object_columns, self._new_stack
            )
            create(self._file, plan)
            if self._analysers:
                group = self._file["entry"].create_group("analysers")
                group.attrs["NX_class"] = "NXcollection"
                for table in self._analysers.values():
                    table.create(group, shape)
            self._file.swmr_mode = True
            self._reserve = Reserve(path.parent, self._reserve_bytes - self._piece_bytes, self._piece_bytes)
            self._handle = os.open(self.partial, os.O_RDWR)
        except BaseException as error:
            self._file.close()
            self.partial.unlink()
            if self._reserve:
                self._reserve.close()
            if self._volumes:
                folder.rmdir()
            if isinstance(error, OSError):
                raise SettingsError(f"record.folder: run file '{self.partial}' cannot be written: {error}") from error
            raise
        self._stacks: dict[Kind, DirectDataset] = {}
        if not self._volumes:
            self._stacks = {kind: DirectDataset(self._file, place) for kind, place in _STACKS}
        self._length = 0  # frames that are known of
        self._frames = FrameColumns(self._file, layout.FRAME_COLUMNS, "row_crc32")
        self._results = FrameColumns(self._file, self._result_columns, "result_crc32")
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

    def _made(self, folders: list[Path]) -> h5py.File:
        """A new file, if neither it nor any of these folders is there, and the disk has room."""
        for existing in (self.path, self.partial, *folders):
            if existing.exists():
                raise SettingsError(
                    f"run file '{existing}' exists already and is not overwritten; choose another record.name"
                )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._free() < self._reserve_bytes:
                raise SettingsError(
                    f"record.folder: the disk of '{self.path.parent}' has {self._free() / 1e6:.0f} MB free; "
                    f"allowed: at least {self._reserve_bytes / 1e6:.0f} MB"
                )
            # HDF5 1.10's format, the oldest with single-writer-multiple-reader, so that old tools can read it.
            return h5py.File(self.partial, "x", libver=("v110", "v110"))
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsError(f"record.folder: run file '{self.partial}' cannot be written: {reason}") from error

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
            if self._volumes:
                self._end_stacks(self._volumes)
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
                for _, place in () if self._volumes else _STACKS:
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

    def _end_stacks(self, volumes: Volumes) -> None:
        with h5py.File(self.partial, "r+", libver=("v110", "v110")) as file:
            for kind, place in _STACKS:
                places = (place, f"entry/{'data' if kind == 'raw' else 'masks'}/{kind}")
                end_virtual_stack(file, places, volumes.folder.name, volumes.frames, kind, self._length)

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
                if self._volumes:
                    self._volumes.pass_by("mask", item[0])

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
        if self._volumes:
            self._volumes.put(kind, index, chunk)
            return
        self._stacks[kind].put(index, chunk.data, index + 1)

    def _flush(self) -> None:
        """Safe to call again where it failed."""
        if self._volumes:
            self._volumes.flush()
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
        # HDF5 writes in any order what one flush has to write, and a kill may come in between.
        for vouched in (self._frames, self._results):
            vouched.vouch()
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
                    if not (self._reserve and self._reserve.give_back()):
                        raise RunFileError(f"run file '{self.partial}' cannot {what}: {error}") from error
        finally:
            self._busy_since = 0.0

    def _sync_to_disk(self) -> None:
        self._sync_since = time.monotonic()
        try:
            for handle in (self._handle, *(self._volumes.handles if self._volumes else ())):
                with suppress(*() if handle == self._handle else (OSError,)):  # a volume may be closed meanwhile
                    os.fsync(handle)
        finally:
            self._sync_since = 0.0

    def _disk_full(self, index: int) -> DiskFullError:
        return DiskFullError(
            f"the disk of '{self.path.parent}' is full but for the {self._reserve_bytes / 1e6:.0f} MB that finish the "
            f"run file: frame {index} and those after it are not recorded"
        )

    def _release(self) -> None:
        """Close everything that is open, whatever was written."""
        self._closed = True
        self._waiting.clear()
        try:
            if self._volumes:
                self._volumes.close()
            self._file.close()
        finally:
            self._pool.shutdown()
            if self._reserve:
                self._reserve.close()
            os.close(self._handle)

    def _new_stack(self, parent: h5py.Group, name: str, dtype: np.dtype[Any], fill: int, kind: Kind) -> h5py.Dataset:
        if not self._volumes:
            return new_stack(parent, name, self._shape, dtype, fill)
        folder, frames = self._volumes.folder.name, self._volumes.frames
        return new_virtual_stack(parent, name, self._shape, dtype, fill, folder, frames, kind)

    def _free(self) -> int:
        return shutil.disk_usage(self.path.parent).free


@atexit.register
def _close_forgotten() -> None:
    for writer in list(_open_writers):
        writer.__del__()


def _value(value: Any) -> Any:
    return value.encode(errors="replace") if isinstance(value, str) else value
