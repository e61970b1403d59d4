"""What a run file takes frame by frame, collected in memory and written together."""

import functools
import zlib
from collections import deque
from typing import Any

import h5py
import numpy as np

from realtime_skyseg.analysers import RunningAnalyser
from realtime_skyseg.quantities import Columns, Quantity, blank_rows, columns, row_dtype
from realtime_skyseg.records import FRAME_QUANTITIES, Result, Skipped
from realtime_skyseg.storage import layout, tables
from realtime_skyseg.storage.chunk import pack
from realtime_skyseg.storage.columns import Column, DirectDataset, TableWriter
from realtime_skyseg.storage.create import new_stack


class AnalyserTable:
    """The table and the maps of an analyser in `layout.ANALYSERS`: of one beside the frames' path all that it finds, of
    one in the path its maps.
    """

    def __init__(self, analyser: RunningAnalyser) -> None:
        self.in_path = analyser.pace == "every_frame"
        self.maps: dict[str, Quantity] = columns(*analyser.of("map"))
        frame = Quantity("frame", "i8", -1, "", "index of the frame that it looked at")
        self._columns: Columns = columns(frame, *([] if self.in_path else analyser.of("frame")))
        self._name = analyser.name
        self._waiting: deque[dict[str, np.ndarray]] = deque()
        self._shapes: dict[str, tuple[int, int]] = {}
        self._stored = 0

    @property
    def wanted(self) -> bool:
        """It finds something that has no place elsewhere."""
        return bool(self.maps) or len(self._columns) > 1

    def create(self, group: h5py.Group, shape: tuple[int, int]) -> None:
        """Make its table and the stacks of its maps."""
        table = tables.create(group, self._name, self._columns)
        for name, quantity in self.maps.items():
            self._shapes[name] = quantity.map_shape(shape)
            stack = new_stack(table, name, self._shapes[name], np.dtype(quantity.dtype), quantity.fill)
            stack.attrs["long_name"], stack.attrs["description"] = quantity.label, quantity.meaning
            stack.attrs["cell_px"] = quantity.cell_px
            if quantity.unit:
                stack.attrs["units"] = quantity.unit

    def open(self, file: h5py.File) -> None:
        """Be ready to write."""
        place = f"{layout.ANALYSERS}/{self._name}"
        self._table = TableWriter(file, place, self._columns)
        self._stacks = {name: DirectDataset(file, f"{place}/{name}") for name in self.maps}

    def add(self, frame: int, values: dict[str, float], maps: dict[str, np.ndarray]) -> None:
        """Take a row."""
        row = blank_rows(self._columns, 1)
        for name, value in ({"frame": frame} | values).items():
            row[name] = value
        self._table.add(row)
        whole = {}
        for name, quantity in self.maps.items():
            blank = np.full(self._shapes[name], quantity.fill, quantity.dtype)
            whole[name] = maps.get(name, blank)
        self._waiting.append(whole)

    def write(self) -> None:
        """Safe to call again where it failed."""
        while self._waiting:
            for name, image in self._waiting[0].items():
                self._stacks[name].put(self._stored, pack(image).data, self._stored + 1)
            self._stored += 1
            self._waiting.popleft()
        self._table.write()


class FrameColumns:
    """Columns of one value per frame, collected in memory and written together. Frames without values keep the
    columns' fill values.

    Args:
        file: that is being written.
        declared: the columns.
        check: the column that vouches for the others.
    """

    def __init__(self, file: h5py.File, declared: Columns, check: str) -> None:
        self._columns = {name: Column(file, f"{layout.FRAMES}/{name}") for name in declared}
        self._check = check
        self._length = 0
        self._indices: list[int] = []
        self._values: dict[str, list[float]] = {name: [] for name in declared if name != check}
        self._fill = {name: quantity.fill for name, quantity in declared.items()}
        self._row = row_dtype({name: declared[name] for name in self._values})

    def add(self, index: int, **values: float) -> None:
        """Take the values of a frame; indices rise."""
        self._indices.append(index)
        for name, collected in self._values.items():
            collected.append(values.get(name, self._fill[name]))

    def write(self) -> None:
        """Write all columns but the check. Safe to call again where it failed."""
        if self._indices:
            self._pack()
        for name, column in self._columns.items():
            if name != self._check:
                column.write()

    def vouch(self) -> None:
        """Write the check, once the other columns are in the file: a row without it was never finished. Safe to call
        again where it failed.
        """
        self._columns[self._check].write()

    def _pack(self) -> None:
        first, end = self._length, self._indices[-1] + 1
        places = np.array(self._indices) - first
        rows = np.empty(len(places), self._row)
        for name, collected in self._values.items():
            rows[name] = collected
        checks = [zlib.crc32(row.tobytes()) for row in rows]
        for name, column in self._columns.items():
            block = np.full(end - first, self._fill[name], column.dtype)
            block[places] = checks if name == self._check else rows[name]
            column.add(block)
        for collected in self._values.values():
            collected.clear()
        self._indices.clear()
        self._length = end


@functools.cache
def _with_frame(objects: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype([("frame", "<u8"), *objects.descr])


def result_row(result: Result, mask_crc32: int) -> tuple[dict[str, float], np.ndarray]:
    """The values of a result in the columns of `layout.RESULT_COLUMNS`, and its rows in the table of objects."""
    found = result.segmentation
    rows = np.empty(len(found.objects), _with_frame(found.objects.dtype))
    rows["frame"] = result.frame.index
    for name in found.objects.dtype.names or ():
        rows[name] = found.objects[name]
    values = {
        "skipped": Skipped.NOT_SKIPPED,
        **result.values,
        **{name: np.nan if (value := getattr(found, name)) is None else value for name in FRAME_QUANTITIES},
        "segmented_ns": result.segmented_ns,
        "published_ns": result.published_ns,
        "drift_x_px": result.drift_px[0],
        "drift_y_px": result.drift_px[1],
        "drift_quality": result.drift_quality,
        "polarity": result.segmentation.polarity,
        "source_crc32": result.source_crc32,
        "mask_crc32": mask_crc32,
        "objects_crc32": zlib.crc32(rows.tobytes()),
    }
    return values, rows
