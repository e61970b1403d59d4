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


def probabilities(model: Model) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Scaled image (height, width) -> probability of each class (classes, height, width), in float32 on the CPU."""
    network = model.load_network()

    def probability_of(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            small = network(torch.from_numpy(image)[None, None])
            found: NDArray[np.float32] = functional.pixel_shuffle(small, model.shape.unshuffle)[0].softmax(0).numpy()
        return found

    return probability_of
