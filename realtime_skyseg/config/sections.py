"""The sections of a run's settings, one class each.

Units stand in the names (`rate_hz`, `flush_s`, `field_mT`). Relative paths are relative to the working directory.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from realtime_skyseg import devices
from realtime_skyseg.calibration import Calibration
from realtime_skyseg.config.addresses import checked_address
from realtime_skyseg.config.sentences import sentence
from realtime_skyseg.devices import Camera, DriverSettings, FieldSource
from realtime_skyseg.errors import CameraError, MissingExtraError, SettingsError, SkysegError
from realtime_skyseg.records import Polarity, printable
from realtime_skyseg.section import Section

#: Where the stream is, unless the settings say otherwise.
DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"

#: Where the control socket is, unless the settings say otherwise.
DEFAULT_CONTROL_ADDRESS = "tcp://127.0.0.1:5556"

EngineChoice = Literal["auto", "tensorrt", "torch", "openvino", "openvino-int8"]


class CameraSettings(Section):
    """Where frames come from. `driver` names the camera; every other key belongs to that driver."""

    model_config = ConfigDict(extra="allow")

    driver: str
    """Name of an installed camera driver, for example `replay`."""

    _settings: DriverSettings = PrivateAttr()

    @model_validator(mode="after")
    def _check_driver(self) -> Self:
        try:
            settings = devices.driver("cameras", self.driver).Settings
        except MissingExtraError:
            raise
        except SettingsError as error:
            raise SettingsError(f"camera.{error}") from error
        try:
            self._settings = settings.model_validate(self.model_extra or {})
        except ValidationError as error:
            raise SettingsError(sentence(error, settings, prefix="camera")) from None
        return self

    def check(self) -> None:
        """Look at what can be looked at without a device. Raises `SettingsError` as `open` does."""
        try:
            self._settings.check()
        except SettingsError as error:
            raise SettingsError(f"camera.{error}") from error

    def open(self) -> Camera:
        """Open the camera. A driver's `SettingsError` begins with its own key; here it becomes `camera.KEY`."""
        try:
            return cast(Camera, devices.driver("cameras", self.driver)(self._settings))
        except SettingsError as error:
            raise SettingsError(f"camera.{error}") from error
        except (Exception, SystemExit) as error:
            if isinstance(error, SkysegError):
                raise
            raise CameraError(
                f"camera.driver: '{self.driver}' cannot be opened: {type(error).__name__}: {printable(error)}"
            ) from error


class FieldSettings(Section):
    """The magnet. `driver` names its supply; the keys that are not described here belong to that driver."""

    model_config = ConfigDict(extra="allow")

    driver: str
    """Name of an installed field driver, for example `visa`."""
    limit_mT: tuple[float, float]
    """Lowest and highest field; others are refused, never clamped."""
    slew_mT_per_s: Annotated[float, Field(gt=0)]
    """The field never changes faster, not even on its way to the safe state."""
    tolerance_mT: Annotated[float, Field(gt=0)]
    """How far the read-back may be from what was set. Farther is a fault, and leads to the safe state."""
    settle_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """How long the read-back may lag behind what is set."""
    safe: Literal["zero", "hold"] = "zero"
    """Where the field goes when the run ends, the service is killed or hangs, or something is wrong. It concerns only a
    field that was set by the service: what is only read is left alone."""
    heartbeat_s: Annotated[float, Field(ge=0.2, le=60)] = 2.0
    """The safe state begins this long after the last sign of life of a service that hangs."""
    read_every_ms: Annotated[float, Field(ge=5, le=1000)] = 25.0
    """The field is read back, and moved on by a step, this often."""
    pulse_limit_mT: tuple[float, float] | None = None
    """Lowest and highest in-plane field of a pulse, where the supply can give pulses; absent: none is given."""
    pulse_limit_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """Longest pulse."""
    initial_mT: float | None = None
    """Set before the first frame; absent: the field is left as found, and only read."""
    calibration: Calibration | None = None
    """From the supply's unit to mT at the sample; needed unless the supply takes mT."""

    _settings: DriverSettings = PrivateAttr()

    @model_validator(mode="after")
    def _check_driver(self) -> Self:
        try:
            kind = devices.driver("fields", self.driver)
        except MissingExtraError:
            raise
        except SettingsError as error:
            raise SettingsError(f"field.{error}") from error
        try:
            self._settings = kind.Settings.model_validate(self.model_extra or {})
        except ValidationError as error:
            raise SettingsError(sentence(error, kind.Settings, "field", list(type(self).model_fields))) from None
        unit = getattr(self._settings, "unit", getattr(kind, "unit", "mT"))
        if unit != "mT" and self.calibration is None:
            raise SettingsError(f"field.calibration: this key is missing; it leads from {unit} to mT")
        return self

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        low, high = self.limit_mT
        if not low < high:
            raise ValueError(f"limit_mT is [{low:g}, {high:g}]; allowed: [lowest, highest]")
        if self.calibration is not None:
            least, most = self.calibration.range_mT
            if not least <= low < high <= most:
                raise ValueError(
                    f"limit_mT is [{low:g}, {high:g}], but the calibration holds from {least:g} to {most:g} mT; "
                    "allowed: limits inside it"
                )
        if self.pulse_limit_mT is not None and not self.pulse_limit_mT[0] < self.pulse_limit_mT[1]:
            least, most = self.pulse_limit_mT
            raise ValueError(f"pulse_limit_mT is [{least:g}, {most:g}]; allowed: [lowest, highest]")
        if self.safe == "zero" and not low <= 0 <= high:
            raise ValueError(f"limit_mT is [{low:g}, {high:g}] without zero; allowed: limits with zero, or safe: hold")
        if self.initial_mT is not None and not low <= self.initial_mT <= high:
            raise ValueError(f"initial_mT is {self.initial_mT:g}; allowed: {low:g} to {high:g} (limit_mT)")
        return self

    @property
    def supply_name(self) -> str | None:
        """What tells this supply from every other one of this computer; None: there is none to be had."""
        kind = type(self._settings)
        if kind.identity is None:
            return None
        values = self._settings.model_dump(mode="json", include=set(kind.identity) or None)
        keys = ", ".join(f"{key}: {value}" for key, value in sorted(values.items()))
        return f"'{self.driver}' ({keys})".lower()

    def open(self) -> FieldSource:
        """Open the supply, which sets nothing. For the field guard only. Names keys like `CameraSettings.open`."""
        try:
            return cast(FieldSource, devices.driver("fields", self.driver)(self._settings))
        except SettingsError as error:
            raise SettingsError(f"field.{error}") from error


class AnalysisSettings(Section):
    """How frames become masks."""

    model: str = "compact"
    """A shipped model (`skyseg models`) or the path of a .safetensors file."""
    engine: EngineChoice = "auto"
    """`auto`: TensorRT on a CUDA GPU, else torch there; without a GPU OpenVINO, else torch on the CPU.
    `openvino-int8` takes three quarters of the time of `openvino`, see docs/performance.md."""
    policy: Literal["latest", "every"] = "latest"
    """`latest`: an analysis that falls behind goes on with the newest frame; the others are skipped and counted.
    `every`: none is skipped."""
    lag_frames: Annotated[int, Field(ge=1, le=100)] = 3
    """Policy `latest`: frames that may wait, so that a hiccup skips none; one more, and only the newest is kept."""
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """CPU threads of the engine; absent: one per core."""
    captions: bool = True
    """Caption bars along a side and scale bars that a program drew into the image are found and left out: class outside
    there, and the network is shown film. False: images are taken as they are."""
    rings: bool = True
    """Interference rings of the light are taken out of the image that the network is shown."""
    large_domains: bool = True
    """Domains beyond some 80 px, which the network does not see whole, are sought in the image made four times smaller,
    where neighbouring parts of it are so alike that there may be some."""
    close_gaps: bool = True
    """Gaps of up to 8 px between skyrmions or stripes are closed where they are dark themselves: a stripe that noise
    has broken is one stripe."""
    specks: bool = True
    """Small dark objects that are as bright on their other side, as drift leaves specks of dirt, are defects where
    there are few objects; and with no more than four, what the border cuts down to 3 px: an empty film stays empty."""
    queue_frames: Annotated[int, Field(ge=1, le=4096)] = 16
    """Policy `every`: frames that may wait for analysis. Then a recording waits, a live camera's frame is skipped."""


class PrepareSettings(Section):
    """From a microscope's raw image to a difference image, frame by frame; absent: frames are segmented as they are."""

    background: Annotated[str, Field(min_length=1)] = "none"
    """Image that is subtracted: `none`; `take`: the mean of the next frames, on request (`skyseg tell
    take_background`); `rolling_median` of the frames before, where what is sought moves; or the path of an image or a
    run file."""
    median_frames: Annotated[int, Field(ge=3, le=101)] = 15
    """Frames of the rolling median."""
    median_every: Annotated[int, Field(ge=1, le=10_000)] = 32
    """The median takes one analysed frame in so many, and the background is renewed as often."""
    drift: bool = False
    """True: how far each frame has moved is measured, and the background is shifted onto it."""
    drift_quality: Annotated[float, Field(ge=0)] = 8.0
    """Where the correlation's peak is lower (in its standard deviations; chance reaches 5), the last drift is held."""
    average_frames: Annotated[int, Field(ge=1, le=64)] = 1
    """Mean of the last so many analysed frames."""
    crop_px: tuple[int, int, int, int] | None = None
    """[left, top, width, height] of what is analysed; masks keep the frame's size, with class outside beyond it."""
    flat_field: Annotated[str, Field(min_length=1)] = "none"
    """Evens out the illumination: `none`; `background`: what is smooth in the background; or an image file of it."""

    @property
    def background_path(self) -> str | None:
        """The background's file, where it comes from one."""
        return None if self.background in ("none", "take", "rolling_median") else self.background

    @property
    def flat_field_path(self) -> str | None:
        """The illumination's file, where it comes from one."""
        return None if self.flat_field in ("none", "background") else self.flat_field

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop_px is not None:
            left, top, width, height = self.crop_px
            if min(left, top) < 0 or min(width, height) < 16:
                raise ValueError(
                    f"crop_px is {list(self.crop_px)}; allowed: [left, top, width, height], sides of 16 px or more"
                )
        if self.flat_field == "background" and self.background == "none":
            raise ValueError("flat_field is 'background', but there is none; allowed: with background: take or a file")
        return self


class MeasureSettings(Section):
    """What counts as an object."""

    min_area_px: Annotated[int, Field(ge=1)] = 10
    """Smaller objects are ignored."""
    stripe_slenderness: Annotated[float, Field(gt=1)] = 2.7
    """An object of at least this many times the area of the largest disc inside it is a stripe, not a skyrmion. In a
    mask 2.7 is what 3 is in a label or on the sample: optics and network round long things off (decision 46)."""
    polarity: Polarity = "auto"
    """Skyrmions are darker or brighter than the film, all alike: what is found of the other kind is taken out of the
    mask. `both` keeps all. `auto`: of a network that takes both the larger part is kept; for one that knows dark ones
    only the run's frames tell it, which is said in an event. Say it if you know it: it quietens a saturated film.
    """
    pixel_size_um: Annotated[float, Field(gt=0)] | None = None
    """Side of a pixel on the sample, stored with the run."""


class StreamSettings(Section):
    """The ZeroMQ stream of masks and counts."""

    enabled: bool = True
    """False: nothing is published."""
    address: str = DEFAULT_ADDRESS
    """Where to bind; port 0 takes a free one. What others can reach needs `access.keys` or `insecure: true`."""
    insecure: bool = False
    """True: bind an address that others can reach, unencrypted and without access control."""
    queue_messages: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Messages kept for each slow subscriber; what does not fit is lost to it and counted."""
    heartbeat_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Longest time between two heartbeats."""
    wait_for_subscribers: Annotated[int, Field(ge=0, le=1000)] = 0
    """Start the camera once this many clients have joined."""
    wait_s: Annotated[float, Field(gt=0)] = 30.0
    """Give up waiting for subscribers after this time."""

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str) -> str:
        return checked_address(address)


class ControlSettings(Section):
    """The socket that takes requests: `skyseg tell`, `sky.Control`."""

    enabled: bool | None = None
    """False: no requests are taken; absent: as `stream.enabled`."""
    address: str | None = None
    """Where to bind; absent: on this computer, one port above the stream's (port 0: a free one). What others can
    reach needs `access.keys`.
    """

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        return None if address is None else checked_address(address)


class AccessSettings(Section):
    """Who may connect to the stream and to the control socket."""

    keys: Path | None = None
    """Folder that `skyseg keys` has made: all connections are encrypted, and only clients whose key is in it come in.
    Absent: no encryption, for this computer only.
    """


class MetricsSettings(Section):
    """Figures for Prometheus, over HTTP."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """They are at http://127.0.0.1:PORT/metrics, for this computer only; 0: a free port; absent: nowhere."""


class DashboardSettings(Section):
    """The page that shows the run in a browser of this computer."""

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """It is at http://127.0.0.1:PORT while the run goes on, as by `skyseg dashboard`; absent: nowhere."""
    control: bool = False
    """The page may ask for fields, notes and the end of the run."""


#: Names that Windows keeps for devices.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(1, 10))}


def _file_name(name: str) -> str:
    """A name that every system takes as one file's."""
    if re.search(r'[\x00-\x1f\x7f/\\:*?"<>|]', name) or name != name.strip(" .") or name.startswith("-"):
        raise ValueError('a file name has no / \\ : * ? " < > |, begins with no - and ends with no dot or space')
    if name.split(".")[0].casefold() in _DEVICES:
        raise ValueError("this is the name of a device on Windows")
    return name


class RecordSettings(Section):
    """The run file. Every raw frame is saved."""

    folder: Path = Path("runs")
    """Folder of the run file; made if absent."""
    name: Annotated[str, Field(min_length=1, max_length=150), AfterValidator(_file_name)] = "{time}"
    """Name of the run file without suffix; `{time}` becomes the start time. No existing file is overwritten."""
    queue_frames: Annotated[int, Field(ge=1, le=4096)] = 64
    """Frames that may wait for the disk. A recording then waits; a live camera's frame is lost and counted."""
    flush_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """Longest time between two flushes: what a kill can cost. A power cut costs the time of the disk's own cache more.
    """
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    """CPU threads that compress."""
    volume_gb: Annotated[float, Field(gt=0)] | None = None
    """Raw frames and masks go to further files of about so many GB before compression, in the folder NAME.volumes
    beside the run file, which shows them as its own; absent: all in one file."""
    stall_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """An alarm is given when the disk does not answer for so long."""
    title: str = ""
    """What this run is."""
    sample: str = ""
    """Name of the sample."""
    operator: str = ""
    """Who measured."""

    @model_validator(mode="before")
    @classmethod
    def _read_the_old_name(cls, values: Any) -> Any:
        """Version 0.1 said `segment_gb` for `volume_gb`."""
        if isinstance(values, dict) and "segment_gb" in values and "volume_gb" not in values:
            values = {"volume_gb" if key == "segment_gb" else key: value for key, value in values.items()}
        return values
