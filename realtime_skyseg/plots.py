"""Pictures of runs and masks."""

from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from realtime_skyseg.errors import RunFileError, SettingsError
from realtime_skyseg.records import Class, Image, Mask, Skipped
from realtime_skyseg.storage import Run

#: Red, green, blue of each class's outline.
_COLOURS = {
    Class.SKYRMION: (255, 60, 60),
    Class.DEFECT: (60, 220, 60),
    Class.OUTSIDE: (250, 210, 40),
    Class.EDGE: (40, 210, 230),
}


def overlay(image: Image, mask: Mask) -> NDArray[np.uint8]:
    """The image in grey with the outlines of the mask's classes: (height, width, 3) uint8, red green blue."""
    low, high = np.percentile(image, [0.5, 99.5])
    grey = np.clip((image.astype(np.float32) - low) * (255 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)
    picture = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    for value, colour in _COLOURS.items():
        outlines, _ = cv2.findContours((mask == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 1)
    return np.asarray(picture, np.uint8)


def plot_run(run: Run, path: Path) -> None:
    """Write a picture of a run: an analysed frame with its outlines, and the count over time and field.

    Raises:
        RunFileError: no frame of the run was analysed.
        SettingsError: the picture cannot be written.
    """
    table = run.table
    analysed = np.flatnonzero(table["skipped"] == Skipped.NOT_SKIPPED)
    if not len(analysed):
        raise RunFileError(f"run file '{run.path}' has no analysed frame to draw")
    shown = int(analysed[len(analysed) // 3])
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
    left.imshow(overlay(run.raw[shown], run.mask[shown]), interpolation="nearest")
    left.set_title(f"frame {shown}: {table['count'][shown]} skyrmions, {table['stripes'][shown]} stripes")
    left.set_axis_off()
    right.plot(table["time_s"][analysed], table["count"][analysed], ".-", color="tab:red", label="skyrmions")
    right.plot(table["time_s"][analysed], table["stripes"][analysed], ".-", color="tab:gray", label="stripes")
    right.set(xlabel="time (s)", ylabel="objects in the frame", ylim=(0, None))
    if np.isfinite(table["field_mT"]).any():
        field = right.twinx()
        field.plot(table["time_s"], table["field_mT"], color="tab:blue", linewidth=1)
        field.set_ylabel("field (mT)", color="tab:blue")
    right.legend(loc="center left")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--plot: '{path}' cannot be written: {error}") from error
