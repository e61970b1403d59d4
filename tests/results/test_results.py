"""What is read off a run that is over: tables, pictures, exports."""

import io
import json
import math
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import polars as pl
import pytest
import tifffile
from conftest import settings
from matplotlib.figure import Figure
from PIL import Image

import realtime_skyseg as sky
from realtime_skyseg.afterwards import StoredImages
from realtime_skyseg.analysers.shapes import ShapeAnalyser
from realtime_skyseg.cli import main
from realtime_skyseg.errors import RunFileUnusableError, SettingsError
from realtime_skyseg.exports import mask_picture, write_video
from realtime_skyseg.plots.quantities import VIEWS, draw
from realtime_skyseg.quantities import unit_name
from realtime_skyseg.records import Class, Kind
from realtime_skyseg.tables import frame_table, frame_time_s, object_table, track_table
from realtime_skyseg.training.labelled import read_label

FRAMES, SIZE_UM = 16, 0.2


@pytest.fixture(scope="module", autouse=True)
def polars_at_work() -> None:
    """It begins with its first file, and keeps its threads."""
    content = io.BytesIO()
    pl.DataFrame({"a": [1]}).write_parquet(content)
    content.seek(0)
    pl.read_parquet(content)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of the bundled recording, followed by `tracks`, whose size of a pixel is known."""
    made = settings(
        tmp_path_factory.mktemp("run"), {"path": "bundled", "limit": FRAMES}, analysers={"tracks": {}, "rare": {}},
        measure={"pixel_size_um": SIZE_UM},
    )  # fmt: skip
    return sky.Service(made).run().run_file


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same recording, prepared, in px, without analysers."""
    made = settings(
        tmp_path_factory.mktemp("plain"), {"path": "bundled", "limit": FRAMES},
        prepare={"crop_px": [32, 16, 320, 256]},
    )  # fmt: skip
    return sky.Service(made).run().run_file


def csv_of(path: str, *options: str, out: Path) -> pd.DataFrame:
    assert main(["table", path, *options, "--out", str(out)]) == 0
    return pd.read_csv(out)


def test_frames_objects_and_tracks_as_csv(path: str, tmp_path: Path) -> None:
    frames = csv_of(path, out=tmp_path / "a.csv")
    objects = csv_of(path, "--objects", out=tmp_path / "b.csv")
    tracks = csv_of(path, "--tracks", out=tmp_path / "c.csv")
    with sky.open_run(path) as run:
        table, stored = run.table, run.objects()
        assert frame_time_s(run) == pytest.approx(1 / 16)
    assert len(frames) == FRAMES
    assert not [name for name in frames if name.endswith(("_ns", "crc32"))]
    np.testing.assert_array_equal(frames["count"], table["count"])
    np.testing.assert_allclose(frames["density_per_um2"], table["count"] / (512 * 672 * SIZE_UM**2))
    assert frames["skipped"].isna().all()
    # objects: time and field of their frames, px and um
    assert len(objects) == len(stored)
    np.testing.assert_allclose(objects["x_px"], stored["x"], rtol=1e-6)
    np.testing.assert_allclose(objects["diameter_um"], objects["diameter_px"] * SIZE_UM, rtol=1e-5)
    np.testing.assert_allclose(objects["area_um2"], objects["area_px2"] * SIZE_UM**2, rtol=1e-6)
    np.testing.assert_allclose(objects["field_mT"], table["field_mT"][stored["frame"]])
    assert set(objects["kind"]) == {"skyrmion", "stripe"}
    assert "left_um" not in objects
    # tracks
    followed = objects[objects["track"] >= 0]
    assert tracks["frames"].sum() == len(followed)
    assert (tracks["ended"] == "end of the run").sum() == (tracks["last_frame"] == FRAMES - 1).sum()
    one = followed[followed["track"] == 7]
    row = tracks[tracks["track"] == 7].iloc[0]
    assert (row["first_frame"], row["last_frame"]) == (one["frame"].min(), one["frame"].max())
    assert row["mean_diameter_px"] == pytest.approx(one["diameter_px"].mean(), rel=1e-6)
    assert row["end_s"] == pytest.approx(one["time_s"].max())


def test_parquet_opens_in_pandas_and_polars(path: str, tmp_path: Path) -> None:
    assert main(["table", path, "--objects", "--out", str(tmp_path / "o.parquet")]) == 0
    one, other = pd.read_parquet(tmp_path / "o.parquet"), pl.read_parquet(tmp_path / "o.parquet")
    csv = csv_of(path, "--objects", out=tmp_path / "o.csv")
    assert list(one) == other.columns == list(csv)
    np.testing.assert_allclose(one["x_px"], csv["x_px"], rtol=1e-6)
    assert other["kind"].to_list() == csv["kind"].to_list()
    with sky.open_run(path) as run:
        assert run.tables.frames.to_polars().shape[0] == FRAMES
        assert len(run.tables.objects.to_pandas()) == len(csv)


def test_analysers_are_asked_afterwards(path: str, plain: str, tmp_path: Path) -> None:
    """What they find then is what they would have found live."""
    objects = csv_of(plain, "--objects", "--ask", "tracks", "--ask", "shapes: {point_pixels: true}", "--ask", "lattice",
                     out=tmp_path / "a.csv")  # fmt: skip
    frames = csv_of(plain, "--ask", "lattice", "--ask", "tracks", out=tmp_path / "b.csv")
    assert {"track", "major_axis_px", "psi6", "cell_area_px2", "cnr"} <= set(objects)
    assert frames["spacing_px"].between(20, 40).all()
    assert "x_um" not in objects
    with sky.open_run(path) as run:
        again = object_table(run, analysers={"tracks": {}})
        np.testing.assert_array_equal(again["track"], run.objects()["track"])
        live = frame_table(run)
        for name in ("linked", "merges", "common_step_x_px"):
            np.testing.assert_allclose(frame_table(run, analysers={"tracks": {}})[name], live[name])


def test_an_analyser_that_fails_afterwards_is_no_table_of_gaps(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setattr(ShapeAnalyser, "__call__", fail)
    with sky.open_run(path) as run, pytest.raises(SettingsError, match="analyser 'shapes' failed at frame 0: Zero"):
        run.tables.measure(shapes={})


def test_filters_afterwards(path: str, tmp_path: Path) -> None:
    kept = csv_of(path, "--objects", "--keep", "diameter=8:14", "--keep", "elongation=:1.5", "--no-border",
                  out=tmp_path / "a.csv")  # fmt: skip
    every = csv_of(path, "--objects", out=tmp_path / "b.csv")
    inside = every[every["diameter_px"].between(8, 14) & (every["elongation"] <= 1.5) & (every["border"] == 0)]
    assert 0 < len(kept) == len(inside) < len(every)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["table", "--objects", "--keep", "foo=1:2"], "'foo' is no quantity of the objects; allowed: frame, x, y"),
        (["table", "--objects", "--keep", "diameter=1"], "--keep diameter=1; allowed: NAME=LOW:HIGH"),
        (["table", "--ask", "nope"], "'nope' is not among the installed analysers"),
        (["table", "--ask", "[1]"], "allowed: the name of an analyser"),
        (["table", "--steps"], "has no field programme"),
        (["info", "--plot", "a.png", "--show", "foo"], "'foo' is no picture; allowed: frame, counts"),
        (["info", "--plot", "a.png", "--show", "map:foo"], "'foo' is no quantity of objects; allowed: "),
        (["info", "--plot", "a.png", "--show", "msd", "--frame", "99"], "99 was not analysed"),
        (["pictures"], "pictures needs something to write"),
        (["pictures", "--video", "a.mov"], "allowed: a name that ends in .mp4 or .avi"),
        (["pictures", "--video", "a.mp4", "--rate-hz", "0"], "--rate-hz: 0; allowed: 1 to 240"),
        (["pictures", "--out", "there"], "'there' exists"),
        (["pictures", "--out", "p.zip", "--frame", "77"], "77 was not analysed"),
        (["napari"], "needs the package 'napari'"),
    ],
)
def test_mistakes(
    path: str, options: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main([options[0], path, *options[1:]]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said


@pytest.mark.parametrize("what", [*VIEWS, "map:psi6", "map:orientation_deg", "histogram:diameter"])
def test_pictures_of_quantities(path: str, what: str) -> None:
    axis = Figure().subplots()
    with sky.open_run(path) as run:
        draw(axis, run, what)
    axis.figure.canvas.draw()
    assert axis.has_data()
    labels = axis.get_xlabel() + axis.get_ylabel() + "".join(other.get_ylabel() for other in axis.figure.axes)
    if what in ("distances", "gr", "sq", "msd", "vanhove", "histogram:diameter"):
        assert "µm" in labels


def test_lengths_are_in_px_where_no_size_is_known(plain: str, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    shown = [option for what in ("gr", "msd", "map:contrast", "cells") for option in ("--show", what)]
    assert main(["info", plain, "--plot", str(picture), *shown]) == 0
    assert cv2.imread(str(picture)).std() > 10
    axis = Figure().subplots()
    with sky.open_run(plain) as run:
        constant, error, unit = run.diffusion()
        assert run.plot("gr", axis) is axis
        assert "(px)" in axis.get_xlabel()
    assert unit == "px^2/s"
    assert 0 < error < constant


def test_label_stacks_open_as_such(path: str, tmp_path: Path) -> None:
    rows, tracks = tmp_path / "rows.tif", tmp_path / "tracks.tif"
    assert main(["pictures", path, "--labels", str(rows)]) == 0
    assert main(["pictures", path, "--labels", str(tracks), "--by-track"]) == 0
    with tifffile.TiffFile(rows) as file, sky.open_run(path) as run:
        stack = file.asarray()
        assert file.series[0].axes == "TYX"
        assert file.imagej_metadata["unit"] == "um"
        across, per = file.pages[0].tags["XResolution"].value
        assert across / per == pytest.approx(1 / SIZE_UM)
        assert stack.dtype == np.uint16
        followed = tifffile.imread(tracks)
        for frame in (0, 9):
            objects = run.objects(frame)
            np.testing.assert_array_equal(np.bincount(stack[frame].ravel())[1:], objects["area"])
            for k in (0, len(objects) // 2, len(objects) - 1):
                y, x = np.nonzero(stack[frame] == k + 1)
                assert (x.mean(), y.mean()) == pytest.approx((objects["x"][k], objects["y"][k]), abs=1e-3)
                assert set(followed[frame][y, x]) == {objects["track"][k] + 1}


def test_pictures_of_each_frame_in_a_folder_and_in_a_zip(path: str, plain: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["pictures", plain, "--out", str(out), "--frame", "2", "--frame", "5"]) == 0
    assert sorted(one.name for one in out.iterdir()) == [
        "frames.csv",
        "input",
        "mask",
        "objects.csv",
        "overlay",
        "prepared",
    ]
    assert sorted(one.name for one in (out / "mask").iterdir()) == ["frame_02.png", "frame_05.png"]
    with sky.open_run(plain) as run:
        np.testing.assert_array_equal(cv2.imread(str(out / "input" / "frame_05.png"), -1), run.raw[5])
        with Image.open(out / "mask" / "frame_05.png") as picture:
            np.testing.assert_array_equal(np.array(picture), run.mask[5])
        # It is a label: what was found can be mended by hand and learnt from.
        np.testing.assert_array_equal(read_label(out / "mask" / "frame_05.png"), run.mask[5])
        prepared = tifffile.imread(out / "prepared" / "frame_05.tif")
        assert np.isfinite(prepared[16:272, 32:352]).all()
        assert np.isnan(prepared[0]).all()
        np.testing.assert_array_equal(prepared, StoredImages(run)(5))
    assert main(["pictures", path, "--out", str(tmp_path / "p.zip"), "--kind", "overlay"]) == 0
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        assert len([name for name in archive.namelist() if name.startswith("overlay/")]) == FRAMES
        assert len(pd.read_csv(io.BytesIO(archive.read("frames.csv")))) == FRAMES


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "h264"), ("a.avi", "mjpeg")])
def test_videos(path: str, name: str, codec: str, tmp_path: Path) -> None:
    assert main(["pictures", path, "--video", str(tmp_path / name), "--rate-hz", "10"]) == 0
    with av.open(str(tmp_path / name)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.width, stream.height) == (codec, 10, 672, 512)
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(stream)]
    assert len(frames) == FRAMES
    red = (frames[3][..., 0] - frames[3][..., 1] > 60) & (frames[3][..., 0] - frames[3][..., 2] > 60)
    assert red.mean() > 0.02  # outlines
    assert frames[3][:20].mean() < 0.6 * frames[3][40:].mean()  # the line of text
    with sky.open_run(path) as run, pytest.raises(SettingsError, match="cannot be written"):
        write_video(run, tmp_path / "missing" / name)


def test_a_batch_of_images_with_its_pictures_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    y, x = np.mgrid[:128, :160]
    for k in range(3):
        image = np.random.default_rng(k).normal(130, 8, (128, 160))
        for place in range(k + 1):
            image[np.hypot(x - 30 - 45 * place, y - 60) < 9] -= 60
        cv2.imwrite(str(folder / f"shot {k}.png"), image.clip(0, 255).astype(np.uint8))
    options = ["--pictures", "mask", "--pictures", "overlay", "--show", "map:diameter", "--show", "histogram:diameter"]
    assert main(["analyse", str(folder), "--out", str(tmp_path / "out"), *options, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    with zipfile.ZipFile(summary["pictures"][0]) as archive:
        frames = pd.read_csv(io.BytesIO(archive.read("frames.csv")))
        assert frames["name"].tolist() == ["shot 0.png", "shot 1.png", "shot 2.png"]
        assert frames["count"].tolist() == [1, 2, 3]
        assert {"mask/shot 0.png", "overlay/shot 2.png", "views/shot 1.png"} <= set(archive.namelist())
        assert set(pd.read_csv(io.BytesIO(archive.read("objects.csv")))["name"]) == set(frames["name"])


def test_a_film_without_times_has_units_per_frame(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    y, x = np.mgrid[:160, :200]
    random = np.random.default_rng(0)
    places = np.array([(30 + 45 * k, 30 + 50 * j) for k in range(4) for j in range(3)], float)
    for k in range(6):
        image = random.normal(130, 6, (160, 200))
        for u, v in places:
            image[np.hypot(x - u, y - v) < 9] -= 60
        places += random.normal(0, 0.7, places.shape)
        cv2.imwrite(str(folder / f"{k}.png"), image.clip(0, 255).astype(np.uint8))
    assert main(["analyse", str(folder), "--out", str(tmp_path / "out")]) == 0
    with sky.open_run(tmp_path / "out" / "images.h5") as run:
        assert run.diffusion()[2] == "px^2/frame"
        assert np.isnan(track_table(run)["diffusion_px2_per_s"]).all()
        axis = Figure().subplots()
        draw(axis, run, "msd")
        assert axis.get_xlabel() == "lag (frame)"
        assert "px²/frame" in axis.get_legend().get_texts()[0].get_text()


def test_a_run_without_skyrmions(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(4):
        image = np.random.default_rng(k).normal(130, 8, (320, 320)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{k}.png"), image)
    assert main(["analyse", str(folder), "--out", str(tmp_path / "out")]) == 0
    with sky.open_run(tmp_path / "out" / "images.h5") as run:
        assert math.isnan(frame_time_s(run))
        assert len(track_table(run)) == 0
        assert len(object_table(run, analysers={"shapes": {}, "lattice": {}, "skeletons": {}, "selection": {}})) == 0
        assert np.isnan(run.diffusion()[0])
        for what in ("frame", "counts", "cells"):
            draw(Figure().subplots(), run, what)
        for what in ("tracks", "gr", "sq", "msd", "pins"):
            with pytest.raises(RunFileUnusableError, match="skyrmions"):
                draw(Figure().subplots(), run, what)


@pytest.mark.parametrize(
    ("unit", "name"),
    [("px", "px"), ("px^2", "px2"), ("1/um", "per_um"), ("um^2/s", "um2_per_s"), ("mT", "mT"), ("", "")],
)
def test_units_in_names(unit: str, name: str) -> None:
    assert unit_name(unit) == name


def test_a_mask_picture_has_the_colours_of_labels() -> None:
    mask = np.arange(5, dtype=np.uint8).repeat(8)[None].repeat(8, 0)
    picture = cv2.imdecode(np.frombuffer(mask_picture(mask), np.uint8), cv2.IMREAD_COLOR)
    expected = {Class.BACKGROUND: (255, 0, 0), Class.SKYRMION: (0, 0, 255), Class.DEFECT: (0, 255, 0),
                Class.OUTSIDE: (0, 255, 255), Class.EDGE: (255, 255, 0)}  # fmt: skip
    for value, colour in expected.items():
        assert tuple(picture[0, 8 * value]) == colour


def test_segmentations_show_themselves(plain: str) -> None:
    with sky.open_run(plain) as run:
        segment = sky.Segmenter.load("compact")
        assert "engine is made with the first image" in repr(segment)
        found = segment(run.raw[0])
        axis = Figure().subplots()
        assert found.plot(axis) is axis
        assert f"{found.count} skyrmions" in axis.get_title()
        assert "<img" in found._repr_html_()
        assert "512x672" in repr(found)
        assert "openvino" in segment._repr_html_()
        assert len(found.points) == (found.objects["kind"] == Kind.SKYRMION).sum() == found.count
        assert list(found.to_pandas()["area_px2"]) == list(found.objects["area"])
        nothing = segment(np.full((64, 64), 7, np.uint8))
        assert "shows nothing" in nothing._repr_html_()
        assert "<table>" in run.tables.frames._repr_html_()
        assert "finished" in repr(run)
        text = run._repr_html_()
    assert "<img" in text
    assert "closed" in run._repr_html_()
