"""What the twin's samples do: python benchmarks/twin_behaviour.py [--out docs/images/twin-behaviour.png]

Prints counts and diameters against the field at 512x512, beside those of the prototype that the film is checked
against, and the diffusion of free particles; draws counts, the loop, and what the microscope shows of several samples.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from realtime_skyseg_simulator.film import Film
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from realtime_skyseg_simulator.kinds import open_sample
from realtime_skyseg_simulator.samples import FilmSampleSettings, ParticleSampleSettings
from rich.console import Console
from rich.progress import track
from rich.table import Table

FIELDS = (0.12, 0.16, 0.20, 0.24, 0.26, 0.28, 0.30, 0.32, 0.34, 0.36, 0.38, 0.40)
PROTOTYPE_COUNTS = (406, 394, 377, 343, 308, 260, 194, 114, 43, 3, 0, 0)
PROTOTYPE_DIAMETERS = (14.8, 13.8, 12.4, 11.1, 10.5, 9.6, 9.0, 8.3, 7.9, 6.3, np.nan, np.nan)
SEEDS = (1, 2, 3, 4, 5)
STEPS = 225  # at each field
SHOWN_PX = (300, 400)


def annihilation() -> tuple[np.ndarray, np.ndarray]:
    """Counts (seed, field), and median diameters over all seeds (field), as the field rises after a pulse."""
    counts = np.zeros((len(SEEDS), len(FIELDS)), int)
    sizes: list[list[float]] = [[] for _ in FIELDS]
    for row, seed in enumerate(track(SEEDS, "annihilation", console=Console(stderr=True))):
        film = Film(512, 512, seed)
        film.saturate()
        film.pulse(0.12)
        film.step(0.12, 150)
        for column, field in enumerate(FIELDS):
            reversed_ = (film.step(field, STEPS) < 0).astype(np.uint8)
            area = cv2.connectedComponentsWithStats(reversed_, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
            area = area[area >= 10]
            counts[row, column] = len(area)
            sizes[column].extend(np.sqrt(4 * area / np.pi))
    return counts, np.array([np.median(of) if of else np.nan for of in sizes])


def loop() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fields, and the mean of phi on the way down and on the way up."""
    film = Film(256, 256, seed=1)
    film.saturate()
    fields = np.arange(0.5, -0.501, -0.02)
    down = np.array([film.step(float(field), 20).mean() for field in fields])
    up = np.array([film.step(float(-field), 20).mean() for field in fields])[::-1]
    return fields, down, up


def diffusion() -> float:
    """Coefficient in um^2/s of free particles that were given 0.3, from displacements in 0.25 s."""
    sample = open_sample(ParticleSampleSettings(skyrmions=2000, diameter_um=0.8, pins=0, repulsion_kT=0), 512, 672)
    squares = []
    for _ in range(32):
        before = sample.positions_um.copy()  # type: ignore[attr-defined]
        for _ in range(4):
            sample.advance(1 / 16, 0.0)
        squares.append(((sample.positions_um - before) ** 2).sum(1))  # type: ignore[attr-defined]
    return float(np.mean(squares) / (4 * 0.25))


def gallery() -> list[tuple[str, np.ndarray]]:
    """Titles and images (H, W) uint8 of several samples under the same microscope."""
    film, particles = FilmSampleSettings(seed=2), ParticleSampleSettings(seed=2, skyrmions=120, pins=200)
    samples = [
        ("film, 0 mT: stripes", film.model_copy(update={"start": "demagnetised", "start_mT": 0.0}), 0.0),
        ("film, 1.2 mT, after a pulse", film, 1.2),
        ("film, 3.1 mT", film, 3.1),
        ("particles, 0.5 mT", particles, 0.5),
        ("film, disc", film.model_copy(update={"pattern": "disc", "pattern_size": 0.9}), 1.8),
        ("film, Hall bar, against phi = -1", film.model_copy(update={"pattern": "hall_bar", "pattern_size": 0.9}), 1.8),
        ("particles, triangle", particles.model_copy(update={"pattern": "triangle", "skyrmions": 25}), 0.5),
    ]
    shown = []
    for title, settings, field_mT in samples:
        sample = open_sample(settings, *SHOWN_PX)
        for _ in range(30):
            sample.advance(1 / 16, field_mT)
        against = "down" if "against" in title else "up"
        optics = KerrSettings(contrast=0.02, grey_contrast=45, background=against)
        camera = KerrCamera(sample.shape, SHOWN_PX, 3, optics, sample.element)
        shown.append((title, camera.image(sample.magnetisation())))
        if title.startswith("film, 1.2"):
            raw = camera.take(sample.magnetisation())
            low, high = np.percentile(raw, [0.1, 99.9])
            grey = np.clip((raw - low) / (high - low) * 255, 0, 255).astype(np.uint8)
            shown.append(("the same, raw (stretched)", grey))
    return shown


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/twin-behaviour.png"))
    options = parser.parse_args()
    counts, diameters = annihilation()
    table = Table("h", f"count, mean of {len(SEEDS)} seeds", "each", "prototype", "diameter (px)", "prototype")
    for i, field in enumerate(FIELDS):
        each = " ".join(map(str, counts[:, i]))
        cells = (f"{counts[:, i].mean():.0f}", each, str(PROTOTYPE_COUNTS[i]))
        table.add_row(f"{field:.2f}", *cells, f"{diameters[i]:.1f}", f"{PROTOTYPE_DIAMETERS[i]:.1f}")
    Console(width=120).print(table)
    print(f"diffusion of free particles: {diffusion():.4f} um^2/s; given: 0.3")

    figure = plt.figure(figsize=(11, 8), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    left, middle, right = upper.subplots(1, 3)
    left.plot(FIELDS, counts.T, color="C0", alpha=0.5, label=[f"seed {seed}" for seed in SEEDS])
    left.plot(FIELDS, PROTOTYPE_COUNTS, "k+", ms=9, label="prototype")
    left.set(xlabel="h", ylabel="objects at 512x512")
    left.legend(fontsize=8)
    middle.plot(FIELDS, diameters, color="C0")
    middle.plot(FIELDS, PROTOTYPE_DIAMETERS, "k+", ms=9)
    middle.set(xlabel="h", ylabel="median diameter (px)", ylim=(0, 16))
    fields, down, up = loop()
    right.plot(fields, down, label="down")
    right.plot(fields, up, label="up")
    right.set(xlabel="h", ylabel="mean of phi")
    right.legend(fontsize=8)
    for axes, (title, image) in zip(lower.subplots(2, 4).flat, gallery(), strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    figure.savefig(options.out, dpi=90)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
