"""The GPU engines: what can be checked without a GPU, and what is left to a computer that has one (marked `gpu`)."""

import ast
import ctypes
import importlib
import importlib.util
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from test_segmentation import discs

from realtime_skyseg.errors import MissingExtraError, ModelError, ParityError
from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation import Engine, Model, choice, load_model, open_engine, scale
from realtime_skyseg.segmentation.cache import cached
from realtime_skyseg.segmentation.onnx_file import onnx_graph
from realtime_skyseg.segmentation.parity import first_exact
from realtime_skyseg.segmentation.torch_engine import TorchEngine

SOURCE = Path(choice.__file__).with_name("tensorrt_engine.py")
SHAPE = (512, 672)


def agreement(first: Engine, second: Engine) -> float:
    """On dark and on bright discs, one after the other, as the buffers are used again."""
    height, width = first.input.shape
    image = scale(np.tile(discs(), (3, 3))[:height, :width])
    shares = []
    for frame in (image, -image):
        first.input[...] = second.input[...] = frame
        shares.append(float(np.mean(first.run().copy() == second.run())))
    return min(shares)


# --- the cache of engines ---


class Builder:
    """Writes engines that are numbers, and counts them."""

    def __init__(self) -> None:
        self.built = 0

    def build(self, folder: Path) -> None:
        self.built += 1
        (folder / "engine").write_text(str(self.built))

    @staticmethod
    def load(folder: Path) -> int:
        return int((folder / "engine").read_text())


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    builder = Builder()
    assert [cached(tmp_path / "new" / "a", builder.load, builder.build) for _ in range(3)] == [1, 1, 1]
    assert cached(tmp_path / "new" / "b", builder.load, builder.build) == 2


DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    ("another version's", lambda folder: (folder / "engine").write_text("ftrt")),
    ("cut off", lambda folder: (folder / "engine").write_text("")),
    ("gone", lambda folder: (folder / "engine").unlink()),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE, ids=[name for name, _ in DAMAGE])
def test_an_engine_that_does_not_load_is_built_again(
    name: str, damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    builder, folder = Builder(), tmp_path / "a"
    cached(folder, builder.load, builder.build)
    damage(folder)
    assert cached(folder, builder.load, builder.build) == 2
    assert "cannot be used and is built again" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_of_two_that_build_at_once_the_first_wins(tmp_path: Path) -> None:
    builder, folder = Builder(), tmp_path / "a"

    def slow(building: Path) -> None:
        cached(folder, builder.load, builder.build)  # the other service
        builder.build(building)

    assert cached(folder, builder.load, slow) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def refuse(_: Path) -> None:
        raise ModelError("no way to run it")

    with pytest.raises(ModelError, match="no way"):
        cached(tmp_path / "a", Builder.load, refuse)
    assert not list(tmp_path.iterdir())


# --- precision ---


class Coarse(TorchEngine):
    """torch on the CPU, whose masks are worthless in half precision."""

    def load(self, precision: str) -> None:
        self.loaded = precision

    def run(self) -> Mask:
        mask = super().run()
        return mask if getattr(self, "loaded", "float32") in self.exact_in else np.ones_like(mask)

    exact_in: tuple[str, ...] = ("float32",)


def test_float32_where_half_is_not_exact_enough(caplog: pytest.LogCaptureFixture) -> None:
    model = load_model("compact")
    coarse = Coarse(model, (64, 64))
    found = first_exact(model, "coarse", ("float16", "float32"), coarse.load, coarse)
    assert found == ("float32", 1.0)
    assert "float16 is not exact enough for model compact" in caplog.text
    assert not coarse.input.any()


def test_no_precision_is_exact_enough() -> None:
    model = load_model("compact")
    coarse = Coarse(model, (64, 64))
    coarse.exact_in = ()
    with pytest.raises(ParityError):
        first_exact(model, "coarse", ("float16", "float32"), coarse.load, coarse)
    assert coarse.loaded == "float32"


# --- the choice ---

needs_no_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="needs a computer without TensorRT"
)


@needs_no_tensorrt
def test_tensorrt_that_is_set_but_missing_is_an_error() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'realtime_skyseg\[tensorrt\]', see docs/gpu\.md"):
        open_engine(load_model("compact"), (64, 64), "tensorrt")


@needs_no_tensorrt
def test_auto_says_why_it_takes_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a computer whose TensorRT is broken."""
    there = [("tensorrt", "auto found a GPU and TensorRT"), ("openvino", "auto found no other engine")]
    monkeypatch.setattr(choice, "_candidates", lambda wanted: there)
    with caplog.at_level(logging.INFO):
        assert open_engine(load_model("compact"), (64, 64), "auto", cache=tmp_path).name == "openvino"
    assert "engine tensorrt cannot be used, the next is tried: engine 'tensorrt' needs the packages" in caplog.text
    assert "engine openvino: auto found no other engine" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a computer without a CUDA GPU")
def test_auto_without_a_gpu() -> None:
    assert choice._candidates("auto") == [("openvino", "auto found no CUDA GPU")]
    assert choice._candidates("torch") == [("torch", "as set")]


# --- TensorRT's names ---


def names_of_tensorrt(source: str) -> set[str]:
    """All that a module asks of `trt`: attributes, keywords and overridden methods, followed through assignments."""
    tree = ast.parse(source)
    ours = {"trt"}

    def is_trt(node: ast.AST | None) -> bool:
        while node is not None:
            if isinstance(node, ast.expr) and ast.unparse(node) in ours:
                return True
            node = getattr(node, "func", None) or getattr(node, "value", None)
            node = node if isinstance(node, ast.AST) else None
        return False

    before = 0
    while len(ours) > before:
        before = len(ours)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and is_trt(node.value):
                ours.update(ast.unparse(target) for target in node.targets)
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_trt(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and is_trt(node.func):
            names.update(keyword.arg for keyword in node.keywords if keyword.arg)
        elif isinstance(node, ast.ClassDef) and any(map(is_trt, node.bases)):
            names.update(part.name for part in node.body if isinstance(part, ast.FunctionDef))
    return {name for name in names if not name.startswith("__")}


def test_names_are_followed_through_assignments() -> None:
    source = "class A(trt.B):\n  def c(self): self._d = trt.E(f).g(h=1)\n  def i(self): self._d.j()\nk = other.l\n"
    assert names_of_tensorrt(source) == {"B", "c", "E", "g", "h", "i", "j"}


@pytest.fixture(scope="module")
def binding(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The compiled part of TensorRT's Python package, which can be had without the vendor's libraries."""
    folder = tmp_path_factory.mktemp("binding")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "tensorrt-cu13-bindings", "-d", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("pip download tensorrt-cu13-bindings took too long")
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"pip download tensorrt-cu13-bindings: {done.stderr.strip().splitlines()[-1:]}")
    assert wheels[0].name.split("-")[1] >= "11"
    with zipfile.ZipFile(wheels[0]) as wheel:
        (compiled,) = [name for name in wheel.namelist() if name.endswith(("tensorrt.so", "tensorrt.pyd"))]
        return wheel.read(compiled)


def test_every_name_is_in_tensorrt_11(binding: bytes) -> None:
    """Linkers store a text that ends another only once, so a name is found by its end; C ends it with a zero."""
    names = names_of_tensorrt(SOURCE.read_text(encoding="utf-8"))
    assert {"execute_async_v3", "deserialize_cuda_engine", "STRONGLY_TYPED", "set_timing_cache"} <= names
    assert len(names) > 25
    assert not [name for name in names if f"{name}\0".encode() not in binding]


@pytest.mark.parametrize("name", ["FP16", "execute_async_v2", "build_engine", "max_workspace_size"])
def test_names_that_11_removed_are_not_found(name: str, binding: bytes) -> None:
    assert f"{name}\0".encode() not in binding


# --- the engine, with a stand-in for TensorRT ---


class Memory:
    """`IHostMemory`: readable as bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content


class StandIn:
    """What the engine asks of TensorRT 11, so far as its plan is the ONNX graph, run by ONNX Runtime on the CPU.

    A plan of another `__version__` is refused, as TensorRT does.
    """

    float32, uint8 = "tensor(float)", "tensor(uint8)"

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 0

    def __init__(self) -> None:
        self.__version__ = "11.4"
        self.gpu = "a GPU"
        self.built: list[bytes] = []
        self.timings: list[bytes] = []
        self.refuses = b""

    def Builder(self, log: Any) -> Any:
        def create_network(flags: int) -> SimpleNamespace:
            assert flags == 1
            return SimpleNamespace(graph=b"")

        def build_serialized_network(network: SimpleNamespace, config: Any) -> Memory | None:
            if self.refuses and self.refuses in network.graph:
                log.log(self.ILogger.Severity.ERROR, "could not find any implementation")
                return None
            self.built.append(network.graph)
            return Memory(self.__version__.encode() + network.graph)

        def create_timing_cache(content: bytes) -> Any:
            self.timings.append(content)
            known = content.startswith(b"timings") or not content
            return SimpleNamespace(serialize=lambda: Memory(b"timings" + content)) if known else None

        def create_builder_config() -> SimpleNamespace:
            return SimpleNamespace(
                create_timing_cache=create_timing_cache, set_timing_cache=lambda cache, ignore_mismatch: True
            )

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=create_builder_config,
            build_serialized_network=build_serialized_network,
        )

    def OnnxParser(self, network: SimpleNamespace, log: Any) -> SimpleNamespace:
        def parse(graph: bytes) -> bool:
            network.graph = graph
            return self.refuses != b"parse"

        return SimpleNamespace(parse=parse, num_errors=1, get_error=lambda number: "unsupported operator")

    def Runtime(self, log: Any) -> SimpleNamespace:
        def deserialize_cuda_engine(plan: bytes) -> SimpleNamespace | None:
            version = self.__version__.encode()
            return self._engine(plan[len(version) :]) if plan.startswith(version) else None

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)

    def _engine(self, graph: bytes) -> SimpleNamespace:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (image,), (mask,) = session.get_inputs(), session.get_outputs()
        addresses: dict[str, int] = {}

        def execute_async_v3(stream: int) -> bool:
            assert stream == 4711
            height, width = image.shape[2:]
            pixels = (ctypes.c_float * (height * width)).from_address(addresses["image"])
            found = session.run(None, {"image": np.frombuffer(pixels, np.float32).reshape(image.shape)})[0]
            ctypes.memmove(addresses["mask"], found.ctypes.data, found.nbytes)
            return True

        borders = {"image": image, "mask": mask}
        return SimpleNamespace(
            get_tensor_shape=lambda name: borders[name].shape,
            get_tensor_dtype=lambda name: borders[name].type,
            create_execution_context=lambda: SimpleNamespace(
                set_tensor_address=addresses.__setitem__, execute_async_v3=execute_async_v3
            ),
        )


class HostBuffers:
    """`CudaBuffers` without a GPU."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.stream = SimpleNamespace(cuda_stream=4711)
        self.image = torch.zeros((1, 1, *shape))
        self.mask = torch.zeros((1, 1, *shape), dtype=torch.uint8)
        self.input = self.image[0, 0].numpy()

    def run(self, launch: Callable[[], object]) -> Mask:
        launch()
        mask: Mask = self.mask[0, 0].numpy()
        return mask


_exported: dict[tuple[object, ...], bytes] = {}


def exported(model: Model, shape: tuple[int, int], precision: str) -> bytes:
    """`onnx_graph`, which takes seconds, once for each graph."""
    key = model.sha256, shape, precision
    if key not in _exported:
        _exported[key] = onnx_graph(model, shape, precision)
    return _exported[key]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """`realtime_skyseg.segmentation.tensorrt_engine` on the stand-in."""
    there = StandIn()
    monkeypatch.setitem(sys.modules, "tensorrt", there)
    monkeypatch.delitem(sys.modules, "realtime_skyseg.segmentation.tensorrt_engine", raising=False)
    module = importlib.import_module("realtime_skyseg.segmentation.tensorrt_engine")
    cuda = SimpleNamespace(
        is_available=lambda: True, get_device_name=lambda: there.gpu, get_device_capability=lambda: (9, 0)
    )
    monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=cuda, __version__=torch.__version__))
    monkeypatch.setattr(module, "CudaBuffers", HostBuffers)
    monkeypatch.setattr(module, "onnx_graph", exported)
    yield there
    del sys.modules["realtime_skyseg.segmentation.tensorrt_engine"]


def test_the_engine_builds_stores_and_reads(stand_in: StandIn, tmp_path: Path) -> None:
    model = load_model("compact")
    for _ in range(3):
        found = open_engine(model, (144, 208), "tensorrt", cache=tmp_path)
        assert (found.name, found.device, found.precision) == ("tensorrt", "a GPU", "float16")
        assert 0.995 <= found.agreement < 1
        assert agreement(found, TorchEngine(model, (144, 208))) >= 0.995
    assert len(stand_in.built) == 1
    (record,) = tmp_path.glob("tensorrt-*/engine.json")
    key = json.loads(record.read_text())["key"]
    assert [key[0], *key[2:]] == [model.sha256, "(144, 208)", "float16", "11.4", torch.__version__, "a GPU", "(9, 0)"]


CHANGES: dict[str, Callable[[StandIn, Path], object]] = {
    "another TensorRT": lambda stand_in, plan: setattr(stand_in, "__version__", "11.5"),
    "another GPU": lambda stand_in, plan: setattr(stand_in, "gpu", "another GPU"),
    "a plan of another TensorRT": lambda stand_in, plan: plan.write_bytes(b"10.0" + plan.read_bytes()[4:]),
    "no plan": lambda stand_in, plan: plan.unlink(),
    "a broken record": lambda stand_in, plan: plan.with_name("engine.json").write_text("{"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_engine_is_built_again_after(change: str, stand_in: StandIn, tmp_path: Path) -> None:
    model = load_model("compact")
    open_engine(model, (32, 32), "tensorrt", cache=tmp_path)
    (plan,) = tmp_path.glob("tensorrt-*/engine.plan")
    CHANGES[change](stand_in, plan)
    assert open_engine(model, (32, 32), "tensorrt", cache=tmp_path).agreement >= 0.995
    assert len(stand_in.built) == 2


def test_timings_are_kept_and_broken_ones_replaced(stand_in: StandIn, tmp_path: Path) -> None:
    model = load_model("compact")
    for shape in ((32, 32), (80, 112)):
        open_engine(model, shape, "tensorrt", cache=tmp_path)
    (timings,) = tmp_path.glob("tensorrt-*.timings")
    timings.write_bytes(b"broken")
    for plan in tmp_path.glob("*/engine.plan"):
        plan.unlink()
    open_engine(model, (32, 32), "tensorrt", cache=tmp_path)
    assert stand_in.timings == [b"", b"timings", b"broken", b""]
    assert timings.read_bytes() == b"timings"


@pytest.mark.parametrize(
    ("refuses", "sentence"), [(b"parse", "unsupported operator"), (b"mask", "could not find any implementation")]
)
def test_what_tensorrt_refuses_is_told(refuses: bytes, sentence: str, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.refuses = refuses
    with pytest.raises(ModelError, match=rf"TensorRT 11\.4 cannot .*{sentence}"):
        open_engine(load_model("compact"), (32, 32), "tensorrt", cache=tmp_path)
    assert not list(tmp_path.iterdir())


# --- on a GPU ---


@pytest.fixture
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU and torch for CUDA")


@pytest.fixture
def tensorrt(gpu: None) -> None:
    pytest.importorskip("tensorrt", reason="needs TensorRT", exc_type=ImportError)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("engines")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["compact", "accurate"])
def test_torch_on_the_gpu(name: str, gpu: None) -> None:
    model = load_model(name)
    found = open_engine(model, SHAPE, "torch")
    assert (found.name, found.precision) == ("torch", "float16")
    assert found.agreement >= 0.995
    assert agreement(found, TorchEngine(model, SHAPE)) >= 0.995


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["compact", "accurate"])
def test_tensorrt_on_the_gpu(name: str, tensorrt: None, cache: Path) -> None:
    model = load_model(name)
    found = open_engine(model, SHAPE, "tensorrt", cache=cache)
    assert (found.name, found.precision) == ("tensorrt", "float16")
    assert found.agreement >= 0.995
    assert agreement(found, TorchEngine(model, SHAPE)) >= 0.995


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", ["torch", "tensorrt"])
def test_a_frame_makes_torch_wait_nowhere_else(name: Any, gpu: None, cache: Path) -> None:
    """Torch's watch for hidden waits does not count the one at the end, which is asked for by name."""
    if name == "tensorrt":
        pytest.importorskip("tensorrt", reason="needs TensorRT", exc_type=ImportError)
    found = open_engine(load_model("compact"), SHAPE, name, cache=cache)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_auto_takes_tensorrt(tensorrt: None, cache: Path) -> None:
    assert open_engine(load_model("compact"), SHAPE, "auto", cache=cache).name == "tensorrt"


@pytest.mark.gpu
def test_the_second_start_reads_the_cache(tensorrt: None, cache: Path) -> None:
    model = load_model("compact")
    first = open_engine(model, SHAPE, "tensorrt", cache=cache)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    second = open_engine(model, SHAPE, "tensorrt", cache=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == files
    assert second.agreement == first.agreement
    assert agreement(first, second) == 1.0


@pytest.mark.gpu
@pytest.mark.parametrize("damage", [b"", b"not a plan", b"ftrt" + bytes(5000)], ids=["empty", "text", "other version"])
def test_a_plan_that_tensorrt_refuses_is_built_again(
    damage: bytes, tensorrt: None, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model("compact")
    open_engine(model, (128, 128), "tensorrt", cache=cache)
    records = {path: json.loads(path.read_text()) for path in cache.glob("*/engine.json")}
    (plan,) = [path.with_name("engine.plan") for path, record in records.items() if "(128, 128)" in record["key"]]
    plan.write_bytes(damage)
    for timings in cache.glob("*.timings"):
        timings.write_bytes(damage)
    found = open_engine(model, (128, 128), "tensorrt", cache=cache)
    assert "is built again" in caplog.text
    assert found.agreement >= 0.995
    assert plan.stat().st_size > 10_000
