"""Real Kerr images: replayed as recordings, counted, compared with their labels. Skips where there are none."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import settings

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.records import Class
from realtime_skyseg.training.labelled import read_label

SEQUENCES = [
    # name, numbers of the images
    ("source 10, seen in training", range(46, 56)),
    ("source 7, never seen", range(16, 26)),
]


def images(kerr: Path, numbers: range) -> list[np.ndarray]:
    read = [cv2.imread(str(kerr / "images" / f"{number:06d}.png"), cv2.IMREAD_GRAYSCALE) for number in numbers]
    return [image for image in read if image is not None]


def true_counts(kerr: Path, numbers: range) -> np.ndarray:
    """Objects of at least 10 px in each label."""
    counts = []
    for number in numbers:
        mask = (read_label(kerr / "labels" / f"{number:06d}.png") == Class.SKYRMION).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        counts.append(int((stats[1:, cv2.CC_STAT_AREA] >= 10).sum()))
    return np.array(counts)


def run(folder: Path, recording: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, masks and raw frames of a run."""
    summary = sky.Service(settings(folder, {"path": str(recording)})).run()
    assert summary.status == "ok"
    with sky.open_run(summary.run_file) as file:
        return file.table["count"].copy(), file.mask[:], file.raw[:]


@pytest.mark.parametrize(("name", "numbers"), SEQUENCES, ids=[name for name, _ in SEQUENCES])
def test_counts_of_a_real_video(tmp_path: Path, kerr: Path, name: str, numbers: range) -> None:
    pictures = images(kerr, numbers)
    truth = true_counts(kerr, numbers)
    folder = tmp_path / "images"
    folder.mkdir()
    for number, picture in zip(numbers, pictures, strict=True):
        cv2.imwrite(str(folder / f"{number:06d}.png"), picture)
    tifffile.imwrite(tmp_path / "video.tif", np.stack(pictures))
    height, width = pictures[0].shape
    writer = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 16, (width, height))
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    writer.release()

    found = {
        path.name: run(tmp_path / f"run of {path.name}", path)
        for path in (folder, tmp_path / "video.tif", tmp_path / "video.avi")
    }
    for source, (counts, _, _) in found.items():
        error = np.median(np.abs(counts - truth) / truth)
        print(f"{name}, {source}: median count error {error:.3f}, counts {counts.tolist()}, labels {truth.tolist()}")  # noqa: T201
        assert error <= 0.05
    for part in range(3):
        np.testing.assert_array_equal(found["images"][part], found["video.tif"][part])
    np.testing.assert_array_equal(found["images"][2], np.stack(pictures))


def test_the_shipped_model_on_the_validation_fold(tmp_path: Path, kerr: Path) -> None:
    figures = {}
    for name, more in (("dark", []), ("bright", ["--invert"])):
        out = tmp_path / f"{name}.json"
        arguments = ["evaluate", "--images", str(kerr / "images"), "--labels", str(kerr / "labels")]
        assert main([*arguments, "--table", str(kerr / "table.csv"), "--fold", "5", "--json", str(out), *more]) == 0
        figures[name] = json.loads(out.read_text())
    assert figures["dark"]["images"] == 18
    assert figures["dark"]["skyrmion_iou"] >= 0.73
    assert figures["dark"]["skyrmion_mcc"] >= 0.83
    assert figures["dark"]["object_f1"] >= 0.74
    assert figures["dark"]["skyrmion_iou"] - figures["bright"]["skyrmion_iou"] < 0.03
