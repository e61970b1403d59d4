"""Arrays: NPY and NPZ files, HDF5 files of other programs, and Zarr."""

import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import RecordingError, SettingsError
from realtime_skyseg.recordings.recording import Choice, Recording, check_size, missing, select
from realtime_skyseg.records import printable
from realtime_skyseg.storage.trust import MOST_CHUNK_BYTES

_MOST_BLOCK_BYTES = 2**26  # of frames that are kept because they were decompressed together


class _Stack(Recording):
    """Frames of an array that is sliced: (..., H, W), or (..., H, W, 3 or 4) in colour."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._array: Any = None
        self._block: tuple[int, NDArray[Any]] = (-1, np.empty((0, 0, 0)))
        self._together = 1  # frames that are decompressed together

    def _take(
        self,
        array: Any,
        choice: Choice,
        names: Sequence[str] | None = None,
        labels: dict[str, list[str]] | None = None,
        chunks: tuple[int, ...] | None = None,
    ) -> None:
        """Play an array.

        Args:
            array: with shape and dtype; sliced as a NumPy array.
            choice: which part of it.
            names: of its axes, where they are known.
            labels: names of channels and positions.
            chunks: shape of what is decompressed at once.

        Raises:
            ValueError, SettingsError: the array cannot be played.
        """
        shape, dtype = tuple(int(n) for n in array.shape), np.dtype(array.dtype)
        if dtype.kind not in "biuf" or dtype.itemsize > 8 or dtype.shape:
            raise ValueError(f"its pixels are {dtype}; allowed: integers and floats of up to 64 bit")
        colour = len(shape) > 3 and shape[-1] in (3, 4) and (names is None or names[-1] not in ("x", "y"))
        inner = 3 if colour else 2
        if len(shape) < 2 or (len(shape) == 3 and shape[2] in (3, 4)):
            raise ValueError(
                f"its shape is {shape}; allowed: (frames, height, width), and 3 or 4 colours last in four dimensions"
            )
        outer = shape[:-inner]
        if names is None and sum(n > 1 for n in outer) > 1:
            raise ValueError(f"its shape is {shape}; allowed: (frames, height, width), and 3 or 4 colours last")
        check_size(shape[-inner], shape[1 - inner])
        if chunks is not None and math.prod(chunks) * dtype.itemsize > MOST_CHUNK_BYTES:
            raise ValueError(
                f"its chunks are {chunks} {dtype}; allowed: up to {MOST_CHUNK_BYTES / 1e6:.0f} MB decompressed at once"
            )
        if names is None:
            n_frames = math.prod(outer)
            select(self.path, {"time": n_frames}, choice, {})
            self._index: list[int | None] = [0 if n == 1 else None for n in outer]
            if outer and None not in self._index:
                self._index[0] = None
        else:
            axes = dict(zip(names, outer, strict=False))
            fixed = select(self.path, axes, choice, labels or {})
            free = next((name for name in axes if name not in fixed), next(iter(axes), ""))
            self._index = [None if name == free else fixed[name] for name in axes]
            n_frames = axes.get(free, 1)
        self._array = array
        self.n_frames = n_frames
        if self.n_frames == 0:
            raise ValueError("the array holds no frames; allowed: at least 1")
        if chunks is not None and None in self._index:
            together = int(chunks[self._index.index(None)])
            frame_bytes = math.prod(shape[len(outer) :]) * dtype.itemsize
            self._together = together if together * frame_bytes <= _MOST_BLOCK_BYTES else 1

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= (self.n_frames or 0):
            raise self._ended()
        try:
            if None not in self._index:
                return np.asarray(self._array[tuple(0 if i is None else i for i in self._index)])
            if self._together == 1:
                return np.asarray(self._array[tuple(index if i is None else i for i in self._index)])
            number, place = divmod(index, self._together)
            if self._block[0] != number:
                span = slice(number * self._together, min((number + 1) * self._together, self.n_frames or 0))
                self._block = number, np.asarray(self._array[tuple(span if i is None else i for i in self._index)])
            return np.asarray(self._block[1][place])
        except Exception as error:  # of libraries that raise whatever broken bytes lead to
            self._broken(index, error)


class ArrayRecording(_Stack):
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


class Hdf5Recording(_Stack):
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
            names = [_AXIS.get(str(dim.label).lower(), str(dim.label).lower()) for dim in dataset.dims]
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


_AXIS = {"t": "time", "c": "channel", "p": "position", "s": "position", "slice": "z", "frame": "time", "frames": "time"}
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


class ZarrRecording(_Stack):
    """A Zarr folder or zip file: an image of OME-Zarr (0.4, 0.5), or an array."""

    format = "zarr"

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  frozen
        super().__init__(path)
        try:
            import zarr
        except ModuleNotFoundError as error:
            raise missing(path, error) from error
        try:
            self._store: Any = None
            if path.is_file():
                self._store = zarr.storage.ZipStore(path, mode="r")
            root = zarr.open(self._store or str(path), mode="r")
            array, names, labels = self._find(root, choice)
            self._take(array, choice, names, labels, getattr(array, "shards", None) or array.chunks)
        except (SettingsError, RecordingError):
            self.close()
            raise
        except Exception as error:  # zarr raises whatever broken bytes lead to
            self.close()
            self._broken(0, error)

    def close(self) -> None:
        """Close the file."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _find(self, root: Any, choice: Choice) -> tuple[Any, list[str] | None, dict[str, list[str]]]:
        import zarr

        if isinstance(root, zarr.Array):
            return root, _zarr_names(root), {}
        if choice.dataset is not None:
            item = root.get(choice.dataset.strip("/"))
            if not isinstance(item, zarr.Array):
                raise SettingsError(f"dataset: '{choice.dataset}' is no array in {self.path}; allowed: {_arrays(root)}")
            return item, _zarr_names(item), {}
        series = [name for name in sorted(root.group_keys(), key=_number) if _multiscales(root[name])]
        if not _multiscales(root) and series:  # as bioformats2raw writes several images
            select(self.path, {"time": 2, "position": len(series)}, choice, {"position": series})
            wanted = choice.position
            root = root[
                series[series.index(wanted) if isinstance(wanted, str) and wanted in series else int(wanted or 0)]
            ]
            choice = Choice(choice.channel, None, choice.z)
        image = _multiscales(root)
        if image is None:
            names = [name for name, item in root.arrays() if len(item.shape) >= 2]
            if len(names) == 1:
                return root[names[0]], _zarr_names(root[names[0]]), {}
            raise SettingsError(f"dataset: {self.path} holds {len(names)} arrays; allowed: {_arrays(root)}")
        array = root[str(image["datasets"][0]["path"])]
        axes = image.get("axes") or ["t", "c", "z", "y", "x"][-len(array.shape) :]
        names = [str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in axes]
        if len(names) != len(array.shape):
            raise ValueError(f"it names {len(names)} axes of an array of shape {array.shape}")
        self._rate(image, axes, names)
        told = dict(root.attrs)
        told = told.get("ome", told)
        channels = [str(channel.get("label", "")) for channel in (told.get("omero") or {}).get("channels", [])]
        return array, [_AXIS.get(name, name) for name in names], {"channel": channels if all(channels) else []}

    def _rate(self, image: dict[str, Any], axes: list[Any], names: list[str]) -> None:
        if "t" not in names or not isinstance(axes[names.index("t")], dict):
            return
        unit = {"second": 1.0, "millisecond": 1e-3, "microsecond": 1e-6, "minute": 60.0, "hour": 3600.0}.get(
            str(axes[names.index("t")].get("unit"))
        )
        for step in (image["datasets"][0].get("coordinateTransformations") or []) if unit else []:
            if step.get("type") == "scale" and step["scale"][names.index("t")] > 0:
                self.rate_hz = 1 / (float(step["scale"][names.index("t")]) * float(unit or 1))


def _zarr_names(array: Any) -> list[str] | None:
    """Names of an array's axes, as Zarr 3 and xarray write them."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        return None
    return [_AXIS.get(name.lower(), name.lower()) for name in names]


def _multiscales(group: Any) -> dict[str, Any] | None:
    told = dict(group.attrs)
    images = told.get("ome", told).get("multiscales") if isinstance(told.get("ome", told), dict) else None
    return images[0] if isinstance(images, list) and images and isinstance(images[0], dict) else None


def _arrays(root: Any) -> str:
    return ", ".join(printable(name) for name, _ in list(root.arrays())[:8]) or "nothing in this file"


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if re.fullmatch(r"\d{1,9}", name) else (10**9, name)
