"""Folders: of images, of the parts of a recording, and of Micro-Manager."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from realtime_skyseg import json_text
from realtime_skyseg.errors import RecordingError, SettingsError
from realtime_skyseg.recordings.micromanager import AXES, Planes, is_image, key_of_name
from realtime_skyseg.recordings.order import in_order
from realtime_skyseg.recordings.recording import Choice, Recording, check_size, missing
from realtime_skyseg.recordings.tiff import TiffRecording
from realtime_skyseg.recordings.tiff_pages import count_frames
from realtime_skyseg.records import printable
from realtime_skyseg.storage.trust import MOST_PIXELS

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", *TIFF_SUFFIXES, ".jpg", ".jpeg", ".bmp")

_METADATA = "metadata.txt"
_INDEX = "NDTiff.index"
_MOST_METADATA = 2**30


class FolderRecording(Recording):
    """Images in a folder, in the order of the numbers in their names; other files are ignored.

    A TIFF file of several pages is as many frames, so that a recording in parts is played whole.
    """

    format = "folder"

    def __init__(self, path: Path, choice: Choice = Choice(), files: list[Path] | None = None) -> None:  # noqa: B008
        super().__init__(path)
        if files is None:
            images = {f.name: f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != "."}
            files = [images[name] for name in in_order(images) if images[name].is_file()]
            if not files:
                raise SettingsError(
                    f"path: the folder {path} holds no images; allowed: {', '.join(IMAGE_SUFFIXES)}{_hint(path)}"
                )
        self._choice = choice
        self._part: TiffRecording | None = None  # the file of several pages that was read last
        self._frames: list[tuple[Path, int | None]] = []  # file and number of the frame in it; None: all that it is
        taken: set[str] = set()
        stamps: list[NDArray[np.int64] | None] = []
        for file in files:
            if file.name in taken:
                continue
            n = self._count(file, stamps, taken)
            self._frames += [(file, None)] if n is None else [(file, i) for i in range(n)]
        self.n_frames = len(self._frames)
        self.names = [f.name if i is None else f"{f.name}[{i}]" for f, i in self._frames]
        if len(stamps) == 1 and stamps[0] is not None and len(stamps[0]) == self.n_frames:
            self.stamps_ns = stamps[0]  # a set in several files, which one of them describes
            self.rate_hz = 1e9 / float(np.median(np.diff(self.stamps_ns)))
        if choice != Choice(z=choice.z) and all(i is None for _, i in self._frames):
            for key in ("channel", "position", "dataset"):
                if getattr(choice, key) not in (None, 0, "0"):
                    raise SettingsError(f"{key}: {getattr(choice, key)!r} is not in {path}; allowed: 0")

    def _count(self, file: Path, stamps: list[NDArray[np.int64] | None], taken: set[str]) -> int | None:
        """Frames of a TIFF file of several pages; None for an image. Its set's other files are taken by it."""
        if file.suffix.lower() not in TIFF_SUFFIXES:
            return None
        try:
            if count_frames(file) == 1:
                return None
            with TiffRecording(file, self._choice) as recording:
                taken |= recording.files
                stamps.append(recording.stamps_ns)
                if recording.n_frames is not None:
                    return recording.n_frames
                return len([*_until_broken(recording)]) + 1  # the last of which says where it is cut
        except (OSError, ValueError, RecordingError):
            return None  # it is reported when its turn comes

    def close(self) -> None:
        """Close the file that is open."""
        if self._part is not None:
            self._part.close()
            self._part = None

    def _broken(self, index: int, why: object) -> NoReturn:
        raise RecordingError(f"{self._frames[index][0]}: frame {index} cannot be read: {printable(why)}")

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= len(self._frames):
            raise self._ended()
        file, inner = self._frames[index]
        if file.suffix.lower() in TIFF_SUFFIXES:
            # Not OpenCV: one decoder for both ways of storing TIFF makes them agree bit for bit.
            try:
                if self._part is None or self._part.path != file:
                    self.close()
                    self._part = TiffRecording(file, self._choice)
                return self._part._decode(inner or 0)
            except RecordingError as error:
                self._broken(index, str(error).partition("cannot be read: ")[2])  # that text counts from this file
            except IndexError as error:
                self._broken(index, error)
        try:
            return decode_image(file)
        except (OSError, ValueError, cv2.error) as error:
            self._broken(index, error)


def _until_broken(recording: TiffRecording) -> Any:
    index = 0
    while True:
        try:
            recording._decode(index)
        except (RecordingError, IndexError):
            return
        yield index
        index += 1


def _hint(path: Path) -> str:
    """What else of this folder could have been meant."""
    others = [
        p.name for p in sorted(path.iterdir()) if p.is_dir() or p.suffix.lower() in (".avi", ".mp4", ".mkv", ".h5")
    ]
    return (
        f"; it holds {', '.join(printable(name) for name in others[:5])}, which can be given as path" if others else ""
    )


def decode_image(path: Path) -> NDArray[Any]:
    """The pixels of a PNG, JPEG or BMP file: (H, W) or (H, W, 3 or 4) as red, green, blue.

    Raises `ValueError`, `OSError` or `cv2.error` where it is none, is damaged, or is too large.
    """
    content = path.read_bytes()  # cv2.imread cannot open every Windows path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Pillow.open(io.BytesIO(content)) as header:  # reads no more than the header
                check_size(header.height, header.width)
    except Pillow.DecompressionBombError:
        raise ValueError(f"it has too many pixels; allowed: up to {MOST_PIXELS / 1e6:.0f} million px") from None
    except (UnidentifiedImageError, OSError, SyntaxError, OverflowError):
        raise ValueError("it is not an intact image") from None
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it is reported as an error here
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None:
        raise ValueError("it is not an intact image")
    return np.asarray(pixels[:, :, 2::-1] if pixels.ndim == 3 else pixels)


class MicroManagerFolder(Recording):
    """Single images as Micro-Manager 1.4 and 2.0 save them, in one folder a position, with `metadata.txt`."""

    format = "micro-manager"

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  frozen
        super().__init__(path)
        planes: Planes[Path] = Planes()
        folders = _positions(path)
        for position, folder in enumerate(folders):
            self._enter(planes, folder, position, len(folders) > 1)
        try:
            self._files, times, self.n_frames = planes.frames(path, choice)
        except SettingsError:
            raise
        except Exception as error:
            self._broken(0, error)
        self.names = [file.name for file in self._files]
        self._set_times(times)

    def _enter(self, planes: Planes[Path], folder: Path, position: int, several: bool) -> None:
        told = _metadata(folder / _METADATA)
        summary = told.get("Summary")
        if isinstance(summary, dict):
            planes.summary(summary)
        by_file: dict[str, dict[str, Any]] = {}
        for title, value in told.items():
            if isinstance(value, dict) and title != "Summary":
                name = str(value.get("FileName") or title.removeprefix("Metadata-").removeprefix("Coords-"))
                by_file.setdefault(name.replace("\\", "/").rpartition("/")[2], {}).update(value)
        listed = summary.get("ChNames") if isinstance(summary, dict) else None
        channels: list[str] = [str(name) for name in listed] if isinstance(listed, list) else []
        for name in in_order(f.name for f in folder.iterdir() if is_image(f.name)):
            key = key_of_name(name, channels)
            if key is not None:
                planes.add(
                    by_file.get(name, {}), folder / name, (key[0], key[1], position if several else key[2], key[3])
                )
        if several:
            planes.names["position"].setdefault(position, folder.name)
            planes.names["position"][position] = folder.name
        for number, name in enumerate(channels):
            planes.names["channel"].setdefault(number, name)

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= len(self._files):
            if index < (self.n_frames or 0):
                self._broken(
                    index, f"{_METADATA} states {self.n_frames} frames, but the folder holds {len(self._files)}"
                )
            raise self._ended()
        try:
            with TiffRecording(self._files[index]) as single:
                return single._decode(0)
        except RecordingError as error:
            raise RecordingError(
                f"{self._files[index]}: frame {index} cannot be read: {str(error).partition('cannot be read: ')[2]}"
            ) from error


def _positions(path: Path) -> list[Path]:
    """The folders of an acquisition that hold images: itself, or one a position."""
    if any(is_image(file.name) for file in path.iterdir()):
        return [path]
    inner = {folder.name: folder for folder in path.iterdir() if folder.is_dir()}
    return [inner[name] for name in in_order(inner) if any(is_image(file.name) for file in inner[name].iterdir())]


def is_micro_manager(path: Path) -> bool:
    """Whether a folder holds single images of Micro-Manager."""
    folders = _positions(path)
    return bool(folders) and ((folders[0] / _METADATA).is_file() or folders[0] != path)


def _metadata(path: Path) -> dict[str, Any]:
    """`metadata.txt`, of which a killed Micro-Manager leaves the closing brackets out."""
    try:
        if path.stat().st_size > _MOST_METADATA:
            return {}
        text = path.read_text("utf-8", "replace").rstrip().rstrip(",")
    except OSError:
        return {}
    for end in ("", "}", "}}"):
        with contextlib.suppress(ValueError):
            told = json_text.load(text + end)
            return told if isinstance(told, dict) else {}
    return {}


def ndtiff_folder(path: Path) -> Path | None:
    """The folder of an NDTiff dataset that has its index; None: it is none."""
    return next((place for place in (path, path / "Full resolution") if (place / _INDEX).is_file()), None)


class NDTiffRecording(Recording):
    """An NDTiff dataset, as pycromanager and Micro-Manager 2.0 save it, read by `ndstorage`."""

    format = "ndtiff"

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  frozen
        super().__init__(path)
        try:
            from ndstorage import NDTiffDataset
        except ModuleNotFoundError as error:
            raise missing(path, error) from error
        self._dataset: Any = None
        folder = ndtiff_folder(path) or path
        try:
            with _quiet():
                self._dataset = NDTiffDataset(str(folder))
            planes: Planes[frozenset[Any]] = Planes()
            self._enter(planes)
            self._keys, times, self.n_frames = planes.frames(path, choice)
        except SettingsError:
            self.close()
            raise
        except Exception as error:  # ndstorage raises whatever broken bytes lead to
            self.close()
            self._broken(0, error)
        self._entries = [self._dataset.index[key] for key in self._keys]
        self._set_times(times)

    def _enter(self, planes: Planes[frozenset[Any]]) -> None:
        keys = [dict(key) for key in self._dataset.index]
        if not keys:
            raise ValueError("its index is empty")
        others = sorted({axis for key in keys for axis in key} - set(AXES))
        long = [axis for axis in others if len({key.get(axis) for key in keys}) > 1]
        if long and ("time" in keys[0] or len(long) > 1):
            sizes = " x ".join(f"{len({key.get(axis) for key in keys})} ({axis})" for axis in long)
            raise SettingsError(
                f"path: {self.path} holds {sizes} images; allowed: one axis, beside channel, position and z"
            )
        texts: dict[str, list[Any]] = {
            axis: sorted({key.get(axis) for key in keys}, key=str)
            for axis in AXES
            if any(isinstance(key.get(axis), str) for key in keys)
        }
        for frozen, key in zip(self._dataset.index, keys, strict=True):
            numbers = [texts[axis].index(key.get(axis)) if axis in texts else int(key.get(axis, 0)) for axis in AXES]
            if long:
                numbers[0] = int(key[long[0]])
            planes.add(self._metadata_of(frozen), frozen, (numbers[0], numbers[1], numbers[2], numbers[3]))
        for axis in ("channel", "position"):
            for number, name in enumerate(texts.get(axis, ())):
                planes.names[axis][number] = str(name)
        summary = self._dataset.summary_metadata
        if isinstance(summary, dict):
            planes.summary(summary)

    def _metadata_of(self, key: frozenset[Any]) -> dict[str, Any]:
        with contextlib.suppress(Exception):  # times and names are a help, no need
            told = self._dataset._do_read_metadata(dict(key))
            return told if isinstance(told, dict) else {}
        return {}

    def close(self) -> None:
        """Close the files."""
        if self._dataset is not None:
            self._dataset.close()
            self._dataset = None

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= len(self._keys):
            if index < (self.n_frames or 0):
                self._broken(index, f"the dataset states {self.n_frames} frames but holds {len(self._keys)}")
            raise self._ended()
        try:
            entry = self._entries[index]
            check_size(int(entry.image_height), int(entry.image_width))
            return np.asarray(self._dataset._do_read_image(dict(self._keys[index])))
        except Exception as error:
            self._broken(index, f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep ndstorage from writing its progress to the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
