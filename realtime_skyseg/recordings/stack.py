"""Frames that are slices of one array."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.recordings.recording import Choice, Recording, check_size, select
from realtime_skyseg.storage.trust import MOST_CHUNK_BYTES

_MOST_BLOCK_BYTES = 2**26  # of frames that are kept because they were decompressed together


class Stack(Recording):
    """Frames of an array that is sliced: (..., H, W), or (..., H, W, 3 or 4) in colour."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._array: Any = None
        self._block: tuple[int, NDArray[Any]] = (-1, np.empty((0, 0, 0)))
        self._together = 1  # frames that are decompressed together

    def _take(
        self,
        array: Any,
        choice: Choice,
        names: Sequence[str] | None = None,
        labels: dict[str, list[str]] | None = None,
        chunks: tuple[int, ...] | None = None,
    ) -> None:
        """Play an array.

        Args:
            array: with shape and dtype; sliced as a NumPy array.
            choice: which part of it.
            names: of its axes, where they are known.
            labels: names of channels and positions.
            chunks: shape of what is decompressed at once.

        Raises:
            ValueError, SettingsError: the array cannot be played.
        """
        shape, dtype = tuple(int(n) for n in array.shape), np.dtype(array.dtype)
        if dtype.kind not in "biuf" or dtype.itemsize > 8 or dtype.shape:
            raise ValueError(f"its pixels are {dtype}; allowed: integers and floats of up to 64 bit")
        colour = len(shape) > 3 and shape[-1] in (3, 4) and (names is None or names[-1] not in ("x", "y"))
        inner = 3 if colour else 2
        if len(shape) < 2 or (len(shape) == 3 and shape[2] in (3, 4)):
            raise ValueError(
                f"its shape is {shape}; allowed: (frames, height, width), and 3 or 4 colours last in four dimensions"
            )
        outer = shape[:-inner]
        if names is None and sum(n > 1 for n in outer) > 1:
            raise ValueError(f"its shape is {shape}; allowed: (frames, height, width), and 3 or 4 colours last")
        check_size(shape[-inner], shape[1 - inner])
        if chunks is not None and math.prod(chunks) * dtype.itemsize > MOST_CHUNK_BYTES:
            raise ValueError(
                f"its chunks are {chunks} {dtype}; allowed: up to {MOST_CHUNK_BYTES / 1e6:.0f} MB decompressed at once"
            )
        if names is None:
            n_frames = math.prod(outer)
            select(self.path, {"time": n_frames}, choice, {})
            self._index: list[int | None] = [0 if n == 1 else None for n in outer]
            if outer and None not in self._index:
                self._index[0] = None
        else:
            axes = dict(zip(names, outer, strict=False))
            fixed = select(self.path, axes, choice, labels or {})
            free = next((name for name in axes if name not in fixed), next(iter(axes), ""))
            self._index = [None if name == free else fixed[name] for name in axes]
            n_frames = axes.get(free, 1)
        self._array = array
        self.n_frames = n_frames
        if self.n_frames == 0:
            raise ValueError("the array holds no frames; allowed: at least 1")
        if chunks is not None and None in self._index:
            together = int(chunks[self._index.index(None)])
            frame_bytes = math.prod(shape[len(outer) :]) * dtype.itemsize
            self._together = together if together * frame_bytes <= _MOST_BLOCK_BYTES else 1

    def _decode(self, index: int) -> NDArray[Any]:
        if index >= (self.n_frames or 0):
            raise self._ended()
        try:
            if None not in self._index:
                return np.asarray(self._array[tuple(0 if i is None else i for i in self._index)])
            if self._together == 1:
                return np.asarray(self._array[tuple(index if i is None else i for i in self._index)])
            number, place = divmod(index, self._together)
            if self._block[0] != number:
                span = slice(number * self._together, min((number + 1) * self._together, self.n_frames or 0))
                self._block = number, np.asarray(self._array[tuple(span if i is None else i for i in self._index)])
            return np.asarray(self._block[1][place])
        except Exception as error:  # of libraries that raise whatever broken bytes lead to
            self._broken(index, error)


def order_of_name(name: str) -> tuple[int, str]:
    """Sorts names that are numbers by number, and before all others."""
    return (int(name), "") if re.fullmatch(r"\d{1,9}", name) else (10**9, name)
