"""Pictures of what was measured: maps, histograms, loops, order, tracks, diffusion, each on axes that it is given.

Lengths are in µm where the run knows its size of a pixel, else in px. Colours are told apart in print and by
colour-blind people.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial import Voronoi

from realtime_skyseg import devices
from realtime_skyseg.afterwards import StoredImages
from realtime_skyseg.analysers.lattice import lattice_of, pair_correlation, spacing_of_lattice, structure_factor
from realtime_skyseg.analysers.motion import (
    StayMap,
    diffusion,
    displacements,
    mean_squared_displacement,
    stay_map,
    van_hove,
)
from realtime_skyseg.analysers.objects import label_image
from realtime_skyseg.analysers.selection import chosen_skyrmions, points_of
from realtime_skyseg.errors import RunFileUnusableError, SettingsError
from realtime_skyseg.plots.pictures import busiest_frame, draw_frame, draw_grey, name_of, save, scale_bar
from realtime_skyseg.quantities import Quantity, on_sample
from realtime_skyseg.records import OBJECT_QUANTITIES
from realtime_skyseg.storage import Run
from realtime_skyseg.tables import frame_time_s, objects_of, tracked_objects, without_drift

#: Frames of which g(r), S(q), distances and histograms are taken, at most: spread over the run.
_MOST_FRAMES = 50

#: Angles wrap around; all else goes from dark to bright.
_CYCLIC = {"orientation_deg": ("twilight", -90.0, 90.0)}

#: How wide ways are drawn, relative to the spacing (rms), and how many times they may be enlarged for that.
_WIDTH_OF_WAYS, _ENLARGED = 0.15, (1, 2, 5, 10, 20)

#: Lags of a mean squared displacement, at most.
_LAGS = 30


def draw_picture(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """A frame with the outlines of what was found."""
    draw_frame(axis, run, frame, run.table)


def draw_counts(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """Skyrmions and stripes over time, with the field."""
    table = run.table
    known = np.isfinite(table["time_s"]).all()
    place = table["time_s"] if known else np.arange(len(table))
    axis.plot(place, table["count"], ".-", color="tab:red", label="skyrmions")
    axis.plot(place, table["stripes"], "x-", color="tab:gray", markersize=4, label="stripes")
    axis.axvline(place[frame], color="black", linewidth=0.8, linestyle=":", zorder=0)
    axis.set(xlabel="time (s)" if known else "frame", ylabel="objects in the frame", ylim=(0, None))
    if np.isfinite(table["field_mT"]).any():
        right = axis.twinx()
        right.plot(place, table["field_mT"], color="tab:blue", linewidth=1)
        right.set_ylabel("field (mT)", color="tab:blue")
    axis.legend(loc="best")


def draw_rare(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """Rare events over time: how many came, went, merged and split so far, and where a count or the images jumped."""
    table = run.table
    known = np.isfinite(table["time_s"]).all()
    place = table["time_s"] if known else np.arange(len(table))
    names = [name for name in ("nucleated", "annihilated", "merged", "split") if name in run.quantities]
    if not names:
        raise RunFileUnusableError(f"run file '{run.path}' has no rare events; allowed: a run with analysers.rare")
    for name in names:
        axis.step(place, np.nancumsum(table[name]), where="post", label=name)
    for kind, colour in (("avalanche", "black"), ("count_jump", "tab:red"), ("domain_jump", "tab:purple"),
                         ("out_of_range", "tab:purple")):  # fmt: skip
        at = [event["frame"] for event in run.events if event["kind"] == kind and 0 <= event["frame"] < len(table)]
        for number, index in enumerate(at):
            label = kind.replace("_", " ") if number == 0 else None
            axis.axvline(place[index], color=colour, linewidth=0.8, linestyle=":", label=label)
    axis.set(xlabel="time (s)" if known else "frame", ylabel="events so far", ylim=(0, None))
    axis.legend(loc="best")


def draw_loop(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """Skyrmions over field, rising and falling."""
    table = run.table
    field, count = table["field_mT"], table["count"]
    if not (np.isfinite(field) & np.isfinite(count)).any():
        raise RunFileUnusableError(f"run file '{run.path}' has no field")
    rising = np.sign(np.diff(field, prepend=field[:1]))
    axis.plot(field, count, color="lightgray", linewidth=0.8, zorder=0)
    for sign, colour, marker, text in ((1, "tab:red", "^", "rising"), (-1, "tab:blue", "v", "falling"),
                                       (0, "tab:gray", ".", "at rest")):  # fmt: skip
        chosen = rising == sign
        if chosen.any():
            axis.plot(field[chosen], count[chosen], marker, color=colour, markersize=5, label=text)
    axis.set(xlabel="field (mT)", ylabel="skyrmions in the frame", ylim=(0, None))
    axis.legend()


def draw_map(axis: Axes, run: Run, frame: int, frames: list[int], name: str) -> None:
    """The objects of a frame, coloured by a quantity; one that the run does not hold is asked for now."""
    quantity, objects, _ = _of_objects(run, name, [frame])
    image = StoredImages(run)(frame)
    draw_grey(axis, image, alpha=0.5)
    values, label = _scaled(quantity, objects[name].astype(np.float64), run.pixel_size_um)
    labels = label_image(run.mask[frame], objects)
    colours, low, high = _CYCLIC.get(name, ("viridis", None, None))
    shown = axis.imshow(
        np.ma.masked_invalid(np.concatenate([[np.nan], values])[labels]), cmap=colours, vmin=low, vmax=high,
        interpolation="nearest",
    )  # fmt: skip
    _bar(axis, shown, label)
    axis.set_title(name_of(run, frame), fontsize=10)
    scale_bar(axis, image.shape[1], run.pixel_size_um)


def draw_histogram(axis: Axes, run: Run, frame: int, frames: list[int], name: str) -> None:
    """A quantity of the objects of the run, skyrmions without stripes."""
    quantity, objects, n = _of_objects(run, name, frames)
    values = objects[name].astype(np.float64)[chosen_skyrmions(objects)]
    values, label = _scaled(quantity, values[np.isfinite(values)], run.pixel_size_um)
    axis.hist(values, bins=40, color="tab:blue", edgecolor="white", linewidth=0.4)
    if len(values):
        axis.axvline(values.mean(), color="tab:red", linewidth=1.5, label=f"{values.mean():.3g} ± {values.std():.2g}")
        axis.legend()
    axis.set(xlabel=label, ylabel="skyrmions", title=_frames(n))


def draw_cells(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """Voronoi cells coloured by psi6; what has five or seven neighbours is marked."""
    points = _points(run, frame)
    image = StoredImages(run)(frame)
    draw_grey(axis, image, alpha=0.6)
    lattice = lattice_of(points, (image.shape[0], image.shape[1]))
    if lattice.inner.any():
        cells = Voronoi(points)
        corners = [cells.vertices[cells.regions[cells.point_region[k]]] for k in np.flatnonzero(lattice.inner)]
        shown = PolyCollection(
            corners, array=np.abs(lattice.psi6[lattice.inner]), cmap="cividis", edgecolors="white", linewidths=0.6,
            alpha=0.75, clim=(0, 1),
        )  # fmt: skip
        axis.add_collection(shown)
        _bar(axis, shown, "|ψ6|")
        for number, marker, colour in ((5, "^", "tab:red"), (7, "s", "tab:cyan")):
            chosen = points[lattice.inner & (lattice.neighbours == number)]
            axis.plot(
                *chosen.T, marker, color=colour, markersize=4, markeredgecolor="black", markeredgewidth=0.5,
                label=f"{number} neighbours",
            )  # fmt: skip
        axis.legend(loc="upper left", fontsize=8)
    axis.set_title(f"{name_of(run, frame)}: mean |ψ6| {lattice.mean(np.abs(lattice.psi6)):.2f}", fontsize=10)
    scale_bar(axis, image.shape[1], run.pixel_size_um)


def draw_distances(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """Lengths of the bonds between inner skyrmions and their Delaunay neighbours."""
    factor, unit = _lengths(run)
    lengths = []
    for index in frames:
        points = _points(run, index)
        lattice = lattice_of(points, _shape(run))
        if len(lattice.bonds):
            first, second = lattice.bonds[lattice.inner[lattice.bonds].any(1)].T
            lengths.append(np.hypot(*(points[first] - points[second]).T))
    values = np.concatenate(lengths or [np.zeros(0)]) * factor
    axis.hist(values, bins=50, color="tab:blue", edgecolor="white", linewidth=0.4)
    if len(values):
        axis.axvline(values.mean(), color="tab:red", label=f"{values.mean():.3g} ± {values.std():.2g} {unit}")
        axis.legend()
    axis.set(xlabel=f"distance of neighbours ({unit})", ylabel="bonds", xlim=(0, None), title=_frames(len(lengths)))


def draw_pair_correlation(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """g(r) of the skyrmions, mean over frames."""
    factor, unit = _lengths(run)
    shape = _shape(run)
    longest = min(0.5 * min(shape), 8 * spacing_of_lattice(_points(run, frame), shape))
    points = [these for index in frames if len(these := _points(run, index)) > 1]
    if not points:
        raise RunFileUnusableError(f"run file '{run.path}' has no frame with two skyrmions")
    found = [pair_correlation(one, shape, longest, 120 if len(points) > 1 else 60) for one in points]
    pairs = [len(one) * (len(one) - 1) for one in points]
    axis.axhline(1, color="lightgray", linewidth=1)
    axis.plot(found[0][0] * factor, np.average([g for _, g in found], axis=0, weights=pairs), color="tab:blue")
    axis.set(xlabel=f"distance ({unit})", ylabel="g(r)", xlim=(0, None), ylim=(0, None), title=_frames(len(found)))


def draw_structure_factor(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """S(q) of the skyrmions, mean over frames: rings for a liquid, six spots for a lattice of one orientation."""
    factor, unit = _lengths(run)
    shape = _shape(run)
    spacing = spacing_of_lattice(_points(run, frame), shape)
    waves = int(min(60, max(8, 2.5 * max(shape) / max(spacing, 1))))
    found = [structure_factor(_points(run, index), shape, waves) for index in frames]
    if not found:
        raise RunFileUnusableError(f"run file '{run.path}' has no frame with skyrmions")
    qx, qy = found[0][0] / factor, found[0][1] / factor
    shown = axis.imshow(
        np.log10(np.maximum(np.mean([s for _, _, s in found], 0), 1e-2)), extent=(qx[0], qx[-1], qy[-1], qy[0]),
        cmap="viridis", vmin=-1, interpolation="nearest",
    )  # fmt: skip
    _bar(axis, shown, "log10 S(q)")
    axis.set(xlabel=f"qx (1/{unit})", ylabel=f"qy (1/{unit})", title=_frames(len(found)))


def draw_tracks(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """The ways of the skyrmions, without what all share, coloured by time, over the first frame.

    Where they are too short to be seen, they are drawn larger, around where each is in the mean.
    """
    objects, points, _, _ = _tracks(run)
    first = int(objects["frame"].min())
    image = StoredImages(run)(first)
    draw_grey(axis, image, alpha=0.35)
    _, at, n = np.unique(objects["track"], return_inverse=True, return_counts=True)
    middle = np.stack([np.bincount(at, points[:, k]) / n for k in (0, 1)], 1)[at]
    away = points - middle
    width = float(np.sqrt((away**2).sum(1).mean()))
    enough = _WIDTH_OF_WAYS * spacing_of_lattice(_points(run, first), _shape(run)) / max(width, 1e-6)
    times = max((factor for factor in _ENLARGED if factor <= enough), default=1)
    points = middle + times * away
    order = np.lexsort((objects["frame"], objects["track"]))
    here, there = order[:-1], order[1:]
    same = objects["track"][here] == objects["track"][there]
    here, there = here[same], there[same]
    time = run.table["time_s"]
    known = np.isfinite(time).all()
    when = (time if known else np.arange(len(time)))[objects["frame"][there]]
    lines = LineCollection(
        list(np.stack([points[here], points[there]], 1)), array=when, cmap="plasma", linewidths=1.3, capstyle="round"
    )
    axis.add_collection(lines)
    _bar(axis, lines, "time (s)" if known else "frame")
    told = f"{len(np.unique(objects['track'][here]))} skyrmions over {len(np.unique(objects['frame']))} frames"
    axis.set_title(told if times == 1 else f"{told}, ways {times} times enlarged", fontsize=10)
    scale_bar(axis, image.shape[1], run.pixel_size_um)


def draw_displacement(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """Mean squared displacement over the lag, and what the diffusion constant gives."""
    objects, points, time, per = _tracks(run)
    factor, unit = _lengths(run)
    longest = int(max(2, min(_LAGS, (objects["frame"].max() - objects["frame"].min()) // 2)))
    msd, error, _ = mean_squared_displacement(objects["track"], objects["frame"], points, longest)
    found = diffusion(objects["track"], objects["frame"], points)
    lags = np.arange(1, longest + 1) * time
    axis.errorbar(lags, msd * factor**2, error * factor**2, fmt="o", markersize=4, color="tab:blue", capsize=2)
    constant, spread = (value * factor**2 / time for value in (found.constant, found.error))
    walk = 4 * constant * lags + 4 * (0.0 if np.isnan(found.noise) else found.noise * factor) ** 2
    axis.plot(lags, walk, color="tab:red", label=f"D = {constant:.3g} ± {spread:.1g} {unit}²/{per}")
    axis.set(xlabel=f"lag ({per})", ylabel=f"mean squared displacement ({unit}²)", xscale="log")
    if (msd[np.isfinite(msd)] > 0).all():
        axis.set_yscale("log")
    axis.legend()


def draw_van_hove(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """How far skyrmions go along an axis in one and in five frames, with what free diffusion would give."""
    objects, points, time, per = _tracks(run)
    factor, unit = _lengths(run)
    for lag, colour, marker in ((1, "tab:blue", "o"), (5, "tab:red", "s")):
        _, steps = displacements(objects["track"], objects["frame"], points, lag)
        place, density, beyond = van_hove(steps * factor)
        if np.isnan(beyond):
            continue
        width = float(np.sqrt((steps**2).mean())) * factor
        axis.plot(place, density, marker, color=colour, markersize=4, label=f"{lag * time:.3g} {per}, α = {beyond:.2f}")
        axis.plot(place, np.exp(-(place**2) / 2 / width**2) / width / np.sqrt(2 * np.pi), color=colour, linewidth=1)
    axis.set(xlabel=f"displacement along an axis ({unit})", ylabel=f"density (1/{unit})", yscale="log")
    axis.set_ylim(bottom=1e-4 * axis.get_ylim()[1])
    axis.legend()


def draw_pins(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """Where skyrmions stay: energy in kT, of what is free to move."""
    _draw_stay(axis, run, frame, "energy (kT)", lambda found: found.energy_kT)


def draw_dwell(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """How long skyrmions stay in a place before they go on."""
    _, _, time, per = _tracks(run)
    _draw_stay(axis, run, frame, f"mean stay ({per})", lambda found: found.dwell_frames * time)


def draw_mobility(axis: Axes, run: Run, frame: int, frames: list[int]) -> None:
    """How fast skyrmions diffuse away from a place."""
    factor, unit = _lengths(run)
    _, _, time, per = _tracks(run)
    _draw_stay(axis, run, frame, f"local diffusion ({unit}²/{per})", lambda found: found.diffusion * factor**2 / time)


def _draw_stay(axis: Axes, run: Run, frame: int, label: str, values: Callable[[StayMap], NDArray[np.float64]]) -> None:
    objects, _, _, _ = _tracks(run)
    height, width = _shape(run)
    cell = max(2.0, 0.15 * spacing_of_lattice(_points(run, frame), (height, width)))
    shown = values(stay_map(objects["track"], objects["frame"], points_of(objects), (height, width), cell))
    rows, columns = shown.shape
    known = shown[np.isfinite(shown)]
    image = axis.imshow(
        np.ma.masked_invalid(shown), extent=(-0.5, columns * cell - 0.5, rows * cell - 0.5, -0.5), cmap="viridis",
        interpolation="nearest", vmax=np.percentile(known, 98) if len(known) else None,
    )  # fmt: skip
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axis.set_axis_off()
    _bar(axis, image, label)
    axis.set_title(f"cells of {cell:.1f} px, {_frames(len(np.unique(objects['frame'])))}", fontsize=10)
    scale_bar(axis, width, run.pixel_size_um)


#: What `skyseg info --plot PNG --show` draws: axes, an open run, the index of a frame, and those to take statistics of.
VIEWS: dict[str, Callable[[Axes, Run, int, list[int]], None]] = {
    "frame": draw_picture, "counts": draw_counts, "loop": draw_loop, "cells": draw_cells, "distances": draw_distances,
    "gr": draw_pair_correlation, "sq": draw_structure_factor, "tracks": draw_tracks, "msd": draw_displacement,
    "vanhove": draw_van_hove, "rare": draw_rare, "pins": draw_pins, "dwell": draw_dwell, "mobility": draw_mobility,
}  # fmt: skip

#: The same of a quantity of objects, which is told behind a colon.
VIEWS_OF_QUANTITY: dict[str, Callable[[Axes, Run, int, list[int], str], None]] = {
    "map": draw_map,
    "histogram": draw_histogram,
}


def plot_view(run: Run, shown: Sequence[str], path: Path, frame: int | None = None) -> None:
    """Write a picture of several panels.

    Args:
        run: open.
        shown: of `VIEWS`, or `map:QUANTITY`, `histogram:QUANTITY`.
        path: the picture.
        frame: of panels about one frame; None: the one with the most objects.

    Raises:
        SettingsError: there is no such panel or quantity, or the picture cannot be written.
        RunFileUnusableError: the run does not have what a panel shows.
    """
    save(view_figure(run, shown, frame), path)


def view_figure(run: Run, shown: Sequence[str], frame: int | None = None, alone: bool = False) -> Figure:
    """The figure that `plot_view` writes; `alone`: histograms and the like are of that frame, too, not of the run."""
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(6.2 * columns, 5.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis, text in zip(axes, shown, strict=False):
        draw(axis, run, text, frame, alone)
    return figure


def draw(axis: Axes, run: Run, text: str, frame: int | None = None, alone: bool = False) -> None:
    """One panel, see `view_figure`."""
    kind, _, name = text.partition(":")
    frame = busiest_frame(run, frame)
    frames = [frame] if alone else _spread(run)
    if kind in VIEWS and not name:
        VIEWS[kind](axis, run, frame, frames)
    elif kind in VIEWS_OF_QUANTITY and name:
        VIEWS_OF_QUANTITY[kind](axis, run, frame, frames, name)
    else:
        allowed = ", ".join([*VIEWS, *(f"{kind}:QUANTITY" for kind in VIEWS_OF_QUANTITY)])
        raise SettingsError(f"--show: '{text}' is no picture; allowed: {allowed}")


def _spread(run: Run) -> list[int]:
    """Frames with skyrmions, spread over the run."""
    frames = np.flatnonzero(np.nan_to_num(run.table["count"]) > 0)
    if not len(frames):
        return []
    return list(frames[np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).astype(int))].tolist())


def _points(run: Run, frame: int) -> NDArray[np.float64]:
    objects = run.objects(frame)
    return points_of(objects)[chosen_skyrmions(objects)]


def _shape(run: Run) -> tuple[int, int]:
    return int(run.mask.shape[1]), int(run.mask.shape[2])


def _lengths(run: Run) -> tuple[float, str]:
    """What a px is, and in which unit."""
    return (1.0, "px") if run.pixel_size_um is None else (run.pixel_size_um, "µm")


def _of_objects(run: Run, name: str, frames: list[int]) -> tuple[Quantity, NDArray[np.void], int]:
    """A quantity of objects, those of some frames, as stored or as the analyser finds now that knows it; and how many
    frames these are.
    """
    declared, asked = run.object_quantities, None
    if name not in declared:
        of = {one.name: analyser for analyser in devices.drivers("analysers")
              for one in devices.driver("analysers", analyser).quantities if one.of == "object"}  # fmt: skip
        if name not in of:
            allowed = ", ".join(sorted({*OBJECT_QUANTITIES, *declared, *of}))
            raise SettingsError(f"'{name}' is no quantity of objects; allowed: {allowed}")
        asked = {of[name]: None}
    objects, declared = objects_of(run, asked)
    return declared[name], objects[np.isin(objects["frame"], frames)], len(frames)


def _tracks(run: Run) -> tuple[NDArray[np.void], NDArray[np.float64], float, str]:
    """Objects with tracks, their positions without the drift, the time between two frames, and its unit: the frame
    itself, where no times are known.
    """
    objects, _ = tracked_objects(run)
    objects = objects[objects["track"] >= 0]
    if not len(objects):
        raise RunFileUnusableError(f"run file '{run.path}' has no skyrmions to follow")
    time_s = frame_time_s(run)
    time, unit = (time_s, "s") if time_s > 0 else (1.0, "frame")
    return objects, without_drift(objects), time, unit


def _scaled(quantity: Quantity, values: NDArray[np.float64], size_um: float | None) -> tuple[NDArray[np.float64], str]:
    """In µm where that is known, with the label of the axis."""
    there = on_sample(quantity, size_um) if size_um is not None else None
    if there:
        quantity, values = there[0], values * there[1]
    return values, quantity.label.replace("um", "µm").replace("^2", "²")


def _frames(n: int) -> str:
    return "1 frame" if n == 1 else f"{n} frames"


def _bar(axis: Axes, shown: Any, label: str) -> None:
    axis.figure.colorbar(shown, ax=axis, label=label, shrink=0.85)
