"""Time of the twin's parts on one core: python benchmarks/twin_speed.py [--height 512 --width 512]

Prints medians, and in brackets the fastest and the slowest tenth. Promised at 512x512: a film's step in 4.5 ms, a
camera frame in 12 ms.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
from realtime_skyseg_simulator.film import Film
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from realtime_skyseg_simulator.kinds import open_sample
from realtime_skyseg_simulator.samples import FilmSampleSettings, ParticleSampleSettings


def show(name: str, run: Callable[[], object], n: int = 100, per: int = 1) -> None:
    """Print the median of `n` runs and how they scatter, in ms; `per`: parts in a run."""
    for _ in range(5):
        run()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3 / per)
    low, median, high = np.percentile(times, [10, 50, 90])
    print(f"{name:<66} {median:6.2f} ms   ({low:.2f} to {high:.2f})")


def main() -> None:
    """Time everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    height, width = options.height, options.width
    size = f"{height}x{width}"

    film = Film(height, width)
    show(f"film {size}: a step (of 10)", lambda: film.step(0.2, 10), 40, per=10)
    margins = open_sample(FilmSampleSettings(start="saturated"), height, width)
    grown = f"{margins.shape[0]}x{margins.shape[1]}"
    show(f"film of a {size} view ({grown}): 1/16 s, 6 steps", lambda: margins.advance(1 / 16, 2.0), 40)
    show("   its truth: mask, positions, count", margins.truth)
    for skyrmions, pins in ((100, 200), (300, 600), (1000, 600)):
        sample = open_sample(ParticleSampleSettings(skyrmions=skyrmions, pins=pins), height, width)
        show(f"particles, {skyrmions} skyrmions, {pins} pins: 1/16 s", lambda s=sample: s.advance(1 / 16, 1.0), 40)

        def image(s=sample) -> None:
            s.advance(0.0, 1.0)
            s.magnetisation()

        show("   their image", image, 40)

    phi = film.step(0.2)
    for bits, average in ((12, 1), (8, 1), (16, 1), (12, 4)):
        camera = KerrCamera((height, width), settings=KerrSettings(camera_bits=bits, average=average))
        show(f"camera {size}: raw, {bits} bit, {average} exposure(s)", lambda c=camera: c.take(phi), 40)
    camera = KerrCamera((height, width))
    show(f"camera {size}: raw and difference image", lambda: camera.image(phi), 40)
    raw = camera.take(phi)
    show("   the difference alone", lambda: camera.difference(raw))
    camera = KerrCamera(margins.shape, (height, width))
    show(f"camera {size} view of {grown}: raw and difference image", lambda: camera.image(margins.magnetisation()), 40)


if __name__ == "__main__":
    main()
