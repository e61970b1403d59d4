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
camera: {{driver: replay, path: '{recording}', rate_hz: {rate}, loop: true, limit: {limit}}}
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
    rate, limit = float(draw.integers(100, 400)), 1000
    config.write_text(CONFIG.format(recording=recording, model=model, folder=disk, rate=rate, limit=limit))
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
    assert frames["received"] == limit, "the stream goes on"
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


#: A disk that is full from a given size of the file on, until something is given back. Every write of HDF5 meets it in
#: one of the rounds: of frames, masks, tables that grow, and HDF5's own metadata.
EVERYWHERE = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import numpy as np
from test_run_file import ORIGIN
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.errors import DiskFullError
from realtime_skyseg.records import Background, Event, Frame, Result
from realtime_skyseg.storage import RunWriter, writer as writer_module

class SmallDisk(RunWriter):
    def _free(self):
        return 10**12  # the look at the disk is too early to see it

class Reserve(writer_module.Reserve):
    def give_back(self):
        limit(resource.RLIM_INFINITY)
        return super().give_back()

writer_module.Reserve = Reserve

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

for number in range(int(sys.argv[3])):
    folder = Path(sys.argv[1]) / str(number)
    writer = SmallDisk(folder / "run.h5", (64, 64), np.dtype(np.uint16), ORIGIN, threads=1, flush_s=1e9,
                       volume_gb=float(sys.argv[4]) or None)
    if sys.argv[4] == "0":
        limit((folder / "run.h5.partial").stat().st_size + 12_000 * number)
    else:  # of the volumes, or of the run file
        limit(3000 * number)
    try:
        for index in range(40):
            image = np.random.default_rng(index).integers(0, 4000, (64, 64)).astype(np.uint16)
            frame = Frame(image, number=index, index=index)
            writer.add_frame(frame)
            writer.add_event(Event(1, "mark", str(index), index))
            if index % 9 == 0:
                writer.add_background(Background(np.full((64, 64), index, np.float32), index, "taken"))
            writer.add_result(Result(frame, measure((image > 3000).astype(np.uint8), min_area_px=1)))
            if index % 4 == 3:
                writer.flush()
    except DiskFullError:
        pass
    else:
        sys.exit(f"round {number}: the disk was never full")
    writer.close({"frames": writer.frames_written}, 1)
"""


@pytest.mark.parametrize("volume_gb", [0, pytest.param(0.0002, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_any_write_costs_nothing_that_was_taken(tmp_path: Path, volume_gb: float) -> None:
    rounds = 40
    folders = str(tmp_path), str(Path(__file__).parents[1] / "storage")
    program = [sys.executable, "-c", EVERYWHERE, *folders, str(rounds), str(volume_gb)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for number in range(rounds):
        with open_run(tmp_path / str(number) / "run.h5") as run:
            written = int(run.table["written"].sum())
            assert run.summary == {"frames": written}
            assert [run.problem(index) for index in range(run.n_frames)] == [""] * run.n_frames
            assert [event["frame"] for event in run.events][:written] == list(range(written))
            assert [background.first_frame for background in run.backgrounds()][: (written + 8) // 9] == list(
                range(0, written, 9)
            )
            for index in range(written):
                image = np.random.default_rng(index).integers(0, 4000, (64, 64)).astype(np.uint16)
                np.testing.assert_array_equal(run.raw[index], image)
