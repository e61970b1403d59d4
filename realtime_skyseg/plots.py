"""Pictures of runs and masks."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray

from realtime_skyseg.config import Config
from realtime_skyseg.errors import RunFileUnusableError, SettingsError
from realtime_skyseg.experiment import report
from realtime_skyseg.programme import estimate, expand
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


def plot_run(run: Run, path: Path, frame: int | None = None) -> None:
    """Write a picture of a run: an analysed frame with its outlines, and the count over time and field.

    Args:
        run: open.
        path: the picture.
        frame: index of the frame; None: the one with the most objects.

    Raises:
        RunFileUnusableError: no frame of the run was analysed.
        SettingsError: the picture cannot be written, or the frame is not there.
    """
    table = run.table
    analysed = np.flatnonzero((table["skipped"] == Skipped.NOT_SKIPPED) & (table["written"] == 1))
    if not len(analysed):
        raise RunFileUnusableError(f"run file '{run.path}' has no analysed frame to draw")
    if frame is not None and frame not in analysed:
        raise SettingsError(
            f"--frame: {frame} was not analysed; allowed: a frame from {analysed[0]} to {analysed[-1]} that was"
        )
    objects = np.nan_to_num(table["count"][analysed] + table["stripes"][analysed])
    shown = int(analysed[np.argmax(objects)]) if frame is None else frame
    # One panel more for each quantity of an analyser.
    found = [quantity for name, quantity in run.quantities.items() if np.isfinite(table[name][analysed]).any()]
    figure = Figure(figsize=(12, 4.6 + 1.6 * max(0, len(found) - 1)), layout="constrained")
    grid = figure.add_gridspec(1 + len(found), 2, width_ratios=[1.35, 1], height_ratios=[2, *[1] * len(found)])
    left, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    _draw_frame(left, run, shown, table)
    known = np.isfinite(table["time_s"][analysed]).all()
    places = table["time_s"] if known else np.arange(len(table))
    for name, colour, what in (("count", "tab:red", "skyrmions"), ("stripes", "tab:gray", "stripes")):
        right.plot(places[analysed], table[name][analysed], ".-", color=colour, label=what)
    right.axvline(places[shown], color="tab:green", linewidth=0.8, alpha=0.6, zorder=0)
    right.set(xlabel="time (s)" if known else "frame", ylabel="objects in the frame", ylim=(0, None))
    if np.isfinite(table["field_mT"]).any():
        field = right.twinx()
        field.plot(places, table["field_mT"], color="tab:blue", linewidth=1)
        field.set_ylabel("field (mT)", color="tab:blue")
    right.legend(loc="center left")
    for place, quantity in enumerate(found, 1):
        axis = figure.add_subplot(grid[place, 1], sharex=right)
        axis.plot(places[analysed], table[quantity.name][analysed], ".-", color="tab:purple", markersize=3)
        axis.axvline(places[shown], color="tab:green", linewidth=0.8, alpha=0.6, zorder=0)
        axis.set(ylabel=quantity.label, xlabel=right.get_xlabel())
        right.tick_params(labelbottom=False)
        right.set_xlabel("")
    _save(figure, path)


def _draw_frame(axis: Axes, run: Run, shown: int, table: NDArray[np.void]) -> None:
    """A frame as it was analysed, with the outlines of its mask, a scale bar, and what is known of it."""
    image = np.asarray(run.raw[shown], np.float32)
    below = [background for background in run.backgrounds() if background.first_frame <= shown]
    if below:
        image -= below[-1].image
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="antialiased")
    mask = run.mask[shown]
    for value, colour in _COLOURS.items():
        inside = np.pad(mask == value, 1)  # so that outlines close at the border
        if inside.any():
            place = [np.arange(-1, side + 1) for side in mask.shape]
            axis.contour(place[1], place[0], inside, [0.5], colors=[np.divide(colour, 255)], linewidths=0.8)
    axis.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))
    row = table[shown]
    names = run.frame_names
    told = [f"frame {shown}" if names is None else f"frame {shown} ({names[shown][:40]})"]
    told += [f"{row['time_s']:.2f} s"] if np.isfinite(row["time_s"]) else []
    told += [f"{row['field_mT']:.3g} mT"] if np.isfinite(row["field_mT"]) else []
    told += ["minus its background"] if below else []
    counted = (
        f"{row['count']:.0f} skyrmions, {row['stripes']:.0f} stripes" if np.isfinite(row["count"]) else "shows nothing"
    )
    axis.set_title(f"{', '.join(told)}\n{counted}", fontsize=10)
    axis.set_axis_off()
    _scale_bar(axis, mask.shape[1], run.pixel_size_um)


def _scale_bar(axis: Axes, width_px: int, pixel_size_um: float | None) -> None:
    """A bar of a round length, about a fifth of the picture."""
    size, unit = (1.0, "px") if pixel_size_um is None else (pixel_size_um, "µm")
    rough = 0.2 * width_px * size
    power = 10.0 ** math.floor(math.log10(rough))
    length = max(step * power for step in (1, 2, 5) if step * power <= rough)
    bar = AnchoredSizeBar(
        axis.transData, length / size, f"{length:g} {unit}", "lower right", size_vertical=1, fill_bar=True,
        borderpad=0.4, frameon=True,
    )  # fmt: skip
    bar.patch.set(alpha=0.6, linewidth=0)
    axis.add_artist(bar)


def plot_programme(config: Config, rate_hz: float | None, path: Path) -> None:
    """Write a picture of what a field programme will ask of the magnet, if no rule changes it.

    Args:
        config: with the sections experiment and field.
        rate_hz: of the frames, where it is known.
        path: the picture.
    """
    assert config.experiment is not None
    assert config.field is not None
    steps = expand(config.experiment)
    asked = estimate(steps, config.field, rate_hz)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axis = figure.subplots()
    times, fields = np.array(asked.trace).T
    axis.plot(times, fields, color="tab:blue", linewidth=1.2)
    low, high = asked.lowest_mT, asked.highest_mT
    slack = 0.15 * max(high - low, 1e-3)
    for limit in config.field.limit_mT:
        if low - slack < limit < high + slack:
            axis.axhline(limit, color="tab:red", linestyle="--", linewidth=1, label="field.limit_mT")
    axis.set(xlabel="time (s)", ylabel="out-of-plane field (mT)", ylim=(low - slack, high + slack))
    frames = f"{asked.frames} frames at {rate_hz:g}/s" if rate_hz else f"{asked.frames} frames, of unknown rate"
    axis.set_title(
        f"{asked.steps} steps, {asked.seconds:.0f} s with {frames}; {low:g} to {high:g} mT, at up to "
        f"{asked.fastest_mT_per_s:.3g} mT/s, {asked.way_mT:.3g} mT in all, {asked.pulses} pulses"
    )
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper right")
    _save(figure, path)


def plot_sweep(run: Run, path: Path) -> None:
    """Write a picture of an experiment: count and area fraction over field, and both over time with the decisions.

    Raises:
        RunFileUnusableError: the run had no experiment.
        SettingsError: the picture cannot be written.
    """
    experiment = run.experiment
    if experiment is None:
        raise RunFileUnusableError(f"run file '{run.path}' has no experiment to draw")
    steps = experiment["steps"][experiment["steps"]["frames"] > 0]
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    loops = [figure.add_subplot(grid[0, k]) for k in range(2)]
    for axis, name, what in zip(loops, ("count", "area_fraction"), ("skyrmions", "area fraction"), strict=True):
        for direction, colour, text in (
            (1, "tab:red", "rising"),
            (-1, "tab:blue", "falling"),
            (0, "tab:gray", "at rest"),
        ):
            rows = steps[steps["direction"] == direction]
            spread = np.nan_to_num(rows[f"{name}_std"])
            if len(rows):
                axis.errorbar(rows["field_mT"], rows[name], spread, fmt=".", color=colour, capsize=2, label=text)
        axis.plot(steps["field_mT"], steps[name], color="lightgray", linewidth=0.8, zorder=0)
        axis.set(xlabel="field read back (mT)", ylabel=what)
    for found in report(run)["fields"]:
        loops[0].axvspan(
            found["field_mT"] - found["uncertainty_mT"], found["field_mT"] + found["uncertainty_mT"], alpha=0.25,
            color="tab:green" if found["kind"] == "nucleation" else "tab:orange",
            label=f"{found['kind']} {found['field_mT']:.3g} ± {found['uncertainty_mT']:.2g} mT",
        )  # fmt: skip
    loops[0].legend(fontsize=8)
    below = figure.add_subplot(grid[1, :])
    table = run.table
    analysed = table["count"] >= 0
    below.plot(table["time_s"][analysed], table["count"][analysed], ".", markersize=3, color="tab:red")
    below.set(xlabel="time (s)", ylabel="skyrmions", ylim=(0, None))
    acted = experiment["decisions"]
    acted = acted[(acted["acted"] == 1) & (acted["action"] != b"mark") & (acted["frame"] >= 0)]
    acted = acted[acted["frame"] < len(table)]
    for frame in acted["frame"]:
        below.axvline(table["time_s"][frame], color="tab:green", linewidth=0.5, alpha=0.6, zorder=0)
    right = below.twinx()
    right.plot(table["time_s"], table["field_mT"], color="tab:blue", linewidth=1)
    right.set_ylabel("field (mT)", color="tab:blue")
    if len(acted):
        below.set_title(f"green: {len(acted)} decisions of rules that changed the field")
    _save(figure, path)


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
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise SettingsError(f"picture '{path}' cannot be written: {error}") from error
