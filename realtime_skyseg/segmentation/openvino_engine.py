"""OpenVINO on the CPU, in bfloat16 where the processor has it and the model stands it, else in float32."""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from realtime_skyseg.errors import ParityError
from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.engine import check_parity
from realtime_skyseg.segmentation.model import Model

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
        self, model: Model, shape: tuple[int, int], threads: int | None = None, cache: Path | None = None
    ) -> None:
        core = openvino.Core()
        self.input: NDArray[np.float32] = np.zeros(shape, np.float32)
        self.device = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
        self._threads = threads or os.cpu_count() or 1
        fast = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        precisions = ["bfloat16", "float32"] if fast else ["float32"]
        key = "\n".join([model.sha256, _code(), str(shape), precisions[0], openvino.get_version(), self.device])
        cache = cache or Path(platformdirs.user_cache_dir("realtime_skyseg"))
        folder = cache / hashlib.sha256(key.encode()).hexdigest()[:24]
        if not (folder / "engine.json").is_file():
            self._build(core, model, precisions, key, folder)
        record = json.loads((folder / "engine.json").read_text())
        self.agreement, self.precision = float(record["agreement"]), str(record["precision"])
        self._load(core, core.read_model(folder / "engine.xml"), self.precision)

    def run(self) -> Mask:
        """See `Engine`."""
        self._request.infer()
        return self._output

    def _load(self, core: "openvino.Core", graph: "openvino.Model", precision: str) -> None:
        hints = {
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
        }
        self._request = core.compile_model(graph, "CPU", hints).create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(self.input[None, None], shared_memory=True))
        self._request.infer()  # the first call allocates
        self._output: Mask = self._request.get_output_tensor().data[0, 0]

    def _build(self, core: "openvino.Core", model: Model, precisions: list[str], key: str, folder: Path) -> None:
        """Build the graph; the first precision that passes the parity gate is kept."""
        import torch

        from realtime_skyseg.segmentation.network import MaskNet

        log.info("building the OpenVINO engine of model %s for %d x %d px", model.name, *self.input.shape)
        example = torch.zeros(1, 1, *self.input.shape)
        network = MaskNet(model.load_network()).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's export warns of its own parts
            graph = openvino.convert_model(torch.export.export(network, (example,)))

        def found(image: NDArray[np.float32]) -> Mask:
            self.input[...] = image
            return self.run().copy()

        for precision in precisions:
            self._load(core, graph, precision)
            try:
                agreement = check_parity(model, self.name, found, (self.input.shape[0], self.input.shape[1]))
                break
            except ParityError as error:
                if precision == precisions[-1]:
                    raise
                log.warning("%s is not exact enough for model %s: %s", precision, model.name, error)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two services may build at once: each in a folder of its own, and the first to rename wins.
        building = Path(tempfile.mkdtemp(dir=folder.parent))
        openvino.save_model(graph, building / "engine.xml", compress_to_fp16=False)
        record = {"agreement": agreement, "precision": precision, "key": key.splitlines()}
        (building / "engine.json").write_text(json.dumps(record))
        try:
            building.rename(folder)
        except OSError:
            shutil.rmtree(building)


def _code() -> str:
    """Hash of the code that makes the graph, so that a cached engine never outlives it."""
    files = [Path(__file__), Path(__file__).with_name("network.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
