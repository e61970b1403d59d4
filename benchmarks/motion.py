"""What tracks are worth: links against the truth by displacement, and diffusion from images of Brownian skyrmions.

    python benchmarks/motion.py linking [--plot docs/images/linking.png]
    python benchmarks/motion.py diffusion [--seeds 20] [--cnr 3]

The first moves the points of a jittered lattice and of a liquid at random, drops and adds some, and counts right links;
trackpy links the same points. The second goes the whole way: particles of the twin, its microscope, the network, the
tracks, D and its error bar.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from realtime_skyseg_simulator.particles import ParticleSample
from realtime_skyseg_simulator.samples import ParticleSampleSettings
from rich.progress import track

import realtime_skyseg as sky
from realtime_skyseg.analysers import View
from realtime_skyseg.analysers.motion import diffusion
from realtime_skyseg.analysers.tracks import Linker, TrackAnalyser, TrackSettings, spacing_of
from realtime_skyseg.records import Kind

VIEW = 320, 448
PIXEL_UM, DIFFUSION, RATE_HZ, FRAMES = 0.2, 0.3, 16.0, 60
SHARES = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5])


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("linking", "diffusion"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/linking.png"))
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cnr", type=float, default=3.0, help="before the optics; in the image it is two thirds")
    arguments = parser.parse_args()
    if arguments.what == "linking":
        linking(arguments.points, arguments.seeds, arguments.plot)
    else:
        diffusing(arguments.seeds, arguments.cnr)


def lattice(n: int, random: np.random.Generator) -> np.ndarray:
    """(n, 2) points of a triangular lattice of spacing 1, jittered by a tenth."""
    side = math.ceil(math.sqrt(n))
    y, x = np.mgrid[:side, :side]
    points = np.stack([(x + 0.5 * (y % 2)).ravel(), y.ravel() * math.sqrt(3) / 2], 1)[:n]
    return points + random.normal(0, 0.1, points.shape)


def liquid(n: int, random: np.random.Generator) -> np.ndarray:
    """(n, 2) points that keep 0.7 apart, as dense as a lattice of spacing 1 in the mean."""
    side = math.sqrt(n * math.sqrt(3) / 2)
    points = np.zeros((0, 2))
    while len(points) < n:
        new = random.uniform(0, side, 2)
        if not len(points) or np.hypot(*(points - new).T).min() > 0.7:
            points = np.concatenate([points, new[None]])
    return points


def linking(n: int, seeds: int, path: Path) -> None:
    """Precision and recall of links between two frames, by the step relative to the spacing."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, make) in zip(axes, (("lattice", lattice), ("liquid", liquid)), strict=True):
        for whose, colour, marker in (("ours", "tab:blue", "o"), ("trackpy", "tab:orange", "s")):
            rows = []
            for share in track(SHARES, f"{name}, {whose}"):
                found = [_links(make, n, share, seed, whose) for seed in range(seeds if whose == "ours" else 3)]
                known = [one for one in found if one is not None]
                rows.append(np.mean(known, 0) if known else (np.nan, np.nan, np.nan))
            precision, recall, _ = np.array(rows).T
            trusted = np.array(rows)[:, 2]
            axis.plot(SHARES, precision, marker + "-", color=colour, label=f"precision, {whose}")
            axis.plot(SHARES, recall, marker + ":", color=colour, mfc="none", label=f"recall, {whose}")
            for share, row in zip(SHARES, rows, strict=True):
                print(f"{name}, {whose}, step {share:.2f} of the spacing: precision {row[0]:.3f}, recall {row[1]:.3f}")
            if whose == "ours":
                print(f"{name}: share of frames whose links are trusted: {np.round(trusted, 2).tolist()}")
        axis.axvspan(0.2, SHARES[-1], color="lightgray", alpha=0.5, label="not to be trusted")
        axis.set(xlabel="rms step / distance of nearest neighbours", title=name, ylim=(0, 1.02), xlim=(0, SHARES[-1]))
    axes[0].set_ylabel(f"links of {n} skyrmions, one in 20 missed or false")
    axes[0].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


def _links(make, n: int, share: float, seed: int, whose: str) -> tuple[float, float, float] | None:
    """Precision, recall, and whether our data say that the links are to be trusted; None: it gave up."""
    random = np.random.default_rng(seed)
    points = make(n, random)
    step = share * spacing_of(points) / math.sqrt(2)
    moved = points + random.normal(0, step, points.shape) + random.uniform(-0.1, 0.1, 2)
    frames, truth = [], []
    for one in (points, moved):
        kept = random.random(n) > 0.05
        false = random.uniform(one.min(0), one.max(0), (round(0.05 * n), 2))
        order = random.permutation(kept.sum() + len(false))
        frames.append(np.concatenate([one[kept], false])[order])
        truth.append(np.concatenate([np.flatnonzero(kept), np.full(len(false), -1)])[order])
    if whose == "ours":
        linker = Linker(memory=0)
        before, after = (linker(one) for one in frames)
        steps = linker.steps[np.isfinite(linker.steps[:, 0])]
        trusted = float(np.sqrt((steps**2).sum(1).mean()) / spacing_of(frames[1]) <= 0.2)
    else:
        import pandas as pd
        import trackpy

        trackpy.quiet()
        rows = pd.DataFrame([(k, x, y) for k, one in enumerate(frames) for x, y in one], columns=["frame", "x", "y"])
        try:
            numbers = trackpy.link(rows, search_range=0.5 * spacing_of(frames[1])).sort_index()["particle"].to_numpy()
        except trackpy.SubnetOversizeException:
            return None
        before, after, trusted = numbers[: len(frames[0])], numbers[len(frames[0]) :], np.nan
    name_of = dict(zip(before.tolist(), truth[0].tolist(), strict=True))
    linked = [(name_of[number], true) for number, true in zip(after.tolist(), truth[1].tolist(), strict=True)
              if number in name_of]  # fmt: skip
    right = sum(one == other >= 0 for one, other in linked)
    return right / max(len(linked), 1), right / len(set(truth[0]) & set(truth[1]) - {-1}), trusted


def diffusing(seeds: int, cnr: float) -> None:
    """D of free walkers through the microscope and the network, against the one they were made with."""
    default = KerrSettings()
    electrons = default.exposure_ms * default.electrons_per_ms
    noise = ((electrons + default.read_noise**2) * (1 + 1 / default.background_frames)) ** 0.5 / electrons
    segment = sky.Segmenter.load("compact", polarity="dark")
    true = DIFFUSION / PIXEL_UM**2 / RATE_HZ  # px^2 per frame
    off, sigmas, in_image, shares = [], [], [], []
    for seed in track(range(seeds), "seeds"):
        settings = ParticleSampleSettings(
            seed=seed, skyrmions=110, pixel_um=PIXEL_UM, diffusion_um2_per_s=DIFFUSION, pins=0, repulsion_kT=2,
        )  # fmt: skip
        sample = ParticleSample(settings, *VIEW)
        camera = KerrCamera(sample.shape, VIEW, seed, KerrSettings(contrast=cnr * noise, dirt_spots=10))
        analyser = TrackAnalyser(TrackSettings())
        rows = []
        total = np.zeros(2)
        for frame in range(FRAMES):
            sample.advance(1 / RATE_HZ, 0.0)
            image = camera.difference(camera.take(sample.magnetisation()))
            found = segment(image)
            if frame == 0:
                film, inside = image[found.mask == 0], image[found.mask == 1]
                in_image.append((np.median(film) - np.median(inside)) / film.std())
            values = analyser(View(frame, 0.0, math.nan, image, found.mask, found.objects, {}))
            total += (values.get("common_step_x_px", 0.0), values.get("common_step_y_px", 0.0))
            shares.append(values.get("step_over_spacing", np.nan))
            mine = (found.objects["kind"] == Kind.SKYRMION) & (found.objects["border"] == 0)
            points = np.stack([found.objects["x"], found.objects["y"]], 1).astype(float) - total
            rows += [(number, frame, *point) for number, point in zip(values["track"][mine], points[mine], strict=True)]
        table = np.array(rows)
        walk = diffusion(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2:])
        off.append(walk.constant / true - 1)
        sigmas.append((walk.constant - true) / walk.error)
    inside = np.mean(np.abs(sigmas) < 1)
    print(
        f"D of {seeds} films at CNR {np.mean(in_image):.2f} in the image, steps {np.nanmean(shares):.3f} spacings: "
        f"off by {np.mean(off):+.1%} in the mean, sd {np.std(off):.1%}, {np.abs(off).max():.1%} at most; "
        f"within one error bar in {inside:.0%}, within two in {np.mean(np.abs(sigmas) < 2):.0%}"
    )


if __name__ == "__main__":
    begun = time.perf_counter()
    main()
    print(f"{time.perf_counter() - begun:.0f} s")
