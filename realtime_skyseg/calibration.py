"""The calibration of a magnet: from the unit of its supply (V or A) to mT at the sample, and back."""

import datetime
import math
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from realtime_skyseg import yaml_text
from realtime_skyseg.section import Section


class Calibration(Section):
    """A monotone table or polynomial, and where it comes from. Nothing is extrapolated.

    A magnet with an iron core has hysteresis, which no single curve tells: this is what the guard goes by, the
    read-back is of the supply.
    """

    date: datetime.date
    """When it was measured."""
    note: Annotated[str, Field(min_length=1)]
    """How: probe, pole gap, position."""
    table: Annotated[list[tuple[float, float]], Field(min_length=2)] | None = None
    """Pairs [device, mT], each column rising or falling throughout; straight lines between them."""
    polynomial: Annotated[list[float], Field(min_length=2, max_length=10)] | None = None
    """Coefficients c0, c1, ... of mT = c0 + c1 device + c2 device^2 + ..."""
    range: tuple[float, float] | None = None
    """Where the polynomial holds, in the device's unit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.table is None) == (self.polynomial is None):
            raise ValueError("needs either table or polynomial")
        if self.table is not None:
            if self.range is not None:
                raise ValueError("range belongs to a polynomial; a table holds from its first to its last point")
            for name, column in zip(("device", "mT"), np.array(self.table).T, strict=True):
                steps = np.sign(np.diff(column))
                if steps[0] == 0 or (steps != steps[0]).any():
                    place = 1 if steps[0] == 0 else int(np.argmax(steps != steps[0])) + 1
                    raise ValueError(
                        f"the {name} values of the table turn or repeat at its point {place + 1} ({column[place]:g}); "
                        "allowed: rising or falling throughout"
                    )
        if self.polynomial is not None:
            if self.range is None or not self.range[0] < self.range[1]:
                raise ValueError("a polynomial needs range: [lowest, highest] of the device's unit")
            ends = [self._curve(end) for end in self.range]
            if not all(map(math.isfinite, ends)):
                raise ValueError(f"the polynomial is not finite at the ends of its range {self.range}")
            slopes = self._slopes_where_extreme()
            if not min(slopes) * max(slopes) > 0:
                raise ValueError(
                    f"the polynomial turns inside its range {self.range}; allowed: rising or falling in it"
                )
        return self

    @property
    def device_range(self) -> tuple[float, float]:
        """Lowest and highest value of the device's unit that the calibration holds for."""
        if self.table is None:
            assert self.range is not None
            return self.range
        ends = self.table[0][0], self.table[-1][0]
        return min(ends), max(ends)

    @property
    def range_mT(self) -> tuple[float, float]:
        """Lowest and highest field that it holds for."""
        ends = [self._curve(end) for end in self.device_range]
        return min(ends), max(ends)

    def to_mT(self, device: float, margin_mT: float = 0.0) -> float:
        """The field of a value of the device; NaN outside the calibration.

        Args:
            device: in the device's unit.
            margin_mT: a noisy read-back may lie this far outside; the curve's end goes straight on for it.
        """
        low, high = self.device_range
        if low <= device <= high:
            return self._curve(device)
        end = low if device < low else high
        beyond = (device - end) * self._slope(end)
        return self._curve(end) + beyond if abs(beyond) <= margin_mT else math.nan

    def to_device(self, field_mT: float) -> float:
        """The value of the device for a field; NaN outside the calibration."""
        low, high = self.range_mT
        below, above = self.device_range
        if not low <= field_mT <= high:
            return math.nan
        if self.table is not None:
            device, field = np.array(sorted(self.table, key=lambda point: point[1])).T
            return min(max(float(np.interp(field_mT, field, device)), below), above)  # rounding may lead outside
        rising = self._curve(above) > self._curve(below)
        while True:  # halve the interval until no number lies between its ends
            middle = (below + above) / 2
            if not below < middle < above:
                return min((below, above), key=lambda device: abs(self._curve(device) - field_mT))
            if (self._curve(middle) < field_mT) == rising:
                below = middle
            else:
                above = middle

    def to_yaml(self) -> str:
        """As in the settings."""
        return yaml_text.dump(self.model_dump(mode="json", exclude_none=True))

    def _curve(self, device: float) -> float:
        if self.table is not None:
            given, field = np.array(sorted(self.table)).T
            return float(np.interp(device, given, field))
        return _polynomial(self.polynomial or [], device)

    def _slope(self, end: float) -> float:
        if self.table is not None:
            (x0, y0), (x1, y1) = self.table[:2] if end == self.table[0][0] else self.table[-2:]
            return (y1 - y0) / (x1 - x0)
        return _polynomial(_derivative(self.polynomial or []), end)

    def _slopes_where_extreme(self) -> list[float]:
        """The polynomial's slope at the ends of its range and where the slope itself has a turning point."""
        assert self.polynomial is not None
        assert self.range is not None
        slope = _derivative(self.polynomial)
        low, high = self.range
        try:
            with np.errstate(all="ignore"):
                roots = np.roots(_derivative(slope)[::-1])
        except np.linalg.LinAlgError:  # of coefficients beyond all floats
            return [math.nan]
        turns = roots.real[(np.abs(roots.imag) < 1e-9) & (low < roots.real) & (roots.real < high)]
        return [_polynomial(slope, place) for place in (low, high, *turns.tolist())]


def _polynomial(coefficients: list[float], place: float) -> float:
    value = 0.0
    for coefficient in reversed(coefficients):
        value = value * place + coefficient
    return value


def _derivative(coefficients: list[float]) -> list[float]:
    return [power * coefficient for power, coefficient in enumerate(coefficients)][1:]
