"""What a run file from elsewhere may not do: lead out of itself, or ask for all of the memory."""

import math
from pathlib import Path, PurePosixPath
from typing import Any

import h5py

from realtime_skyseg.errors import RunFileError
from realtime_skyseg.records import printable
from realtime_skyseg.storage import layout

#: A file of ours has some hundred objects.
_MOST_OBJECTS, _DEEPEST = 20_000, 32

#: Of a frame, and of what is decompressed at once. No camera gives larger ones, and a damaged header must not ask for
#: all of the memory.
MOST_PIXELS, MOST_CHUNK_BYTES = 2**26, 2**29

#: Deflate makes nothing smaller than by this.
_DENSEST = 1100

#: What HDF5 raises on damage.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError)

#: Small arrays are taken as they are.
_SMALL_BYTES = 2**24


def check(file: h5py.File, path: Path, damaged: bool = False) -> None:
    """Look at every object of a run file before its values are read.

    Args:
        file: open.
        path: of it.
        damaged: objects that cannot be looked at are passed over: whoever reads them finds that out.

    Raises:
        RunFileError: an object is a link to another file, lies outside the file (but in the run's own volumes), or is
            larger than what the file holds.
        OSError, RuntimeError, KeyError, ValueError: what HDF5 raises on damage, unless `damaged`.
    """
    waiting: list[tuple[str, h5py.Group, int]] = [("", file, 0)]
    seen: set[Any] = set()
    while waiting:
        above, group, depth = waiting.pop()
        try:
            names = list(group)
        except _DAMAGE:
            if not damaged:
                raise
            continue
        for name in names:
            try:
                inner = _check_object(group, name, f"{above}/{name}", path, seen)
            except _DAMAGE:
                if not damaged:
                    raise
                continue
            if len(seen) > _MOST_OBJECTS or depth > _DEEPEST:
                raise RunFileError(f"'{path}' holds more groups than a run file does; allowed: {_MOST_OBJECTS} objects")
            if inner is not None:
                waiting.append((f"{above}/{name}", inner, depth + 1))


def _check_object(group: h5py.Group, name: str, place: str, path: Path, seen: set[Any]) -> h5py.Group | None:
    """Look at one object; a group that was not seen before."""
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise RunFileError(f"'{path}': {_shown(place)} is a link to '{_shown(link.filename)}'; allowed: none")
    if isinstance(link, h5py.SoftLink):
        return None  # it leads to what is looked at anyway, or to nothing
    item = group.get(name)
    if not isinstance(item, h5py.Group | h5py.Dataset):
        return None
    where = h5py.h5o.get_info(item.id)
    if (where.fileno, where.addr) in seen:
        return None
    seen.add((where.fileno, where.addr))
    if isinstance(item, h5py.Group):
        return item
    _check_dataset(item, place, path)
    return None


def _check_dataset(dataset: h5py.Dataset, place: str, path: Path) -> None:
    if dataset.external:
        raise RunFileError(
            f"'{path}': {_shown(place)} is stored in '{_shown(dataset.external[0][0])}'; allowed: in the file itself"
        )
    size = dataset.dtype.itemsize
    shape: tuple[int, ...] = dataset.shape or ()
    if len(shape) == 3 and shape[1] * shape[2] > MOST_PIXELS:
        raise RunFileError(
            f"'{path}': {_shown(place)} has frames of {shape[1]} x {shape[2]} px; "
            f"allowed: up to {MOST_PIXELS / 1e6:.0f} million px"
        )
    if dataset.chunks and math.prod(dataset.chunks) * size > MOST_CHUNK_BYTES:
        raise RunFileError(f"'{path}': {_shown(place)} has chunks of {dataset.chunks}; allowed: up to 500 MB")
    if dataset.is_virtual:
        _check_view(dataset, place, path)
    elif len(shape) != 3 and math.prod(shape) * size > _SMALL_BYTES + _DENSEST * dataset.id.get_storage_size():
        raise RunFileError(
            f"'{path}': {_shown(place)} has {math.prod(shape)} values, more than the file holds; "
            "allowed: what was written"
        )


def _check_view(dataset: h5py.Dataset, place: str, path: Path) -> None:
    """A virtual stack shows the run's own volumes, which are files in the folder beside it, and nothing else."""
    folders = set()
    for source in dataset.virtual_sources():
        name = PurePosixPath(source.file_name.replace("\\", "/"))
        own = name.parent.suffix in layout.VOLUMES and not name.parts[0].startswith("..")
        if len(name.parts) != 2 or not own:
            raise RunFileError(
                f"'{path}': {_shown(place)} is a view of '{_shown(source.file_name)}'; allowed: of the run's volumes"
            )
        folders.add(name.parts[0].replace("%%", "%"))
    for folder in folders:
        for volume in (path.parent / folder).glob("*.h5"):
            try:
                with h5py.File(volume, "r", swmr=True) as file:
                    for kind in ("raw", "mask"):
                        inner = file.get(kind)
                        if isinstance(file.get(kind, getlink=True), h5py.ExternalLink) or (
                            isinstance(inner, h5py.Dataset) and (inner.is_virtual or inner.external)
                        ):
                            raise RunFileError(f"'{volume}' leads to another file; allowed: frames of its own")
            except (OSError, KeyError):
                continue  # damage, which reading it tells


def _shown(text: object) -> str:
    return printable(text)[:120]
