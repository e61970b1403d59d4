"""Settings of the camera driver `twin`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from realtime_skyseg.devices import DriverSettings
from realtime_skyseg_simulator.faults import Fault
from realtime_skyseg_simulator.kerr_camera import KerrSettings
from realtime_skyseg_simulator.magnet import MagnetSettings
from realtime_skyseg_simulator.samples import FilmSampleSettings, SampleSettings
from realtime_skyseg_simulator.twin_field import DEFAULT_PORT


class TwinSettings(DriverSettings):
    """Settings of the camera driver `twin`: a simulated sample, magnet and Kerr microscope."""

    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    """Where the microscope listens on this computer: the same in `field`; 0: a free one, for a twin without magnet."""
    height_px: Annotated[int, Field(ge=32, le=4096)] = 512
    """Of the images."""
    width_px: Annotated[int, Field(ge=32, le=4096)] = 672
    """Of the images."""
    rate_hz: Annotated[float, Field(gt=0, le=1000)] | None = 16.0
    """Frames per second in real time; null: as fast as they are taken, each `frame_s` of the sample's time after the
    one before."""
    frame_s: Annotated[float, Field(gt=0, le=60)] = 0.0625
    """With `rate_hz: null`: see there."""
    frames: Annotated[int, Field(ge=1)] | None = None
    """End after this many."""
    image: Literal["difference", "raw"] = "difference"
    """What the camera gives: the difference to its background, or the raw image, which shows almost nothing."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of all that is random in camera and magnet; the sample has its own."""
    buffer_frames: Annotated[int, Field(ge=1, le=4096)] = 32
    """Frames that wait for the service in real time. What does not fit is lost."""
    truth: Path | None = None
    """HDF5 file to write with what really was in each frame; `{time}` becomes the start time; absent: none."""
    sample: SampleSettings = FilmSampleSettings()
    """What is under the microscope."""
    optics: KerrSettings = KerrSettings()
    """Optics, light and sensor."""
    magnet: MagnetSettings = MagnetSettings()
    """What the field driver `twin` sets."""
    faults: tuple[Fault, ...] = ()
    """What goes wrong, and when."""

    @property
    def period_s(self) -> float:
        """From frame to frame, in the sample's time."""
        return 1.0 / self.rate_hz if self.rate_hz else self.frame_s
