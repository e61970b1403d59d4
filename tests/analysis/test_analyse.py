"""Offline analysis: the same code as live, the same bits."""

import csv
import json
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from conftest import settings
from test_replay import write_video
from test_service import noisy_discs

import realtime_skyseg as sky
from realtime_skyseg.batch import analyse
from realtime_skyseg.cli import main
from realtime_skyseg.errors import ModelError, RunFileError, SettingsError
from realtime_skyseg.records import NOT_ANALYSED, Skipped
from realtime_skyseg.storage import layout, tables

N = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for index in range(N):
        cv2.imwrite(str(folder / f"{index}.png"), noisy_discs(index))
    return folder


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forget_results(path: Path, target: Path, indices: list[int], cause: Skipped = Skipped.SUPERSEDED) -> Path:
    """A copy of a run as if these frames had been recorded but not analysed."""
    with sky.open_run(path) as run:
        objects = run.objects()
    target.write_bytes(path.read_bytes())
    with h5py.File(target, "r+") as file:
        frames = file["entry/frames"]
        for name in ("count", "stripes", "area_fraction", "segmented_ns", "source_crc32", "mask_crc32",
                     "objects_crc32", "result_crc32"):  # fmt: skip
            frames[name][indices] = frames[name].fillvalue
        frames["skipped"][indices] = cause
        masks = file["entry/segmentation/mask"]
        for index in indices:
            masks[index] = np.full(masks.shape[1:], NOT_ANALYSED, np.uint8)  # a scalar lands elsewhere in a virtual one
        kept = objects[~np.isin(objects["frame"], indices)]
        tables.replace(file[layout.OBJECTS], layout.OBJECT_COLUMNS, kept)
    return target


def assert_equal(one: Path, other: Path) -> None:
    with sky.open_run(one) as a, sky.open_run(other) as b:
        np.testing.assert_array_equal(a.raw[:], b.raw[:])
        np.testing.assert_array_equal(a.mask[:], b.mask[:])
        assert a.objects().tobytes() == b.objects().tobytes()
        for name in ("count", "stripes", "area_fraction", "skipped", "source_crc32", "mask_crc32", "objects_crc32",
                     "drift_x_px", "drift_y_px"):  # fmt: skip
            np.testing.assert_array_equal(a.table[name], b.table[name], name)
        for index in range(b.n_frames):
            assert b.problem(index) == ""
            np.testing.assert_array_equal(a.objects(index)["x"], b.objects(index)["x"])


def test_what_was_not_analysed_is_filled_in_bit_equal(tmp_path: Path, images: Path) -> None:
    live = sky.Service(settings(tmp_path, {"path": str(images)})).run()
    lacking = forget_results(Path(live.run_file), tmp_path / "lacking.h5", [0, 3, 4, 11])
    before = lacking.read_bytes()
    calls: list[tuple[int, int | None]] = []
    summary = analyse(lacking, tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    assert lacking.read_bytes() == before, "the run itself is not touched"
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert summary["analysed_afterwards"] == 4
    assert summary["frames"]["analysed"] == N
    assert summary["frames"]["not_analysed"] == {}
    assert_equal(Path(live.run_file), tmp_path / "out" / "lacking.h5")
    with sky.open_run(summary["run_file"]) as run:
        assert run.summary is not None
        assert run.summary["analysed_afterwards"] == 4
        assert "3 live results came out equal" in run.events[-1]["message"]


def test_a_live_run_that_fell_behind_is_filled_in(tmp_path: Path, images: Path) -> None:
    """Skipped by the policy `latest` in a real run; the truth is a run of the policy `every`."""
    every = sky.Service(settings(tmp_path / "every", {"path": str(images)})).run()
    behind = sky.Service(
        settings(tmp_path / "latest", {"path": str(images)}, analysis={"policy": "latest", "lag_frames": 1})
    ).run()
    assert behind.frames["not_analysed"], "the camera was too slow for this test"
    summary = analyse(Path(behind.run_file), tmp_path / "out")
    assert summary["frames"]["analysed"] == N
    assert_equal(Path(every.run_file), Path(summary["run_file"]))


PREPARED = [
    {"background": "rolling_median", "median_frames": 3, "median_every": 2},
    {"average_frames": 3},
    {"crop_px": [10, 10, 100, 70]},
]


@pytest.mark.parametrize("prepare", PREPARED)
def test_runs_with_a_preparation_are_filled_in_as_if_the_frame_alone_had_been_analysed_too(
    tmp_path: Path, images: Path, prepare: dict[str, object]
) -> None:
    live = sky.Service(settings(tmp_path, {"path": str(images)}, prepare=prepare)).run()
    last = forget_results(Path(live.run_file), tmp_path / "last.h5", [N - 1])
    summary = analyse(last, tmp_path / "out")
    assert_equal(Path(live.run_file), Path(summary["run_file"]))


def test_frames_that_failed_or_were_left_by_a_kill_are_filled_in(tmp_path: Path, images: Path) -> None:
    live = sky.Service(settings(tmp_path, {"path": str(images)})).run()
    failed = forget_results(Path(live.run_file), tmp_path / "failed.h5", [2], Skipped.FAILED)
    pending = forget_results(failed, tmp_path / "pending.h5", [9, 10, 11], Skipped.PENDING)
    summary = analyse(pending, tmp_path / "out")
    assert_equal(Path(live.run_file), Path(summary["run_file"]))


def test_another_model_is_refused(tmp_path: Path, images: Path) -> None:
    live = sky.Service(settings(tmp_path, {"path": str(images)})).run()
    lacking = forget_results(Path(live.run_file), tmp_path / "lacking.h5", [5])
    assert main(["threshold", str(tmp_path / "other.safetensors")]) == 0
    other = [f"analysis.model={tmp_path / 'other.safetensors'}"]
    with pytest.raises(ModelError, match=r"has the SHA-256 .* allowed: the run's own model, or --again for all frames"):
        analyse(lacking, tmp_path / "out", other)
    assert not (tmp_path / "out").exists()
    summary = analyse(lacking, tmp_path / "out", other, again=True)
    with sky.open_run(summary["run_file"]) as run:
        assert run.provenance["model"] != "compact"
        assert np.isfinite(run.table["count"]).all()


def test_a_run_is_analysed_again_with_other_settings_as_a_whole(tmp_path: Path, images: Path) -> None:
    live = sky.Service(settings(tmp_path, {"path": str(images), "rate_hz": 20}, record={"sample": "S7"})).run()
    lacking = forget_results(Path(live.run_file), tmp_path / "lacking.h5", [5])
    for override in ("measure.min_area_px=100000", "camera.rate_hz=16", "prepare.smooth_px=2"):
        with pytest.raises(SettingsError, match=rf"--set {override}: .* allowed: with --again"):
            analyse(lacking, tmp_path / "out", [override])
    summary = analyse(lacking, tmp_path / "out", ["measure.min_area_px=100000"], again=True)
    with sky.open_run(summary["run_file"]) as run, sky.open_run(live.run_file) as first:
        assert run.table["count"].tolist() == [0] * N
        assert run.config["measure"]["min_area_px"] == 100000
        assert run.provenance["title"].endswith("analysed again from lacking.h5")
        assert run.config["record"]["sample"] == "S7"
        assert run.frame_names == first.frame_names == [f"{index}.png" for index in range(N)]
        np.testing.assert_allclose(run.table["time_s"], np.arange(N) / 20)
    with pytest.raises(SettingsError, match=r"--again: .* is no run file"):
        analyse(images, tmp_path / "other", again=True)


def test_the_time_is_that_of_the_recording(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A video of 16 Hz is analysed faster or slower than that; images whose names tell a field have no time."""
    frames = np.stack([noisy_discs(index) for index in range(N)])
    write_video(own_folder / "video.avi", frames, "FFV1", rate_hz=16.0)
    (own_folder / "sweep").mkdir()
    for index, frame in enumerate(frames):
        cv2.imwrite(str(own_folder / "sweep" / f"B={index / 2 - 3:.1f}mT.png"), frame)
    assert main(["analyse", "video.avi", "sweep", "--out", "out"]) == 0
    with sky.open_run("out/video.h5") as run:
        np.testing.assert_allclose(run.table["time_s"], np.arange(N) / 16)
    with sky.open_run("out/sweep.h5") as run:
        assert run.frame_names == [f"B={index / 2 - 3:.1f}mT.png" for index in range(N)]
        assert np.isnan(run.table["time_s"]).all()
    capsys.readouterr()
    assert main(["table", "out/sweep.h5", "--out", "sweep.csv"]) == 0
    rows = list(csv.DictReader(Path("sweep.csv").read_text().splitlines()))
    assert [rows[0]["name"], rows[-1]["name"]] == ["B=-3.0mT.png", "B=2.5mT.png"]
    assert rows[0]["time_s"] == ""
    assert rows[0]["count"].isdigit()
    for name in ("video", "sweep"):
        assert main(["info", f"out/{name}.h5", "--plot", f"{name}.png", "--frame", "3"]) == 0
        assert cv2.imread(f"{name}.png") is not None
    assert main(["info", "out/video.h5", "--plot", "x.png", "--frame", "99"]) == 2
    assert "--frame: 99 was not analysed" in capsys.readouterr().err


def test_a_run_without_frames_is_one_sentence(tmp_path: Path, images: Path) -> None:
    live = sky.Service(settings(tmp_path, {"path": str(images)})).run()
    with h5py.File(live.run_file, "r+") as file:
        file["entry/frames/written"][:] = 0
    for again in (False, True):
        with pytest.raises(RunFileError, match="holds no frames"):
            analyse(Path(live.run_file), tmp_path / "out", again=again)


def test_nobody_takes_a_background_offline(tmp_path: Path, images: Path) -> None:
    with pytest.raises(SettingsError, match=r"prepare\.background: 'take' needs somebody who takes it"):
        analyse(images, tmp_path / "out", settings={"prepare": {"background": "take"}})


def test_results_that_would_differ_are_refused(tmp_path: Path, images: Path) -> None:
    """Here because of another setting; the same look finds another computer's engine."""
    live = sky.Service(settings(tmp_path, {"path": str(images)})).run()
    with h5py.File(live.run_file, "r+") as file:
        file["entry/segmentation/mask"][0, 3, 3] = 1 - min(file["entry/segmentation/mask"][0, 3, 3], 1)
    lacking = forget_results(Path(live.run_file), tmp_path / "lacking.h5", [5])
    with pytest.raises(ModelError, match="frame 0 comes out differently from the live run, in 1 pixels"):
        analyse(lacking, tmp_path / "out")


def test_unfinished_runs_are_sent_to_recover(tmp_path: Path, images: Path) -> None:
    live = sky.Service(settings(tmp_path, {"path": str(images)})).run()
    partial = Path(live.run_file).rename(tmp_path / "killed.h5.partial")
    with pytest.raises(RunFileError, match="is not finished; allowed: first `skyseg recover"):
        analyse(partial, tmp_path / "out")


def test_a_recording_becomes_a_run_as_live(tmp_path: Path, images: Path) -> None:
    live = sky.Service(settings(tmp_path / "live", {"path": str(images)})).run()
    summary = analyse(images, tmp_path / "out")
    assert summary["status"] == "ok"
    assert Path(summary["run_file"]) == tmp_path / "out" / f"{images.name}.h5"
    assert_equal(Path(live.run_file), Path(summary["run_file"]))


def test_the_command(own_folder: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = sky.Service(settings(own_folder, {"path": str(images)})).run()
    lacking = forget_results(Path(live.run_file), own_folder / "lacking.h5", [5])
    begun = time.monotonic()
    assert main(["analyse", str(images), str(lacking), "--out", "out", "--json"]) == 0
    assert time.monotonic() - begun < 60
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [one["frames"]["analysed"] for one in told] == [N, N]
    assert main(["info", told[1]["run_file"]]) == 0
    assert main(["analyse", str(images), "nowhere", "--out", "out", "--json"]) == 2
    told_err = capsys.readouterr().err
    assert "exists already and is not overwritten" in told_err
    assert "nowhere does not exist" in told_err


def test_settings_of_a_live_run_serve_for_a_recording(own_folder: Path, images: Path) -> None:
    (own_folder / "lab.yaml").write_text(
        "camera: {driver: replay, path: bundled}\nmeasure: {min_area_px: 100000}\nanalysis: {policy: latest}\n"
    )
    assert main(["analyse", str(images), "--out", "out", "--settings", "lab.yaml", "--engine", "openvino"]) == 0
    with sky.open_run(own_folder / "out" / f"{images.name}.h5") as run:
        assert run.table["count"].tolist() == [0] * N
        assert run.config["analysis"]["policy"] == "every"
    with pytest.raises(SettingsError, match="unknown key"):
        analyse(images, own_folder / "other", ["analysis.modell=x"])


def test_a_run_in_volumes_is_filled_in(tmp_path: Path, images: Path) -> None:
    record = {"volume_gb": 4 * 96 * 128 * 2 / 1e9}
    live = sky.Service(settings(tmp_path / "live", {"path": str(images)}, record=record)).run()
    whole = sky.Service(settings(tmp_path / "whole", {"path": str(images)})).run()
    assert len(list((tmp_path / "live" / "run.volumes").iterdir())) == 3
    with sky.open_run(live.run_file) as run:
        assert run.raw.is_virtual
    again = Path(whole.run_file).read_bytes()
    with h5py.File(live.run_file, "r+") as file:
        frames = file["entry/frames"]
        objects = tables.read(file[layout.OBJECTS], layout.OBJECT_COLUMNS)
        for name in ("count", "stripes", "area_fraction", "segmented_ns", "source_crc32", "mask_crc32",
                     "objects_crc32", "result_crc32"):  # fmt: skip
            frames[name][[2, 7]] = frames[name].fillvalue
        frames["skipped"][[2, 7]] = Skipped.SUPERSEDED
        kept = objects[~np.isin(objects["frame"], [2, 7])]
        tables.replace(file[layout.OBJECTS], layout.OBJECT_COLUMNS, kept)
    summary = analyse(Path(live.run_file), tmp_path / "out")
    assert summary["analysed_afterwards"] == 2
    assert_equal(Path(whole.run_file), Path(summary["run_file"]))
    assert Path(whole.run_file).read_bytes() == again
