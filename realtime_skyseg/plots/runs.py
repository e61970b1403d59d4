"""Pictures of runs and of field programmes."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from realtime_skyseg.afterwards import analysed_frames
from realtime_skyseg.config import Config
from realtime_skyseg.errors import RunFileUnusableError
from realtime_skyseg.experiment import report
from realtime_skyseg.plots.pictures import busiest_frame, draw_frame, save
from realtime_skyseg.programme import estimate, expand
from realtime_skyseg.storage import Run


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
    analysed = analysed_frames(run)
    shown = busiest_frame(run, frame)
    # One panel more for each quantity of an analyser.
    found = [quantity for name, quantity in run.quantities.items() if np.isfinite(table[name][analysed]).any()]
    figure = Figure(figsize=(12, 4.6 + 1.6 * max(0, len(found) - 1)), layout="constrained")
    grid = figure.add_gridspec(1 + len(found), 2, width_ratios=[1.35, 1], height_ratios=[2, *[1] * len(found)])
    left, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    draw_frame(left, run, shown, table)
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
    save(figure, path)


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
    save(figure, path)


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
    save(figure, path)
