"""How good masks are: pixels, objects and counts against labels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from realtime_skyseg.records import Class, Image, Mask
from realtime_skyseg.segmenter import Segmenter
from realtime_skyseg.training.labelled import LabelledImage, read_labelled

#: Label fragments below this area are noise.
MIN_AREA_PX = 10


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The raw counts behind all figures of one image."""

    name: str
    skyrmion: tuple[int, int, int, int]  # pixels: true positive, false positive, false negative, true negative
    defect: tuple[int, int, int, int]
    matched: int  # pairs of objects with IoU > 0.5
    found: int  # objects in the mask
    labelled: int  # objects in the label


@dataclass(frozen=True, slots=True)
class Scores:
    """Pooled counts over images, and each image's own."""

    images: list[ImageScore]

    def figures(self) -> dict[str, float]:
        """The figures that `skyseg evaluate` reports; objects and pixels pooled, count errors per image."""
        return _figures(self.images)

    def as_dict(self) -> dict[str, Any]:
        """All figures, pooled and per image."""
        return {
            **self.figures(),
            "images": len(self.images),
            "per_image": [
                {"image": score.name, **_figures([score]), "found": score.found, "labelled": score.labelled}
                for score in self.images
            ],
        }


def score_image(name: str, mask: Mask, label: Mask) -> ImageScore:
    """Compare a mask with its label, both (height, width) uint8 of `Class` values.

    Objects are 8-connected components of class skyrmion of at least `MIN_AREA_PX`; two match at IoU > 0.5.
    """
    found, found_area = _components(mask == Class.SKYRMION)
    true, true_area = _components(label == Class.SKYRMION)
    both = (found > 0) & (true > 0)
    pairs, shared = np.unique(found[both].astype(np.int64) * len(true_area) + true[both], return_counts=True)
    i, j = np.divmod(pairs, len(true_area))
    union = found_area[i] + true_area[j] - shared
    large = (found_area[i] >= MIN_AREA_PX) & (true_area[j] >= MIN_AREA_PX)
    return ImageScore(
        name=name,
        skyrmion=_confusion(mask == Class.SKYRMION, label == Class.SKYRMION),
        defect=_confusion(mask == Class.DEFECT, label == Class.DEFECT),
        matched=int((large & (shared / union > 0.5)).sum()),
        found=int((found_area[1:] >= MIN_AREA_PX).sum()),
        labelled=int((true_area[1:] >= MIN_AREA_PX).sum()),
    )


def score(pairs: Iterable[LabelledImage], segment: Callable[[Image], Mask]) -> Scores:
    """Segment every image and compare it with its label."""
    return Scores([score_image(pair.name, segment(pair.image), pair.mask) for pair in pairs])


def evaluate(
    segmenter: Segmenter,
    images: Path,
    labels: Path,
    table: Path | None = None,
    folds: Iterable[int] | None = None,
    invert: bool = False,
) -> Scores:
    """Score a model, with its engine, on a folder of labelled images.

    Args:
        segmenter: what to score.
        images: folder of images.
        labels: folder of label pictures of the same names.
        table: CSV with the columns image, source_id and fold.
        folds: keep only these folds.
        invert: turn dark into bright.

    Raises:
        SettingsError: see `read_labelled`.
    """
    pairs = read_labelled(images, labels, table, folds)

    def segment(image: Image) -> Mask:
        # Images are unsigned integers: all bits flipped is white minus image.
        return segmenter(np.invert(image) if invert else image).mask

    return score(track(pairs, "evaluating", transient=True), segment)


def _components(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA].astype(np.int64)


def _confusion(found: np.ndarray, true: np.ndarray) -> tuple[int, int, int, int]:
    hit = int((found & true).sum())
    positive, labelled = int(found.sum()), int(true.sum())
    return hit, positive - hit, labelled - hit, found.size - positive - labelled + hit


def _figures(images: list[ImageScore]) -> dict[str, float]:
    tp, fp, fn, tn = (float(sum(image.skyrmion[k] for image in images)) for k in range(4))
    defect_tp, defect_fp, defect_fn, _ = (float(sum(image.defect[k] for image in images)) for k in range(4))
    matched = sum(image.matched for image in images)
    found, labelled = sum(image.found for image in images), sum(image.labelled for image in images)
    errors = [abs(image.found - image.labelled) / max(image.labelled, 1) for image in images]
    return {
        "skyrmion_iou": _ratio(tp, tp + fp + fn),
        "skyrmion_mcc": _mcc(tp, fp, fn, tn),
        "defect_iou": _ratio(defect_tp, defect_tp + defect_fp + defect_fn),
        "object_precision": _ratio(matched, found),
        "object_recall": _ratio(matched, labelled),
        "object_f1": _ratio(2 * matched, found + labelled),
        "count_mape": float(np.mean(errors)),
        "count_median_ape": float(np.median(errors)),
    }


def _ratio(part: float, whole: float) -> float:
    """0 / 0 counts as 1: nothing was there and nothing was claimed."""
    return part / whole if whole else 1.0


def _mcc(tp: float, fp: float, fn: float, tn: float) -> float:
    """Matthews correlation coefficient; where it is undefined, 1 for a flawless mask and else 0."""
    denominator: float = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    if denominator == 0:
        return 1.0 if fp == fn == 0 else 0.0
    return (tp * tn - fp * fn) / denominator
