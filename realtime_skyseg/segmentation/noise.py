"""Whether an image holds anything but noise."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

#: Pixels are averaged over squares of these sides: skyrmions of 5 to 60 px stand out at one of them. Most images are
#: told from noise by the first, which costs least.
_CELLS_PX = (8, 4)

#: Illumination changes over more than so many cells, and is taken out.
_SLOW_CELLS = 25

#: Standard errors of skewness and of kurtosis, and standard deviations of the farthest cell, that noise does not reach:
#: in 880 fields of noise, white and correlated over 1 to 3 px (standard deviation of the Gaussian), 3.8 was the most
#: of the former, and 5.5 of the latter.
_MOMENT, _EXTREME = 4.5, 6.5

#: Neighbours among the larger cells are related by more than this in an image of something larger, and in noise by at
#: most 0.36 (correlated over 3 px).
_RELATED = 0.45

#: Fewer of the larger cells tell too little: of an image of less than some 300x320 px.
_FEWEST = 1500


def looks_like_noise(image: NDArray[np.float32]) -> bool:
    """Whether the grey levels, averaged over cells, are distributed as Gaussian noise is, correlated or not.

    Skyrmions on a film make the distribution skew, as many as cover half of it make it flat, and a single one is an
    extreme value. What is larger than noise relates neighbours. Dirt and edges are no noise either. Moments are
    compared with their standard errors for independent values (skewness sqrt(6 / n), kurtosis sqrt(24 / n)), with n
    reduced by what neighbours share.

    Args:
        image: (height, width) float32.
    """
    if image.size < _FEWEST * _CELLS_PX[0] ** 2:
        return False
    for side in _CELLS_PX:
        size = image.shape[1] // side, image.shape[0] // side
        cells: NDArray[np.float32] = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)
        cells -= np.asarray(cv2.blur(cells, (_SLOW_CELLS, _SLOW_CELLS), borderType=cv2.BORDER_REFLECT), np.float32)
        squares = cells * cells
        variance = float(squares.mean())
        if not variance > 0:
            return False
        shared = (cells[:, 1:] * cells[:, :-1]).mean(), (cells[1:] * cells[:-1]).mean()
        related = [max(0.0, float(value) / variance) for value in shared]
        n = cells.size * math.prod((1 - r) / (1 + r) for r in related)
        skewness = float((squares * cells).mean()) / variance**1.5
        kurtosis = float((squares * squares).mean()) / variance**2 - 3
        farthest = math.sqrt(float(squares.max()) / variance)
        if (
            abs(skewness) > _MOMENT * math.sqrt(6 / n)
            or abs(kurtosis) > _MOMENT * math.sqrt(24 / n)
            or farthest > _EXTREME
            or (side == _CELLS_PX[0] and max(related) > _RELATED)
        ):
            return False
    return True
