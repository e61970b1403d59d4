"""Reading a run file: finished, being written, or left behind by a kill."""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
import yaml

import realtime_skyseg.hdf5_filters  # noqa: F401  files are read with them
from realtime_skyseg import json_text, yaml_text
from realtime_skyseg.errors import RunFileError, RunFileUnusableError
from realtime_skyseg.quantities import Columns, Of, Quantity, blank_rows, columns
from realtime_skyseg.records import Background, Objects, Skipped, printable
from realtime_skyseg.storage import layout, tables, trust


class Run:
    """An open run file. Close it, or use it as a context manager.

    Attributes:
        raw: every raw frame, (frame, row, column); read slices of it as of an array.
        mask: class per pixel, uint8, (frame, row, column); 255 where a frame was not analysed.
        state: "finished", or "unfinished" for a file that is being written or was left behind by a kill.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file, self.state = _open(self.path)
        self._layout = layout.version(self._file)
        if self._layout not in layout.LAYOUT_VERSIONS:
            self.close()
            raise RunFileUnusableError(
                f"'{path}' has the layout {printable(self._layout)[:40]!r}; allowed: "
                f"{' or '.join(layout.LAYOUT_VERSIONS)}, or a newer version of this product"
            )
        try:
            trust.check(self._file, self.path)
        except RunFileError as error:
            self.close()
            raise RunFileUnusableError(str(error)) from error
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            self.close()
            raise RunFileUnusableError(
                f"'{path}' is damaged: {printable(error)[:200]}; allowed: first `skyseg recover {path}`"
            ) from error
        try:
            self.raw: h5py.Dataset = self._file[layout.RAW]
            self.mask: h5py.Dataset = self._file[layout.MASK]
            frames = self._file[layout.FRAMES]
            known = layout.FRAME_COLUMNS | layout.RESULT_COLUMNS
            own = [name for name in known if name in frames or name not in layout.LATER_COLUMNS]
            self._columns = {name: frames[name] for name in [*own, *(name for name in frames if name not in known)]}
            for name, column in self._columns.items():
                if column.ndim != 1 or column.dtype.kind not in "iufb":
                    raise KeyError(f"{layout.FRAMES}/{name} of one number per frame")
        except KeyError as error:
            self.close()
            raise RunFileUnusableError(f"'{path}' is not a run file of this product: it has no {error}") from error

    @property
    def n_frames(self) -> int:
        """Frames in the file whose numbers are known."""
        return min(len(self.raw), len(self._columns["written"]))

    @property
    def table(self) -> np.ndarray:
        """One row per frame: the names of `layout.FRAME_COLUMNS` and `layout.RESULT_COLUMNS`, and of `quantities`."""
        n = self.n_frames
        table = blank_rows(layout.FRAME_COLUMNS | layout.RESULT_COLUMNS | self.quantities, n)
        for name, column in self._columns.items():
            values = column[:n]
            table[name][: len(values)] = _count(values) if name in ("count", "stripes") else values
        return table

    @property
    def quantities(self) -> Columns:
        """What analysers found in each frame, beside what every run has."""
        known = layout.FRAME_COLUMNS | layout.RESULT_COLUMNS
        return columns(*(_quantity(name, column) for name, column in self._columns.items() if name not in known))

    @property
    def analysers(self) -> list[str]:
        """Names of those that found something now and then, for `analyser`."""
        return list(self._file.get(layout.ANALYSERS, ()))

    def analyser(self, name: str) -> tuple[np.ndarray, dict[str, h5py.Dataset]]:
        """What an analyser found now and then: a table with the column `frame`, and its maps (row of that table, y, x).

        Raises `RunFileUnusableError` if there is no such analyser in this run.
        """
        group = self._file.get(f"{layout.ANALYSERS}/{name}")
        if group is None:
            known = ", ".join(self.analysers) or "none"
            raise RunFileUnusableError(f"run file '{self.path}' has nothing of analyser '{name}'; allowed: {known}")
        rows = tables.read(group, {})
        maps = {key: item for key, item in group.items() if key not in (rows.dtype.names or ())}
        return rows, maps

    def objects(self, frame: int | None = None) -> Objects:
        """The objects of one frame, or of all: rows with the frame's index and the columns of `OBJECT_DTYPE`."""
        stored = self._file[layout.OBJECTS]
        if frame is None:
            return tables.read(stored, layout.OBJECT_COLUMNS)
        # Rows stand in the order of their frames, and a frame has as many as it has skyrmions and stripes.
        n_rows = np.zeros(min(frame + 1, len(self._columns["count"])), np.int64)
        for name in ("count", "stripes"):
            n_rows += np.maximum(np.nan_to_num(self._columns[name][: frame + 1]), 0).astype(np.int64)
        return tables.read(stored, layout.OBJECT_COLUMNS, int(n_rows[:frame].sum()), int(n_rows.sum()))

    @property
    def object_quantities(self) -> Columns:
        """The columns of `objects`: those of `layout.OBJECT_COLUMNS` and what analysers found of each object."""
        stored = self._file[layout.OBJECTS]
        known = layout.OBJECT_COLUMNS
        if isinstance(stored, h5py.Dataset):
            return known
        return {
            name: known.get(name) or _quantity(name, stored[name], "object") for name in tables.names(stored, known)
        }

    def problem(self, frame: int) -> str:
        """What is wrong with a frame, its row, or its result by the checks in the file, in one sentence; "": nothing.

        Files of the first versions have no checks, so that little can be wrong with them.
        """
        row = {name: column[frame] for name, column in self._columns.items() if frame < len(column)}
        for check, what in zip(layout.CHECKS, ("frames", "results"), strict=True):
            if row.get(check, -1) >= 0 and row[check] != row_check(row, self._columns[check]):
                return f"its row of {what} is damaged"
        if row.get("written"):
            try:
                image = self.raw[frame]
            except OSError as error:
                return f"its raw frame cannot be read: {error}"
            if row.get("raw_crc32", -1) not in (-1, _crc32(image)):
                return "its raw frame is not the one that was written"
        if row.get("skipped", Skipped.PENDING) == Skipped.NOT_SKIPPED:
            if (
                row.get("written")
                and -1 not in (pair := (row.get("raw_crc32", -1), row.get("source_crc32", -1)))
                and pair[0] != pair[1]
            ):
                return "its mask was made from another image"
            try:
                mask = self.mask[frame]
            except OSError as error:
                return f"its mask cannot be read: {error}"
            if row.get("mask_crc32", -1) not in (-1, _crc32(mask)):
                return "its mask is not the one that was written"
            if row.get("objects_crc32", -1) not in (-1, zlib.crc32(self.objects(frame).tobytes())):
                return "its objects are not those that were written"
        return ""

    @property
    def pixel_size_um(self) -> float | None:
        """Side of a pixel at the sample, where the settings said."""
        stored = self._file.get("entry/instrument/detector/x_pixel_size")
        return None if stored is None else float(stored[()])

    @property
    def frame_names(self) -> list[str] | None:
        """Names of the images of a recording, one per frame; None where they have none."""
        stored = self._file.get(layout.FRAME_NAMES)
        if stored is None or not len(stored):
            return None
        names = [name.decode(errors="replace") for name in stored[()]]
        numbers = self._columns["number"][: self.n_frames]
        return [names[number % len(names)] if number >= 0 else "" for number in numbers]

    @property
    def experiment(self) -> dict[str, Any] | None:
        """The field programme's outcome; None where the run had none.

        `steps`, `decisions`, `inputs`: the tables of `layout.EXPERIMENT_TABLES`, texts as bytes; all else: texts.
        """
        group = self._file.get(layout.EXPERIMENT)
        if group is None:
            return None
        found = {name: tables.read(group[name], declared) for name, declared in layout.EXPERIMENT_TABLES.items()}
        texts = {name: self._text(group[name].name) for name in group if name not in found}
        return {**found, **texts}

    def backgrounds(self, start: int = 0) -> Iterator[Background]:
        """The backgrounds of the preparation from a number on, in the order in which they apply; -1: the last only."""
        stored = self._file.get(layout.PREPARATION)
        n = min(len(stored[name]) for name in ("background", "first_frame", "source")) if stored else 0
        for number in range(n)[start:] if n else ():
            image, first = stored["background"][number], int(stored["first_frame"][number])
            yield Background(image, first, stored["source"][number].decode(errors="replace"))

    @property
    def events(self) -> list[dict[str, Any]]:
        """What happened during the run, in order: time_ns, frame, kind, message."""
        return [
            {
                "time_ns": int(row["time_ns"]),
                "frame": int(row["frame"]),
                "kind": row["kind"].decode(errors="replace"),
                "message": layout.event_message(row["message"], self._layout),
            }
            for row in tables.read(self._file[layout.EVENTS], layout.EVENT_COLUMNS)
        ]

    @property
    def config(self) -> dict[str, Any]:
        """The full settings of the run, as a tree."""
        try:
            tree = yaml_text.load(self._text(layout.CONFIGURATION))
        except (yaml.YAMLError, KeyError) as error:
            raise RunFileUnusableError(f"run file '{self.path}': its settings cannot be read: {error}") from error
        if not isinstance(tree, dict):
            raise RunFileUnusableError(f"run file '{self.path}': its settings are no mapping of keys to values")
        return tree

    @property
    def summary(self) -> dict[str, Any] | None:
        """Counters and latencies, as printed at the end; None for an unfinished file."""
        text = self._text(layout.SUMMARY)
        try:
            summary = json_text.load(text) if text else None
        except ValueError as error:
            raise RunFileUnusableError(f"run file '{self.path}': its summary cannot be read") from error
        return summary if isinstance(summary, dict) else None

    @property
    def provenance(self) -> dict[str, str]:
        """Model, engine, versions, host, commit and clocks, as texts."""
        process, origin = self._file["entry/segmentation"], self._file[layout.PROVENANCE]
        names = ("model", "weights_sha256", "engine", "device", "precision")
        start = {name: self._text(f"entry/{name}") for name in ("title", "run_id", "start_time", "end_time")}
        used = {name: self._text(process[name].name) for name in names}
        return {**start, **used, **{name: self._text(origin[name].name) for name in origin}}

    @property
    def exit_status(self) -> int:
        """What the run's command returned; -1 for an unfinished file."""
        return int(self._file["entry/exit_status"][()])

    def refresh(self) -> None:
        """See what was written since, where the file is being written."""
        if self.state == "unfinished":
            for dataset in (
                self.raw,
                self.mask,
                *self._columns.values(),
                *tables.datasets(self._file[layout.OBJECTS], layout.OBJECT_COLUMNS),
                *tables.datasets(self._file[layout.EVENTS], layout.EVENT_COLUMNS),
                *(self._file[layout.PREPARATION].values() if layout.PREPARATION in self._file else ()),
            ):
                dataset.refresh()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _text(self, path: str) -> str:
        value = self._file[path][()]
        return (value.decode() if isinstance(value, bytes) else str(value)).strip()


def _quantity(name: str, column: h5py.Dataset, of: Of = "frame") -> Quantity:
    """A column as it was declared."""
    unit, meaning = (str(column.attrs.get(key, "")) for key in ("units", "description"))
    return Quantity(name, column.dtype, column.fillvalue, unit, meaning, of)


def _crc32(image: np.ndarray) -> int:
    """As `chunk.crc32` gives it, without the package that is quicker."""
    return zlib.crc32(np.ascontiguousarray(image).data)


def _count(values: Any) -> np.ndarray:
    """Counts, NaN where there is none: the first files of version 0.1 have -1."""
    counts = np.asarray(values, np.float64)
    return np.where(counts < 0, np.nan, counts)


def row_check(row: Mapping[str, Any], column: h5py.Dataset) -> int:
    """The CRC-32 that a column of checks should hold for a row with these values."""
    covers = json_text.load(column.attrs["covers"])
    group = column.parent
    return zlib.crc32(b"".join(np.asarray(row[name], group[name].dtype).tobytes() for name in covers))


def open_run(path: str | Path) -> Run:
    """Open a run file that is finished, being written, or was left behind by a kill.

    Raises:
        RunFileUnusableError: there is no such file, or it is not a run file.
    """
    return Run(path)


def _open(path: Path) -> tuple[h5py.File, Literal["finished", "unfinished"]]:
    if not path.is_file():
        raise RunFileUnusableError(f"run file '{path}' does not exist")
    try:
        return h5py.File(path, "r"), "unfinished" if path.suffix == ".partial" else "finished"
    except OSError as plain:
        # A file with a writer, or whose writer was killed, opens in the reader's mode only.
        try:
            return h5py.File(path, "r", swmr=True), "unfinished"
        except OSError:
            raise RunFileUnusableError(f"'{path}' cannot be opened as a run file: {plain}") from plain
