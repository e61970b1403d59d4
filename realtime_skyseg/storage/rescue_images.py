"""What a damaged file still gives of its images, copied."""

import faulthandler
import io
import mmap
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from realtime_skyseg.errors import RunFileError
from realtime_skyseg.quantities import Columns
from realtime_skyseg.storage import layout
from realtime_skyseg.storage.chunk import crc32, find_chunks, pack
from realtime_skyseg.storage.create import new_stack
from realtime_skyseg.storage.rescue_tables import DAMAGE, DamagedFile, reason
from realtime_skyseg.storage.volumes import FRAMES_PER_FILE


class Alive:
    """Ends this process unless it is called again in time, even where Python itself stands still."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._next = 0.0
        self()

    def __call__(self) -> None:
        """Say that it goes on."""
        if time.monotonic() > self._next:
            faulthandler.dump_traceback_later(self._patience_s, exit=True)
            self._next = time.monotonic() + self._patience_s / 10


def copy_group(
    source: h5py.Group, target: h5py.Group, damaged: h5py.File, notes: list[str], made: dict[Any, Any]
) -> None:
    """Copy a group with all below; stacks and tables are made empty. Hard links stay hard links."""
    stacks = (damaged[layout.RAW], damaged[layout.MASK])
    emptied = _emptied(damaged)
    for name, value in source.attrs.items():
        target.attrs[name] = value
    for name in source:
        try:
            item = source[name]
            if item in made:
                target[name] = made[item]
                continue
            if isinstance(item, h5py.Group):
                made[item] = target.create_group(name)
                copy_group(item, made[item], damaged, notes, made)
                continue
            if item in stacks:
                made[item] = new_stack(target, name, item.shape[1:], item.dtype, item.fillvalue)
            else:
                made[item] = _new_like(item, target, name, (0,) if item in emptied else item.shape)
                if item not in emptied:
                    for part in item.iter_chunks() if item.chunks and item.size else ((),):
                        made[item][part] = item[part]
            for key in set(item.attrs) - {FRAMES_PER_FILE}:
                made[item].attrs[key] = item.attrs[key]
        except DAMAGE as error:
            notes.append(f"'{source.name}/{name}' cannot be read: {reason(error)}")


def _emptied(damaged: h5py.File) -> set[h5py.Dataset]:
    """The datasets whose rows are written anew."""
    found: set[h5py.Dataset] = set()
    for name in (layout.OBJECTS, layout.EVENTS, layout.FRAMES):
        with suppress(*DAMAGE):
            table = damaged[name]
            found |= {table} if isinstance(table, h5py.Dataset) else set(table.values())
    return found


def _new_like(item: h5py.Dataset, target: h5py.Group, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """An empty dataset of the same kind. HDF5's own copy crashes on some files that it reads through `DamagedFile`."""
    space = h5py.h5s.create_simple(shape, item.id.get_space().get_simple_extent_dims(True)) if shape else None
    kind, settings = item.id.get_type(), item.id.get_create_plist()
    made = h5py.h5d.create(target.id, name.encode(), kind, space or h5py.h5s.create(h5py.h5s.SCALAR), settings)
    return h5py.Dataset(made)


class Images:
    """The images of a stack, in the damaged file or in its volumes, as far as they are there."""

    def __init__(self, stack: h5py.Dataset, kind: str, file: io.BufferedReader, owned: ExitStack) -> None:
        self.files = [file]
        self._stacks: dict[int, h5py.Dataset] = {0: stack}
        self._per_file = sys.maxsize
        if not stack.is_virtual:
            return
        self.files, self._stacks = [], {}
        source = stack.virtual_sources()[0]
        self._per_file = int(stack.attrs[FRAMES_PER_FILE])
        folder = Path(file.name).parent / Path(source.file_name.replace("%%", "%")).parent
        for path in folder.glob("*.h5"):
            self.files.append(owned.enter_context(path.open("rb")))
            with suppress(*DAMAGE, RunFileError):
                opened = owned.enter_context(h5py.File(DamagedFile(self.files[-1]), "r"))
                self._stacks[int(path.stem)] = opened[kind]

    def has(self, index: int) -> bool:
        """Whether HDF5 has an entry for this image."""
        number, place = divmod(index, self._per_file)
        stack = self._stacks.get(number)
        try:
            return (
                stack is not None and place < len(stack) and bool(stack.id.get_chunk_info_by_coord((place, 0, 0)).size)
            )
        except DAMAGE:
            return False

    def copy(self, index: int, target: h5py.Dataset, told: int) -> bool:
        """Copy an image; False where it is missing or fails a check."""
        if not self.has(index):
            return False
        number, place = divmod(index, self._per_file)
        try:
            chunk = pack(self._stacks[number][place])
        except DAMAGE:
            return False
        if told not in (-1, chunk.crc32):
            return False
        target.id.write_direct_chunk((index, 0, 0), chunk.data)
        return True

    def search(self, target: h5py.Dataset, missing: dict[int, list[int]], alive: Alive) -> list[int]:
        """Look for images that HDF5 does not find, by CRC-32, in all files; returns the frames without."""
        unknown = missing.pop(-1, [])
        for file in self.files if missing else ():
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for chunk, image in find_chunks(data, target.shape[1:], target.dtype):
                    alive()
                    for index in missing.pop(crc32(image), ()):
                        target.id.write_direct_chunk((index, 0, 0), chunk)
                    if not missing:
                        break
        return [*unknown, *(index for indices in missing.values() for index in indices)]


def value_of(row: NDArray[Any], name: str) -> int:
    """A check of a row, -1 where there is none."""
    return int(row[name][0]) if name in (row.dtype.names or ()) else -1


def clear_columns(row: NDArray[Any], kind: Columns) -> None:
    """Give these columns of a row their fill values."""
    for name in set(kind) & set(row.dtype.names or ()):
        row[name] = kind[name].fill
