"""Settings of the camera driver `micromanager`."""

import logging
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from realtime_skyseg.devices import DriverSettings

log = logging.getLogger(__name__)

_OWN_KEYS = {"adapters", "configuration", "exposure_ms", "roi_px", "binning", "properties", "buffer_mb"}
_ATTACH_KEYS = {"port"}


class MicroManagerSettings(DriverSettings):
    """Settings of the driver `micromanager`."""

    mode: Literal["own", "attach"]
    """`own`: the service has the camera to itself; `attach`: look at the live images of an open Micro-Manager."""
    adapters: str = ""
    """Mode `own`: folder of Micro-Manager with its device adapters; `mm-test-adapters`: those of that package."""
    configuration: Path = Path()
    """Mode `own`: Micro-Manager's system configuration file (.cfg); looked for in `adapters` too."""
    exposure_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Mode `own`: exposure; absent: as the configuration leaves it. So for the next three keys."""
    roi_px: tuple[int, int, int, int] | None = None
    """Mode `own`: part of the sensor that is read: left, top, width, height, after binning."""
    binning: Annotated[int, Field(ge=1)] | None = None
    """Mode `own`: sensor pixels per image pixel and direction."""
    properties: dict[str, dict[str, str | int | float]] = Field(default_factory=dict)
    """Mode `own`: device label, property, value; for example `{Camera: {PixelType: 16bit}}`. Set before the others."""
    buffer_mb: Annotated[int, Field(ge=16, le=65536)] = 512
    """Mode `own`: frames that wait for the service. What does not fit is lost and counted."""
    port: Annotated[int, Field(ge=1, le=65535)] = 4827
    """Mode `attach`: of Micro-Manager's server."""
    silence_s: Annotated[float, Field(ge=0.5, le=86400)] = 5.0
    """After this long without a frame an event says so. Longer than the exposure."""

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        foreign = self.model_fields_set & (_ATTACH_KEYS if self.mode == "own" else _OWN_KEYS)
        if foreign:
            other = "attach" if self.mode == "own" else "own"
            raise ValueError(f"{min(foreign)} is a key of mode {other}; leave it out in mode {self.mode}")
        if self.mode == "own":
            for name in ("adapters", "configuration"):
                if name not in self.model_fields_set:
                    raise ValueError(f"{name} is missing; mode own needs it")
        if self.exposure_ms is not None and self.exposure_ms >= 1000 * self.silence_s:
            raise ValueError(f"silence_s is {self.silence_s:g}; allowed: more than the exposure")
        return self
