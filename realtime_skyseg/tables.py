"""The numbers of a run as tables: one row per frame, object, track or step; to CSV, Parquet, pandas or polars."""

import csv
import html
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.afterwards import Progress, measure_again
from realtime_skyseg.analysers.motion import diffusion
from realtime_skyseg.analysers.selection import select
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.quantities import Columns, Quantity, on_sample, unit_name
from realtime_skyseg.records import FRAME_QUANTITIES, OBJECT_DTYPE, OBJECT_QUANTITIES, Kind, Objects, Skipped
from realtime_skyseg.storage import Run, layout

#: Rows of a table that is shown.
_SHOWN = 8

_TRACKED = ("track", "parent_track", "absorbed_track")


@dataclass(frozen=True)
class Table:
    """Columns of equal length, whose names end in their units.

    Attributes:
        columns: name -> values; texts as Python's.
        meanings: name -> what it is, in a sentence.
    """

    columns: dict[str, NDArray[Any]]
    meanings: dict[str, str]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __repr__(self) -> str:
        return f"<Table of {len(self)} rows: {', '.join(self.columns)}>"

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`; pandas has to be installed."""
        import pandas as pd

        return pd.DataFrame(self.columns)

    def to_polars(self) -> Any:
        """A `polars.DataFrame`; polars has to be installed."""
        import polars as pl

        return pl.DataFrame({name: pl.Series(name, values.tolist()) if values.dtype == object else values
                             for name, values in self.columns.items()})  # fmt: skip

    def to_csv(self, out: Path | TextIO) -> None:
        """Write it as CSV: numbers with a point, nothing where there is none, a comma between two columns.

        Raises `SettingsError` if the file cannot be written.
        """
        columns = [_cells(values) for values in self.columns.values()]
        try:
            with out.open("w", newline="", encoding="utf-8") if isinstance(out, Path) else nullcontext(out) as file:
                lines = csv.writer(file)
                lines.writerow(self.columns)
                lines.writerows(zip(*columns, strict=True))
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise SettingsError(f"--out: '{out}' cannot be written: {error.strerror}") from error

    def to_parquet(self, path: Path) -> None:
        """Write it as Parquet, with the meaning of each column; pyarrow has to be installed.

        Raises `SettingsError` if it is not, or the file cannot be written.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise SettingsError(
                f"--out: '{path}' needs pyarrow; allowed: a name that ends in .csv, or first "
                "`pip install realtime_skyseg[parquet]`"
            ) from error
        arrays = {name: pa.array(values.tolist() if values.dtype == object else np.ascontiguousarray(values))
                  for name, values in self.columns.items()}  # fmt: skip
        fields = [pa.field(name, array.type, metadata={"description": self.meanings.get(name, "")})
                  for name, array in arrays.items()]  # fmt: skip
        try:
            pq.write_table(pa.table(list(arrays.values()), schema=pa.schema(fields)), path)
        except OSError as error:
            raise SettingsError(f"--out: '{path}' cannot be written: {error}") from error

    def write(self, path: Path) -> None:
        """As CSV or Parquet, by the name's end. Raises `SettingsError`."""
        if path.suffix.lower() in (".parquet", ".pq"):
            self.to_parquet(path)
        else:
            self.to_csv(path)

    def _repr_html_(self) -> str:
        """The first rows, for a notebook; a column's meaning stands where the pointer rests on its name."""
        head = "".join(
            f'<th title="{html.escape(self.meanings.get(name, ""))}">{html.escape(name)}</th>' for name in self.columns
        )
        shown = [_cells(values[:_SHOWN]) for values in self.columns.values()]
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in zip(*shown, strict=True)
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p>{len(self)} rows</p>"


def frame_table(
    run: Run,
    every_column: bool = False,
    analysers: Mapping[str, Mapping[str, Any] | None] | None = None,
    progress: Progress | None = None,
) -> Table:
    """One row per frame: its name, time and field, what was counted, and what analysers found.

    Args:
        run: open.
        every_column: clocks, checks and how it was stored, too.
        analysers: these are asked now, see `measure_again`; absent: what stands in the file.
        progress: of these.
    """
    table, declared = run.table, dict(layout.FRAME_COLUMNS | layout.RESULT_COLUMNS | run.quantities)
    shown = list(declared) if every_column else ["time_s", "field_mT", "skipped", *FRAME_QUANTITIES, *run.quantities]
    if not every_column:
        shown += [name for name in ("drift_x_px", "drift_y_px") if np.isfinite(table[name]).any()]
    columns = {name: (declared[name], table[name]) for name in shown}
    reasons = {int(why): "" if why is Skipped.NOT_SKIPPED else why.name.lower() for why in Skipped}
    why = np.array([reasons.get(number, str(number)) for number in table["skipped"].tolist()], object)
    columns["skipped"] = Quantity("skipped", "O", "", "", "why it was not analysed; empty: it was"), why
    size = run.pixel_size_um
    if size is not None:
        area = table.shape[0] and run.raw.shape[1] * run.raw.shape[2] * size**2
        density = Quantity("density", "f8", np.nan, "1/um^2", "skyrmions per area of the whole frame")
        columns["density"] = density, table["count"] / area if len(table) else table["count"]
    if analysers:
        rows, _, found = measure_again(run, analysers, progress)
        for name in (rows.dtype.names or ())[1:]:
            values = np.full(len(table), found[name].fill, rows.dtype[name])
            values[rows["frame"]] = rows[name]
            columns[name] = found[name], values
    first = {"frame": (Quantity("frame", "i8", 0, "", "index in the run"), np.arange(len(table)))}
    return _table(first | _names_of(run, np.arange(len(table))) | columns, size)


def object_table(
    run: Run,
    limits: Mapping[str, tuple[float | None, float | None]] | None = None,
    border: bool = True,
    analysers: Mapping[str, Mapping[str, Any] | None] | None = None,
    progress: Progress | None = None,
) -> Table:
    """One row per object: its frame with time and field, and all that is known of it.

    Args:
        run: open.
        limits: lowest and highest value by the name of a quantity; what lies outside is left out.
        border: False leaves out what touches the border of the image.
        analysers: these are asked now, see `measure_again`; absent: what stands in the file.
        progress: of these.

    Raises:
        SettingsError: a name in `limits` is none of the quantities.
    """
    objects, declared = objects_of(run, analysers, progress)
    try:
        objects = objects[select(objects, limits or {}, border)]
    except ValueError as error:
        raise SettingsError(str(error)) from error
    table, frame = run.table, objects["frame"]
    columns: dict[str, tuple[Quantity, NDArray[Any]]] = {
        "frame": (Quantity("frame", "i8", 0, "", "index in the run"), frame)
    }
    columns |= _names_of(run, frame)
    columns |= {name: (layout.FRAME_COLUMNS[name], table[name][frame]) for name in ("time_s", "field_mT")}
    columns |= {
        name: (declared[name], objects[name]) for name in objects.dtype.names or () if name not in ("frame", "kind")
    }
    kinds = np.array([kind.name.lower() for kind in Kind], object)[objects["kind"]]
    columns["kind"] = Quantity("kind", "O", "", "", "skyrmion or stripe"), kinds
    return _table(columns, run.pixel_size_um)


def objects_as_table(objects: Objects) -> Table:
    """The objects of one image, one per row."""
    return _table({name: (OBJECT_QUANTITIES[name], objects[name]) for name in OBJECT_DTYPE.names or ()}, None)


def objects_of(
    run: Run, analysers: Mapping[str, Mapping[str, Any] | None] | None = None, progress: Progress | None = None
) -> tuple[NDArray[np.void], Columns]:
    """All objects of a run with their columns, as stored or as analysers find now; `frame` is one of them."""
    if analysers:
        _, objects, declared = measure_again(run, analysers, progress)
        return objects, declared
    return run.objects(), run.object_quantities


def tracked_objects(run: Run, progress: Progress | None = None) -> tuple[NDArray[np.void], Columns]:
    """As `objects_of`, with the columns of the analyser `tracks`: those in the file, else as it finds now."""
    if set(_TRACKED) <= set(run.object_quantities):
        return objects_of(run)
    return objects_of(run, {"tracks": {}}, progress)


def track_table(run: Run, progress: Progress | None = None) -> Table:
    """One row per track: from where to where and when, how it ended, and how it moved.

    Positions without the drift that all share are what moves; times are those of the frames.
    """
    objects, _ = tracked_objects(run, progress)
    objects = objects[objects["track"] >= 0]
    points = without_drift(objects)
    order = np.lexsort((objects["frame"], objects["track"]))
    objects, points = objects[order], points[order]
    numbers, first = np.unique(objects["track"], return_index=True)
    n = np.diff([*first, len(objects)])
    last = first + n - 1
    time = run.table["time_s"]
    begin, end = objects["frame"][first], objects["frame"][last]
    moved = points[last] - points[first] if len(points) else np.zeros((0, 2))
    found = diffusion(objects["track"], objects["frame"], points)
    constant, error = np.full((2, len(numbers)), np.nan)
    place = np.searchsorted(numbers, found.tracks)
    step_s = frame_time_s(run)
    constant[place], error[place] = found.of_track / step_s, found.error_of_track / step_s
    absorbed = dict(zip(objects["absorbed_track"].tolist(), objects["track"].tolist(), strict=True))
    last_frame = int(objects["frame"].max()) if len(objects) else 0
    ended = [
        "end of the run" if stop == last_frame else "merged" if number in absorbed else "lost"
        for number, stop in zip(numbers.tolist(), end.tolist(), strict=True)
    ]

    def one(name: str, unit: str, meaning: str, values: NDArray[Any]) -> tuple[str, tuple[Quantity, NDArray[Any]]]:
        return name, (Quantity(name, values.dtype, 0, unit, meaning), values)

    columns = dict((
        one("track", "", "its number", numbers),
        one("first_frame", "", "index of the first frame that shows it", begin),
        one("last_frame", "", "index of the last", end),
        one("frames", "", "that show it", n),
        one("begin_s", "s", "time of the first", time[begin]),
        one("end_s", "s", "time of the last", time[end]),
        one("parent_track", "", "what it split from; -1: none", objects["parent_track"][first]),
        one("ended", "", "merged, lost, or end of the run", np.array(ended, object)),
        one("merged_into_track", "", "-1: it was not, or into a stripe",
            np.array([absorbed.get(number, -1) for number in numbers.tolist()], np.int64)),
        one("x", "px", "of the first frame", objects["x"][first]),
        one("y", "px", "of the first frame", objects["y"][first]),
        one("displacement", "px", "from the first to the last frame, without the drift", np.hypot(*moved.T)),
        one("velocity", "px/s", "displacement / time between both",
            np.hypot(*moved.T) / _positive(time[end] - time[begin])),
        one("mean_diameter", "px", "over its frames", np.bincount(np.repeat(np.arange(len(n)), n), objects["diameter"],
                                                                 minlength=len(n)) / np.maximum(n, 1)),
        one("diffusion", "px^2/s", "as of docs/quantities.md; NaN: too short", constant),
        one("diffusion_error", "px^2/s", "one standard error", error),
    ))  # fmt: skip
    return _table(columns, run.pixel_size_um)


def step_table(run: Run) -> Table:
    """One row per step of the field programme.

    Raises:
        SettingsError: the run had none.
    """
    experiment = run.experiment
    if experiment is None:
        raise SettingsError(f"--steps: run file '{run.path}' has no field programme")
    rows = experiment["steps"]
    columns = {name: (layout.STEP_COLUMNS.get(name) or Quantity(name, "f8"), rows[name]) for name in rows.dtype.names}
    return _table(columns, run.pixel_size_um)


def event_table(run: Run) -> Table:
    """One row per event of a run: when, at which frame and field, of what kind, and its sentence."""
    events, table = run.events, run.table
    frames = np.array([event["frame"] for event in events], np.int64)
    inside = (frames >= 0) & (frames < len(table))
    time_s, field = np.full(len(events), np.nan), np.full(len(events), np.nan)
    time_s[inside], field[inside] = table["time_s"][frames[inside]], table["field_mT"][frames[inside]]

    def texts(name: str) -> NDArray[Any]:
        return np.array([event[name] for event in events], object)

    columns = {
        "time_ns": (
            Quantity("time_ns", "i8", 0, "ns", "Unix time"),
            np.array([e["time_ns"] for e in events], np.int64),
        ),
        "frame": (Quantity("frame", "i8", -1, "", "index of the frame it belongs to; -1: none"), frames),
        "time_s": (Quantity("time_s", "f8", np.nan, "s", "of that frame"), time_s),
        "field_mT": (Quantity("field_mT", "f8", np.nan, "mT", "at that frame"), field),
        "kind": (Quantity("kind", object, "", "", "a word for what happened"), texts("kind")),
        "message": (Quantity("message", object, "", "", "a sentence"), texts("message")),
    }
    return _table(columns, None)


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > 0, values, np.nan)


def without_drift(objects: NDArray[np.void]) -> NDArray[np.float64]:
    """(n, 2) positions of tracked objects, moved back by the steps that all share.

    Where the objects have no `step_x_px`, the positions are as they are.
    """
    points = np.stack([objects["x"], objects["y"]], 1).astype(np.float64)
    if not len(objects) or "step_x_px" not in (objects.dtype.names or ()):
        return points
    # What a step of one's own leaves of the way between two frames is what all share.
    order = np.lexsort((objects["frame"], objects["track"]))
    here, there = order[:-1], order[1:]
    frames = np.unique(objects["frame"])
    row = np.searchsorted(frames, objects["frame"])
    follows = (objects["track"][here] == objects["track"][there]) & (objects["track"][here] >= 0)
    follows &= row[there] == row[here] + 1
    here, there = here[follows], there[follows]
    own = np.stack([objects["step_x_px"][there], objects["step_y_px"][there]], 1).astype(np.float64)
    shared = points[there] - points[here] - own
    total = np.zeros((len(frames), 2))
    for frame in range(1, len(frames)):
        mine = shared[row[there] == frame]
        mine = mine[np.isfinite(mine[:, 0])]
        total[frame] = np.median(mine, 0) if len(mine) else 0.0
    return points - np.cumsum(total, 0)[row]


def diffusion_of(run: Run) -> tuple[float, float, str]:
    """The diffusion constant of all skyrmions of a run without what all share, its standard error, and their unit.

    um^2/s where the run knows its size of a pixel, else px^2/s; per frame where it knows no times. NaN where there are
    too few skyrmions to follow. See `analysers.motion.diffusion`.
    """
    objects, _ = tracked_objects(run)
    found = diffusion(objects["track"], objects["frame"], without_drift(objects))
    size, time_s = run.pixel_size_um, frame_time_s(run)
    timed = time_s > 0
    scale = (1.0 if size is None else size**2) / (time_s if timed else 1.0)
    unit = f"{'px' if size is None else 'um'}^2/{'s' if timed else 'frame'}"
    return found.constant * scale, found.error * scale, unit


def frame_time_s(run: Run) -> float:
    """Median time between two frames that follow each other, skipped ones counted in; NaN where it is not known."""
    times = run.table["time_s"]
    known = np.flatnonzero(np.isfinite(times))
    return float(np.median(np.diff(times[known]) / np.diff(known))) if len(known) > 1 else math.nan


def _table(columns: Mapping[str, tuple[Quantity, NDArray[Any]]], size_um: float | None) -> Table:
    """With units in the names, lengths on the sample beside those in pixels."""
    named: dict[str, NDArray[Any]] = {}
    meanings = {}

    def add(quantity: Quantity, values: NDArray[Any]) -> None:
        end = unit_name(quantity.unit)
        name = quantity.name
        # `diameter_px_std` has its unit inside.
        if end and not re.search(rf"_{re.escape(end)}(_std)?$", name) and not (end == "px2" and "_px" in name):
            name = f"{name}_{end}"
        named[name], meanings[name] = values, quantity.meaning

    for quantity, values in columns.values():
        if values.dtype.kind == "S":
            values = np.array([text.decode(errors="replace") for text in values.tolist()], object)
        add(quantity, values)
        if size_um is not None and (there := on_sample(quantity, size_um)):
            add(there[0], values * values.dtype.type(there[1]) if values.dtype.kind == "f" else values * there[1])
    return Table(named, meanings)


def _names_of(run: Run, frames: NDArray[np.integer]) -> dict[str, tuple[Quantity, NDArray[Any]]]:
    names = run.frame_names
    if names is None:
        return {}
    texts = np.array([names[frame] for frame in frames.tolist()], object)
    return {"name": (Quantity("name", "O", "", "", "of the image"), texts)}


def _cells(values: NDArray[Any]) -> list[Any]:
    """As spreadsheets take them: nothing for NaN, whole numbers without a point, no more digits than tell it apart."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    return ["" if text == "nan" else text.removesuffix(".0") for text in values.astype(str).tolist()]
