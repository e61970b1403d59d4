"""A supply behind a property of a Micro-Manager device, such as the voltage of a DA: the field driver `mm_property`."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from realtime_skyseg.devices import DriverSettings, finite_within, missing
from realtime_skyseg.errors import FieldError, SettingsError

#: A call through the bridge to a Micro-Manager that hangs never returns.
_CALL_S = 2.0


class LoadedDevice(DriverSettings):
    """A device that the driver loads itself."""

    label: str
    """Its name here."""
    library: str
    """Its adapter, for example `DemoCamera`."""
    name: str
    """Its name in the adapter, for example `D-DA`."""
    parent: str = ""
    """Label of its hub, which stands before it in the list."""
    properties: dict[str, str | int | float] = Field(default_factory=dict)
    """Set before it is initialised, for example its port."""


class PropertySettings(DriverSettings):
    """Settings of the driver `mm_property`."""

    identity: ClassVar[tuple[str, ...] | None] = ("mode", "device", "set_property", "configuration", "load", "port")

    mode: Literal["own", "attach"] = "own"
    """`own`: load the device in the field guard, which no open Micro-Manager may do at the same time; `attach`: use
    that of an open Micro-Manager whose server is on."""
    device: str
    """Label of the device."""
    set_property: str = "Voltage"
    """The property that sets the output."""
    read_property: str = ""
    """The property that reads the output back; empty: the one that sets it, which tells what was set, not what is."""
    unit: Literal["V", "A", "mT"] = "V"
    """Of both properties."""
    range: tuple[float, float] | None = None
    """Lowest and highest value; absent: the limits of the property."""
    adapters: str = ""
    """Mode `own`: folder of the device adapters; for tests `mm-test-adapters`."""
    configuration: Path | None = None
    """Mode `own`: the system configuration file. All its devices are loaded: make one with nothing but the DA."""
    load: list[LoadedDevice] = Field(default_factory=list)
    """Mode `own`: the devices to load, instead of a configuration file."""
    port: Annotated[int, Field(ge=1, le=65535)] = 4827
    """Mode `attach`: of Micro-Manager's server."""

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        if self.mode == "own" and bool(self.configuration) == bool(self.load):
            raise ValueError("mode own needs either configuration or load")
        return self


class PropertyField:
    """A property of a device, as a `realtime_skyseg.devices.FieldSource`.

    Micro-Manager takes any text for a number and then sets 0, and takes NaN; only finite numbers inside the limits are
    handed on.
    """

    Settings: ClassVar[type[DriverSettings]] = PropertySettings

    def __init__(self, settings: PropertySettings) -> None:
        self._device = settings.device
        self._set_name = settings.set_property
        self._read_name = settings.read_property or settings.set_property
        self.unit = settings.unit
        self._core: _OwnCore | _AttachedCore = (
            _OwnCore(settings) if settings.mode == "own" else _AttachedCore(settings.port)
        )
        try:
            self._check_names(settings)
            limits = self._core.limits(self._device, self._set_name)
            self.read()
        except FieldError as error:
            self.close()
            message = str(error)
            raise FieldError(message if message.startswith("field.") else f"field.device: {message}") from error
        if settings.range is None and limits is None:
            self.close()
            raise SettingsError(f"range: this key is missing, because '{self._device}' states no limits; give them")
        self.range = settings.range or limits
        self.description: dict[str, str | int | float | bool] = {
            "mode": settings.mode,
            "device": settings.device,
            "set_property": self._set_name,
            "read_property": self._read_name,
        }

    def _check_names(self, settings: PropertySettings) -> None:
        """Name the key that is wrong, and what there is. Raises `FieldError`."""
        known = self._core.devices()
        if known and self._device not in known:
            raise FieldError(f"field.device: no device '{self._device}'; allowed: {', '.join(known)}")
        names = self._core.properties(self._device)
        for key, name in (("set_property", settings.set_property), ("read_property", self._read_name)):
            if names and name not in names:
                raise FieldError(f"field.{key}: '{self._device}' has no property '{name}'; allowed: {', '.join(names)}")

    def set(self, value: float) -> None:
        """Set the property."""
        assert self.range is not None
        value = finite_within(value, self.range, f"the property {self._device}.{self._set_name}", self.unit)
        self._core.set(self._device, self._set_name, f"{value:.6f}")

    def read(self) -> float:
        """Read the property back. Raises `FieldError` where it holds no number."""
        text = self._core.get(self._device, self._read_name)
        try:
            return float(text)
        except ValueError:
            raise FieldError(f"the property {self._device}.{self._read_name} holds {text!r}, no number") from None

    def close(self) -> None:
        """Release the device; its output stays as the adapter leaves it."""
        self._core.close()


class _OwnCore:
    def __init__(self, settings: PropertySettings) -> None:
        try:
            import pymmcore
        except ModuleNotFoundError as error:
            raise missing("mm_property", error, "micromanager") from error
        self._core = core = pymmcore.CMMCore()
        core.enableStderrLog(False)
        try:
            core.setDeviceAdapterSearchPaths([_adapters(settings.adapters)])
            if settings.configuration:
                core.loadSystemConfiguration(str(settings.configuration))
            for device in settings.load:
                core.loadDevice(device.label, device.library, device.name)
                if device.parent:
                    core.setParentLabel(device.label, device.parent)
                for name, value in device.properties.items():
                    core.setProperty(device.label, name, str(value))
                core.initializeDevice(device.label)
        except (RuntimeError, OSError) as error:
            self.close()
            raise FieldError(f"field: Micro-Manager's core cannot load the devices: {_first_line(error)}") from error

    def limits(self, device: str, name: str) -> tuple[float, float] | None:
        if not self._try(lambda core: core.hasPropertyLimits(device, name)):
            return None
        low, high = self._try(
            lambda core: (core.getPropertyLowerLimit(device, name), core.getPropertyUpperLimit(device, name))
        )
        return float(low), float(high)

    def devices(self) -> list[str]:
        return list(self._try(lambda core: core.getLoadedDevices()))

    def properties(self, device: str) -> list[str]:
        return list(self._try(lambda core: core.getDevicePropertyNames(device)))

    def get(self, device: str, name: str) -> str:
        return str(self._try(lambda core: core.getProperty(device, name)))

    def set(self, device: str, name: str, value: str) -> None:
        def both(core: Any) -> None:
            core.setProperty(device, name, value)
            core.waitForDevice(device)

        self._try(both)

    def close(self) -> None:
        self._core.reset()

    def _try(self, call: Callable[[Any], Any]) -> Any:
        try:
            return call(self._core)
        except (RuntimeError, OSError) as error:
            raise FieldError(_first_line(error)) from error


class _AttachedCore:
    """The core of an open Micro-Manager. Each call has a time limit: it is made in a thread that is left behind, with
    its connection, where the answer stays away; the next call begins anew.
    """

    def __init__(self, port: int) -> None:
        try:
            import pycromanager  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing("mm_property", error, "micromanager") from error
        self._port = port
        self._calls: queue.SimpleQueue[tuple[Callable[[Any], Any], queue.SimpleQueue[Any]] | None] | None = None

    def limits(self, device: str, name: str) -> tuple[float, float] | None:
        if not self._try(lambda core: core.has_property_limits(device, name)):
            return None
        low, high = self._try(
            lambda core: (core.get_property_lower_limit(device, name), core.get_property_upper_limit(device, name))
        )
        return float(low), float(high)

    def devices(self) -> list[str]:
        return self._names(lambda core: core.get_loaded_devices())

    def properties(self, device: str) -> list[str]:
        return self._names(lambda core: core.get_device_property_names(device))

    def _names(self, call: Callable[[Any], Any]) -> list[str]:
        """A vector of texts; nothing where this Micro-Manager does not give it."""

        def plain(core: Any) -> list[str]:
            try:
                vector = call(core)
                return [str(vector.get(place)) for place in range(vector.size())]
            except (AttributeError, TypeError):
                return []

        names: list[str] = self._try(plain)
        return names

    def get(self, device: str, name: str) -> str:
        return str(self._try(lambda core: core.get_property(device, name)))

    def set(self, device: str, name: str, value: str) -> None:
        def both(core: Any) -> None:
            core.set_property(device, name, value)
            core.wait_for_device(device)

        self._try(both)

    def close(self) -> None:
        if self._calls:
            self._calls.put(None)
            self._calls = None

    def _try(self, call: Callable[[Any], Any]) -> Any:
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=self._work, args=(self._calls,), name="skyseg-bridge", daemon=True).start()
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((call, answer))
        try:
            result = answer.get(timeout=_CALL_S)
        except queue.Empty:
            self._calls.put(None)
            self._calls = None
            raise FieldError(
                f"Micro-Manager on port {self._port} does not answer within {_CALL_S:g} s; is its server switched on?"
            ) from None
        if isinstance(result, Exception):
            self.close()
            raise FieldError(_first_line(result)) from result
        return result

    def _work(self, calls: "queue.SimpleQueue[tuple[Callable[[Any], Any], queue.SimpleQueue[Any]] | None]") -> None:
        from pycromanager import Core

        core = None
        while (item := calls.get()) is not None:
            call, answer = item
            try:
                core = core or Core(port=self._port, new_socket=True, timeout=1000)
                answer.put(call(core))
            except Exception as error:
                answer.put(error)


def _adapters(folder: str) -> str:
    if folder != "mm-test-adapters":
        return folder
    from mm_test_adapters import device_adapter_path

    return str(device_adapter_path())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
