"""A field that a person sets by hand and enters over the control socket: the field driver `manual`."""

import math
from typing import ClassVar

from realtime_skyseg.devices import DriverSettings
from realtime_skyseg.errors import FieldError


class ManualSettings(DriverSettings):
    """Settings of the driver `manual`: none of its own."""

    identity: ClassVar[tuple[str, ...] | None] = None


class ManualField:
    """Keeps the field that was entered last, as a `realtime_skyseg.devices.FieldSource` that can only be read.

    Until the first one the field is unknown (NaN).
    """

    Settings: ClassVar[type[DriverSettings]] = ManualSettings
    unit = "mT"
    range = None

    def __init__(self, settings: ManualSettings) -> None:
        self._entered_mT = math.nan
        self.description: dict[str, str | int | float | bool] = {"kind": "set by hand and entered"}

    def enter(self, value: float) -> None:
        """The person has set this field, in mT."""
        self._entered_mT = value

    def set(self, value: float) -> None:
        """Refuse: nobody but the person can set the field."""
        raise FieldError(f"{value:g} mT is refused; allowed: nothing, because this field is set by hand")

    def read(self) -> float:
        """The field in mT that was entered last; NaN before."""
        return self._entered_mT

    def close(self) -> None:
        """Nothing to release."""
