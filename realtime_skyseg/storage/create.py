"""The empty run file: every group, dataset and attribute, since none can be added once others may read along."""

import json
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from realtime_skyseg.hdf5_filters import bitshuffle
from realtime_skyseg.quantities import Columns
from realtime_skyseg.records import NOT_ANALYSED, Class, Skipped
from realtime_skyseg.storage import layout, tables
from realtime_skyseg.storage.provenance import RECORDED_PACKAGES, Provenance, git_commit, iso, version_of


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run file is made for."""

    shape: tuple[int, int]  # (height, width) of the frames
    dtype: np.dtype[Any]
    provenance: Provenance
    start_ns: int
    result_columns: Columns
    object_columns: Columns
    new_stack: Callable[..., h5py.Dataset]  # parent, name, dtype, fill, "raw" or "mask"


def create(root: h5py.File, plan: Plan) -> None:
    """Make everything but the tables of analysers."""
    entry = _create_entry(root, plan)
    raw = _create_detector(entry, plan)
    masks = _create_segmentation(entry, plan)
    _create_preparation(entry, plan)
    frames = _create_tables(entry, plan)
    if plan.provenance.experiment is not None:
        _create_experiment(_group(entry, "experiment", "NXcollection"), plan.provenance.experiment)
    _create_sample(entry, frames, plan.provenance)
    _create_notes(entry, plan.provenance)
    _create_plots(entry, raw, masks, frames, plan)


def _create_entry(root: h5py.File, plan: Plan) -> h5py.Group:
    provenance = plan.provenance
    root.attrs["NX_class"] = "NXroot"
    root.attrs["default"] = "entry"
    root.attrs["layout"] = layout.LAYOUT_VERSION
    entry = _group(root, "entry", "NXentry")
    entry.attrs["default"] = "data"
    _text(entry, "title", provenance.title or "skyrmion run")
    _text(entry, "run_id", provenance.run_id)
    _text(entry, "entry_identifier", provenance.run_id)
    _text(entry, "program_name", "realtime_skyseg").attrs["version"] = version_of("realtime_skyseg") or "unknown"
    _text(entry, "start_time", iso(plan.start_ns))
    entry.create_dataset("end_time", data=np.bytes_(b""), dtype="S40")
    entry.create_dataset("exit_status", data=np.int32(-1)).attrs["meaning"] = "-1: not finished"
    return entry


def _create_detector(entry: h5py.Group, plan: Plan) -> h5py.Dataset:
    provenance, dtype = plan.provenance, plan.dtype
    instrument = _group(entry, "instrument", "NXinstrument")
    _text(instrument, "name", "Kerr microscope")
    detector = _group(instrument, "detector", "NXdetector")
    raw = plan.new_stack(detector, "data", dtype, 0, "raw")
    raw.attrs["long_name"] = "raw frames"
    for name, value in provenance.camera.items():
        told = _scalar(detector, name, value)
        unit = layout.UNITS.get(name.rpartition("_")[2]) if not isinstance(value, str) else None
        if unit:
            told.attrs["units"] = unit
    if provenance.frame_names is not None:
        names = [name.encode("utf-8", "replace") for name in provenance.frame_names]
        width = max([1, *map(len, names)])
        kind = f"S{width}" if all(map(bytes.isascii, names)) else h5py.string_dtype("utf-8", width)
        stored = detector.create_dataset("frame_names", data=np.array(names, kind), compression="gzip")
        stored.attrs["long_name"] = "name of each frame of the recording, by frames/number; it may begin again"
    if provenance.pixel_size_um is not None:
        for name in ("x_pixel_size", "y_pixel_size"):
            detector.create_dataset(name, data=provenance.pixel_size_um).attrs["units"] = "um"
    return raw


def _create_segmentation(entry: h5py.Group, plan: Plan) -> h5py.Dataset:
    provenance = plan.provenance
    process = _group(entry, "segmentation", "NXprocess")
    _text(process, "program", "realtime_skyseg")
    _text(process, "version", version_of("realtime_skyseg") or "unknown")
    for name in ("model", "weights_sha256", "engine", "device", "precision"):
        _text(process, name, getattr(provenance, name))
    process.create_dataset("agreement", data=provenance.agreement).attrs["long_name"] = (
        "share of pixels equal to torch float32"
    )
    masks = plan.new_stack(process, "mask", np.dtype(np.uint8), NOT_ANALYSED, "mask")
    masks.attrs["long_name"] = "class per pixel"
    masks.attrs["classes"] = json.dumps(
        {value.name.lower(): value.value for value in Class} | {"not_analysed": NOT_ANALYSED}
    )
    return masks


def _create_preparation(entry: h5py.Group, plan: Plan) -> None:
    shape = plan.shape
    preparation = _group(entry, "preparation", "NXprocess")
    background = new_stack(preparation, "background", shape, np.dtype(np.float32), fill=0)
    background.attrs["long_name"] = "reference image in the camera's grey levels"
    for name, code, meaning in (
        ("first_frame", "i8", "index of the first frame that a background applies to"),
        ("source", "S200", "taken, rolling_median, or the background's file"),
    ):
        column = preparation.create_dataset(name, (0,), code, maxshape=(None,), chunks=(64,))
        column.attrs["long_name"] = meaning


def _create_tables(entry: h5py.Group, plan: Plan) -> h5py.Group:
    provenance = plan.provenance
    frames = _group(entry, "frames", "NXcollection")
    for quantity in (layout.FRAME_COLUMNS | plan.result_columns).values():
        tables.create_column(frames, quantity, packed=False)
    frames["skipped"].attrs["codes"] = json.dumps({cause.name.lower(): cause.value for cause in Skipped})
    if provenance.timing == "hand-over":
        frames["time_s"].attrs["start"] = iso(plan.start_ns)
    for check, covered in zip(layout.CHECKS, (layout.FRAME_COLUMNS, plan.result_columns), strict=True):
        frames[check].attrs["covers"] = json.dumps([name for name in covered if name != check])
    tables.create(entry, "objects", plan.object_columns)
    tables.create(entry, "events", layout.EVENT_COLUMNS)
    return frames


def _create_experiment(group: h5py.Group, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        _text(group, name, text)
    for name, declared in layout.EXPERIMENT_TABLES.items():
        tables.create(group, name, declared, "NXdata" if name == "steps" else "NXcollection")
    steps = group["steps"]
    steps.attrs["signal"] = "count"
    steps.attrs["auxiliary_signals"] = ["area_fraction", "diameter_px"]
    steps.attrs["axes"] = ["field_mT"]
    for name in [name for name in layout.STEP_COLUMNS if name.endswith("_std")]:
        steps[name.removesuffix("_std") + "_errors"] = steps[name]  # as NeXus calls it


def _create_sample(entry: h5py.Group, frames: h5py.Group, provenance: Provenance) -> None:
    sample = _group(entry, "sample", "NXsample")
    _text(sample, "name", provenance.sample or "unnamed")
    log = _group(sample, "magnetic_field", "NXlog")
    log["value"], log["time"] = frames["field_mT"], frames["time_s"]
    if provenance.supply:
        supply = _group(log, "supply", "NXcollection")
        for name, value in provenance.supply.items():
            _scalar(supply, name, value)
    if provenance.calibration:
        note = _group(log, "calibration", "NXnote")
        _text(note, "type", "application/yaml")
        _text(note, "data", provenance.calibration)
    user = _group(entry, "user", "NXuser")
    _text(user, "name", provenance.operator or "unnamed")


def _create_notes(entry: h5py.Group, provenance: Provenance) -> None:
    note = _group(entry, "configuration", "NXnote")
    _text(note, "type", "application/yaml")
    _text(note, "data", provenance.configuration)
    note = _group(entry, "summary", "NXnote")
    _text(note, "type", "application/json")
    note.create_dataset("data", data=np.bytes_(b""), dtype=f"S{layout.SUMMARY_LENGTH}")

    origin = _group(entry, "provenance", "NXcollection")
    _text(origin, "versions", json.dumps({name: found for name in RECORDED_PACKAGES if (found := version_of(name))}))
    _text(origin, "python", sys.version)
    _text(origin, "platform", sys.platform)
    _text(origin, "host", socket.gethostname())
    _text(origin, "git_commit", git_commit())
    _text(origin, "camera_clock", provenance.clock or "none")
    _text(origin, "service_clock", "Unix time of the service's host (time.time_ns)")


def _create_plots(entry: h5py.Group, raw: h5py.Dataset, masks: h5py.Dataset, frames: h5py.Group, plan: Plan) -> None:
    provenance, shape = plan.provenance, plan.shape
    data = _group(entry, "data", "NXdata")
    axis = "number" if provenance.timing == "unknown" else "time"
    steps = frames["number" if axis == "number" else "time_s"]
    data["raw"], data[axis] = raw, steps
    data.attrs["signal"] = "raw"
    data.attrs["axes"] = [axis, ".", "."]
    if provenance.pixel_size_um is not None:
        data.attrs["axes"] = [axis, "y", "x"]
        for name, side in zip(("y", "x"), shape, strict=True):
            place = data.create_dataset(name, data=np.arange(side, dtype=np.float64) * provenance.pixel_size_um)
            place.attrs["units"] = "um"
            place.attrs["long_name"] = f"{name} (um), from the centre of the first pixel"
    # Not with the raw frames, which are there earlier: a plot wants one length.
    shown = _group(entry, "masks", "NXdata")
    shown["mask"], shown[axis] = masks, steps
    shown.attrs["signal"] = "mask"
    shown.attrs["axes"] = [axis, ".", "."]


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _text(parent: h5py.Group, name: str, text: str) -> h5py.Dataset:
    # Fixed length: strings of variable length cannot be read safely while the file is written. ASCII where it is: some
    # readers know nothing else of fixed length.
    if text.isascii() and "\0" not in text:
        return parent.create_dataset(name, data=np.bytes_(text.encode() or b" "))
    data = text.encode(errors="replace").replace(b"\0", b"?") or b" "
    return parent.create_dataset(name, data=np.array(data, h5py.string_dtype("utf-8", len(data))))


def _scalar(parent: h5py.Group, name: str, value: str | int | float | bool) -> h5py.Dataset:
    if isinstance(value, str):
        return _text(parent, name, value)
    # HDF5 has no booleans; h5py would make an enumeration of them, which few other readers know.
    return parent.create_dataset(name, data=np.uint8(value) if isinstance(value, bool) else value)


def new_stack(parent: h5py.Group, name: str, shape: tuple[int, int], dtype: np.dtype[Any], fill: int) -> h5py.Dataset:
    """An empty stack of images, (0, height, width), one chunk per image."""
    stack = parent.create_dataset(
        name,
        (0, *shape),
        dtype,
        maxshape=(None, *shape),
        chunks=(1, *shape),
        fillvalue=fill,
        fletcher32=True,
        **bitshuffle,
    )
    stack.attrs["interpretation"] = "image"
    return stack
