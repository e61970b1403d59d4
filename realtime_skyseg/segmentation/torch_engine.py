"""Plain PyTorch: the reference on the CPU (float32), and half precision on a CUDA GPU."""

import platform
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.engine import check_parity
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.network import MaskNet


class TorchEngine:
    """`Engine` on torch. Its parity gate runs only on a GPU: on the CPU it is the reference itself."""

    name = "torch"

    def __init__(self, model: Model, shape: tuple[int, int], threads: int | None = None) -> None:
        self.input: NDArray[np.float32] = np.zeros(shape, np.float32)
        cuda = torch.cuda.is_available()
        if threads is not None:
            torch.set_num_threads(threads)
        self._target = torch.device("cuda" if cuda else "cpu")
        dtype = torch.float16 if cuda else torch.float32
        self.device = torch.cuda.get_device_name() if cuda else (platform.processor() or platform.machine())
        self.precision = str(dtype).removeprefix("torch.")
        network = MaskNet(model.load_network()).eval()
        self._network = network.to(self._target, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._host = torch.from_numpy(self.input)[None, None]  # shares its memory
        self._dtype = dtype
        self.agreement = check_parity(model, "torch", self._run_on, shape) if cuda else 1.0
        self.input.fill(0)
        self.run()  # the first call allocates

    def run(self) -> Mask:
        """See `Engine`."""
        with torch.inference_mode():
            image = self._host.to(self._target, self._dtype).contiguous(memory_format=torch.channels_last)
            mask: Mask = self._network(image)[0, 0].cpu().numpy()
        return mask

    def _run_on(self, image: NDArray[np.float32]) -> Mask:
        self.input[...] = image
        return self.run()


def reference(model: Model) -> Callable[[NDArray[np.float32]], Mask]:
    """Scaled image -> mask, by torch in float32 on the CPU."""
    network = MaskNet(model.load_network()).eval()

    def mask_of(image: NDArray[np.float32]) -> Mask:
        with torch.inference_mode():
            mask: Mask = network(torch.from_numpy(image)[None, None])[0, 0].numpy()
        return mask

    return mask_of


def probabilities(model: Model) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Scaled image (height, width) -> probability of each class (classes, height, width), in float32 on the CPU."""
    network = model.load_network()

    def probability_of(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            small = network(torch.from_numpy(image)[None, None])
            found: NDArray[np.float32] = functional.pixel_shuffle(small, model.shape.unshuffle)[0].softmax(0).numpy()
        return found

    return probability_of
