"""Measurements as tables and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from realtime_skyseg.errors import SettingsError


def report(figures: dict[str, Any], line: Callable[[str], None]) -> None:
    """Print the figures, one line per run."""
    for run in figures["runs"]:
        case, stream = run["case"], run["stream"]
        total, others = run["latency_ms"]["total"], run["latency_ms"]["others"]
        rate = "as fast as it goes" if case["rate_hz"] is None else f"at {case['rate_hz']:g} Hz"
        stages = ", ".join(
            f"{stage} {run['latency_ms'][stage]['p50']}"
            for stage in ("queue", "prepare", "segment", "measure", "publish")
        )
        frames = (
            f"{run['frames']['analysed']} of {run['frames']['received']} frames analysed, {run['rate_hz']:.1f}/s, "
            f"{run['count'] or 0:g} skyrmions each"
        )
        line(
            f"{run['model']} {run['engine']} ({run['precision']}) {case['height']}x{case['width']} {rate}: {frames}; "
            f"total p50 {total['p50']} p99 {total['p99']} max {total['max']} ms ({stages}; "
            f"all but segment p50 {others['p50']} p99 {others['p99']}); "
            f"to a subscriber p50 {stream['p50']} ms"
        )


def report_against(figures: dict[str, Any], line: Callable[[str], None]) -> None:
    """Print the peers beside ours, one line each."""
    ours, case = figures["ours"], figures["case"]
    line(
        f"{case['model']} {figures['engine']} ({figures['precision']}) {case['height']}x{case['width']}, medians of "
        f"{case['rounds']} rounds: prepare {ours['prepare']}, segment {ours['segment']}, measure {ours['measure']} ms"
        + (f"; service {ours['service']} ms per frame" if "service" in ours else "")
    )
    for name, peer in figures["peers"].items():
        than = "service" if name == "naive loop" else "segment"
        spread = f"{min(peer['ratios']):.1f} to {max(peer['ratios']):.1f}"
        line(f"{name}: {peer['ms']} ms, {peer['ratio']:.1f} times our {than} ({spread})")
    for kind, why in figures["missing"].items():
        line(f"{kind}: missing: {why}")


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write a picture of the latencies of all runs: a histogram each, to published and to the subscriber.

    Raises:
        SettingsError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    runs = figures["runs"]
    figure = Figure(figsize=(9, 0.7 + 2.6 * len(runs)), layout="constrained")
    for axis, run in zip(figure.subplots(len(runs), 1, squeeze=False)[:, 0], runs, strict=True):
        histograms, total, case = run["histograms_ms"], run["latency_ms"]["total"], run["case"]
        for name, text, colour in (
            ("total", "camera to published", "tab:blue"),
            ("subscriber", "camera to subscriber in another process", "tab:orange"),
        ):
            axis.stairs(
                histograms[name], histograms["edges"], label=text, color=colour, fill=name == "total", alpha=0.8
            )
        for share in ("p50", "p99"):
            axis.axvline(
                total[share],
                color="black",
                linestyle="--" if share == "p50" else ":",
                linewidth=1,
                label=f"{share} {total[share]:.1f} ms",
            )
        rate = "as fast as it goes" if case["rate_hz"] is None else f"at {case['rate_hz']:g} Hz"
        which = f"{run['model']} {run['engine']} ({run['precision']}), {case['height']}x{case['width']} {rate}"
        axis.set_title(f"{which}, worst {total['max']:.1f} ms")
        filled = np.flatnonzero(np.add(histograms["total"], histograms["subscriber"]))
        axis.set(xscale="log", xlim=(histograms["edges"][filled[0]] / 1.1, histograms["edges"][filled[-1] + 1] * 1.1))
        axis.set(xlabel="latency (ms)", ylabel="frames")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise SettingsError(f"picture '{path}' cannot be written: {error}") from error
