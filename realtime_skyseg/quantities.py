"""What a column of numbers holds, declared once for everything that stores, reads, shows or sends it."""

import re
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


#: A unit of length in the names of columns, by that on the sample.
_ON_SAMPLE = {"px": ("um", 1), "px^2": ("um^2", 2), "1/px": ("1/um", -1), "px/s": ("um/s", 1), "px^2/s": ("um^2/s", 2)}

#: Of whole pixels, to cut an object out of its image.
_BOX = ("left", "top", "width", "height")

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


def unit_name(unit: str) -> str:
    """How a unit ends a column's name: px^2 -> px2, 1/um -> per_um."""
    return re.sub(r"^1/", "per_", unit).replace("^", "").replace("/", "_per_")


def on_sample(quantity: Quantity, size_um: float) -> tuple[Quantity, float] | None:
    """The same quantity in lengths of the sample, and what its values are multiplied by; None: it is no length."""
    if quantity.unit not in _ON_SAMPLE or quantity.name in _BOX:
        return None
    unit, power = _ON_SAMPLE[quantity.unit]
    return replace(quantity, name=quantity.name.removesuffix(f"_{unit_name(quantity.unit)}"), unit=unit), size_um**power
