"""Does the service hold for long? One run with record and two subscribers in one other process; memory, open files,
threads and sockets are watched (Linux).

python benchmarks/soak.py --minutes 30 --plot soak.png --json soak.json

Made frames of 512x672 (dark discs in noise) at 25 Hz, segmented by the bundled network. Raw frames and masks go to
segments, of which only the newest three are kept, so that the disk needs some 3 GB however long it takes; `--folder`
says which disk. Exit status 1 where resident memory at the end is more than 5 % above that at minute 5 (at a third of
a run that is shorter than 15 minutes), something is left open, a frame is lost, or the counts of stream, file and
summary differ.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile

import realtime_skyseg as sky
from realtime_skyseg.config import validate
from realtime_skyseg.service import Summary
from realtime_skyseg.streaming import CountsMessage, ImageMessage, SeriesEndMessage

SHAPE = (512, 672)
SEGMENT_GB = 0.5
KEPT = 3  # segments
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process has at one moment."""

    time_s: float  # since the run began
    rss_mb: float
    open_files: int  # all but sockets
    sockets: int  # with their wake-up handles
    threads: int
    received: int
    analysed: int
    free_gb: float


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate-hz", type=float, default=25.0)
    parser.add_argument("--folder", type=Path, help="on the disk to write to; default: the temporary folder")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="memory and rate over time")
    parser.add_argument("--listen", metavar="ADDRESS", help="be the process of the subscribers")
    options = parser.parse_args()
    if options.listen:
        return listen(options.listen)
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=options.folder))
    try:
        figures = soak(folder, options.minutes, options.rate_hz, options.model)
    finally:
        shutil.rmtree(folder)
    samples = figures["samples"]
    print("   time s   RSS MB  files  sockets  threads   rate Hz  free GB")
    for before, now in zip([samples[0], *samples], samples, strict=False):
        rate = (now["received"] - before["received"]) / max(now["time_s"] - before["time_s"], 1e-9)
        print(
            f"{now['time_s']:9.0f} {now['rss_mb']:8.1f} {now['open_files']:6} {now['sockets']:8} {now['threads']:8}"
            f" {rate:9.2f} {now['free_gb']:8.1f}"
        )
    print(json.dumps({name: value for name, value in figures.items() if name != "samples"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.plot:
        plot(samples, options.plot)
    return 1 if figures["failures"] else 0


def soak(folder: Path, minutes: float, rate_hz: float, model: str) -> dict[str, Any]:
    """One run, and what was found out about it; `failures` has one sentence for each thing that does not hold."""
    limit = round(rate_hz * minutes * 60)
    config = validate(
        {
            "camera": {"driver": "replay", "path": str(make_frames(folder)), "rate_hz": rate_hz, "loop": True,
                       "limit": limit},
            "analysis": {"policy": "latest", "model": model},
            "stream": {"address": "tcp://127.0.0.1:0", "wait_for_subscribers": 2},
            "record": {"folder": str(folder), "name": "run", "segment_gb": SEGMENT_GB},
        }
    )  # fmt: skip
    before = look(0.0, None, folder)
    hdf5_before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)
    service = sky.Service(config)
    samples: list[Sample] = []
    over = threading.Event()
    clients: list[subprocess.Popen[str]] = []

    def watch() -> None:
        while not (service.address or over.wait(0.05)):
            pass
        clients.append(
            subprocess.Popen([sys.executable, __file__, "--listen", service.address], stdout=subprocess.PIPE, text=True)
        )
        interval_s, begun = min(10.0, minutes * 2), time.monotonic()
        while not over.wait(interval_s):
            counters = service.pipeline.counters if service.pipeline else None
            if counters and 0 < counters.received < limit:
                samples.append(look(time.monotonic() - begun, service, folder))
            for old in sorted(folder.glob("run.segments/*.h5"), key=lambda path: int(path.stem))[:-KEPT]:
                old.unlink()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        summary = service.run()
    finally:
        over.set()
        watcher.join()
        try:
            heard = json.loads(clients[0].communicate(timeout=30)[0]) if clients else {}
        except (subprocess.TimeoutExpired, ValueError):
            heard = {}
        for client in clients:
            client.kill()
            client.wait()
    gc.collect()
    after = look(minutes * 60, None, folder)
    failures = compare(summary, heard)
    reference_s = 300.0 if minutes >= 15 else minutes * 20
    early = statistics.median(s.rss_mb for s in sorted(samples, key=lambda s: abs(s.time_s - reference_s))[:3])
    late = statistics.median(s.rss_mb for s in samples[-3:])
    if late > 1.05 * early:
        failures.append(f"resident memory rose from {early:.0f} to {late:.0f} MB")
    start, end = min(samples, key=lambda s: abs(s.time_s - reference_s)), samples[-1]
    for name in ("open_files", "sockets", "threads"):
        # A segment more or less, and the HDF5 file that begins before the last one is closed.
        if getattr(end, name) > getattr(start, name) + (4 if name == "open_files" else 0):
            failures.append(f"{name}: {getattr(start, name)} early in the run, {getattr(end, name)} at its end")
    if after.sockets > before.sockets:
        failures.append(f"sockets: {before.sockets} before the run, {after.sockets} after it")
    if hdf5_before != h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE):
        failures.append("HDF5 files are still open after the run")
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("skyseg")]
    if left:
        failures.append(f"threads are left after the run: {left}")
    return {
        "minutes": minutes,
        "shape": SHAPE,
        "engine": f"{summary.engine} on {summary.device}",
        "status": summary.status,
        "frames": summary.frames,
        "rate_hz": summary.rate_hz,
        "latency_ms": summary.latency_ms["total"],
        "subscribers": heard,
        "rss_mb": {"early": early, "end": late, "ratio": round(late / early, 4), "reference_s": reference_s},
        "before": asdict(before),
        "after": asdict(after),
        "failures": failures,
        "samples": [asdict(sample) for sample in samples],
    }


def compare(summary: Summary, heard: dict[str, Any]) -> list[str]:
    """What does not agree between summary, run file and subscribers."""
    failures = []
    frames = summary.frames
    if summary.status != "ok":
        failures.append(f"the run ended as '{summary.status}': {summary.message}")
    with sky.open_run(summary.run_file) as run:
        table = run.table
        stored = run.summary["frames"] if run.summary else None
        if stored != frames:
            failures.append(f"the file's summary has {stored}, the service's {frames}")
        counted = {"written": int(table["written"].sum()), "analysed": int((table["skipped"] == 0).sum())}
        for name, count in counted.items():
            if count != frames[name]:
                failures.append(f"the file has {count} frames {name}, the summary {frames[name]}")
        n = run.n_frames
        kept = range(max(0, n - round(SEGMENT_GB * 1e9 / (SHAPE[0] * SHAPE[1] * 2))), n, 20)
        failures += [f"frame {index}: {problem}" for index in kept if (problem := run.problem(index))]
    for name in ("all", "counts"):
        one = heard.get(name, {})
        if one.get("end") != frames:
            failures.append(f"subscriber '{name}': the end message has {one.get('end')}, the summary {frames}")
        if one.get("results", 0) + one.get("lost", 0) < frames["analysed"] or one.get("malformed"):
            failures.append(f"subscriber '{name}' has {one}, but {frames['analysed']} frames were analysed")
    return failures


def listen(address: str) -> int:
    """Two subscribers, one to everything and one without masks; prints what each has heard at the end."""
    heard: dict[str, Any] = {}

    def client(name: str, masks: bool) -> None:
        kind = ImageMessage if masks else CountsMessage
        results, end = 0, None
        with sky.Subscriber(address, masks=masks) as stream:
            for message in stream.every(timeout_s=60):
                results += isinstance(message, kind)
                if isinstance(message, SeriesEndMessage):
                    end = message.frames
            heard[name] = {"results": results, "lost": stream.lost, "malformed": stream.malformed, "end": end}

    threads = [threading.Thread(target=client, args=one) for one in (("all", True), ("counts", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(heard))
    return 0


def make_frames(folder: Path) -> Path:
    """64 images of discs in noise."""
    rng = np.random.default_rng(0)
    y, x = np.indices(SHAPE)
    path = folder / "frames.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(64):
            image = rng.normal(128, 8, SHAPE)
            for _ in range(100):
                image[(y - rng.uniform(0, SHAPE[0])) ** 2 + (x - rng.uniform(0, SHAPE[1])) ** 2 < 49] -= 40
            file.write(np.clip(image, 0, 255).astype(np.uint8), photometric="minisblack")
    return path


def look(time_s: float, service: sky.Service | None, folder: Path) -> Sample:
    """Memory and open things of this process."""
    links = []
    for handle in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(handle.readlink()))
        except OSError:  # closed meanwhile
            continue
    sockets = sum(link.startswith(("socket:", "anon_inode:[eventfd]")) for link in links)
    counters = service.pipeline.counters if service and service.pipeline else None
    return Sample(
        time_s=round(time_s, 1),
        rss_mb=round(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6, 1),
        open_files=len(links) - sockets,
        sockets=sockets,
        threads=len(list(Path("/proc/self/task").iterdir())),
        received=counters.received if counters else 0,
        analysed=counters.analysed if counters else 0,
        free_gb=round(shutil.disk_usage(folder).free / 1e9, 1),
    )


def plot(samples: list[dict[str, Any]], path: Path) -> None:
    """Memory and rates over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    minutes = np.array([sample["time_s"] for sample in samples]) / 60
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    above.plot(minutes, [sample["rss_mb"] for sample in samples], color="tab:blue")
    above.set_ylabel("resident memory / MB")
    above.set_ylim(0, 1.2 * max(sample["rss_mb"] for sample in samples))
    for name, colour, width in (("received", "tab:blue", 3.0), ("analysed", "tab:orange", 1.2)):
        rate = np.diff([sample[name] for sample in samples]) / np.diff(minutes) / 60
        below.plot(minutes[1:], rate, color=colour, linewidth=width, label=name)
    below.set_ylabel("frames per second")
    below.set_xlabel("minutes")
    below.set_ylim(bottom=0)
    below.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
