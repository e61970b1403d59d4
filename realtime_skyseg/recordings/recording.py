"""What a recording is: images of one size and type in order, with what is known of their times, fields and names."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import MissingExtraError, RecordingError, SettingsError
from realtime_skyseg.records import Image, printable
from realtime_skyseg.storage.trust import MOST_PIXELS


@dataclass(frozen=True, slots=True)
class Choice:
    """Which part of a recording is played where it holds several. None: there is only one."""

    channel: int | str | None = None  #: number from 0, or name
    position: int | str | None = None  #: number from 0, or name
    z: int | None = None  #: number from 0
    dataset: str | None = None  #: path of an array in an HDF5, Zarr or NPZ file


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
        self.names: Sequence[str] | None = None  #: of the single images, where they have names
        self.synthetic = False  #: True where the file says that it was simulated
        self.notes: list[str] = []  #: what a user should know of how it is read
        self._began_with: tuple[tuple[int, int], np.dtype[Any]] | None = None

    def read(self, index: int) -> Image:
        """The image of frame `index` (from 0): (H, W) in the file's integer or float type, native byte order,
        C-contiguous, the caller's own.

        Colour becomes grey, and bits become bytes. Raises `IndexError` after the last frame, and `RecordingError`
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

    def stamp_ns(self, index: int) -> int:
        """When a frame that was read was recorded, on the recording's own clock; -1: not known."""
        if self.stamps_ns is not None and index < len(self.stamps_ns):
            return int(self.stamps_ns[index])
        return -1

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
        return self.names[index] if self.names is not None and index < len(self.names) else self.path.name

    def _broken(self, index: int, why: object) -> NoReturn:
        raise RecordingError(f"{self.path}: frame {index} cannot be read: {printable(why)}") from (
            why if isinstance(why, BaseException) else None
        )

    def _ended(self) -> IndexError:
        return IndexError(f"{self.path} has {self.n_frames} frames")

    def _set_times(self, times_s: Sequence[float | None]) -> None:
        """Take the times of all frames, in seconds, if all are known and rise."""
        known = [time for time in times_s if time is not None]
        if len(known) == len(times_s) > 1 and all(later > time for time, later in pairwise(known)):
            self.stamps_ns = np.array([round(1e9 * (time - known[0])) for time in known], np.int64)
            self.rate_hz = 1e9 / float(np.median(np.diff(self.stamps_ns)))

    def _to_image(self, pixels: NDArray[Any], index: int) -> Image:
        if pixels.dtype.kind not in "biuf" or pixels.dtype.itemsize > 8:
            self._broken(index, f"its pixels are {pixels.dtype}; allowed: integers and floats of up to 64 bit")
        if pixels.size == 0:
            self._broken(index, f"its shape is {pixels.shape}, which has no pixels")
        kind = np.dtype(np.uint8) if pixels.dtype == bool else pixels.dtype.newbyteorder("=")
        pixels = pixels.astype(kind, copy=False)
        if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
            pixels, coloured = _grey(pixels[:, :, :3])
            if coloured and not self.notes:
                self.notes.append(f"{self.path.name} is in colour: grey is 0.299 red + 0.587 green + 0.114 blue")
        if pixels.ndim != 2:
            self._broken(index, f"its shape is {pixels.shape}; allowed: (height, width) or (height, width, 3 or 4)")
        return np.array(pixels, dtype=kind, order="C")


def missing(path: Path, error: ModuleNotFoundError) -> MissingExtraError:
    """The error of a kind of recording whose reader is not installed."""
    return MissingExtraError(
        f"path: {path} needs the package '{error.name}': pip install 'realtime_skyseg[recordings]'"
    )


def check_size(height: int, width: int) -> None:
    """Raise `ValueError` for a frame beyond `MOST_PIXELS`, before memory is asked for."""
    if height * width > MOST_PIXELS:
        raise ValueError(f"its frames have {height} x {width} px; allowed: up to {MOST_PIXELS / 1e6:.0f} million px")


def select(path: Path, axes: Mapping[str, int], choice: Choice, names: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Where every axis but the one that is played stands still.

    Args:
        path: of the recording, for messages.
        axes: sizes of all axes but those of a frame: "time", "channel", "position", "z", or others.
        choice: what the user set.
        names: of channels and positions, where they have any.

    Returns:
        an index for every axis but one. That one is the time; where there is no time, a single other axis, unless
        it is that of positions, or of channels with names: they are no sequence.

    Raises:
        SettingsError: an axis has several values and none was chosen, or one that it does not have.
    """
    fixed = {name: 0 for name, size in axes.items() if size == 1}
    for name in ("channel", "position", "z"):
        wanted = getattr(choice, name)
        if wanted is None:
            continue
        size, known = axes.get(name, 1), [str(text) for text in names.get(name, ())]
        if isinstance(wanted, str) and wanted not in known and wanted.isdecimal():
            wanted = int(wanted)  # as it comes from a command line
        if isinstance(wanted, str) and wanted in known:
            fixed[name] = known.index(wanted)
        elif isinstance(wanted, int) and 0 <= wanted < size:
            fixed[name] = wanted
        else:
            raise SettingsError(f"{name}: {wanted!r} is not in {path}; allowed: {_allowed(size, known)}")
    free = [name for name in axes if name not in fixed]
    if (
        "time" not in free
        and len(free) == 1
        and free[0] != "position"
        and not (free[0] == "channel" and names.get(free[0]))
    ):
        return fixed  # tifffile calls the axis of any stack that of channels
    for name in free:
        if name in ("channel", "position", "z"):
            allowed = _allowed(axes[name], [str(text) for text in names.get(name, ())])
            raise SettingsError(
                f"{name}: {path} holds {axes[name]} {'planes in z' if name == 'z' else name + 's'}, and frames of one "
                f"are analysed; allowed: {allowed}"
            )
    if len(free) > 1:
        sizes = " x ".join(f"{axes[name]} ({name})" for name in free)
        raise SettingsError(f"path: {path} holds {sizes} images; allowed: one axis, beside channel, position and z")
    return fixed


def _allowed(size: int, names: Sequence[str]) -> str:
    numbers = "0" if size == 1 else f"0 to {size - 1}"
    return f"{numbers} ({', '.join(printable(name) for name in names[:8])})" if names else numbers


def _form(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{shape[0]}x{shape[1]} {dtype}"


def _grey(pixels: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """(H, W, 3) red, green, blue to (H, W) with the weights of ITU-R BT.601, and whether there was any colour."""
    red, green, blue = pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2]
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return red, False  # grey stored as colour; the weights would round float pixels
    if pixels.dtype in (np.uint8, np.uint16, np.float32):  # as OpenCV does it
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)), True
    grey = 0.299 * red.astype(np.float64) + 0.587 * green + 0.114 * blue
    return (np.rint(grey) if pixels.dtype.kind in "iu" else grey).astype(pixels.dtype), True
