"""Chunks of HDF5 datasets, made outside HDF5 and written as they are (`write_direct_chunk`).

An image is one chunk. HDF5 runs its filters one at a time, under its global lock; here several threads compress at
once, and every HDF5 reader with the usual plugin decodes and verifies the same bytes.
"""

import math
import mmap
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import imagecodecs
import numpy as np
from numpy.typing import NDArray

#: Takes any buffer; its annotations know bytes only.
_codecs: Any = imagecodecs

#: Uncompressed bytes per LZ4 block. Blocks of 65,536, the reach of LZ4's window, make files 5 % smaller, but their
#: calls take a quarter more time, most of it waiting for the interpreter's lock.
_BLOCK_BYTES = 524_288


@dataclass(frozen=True, slots=True)
class Chunk:
    """An image, ready for the file."""

    data: bytes  # as filters 32008 (bitshuffle-LZ4) and 3 (Fletcher32) leave it
    crc32: int  # of the image's own bytes


def pack(image: NDArray[Any]) -> Chunk:
    """Compress an image. Releases the interpreter's lock nearly all the time.

    The format is that of the HDF5 filter 32008, https://github.com/kiyo-masui/bitshuffle: bytes and block size of the
    uncompressed data, then each block's length and LZ4 bytes, then what is no multiple of 8 elements as it is; after
    that Fletcher's checksum of all these bytes, as HDF5's filter 3 appends it.

    Args:
        image: (height, width), any number type, in the byte order of the file.
    """
    pixels = np.ascontiguousarray(image).reshape(-1)
    size = pixels.itemsize
    shuffled = _codecs.bitshuffle_encode(pixels, itemsize=size, blocksize=_BLOCK_BYTES // size)
    stream = memoryview(shuffled).cast("B")
    whole = pixels.size // 8 * 8 * size
    parts: list[bytes | memoryview] = [struct.pack(">QI", pixels.nbytes, _BLOCK_BYTES)]
    for start in range(0, whole, _BLOCK_BYTES):
        block = _codecs.lz4_encode(stream[start : min(start + _BLOCK_BYTES, whole)])
        parts += [struct.pack(">I", len(block)), block]
    parts.append(stream[whole:])
    data = b"".join(parts)
    return Chunk(data + struct.pack("<I", _codecs.h5checksum_fletcher32(data)), crc32(pixels))


def find_chunks(data: mmap.mmap, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[tuple[bytes, NDArray[Any]]]:
    """Chunks that `pack` made of images of this shape and type, found by their beginning and checked by their end.

    Yields each chunk's bytes and its image, in the order of the file.
    """
    pixels = math.prod(shape)
    whole, rest = pixels // 8 * 8 * dtype.itemsize, pixels % 8 * dtype.itemsize
    sizes = [min(_BLOCK_BYTES, whole - start) for start in range(0, whole, _BLOCK_BYTES)]
    head = struct.pack(">QI", pixels * dtype.itemsize, _BLOCK_BYTES)
    start = data.find(head)
    while start >= 0:
        place, blocks = start + len(head), []
        for size in sizes:
            (length,) = struct.unpack(">I", data[place : place + 4].ljust(4, b"\0"))
            if not 0 < length <= size + size // 255 + 16:
                break
            blocks.append(data[place + 4 : place + 4 + length])
            place += 4 + length
        end = place + rest
        if len(blocks) == len(sizes) and end + 4 <= len(data):
            (told,) = struct.unpack("<I", data[end : end + 4])
            if told == _codecs.h5checksum_fletcher32(data[start:end]):
                parts = [_codecs.lz4_decode(block, out=size) for block, size in zip(blocks, sizes, strict=True)]
                shuffled = np.frombuffer(b"".join([*parts, data[place:end]]), dtype)
                image = _codecs.bitshuffle_decode(
                    shuffled, itemsize=dtype.itemsize, blocksize=_BLOCK_BYTES // dtype.itemsize
                )
                yield data[start : end + 4], np.asarray(image).view(dtype).reshape(shape)
        start = data.find(head, start + 1)


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


def crc32(image: NDArray[Any]) -> int:
    """CRC-32 of an array's bytes in row order, as `zlib.crc32` gives it."""
    return int(_codecs.deflate_crc32(np.ascontiguousarray(image).reshape(-1).view(np.uint8)))
