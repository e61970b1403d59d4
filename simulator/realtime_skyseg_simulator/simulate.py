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
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from realtime_skyseg.errors import SettingsError
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from realtime_skyseg_simulator.kinds import open_sample
from realtime_skyseg_simulator.labelled_files import FolderWriter, Hdf5Writer, LabelledFrame, TiffWriter, Writer
from realtime_skyseg_simulator.samples import (
    FilmSampleSettings,
    FilmSettings,
    ParticleSampleSettings,
    Pattern,
    Sample,
    truth_of,
)
from realtime_skyseg_simulator.simulate_settings import (
    EnsembleSettings,
    RecordingSettings,
    SequenceSettings,
    load_recording,
)

_RELAXING_STEPS = 120  # of an ensemble's film at its own field


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
        writers: list[Writer] = []
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
