"""Chunks of HDF5 datasets, made outside HDF5 and written as they are (`write_direct_chunk`).

An image is one chunk. HDF5 runs its filters one at a time, under its global lock; here several threads compress at
once, and every HDF5 reader with the usual plugin decodes and verifies the same bytes.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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


def crc32(image: NDArray[Any]) -> int:
    """CRC-32 of an array's bytes in row order, as `zlib.crc32` gives it."""
    return int(_codecs.deflate_crc32(np.ascontiguousarray(image).reshape(-1).view(np.uint8)))
