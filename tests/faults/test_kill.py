"""kill -9 of the service at a random moment, at 50 frames per second: what is lost, and whether anything is wrong."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from realtime_skyseg.records import Skipped
from realtime_skyseg.storage import open_run, recover

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

RATE_HZ = 50.0

CONFIG = """
camera: {{driver: replay, path: '{recording}', rate_hz: {rate}, loop: true}}
stream: {{enabled: false}}
record: {{folder: '{folder}', name: run}}
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 different frames of 256x256."""
    draw = np.random.default_rng(0)
    frames = np.clip(draw.normal(128, 12, (40, 256, 256)), 0, 255).astype(np.uint8)
    frames[:, 100:120, 100:120] = 60
    path = tmp_path_factory.mktemp("recording") / "frames.npy"
    np.save(path, frames)
    return path


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_service_loses_less_than_a_second(tmp_path: Path, recording: Path, times: int) -> None:
    truth = np.load(recording)
    draw = np.random.default_rng(times)
    lost = []
    for k in range(times):
        folder = tmp_path / str(k)
        config = tmp_path / f"{k}.yaml"
        config.write_text(CONFIG.format(recording=recording, rate=RATE_HZ, folder=folder))
        with subprocess.Popen(
            [sys.executable, "-m", "realtime_skyseg.cli", "run", str(config)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as service:  # fmt: skip
            assert service.stdout is not None
            while "received" not in (line := service.stdout.readline()):
                assert line, "the service did not begin"
            begun = time.monotonic()
            time.sleep(draw.uniform(0.3, 1.5 if times < 10 else 3.0))
            service.send_signal(signal.SIGKILL)
            killed_ns = time.time_ns()
            assert time.monotonic() - begun < 60
        partial = folder / "run.h5.partial"
        assert partial.is_file()
        rescue = recover(partial)
        assert rescue.whole, rescue.sentence()
        with open_run(rescue.path) as run:
            table = run.table
            assert run.summary is not None
            frames = run.summary["frames"]
            for index in range(run.n_frames):
                assert run.problem(index) == ""
                np.testing.assert_array_equal(run.raw[index], truth[index % len(truth)])
            assert table["written"].all()
            assert (table["written_ns"] > 0).all()
            lost.append((killed_ns - int(table["received_ns"][-1])) / 1e9)
            assert frames["received"] == run.n_frames == frames["written"]
            assert frames["received"] == frames["analysed"] + sum(frames["not_analysed"].values())
            assert (table["skipped"] == Skipped.NOT_SKIPPED).sum() == frames["analysed"] > 0
            assert run.exit_status == 1
    print(json.dumps({"killed": times, "lost_s": {"median": float(np.median(lost)), "max": max(lost)}}))  # noqa: T201
    assert max(lost) <= 1.0


#: Writes two times ten frames; tells when the first ten are in the file.
WRITES = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
from test_run_file import ORIGIN, SHAPE, frame, result
from realtime_skyseg.storage import RunWriter
writer = RunWriter(Path(sys.argv[1]), SHAPE, np.dtype(np.uint16), ORIGIN, flush_s=60)
for index in range(20):
    writer.add_frame(frame(index))
    writer.add_result(result(frame(index)))
    if index % 10 == 9:
        os.write(1, b"%d " % index)
        writer.flush()
os._exit(0)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which kills a process at a given write")
@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_of_a_flush_damages_nothing(tmp_path: Path, step: int) -> None:
    """HDF5 writes a flush in some hundred pieces, in an order of its own."""

    def write(*options: str) -> None:
        (tmp_path / "run.h5.partial").unlink(missing_ok=True)
        program = [sys.executable, "-c", WRITES, str(tmp_path / "run.h5"), str(Path(__file__).parents[1] / "storage")]
        how = ["-f", "-qq", "-o", str(tmp_path / "trace"), "-e", "trace=pwrite64,write", *options]
        subprocess.run(["strace", *how, *program], stdout=subprocess.DEVNULL, check=False)

    write()
    calls = [line for line in (tmp_path / "trace").read_text().splitlines() if "pwrite64(" in line or '"19 "' in line]
    before = next(place for place, line in enumerate(calls) if '"19 "' in line)
    assert len(calls) - before > 50
    analysed = set()
    for number in range(before + 1, len(calls), step):
        write("-e", f"inject=pwrite64:signal=KILL:when={number}")
        rescue = recover(tmp_path / "run.h5.partial")
        assert rescue.whole, f"killed at write {number}: {rescue.sentence()}"
        with open_run(rescue.path) as run:
            assert all(run.problem(index) == "" for index in range(run.n_frames))
        analysed.add(rescue.analysed)
        rescue.path.unlink()
    assert analysed <= {10, 20}
    assert 10 in analysed
