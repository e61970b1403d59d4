"""The reference: torch in float32 on the CPU."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from realtime_skyseg.records import Mask
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.network import MaskNet


def reference(model: Model) -> Callable[[NDArray[np.float32]], Mask]:
    """Scaled image -> mask, by torch in float32 on the CPU."""
    network = MaskNet(model.load_network()).eval()

    def mask_of(image: NDArray[np.float32]) -> Mask:
        with torch.inference_mode():
            mask: Mask = network(torch.from_numpy(image)[None, None])[0, 0].numpy()
        return mask

    return mask_of


def outputs(model: Model) -> Callable[[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Name of an output, and scaled image (height, width) -> that output of the network, in float32 on the CPU.

    `probability`: of each class, (classes, height, width). `features`: of its lowest level, (channels, height / cell,
    width / cell) with cells of `unshuffle * 2**depth` px.
    """
    network = model.load_network()

    def output_of(name: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            lowest, skips = network.encode(torch.from_numpy(image)[None, None])
            if name == "features":
                features: NDArray[np.float32] = lowest[0].numpy()
                return features
            logits = functional.pixel_shuffle(network.decode(lowest, skips), model.shape.unshuffle)
            probability: NDArray[np.float32] = logits[0].softmax(0).numpy()
        return probability

    return output_of
