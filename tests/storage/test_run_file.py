"""Run files: what was put in comes out, also while writing and after a kill."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from datetime import datetime
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.errors import RunFileError, SettingsError
from realtime_skyseg.records import NOT_ANALYSED, Event, Frame, Result, Skipped
from realtime_skyseg.storage import Provenance, RunWriter, open_run

SHAPE = (24, 36)
ORIGIN = Provenance(
    run_id="0123", configuration="camera: {driver: replay}\n", model="compact", weights_sha256="ab", engine="torch",
    device="a CPU", precision="float32", agreement=1.0, title="Größe", sample="Co 1.2 nm", operator="Ada",
    clock="schedule", camera={"path": "x", "frames": 3}, pixel_size_um=0.2,
)  # fmt: skip


def frame(index: int, dtype: type = np.uint16, **values: float) -> Frame:
    image = np.random.default_rng(index).integers(0, 250, SHAPE).astype(dtype)
    return Frame(image, number=index, index=index, received_ns=time.time_ns(), **values)  # type: ignore[arg-type]


def result(of: Frame) -> Result:
    mask = np.random.default_rng(of.index).integers(0, 5, SHAPE, np.uint8)
    return Result(of, measure(mask, min_area_px=1), segmented_ns=11, published_ns=12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_what_goes_in_comes_out(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "run.h5"
    writer = RunWriter(path, SHAPE, np.dtype(dtype), ORIGIN)
    frames = [frame(index, dtype, field_mT=index / 10, camera_lost=3 * (index == 2)) for index in range(5)]
    results = [result(one) for one in frames]
    for one, found in zip(frames, results, strict=True):
        writer.add_frame(one)
        if one.index == 3:
            writer.add_skipped(3, Skipped.SUPERSEDED)
        else:
            writer.add_result(found)
    writer.add_event(Event(7, "note", "schön", 2))
    writer.close({"frames": {"received": 5}}, 0)

    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"], "no .partial is left"
    with open_run(path) as run:
        assert run.state == "finished"
        assert run.n_frames == 5
        for one, found in zip(frames, results, strict=True):
            np.testing.assert_array_equal(run.raw[one.index], one.image)
            if one.index != 3:
                np.testing.assert_array_equal(run.mask[one.index], found.segmentation.mask)
                rows = run.objects(one.index)
                assert len(rows) == len(found.segmentation.objects)
                np.testing.assert_array_equal(rows["area"], found.segmentation.objects["area"])
        assert (run.mask[3] == NOT_ANALYSED).all()
        table = run.table
        assert table["skipped"].tolist() == [0, 0, 0, Skipped.SUPERSEDED, 0]
        np.testing.assert_equal(table["count"], [np.nan if k == 3 else results[k].segmentation.count for k in range(5)])
        assert table["field_mT"].tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]
        assert table["camera_lost"].tolist() == [0, 0, 3, 0, 0]
        assert table["written"].tolist() == [1] * 5
        assert np.isnan(table["area_fraction"][3])
        assert run.events == [{"time_ns": 7, "frame": 2, "kind": "note", "message": "schön"}]
        assert run.config == {"camera": {"driver": "replay"}}
        assert run.summary == {"frames": {"received": 5}}
        assert run.exit_status == 0
        origin = run.provenance
        assert (origin["title"], origin["model"], origin["camera_clock"]) == ("Größe", "compact", "schedule")
        assert '"h5py"' in origin["versions"]


def test_a_gap_stays_at_its_index(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint8), ORIGIN)
    for index in (0, 1, 4):
        writer.add_frame(frame(index, np.uint8))
    writer.close({}, 1)
    with open_run(tmp_path / "run.h5") as run:
        assert run.table["written"].tolist() == [1, 1, 0, 0, 1]
        assert run.table["number"].tolist() == [0, 1, -1, -1, 4]
        assert run.table["skipped"].tolist() == [Skipped.PENDING] * 5
        np.testing.assert_array_equal(run.raw[4], frame(4, np.uint8).image)


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(
        st.tuples(st.sampled_from(["written", "lost"]), st.sampled_from(["result", "skip", "nothing"])), max_size=30
    ),
    flush_every=st.integers(1, 7),
)
def test_any_order_of_flushes_keeps_every_column(tmp_path: Path, plan: list[tuple[str, str]], flush_every: int) -> None:
    path = tmp_path / f"{time.time_ns()}.h5"
    writer = RunWriter(path, SHAPE, np.dtype(np.uint16), ORIGIN)
    for index, (raw, analysis) in enumerate(plan):
        one = frame(index)
        if raw == "written":
            writer.add_frame(one)
        if analysis == "result":
            writer.add_result(result(one))
        elif analysis == "skip":
            writer.add_skipped(index, Skipped.FAILED)
        if index % flush_every == 0:
            writer.flush()
    writer.close({}, 0)
    with open_run(path) as run:
        table = run.table
        for index, (raw, analysis) in enumerate(plan[: run.n_frames]):
            assert table["written"][index] == (raw == "written")
            expected = {"result": Skipped.NOT_SKIPPED, "skip": Skipped.FAILED, "nothing": Skipped.PENDING}[analysis]
            assert table["skipped"][index] == expected
            if analysis == "result":
                assert table["count"][index] == result(frame(index)).segmentation.count
                assert len(run.objects(index)) == table["count"][index] + table["stripes"][index]


def test_the_objects_of_each_frame_are_part_of_all(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN)
    for index in range(6):
        writer.add_frame(frame(index))
        if index in (1, 2, 5):
            writer.add_result(result(frame(index)))
        else:
            writer.add_skipped(index, Skipped.SUPERSEDED)
    writer.close({}, 0)
    with open_run(tmp_path / "run.h5") as run:
        everything = run.objects()
        for index in range(8):
            np.testing.assert_array_equal(run.objects(index), everything[everything["frame"] == index])
        assert [index for index in range(8) if len(run.objects(index))] == [1, 2, 5]


def test_a_file_is_readable_while_it_is_written(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN)
    writer.add_frame(frame(0))
    writer.flush()
    with open_run(tmp_path / "run.h5.partial") as run:
        assert (run.state, run.n_frames, run.summary, run.exit_status) == ("unfinished", 1, None, -1)
        writer.add_frame(frame(1))
        writer.add_result(result(frame(0)))
        writer.flush()
        run.refresh()
        assert run.n_frames == 2
        np.testing.assert_array_equal(run.raw[1], frame(1).image)
        assert run.table["skipped"].tolist() == [Skipped.NOT_SKIPPED, Skipped.PENDING]
    writer.close({}, 0)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import numpy as np
from test_run_file import ORIGIN, SHAPE, frame, result
from realtime_skyseg.storage import RunWriter
writer = RunWriter(Path(sys.argv[1]), SHAPE, np.dtype(np.uint16), ORIGIN)
for index in range(40):
    writer.add_frame(frame(index))
    writer.add_result(result(frame(index)))
    if index == 29:
        writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_writer_leaves_a_file_that_opens(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    process = subprocess.run([sys.executable, "-c", KILLED, str(path), os.fspath(Path(__file__).parent)], check=False)
    assert process.returncode == -9
    with open_run(tmp_path / "run.h5.partial") as run:
        assert run.state == "unfinished"
        assert run.n_frames >= 30
        assert run.summary is None
        for index in range(30):
            np.testing.assert_array_equal(run.raw[index], frame(index).image)
            np.testing.assert_array_equal(run.mask[index], result(frame(index)).segmentation.mask)
        assert run.table["count"][:30].tolist() == [result(frame(k)).segmentation.count for k in range(30)]


@pytest.mark.parametrize("taken", ["run.h5", "run.h5.partial"])
def test_no_file_is_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(SettingsError, match="exists already and is not overwritten"):
        RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint8), ORIGIN)
    assert (tmp_path / taken).read_text() == "precious"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"record\.folder: .*cannot be written"):
        RunWriter(tmp_path / "file" / "run.h5", SHAPE, np.dtype(np.uint8), ORIGIN)


def test_files_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="does not exist"):
        open_run(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(RunFileError, match="cannot be opened"):
        open_run(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(RunFileError, match="is not a run file"):
        open_run(tmp_path / "other.h5")


def test_an_independent_validator_finds_no_error(tmp_path: Path) -> None:
    """The Advanced Photon Source's `nxvalidate`, with the base classes of the NeXus committee."""
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint16), ORIGIN)
    writer.add_frame(frame(0))
    writer.add_result(result(frame(0)))
    writer.close({}, 0)
    nxcheck = shutil.which("nxcheck", path=sysconfig.get_path("scripts"))
    assert nxcheck, "the test extra is not installed"
    done = subprocess.run([nxcheck, tmp_path / "run.h5"], capture_output=True, text=True, check=True)
    assert "NXdetector: /entry/instrument/detector" in done.stdout
    assert "Total number of errors: 0" in done.stdout, done.stdout


def test_the_file_follows_nexus(tmp_path: Path) -> None:
    """The way from the root to the default plot, as viewers take it."""
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint8), ORIGIN)
    writer.add_frame(frame(0, np.uint8))
    writer.add_result(result(frame(0, np.uint8)))
    writer.close({}, 0)
    with h5py.File(tmp_path / "run.h5") as file:
        entry = file[file.attrs["default"]]
        assert entry.attrs["NX_class"] == "NXentry"
        data = entry[entry.attrs["default"]]
        assert data.attrs["NX_class"] == "NXdata"
        assert data[data.attrs["signal"]].shape == (1, *SHAPE)
        axes = list(data.attrs["axes"])
        assert axes == ["time", "y", "x"]
        assert (data["x"].shape, data["x"].attrs["units"]) == ((SHAPE[1],), "um")
        assert data["time"].attrs["units"] == "s"
        assert datetime.fromisoformat(data["time"].attrs["start"])
        assert entry["masks"][entry["masks"].attrs["signal"]].shape == (1, *SHAPE)
        assert entry["objects/diameter"].attrs["units"] == "px"
        assert entry["objects/kind"].attrs["description"] == "0: skyrmion, 1: stripe"
        assert json.loads(entry["frames/skipped"].attrs["codes"])["superseded"] == 1
        classes = {}
        file.visititems(lambda name, item: classes.update({name: item.attrs.get("NX_class")}))
        assert classes["entry/instrument/detector"] == "NXdetector"
        assert classes["entry/segmentation"] == "NXprocess"
        assert classes["entry/sample/magnetic_field"] == "NXlog"
        assert file["entry/start_time"][()].decode().endswith("+00:00")
