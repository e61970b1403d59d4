"""HDF5 files of other programs."""

from pathlib import Path
from typing import Any

import numpy as np

from realtime_skyseg.errors import RecordingError, SettingsError
from realtime_skyseg.recordings.recording import Choice
from realtime_skyseg.recordings.stack import Stack
from realtime_skyseg.records import printable


class Hdf5Recording(Stack):
    """An array of an HDF5 file of another program.

    The one that was chosen, else the default plot by the rules of NeXus, else the only one that can be frames. What
    leads out of the file is refused: external links and storage, and virtual datasets of other files.
    """

    format = "hdf5"

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  frozen
        super().__init__(path)
        import h5py

        import realtime_skyseg.hdf5_filters  # noqa: F401

        try:
            try:
                self._file = h5py.File(path, "r")
            except OSError:
                self._file = h5py.File(path, "r", swmr=True)  # one that is being written
        except (OSError, ValueError) as error:
            self._broken(0, error)
        try:
            name = choice.dataset or _nexus_default(self._file) or _only_stack(self._file, path)
            dataset = _dataset(self._file, name)
            if dataset is None:
                found = ", ".join(printable(name) for name in _stacks(self._file)[:8]) or "nothing in this file"
                raise SettingsError(f"dataset: '{printable(name)}' is no array in {path}; allowed: {found}")
            names = [AXIS.get(str(dim.label).lower(), str(dim.label).lower()) for dim in dataset.dims]
            named = len(set(names)) == len(names) and all(names)
            self._take(dataset, choice, names if named else None, None, dataset.chunks)
            self._times(dataset)
        except (SettingsError, RecordingError):
            self.close()
            raise
        except Exception as error:
            self.close()
            self._broken(0, error)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _times(self, dataset: Any) -> None:
        """The times of the frames, where the array is plotted over an axis of time."""
        axes = dataset.parent.attrs.get("axes")
        first = axes[0] if isinstance(axes, np.ndarray | list) and len(axes) else axes
        first = first.decode() if isinstance(first, bytes) else first
        times = _dataset(dataset.parent, first) if isinstance(first, str) and first not in (".", "") else None
        if times is None or times.shape != (self.n_frames,) or times.dtype.kind not in "iuf":
            return
        units = times.attrs.get("units", "")
        scale = {"s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1.0}.get(
            units.decode() if isinstance(units, bytes) else str(units)
        )
        values = np.asarray(times[()], np.float64)
        if scale and len(values) > 1 and np.isfinite(values).all() and (np.diff(values) > 0).all():
            self.stamps_ns = np.rint((values - values[0]) * scale).astype(np.int64)
            self.rate_hz = 1e9 / float(np.median(np.diff(self.stamps_ns)))


AXIS = {"t": "time", "c": "channel", "p": "position", "s": "position", "slice": "z", "frame": "time", "frames": "time"}
_MOST_OBJECTS = 10_000


def _dataset(group: Any, name: str) -> Any:
    """An array of a file by its path, or None. Raises `ValueError` where it lies outside the file."""
    import h5py

    here = group.file if name.startswith("/") else group
    for part in [part for part in name.split("/") if part not in ("", ".")]:
        if not isinstance(here, h5py.Group):
            return None
        link = here.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(
                f"'{printable(name)}' is a link to '{printable(link.filename)}'; allowed: what is in the file"
            )
        here = here.get(part)
        if here is None:
            return None
    return _checked(here) if isinstance(here, h5py.Dataset) else None


def _checked(dataset: Any) -> Any:
    """The same dataset, unless its values lie outside its file."""
    if dataset.external:
        where = printable(dataset.external[0][0])
        raise ValueError(f"'{printable(dataset.name)}' is stored in '{where}'; allowed: what is in the file")
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            name = printable(source.dset_name)
            if source.file_name not in (".", dataset.file.filename):
                raise ValueError(
                    f"'{printable(dataset.name)}' is a view of '{printable(source.file_name)}'; "
                    "allowed: what is in the file"
                )
            inner = dataset.file.get(source.dset_name)
            if inner is None or getattr(inner, "is_virtual", True) or inner.external:
                raise ValueError(f"'{printable(dataset.name)}' is a view of '{name}'; allowed: an array of this file")
    return dataset


def _stacks(file: Any) -> list[str]:
    """Paths of the arrays that can be frames: of 3 or 4 dimensions, or where there are none, of 2."""
    import h5py

    found: list[tuple[int, str]] = []
    waiting: list[tuple[str, Any]] = [("", file)]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_OBJECTS:
        path, group = waiting.pop(0)
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                continue
            item = group.get(name)
            token = h5py.h5o.get_info(item.id).addr if isinstance(item, h5py.Group | h5py.Dataset) else None
            if token is None or token in seen:
                continue
            seen.add(token)
            if isinstance(item, h5py.Group):
                waiting.append((f"{path}/{name}", item))
            elif item.dtype.kind in "biuf" and item.ndim >= 2 and min(item.shape[-2:]) > 4:
                found.append((item.ndim, f"{path}/{name}"))
    deep = [name for ndim, name in found if ndim > 2]
    return deep or [name for _, name in found]


def _only_stack(file: Any, path: Path) -> str:
    names = _stacks(file)
    if len(names) == 1:
        return names[0]
    if not names:
        raise ValueError("it holds no array of 2 dimensions or more; allowed: (frames, height, width)")
    some = ", ".join(printable(name) for name in names[:8])
    raise SettingsError(f"dataset: {path} holds {len(names)} arrays that can be frames; allowed: one of {some}")


def _nexus_default(file: Any) -> str | None:
    """The path of the default plot's signal, by `default` and `signal` (NeXus 2014 and later), or None."""
    import h5py

    here = file
    for _ in range(8):
        signal = _attribute(here, "signal")
        if signal:
            return f"{here.name.rstrip('/')}/{signal}"
        wanted = _attribute(here, "default")
        if not wanted:
            kind = {"NXroot": "NXentry", "": "NXentry", "NXentry": "NXdata"}.get(_attribute(here, "NX_class"))
            wanted = next(
                (
                    name
                    for name in here
                    if isinstance(here.get(name, getlink=True), h5py.HardLink)
                    and isinstance(here.get(name), h5py.Group)
                    and _attribute(here[name], "NX_class") == kind
                ),
                "",
            )
        link = here.get(wanted, getlink=True) if wanted else None
        if not isinstance(link, h5py.HardLink) or not isinstance(here.get(wanted), h5py.Group):
            return None
        here = here[wanted]
    return None


def _attribute(item: Any, name: str) -> str:
    value = item.attrs.get(name, "")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
