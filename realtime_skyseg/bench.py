"""What this machine can do: latencies of whole runs, stage by stage, engine by engine, size by size; the highest rate
that it keeps up with; and what others need for the same frames.

Each measurement is a real run of the service, from a replayed recording to a subscriber in another process, with the
run file written. Frames of other sizes are cut and mirrored from the recording's; frames of so many objects are made.
"""

import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.config import CameraSettings, EngineChoice, validate
from realtime_skyseg.devices import CameraEnded
from realtime_skyseg.errors import SettingsError, StreamError
from realtime_skyseg.peers import MARK
from realtime_skyseg.pipeline import Pipeline
from realtime_skyseg.records import Mask
from realtime_skyseg.service import Service
from realtime_skyseg.storage import open_run
from realtime_skyseg.streaming import ImageMessage, SeriesEndMessage, Subscriber

#: Different frames in a recording that is replayed round and round.
_FRAMES = 16

#: Made frames: their size where none is asked for, and the smallest square that an object needs.
_MADE_SHAPE = (512, 672)
_LEAST_CELL_PX = 14

#: Edges of the histograms of latency, ms: bins of 5 %.
_EDGES_MS = np.geomspace(0.5, 5000, 190)

#: The search for the highest rate ends where it is known to this.
_RATE_STEP = 0.03

#: How TensorFlow comes to `--against`. It wants an older h5py than our constraints have.
TENSORFLOW = (
    "python -m venv tf && tf/bin/pip install tensorflow-cpu, then --tensorflow tf/bin/python "
    "(Windows: tf\\Scripts\\pip, tf\\Scripts\\python.exe)"
)


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement."""

    model: str = "compact"
    engine: EngineChoice = "auto"
    shape: tuple[int, int] | None = None  # height, width; None: as the recording
    rate_hz: float | None = 25.0  # None: as fast as it goes
    seconds: float = 10.0
    source: str = "bundled"  # what camera driver `replay` takes as its path
    objects: int | None = None  # per frame: frames are made instead of replaying `source`
    subscribers: int = 1  # all in one other process


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
    engines: Sequence[EngineChoice],
    sizes: Sequence[str],
    rates: Sequence[float | None],
    seconds: float,
    source: str,
    objects: int | None = None,
) -> list[Case]:
    """All combinations. Raises `SettingsError` for a size that is none, or too small for so many objects."""
    shapes: list[tuple[int, int] | None] = [_shape(size) for size in sizes] if sizes else [None]
    if objects is not None:
        for height, width in [shape or _MADE_SHAPE for shape in shapes]:
            most = height * width // _LEAST_CELL_PX**2
            if not 1 <= objects <= most:
                raise SettingsError(f"--objects {objects}: allowed on {height}x{width} px: 1 to {most}")
    return [
        Case(model, engine, shape, rate_hz, seconds, source, objects)
        for shape, engine, model, rate_hz in product(shapes, engines, models, rates)
    ]


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    from realtime_skyseg.segmentation.openvino_engine import capabilities

    packages = {}
    for name in ("realtime_skyseg", "numpy", "opencv-python", "torch", "openvino", "tensorrt", "h5py", "pyzmq"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "arithmetic": capabilities(),
        "instructions": _instructions(),
        "cores": os.cpu_count(),
        "memory_GB": _memory_GB(),
        "packages": packages,
        "busy": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def saturation(case: Case, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The highest rate of the camera at which every frame is analysed (policy `latest`) and written, to 3 %.

    Begins where the machine is when nothing waits (policy `every`), and halves the interval from there: each try is a
    run of `case.seconds`, at least 150 frames. A shared machine may miss a frame at any rate, so that a rate is given
    up only after two runs.

    Returns:
        `rate_hz`, `run` (as in `bench`, at that rate) and `tries` (rate and frames not analysed).
    """
    tries: list[dict[str, float]] = []

    def held(rate_hz: float) -> dict[str, Any] | None:
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                run = _measure(replace(case, rate_hz=rate_hz, seconds=max(case.seconds, 150 / rate_hz)), Path(folder))
            frames = run["frames"]
            missed = frames["received"] - min(frames["analysed"], frames["written"])
            late = run["rate_hz"] < rate_hz * (1 - _RATE_STEP)  # the camera itself did not keep its rate
            tries.append({"rate_hz": round(rate_hz, 2), "missed": missed, "came_hz": run["rate_hz"]})
            progress(f"{rate_hz:.1f} Hz: {missed} of {frames['received']} frames missed, {run['rate_hz']:.1f} Hz came")
            if not missed and not late:
                return run
        return None

    with tempfile.TemporaryDirectory() as folder:
        high = 1.2 * _measure(replace(case, rate_hz=None), Path(folder))["rate_hz"]
    low, best = 0.0, None
    rate_hz = high / 1.3
    while high - low > _RATE_STEP * high:
        if run := held(rate_hz):
            low, best = rate_hz, run
        else:
            high = rate_hz
        rate_hz = (low + high) / 2 if low else high / 1.3
        if high < 0.5 or len(tries) >= 16:
            break
    return {"rate_hz": round(low, 2), "run": best, "tries": tries}


def against(
    case: Case,
    rounds: int = 5,
    tensorflow_python: str = sys.executable,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Ours beside the peers of `realtime_skyseg.peers`, in turn: in each round ours is timed right before each peer.

    Args:
        case: model, engine and frame size; rate and seconds are not used.
        rounds: their median counts.
        tensorflow_python: the Python that has TensorFlow.
        progress: gets a line per round.

    Returns:
        `ours`: {stage: median ms}; `peers`: {name: `ms` and `ratio` (medians over the rounds), `ratios` (of each
        round)}; `missing`: {kind: why}; `versions`; `machine`. A ratio is the peer's time over ours for the same:
        `segment`, but for the naive loop, which does all that the service does with a frame, the whole time per frame
        of a run of the service as fast as it goes.

    Raises:
        StreamError: a peer's process failed.
    """
    segmenter = Segmenter.load(case.model, case.engine)
    with tempfile.TemporaryDirectory() as folder:
        frames = _frames(_recording(case, Path(folder)))
    height, width = frames[0].shape
    engine = segmenter.open((height, width))
    ours: dict[str, list[float]] = {"prepare": [], "segment": [], "measure": [], "whole": [], "service": []}

    def segment_ms(calls: int = 20) -> float:
        stages: dict[str, list[float]] = {name: [] for name in ("prepare", "segment", "measure", "whole")}
        for call in range(calls):
            marks = [("", time.perf_counter())]

            def mark(stage: str, marks: list[tuple[str, float]] = marks) -> None:
                marks.append((stage, time.perf_counter()))

            segmenter(frames[call % len(frames)], mark)
            for (_, begun), (stage, over) in itertools.pairwise(marks):
                stages[stage].append((over - begun) * 1e3)
            stages["whole"].append((marks[-1][1] - marks[0][1]) * 1e3)
        for name, values in stages.items():
            ours[name].append(median(values))
        return ours["segment"][-1]

    def service_ms() -> float:
        with tempfile.TemporaryDirectory() as folder:
            ours["service"].append(1e3 / _measure(replace(case, rate_hz=None, seconds=2.0), Path(folder))["rate_hz"])
        return ours["service"][-1]

    times: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    pythons = {"torch": sys.executable, "naive": sys.executable, "tensorflow": tensorflow_python}
    peers = []
    try:
        for kind, python in pythons.items():
            progress(f"starting {kind}")
            peer = _Peer(kind, python, height, width)
            peers.append(peer)
            if peer.missing:
                missing[kind] = peer.missing + (f"; install it: {TENSORFLOW}" if kind == "tensorflow" else "")
            versions |= peer.versions
        for number in range(rounds):
            for peer in peers:
                for name in peer.names:
                    mine = service_ms() if peer.kind == "naive" else segment_ms()
                    once = median(peer.time(name, 5 if peer.kind != "tensorflow" else 1 + 2 * ("small" in name)))
                    times.setdefault(name, []).append(once)
                    ratios.setdefault(name, []).append(once / mine)
            so_far = ", ".join(f"{name} {values[-1]:.1f}x" for name, values in ratios.items())
            progress(f"round {number + 1} of {rounds}: segment {ours['segment'][-1]:.2f} ms; {so_far}")
    finally:
        for peer in peers:
            peer.close()
    return {
        "case": {"height": height, "width": width, "model": case.model, "rounds": rounds},
        "engine": engine.name,
        "precision": engine.precision,
        "ours": {name: round(median(values), 3) for name, values in ours.items() if values},
        "peers": {
            name: {
                "ms": round(median(times[name]), 2),
                "ratio": round(median(ratios[name]), 2),
                "ratios": [round(value, 2) for value in ratios[name]],
            }
            for name in times
        },
        "missing": missing,
        "versions": versions,
        "machine": machine(),
    }


class _Peer:
    """The process of one kind of peers."""

    def __init__(self, kind: str, python: str, height: int, width: int) -> None:
        self.kind = kind
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        script = Path(__file__).with_name("peers.py")
        try:
            self._process = subprocess.Popen(
                [python, "-P", str(script), kind, str(height), str(width)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise SettingsError(
                f"--tensorflow '{python}': {error.strerror}; allowed: a Python with TensorFlow"
            ) from None
        try:
            hello = self._answer()
        except StreamError:
            self.close()
            raise
        self.missing: str = hello.get("missing", "")
        self.names: list[str] = hello.get("names", [])
        self.versions: dict[str, str] = hello.get("versions", {})

    def time(self, name: str, calls: int) -> list[float]:
        """Milliseconds of each call."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {calls}\n")
        self._process.stdin.flush()
        took_ms: list[float] = self._answer()
        return took_ms

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # ends its input
        self._errors.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        raise StreamError(f"the process of the {self.kind} peers failed: {last}")


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


def _measure(case: Case, folder: Path) -> dict[str, Any]:
    path = _recording(case, folder)
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
    code = "import sys; from realtime_skyseg.bench import listen; listen(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, service.address, str(subscribers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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


def _recording(case: Case, folder: Path) -> str:
    """Path of a recording of the frames of a case."""
    if case.objects is None and case.shape is None:
        return case.source
    shape = case.shape or _MADE_SHAPE
    frames = _resized(_frames(case.source), shape) if case.objects is None else _made(case.objects, shape)
    np.save(folder / "frames.npy", frames)
    return str(folder / "frames.npy")


def _resized(frames: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    grown = [
        np.pad(
            frame, [(0, max(0, wanted - have)) for wanted, have in zip(shape, frame.shape, strict=True)], "symmetric"
        )
        for frame in frames
    ]
    return np.stack([frame[: shape[0], : shape[1]] for frame in grown])


def _made(objects: int, shape: tuple[int, int]) -> np.ndarray:
    """(frames, height, width) uint8: dark discs in noise."""
    rng = np.random.default_rng(0)
    frames = rng.normal(128, 14, (_FRAMES, *shape)).astype(np.float32)
    for frame in frames:
        frame -= 42 * discs(objects, shape, rng)
    return np.clip(frames, 0, 255).astype(np.uint8)


def discs(objects: int, shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    """(height, width), 1 in discs near the places of a grid: as large as leaves gaps, of 20 px radius at most."""
    height, width = shape
    columns = math.ceil(math.sqrt(objects * width / height))
    rows = math.ceil(objects / columns)
    cell = min(width / columns, height / rows)
    mask = np.zeros(shape, np.uint8)
    for place in rng.permutation(rows * columns)[:objects]:
        row, column = divmod(int(place), columns)
        x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
        moved = rng.uniform(-cell / 8, cell / 8, 2)
        radius = min(rng.uniform(0.15, 0.25) * cell, 20)
        cv2.circle(mask, (round(x + moved[0]), round(y + moved[1])), round(radius), 1, -1)
    return mask


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


def _histogram(values_ms: Sequence[float] | np.ndarray) -> list[int]:
    """Counts in the bins of `_EDGES_MS`; what lies outside counts in the outermost bins."""
    inside = np.clip(values_ms, _EDGES_MS[0], _EDGES_MS[-1])
    return [int(count) for count in np.histogram(inside, _EDGES_MS)[0]]


def _instructions() -> list[str]:
    """What of this processor's instructions matters to networks, where the system tells."""
    listed = Path("/proc/cpuinfo")
    words = set(listed.read_text().split()) if listed.is_file() else set()
    return sorted(word for word in words if word.startswith(("avx", "amx", "fma", "asimd", "bf16", "i8mm")))


def _memory_GB() -> float | None:
    if hasattr(os, "sysconf"):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    if sys.platform == "win32":
        import ctypes

        size = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(size))
        return round(size.value * 1024 / 1e9, 1)
    return None


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
