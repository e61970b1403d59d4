"""Random crops for training, changed in the ways in which Kerr images differ from lab to lab."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.config import TrainingSettings
from realtime_skyseg.records import Class, Mask
from realtime_skyseg.segmentation import scale
from realtime_skyseg.training.labelled import LabelledImage, read_labelled, split

#: Sources with objects below this diameter (px) are drawn twice as often: they are the hardest and the fewest.
_TINY_PX = 8.0

#: Pixels of skyrmions below this area count more.
_LARGE_PX = 100

#: Large domains: their radius, and their contrast over the noise. Most are as a frame shows them that was made smaller
#: until the network sees them whole, with little noise left; the others as the frame itself shows them.
_SMALLER, _LARGE = ((8.0, 60.0), (1.5, 12.0)), ((40.0, 200.0), (0.7, 2.5))
_LARGE_SHARE = 0.4

#: Domains that cover more than this share of a crop have not their share of the frame; most that they cover; and from
#: the 1st to the 99th percentile of noise, in its standard deviations.
_MUCH, _MOST, _NOISE_RANGE = 0.25, 0.85, 4.65

#: Neighbouring frames of a video whose skyrmions overlap at least this much (IoU) may be averaged.
_SAME = 0.6

#: Least share of the empty films that have dirt or rings, if any have: there they are taken for skyrmions and stripes.
_OF_EMPTY = 0.4


_NAMES = [value.name.lower() for value in Class]


@dataclass(frozen=True, slots=True)
class _Scaled:
    image: NDArray[np.float32]
    mask: Mask
    noise: float  # standard deviation of the image's own noise, in scaled units
    contrast: float  # between its skyrmions and the film, in scaled units; infinite without either
    diameter: float  # median of its objects, px; infinite without objects
    alike: list[NDArray[np.float32]]  # frames of the same video in which nearly nothing has moved

    def spare_noise(self, least_cnr: float) -> float:
        """Standard deviation of what may be added until contrast over noise is that."""
        most = self.contrast / least_cnr if least_cnr else np.inf
        return float(np.sqrt(max(0.0, most**2 - self.noise**2)))


class Sampler:
    """Draws crops: first a source, then one of its images, so that long videos do not outvote single images."""

    def __init__(self, pairs: list[LabelledImage], settings: TrainingSettings) -> None:
        self._crop = settings.crop_px
        self._how = settings.augment
        self._classes = settings.classes
        self._small_weight = settings.small_weight
        told: Mapping[str, float] = dict(settings.class_weights.items())
        self._class_weights = np.array([told.get(name, 1.0) for name in _NAMES], np.float32)
        self._rng = np.random.default_rng(settings.seed)
        self._sources, shares = _sources_of(pairs, 1 - sum(more.share for more in settings.more))
        for more in settings.more:
            sources, weights = _sources_of(read_labelled(more.images, more.labels, more.table), more.share)
            self._sources += sources
            shares += weights
        self._weights = np.array(shares) / sum(shares)

    @property
    def state(self) -> dict[str, Any]:
        """Of the random numbers, to go on from after a pause."""
        return dict(self._rng.bit_generator.state)

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def batch(self, size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
        """Crops (size, 1, crop, crop) float32, their masks and pixel weights (size, crop, crop) uint8 and float32."""
        crops = [self._one() for _ in range(size)]
        images, masks = np.stack([image for image, _ in crops]), np.stack([mask for _, mask in crops])
        masks[masks >= self._classes] = Class.BACKGROUND
        weights = np.stack([pixel_weights(mask, self._class_weights, self._small_weight) for mask in masks])
        return images[:, None], masks, weights

    def _one(self) -> tuple[NDArray[np.float32], Mask]:
        if self._often("empty"):
            return self._crop_of_noise()
        return self._crop_of_noise(domains=True) if self._often("domains") else self._crop_of_image()

    def _often(self, kind: str, of_empty: bool = False) -> bool:
        share: float = getattr(self._how, kind)
        return bool(self._rng.random() < (max(share, _OF_EMPTY) if share and of_empty else share))

    def _crop_of_image(self) -> tuple[NDArray[np.float32], Mask]:
        rng, how = self._rng, self._how
        source = self._sources[rng.choice(len(self._sources), p=self._weights)]
        chosen = source[rng.integers(len(source))]
        image: Any = chosen.image
        if chosen.alike and self._often("averaged"):
            image = (image + chosen.alike[rng.integers(len(chosen.alike))]) / 2  # averaged by the camera's software
        image, mask = self._geometry(image, chosen.mask)
        if self._often("blurred"):
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*how.blur_px))
        if self._often("noisy"):
            strength = np.float32(min(rng.uniform(0, how.noise) * chosen.noise, chosen.spare_noise(how.least_cnr)))
            image = image + rng.standard_normal(image.shape, np.float32) * strength
        if mask.max() < Class.OUTSIDE and self._often("patterned"):
            image, mask = self._pattern(image, mask, chosen.noise)
        if self._often("dirty"):
            image, mask = self._dirt(image, mask)
        image = image * np.float32(np.exp(rng.normal(0, how.contrast))) + np.float32(rng.normal(0, how.offset))
        if self._often("sloped"):
            image = image + self._gradient(how.slope)
        if self._often("ringed"):
            image = image + self._rings()
        if self._often("inverted"):
            image = -image  # bright skyrmions: `scale` is odd, so this is the inverted image
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(mask)

    def _geometry(self, image: Any, mask: Any) -> tuple[NDArray[np.float32], Mask]:
        """A crop at random position, scale, angle and mirror image."""
        rng, crop = self._rng, self._crop
        zoom = float(np.exp(rng.uniform(*np.log(self._how.zoom))))
        height, width = image.shape
        side = min(int(crop / zoom), height, width)
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        if self._often("rotated"):
            angle = rng.uniform(0, 360)
            centre = (left + side / 2, top + side / 2)
            turn = cv2.getRotationMatrix2D(centre, angle, crop / side)
            turn[:, 2] += np.array([crop / 2 - centre[0], crop / 2 - centre[1]])
            border = cv2.BORDER_REFLECT_101
            image = cv2.warpAffine(image, turn, (crop, crop), flags=cv2.INTER_LINEAR, borderMode=border)
            mask = cv2.warpAffine(mask, turn, (crop, crop), flags=cv2.INTER_NEAREST, borderMode=border)
        else:
            image, mask = image[top : top + side, left : left + side], mask[top : top + side, left : left + side]
            shrink = cv2.INTER_AREA if side > crop else cv2.INTER_LINEAR
            image = cv2.resize(image, (crop, crop), interpolation=shrink)
            mask = cv2.resize(mask, (crop, crop), interpolation=cv2.INTER_NEAREST_EXACT)
            quarter = int(rng.integers(4))
            image, mask = np.rot90(image, quarter), np.rot90(mask, quarter)
        if rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return np.ascontiguousarray(image), np.array(mask)

    def _crop_of_noise(self, domains: bool = False) -> tuple[NDArray[np.float32], Mask]:
        """A saturated film: noise and illumination, scaled as a live frame would be; or one with large domains."""
        rng, crop = self._rng, self._crop
        larger = rng.uniform(1, max(1, self._how.zoom[1])) if rng.random() < 0.5 else 1.0
        side = int(crop / larger)
        image: Any = rng.standard_normal((side, side), np.float32)
        if self._how.empty_blur_px > 0.3 and rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, self._how.empty_blur_px) / larger)
        image = cv2.resize(image, (crop, crop), interpolation=cv2.INTER_LINEAR)
        mask: Mask = np.full(image.shape, Class.BACKGROUND, np.uint8)
        cnr = 0.0
        if domains:
            radius, contrast = _LARGE if rng.random() < _LARGE_SHARE else _SMALLER
            mask = self._domains(radius)
            while (mask == Class.SKYRMION).mean() > _MOST:
                mask = self._domains(radius)
            cnr = float(np.exp(rng.uniform(*np.log(contrast))))
            wall = cv2.GaussianBlur((mask == Class.SKYRMION).astype(np.float32), (0, 0), rng.uniform(0.3, 1.2))
            image = image / image.std() - wall * np.float32(cnr)
        if rng.random() < 0.5:
            image = image / (1.0 if domains else image.std()) + self._gradient(1.0)
        if self._often("ringed", of_empty=True):
            # Some 4 standard deviations of noise are the contrast.
            image = image / (1.0 if domains else image.std()) + 4 * self._rings()
        if (mask == Class.SKYRMION).mean() > _MUCH:  # of the frame, of which the crop is a part, it is not much
            image = (image / np.float32(_NOISE_RANGE + cnr)).astype(np.float32)
        else:
            image = scale(image.astype(np.float32))
        if self._often("dirty", of_empty=True):
            image, mask = self._dirt(image, mask)
        return image, mask

    def _domains(self, radius_px: tuple[float, float]) -> Mask:
        """One to three large domains with a wall that wavers."""
        rng, crop = self._rng, self._crop
        mask = np.full((crop, crop), Class.BACKGROUND, np.uint8)
        for _ in range(rng.choice(3, p=(0.7, 0.2, 0.1)) + 1):
            radius = float(np.exp(rng.uniform(*np.log(radius_px))))
            angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
            wall = np.ones_like(angle)
            for wave in range(2, 7):
                wall += rng.normal(0, 0.15 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
            wall *= radius
            stretch, turn = float(np.exp(rng.uniform(0, 0.4))), rng.uniform(0, 2 * np.pi)
            along, across = wall * np.cos(angle) * stretch, wall * np.sin(angle) / stretch
            x = rng.uniform(0, crop) + along * np.cos(turn) - across * np.sin(turn)
            y = rng.uniform(0, crop) + along * np.sin(turn) + across * np.cos(turn)
            cv2.fillPoly(mask, [np.round(np.stack([x, y], 1)).astype(np.int32)], int(Class.SKYRMION))
            if (mask == Class.SKYRMION).mean() > _MUCH:
                break
        return mask

    def _dirt(self, image: Any, mask: Any) -> tuple[NDArray[np.float32], Mask]:
        """Specks and scratches as they look after the background was subtracted and the sample had drifted.

        What does not move with the field cancels out, but for the drift between background and image: a speck f(x)
        is left as f(x + d) - f(x), bright on one side and dark on the other. Some are left as the second difference,
        out of focus with a bright and a dark ring.
        """
        rng, crop = self._rng, self._crop
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 4)
        drift = (length * np.cos(angle), length * np.sin(angle))
        image, mask = image.copy(), mask.copy()
        largest = min(24, crop // 2 - 11)
        for _ in range(rng.integers(1, 9)):
            size = float(np.exp(rng.uniform(np.log(5), np.log(largest))))
            reach = int(size + 10)
            top, left = rng.integers(0, crop - 2 * reach + 1, 2)
            box = np.s_[top : top + 2 * reach, left : left + 2 * reach]
            pattern = _difference(self._speck(reach, size), drift, second=rng.random() < 0.3)
            strength = float(np.exp(rng.uniform(np.log(0.8), np.log(3))))
            pattern *= strength / max(float(np.abs(pattern).max()), 1e-6)
            seen: Any = (np.abs(pattern) > 0.4).astype(np.uint8)
            seen = cv2.dilate(cv2.morphologyEx(seen, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)), np.ones((3, 3)))
            image[box] += pattern
            mask[box][seen > 0] = Class.DEFECT
        return image, mask

    def _speck(self, reach: int, size: float) -> NDArray[np.float32]:
        """A ragged ellipse or a scratch in the middle of (2 reach, 2 reach), 0 to 1."""
        rng = self._rng
        canvas: Any = np.zeros((2 * reach, 2 * reach), np.float32)
        thin = size * (rng.uniform(0.05, 0.15) if rng.random() < 0.25 else rng.uniform(0.35, 1))
        axes = (size / 2, max(thin / 2, 0.5))
        # OpenCV draws with 4 fractional bits where `shift` says so.
        centre, radii = (reach * 16, reach * 16), (int(axes[0] * 16), int(axes[1] * 16))
        cv2.ellipse(canvas, centre, radii, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_8, 4)
        if size > 6:
            rough = cv2.GaussianBlur(rng.standard_normal(canvas.shape, np.float32), (0, 0), size / 8)
            canvas *= rough / rough.std() > -0.8
        return np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 1.2)), np.float32)

    def _pattern(self, image: Any, mask: Any, noise: float) -> tuple[NDArray[np.float32], Mask]:
        """Elements cut out of the film: outside of them the substrate, and an edge that drift leaves bright or dark."""
        rng = self._rng
        film = self._elements()
        if rng.random() < 0.3:
            film = ~film  # holes
        away: Any = cv2.distanceTransform(film.astype(np.uint8), cv2.DIST_L2, 5)
        away -= cv2.distanceTransform((~film).astype(np.uint8), cv2.DIST_L2, 5)  # above 0 inside
        substrate = rng.standard_normal(image.shape, np.float32) * np.float32(noise * rng.uniform(0.5, 1.2))
        image = np.where(film, image, substrate + np.float32(rng.normal(0, 0.5)))
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 3)
        soft: Any = cv2.GaussianBlur(film.astype(np.float32), (0, 0), rng.uniform(0.5, 1.5))
        drift = _difference(soft, (length * np.cos(angle), length * np.sin(angle)), second=False)
        line = np.exp(-(((away - rng.uniform(-2, 2)) / rng.uniform(0.7, 2)) ** 2))
        image = image + drift * np.float32(rng.normal(0, 1.5)) + line * np.float32(rng.normal(0, 0.7))
        width = rng.uniform(1, 4)
        mask = np.where(film, mask, Class.OUTSIDE).astype(np.uint8)
        mask[np.abs(away) < width] = Class.EDGE
        return np.asarray(image, np.float32), mask

    def _elements(self) -> NDArray[np.bool_]:
        """Where a random pattern has film: discs, rectangles, wires, triangles; (crop, crop)."""
        rng, crop = self._rng, self._crop
        film = np.zeros((crop, crop), np.uint8)
        for _ in range(rng.integers(1, 5)):
            centre = rng.uniform(0, crop, 2)
            size = crop * np.exp(rng.uniform(np.log(0.1), np.log(0.8)))
            corners = int(rng.choice([0, 2, 3, 4]))
            if corners == 0:
                cv2.circle(film, [int(value) for value in centre], int(size / 2), 1, -1)
                continue
            if corners == 2:  # a wire across the whole crop
                box = cv2.boxPoints(((centre[0], centre[1]), (3 * crop, size / 2), float(rng.uniform(0, 180))))
            elif corners == 3:
                corner = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3
                box = centre + size / 2 * np.stack([np.cos(corner), np.sin(corner)], 1)
            else:
                sides = (size, size * rng.uniform(0.4, 1))
                box = cv2.boxPoints(((centre[0], centre[1]), sides, float(rng.choice([0, rng.uniform(0, 90)]))))
            cv2.fillPoly(film, [np.asarray(box).astype(np.int32)], 1)
        return film > 0

    def _rings(self) -> NDArray[np.float32]:
        """Interference rings of the light, as Newton's: the phase grows with the square of the radius."""
        rng, crop = self._rng, self._crop
        y, x = np.mgrid[:crop, :crop].astype(np.float32)
        square = (y - rng.uniform(-crop, 2 * crop)) ** 2 + (x - rng.uniform(-crop, 2 * crop)) ** 2
        closest = rng.uniform(8, 60)  # px between two rings, where they are closest
        phase = square * np.float32(np.pi / (closest * np.sqrt(square.max()))) + np.float32(rng.uniform(0, 2 * np.pi))
        return np.asarray(np.cos(phase) * np.float32(rng.uniform(0, self._how.rings)), np.float32)

    def _gradient(self, strength: float) -> NDArray[np.float32]:
        down, across = self._rng.normal(0, strength, 2)
        ramp = np.linspace(-1, 1, self._crop, dtype=np.float32)
        return (np.float32(down) * ramp[:, None] + np.float32(across) * ramp[None]).astype(np.float32)


def preview(settings: TrainingSettings, n: int = 24) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """`n` crops as the network would learn from, (n, crop, crop) float32, and their masks. Raises as `split`."""
    images, masks, _ = Sampler(split(settings)[0], settings).batch(n)
    return images[:, 0], masks


def pixel_weights(
    mask: Mask, class_weights: NDArray[np.float32] | None = None, small_weight: float = 1.7
) -> NDArray[np.float32]:
    """How much each pixel of a mask counts in the loss, float32 of its shape.

    The pixels of a small skyrmion count more than those of a large one, so
    that it is not cheaper to miss it.

    Args:
        mask: of classes.
        class_weights: (classes,), of each class; None: all 1.
        small_weight: of a pixel of the smallest skyrmions.
    """
    weights = np.ones(mask.shape, np.float32) if class_weights is None else class_weights[mask]
    _, labels, stats, _ = cv2.connectedComponentsWithStats((mask == Class.SKYRMION).astype(np.uint8), connectivity=8)
    area = np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
    of_object = np.clip((_LARGE_PX / area) ** 0.3, 1, small_weight).astype(np.float32)
    of_object[0] = 1
    return np.asarray(weights * of_object[labels], np.float32)


def _difference(speck: NDArray[np.float32], drift: tuple[float, float], second: bool) -> NDArray[np.float32]:
    def moved(x: float, y: float) -> Any:
        shift = np.array([[1, 0, x], [0, 1, y]], np.float32)
        return cv2.warpAffine(speck, shift, speck.shape[::-1], borderMode=cv2.BORDER_REPLICATE)

    x, y = drift
    if second:
        return np.asarray(moved(x, y) + moved(-x, -y) - 2 * speck, np.float32)
    return np.asarray(moved(x, y) - speck, np.float32)


def _sources_of(pairs: list[LabelledImage], share: float) -> tuple[list[list[_Scaled]], list[float]]:
    """The images of each source, ready to be drawn, and how often the source is; `share` in all."""
    by_source: dict[str, list[LabelledImage]] = {}
    for pair in pairs:
        by_source.setdefault(pair.source, []).append(pair)
    sources = [_scaled(source) for source in by_source.values()]
    weights = [2.0 if min(image.diameter for image in source) < _TINY_PX else 1.0 for source in sources]
    return sources, [share * weight / sum(weights) for weight in weights]


def _scaled(source: list[LabelledImage]) -> list[_Scaled]:
    images = [scale(pair.image) for pair in source]
    skyrmions = [pair.mask == Class.SKYRMION for pair in source]
    found = []
    for index, pair in enumerate(source):
        neighbours = [other for other in (index - 1, index + 1) if 0 <= other < len(source)]
        alike = [images[other] for other in neighbours if _overlap(skyrmions[index], skyrmions[other]) > _SAME]
        noise, diameter = _noise(images[index]), _diameter(skyrmions[index])
        contrast = _contrast(images[index], skyrmions[index], pair.mask == Class.BACKGROUND)
        found.append(_Scaled(images[index], pair.mask, noise, contrast, diameter, alike))
    return found


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    if one.shape != other.shape:
        return 0.0
    return float((one & other).sum() / max(int((one | other).sum()), 1))


def _noise(image: NDArray[np.float32]) -> float:
    """Standard deviation of the noise, by the median of absolute differences of diagonal neighbours.

    The mixed difference of 2x2 pixels cancels gradients and straight edges (after Immerkaer, CVIU 64, 300, 1996).
    """
    mixed = image[1:, 1:] - image[1:, :-1] - image[:-1, 1:] + image[:-1, :-1]
    return float(np.median(np.abs(mixed)) / 0.6745 / 2)


def _contrast(image: NDArray[np.float32], skyrmions: NDArray[np.bool_], film: NDArray[np.bool_]) -> float:
    if not skyrmions.any() or not film.any():
        return float("inf")
    return abs(float(image[film].mean()) - float(image[skyrmions].mean()))


def _diameter(skyrmion: NDArray[np.bool_]) -> float:
    """Median over the objects of the diameter of the disc of equal area; infinite without objects."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(skyrmion.astype(np.uint8), connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]
    return float(np.sqrt(4 * np.median(area[area >= 10]) / np.pi)) if (area >= 10).any() else float("inf")
