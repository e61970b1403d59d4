"""TIFF files: plain, ImageJ, OME, Micro-Manager and tifffile, of one file or several.

The pages are found by the chain of their directories, which alone tells whether a file was cut. What a file says of
itself then says which page is which frame.
"""

import logging
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from realtime_skyseg import json_text
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.recordings.micromanager import AXES, Key, Planes, parts
from realtime_skyseg.recordings.recording import Choice, Recording, check_size, select
from realtime_skyseg.records import printable

_SUBFILE, _OLD_SUBFILE, _DESCRIPTION, _MICRO_MANAGER = 254, 255, 270, 51123
_MOST_OPEN = 8  # files of a set
_MOST_TEXT = 2**26
_MOST_FRAMES = 2_000_000

#: What a grey or colour page may be.
_PHOTOMETRIC = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
    tifffile.PHOTOMETRIC.YCBCR,
)

#: Letters of tifffile's axes.
_AXES = {"T": "time", "C": "channel", "Z": "z", "P": "position", "S": "samples", "I": "images", "Q": "others"}


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


class _File:
    """One TIFF file of a set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")  # not left to tifffile, which would not close it where it fails
        try:
            self.chain = read_chain(self._file)
            self._file.seek(0)
            with _quiet_tifffile():
                self._tiff = tifffile.TiffFile(self._file)
            self.first = self.page(0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.chain.pages)

    @property
    def whole(self) -> bool:
        return self.chain.missing == 0

    def page(self, index: int) -> tifffile.TiffPage:
        with _quiet_tifffile():
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
        with _quiet_tifffile():
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
        page, file = self.first, self._tiff.filehandle
        start = page.dataoffsets[0] + index * page.nbytes
        if page.dtype is None or start + page.nbytes > file.size:
            raise ValueError("the file is cut: it ends before the pixels of this frame")
        file.seek(start)
        kind = page.dtype.newbyteorder(self._tiff.byteorder)
        return self.meaning(page, np.frombuffer(file.read(page.nbytes), kind).reshape(page.shape))


@dataclass
class _Described:
    """What a file says of the set that it belongs to."""

    axes: dict[str, int]  # sizes, the slowest first
    names: dict[str, list[str]] = field(default_factory=dict)
    planes: dict[Key, tuple[str, int]] = field(default_factory=dict)  # file name ("": this one) and number of the page
    times_s: dict[Key, float] = field(default_factory=dict)
    rate_hz: float | None = None


class TiffRecording(Recording):
    """A TIFF file of one or many pages, as plain TIFF, ImageJ, OME, Micro-Manager or tifffile write it.

    Reduced images and masks are passed over. Where 0 is white, grey is turned round, and a palette is looked up. A JSON
    object in the first description may give `rate_hz`, `field_mT` (a list) and `synthetic`.
    """

    format = "tiff"

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  frozen
        super().__init__(path)
        self._open: dict[str, _File] = {}
        try:
            self._main = _File(path)
        except Exception as error:  # tifffile raises whatever the broken bytes lead to
            self._broken(0, error)
        try:
            self._describe(choice)
        except SettingsError:
            self.close()
            raise
        except Exception as error:
            self.close()
            self._broken(0, error)

    @property
    def files(self) -> set[str]:
        """Names of the files in the folder that hold the frames."""
        return {self.path.name} | {plane[0] for plane in self._planes or [] if plane and plane[0]}

    def close(self) -> None:
        """Close the files."""
        self._main.close()
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _describe(self, choice: Choice) -> None:
        main = self._main
        text = next((text for text in main.chain.descriptions if text), "")
        self._planes: list[tuple[str, int] | None] | None = None
        held = len(main)
        stack = None if (told := _ome(self.path, main)) else _micro_manager(self.path, main)
        if stack is not None:
            places, times, self.n_frames = stack.frames(self.path, choice)
            self._planes = [*places]  # and those that are missing at the end
            self._set_times(times)
            return
        if told is not None:
            fixed = select(self.path, told.axes, choice, told.names)
            free = next((name for name in told.axes if name not in fixed), "time")
            keys: list[Key] = []
            for step in range(told.axes[free]):
                time, channel, position, z = (step if name == free else fixed.get(name, 0) for name in AXES)
                keys.append((time, channel, position, z))
            self._planes = [told.planes.get(key) for key in keys]
            self.n_frames = len(keys)
            self._set_times([told.times_s.get(key) for key in keys])
            self.rate_hz = self.rate_hz or told.rate_hz
            return
        check_photometric(main.first)
        samples = _samples(main.first)
        if samples > 1 and held > 1:
            raise SettingsError(
                f"path: {self.path} has pages of {samples} samples; allowed: one, or red, green and blue"
            )
        told = _imagej(text, held) or _shaped(text, main.first) or _Described({"time": 1})
        if samples > 1:
            told = _Described({"samples": samples})
        self._samples = samples
        declared = math.prod(told.axes.values())
        if declared > _MOST_FRAMES:
            raise ValueError(f"it states {declared} frames; allowed: up to {_MOST_FRAMES}")
        self._in_a_row = main.in_a_row(declared)
        stated = max(declared, held) if main.whole else declared if declared > 1 else None
        if samples > 1:
            stated = samples
        fixed = select(self.path, told.axes, choice, told.names)
        if stated is not None and declared < held:
            told.axes, fixed = {"time": held}, {}  # more pages than the text knows of
        self._steps = (
            _places(told.axes, fixed)
            if fixed and declared > 1 and any(size > 1 for name, size in told.axes.items() if name in fixed)
            else None
        )
        self.n_frames = len(self._steps) if self._steps is not None else stated
        self._stated = stated
        self.rate_hz = told.rate_hz
        described = _json_object(text)
        rate = described.get("rate_hz")
        if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0:
            self.rate_hz = float(rate)
        fields = described.get("field_mT")
        if isinstance(fields, list) and all(isinstance(value, int | float) for value in fields):
            self.fields_mT = np.array(fields, np.float64)
        self.synthetic = described.get("synthetic") is True

    def _decode(self, index: int) -> NDArray[Any]:
        if self._planes is not None:
            return self._plane(index)
        place = index
        if self._steps is not None:
            if index >= len(self._steps):
                raise self._ended()
            place = self._steps[index]
        if 1 < self._samples <= index:
            raise self._ended()
        main = self._main
        try:
            if self._samples > 1:
                return np.asarray(main.pixels(0)[place])
            if place < len(main):
                return main.pixels(place)
            if place < self._in_a_row:
                return main.frame_in_a_row(place)
        except Exception as error:  # tifffile raises whatever the broken bytes lead to
            self._broken(index, error)
        if not main.whole:
            self._broken(index, "the file is cut: its chain of pages ends without an end mark")
        if place < (self._stated or 0):
            self._broken(index, f"the file states {self._stated} frames but holds {len(main)} pages")
        raise self._ended()

    def _plane(self, index: int) -> NDArray[Any]:
        assert self._planes is not None
        assert self.n_frames is not None
        if index >= self.n_frames:
            raise self._ended()
        plane = self._planes[index] if index < len(self._planes) else None
        if plane is None:
            self._lacking(index, sum(plane is not None for plane in self._planes))
        name, page = plane
        try:
            file = self._file(name)
            if page < len(file):
                return file.pixels(page)
        except OSError as error:
            self._broken(index, f"it is in '{printable(name)}', which cannot be opened ({error.strerror or error})")
        except Exception as error:
            self._broken(index, error)
        if not file.whole:
            self._broken(index, "the file is cut: its chain of pages ends without an end mark")
        held = sum(plane is not None and (plane[0] != name or plane[1] < len(file)) for plane in self._planes)
        return self._lacking(index, held)

    def _lacking(self, index: int, held: int) -> NoReturn:
        self._broken(index, f"the file states {self.n_frames} frames but holds {held} pages")

    def _file(self, name: str) -> _File:
        """A file of the set, opened. The name is one of the folder: a description must not lead elsewhere."""
        if name in ("", self.path.name):
            return self._main
        if name not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[name] = _File(self.path.parent / name)
        return self._open[name]


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
    return 1 if len(chain.pages) == 1 and not chain.missing and plain and _MICRO_MANAGER not in chain.tags[0] else None


def _places(axes: Mapping[str, int], fixed: Mapping[str, int]) -> list[int]:
    """Numbers of the pages in which all axes but one stand still; the last axis is the fastest."""
    numbers = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    return [int(number) for number in numbers[tuple(fixed.get(name, slice(None)) for name in axes)].ravel()]


def _samples(page: tifffile.TiffPage) -> int:
    """Samples of a page that are neither colours nor transparency, and so are images of their own."""
    if page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR) or "S" not in page.axes:
        return 1
    extra = [int(kind) for kind in page.extrasamples]
    return page.samplesperpixel - sum(kind in (1, 2) for kind in extra)


def _imagej(text: str, held: int) -> _Described | None:
    """ImageJ's description. Its planes stand in the order channel, z, time, the first being the fastest."""
    if not text.startswith("ImageJ="):
        return None
    lines = dict(re.findall(r"^(\w+)=(.*?)\s*$", text, re.MULTILINE))

    def number(key: str, default: int = 1) -> int:
        return max(int(lines[key]), 1) if re.fullmatch(r"[0-9]{1,9}", lines.get(key, "")) else default

    images = number("images", max(held, 1) if "images" in lines else 1)
    axes = {"time": number("frames"), "z": number("slices"), "channel": number("channels")}
    if math.prod(axes.values()) != images:
        axes = {"time": images}  # as ImageJ does it
    told = _Described(axes)
    if lines.get("mode") in ("composite", "color"):
        told.names["channel"] = [f"channel {i}" for i in range(axes.get("channel", 1))]
    with suppress(KeyError, ValueError):
        interval = float(lines["finterval"])
        unit = {"ms": 1e-3, "msec": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "h": 3600.0, "hr": 3600.0}
        interval *= unit.get(lines.get("tunit", "sec").strip(), 1.0)
        told.rate_hz = 1 / interval if math.isfinite(interval) and interval > 0 else None
    return told


def _shaped(text: str, page: tifffile.TiffPage) -> _Described | None:
    """Tifffile's description: a JSON object with the shape, and perhaps with the names of its axes."""
    described = _json_object(text)
    shape, letters = described.get("shape"), described.get("axes")
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 2**31 for n in shape):
        return None
    inner = len(page.shape)
    if math.prod(shape[-inner:]) != math.prod(page.shape):
        inner = 0
        while inner < len(shape) and math.prod(shape[len(shape) - inner :]) < math.prod(page.shape):
            inner += 1
    outer = [int(n) for n in shape[: len(shape) - inner]]
    if not outer:
        return None
    if isinstance(letters, str) and len(letters) == len(shape):
        known = [_AXES.get(letter, letter) for letter in letters[: len(outer)]]
        return _Described(dict(zip(known, outer, strict=False))) if len(set(known)) == len(outer) else None
    if sum(n > 1 for n in outer) <= 1:
        return _Described({"time": math.prod(outer)})
    return _Described({f"unnamed axis {i}": n for i, n in enumerate(outer)})


def _micro_manager(path: Path, main: _File) -> Planes[tuple[str, int]] | None:
    """The pages of a Micro-Manager stack say themselves which frame they are; its summary says how many were wanted."""
    if _MICRO_MANAGER not in main.chain.tags[0]:
        return None
    planes: Planes[tuple[str, int]] = Planes()
    for part in parts(path):
        file = main if part.name == path.name else _File(part)
        try:
            for page in range(len(file)):
                metadata = _json_object(file.text(page, _MICRO_MANAGER))
                if not planes.add(metadata, ("" if file is main else part.name, page)):
                    return None
                if page == 0 and isinstance(metadata.get("Summary"), dict):
                    planes.summary(metadata["Summary"])
        finally:
            if file is not main:
                file.close()
    with suppress(ValueError, OSError, KeyError), _quiet_tifffile(), path.open("rb") as raw:
        summary = tifffile.tifffile.read_micromanager_metadata(raw, {"Summary"}).get("Summary")
        if isinstance(summary, dict):
            planes.summary(summary)
    return planes


def _ome(path: Path, main: _File) -> _Described | None:
    """OME-XML: which page of which file is which plane (OME-TIFF specification, 6.0)."""
    text = next((text for text in main.chain.descriptions if text.rstrip().endswith("OME>")), None)
    if text is None:
        return None
    root = _xml(text)
    if root is None:
        return None
    beside = next((child for child in root if _tag(child) == "BinaryOnly"), None)
    if beside is not None:
        name = Path(str(beside.get("MetadataFile", "")).replace("\\", "/")).name
        try:
            if name.lower().endswith((".tif", ".tiff")):
                with (path.parent / name).open("rb") as file:
                    texts = read_chain(file).descriptions
                root = _xml(next((text for text in texts if text.rstrip().endswith("OME>")), ""))
            else:
                root = _xml((path.parent / name).read_text("utf-8", "replace"))
        except (OSError, ValueError):
            root = None
        if root is None:
            raise SettingsError(
                f"path: {path} is described in '{printable(name)}', which is not there; allowed: with it"
            )
    images = [pixels for image in root for pixels in image if _tag(image) == "Image" and _tag(pixels) == "Pixels"]
    names = [str(image.get("Name", "")) for image in root if _tag(image) == "Image"]
    form = {key: images[0].get(key) for key in ("SizeX", "SizeY", "Type")} if images else {}
    first = (str(main.first.imagewidth), str(main.first.imagelength))
    alike = [
        (name, pixels)
        for name, pixels in zip(names, images, strict=False)
        if (pixels.get("SizeX"), pixels.get("SizeY")) == first
    ]
    if not alike or not form:
        return None
    own = _own_names(root, path)
    planes: dict[Key, tuple[str, int]] = {}
    told = _Described({}, planes=planes)
    size = {"T": 1, "C": 1, "Z": 1}
    channels: list[str] = []
    for position, (_, pixels) in enumerate(alike):
        samples = max([int(child.get("SamplesPerPixel") or 1) for child in pixels if _tag(child) == "Channel"] or [1])
        here = {axis: _count(pixels, axis) for axis in "TCZ"}
        here["C"] = max(here["C"] // samples, 1)
        if math.prod(here.values()) * len(alike) > _MOST_FRAMES:
            raise ValueError(f"its OME-XML states {math.prod(here.values())} planes; allowed: up to {_MOST_FRAMES}")
        size = {axis: max(size[axis], here[axis]) for axis in "TCZ"}
        order = [axis for axis in str(pixels.get("DimensionOrder", "XYZCT")) if axis in "TCZ"]
        if not channels:
            channels = [str(child.get("Name") or "") for child in pixels if _tag(child) == "Channel"]
        _tiff_data(pixels, here, order, position, own, main, planes)
        for plane in (child for child in pixels if _tag(child) == "Plane" and child.get("DeltaT")):
            with suppress(ValueError, KeyError):
                key = (int(plane.get("TheT", 0)), int(plane.get("TheC", 0)), position, int(plane.get("TheZ", 0)))
                told.times_s[key] = float(plane.get("DeltaT", "")) * _SECONDS[plane.get("DeltaTUnit", "s")]
        with suppress(ValueError, KeyError, ZeroDivisionError):
            step = float(pixels.get("TimeIncrement", "")) * _SECONDS[pixels.get("TimeIncrementUnit", "s")]
            told.rate_hz = 1 / step if step > 0 and math.isfinite(1 / step) else None
    if not planes:
        return None
    told.axes = {"time": size["T"], "channel": size["C"], "position": len(alike), "z": size["Z"]}
    told.names = {"position": [name for name, _ in alike], "channel": channels if all(channels) else []}
    return told


_SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}


def _tiff_data(
    pixels: ElementTree.Element,
    size: Mapping[str, int],
    order: Sequence[str],
    position: int,
    own: set[str],
    main: _File,
    planes: dict[Key, tuple[str, int]],
) -> None:
    """Enter the planes of one image."""
    total = math.prod(size.values())
    lengths: dict[str, int] = {}
    for data in (child for child in pixels if _tag(child) == "TiffData"):
        uuid = next((child for child in data if _tag(child) == "UUID"), None)
        name = "" if uuid is None else str(uuid.get("FileName") or "")
        name = Path(name.replace("\\", "/")).name
        if not name or name in own or (uuid is not None and (uuid.text or "").strip() in own):
            name = ""
        count = data.get("PlaneCount") or data.get("NumPlanes")
        number = int(count) if count else 1 if data.get("IFD") else 0
        if number == 0:  # all that the file has
            if name not in lengths:
                lengths[name] = len(main) if not name else _pages(main.path.parent / name)
            number = lengths[name]
            if number == len(main) and not name and not main.whole:
                number = total
        page = int(data.get("IFD") or 0)
        start = {axis: int(data.get(f"First{axis}") or 0) for axis in "TCZ"}
        if any(not 0 <= start[axis] < size[axis] for axis in "TCZ") or page < 0:
            continue  # ImageJ's plugins leave such entries behind where they crop
        place = 0
        for axis in reversed(order):
            place = place * size[axis] + start[axis]
        for step in range(min(number, total - place)):
            rest, found = place + step, {}
            for axis in order:
                rest, found[axis] = divmod(rest, size[axis])
            planes.setdefault((found["T"], found["C"], position, found["Z"]), (name, page + step))


def _pages(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return len(read_chain(file).pages)
    except (OSError, ValueError):
        return 0


def _own_names(root: ElementTree.Element, path: Path) -> set[str]:
    """What this file is called in a description: its name, its UUID, or the only name in it if it was renamed."""
    told = {
        Path(str(uuid.get("FileName")).replace("\\", "/")).name: (uuid.text or "").strip()
        for uuid in root.iter()
        if _tag(uuid) == "UUID" and uuid.get("FileName")
    }
    if path.name in told:
        return {path.name, told[path.name] or path.name}
    own = {uuid for uuid in (root.get("UUID"),) if uuid and uuid in told.values()}
    if own or not told:
        return own | {path.name}
    if len(told) == 1:
        return set(told)
    some = ", ".join(printable(name) for name in sorted(told)[:3])
    raise SettingsError(f"path: {path} is described as one of {some}, but not as which; allowed: its own name")


def _count(pixels: ElementTree.Element, axis: str) -> int:
    return max(int(pixels.get(f"Size{axis}") or 1), 1)


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _xml(text: str) -> ElementTree.Element | None:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None


def _json_object(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        described = json_text.load(text)
        if isinstance(described, dict):
            return described
    return {}


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
def _quiet_tifffile() -> Iterator[None]:
    """Keep tifffile from logging what this module reports as an error."""
    logger = logging.getLogger("tifffile")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
