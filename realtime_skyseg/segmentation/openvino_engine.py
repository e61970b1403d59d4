"""OpenVINO on the CPU: in 8 bits where the model has such a graph, else in bfloat16 where the processor has it and the
model stands it, else in float32.
"""

import hashlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import ModelError
from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.cache import cache_folder, cached
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.parity import first_exact

# OpenVINO sends usage statistics from its import on unless this package is absent. A lab PC is often offline,
# and nobody asked its owner.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

log = logging.getLogger(__name__)


class OpenVinoEngine:
    """`Engine` on OpenVINO. Built from the torch model once, then read from a cache whose key is the model's hash,
    the code that makes the graph, the shape, the precision, OpenVINO's version and the processor's name; a cached
    start needs no torch.
    """

    name = "openvino"

    def __init__(
        self,
        model: Model,
        shape: tuple[int, int],
        threads: int | None = None,
        cache: Path | None = None,
        int8: bool = False,
    ) -> None:
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # a cached file that is cut short would end the process
        self.input: NDArray[np.float32] = np.zeros(shape, np.float32)
        self.device = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
        self._threads = threads or os.cpu_count() or 1
        self._widest = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        precisions = ["bfloat16", "float32"] if self._widest == "bf16" else ["float32"]
        weights = model.sha256
        if int8:
            _quantised(core, model)  # before the cache: that it is there, and belongs to the weights
            precisions = ["int8"]
            weights += _hash(model.quantised, model.quantised.with_suffix(".bin"))
        key = "\n".join([weights, _code(), str(shape), precisions[0], openvino.get_version(), self.device])
        folder = (cache or cache_folder()) / hashlib.sha256(key.encode()).hexdigest()[:24]
        self.precision, self.agreement = cached(
            folder, lambda built: self._read(core, built), lambda new: self._build(core, model, precisions, key, new)
        )

    def run(self) -> Mask:
        """See `Engine`."""
        self._request.infer()
        return self._output

    def _read(self, core: "openvino.Core", folder: Path) -> tuple[str, float]:
        record = json.loads((folder / "engine.json").read_text())
        # What a power cut left of these files might load, and be wrong.
        if _digests(folder) != record["sha256"]:
            raise ModelError(f"the engine in '{folder}' is damaged")
        try:
            self._load(core, core.read_model(folder / "engine.xml"), record["precision"])
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load the engine in '{folder}': {error}") from error
        return str(record["precision"]), float(record["agreement"])

    def _load(self, core: "openvino.Core", graph: "openvino.Model", precision: str) -> None:
        hints = {
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32", "int8": self._widest}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
        }
        self._request = core.compile_model(graph, "CPU", hints).create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(self.input[None, None], shared_memory=True))
        self._request.infer()  # the first call allocates
        self._output: Mask = self._request.get_output_tensor().data[0, 0]

    def _build(self, core: "openvino.Core", model: Model, precisions: list[str], key: str, folder: Path) -> None:
        """Build the graph; the first precision that passes the parity gate is kept."""
        height, width = self.input.shape
        log.info("building the OpenVINO engine of model %s for %d x %d px", model.name, height, width)
        graphs: dict[str, openvino.Model] = {}

        def load(precision: str) -> None:
            if precision == "int8":
                graphs[precision] = _quantised(core, model)
                graphs[precision].reshape([1, 1, height, width])
            else:
                graphs[precision] = graph_of(model, (height, width))
            self._load(core, graphs[precision], precision)

        precision, agreement = first_exact(model, self.name, precisions, load, self)
        openvino.save_model(graphs[precision], folder / "engine.xml", compress_to_fp16=False)
        record = {
            "agreement": agreement, "precision": precision, "key": key.splitlines(), "sha256": _digests(folder)
        }  # fmt: skip
        (folder / "engine.json").write_text(json.dumps(record))


def capabilities() -> list[str]:
    """What arithmetic OpenVINO has for this processor."""
    return sorted(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def graph_of(model: Model, shape: tuple[int, int] | None) -> "openvino.Model":
    """The network, image (1, 1, height, width) float32 -> mask of that shape, uint8.

    Args:
        model: the model.
        shape: (height, width), multiples of the network's; None: any such, to be fixed by `reshape`.
    """
    import torch

    from realtime_skyseg.segmentation.network import MaskNet

    dynamic, fixed = None, shape
    if shape is None:
        step = model.shape.multiple
        sides = [step * torch.export.Dim(name, min=2, max=8192 // step) for name in ("height", "width")]
        dynamic = {"image": {2: sides[0], 3: sides[1]}}
        shape = 16 * step, 20 * step
    network = MaskNet(model.load_network()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's export warns of its own parts
        program = torch.export.export(network, (torch.zeros(1, 1, *shape),), dynamic_shapes=dynamic)
        graph = openvino.convert_model(program)
    if fixed is not None:
        graph.reshape([1, 1, *fixed])  # the conversion leaves it open
    return graph


def _quantised(core: "openvino.Core", model: Model) -> "openvino.Model":
    """The model's graph in 8 bits, for images of any size. Raises `ModelError` where it has none of these weights."""
    if not model.quantised.is_file():
        raise ModelError(f"engine 'openvino-int8': there is no '{model.quantised}'; make it by skyseg quantise")
    graph = core.read_model(model.quantised)
    made_of = graph.get_rt_info(["skyseg", "model_sha256"]).astype(str) if graph.has_rt_info(["skyseg"]) else ""
    if made_of != model.sha256:
        raise ModelError(f"'{model.quantised}' was made of other weights than those in '{model.path}'; make it anew")
    return graph


def _digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("engine.xml", "engine.bin")]


def _code() -> str:
    """Hash of the code that makes the graph, so that a cached engine never outlives it."""
    return _hash(Path(__file__), Path(__file__).with_name("network.py"))


def _hash(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
