"""Pictures of runs and masks."""

from pathlib import Path
from typing import Any

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
    _save(figure, path)


def plot_history(history: list[dict[str, float]], path: Path) -> None:
    """Write a picture of a training: loss and validation figures over the steps.

    Args:
        history: as `Training.history`.
        path: the picture.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = [("loss",), ("skyrmion_iou", "skyrmion_mcc", "object_f1"), ("count_mape", "defect_iou")]
    for axis, names in zip(axes, panels, strict=True):
        for name in names:
            axis.plot([row["step"] for row in history], [row[name] for row in history], ".-", label=name)
        axis.set_xlabel("step")
        axis.legend()
    _save(figure, path)


def plot_sureness(sureness: dict[str, Any], path: Path) -> None:
    """Write a picture of precision over recall, and of observed shares over probabilities.

    Args:
        sureness: as `Scores.sureness`.
        path: the picture.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(sureness["recall"], sureness["precision"])
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    left.set_title(f"pixels of skyrmions, average precision {sureness['average_precision']:.3f}")
    right.plot([0, 1], [0, 1], color="lightgray")
    right.plot(sureness["probability"], sureness["observed"], ".-")
    right.set(xlabel="probability of skyrmion", ylabel="share of pixels that are", xlim=(0, 1), ylim=(0, 1))
    right.set_title(f"expected calibration error {sureness['ece']:.3f}")
    _save(figure, path)


def plot_cases(cases: list[tuple[str, Image, Mask, Mask]], path: Path) -> None:
    """Write images with the outlines of their labels (left) and of what was found (right), a row each.

    Args:
        cases: title, image, label and mask of each.
        path: the picture.
    """
    figure = Figure(figsize=(14, 5.4 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), 2, squeeze=False)
    for row, (title, image, label, mask) in zip(axes, cases, strict=True):
        for axis, outlined, what in zip(row, (label, mask), ("label", "found"), strict=True):
            axis.imshow(overlay(image, outlined), interpolation="nearest")
            axis.set_title(f"{title}: {what}")
            axis.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise SettingsError(f"picture '{path}' cannot be written: {error}") from error
