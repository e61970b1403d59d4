"""Rescuing run files: what is whole comes back, what is not is named, and no frame is ever made up."""

import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import settings
from test_run_file import KILLED, ORIGIN, SHAPE, frame, result

from realtime_skyseg.cli import main
from realtime_skyseg.errors import RunFileError, SettingsError
from realtime_skyseg.records import Event, Skipped
from realtime_skyseg.service import Service
from realtime_skyseg.storage import Rescue, RunWriter, open_run, recover
from realtime_skyseg.storage.chunk import crc32

N = 60
SKYSEG = Path(sys.executable).parent / "skyseg"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A run file: frame 7 was never recorded, frame 11 not analysed; flushed every 20 frames."""
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    writer = RunWriter(path, SHAPE, np.dtype(np.uint16), ORIGIN, flush_s=60)
    for index in range(N):
        one = frame(index)
        found = result(one)
        found.source_crc32 = crc32(one.image)
        if index != 7:
            writer.add_frame(one)
        if index == 11:
            writer.add_skipped(index, Skipped.SUPERSEDED)
        else:
            writer.add_result(found)
        if index % 20 == 19:
            writer.add_event(Event(index, "note", "schön", index))
            writer.flush()
    writer.close({"frames": {"received": N}}, 0)
    return path.read_bytes()


def check(rescue: Rescue) -> None:
    """Everything that a rescued file claims is as it was put in."""
    with open_run(rescue.path) as run:
        table = run.table
        assert run.n_frames == rescue.frames
        assert run.summary is not None
        assert run.summary["status"] == "recovered"
        assert run.exit_status == 1
        for index in range(run.n_frames):
            assert run.problem(index) == ""
            if table["written"][index]:
                np.testing.assert_array_equal(run.raw[index], frame(index).image)
                assert table["number"][index] == index
            if table["skipped"][index] == Skipped.NOT_SKIPPED:
                truth = result(frame(index)).segmentation
                np.testing.assert_array_equal(run.mask[index], truth.mask)
                np.testing.assert_array_equal(run.objects(index)["area"], truth.objects["area"])
                assert table["count"][index] == truth.count
        assert table["written"].sum() == rescue.written
        assert (table["skipped"] == Skipped.NOT_SKIPPED).sum() == rescue.analysed
        counters = run.summary["frames"]
        assert counters["written"] == rescue.written
        assert counters["received"] == counters["written"] + sum(counters["not_written"].values())
        assert counters["received"] == counters["analysed"] + sum(counters["not_analysed"].values())


def test_an_undamaged_file_comes_out_whole(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "run.h5.partial").write_bytes(whole)
    rescue = recover(tmp_path / "run.h5.partial")
    assert rescue.path == tmp_path / "run.recovered.h5"
    assert (rescue.whole, rescue.frames, rescue.written, rescue.analysed) == (True, N, N - 1, N - 1)
    check(rescue)
    assert (tmp_path / "run.h5.partial").read_bytes() == whole, "the damaged file is not touched"
    with open_run(rescue.path) as run:
        assert run.config == {"camera": {"driver": "replay"}}
        assert run.provenance["title"] == "Größe"
        assert run.summary is not None
        assert run.summary["frames"]["not_written"] == {"not_recorded": 1}
        assert run.summary["frames"]["not_analysed"] == {"superseded": 1}
        assert [event["kind"] for event in run.events] == ["note", "note", "note", "recovered"]
    with h5py.File(rescue.path) as file:
        assert file["entry/data/raw"] == file["entry/instrument/detector/data"], "links stay links"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_file_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "run.h5", Path(__file__).parent], check=False)
    rescue = recover(tmp_path / "run.h5.partial")
    assert rescue.whole
    assert rescue.written >= 30
    check(rescue)


def test_a_cut_file_keeps_every_frame_before_the_cut(tmp_path: Path, whole: bytes) -> None:
    """Also those whose place in HDF5's index was cut off: they are found by their checksum."""
    (tmp_path / "run.h5").write_bytes(whole)
    with h5py.File(tmp_path / "run.h5") as file:
        raw = file["entry/instrument/detector/data"].id
        ends = {}
        for index in set(range(N)) - {7}:
            info = raw.get_chunk_info_by_coord((index, 0, 0))
            ends[index] = info.byte_offset + info.size
    for last in (28, 39, 44, N - 1):  # after the first flush, before which the rows are nowhere
        cut = ends[last]
        damaged = tmp_path / f"cut{last}.h5.partial"
        damaged.write_bytes(whole[:cut])
        rescue = recover(damaged)
        check(rescue)
        before = {index for index in range(min(rescue.frames, N)) if index in ends and ends[index] <= cut}
        assert before <= set(range(N)) - set(rescue.lost_frames), f"cut after frame {last}"


def damaged_copies(whole: bytes, n: int, seed: int) -> list[tuple[str, bytes]]:
    """Files cut at a random byte, with a tail of zeros, or with pages of zeros or of garbage in the later half."""
    draw = np.random.default_rng(seed)
    copies = []
    for k in range(n):
        data, kind = bytearray(whole), ("cut", "tail", "zeros", "garbage")[k % 4]
        place = int(draw.integers(0, len(data)))
        if kind == "cut":
            data = data[:place]
        elif kind == "tail":
            place -= place % 4096
            data[place:] = bytes(len(data) - place)
        else:
            for page in draw.integers(len(data) // 8192, len(data) // 4096, draw.integers(1, 5)):
                data[page * 4096 : page * 4096 + 4096] = bytes(4096) if kind == "zeros" else draw.bytes(4096)
        copies.append((f"{kind} at {place}", bytes(data)))
    return copies


@pytest.mark.parametrize("n", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_no_damage_makes_up_a_frame(tmp_path: Path, whole: bytes, n: int) -> None:
    rescued, refused = [], []
    for k, (what, data) in enumerate(damaged_copies(whole, n, seed=n)):
        damaged = tmp_path / f"{k}.h5.partial"
        damaged.write_bytes(data)
        try:
            rescue = recover(damaged, patience_s=5)
        except RunFileError:
            assert not damaged.with_name(f"{k}.recovered.h5").exists()
            refused.append(what)
        else:
            check(rescue)
            rescued.append(rescue.written)
        assert damaged.read_bytes() == data
    told = {"damaged": n, "rescued": len(rescued), "refused": refused, "frames": f"{sum(rescued)} of {n * (N - 1)}"}
    print(json.dumps(told))  # noqa: T201
    assert len(rescued) > n / 2, refused
    assert np.mean(rescued) > N / 4


def test_old_files_without_checks_are_rescued_with_a_warning(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "run.h5.partial").write_bytes(whole)
    with h5py.File(tmp_path / "run.h5.partial", "r+") as file:
        for name in ("raw_crc32", "row_crc32", "source_crc32", "mask_crc32", "objects_crc32", "result_crc32"):
            del file[f"entry/frames/{name}"]
    rescue = recover(tmp_path / "run.h5.partial")
    assert not rescue.checked
    assert (rescue.written, rescue.analysed) == (N - 1, N - 1)
    assert "no checksums" in rescue.sentence()
    check(rescue)


def test_the_command(tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    good, cut, text = tmp_path / "good.h5.partial", tmp_path / "cut.h5.partial", tmp_path / "text.h5"
    good.write_bytes(whole)
    cut.write_bytes(whole[: len(whole) * 3 // 4])
    text.write_text("no run file, but long enough for the first bytes of one")
    assert main(["recover", str(good)]) == 0
    assert "59 frames and 59 results of 60 frames rescued to" in capsys.readouterr().out
    assert main(["recover", str(cut), str(text), "--json"]) == 1
    told = capsys.readouterr()
    one, other = (json.loads(line) for line in told.out.splitlines()[-2:])
    assert 0 < one["written"] < 59
    assert one["damaged_frames"]
    assert other["recovered"] is None
    assert "its first 48 bytes are not those of a run file" in told.err
    assert main(["recover", str(good)]) == 2, "nothing is overwritten"
    assert main(["info", one["recovered"]]) == 0
    assert main(["recover", str(tmp_path / "none.h5")]) == 2


def test_wrong_use(tmp_path: Path, whole: bytes) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        recover(tmp_path / "none.h5")
    (tmp_path / "a.h5").write_bytes(whole)
    (tmp_path / "b.h5").write_text("precious")
    with pytest.raises(SettingsError, match="exists already"):
        recover(tmp_path / "a.h5", tmp_path / "b.h5")
    assert (tmp_path / "b.h5").read_text() == "precious"


KILLED_IN_VOLUMES = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_recorder import write_volumes
write_volumes(Path(sys.argv[1]), 23).flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_in_volumes_is_rescued_to_one_file(tmp_path: Path) -> None:
    program = [sys.executable, "-c", KILLED_IN_VOLUMES, tmp_path / "run.h5", *sys.path]
    subprocess.run(program, check=False)
    rescue = recover(tmp_path / "run.h5.partial")
    assert (rescue.whole, rescue.written, rescue.analysed) == (True, 22, 23)
    check(rescue)
    (tmp_path / "run.volumes" / "3.h5").unlink()
    cut = tmp_path / "run.volumes" / "2.h5"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    again = recover(tmp_path / "run.h5.partial", tmp_path / "again.h5")
    assert {15, 16, 17, 18, 19} <= set(again.lost_frames) <= set(range(10, 20))
    check(again)


def test_backgrounds_are_rescued_too(tmp_path: Path) -> None:
    prepare = {"background": "rolling_median", "median_frames": 3, "median_every": 2}
    summary = Service(settings(tmp_path, {"limit": 10}, prepare=prepare)).run()
    rescue = recover(summary.run_file)
    assert rescue.whole
    with open_run(summary.run_file) as live, open_run(rescue.path) as rescued:
        pairs = list(zip(live.backgrounds(), rescued.backgrounds(), strict=True))
        assert pairs
        for one, other in pairs:
            np.testing.assert_array_equal(one.image, other.image)
            assert (one.first_frame, one.source) == (other.first_frame, other.source)
        np.testing.assert_array_equal(live.mask[:], rescued.mask[:])
        assert live.config == rescued.config


def test_two_rescues_of_one_file_at_once(tmp_path: Path, whole: bytes) -> None:
    """One of them writes the file, the other one says so; nothing of either is left beside it."""
    path = tmp_path / "run.h5.partial"
    path.write_bytes(whole)
    command = [SKYSEG, "recover", str(path)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate() for process in both]
    statuses = sorted(process.returncode for process in both)
    assert statuses in ([0, 2], [0, 0])
    assert all("Traceback" not in error for _, error in told)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.h5.partial", "run.recovered.h5"]
    with open_run(tmp_path / "run.recovered.h5") as run:
        assert all(run.problem(index) == "" for index in range(N))


def test_a_rescue_that_is_killed_leaves_no_process_and_blocks_nothing(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "run.h5.partial"
    path.write_bytes(whole)
    rescue = subprocess.Popen([SKYSEG, "recover", str(path)], stdout=subprocess.PIPE)
    time.sleep(0.9)
    rescue.kill()
    rescue.communicate()  # ends once no child holds its output
    if not (tmp_path / "run.recovered.h5").exists():
        check(recover(path))


@pytest.mark.parametrize("evil", ["link", "storage", "view", "rows"])
def test_a_file_that_leads_elsewhere_is_refused_and_nothing_else_touched(
    tmp_path: Path, whole: bytes, evil: str
) -> None:
    path, victim = tmp_path / "run.h5", tmp_path / "victim.txt"
    path.write_bytes(whole)
    victim.write_text("TOP SECRET")
    with h5py.File(path, "r+") as file:
        if evil == "link":
            del file["entry/title"]
            file["entry/title"] = h5py.ExternalLink("other.h5", "/x")
        elif evil == "storage":
            file["entry/provenance"].create_dataset("evil", (10,), "S1", external=[(str(victim), 0, 10)])
        elif evil == "view":
            del file["entry/instrument/detector/data"], file["entry/data/raw"]
            layout = h5py.VirtualLayout((N, *SHAPE), np.uint16)
            layout[:] = h5py.VirtualSource(".", "/entry/instrument/detector/data", (N, *SHAPE))
            file.create_virtual_dataset("entry/instrument/detector/data", layout)
        else:
            file["entry/objects/area"].resize(10**10, axis=0)
    victim.write_text("TOP SECRET")
    with pytest.raises(RunFileError, match=r"is a link to|is stored in|is a view of|more than the file holds"):
        open_run(path)
    with pytest.raises(RunFileError, match=r"is a link to|is stored in|is a view of|more than the file holds"):
        recover(path)
    assert main(["info", str(path)]) == 2
    assert victim.read_text() == "TOP SECRET"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.h5", "victim.txt"]


def test_no_python_file_of_the_working_folder_is_run(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "run.h5.partial").write_bytes(whole)
    for name in ("h5py.py", "json.py", "numpy.py"):
        (tmp_path / name).write_text("open('RUN', 'w').write('code of the folder was run')\nraise ImportError\n")
    done = subprocess.run([SKYSEG, "recover", "run.h5.partial"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "RUN").exists()
