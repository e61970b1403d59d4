"""What to label next, and where to correct it."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import settings

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.picking import pick
from realtime_skyseg.training.labelled import read_labelled


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The bundled recording, as it is and prepared."""
    paths = []
    for name, sections in (("plain", {}), ("prepared", {"prepare": {"crop_px": [32, 16, 320, 256]}})):
        made = settings(
            tmp_path_factory.mktemp(name), {"path": "bundled", "limit": 24}, record={"name": name}, **sections
        )
        paths.append(Path(sky.Service(made).run().run_file))
    return paths


def test_picked_frames_are_labels_that_training_reads(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "picked"
    assert main(["pick", *map(str, runs), "--frames", "5", "--apart", "0.3", "--out", str(out)]) == 0
    pairs = read_labelled(out / "images", out / "labels", out / "table.csv")
    assert len(pairs) == 5
    assert {pair.source for pair in pairs} <= {"plain", "prepared"}
    with (out / "table.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    for pair in pairs:
        row = rows[pair.name]
        with sky.open_run(row["run"]) as run:
            mask = run.mask[int(row["frame"])]
        if pair.source == "prepared":  # without what is beyond the crop, and in 16 bits
            mask = mask[16:272, 32:352]
            assert pair.image.dtype == np.uint16
        np.testing.assert_array_equal(pair.mask, mask)
        assert 0 <= float(row["doubt"]) <= 1


def test_frames_of_a_run_are_apart(runs: list[Path]) -> None:
    picked = pick(runs[:1], 100, apart_s=0.4)
    times = sorted(one.time_s for one in picked)
    assert 2 <= len(times) <= 4  # of 1.5 s
    assert min(np.diff(times)) >= 0.4
    assert len(pick(runs, 3, apart_s=0.0)) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "there"], "'there' exists already"),
        (["--out", "new", "--frames", "0"], "--frames: 0; allowed: 1 or more"),
        (["nowhere.h5", "--out", "new"], "'nowhere.h5' does not exist"),
    ],
)
def test_mistakes(
    options: list[str], sentence: str, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main(["pick", str(runs[0]), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_labels_are_corrected_in_napari(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs the extra `napari` and a screen; CI has neither."""
    napari = pytest.importorskip("napari")
    from realtime_skyseg.picking import Annotation, write_picked

    write_picked(pick(runs[:1], 2, apart_s=0.0), tmp_path / "picked")
    viewer = napari.Viewer(show=False)
    annotation = Annotation(viewer, tmp_path / "picked")
    before = np.array(annotation.classes.data)
    annotation.classes.data = np.where(np.arange(before.shape[1]) < 9, 2, before)
    annotation.go(1)
    viewer.close()
    pairs = read_labelled(tmp_path / "picked" / "images", tmp_path / "picked" / "labels")
    assert (pairs[0].mask[:, :9] == 2).all()
    np.testing.assert_array_equal(pairs[0].mask[:, 9:], before[:, 9:])
    assert cv2.imread(str(tmp_path / "picked" / "labels" / pairs[0].name)).any()
