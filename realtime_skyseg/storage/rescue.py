"""Rescue a run file that was killed, truncated, or lost pages of its end in a power cut.

The damaged file is opened for reading only, through a view that ends where its superblock says, with zeros for what is
missing, so that HDF5 opens what it would refuse. Every frame, mask and row is then taken over only if its checks hold:
HDF5's own checksum of each chunk, and the CRC-32 columns that `layout` describes. A page that is missing, zero, or
older than it should be so costs the frames it belongs to, and never makes one up. Images whose place HDF5 has lost are
looked for in the whole file, and known by their CRC-32.
"""

import faulthandler
import io
import json
import logging
import mmap
import os
import secrets
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg import json_text
from realtime_skyseg.errors import RunFileError, SettingsError
from realtime_skyseg.quantities import Columns, Quantity, row_dtype
from realtime_skyseg.records import Counters, Event, Skipped
from realtime_skyseg.storage import layout, tables, trust
from realtime_skyseg.storage.chunk import crc32, find_chunks, pack
from realtime_skyseg.storage.create import new_stack
from realtime_skyseg.storage.provenance import iso
from realtime_skyseg.storage.segments import FRAMES_PER_FILE

_ALL_COLUMNS = layout.FRAME_COLUMNS | layout.RESULT_COLUMNS

log = logging.getLogger(__name__)

#: What HDF5 raises on damage.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError)


@dataclass(slots=True)
class Rescue:
    """What came out of a damaged file."""

    path: Path  # of the new file
    frames: int = 0  # that the damaged file knows of
    written: int = 0  # raw frames rescued
    analysed: int = 0  # results rescued
    lost_frames: list[int] = field(default_factory=list)  # indices of raw frames that the damage took
    lost_results: list[int] = field(default_factory=list)
    checked: bool = True  # False: a file of the first versions, which has no checksums
    notes: list[str] = field(default_factory=list)  # what else is missing

    @property
    def whole(self) -> bool:
        """True where the damage took nothing that the file knows of."""
        return not (self.lost_frames or self.lost_results or self.notes)

    def sentence(self) -> str:
        """What was rescued and what was not, for people."""
        text = f"{self.written} frames and {self.analysed} results of {self.frames} frames rescued to '{self.path}'"
        if self.lost_frames:
            text += f"; {len(self.lost_frames)} raw frames are damaged, the first is frame {self.lost_frames[0]}"
        if self.lost_results:
            text += f"; {len(self.lost_results)} results are damaged, the first is that of frame {self.lost_results[0]}"
        if not self.checked:
            text += "; the file has no checksums: what is rescued could be decompressed, no more is known of it"
        return "; ".join([text, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "recovered": str(self.path),
            "frames": self.frames,
            "written": self.written,
            "analysed": self.analysed,
            "damaged_frames": self.lost_frames,
            "damaged_results": self.lost_results,
            "checked": self.checked,
            "notes": self.notes,
        }


def recover(path: str | Path, out: str | Path | None = None, patience_s: float = 20.0) -> Rescue:
    """Copy what is whole in a damaged run file to a new one; the damaged one is not touched.

    Args:
        path: the run file, usually NAME.h5.partial.
        out: the new file; default: NAME.recovered.h5 beside it. Never overwritten.
        patience_s: HDF5 is given up when it hangs on the damage for longer.

    Raises:
        SettingsError: there is no such file, or the new one exists.
        RunFileError: nothing can be rescued, and why; or the new file cannot be written.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"run file '{path}' does not exist")
    target = (
        Path(out) if out else path.with_name(path.name.removesuffix(".partial").removesuffix(".h5") + ".recovered.h5")
    )
    if target.exists():
        raise SettingsError(f"'{target}' exists already and is not overwritten; move it away")
    # A name of its own: another rescue of the same file at the same time, or one that was killed, is not in the way.
    partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    program = "import sys; from realtime_skyseg.storage.rescue import _rescue_here; _rescue_here(*sys.argv[1:])"
    command = [sys.executable, "-P", "-c", program, str(path), str(partial), str(patience_s)]
    # The process ends with this one: its standard input is the sign of life.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        with process, ThreadPoolExecutor(1) as pool:
            said = pool.submit(process.stderr.read if process.stderr else str)
            answered, told = process.stdout.read() if process.stdout else "", said.result()
            status = process.wait()
        try:
            answer = json_text.load(answered)
        except ValueError:
            what = f"hangs for more than {patience_s:g} s" if "Timeout" in told else f"broke off (status {status})"
            answer = {"error": f"HDF5 {what} on its damage"}
        if "error" in answer:
            raise RunFileError(f"nothing can be rescued from '{path}': {answer['error']}")
        _name(partial, target)
    except BaseException:
        process.kill()
        process.wait()
        partial.unlink(missing_ok=True)
        raise
    return Rescue(target, **answer)


def _name(partial: Path, target: Path) -> None:
    """Give a file its name, unless somebody else has taken it meanwhile."""
    try:
        os.link(partial, target)  # unlike a renaming it never overwrites
    except FileExistsError:
        raise SettingsError(f"'{target}' has appeared meanwhile and is not overwritten") from None
    except OSError:  # a disk without links
        if target.exists():
            raise SettingsError(f"'{target}' has appeared meanwhile and is not overwritten") from None
        partial.rename(target)
    else:
        partial.unlink()


def _rescue_here(path: str, partial: str, patience_s: str) -> None:
    """In a process of its own, because HDF5 can hang or crash on damaged metadata; the answer goes to stdout."""
    alive = _Alive(float(patience_s))
    threading.Thread(target=_end_with_parent, args=(Path(partial),), daemon=True).start()
    try:
        with Path(path).open("rb") as file, h5py.File(_View(file), "r") as damaged:
            trust.check(damaged, Path(path), damaged=True)
            rescue = asdict(_rescue(damaged, file, Path(partial), Rescue(Path(path)), alive))
        del rescue["path"]
        answer = json.dumps(rescue)
    except (*_DAMAGE, RunFileError) as error:
        answer = json.dumps({"error": _why(error)})
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(answer)


def _end_with_parent(partial: Path) -> None:
    """End this process when the one that began it is gone, and leave nothing behind."""
    sys.stdin.read()
    partial.unlink(missing_ok=True)
    os._exit(1)


class _Alive:
    """Ends this process unless it is called again in time, even where Python itself stands still."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._next = 0.0
        self()

    def __call__(self) -> None:
        if time.monotonic() > self._next:
            faulthandler.dump_traceback_later(self._patience_s, exit=True)
            self._next = time.monotonic() + self._patience_s / 10


class _View(io.RawIOBase):
    """A damaged HDF5 file as HDF5 accepts it: of the length that it should have, and marked as closed by its writer.

    The superblock (version 2 or 3, "HDF5 File Format Specification", II.A) is followed; only this view is changed.
    """

    _MAGIC = b"\x89HDF\r\n\x1a\n"

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._place = 0
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = bytearray(file.read(48))
        if len(head) < 48 or head[:8] != self._MAGIC or head[8] not in (2, 3) or head[9] != 8:
            raise RunFileError(
                f"nothing can be rescued from '{file.name}': its first 48 bytes are not those of a run file"
            )
        if head[44:] != imagecodecs.h5checksum_metadata(bytes(head[:44])).to_bytes(4, "little"):
            raise RunFileError("its superblock is damaged")
        self._size = max(size, int.from_bytes(head[28:36], "little"))
        head[11] = 0
        head[28:36] = self._size.to_bytes(8, "little")
        head[44:] = imagecodecs.h5checksum_metadata(bytes(head[:44])).to_bytes(4, "little")
        self._head = bytes(head)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer).cast("B")
        self._file.seek(self._place)
        got = self._file.readinto(wanted)
        wanted[got:] = bytes(len(wanted) - got)
        if self._place < len(self._head):
            part = self._head[self._place : self._place + len(wanted)]
            wanted[: len(part)] = part
        self._place += len(wanted)
        return len(wanted)


def _rescue(damaged: h5py.File, file: io.BufferedReader, partial: Path, rescue: Rescue, alive: _Alive) -> Rescue:
    frames = damaged[layout.FRAMES]
    table = _read_rows(frames, rescue)
    n = len(table)
    # What analysers found belongs to the result, too.
    own_columns = set(table.dtype.names or ()) - set(layout.FRAME_COLUMNS)
    results = {name: Quantity(name, table.dtype[name], _fill(frames, name)) for name in own_columns}
    rescue.frames = n
    rescue.checked = set(layout.CHECKS) <= set(table.dtype.names or ())
    good_row = _good_rows(table, frames, "row_crc32")
    good_result = _good_rows(table, frames, "result_crc32")
    objects = _read_table(damaged, layout.OBJECTS, layout.OBJECT_COLUMNS, rescue)
    objects = objects[np.argsort(objects["frame"], kind="stable")]
    first = np.searchsorted(objects["frame"], np.arange(n + 1))
    events = _read_table(damaged, layout.EVENTS, layout.EVENT_COLUMNS, rescue)

    with ExitStack() as owned:
        new = owned.enter_context(h5py.File(partial, "x", libver=("v110", "v110")))
        raws = _Images(damaged[layout.RAW], "raw", file, owned)
        all_masks = _Images(damaged[layout.MASK], "mask", file, owned)
        _copy_group(damaged, new, damaged, rescue, {damaged: new})
        raw, masks = new[layout.RAW], new[layout.MASK]
        for stack in (raw, masks):
            stack.resize(n, axis=0)
        kept: dict[int, NDArray[Any]] = {}  # objects of each result
        no_raw: dict[int, list[int]] = defaultdict(list)  # CRC-32: frames whose image HDF5 does not find
        no_mask: dict[int, list[int]] = defaultdict(list)
        for index in range(n):
            alive()
            row = table[index : index + 1]
            if not good_row[index]:
                rescue.lost_frames.append(index)
                _clear(row, layout.FRAME_COLUMNS)
            elif row["written"][0]:
                if not raws.copy(index, raw, _value(row, "raw_crc32")):
                    no_raw[_value(row, "raw_crc32")].append(index)
            elif raws.has(index):
                rescue.lost_frames.append(index)  # its row is missing, and with it what vouches for it
            if good_result[index] and row["skipped"][0] != Skipped.NOT_SKIPPED:
                continue
            own = objects[first[index] : first[index + 1]]
            if not (good_result[index] and _belong(own, row)):
                rescue.lost_results.append(index)
                _clear(row, results)
                continue
            kept[index] = own
            if not all_masks.copy(index, masks, _value(row, "mask_crc32")):
                no_mask[_value(row, "mask_crc32")].append(index)
        for index in raws.search(raw, no_raw, alive):
            rescue.lost_frames.append(index)
            table["written"][index] = 0
            if rescue.checked:
                table["raw_crc32"][index] = -1
        for index in all_masks.search(masks, no_mask, alive):
            rescue.lost_results.append(index)
            _clear(table[index : index + 1], results)
            del kept[index]
        rescue.lost_frames.sort()
        rescue.lost_results.sort()
        rescue.written, rescue.analysed = int(table["written"].sum()), len(kept)
        _write(new, table, list(kept.values()), events)
        _conclude(new, table, rescue)
    return rescue


def _belong(objects: NDArray[Any], row: NDArray[Any]) -> bool:
    """These objects are those of the result in a row, which was made of the image that was written."""
    pair = _value(row, "raw_crc32"), _value(row, "source_crc32")
    return (
        _value(row, "objects_crc32") in (-1, zlib.crc32(objects.tobytes()))
        and (-1 in pair or pair[0] == pair[1])
        and len(objects) == np.maximum(np.nan_to_num([row["count"][0], row["stripes"][0]]), 0).sum()
    )


def _fill(frames: h5py.Group, name: str) -> Any:
    """The value of a column where nothing was written."""
    return _ALL_COLUMNS[name].fill if name in _ALL_COLUMNS else frames[name].fillvalue


def _read_rows(frames: h5py.Group, rescue: Rescue) -> NDArray[Any]:
    """One row per frame, with all columns that are there."""
    names = [*(name for name in _ALL_COLUMNS if name in frames), *(name for name in frames if name not in _ALL_COLUMNS)]
    columns = {name: _read_column(frames, name, rescue) for name in names}
    n = max((len(column) for name, column in columns.items() if name in layout.FRAME_COLUMNS), default=0)
    table = np.empty(n, [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = _fill(frames, name)
        table[name][: len(column)] = column[:n]
    return table


def _read_column(frames: h5py.Group, name: str, rescue: Rescue) -> NDArray[Any]:
    """A column as far as it can be read, with fill values for chunks that cannot."""
    try:
        column = frames[name]
        values = np.full(len(column), _fill(frames, name), column.dtype)
    except _DAMAGE as error:
        rescue.notes.append(f"the column '{name}' cannot be read: {_why(error)}")
        return np.empty(0, _ALL_COLUMNS[name].dtype if name in _ALL_COLUMNS else "f8")
    for part in column.iter_chunks() if len(column) else ():
        with suppress(*_DAMAGE):  # its frames fail their check
            values[part] = column[part]
    return values


def _read_table(damaged: h5py.File, name: str, declared: Columns, rescue: Rescue) -> NDArray[Any]:
    """The rows of a table that can be read in all columns."""
    try:
        table = damaged[name]
        parts = tables.datasets(table, declared)
        n = min(map(len, parts))
        names = [] if isinstance(table, h5py.Dataset) else tables.names(table, declared)
    except _DAMAGE as error:
        rescue.notes.append(f"'{name}' cannot be read: {_why(error)}")
        return np.empty(0, row_dtype(declared))
    kinds = [(column, part.dtype) for column, part in zip(names, parts, strict=True)] if names else parts[0].dtype
    rows, whole = np.empty(n, kinds), np.ones(n, bool)
    for number, part in enumerate(parts):
        values = rows[names[number]] if names else rows
        for (chunk,) in part.iter_chunks() if len(part) else ():
            rest = slice(chunk.start, min(chunk.stop, n))
            try:
                values[rest] = part[rest]
            except _DAMAGE:
                whole[rest] = False
    if not whole.all():
        rescue.notes.append(f"{n - whole.sum()} of {n} rows of '{name}' cannot be read")
    return rows[whole]


def _good_rows(table: NDArray[Any], frames: h5py.Group, check: str) -> NDArray[np.bool_]:
    """Which rows hold what their check says, or were never written."""
    n = len(table)
    if check not in (table.dtype.names or ()):
        return np.ones(n, bool)
    covers = json_text.load(frames[check].attrs["covers"])
    if missing := set(covers) - set(table.dtype.names or ()):
        raise RunFileError(f"the columns {sorted(missing)} are missing")
    packed = np.empty(n, [(name, frames[name].dtype) for name in covers])
    for name in covers:
        packed[name] = table[name]
    blank = np.empty(1, packed.dtype)
    for name in covers:
        blank[name] = _fill(frames, name)
    never = blank.tobytes()
    rows = [row.tobytes() for row in packed]
    return np.array(
        [
            told == zlib.crc32(row) or (told == -1 and row == never)
            for told, row in zip(table[check], rows, strict=True)
        ],
        bool,
    )


def _copy_group(
    source: h5py.Group, target: h5py.Group, damaged: h5py.File, rescue: Rescue, made: dict[Any, Any]
) -> None:
    """Copy a group with all below; stacks and tables are made empty. Hard links stay hard links."""
    stacks = (damaged[layout.RAW], damaged[layout.MASK])
    emptied = _emptied(damaged)
    for name, value in source.attrs.items():
        target.attrs[name] = value
    for name in source:
        try:
            item = source[name]
            if item in made:
                target[name] = made[item]
                continue
            if isinstance(item, h5py.Group):
                made[item] = target.create_group(name)
                _copy_group(item, made[item], damaged, rescue, made)
                continue
            if item in stacks:
                made[item] = new_stack(target, name, item.shape[1:], item.dtype, item.fillvalue)
            else:
                made[item] = _new_like(item, target, name, (0,) if item in emptied else item.shape)
                if item not in emptied:
                    for part in item.iter_chunks() if item.chunks and item.size else ((),):
                        made[item][part] = item[part]
            for key in set(item.attrs) - {FRAMES_PER_FILE}:
                made[item].attrs[key] = item.attrs[key]
        except _DAMAGE as error:
            rescue.notes.append(f"'{source.name}/{name}' cannot be read: {_why(error)}")


def _emptied(damaged: h5py.File) -> set[h5py.Dataset]:
    """The datasets whose rows are written anew."""
    found: set[h5py.Dataset] = set()
    for name in (layout.OBJECTS, layout.EVENTS, layout.FRAMES):
        with suppress(*_DAMAGE):
            table = damaged[name]
            found |= {table} if isinstance(table, h5py.Dataset) else set(table.values())
    return found


def _new_like(item: h5py.Dataset, target: h5py.Group, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """An empty dataset of the same kind. HDF5's own copy crashes on some files that it reads through `_View`."""
    space = h5py.h5s.create_simple(shape, item.id.get_space().get_simple_extent_dims(True)) if shape else None
    kind, settings = item.id.get_type(), item.id.get_create_plist()
    made = h5py.h5d.create(target.id, name.encode(), kind, space or h5py.h5s.create(h5py.h5s.SCALAR), settings)
    return h5py.Dataset(made)


class _Images:
    """The images of a stack, in the damaged file or in its segments, as far as they are there."""

    def __init__(self, stack: h5py.Dataset, kind: str, file: io.BufferedReader, owned: ExitStack) -> None:
        self.files = [file]
        self._stacks: dict[int, h5py.Dataset] = {0: stack}
        self._per_file = sys.maxsize
        if not stack.is_virtual:
            return
        self.files, self._stacks = [], {}
        source = stack.virtual_sources()[0]
        self._per_file = int(stack.attrs[FRAMES_PER_FILE])
        folder = Path(file.name).parent / Path(source.file_name.replace("%%", "%")).parent
        for path in folder.glob("*.h5"):
            self.files.append(owned.enter_context(path.open("rb")))
            with suppress(*_DAMAGE, RunFileError):
                opened = owned.enter_context(h5py.File(_View(self.files[-1]), "r"))
                self._stacks[int(path.stem)] = opened[kind]

    def has(self, index: int) -> bool:
        """Whether HDF5 has an entry for this image."""
        number, place = divmod(index, self._per_file)
        stack = self._stacks.get(number)
        try:
            return (
                stack is not None and place < len(stack) and bool(stack.id.get_chunk_info_by_coord((place, 0, 0)).size)
            )
        except _DAMAGE:
            return False

    def copy(self, index: int, target: h5py.Dataset, told: int) -> bool:
        """Copy an image; False where it is missing or fails a check."""
        if not self.has(index):
            return False
        number, place = divmod(index, self._per_file)
        try:
            chunk = pack(self._stacks[number][place])
        except _DAMAGE:
            return False
        if told not in (-1, chunk.crc32):
            return False
        target.id.write_direct_chunk((index, 0, 0), chunk.data)
        return True

    def search(self, target: h5py.Dataset, missing: dict[int, list[int]], alive: _Alive) -> list[int]:
        """Look for images that HDF5 does not find, by CRC-32, in all files; returns the frames without."""
        unknown = missing.pop(-1, [])
        for file in self.files if missing else ():
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for chunk, image in find_chunks(data, target.shape[1:], target.dtype):
                    alive()
                    for index in missing.pop(crc32(image), ()):
                        target.id.write_direct_chunk((index, 0, 0), chunk)
                    if not missing:
                        break
        return [*unknown, *(index for indices in missing.values() for index in indices)]


def _value(row: NDArray[Any], name: str) -> int:
    return int(row[name][0]) if name in (row.dtype.names or ()) else -1


def _clear(row: NDArray[Any], kind: Columns) -> None:
    for name in set(kind) & set(row.dtype.names or ()):
        row[name] = kind[name].fill


def _write(new: h5py.File, table: NDArray[Any], objects: list[NDArray[Any]], events: NDArray[Any]) -> None:
    frames = new[layout.FRAMES]
    for check in set(layout.CHECKS) & set(table.dtype.names or ()):
        covers = json_text.load(frames[check].attrs["covers"])
        packed = np.empty(len(table), [(name, table.dtype[name]) for name in covers])
        for name in covers:
            packed[name] = table[name]
        known = table[check] >= 0
        table[check][known] = [zlib.crc32(row.tobytes()) for row in packed[known]]
    for name in table.dtype.names or ():
        frames[name].resize(len(table), axis=0)
        frames[name][:] = table[name]
    for name, declared, rows in (
        (layout.OBJECTS, layout.OBJECT_COLUMNS, np.concatenate(objects) if objects else np.empty(0, layout.ROW_DTYPE)),
        (layout.EVENTS, layout.EVENT_COLUMNS, events),
    ):
        if name not in new:
            tables.create(new["entry"], name.rpartition("/")[2], declared)
        if isinstance(new[name], h5py.Group):
            for missing in set(declared) - set(new[name]):  # its description was damaged
                tables.create_column(new[name], declared[missing])
        tables.append(new[name], rows)


def _conclude(new: h5py.File, table: NDArray[Any], rescue: Rescue) -> None:
    """Write the counters of what is in the new file: received is what the damaged file knows of."""
    counters = Counters(received=rescue.frames, analysed=rescue.analysed, written=rescue.written)
    damaged = len(rescue.lost_frames)
    counters.not_written = {
        cause: count
        for cause, count in (("damaged", damaged), ("not_recorded", rescue.frames - rescue.written - damaged))
        if count
    }
    causes = Counter(int(cause) for cause in table["skipped"] if cause != Skipped.NOT_SKIPPED)
    counters.not_analysed = {Skipped(cause).name.lower(): count for cause, count in sorted(causes.items())}
    counters.camera_lost = int(table["camera_lost"].sum())
    message = (
        f"recovered from '{rescue.path.name}': {rescue.written} of {rescue.frames} frames, {rescue.analysed} results; "
        "frames after its last flush are not known"
    )
    last_ns = int(max(table["written_ns"], default=0))
    summary = {
        "status": "recovered",
        "exit_status": 1,
        "message": message,
        "frames": counters.as_dict(),
        "latency_ms": {},
    }
    tables.append(new[layout.EVENTS], layout.event_row(Event(last_ns, "recovered", message), layout.version(new)))
    for name, value in (
        (layout.SUMMARY, json.dumps(summary).encode()),
        ("entry/end_time", iso(last_ns).encode()),
        ("entry/exit_status", 1),
    ):
        if name in new:
            new[name][()] = value


def _why(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
