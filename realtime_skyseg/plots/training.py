"""Pictures of trainings and scores."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from realtime_skyseg.plots.pictures import overlay, save
from realtime_skyseg.records import Image, Mask


def plot_history(history: list[dict[str, float]], path: Path) -> None:
    """Write a picture of a training: loss and validation figures over the steps; dotted: on images learnt from.

    Args:
        history: as `Training.history`.
        path: the picture.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = [
        ("loss",),
        ("pixel_accuracy", "skyrmion_iou", "skyrmion_mcc", "object_f1"),
        ("count_mape", "defect_iou", "radius_bias_px"),
    ]
    for axis, names in zip(axes, panels, strict=True):
        for name in names:
            (line,) = axis.plot([row["step"] for row in history], [row[name] for row in history], ".-", label=name)
            if (learnt := f"training_{name}") in history[0]:
                axis.plot(
                    [row["step"] for row in history], [row[learnt] for row in history], ":", color=line.get_color()
                )
        axis.set_xlabel("step")
        axis.legend()
    save(figure, path)


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
    save(figure, path)


def plot_trust(figures: dict[str, Any], path: Path) -> None:
    """Write a picture of what is known of a model's sureness: reliability, error of what is kept, what is flagged.

    Args:
        figures: as `training.calibrate.figures_of`.
        path: the picture.
    """
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplot_mosaic([["reliability", "damage"], ["selective", "damage"]])
    axis = axes["reliability"]
    axis.plot([0, 1], [0, 1], color="lightgray")
    for fold, row in figures["folds"].items():
        kept = [index for index, n in enumerate(row["in_bin"]) if n >= 20]
        points = [[row[name][index] for index in kept] for name in ("probability", "observed")]
        axis.plot(*points, ".-", label=f"fold {fold}: {row['ece']:.3f}")
    axis.set(xlabel="sureness", ylabel="share of objects that are one", xlim=(0, 1), ylim=(0, 1))
    axis.set_title("objects of folds left out")
    axis.legend(title="calibration error")
    axis = axes["selective"]
    axis.plot(figures["selective"]["kept"], [100 * error for error in figures["selective"]["error"]], ".-")
    axis.set(
        xlabel="share of frames kept, those of narrow intervals first", ylabel="mean count error (%)", xlim=(0, 1.02)
    )
    axis.set_ylim(bottom=0)
    axis.set_title("a mix with one damaged frame in ten")
    axis = axes["damage"]
    names = [name for name in figures["damage"] if not name.endswith(", mild")]
    for offset, suffix, colour, label in ((0.2, "", "tab:blue", "plain"), (-0.2, ", mild", "tab:cyan", "mild")):
        shares = [figures["damage"].get(name + suffix, {}).get("flagged", 0) for name in names]
        places = [len(names) - index + offset for index in range(len(names))]
        axis.barh(places, shares, 0.4, color=colour, label=label)
    axis.set_yticks([len(names) - index for index in range(len(names))], names)
    axis.set(xlabel="share called out of range", xlim=(0, 1), ylim=(0.4, len(names) + 0.6))
    axis.set_title(f"damaged images; of good ones counted right {figures['false_alarms']:.1%}")
    axis.legend(loc="lower right")
    save(figure, path)


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
    save(figure, path)


def plot_crops(images: NDArray[np.float32], masks: NDArray[np.uint8], path: Path) -> None:
    """Write what a network learns from: crops, and the same with the outlines of their labels.

    Args:
        images: (n, height, width), scaled.
        masks: (n, height, width) of classes.
        path: the picture.
    """
    columns = 8
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.2 * columns, 4.5 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        row, column = divmod(number, columns)
        grey = np.clip(128 + 127 * image, 0, 255).astype(np.uint8)
        axes[2 * row, column].imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes[2 * row + 1, column].imshow(overlay(grey, mask), interpolation="nearest")
    save(figure, path)
