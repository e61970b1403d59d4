"""OME-Zarr and plain Zarr."""

from pathlib import Path
from typing import Any

from realtime_skyseg.errors import RecordingError, SettingsError
from realtime_skyseg.recordings.hdf5 import AXIS
from realtime_skyseg.recordings.recording import Choice, missing, select
from realtime_skyseg.recordings.stack import Stack, order_of_name
from realtime_skyseg.records import printable


class ZarrRecording(Stack):
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
        series = [name for name in sorted(root.group_keys(), key=order_of_name) if _multiscales(root[name])]
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
        return array, [AXIS.get(name, name) for name in names], {"channel": channels if all(channels) else []}

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
    return [AXIS.get(name.lower(), name.lower()) for name in names]


def _multiscales(group: Any) -> dict[str, Any] | None:
    told = dict(group.attrs)
    images = told.get("ome", told).get("multiscales") if isinstance(told.get("ome", told), dict) else None
    return images[0] if isinstance(images, list) and images and isinstance(images[0], dict) else None


def _arrays(root: Any) -> str:
    return ", ".join(printable(name) for name, _ in list(root.arrays())[:8]) or "nothing in this file"
