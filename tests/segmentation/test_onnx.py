"""The ONNX graph that TensorRT gets: what it computes, its types and operators. No GPU is needed."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from test_segmentation import discs

from realtime_skyseg.cli import main
from realtime_skyseg.errors import MissingExtraError
from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation import Model, load_model, scale
from realtime_skyseg.segmentation.model import save_model
from realtime_skyseg.segmentation.network import MaskNet, UNet
from realtime_skyseg.segmentation.onnx_file import onnx_graph
from realtime_skyseg.segmentation.parity import check_parity
from realtime_skyseg.segmentation.shape import NetworkShape
from realtime_skyseg.segmentation.torch_engine import folded

SHAPE = (192, 256)
LAB = NetworkShape(unshuffle=1, filters=3, depth=2, classes=3, kernel=8, activation="mish", up_multiplier=2)

#: Operators that the parser of TensorRT 10.15 takes in float16, from the table in its docs/operators.md; Mish, which
#: stands there too, is left out: earlier 10.x may not know it.
OPERATORS = {
    *("Add", "ArgMax", "Cast", "Concat", "Conv", "ConvTranspose", "DepthToSpace", "MaxPool", "Mul", "Pad", "Relu"),
    *("Reshape", "Resize", "Slice", "Softplus", "Tanh", "Transpose"),
}


@pytest.fixture(scope="module", params=["compact", "accurate", "lab"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The shipped models, and one of the lab's architecture with random weights and uneven batch normalisation."""
    if request.param != "lab":
        return load_model(request.param)
    torch.manual_seed(0)
    network = UNet(LAB)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values in (layer.weight.data, layer.running_var):
                values.uniform_(0.5, 1.5)
            for values in (layer.bias.data, layer.running_mean):
                values.uniform_(-0.5, 0.5)
    path = tmp_path_factory.mktemp("lab") / "lab.safetensors"
    save_model(network, path, {})
    return load_model(str(path))


@pytest.fixture(scope="module")
def graph(model: Model) -> onnx.ModelProto:
    return onnx.load_from_string(onnx_graph(model, SHAPE))


def types(graph: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor that a node makes, found by ONNX from the inputs and the operators."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    known = {value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.output]}
    return {name: known[name] for node in inferred.node for name in node.output}


def test_the_graph_computes_what_torch_does(model: Model, graph: onnx.ModelProto) -> None:
    """In ONNX Runtime, which rounds weights and borders to half, but may compute in float32 in between."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def found(image: np.ndarray) -> Mask:
        mask: Mask = session.run(["mask"], {"image": image[None, None]})[0][0, 0]
        return mask

    assert check_parity(model, "onnx", found, SHAPE) >= 0.995
    mask = found(scale(discs(*SHAPE)))
    assert (mask.shape, mask.dtype) == (SHAPE, np.uint8)


def test_half_precision_is_enough(model: Model) -> None:
    """Every layer rounded to half, as on a GPU: torch on the CPU does so too, slowly."""
    network = MaskNet(folded(model.load_network())).half()

    def found(image: np.ndarray) -> Mask:
        with torch.inference_mode():
            mask: Mask = network(torch.from_numpy(image)[None, None].half())[0, 0].numpy()
        return mask

    assert check_parity(model, "half", found, (80, 112)) >= 0.995


def test_half_inside_and_float32_at_the_border(graph: onnx.ModelProto) -> None:
    (image,), (mask,) = graph.graph.input, graph.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", TensorProto.FLOAT)
    assert (mask.name, mask.type.tensor_type.elem_type) == ("mask", TensorProto.UINT8)
    made_by = {name: node.op_type for node in graph.graph.node for name in node.output}
    others = sorted((made_by[name], kind) for name, kind in types(graph).items() if kind != TensorProto.FLOAT16)
    # ONNX counts classes in int64; they are half again before they move.
    assert others == [("ArgMax", TensorProto.INT64), ("Cast", TensorProto.UINT8)]
    readers = [node.op_type for node in graph.graph.node if "image" in node.input]
    assert readers == ["Cast"]


def test_weights_are_half(graph: onnx.ModelProto) -> None:
    """All but the factors of `Resize`, which ONNX wants in float32, and numbers of shapes."""
    factors = {node.input[2] for node in graph.graph.node if node.op_type == "Resize"}
    for weight in graph.graph.initializer:
        if weight.name in factors:
            assert onnx.numpy_helper.to_array(weight).tolist() == [1, 1, 2, 2]
        else:
            assert weight.data_type in (TensorProto.FLOAT16, TensorProto.INT64), weight.name
            assert weight.data_type == TensorProto.FLOAT16 or weight.dims[0] <= 8, weight.name
        assert not weight.external_data


def test_shapes_are_fixed(graph: onnx.ModelProto) -> None:
    tensors = [*graph.graph.input, *graph.graph.value_info, *graph.graph.output]
    assert len(tensors) > len(graph.graph.node)
    for tensor in tensors:
        assert all(side.WhichOneof("value") == "dim_value" for side in tensor.type.tensor_type.shape.dim), tensor.name
    for border in (graph.graph.input[0], graph.graph.output[0]):
        assert [side.dim_value for side in border.type.tensor_type.shape.dim] == [1, 1, *SHAPE]


def test_tensorrt_knows_the_operators(graph: onnx.ModelProto) -> None:
    assert {node.op_type for node in graph.graph.node} <= OPERATORS
    assert [(use.domain, use.version) for use in graph.opset_import] == [("", 20)]
    assert not graph.functions
    onnx.checker.check_model(graph, full_check=True)


def test_float32_is_float32_throughout() -> None:
    """The second choice, for models that half is not exact enough for; also shows that `types` sees a float32."""
    graph = onnx.load_from_string(onnx_graph(load_model("compact"), SHAPE, "float32"))
    assert set(types(graph).values()) == {TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8}


def test_folding_changes_no_logit(model: Model) -> None:
    image = torch.from_numpy(scale(discs(*SHAPE)))[None, None]
    with torch.inference_mode():
        as_trained, fused = model.load_network()(image), folded(model.load_network())(image)
    torch.testing.assert_close(fused, as_trained, rtol=1e-3, atol=1e-3)


def test_a_missing_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'realtime_skyseg\[onnx\]'"):
        onnx_graph(load_model("compact"), SHAPE)


def test_export_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The size is enlarged to what the network takes."""
    out = tmp_path / "mine.onnx"
    assert main(["export", "compact", "--engine", "onnx", "--size", "60x70", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: image (1, 1, 64, 80) float32 -> mask uint8, float16 inside")
    assert not printed.err
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 1, 64, 80]


WRONG = [
    # arguments, what the sentence says
    (["--engine", "onnx", "--size", "512"], "--size '512': allowed: HEIGHTxWIDTH"),
    (["--engine", "onnx", "--size", "8x9000"], "--size '8x9000': allowed"),
    (["--engine", "torch", "--out", "a.plan"], "--out 'a.plan': allowed with --engine onnx"),
    (["--engine", "onnx", "--size", "64x64", "--out", "no/such/folder.onnx"], "cannot be written"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_wrong_use_of_export(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "compact", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_export_builds_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "compact", "--engine", "openvino", "--size", "64x64"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("compact for 64x64 px: openvino on ")
    assert "realtime_skyseg" in printed
    assert "agrees with torch float32 on 9" in printed or "on 100" in printed
