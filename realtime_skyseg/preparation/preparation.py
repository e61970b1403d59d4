"""A frame through all steps of `prepare`, in order."""

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.config import PrepareSettings
from realtime_skyseg.errors import FrameError, SettingsError
from realtime_skyseg.preparation.background import (
    MeanOfFrames,
    RollingMedian,
    find_illumination,
    load_image,
    warn_overexposed,
)
from realtime_skyseg.preparation.drift import Drift, Reference
from realtime_skyseg.preparation.image import FloatImage, crop, gains_of, relative_to_mean
from realtime_skyseg.preparation.shift import overlap_of
from realtime_skyseg.records import Background, Class, Image, Mask, Segmentation
from realtime_skyseg.segmentation.model import Model


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

    >>> from realtime_skyseg import open_run
    >>> from realtime_skyseg.records import Skipped
    >>> with open_run(path) as run:
    ...     preparation, polarity = Preparation(settings, run.raw[0].shape, run.backgrounds()), 0
    ...     for index, row in enumerate(run.table):
    ...         live = row["skipped"] == Skipped.NOT_SKIPPED
    ...         prepared = preparation(run.raw[index], index, keep=live)
    ...         found = preparation.place(segmenter(prepared.image, polarity=polarity))
    ...         assert (found.mask == run.mask[index]).all()
    ...         polarity = row["polarity"] if live else polarity

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
            self._flat = relative_to_mean(load_image(settings.flat_field_path, shape, "prepare.flat_field"))
        self._stored: Iterator[Background] | None = None
        self._next: Background | None = None  # applies from its first frame on
        if stored is not None:
            self._stored = iter(stored)
            self._next = next(self._stored, None)
        elif settings.background_path:
            image = load_image(settings.background_path, shape, "prepare.background")
            self._next = Background(image, 0, settings.background_path)
        self._gains = None if self._flat is None else gains_of(self._flat, self._area)
        self._reference: Reference | None = None
        self._drift: Drift | None = None
        self._last_drift = (0.0, 0.0)
        self._lost = False  # the drift
        self._warned = False  # that there is no background
        self._requested = 0  # frames of the background that was asked for
        self._lock = threading.Lock()
        self._mean: MeanOfFrames | None = None
        self._median: RollingMedian | None = None
        if settings.background == "rolling_median" and stored is None:
            self._median = RollingMedian(settings.median_frames, settings.median_every, shape)
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
                events += warn_overexposed(self._next)
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
            to, of, beyond = overlap_of(self.shape, right, down)
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
            illumination = find_illumination(image)
        if illumination is not None:
            image = image / illumination
            self._gains = gains_of(illumination, self._area)
        self._reference = Reference(image, self._area)
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
            self._mean = MeanOfFrames(requested, flat if self._settings.drift else None, self._full_shape)
        if self._mean is not None:
            mean = self._mean.add(image, flat)
            if mean is None:
                return
            of = f"the mean of {self._mean.frames} frames up to frame {index}"
            self._mean = None
            if mean.max() > mean.min():
                background = Background(mean, index + 1, "taken")
                events.append(("background_taken", f"{of} is subtracted from frame {index + 1} on"))
                events += warn_overexposed(background)
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


def check_model(model: Model) -> None:
    """Raises `SettingsError` for a model that cannot segment what is prepared here."""
    if model.scaling != "percentiles":
        raise SettingsError(
            f"prepare: the model '{model.name}' takes grey levels as they are, which a difference image has not; "
            "allowed: models with the scaling percentiles, or no section prepare"
        )
