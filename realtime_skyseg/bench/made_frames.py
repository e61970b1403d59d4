"""Frames for measurements: of a recording, or made with a given number of objects."""

import math
from pathlib import Path

import cv2
import numpy as np

from realtime_skyseg.bench.case import MADE_SHAPE, Case
from realtime_skyseg.config import CameraSettings
from realtime_skyseg.devices import CameraEnded
from realtime_skyseg.records import Mask

#: Different frames in a recording that is replayed round and round.
_FRAMES = 16


def frames_of(source: str) -> list[np.ndarray]:
    """The first frames of a recording."""
    camera = CameraSettings.model_validate({"driver": "replay", "path": source, "rate_hz": "max"}).open()
    frames: list[np.ndarray] = []
    try:
        while len(frames) < _FRAMES:
            frame = camera.read(5.0)
            if frame is not None:
                frames.append(frame.image)
    except CameraEnded:
        pass
    finally:
        camera.close()
    return frames


def recording_of(case: Case, folder: Path) -> str:
    """Path of a recording of the frames of a case."""
    if case.objects is None and case.shape is None:
        return case.source
    shape = case.shape or MADE_SHAPE
    frames = _resized(frames_of(case.source), shape) if case.objects is None else _made(case.objects, shape)
    np.save(folder / "frames.npy", frames)
    return str(folder / "frames.npy")


def _resized(frames: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    grown = [
        np.pad(
            frame, [(0, max(0, wanted - have)) for wanted, have in zip(shape, frame.shape, strict=True)], "symmetric"
        )
        for frame in frames
    ]
    return np.stack([frame[: shape[0], : shape[1]] for frame in grown])


def _made(objects: int, shape: tuple[int, int]) -> np.ndarray:
    """(frames, height, width) uint8: dark discs in noise."""
    rng = np.random.default_rng(0)
    frames = rng.normal(128, 14, (_FRAMES, *shape)).astype(np.float32)
    for frame in frames:
        frame -= 42 * discs(objects, shape, rng)
    return np.clip(frames, 0, 255).astype(np.uint8)


def discs(objects: int, shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    """(height, width), 1 in discs near the places of a grid: as large as leaves gaps, of 20 px radius at most."""
    height, width = shape
    columns = math.ceil(math.sqrt(objects * width / height))
    rows = math.ceil(objects / columns)
    cell = min(width / columns, height / rows)
    mask = np.zeros(shape, np.uint8)
    for place in rng.permutation(rows * columns)[:objects]:
        row, column = divmod(int(place), columns)
        x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
        moved = rng.uniform(-cell / 8, cell / 8, 2)
        radius = min(rng.uniform(0.15, 0.25) * cell, 20)
        cv2.circle(mask, (round(x + moved[0]), round(y + moved[1])), round(radius), 1, -1)
    return mask
