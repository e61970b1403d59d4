"""Tables of a run file: a group with one dataset per column, which any program reads that reads HDF5 at all.

Files of layout 1 hold a table as one dataset of compound rows. All functions take both.
"""

import json
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg import json_text
from realtime_skyseg.errors import RunFileUnusableError
from realtime_skyseg.quantities import Columns, Quantity

#: Attribute of a table: the names of its columns, in the order of a row.
_COLUMNS = "columns"

#: Of objects there are thousands in a second, and each chunk is a call of HDF5 for each column.
_CHUNK_ROWS, _OBJECT_ROWS = 1024, 8192


def create(parent: h5py.Group, name: str, declared: Columns, nx_class: str = "NXcollection") -> h5py.Group:
    """Make an empty table; unit and meaning of each column stand in its attributes."""
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    group.attrs[_COLUMNS] = json.dumps(list(declared))
    for quantity in declared.values():
        create_column(group, quantity)
    return group


def create_column(group: h5py.Group, quantity: Quantity, packed: bool = True) -> h5py.Dataset:
    """Make an empty column."""
    how = {"compression": "gzip", "compression_opts": 1} if packed else {}
    fill = quantity.fill if np.dtype(quantity.dtype).kind in "iufb" else None
    rows = _OBJECT_ROWS if quantity.of == "object" else _CHUNK_ROWS
    column = group.create_dataset(
        quantity.name, (0,), quantity.dtype, maxshape=(None,), chunks=(rows,), fillvalue=fill, **how
    )
    column.attrs["long_name"] = quantity.label
    column.attrs["description"] = quantity.meaning
    if quantity.unit:
        column.attrs["units"] = quantity.unit
    return column


def names(table: h5py.Group, declared: Columns) -> list[str]:
    """The columns of a table, as it tells them, else as they are declared."""
    told = table.attrs.get(_COLUMNS)
    if told is None:
        return list(declared)
    try:
        return [str(name) for name in json_text.load(told)]
    except (ValueError, TypeError) as error:
        raise RunFileUnusableError(f"{table.name}: its attribute '{_COLUMNS}' is no list of names") from error


def datasets(table: h5py.Group | h5py.Dataset, declared: Columns) -> list[h5py.Dataset]:
    """What a table consists of."""
    return [table] if isinstance(table, h5py.Dataset) else [table[name] for name in names(table, declared)]


def read(
    table: h5py.Group | h5py.Dataset, declared: Columns, start: int = 0, stop: int | None = None
) -> NDArray[np.void]:
    """Rows of a table. In a file that is being written, or was left by a kill, some columns may be longer: what not all
    have is no row yet.
    """
    if isinstance(table, h5py.Dataset):
        rows: NDArray[np.void] = table[start:stop]
        return rows
    columns = datasets(table, declared)
    n = min(map(len, columns))
    stop = n if stop is None else min(stop, n)
    rows = np.empty(max(0, stop - start), [(_last(column), column.dtype) for column in columns])
    for column in columns:
        rows[_last(column)] = column[start:stop] if stop > start else ()
    return rows


def append(table: h5py.Group | h5py.Dataset, rows: NDArray[np.void]) -> None:
    """Write rows at the end of a table of a file that nobody else writes."""
    if not len(rows):
        return
    if isinstance(table, h5py.Dataset):
        _extend(table, rows)
        return
    for name in rows.dtype.names or ():
        _extend(table[name], rows[name])


def replace(table: h5py.Group | h5py.Dataset, declared: Columns, rows: NDArray[np.void]) -> None:
    """Write rows in place of all."""
    for dataset in datasets(table, declared):
        dataset.resize(0, axis=0)
    append(table, rows)


def _extend(dataset: h5py.Dataset, values: NDArray[Any]) -> None:
    new = np.empty(len(values), dataset.dtype)  # which knows its texts as UTF-8, where they are
    new[...] = values
    start = len(dataset)
    dataset.resize(start + len(new), axis=0)
    dataset[start:] = new


def _last(column: h5py.Dataset) -> str:
    return str(column.name).rpartition("/")[2]
