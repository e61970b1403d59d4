"""A supply with a VISA interface (GPIB, USB, serial, LAN), described in YAML: the field driver `visa`."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from realtime_skyseg import yaml_text
from realtime_skyseg.devices import DriverSettings, finite_within, missing
from realtime_skyseg.errors import FieldError, SettingsError
from realtime_skyseg.section import Section

_SUPPLIES = Path(__file__).parent / "supplies"

#: What supplies answer where they are asked whether the output is on.
_SWITCH = {"0": False, "OFF": False, "1": True, "ON": True}

#: SCPI's answers for overflow and for no number begin there.
_NOT_A_NUMBER = 9e36


class Supply(Section):
    """What a supply understands: the content of a description."""

    unit: Annotated[str, Field(pattern="^(A|V|mT)$")]
    range: tuple[float, float]  # lowest and highest value that it takes
    identify: str = "*IDN?"
    expect: str = ""  # has to stand in the answer to `identify`
    require: dict[str, str] = {}  # question: what its answer has to begin with; asked before anything is set
    prepare: list[str] = []  # sent once, before the first value
    set: Annotated[str, Field(pattern=r"\{value(:[^}]*)?\}")]  # for example "CURR {value:.4f}"
    read: str  # asks for the measured value
    output_on: str = ""  # sent once, after the first value
    output_off: str = ""  # sent on closing, where the last value was zero
    output_query: str = ""  # answers 0 where the output is off, which reads as zero
    error: str = ""  # asks for the last error, after each value
    no_error: str = "0"  # what the answer begins with where there was none
    read_termination: str = "\n"
    write_termination: str = "\n"
    delay_s: Annotated[float, Field(ge=0, le=10)] = 0.0  # between a question and its answer
    timeout_s: Annotated[float, Field(gt=0, le=30)] = 2.0
    visa: dict[str, int | float | str | bool] = {}  # attributes of the PyVISA resource, for example baud_rate


class VisaSettings(DriverSettings):
    """Settings of the driver `visa`."""

    identity: ClassVar[tuple[str, ...] | None] = ("address", "library")

    address: str
    """VISA address, for example `GPIB0::6::INSTR`; `pyvisa-shell list` shows those that there are."""
    supply: str
    """What the supply understands: `kepco_bop`, or the path of a YAML file of your own."""
    range: tuple[float, float] | None = None
    """Lowest and highest value of this very supply, where it differs from the description's."""
    library: str = ""
    """The VISA library; empty: the installed one, or else `@py`."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        low, high = self.range or self.described.range
        if not low < high:
            raise ValueError(f"range is [{low:g}, {high:g}]; allowed: [lowest, highest]")
        return self

    @cached_property
    def described(self) -> Supply:
        """The description. Raises `SettingsError`, named by the key, where it cannot be used."""
        shipped = {path.stem: path for path in _SUPPLIES.glob("*.yaml")}
        path = shipped.get(self.supply, Path(self.supply))
        try:
            return Supply.model_validate(yaml_text.load(self.text))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(
                f"field.supply: '{self.supply}' cannot be read; allowed: {', '.join(sorted(shipped))} or a YAML file"
            ) from error
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "the file"
            raise SettingsError(f"field.supply: {path}: {place}: {fault['msg']}") from None

    @cached_property
    def text(self) -> str:
        """The description as it is written."""
        shipped = _SUPPLIES / f"{self.supply}.yaml"
        return (shipped if shipped.is_file() else Path(self.supply)).read_text(encoding="utf-8")

    @property
    def unit(self) -> str:
        """Of the supply."""
        return self.described.unit


class VisaField:
    """A supply that is told and asked by text, as a `realtime_skyseg.devices.FieldSource`.

    Nothing is sent but questions until the first value is set.
    """

    Settings: ClassVar[type[DriverSettings]] = VisaSettings

    def __init__(self, settings: VisaSettings) -> None:
        try:
            import pyvisa
        except ModuleNotFoundError as error:
            raise missing("visa", error, "visa") from error
        self._errors = (pyvisa.Error, OSError, ValueError)
        self._address = settings.address
        self._supply = supply = settings.described
        self.unit = supply.unit
        self.range = settings.range or supply.range
        self._checked = self._prepared = False
        self._last: float | None = None
        self._device: Any = None
        try:
            self._manager = pyvisa.ResourceManager(settings.library)
        except Exception as error:  # the libraries behind PyVISA raise errors of many kinds
            raise SettingsError(f"library: '{settings.library}' is no VISA library: {_first_line(error)}") from error
        try:
            self._open()
            self._identity = self._ask(supply.identify) if supply.identify else ""
        except Exception as error:
            self._drop()
            self._manager.close()
            raise FieldError(f"field.address: '{settings.address}' does not answer: {_first_line(error)}") from error
        if supply.expect not in self._identity:
            self.close()
            raise FieldError(
                f"field.address: '{settings.address}' says it is '{self._identity}'; allowed: '{supply.expect}' "
                f"(field.supply: {settings.supply})"
            )
        self.description: dict[str, str | int | float | bool] = {
            "address": settings.address,
            "supply": settings.supply,
            "supply_text": settings.text,
            "identity": self._identity,
        }

    def set(self, value: float) -> None:
        """Tell the supply a value, and ask whether it took it. It may have arrived where this raises `FieldError`."""
        value = finite_within(value, self.range, f"the supply {self._address}", self.unit)
        supply = self._supply
        try:
            self._connect()
            if not self._checked:
                for question, wanted in supply.require.items():
                    answer = self._ask(question)
                    if not answer.startswith(wanted):
                        raise FieldError(
                            f"the supply {self._address} answers '{answer}' to '{question}'; allowed: {wanted}"
                        )
                self._checked = True
            if not self._prepared:
                for command in supply.prepare:
                    self._tell(command)
            # Fixed decimals: some supplies misread exponents.
            commands = [supply.set.format(value=value)]
            if not self._prepared and supply.output_on:
                commands.append(supply.output_on)
            self._last, self._prepared = value, True
            if not supply.error:
                for command in commands:
                    self._tell(command)
            else:
                answer = self._ask(supply.error, commands)
                if not answer.startswith(supply.no_error):
                    raise FieldError(f"the supply {self._address} answers '{answer}' to {value:g} {self.unit}")
        except self._errors as error:
            self._drop()
            raise FieldError(
                f"the supply {self._address} does not take {value:g} {self.unit}: {_first_line(error)}"
            ) from error

    def read(self) -> float:
        """The measured value; zero where the output is off."""
        try:
            self._connect()
            if self._supply.output_query:
                answer = self._ask(self._supply.output_query)
                if answer.upper().lstrip("+") not in _SWITCH:
                    raise ValueError(f"it answers '{answer}' to '{self._supply.output_query}'")
                if not _SWITCH[answer.upper().lstrip("+")]:
                    return 0.0
            answer = self._ask(self._supply.read)
            value = float(answer)
            if not abs(value) < _NOT_A_NUMBER:
                raise ValueError(f"it answers '{answer}' to '{self._supply.read}'")
            return value
        except self._errors as error:
            self._drop()
            raise FieldError(f"the supply {self._address} cannot be read back: {_first_line(error)}") from error

    def close(self) -> None:
        """Release the supply. Its output stays as it is, but is switched off where it was brought to zero."""
        if self._device is not None and self._last is not None and abs(self._last) < 1e-9 and self._supply.output_off:
            with suppress(*self._errors):
                self._tell(self._supply.output_off)
        self._drop()
        self._manager.close()

    # --- the link ---

    def _open(self) -> None:
        supply = self._supply
        attributes: dict[str, Any] = {
            "read_termination": supply.read_termination,
            "write_termination": supply.write_termination,
            "timeout": 1000 * supply.timeout_s,
            "open_timeout": round(1000 * supply.timeout_s),
        }
        self._device = self._manager.open_resource(self._address, **(attributes | supply.visa))

    def _connect(self) -> None:
        """Open a link that was dropped. Its first answer tells that all that was sent before it is done with."""
        if self._device is not None:
            return
        self._open()
        identity = self._ask(self._supply.identify or self._supply.read)
        if self._supply.identify and identity != self._identity:
            raise ValueError(f"it says it is '{identity}' now, and was '{self._identity}'")

    def _drop(self) -> None:
        """After an exchange that failed: an answer that is still to come must not be taken for another one.

        The next exchange opens the link anew; what has to be so before a value is sent, is asked again.
        """
        device, self._device = self._device, None
        self._checked = False
        if device is None:
            return
        with suppress(Exception):
            if self._address.upper().endswith("::INSTR") and not self._address.upper().startswith("ASRL"):
                device.clear()
        with suppress(Exception):
            device.close()

    def _tell(self, command: str) -> None:
        self._device.write(command)

    def _ask(self, question: str, commands: Sequence[str] = ()) -> str:
        """Ask, after commands that have no answer."""
        if self._address.upper().endswith("::SOCKET"):
            # In one piece: a command and the question after it would wait 40 ms for each other (Nagle's algorithm).
            question = self._supply.write_termination.join([*commands, question])
        else:
            for command in commands:
                self._tell(command)
        with warnings.catch_warnings():
            # PyVISA only warns of an answer without its termination, which may be half a number.
            warnings.simplefilter("error", UserWarning)
            try:
                answer: str = self._device.query(question, delay=self._supply.delay_s)
            except UserWarning as error:
                raise ValueError(f"{error} (read_termination of the supply's description)") from error
        return answer.strip()


def _first_line(error: Exception) -> str:
    lines = (str(error).replace("\\n", "\n").strip(" '\n") or type(error).__name__).splitlines()
    # Some libraries put a whole traceback into their message; its last line says what it was.
    return lines[-1].strip() if any(line.startswith("  File ") for line in lines) else lines[0]
