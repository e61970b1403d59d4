"""Does the twin look real? The same figures of twin frames and of real labelled images, in a table and a picture.

    python benchmarks/twin_realism.py --data DIR [--settings configs/simulate.yaml] [--frames 120] [--out PNG]

DIR has images/, labels/ and table.csv, as `skyseg evaluate` reads them. One function, `figures`, looks at both.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from realtime_skyseg_simulator.simulate import simulate
from realtime_skyseg_simulator.simulate_settings import load_recording
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import ks_2samp

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.records import Class, Mask
from realtime_skyseg.training.labelled import read_labelled

FIGURES = {
    "cnr": "contrast / noise",
    "diameter": "median diameter (px)",
    "count": "skyrmions per frame",
    "fraction": "area fraction",
    "elongation": "median elongation",
    "contrast": "contrast (grey levels)",
    "noise": "noise (grey levels)",
    "whiteness": "correlation of neighbours' noise",
}
LOGARITHMIC = ("cnr", "diameter", "count")
CROP_PX = 224
PAIRS = 5


def figures(image: NDArray[np.generic], mask: Mask) -> dict[str, float]:
    """What an image (H, W) with its true mask is like; NaN where nothing is in it.

    Contrast is the difference of the means of background and of the skyrmions' insides (1 px from their borders, where
    they have such), noise the standard deviation of background at least 2 px from anything else; both after a coarse
    average was taken off, so that no gradient counts as noise.
    """
    pixels = image.astype(np.float32)
    if image.dtype == np.uint16:
        pixels /= 257
    found = measure(mask.copy(), polarity="both")
    skyrmion, background = mask == Class.SKYRMION, mask == Class.BACKGROUND
    quiet = cv2.erode(background.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    inside = cv2.erode(skyrmion.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    nothing = dict.fromkeys(FIGURES, float("nan")) | {"count": found.count, "fraction": found.area_fraction}
    if skyrmion.sum() < 10 or quiet.sum() < 200:
        return nothing
    weight = cv2.blur(quiet.astype(np.float32), (65, 65))
    level = cv2.blur(np.where(quiet, pixels, 0), (65, 65)) / np.maximum(weight, 1e-3)
    flat = pixels - level
    noise = float(flat[quiet].std())
    contrast = float(np.median(flat[quiet]) - np.mean(flat[inside if inside.sum() > 10 else skyrmion]))
    pair = quiet[:, 1:] & quiet[:, :-1]
    whiteness = float((flat[:, 1:][pair] * flat[:, :-1][pair]).mean()) / max(noise**2, 1e-9)
    return {
        "cnr": abs(contrast) / max(noise, 1e-6),
        "diameter": float(np.median(found.objects["diameter"])) if len(found.objects) else float("nan"),
        "count": found.count,
        "fraction": found.area_fraction,
        "elongation": float(np.median(found.objects["elongation"])) if len(found.objects) else float("nan"),
        "whiteness": whiteness,
        "contrast": contrast,
        "noise": noise,
    }


def show_table(real: dict[str, NDArray[np.float64]], twin: dict[str, NDArray[np.float64]]) -> None:
    """Print what 10, 50 and 90 % of the frames stay below, and how far apart the distributions are."""
    table = Table("", "real 10 / 50 / 90 %", "twin 10 / 50 / 90 %", "KS distance")
    for name, title in FIGURES.items():
        sides = [one[name][np.isfinite(one[name])] for one in (real, twin)]
        cells = [" / ".join(f"{v:.3g}" for v in np.percentile(side, [10, 50, 90])) for side in sides]
        table.add_row(title, *cells, f"{ks_2samp(*sides).statistic:.2f}")
    Console(width=120).print(table)


def draw(
    real: dict[str, NDArray[np.float64]],
    twin: dict[str, NDArray[np.float64]],
    real_images: list[NDArray[np.generic]],
    twin_images: list[NDArray[np.generic]],
    out: Path,
) -> None:
    """Draw the distributions, and real images above the twin frames whose figures are nearest to theirs."""
    figure = plt.figure(figsize=(11, 8.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.3))
    for axes, name in zip(upper.subplots(2, 3).flat, FIGURES, strict=False):
        both = np.concatenate([real[name], twin[name]])
        low, high = np.nanpercentile(both, [0.5, 99.5])
        bins = np.geomspace(max(low, 1e-3), high, 16) if name in LOGARITHMIC else np.linspace(low, high, 16)
        for side, label, style in ((real, "real", {"color": "0.6"}), (twin, "twin", {"histtype": "step", "lw": 2})):
            values = side[name][np.isfinite(side[name])]
            axes.hist(values, bins, weights=np.full(len(values), 100 / len(values)), label=label, **style)
        if name in LOGARITHMIC:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(FIGURES[name])
        axes.set_ylabel("% of frames")
    axes.legend()
    compared = ("cnr", "diameter", "fraction", "elongation")
    points = [np.stack([np.log(np.maximum(side[name], 1e-3)) for name in compared], -1) for side in (real, twin)]
    spread = np.nanstd(points[0], axis=0)
    known = np.flatnonzero(np.isfinite(points[0]).all(1))
    order = known[np.argsort(real["diameter"][known])]
    chosen = order[(np.linspace(0.1, 0.93, PAIRS) * len(order)).astype(int)]
    grid = lower.subplots(2, PAIRS)
    for column, index in enumerate(chosen):
        distance = (((points[1] - points[0][index]) / spread) ** 2).sum(1)
        nearest = int(np.nanargmin(distance))
        for row, (image, side, at) in enumerate(((real_images, real, index), (twin_images, twin, nearest))):
            axes = grid[row, column]
            top, left = ((size - CROP_PX) // 2 for size in image[at].shape)
            axes.imshow(image[at][top : top + CROP_PX, left : left + CROP_PX], cmap="gray", vmin=0, vmax=255)
            text = f"{'real' if row == 0 else 'twin'}: CNR {side['cnr'][at]:.1f}, {side['diameter'][at]:.0f} px"
            axes.set_title(text, fontsize=9)
            axes.set_axis_off()
    figure.savefig(out, dpi=90)
    print(f"picture: {out}")


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/, labels/ and table.csv")
    parser.add_argument("--settings", type=Path, default=Path("configs/simulate.yaml"))
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("docs/images/twin-realism.png"))
    options = parser.parse_args()
    settings = load_recording(options.settings, [f"frames={options.frames}"])
    pairs = read_labelled(options.data / "images", options.data / "labels", options.data / "table.csv")
    frames = list(track(simulate(settings), "simulating", options.frames, console=Console(stderr=True)))
    sides = []
    for images, masks in (
        ([pair.image for pair in pairs], [pair.mask for pair in pairs]),
        ([frame.image for frame in frames], [frame.truth.mask for frame in frames]),
    ):
        rows = [figures(image, mask) for image, mask in zip(images, masks, strict=True)]
        sides.append(({name: np.array([row[name] for row in rows]) for name in FIGURES}, images))
    (real, real_images), (twin, twin_images) = sides
    show_table(real, twin)
    draw(real, twin, real_images, twin_images, options.out)


if __name__ == "__main__":
    main()
