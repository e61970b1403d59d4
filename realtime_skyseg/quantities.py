"""What a column of numbers holds, declared once for everything that stores, reads, shows or sends it."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

#: What a quantity belongs to; "row": of a table of something else.
Of = Literal["frame", "object", "map", "row"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number (or short text) of each frame, object, event, step, ..."""

    name: str  # a Python name; it ends in its unit if it has one, as `field_mT`
    dtype: Any  # as numpy takes it
    fill: Any = 0  # the value if there is none
    unit: str = ""  # "mT", "px", "ns"; "": none
    meaning: str = ""  # one sentence
    of: Of = "row"
    cell_px: int = 1  # of a map: each value is that of so many pixels squared

    def map_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, columns) of a map of a frame of (height, width)."""
        return -(-shape[0] // self.cell_px), -(-shape[1] // self.cell_px)

    @property
    def label(self) -> str:
        """For an axis or the head of a column: `field (mT)`."""
        name = self.name.removesuffix(f"_{self.unit}") if self.unit else self.name
        return name.replace("_", " ") + (f" ({self.unit})" if self.unit else "")


Columns = dict[str, Quantity]


def columns(*quantities: Quantity, of: Of | None = None) -> Columns:
    """Quantities by their names, in order; all of them of one thing, if it is given."""
    return {quantity.name: replace(quantity, of=of) if of else quantity for quantity in quantities}


def row_dtype(declared: Columns) -> np.dtype[Any]:
    """The type of rows that hold these quantities, without padding."""
    return np.dtype([(name, quantity.dtype) for name, quantity in declared.items()])


def blank_rows(declared: Columns, n: int) -> NDArray[Any]:
    """`n` rows of fill values."""
    rows = np.empty(n, row_dtype(declared))
    for name, quantity in declared.items():
        rows[name] = quantity.fill
    return rows
