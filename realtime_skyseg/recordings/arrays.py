"""NPY and NPZ files."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.recordings.recording import Choice
from realtime_skyseg.recordings.stack import Stack
from realtime_skyseg.records import printable


class ArrayRecording(Stack):
    """A NumPy array of shape (N, H, W) or (H, W): an NPY file (memory-mapped), or one of an NPZ file.

    Of an NPZ file the one that was chosen, the one named `frames`, or the only one that can be a recording.
    """

    format = "numpy"

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  frozen
        super().__init__(path)
        try:
            if path.suffix.lower() == ".npy":
                if choice.dataset is not None:
                    raise SettingsError(f"dataset: '{choice.dataset}' is not in {path}; allowed: none, for an NPY file")
                frames, length = _map_npy(path)
            else:
                frames, length = _load_npz(path, choice.dataset)
            self._take(frames, choice)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, SyntaxError, MemoryError) as error:
            self._broken(0, error)
        self._held = self.n_frames or 0
        self.n_frames = length

    def close(self) -> None:
        """Let go of the memory map, without which Windows would not delete the file."""
        self._array, self.n_frames, self._held = np.empty((0, 0, 0)), 0, 0

    def _decode(self, index: int) -> NDArray[Any]:
        if self._held <= index < (self.n_frames or 0):
            self._broken(index, f"the file is cut: it states {self.n_frames} frames")
        return super()._decode(index)


def _map_npy(path: Path) -> tuple[NDArray[Any], int]:
    """The frames that lie whole in an NPY file, memory-mapped, and the number of frames that its header states."""
    with path.open("rb") as file:
        shape, fortran, dtype = _npy_header(file)
        start = file.tell()
    frame = math.prod(shape[1:]) if len(shape) > 2 else math.prod(shape)
    rest = path.stat().st_size - start
    n = shape[0] if len(shape) > 2 else 1
    if 0 in shape or not shape:
        return np.empty(shape, dtype), n
    whole = rest // (frame * dtype.itemsize)
    if whole == 0 or (fortran and whole < n):
        raise ValueError(f"the file is cut: it states {n} frame{'s' * (n > 1)}")
    if rest > n * frame * dtype.itemsize:
        raise ValueError(
            f"{rest - n * frame * dtype.itemsize} bytes follow its array of {n} frame{'s' * (n > 1)}; "
            "allowed: one array in a file"
        )
    held = (min(whole, n), *shape[1:]) if len(shape) > 2 else shape
    return np.memmap(path, dtype, "r", start, held, "F" if fortran else "C"), n


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"its NPY version is {version}; allowed: (1, 0), (2, 0)")
    if dtype.hasobject or any(n < 0 for n in shape):
        raise ValueError(f"its pixels are {dtype}; allowed: integers and floats of up to 64 bit")
    return shape, fortran, dtype


#: An NPZ file is taken into memory.
_MOST_NPZ_BYTES = 2**30


def _load_npz(path: Path, wanted: str | None) -> tuple[NDArray[Any], int]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        shapes = {}
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                with archive.open(info) as member:
                    shape, _, dtype = _npy_header(member)
                shapes[info.filename.removesuffix(".npy")] = shape, dtype
    stacks = [name for name, (shape, _) in shapes.items() if len(shape) in (3, 4)]
    stacks = stacks or [name for name, (shape, _) in shapes.items() if len(shape) == 2]
    name = wanted or ("frames" if "frames" in shapes else stacks[0] if len(stacks) == 1 else None)
    if name not in shapes:
        some = ", ".join(printable(name) for name in stacks[:8])
        if wanted is None and stacks:
            raise SettingsError(f"dataset: {path} holds {len(stacks)} arrays that can be frames; allowed: {some}")
        if wanted is None:
            raise ValueError("it holds 0 arrays of 2 or 3 dimensions; allowed: one, or one named 'frames'")
        raise SettingsError(f"dataset: '{wanted}' is not in {path}; allowed: {some or 'nothing in this file'}")
    shape, dtype = shapes[name]
    if math.prod(shape) * dtype.itemsize > _MOST_NPZ_BYTES:
        raise ValueError(f"its array is {shape} {dtype}; allowed: 1 GB in an NPZ file, as that is taken into memory")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
        frames = loaded[name]
    return frames, len(frames) if frames.ndim > 2 else 1
