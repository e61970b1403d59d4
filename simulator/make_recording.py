"""Make the recording that comes with the package: `python -m simulator.make_recording OUT.tif`.

An in-plane pulse nucleates skyrmions in the simulated film; then the out-of-plane field rises image by image until
nearly all are annihilated, and the simulated Kerr camera takes an image at every field.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from rich.progress import track

from simulator.film import Film
from simulator.kerr_camera import KerrCamera, KerrSettings

SEED = 20240601
RATE_HZ = 16.0
VIEW = (512, 672)
MARGIN_PX = 24  # of the film around the view: hides that the film is periodic
PULSE_FIELD = 0.12
FIELDS = tuple(round(0.125 + 0.005 * i, 3) for i in range(48))  # up to 0.36
STEPS_AFTER_PULSE = 200
STEPS_PER_FRAME = 60
FIELD_TO_MT = 10.0  # free: puts the annihilation field h = 0.37 at 3.7 mT
MIN_OBJECT_PX = 10
# Noise does not compress. These grey levels keep the ratio of contrast to noise of real images (about 2) at some 60 %
# of their contrast, so that the file is small enough for a repository.
CAMERA = KerrSettings(contrast=0.022, grey_contrast=24.0)


def make_recording(path: Path, seed: int = SEED) -> dict[str, Any]:
    """Write the recording as an 8 bit multi-page TIFF and return its description; the same seed, the same frames.

    The description, JSON in the first ImageDescription, has per frame the field in mT and the true number of objects:
    8-connected regions of phi < 0 in the view with at least 10 px.
    """
    film = Film(VIEW[0] + 2 * MARGIN_PX, VIEW[1] + 2 * MARGIN_PX, seed)
    camera = KerrCamera(film.shape, VIEW, seed + 1, CAMERA)
    film.saturate()
    film.pulse(PULSE_FIELD)
    film.step(PULSE_FIELD, STEPS_AFTER_PULSE)
    frames, counts = [], []
    for field in track(FIELDS, "simulating"):
        phi = film.step(field, STEPS_PER_FRAME)
        frames.append(camera.image(phi))
        counts.append(true_count(phi[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]))
    description = {
        "synthetic": True,
        "generator": "realtime_skyseg simulator.make_recording",
        "seed": seed,
        "rate_hz": RATE_HZ,
        "field_mT": [round(field * FIELD_TO_MT, 3) for field in FIELDS],
        "true_count": counts,
    }
    with tifffile.TiffWriter(path) as tiff:
        for i, frame in enumerate(frames):
            tiff.write(
                frame,
                compression="zlib",
                compressionargs={"level": 9},
                rowsperstrip=VIEW[0],
                photometric="minisblack",
                description=json.dumps(description) if i == 0 else None,
                metadata=None,
            )
    return description


def true_count(phi: NDArray[np.float32]) -> int:
    """Number of 8-connected regions of phi < 0 with at least 10 px in `phi`, (H, W) float32."""
    _, _, statistics, _ = cv2.connectedComponentsWithStats((phi < 0).astype(np.uint8), connectivity=8)
    return int(np.count_nonzero(statistics[1:, cv2.CC_STAT_AREA] >= MIN_OBJECT_PX))


def main() -> None:
    """The command `python -m simulator.make_recording`."""
    parser = argparse.ArgumentParser(prog="python -m simulator.make_recording", description=__doc__)
    parser.add_argument("out", type=Path, help="TIFF file to write")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    make_recording(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
