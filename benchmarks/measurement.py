"""What the stage `measure` takes, in a loop: python benchmarks/measurement.py

Masks of discs that do not touch, one after the other of twenty, with an image in which they are dark. Medians over 200
calls; `least` is the fastest call.
"""

import time

import numpy as np

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.bench import discs
from realtime_skyseg.records import Class

#: Objects, height, width.
FIELDS = [(300, 512, 672), (500, 512, 672), (4500, 512, 672), (4500, 1536, 2016)]


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    for n, height, width in FIELDS:
        masks = [discs(n, (height, width), rng) * np.uint8(Class.SKYRMION) for _ in range(20)]
        noise = rng.normal(0, 0.2, (height, width)).astype(np.float32)
        images = [noise - np.float32(0.8) * (mask == Class.SKYRMION) for mask in masks]
        took_ms = []
        for call in range(220):
            mask, image = masks[call % 20].copy(), images[call % 20]
            begun = time.perf_counter()
            found = measure(mask, 3, 3.0, image)
            took_ms.append((time.perf_counter() - begun) * 1e3)
        took_ms = took_ms[20:]  # the first ones compile
        print(
            f"{len(found.objects):5d} objects on {height}x{width}: median {np.median(took_ms):.2f} ms, "
            f"least {min(took_ms):.2f} ms"
        )


if __name__ == "__main__":
    main()
