"""An analog output of an NI-DAQmx device that steers a supply: the field driver `daq`.

Not tried on a device: it was written from the documentation of the `nidaqmx` package.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from realtime_skyseg.devices import DriverSettings, finite_within, missing
from realtime_skyseg.errors import FieldError


class DaqSettings(DriverSettings):
    """Settings of the driver `daq`."""

    identity: ClassVar[tuple[str, ...] | None] = ("output",)

    output: str
    """Analog output, for example `Dev1/ao0`."""
    input: str
    """Where the output is read back: an analog input that the output, or the supply's monitor, is wired to, for example
    `Dev1/ai0`; or, without a wire, the device's own `Dev1/_ao0_vs_aognd`."""
    range_V: tuple[float, float] = (-10.0, 10.0)
    """Lowest and highest voltage of the output."""
    input_range_V: tuple[float, float] = (-10.0, 10.0)
    """Of the input."""
    input_V_per_V: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Volts at the input for one volt at the output."""


class DaqField:
    """An analog output, as a `realtime_skyseg.devices.FieldSource` in V.

    The output keeps its voltage when the program ends, on the devices that NI documents so; a reset of the device sets
    its power-up voltage.
    """

    Settings: ClassVar[type[DriverSettings]] = DaqSettings
    unit = "V"

    def __init__(self, settings: DaqSettings) -> None:
        try:
            import nidaqmx
        except ModuleNotFoundError as error:
            raise missing("daq", error, "daq") from error
        self._nidaqmx = nidaqmx
        self.range = settings.range_V
        self._scale = settings.input_V_per_V
        self._name = settings.output
        self._tasks: list[Any] = []
        try:
            self._input = self._task()
            low, high = settings.input_range_V
            self._input.ai_channels.add_ai_voltage_chan(settings.input, min_val=low, max_val=high)
            self._output = self._task()
            low, high = settings.range_V
            self._output.ao_channels.add_ao_voltage_chan(settings.output, min_val=low, max_val=high)
        except Exception as error:  # nidaqmx raises its own errors, and others where NI's driver is absent
            self.close()
            raise FieldError(
                f"field.output: '{settings.output}' cannot be opened: {_first_line(error)}; allowed: a channel that "
                "NI MAX lists, with the NI-DAQmx driver installed"
            ) from error
        self.description: dict[str, str | int | float | bool] = {"output": settings.output, "input": settings.input}

    def set(self, value: float) -> None:
        """Set the voltage."""
        value = finite_within(value, self.range, f"the output {self._name}", "V")
        try:
            self._output.write(value, auto_start=True, timeout=2.0)
        except self._nidaqmx.DaqError as error:
            raise FieldError(f"the output {self._name} does not take {value:g} V: {_first_line(error)}") from error

    def read(self) -> float:
        """The voltage at the input, as that of the output."""
        try:
            return float(self._input.read(timeout=2.0)) / self._scale
        except self._nidaqmx.DaqError as error:
            raise FieldError(f"the output {self._name} cannot be read back: {_first_line(error)}") from error

    def close(self) -> None:
        """Release the channels; the output keeps its voltage."""
        while self._tasks:
            self._tasks.pop().close()

    def _task(self) -> Any:
        task = self._nidaqmx.Task()
        self._tasks.append(task)
        return task


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
