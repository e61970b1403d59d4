"""What this machine can do: latencies of whole runs, stage by stage, engine by engine, size by size.

Each measurement is a real run of the service, from a replayed recording to a subscriber in another process, with the
run file written. Frames of other sizes are cut and mirrored from the recording's.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from rich.console import Console
from rich.progress import track

from realtime_skyseg.config import CameraSettings, validate
from realtime_skyseg.devices import CameraEnded
from realtime_skyseg.errors import SettingsError, StreamError
from realtime_skyseg.pipeline import Pipeline
from realtime_skyseg.service import Service
from realtime_skyseg.streaming import ImageMessage, SeriesEndMessage, Subscriber

#: Different frames in a recording that is replayed round and round.
_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement."""

    model: str = "compact"
    engine: str = "auto"
    shape: tuple[int, int] | None = None  # height, width; None: as the recording
    rate_hz: float | None = 25.0  # None: as fast as it goes
    seconds: float = 10.0
    source: str = "bundled"  # what camera driver `replay` takes as its path


def bench(cases: Sequence[Case], progress: bool = True) -> dict[str, Any]:
    """Run the cases one after the other.

    Returns:
        What `run --json` has, for the first case, and `stream`: latency from the camera's hand-over to a subscriber in
        another process; `runs`: the same for every case; `machine`.

    Raises:
        SettingsError: a model, an engine, a size or a recording is not usable.
    """
    runs = []
    console = Console(stderr=True)
    for case in track(cases, "measuring", console=console, transient=True, disable=not progress or len(cases) < 2):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(_measure(case, Path(folder)))
    return {**runs[0], "runs": runs, "machine": machine()}


def cases_of(
    models: Sequence[str],
    engines: Sequence[str],
    sizes: Sequence[str],
    rates: Sequence[float | None],
    seconds: float,
    source: str,
) -> list[Case]:
    """All combinations. Raises `SettingsError` for a size that is none."""
    shapes: list[tuple[int, int] | None] = [_shape(size) for size in sizes] if sizes else [None]
    return [
        Case(model, engine, shape, rate_hz, seconds, source)
        for shape, engine, model, rate_hz in product(shapes, engines, models, rates)
    ]


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": {
            name: version(name) for name in ("realtime_skyseg", "numpy", "torch", "openvino", "h5py", "pyzmq")
        },
        "busy": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def listen(address: str) -> None:
    """The subscriber's process: prints the latencies of what it got as JSON."""
    latencies_ms: list[float] = []
    with Subscriber(address) as stream:
        for message in stream.every(60):
            if isinstance(message, ImageMessage):
                latencies_ms.append((time.time_ns() - message.received_ns) / 1e6)
            if isinstance(message, SeriesEndMessage):
                break
        lost = stream.lost
    print(json.dumps({"received": len(latencies_ms), "lost": lost, **_percentiles(latencies_ms)}))  # noqa: T201


def _measure(case: Case, folder: Path) -> dict[str, Any]:
    path = case.source if case.shape is None else str(_resized(case.source, case.shape, folder / "frames.tif"))
    limit = {} if case.rate_hz is None else {"limit": max(2, round(case.rate_hz * case.seconds))}
    config = validate(
        {
            "camera": {
                "driver": "replay",
                "path": path,
                "rate_hz": "max" if case.rate_hz is None else case.rate_hz,
                "loop": True,
                **limit,
            },
            "analysis": {
                "model": case.model,
                "engine": case.engine,
                "policy": "every" if case.rate_hz is None else "latest",
            },
            "stream": {"address": "tcp://127.0.0.1:0", "wait_for_subscribers": 1, "queue_messages": 10_000},
            "control": {"enabled": False},
            "record": {"folder": str(folder), "name": "run"},
        }
    )
    service = Service(config)
    heard: dict[str, Any] = {}
    over = threading.Event()
    client = threading.Thread(target=_listen_to, args=(service, heard, over), name="skyseg-bench-client")
    client.start()

    def end_in_time(pipeline: Pipeline) -> None:
        if case.rate_hz is None and pipeline.span_s >= case.seconds:
            service.stop()

    try:
        summary = service.run(end_in_time)
    finally:
        over.set()
        client.join()
    if "error" in heard:
        raise StreamError(heard["error"])
    height, width = case.shape or _shape_of(case.source)
    return {
        **{key: value for key, value in summary.as_dict().items() if key not in ("run_file", "run_files")},
        "case": {"height": height, "width": width, "rate_hz": case.rate_hz, "seconds": case.seconds},
        "stream": heard,
    }


def _listen_to(service: Service, heard: dict[str, Any], over: threading.Event) -> None:
    while not service.address:
        if over.wait(0.02):
            return
    command = "import sys; from realtime_skyseg.bench import listen; listen(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", command, service.address], capture_output=True, text=True, check=False)
    if done.returncode:
        heard["error"] = f"the subscriber's process failed: {done.stderr.strip().splitlines()[-1:]}"
        service.stop()
    else:
        heard.update(json.loads(done.stdout))


def _frames(source: str) -> list[np.ndarray]:
    camera = CameraSettings.model_validate({"driver": "replay", "path": source, "rate_hz": "max"}).open()
    frames: list[np.ndarray] = []
    try:
        while len(frames) < _FRAMES:
            frame = camera.read(5.0)
            if frame is not None:
                frames.append(frame.image)
    except CameraEnded:
        pass
    finally:
        camera.close()
    return frames


def _resized(source: str, shape: tuple[int, int], path: Path) -> Path:
    frames = [
        np.pad(
            frame, [(0, max(0, wanted - have)) for wanted, have in zip(shape, frame.shape, strict=True)], "symmetric"
        )
        for frame in _frames(source)
    ]
    tifffile.imwrite(path, np.stack([frame[: shape[0], : shape[1]] for frame in frames]), photometric="minisblack")
    return path


def _shape_of(source: str) -> tuple[int, int]:
    camera = CameraSettings.model_validate({"driver": "replay", "path": source, "rate_hz": "max"}).open()
    camera.close()
    return camera.shape


def _shape(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        height = width = 0
    if not 64 <= min(height, width) <= max(height, width) <= 8192:
        raise SettingsError(f"--size '{text}': allowed: HEIGHTxWIDTH of 64 to 8192 px, for example 512x672")
    return height, width


def _percentiles(values_ms: Sequence[float]) -> dict[str, float | None]:
    shares: dict[str, float] = {"p50": 50, "p99": 99, "p99_9": 99.9, "max": 100}
    if not values_ms:
        return dict.fromkeys(shares)
    return {name: round(float(np.percentile(values_ms, share)), 3) for name, share in shares.items()}


def _processor() -> str:
    with_name = Path("/proc/cpuinfo")
    if with_name.is_file():
        for line in with_name.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def report(figures: dict[str, Any], line: Callable[[str], None]) -> None:
    """Print the figures, one line per run."""
    for run in figures["runs"]:
        case, total, stream = run["case"], run["latency_ms"]["total"], run["stream"]
        rate = "as fast as it goes" if case["rate_hz"] is None else f"at {case['rate_hz']:g} Hz"
        stages = ", ".join(
            f"{stage} {run['latency_ms'][stage]['p50']}" for stage in ("prepare", "segment", "measure", "publish")
        )
        frames = f"{run['frames']['analysed']} of {run['frames']['received']} frames analysed, {run['rate_hz']:.1f}/s"
        line(
            f"{run['model']} {run['engine']} ({run['precision']}) {case['height']}x{case['width']} {rate}: {frames}; "
            f"total p50 {total['p50']} p99 {total['p99']} max {total['max']} ms ({stages}); "
            f"to a subscriber p50 {stream['p50']} ms"
        )
