"""Guests: the lab's Keras models and binarisation by a threshold, as models like all others."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from scipy.signal import correlate2d
from test_segmentation import discs

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.errors import ModelError, SettingsError
from realtime_skyseg.records import Class
from realtime_skyseg.segmentation import load_model, open_engine, scale
from realtime_skyseg.segmentation.keras_file import import_keras
from realtime_skyseg.segmentation.reference import outputs

SMALL = ("skyrmion", "defect", "background")
YEAR_2023 = ("skyrmion", "background", "defect")


class KerasModel:
    """A .keras-like file with random weights, and what Keras computes with them, in plain numpy."""

    def __init__(self, filters: int, depth: int, kernel: int, multiplier: int, enlarged_first: bool = True) -> None:
        self.depth, self.enlarged_first = depth, enlarged_first
        self.layers: list[tuple[str, dict[str, Any], list[np.ndarray]]] = [("InputLayer", {}, [])]
        self._rng = np.random.default_rng(0)
        channels = 1
        for level in range(depth + 1):
            channels = self._block(channels, filters << level, kernel)
            if level < depth:
                self.layers.append(("MaxPooling2D", {}, []))
                self.layers.append(("Dropout", {}, []))
        for level in reversed(range(depth)):
            more = (filters << level) * multiplier
            self._layer("Conv2DTranspose", more, kernel, [(kernel, kernel, more, channels), (more,)])
            self.layers.append(("Concatenate", {}, []))
            channels = self._block(more + (filters << level), filters << level, kernel)
        self._layer("Conv2D", 3, 1, [(1, 1, channels, 3), (3,)])

    def _block(self, inputs: int, outputs: int, kernel: int) -> int:
        for channels in (inputs, outputs):
            self._layer("Conv2D", outputs, kernel, [(kernel, kernel, channels, outputs), (outputs,)])
            vectors = [self._rng.uniform(0.5, 1.5, outputs).astype(np.float32) for _ in range(4)]
            self.layers.append(("BatchNormalization", {"epsilon": 0.001}, vectors))
            self.layers.append(("MishLayer", {}, []))
        return outputs

    def _layer(self, kind: str, filters: int, kernel: int, shapes: list[tuple[int, ...]]) -> None:
        weights = [self._rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes]
        self.layers.append((kind, {"filters": filters, "kernel_size": [kernel, kernel]}, weights))

    def save(self, path: Path) -> Path:
        config, weights, seen, previous, skips = [], io.BytesIO(), {}, "", []
        with h5py.File(weights, "w") as file:
            for index, (kind, values, arrays) in enumerate(self.layers):
                name = f"some_{kind}_{index}"
                inputs = [previous] if previous else []
                if kind == "MaxPooling2D":
                    skips.append(previous)
                if kind == "Concatenate":
                    inputs = [previous, skips.pop()] if self.enlarged_first else [skips.pop(), previous]
                tensors = [
                    {"class_name": "__keras_tensor__", "config": {"keras_history": [one, 0, 0]}} for one in inputs
                ]
                nodes = [{"args": [tensors], "kwargs": {}}] if tensors else []
                config.append({"class_name": kind, "config": {"name": name, **values}, "inbound_nodes": nodes})
                group = {"Conv2D": "conv2d", "Conv2DTranspose": "conv2d_transpose"}.get(kind, "batch_normalization")
                if arrays:
                    number = seen.get(group, 0)
                    for place, array in enumerate(arrays):
                        file[f"layers/{group}{f'_{number}' if number else ''}/vars/{place}"] = array
                    seen[group] = number + 1
                previous = name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps({"config": {"layers": config}}))
            archive.writestr("model.weights.h5", weights.getvalue())
        return path

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(height, width) -> logits (height, width, 3)."""
        x, skips = image[..., None].astype(np.float64), []
        for kind, _, weights in self.layers:
            match kind:
                case "Conv2D":
                    x = self._conv(x, *weights)
                case "BatchNormalization":
                    gamma, beta, mean, variance = weights
                    x = (x - mean) / np.sqrt(variance + 0.001) * gamma + beta
                case "MishLayer":
                    x = x * np.tanh(np.log1p(np.exp(x)))
                case "MaxPooling2D":
                    skips.append(x)
                    x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))
                case "Conv2DTranspose":
                    x = self._transposed(x, *weights)
                case "Concatenate":
                    x = np.concatenate([x, skips.pop()] if self.enlarged_first else [skips.pop(), x], -1)
        return x

    @staticmethod
    def _conv(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """TensorFlow's padding `same`: the odd pixel goes below and to the right."""
        side = kernel.shape[0]
        padded = np.pad(x, [((side - 1) // 2, side // 2)] * 2 + [(0, 0)])
        outputs = [
            sum(correlate2d(padded[..., i], kernel[:, :, i, o], "valid") for i in range(kernel.shape[2]))
            for o in range(kernel.shape[3])
        ]
        return np.stack(outputs, -1) + bias

    @staticmethod
    def _transposed(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """The adjoint of a convolution of stride 2 with padding `same` on the larger grid."""
        side, (height, width) = kernel.shape[0], x.shape[:2]
        full = np.zeros((2 * height + side, 2 * width + side, kernel.shape[2]))
        for i in range(height):
            for j in range(width):
                full[2 * i : 2 * i + side, 2 * j : 2 * j + side] += kernel @ x[i, j]
        before = (side - 2) // 2
        return full[before : before + 2 * height, before : before + 2 * width] + bias


ARCHITECTURES = [
    # filters, depth, kernel, multiplier, the transposed convolution's channels come first
    (2, 1, 3, 2, True),
    (2, 1, 8, 2, True),
    (2, 2, 3, 8, True),
    (2, 2, 4, 1, False),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("classes", [SMALL, YEAR_2023], ids=["2025", "2023"])
def test_an_imported_model_computes_what_keras_does(
    tmp_path: Path, architecture: tuple[int, int, int, int, bool], classes: tuple[str, ...]
) -> None:
    keras = KerasModel(*architecture)
    path = import_keras(keras.save(tmp_path / "lab.keras"), classes, tmp_path / "lab.safetensors")
    image = np.random.default_rng(1).random((24, 16)).astype(np.float32)
    logits = keras(image)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = outputs(load_model(str(path)))("probability", image)
    for index, name in enumerate(classes):
        np.testing.assert_allclose(found[Class[name.upper()]], expected[..., index], atol=1e-4)


def test_the_large_architecture(tmp_path: Path) -> None:
    """The lab's models of 2022 and 2023: 16 filters, depth 4, 6,278,659 parameters; every engine runs them."""
    path = KerasModel(16, 4, 3, 8).save(tmp_path / "large.keras")
    assert main(["import", str(path), "--classes", ",".join(YEAR_2023)]) == 0
    model = load_model(str(tmp_path / "large.safetensors"))
    assert model.scaling == "range"
    n_weights = sum(array.size for _, _, weights in KerasModel(16, 4, 3, 8).layers for array in weights)
    assert n_weights == 6_278_659
    engine = open_engine(model, (64, 96), "openvino", cache=tmp_path)
    # With random weights all classes are nearly as likely: bfloat16 does not pass the gate, so float32 is taken.
    assert engine.precision == "float32"
    assert engine.agreement >= 0.999


def test_check_refuses_what_run_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A difference image has no grey levels that the lab's model could take as they are."""
    path = import_keras(KerasModel(2, 1, 3, 2).save(tmp_path / "lab.keras"), SMALL, tmp_path / "lab.safetensors")
    (tmp_path / "run.yaml").write_text(
        f"camera: {{driver: replay}}\nanalysis: {{model: {path}}}\nprepare: {{drift: true}}\n"
        f"record: {{folder: {tmp_path}}}\nstream: {{address: 'tcp://127.0.0.1:0'}}\n"
    )
    sentences = []
    for command in ("check", "run"):
        assert main([command, str(tmp_path / "run.yaml")]) == 2
        sentences.append(capsys.readouterr().err.splitlines()[-1])
    assert sentences[0] == sentences[1]
    assert "takes grey levels as they are, which a difference image has not" in sentences[0]


def test_the_classes_must_fit(tmp_path: Path) -> None:
    path = KerasModel(2, 1, 3, 2).save(tmp_path / "lab.keras")
    with pytest.raises(
        SettingsError, match=r"skyrmion,hole,background does not fit the 3 outputs .* allowed: background"
    ):
        import_keras(path, ["skyrmion", "hole", "background"], tmp_path / "out.safetensors")


def not_a_zip(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n an old .h5 file")


def no_weights(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")


def another_network(path: Path) -> None:
    keras = KerasModel(2, 1, 3, 2)
    keras.layers.insert(5, ("LayerNormalization", {}, []))
    keras.save(path)


def an_activation_of_its_own(path: Path) -> None:
    keras = KerasModel(2, 1, 3, 2)
    keras.layers[1][1]["activation"] = "relu"
    keras.save(path)


def weights_of_another_size(path: Path) -> None:
    keras = KerasModel(2, 1, 3, 2)
    kind, values, arrays = keras.layers[1]
    keras.layers[1] = (kind, values, [array[..., :1] for array in arrays])
    keras.save(path)


BROKEN = [
    (not_a_zip, "cannot be read as a .keras file"),
    (no_weights, "cannot be read as a .keras file"),
    (another_network, "some_LayerNormalization_5 is LayerNormalization, where a Skyrmion U-Net of depth 1 has BatchN"),
    (an_activation_of_its_own, "some_Conv2D_1 is Conv2D 2 x 3, activation relu, where a Skyrmion U-Net of depth 1 has"),
    (weights_of_another_size, "its weights do not fit its layers"),
]


@pytest.mark.parametrize(("make", "sentence"), BROKEN, ids=[make.__name__ for make, _ in BROKEN])
def test_files_that_are_no_such_model(tmp_path: Path, make: Any, sentence: str) -> None:
    make(tmp_path / "lab.keras")
    with pytest.raises(ModelError, match=sentence):
        import_keras(tmp_path / "lab.keras", SMALL, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(tmp_path / "away.keras")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("bright", [False, True], ids=["dark", "bright"])
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_threshold_is_a_model(tmp_path: Path, bright: bool, engine: str) -> None:
    out = tmp_path / "threshold.safetensors"
    assert main(["threshold", str(out), "--level", "0.25", "--blur-px", "2", *(["--bright"] if bright else [])]) == 0
    segmenter = sky.Segmenter.load(str(out), engine)
    image = discs(contrast=45.0 if bright else -45.0)
    assert segmenter(image).count == 12
    assert segmenter(255 - image).count == 0


def test_a_threshold_agrees_with_blur_and_compare(tmp_path: Path) -> None:
    assert main(["threshold", str(tmp_path / "t.safetensors"), "--level", "0.3", "--blur-px", "1"]) == 0
    image = discs()
    found = sky.Segmenter.load(str(tmp_path / "t.safetensors"), "torch")(image).mask
    blurred = cv2.GaussianBlur(scale(image), (7, 7), 1, borderType=cv2.BORDER_CONSTANT)
    inside = np.s_[4:-4, 4:-4]
    np.testing.assert_array_equal(found[inside], (-blurred > 0.3)[inside])


@pytest.mark.parametrize("option", [["--level", "0"], ["--blur-px", "9"]])
def test_thresholds_out_of_range(tmp_path: Path, option: list[str]) -> None:
    assert main(["threshold", str(tmp_path / "t.safetensors"), *option]) == 2
