"""The U-Net: a pixel-unshuffle stem, so that it works on a small grid and still ends at full resolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from realtime_skyseg.segmentation.model import NetworkShape


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(batch, 1, height, width) float32 from `scale` -> logits (batch, classes * unshuffle^2, height / unshuffle,
    width / unshuffle): class c of pixel (i, j) inside a cell stands in channel c * unshuffle^2 + i * unshuffle + j.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        channels = shape.unshuffle**2
        self.down = nn.ModuleList()
        for level in range(shape.depth):
            self.down.append(_block(channels, shape.filters << level))
            channels = shape.filters << level
        self.lowest = _block(channels, shape.filters << shape.depth)
        channels = shape.filters << shape.depth
        self.reduce = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in reversed(range(shape.depth)):
            outputs = shape.filters << level
            self.reduce.append(nn.Conv2d(channels, outputs, 1))
            self.up.append(_block(outputs, outputs))
            channels = outputs
        self.head = nn.Conv2d(channels, shape.classes * shape.unshuffle**2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        x = functional.pixel_unshuffle(image, self.shape.unshuffle)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.lowest(x)
        for reduce, block in zip(self.reduce, self.up, strict=True):
            x = functional.interpolate(reduce(x), scale_factor=2.0, mode="nearest")
            x = block(x + skips.pop())
        logits: Tensor = self.head(x)
        return logits


class MaskNet(nn.Module):
    """The network with its decision: (1, 1, height, width) float32 -> mask (1, 1, height, width) uint8.

    The class is decided on the small grid, before the pixel shuffle: one byte per pixel is moved to full
    resolution instead of one float per pixel and class.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        shape = self.network.shape
        logits = self.network(image)
        batch, _, height, width = logits.shape
        per_class = logits.view(batch, shape.classes, shape.unshuffle**2, height, width)
        return functional.pixel_shuffle(per_class.argmax(1).to(torch.uint8), shape.unshuffle)
