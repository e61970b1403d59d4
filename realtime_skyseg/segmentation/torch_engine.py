"""Plain PyTorch: the reference on the CPU (float32), and half precision on a CUDA GPU."""

import platform
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.network import MaskNet, UNet
from realtime_skyseg.segmentation.parity import GPU_PRECISIONS, first_exact


class TorchEngine:
    """`Engine` on torch on the CPU, in float32. It needs no parity gate: it is the reference itself."""

    name = "torch"
    precision = "float32"
    agreement = 1.0

    def __init__(self, model: Model, shape: tuple[int, int], threads: int | None = None) -> None:
        self.input: NDArray[np.float32] = np.zeros(shape, np.float32)
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = platform.processor() or platform.machine()
        network = MaskNet(model.load_network()).eval()
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._image = torch.from_numpy(self.input)[None, None]  # shares its memory
        self.run()  # the first call allocates

    def run(self) -> Mask:
        """See `Engine`."""
        with torch.inference_mode():
            image = self._image.contiguous(memory_format=torch.channels_last)
            mask: Mask = self._network(image)[0, 0].numpy()
        return mask


class TorchCudaEngine:
    """`Engine` on torch on a CUDA GPU: in half precision, or in float32 where half fails the parity gate.

    The layers are recorded once as a CUDA graph, so that a frame costs one launch instead of one per layer.
    """

    name = "torch"

    def __init__(self, model: Model, shape: tuple[int, int]) -> None:
        self.device = torch.cuda.get_device_name()
        self._buffers = CudaBuffers(shape)
        self.input = self._buffers.input
        self.precision, self.agreement = first_exact(
            model, self.name, GPU_PRECISIONS, lambda precision: self._record(model, precision), self
        )

    def run(self) -> Mask:
        """See `Engine`."""
        return self._buffers.run(self._graph.replay)

    def _record(self, model: Model, precision: str) -> None:
        """Record the layers as a CUDA graph, as in torch's notes "CUDA semantics", section "CUDA Graphs"."""
        dtype, buffers = getattr(torch, precision), self._buffers
        network = MaskNet(folded(model.load_network())).eval().to("cuda", dtype)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.cuda.current_stream().synchronize()  # the weights are there before another stream reads them

        def forward() -> None:
            image = buffers.image.to(dtype).contiguous(memory_format=torch.channels_last)
            buffers.mask.copy_(network(image))

        self._network = network  # the graph reads its weights
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            with torch.cuda.stream(buffers.stream):
                for _ in range(3):  # what chooses kernels or allocates must not be recorded
                    forward()
            buffers.stream.synchronize()
            with torch.cuda.graph(self._graph, stream=buffers.stream):
                forward()


class CudaBuffers:
    """Image and mask of one size, on the GPU and in page-locked host memory, and the CUDA stream that moves them."""

    def __init__(self, shape: tuple[int, int]) -> None:
        size = (1, 1, *shape)
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.image = torch.zeros(size, dtype=torch.float32, device="cuda")
        self.mask = torch.zeros(size, dtype=torch.uint8, device="cuda")
        self._host_image = torch.zeros(size, dtype=torch.float32, pin_memory=True)
        self._host_mask = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
        self.input: NDArray[np.float32] = self._host_image[0, 0].numpy()  # shares its memory
        self._output: Mask = self._host_mask[0, 0].numpy()
        torch.cuda.current_stream().synchronize()  # they are filled before another stream uses them

    def run(self, launch: Callable[[], object]) -> Mask:
        """Image to the GPU, `launch` (which queues image -> mask on the current stream), mask back; waits once."""
        with torch.cuda.stream(self.stream):
            self.image.copy_(self._host_image, non_blocking=True)
            launch()
            self._host_mask.copy_(self.mask, non_blocking=True)
        self.stream.synchronize()
        return self._output


def folded(network: UNet) -> UNet:
    """Fold each batch normalisation into the convolution before it, in place: one layer less to run and to round."""
    for block in list(network.modules()):
        if not isinstance(block, nn.Sequential):
            continue
        for here, layer in enumerate(block):
            if isinstance(layer, nn.BatchNorm2d):
                convolution = block[here - 1]
                assert isinstance(convolution, nn.Conv2d)
                block[here - 1] = fuse_conv_bn_eval(convolution, layer)
                block[here] = nn.Identity()
    return network
