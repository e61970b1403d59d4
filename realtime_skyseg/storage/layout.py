"""Where things stand in a run file; the one place that both writer and reader take it from.

/entry                  NXentry      title, start_time, end_time, run_id, exit_status
  /instrument/detector  NXdetector   data: every raw frame (frame, row, column); frame_names: of a recording's images
  /segmentation         NXprocess    mask: class per pixel (frame, row, column), 255 where not analysed;
                                     model, weights_sha256, engine, device, precision, agreement
  /preparation          NXprocess    background: each reference image that was subtracted (number, row, column);
                                     first_frame, source: of each
  /frames               NXcollection one value per frame and name: FRAME_COLUMNS, RESULT_COLUMNS
  /objects              NXcollection one value per object and name: OBJECT_COLUMNS
  /events               NXcollection one value per event and name: EVENT_COLUMNS
  /experiment           NXcollection only with a field programme
    /inputs, /decisions NXcollection one value per row and name: EXPERIMENT_TABLES
    /steps              NXdata       one value per step and name: STEP_COLUMNS
  /analysers/NAME       NXcollection what an analyser finds now and then, one row per frame that it found something in:
                                     frame, its quantities, its maps (row, y, x)
  /sample               NXsample     name; magnetic_field: NXlog, with the supply and the calibration where there are
  /user                 NXuser       name
  /configuration        NXnote       the full settings as YAML
  /provenance           NXcollection versions, git commit, host, clocks, camera
  /summary              NXnote       counters and latencies as JSON, written at the end
  /data, /masks         NXdata       default plot: raw frames over time (over their numbers where they have none); masks

A file of layout 1 differs in its tables: objects, events, inputs and decisions are datasets of compound rows there.
"""

import json
from contextlib import suppress

import h5py
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.quantities import Columns, Quantity, columns, row_dtype
from realtime_skyseg.records import FRAME_QUANTITIES, OBJECT_QUANTITIES, Event, Skipped

LAYOUT_VERSION = "skyseg-run-2"

#: What is read.
LAYOUT_VERSIONS = ("skyseg-run-1", LAYOUT_VERSION)

#: How the name of the folder of a run's volumes ends; version 0.1 wrote the second.
VOLUMES = (".volumes", ".segments")

RAW = "entry/instrument/detector/data"
MASK = "entry/segmentation/mask"
FRAME_NAMES = "entry/instrument/detector/frame_names"
PREPARATION = "entry/preparation"
FRAMES = "entry/frames"
OBJECTS = "entry/objects"
EVENTS = "entry/events"
EXPERIMENT = "entry/experiment"
ANALYSERS = "entry/analysers"
SUMMARY = "entry/summary/data"
CONFIGURATION = "entry/configuration/data"
PROVENANCE = "entry/provenance"

#: Known when a frame is written.
FRAME_COLUMNS: Columns = columns(
    Quantity("written", "u1", 0, "", "1 where the raw frame is in this file"),
    Quantity("number", "i8", -1, "", "the camera's own frame number"),
    Quantity("camera_lost", "u4", 0, "", "frames the camera lost right before this one"),
    Quantity("camera_ns", "i8", -1, "ns", "the camera's time stamp on the clock named in provenance; -1: none"),
    Quantity("received_ns", "i8", 0, "ns", "hand-over by the camera, Unix time"),
    Quantity("written_ns", "i8", 0, "ns", "raw frame handed to HDF5, Unix time"),
    Quantity("write_ns", "i8", 0, "ns", "how long HDF5 took to write the compressed raw frame"),
    Quantity(
        "time_s",
        "f8",
        np.nan,
        "s",
        "since the start of the run (hand-over by a camera) or the first frame of a recording; NaN: unknown",
    ),
    Quantity("field_mT", "f8", np.nan, "mT", "applied field, where known"),
    Quantity(
        "field_age_ns",
        "f8",
        np.nan,
        "ns",
        "time of exposure (camera_ns on Unix time, else received_ns) minus time of the field's read-back; NaN: none",
    ),
    Quantity("raw_crc32", "i8", -1, "", "CRC-32 of the raw frame's bytes; -1: none"),
    Quantity(
        "row_crc32", "i8", -1, "", "CRC-32 of this frame's values in the columns that the attribute 'covers' lists"
    ),
    of="frame",
)

#: Known when a frame was analysed, or will not be.
RESULT_COLUMNS: Columns = columns(
    Quantity("skipped", "u1", Skipped.PENDING, "", "why the frame was not analysed; 0: it was"),
    *FRAME_QUANTITIES.values(),
    Quantity("segmented_ns", "i8", 0, "ns", "measurement ready, Unix time"),
    Quantity("published_ns", "i8", 0, "ns", "handed to the stream, Unix time; 0: not published"),
    Quantity("drift_x_px", "f4", np.nan, "px", "how far the frame has moved right of its background; NaN: not sought"),
    Quantity("drift_y_px", "f4", np.nan, "px", "the same, down"),
    Quantity(
        "drift_quality", "f4", np.nan, "", "correlation peak of the drift; where it is too low, the last drift was held"
    ),
    Quantity("polarity", "i1", 0, "", "-1: skyrmions are dark, 1: bright; 0: not known, or the network takes both"),
    Quantity("source_crc32", "i8", -1, "", "CRC-32 of the bytes of the image that was segmented; equal to raw_crc32"),
    Quantity("mask_crc32", "i8", -1, "", "CRC-32 of the mask's bytes; -1: none"),
    Quantity(
        "objects_crc32", "i8", -1, "", "CRC-32 of the bytes of this frame's rows in the table of objects; -1: none"
    ),
    Quantity(
        "result_crc32", "i8", -1, "", "CRC-32 of this frame's values in the columns that the attribute 'covers' lists"
    ),
    of="frame",
)

#: The columns that vouch for the others of their kind.
CHECKS = ("row_crc32", "result_crc32")

#: Columns that run files of version 0.1 lack.
LATER_COLUMNS = (
    "field_age_ns", "write_ns", "raw_crc32", "row_crc32", "source_crc32", "mask_crc32", "objects_crc32", "result_crc32",
    "drift_x_px", "drift_y_px", "drift_quality", "polarity",
)  # fmt: skip

#: One row per object of a frame.
OBJECT_COLUMNS: Columns = columns(
    Quantity("frame", "u8", 0, "", "index of the frame", of="object"), *OBJECT_QUANTITIES.values()
)

ROW_DTYPE = row_dtype(OBJECT_COLUMNS)

EVENT_COLUMNS: Columns = columns(
    Quantity("time_ns", "i8", 0, "ns", "Unix time"),
    Quantity("frame", "i8", 0, "", "index of the frame it belongs to; -1: none"),
    Quantity("kind", "S32", 0, "", "for example camera_lost, fault, stopped"),
    Quantity("message", "S1000", 0, "", "one sentence, in ASCII with the escapes of JSON"),
)

EVENT_DTYPE = row_dtype(EVENT_COLUMNS)


def version(file: h5py.File) -> str:
    """The layout of a file; the very first ones do not tell it."""
    return str(file.attrs.get("layout", LAYOUT_VERSIONS[0]))


def event_row(event: Event, of_layout: str = LAYOUT_VERSION) -> NDArray[np.void]:
    """An event as a row of its table; its message is cut to the column."""
    message, most = event.message, EVENT_DTYPE["message"].itemsize
    # ASCII, because there are readers that know no other texts of fixed length, and none of variable length.
    escaped = json.dumps(message)[1:-1]
    while len(escaped) > most:
        message = message[: len(message) - 1 - (len(escaped) - most) // 6]
        escaped = json.dumps(message)[1:-1]
    stored = message.encode()[:most] if of_layout == LAYOUT_VERSIONS[0] else escaped.encode()
    kind = event.kind.encode("ascii", "replace")[: EVENT_DTYPE["kind"].itemsize]
    return np.array([(event.time_ns, event.frame, kind, stored)], EVENT_DTYPE)


def event_message(stored: bytes, of_layout: str) -> str:
    """The message of an event; files of layout 1 hold it as UTF-8."""
    text = stored.decode(errors="replace")
    with suppress(ValueError):
        return text if of_layout == LAYOUT_VERSIONS[0] else str(json.loads(f'"{text}"'))
    return text


#: Units of what a camera says of itself, by the end of its name.
UNITS = {"hz": "Hz"} | {unit: unit for unit in ("ms", "us", "ns", "s", "mT", "um", "px", "V", "A")}

#: Of an experiment: one row per step of its programme. A spread is called `..._errors` too, as NeXus does.
STEP_COLUMNS: Columns = columns(
    Quantity("number", "i4", 0, "", "of the row, counted from 0; goes on where a run was resumed"),
    Quantity("plan", "i4", 0, "", "position in the expanded programme"),
    Quantity("part", "S64", 0, "", "name of the part of the programme, or its place"),
    Quantity("kind", "S16", 0, "", "what the part does; 'after': frames after a rule stopped it"),
    Quantity("cycle", "i4", 0, "", "how many times the part began before"),
    Quantity("target_mT", "f8", 0, "mT", "field that was asked for last"),
    Quantity("field_mT", "f8", 0, "mT", "field read back, mean of the step's frames"),
    Quantity("field_mT_std", "f8", 0, "mT", "standard deviation"),
    Quantity("from_mT", "f8", 0, "mT", "field of the step before"),
    Quantity("turn_mT", "f8", 0, "mT", "where the field turned last; NaN: nowhere yet"),
    Quantity("direction", "i1", 0, "", "1: the field came from below, -1: from above, 0: it stayed"),
    Quantity("resumed", "u1", 0, "", "1: the run was killed before, and the sample's history with it"),
    Quantity("frames", "i4", 0, "", "analysed frames that are averaged"),
    Quantity("first_frame", "i8", 0, "", "of them; -1: none"),
    Quantity("last_frame", "i8", 0, "", "of them; -1: none"),
    Quantity("began_ns", "i8", 0, "ns", "Unix time"),
    Quantity("settled_ns", "i8", 0, "ns", "the field was reached, Unix time; 0: not waited for"),
    Quantity("ended_ns", "i8", 0, "ns", "Unix time"),
    Quantity("count", "f8", 0, "", "skyrmions, mean over the frames"),
    Quantity("count_std", "f8", 0, "", "standard deviation"),
    Quantity("stripes", "f8", 0, "", "mean"),
    Quantity("stripes_std", "f8", 0, "", "standard deviation"),
    Quantity("diameter_px", "f8", 0, "px", "mean over the frames of the median of the skyrmions"),
    Quantity("diameter_px_std", "f8", 0, "px", "standard deviation"),
    Quantity("area_px", "f8", 0, "px^2", "mean over the frames of the median of the skyrmions"),
    Quantity("area_px_std", "f8", 0, "px^2", "standard deviation"),
    Quantity("area_fraction", "f8", 0, "", "mean"),
    Quantity("area_fraction_std", "f8", 0, "", "standard deviation"),
    Quantity("end", "S16", 0, "", "complete; or what cut it off: stopped, aborted, fault"),
)

#: What the experiment decided, and all that it was told, in order: see `realtime_skyseg.experiment.state_machine`.
EXPERIMENT_TABLES: dict[str, Columns] = {
    "decisions": columns(
        Quantity("time_ns", "i8", 0, "ns", "Unix time"),
        Quantity("frame", "i8", 0, "", "index of the newest frame that was used; -1: none"),
        Quantity("plan", "i4", 0, "", "position in the expanded programme"),
        Quantity("rule", "S32", 0, "", "name of the rule"),
        Quantity("action", "S16", 0, "", "what it asked for"),
        Quantity("old_mT", "f8", 0, "mT", "field that was set before"),
        Quantity("new_mT", "f8", 0, "mT", "field that was asked for"),
        Quantity("acted", "u1", 0, "", "1 if it was carried out"),
        Quantity("reason", "S400", 0, "", "why, in words"),
        Quantity("inputs", "S400", 0, "", "the numbers it was decided from, JSON"),
    ),
    "inputs": columns(
        Quantity("told", "u1", 0, "", "what the experiment was told, a code of `experiment.state_machine`"),
        Quantity("time_ns", "i8", 0, "ns", "Unix time"),
        Quantity("now_s", "f8", 0, "s", "the clock of the experiment"),
        Quantity("reading_ns", "i8", 0, "ns", "Unix time of the read-back"),
        Quantity("field_mT", "f8", 0, "mT", "field read back"),
        Quantity("set_mT", "f8", 0, "mT", "field that was set"),
        Quantity("settled", "u1", 0, "", "1 if the field was reached"),
        Quantity("frame", "i8", 0, "", "index of the frame; -1: none"),
        Quantity("taken_s", "f8", 0, "s", "when it was exposed, on the clock of the experiment"),
        Quantity("rule", "i1", 0, "", "number of the rule that answered; -1: none"),
        Quantity("answer", "f8", 0, "", "what it answered"),
        Quantity("failed", "u1", 0, "", "1 if it failed"),
    ),
    "steps": STEP_COLUMNS,
}

#: Characters of the summary's JSON at most.
SUMMARY_LENGTH = 32_768
