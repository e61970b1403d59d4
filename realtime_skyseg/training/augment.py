"""Random crops for training, changed in the ways in which Kerr images differ from lab to lab."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.records import Class, Mask
from realtime_skyseg.segmentation import scale
from realtime_skyseg.training.labelled import LabelledImage

#: Share of crops that show a film without any object, so that a saturated sample is not filled with false ones.
_EMPTY = 0.15


@dataclass(frozen=True, slots=True)
class _Scaled:
    image: NDArray[np.float32]
    mask: Mask


class Sampler:
    """Draws crops: first a source, then one of its images, so that long videos do not outvote single images."""

    def __init__(self, pairs: list[LabelledImage], crop_px: int, seed: int) -> None:
        self._crop = crop_px
        self._rng = np.random.default_rng(seed)
        by_source: dict[str, list[_Scaled]] = {}
        for pair in pairs:
            by_source.setdefault(pair.source, []).append(_Scaled(scale(pair.image), pair.mask))
        self._sources = list(by_source.values())

    def batch(self, size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Crops (size, 1, crop, crop) float32 and their masks (size, crop, crop) uint8."""
        crops = [self._crop_of_noise() if self._rng.random() < _EMPTY else self._crop_of_image() for _ in range(size)]
        return np.stack([image for image, _ in crops])[:, None], np.stack([mask for _, mask in crops])

    def _crop_of_image(self) -> tuple[NDArray[np.float32], Mask]:
        rng = self._rng
        image: Any
        source = self._sources[rng.integers(len(self._sources))]
        chosen = source[rng.integers(len(source))]
        image, mask = self._geometry(chosen.image, chosen.mask)
        image = image * np.float32(np.exp(rng.normal(0, 0.3))) + np.float32(rng.normal(0, 0.15))
        if rng.random() < 0.3:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))
        if rng.random() < 0.5:
            image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.3))
        if rng.random() < 0.3:
            image = image + self._gradient(0.3)
        if rng.random() < 0.5:
            image = -image  # bright skyrmions: `scale` is odd, so this is the inverted image
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(mask)

    def _geometry(self, image: Any, mask: Any) -> tuple[NDArray[np.float32], Mask]:
        """A crop at random position, scale (0.5 to 1.7), angle and mirror image."""
        rng, crop = self._rng, self._crop
        zoom = float(np.exp(rng.uniform(np.log(0.5), np.log(1.7))))
        height, width = image.shape
        side = min(int(crop / zoom), height, width)
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        if rng.random() < 0.3:
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
        return np.ascontiguousarray(image), np.ascontiguousarray(mask)

    def _crop_of_noise(self) -> tuple[NDArray[np.float32], Mask]:
        """A saturated film: noise and illumination, no object, scaled as a live frame would be."""
        image: Any = self._rng.standard_normal((self._crop, self._crop), np.float32)
        if self._rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), self._rng.uniform(0.3, 1.2))
        if self._rng.random() < 0.5:
            image = image / image.std() + self._gradient(1.0)
        return scale(image.astype(np.float32)), np.full(image.shape, Class.BACKGROUND, np.uint8)

    def _gradient(self, strength: float) -> NDArray[np.float32]:
        down, across = self._rng.normal(0, strength, 2)
        ramp = np.linspace(-1, 1, self._crop, dtype=np.float32)
        return (np.float32(down) * ramp[:, None] + np.float32(across) * ramp[None]).astype(np.float32)
