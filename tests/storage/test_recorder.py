"""The recorder off the hot path: chunks made outside HDF5, checks, alarms, stalled and full disks, the finalizer."""

import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline import ListCamera, frames, image
from test_run_file import ORIGIN, SHAPE, frame, result

from realtime_skyseg.analysis import FramePath, Segmenter
from realtime_skyseg.cli import main
from realtime_skyseg.config import StreamSettings
from realtime_skyseg.errors import RunFileError, SettingsError
from realtime_skyseg.pipeline import Flow, Pipeline
from realtime_skyseg.records import Frame
from realtime_skyseg.storage import RunWriter, open_run
from realtime_skyseg.storage.chunk import crc32, pack
from realtime_skyseg.streaming import EventMessage, HeartbeatMessage, Publisher, Subscriber

# --- chunks ---


def through_hdf5(picture: np.ndarray, data: bytes) -> np.ndarray:
    """What HDF5 and the public plugin make of a chunk."""
    with h5py.File("memory.h5", "w", driver="core", backing_store=False) as file:
        stack = file.create_dataset(
            "x", (1, *picture.shape), picture.dtype, chunks=(1, *picture.shape), fletcher32=True,
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )  # fmt: skip
        stack.id.write_direct_chunk((0, 0, 0), data)
        read: np.ndarray = stack[0]
        return read


@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    spread=st.sampled_from([0, 3, 60]),
)
def test_hdf5_reads_what_is_packed_outside(shape: tuple[int, int], dtype: type, spread: int) -> None:
    picture = np.random.default_rng(shape[0]).normal(125, spread, shape).astype(dtype)
    chunk = pack(picture)
    np.testing.assert_array_equal(through_hdf5(picture, chunk.data), picture)
    assert chunk.crc32 == crc32(picture) == zlib.crc32(picture.tobytes())


def test_large_images_and_views_are_packed() -> None:
    picture = np.random.default_rng(0).integers(0, 60_000, (1100, 1301), np.uint16)
    for one in (picture, picture[::2, ::3], picture.T):
        np.testing.assert_array_equal(through_hdf5(one, pack(one).data), one)


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed_by_every_reader(place: int, flip: int) -> None:
    picture = np.random.default_rng(0).normal(125, 9, (40, 50)).astype(np.uint16)
    data = bytearray(pack(picture).data)
    data[place % len(data)] ^= flip
    with pytest.raises(OSError, match="filter returned failure"):
        through_hdf5(picture, bytes(data))


# --- the writer ---


def test_every_frame_carries_its_checks(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN)
    for index in range(4):
        one = frame(index)
        found = result(one)
        found.source_crc32 = crc32(one.image)
        writer.add_frame(one)
        writer.add_result(found)
    assert writer.changed_frame == -1
    writer.close({}, 0)
    with open_run(tmp_path / "run.h5") as run:
        assert [run.problem(index) for index in range(4)] == [""] * 4
        table = run.table
        assert table["raw_crc32"].tolist() == table["source_crc32"].tolist()
        assert table["raw_crc32"].tolist() == [zlib.crc32(run.raw[k].tobytes()) for k in range(4)]
        assert table["mask_crc32"].tolist() == [zlib.crc32(run.mask[k].tobytes()) for k in range(4)]
        assert (table["write_ns"] > 0).all()


SPOILT = [
    # dataset, what the reader says
    ("entry/frames/number", "its row of frames is damaged"),
    ("entry/frames/area_fraction", "its row of results is damaged"),
    ("entry/frames/raw_crc32", "its row of frames is damaged"),
    ("entry/instrument/detector/data", "its raw frame is not the one that was written"),
    ("entry/segmentation/mask", "its mask is not the one that was written"),
    ("entry/objects/area", "its objects are not those that were written"),
]


@pytest.mark.parametrize(("dataset", "sentence"), SPOILT)
def test_what_was_changed_afterwards_is_noticed(tmp_path: Path, dataset: str, sentence: str) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN)
    for index in range(3):
        writer.add_frame(frame(index))
        writer.add_result(result(frame(index)))
    writer.close({}, 0)
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        if dataset == "entry/objects/area":
            areas = file[dataset][()]
            areas[file["entry/objects/frame"][()] == 1] += 1
            file[dataset][()] = areas
        else:
            file[dataset][1] = file[dataset][1] + 1
    with open_run(tmp_path / "run.h5") as run:
        assert [run.problem(index) for index in range(3)] == ["", sentence, ""]


def test_info_checks_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN)
    for index in range(3):
        writer.add_frame(frame(index))
    writer.close({"latency_ms": {}}, 0)
    assert main(["info", str(tmp_path / "run.h5"), "--check"]) == 0
    assert "3 of 3 frames are as they were written" in capsys.readouterr().out
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        file["entry/frames/camera_ns"][2] = 5
    assert main(["info", str(tmp_path / "run.h5"), "--check"]) == 1
    assert "frame 2: its row of frames is damaged" in capsys.readouterr().out


def test_a_camera_that_writes_to_an_image_it_handed_over_is_noticed(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN)
    for index in range(3):
        one = frame(index)
        writer.add_frame(one)
        writer.flush()
        one.image[0, 0] += index == 1  # between recording and analysis
        found = result(one)
        found.source_crc32 = crc32(one.image)
        writer.add_result(found)
    writer.flush()
    assert writer.changed_frame == 1
    writer.close({}, 1)
    with open_run(tmp_path / "run.h5") as run:
        assert [run.problem(k) for k in range(3)] == ["", "its mask was made from another image", ""]


def test_a_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN)
    with pytest.raises(RunFileError, match=r"cannot take an image of \(3, 4\); allowed: \(24, 36\)"):
        writer.add_frame(Frame(np.zeros((3, 4), np.uint16), number=0, index=0))
    writer.close({}, 1)


def test_a_forgotten_writer_saves_what_it_has_and_says_so(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN, flush_s=60)
    for index in range(3):
        writer.add_frame(frame(index))
    with pytest.warns(ResourceWarning, match=r"run\.h5\.partial' was never closed"):
        del writer
    with open_run(tmp_path / "run.h5.partial") as run:
        assert run.n_frames == 3
        np.testing.assert_array_equal(run.raw[2], frame(2).image)


# --- the disk ---


FORGETS = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import numpy as np
from test_run_file import ORIGIN, SHAPE, frame
from realtime_skyseg.storage import RunWriter
writer = RunWriter(Path(sys.argv[1]), SHAPE, np.dtype(np.uint16), ORIGIN, flush_s=60)
for index in range(3):
    writer.add_frame(frame(index))
sys.exit(3)
"""


def test_a_program_that_ends_early_saves_what_it_has(tmp_path: Path) -> None:
    program = [sys.executable, "-c", FORGETS, tmp_path / "run.h5", Path(__file__).parent]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    with open_run(tmp_path / "run.h5.partial") as run:
        assert run.n_frames == 3
        assert [run.problem(k) for k in range(3)] == [""] * 3


class SlowDisk(RunWriter):
    """A disk that answers when `go` is set."""

    def _ask_disk(self, what: str, operation: Callable[[], None]) -> None:
        def slow() -> None:
            self.go.wait()
            operation()

        super()._ask_disk(what, slow)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("compact", "openvino")


def test_a_stalled_disk_stops_neither_camera_nor_process_and_raises_every_alarm(
    tmp_path: Path, segmenter: Segmenter
) -> None:
    segmenter.open(image(0).shape)
    writer = SlowDisk(tmp_path / "run.h5", image(0).shape, np.dtype(np.uint8), ORIGIN)
    writer.go = threading.Event()
    pipeline = Pipeline(
        ListCamera(frames(60, pause_s=0.01)), FramePath(segmenter), writer, None, Flow("latest", 3, 16, stall_s=0.2)
    )
    begun = time.monotonic()
    pipeline.start()
    while not pipeline.wait(0.1):
        pass
    camera_took_s = time.monotonic() - begun
    pipeline._watch_disk()
    writer.go.set()
    pipeline.finish()
    writer.close({}, 1)
    counters = pipeline.counters
    assert camera_took_s < 5, "60 frames of 10 ms"
    assert counters.received == 60
    assert counters.imbalance() is None
    assert counters.not_written["queue_full"] == 60 - counters.written > 0
    kinds = [note.partition(":")[0] for note in pipeline.notices]
    assert [kind for kind in kinds if kind != "disk_stalled"] == ["recorder_late", "recorder_full"]
    assert kinds.count("disk_stalled") == 1
    with open_run(tmp_path / "run.h5") as run:
        assert [run.problem(k) for k in range(run.n_frames) if run.table["written"][k]] == [""] * counters.written
        assert {"recorder_late", "recorder_full", "disk_stalled"} <= {event["kind"] for event in run.events}


def test_the_stream_goes_on_while_the_disk_stalls(tmp_path: Path, segmenter: Segmenter) -> None:
    """Also where the analysis waits for a place in the recorder's queue: heartbeats and the alarm still come."""
    segmenter.open(image(0).shape)
    writer = SlowDisk(tmp_path / "run.h5", image(0).shape, np.dtype(np.uint8), ORIGIN)
    writer.go = threading.Event()
    publisher = Publisher(StreamSettings(address="tcp://127.0.0.1:0", heartbeat_s=0.1), "run-1")
    camera = ListCamera(frames(400, pause_s=0.01))
    pipeline = Pipeline(camera, FramePath(segmenter), writer, publisher, Flow("latest", 3, 4, stall_s=0.3))
    with Subscriber(publisher.address) as subscriber:
        assert publisher.wait_for_clients(1, 10)
        pipeline.start()
        watch = threading.Thread(target=lambda: [None for _ in iter(lambda: pipeline.wait(0.1), True)])
        watch.start()
        alarms, heartbeats = [], 0
        for message in subscriber.every(timeout_s=10):
            if isinstance(message, EventMessage):
                alarms.append(message.kind)
            elif isinstance(message, HeartbeatMessage) and "disk_stalled" in alarms:
                heartbeats += 1
            if heartbeats == 5:
                break
        assert not writer.go.is_set()
        assert writer.frames_written == 0, "the disk has not answered yet"
    assert "disk_stalled" in alarms
    assert heartbeats == 5
    writer.go.set()
    pipeline.stop()
    watch.join()
    pipeline.finish()
    publisher.close()
    writer.close({}, 1)
    assert pipeline.counters.imbalance() is None


def test_a_disk_that_answers_again_is_noted(tmp_path: Path, segmenter: Segmenter) -> None:
    segmenter.open(image(0).shape)
    writer = SlowDisk(tmp_path / "run.h5", image(0).shape, np.dtype(np.uint8), ORIGIN)
    writer.go = threading.Event()
    pipeline = Pipeline(
        ListCamera(frames(80, pause_s=0.01)), FramePath(segmenter), writer, None, Flow("latest", 3, 400, stall_s=0.1)
    )
    pipeline.start()
    while not pipeline.wait(0.3):
        writer.go.set()
    pipeline.finish()
    writer.close({}, 0)
    assert pipeline.counters.written == 80
    with open_run(tmp_path / "run.h5") as run:
        assert [event["kind"] for event in run.events] == ["disk_stalled", "disk_back"]


FILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import numpy as np
from test_run_file import ORIGIN
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.errors import DiskFullError
from realtime_skyseg.records import Frame, Result
from realtime_skyseg.storage import RunWriter
folder, blind = Path(sys.argv[1]), sys.argv[3] == "blind"
if blind:
    RunWriter._free = lambda self: 10**12
writer = RunWriter(folder / "run.h5", (512, 512), np.dtype(np.uint16), ORIGIN)
for index in range(60):
    image = np.random.default_rng(index).integers(0, 4000, (512, 512)).astype(np.uint16)
    if index == int(sys.argv[4]):
        with open(folder / "other", "wb", buffering=0) as other:
            try:
                while True:
                    other.write(bytes(4096))
            except OSError:
                pass
    frame = Frame(image, number=index, index=index)
    try:
        writer.add_frame(frame)
        writer.add_result(Result(frame, measure((image > 3900).astype(np.uint8), min_area_px=1)))
        writer.flush()
    except DiskFullError as error:
        break
else:
    sys.exit("the disk was never full")
try:
    writer.flush()
except DiskFullError:
    pass
writer.close({"frames": writer.frames_written}, 1)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 90 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
@pytest.mark.parametrize("sight", ["sees", "blind"])
@pytest.mark.parametrize("at", [3, 17])
def test_another_program_that_fills_the_disk_costs_the_later_frames_only(small_disk: Path, sight: str, at: int) -> None:
    """Also where it fills the disk between the look at its free space and the write."""
    done = subprocess.run(
        [sys.executable, "-c", FILLED, small_disk, Path(__file__).parent, sight, str(at)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open_run(small_disk / "run.h5") as run:
        written = int(run.table["written"].sum())
        assert written >= at
        assert run.summary == {"frames": written}
        assert [run.problem(k) for k in range(written)] == [""] * written
        for index in range(written):
            expected = np.random.default_rng(index).integers(0, 4000, (512, 512)).astype(np.uint16)
            np.testing.assert_array_equal(run.raw[index], expected)


# --- volumes ---

#: GB of 5 frames and masks.
FIVE = 5 * SHAPE[0] * SHAPE[1] * 3 / 1e9


def write_volumes(path: Path, n: int, results_late: int = 0) -> RunWriter:
    writer = RunWriter(path, SHAPE, np.dtype(np.uint16), ORIGIN, volume_gb=FIVE)
    for index in range(n + results_late):
        if index < n and index != 7:
            writer.add_frame(frame(index))
        if index >= results_late:
            writer.add_result(result(frame(index - results_late)))
    return writer


@pytest.mark.parametrize("results_late", [0, 7])
def test_a_run_in_volumes_reads_as_one(tmp_path: Path, results_late: int) -> None:
    writer = write_volumes(tmp_path / "100 %b.h5", 23, results_late)
    writer.flush()
    assert len(list(tmp_path.glob("*.volumes/*.h5"))) == 5
    with open_run(tmp_path / "100 %b.h5.partial") as run:
        assert run.n_frames == 23
        assert [run.problem(k) for k in range(23)] == [""] * 23
    writer.close({}, 0)
    moved = tmp_path / "moved"
    moved.mkdir()
    for entry in list(tmp_path.glob("100*")):
        entry.rename(moved / entry.name)
    with open_run(moved / "100 %b.h5") as run:
        assert run.raw.shape == run.mask.shape == (23, *SHAPE)
        assert [run.problem(k) for k in range(23)] == [""] * 23
        for index in set(range(23)) - {7}:
            np.testing.assert_array_equal(run.raw[index], frame(index).image)
            np.testing.assert_array_equal(run.mask[index], result(frame(index)).segmentation.mask)
        assert run.table["written"].tolist() == [index != 7 for index in range(23)]
    with h5py.File(moved / "100 %b.h5") as file:
        assert file["entry/data/raw"] == file["entry/instrument/detector/data"]
        assert file["entry/data/time"].shape == (23,)


def test_volumes_behind_both_frames_and_results_are_closed(tmp_path: Path) -> None:
    writer = write_volumes(tmp_path / "run.h5", 23)
    writer.flush()
    assert writer._volumes
    assert len(writer._volumes.handles) == 1
    writer.close({}, 0)


def test_a_folder_of_volumes_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run.volumes").mkdir()
    with pytest.raises(SettingsError, match=r"run\.volumes' exists already"):
        write_volumes(tmp_path / "run.h5", 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.volumes"]
