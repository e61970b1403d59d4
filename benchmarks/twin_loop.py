"""Count against field of the twin's film, down from saturation and up again, through the control socket.

    python benchmarks/twin_loop.py [--out docs/images/twin-loop.png]

The service runs on `configs/twin.yaml` in this process; the sweep is told as `skyseg tell set_field` would tell it. The
picture shows what the service counted, and what really was there (the twin's truth), at the end of each step.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  reads the truth
import matplotlib as mpl
import numpy as np

import realtime_skyseg as sky

CONFIG = Path(__file__).parents[1] / "configs" / "twin.yaml"

#: Branch, field set, field read back, count, true count, stripes.
Row = tuple[str, float, float, float, float, float]


def main() -> None:
    """Sweep, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/twin-loop.png"))
    parser.add_argument("--highest", type=float, default=4.4, help="mT")
    parser.add_argument("--lowest", type=float, default=0.0, help="mT")
    parser.add_argument("--step", type=float, default=0.2, help="mT")
    parser.add_argument("--dwell", type=float, default=1.2, help="s at each step, the last third is averaged")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "truth.h5"
        overrides = [
            f"record.folder={folder}", "record.name=loop", "stream.address=tcp://127.0.0.1:0", "control.enabled=true",
            f"camera.truth={truth}", f"field.initial_mT={arguments.highest}",
        ]  # fmt: skip
        service = sky.Service(sky.load_config(CONFIG, overrides))
        summaries = []
        thread = threading.Thread(target=lambda: summaries.append(service.run()))
        thread.start()
        try:
            steps = sweep(service, arguments)
        finally:
            service.stop()
            thread.join()
        (summary,) = summaries
        print(f"{summary.status}: {summary.frames}, {summary.rate_hz} frames/s, {summary.latency_ms['total']}")
        rows = table(Path(summary.run_file), truth, steps)
    for row in rows:
        print("{:>5} set {:6.2f} mT  read {:6.3f} mT  count {:6.1f}  truth {:6.1f}  stripes {:5.1f}".format(*row))
    draw(rows, arguments.out)


def sweep(service: sky.Service, arguments: argparse.Namespace) -> list[tuple[str, float, int, int]]:
    """Down and up. Returns for each step its branch, its field, and between which Unix times in ns to average."""
    while not service.control_address:
        time.sleep(0.1)
    with sky.Control(service.control_address) as control:
        while control.ask("status")["status"]["frames"]["received"] < 10:
            time.sleep(0.1)
        n = round((arguments.highest - arguments.lowest) / arguments.step)
        down = np.linspace(arguments.highest, arguments.lowest, n + 1).tolist()
        steps = []
        for branch, fields in (("down", down), ("up", down[::-1])):
            for field_mT in fields:
                control.set_field(field_mT, wait=True)
                time.sleep(arguments.dwell)
                now_ns = time.time_ns()
                steps.append((branch, field_mT, now_ns - round(arguments.dwell / 3 * 1e9), now_ns))
        return steps


def table(run_file: Path, truth: Path, steps: list[tuple[str, float, int, int]]) -> list[Row]:
    """Branch, field set, field read back, count, true count, stripes; averages over the frames of a step."""
    with sky.open_run(run_file) as run, h5py.File(truth) as real:
        seen = {name: np.asarray(run.table[name]) for name in ("camera_ns", "field_mT", "count", "stripes")}
        exposed_ns, counts = real["frames/camera_ns"][:], real["frames/count"][:]
    rows = []
    for branch, field_mT, from_ns, to_ns in steps:
        here = (seen["camera_ns"] >= from_ns) & (seen["camera_ns"] < to_ns) & (seen["count"] >= 0)
        there = (exposed_ns >= from_ns) & (exposed_ns < to_ns)
        if not (here.any() and there.any()):
            continue  # the computer was too busy for a frame
        means = (float(seen[name][here].mean()) for name in ("field_mT", "count"))
        rows.append((branch, field_mT, *means, float(counts[there].mean()), float(seen["stripes"][here].mean())))
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """The picture."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for branch, colour, mark in (("down", "tab:blue", "v"), ("up", "tab:red", "^")):
        _, _, field, count, true, stripes = zip(*(row for row in rows if row[0] == branch), strict=True)
        axes.plot(field, count, mark, color=colour, ms=5, label=f"field going {branch}: skyrmions counted")
        axes.plot(field, true, "-", color=colour, lw=1, label=f"field going {branch}: skyrmions that are there")
        axes.plot(field, stripes, "x", color=colour, ms=4, alpha=0.5, label=f"field going {branch}: stripes counted")
    axes.set(xlabel="field read back (mT)", ylabel="objects in the image")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(path)


if __name__ == "__main__":
    main()
