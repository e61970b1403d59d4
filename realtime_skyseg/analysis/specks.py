"""Where skyrmions are few, a speck of dirt is no skyrmion."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.records import Class, Mask

#: There are few if each has so many px^2, or if there are no more than four; and they cover no more than this share.
#: In the labelled images with so few, hardly one in an image goes; of 126, 81 and 128, which are packed with tiny ones,
#: every third would.
_SPACE_PX2, _ALWAYS, _SHARE = 2500, 4, 0.1

#: More outside and edge than this, and what is bright beside a skyrmion may be an element's edge.
_PATTERN = 0.01

#: What is smaller is no object (px^2), as `measure.min_area_px` has it by default.
_LEAST_PX2 = 10

#: Specks are smaller (px^2) than this. Of an object that the border has cut off, so many px are too few to tell.
_SMALL_PX2, _CUT_PX = 60, 3

#: What drift leaves of a speck is bright on one side and dark on the other: within so many px it is at least so bright,
#: relative to how dark it is. Of 11 specks in 200 saturated films of the twin the least is 0.73, of 12 small skyrmions
#: that are the first in their film the most is 0.51.
_AROUND_PX, _AS_BRIGHT = 6, 0.62

#: Standard deviation (px) of the Gaussian that takes the noise away.
_BLUR_PX = 1.5


def mark_specks(mask: Mask, shown: NDArray[np.float32]) -> None:
    """Give small dark objects that are as bright on their other side class DEFECT, in place, if there are few objects.

    And, in a film that is all but empty, those of which the border leaves hardly anything. Where there are many
    objects, what is bright beside one may be anything, and a speck more or less is within the error.

    Args:
        mask: (height, width) of classes.
        shown: (height, width) the image, scaled, in which skyrmions are dark.
    """
    dark: Any = (mask == Class.SKYRMION).view(np.uint8)
    if not 0 < cv2.countNonZero(dark) <= _SHARE * mask.size:
        return
    n, labels, boxes, _ = cv2.connectedComponentsWithStats(dark, connectivity=8)
    few = [(i, *map(int, boxes[i])) for i in range(1, n) if boxes[i, cv2.CC_STAT_AREA] >= _LEAST_PX2]
    empty = len(few) <= _ALWAYS
    if not empty and (
        len(few) > mask.size / _SPACE_PX2 or np.count_nonzero(mask >= Class.OUTSIDE) > _PATTERN * mask.size
    ):
        return
    height, width = mask.shape
    calm: Any = None
    film = 0.0
    for i, left, top, wide, tall, area in few:
        if area >= _SMALL_PX2:
            continue
        if calm is None:
            calm = cv2.GaussianBlur(shown, (0, 0), _BLUR_PX)
            film = float(np.median(calm[::4, ::4]))
        margin = _AROUND_PX
        box = np.s_[max(0, top - margin) : top + tall + margin, max(0, left - margin) : left + wide + margin]
        inside = labels[box] == i
        side = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
        around: Any = cv2.dilate(inside.astype(np.uint8), side) > inside
        darkest, brightest = film - float(calm[box][inside].min()), float(calm[box][around].max()) - film
        cut = (tall <= _CUT_PX and (top == 0 or top + tall == height)) or (
            wide <= _CUT_PX and (left == 0 or left + wide == width)
        )
        if (cut and empty) or brightest >= _AS_BRIGHT * darkest:
            mask[box][inside] = Class.DEFECT
