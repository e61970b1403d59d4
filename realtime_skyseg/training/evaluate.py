"""How good masks are: pixels, objects and counts against labels, and whether the network knows how sure it is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.spatial import KDTree

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.records import Class, Image, Kind, Mask, Objects
from realtime_skyseg.training.labelled import LabelledImage

#: Label fragments below this area are noise.
MIN_AREA_PX = 10

#: Objects are also matched by their centroids: at most as far apart as the labelled one's radius, and this much (px).
_LEAST_REACH_PX = 2.0

#: An image is of the first state that fits: patterned with so large a share of edge and outside, empty without objects,
#: a maze with so large a share of the skyrmion pixels in one object, stripes with so large a share in stripes, few with
#: fewer than so many objects, else many.
_PATTERNED, _MAZE, _STRIPES, _FEW = 0.005, 0.5, 0.3, 20
STATES = ("few", "many", "stripes", "maze", "empty", "patterned")

#: Probabilities are counted in this many bins between 0 and 1.
_BINS = 100

#: Bins that are put together where observed shares are compared with probabilities.
_PER_CALIBRATION_BIN = 5


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The raw counts behind all figures of one image."""

    name: str
    source: str
    confusion: NDArray[np.int64]  # (5, 5) pixels: class in the label, class in the mask
    matched: int  # pairs of objects with IoU > 0.5
    found: int  # objects in the mask
    labelled: int  # objects in the label
    near: int  # pairs of objects by the distance of their centroids
    radius_px: float  # sum over the matched: radius found minus radius labelled, of discs of their areas
    off_rim: tuple[int, int, int]  # hit, false and missed skyrmion pixels farther than 1 px from the label's border
    state: str  # one of `STATES`, by the label
    sureness: NDArray[np.int64] | None  # (2, bins) pixels: not skyrmion / skyrmion in the label, by its probability


@dataclass(frozen=True, slots=True)
class Scores:
    """Pooled counts over images, and those of each source, state and image."""

    images: list[ImageScore]

    def figures(self) -> dict[str, float]:
        """The figures that `skyseg evaluate` reports; objects and pixels pooled, count errors per image."""
        return _figures(self.images)

    def classes(self) -> dict[str, dict[str, float]]:
        """IoU, F1, MCC, and the pixels in label and mask, of each class, pooled."""
        return _classes(self.images)

    def sources(self) -> dict[str, dict[str, float]]:
        """`figures` of each source."""
        return self._by(lambda image: image.source)

    def states(self) -> dict[str, dict[str, float]]:
        """`figures` of the images in each state of the film, with their number."""
        return self._by(lambda image: image.state)

    def over_sources(self) -> dict[str, dict[str, float]]:
        """Mean and standard deviation over the sources of each of their `figures`.

        What a new sample may bring: pooled figures are those of the few images with the most objects.
        """
        rows = list(self.sources().values())
        columns = {key: [row[key] for row in rows if np.isfinite(row[key])] for key in (rows[0] if rows else ())}
        return {
            "mean": {key: float(np.mean(column)) if column else float("nan") for key, column in columns.items()},
            "sd": {key: float(np.std(column)) if column else float("nan") for key, column in columns.items()},
        }

    def _by(self, key: Callable[[ImageScore], str]) -> dict[str, dict[str, float]]:
        names = sorted({key(image) for image in self.images}, key=lambda name: (len(name), name))
        return {name: _figures([image for image in self.images if key(image) == name]) for name in names}

    def sureness(self) -> dict[str, Any] | None:
        """How far the probability of class skyrmion can be believed; None where it was not looked at.

        `ece` is the expected calibration error (Naeini et al., AAAI 2015) in 20 bins, `average_precision` the area
        under the curve of precision over recall, which no choice of a threshold touches.
        """
        counts = [image.sureness for image in self.images if image.sureness is not None]
        return _sureness(np.sum(counts, axis=0)) if counts else None

    def as_dict(self) -> dict[str, Any]:
        """All figures: pooled, per class, per source and per image."""
        record: dict[str, Any] = {
            **self.figures(),
            "images": len(self.images),
            "classes": self.classes(),
            "over_sources": self.over_sources(),
            "per_state": self.states(),
            "per_source": self.sources(),
        }
        sureness = self.sureness()
        if sureness is not None:
            record["ece"], record["average_precision"] = sureness["ece"], sureness["average_precision"]
            record["sureness"] = sureness
        record["per_image"] = [
            {
                "image": score.name,
                "source": score.source,
                "state": score.state,
                **_figures([score]),
                "found": score.found,
                "labelled": score.labelled,
                "classes": _classes([score]),
            }
            for score in self.images
        ]
        return record


def score_image(
    name: str, mask: Mask, label: Mask, source: str = "", probability: NDArray[np.float32] | None = None
) -> ImageScore:
    """Compare a mask with its label, both (height, width) uint8 of `Class` values.

    Objects are 8-connected components of class skyrmion of at least `MIN_AREA_PX`; two match at IoU > 0.5. They are
    matched a second time by the distance of their centroids, nearest pairs first, which no opinion on the border
    touches.

    Args:
        name: of the image.
        mask: what was found.
        label: what is true.
        source: of the image.
        probability: (height, width), of class skyrmion.
    """
    found, found_area = _components(mask == Class.SKYRMION)
    true, true_area = _components(label == Class.SKYRMION)
    both = (found > 0) & (true > 0)
    pairs, shared = np.unique(found[both].astype(np.int64) * len(true_area) + true[both], return_counts=True)
    i, j = np.divmod(pairs, len(true_area))
    union = found_area[i] + true_area[j] - shared
    large = (found_area[i] >= MIN_AREA_PX) & (true_area[j] >= MIN_AREA_PX)
    same = large & (shared / union > 0.5)
    radius = np.sqrt(found_area[i[same]] / np.pi) - np.sqrt(true_area[j[same]] / np.pi)
    rim = _rim(label == Class.SKYRMION)
    hit, claimed, meant = (
        int((pixels & ~rim).sum())
        for pixels in ((found > 0) & (label == Class.SKYRMION), mask == Class.SKYRMION, label == Class.SKYRMION)
    )
    n = len(Class)
    sureness = None
    if probability is not None:
        bins = np.minimum((probability * _BINS).astype(np.int64), _BINS - 1)
        joint = (label == Class.SKYRMION).astype(np.int64) * _BINS + bins
        sureness = np.bincount(joint.ravel(), minlength=2 * _BINS).reshape(2, _BINS)
    return ImageScore(
        name=name,
        source=source,
        confusion=np.bincount(label.ravel().astype(np.int64) * n + mask.ravel(), minlength=n * n).reshape(n, n),
        matched=int(same.sum()),
        found=int((found_area[1:] >= MIN_AREA_PX).sum()),
        labelled=int((true_area[1:] >= MIN_AREA_PX).sum()),
        near=_near(found, true),
        radius_px=float(radius.sum()),
        off_rim=(hit, claimed - hit, meant - hit),
        state=state_of(label),
        sureness=sureness,
    )


def state_of(label: Mask) -> str:
    """The state of the film in a label, one of `STATES`."""
    if (label >= Class.OUTSIDE).mean() >= _PATTERNED:
        return "patterned"
    found = measure(label.copy(), MIN_AREA_PX)
    if not len(found.objects):
        return "empty"
    area = found.objects["area"]
    if area.max() >= _MAZE * area.sum() and found.stripes:
        return "maze"
    if area[found.objects["kind"] == Kind.STRIPE].sum() >= _STRIPES * area.sum():
        return "stripes"
    return "few" if len(area) < _FEW else "many"


def score(pairs: Iterable[LabelledImage], segment: Callable[[Image], Mask]) -> Scores:
    """Segment every image and compare it with its label."""
    return Scores([score_image(pair.name, segment(pair.image), pair.mask, pair.source) for pair in pairs])


def evaluate(segmenter: Segmenter, pairs: list[LabelledImage]) -> tuple[Scores, list[Mask]]:
    """Score a model with its engine. Probabilities, which engines do not give, come from torch in float32.

    Returns:
        The scores, and the masks that were found, in the order of `pairs`.
    """
    outputs = segmenter.network_outputs()
    scores, masks = [], []
    for pair in track(pairs, "evaluating", transient=True):
        found = segmenter(pair.image)
        masks.append(found.mask)
        probability = outputs(found.polarity > 0, "probability", pair.image)
        scores.append(score_image(pair.name, found.mask, pair.mask, pair.source, probability))
    return Scores(scores), masks


def worst(
    scores: Scores, pairs: list[LabelledImage], masks: list[Mask], n: int = 3
) -> list[tuple[str, Image, Mask, Mask]]:
    """Title, image, label and mask of the `n` images with the lowest object F1."""
    figures = [_figures([image]) for image in scores.images]
    cases = []
    for index in np.argsort([figure["object_f1"] for figure in figures])[:n]:
        figure, pair = figures[index], pairs[index]
        title = f"{pair.name}, object F1 {figure['object_f1']:.2f}, IoU {figure['skyrmion_iou']:.2f}"
        cases.append((title, pair.image, pair.mask, masks[index]))
    return cases


def changed(
    pairs: list[LabelledImage], invert: bool = False, zoom: float = 1.0, noise: float = 0.0
) -> list[LabelledImage]:
    """The same images made harder, to see what a model stands.

    Args:
        pairs: what to change.
        invert: turn dark into bright.
        zoom: enlarge or shrink images and labels.
        noise: standard deviation of added white noise, in grey levels of 8 bits.
    """
    rng = np.random.default_rng(0)
    result = []
    for pair in pairs:
        image: Any = np.invert(pair.image) if invert else pair.image  # all bits flipped is white minus image
        mask: Any = pair.mask
        if zoom != 1.0:
            size = (round(image.shape[1] * zoom), round(image.shape[0] * zoom))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        if noise:
            white = float(np.iinfo(image.dtype).max)
            noisy = image + rng.normal(0, noise * white / 255, image.shape)
            image = np.clip(np.rint(noisy), 0, white).astype(image.dtype)
        result.append(LabelledImage(pair.name, pair.source, pair.fold, image, mask))
    return result


def _rim(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels within 1 px of a border between True and False, on both sides."""
    grey, kernel = pixels.astype(np.uint8), np.ones((3, 3), np.uint8)
    return np.asarray(cv2.dilate(grey, kernel) != cv2.erode(grey, kernel))


def _near(found: np.ndarray, true: np.ndarray) -> int:
    """Pairs of objects whose centroids are near each other; each object is in one pair at most."""
    return len(_nearest(_centroids(found)[0], *_centroids(true)))


def matched_objects(objects: Objects, label: Mask) -> NDArray[np.bool_]:
    """(n,) which objects of a table have one of the label near them, by their centroids; see `score_image`."""
    matched = np.zeros(len(objects), np.bool_)
    points = np.stack([objects["y"], objects["x"]], 1).astype(np.float64)
    matched[_nearest(points, *_centroids(_components(label == Class.SKYRMION)[0]))] = True
    return matched


def _nearest(found: np.ndarray, true: np.ndarray, reach: np.ndarray) -> list[int]:
    """Which of the points found are nearest to a true one within its reach, nearest pairs first."""
    if not len(found) or not len(true):
        return []
    pairs = KDTree(found).sparse_distance_matrix(KDTree(true), float(reach.max()), output_type="ndarray")
    pairs = np.sort(pairs[pairs["v"] <= reach[pairs["j"]]], order="v")
    matched: list[int] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for i, j in zip(pairs["i"].tolist(), pairs["j"].tolist(), strict=True):
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            matched.append(i)
    return matched


def _centroids(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) rows and columns, and (n,) radii or the least reach, of the objects that are large enough."""
    area = np.bincount(labels.ravel())
    rows, columns = np.nonzero(labels)
    which = labels[rows, columns]
    sums = [np.bincount(which, weights, minlength=len(area)) for weights in (rows, columns)]
    kept = np.flatnonzero(area >= MIN_AREA_PX)
    kept = kept[kept > 0]
    yx = np.stack([total[kept] / area[kept] for total in sums], 1)
    return yx, np.maximum(np.sqrt(area[kept] / np.pi), _LEAST_REACH_PX)


def _components(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA].astype(np.int64)


def _pixels(images: list[ImageScore], value: Class) -> tuple[float, float, float, float]:
    """True positive, false positive, false negative, true negative pixels of one class."""
    confusion = np.sum([image.confusion for image in images], axis=0)
    hit = float(confusion[value, value])
    found, labelled = float(confusion[:, value].sum()), float(confusion[value].sum())
    return hit, found - hit, labelled - hit, float(confusion.sum()) - found - labelled + hit


def _classes(images: list[ImageScore]) -> dict[str, dict[str, float]]:
    figures = {}
    for value in Class:
        tp, fp, fn, tn = _pixels(images, value)
        figures[value.name.lower()] = {
            "iou": _ratio(tp, tp + fp + fn),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "mcc": _mcc(tp, fp, fn, tn),
            "precision": _ratio(tp, tp + fp),
            "recall": _ratio(tp, tp + fn),
            "labelled_px": tp + fn,
            "found_px": tp + fp,
        }
    return figures


def _figures(images: list[ImageScore]) -> dict[str, float]:
    confusion = np.sum([image.confusion for image in images], axis=0)
    tp, fp, fn, tn = _pixels(images, Class.SKYRMION)
    defect_tp, defect_fp, defect_fn, _ = _pixels(images, Class.DEFECT)
    matched = sum(image.matched for image in images)
    found, labelled = sum(image.found for image in images), sum(image.labelled for image in images)
    near = sum(image.near for image in images)
    hit, false, missed = (sum(image.off_rim[k] for image in images) for k in range(3))
    errors = [abs(image.found - image.labelled) / max(image.labelled, 1) for image in images]
    return {
        "pixel_accuracy": float(np.trace(confusion) / max(int(confusion.sum()), 1)),
        "skyrmion_iou": _ratio(tp, tp + fp + fn),
        "skyrmion_iou_off_rim": _ratio(hit, hit + false + missed),
        "skyrmion_mcc": _mcc(tp, fp, fn, tn),
        "skyrmion_precision": _ratio(tp, tp + fp),
        "skyrmion_recall": _ratio(tp, tp + fn),
        "defect_iou": _ratio(defect_tp, defect_tp + defect_fp + defect_fn),
        "object_precision": _ratio(matched, found),
        "object_recall": _ratio(matched, labelled),
        "object_f1": _ratio(2 * matched, found + labelled),
        "object_f1_by_distance": _ratio(2 * near, found + labelled),
        "radius_bias_px": sum(image.radius_px for image in images) / matched if matched else float("nan"),
        "count_mape": float(np.mean(errors)),
        "count_median_ape": float(np.median(errors)),
    }


def _sureness(counts: NDArray[np.int64]) -> dict[str, Any]:
    """See `Scores.sureness`; counts (2, bins)."""
    total = max(int(counts.sum()), 1)
    coarse = counts.reshape(2, -1, _PER_CALIBRATION_BIN)
    middle = (np.arange(_BINS) + 0.5) / _BINS
    pixels = coarse.sum((0, 2))
    expected = (counts.sum(0) * middle).reshape(-1, _PER_CALIBRATION_BIN).sum(1)
    ece = float(np.abs(coarse[1].sum(1) - expected).sum() / total)
    # From the highest threshold to the lowest.
    hit, claimed = np.cumsum(counts[1, ::-1]), np.cumsum(counts.sum(0)[::-1])
    precision = hit / np.maximum(claimed, 1)
    recall = hit / max(int(hit[-1]), 1)
    return {
        "ece": ece,
        "average_precision": float(np.sum(np.diff(recall, prepend=0.0) * precision)),
        "threshold": [round(float(value), 3) for value in np.arange(_BINS)[::-1] / _BINS],
        "precision": precision.round(5).tolist(),
        "recall": recall.round(5).tolist(),
        "probability": (expected / np.maximum(pixels, 1)).round(4).tolist(),
        "observed": (coarse[1].sum(1) / np.maximum(pixels, 1)).round(4).tolist(),
        "pixels": pixels.tolist(),
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
