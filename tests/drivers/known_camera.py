"""A camera of known truth behind the real MMCore: pictures of discs, made in Python (pymmcore-plus' UniMMCore)."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from pymmcore_plus.experimental.unicore import CameraDevice, UniMMCore

#: The pictures come round and round; each is told by its own noise.
PICTURES = 6


def picture(place: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Picture of this place in the round: (H, W) uint16 with dark discs in white noise, and where the discs are."""
    rng = np.random.default_rng(place)
    mask = np.zeros(shape, np.uint8)
    # On a grid with room between, so that the count is known without doubt.
    sites = [(x, y) for y in range(24, shape[0] - 20, 40) for x in range(24, shape[1] - 20, 40)]
    for x, y in rng.permutation(sites)[: len(sites) // 2 + place]:
        cv2.circle(mask, (int(x), int(y)), 8, 1, -1)
    noise = rng.normal(0, 700, shape)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)
    return (30000 - 2500 * soft + noise).round().astype(np.uint16), mask.astype(bool)


class KnownCamera(CameraDevice):
    """Shows the pictures of `picture`, one per exposure."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self._shape, self._exposure_ms = shape, 20.0
        self._pictures = [picture(place, shape)[0] for place in range(PICTURES)]

    def get_exposure(self) -> float:
        return self._exposure_ms

    def set_exposure(self, exposure: float) -> None:
        self._exposure_ms = exposure

    def shape(self) -> tuple[int, int]:
        return self._shape

    def dtype(self) -> Any:
        return np.uint16

    def start_sequence(
        self, n: int | None, get_buffer: Callable[[tuple[int, ...], Any], np.ndarray]
    ) -> Iterator[Mapping[str, Any]]:
        due = time.perf_counter()
        for number in itertools.count() if n is None else range(n):
            due += self._exposure_ms / 1e3
            time.sleep(max(0.0, due - time.perf_counter()))
            get_buffer(self._shape, np.uint16)[:] = self._pictures[number % PICTURES]
            yield {}


def known_core(width: int, height: int) -> UniMMCore:
    """An MMCore whose camera is a `KnownCamera`."""
    core = UniMMCore()
    core.loadPyDevice("Camera", KnownCamera((height, width)))
    core.initializeDevice("Camera")
    core.setCameraDevice("Camera")
    return core
