"""A disk that is full at a random frame, by the run itself or by another program: no crash, and a whole file."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from realtime_skyseg.storage import open_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts small disks")

CONFIG = """
camera: {{driver: replay, path: '{recording}', rate_hz: {rate}, loop: true}}
analysis: {{model: '{model}'}}
measure: {{min_area_px: 5000}}
stream: {{enabled: false}}
record: {{folder: '{folder}', name: run}}
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of noise, which no compression makes small."""
    path = tmp_path_factory.mktemp("recording") / "frames.npy"
    np.save(path, np.random.default_rng(0).integers(0, 60_000, (20, 256, 256)).astype(np.uint16))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickest one: this is about the disk."""
    path = tmp_path_factory.mktemp("model") / "threshold.safetensors"
    subprocess.run([sys.executable, "-m", "realtime_skyseg.cli", "threshold", str(path)], check=True)
    return path


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    draw = np.random.default_rng(request.param)
    size = f"size={int(draw.integers(60, 120))}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"may not mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, after_s: float) -> None:
    """Another program that takes what is left of the disk, some time after the run began."""
    deadline = time.monotonic() + 60
    while not (folder / "run.h5.partial").exists():
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.05)
    time.sleep(after_s)
    with (folder / "other").open("wb", buffering=0) as other:
        try:
            while True:
                other.write(bytes(65536))
        except OSError:
            pass


@pytest.mark.parametrize(
    "disk", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 21))], indirect=True
)
def test_a_full_disk(tmp_path: Path, disk: Path, recording: Path, model: Path, request: pytest.FixtureRequest) -> None:
    seed = request.node.callspec.params["disk"]
    draw = np.random.default_rng(seed + 1000)
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(recording=recording, model=model, folder=disk, rate=float(draw.integers(100, 400))))
    other = threading.Thread(target=fill, args=(disk, float(draw.uniform(0.0, 1.0))))
    if seed % 2 == 0:
        other.start()
    done = subprocess.run(
        [sys.executable, "-m", "realtime_skyseg.cli", "run", str(config), "--json"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if seed % 2 == 0:
        other.join()
    assert done.returncode == 1, done.stderr
    assert "is full but for the" in done.stderr
    frames = json.loads(done.stdout.splitlines()[-1])["frames"]
    assert frames["received"] == frames["written"] + sum(frames["not_written"].values())
    assert frames["received"] == frames["analysed"] + sum(frames["not_analysed"].values())
    truth = np.load(recording)
    with open_run(disk / "run.h5") as run:
        assert run.exit_status == 1
        assert run.summary is not None
        assert run.summary["frames"] == frames
        table = run.table
        assert table["written"].sum() == frames["written"]
        for index in range(0, run.n_frames, 5):
            assert run.problem(index) == ""
            if table["written"][index]:
                np.testing.assert_array_equal(run.raw[index], truth[index % len(truth)])
