"""Difference images as other laboratories' microscopes write them: one large bubble, a caption bar or none.

    python benchmarks/microscopes.py [--model compact] [--images 60] [--out docs/images/microscopes.png]

A bubble of 80 to 400 px at a contrast of 0.7 to 2 times the noise, in frames of 640x480 to 2048x2048, 8 or 16 bits,
stretched over the whole range, half of them with a caption bar with letters and a scale bar. The text tells how often
the bubble is found and counted once, and what is found in the caption.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from rich.progress import track

import realtime_skyseg as sky
from realtime_skyseg.records import Class, Segmentation

SIZES = (480, 640), (512, 672), (768, 1024), (1024, 1344), (1200, 1600), (2048, 2048)  # (height, width)
DIAMETER_PX = 80, 400
CNR = 0.7, 2.0
FIRST_SEED = 7000


@dataclass(frozen=True, slots=True)
class Made:
    """An image, and what is in it."""

    image: NDArray[np.uint8] | NDArray[np.uint16]
    bubble: NDArray[np.bool_]
    caption: NDArray[np.bool_]
    cnr: float
    diameter: float


def make(index: int) -> Made:
    """The image of that number."""
    random = np.random.default_rng(FIRST_SEED + index)
    height, width = SIZES[index % len(SIZES)]
    diameter = float(np.exp(random.uniform(*np.log(DIAMETER_PX))))
    diameter = min(diameter, 0.7 * height)
    cnr = random.uniform(*CNR)
    bubble = _bubble(random, (height, width), diameter)
    # The optics' kernel is left small beside the noise's grain, so that the contrast to noise is that of the image.
    default = KerrSettings()
    electrons = default.exposure_ms * default.electrons_per_ms
    noise = ((electrons + default.read_noise**2) * (1 + 1 / default.background_frames)) ** 0.5 / electrons
    settings = KerrSettings(
        contrast=cnr * noise, dirt_spots=int(random.integers(0, 6)), grey_contrast=20 * cnr, bits=16, dirt_depth=0.05
    )
    camera = KerrCamera((height, width), (height, width), FIRST_SEED + index, settings, None)
    magnetisation = np.where(bubble, -1, 1).astype(np.float32)
    image = camera.difference(camera.take(magnetisation)).astype(np.float32)
    low, high = np.percentile(image, (0.1, 99.9))
    share = ((image - low) / (high - low)).clip(0, 1)
    caption = np.zeros((height, width), np.bool_)
    if index % 2:
        share, caption = _captioned(random, share)
        bubble = np.pad(bubble, ((0, caption.shape[0] - height), (0, 0)))
    sixteen = bool(index // 2 % 2)
    made = np.round(share * (65535 if sixteen else 255)).astype(np.uint16 if sixteen else np.uint8)
    return Made(made, bubble, caption, cnr, diameter)


def _bubble(random: np.random.Generator, shape: tuple[int, int], diameter: float) -> NDArray[np.bool_]:
    """An oval with a wall that wavers, somewhere in the frame."""
    height, width = shape
    stretch = float(np.exp(random.uniform(0, 0.35)))
    reach = diameter / 2 * stretch * 1.15
    y, x = (random.uniform(min(reach, side / 2), max(side - reach, side / 2)) for side in (height, width))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    turn = random.uniform(0, np.pi)
    along = (columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)
    across = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
    angle = np.arctan2(across * stretch, along / stretch)
    radius = np.hypot(across * stretch, along / stretch)
    wall = np.ones_like(angle)
    for wave in range(2, 7):
        wall += random.normal(0, 0.1 / wave) * np.cos(wave * angle + random.uniform(0, 2 * np.pi))
    return np.asarray(radius < diameter / 2 * wall)


def _captioned(
    random: np.random.Generator, share: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The image with a black or white bar below, with letters and a scale bar."""
    height, width = share.shape
    tall = int(random.uniform(0.035, 0.09) * height)
    ink = 255 if random.random() < 0.7 else 0
    bar: NDArray[np.uint8] = np.full((tall, width), 255 - ink, np.uint8)
    size = tall / 45
    text = random.choice(["20.0x  1.25 mT  50 ms  2024-05-17", "Polar Kerr  B = -3.2 mT  avg 16", "Sample A7  100 um"])
    place = int(0.03 * width), int(0.68 * tall)
    cv2.putText(bar, str(text), place, cv2.FONT_HERSHEY_SIMPLEX, size, ink, max(1, round(2 * size)), cv2.LINE_AA)
    left = int(0.75 * width)
    cv2.rectangle(bar, (left, int(0.45 * tall)), (left + int(0.18 * width), int(0.6 * tall)), ink, -1)
    caption = np.zeros((height + tall, width), np.bool_)
    caption[height:] = True
    return np.vstack([share.astype(np.float32), (bar / 255).astype(np.float32)]), caption


@dataclass(frozen=True, slots=True)
class Row:
    """What was found in one image."""

    iou: float
    counted: int
    inside_caption: int
    outside: float
    ms: float


def score(made: Made, segmenter: sky.Segmenter) -> tuple[Row, Segmentation]:
    """Of one image."""
    segmenter.open(made.image.shape)
    began = perf_counter()
    found = segmenter(made.image)
    took = perf_counter() - began
    seen = found.mask == Class.SKYRMION
    iou = float((seen & made.bubble).sum() / (seen | made.bubble).sum())
    outside = float((found.mask[~made.caption] == Class.OUTSIDE).mean())
    counted = (found.count or 0) + (found.stripes or 0)
    inside = int((seen & made.caption).sum())
    return Row(iou, counted, inside, outside, 1000 * took), found


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("docs/images/microscopes.png"))
    arguments = parser.parse_args()
    segmenter = sky.Segmenter.load(arguments.model)
    rows, drawn = [], []
    for index in track(range(arguments.images), "images"):
        made = make(index)
        row, found = score(made, segmenter)
        rows.append(row)
        if index < 6:
            drawn.append((made, found))
        if row.iou < 0.85 or row.counted != 1 or row.inside_caption or row.outside > 0.005:
            print(
                f"image {index}: {made.image.shape} {made.image.dtype}, bubble of {made.diameter:.0f} px at "
                f"{made.cnr:.1f}: IoU {row.iou:.2f}, {row.counted} counted, outside {row.outside:.1%}, "
                f"{row.inside_caption} px in the caption"
            )
    right = [row.iou >= 0.85 and row.counted == 1 for row in rows]
    print(
        f"{arguments.model}: bubble found (IoU .85) and counted once in {np.mean(right):.1%} of {len(rows)}; in the "
        f"caption {sum(row.inside_caption > 0 for row in rows)} images; outside at most "
        f"{max(row.outside for row in rows):.2%}; median IoU {np.median([row.iou for row in rows]):.3f}"
    )
    draw(drawn, arguments.out)


def draw(drawn: list[tuple[Made, Segmentation]], path: Path) -> None:
    """The picture."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 8), layout="constrained")
    for axis, (made, found) in zip(axes.flat, drawn, strict=False):
        axis.imshow(made.image, cmap="gray")
        colours = {Class.SKYRMION: "tab:orange", Class.OUTSIDE: "tab:blue"}
        for value, colour in colours.items():
            if (found.mask == value).any():
                axis.contour(found.mask == value, [0.5], colors=colour, linewidths=1.2)
        counted = (found.count or 0) + (found.stripes or 0)
        axis.set(title=f"{made.diameter:.0f} px, CNR {made.cnr:.1f}: {counted} counted", xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    main()
