"""One run of the service, measured: latencies of all stages."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from realtime_skyseg.bench.case import Case
from realtime_skyseg.bench.made_frames import recording_of
from realtime_skyseg.bench.this_computer import computer
from realtime_skyseg.config import validate
from realtime_skyseg.errors import StreamError
from realtime_skyseg.pipeline import Pipeline
from realtime_skyseg.service import Service
from realtime_skyseg.storage import open_run
from realtime_skyseg.streaming import ImageMessage, SeriesEndMessage, Subscriber

#: Edges of the histograms of latency, ms: bins of 5 %.
_EDGES_MS = np.geomspace(0.5, 5000, 190)


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
            runs.append(measure_run(case, Path(folder)))
    return {**runs[0], "runs": runs, "machine": computer()}


def listen(address: str, n: int = 1) -> None:
    """The process of n subscribers, a thread each: prints the latencies of what they got as JSON."""
    latencies_ms: list[float] = []
    lost = 0

    def subscribe() -> None:
        nonlocal lost
        with Subscriber(address) as stream:
            for message in stream.every(60):
                if isinstance(message, ImageMessage):
                    latencies_ms.append((time.time_ns() - message.received_ns) / 1e6)
                if isinstance(message, SeriesEndMessage):
                    break
            lost += stream.lost

    threads = [threading.Thread(target=subscribe) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures = {"received": len(latencies_ms), "lost": lost, **_percentiles(latencies_ms)}
    print(json.dumps({**figures, "histogram": _histogram(latencies_ms)}))  # noqa: T201


def measure_run(case: Case, folder: Path) -> dict[str, Any]:
    """What a run of the service on this case showed."""
    path = recording_of(case, folder)
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
            "stream": {
                "address": "tcp://127.0.0.1:0",
                "wait_for_subscribers": case.subscribers,
                "queue_messages": 10_000,
            },
            "control": {"enabled": False},
            "record": {"folder": str(folder), "name": "run"},
        }
    )
    service = Service(config)
    heard: dict[str, Any] = {}
    over = threading.Event()
    client = threading.Thread(
        target=_listen_to, args=(service, case.subscribers, heard, over), name="skyseg-bench-client"
    )
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
    with open_run(summary.run_file) as run:
        table = run.table
        height, width = run.raw.shape[1:]
        published = table["published_ns"] > 0
        total_ms = (table["published_ns"][published] - table["received_ns"][published]) / 1e6
    histograms = {
        "edges": [round(edge, 3) for edge in _EDGES_MS],
        "total": _histogram(total_ms),
        "subscriber": heard.pop("histogram"),
    }
    return {
        **{key: value for key, value in summary.as_dict().items() if key not in ("run_file", "run_files")},
        "case": {"height": height, "width": width, "rate_hz": case.rate_hz, "seconds": case.seconds},
        "count": float(np.median(table["count"][published])) if published.any() else None,
        "stream": heard,
        "histograms_ms": histograms,
    }


def _listen_to(service: Service, subscribers: int, heard: dict[str, Any], over: threading.Event) -> None:
    while not service.address:
        if over.wait(0.02):
            return
    code = "import sys; from realtime_skyseg.bench.latency import listen; listen(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, service.address, str(subscribers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        heard["error"] = f"the subscriber's process failed: {done.stderr.strip().splitlines()[-1:]}"
        service.stop()
    else:
        heard.update(json.loads(done.stdout))


def _percentiles(values_ms: Sequence[float]) -> dict[str, float | None]:
    shares: dict[str, float] = {"p50": 50, "p99": 99, "p99_9": 99.9, "max": 100}
    if not values_ms:
        return dict.fromkeys(shares)
    return {name: round(float(np.percentile(values_ms, share)), 3) for name, share in shares.items()}


def _histogram(values_ms: Sequence[float] | np.ndarray) -> list[int]:
    """Counts in the bins of `_EDGES_MS`; what lies outside counts in the outermost bins."""
    inside = np.clip(values_ms, _EDGES_MS[0], _EDGES_MS[-1])
    return [int(count) for count in np.histogram(inside, _EDGES_MS)[0]]
