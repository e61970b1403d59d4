"""Open recordings and read their frames one by one: image folders, TIFF, video, NPY/NPZ and run files.

Pacing is not done here (see `simulator.replay`). Every kind is read lazily: a broken recording yields its good frames
first and then a `RecordingError` that names the file and the frame, counted from 0.
"""

import json
import logging
import math
import os
import re
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from realtime_skyseg.errors import RecordingError, RunFileError, SettingsError
from realtime_skyseg.records import Image

BUNDLED = Path(__file__).parent / "recordings" / "skyrmions_field_sweep.tif"

_TIFF_SUFFIXES = (".tif", ".tiff")
_IMAGE_SUFFIXES = (".png", *_TIFF_SUFFIXES, ".jpg", ".jpeg", ".bmp")
_VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov")
_RUN_SUFFIXES = (".h5", ".hdf5", ".nxs", ".partial")
_ARRAY_SUFFIXES = (".npy", ".npz")
_FILE_SUFFIXES = (*_TIFF_SUFFIXES, *_VIDEO_SUFFIXES, *_ARRAY_SUFFIXES, *_RUN_SUFFIXES)

_PIXEL_TYPES = ("uint8", "uint16", "float32")


class Recording(ABC):
    """A sequence of images of one size and type, with what is known of their timing and field.

    `read(i)` may be called in any order; in order is fastest. A recording is used by one thread.
    """

    #: Short name of the kind of file, for example "tiff".
    format: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_frames: int | None = None  #: as the file states it; None where it does not
        self.rate_hz: float | None = None  #: frames per second when it was recorded; None where unknown
        self.stamps_ns: NDArray[np.int64] | None = None  #: (N,) when each frame was recorded, on its own clock
        self.fields_mT: NDArray[np.float64] | None = None  #: (N,) the field that was applied in each frame
        self.synthetic = False  #: True where the file says that it was simulated
        self._began_with: tuple[tuple[int, int], np.dtype[Any]] | None = None

    def read(self, index: int) -> Image:
        """The image of frame `index` (from 0): (H, W), uint8, uint16 or float32, C-contiguous, the caller's own.

        Colour becomes grey, float64 becomes float32. Raises `IndexError` after the last frame, and `RecordingError`
        where the recording is broken or the image differs from the first one in size or type.
        """
        if index < 0:
            raise IndexError(f"frame {index}: frames are counted from 0")
        image = self._to_image(self._decode(index), index)
        form = (image.shape, image.dtype)
        if self._began_with is None:
            self._began_with = form
        elif form != self._began_with:
            raise RecordingError(
                f"{self.path}: frame {index} ({self._name(index)}) is {_form(*form)}, "
                f"but the recording began with {_form(*self._began_with)}"
            )
        return image

    def __iter__(self) -> Iterator[Image]:
        index = 0
        while True:
            try:
                image = self.read(index)
            except IndexError:
                return
            yield image
            index += 1

    def close(self) -> None:  # noqa: B027 - a kind that holds nothing open needs no close
        """Release the file. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _decode(self, index: int) -> NDArray[Any]:
        """The stored pixels, (H, W) or (H, W, 3 or 4) in the order red, green, blue. Raises `IndexError` at the end."""

    def _name(self, index: int) -> str:
        return self.path.name

    def _broken(self, index: int, why: object) -> NoReturn:
        raise RecordingError(f"{self.path}: frame {index} cannot be read: {why}") from (
            why if isinstance(why, BaseException) else None
        )

    def _to_image(self, pixels: NDArray[Any], index: int) -> Image:
        if pixels.dtype == np.float64:
            pixels = pixels.astype(np.float32)
        kind = pixels.dtype.newbyteorder("=")
        if kind.name not in _PIXEL_TYPES:
            self._broken(index, f"its pixels are {kind}; allowed: {', '.join(_PIXEL_TYPES)}, float64")
        if pixels.size == 0:
            self._broken(index, f"its shape is {pixels.shape}, which has no pixels")
        pixels = pixels.astype(kind, copy=False)
        if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
            pixels = _grey(pixels[:, :, :3])
        if pixels.ndim != 2:
            self._broken(index, f"its shape is {pixels.shape}; allowed: (height, width) or (height, width, 3 or 4)")
        return np.array(pixels, dtype=kind, order="C")


class FolderRecording(Recording):
    """Single images in a folder, in natural order (2.png before 10.png); other files are ignored."""

    format = "folder"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        files = [f for f in path.iterdir() if f.suffix.lower() in _IMAGE_SUFFIXES and not f.name.startswith(".")]
        self._files = sorted((f for f in files if f.is_file()), key=lambda f: _natural(f.name))
        self.n_frames = len(self._files)
        if not self._files:
            raise SettingsError(f"path: the folder {path} holds no images; allowed: {', '.join(_IMAGE_SUFFIXES)}")

    def _name(self, index: int) -> str:
        return self._files[index].name

    def _broken(self, index: int, why: object) -> NoReturn:
        raise RecordingError(f"{self._files[index]}: frame {index} cannot be read: {why}")

    def _decode(self, index: int) -> NDArray[Any]:
        file = self._files[index]
        if file.suffix.lower() in _TIFF_SUFFIXES:
            # Not OpenCV: one decoder for both ways of storing TIFF makes them agree bit for bit.
            try:
                with TiffRecording(file) as single:
                    page, pages = single._decode(0), single.n_frames
            except RecordingError as error:
                self._broken(index, str(error).partition("cannot be read: ")[2])  # that text counts from this file
            if pages is not None and pages > 1:
                self._broken(index, f"it is a TIFF of {pages} pages; allowed in a folder: one image a file")
            return page
        try:
            data = np.frombuffer(file.read_bytes(), np.uint8)  # cv2.imread cannot open every Windows path
            with _quiet_opencv():
                pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        except (OSError, cv2.error) as error:
            self._broken(index, error)
        if pixels is None:
            self._broken(index, "it is not an intact image")
        return pixels[:, :, 2::-1] if pixels.ndim == 3 else pixels


class TiffRecording(Recording):
    """A TIFF file of one or many pages, 8 to 32 bit, as plain TIFF, ImageJ, OME or tifffile write it.

    Pages are taken in the order of the file's chain of directories, not as the series that the metadata describe: the
    chain alone tells whether the file was cut. An OME data set that is spread over several files is one recording a
    file. A JSON object in the first ImageDescription may give `rate_hz`, `field_mT` (a list) and `synthetic`.
    """

    format = "tiff"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = path.open("rb")  # not left to tifffile, which would not close it where it fails
        try:
            with _quiet_tifffile():
                self._tiff = tifffile.TiffFile(self._file)
                self._first = self._tiff.pages.first
            self._offsets, missing = _directories(self._tiff)
            if not self._offsets:
                raise ValueError("the file is cut: it ends within the directory of the first page")
        except Exception as error:  # tifffile raises whatever the broken bytes lead to
            self._file.close()
            self._broken(0, error)
        self._complete = missing == 0
        declared = _declared_pages(self._first)
        self._in_a_row = 1  # frames stored back to back from the first page's pixels on, whatever directories say
        if self._complete:
            self.n_frames = max(declared, len(self._offsets))
            if len(self._offsets) == 1 and self._first.is_contiguous:
                self._in_a_row = declared  # how ImageJ and tifffile store stacks beyond 4 GB
        else:
            self.n_frames = declared if declared > 1 else None
            self._in_a_row = _frames_in_a_row(self._first, [*self._offsets, missing][1])
        described = _json_object(self._first.description)
        rate = described.get("rate_hz")
        self.rate_hz = float(rate) if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0 else None
        fields = described.get("field_mT")
        if isinstance(fields, list) and all(isinstance(value, int | float) for value in fields):
            self.fields_mT = np.array(fields, np.float64)
        self.synthetic = described.get("synthetic") is True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _decode(self, index: int) -> NDArray[Any]:
        if index < len(self._offsets):
            return self._page(index)
        if index < self._in_a_row:
            return self._frame_in_a_row(index)
        if not self._complete:
            self._broken(index, "the file is cut: its chain of pages ends without an end mark")
        if index < (self.n_frames or 0):
            self._broken(index, f"the file states {self.n_frames} frames but holds {len(self._offsets)} pages")
        raise IndexError(f"{self.path} has {self.n_frames} frames")

    def _page(self, index: int) -> NDArray[Any]:
        size = self._tiff.filehandle.size
        try:
            with _quiet_tifffile():
                self._tiff.filehandle.seek(self._offsets[index])
                page = tifffile.TiffPage(self._tiff, index=index)
                # tifffile fills in zeros for pixels that are not in the file, so that has to be found out before.
                spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))
                stored = bool(spans) and all(o > 0 and n > 0 and o + n <= size for o, n in spans)
                if stored and page.compression == 1 and page.bitspersample % 8 == 0:
                    stored = sum(page.databytecounts) >= page.nbytes
                if not stored:
                    pixels = None
                elif page.compression == tifffile.COMPRESSION.LZW:
                    pixels = self._lzw(index, page)
                else:
                    pixels = page.asarray()
        except Exception as error:  # tifffile raises whatever the broken bytes lead to
            self._broken(index, error)
        if pixels is None:
            self._broken(index, "the file is cut: it ends before the pixels of this frame")
        return np.moveaxis(pixels, 0, 2) if page.axes == "SYX" else pixels

    def _lzw(self, index: int, page: tifffile.TiffPage) -> NDArray[Any]:
        """The pixels of an LZW page, in the layout of `page.asarray()`.

        tifffile needs another package for LZW; the libtiff inside OpenCV does not. It is no decoder for everything,
        because it turns some kinds of grey into others.
        """
        with _quiet_opencv():
            good, pages = cv2.imreadmulti(str(self.path), index, 1, flags=cv2.IMREAD_UNCHANGED)
        pixels = pages[0] if good and pages else None
        if pixels is None or pixels.dtype != page.dtype or pixels.shape != page.shape:
            raise ValueError("OpenCV cannot decode its LZW compression; allowed: none, deflate, or plain grey LZW")
        if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise ValueError(f"it is LZW compressed and {page.photometric!r}; allowed: MINISBLACK or RGB")
        return pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]] if pixels.ndim == 3 else pixels

    def _frame_in_a_row(self, index: int) -> NDArray[Any]:
        page, file = self._first, self._tiff.filehandle
        start = page.dataoffsets[0] + index * page.nbytes
        if page.dtype is None or start + page.nbytes > file.size:
            self._broken(index, "the file is cut: it ends before the pixels of this frame")
        file.seek(start)
        kind = page.dtype.newbyteorder(self._tiff.byteorder)
        pixels = np.frombuffer(file.read(page.nbytes), kind).reshape(page.shape)
        return np.moveaxis(pixels, 0, 2) if page.axes == "SYX" else pixels


class VideoRecording(Recording):
    """An AVI, MP4, MOV or Matroska file, decoded by the FFmpeg inside OpenCV.

    The decoder hides damage: it stops without a word, and the last frame before a cut may be half a picture. So the
    number of decoded frames is compared with the number that the container states, and the last frame before a
    premature end is withheld. AVI, MP4 and MOV store that number; Matroska does not (FFmpeg estimates it), but states
    the length of the file.
    """

    format = "video"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; OpenCV's documented switch
        self._rewind()
        if self._current is None:
            self._capture.release()
            self._broken(0, "the file is not an intact video, or its codec is unknown")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate_hz = rate if math.isfinite(rate) and rate > 0 else None
        self._cut = _matroska_is_cut(path)
        stated = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if stated > 0 and self._cut is None:
            self.n_frames = stated

    def close(self) -> None:
        """Release the decoder."""
        self._capture.release()

    def _rewind(self) -> None:
        with _quiet_opencv():
            self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
            # Only on request does OpenCV give 16 bit grey as it is; everything else comes as 8 bit colour.
            if int(self._capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) == int.from_bytes(b"Y1\x00\x10", "little"):
                self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        self._position = 0
        self._current = self._next_picture()
        self._following = self._next_picture()

    def _next_picture(self) -> NDArray[Any] | None:
        with _quiet_opencv():
            good, picture = self._capture.read()
        return picture if good else None

    def _decode(self, index: int) -> NDArray[Any]:
        if index < self._position:
            self._capture.release()
            self._rewind()
        while self._position < index and self._following is not None:
            self._position += 1
            self._current, self._following = self._following, self._next_picture()
        if self._following is None:
            length = self._position + 1
            short = self._cut if self.n_frames is None else length < self.n_frames
            if short and index >= self._position:
                stated = "" if self.n_frames is None else f"; it states {self.n_frames} frames"
                self._broken(self._position, f"the file is cut or damaged from here on{stated}")
            if index >= length:
                raise IndexError(f"{self.path} has {length} frames")
        assert self._current is not None
        return self._current[:, :, 2::-1] if self._current.ndim == 3 else self._current


class ArrayRecording(Recording):
    """A NumPy array of shape (N, H, W) in an NPY file (memory-mapped), or in an NPZ file alone or named `frames`."""

    format = "numpy"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._frames, length = _map_npy(path) if path.suffix.lower() == ".npy" else _load_npz(path)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
            self._broken(0, error)
        self.n_frames = length
        if length == 0:
            raise RecordingError(f"{path}: the array holds no frames; allowed: at least 1")

    def close(self) -> None:
        """Let go of the memory map, without which Windows would not delete the file."""
        self._frames, self.n_frames = np.empty((0, 0, 0)), 0

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= (self.n_frames or 0):
            raise IndexError(f"{self.path} has {self.n_frames} frames")
        if index >= len(self._frames):
            self._broken(index, f"the file is cut: it states {self.n_frames} frames")
        frame: NDArray[Any] = self._frames[index]
        return frame


class RunRecording(Recording):
    """The raw frames of a run file of this project: finished, live or killed. Frames it has lost are passed over."""

    format = "run"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        from realtime_skyseg.storage import open_run  # h5py and its filters load only where they are needed

        try:
            self._context: AbstractContextManager[Any] | None = open_run(path)
            self._run = self._context.__enter__()
        except (OSError, RunFileError) as error:
            self._broken(0, error)
        table = self._run.table
        self._rows = np.flatnonzero(table["written"])
        table = table[self._rows]
        self.n_frames = len(table)
        stamps = table["camera_ns"].astype(np.int64)
        if np.any(stamps < 0):
            stamps = table["received_ns"].astype(np.int64)
        self.stamps_ns = stamps
        self.fields_mT = table["field_mT"].astype(np.float64)
        steps = np.diff(stamps)
        period = float(np.median(steps)) if steps.size else 0.0
        self.rate_hz = 1e9 / period if period > 0 else None

    def close(self) -> None:
        """Close the file."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= (self.n_frames or 0):
            raise IndexError(f"{self.path} has {self.n_frames} frames")
        try:
            return np.asarray(self._run.raw[self._rows[index]])
        except (OSError, RunFileError) as error:
            self._broken(index, error)


class LabelledRecording(Recording):
    """The frames of a labelled recording, as `skyseg simulate` writes it; what is true of them is not looked at."""

    format = "labelled"
    layout = "skyseg-labelled-1"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import h5py
        import hdf5plugin  # noqa: F401  registers the compression filters

        self._file = h5py.File(path, "r")
        try:
            self._frames = self._file["frames"]
            self.n_frames = len(self._frames)
            self.fields_mT = np.asarray(self._file["field_mT"], np.float64)
            self.rate_hz = float(self._file.attrs["rate_hz"])
        except (KeyError, OSError, ValueError) as error:
            self._file.close()
            self._broken(0, error)
        self.synthetic = True

    @classmethod
    def is_one(cls, path: Path) -> bool:
        """Whether a file says that it is one."""
        import h5py

        try:
            with h5py.File(path, "r") as file:
                return bool(file.attrs.get("layout") == cls.layout)
        except OSError:  # no HDF5, or a run that is being written
            return False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= (self.n_frames or 0):
            raise IndexError(f"{self.path} has {self.n_frames} frames")
        try:
            return np.asarray(self._frames[index])
        except OSError as error:
            self._broken(index, error)


def open_recording(path: str | Path) -> Recording:
    """Open a folder or file as a `Recording`; "bundled" is the recording that comes with this package.

    Raises `SettingsError` for a path that does not exist, a suffix that is not supported or a folder without images,
    and `RecordingError` where not even the first frame can be reached.
    """
    path = BUNDLED if str(path) == "bundled" else Path(path)
    allowed = f"allowed: a folder of images ({', '.join(_IMAGE_SUFFIXES)}) or a file ({', '.join(_FILE_SUFFIXES)})"
    if path.is_dir():
        return FolderRecording(path)
    if not path.is_file():
        raise SettingsError(f"path: {path} does not exist; {allowed}")
    suffix = path.suffix.lower()
    if suffix in _TIFF_SUFFIXES:
        return TiffRecording(path)
    if suffix in _VIDEO_SUFFIXES:
        return VideoRecording(path)
    if suffix in _ARRAY_SUFFIXES:
        return ArrayRecording(path)
    if suffix in _RUN_SUFFIXES:
        return LabelledRecording(path) if LabelledRecording.is_one(path) else RunRecording(path)
    raise SettingsError(f"path: {path} has the unsupported suffix '{path.suffix}'; {allowed}")


def _form(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{shape[0]}x{shape[1]} {dtype}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which runs of digits count as numbers; the name itself breaks ties such as 1 and 01."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(int(p), "") if p.isascii() and p.isdigit() else (-1, p) for p in parts] + [(-2, name)]


def _grey(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 3) red, green, blue to (H, W) with the weights of ITU-R BT.601, which are those of OpenCV."""
    red, green, blue = pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2]
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return red  # grey stored as colour; the weights would round float pixels
    grey: NDArray[Any] = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return grey


def _json_object(text: str) -> dict[str, Any]:
    with suppress(json.JSONDecodeError):
        described = json.loads(text)
        if isinstance(described, dict):
            return described
    return {}


def _directories(tiff: tifffile.TiffFile) -> tuple[list[int], int]:
    """Offsets of the page directories that lie whole in the file, and of the next one (0: a regular end)."""
    file, layout = tiff.filehandle, tiff.tiff
    offsets: list[int] = []
    seen: set[int] = set()
    offset = int(tiff.pages.first.offset)
    while offset:
        if offset in seen or offset + layout.tagnosize > file.size:
            break
        file.seek(offset)
        (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
        rest = tags * layout.tagsize + layout.offsetsize
        if not 0 < tags <= 4096 or file.tell() + rest > file.size:
            break
        offsets.append(offset)
        seen.add(offset)
        (offset,) = struct.unpack(layout.offsetformat, file.read(rest)[-layout.offsetsize :])
    return offsets, offset


def _declared_pages(page: tifffile.TiffPage) -> int:
    """How many frames the first page's description promises: ImageJ's `images=`, or tifffile's JSON `shape`; else 1."""
    text = page.description
    if text.startswith("ImageJ="):
        found = re.search(r"^images=(\d+)\s*$", text, re.MULTILINE)
        return max(int(found[1]), 1) if found else 1
    shape = _json_object(text).get("shape")
    if isinstance(shape, list) and shape and all(isinstance(n, int) and n > 0 for n in shape):
        return max(math.prod(shape) // max(math.prod(page.shape), 1), 1)
    return 1


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


def _matroska_is_cut(path: Path) -> bool | None:
    """Whether a Matroska file is shorter than its segment says; None for other containers.

    A segment of unknown length, as streams and killed recorders leave it, counts as whole.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if file.read(4) != b"\x1a\x45\xdf\xa3":
            return None
        header = _ebml_length(file.read(8))
        if header is None:
            return True
        start = 4 + header[1] + header[0]
        file.seek(start)
        begin = file.read(12)
        segment = _ebml_length(begin[4:])
        if begin[:4] != b"\x18\x53\x80\x67" or segment is None:
            return True
        length, digits = segment
        unknown = length == (1 << (7 * digits)) - 1
        return not unknown and start + 4 + digits + length > size


def _ebml_length(data: bytes) -> tuple[int, int] | None:
    """Value and number of bytes of an EBML length (RFC 8794, section 4), or None where `data` has none."""
    digits = 9 - data[0].bit_length() if data and data[0] else 9
    if digits > min(8, len(data)):
        return None
    return int.from_bytes(data[:digits], "big") & ((1 << (7 * digits)) - 1), digits


def _map_npy(path: Path) -> tuple[NDArray[Any], int]:
    """The frames that lie whole in an NPY file, memory-mapped, and the number of frames that its header states."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"its NPY version is {version}; allowed: (1, 0), (2, 0)")
        start = file.tell()
    _check_array(shape, dtype)
    if 0 in shape:
        return np.empty(shape, dtype), shape[0]
    whole = (path.stat().st_size - start) // (math.prod(shape[1:]) * dtype.itemsize)
    if whole == 0 or (fortran and whole < shape[0]):
        raise ValueError(f"the file is cut: it states {shape[0]} frames")
    held = (min(whole, shape[0]), *shape[1:])
    return np.memmap(path, dtype, "r", start, held, "F" if fortran else "C"), shape[0]


def _load_npz(path: Path) -> tuple[NDArray[Any], int]:
    """The array named `frames` of an NPZ file, or its only 3-D array, and its number of frames."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        if "frames" in archive.files:
            frames = archive["frames"]
        else:
            arrays = {name: archive[name] for name in archive.files}
            stacks = [name for name, array in arrays.items() if array.ndim == 3]
            if len(stacks) != 1:
                raise ValueError(
                    f"it holds {len(stacks)} arrays of 3 dimensions; allowed: exactly one, or one named 'frames'"
                )
            frames = arrays[stacks[0]]
    _check_array(frames.shape, frames.dtype)
    return frames, len(frames)


def _check_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    colour = len(shape) == 4 and shape[3] in (3, 4)
    if len(shape) != 3 and not colour:
        raise ValueError(f"its shape is {shape}; allowed: (frames, height, width), and 3 or 4 colours last")
    if dtype.newbyteorder("=").name not in (*_PIXEL_TYPES, "float64"):
        raise ValueError(f"its pixels are {dtype}; allowed: {', '.join(_PIXEL_TYPES)}, float64")


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from writing to stderr what this module reports as an error."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


@contextmanager
def _quiet_tifffile() -> Iterator[None]:
    """Keep tifffile from logging what this module reports as an error."""
    logger = logging.getLogger("tifffile")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
