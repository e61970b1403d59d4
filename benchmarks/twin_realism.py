"""Does the twin look real? The same figures of twin frames and of real labelled images, in a table and a picture.

    python benchmarks/twin_realism.py --data DIR [--settings configs/simulate.yaml] [--frames 120] [--out PNG]

DIR has images/, labels/ and table.csv, as `skyseg evaluate` reads them. One function, `figures`, looks at both.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from realtime_skyseg.analysis import measure
from realtime_skyseg.records import Class, Mask
from realtime_skyseg.training.labelled import read_labelled
from simulator.simulate import load_recording, simulate

FIGURES = {
    "cnr": "contrast / noise",
    "diameter": "median diameter (px)",
    "count": "skyrmions per frame",
    "fraction": "area fraction",
    "elongation": "median elongation",
    "whiteness": "noise: correlation of neighbours",
    "contrast": "contrast (grey levels)",
    "noise": "noise (grey levels)",
}


def figures(image: NDArray[np.generic], mask: Mask) -> dict[str, float]:
    """What an image (H, W) with its true mask is like; NaN where nothing is in it.

    Contrast is the difference of the means of background and of the skyrmions' insides (1 px from their borders, where
    they have such), noise the standard deviation of background at least 2 px from anything else; both after a coarse
    average was taken off, so that no gradient counts as noise.
    """
    import cv2

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
