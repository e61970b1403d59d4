"""What the stage `measure` takes, in a loop: python benchmarks/measurement.py

Masks of discs that hardly touch, one after the other of twenty, with an image in which they are dark. Medians over
200 calls; `least` is the fastest call.
"""

import math
import time

import cv2
import numpy as np

from realtime_skyseg.analysis import measure
from realtime_skyseg.records import Class

#: Objects, height, width, radius in px.
FIELDS = [(300, 512, 672, 7), (500, 512, 672, 6), (4500, 512, 672, 2), (4500, 1536, 2016, 6)]


def field(n: int, height: int, width: int, radius: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A mask and its scaled image."""
    columns = math.ceil(math.sqrt(n * width / height))
    step = width / columns
    mask = np.zeros((height, width), np.uint8)
    for place in range(n):
        row, column = divmod(place, columns)
        y, x = ((cell + 0.5) * step + rng.integers(-1, 2) for cell in (row, column))
        cv2.circle(mask, (int(x), int(y)), radius + int(rng.integers(0, 2)), int(Class.SKYRMION), -1)
    image = rng.normal(0, 0.2, mask.shape).astype(np.float32)
    image[mask == Class.SKYRMION] -= 0.8
    return mask, image


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    for n, height, width, radius in FIELDS:
        fields = [field(n, height, width, radius, rng) for _ in range(20)]
        took_ms = []
        for call in range(220):
            mask, image = fields[call % 20]
            mask = mask.copy()
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
