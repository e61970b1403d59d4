"""Where a background comes from: a file, the mean of frames, or a rolling median; and the illumination in it."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.polynomial.polynomial import polygrid2d, polyvander2d
from numpy.typing import NDArray

from realtime_skyseg.errors import SettingsError, SkysegError
from realtime_skyseg.preparation.drift import CHANCE_QUALITY, Drift
from realtime_skyseg.preparation.image import FloatImage, finite_copy, relative_to_mean
from realtime_skyseg.preparation.shift import shift_image
from realtime_skyseg.recordings import kind_of, open_recording
from realtime_skyseg.records import Background, Image
from realtime_skyseg.storage import open_run

#: The illumination in a background is a polynomial of this degree in x and in y, fitted on a grid of this step.
_DEGREE, _GRID_PX = 4, 16

#: A background with more than this share of its pixels at one and the same maximum is overexposed.
_CLIPPED_SHARE = 0.01

#: Frames of a run file, or pages of a stack, that are averaged into a background at most.
_MOST_PAGES = 64


class MeanOfFrames:
    """Mean of some frames, registered to the first of them."""

    def __init__(self, frames: int, first: FloatImage | None, shape: tuple[int, int]) -> None:
        self.frames = frames
        self._left = frames
        self._drift = None if first is None else Drift(first)
        self._total = np.zeros(shape, np.float64)

    def add(self, image: Image, flat: FloatImage) -> FloatImage | None:
        """Add a frame, and the same frame cropped and evenly lit; the mean once it is complete."""
        full = finite_copy(image)
        if self._drift is not None and self._left < self.frames:
            drift, quality = self._drift.measure(flat)
            if quality > CHANCE_QUALITY:
                full = shift_image(full, -drift[0], -drift[1])
        self._total += full
        self._left -= 1
        return None if self._left else (self._total / self.frames).astype(np.float32)


class RollingMedian:
    """Median of one frame in `every`. It is worked out strip by strip, so that no frame waits for the whole of it."""

    _FEWEST = 3

    def __init__(self, samples: int, every: int, shape: tuple[int, int]) -> None:
        self._samples, self._every = samples, every
        self._stack: NDArray[np.generic] | None = None  # (row, column, sample): a pixel's values stand together
        self._median = np.empty(shape, np.float32)
        self._calls = 0

    def add(self, image: Image, drift: tuple[float, float]) -> FloatImage | None:
        """Note a frame and how far it has moved; a new median when one is ready."""
        height = len(self._median)
        turn, step = divmod(self._calls, self._every)
        self._calls += 1
        if step == 0:
            if self._stack is None:
                self._stack = np.zeros((*image.shape, self._samples), image.dtype)
            sample = finite_copy(image)
            if any(drift):
                sample = shift_image(sample, -drift[0], -drift[1])
            if image.dtype.kind in "iu":
                np.rint(sample, out=sample)
                np.clip(sample, image.min(), image.max(), out=sample)
            self._stack[:, :, turn % self._samples] = sample
        filled = min(turn + 1, self._samples)
        if filled < self._FEWEST or self._stack is None:
            return None
        rows = slice(height * step // self._every, height * (step + 1) // self._every)
        ordered = np.sort(self._stack[rows, :, :filled], axis=2)
        middle = ordered[:, :, (filled - 1) // 2].astype(np.float32) + ordered[:, :, filled // 2]
        self._median[rows] = middle / 2
        return self._median.copy() if step == self._every - 1 else None


def load_image(path: str, shape: tuple[int, int], key: str) -> FloatImage:
    """A background or flat field from a file, as (height, width) float32.

    A recording of several images counts by the mean of the first; a run file by its last background, where it has one.

    Args:
        path: an image, a run file, or any other recording.
        shape: that it must have.
        key: of the settings, for the message.

    Raises:
        SettingsError: it cannot be read, has another shape, is constant, or holds values that are not finite.
    """
    source = Path(path)
    try:
        pixels = _read(source)
    except (OSError, SkysegError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = reason.removeprefix(f"{path}: frame 0 cannot be read: ").removeprefix("path: ")
        raise SettingsError(f"{key}: '{path}' cannot be read as an image: {reason}") from error
    if pixels.dtype.kind not in "iuf":
        raise SettingsError(f"{key}: '{path}' holds {pixels.dtype}; allowed: integers or floats")
    if pixels.ndim == 3 and len(pixels) and pixels.shape[1:] == shape:
        pixels = pixels[:_MOST_PAGES].mean(axis=0, dtype=np.float64)
    if pixels.shape != shape:
        found = " x ".join(map(str, pixels.shape)) or "nothing"
        raise SettingsError(f"{key}: '{path}' is {found} px; allowed: the frames' {shape[0]} x {shape[1]}")
    image: FloatImage = pixels.astype(np.float32)
    if not np.isfinite(image).all():
        raise SettingsError(f"{key}: '{path}' has pixels that are not finite; allowed: numbers")
    if image.min() == image.max():
        raise SettingsError(f"{key}: '{path}' is {image.flat[0]:g} everywhere; allowed: an image of the sample")
    return image


def _read(path: Path) -> NDArray[np.generic]:
    if path.suffix in (".h5", ".partial") and kind_of(path) == "run":
        with open_run(path) as run:
            last = next(run.backgrounds(-1), None)
            if last is not None:
                return last.image
    with open_recording(path) as recording:
        images: list[NDArray[np.generic]] = [*islice(recording, _MOST_PAGES)]
    return images[0] if len(images) == 1 else np.stack(images)


def warn_overexposed(background: Background) -> list[tuple[str, str]]:
    """Events (kind, message) of a background whose brightest pixels are all alike: one, or none."""
    share = float(np.mean(background.image == background.image.max()))
    if share <= _CLIPPED_SHARE:
        return []
    text = f"{share:.1%} of the background ({background.source}) are at its maximum: it looks overexposed"
    return [("background_overexposed", text)]


def find_illumination(image: FloatImage) -> FloatImage:
    """What is smooth in an image, with a mean of 1."""
    height, width = image.shape
    coarse = cv2.resize(image, (-(-width // _GRID_PX), -(-height // _GRID_PX)), interpolation=cv2.INTER_AREA)
    degrees = [min(_DEGREE, side - 1) for side in coarse.shape]
    down, right = (np.linspace(-1, 1, side) for side in coarse.shape)
    rows, columns = np.meshgrid(down, right, indexing="ij")
    terms = polyvander2d(rows.ravel(), columns.ravel(), degrees)
    fit = np.linalg.lstsq(terms, coarse.ravel(), rcond=None)[0].reshape(degrees[0] + 1, degrees[1] + 1)
    # The centres of the outer cells of the grid lie half a cell inside the image.
    down, right = (
        (np.arange(full) - (full - 1) / 2) / max((full - full / cells) / 2, 1)
        for full, cells in zip(image.shape, coarse.shape, strict=True)
    )
    return relative_to_mean(polygrid2d(down, right, fit).astype(np.float32))
