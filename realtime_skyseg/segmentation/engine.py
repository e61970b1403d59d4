"""What runs a model: one small protocol."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.records import Mask


class Engine(Protocol):
    """A model made ready for one frame size. Used by one thread at a time."""

    name: str  # "tensorrt", "torch" or "openvino"
    device: str  # name of the processor
    precision: str  # of the arithmetic: "float32", "bfloat16", "float16" or "int8"
    agreement: float  # share of pixels that agree with torch float32

    #: Write the scaled image here, (height, width) float32, both sides a multiple of the network's.
    input: NDArray[np.float32]

    def run(self) -> Mask:
        """Segment `input`: a mask of its shape, overwritten by the next call."""
