"""Raw frames and masks of a long run in several files of a fixed number of frames each, under one run file.

NAME.h5 shows them as its own stacks (virtual datasets). The files are NAME.volumes/0.h5, 1.h5, ...: each holds `raw`
and `mask`, and belongs to frames k n to (k + 1) n - 1. They have their final names from the beginning, because NAME.h5
names them before they exist.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from realtime_skyseg.hdf5_filters import bitshuffle
from realtime_skyseg.records import NOT_ANALYSED
from realtime_skyseg.storage.chunk import Chunk
from realtime_skyseg.storage.columns import DirectDataset

Kind = Literal["raw", "mask"]

#: Handles that opening a file takes, and one more.
_SPARE = 3

#: Attribute of a virtual stack.
FRAMES_PER_FILE = "frames_per_file"


@dataclass(slots=True)
class _Volume:
    file: h5py.File
    stacks: dict[Kind, DirectDataset]
    handle: int  # to bring it to the disk


class Volumes:
    """The files of a run that is being written, by one thread.

    Args:
        folder: made here; must not exist.
        shape: (height, width) of the frames.
        dtype: of the raw frames.
        frames: per file.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: np.dtype[Any], frames: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.frames = frames
        self._shape, self._dtype = shape, dtype
        self._made = 0
        self._open: dict[int, _Volume] = {}
        self._reached = {"raw": 0, "mask": 0}  # indices rise; what is behind both is closed
        self._spare: list[int] = []
        self._hold_spare()

    def put(self, kind: Kind, index: int, chunk: Chunk) -> None:
        """Write an image at its index."""
        number, place = divmod(index, self.frames)
        while self._made <= number:  # without gaps: a reader stops at the first file that is missing
            self._make(self._made)
            self._made += 1
        self._open[number].stacks[kind].put(place, chunk.data, self.frames)
        self.pass_by(kind, index)

    def pass_by(self, kind: Kind, index: int) -> None:
        """Nothing of this kind will come up to this index: what is behind both kinds is closed."""
        self._reached[kind] = index
        while self._open and (oldest := min(self._open)) < min(self._reached.values()) // self.frames:
            self._close(oldest)

    def flush(self) -> None:
        """Hand everything to the system."""
        for volume in self._open.values():
            volume.file.flush()

    @property
    def handles(self) -> list[int]:
        """Of the open files. For any thread, which must expect that one was closed meanwhile."""
        return [volume.handle for volume in list(self._open.values())]

    def close(self) -> None:
        """Close all files."""
        self._drop_spare()
        for number in sorted(self._open):
            self._close(number)

    def _make(self, number: int) -> None:
        """Where it fails nothing is left, so that it can be tried again."""
        self._drop_spare()
        path = self.folder / f"{number}.h5"
        file = None
        kinds: tuple[tuple[Kind, Any, int], ...] = (("raw", self._dtype, 0), ("mask", np.uint8, NOT_ANALYSED))
        try:
            file = h5py.File(path, "x", libver=("v110", "v110"))
            for kind, dtype, fill in kinds:
                file.create_dataset(
                    kind, (self.frames, *self._shape), dtype, chunks=(1, *self._shape), fillvalue=fill, fletcher32=True,
                    **bitshuffle,
                )  # fmt: skip
            file.swmr_mode = True
            stacks: dict[Kind, DirectDataset] = {kind: DirectDataset(file, kind) for kind, _, _ in kinds}
            self._open[number] = _Volume(file, stacks, os.open(path, os.O_RDWR))
        except BaseException:
            if file:
                with suppress(OSError, RuntimeError):
                    file.close()
            path.unlink(missing_ok=True)
            raise
        self._hold_spare()

    def _hold_spare(self) -> None:
        """Keep handles for the next file, so that it can be opened when others have taken all that the process may."""
        with suppress(OSError):
            while len(self._spare) < _SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY))

    def _drop_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())

    def _close(self, number: int) -> None:
        volume = self._open.pop(number)
        volume.file.close()
        os.close(volume.handle)


def new_virtual_stack(
    parent: h5py.Group,
    name: str,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    fill: int,
    folder: str,
    n: int,
    kind: Kind,
) -> h5py.Dataset:
    """A stack of all volumes that exist, and will: a virtual dataset whose sources are numbered."""
    endless = h5py.h5s.UNLIMITED
    view = h5py.h5s.create_simple((0, *shape), (endless, *shape))
    view.select_hyperslab((0, 0, 0), (endless, 1, 1), stride=(n, *shape), block=(n, *shape))
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    pattern = f"{folder.replace('%', '%%')}/%b.h5"
    settings.set_virtual(view, pattern.encode(), kind.encode(), h5py.h5s.create_simple((n, *shape)))
    settings.set_fill_value(np.array(fill, dtype))
    space = h5py.h5s.create_simple((0, *shape), (endless, *shape))
    stack = h5py.Dataset(h5py.h5d.create(parent.id, name.encode(), h5py.h5t.py_create(dtype), space, settings))
    stack.attrs["interpretation"] = "image"
    stack.attrs[FRAMES_PER_FILE] = n
    return stack


def end_virtual_stack(file: h5py.File, places: tuple[str, ...], folder: str, n: int, kind: Kind, length: int) -> None:
    """Give a virtual stack that stands at `places` (hard links) its final length."""
    old = file[places[0]]
    layout = h5py.VirtualLayout((length, *old.shape[1:]), old.dtype)
    for start in range(0, length, n):
        source = h5py.VirtualSource(f"{folder.replace('%', '%%')}/{start // n}.h5", kind, (n, *old.shape[1:]))
        end = min(start + n, length)
        layout[start:end] = source[: end - start]
    attributes, fill = dict(old.attrs), old.fillvalue
    for place in places:
        del file[place]
    new = file.create_virtual_dataset(places[0], layout, fill)
    for name, value in attributes.items():
        new.attrs[name] = value
    for place in places[1:]:
        file[place] = new
