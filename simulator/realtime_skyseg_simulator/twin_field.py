"""The magnet of the twin, as seen by the field guard: the field driver `twin`."""

import json
import socket
import time
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from realtime_skyseg.devices import DriverSettings, finite_within
from realtime_skyseg.errors import FieldError

#: Where the virtual microscope listens unless the settings say otherwise.
DEFAULT_PORT = 5571

#: How long a microscope may take to appear, and to answer.
_CONNECT_S, _ANSWER_S = 4.0, 3.0


class TwinFieldSettings(DriverSettings):
    """Settings of the field driver `twin`."""

    identity: ClassVar[tuple[str, ...] | None] = ("port",)

    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PORT
    """Of the virtual microscope: `camera.port`."""
    unit: Literal["V", "mT"] = "mT"
    """`V`: the supply's, and a calibration leads to mT, as in the lab; `mT`: by the nominal calibration."""


class TwinField:
    """The magnet of the virtual microscope that the camera driver `twin` has started."""

    Settings: ClassVar[type[DriverSettings]] = TwinFieldSettings

    def __init__(self, settings: TwinFieldSettings) -> None:
        """Connect. Raises `FieldError` where nobody listens."""
        self._port = settings.port
        self._connection = _connect(settings.port)
        self._answers = self._connection.makefile("rb")
        try:
            self._connection.sendall(b'{"role": "field"}\n')
            magnet = self._answer()
        except BaseException:
            self.close()
            raise
        self.unit = settings.unit
        self._volts_per_unit = 1.0 if settings.unit == "V" else 1.0 / magnet["mT_per_V"]
        limit = magnet["limit_V"] / self._volts_per_unit
        self.range: tuple[float, float] | None = (-limit, limit)
        self.pulse_limit_mT: tuple[float, float] = (-magnet["in_plane_limit_mT"], magnet["in_plane_limit_mT"])
        self.description: dict[str, str | int | float | bool] = {
            "kind": "simulated magnet of the twin",
            "synthetic": True,
            "port": settings.port,
        }

    def set(self, value: float) -> None:
        """Set the supply, in `unit`. Raises `FieldError` for what it does not give, and where it has gone."""
        assert self.range is not None
        number = finite_within(value, self.range, "the supply", self.unit)
        self._ask(do="set", volts=number * self._volts_per_unit)

    def read(self) -> float:
        """The field as measured, in `unit`."""
        return float(self._ask(do="read")["volts"]) / self._volts_per_unit

    def pulse(self, in_plane_mT: float, seconds: float) -> None:
        """Begin an in-plane pulse, which the microscope ends by itself."""
        height = finite_within(in_plane_mT, self.pulse_limit_mT, "the pulse", "mT")
        length = finite_within(seconds, (0.0, 60.0), "the length of the pulse", "s")
        self._ask(do="pulse", in_plane_mT=height, seconds=length)

    def close(self) -> None:
        """Disconnect; the field stays as it is. Safe to call twice."""
        self._answers.close()
        self._connection.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except (OSError, ValueError) as error:
            raise FieldError(f"the twin microscope at port {self._port} has gone: {error}") from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.readline()
        except (OSError, ValueError) as error:
            raise FieldError(f"the twin microscope at port {self._port} does not answer: {error}") from error
        if not line:
            raise FieldError(f"the twin microscope at port {self._port} has gone")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise FieldError(answer["error"])
        return answer


def _connect(port: int) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_S
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S)
        except OSError as error:
            if time.monotonic() > deadline:
                raise FieldError(
                    f"no twin microscope at port {port} ({error.strerror or error}); start the camera driver `twin` "
                    "with the same port"
                ) from error
            time.sleep(0.1)
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
