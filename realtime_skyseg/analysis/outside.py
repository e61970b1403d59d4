"""Plain film is never outside the sample: what is outside lies beyond an edge, or beyond where skyrmions end."""

from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from realtime_skyseg.records import Class, Mask

#: At least this share of the border of an outside, where it is not the image's, has an edge or skyrmions so near (px).
_BORDERED, _NEAR_PX = 0.15, 12

_OUTSIDE = int(Class.OUTSIDE)


def keep_bordered(mask: Mask) -> None:
    """Turn every outside with hardly an edge, and hardly skyrmions, along its border into film, in place.

    An outside is a 4-connected component of that class. One that fills the image has no border, and stays.
    """
    outside: Any = mask == Class.OUTSIDE
    if not outside.any():
        return
    n, labels = cv2.connectedComponents(outside.astype(np.uint8), connectivity=4)
    marks: Any = ((mask == Class.EDGE) | (mask == Class.SKYRMION)).astype(np.uint8)
    near: Any = cv2.dilate(marks, np.ones((2 * _NEAR_PX + 1, 2 * _NEAR_PX + 1), np.uint8))
    bordered, bare = _borders(mask, labels, near, n)
    film = bare * _BORDERED > bordered * (1 - _BORDERED)
    film[0] = False
    if film.any():
        mask[film[labels]] = Class.BACKGROUND


@njit(cache=True, nogil=True)
def _borders(mask: Mask, labels: NDArray[np.int32], near: Mask, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each component: how many of its pairs of neighbours with another class are near a mark, and how many not."""
    bordered, bare = np.zeros(n, np.int64), np.zeros(n, np.int64)
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            here = mask[y, x] == _OUTSIDE
            for down, right in ((0, 1), (1, 0)):
                if y + down < height and x + right < width and here != (mask[y + down, x + right] == _OUTSIDE):
                    component = labels[y, x] if here else labels[y + down, x + right]
                    if near[y, x]:
                        bordered[component] += 1
                    else:
                        bare[component] += 1
    return bordered, bare
