"""Real Kerr images: replayed as recordings, counted, compared with their labels. Skips where there are none."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import KERR, settings

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.records import Class
from realtime_skyseg.segmentation import load_model, open_engine, scale
from realtime_skyseg.segmentation.tiles import TiledEngine
from realtime_skyseg.training.evaluate import changed, score
from realtime_skyseg.training.labelled import LabelledImage, read_label, read_labelled

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


# --- the shipped models on fold 5, which no training has learnt from ---

#: Least IoU, MCC, object F1, largest count error, least IoU of defects.
PROMISED = {"compact": (0.752, 0.849, 0.798, 0.033, 0.15), "accurate": (0.750, 0.848, 0.784, 0.03, 0.10)}

#: Patterned films with skyrmions of 5 px, whose labels are ragged.
TINY = {"000126.png", "000127.png", "000128.png"}


@pytest.fixture(scope="module")
def fold_5() -> list[LabelledImage]:
    if not (KERR / "table.csv").is_file():
        pytest.skip(f"needs the labelled Kerr images in {KERR} (or in $SKYSEG_KERR)")
    return read_labelled(KERR / "images", KERR / "labels", KERR / "table.csv", [5])


def figures(segmenter: sky.Segmenter, pairs: list[LabelledImage]) -> dict[str, float]:
    return score(pairs, lambda image: segmenter(image).mask).figures()


@pytest.mark.parametrize("name", PROMISED)
def test_a_shipped_model_keeps_its_promise(fold_5: list[LabelledImage], name: str) -> None:
    segmenter = sky.Segmenter.load(name)
    assert len(fold_5) == 18
    dark, bright = figures(segmenter, fold_5), figures(segmenter, changed(fold_5, invert=True))
    iou, mcc, f1, error, defect = PROMISED[name]
    assert dark["skyrmion_iou"] >= iou
    assert dark["skyrmion_mcc"] >= mcc
    assert dark["object_f1"] >= f1
    assert dark["count_mape"] <= error
    assert dark["defect_iou"] >= defect
    for key in ("skyrmion_iou", "skyrmion_mcc", "object_f1", "count_mape"):
        assert bright[key] == pytest.approx(dark[key], abs=0.02), key


@pytest.mark.parametrize("name", PROMISED)
def test_a_shipped_model_stands_other_magnifications(fold_5: list[LabelledImage], name: str) -> None:
    segmenter = sky.Segmenter.load(name)
    pairs = [pair for pair in fold_5 if pair.name not in TINY]
    plain = figures(segmenter, pairs)["object_f1"]
    for zoom in (0.75, 1.33):
        assert figures(segmenter, changed(pairs, zoom=zoom))["object_f1"] == pytest.approx(plain, abs=0.05), zoom


@pytest.mark.parametrize("name", PROMISED)
def test_edges_do_not_become_skyrmions(fold_5: list[LabelledImage], name: str) -> None:
    segmenter = sky.Segmenter.load(name)
    patterned = [pair for pair in fold_5 if (pair.mask >= Class.OUTSIDE).any()]
    assert {pair.name for pair in patterned} == TINY
    found = score(patterned, lambda image: segmenter(image).mask).classes()["skyrmion"]
    assert found["precision"] >= 0.85


def test_a_mosaic_through_tiles(kerr: Path) -> None:
    """2048x2048 px of real images: the mask through tiles is that of one pass."""
    pictures = images(kerr, range(109, 134))[:16]
    rows = [np.hstack(pictures[4 * row : 4 * row + 4]) for row in range(4)]
    mosaic = scale(np.vstack(rows)[:2048, :2048])
    model = load_model("compact")
    whole = open_engine(model, mosaic.shape)
    tiled = open_engine(model, mosaic.shape, max_layer_bytes=700 * 700 * 16)
    assert isinstance(tiled, TiledEngine)
    for engine in (whole, tiled):
        engine.input[...] = mosaic
    assert np.mean(whole.run() == tiled.run()) >= 0.9995


# --- the lab's own model ---


def test_the_lab_s_model_gives_its_own_predictions(kerr: Path, tmp_path: Path) -> None:
    reference = kerr.parent / "reference"
    if not (reference / "seed_model_small.keras").is_file():
        pytest.skip(f"needs the lab's model in {reference}")
    out = tmp_path / "small.safetensors"
    assert main(["import", str(reference / "seed_model_small.keras"), "--out", str(out)]) == 0
    predictions = np.load(reference / "seed_model_small_predictions.npz")
    expected = dict(zip(predictions["image_index"].tolist(), predictions["class_index"], strict=True))
    to_class = np.array([Class.SKYRMION, Class.DEFECT, Class.BACKGROUND], np.uint8)
    agreement: dict[str, list[float]] = {"torch": [], "openvino": []}
    for engine, shares in agreement.items():
        segmenter = sky.Segmenter.load(str(out), engine)
        for number, classes in expected.items():
            for image in images(kerr, range(number, number + 1)):
                shares.append(float(np.mean(segmenter(image).mask == to_class[classes])))
    assert len(agreement["torch"]) >= 5
    if sky.Segmenter.load(str(out), "torch").open((512, 672)).precision == "float32":
        assert np.mean(agreement["torch"]) >= 0.9999
    assert np.mean(agreement["openvino"]) >= 0.999
