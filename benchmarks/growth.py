"""How latency grows with pixels, objects per frame and subscribers: three pictures in one, with fitted exponents.

    python benchmarks/growth.py --plot docs/images/growth.png [--json FILE] [--seconds N]

Each point is a run of the service, as in `skyseg bench`. Pixels: the default model and engine. Objects: 1024x1024
frames of discs of 4 px radius, segmented by a threshold, so that the network does not hide what depends on them.
Subscribers: 512x672, all in one other process, each of which gets every mask.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from matplotlib.figure import Figure

from realtime_skyseg.bench import Case, bench
from realtime_skyseg.segmentation.threshold import save_threshold

SIDES = (256, 384, 512, 768, 1024, 1536, 2048)
OBJECTS = (10, 30, 100, 300, 1000, 2500, 5000)
SUBSCRIBERS = (1, 2, 4, 8, 16, 32)


def frames_of(n: int, path: Path) -> None:
    """Eight frames with n dark discs each that do not touch, moved a little from frame to frame."""
    side, step, rng = 1024, 14, np.random.default_rng(n)
    places = rng.permutation((side // step - 1) ** 2)[:n]
    rows, columns = np.divmod(places, side // step - 1)
    y, x = np.ogrid[-5:6, -5:6]
    disc = y**2 + x**2 <= 16
    frames = []
    for shift in range(8):
        frame = rng.normal(128, 4, (side, side))
        for row, column in zip(rows * step + 7, columns * step + 7 + shift % 3, strict=True):
            frame[row - 5 : row + 6, column - 5 : column + 6][disc] -= 60
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    tifffile.imwrite(path, np.stack(frames), photometric="minisblack")


def measured(points: list[tuple[int, Case]]) -> dict[str, Any]:
    """x, and the median of each stage in ms."""
    curves: dict[str, list[float]] = {}
    for (x, _), run in zip(points, bench([case for _, case in points])["runs"], strict=True):
        stages = {
            name: run["latency_ms"][name]["p50"] for name in ("prepare", "segment", "measure", "publish", "total")
        }
        for name, value in {
            **stages,
            "to a subscriber": run["stream"]["p50"],
            "p99 of total": run["latency_ms"]["total"]["p99"],
        }.items():
            curves.setdefault(name, []).append(value)
        print(f"{x}: " + ", ".join(f"{name} {values[-1]:.2f}" for name, values in curves.items()) + " ms", flush=True)
    xs = [x for x, _ in points]
    return {"x": xs, "ms": curves, "exponents": {name: exponent(xs, values) for name, values in curves.items()}}


def exponent(xs: list[int], values: list[float]) -> float:
    """Of a power law through the upper half of the points."""
    upper = len(xs) // 2
    return round(float(np.polyfit(np.log(xs[upper:]), np.log(values[upper:]), 1)[0]), 2)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run")
    options = parser.parse_args()
    growth = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        growth["pixels"] = measured(
            [(side**2, Case(shape=(side, side), rate_hz=3.0, seconds=options.seconds)) for side in SIDES]
        )
        save_threshold(folder / "threshold.safetensors", 0.25, 1.0, False)
        cases = []
        for n in OBJECTS:
            frames_of(n, folder / f"{n}.tif")
            case = Case(
                str(folder / "threshold.safetensors"), "openvino", None, 3.0, options.seconds, str(folder / f"{n}.tif")
            )
            cases.append((n, case))
        growth["objects per frame"] = measured(cases)
        growth["subscribers"] = measured(
            [(n, Case(rate_hz=10.0, seconds=options.seconds, subscribers=n)) for n in SUBSCRIBERS]
        )
    for what, curves in growth.items():
        print(f"{what}: exponents over the upper half: {curves['exponents']}")
    if options.json:
        options.json.write_text(json.dumps(growth, indent=1))
    if options.plot:
        figure = Figure(figsize=(15, 4.8), layout="constrained")
        for axis, (what, curves) in zip(figure.subplots(1, 3), growth.items(), strict=True):
            for stage, values in curves["ms"].items():
                axis.loglog(curves["x"], values, ".-", label=f"{stage}: {curves['exponents'][stage]:+.2f}")
            axis.set(xlabel=what, ylabel="median latency (ms)")
            axis.legend(fontsize=7, title="exponent, upper half", title_fontsize=7)
            axis.grid(alpha=0.3)
        figure.savefig(options.plot, dpi=90)


if __name__ == "__main__":
    main()
