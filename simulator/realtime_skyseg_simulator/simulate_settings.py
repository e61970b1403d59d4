"""Settings of `skyseg simulate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from realtime_skyseg import config
from realtime_skyseg.devices import DriverSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg_simulator.kerr_camera import KerrSettings
from realtime_skyseg_simulator.samples import FilmSampleSettings, Pattern, SampleSettings


def _check_rising(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("should be [lowest, highest]")
    return limits


Range = Annotated[tuple[float, float], AfterValidator(_check_rising)]


class Stage(DriverSettings):
    """Some frames of a sequence under one field, or under a field that rises or falls evenly."""

    frames: Annotated[int, Field(ge=1)]
    field_mT: float | tuple[float, float]
    """Out of plane: one value, or that of the first and of the last frame."""
    in_plane_mT: float = 0.0
    recorded: bool = True
    """False: time passes, but no image is taken."""


class _RecordingSettings(DriverSettings):
    """What both kinds of recordings share."""

    title: str = ""
    """What this recording is."""
    view_px: tuple[Annotated[int, Field(ge=32, le=4096)], Annotated[int, Field(ge=32, le=4096)]] = (512, 672)
    """Height and width of the images."""
    image: Literal["difference", "raw"] = "difference"
    """Difference images, as a microscope's own software shows them, or what the camera gives."""


class SequenceSettings(_RecordingSettings):
    """One sample and one microscope; the field follows stages."""

    kind: Literal["sequence"] = "sequence"
    sample: SampleSettings = FilmSampleSettings()
    camera: KerrSettings = KerrSettings()
    camera_seed: Annotated[int, Field(ge=0)] = 1
    """Of all that is random in the microscope."""
    rate_hz: Annotated[float, Field(gt=0, le=1000)] = 16.0
    stages: Annotated[list[Stage], Field(min_length=1)]

    @property
    def n_frames(self) -> int:
        """Images that are taken."""
        return sum(stage.frames for stage in self.stages if stage.recorded)


class EnsembleSettings(_RecordingSettings):
    """Every frame is of another sample under another microscope. The defaults resemble real images.

    Of a pair of values, the first and the last one allowed; drawn evenly in the logarithm where both are positive, else
    evenly.
    """

    kind: Literal["ensemble"]
    frames: Annotated[int, Field(ge=1, le=100_000)] = 100
    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything."""
    particles_share: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Frames that show a sample of kind `particles`; the others show films."""
    stripes_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Films that begin with stripes instead of skyrmions."""
    patterns: tuple[Pattern, ...] = ("disc", "triangle", "wire", "hall_bar")
    pattern_share: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Frames that show an element of one of these patterns."""
    scale: Range = (0.6, 2.4)
    """Of films, see `FilmSampleSettings.scale`: sets the size of the skyrmions."""
    pulse_field: Range = (0.32, 0.5)
    """Out-of-plane field under which a film's skyrmions nucleate, relative to the annihilation field: sets their
    number, and how round they are."""
    field: Range = (0.1, 0.75)
    """Field of the frame, relative to the annihilation field: sets their size, and, where it is high, their number."""
    diameter_px: Range = (8, 32)
    """Of particles, without field."""
    coverage: Range = (0.07, 0.6)
    """Share of the sample that particles would cover without field."""
    cnr_median: Annotated[float, Field(gt=0)] = 2.4
    """Contrast relative to noise; log-normal."""
    cnr_spread: Annotated[float, Field(ge=0, le=2)] = 0.36
    """Standard deviation of its logarithm."""
    grey_contrast: Range = (42, 85)
    grey_level: Range = (90, 160)
    drift_px: Annotated[float, Field(ge=0, le=10)] = 0.3
    """Standard deviation, per axis, of the drift since the background."""
    gradient: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation, per axis, of the change of the light across the view, relative to the contrast."""
    defocus_px: Range = (0.3, 1.2)
    dirt_spots: Annotated[tuple[int, int], AfterValidator(_check_rising)] = (0, 60)

    @property
    def n_frames(self) -> int:
        """Images that are taken."""
        return self.frames


RecordingSettings = SequenceSettings | EnsembleSettings


def load_recording(path: str | Path, overrides: Sequence[str] = ()) -> RecordingSettings:
    """Read the settings of a recording.

    Args:
        path: YAML; `kind` is `sequence` (the default) or `ensemble`.
        overrides: "key.subkey=value" texts that replace values of the file.

    Raises:
        SettingsError: one sentence that names the key, the value and what is allowed.
    """
    tree = config.read_yaml(path)
    for override in overrides:
        tree = config.overridden(tree, override)
    kinds: dict[object, type[RecordingSettings]] = {"sequence": SequenceSettings, "ensemble": EnsembleSettings}
    kind = kinds.get(tree.get("kind", "sequence"))
    if kind is None:
        raise SettingsError(f"kind: {tree['kind']!r} is not allowed; allowed: {', '.join(map(str, kinds))}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(config.sentence(error, kind)) from None
