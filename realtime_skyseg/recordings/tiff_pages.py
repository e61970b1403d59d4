"""The pages of one TIFF file, by the chain of their directories.

The chain alone tells whether a file was cut.
"""

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from realtime_skyseg.recordings.recording import check_size

_SUBFILE, _OLD_SUBFILE, _DESCRIPTION, MICRO_MANAGER_TAG = 254, 255, 270, 51123
_MOST_TEXT = 2**26

#: What a grey or colour page may be.
_PHOTOMETRIC = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
    tifffile.PHOTOMETRIC.YCBCR,
)


@dataclass
class Chain:
    """The page directories of a TIFF file."""

    pages: list[int]  # offsets of those that lie whole in the file and are images of full resolution
    missing: int  # offset of the next directory, which does not lie whole in the file; 0: a regular end
    second: int  # offset that the first directory gives for the next
    descriptions: list[str]  # of the first page
    byteorder: str = "<"
    tags: list[dict[int, tuple[int, int, int]]] = field(default_factory=list)  # code: type, count, place of the value


def read_chain(file: BinaryIO) -> Chain:
    """Walk through a file's directories. Raises `ValueError` where it is no TIFF file, or ends within the first one."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise ValueError("not a TIFF file")
    (version,) = struct.unpack(order + "H", head[2:4])
    if version == 42:
        count_format, entry, pointer, offset = order + "H", 12, order + "I", struct.unpack(order + "I", head[4:8])[0]
    elif version == 43 and len(head) == 16:
        count_format, entry, pointer, offset = order + "Q", 20, order + "Q", struct.unpack(order + "Q", head[8:16])[0]
    else:
        raise ValueError("not a TIFF file")
    count_size, inline = struct.calcsize(count_format), struct.calcsize(pointer)
    one = struct.Struct(order + ("HHI" if version == 42 else "HHQ"))
    full: list[tuple[int, dict[int, tuple[int, int, int]]]] = []
    reduced: list[tuple[int, dict[int, tuple[int, int, int]]]] = []
    seen: set[int] = set()
    second = -1
    while offset:
        if offset in seen or offset + count_size > size:
            break
        file.seek(offset)
        (count,) = struct.unpack(count_format, file.read(count_size))
        length = count * entry
        if not 0 < count <= 4096 or offset + count_size + length + inline > size:
            break
        data = file.read(length + inline)
        tags: dict[int, tuple[int, int, int]] = {}
        several: list[tuple[int, int, int]] = []  # Micro-Manager has two descriptions
        for start in range(0, length, entry):
            code, kind, number = one.unpack_from(data, start)
            place = offset + count_size + start + one.size
            if code == _DESCRIPTION:
                several.append((kind, number, place))
            tags.setdefault(code, (kind, number, place))
        subfile = _short(data, tags.get(_SUBFILE), offset + count_size, order)
        old = _short(data, tags.get(_OLD_SUBFILE), offset + count_size, order)
        small = bool(subfile & 0b101) or (_SUBFILE not in tags and old == 2)
        (reduced if small else full).append((offset, tags))
        if len(full) + len(reduced) == 1:
            firsts = several
        seen.add(offset)
        (offset,) = struct.unpack(pointer, data[length:])
        second = offset if second < 0 else second
    if not seen:
        raise ValueError("the file is cut: it ends within the directory of the first page")
    chosen = full or reduced  # a file in which all are said to be small has no others
    descriptions = [_text(file, size, tag, inline, order) for tag in firsts]
    if chosen[0][1].get(_DESCRIPTION) and chosen[0] is not (full + reduced)[0]:
        descriptions.append(_text(file, size, chosen[0][1][_DESCRIPTION], inline, order))
    return Chain([place for place, _ in chosen], offset, second, descriptions, order, [tags for _, tags in chosen])


def _short(data: bytes, tag: tuple[int, int, int] | None, start: int, order: str) -> int:
    if tag is None:
        return 0
    kind, _, place = tag
    form = {3: "H", 4: "I"}.get(kind)
    return int(struct.unpack_from(order + form, data, place - start)[0]) if form else 0


def _text(file: BinaryIO, size: int, tag: tuple[int, int, int], inline: int, order: str) -> str:
    """The text of a tag, of which its type, number of bytes and place are known."""
    _, number, place = tag
    if number > inline:
        file.seek(place)
        (place,) = struct.unpack(order + ("I" if inline == 4 else "Q"), file.read(inline))
    if number > _MOST_TEXT or place + number > size:
        return ""
    file.seek(place)
    return file.read(number).rstrip(b"\0").decode("utf-8", "replace")


class TiffFile:
    """One TIFF file of a set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")  # not left to tifffile, which would not close it where it fails
        try:
            self.chain = read_chain(self._file)
            self._file.seek(0)
            with quiet_tifffile():
                self._tiff = tifffile.TiffFile(self._file)
            self.first = self.page(0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        return len(self.chain.pages)

    @property
    def whole(self) -> bool:
        """The chain of pages ends as it should."""
        return self.chain.missing == 0

    def page(self, index: int) -> tifffile.TiffPage:
        """A page by its number."""
        with quiet_tifffile():
            self._tiff.filehandle.seek(self.chain.pages[index])
            return tifffile.TiffPage(self._tiff, index=index)

    def text(self, index: int, code: int) -> str:
        """A text tag of a page; "" where it has none."""
        tag = self.chain.tags[index].get(code)
        inline = 8 if self._tiff.is_bigtiff else 4
        return _text(self._file, self._tiff.filehandle.size, tag, inline, self.chain.byteorder) if tag else ""

    def pixels(self, index: int) -> NDArray[Any]:
        """Pixels of a page: (H, W), (H, W, 3 or 4) of colours, or (samples, H, W). Raises whatever is wrong."""
        page = self.first if index == 0 else self.page(index)
        check_size(page.imagelength, page.imagewidth)
        check_photometric(page)
        size = self._tiff.filehandle.size
        # tifffile fills in zeros for pixels that are not in the file, so that has to be found out before.
        spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        stored = bool(spans) and all(o > 0 and n > 0 and o + n <= size for o, n in spans)
        if stored and page.compression == 1 and page.bitspersample % 8 == 0:
            stored = sum(page.databytecounts) >= page.nbytes
        if not stored:
            raise ValueError("the file is cut: it ends before the pixels of this frame")
        with quiet_tifffile():
            pixels = np.asarray(page.asarray())
        return self.meaning(page, pixels)

    def meaning(self, page: tifffile.TiffPage, pixels: NDArray[Any]) -> NDArray[Any]:
        """What stored values stand for: 0 may be white, or a number in a palette."""
        if page.axes == "SYX" and page.photometric == tifffile.PHOTOMETRIC.RGB:
            pixels = np.moveaxis(pixels, 0, 2)
        elif page.axes == "YXS" and page.photometric != tifffile.PHOTOMETRIC.RGB and pixels.shape[2] not in (3, 4):
            pixels = np.moveaxis(pixels, 2, 0)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            if pixels.dtype.kind == "f":
                raise ValueError("its pixels are floats in which 0 is white; allowed: 0 is black")
            if pixels.dtype == bool:
                return ~pixels
            if pixels.dtype.kind == "i":
                return np.asarray(-1 - pixels, pixels.dtype)
            return np.asarray((1 << page.bitspersample) - 1 - pixels, pixels.dtype)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            palette = page.colormap
            if palette is None or pixels.ndim != 2 or int(pixels.max(initial=0)) >= palette.shape[1]:
                raise ValueError("its pixels are numbers of a palette that it does not hold")
            eight = palette if palette.max(initial=0) < 256 else palette >> 8  # as libtiff takes them
            return np.moveaxis(eight.astype(np.uint8)[:, pixels], 0, 2)
        return pixels

    def in_a_row(self, declared: int) -> int:
        """Frames stored back to back from the first page's pixels on, whatever directories say."""
        if self.whole:  # how ImageJ and tifffile store stacks beyond 4 GB
            return declared if len(self) == 1 and self.first.is_contiguous else 1
        return _frames_in_a_row(self.first, self.chain.second)

    def frame_in_a_row(self, index: int) -> NDArray[Any]:
        """Pixels of a frame that lies, without a page of its own, behind those of the first."""
        page, file = self.first, self._tiff.filehandle
        start = page.dataoffsets[0] + index * page.nbytes
        if page.dtype is None or start + page.nbytes > file.size:
            raise ValueError("the file is cut: it ends before the pixels of this frame")
        file.seek(start)
        kind = page.dtype.newbyteorder(self._tiff.byteorder)
        return self.meaning(page, np.frombuffer(file.read(page.nbytes), kind).reshape(page.shape))


def check_photometric(page: tifffile.TiffPage) -> None:
    """Raise `ValueError` for pixels that are neither grey nor colours that can become grey."""
    if page.photometric not in _PHOTOMETRIC:
        name = getattr(page.photometric, "name", page.photometric)
        raise ValueError(f"its pixels are {name}; allowed: grey, a palette or RGB")


def count_frames(path: Path) -> int | None:
    """Frames of a TIFF file where its pages alone tell: 1 for a single page of which nothing more is said, else None.

    Raises `ValueError` or `OSError` where it is no TIFF file.
    """
    with path.open("rb") as file:
        chain = read_chain(file)
    text = next((text for text in chain.descriptions if text), "")
    plain = not text or not (text.startswith(("ImageJ=", "{")) or "OME" in text or "SCANIMAGE" in text)
    return (
        1 if len(chain.pages) == 1 and not chain.missing and plain and MICRO_MANAGER_TAG not in chain.tags[0] else None
    )


def samples_of(page: tifffile.TiffPage) -> int:
    """Samples of a page that are neither colours nor transparency, and so are images of their own."""
    if page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR) or "S" not in page.axes:
        return 1
    extra = [int(kind) for kind in page.extrasamples]
    return page.samplesperpixel - sum(kind in (1, 2) for kind in extra)


def read_tag(element: ElementTree.Element) -> str:
    """Name of an XML element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _frames_in_a_row(page: tifffile.TiffPage, second: int) -> int:
    """Frames stored back to back between the first page's directory and the offset of the second directory.

    tifffile, ImageJ and others write the pixels of a whole stack first and all further directories after them, so a cut
    takes directories of frames that are still there. Such a stack is known by its gap before the second directory: a
    whole number of frames (and at most 15 bytes to align the directory).
    """
    if not page.is_contiguous or page.nbytes < 16 or page.offset > page.dataoffsets[0]:
        return 1
    frames, rest = divmod(second - page.dataoffsets[0], page.nbytes)
    return frames if frames > 0 and rest < 16 else 1


@contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Keep tifffile from logging what this module reports as an error."""
    logger = logging.getLogger("tifffile")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
