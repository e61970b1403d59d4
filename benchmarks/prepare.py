"""What the stage `prepare` costs, step by step, on one core: python benchmarks/prepare.py [--height 512 --width 672].

`--plot docs/images/raw-images.png` draws the picture of docs/raw-images.md instead.

Each line switches one more step on; the time is that of the whole stage as the service measures it, scaling for the
network included. Frames drift slowly and vibrate by 0.1 px, as under a microscope. `cpu` is the median of the time that
this thread had a core: on a busy computer it says more than the time on the clock.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
from matplotlib.figure import Figure
from realtime_skyseg_simulator.film import Film
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.config import PrepareSettings
from realtime_skyseg.plots import overlay
from realtime_skyseg.preparation import Preparation
from realtime_skyseg.records import Background
from realtime_skyseg.segmentation.scaling import scale_mirrored

MARGIN = 24


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=672)
    parser.add_argument("--frames", type=int, default=200, help="per line")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.plot:
        draw(options.plot)
        return
    shape = (options.height, options.width)
    sample = np.ones((shape[0] + 2 * MARGIN, shape[1] + 2 * MARGIN), np.float32)
    camera = KerrCamera(sample.shape, shape, 1, KerrSettings(vibration_px=0.1, background_frames=1))
    background = Background(np.mean([camera.take(sample) for _ in range(8)], axis=0, dtype=np.float32), 0, "benchmark")
    frames = [camera.take(sample) for _ in range(32)]

    subtract = {"background": "take"}
    drift = {**subtract, "drift": True}
    even = {**drift, "flat_field": "background"}
    lines = [
        ("nothing (scaling for the network only)", None),
        ("background", subtract),
        ("+ drift", drift),
        ("+ flat field", even),
        ("+ average of 2 frames", {**even, "average_frames": 2}),
        ("everything on: average of 8 frames", {**even, "average_frames": 8}),
        ("everything on: average of 16 frames", {**even, "average_frames": 16}),
        ("everything on, rolling median instead", {**even, "average_frames": 8, "background": "rolling_median"}),
    ]
    print(f"{shape[0]} x {shape[1]} px, {options.frames} frames a line, one core")
    print(f"{'':42}{'median':>9}{'p10':>9}{'p90':>9}{'cpu':>9}  ms")
    for name, keys in lines:
        wall, cpu = measure(keys, shape, background, frames, options.frames)
        middle, low, high = np.percentile(wall, [50, 10, 90])
        print(f"{name:42}{middle:9.2f}{low:9.2f}{high:9.2f}{np.median(cpu):9.2f}")


def measure(
    keys: dict[str, object] | None, shape: tuple[int, int], background: Background, frames: list[np.ndarray], n: int
) -> tuple[list[float], list[float]]:
    """Milliseconds per frame on the clock and on the core, without the first frames."""
    prepare = None
    warm_up = 20
    if keys is not None:
        rolling = keys["background"] == "rolling_median"
        prepare = Preparation(PrepareSettings.model_validate(keys), shape, None if rolling else [background])
        warm_up = 32 * 16 if rolling else 20  # until the median is there, of all its frames
    scaled = np.empty(shape, np.float32)
    wall, cpu = [], []
    for index in range(warm_up + n):
        frame = frames[index % len(frames)]
        begun, begun_cpu = time.perf_counter(), time.thread_time()
        scale_mirrored(prepare(frame, index).image if prepare else frame, scaled)
        wall.append((time.perf_counter() - begun) * 1e3)
        cpu.append((time.thread_time() - begun_cpu) * 1e3)
    return wall[warm_up:], cpu[warm_up:]


def draw(path: Path) -> None:
    """A simulated raw frame with a contrast of 1 %, after each step, and what is found in it."""
    shape = (256, 336)
    film = Film(shape[0] + 2 * MARGIN, shape[1] + 2 * MARGIN, seed=3)
    saturated = film.saturate().copy()
    film.pulse(0.12)
    film.step(0.12, 150)
    skyrmions = film.step(0.2, 60)
    camera = KerrCamera(film.shape, shape, 5, KerrSettings(contrast=0.01, drift_px=(0.04, 0.03), vibration_px=0.1))
    take = Preparation(PrepareSettings(background="take", drift=True), shape)
    take.take_background(64)
    taken = next(one for index in range(64) for one in take(camera.take(saturated), index).backgrounds).image
    frames = [camera.take(skyrmions) for _ in range(8)]
    segmenter = Segmenter.load("compact")
    steps = [
        ("minus the background", {}),
        ("... shifted onto the frame", {"drift": True}),
        ("... mean of 8 frames", {"drift": True, "average_frames": 8, "flat_field": "background"}),
    ]
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    axes[0].imshow(frames[-1], cmap="gray")
    axes[0].set_title("raw frame, contrast 1 %")
    axes[1].imshow(taken, cmap="gray")
    axes[1].set_title("background: mean of 64 frames at saturation")
    for axis, (title, keys) in zip(axes[2:], steps, strict=False):
        settings = PrepareSettings.model_validate({"background": "take", **keys})
        prepare = Preparation(settings, shape, [Background(taken, 0, "picture")])
        for index, frame in enumerate(frames):
            prepared = prepare(frame, index)
        axis.imshow(prepared.image, cmap="gray", vmin=np.percentile(prepared.image, 0.5),
                    vmax=np.percentile(prepared.image, 99.5))  # fmt: skip
        axis.set_title(title)
    found = segmenter(prepared.image)
    axes[5].imshow(overlay(prepared.image, found.mask), interpolation="nearest")
    axes[5].set_title(f"... and its mask: {found.count} skyrmions, {found.stripes} stripes")
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
