"""From a microscope's raw image, which shows almost nothing, to the difference image that is segmented.

crop -> flat field -> drift against the background -> minus the background, shifted onto the frame -> mean over frames

Masks stay aligned with the raw frame: what has little noise, the background, is shifted and interpolated, never the
frame. The frame is first brought to the background's brightness, so that a flickering lamp leaves no structure behind.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.fft
from numpy.polynomial.polynomial import polygrid2d, polyvander2d
from numpy.typing import NDArray

from realtime_skyseg.config import PrepareSettings
from realtime_skyseg.errors import FrameError, SettingsError, SkysegError
from realtime_skyseg.recordings import kind_of, open_recording
from realtime_skyseg.records import Background, Class, Image, Mask, Segmentation
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.storage import open_run

FloatImage = NDArray[np.float32]

#: Largest drift that is followed, in px and as a share of the image's shorter side.
REACH_PX = 64
_REACH_SHARE = 0.25

#: Drift is measured in at most this much of the image, from its centre.
_DRIFT_SIDE_PX = 1024

#: Drift is rounded to this part of a px: exact in the file's float32, and independent of the last bits of a sum.
_DRIFT_STEPS = 1024

#: A correlation's peak below this may be chance, see `Drift.measure`.
_CHANCE = 8.0

#: The refinement may lead beyond the reach by less than this.
_BEYOND_PX = 3

#: Half the width of the interpolation (Lanczos) that shifts the background.
_LANCZOS = 4

#: The illumination in a background is a polynomial of this degree in x and in y, fitted on a grid of this step.
_DEGREE, _GRID_PX = 4, 16

#: Darker parts of an illumination count as this much of its mean.
_DARKEST = 0.05

#: A background with more than this share of its pixels at one and the same maximum is overexposed.
_CLIPPED_SHARE = 0.01

#: Frames of a run file, or pages of a stack, that are averaged into a background at most.
_MOST_PAGES = 64


@dataclass(slots=True)
class Prepared:
    """A frame that is ready for the segmenter, and what was found on the way."""

    image: FloatImage  # (height, width) of `Preparation.shape`; overwritten by the next call
    drift_px: tuple[float, float] = (math.nan, math.nan)  # (right, down) of the frame against the background
    drift_quality: float = math.nan
    backgrounds: tuple[Background, ...] = ()  # new ones, to be stored
    events: tuple[tuple[str, str], ...] = ()  # kind and message


class Preparation:
    """The steps of `prepare` for frames of one size. Used by one thread, but for `take_background`.

    What a frame becomes depends on the frame, on the settings, on the backgrounds, and on the frames that were
    *analysed* before it: the last `average_frames` - 1 of them are averaged with it, the last good drift is held
    where it has none, and without a background drift is measured against the first of them. Frames that were recorded
    but not analysed leave no trace. So what came out live can be had again, bit for bit, and frames that were not
    analysed can be filled in with an unambiguous meaning, "as if this one had been analysed too, and no other":

    >>> preparation = Preparation(settings, shape, run.backgrounds())              # doctest: +SKIP
    >>> for index, row in enumerate(run.table):                                    # doctest: +SKIP
    ...     live = row["skipped"] == Skipped.NOT_SKIPPED
    ...     prepared = preparation(run.raw[index], index, keep=live)
    ...     found = preparation.place(segmenter(prepared.image))

    A live run's frame whose segmentation failed had passed through already; after such a fault this equality is lost
    for `average_frames` frames.

    Args:
        settings: which steps, and how.
        shape: (height, width) of the frames.
        stored: the backgrounds of a run file in their order. They are used from their first frame on, and none is made.

    Attributes:
        shape: (height, width) of a prepared image: that of the crop.

    Raises:
        SettingsError: the crop does not fit, or the background's or flat field's file is not usable.
    """

    def __init__(
        self, settings: PrepareSettings, shape: tuple[int, int], stored: Iterable[Background] | None = None
    ) -> None:
        self._settings = settings
        self._full_shape = shape
        self._area = crop(settings, shape)
        rows, columns = self._area
        self.shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._flat: FloatImage | None = None  # illumination of the whole frame, from a file
        if settings.flat_field_path:
            self._flat = _relative(load_image(settings.flat_field_path, shape, "prepare.flat_field"))
        self._stored: Iterator[Background] | None = None
        self._next: Background | None = None  # applies from its first frame on
        if stored is not None:
            self._stored = iter(stored)
            self._next = next(self._stored, None)
        elif settings.background_path:
            image = load_image(settings.background_path, shape, "prepare.background")
            self._next = Background(image, 0, settings.background_path)
        self._gains = None if self._flat is None else _gains(self._flat, self._area)
        self._reference: _Reference | None = None
        self._drift: Drift | None = None
        self._last_drift = (0.0, 0.0)
        self._lost = False  # the drift
        self._warned = False  # that there is no background
        self._requested = 0  # frames of the background that was asked for
        self._lock = threading.Lock()
        self._mean: _Mean | None = None
        self._median: _RollingMedian | None = None
        if settings.background == "rolling_median" and stored is None:
            self._median = _RollingMedian(settings.median_frames, settings.median_every, shape)
        self._flattened = np.empty(self.shape, np.float32)
        n = settings.average_frames
        # The last one is the frame in work; those before it are history, the latest last.
        self._slots = [np.empty(self.shape, np.float32) for _ in range(n)]
        self._slot_drifts = [(0.0, 0.0)] * n
        self._history = 0
        self._total = np.empty(self.shape, np.float32)

    def take_background(self, frames: int) -> None:
        """Make the mean of the next `frames` frames the background. For any thread; a newer request replaces an older.

        Raises:
            SettingsError: these settings have no background that could be taken.
        """
        if self._settings.background in ("none", "rolling_median"):
            raise SettingsError(
                f"prepare.background: '{self._settings.background}' is not taken on request; "
                "allowed: take, or the path of a file"
            )
        if frames < 1:
            raise SettingsError(f"a background of {frames} frames cannot be taken; allowed: 1 or more")
        with self._lock:
            self._requested = frames

    def __call__(self, image: Image, index: int, keep: bool = True) -> Prepared:
        """Prepare a frame.

        Args:
            image: (height, width) as announced, of any integer or float type; pixels that are not finite count as
                no difference from the background.
            index: of the frame in its run; rises from call to call.
            keep: False leaves no trace: the next frames are prepared as if this one had not been.

        Raises:
            FrameError: another shape or kind of numbers.
        """
        if image.shape != self._full_shape or image.dtype.kind not in "iuf":
            raise FrameError(
                f"frame {index} is {image.shape} {image.dtype}; allowed: {self._full_shape}, integers or floats"
            )
        settings = self._settings
        events: list[tuple[str, str]] = []
        new: list[Background] = []
        while self._next is not None and self._next.first_frame <= index:
            # From a file, before any history; or from a run, whose stored ones say where the average began anew.
            if self._stored is None:
                new.append(self._next)
                events += _overexposed(self._next)
            self._use(self._next, anew=settings.background != "rolling_median")
            self._next = next(self._stored, None) if self._stored else None
        if settings.background != "none" and self._reference is None and not self._warned and keep:
            self._warned = True
            text = f"frame {index} is analysed without a background: there is none yet"
            events.append(("background_missing", text))

        flat, bad = self._flatten(image[self._area])
        drift, quality = self._find_drift(flat, index, keep, events)
        current = self._slots[-1]
        if self._reference is None:
            np.copyto(current, flat)
        else:
            background = self._reference.shifted(*drift)
            brightness = cv2.mean(flat)[0]
            gain = self._reference.mean / brightness if min(brightness, self._reference.mean) > 0 else 1.0
            cv2.addWeighted(flat, gain, background, -1.0, 0.0, current)
            if bad is not None:
                current[bad] = 0.0
        self._slot_drifts[-1] = drift
        prepared = Prepared(self._average())
        if settings.drift:
            prepared.drift_px, prepared.drift_quality = drift, quality
        if keep:
            self._history = min(self._history + 1, len(self._slots) - 1)
            self._slots.append(self._slots.pop(0))
            self._slot_drifts.append(self._slot_drifts.pop(0))
            if self._stored is None:
                self._make_background(image, flat, drift, index, new, events)
        prepared.backgrounds, prepared.events = tuple(new), tuple(events)
        return prepared

    def place(self, found: Segmentation) -> Segmentation:
        """What was found in the prepared image, in the raw frame: mask of its size, OUTSIDE beyond the crop."""
        if self.shape == self._full_shape:
            return found
        rows, columns = self._area
        mask: Mask = np.full(self._full_shape, Class.OUTSIDE, np.uint8)
        mask[self._area] = found.mask
        objects = found.objects
        for name, offset in (("x", columns.start), ("left", columns.start), ("y", rows.start), ("top", rows.start)):
            objects[name] += offset
        return replace(found, mask=mask, objects=objects)

    def place_image(self, image: Image) -> Image:
        """A prepared image in the raw frame: of its size, NaN beyond the crop."""
        if self.shape == self._full_shape:
            return image
        whole: FloatImage = np.full(self._full_shape, np.nan, np.float32)
        whole[self._area] = image
        return whole

    # --- steps ---

    def _flatten(self, cropped: Image) -> tuple[FloatImage, NDArray[np.bool_] | None]:
        """The frame as float32, evenly lit; and which pixels were not finite, where some were not."""
        flat = self._flattened
        if self._gains is None:
            np.copyto(flat, cropped, casting="unsafe")
        else:
            np.multiply(cropped, self._gains, out=flat, casting="unsafe")
        if cropped.dtype.kind != "f" or math.isfinite(cv2.mean(flat)[0]):
            return flat, None
        bad = ~np.isfinite(flat)
        flat[bad] = np.median(flat[~bad]) if not bad.all() else 0.0
        return flat, bad

    def _find_drift(
        self, flat: FloatImage, index: int, keep: bool, events: list[tuple[str, str]]
    ) -> tuple[tuple[float, float], float]:
        """Drift (right, down) in px and its quality; the last good one where it cannot be seen."""
        if not self._settings.drift:
            return (0.0, 0.0), math.nan
        if self._drift is None:
            if keep:
                self._drift = Drift(flat)
            return (0.0, 0.0), math.nan
        drift, quality = self._drift.measure(flat)
        lost = quality < self._settings.drift_quality
        if lost:
            drift = self._last_drift
        if keep:
            self._last_drift = drift
            where = f"{drift[0]:.2f} px right, {drift[1]:.2f} px down"
            if lost and not self._lost:
                text = f"the drift of frame {index} cannot be seen (quality {quality:.1f}); the last is held: {where}"
                events.append(("drift_lost", text))
            elif self._lost and not lost:
                events.append(("drift_found", f"the drift of frame {index} can be seen again: {where}"))
            self._lost = lost
        return drift, quality

    def _average(self) -> FloatImage:
        """Mean of the frame in work and those before it, each moved by whole px: no noise is interpolated."""
        current = self._slots[-1]
        if self._history == 0:
            return current
        total = self._total
        np.copyto(total, current)
        for slot in range(len(self._slots) - 1 - self._history, len(self._slots) - 1):
            frame = self._slots[slot]
            right, down = (round(a - b) for a, b in zip(self._slot_drifts[-1], self._slot_drifts[slot], strict=True))
            if (right, down) == (0, 0):
                np.add(total, frame, out=total)
                continue
            to, of, beyond = _overlap(self.shape, right, down)
            np.add(total[to], frame[of], out=total[to])
            for strip in beyond:  # which the earlier frame does not show
                np.add(total[strip], current[strip], out=total[strip])
        total *= np.float32(1 / (1 + self._history))
        return total

    # --- backgrounds ---

    def _use(self, background: Background, anew: bool) -> None:
        """Subtract this background from now on. `anew`: it is no continuation of the one before."""
        if anew or self._reference is None:
            self._history = 0
        if anew:
            self._last_drift = (0.0, 0.0)
        image, illumination = background.image, self._flat
        if self._settings.flat_field == "background":
            illumination = _illumination(image)
        if illumination is not None:
            image = image / illumination
            self._gains = _gains(illumination, self._area)
        self._reference = _Reference(image, self._area)
        if self._settings.drift:
            self._drift = Drift(np.ascontiguousarray(image[self._area]))

    def _make_background(
        self,
        image: Image,
        flat: FloatImage,
        drift: tuple[float, float],
        index: int,
        new: list[Background],
        events: list[tuple[str, str]],
    ) -> None:
        """Let a frame that was prepared become part of a background to come."""
        with self._lock:
            requested, self._requested = self._requested, 0
        if requested:
            self._mean = _Mean(requested, flat if self._settings.drift else None, self._full_shape)
        if self._mean is not None:
            mean = self._mean.add(image, flat)
            if mean is None:
                return
            of = f"the mean of {self._mean.frames} frames up to frame {index}"
            self._mean = None
            if mean.max() > mean.min():
                background = Background(mean, index + 1, "taken")
                events.append(("background_taken", f"{of} is subtracted from frame {index + 1} on"))
                events += _overexposed(background)
                new.append(background)
                self._use(background, anew=True)
            else:
                events.append(("background_refused", f"{of} is constant: it is not used as a background"))
        elif self._median is not None:
            median = self._median.add(image, drift)
            if median is not None and median.max() > median.min():
                if self._reference is None:
                    events.append(("background_taken", f"a rolling median is subtracted from frame {index + 1} on"))
                background = Background(median, index + 1, "rolling_median")
                new.append(background)
                self._use(background, anew=False)


class Drift:
    """Where a frame is against a reference, by phase correlation.

    The reference's spectrum is whitened by the square root of its own amplitude, smooth illumination and noise of short
    wavelength are left out (they pull the peak to zero, or hide it). The correlation is band-limited then, and its peak
    is refined by interpolation with a windowed sinc and a parabola. A large drift is measured once more against the
    part of the reference that came into view, as otherwise the window draws the peak to zero. It works on 2 x 2 px in
    sum.

    Phase correlation: Kuglin and Hines, Proc. IEEE Int. Conf. Cybernetics and Society, 163 (1975). No matrix product
    here is large enough for BLAS to use threads: those wait for each other on a busy machine, for 20 ms and more.

    Args:
        reference: (height, width) float32.
    """

    _SMOOTH_PX = 17  # structure wider than this is left out
    _CUT = 0.1  # cycles per px: standard deviation of the Gaussian that leaves out noise
    _STEP = 2  # grid of the parts of the reference, in points of the correlation
    _SINC = 8  # half the width of the interpolation, in points of the correlation
    _POINTS = 9  # of the refinement, along each side

    def __init__(self, reference: FloatImage) -> None:
        self._bin = 2 if min(reference.shape) >= 128 else 1
        centre, sides = [], []
        for side in reference.shape:
            n = int(scipy.fft.prev_fast_len(min(side, _DRIFT_SIDE_PX) // self._bin, real=True))
            start = (side - n * self._bin) // 2
            centre.append(slice(start, start + n * self._bin))
            sides.append(n)
        self._centre = (centre[0], centre[1])
        self._shape = (sides[0], sides[1])
        self._reach = min(reach(reference.shape) // self._bin, min(sides) // 2 - 1)
        self._window = (_taper(sides[0])[:, None] * _taper(sides[1])[None, :]).astype(np.float32)
        self._flat = np.empty(self._shape, np.float32)
        self._smooth = np.empty(self._shape, np.float32)
        spectrum = self._spectrum(reference)
        self._reference = _padded(self._flat, self._reach + self._STEP)
        amplitude = np.abs(spectrum)
        cycles = np.hypot(scipy.fft.fftfreq(sides[0])[:, None], scipy.fft.rfftfreq(sides[1])[None, :]) / self._bin
        floor = max(float(amplitude.max()) * 1e-6, 1e-12)
        weight = np.exp(-0.5 * (cycles / self._CUT) ** 2) / np.sqrt(np.maximum(amplitude, floor))
        self._weight = weight.astype(np.float32)
        self._conjugate = self._weighted(spectrum)
        self._part = (0, 0)
        self._part_conjugate = self._conjugate

    def measure(self, image: FloatImage) -> tuple[tuple[float, float], float]:
        """How far (right, down) in px the content of an image of the reference's shape has moved, and how sure that is:
        the correlation's peak in units of its standard deviation. Chance reaches 5; 0 for an image without structure,
        and where the correlation still rises at the end of the reach.
        """
        spectrum = self._spectrum(image)
        product = spectrum * self._conjugate
        surface = scipy.fft.irfft2(product, s=self._shape)
        spread = float(surface.std())
        if not spread > 0:
            return (0.0, 0.0), 0.0
        places = np.arange(-self._reach, self._reach + 1)
        near = surface[np.ix_(places, places)]
        place = divmod(int(near.argmax()), len(places))
        at_the_end = {0, len(places) - 1} & set(place)
        peak = 0.0 if at_the_end else float(near[place])
        down, right = (int(places[k]) for k in place)
        part = (round(down / self._STEP) * self._STEP, round(right / self._STEP) * self._STEP)
        if part != (0, 0):
            product = np.multiply(spectrum, self._conjugate_of(part), out=product)
            surface = scipy.fft.irfft2(product, s=self._shape)
        y, x = self._refine(surface, down - part[0], right - part[1])
        x, y = (
            round((value + start) * self._bin * _DRIFT_STEPS) / _DRIFT_STEPS
            for value, start in ((x, part[1]), (y, part[0]))
        )
        return (x, y), peak / spread

    def _conjugate_of(self, part: tuple[int, int]) -> NDArray[np.complex64]:
        """The weighted conjugate spectrum of the part of the reference that a drift (down, right) brings into view."""
        if part != self._part:
            rows, columns = (
                slice(margin - move, margin - move + n)
                for margin, move, n in zip([self._reach + self._STEP] * 2, part, self._shape, strict=True)
            )
            spectrum = scipy.fft.rfft2(self._reference[rows, columns] * self._window)
            self._part, self._part_conjugate = part, self._weighted(spectrum)
        return self._part_conjugate

    def _weighted(self, spectrum: NDArray[Any]) -> NDArray[np.complex64]:
        conjugate: NDArray[np.complex64] = (spectrum.conj() * self._weight).astype(np.complex64)
        return conjugate

    def _refine(self, surface: FloatImage, down: int, right: int) -> tuple[float, float]:
        """The highest point of a correlation within one point around one of its points."""
        around = np.arange(-self._SINC - 2, self._SINC + 3)
        local = surface[np.ix_((down + around) % surface.shape[0], (right + around) % surface.shape[1])]
        y = x = 0.0
        for half in (1.0, 0.125):
            offsets = np.linspace(-half, half, self._POINTS)
            values = _sinc(y + offsets, around, self._SINC) @ local @ _sinc(x + offsets, around, self._SINC).T
            i, j = divmod(int(values.argmax()), self._POINTS)
            i, j = (min(max(k, 1), self._POINTS - 2) for k in (i, j))
            step = offsets[1] - offsets[0]
            y += offsets[i] + step * _vertex(values[i - 1 : i + 2, j])
            x += offsets[j] + step * _vertex(values[i, j - 1 : j + 2])
        return down + y, right + x

    def _spectrum(self, image: FloatImage) -> NDArray[np.complex64]:
        """Of an image without what is smooth in it, which stays in `_flat`."""
        image = image[self._centre]
        flat = self._flat
        if self._bin > 1:
            cv2.resize(image, self._shape[::-1], flat, interpolation=cv2.INTER_AREA)
        else:
            np.copyto(flat, image)
        side = self._SMOOTH_PX // self._bin | 1
        cv2.blur(flat, (side, side), self._smooth)
        flat -= self._smooth
        np.multiply(flat, self._window, out=self._smooth)
        spectrum: NDArray[np.complex64] = scipy.fft.rfft2(self._smooth)
        return spectrum


class _Reference:
    """A background, evenly lit, that can be looked at from a little beside."""

    def __init__(self, image: FloatImage, area: tuple[slice, slice]) -> None:
        rows, columns = area
        self._shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._margin = reach(self._shape) + _BEYOND_PX + _LANCZOS
        padded = _padded(image, self._margin)
        # With a crop, what comes into view is known from beyond it; at the frame's border its last px is repeated.
        self._padded = np.ascontiguousarray(
            padded[rows.start : rows.stop + 2 * self._margin, columns.start : columns.stop + 2 * self._margin]
        )
        self.mean = float(image[area].mean())
        self._shifted = np.empty([side + 2 * _LANCZOS for side in self._shape], np.float32)

    def shifted(self, right: float, down: float) -> FloatImage:
        """The background as it looks after a drift; overwritten by the next call."""
        return _shifted(self._padded, self._margin, right, down, self._shifted)


class _Mean:
    """Mean of some frames, registered to the first of them."""

    def __init__(self, frames: int, first: FloatImage | None, shape: tuple[int, int]) -> None:
        self.frames = frames
        self._left = frames
        self._drift = None if first is None else Drift(first)
        self._total = np.zeros(shape, np.float64)

    def add(self, image: Image, flat: FloatImage) -> FloatImage | None:
        """Add a frame, and the same frame cropped and evenly lit; the mean once it is complete."""
        full = _finite(image)
        if self._drift is not None and self._left < self.frames:
            drift, quality = self._drift.measure(flat)
            if quality > _CHANCE:
                full = _moved(full, -drift[0], -drift[1])
        self._total += full
        self._left -= 1
        return None if self._left else (self._total / self.frames).astype(np.float32)


class _RollingMedian:
    """Median of every so manieth frame, worked out in strips, so that no frame has to wait for all of it."""

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
            sample = _finite(image)
            if any(drift):
                sample = _moved(sample, -drift[0], -drift[1])
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


def check_model(model: Model) -> None:
    """Raises `SettingsError` for a model that cannot segment what is prepared here."""
    if model.scaling != "percentiles":
        raise SettingsError(
            f"prepare: the model '{model.name}' takes grey levels as they are, which a difference image has not; "
            "allowed: models with the scaling percentiles, or no section prepare"
        )


def crop(settings: PrepareSettings, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a frame of (height, width) that are analysed.

    Raises:
        SettingsError: they reach beyond the frame.
    """
    if settings.crop_px is None:
        return slice(0, shape[0]), slice(0, shape[1])
    left, top, width, height = settings.crop_px
    if left + width > shape[1] or top + height > shape[0]:
        raise SettingsError(
            f"prepare.crop_px: {list(settings.crop_px)} reaches beyond the frame; "
            f"allowed: [left, top, width, height] within {shape[1]} x {shape[0]} px"
        )
    return slice(top, top + height), slice(left, left + width)


def reach(shape: tuple[int, ...]) -> int:
    """Largest drift in px that is followed in an image of this shape."""
    return min(REACH_PX, int(min(shape) * _REACH_SHARE))


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


def _overexposed(background: Background) -> list[tuple[str, str]]:
    share = float(np.mean(background.image == background.image.max()))
    if share <= _CLIPPED_SHARE:
        return []
    text = f"{share:.1%} of the background ({background.source}) are at its maximum: it looks overexposed"
    return [("background_overexposed", text)]


def _illumination(image: FloatImage) -> FloatImage:
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
    return _relative(polygrid2d(down, right, fit).astype(np.float32))


def _relative(illumination: FloatImage) -> FloatImage:
    """An illumination in units of its mean, nowhere near zero."""
    mean = float(illumination.mean())
    if not mean > 0:
        return np.ones_like(illumination)
    relative: FloatImage = np.maximum(illumination / np.float32(mean), np.float32(_DARKEST))
    return relative


def _gains(illumination: FloatImage, area: tuple[slice, slice]) -> FloatImage:
    gains: FloatImage = np.ascontiguousarray(1 / illumination[area])
    return gains


def _finite(image: Image) -> FloatImage:
    """A copy as float32, in which pixels that are not finite have the median's value."""
    copy: FloatImage = image.astype(np.float32)
    if copy.dtype.kind == image.dtype.kind and not math.isfinite(cv2.mean(copy)[0]):
        bad = ~np.isfinite(copy)
        copy[bad] = np.median(copy[~bad]) if not bad.all() else 0.0
    return copy


def _padded(image: FloatImage, margin: int) -> FloatImage:
    return np.asarray(cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REPLICATE), np.float32)


def _moved(image: FloatImage, right: float, down: float) -> FloatImage:
    """An image shifted by a part of a px or more."""
    margin = math.ceil(max(abs(right), abs(down))) + _LANCZOS + 1
    out = np.empty([side + 2 * _LANCZOS for side in image.shape], np.float32)
    return _shifted(_padded(image, margin), margin, right, down, out)


def _shifted(padded: FloatImage, margin: int, right: float, down: float, out: FloatImage) -> FloatImage:
    """The inside of an image that has a margin, after a shift of less than the margin - `_LANCZOS`.

    Args:
        padded: with `margin` px on each side.
        margin: see there.
        right: shift in px.
        down: shift in px.
        out: work space, `_LANCZOS` px larger than the inside on each side; the answer is a view of it or of `padded`.
    """
    height, width = (side - 2 * margin for side in padded.shape)
    whole_x, whole_y = round(right), round(down)
    top, left = margin - whole_y, margin - whole_x
    if (whole_x, whole_y) == (right, down):
        return padded[top : top + height, left : left + width]
    seen = padded[
        top - _LANCZOS : top + height + _LANCZOS,
        left - _LANCZOS : left + width + _LANCZOS,
    ]
    cv2.sepFilter2D(seen, cv2.CV_32F, _lanczos(right - whole_x), _lanczos(down - whole_y), out)
    return out[_LANCZOS:-_LANCZOS, _LANCZOS:-_LANCZOS]


def _lanczos(shift: float) -> NDArray[np.float32]:
    """Weights of the px from `_LANCZOS` before to `_LANCZOS` after that shift by up to half a px."""
    weights = _sinc(np.array([-shift]), np.arange(-_LANCZOS, _LANCZOS + 1), _LANCZOS)
    kernel: NDArray[np.float32] = weights[0].astype(np.float32)
    return kernel


def _sinc(at: NDArray[np.float64], places: NDArray[np.int_], width: int) -> NDArray[np.float64]:
    """Weights (at, places), of sum 1, that interpolate: a sinc under the window of Lanczos, `width` to each side."""
    distance = at[:, None] - places[None, :]
    weights = np.where(np.abs(distance) < width, np.sinc(distance) * np.sinc(distance / width), 0.0)
    normal: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normal


_Part = tuple[slice, slice]


def _overlap(shape: tuple[int, int], right: int, down: int) -> tuple[_Part, _Part, tuple[_Part, _Part]]:
    """Where the pixels of an image go that moves by whole px, where they come from, and which ones get nothing."""
    to, of, beyond = [], [], []
    for side, move in zip(shape, (down, right), strict=True):
        to.append(slice(max(0, move), side + min(0, move)))
        of.append(slice(max(0, -move), side - max(0, move)))
        beyond.append(slice(0, move) if move > 0 else slice(side + move, side))
    return (to[0], to[1]), (of[0], of[1]), ((beyond[0], slice(None)), (to[0], beyond[1]))


def _taper(n: int) -> NDArray[np.float64]:
    """A window of n px that falls off along a tenth at each end."""
    wide = max(1, n // 10)
    edge = np.sin(np.pi / 2 * (np.arange(wide) + 0.5) / wide) ** 2
    return np.concatenate([edge, np.ones(n - 2 * wide), edge[::-1]])


def _vertex(values: NDArray[np.floating]) -> float:
    """Where a parabola through three values at -1, 0, 1 is highest, within them."""
    before, here, after = (float(value) for value in values)
    bend = before - 2 * here + after
    return min(max(0.5 * (before - after) / bend, -1.0), 1.0) if bend < 0 else 0.0
