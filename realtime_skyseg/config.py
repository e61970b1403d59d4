"""The settings: one YAML file, one tree, unknown keys refused.

Units stand in the names (`rate_hz`, `flush_s`, `field_mT`). Relative paths are relative to the working directory.
`python -m realtime_skyseg.config` prints the JSON Schema for editors (kept in `configs/skyseg.schema.json`).
"""

import contextlib
import difflib
import ipaddress
import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from realtime_skyseg import devices, yaml_text
from realtime_skyseg.analysers.running import RunningAnalyser, load_settings
from realtime_skyseg.calibration import Calibration
from realtime_skyseg.devices import Camera, DriverSettings, FieldSource
from realtime_skyseg.errors import CameraError, MissingExtraError, SettingsError, SkysegError
from realtime_skyseg.programme import ExperimentSettings, check_quantities
from realtime_skyseg.programme import check as check_programme
from realtime_skyseg.records import FRAME_QUANTITIES, Polarity, printable
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
    """Every so manieth analysed frame is one of them; the background is renewed as often."""
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
    stripe_slenderness: Annotated[float, Field(gt=1)] = 3.0
    """An object of at least this many times the area of the largest disc inside it is a stripe, not a skyrmion."""
    polarity: Polarity = "auto"
    """Skyrmions are darker or brighter than the film, all alike: what is found of the other kind is taken out of the
    mask. `auto` keeps the larger part, `both` keeps all. Say it where you know it: it also quietens a saturated film.
    """
    pixel_size_um: Annotated[float, Field(gt=0)] | None = None
    """Side of a pixel on the sample, stored with the run."""


class StreamSettings(Section):
    """The ZeroMQ stream of masks and counts."""

    enabled: bool = True
    """False: nothing is published."""
    address: str = DEFAULT_ADDRESS
    """Where to bind; port 0 takes a free one. What other machines can reach needs `access.keys` or `insecure: true`."""
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
        return _address(address)


class ControlSettings(Section):
    """The socket that takes requests: `skyseg tell`, `sky.Control`."""

    enabled: bool | None = None
    """False: no requests are taken; absent: as `stream.enabled`."""
    address: str | None = None
    """Where to bind; absent: on this machine, one port above the stream's (port 0: a free one). What other machines can
    reach needs `access.keys`.
    """

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        return None if address is None else _address(address)


class AccessSettings(Section):
    """Who may connect to the stream and to the control socket."""

    keys: Path | None = None
    """Folder that `skyseg keys` has made: all connections are encrypted, and only clients whose key is in it come in.
    Absent: no encryption, for this machine only.
    """


class MetricsSettings(Section):
    """Figures for Prometheus, over HTTP."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """They are at http://127.0.0.1:PORT/metrics, for this machine only; 0: a free port; absent: nowhere."""


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
    segment_gb: Annotated[float, Field(gt=0)] | None = None
    """Raw frames and masks go to further files of about so many GB before compression, in the folder NAME.segments
    beside the run file, which shows them as its own; absent: all in one file."""
    stall_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """An alarm is given when the disk does not answer for so long."""
    title: str = ""
    """What this run is."""
    sample: str = ""
    """Name of the sample."""
    operator: str = ""
    """Who measured."""


class Config(Section):
    """Everything that `skyseg run` needs to know."""

    camera: CameraSettings
    field: FieldSettings | None = None
    """The magnet; absent: the service has nothing to do with it."""
    prepare: PrepareSettings | None = None
    """What is done to a frame before it is segmented; absent: nothing."""
    analysis: AnalysisSettings = AnalysisSettings()
    measure: MeasureSettings = MeasureSettings()
    stream: StreamSettings = Field(default_factory=StreamSettings)
    control: ControlSettings = ControlSettings()
    access: AccessSettings = AccessSettings()
    metrics: MetricsSettings = MetricsSettings()
    record: RecordSettings = RecordSettings()
    analysers: dict[str, dict[str, Any] | None] = {}
    """What else is measured on each frame: names of installed analysers, with the settings of each; see
    docs/analyser.md."""
    experiment: ExperimentSettings | None = None
    """A field programme and its rules; absent: the field stays, unless somebody asks for another one."""

    @model_validator(mode="after")
    def _check_analysers(self) -> Self:
        self.open_analysers()
        return self

    def open_analysers(self) -> list[RunningAnalyser]:
        """The analysers of a run, in the order of the settings."""
        running: list[RunningAnalyser] = []
        seen = set(FRAME_QUANTITIES)
        for name, tree in self.analysers.items():
            try:
                kind, settings = load_settings(name, tree or {})
                one = RunningAnalyser(name, kind(settings))
            except ValidationError as error:
                raise SettingsError(
                    sentence(error, devices.driver("analysers", name).Settings, f"analysers.{name}")
                ) from None
            except SettingsError as error:
                raise SettingsError(f"analysers.{error}") from error
            except Exception as error:
                raise SettingsError(
                    f"analysers.{name}: cannot be made: {type(error).__name__}: {printable(error)}"
                ) from error
            if taken := seen & set(one.quantities):
                raise SettingsError(
                    f"analysers.{name}: '{min(taken)}' is a quantity of another one; allowed: a new name"
                )
            seen |= set(one.quantities)
            running.append(one)
        return running

    @model_validator(mode="after")
    def _check_experiment(self) -> Self:
        if self.experiment is not None:
            if self.field is None:
                raise ValueError("experiment: a field programme needs a magnet; allowed: with a section field")
            extra = [q.name for one in self.open_analysers() if one.pace == "every_frame" for q in one.of("frame")]
            try:
                check_quantities(self.experiment, extra)
                check_programme(self.experiment, self.field)
            except ValueError as error:
                raise ValueError(f"experiment.{error}") from None
        return self

    @model_validator(mode="after")
    def _check_open(self) -> Self:
        stream, control = self.stream, self.control_address
        if self.access.keys is None:
            if stream.enabled and not stream.insecure and not is_loopback(stream.address):
                raise ValueError(
                    f"stream.address: '{stream.address}' can be reached from other machines; allowed: "
                    "tcp://127.0.0.1:PORT, with keys (access.keys, see skyseg keys), or with stream.insecure: true"
                )
            if control is not None and not is_loopback(control):
                raise ValueError(
                    f"control.address: '{control}' can be reached from other machines; allowed: tcp://127.0.0.1:PORT, "
                    "or with keys (access.keys, see skyseg keys)"
                )
        return self

    @property
    def control_address(self) -> str | None:
        """Where the control socket is bound; None: nowhere."""
        wanted = self.stream.enabled if self.control.enabled is None else self.control.enabled
        if not wanted:
            return None
        if self.control.address is not None:
            return self.control.address
        port = urlsplit(self.stream.address).port or 0
        return f"tcp://127.0.0.1:{port + 1 if port else 0}"

    def to_yaml(self) -> str:
        """The full settings as YAML that `load_config` reads back."""
        return yaml_text.dump(self.model_dump(mode="json"))


#: What `skyseg demo` runs; `configs/demo.yaml` says the same.
DEMO: dict[str, Any] = {
    "camera": {"driver": "replay", "path": "bundled"},
    "analysis": {"policy": "every"},
    "record": {"name": "demo-{time}", "title": "demo on the bundled synthetic recording"},
}


ClassName = Literal["background", "skyrmion", "defect", "outside", "edge"]


#: Keys of `TrainingSettings` that make the network.
SHAPE_KEYS = {"unshuffle", "filters", "depth", "doubled_from", "split_levels"}


class TrainingSettings(Section):
    """What `skyseg train` needs to know."""

    images: Path
    """Folder of images."""
    labels: Path
    """Folder of label pictures of the same names: colours, or class numbers in a single channel."""
    label_values: dict[int, ClassName] | None = None
    """What the numbers of single-channel labels mean; absent: 0 background, 1 skyrmion, 2 defect, 3 outside, 4 edge."""
    table: Path | None = None
    """CSV with the columns image, source_id, fold; absent: each image is a source of its own."""
    train_folds: Annotated[list[int], Field(min_length=1)] | None = None
    """Folds to learn from; needs `validate_folds`."""
    validate_folds: Annotated[list[int], Field(min_length=1)] | None = None
    """Folds to score on; never among `train_folds`."""
    validate_sources: Annotated[list[str], Field(min_length=1)] | None = None
    """Without folds: sources to score on; all others are learnt from."""
    validate_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """With neither: share of the sources to score on, drawn by `seed`."""
    out: Path
    """The model file to write; beside it a folder with curves and a table, and, until the end, a checkpoint."""
    start_from: str | None = None
    """Go on from a shipped model or a file, instead of from random weights; it also fixes the network."""
    teachers: list[str] = []
    """Models whose averaged probabilities are learnt beside the labels (distillation)."""
    steps: Annotated[int, Field(ge=1)] = 3000
    """Optimiser steps."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Crops per step."""
    crop_px: Annotated[int, Field(ge=64, multiple_of=32)] = 192
    """Side of a crop."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak of the schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """Of AdamW."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Of the moving average of the weights."""
    validate_every: Annotated[int, Field(ge=1)] = 200
    """Steps between two scores on the validation images, and between two checkpoints."""
    seed: int = 0
    """Of weights, sampling and augmentation."""
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """CPU threads; absent: one per core."""
    unshuffle: Literal[1, 2, 4] = 2
    """The network works on 1/unshuffle of the image's grid."""
    filters: Annotated[int, Field(ge=4, le=128)] = 16
    """Channels of the first level."""
    depth: Annotated[int, Field(ge=1, le=5)] = 3
    """Levels above the lowest."""
    doubled_from: Annotated[int, Field(ge=1, le=5)] = 1
    """The first level, counted from 0, that has twice the channels of the one above; so on below."""
    split_levels: Annotated[int, Field(ge=0, le=6)] = 0
    """Levels, from the first, with convolutions of 1x3 and 3x1 in the place of 3x3: two thirds of the work."""

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if (self.train_folds is None) != (self.validate_folds is None):
            raise ValueError("train_folds and validate_folds are set together, or neither")
        if self.train_folds and self.table is None:
            raise ValueError("train_folds needs the table that names the folds (table: CSV with column 'fold')")
        if self.train_folds and self.validate_sources:
            raise ValueError("validate_sources and folds exclude each other; allowed: one of them")
        both = set(self.train_folds or ()) & set(self.validate_folds or ())
        if both:
            raise ValueError(
                f"validate_folds has fold {sorted(both)[0]}, which is among train_folds; allowed: folds not trained on"
            )
        fixed = SHAPE_KEYS & self.model_fields_set
        if self.start_from and fixed:
            raise ValueError(f"{sorted(fixed)[0]} is fixed by the model of start_from; leave it out")
        return self


AnySettings = TypeVar("AnySettings", Config, TrainingSettings)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read and validate the YAML settings of a run.

    Args:
        path: the YAML file.
        overrides: "key.subkey=value" texts that replace values of the file; values are YAML.

    Raises:
        SettingsError: one sentence that names the key, the value and what is allowed.
    """
    return validate(_included(path), overrides)


def _included(path: str | Path) -> dict[str, Any]:
    """The tree of a settings file on top of the one that its key `include` names, from the file's own folder."""
    tree = read_yaml(path)
    if "include" not in tree:
        return tree
    name = tree.pop("include")
    if not isinstance(name, str):
        raise SettingsError(f"include: {name!r} is not allowed: a settings file, from the folder of '{path}'")
    below = read_yaml(Path(path).parent / name)
    if "include" in below:
        raise SettingsError(f"include: '{name}' has an include too; allowed: files without")
    return _merged(below, tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = below | above
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            both[key] = _merged(below[key], value)
    return both


def load_training(path: str | Path, overrides: Iterable[str] = ()) -> TrainingSettings:
    """Read and validate the YAML settings of a training. Raises like `load_config`."""
    return _validate(TrainingSettings, read_yaml(path), overrides)


def validate(tree: dict[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Validate settings that are already a tree of dictionaries. Raises like `load_config`."""
    return _validate(Config, tree, overrides)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text; a recording goes to camera.path"
        raise SettingsError(f"settings file '{path}' cannot be read: {reason}") from error
    try:
        tree = yaml_text.load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(
            f"settings file '{path}'{place}: not valid YAML ({getattr(error, 'problem', error)})"
        ) from error
    if not isinstance(tree, dict):
        held = "nothing" if tree is None else "a list" if isinstance(tree, list) else "a single value"
        raise SettingsError(f"settings file '{path}' holds {held}; allowed: a mapping of keys to values")
    return tree


def _address(address: str) -> str:
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "tcp" or not parts.hostname or port is None:
        raise ValueError("should be tcp://HOST:PORT, for example tcp://127.0.0.1:5555")
    return address


def is_loopback(address: str) -> bool:
    """True where only this machine can reach `tcp://HOST:PORT`."""
    host = urlsplit(address).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def json_schema() -> str:
    """The JSON Schema of `Config`, for editors; the drivers' keys are those of each installed driver."""
    schema = Config.model_json_schema()
    schema["properties"]["include"] = {
        "type": "string",
        "description": "Another settings file, from this one's folder; what is said here goes before it.",
    }
    schema["required"] = []  # an included file may say it
    for kind, section in (("cameras", CameraSettings), ("fields", FieldSettings)):
        common = schema["$defs"][section.__name__]
        choices = []
        for name in devices.drivers(kind):
            choice = devices.driver(kind, name).Settings.model_json_schema()
            driver = {**common["properties"], "driver": {**common["properties"]["driver"], "const": name}}
            choice["properties"] = {**driver, **choice.get("properties", {})}
            choice["required"] = [*common["required"], *choice.get("required", [])]
            schema["$defs"].update(choice.pop("$defs", {}))
            choices.append(choice)
        schema["$defs"][section.__name__] = {"description": section.__doc__, "oneOf": choices}
    return json.dumps(schema, indent=2) + "\n"


def _validate(kind: type[AnySettings], tree: dict[str, Any], overrides: Iterable[str]) -> AnySettings:
    for override in overrides:
        tree = overridden(tree, override, kind)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(sentence(error, kind)) from None


def overridden(tree: dict[str, Any], override: str, kind: Any = None) -> dict[str, Any]:
    """The settings with one replaced, `override` being "key=value". Raises `SettingsError` where it is not.

    Args:
        tree: the settings.
        override: the value is read as its key's kind, see `yaml_text.typed`.
        kind: what the tree is to become.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set '{override}': allowed: key=value, for example camera.rate_hz=25")
    first, *rest = key.strip().split(".")
    below_kind = _kind_of(kind, first, tree)
    if not rest:
        try:
            return {**tree, first: yaml_text.typed(text, below_kind)}
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {key}: '{text}' is not a YAML value") from error
    below = tree.get(first) or {}
    if isinstance(below, list):  # its items by their numbers
        if not (rest[0].isdigit() and int(rest[0]) < len(below)):
            raise SettingsError(f"--set {key}: '{rest[0]}' is not allowed: a number from 0 to {len(below) - 1}")
        items = {str(number): item for number, item in enumerate(below)}
        return {**tree, first: list(overridden(items, f"{'.'.join(rest)}={text}").values())}
    if not isinstance(below, dict):
        raise SettingsError(f"--set {key}: '{first}' is the value {below!r}, not a section")
    return {**tree, first: overridden(below, f"{'.'.join(rest)}={text}", below_kind)}


def _kind_of(kind: Any, key: str, tree: dict[str, Any]) -> Any:
    """The annotation of a key, as far as it can be known: of a driver's own keys too."""
    kind = next((one for one in (*get_args(kind), kind) if isinstance(one, type) and issubclass(one, BaseModel)), None)
    if kind is None:
        return None
    if key not in kind.model_fields and kind in (CameraSettings, FieldSettings) and "driver" in tree:
        with contextlib.suppress(SettingsError):
            kind = devices.driver("cameras" if kind is CameraSettings else "fields", str(tree["driver"])).Settings
    field = kind.model_fields.get(key)
    return field.annotation if field else None


#: Shows values in messages: what is long or deep is cut.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def sentence(error: ValidationError, kind: type[BaseModel], prefix: str = "", common: Sequence[str] = ()) -> str:
    """The first fault of a validation as one sentence, and how many more there are.

    Args:
        error: the faults.
        kind: what was validated.
        prefix: of the keys, where the settings are part of others.
        common: keys that those others allow beside the keys of `kind`.
    """
    faults = error.errors()
    # A misspelt key is often a missing one too: the misspelling says more.
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    location = [str(part) for part in fault["loc"]]
    key = ".".join([prefix, *location] if prefix else location)
    value = fault.get("input")
    if fault["type"] == "extra_forbidden":
        known = [*_keys(kind, location[:-1]), *(common if len(location) == 1 else ())]
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        text = f"{key}: unknown key; {hint}allowed: {', '.join(known)}"
    elif fault["type"] == "missing":
        text = f"{key}: this key is missing"
    else:
        message = _said(fault)
        others = [one for one in faults if _place(one) == _place(fault)]
        if len(others) > 1:  # a key that takes this or that
            key = ".".join(filter(None, [prefix, *_place(fault)]))
            message = " or ".join(dict.fromkeys(map(_said, others))).replace(" or input should be ", " or ")
            faults = [fault, *(one for one in faults if one not in others)]
        shown = "" if isinstance(value, dict | BaseModel) else f" {_SHORT.repr(value)} is not allowed:"
        if not shown and " is not allowed: " in message:  # it names a key of this section itself
            return f"{key}.{message}" if key else message
        text = f"{key}:{shown} {message}" if key else message
    more = len(faults) - 1
    return text + (f" (and {more} more)" if more else "")


def _said(fault: Any) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = "input should be a mapping of keys to values"
    return message[0].lower() + message[1:]


def _place(fault: Any) -> tuple[str, ...]:
    """Where a fault is, without the names that pydantic gives to the alternatives of a value."""
    return tuple(part for part in map(str, fault["loc"]) if "[" not in part and part not in _ALTERNATIVES)


_ALTERNATIVES = ("constrained-float", "constrained-int", "constrained-str", "float", "int", "str", "bool")


def _keys(kind: type[BaseModel], location: list[str]) -> list[str]:
    """The keys allowed at a place; in a list the place has the item's number, and the tag of its kind."""
    kinds = [kind]
    for part in location:
        tagged = [one for one in kinds if part in _tags(one)]
        if tagged:
            kinds = tagged
        elif not part.isdigit():
            kinds = [below for one in kinds if part in one.model_fields for below in _models(one, part)]
    return list(kinds[0].model_fields) if kinds else []


def _models(kind: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """The sections that a key may hold, in whatever lists and alternatives."""
    todo, found = [kind.model_fields[key].annotation], []
    while todo:
        one = todo.pop(0)
        if isinstance(one, type) and issubclass(one, BaseModel):
            found.append(one)
        todo += get_args(one)
    return found


def _tags(kind: type[BaseModel]) -> set[Any]:
    """What tells a kind from its alternatives: the values of `do` or `rule`."""
    fields = (kind.model_fields.get(name) for name in ("do", "rule"))
    return {value for one in fields if one is not None for value in get_args(one.annotation)}


if __name__ == "__main__":
    print(json_schema(), end="")  # noqa: T201
