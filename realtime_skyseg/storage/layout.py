"""Where things stand in a run file; the one place that both writer and reader take it from.

/entry                  NXentry      title, start_time, end_time, run_id, exit_status
  /instrument/detector  NXdetector   data: every raw frame (frame, row, column)
  /segmentation         NXprocess    mask: class per pixel (frame, row, column), 255 where not analysed;
                                     model, weights_sha256, engine, device, precision, agreement
  /frames               NXcollection one value per frame and name: FRAME_COLUMNS, RESULT_COLUMNS
  /objects              table        one row per object: frame and the columns of `records.OBJECT_DTYPE`
  /events               table        time_ns, frame, kind, message
  /sample               NXsample     name; magnetic_field: NXlog, with the supply and the calibration where there are
  /user                 NXuser       name
  /configuration        NXnote       the full settings as YAML
  /provenance           NXcollection versions, git commit, host, clocks, camera
  /summary              NXnote       counters and latencies as JSON, written at the end
  /data                 NXdata       default plot: raw frames and masks over time
"""

from typing import Any

import h5py
import numpy as np

from realtime_skyseg.records import OBJECT_DTYPE, Skipped

LAYOUT_VERSION = "skyseg-run-1"

RAW = "entry/instrument/detector/data"
MASK = "entry/segmentation/mask"
FRAMES = "entry/frames"
OBJECTS = "entry/objects"
EVENTS = "entry/events"
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
    "time_s": ("f8", np.nan, "s", "time since the start of the run (hand-over by the camera)"),
    "field_mT": ("f8", np.nan, "mT", "applied field, where known"),
    "field_age_ns": (
        "f8",
        np.nan,
        "ns",
        "time of exposure (camera_ns on Unix time, else received_ns) minus time of the field's read-back; NaN: none",
    ),
}

#: Known when a frame was analysed, or will not be.
RESULT_COLUMNS: dict[str, tuple[Any, float, str, str]] = {
    "skipped": (SKIPPED_DTYPE, Skipped.PENDING, "", "why the frame was not analysed; 0: it was"),
    "count": ("i4", -1, "", "skyrmions; -1: not analysed"),
    "stripes": ("i4", -1, "", "stripes; -1: not analysed"),
    "area_fraction": ("f4", np.nan, "", "share of the sample's pixels of class skyrmion"),
    "segmented_ns": ("i8", 0, "ns", "measurement ready, Unix time"),
    "published_ns": ("i8", 0, "ns", "handed to the stream, Unix time; 0: not published"),
}

#: Columns that the first run files of version 0.1 lack.
LATER_COLUMNS = ("field_age_ns",)

ROW_DTYPE = np.dtype([("frame", "<u8"), *((name, OBJECT_DTYPE[name]) for name in OBJECT_DTYPE.names or ())])
EVENT_DTYPE = np.dtype([("time_ns", "<i8"), ("frame", "<i8"), ("kind", "S32"), ("message", "S1000")])

#: Characters of the summary's JSON at most.
SUMMARY_LENGTH = 32_768
