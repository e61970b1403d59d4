"""Results for the frames of a finished run that were recorded but not analysed, in a copy of its file."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from realtime_skyseg import json_text
from realtime_skyseg.errors import RunFileError, SettingsError
from realtime_skyseg.records import Counters, Event, Result, Skipped
from realtime_skyseg.storage import layout, tables
from realtime_skyseg.storage.chunk import pack
from realtime_skyseg.storage.collected import result_row
from realtime_skyseg.storage.reader import row_check


class RunFiller:
    """A copy of a finished run file that takes the results it lacks. The original is not touched.

    Args:
        source: the finished run file.
        path: of the copy, which has the suffix `.partial` until `close`; never overwritten.

    Raises:
        SettingsError: the copy exists.
        RunFileError: it cannot be written.
    """

    def __init__(self, source: Path, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._volumes = [path.with_name(path.stem + suffix) for suffix in layout.VOLUMES]
        for existing in (self.path, self.partial, *self._volumes):
            if existing.exists():
                raise SettingsError(f"'{existing}' exists already and is not overwritten; allowed: another --out")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.partial)
            for folder in self._volumes:
                if (beside := source.with_name(folder.name)).is_dir():
                    shutil.copytree(beside, folder)
            self._file = h5py.File(self.partial, "r+", libver=("v110", "v110"))
        except OSError as error:
            self.partial.unlink(missing_ok=True)
            raise RunFileError(f"'{self.partial}' cannot be written: {error}") from error
        self._frames = self._file[layout.FRAMES]
        self._columns = {name: column for name, column in self._frames.items() if name not in layout.FRAME_COLUMNS}
        n = len(self._frames["written"])
        for column in self._columns.values():
            if len(column) < n:
                column.resize(n, axis=0)
                column[:] = np.where(np.arange(n) < n, column[:], column.fillvalue)
        self._objects = [tables.read(self._file[layout.OBJECTS], layout.OBJECT_COLUMNS)]
        self.filled = 0

    def add_result(self, result: Result) -> None:
        """Write a frame's mask, numbers and objects, in any order."""
        index = result.frame.index
        chunk = pack(result.segmentation.mask)
        values, rows = result_row(result, chunk.crc32)
        masks = self._file[layout.MASK]
        try:
            if len(masks) <= index and not masks.is_virtual:
                masks.resize(index + 1, axis=0)
            masks[index] = result.segmentation.mask  # through HDF5's filters, which differ in files of older versions
            for name, column in self._columns.items():
                if name in values:
                    column[index] = values[name]
            check = self._columns.get("result_crc32")
            if check is not None:
                row = {name: column[index] for name, column in self._columns.items()}
                check[index] = row_check(row, check)
        except (OSError, RuntimeError) as error:
            raise RunFileError(f"'{self.partial}' cannot take the result of frame {index}: {error}") from error
        self._objects.append(rows)
        self.filled += 1

    def close(self, event: Event) -> dict[str, Any]:
        """Bring objects and counters in order, note the event, and give the copy its name; returns its summary."""
        try:
            with self._file as file:
                rows = np.concatenate(self._objects)
                rows = rows[np.argsort(rows["frame"], kind="stable")]
                tables.replace(file[layout.OBJECTS], layout.OBJECT_COLUMNS, rows)
                tables.append(file[layout.EVENTS], layout.event_row(event, layout.version(file)))
                summary = self._summary()
                file[layout.SUMMARY][()] = json.dumps(summary).encode()[: layout.SUMMARY_LENGTH]
            self.partial.rename(self.path)
        except (OSError, RuntimeError) as error:
            raise RunFileError(f"'{self.partial}' cannot be finished: {error}") from error
        return summary

    def abandon(self) -> None:
        """Close and remove what is not finished. Safe to call after `close`."""
        self._file.close()
        if self.partial.exists():
            self.partial.unlink()
            for folder in self._volumes:
                shutil.rmtree(folder, ignore_errors=True)

    def _summary(self) -> dict[str, Any]:
        """That of the run, with what was analysed afterwards counted as analysed."""
        text = self._file[layout.SUMMARY][()].decode()
        summary: dict[str, Any] = json_text.load(text) if text else {"frames": Counters().as_dict()}
        skipped = self._frames["skipped"][()]
        frames = dict(summary["frames"])
        frames["analysed"] = int((skipped == Skipped.NOT_SKIPPED).sum())
        causes, counts = np.unique(skipped[skipped != Skipped.NOT_SKIPPED], return_counts=True)
        frames["not_analysed"] = {
            Skipped(int(cause)).name.lower(): int(count) for cause, count in zip(causes, counts, strict=True)
        }
        rest = frames.get("received", len(skipped)) - len(skipped)  # frames after the last row
        if rest > 0:
            frames["not_analysed"]["pending"] = frames["not_analysed"].get("pending", 0) + rest
        return summary | {"frames": frames, "analysed_afterwards": self.filled, "filled_ns": time.time_ns()}
