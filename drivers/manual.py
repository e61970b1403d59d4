"""A field that a person sets by hand and types into a file: the field driver `manual`."""

import math
from pathlib import Path
from typing import ClassVar

from realtime_skyseg.devices import DriverSettings
from realtime_skyseg.errors import FieldError


class ManualSettings(DriverSettings):
    """Settings of the driver `manual`."""

    file: Path = Path("field_mT.txt")
    """A text file that holds the field in mT and nothing else, as `echo 12.5 > field_mT.txt` writes it."""


class ManualField:
    """Reads the field from a text file, as a `realtime_skyseg.devices.FieldSource` that can only be read.

    While there is no such file the field is unknown (NaN).
    """

    Settings: ClassVar[type[DriverSettings]] = ManualSettings
    unit = "mT"
    range = None

    def __init__(self, settings: ManualSettings) -> None:
        self._file = settings.file
        self._last = math.nan
        self.description: dict[str, str | int | float | bool] = {"file": str(settings.file)}

    def set(self, value: float) -> None:
        """Refuse: nobody but the person can set the field."""
        raise FieldError(f"{value:g} mT is refused; allowed: nothing, because this field is set by hand")

    def read(self) -> float:
        """The number in the file; the last one, while it is being written. Raises `FieldError` for anything else."""
        try:
            text = self._file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return math.nan
        except (OSError, UnicodeDecodeError) as error:
            raise FieldError(f"{self._file} cannot be read: {error}") from error
        if text:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise FieldError(f"{self._file} holds {text[:40]!r}; allowed: the field in mT as a number") from None
            self._last = value
        return self._last

    def close(self) -> None:
        """Nothing to release."""
