"""Datasets that grow while others read the file: chunks past HDF5's cache, columns, and tables of them."""

import zlib
from collections import deque
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.quantities import Columns, row_dtype


class DirectDataset:
    """A dataset of a file that is being written, whose chunks go past HDF5's filters and cache.

    What HDF5 holds in its cache is lost where the disk is full, even if the disk has room again afterwards; what is
    written here is either in the file or still the caller's.

    Args:
        file: open for writing; the chunks of the dataset span all its axes but the first.
        name: of the dataset.
    """

    def __init__(self, file: h5py.File, name: str) -> None:
        self._file, self._name = file, name.encode()
        self._rows, *self._rest = file[name].chunks
        self._length = len(file[name])
        self._open()

    def put(self, number: int, data: bytes, length: int) -> None:
        """Write a chunk as its filters leave it, in a dataset that is made as long as this, or is longer.

        Raises:
            OSError, RuntimeError: the disk refuses; may be called again.
        """
        try:
            if self._length < length:
                self._dataset.set_extent((length, *self._rest))
                self._length = length
            self._dataset.write_direct_chunk((number * self._rows, *(0 for _ in self._rest)), data)
        except (OSError, RuntimeError):
            # HDF5 2.0 remembers the place of this chunk, though it could not write there, and would never note it in
            # the file: it must forget the dataset.
            self._open()
            raise

    def _open(self) -> None:
        self._dataset: Any = None  # closed first
        self._dataset = h5py.h5d.open(self._file.id, self._name)


class Column:
    """Rows at the end of a dataset of one axis, uncompressed or with gzip. The last chunk is kept in memory.

    Args:
        file: open for writing.
        name: of the dataset, which is empty.
    """

    def __init__(self, file: h5py.File, name: str) -> None:
        dataset = file[name]
        self.dtype: np.dtype[Any] = dataset.dtype
        self._fill = dataset.fillvalue
        self._gzip = dataset.compression_opts if dataset.compression == "gzip" else None
        self._chunk = np.full(dataset.chunks, self._fill, self.dtype)
        self._number = self._filled = 0
        self._changed = False
        self._added: deque[NDArray[Any]] = deque()
        self._stored = DirectDataset(file, name)

    def add(self, rows: NDArray[Any]) -> None:
        """Take rows, which are written by `write`."""
        if len(rows):
            self._added.append(rows)

    def write(self) -> None:
        """Write what was added. Safe to call again where it failed."""
        size = len(self._chunk)
        while self._added or self._changed:
            if self._added and self._filled == size and not self._changed:
                self._number, self._filled = self._number + 1, 0
                self._chunk[:] = self._fill
            while self._added and self._filled < size:
                rows = self._added.popleft()
                end = min(self._filled + len(rows), size)
                taken = end - self._filled
                self._chunk[self._filled : end] = rows[:taken]
                if taken < len(rows):
                    self._added.appendleft(rows[taken:])
                self._filled, self._changed = end, True
            data = self._chunk.tobytes() if self._gzip is None else zlib.compress(self._chunk.tobytes(), self._gzip)
            self._stored.put(self._number, data, self._number * size + self._filled)
            self._changed = False


class TableWriter:
    """Rows at the end of a table of a file that others may read.

    Args:
        file: open for writing.
        place: of the table.
        declared: its columns.
    """

    def __init__(self, file: h5py.File, place: str, declared: Columns) -> None:
        self.dtype = row_dtype(declared)
        self._columns = {name: Column(file, f"{place}/{name}") for name in declared}

    def add(self, rows: NDArray[np.void]) -> None:
        """Take rows, which `write` writes."""
        for name, column in self._columns.items():
            column.add(rows[name])

    def write(self) -> None:
        """Write what was added. Safe to call again where it failed."""
        for column in self._columns.values():
            column.write()
