"""The command `skyseg simulate`: labelled recordings of the simulated microscope.

A recording is a sequence (one sample, stages of a field) or an ensemble (every frame another sample under another
microscope, drawn at random: for training and tests). It is written as

- `FILE.h5`: /frames (N, H, W), /masks (N, H, W) uint8 of `Class` values, one value per frame in /count, /field_mT,
  /in_plane_mT, /time_s, /source and /shift_px (N, 2: down, right, where the sample has drifted to), and /positions, one
  row (frame, x, y) per skyrmion; attributes of the root: layout, synthetic, rate_hz, settings (YAML);
- `FILE.tif`: the frames, with rate, field and true count as JSON in the first page's description;
- with `--folder DIR`: DIR/images, DIR/labels and DIR/table.csv, as `skyseg train` and `skyseg evaluate` read them.

The camera driver `replay` plays all three.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Protocol

import cv2
import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError
from rich.console import Console
from rich.progress import track

from realtime_skyseg import config, yaml_text
from realtime_skyseg.devices import DriverSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.hdf5_filters import bitshuffle
from realtime_skyseg.recordings import LabelledRecording
from realtime_skyseg.records import Class
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from realtime_skyseg_simulator.kinds import open_sample
from realtime_skyseg_simulator.samples import (
    FilmSampleSettings,
    FilmSettings,
    ParticleSampleSettings,
    Pattern,
    Sample,
    SampleSettings,
    Truth,
    truth_of,
)

LAYOUT = LabelledRecording.layout

_FOLDS = 5  # that the sources of a folder are dealt to
_RELAXING_STEPS = 120  # of an ensemble's film at its own field

#: Blue, green, red of a label picture, as labels of real images are coloured.
_COLOURS = {
    Class.BACKGROUND: (255, 0, 0),
    Class.SKYRMION: (0, 0, 255),
    Class.DEFECT: (0, 255, 0),
    Class.OUTSIDE: (0, 255, 255),
    Class.EDGE: (255, 255, 0),
}


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


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """One image of the simulated microscope, and what is truly in it."""

    image: NDArray[np.uint8] | NDArray[np.uint16]  # (H, W)
    truth: Truth  # of the view
    time_s: float
    field_mT: float
    in_plane_mT: float
    source: int  # frames of one source show the same sample
    shift_px: tuple[float, float]  # (down, right): where the sample has drifted to since the background


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


def simulate(settings: RecordingSettings) -> Iterator[LabelledFrame]:
    """The frames of a recording, one by one; the same settings give the same frames bit for bit."""
    return _sequence(settings) if isinstance(settings, SequenceSettings) else _ensemble(settings)


def _sequence(s: SequenceSettings) -> Iterator[LabelledFrame]:
    sample = open_sample(s.sample, *s.view_px)
    camera = KerrCamera(sample.shape, s.view_px, s.camera_seed, s.camera, sample.element)
    time_s = 0.0
    for stage in s.stages:
        first, last = stage.field_mT if isinstance(stage.field_mT, tuple) else (stage.field_mT,) * 2
        for field_mT in np.linspace(first, last, stage.frames).tolist():
            sample.advance(1 / s.rate_hz, field_mT, stage.in_plane_mT)
            if stage.recorded:
                yield _look(sample, camera, s.image, time_s, field_mT, stage.in_plane_mT, 0)
            time_s += 1 / s.rate_hz


def _ensemble(s: EnsembleSettings) -> Iterator[LabelledFrame]:
    for index in range(s.frames):
        random = np.random.default_rng([s.seed, index])  # so that frame 7 is the same, however many there are
        try:
            sample, field_mT = _any_sample(s, random)
            camera = _any_camera(s, random, sample)
        except ValidationError as error:  # a range reaches beyond what the sample or the microscope allows
            fault = error.errors()[0]
            raise SettingsError(
                f"frame {index} of the ensemble would have {fault['loc'][-1]} {fault['input']!r}: {fault['msg']}"
            ) from None
        yield _look(sample, camera, s.image, float(index), field_mT, 0.0, index)


def _look(
    sample: Sample,
    camera: KerrCamera,
    image: Literal["difference", "raw"],
    time_s: float,
    field_mT: float,
    in_plane_mT: float,
    source: int,
) -> LabelledFrame:
    raw = camera.take(sample.magnetisation())
    truth = truth_of(camera.take_truth(sample.truth().mask))
    pixels = raw if image == "raw" else camera.difference(raw)
    return LabelledFrame(pixels, truth, time_s, field_mT, in_plane_mT, source, camera.shift_px)


def _any_sample(s: EnsembleSettings, random: np.random.Generator) -> tuple[Sample, float]:
    """A sample at rest under its field, and the field."""
    pattern: Pattern = "none"
    if s.patterns and random.random() < s.pattern_share:
        pattern = s.patterns[random.integers(len(s.patterns))]
    common: dict[str, Any] = {
        "seed": int(random.integers(2**31)),
        "pattern": pattern,
        "pattern_size": float(random.uniform(0.5, 0.95)),
    }
    field_mT = float(random.uniform(*s.field)) * FilmSampleSettings().annihilation_mT
    if random.random() < s.particles_share:
        diameter_px, coverage = _draw(random, s.diameter_px), _draw(random, s.coverage)
        particles = ParticleSampleSettings(
            **common,
            skyrmions=min(max(1, int(coverage * math.prod(s.view_px) / (math.pi / 4 * diameter_px**2))), 5000),
            diameter_um=diameter_px * ParticleSampleSettings().pixel_um,
            diameter_spread=float(random.uniform(0, 0.2)),
            ellipticity=float(random.uniform(0.02, 0.1)),
            wall_px=float(random.uniform(1, 2.5)),
            diffusion_um2_per_s=2.0,  # so that soon they stand as they would after a long time
        )
        sample = _as_many_as_fit(particles, s.view_px)
        for _ in range(8):
            sample.advance(0.0625, 0.4 * field_mT)  # theirs shrink from the start
        return sample, 0.4 * field_mT
    settings = FilmSampleSettings(
        **common,
        scale=_draw(random, s.scale),
        start="demagnetised" if random.random() < s.stripes_share else "skyrmions",
        start_mT=float(random.uniform(*s.pulse_field)) * FilmSampleSettings().annihilation_mT,
        film=FilmSettings(
            gamma=float(random.uniform(0.66, 0.74)),
            pinning=float(random.uniform(0.01, 0.04)),
            anisotropy_disorder=float(random.uniform(0.05, 0.12)),
            pulse_temperature=float(random.uniform(0.15, 0.3)),
        ),
    )
    sample = open_sample(settings, *s.view_px)
    sample.advance(_RELAXING_STEPS / settings.steps_per_s, field_mT)
    return sample, field_mT


def _as_many_as_fit(settings: ParticleSampleSettings, view_px: tuple[int, int]) -> Sample:
    while True:
        try:
            return open_sample(settings, *view_px)
        except SettingsError:
            if settings.skyrmions == 1:
                raise
        settings = settings.model_copy(update={"skyrmions": settings.skyrmions * 2 // 3})


def _any_camera(s: EnsembleSettings, random: np.random.Generator, sample: Sample) -> KerrCamera:
    default = KerrSettings()
    electrons = default.exposure_ms * default.electrons_per_ms
    noise = math.sqrt((electrons + default.read_noise**2) * (1 + 1 / default.background_frames)) / electrons
    contrast = s.cnr_median * math.exp(s.cnr_spread * float(random.standard_normal())) * noise
    drift, gradient = random.standard_normal((2, 2))
    settings = KerrSettings(
        contrast=min(contrast, 0.5),
        grey_contrast=_draw(random, s.grey_contrast),
        grey_level=_draw(random, s.grey_level),
        offset_px=tuple(float(v) * s.drift_px for v in drift),
        illumination_drift=tuple(float(v) * s.gradient * contrast for v in gradient),
        dirt_spots=int(random.integers(s.dirt_spots[0], s.dirt_spots[1] + 1)),
        dirt_depth=float(random.uniform(0.02, 0.3)),
        background="up" if sample.element is None or random.random() < 0.4 else "down",
    )
    camera = KerrCamera(sample.shape, s.view_px, int(random.integers(2**31)), settings, sample.element)
    camera.defocus_px = _draw(random, s.defocus_px)
    return camera


def _draw(random: np.random.Generator, limits: tuple[float, float]) -> float:
    if min(limits) > 0:
        return math.exp(random.uniform(math.log(limits[0]), math.log(limits[1])))
    return float(random.uniform(*limits))


class _Writer(Protocol):
    def add(self, frame: LabelledFrame) -> None: ...


class Hdf5Writer(AbstractContextManager["Hdf5Writer"]):
    """Writes labelled frames into one HDF5 file; see the module for its layout. It has its name only when complete."""

    def __init__(self, path: Path, settings: RecordingSettings) -> None:
        """Make the file. Raises `SettingsError` where that is not possible, or the file exists."""
        self._path, self._settings = path, settings
        self._partial = path.with_name(path.name + ".partial")
        _refuse_existing(path)
        try:
            self._file = h5py.File(self._partial, "w")
        except OSError as error:
            raise SettingsError(f"--out: '{path}' cannot be written: {error}") from error
        rate_hz = settings.rate_hz if isinstance(settings, SequenceSettings) else 1.0
        self._file.attrs.update(
            layout=LAYOUT, synthetic=True, rate_hz=rate_hz, settings=yaml_text.dump(settings.model_dump(mode="json"))
        )

    def add(self, frame: LabelledFrame) -> None:
        """Append one frame."""
        index = len(self._file["count"]) if "count" in self._file else 0
        for name, value in (("frames", frame.image), ("masks", frame.truth.mask)):
            self._append(name, value, **bitshuffle)
        for name in ("time_s", "field_mT", "in_plane_mT", "source"):
            self._append(name, np.asarray(getattr(frame, name)))
        self._append("count", np.asarray(frame.truth.count, np.int32))
        self._append("shift_px", np.asarray(frame.shift_px))
        rows = np.zeros(frame.truth.count, [("frame", "<u4"), ("x", "<f4"), ("y", "<f4")])
        rows["frame"] = index
        rows["x"], rows["y"] = frame.truth.positions_px.T
        if "positions" not in self._file:
            self._file.create_dataset("positions", (0,), rows.dtype, maxshape=(None,), chunks=(1024,))
        table = self._file["positions"]
        table.resize(len(table) + len(rows), axis=0)
        table[len(table) - len(rows) :] = rows

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def _append(self, name: str, value: NDArray[Any], **compression: Any) -> None:
        if name not in self._file:
            chunks = (1, *value.shape) if value.ndim == 2 else (1024, *value.shape)
            self._file.create_dataset(
                name, (0, *value.shape), value.dtype, maxshape=(None, *value.shape), chunks=chunks, **compression
            )
        values = self._file[name]
        values.resize(len(values) + 1, axis=0)
        values[-1] = value


class TiffWriter(AbstractContextManager["TiffWriter"]):
    """Writes the frames as pages of one TIFF file; what is true of them goes into the first page's description."""

    def __init__(self, path: Path, settings: RecordingSettings) -> None:
        """Prepare; the file is written at the end. Raises `SettingsError` where it exists."""
        _refuse_existing(path)
        self._path, self._settings = path, settings
        self._frames: list[LabelledFrame] = []

    def add(self, frame: LabelledFrame) -> None:
        """Keep one frame."""
        self._frames.append(frame)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        description: dict[str, Any] = {"synthetic": True, "generator": "skyseg simulate"}
        if isinstance(self._settings, SequenceSettings):
            description["rate_hz"] = self._settings.rate_hz
        description["field_mT"] = [round(frame.field_mT, 6) for frame in self._frames]
        description["true_count"] = [frame.truth.count for frame in self._frames]
        try:
            with tifffile.TiffWriter(self._path) as tiff:
                for i, frame in enumerate(self._frames):
                    tiff.write(
                        frame.image,
                        compression="zlib",
                        compressionargs={"level": 9},
                        rowsperstrip=frame.image.shape[0],
                        photometric="minisblack",
                        description=json.dumps(description) if i == 0 else None,
                        metadata=None,
                    )
        except OSError as error:
            raise SettingsError(f"--out: '{self._path}' cannot be written: {error.strerror}") from error


class FolderWriter(AbstractContextManager["FolderWriter"]):
    """Writes each frame as a pair of PNG files, and a table that says which frames show the same sample."""

    def __init__(self, folder: Path) -> None:
        """Make the folders. Raises `SettingsError` where that is not possible, or there are images already."""
        self._images, self._labels = folder / "images", folder / "labels"
        _refuse_existing(self._images)
        try:
            for one in (self._images, self._labels):
                one.mkdir(parents=True, exist_ok=True)
            self._table = (folder / "table.csv").open("w", newline="")
        except OSError as error:
            raise SettingsError(f"--folder: '{folder}' cannot be written: {error.strerror}") from error
        self._rows = csv.writer(self._table)
        self._rows.writerow(["image", "label", "source_id", "fold", "field_mT", "true_count"])
        self._colours = np.array([_COLOURS[value] for value in Class], np.uint8)
        self._n = 0

    def add(self, frame: LabelledFrame) -> None:
        """Write one pair."""
        name = f"{self._n:06d}.png"
        for folder, pixels in ((self._images, frame.image), (self._labels, self._colours[frame.truth.mask])):
            _, data = cv2.imencode(".png", pixels)
            (folder / name).write_bytes(data.tobytes())  # cv2.imwrite cannot write every Windows path
        row = (f"images/{name}", f"labels/{name}", frame.source, frame.source % _FOLDS, frame.field_mT)
        self._rows.writerow([*row, frame.truth.count])
        self._n += 1

    def __exit__(self, *_: object) -> None:
        self._table.close()


def command(arguments: Sequence[str]) -> int:
    """`skyseg simulate`: returns the exit status. Raises `SettingsError` for wrong settings and paths."""
    parser = argparse.ArgumentParser(prog="skyseg simulate", description="Make a labelled synthetic recording.")
    parser.add_argument("config", type=Path, help="YAML settings, for example configs/simulate.yaml")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write: .h5 with the truth, or .tif")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="write images/, labels/ and table.csv for training")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value")
    options = parser.parse_args(arguments)
    settings = load_recording(options.config, options.set)
    if options.out is None and options.folder is None:
        raise SettingsError("--out: this option is missing; needed: --out FILE, --folder DIR or both")
    kinds: dict[str, Callable[[Path, RecordingSettings], Any]] = {
        ".h5": Hdf5Writer, ".hdf5": Hdf5Writer, ".tif": TiffWriter, ".tiff": TiffWriter,
    }  # fmt: skip
    with ExitStack() as stack:
        writers: list[_Writer] = []
        if options.out is not None:
            kind = kinds.get(options.out.suffix.lower())
            if kind is None:
                raise SettingsError(f"--out: '{options.out}' has no known suffix; allowed: {', '.join(kinds)}")
            writers.append(stack.enter_context(kind(options.out, settings)))
        if options.folder is not None:
            writers.append(stack.enter_context(FolderWriter(options.folder)))
        counts = []
        for frame in track(simulate(settings), "simulating", settings.n_frames, console=Console(stderr=True)):
            for writer in writers:
                writer.add(frame)
            counts.append(frame.truth.count)
    made = " and ".join(str(path) for path in (options.out, options.folder) if path is not None)
    sys.stdout.write(f"{len(counts)} frames in {made}; skyrmions per frame: {min(counts)} to {max(counts)}\n")
    return 0


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise SettingsError(f"'{path}' exists already and is not overwritten; choose another name")
