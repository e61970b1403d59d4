"""TensorRT on an NVIDIA GPU: a strongly typed network from the ONNX graph, in half precision where the model stands it.

Written for TensorRT 10.12 and later and for 11. Memory and streams are torch's, which is there anyway.
"""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

import torch

from realtime_skyseg.errors import MissingExtraError, ModelError, SettingsError
from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.cache import cache_folder, cached
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.onnx_file import onnx_graph
from realtime_skyseg.segmentation.parity import GPU_PRECISIONS, first_exact
from realtime_skyseg.segmentation.torch_engine import CudaBuffers

try:
    import tensorrt as trt
except (ImportError, OSError) as error:  # OSError: the package is there, the vendor's libraries are not
    raise MissingExtraError(
        "engine 'tensorrt' needs the packages tensorrt, onnx and onnxscript: "
        f"pip install 'realtime_skyseg[tensorrt]', see docs/gpu.md ({error})"
    ) from error

log = logging.getLogger(__name__)


class _Log(trt.ILogger):  # type: ignore[misc]
    """TensorRT's messages in our log; it says why something failed here only."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.last_error = "no reason given"

    def log(self, severity: "trt.ILogger.Severity", msg: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.last_error = msg
            log.error("TensorRT: %s", msg)
        elif severity == trt.ILogger.Severity.WARNING:
            log.warning("TensorRT: %s", msg)
        else:
            log.debug("TensorRT: %s", msg)


#: TensorRT keeps one logger per process.
_LOG = _Log()


class TensorRtEngine:
    """`Engine` on TensorRT. Built once, which can take minutes, then read from a cache whose key is the model's
    hash, the code that makes the graph, the shape, the precision, the versions of TensorRT and torch, and the GPU. An
    engine in the cache that TensorRT refuses is built again.
    """

    name = "tensorrt"

    def __init__(self, model: Model, shape: tuple[int, int], cache: Path | None = None) -> None:
        if not torch.cuda.is_available():
            raise SettingsError(
                f"engine 'tensorrt' needs an NVIDIA GPU, and torch {torch.__version__} finds none: "
                "install torch for CUDA and the driver, see docs/gpu.md"
            )
        self.device = torch.cuda.get_device_name()
        self._buffers = CudaBuffers(shape)
        self.input = self._buffers.input
        cache = cache or cache_folder()
        here = [trt.__version__, torch.__version__, self.device, str(torch.cuda.get_device_capability())]
        self._timings = cache / f"tensorrt-{_hash('|'.join(here))}.timings"
        key = [model.sha256, _code(), str(shape), GPU_PRECISIONS[0], *here]
        folder = cache / f"tensorrt-{_hash('|'.join(key))}"
        self.precision, self.agreement = cached(folder, self._read, lambda new: self._build(model, new, key))
        self.run()  # the first call allocates

    def run(self) -> Mask:
        """See `Engine`. Raises `ModelError` if TensorRT fails."""
        return self._buffers.run(self._launch)

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._buffers.stream.cuda_stream):
            raise ModelError(f"TensorRT cannot run the engine: {_LOG.last_error}")

    def _read(self, folder: Path) -> tuple[str, float]:
        record = json.loads((folder / "engine.json").read_text())
        self._load((folder / "engine.plan").read_bytes())
        return str(record["precision"]), float(record["agreement"])

    def _load(self, plan: bytes) -> None:
        try:
            self._runtime = trt.Runtime(_LOG)
        except TypeError as error:  # its way to say that the driver is too old, for example
            raise ModelError(f"TensorRT {trt.__version__} cannot start: {_LOG.last_error}") from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ModelError(f"TensorRT {trt.__version__} cannot load the engine: {_LOG.last_error}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ModelError(f"TensorRT cannot prepare the engine: {_LOG.last_error}")
        borders = (("image", self._buffers.image, trt.float32), ("mask", self._buffers.mask, trt.uint8))
        for name, tensor, kind in borders:
            found = tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name)
            if found != (tuple(tensor.shape), kind):
                raise ModelError(f"TensorRT engine: tensor {name} is {found}; allowed: {tuple(tensor.shape)}, {kind}")
            self._context.set_tensor_address(name, tensor.data_ptr())

    def _build(self, model: Model, folder: Path, key: list[str]) -> None:
        log.info("building the TensorRT engine of model %s for %d x %d px", model.name, *self.input.shape)
        height, width = self.input.shape
        plan = b""

        def load(precision: str) -> None:
            nonlocal plan
            plan = build_plan(onnx_graph(model, (height, width), precision), self._timings)
            self._load(plan)

        precision, agreement = first_exact(model, self.name, GPU_PRECISIONS, load, self)
        (folder / "engine.plan").write_bytes(plan)
        (folder / "engine.json").write_text(json.dumps({"agreement": agreement, "precision": precision, "key": key}))


def build_plan(graph: bytes, timings: Path) -> bytes:
    """Build TensorRT's serialised engine ("plan") from a serialised ONNX model.

    Args:
        graph: the model; its types are those of the engine.
        timings: file that keeps how long TensorRT's kernels took, which makes the next build faster.

    Raises:
        ModelError: TensorRT refuses the graph or finds no way to run it.
    """
    try:
        builder = trt.Builder(_LOG)
    except TypeError as error:  # its way to say that the driver is too old, for example
        raise ModelError(f"TensorRT {trt.__version__} cannot start: {_LOG.last_error}") from error
    # 11 knows strongly typed networks only and ignores the flag; 10 needs it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _LOG)
    if not parser.parse(graph):
        errors = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise ModelError(f"TensorRT {trt.__version__} cannot read the network's ONNX graph: {errors}")
    config = builder.create_builder_config()
    # A file of timings that is broken or of another GPU is refused here, and replaced below.
    known = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
        known = config.create_timing_cache(b"")
        config.set_timing_cache(known, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(f"TensorRT {trt.__version__} cannot build the engine: {_LOG.last_error}")
    _replace(timings, bytes(known.serialize()))
    return bytes(plan)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(name).replace(path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _code() -> str:
    """Hash of the code that makes the graph, so that a cached engine never outlives it."""
    files = [Path(__file__).with_name(name) for name in ("onnx_file.py", "network.py", "torch_engine.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in [Path(__file__), *files])).hexdigest()
