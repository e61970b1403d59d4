"""Counted against true in every state of the film, on films of the twin that no training saw.

    python benchmarks/states.py [--model compact] [--films 10] [--out docs/images/states.png]

Each film goes from saturation to no field and back, in both contrasts; then come saturated films with correlated noise,
dirt that drifts and interference rings. The picture shows counts over the field; the text tells where a count misses
the truth by more than 3 and 8 %.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from realtime_skyseg_simulator.film import FilmSample
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from realtime_skyseg_simulator.samples import FilmSampleSettings, truth_of
from rich.progress import track

import realtime_skyseg as sky

VIEW = 320, 448
HIGHEST_MT, STEP_MT, REST_S = 4.4, 0.2, 1.25
CNR = 1.5, 3.0
FIRST_SEED = 9000


@dataclass(frozen=True, slots=True)
class Row:
    """One image."""

    film: int
    cnr: float
    branch: str
    field_mT: float
    true: int
    counted: int
    stripes: int

    @property
    def misses(self) -> bool:
        """By more than 3 and more than 8 %."""
        return abs(self.counted - self.true) > max(3, 0.08 * self.true)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--films", type=int, default=10)
    parser.add_argument("--empty", type=int, default=2000, help="saturated frames")
    parser.add_argument("--out", type=Path, default=Path("docs/images/states.png"))
    arguments = parser.parse_args()
    segmenter = sky.Segmenter.load(arguments.model, polarity="dark")
    rows = [row for film in track(range(arguments.films), "loops") for row in loop(film, segmenter)]
    for cnr in CNR:
        for branch in ("down", "up"):
            here = [row for row in rows if row.cnr == cnr and row.branch == branch]
            missed = [row for row in here if row.misses]
            worst = max(here, key=lambda row: abs(row.counted - row.true))
            print(
                f"CNR {cnr:g}, field going {branch}: {len(here) - len(missed)} of {len(here)} within 3 or 8 %; worst "
                f"at {worst.field_mT:.1f} mT: {worst.counted} counted, {worst.true} true, {worst.stripes} stripes"
            )
    for name, counts in empty(segmenter, arguments.empty).items():
        share = np.mean(np.array(counts) == 0)
        print(f"saturated, {name}: none counted in {share:.1%} of {len(counts)}, at most {max(counts)}")
    draw(rows, arguments.out)


def loop(film: int, segmenter: sky.Segmenter) -> list[Row]:
    """A film from saturation to no field and back."""
    sample = FilmSample(FilmSampleSettings(seed=FIRST_SEED + film, start="saturated", start_mT=HIGHEST_MT), *VIEW)
    cameras = {cnr: camera_of(sample.shape, cnr, FIRST_SEED + film) for cnr in CNR}
    n = round(HIGHEST_MT / STEP_MT)
    down = np.linspace(HIGHEST_MT, 0, n + 1).tolist()
    rows = []
    for branch, fields in (("down", down), ("up", down[::-1])):
        for field_mT in fields:
            sample.advance(REST_S, field_mT)
            for cnr, camera in cameras.items():
                image = camera.difference(camera.take(sample.magnetisation()))
                true = truth_of(camera.take_truth(sample.truth().mask)).count
                found = segmenter(image)
                counted, stripes = found.count or 0, found.stripes or 0
                rows.append(Row(film, cnr, branch, field_mT, true, counted, stripes))
    return rows


def camera_of(shape: tuple[int, int], cnr: float, seed: int, spots: int = 0) -> KerrCamera:
    """A microscope with that contrast between up and down, relative to the noise, before the optics blur it."""
    default = KerrSettings()
    electrons = default.exposure_ms * default.electrons_per_ms
    noise = ((electrons + default.read_noise**2) * (1 + 1 / default.background_frames)) ** 0.5 / electrons
    settings = KerrSettings(contrast=cnr * noise, grey_contrast=30, dirt_spots=spots)
    return KerrCamera(shape, VIEW, seed, settings, None)


def empty(segmenter: sky.Segmenter, n: int) -> dict[str, list[int]]:
    """Counts in saturated films, by what else there is to see."""
    random = np.random.default_rng(FIRST_SEED)
    up = np.ones((VIEW[0] + 40, VIEW[1] + 40), np.float32)
    kinds = ("noise over 1 px", "noise over 2 px", "noise over 3 px", "dirt that drifts", "interference rings")
    counts: dict[str, list[int]] = {kind: [] for kind in kinds}
    rows, columns = np.mgrid[: VIEW[0], : VIEW[1]].astype(np.float32)
    camera = camera_of(up.shape, 3, 1, spots=25)
    for index in track(range(n), "saturated"):
        kind = kinds[index % len(kinds)]
        if kind == "dirt that drifts":
            image = camera.difference(camera.take(up))
            if index % 200 == 3:
                camera = camera_of(up.shape, 3, index, spots=25)
        else:
            grain = random.standard_normal(VIEW).astype(np.float32)
            if kind.startswith("noise"):
                grain = cv2.GaussianBlur(grain, (0, 0), float(kind.split()[2]))
            grain /= grain.std()
            if kind == "interference rings":
                y, x = random.uniform(-300, 700, 2)
                square = (rows - y) ** 2 + (columns - x) ** 2
                grain += random.uniform(0.2, 1) * np.cos(
                    square * np.pi / (random.uniform(12, 60) * square.max() ** 0.5)
                )
            image = (128 + 12 * grain).clip(0, 255).astype(np.uint8)
        found = segmenter(image)
        counts[kind].append((found.count or 0) + (found.stripes or 0))
    return counts


def draw(rows: list[Row], path: Path) -> None:
    """The picture."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    films = sorted({row.film for row in rows})[:4]
    figure, axes = plt.subplots(
        len(CNR), len(films), figsize=(3.4 * len(films), 6), layout="constrained", squeeze=False
    )
    for line, cnr in zip(axes, CNR, strict=True):
        for axis, film in zip(line, films, strict=True):
            for branch, colour, mark in (("down", "tab:blue", "v"), ("up", "tab:red", "^")):
                here = [row for row in rows if (row.film, row.cnr, row.branch) == (film, cnr, branch)]
                field = [row.field_mT for row in here]
                axis.plot(field, [row.true for row in here], "-", color=colour, lw=1, label=f"{branch}: true")
                axis.plot(field, [row.counted for row in here], mark, color=colour, ms=4, label=f"{branch}: counted")
            axis.set(title=f"film {film}, CNR {cnr:g}", xlabel="field (mT)", ylabel="skyrmions")
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(path)


if __name__ == "__main__":
    main()
