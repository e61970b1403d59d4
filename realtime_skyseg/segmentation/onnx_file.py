"""The network as an ONNX graph, in the form that TensorRT takes: its types are the precision of the engine."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from realtime_skyseg.errors import MissingExtraError, SettingsError
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.network import UNet
from realtime_skyseg.segmentation.torch_engine import folded

#: TensorRT 10.12 and 11 read operator sets 9 to 23 at least; 20 is what every exporter since torch 2.6 writes.
OPSET = 20


class _Borders(nn.Module):
    """(1, 1, height, width) float32 -> mask of the same shape, uint8; everything between in one float type.

    To TensorRT uint8 is a type of inputs and outputs only, which it converts from float alone. So, unlike in `MaskNet`,
    the class goes through the pixel shuffle as a float.
    """

    def __init__(self, network: UNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self._dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        shape = self.network.shape
        logits = self.network(image.to(self._dtype))
        batch, _, height, width = logits.shape
        per_class = logits.view(batch, shape.classes, shape.unshuffle**2, height, width)
        decided = per_class.argmax(1).to(self._dtype)
        if shape.unshuffle > 1:
            decided = functional.pixel_shuffle(decided, shape.unshuffle)
        mask: Tensor = decided.to(torch.uint8)
        return mask


def onnx_graph(model: Model, shape: tuple[int, int], precision: str = "float16") -> bytes:
    """The network as a serialised ONNX model.

    Args:
        model: the model.
        shape: (height, width) of the image, both a multiple of the network's; the graph takes no other.
        precision: of everything between the borders, "float16" or "float32".

    Returns:
        ONNX, opset 20, with one input `image` (1, 1, height, width) float32 and one output `mask` of that shape, uint8.
        Batch normalisation is folded into the convolutions, in float32, before the weights are rounded.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401
        from onnxscript import opset20
    except ImportError as error:
        raise MissingExtraError(
            f"an ONNX graph needs the packages onnx and onnxscript: pip install 'realtime_skyseg[onnx]' ({error})"
        ) from error
    network = _Borders(folded(model.load_network()), getattr(torch, precision)).eval()
    example = torch.zeros(1, 1, *shape)

    def mish(x: Any) -> Any:
        # TensorRT has an operator for it only since some 10.x; these it has always had.
        return opset20.Mul(x, opset20.Tanh(opset20.Softplus(x)))

    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["mask"],
            custom_translation_table={torch.ops.aten.mish.default: mish},
            verbose=False,
        )
    assert program is not None
    serialised: bytes = program.model_proto.SerializeToString()
    return serialised


def write_onnx(model: Model, shape: tuple[int, int], path: Path, precision: str = "float16") -> None:
    """Write `onnx_graph` to `path`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        SettingsError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(onnx_graph(model, shape, precision))
        partial.replace(path)
    except OSError as error:
        raise SettingsError(f"--out: '{path}' cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter prints, logs and warns of its own parts."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
