"""Training and evaluation: labels, figures, and a small training from end to end."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from test_guests import SMALL, KerasModel

import realtime_skyseg as sky
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.cli import main
from realtime_skyseg.config import TrainingSettings, load_training
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class
from realtime_skyseg.segmentation import load_model
from realtime_skyseg.segmentation.keras_file import import_keras
from realtime_skyseg.segmentation.network import UNet
from realtime_skyseg.segmentation.shape import NetworkShape
from realtime_skyseg.training.augment import Sampler, pixel_weights
from realtime_skyseg.training.evaluate import Scores, changed, score_image, state_of
from realtime_skyseg.training.labelled import label_values, read_label, read_labelled, split
from realtime_skyseg.training.train import Training, add_bias

# OpenCV's order: blue, green, red
PAINT = {
    Class.BACKGROUND: (255, 0, 0),
    Class.SKYRMION: (0, 0, 255),
    Class.DEFECT: (0, 255, 0),
    Class.OUTSIDE: (0, 255, 255),
    Class.EDGE: (255, 255, 0),
}


def write_labelled(folder: Path, n: int = 6) -> Path:
    """A data set of noisy discs: images, labels and a table with folds 0 and 1."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rows = ["image,label,source_id,frame_in_dataset,fold"]
    for index in range(n):
        rng = np.random.default_rng(index)
        label = np.full((128, 160, 3), PAINT[Class.BACKGROUND], np.uint8)
        for _ in range(12):
            cv2.circle(label, (int(rng.integers(160)), int(rng.integers(128))), 7, PAINT[Class.SKYRMION], -1)
        image = 128 - 45.0 * (label[..., 2] > 0) + rng.normal(0, 12, label.shape[:2])
        cv2.imwrite(str(folder / "images" / f"{index}.png"), np.clip(image, 0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "labels" / f"{index}.png"), label)
        rows.append(f"images/{index}.png,labels/{index}.png,{index},0,{index % 2}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


def training_settings(data: Path, out: Path, **values: object) -> str:
    lines = {
        "images": data / "images", "labels": data / "labels", "table": data / "table.csv", "out": out,
        "train_folds": [0], "validate_folds": [1], "filters": 4, "depth": 2, "crop_px": 64, "batch": 4, "steps": 30,
        "validate_every": 15, **values,
    }  # fmt: skip
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def test_label_colours_are_classes(tmp_path: Path) -> None:
    picture = np.zeros((1, 5, 3), np.uint8)
    for value, colour in PAINT.items():
        picture[0, value] = colour
    cv2.imwrite(str(tmp_path / "label.png"), picture)
    assert read_label(tmp_path / "label.png").tolist() == [[0, 1, 2, 3, 4]]


def test_a_colour_without_a_class(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "label.png"), np.full((4, 4, 3), 255, np.uint8))
    with pytest.raises(SettingsError, match=r"colour \(255, 255, 255\) at column 0, row 0; allowed: red skyrmion"):
        read_label(tmp_path / "label.png")


def test_folds_choose_images(tmp_path: Path) -> None:
    data = write_labelled(tmp_path)
    pairs = read_labelled(data / "images", data / "labels", data / "table.csv", [1])
    assert [(pair.name, pair.source, pair.fold) for pair in pairs] == [
        ("1.png", "1", 1),
        ("3.png", "3", 1),
        ("5.png", "5", 1),
    ]
    assert all(pair.image.shape == pair.mask.shape for pair in pairs)


def test_labels_of_a_single_channel(tmp_path: Path) -> None:
    """Class numbers in a TIFF, in the product's order or another one, beside images with another suffix."""
    data = write_labelled(tmp_path, n=1)
    coloured = read_label(data / "labels" / "0.png")
    (data / "labels" / "0.png").unlink()
    tifffile.imwrite(data / "labels" / "0.tif", coloured)
    assert (read_labelled(data / "images", data / "labels")[0].mask == coloured).all()
    reference_order = np.array([2, 0, 1], np.uint16)[coloured]  # 0 skyrmion, 1 defect, 2 background
    tifffile.imwrite(data / "labels" / "0.tif", reference_order)
    values = label_values("0=skyrmion,1=defect,2=background")
    assert (read_labelled(data / "images", data / "labels", values=values)[0].mask == coloured).all()


def test_a_value_without_a_class(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "label.tif", np.full((4, 4), 255, np.uint8))
    with pytest.raises(SettingsError, match=r"value 255 at column 0, row 0; allowed: 0 background, .*set label_values"):
        read_label(tmp_path / "label.tif")
    with pytest.raises(SettingsError, match=r"'0=hole': allowed: NUMBER=CLASS"):
        label_values("0=hole")


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4"])
def test_instance_labels_of_other_tools(tmp_path: Path, dtype: str) -> None:
    """Any number above 0 is a skyrmion, and two that touch stay two."""
    numbers = np.zeros((40, 60), dtype)
    numbers[5:15, 5:15], numbers[5:15, 15:25], numbers[15:25, 25:35] = 7, 200, 3  # side by side, and at a corner
    tifffile.imwrite(tmp_path / "labels.tif", numbers)
    mask = read_label(tmp_path / "labels.tif", label_values("instances"))
    assert measure(mask, polarity="both").count == 3
    assert set(np.unique(mask)) == {Class.BACKGROUND, Class.SKYRMION}
    assert 0.85 < (mask == Class.SKYRMION).sum() / (numbers > 0).sum() < 1
    tifffile.imwrite(tmp_path / "floats.tif", numbers.astype(np.float32) + 0.5)
    with pytest.raises(SettingsError, match="allowed: whole numbers from 0 on"):
        read_label(tmp_path / "floats.tif", "instances")


SPLITS: list[tuple[dict[str, object], set[str]]] = [
    # settings, names of the images to score on
    ({"train_folds": [0], "validate_folds": [1]}, {"1.png", "3.png", "5.png"}),
    ({"validate_sources": ["2", "4"]}, {"2.png", "4.png"}),
    ({"validate_share": 0.5, "seed": 1}, {"0.png", "2.png", "4.png"}),
]


@pytest.mark.parametrize(("values", "scored_on"), SPLITS, ids=lambda value: str(value))
def test_splits(tmp_path: Path, values: dict[str, object], scored_on: set[str]) -> None:
    data = write_labelled(tmp_path)
    paths = {"images": data / "images", "labels": data / "labels", "table": data / "table.csv", "out": tmp_path / "m"}
    training, validation = split(TrainingSettings.model_validate({**paths, **values}))
    assert {pair.name for pair in validation} == scored_on
    assert {pair.name for pair in training} == {f"{index}.png" for index in range(6)} - scored_on


def test_a_source_is_on_one_side_only(tmp_path: Path) -> None:
    data = write_labelled(tmp_path)
    table = (data / "table.csv").read_text().replace("1.png,1,0,1", "1.png,0,0,1")
    (data / "table.csv").write_text(table)
    (tmp_path / "train.yaml").write_text(training_settings(data, tmp_path / "model.safetensors"))
    with pytest.raises(SettingsError, match="source '0' is in train_folds too"):
        Training(load_training(tmp_path / "train.yaml"))


WRONG = [
    # folds, what is taken away, what the sentence names
    ([7], None, "has no image of fold"),
    ([1], "images", "is not a folder"),
    ([1], "labels/1.png", "cannot be read as a picture"),
    ([1], "table.csv", "is not a file"),
]


@pytest.mark.parametrize(("folds", "missing", "sentence"), WRONG)
def test_data_that_cannot_be_read(tmp_path: Path, folds: list[int], missing: str | None, sentence: str) -> None:
    data = write_labelled(tmp_path)
    if missing:
        (data / missing).rename(data / "away")
    with pytest.raises(SettingsError, match=sentence):
        read_labelled(data / "images", data / "labels", data / "table.csv", folds)


def test_a_fold_that_is_no_number(tmp_path: Path) -> None:
    data = write_labelled(tmp_path)
    (data / "table.csv").write_text("image,source_id,fold\n0.png,0,test\n")
    with pytest.raises(SettingsError, match=r"table\.csv, line 2: fold: .*'test'; allowed: whole numbers"):
        read_labelled(data / "images", data / "labels", data / "table.csv")


def test_the_published_table_is_read_as_it_is(tmp_path: Path) -> None:
    data = write_labelled(tmp_path)
    rows = [f"{index // 2};dataset/images/{index}.png;dataset/labels/{index}.png;{10 * index}" for index in range(6)]
    (data / "table.csv").write_text("\n".join(["source_id;img_fn;label_fn;zenodo_index", *rows]) + "\n")
    pairs = read_labelled(data / "images", data / "labels", data / "table.csv")
    assert [(pair.name, pair.source, pair.fold) for pair in pairs] == [(f"{k}.png", str(k // 2), -1) for k in range(6)]
    with pytest.raises(SettingsError, match="has no column 'fold'"):
        read_labelled(data / "images", data / "labels", data / "table.csv", [1])


def square(left: int, size: int = 6, shape: tuple[int, int] = (20, 40)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[5 : 5 + size, left : left + size] = Class.SKYRMION
    return mask


FIGURES = [
    # what, mask, label, IoU, object F1, count error
    ("the same", square(3), square(3), 1.0, 1.0, 0.0),
    ("nothing in both", np.zeros((20, 40), np.uint8), np.zeros((20, 40), np.uint8), 1.0, 1.0, 0.0),
    ("shifted by one", square(4), square(3), 30 / 42, 1.0, 0.0),
    ("shifted by half", square(6), square(3), 18 / 54, 0.0, 0.0),
    ("missed", np.zeros((20, 40), np.uint8), square(3), 0.0, 0.0, 1.0),
    ("one of two", square(3), np.maximum(square(3), square(20)), 0.5, 2 / 3, 0.5),
    ("fragments do not count", np.maximum(square(3), square(20, 3)), square(3), 36 / 45, 1.0, 0.0),
]


@pytest.mark.parametrize(("what", "mask", "label", "iou", "f1", "error"), FIGURES, ids=[row[0] for row in FIGURES])
def test_figures(what: str, mask: np.ndarray, label: np.ndarray, iou: float, f1: float, error: float) -> None:
    figures = Scores([score_image("x", mask, label)]).figures()
    assert figures["skyrmion_iou"] == pytest.approx(iou)
    assert figures["object_f1"] == pytest.approx(f1)
    assert figures["count_mape"] == pytest.approx(error)


def test_mcc_agrees_with_its_definition_by_correlation() -> None:
    rng = np.random.default_rng(0)
    mask, label = rng.integers(0, 2, (2, 50, 50), np.uint8)
    label |= mask & rng.integers(0, 2, (50, 50), np.uint8)
    expected = np.corrcoef(mask.ravel() == 1, label.ravel() == 1)[0, 1]
    assert Scores([score_image("x", mask, label)]).figures()["skyrmion_mcc"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and a tiny model trained on it through the command line."""
    folder = tmp_path_factory.mktemp("training")
    data = write_labelled(folder / "data")
    (folder / "train.yaml").write_text(training_settings(data, folder / "tiny.safetensors"))
    assert main(["train", str(folder / "train.yaml")]) == 0
    return data, folder / "tiny.safetensors"


def test_a_training_ends_with_a_model_that_every_engine_runs(trained: tuple[Path, Path]) -> None:
    data, path = trained
    model = load_model(str(path))
    assert model.shape == NetworkShape(unshuffle=2, filters=4, depth=2)
    assert model.training["images"] == 3
    image = cv2.imread(str(data / "images" / "1.png"), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    masks = [sky.Segmenter.load(str(path), engine)(image).mask for engine in ("torch", "openvino")]
    assert np.mean(masks[0] == masks[1]) > 0.98


def test_a_training_leaves_a_report(trained: tuple[Path, Path]) -> None:
    _, path = trained
    report = path.with_name("tiny-report")
    rows = list(csv.DictReader((report / "history.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["15", "30"]
    for picture in ("curves.png", "worst.png"):
        assert cv2.imread(str(report / picture)) is not None
    assert not path.with_name(path.name + ".checkpoint").exists()


def test_a_killed_training_goes_on(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """kill -9 after the first checkpoint; started again it ends where an undisturbed one does."""
    data, undisturbed = trained
    out = tmp_path / "tiny.safetensors"
    (tmp_path / "train.yaml").write_text(training_settings(data, out))
    command = [sys.executable, "-m", "realtime_skyseg.cli", "train", str(tmp_path / "train.yaml")]
    checkpoint = out.with_name(out.name + ".checkpoint")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert not out.exists()
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "goes on from step 15" in again.stdout
    records = [load_model(str(path)).training for path in (out, undisturbed)]
    assert [record["best_step"] for record in records] == [records[1]["best_step"]] * 2
    for key, value in records[1]["validation"].items():
        assert records[0]["validation"][key] == pytest.approx(value, abs=0.02), key


def test_folds_are_left_out_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_labelled(tmp_path / "data")
    (tmp_path / "train.yaml").write_text(training_settings(data, tmp_path / "tiny.safetensors", steps=6))
    arguments = ["train", str(tmp_path / "train.yaml"), "--leave-out"]
    assert main(arguments) == 0
    assert "(best)" in capsys.readouterr().out
    record = json.loads((tmp_path / "tiny-folds.json").read_text())
    assert set(record["folds"]) == {"0", "1"}
    assert record["best_bias"] in [float(bias) for bias in record["bias"]]
    models = [tmp_path / f"tiny-without-{fold}.safetensors" for fold in (0, 1)]
    told = [load_model(str(path)).training["settings"] for path in models]
    assert [(one["train_folds"], one["validate_folds"]) for one in told] == [([1], [0]), ([0], [1])]
    before = [path.stat().st_mtime_ns for path in models]
    assert main(arguments) == 0  # nothing is trained twice
    assert [path.stat().st_mtime_ns for path in models] == before


def test_a_preview_of_what_is_learnt_from(tmp_path: Path) -> None:
    data = write_labelled(tmp_path / "data")
    (tmp_path / "train.yaml").write_text(training_settings(data, tmp_path / "tiny.safetensors"))
    assert main(["train", str(tmp_path / "train.yaml"), "--preview", str(tmp_path / "crops.png")]) == 0
    assert cv2.imread(str(tmp_path / "crops.png")) is not None
    assert not (tmp_path / "tiny.safetensors").exists()


def test_a_checkpoint_of_other_settings(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = trained
    out = tmp_path / "tiny.safetensors"
    (tmp_path / "train.yaml").write_text(training_settings(data, out, steps=15))
    training = Training(load_training(tmp_path / "train.yaml"))
    training._step()
    training._validate(0.0)
    with pytest.raises(SettingsError, match=r"batch: checkpoint .* was made with 4, not 2; use those settings"):
        Training(load_training(tmp_path / "train.yaml", ["batch=2"])).run()
    out.with_name(out.name + ".checkpoint").write_bytes(b"cut off")
    with pytest.raises(SettingsError, match=r"checkpoint .* cannot be read"):
        Training(load_training(tmp_path / "train.yaml")).run()


def test_fine_tuning_and_teachers(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """From a model that exists, without a table, taught by another one."""
    data, path = trained
    (tmp_path / "train.yaml").write_text(
        f"images: {data / 'images'}\nlabels: {data / 'labels'}\nout: {tmp_path / 'mine.safetensors'}\n"
        f"start_from: {path}\nteachers: [compact]\nsteps: 2\nbatch: 2\ncrop_px: 64\n"
    )
    assert main(["train", str(tmp_path / "train.yaml")]) == 0
    mine = load_model(str(tmp_path / "mine.safetensors"))
    assert mine.shape == load_model(str(path)).shape
    assert (mine.training["images"], mine.training["validation_images"]) == (5, 1)
    assert main(["train", str(tmp_path / "train.yaml"), "--set", "filters=8"]) == 2
    # A guest has three classes, and sees grey values in another scaling.
    import_keras(KerasModel(2, 1, 3, 2).save(tmp_path / "lab.keras"), SMALL, tmp_path / "lab.safetensors")
    for key, value in (("start_from", "lab.safetensors"), ("teachers", "[lab.safetensors]")):
        with pytest.raises(SettingsError, match=rf"{key}: .*lab\.safetensors' has 3 classes"):
            Training(
                load_training(
                    tmp_path / "train.yaml",
                    [f"{key}={value.replace('lab', str(tmp_path / 'lab'))}", "out=x.safetensors"],
                )
            )


@pytest.mark.gpu
def test_training_on_the_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    data = write_labelled(tmp_path / "data")
    (tmp_path / "train.yaml").write_text(training_settings(data, tmp_path / "tiny.safetensors"))
    training = Training(load_training(tmp_path / "train.yaml"))
    assert next(training._network.parameters()).is_cuda
    assert load_model(str(training.run())).training["images"] == 3


def test_pixels_of_small_skyrmions_weigh_more() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:4, :4], mask[20:40, 20:40], mask[50:, 50:] = Class.SKYRMION, Class.SKYRMION, Class.DEFECT
    weights = pixel_weights(mask, np.array([1, 1.2, 3, 1, 1.5], np.float32))
    assert weights[0, 0] > weights[30, 30] > weights[10, 10]
    assert weights[60, 60] > weights[0, 0]


def test_more_images_are_drawn_as_often_as_asked(tmp_path: Path) -> None:
    """The further ones are blank, so that they can be told from the others."""
    data = write_labelled(tmp_path / "data", n=2)
    for folder, image in (("images", np.full((128, 128), 7, np.uint8)), ("labels", np.zeros((128, 128), np.uint8))):
        (tmp_path / "more" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "more" / folder / "0.png"), image)
    more = {"images": tmp_path / "more/images", "labels": tmp_path / "more/labels", "share": 0.25}
    plain = dict.fromkeys(("empty", "patterned", "dirty", "noisy", "sloped"), 0.0) | {"contrast": 0, "offset": 0}
    settings = TrainingSettings(
        images=data / "images", labels=data / "labels", out=tmp_path / "x.safetensors", crop_px=64, augment=plain,
        more=[more], batch=200,
    )  # fmt: skip
    images, masks, _ = Sampler(read_labelled(settings.images, settings.labels), settings).batch(200)
    blank = (images == 0).all((1, 2, 3))
    assert 30 <= blank.sum() <= 70
    assert (masks[blank] == 0).all()


def test_three_classes(tmp_path: Path) -> None:
    """Edge and outside count as background."""
    data = write_labelled(tmp_path / "data", n=2)
    settings = TrainingSettings(
        images=data / "images", labels=data / "labels", out=tmp_path / "x.safetensors", crop_px=128, classes=3,
        augment={"patterned": 1.0, "empty": 0.0},
    )  # fmt: skip
    assert UNet(NetworkShape(classes=settings.classes)).head.out_channels == 3 * 4
    _, masks, _ = Sampler(read_labelled(settings.images, settings.labels), settings).batch(16)
    assert masks.max() <= Class.DEFECT


def test_the_bias_is_in_the_weights(trained: tuple[Path, Path]) -> None:
    """Its logit, of every pixel, rises by just so much, and no other's."""
    network = load_model(str(trained[1])).load_network()
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        before = network(image)
        add_bias(network, -0.75)
        difference = network(image) - before
    cell = network.shape.unshuffle**2
    expected = torch.zeros_like(difference)
    expected[:, Class.SKYRMION * cell : (Class.SKYRMION + 1) * cell] = -0.75
    torch.testing.assert_close(difference, expected, atol=1e-4, rtol=0)


def test_synthetic_dirt_is_labelled_as_defect(tmp_path: Path) -> None:
    """Bright on one side and dark on the other, and nothing else in the mask of an empty film."""
    data = write_labelled(tmp_path, n=1)
    settings = TrainingSettings(
        images=data / "images", labels=data / "labels", out=tmp_path / "x.safetensors", crop_px=128
    )
    sampler = Sampler(read_labelled(settings.images, settings.labels), settings)
    empty = np.zeros((128, 128), np.float32)
    image, mask = sampler._dirt(empty, np.zeros((128, 128), np.uint8))
    assert set(np.unique(mask)) == {Class.BACKGROUND, Class.DEFECT}
    assert image.min() < -0.3 < 0.3 < image.max()
    assert np.abs(image[mask == Class.BACKGROUND]).max() <= 0.4


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:96, :96]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def test_scores_that_forgive_the_border() -> None:
    """The same discs, drawn 1 px wider by the one than by the other."""
    label, mask = np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8)
    for x, y, radius in ((20, 20, 8), (60, 20, 8), (40, 60, 12)):
        label[disc(x, y, radius)] = Class.SKYRMION
        mask[disc(x, y, radius + 1)] = Class.SKYRMION
    figures = Scores([score_image("a", mask, label)]).figures()
    assert figures["skyrmion_iou"] < 0.85
    assert figures["skyrmion_iou_off_rim"] == 1
    assert figures["radius_bias_px"] == pytest.approx(1, abs=0.1)
    assert (figures["skyrmion_recall"], figures["skyrmion_precision"] < 0.85) == (1, True)
    assert figures["object_f1_by_distance"] == 1


@pytest.mark.parametrize(
    ("shift", "by_iou", "by_distance"),
    [(0, 1, 1), (3, 0, 1), (5, 0, 0)],  # a disc of radius 4 that is found beside its label
)
def test_objects_are_matched_by_iou_and_by_distance(shift: int, by_iou: float, by_distance: float) -> None:
    label, mask = np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8)
    label[disc(40, 40, 4)] = mask[disc(40 + shift, 40, 4)] = Class.SKYRMION
    figures = Scores([score_image("a", mask, label)]).figures()
    assert (figures["object_f1"], figures["object_f1_by_distance"]) == (by_iou, by_distance)


def stripes() -> np.ndarray:
    mask = np.zeros((96, 96), np.uint8)
    mask[:, 8:96:16] = mask[:, 9:96:16] = mask[:, 10:96:16] = Class.SKYRMION
    return mask


def test_the_state_of_a_film() -> None:
    empty, few, maze, patterned = (np.zeros((96, 96), np.uint8) for _ in range(4))
    few[disc(40, 40, 8)] = Class.SKYRMION
    many = np.zeros((96, 96), np.uint8)
    for x in range(8, 96, 16):
        for y in range(8, 96, 16):
            many[disc(x, y, 4)] = Class.SKYRMION
    maze[stripes() > 0] = Class.SKYRMION
    maze[48:51] = Class.SKYRMION
    patterned[disc(40, 40, 8)], patterned[:10] = Class.SKYRMION, Class.OUTSIDE
    found = [state_of(mask) for mask in (empty, few, many, stripes(), maze, patterned)]
    assert found == ["empty", "few", "many", "stripes", "maze", "patterned"]


def test_figures_over_sources_are_not_those_of_the_largest() -> None:
    """One source with a hundred images that are right, one with a single image that is wrong."""
    label, empty = np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8)
    label[disc(40, 40, 8)] = Class.SKYRMION
    right = [score_image(f"{k}", label, label, "long") for k in range(99)]
    scores = Scores([*right, score_image("x", empty, label, "single")])
    assert scores.figures()["skyrmion_iou"] == pytest.approx(0.99)
    assert scores.over_sources()["mean"]["skyrmion_iou"] == 0.5
    assert scores.over_sources()["sd"]["skyrmion_iou"] == 0.5


def test_evaluate_writes_its_figures(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, path = trained
    arguments = ["evaluate", "--images", str(data / "images"), "--labels", str(data / "labels")]
    arguments += ["--table", str(data / "table.csv"), "--fold", "1", "--json", str(tmp_path / "scores.json")]
    assert main([*arguments, "--model", str(path), "--engine", "torch"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    names = {
        "skyrmion_iou", "skyrmion_mcc", "defect_iou", "object_precision", "object_recall", "object_f1", "count_mape",
        "count_median_ape",
    }  # fmt: skip
    assert names <= set(scores)
    assert [entry["image"] for entry in scores["per_image"]] == ["1.png", "3.png", "5.png"]
    assert all(names <= set(entry) for entry in scores["per_image"])
    assert "skyrmion_iou" in capsys.readouterr().out
    # The figures that training stored are those of the file it wrote, but for what is done to a mask afterwards.
    assert scores["skyrmion_iou"] == pytest.approx(
        load_model(str(path)).training["validation"]["skyrmion_iou"], abs=2e-3
    )


def test_evaluate_tells_classes_sources_and_sureness(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = trained
    out, pictures = tmp_path / "scores.json", tmp_path / "pictures"
    arguments = ["evaluate", "--images", str(data / "images"), "--labels", str(data / "labels"), "--json", str(out)]
    assert main([*arguments, "--table", str(data / "table.csv"), "--plot", str(pictures)]) == 0
    scores = json.loads(out.read_text())
    assert set(scores["classes"]) == {"background", "skyrmion", "defect", "outside", "edge"}
    assert scores["classes"]["skyrmion"]["iou"] == scores["skyrmion_iou"]
    assert scores["classes"]["outside"]["labelled_px"] == 0
    assert list(scores["per_source"]) == ["0", "1", "2", "3", "4", "5"]
    assert 0 <= scores["ece"] < 0.2
    assert scores["average_precision"] > 0.9
    recall = scores["sureness"]["recall"]
    assert recall == sorted(recall)
    assert sum(scores["sureness"]["pixels"]) == 6 * 128 * 160
    for picture in ("sureness.png", "worst.png"):
        assert cv2.imread(str(pictures / picture)) is not None
    assert "MCC" in capsys.readouterr().out


def test_a_network_that_is_surer_than_right_has_a_calibration_error() -> None:
    label = np.zeros((100, 100), np.uint8)
    label[:, :60] = Class.SKYRMION  # 60 % of the pixels, claimed with 90 %
    probability = np.full(label.shape, 0.9, np.float32)
    sureness = Scores([score_image("x", label, label, "", probability)]).sureness()
    assert sureness is not None
    assert sureness["ece"] == pytest.approx(0.3, abs=0.01)
    assert sureness["average_precision"] == pytest.approx(0.6)


def test_harder_images(tmp_path: Path) -> None:
    data = write_labelled(tmp_path, n=1)
    pairs = read_labelled(data / "images", data / "labels")
    inverted, small, noisy = changed(pairs, invert=True), changed(pairs, zoom=0.75), changed(pairs, noise=20)
    np.testing.assert_array_equal(inverted[0].image, 255 - pairs[0].image)
    assert small[0].image.shape == small[0].mask.shape == (96, 120)
    difference = noisy[0].image.astype(float) - pairs[0].image
    assert difference.std() == pytest.approx(20, rel=0.1)


def test_the_shipped_model_knows_discs(tmp_path: Path) -> None:
    data = write_labelled(tmp_path / "data", n=2)
    out = tmp_path / "scores.json"
    arguments = ["evaluate", "--images", str(data / "images"), "--labels", str(data / "labels"), "--json", str(out)]
    figures = []
    for more in ([], ["--invert"]):
        assert main([*arguments, *more]) == 0
        figures.append(json.loads(out.read_text())["skyrmion_iou"])
    assert min(figures) > 0.8
    assert abs(figures[0] - figures[1]) < 0.05
