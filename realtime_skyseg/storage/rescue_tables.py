"""What a damaged file still gives of its tables."""

import io
import zlib
from typing import Any

import h5py
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg import json_text
from realtime_skyseg.errors import RunFileError
from realtime_skyseg.quantities import Columns, row_dtype
from realtime_skyseg.storage import layout, tables

_ALL_COLUMNS = layout.FRAME_COLUMNS | layout.RESULT_COLUMNS

#: What HDF5 raises on damage.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError)


class DamagedFile(io.RawIOBase):
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
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        wanted = memoryview(buffer).cast("B")
        self._file.seek(self._place)
        got = self._file.readinto(wanted)
        wanted[got:] = bytes(len(wanted) - got)
        if self._place < len(self._head):
            part = self._head[self._place : self._place + len(wanted)]
            wanted[: len(part)] = part
        self._place += len(wanted)
        return len(wanted)


def fill_of(frames: h5py.Group, name: str) -> Any:
    """The value of a column where nothing was written."""
    return _ALL_COLUMNS[name].fill if name in _ALL_COLUMNS else frames[name].fillvalue


def read_rows(frames: h5py.Group, notes: list[str]) -> NDArray[Any]:
    """One row per frame, with all columns that are there."""
    names = [*(name for name in _ALL_COLUMNS if name in frames), *(name for name in frames if name not in _ALL_COLUMNS)]
    broken: set[str] = set()
    columns = {name: _read_column(frames, name, notes, broken) for name in names}
    n = max((len(column) for name, column in columns.items() if name in layout.FRAME_COLUMNS), default=0)
    table = np.empty(n, [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = fill_of(frames, name)
        table[name][: len(column)] = column[:n]
    return table if broken.intersection(layout.CHECKS) else _without_unfinished(table, frames)


def _without_unfinished(table: NDArray[Any], frames: h5py.Group) -> NDArray[Any]:
    """The rows without what a kill kept from being finished: a check is written when all that it covers is in the file
    (`RunWriter._flush`). That is so at the end of the table only, and where all checks could be read: elsewhere a
    missing check is damage.
    """
    if not set(layout.CHECKS) <= set(table.dtype.names or ()):
        return table
    rows_end, results_end = (max(np.flatnonzero(table[check] != -1), default=-1) + 1 for check in layout.CHECKS)
    table = table[: max(rows_end, results_end)]
    for name in json_text.load(frames[layout.CHECKS[1]].attrs["covers"]):
        if name in (table.dtype.names or ()):
            table[name][results_end:] = fill_of(frames, name)
    return table


def _read_column(frames: h5py.Group, name: str, notes: list[str], broken: set[str]) -> NDArray[Any]:
    """A column as far as it can be read, with fill values for chunks that cannot; then its name is among `broken`."""
    try:
        column = frames[name]
        values = np.full(len(column), fill_of(frames, name), column.dtype)
    except DAMAGE as error:
        notes.append(f"the column '{name}' cannot be read: {reason(error)}")
        broken.add(name)
        return np.empty(0, _ALL_COLUMNS[name].dtype if name in _ALL_COLUMNS else "f8")
    for part in column.iter_chunks() if len(column) else ():
        try:
            values[part] = column[part]
        except DAMAGE:  # its frames fail their check
            broken.add(name)
    return values


def read_table(damaged: h5py.File, name: str, declared: Columns, notes: list[str]) -> NDArray[Any]:
    """The rows of a table that can be read in all columns."""
    try:
        table = damaged[name]
        parts = tables.datasets(table, declared)
        n = min(map(len, parts))
        names = [] if isinstance(table, h5py.Dataset) else tables.names(table, declared)
    except DAMAGE as error:
        notes.append(f"'{name}' cannot be read: {reason(error)}")
        return np.empty(0, row_dtype(declared))
    kinds = [(column, part.dtype) for column, part in zip(names, parts, strict=True)] if names else parts[0].dtype
    rows, whole = np.empty(n, kinds), np.ones(n, bool)
    for number, part in enumerate(parts):
        values = rows[names[number]] if names else rows
        for (chunk,) in part.iter_chunks() if len(part) else ():
            rest = slice(chunk.start, min(chunk.stop, n))
            try:
                values[rest] = part[rest]
            except DAMAGE:
                whole[rest] = False
    if not whole.all():
        notes.append(f"{n - whole.sum()} of {n} rows of '{name}' cannot be read")
    return rows[whole]


def good_rows(table: NDArray[Any], frames: h5py.Group, check: str) -> NDArray[np.bool_]:
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
        blank[name] = fill_of(frames, name)
    never = blank.tobytes()
    rows = [row.tobytes() for row in packed]
    return np.array(
        [
            told == zlib.crc32(row) or (told == -1 and row == never)
            for told, row in zip(table[check], rows, strict=True)
        ],
        bool,
    )


def reason(error: Exception) -> str:
    """First line of what HDF5 says."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
