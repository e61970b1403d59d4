"""What a model sees in good and in damaged images: the looks of frames and objects, beside what is true."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from realtime_skyseg.analysers.looks import looks_of
from realtime_skyseg.analysers.objects import find_runs, measure
from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.records import Kind
from realtime_skyseg.training.damage import DAMAGE, OTHERWISE, damaged
from realtime_skyseg.training.evaluate import matched_objects
from realtime_skyseg.training.labelled import LabelledImage

#: A good image is one also 1.3 times as large or small, with bright skyrmions, or with contrast and noise changed.
_ZOOMS = (0.75, 1.3)

#: Each kind of damage is done to so large a share of the images, plainly or mildly.
_SHARE = 0.6


@dataclass(slots=True)
class Case:
    """One image as a model saw it."""

    fold: int
    source: str
    name: str
    damage: str  # of `DAMAGE`; "": none
    severity: float
    frame: NDArray[np.float32]  # looks
    objects: NDArray[np.float32]  # looks, a row per object
    counted: NDArray[np.bool_]  # (n,) the object is a skyrmion, no stripe
    right: NDArray[np.bool_]  # (n,) it is one in the label, too; all False where nothing is known
    true: int  # skyrmions in the label; -1: nothing is known
    made: bool = False  # the image was simulated

    @property
    def good(self) -> bool:
        """Nothing was done to it that leads out of range."""
        return not self.damage

    @property
    def counted_right(self) -> bool:
        """The count can be believed: it is off by at most 3, or 15 %."""
        return self.true >= 0 and abs(int(self.counted.sum()) - self.true) <= max(3, 0.15 * self.true)


def look_at(segmenter: Segmenter, pair: LabelledImage, damage: str = "", severity: float = 0) -> Case | None:
    """Segment an image and compare; None: nothing can be told of it."""
    found = segmenter(pair.image)
    if found.count is None:
        return None
    looks = looks_of(pair.image, found.mask, found.objects, find_runs(found.mask), found.polarity > 0)
    label = pair.mask.copy()
    rules = segmenter.rules
    true = measure(label, rules.min_area_px, rules.stripe_slenderness)
    return Case(
        pair.fold, pair.source, pair.name, damage, severity, looks.frame, looks.objects,
        found.objects["kind"] == Kind.SKYRMION, matched_objects(found.objects, label),
        -1 if damage in OTHERWISE else true.count or 0,
    )  # fmt: skip


def good_cases(pairs: Iterable[LabelledImage], segmenter_of: Callable[[LabelledImage], Segmenter], seed: int = 1,
               made: bool = False) -> list[Case]:  # fmt: skip
    """Of images as they are, and of what leaves them good: another magnification, polarity, contrast, noise."""
    random = np.random.default_rng(seed)
    cases = []
    for pair in track(list(pairs), "good images", transient=True):
        versions = [pair, *([] if made else _varied(pair, random))]
        cases += [case for one in versions if (case := look_at(segmenter_of(one), one))]
    return [replace(case, made=made) for case in cases]


def bad_cases(pairs: Iterable[LabelledImage], segmenter_of: Callable[[LabelledImage], Segmenter], seed: int = 2,
              share: float = _SHARE) -> list[Case]:  # fmt: skip
    """Of images that something was done to, see `damage`."""
    random = np.random.default_rng(seed)
    cases = []
    for pair in track(list(pairs), "damaged images", transient=True):
        for damage in DAMAGE:
            if random.random() < share:
                severity = 1.0 if random.random() < 0.5 else float(random.uniform(0.5, 1))
                image = damaged(pair.image, damage, random, severity)
                one = replace(pair, image=image)
                if case := look_at(segmenter_of(one), one, damage, severity):
                    cases.append(case)
    return cases


def _varied(pair: LabelledImage, random: np.random.Generator) -> list[LabelledImage]:
    height, width = pair.image.shape
    versions = [replace(pair, image=np.invert(pair.image))]
    for zoom in _ZOOMS:
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(pair.image, None, fx=zoom, fy=zoom, interpolation=how))[:height, :width]
        mask = np.asarray(cv2.resize(pair.mask, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST_EXACT))
        grain = random.normal(0, 1 if zoom < 1 else 3, image.shape)
        versions.append(
            replace(pair, image=_as(pair.image, image + grain), mask=mask[:height, :width].astype(np.uint8))
        )
    # Contrast by half to one and a half; noise is changed with it.
    middle = float(np.median(pair.image))
    changed = middle + (pair.image.astype(np.float32) - middle) * random.uniform(0.5, 1.5) + random.uniform(-20, 20)
    versions.append(replace(pair, image=_as(pair.image, changed)))
    return versions


def _as(like: NDArray[Any], image: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(np.clip(np.rint(image), 0, np.iinfo(like.dtype).max).astype(like.dtype))
