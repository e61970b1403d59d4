"""Domains larger than what the network sees at once: found in the image made smaller."""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.records import Class, Mask

#: The image is made smaller by this factor: domains of 80 to 400 px become 20 to 100 px.
FACTOR = 4

#: Cells of this many px, and how related neighbours are (correlation) in an image with a domain that covers several.
#: Of 119 labelled images, none of which has one, 20 reach it, most of the patterned ones among them.
_CELLS = ((16, 0.42), (32, 0.42))

#: What is smaller (px^2) is the network's own at full size.
LEAST_PX2 = math.pi / 4 * 60**2

#: The least contrast of a domain against the film around, in units of the smaller image's contrast.
_CONTRAST = 0.25

#: No more of a domain is outside at full size: what is beside a patterned element is no domain. (95 % and more where
#: that is so in labelled images; the inside of made domains passes for outside up to 62 %.)
_PATTERN = 0.85

#: In a domain grey levels scatter as they do around it, but for this factor (variance): skyrmions or stripes that lie
#: close together are no large domain.
_ALIKE = 2.0


def may_show_large_domains(shown: NDArray[np.float32]) -> bool:
    """Whether neighbouring cells of an image, scaled, are so alike that something may be larger than they are."""
    smaller: NDArray[np.float32] = shown
    before = 1
    for side, related in _CELLS:
        factor = side // before
        size = smaller.shape[1] // factor, smaller.shape[0] // factor
        if min(size) < 8:
            return False
        smaller, before = np.asarray(cv2.resize(smaller, size, interpolation=cv2.INTER_AREA), np.float32), side
        cells = smaller - np.float32(smaller.mean())
        variance = float((cells * cells).mean())
        if (
            variance > 0
            and min(float((cells[:, 1:] * cells[:, :-1]).mean()), float((cells[1:] * cells[:-1]).mean()))
            > related * variance
        ):
            return True
    return False


def smaller_image(shown: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image by `FACTOR` smaller: means over squares."""
    size = shown.shape[1] // FACTOR, shown.shape[0] // FACTOR
    return np.asarray(cv2.resize(shown, size, interpolation=cv2.INTER_AREA), np.float32)


def add_large_domains(mask: Mask, found: Mask, small: NDArray[np.float32], shown: NDArray[np.float32]) -> int:
    """Put the large domains of the smaller image into the mask, in place of what was found there at full size.

    Args:
        mask: (height, width), changed in place.
        found: mask of the smaller image.
        small: the smaller image, scaled.
        shown: (height, width) the image, scaled.

    Returns:
        how many there are.
    """
    dark: Any = (found == Class.SKYRMION).astype(np.uint8)
    n, labels, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=8)
    film = found == Class.BACKGROUND
    pattern = smaller_image((mask == Class.OUTSIDE).astype(np.float32))
    within = (
        smaller_image(shown * shown) - smaller_image(shown) ** 2
    )  # variance inside a cell: noise, and what is smaller than a domain
    large: Any = np.zeros_like(dark)
    count = 0
    for number in range(1, n):
        if stats[number, cv2.CC_STAT_AREA] < LEAST_PX2 / FACTOR**2:
            continue
        domain: Any = (labels == number).astype(np.uint8)
        around = (cv2.dilate(domain, np.ones((13, 13), np.uint8)) > cv2.dilate(domain, np.ones((5, 5), np.uint8))) & (
            film
        )
        inner = cv2.erode(domain, np.ones((3, 3), np.uint8)) > 0
        if around.sum() < 40 or inner.sum() < 40:
            continue
        contrast = float(small[around].mean()) - float(small[inner].mean())
        scatter = float(within[inner].mean()) / max(float(within[around].mean()), 1e-12)
        cells = float(small[inner].var()) / max(float(small[around].var()), 1e-12)
        if contrast < _CONTRAST or max(scatter, cells) > _ALIKE or float(pattern[inner].mean()) > _PATTERN:
            continue
        large |= domain
        count += 1
    if count:
        _put(mask, large)
    return count


def _put(mask: Mask, large: NDArray[np.uint8]) -> None:
    height, width = mask.shape
    soft = cv2.resize(large.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    domain: Any = (soft > 0.5).astype(np.uint8)
    reached = cv2.dilate(domain, np.ones((2 * FACTOR + 1, 2 * FACTOR + 1), np.uint8)) > 0
    n, labels = cv2.connectedComponents((mask == Class.SKYRMION).astype(np.uint8), connectivity=8)
    touched = np.zeros(n, np.bool_)
    touched[np.unique(labels[reached])] = True
    touched[0] = False
    mask[touched[labels]] = Class.BACKGROUND
    mask[domain > 0] = Class.SKYRMION
