"""Networks in 8 bits: made and used where they are asked for, and belong to the weights beside them."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

import realtime_skyseg as sky
from realtime_skyseg.config import EngineChoice
from realtime_skyseg.errors import MissingExtraError, ModelError, ParityError
from realtime_skyseg.segmentation import load_model, open_engine
from realtime_skyseg.segmentation.openvino_engine import openvino  # that it sends no statistics
from realtime_skyseg.segmentation.parity import MIN_AGREEMENT_INT8
from realtime_skyseg.segmentation.quantise import quantise

ACCURATE = load_model("accurate")


@pytest.mark.parametrize("shape", [(96, 128), (90, 250)])
def test_the_shipped_network_in_8_bits_at_any_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    for _ in ("built", "read from the cache"):
        engine = open_engine(ACCURATE, shape, "openvino-int8", cache=tmp_path)
        assert engine.precision == "int8"
        assert MIN_AGREEMENT_INT8 <= engine.agreement < 1
        assert engine.input.shape == ACCURATE.shape.padded(shape)


def dirt(seed: int) -> np.ndarray:
    """A saturated film: noise, and dirt that moved since the background was taken, each a bright and a dark half."""
    rng = np.random.default_rng(seed)
    image = rng.normal(128, 14, (256, 256))
    rows, columns = np.indices(image.shape)
    for y, x in rng.uniform(20, 236, (10, 2)):
        for shift_px, depth in ((3, 120), (-3, -120)):
            image += depth * np.exp(-((((rows - y) ** 2 + (columns - x - shift_px) ** 2) / 32) ** 2))
    return np.clip(image, 0, 255).astype(np.uint8)


def test_8_bits_count_no_more_dirt_than_float32() -> None:
    """With ranges averaged over the images, as NNCF has it by default, they counted twice as much."""
    counted = {}
    engines: list[EngineChoice] = ["torch", "openvino-int8"]
    for engine in engines:
        segmenter = sky.Segmenter.load("accurate", engine, min_area_px=20)
        counted[engine] = np.mean([len(segmenter(dirt(seed)).objects) for seed in range(6)])
    assert counted["openvino-int8"] <= counted["torch"] + 0.5


def test_8_bits_are_used_only_where_they_are_asked_for(tmp_path: Path) -> None:
    assert open_engine(ACCURATE, (64, 64), "openvino", cache=tmp_path).precision != "int8"


def test_a_graph_of_other_weights_is_refused(tmp_path: Path) -> None:
    shutil.copy(load_model("compact").path, tmp_path / "mine.safetensors")
    mine = load_model(str(tmp_path / "mine.safetensors"))
    with pytest.raises(ModelError, match=r"there is no '.*mine\.int8\.xml'; make it by skyseg quantise"):
        open_engine(mine, (64, 64), "openvino-int8", cache=tmp_path)
    for kind in (".xml", ".bin"):
        shutil.copy(ACCURATE.quantised.with_suffix(kind), tmp_path / f"mine.int8{kind}")
    with pytest.raises(ModelError, match=r"mine\.int8\.xml' was made of other weights"):
        open_engine(mine, (64, 64), "openvino-int8", cache=tmp_path)


def test_a_graph_that_fails_the_gate_is_refused(tmp_path: Path) -> None:
    shutil.copy(ACCURATE.path, tmp_path / "mine.safetensors")
    graph = openvino.Core().read_model(ACCURATE.quantised)
    weights = next(node for node in graph.get_ops() if node.output(0).get_element_type() == openvino.Type.i8)
    upside_down = openvino.opset13.constant(-np.clip(weights.data, -127, 127))
    weights.output(0).replace(upside_down.output(0))
    openvino.save_model(graph, tmp_path / "mine.int8.xml", compress_to_fp16=False)
    with pytest.raises(ParityError, match=r"allowed: 97\.5%"):
        open_engine(load_model(str(tmp_path / "mine.safetensors")), (64, 64), "openvino-int8", cache=tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("nncf") is not None, reason="nncf is installed")
def test_quantising_names_what_it_needs() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'realtime_skyseg\[quantise\]'"):
        quantise(ACCURATE, [np.zeros((64, 64), np.uint8)])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="needs nncf: the extra quantise")
def test_quantising(tmp_path: Path) -> None:
    shutil.copy(ACCURATE.path, tmp_path / "mine.safetensors")
    rng = np.random.default_rng(0)
    y, x = np.indices((128, 160))
    discs = ((y % 32 - 16) ** 2 + (x % 32 - 16) ** 2 < 60) * 45
    images = [np.clip(rng.normal(128, 10 + n, discs.shape) - discs, 0, 255).astype(np.uint8) for n in range(12)]
    model = load_model(str(tmp_path / "mine.safetensors"))
    agreement = quantise(model, images)
    assert MIN_AGREEMENT_INT8 <= agreement < 1
    assert open_engine(model, (96, 96), "openvino-int8", cache=tmp_path).precision == "int8"
