"""Where things stand in a run file; the one place that both writer and reader take it from.

/entry                  NXentry      title, start_time, end_time, run_id, exit_status
  /instrument/detector  NXdetector   data: every raw frame (frame, row, column); frame_names: of a recording's images
  /segmentation         NXprocess    mask: class per pixel (frame, row, column), 255 where not analysed;
                                     model, weights_sha256, engine, device, precision, agreement
  /preparation          NXprocess    background: each reference image that was subtracted (number, row, column);
                                     first_frame, source: of each
  /frames               NXcollection one value per frame and name: FRAME_COLUMNS, RESULT_COLUMNS
  /objects              table        one row per object: frame and the columns of `records.OBJECT_DTYPE`
  /events               table        time_ns, frame, kind, message
  /experiment           NXcollection only with a field programme: inputs, decisions: tables, EXPERIMENT_TABLES
    /steps              NXdata       one value per step and name: STEP_COLUMNS
  /sample               NXsample     name; magnetic_field: NXlog, with the supply and the calibration where there are
  /user                 NXuser       name
  /configuration        NXnote       the full settings as YAML
  /provenance           NXcollection versions, git commit, host, clocks, camera
  /summary              NXnote       counters and latencies as JSON, written at the end
  /data, /masks         NXdata       default plot: raw frames over time (over their numbers where they have none); masks
"""

from typing import Any

import h5py
import numpy as np

from realtime_skyseg.records import OBJECT_DTYPE, Skipped

LAYOUT_VERSION = "skyseg-run-1"

RAW = "entry/instrument/detector/data"
MASK = "entry/segmentation/mask"
FRAME_NAMES = "entry/instrument/detector/frame_names"
PREPARATION = "entry/preparation"
FRAMES = "entry/frames"
OBJECTS = "entry/objects"
EVENTS = "entry/events"
EXPERIMENT = "entry/experiment"
SUMMARY = "entry/summary/data"
CONFIGURATION = "entry/configuration/data"
PROVENANCE = "entry/provenance"

SKIPPED_DTYPE = h5py.enum_dtype({cause.name.lower(): cause.value for cause in Skipped}, basetype="u1")

#: name: (dtype, value where nothing was written, unit, meaning). Known when a frame is written.
FRAME_COLUMNS: dict[str, tuple[Any, float, str, str]] = {
    "written": ("u1", 0, "", "1 where the raw frame is in this file"),
    "number": ("i8", -1, "", "the camera's own frame number"),
    "camera_lost": ("u4", 0, "", "frames the camera lost right before this one"),
    "camera_ns": ("i8", -1, "ns", "the camera's time stamp on the clock named in provenance; -1: none"),
    "received_ns": ("i8", 0, "ns", "hand-over by the camera, Unix time"),
    "written_ns": ("i8", 0, "ns", "raw frame handed to HDF5, Unix time"),
    "write_ns": ("i8", 0, "ns", "how long HDF5 took to write the compressed raw frame"),
    "time_s": (
        "f8",
        np.nan,
        "s",
        "since the start of the run (hand-over by a camera) or the first frame of a recording; NaN: unknown",
    ),
    "field_mT": ("f8", np.nan, "mT", "applied field, where known"),
    "field_age_ns": (
        "f8",
        np.nan,
        "ns",
        "time of exposure (camera_ns on Unix time, else received_ns) minus time of the field's read-back; NaN: none",
    ),
    "raw_crc32": ("i8", -1, "", "CRC-32 of the raw frame's bytes; -1: none"),
    "row_crc32": ("i8", -1, "", "CRC-32 of this frame's values in the columns that the attribute 'covers' lists"),
}

#: Known when a frame was analysed, or will not be.
RESULT_COLUMNS: dict[str, tuple[Any, float, str, str]] = {
    "skipped": (SKIPPED_DTYPE, Skipped.PENDING, "", "why the frame was not analysed; 0: it was"),
    "count": ("f8", np.nan, "", "skyrmions; NaN: not analysed, or the frame shows nothing"),
    "stripes": ("f8", np.nan, "", "stripes; NaN as for count"),
    "area_fraction": ("f4", np.nan, "", "share of the sample's pixels of class skyrmion"),
    "segmented_ns": ("i8", 0, "ns", "measurement ready, Unix time"),
    "published_ns": ("i8", 0, "ns", "handed to the stream, Unix time; 0: not published"),
    "drift_x_px": ("f4", np.nan, "px", "how far the frame has moved right of its background; NaN: not sought"),
    "drift_y_px": ("f4", np.nan, "px", "the same, down"),
    "drift_quality": ("f4", np.nan, "", "correlation peak of the drift; where it is too low, the last drift was held"),
    "source_crc32": ("i8", -1, "", "CRC-32 of the bytes of the image that was segmented; equal to raw_crc32"),
    "mask_crc32": ("i8", -1, "", "CRC-32 of the mask's bytes; -1: none"),
    "objects_crc32": ("i8", -1, "", "CRC-32 of the bytes of this frame's rows in the table of objects; -1: none"),
    "result_crc32": ("i8", -1, "", "CRC-32 of this frame's values in the columns that the attribute 'covers' lists"),
}

#: The columns that vouch for the others of their kind.
CHECKS = ("row_crc32", "result_crc32")

#: Columns that the first run files of version 0.1 lack.
LATER_COLUMNS = (
    "field_age_ns", "write_ns", "raw_crc32", "row_crc32", "source_crc32", "mask_crc32", "objects_crc32", "result_crc32",
    "drift_x_px", "drift_y_px", "drift_quality",
)  # fmt: skip

ROW_DTYPE = np.dtype([("frame", "<u8"), *((name, OBJECT_DTYPE[name]) for name in OBJECT_DTYPE.names or ())])
EVENT_DTYPE = np.dtype(
    [("time_ns", "<i8"), ("frame", "<i8"), ("kind", "S32"), ("message", h5py.string_dtype("utf-8", 1000))]
)

#: Units and meaning of the columns of the two tables; what is not named has no unit.
TABLE_UNITS: dict[str, dict[str, str]] = {
    "objects": {
        **dict.fromkeys(("x", "y", "left", "top", "width", "height", "diameter"), "px"),
        "area": "px^2",
    },
    "events": {"time_ns": "ns"},
}
MEANING: dict[str, dict[str, str]] = {
    "objects": {
        "frame": "index of the frame",
        "x": "centroid, along columns; the centre of the first pixel is (0, 0)",
        "y": "centroid, along rows, downwards",
        "area": "pixels of the object",
        "left": "first column of the bounding box",
        "top": "first row of the bounding box",
        "width": "of the bounding box",
        "height": "of the bounding box",
        "diameter": "of the disc of equal area",
        "elongation": "major axis / minor axis of the ellipse of equal second moments",
        "kind": "0: skyrmion, 1: stripe",
        "border": "1 where the object touches the border of the image",
    },
    "events": {
        "time_ns": "Unix time",
        "frame": "index of the frame it belongs to; -1: none",
        "kind": "for example camera_lost, fault, stopped",
        "message": "one sentence, UTF-8",
    },
}

#: Units of what a camera says of itself, by the end of its name.
UNITS = {"hz": "Hz"} | {unit: unit for unit in ("ms", "us", "ns", "s", "mT", "um", "px", "V", "A")}

#: Of an experiment: one row per step of its programme. name: (dtype, unit, meaning)
STEP_COLUMNS: dict[str, tuple[str, str, str]] = {
    "number": ("i4", "", "of the row, counted from 0; goes on where a run was resumed"),
    "plan": ("i4", "", "position in the expanded programme"),
    "part": ("S64", "", "name of the part of the programme, or its place"),
    "kind": ("S16", "", "what the part does; 'after': frames after a rule stopped it"),
    "cycle": ("i4", "", "how many times the part began before"),
    "target_mT": ("f8", "mT", "field that was asked for last"),
    "field_mT": ("f8", "mT", "field read back, mean of the step's frames"),
    "field_mT_std": ("f8", "mT", "standard deviation"),
    "from_mT": ("f8", "mT", "field of the step before"),
    "turn_mT": ("f8", "mT", "where the field turned last; NaN: nowhere yet"),
    "direction": ("i1", "", "1: the field came from below, -1: from above, 0: it stayed"),
    "resumed": ("u1", "", "1: the run was killed before, and the sample's history with it"),
    "frames": ("i4", "", "analysed frames that are averaged"),
    "first_frame": ("i8", "", "of them; -1: none"),
    "last_frame": ("i8", "", "of them; -1: none"),
    "began_ns": ("i8", "ns", "Unix time"),
    "settled_ns": ("i8", "ns", "the field was reached, Unix time; 0: not waited for"),
    "ended_ns": ("i8", "ns", "Unix time"),
    "count": ("f8", "", "skyrmions, mean over the frames"),
    "count_std": ("f8", "", "standard deviation"),
    "stripes": ("f8", "", "mean"),
    "stripes_std": ("f8", "", "standard deviation"),
    "diameter_px": ("f8", "px", "mean over the frames of the median of the skyrmions"),
    "diameter_px_std": ("f8", "px", "standard deviation"),
    "area_px": ("f8", "px^2", "mean over the frames of the median of the skyrmions"),
    "area_px_std": ("f8", "px^2", "standard deviation"),
    "area_fraction": ("f8", "", "mean"),
    "area_fraction_std": ("f8", "", "standard deviation"),
    "end": ("S16", "", "complete; or what cut it off: stopped, aborted, fault"),
}

#: What the experiment decided, and all that it was told, in order: see `realtime_skyseg.experiment.machine`.
EXPERIMENT_TABLES: dict[str, np.dtype[Any]] = {
    "decisions": np.dtype(
        [
            ("time_ns", "<i8"),
            ("frame", "<i8"),
            ("plan", "<i4"),
            ("rule", "S32"),
            ("action", "S16"),
            ("old_mT", "<f8"),
            ("new_mT", "<f8"),
            ("acted", "u1"),
            ("reason", "S400"),
            ("inputs", "S400"),
        ]
    ),
    "inputs": np.dtype(
        [
            ("told", "u1"),
            ("time_ns", "<i8"),
            ("now_s", "<f8"),
            ("reading_ns", "<i8"),
            ("field_mT", "<f8"),
            ("set_mT", "<f8"),
            ("settled", "u1"),
            ("frame", "<i8"),
            ("taken_s", "<f8"),
            ("rule", "i1"),
            ("answer", "<f8"),
            ("failed", "u1"),
        ]
    ),
}

#: Characters of the summary's JSON at most.
SUMMARY_LENGTH = 32_768
