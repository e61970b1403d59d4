"""The same work by the networks of others, in turns with ours."""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.bench.case import Case
from realtime_skyseg.bench.latency import measure_run
from realtime_skyseg.bench.made_frames import frames_of, recording_of
from realtime_skyseg.bench.peers import MARK
from realtime_skyseg.bench.this_computer import computer
from realtime_skyseg.errors import SettingsError, StreamError

#: How TensorFlow comes to `--against`. It wants an older h5py than our constraints have.
TENSORFLOW = (
    "python -m venv tf && tf/bin/pip install tensorflow-cpu, then --tensorflow tf/bin/python "
    "(Windows: tf\\Scripts\\pip, tf\\Scripts\\python.exe)"
)


def against(
    case: Case,
    rounds: int = 5,
    tensorflow_python: str = sys.executable,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Ours beside the peers of `peers.py`, in turn: in each round ours is timed right before each peer.

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
        frames = frames_of(recording_of(case, Path(folder)))
    height, width = frames[0].shape
    engine = segmenter.open((height, width))
    polarity = segmenter(frames[0]).polarity  # as in a run: the frames before have told it
    ours: dict[str, list[float]] = {"prepare": [], "segment": [], "measure": [], "whole": [], "service": []}

    def segment_ms(calls: int = 20) -> float:
        stages: dict[str, list[float]] = {name: [] for name in ("prepare", "segment", "measure", "whole")}
        for call in range(calls):
            marks = [("", time.perf_counter())]

            def mark(stage: str, marks: list[tuple[str, float]] = marks) -> None:
                marks.append((stage, time.perf_counter()))

            segmenter(frames[call % len(frames)], mark, polarity)
            for (_, begun), (stage, over) in itertools.pairwise(marks):
                stages[stage].append((over - begun) * 1e3)
            stages["whole"].append((marks[-1][1] - marks[0][1]) * 1e3)
        for name, values in stages.items():
            ours[name].append(median(values))
        return ours["segment"][-1]

    def service_ms() -> float:
        with tempfile.TemporaryDirectory() as folder:
            ours["service"].append(1e3 / measure_run(replace(case, rate_hz=None, seconds=2.0), Path(folder))["rate_hz"])
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
        "machine": computer(),
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
