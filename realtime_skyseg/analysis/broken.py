"""A stripe that noise has broken is one stripe: gaps that are dark themselves are closed."""

from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from realtime_skyseg.records import Class, Mask

#: Gaps are what a closing with this fills: up to 8 px.
_CLOSING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))

#: A gap that is at least so dark, from the film (0) to the domains (1), is none: between two domains that end there it
#: is as bright as the film, but for what the optics blur. On the labelled images and on films of the twin .4 to .6 do
#: alike.
_DARK = 0.5

#: How far around a gap two domains may still meet, px.
_AROUND = 4

#: Levels are means over every so manieth pixel of every so manieth row.
_FEW = 3

_SKYRMION, _BACKGROUND = int(Class.SKYRMION), int(Class.BACKGROUND)


def close_gaps(mask: Mask, shown: NDArray[np.float32]) -> None:
    """Make dark gaps between two skyrmions or stripes part of them, in place.

    Args:
        mask: (height, width) of classes.
        shown: (height, width) the image, scaled, in which domains are dark.
    """
    dark: Any = (mask == Class.SKYRMION).view(np.uint8)
    closed: Any = cv2.morphologyEx(dark, cv2.MORPH_CLOSE, _CLOSING, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    few, some = shown[::_FEW, ::_FEW], mask[::_FEW, ::_FEW]  # enough for a mean
    domains, film = few[some == Class.SKYRMION], few[some == Class.BACKGROUND]
    if len(domains) and len(film):
        level = float(film.mean())
        gaps: Any = cv2.subtract(closed, dark)
        whole = gaps.ravel()[: gaps.size // 8 * 8].view(np.uint64)
        _close(mask, dark, gaps, whole, shown, level + _DARK * (float(domains.mean()) - level))


@njit(cache=True, nogil=True)
def _close(
    mask: Mask, dark: Mask, gaps: Mask, eights: NDArray[np.uint64], shown: NDArray[np.float32], threshold: float
) -> None:
    height, width = mask.shape
    places = np.empty((height * width, 2), np.int32)  # a page of memory that is not written to costs nothing
    for eight in range(len(eights) + 1):  # of eight pixels hardly ever one is in a gap
        if eight < len(eights) and not eights[eight]:
            continue
        for pixel in range(8 * eight, min(8 * eight + 8, height * width)):
            y, x = pixel // width, pixel % width
            if not gaps[y, x]:
                continue
            n = _gather(gaps, y, x, places)
            if not _is_dark(shown, mask, places[:n], threshold):
                continue
            top, left = max(places[:n, 0].min() - _AROUND, 0), max(places[:n, 1].min() - _AROUND, 0)
            bottom = min(places[:n, 0].max() + _AROUND + 1, height)
            right = min(places[:n, 1].max() + _AROUND + 1, width)
            if _parts(dark[top:bottom, left:right].copy(), places[:n], top, left) > 1:
                for k in range(n):
                    mask[places[k, 0], places[k, 1]] = _SKYRMION


@njit(cache=True, nogil=True)
def _gather(gaps: Mask, y: int, x: int, places: NDArray[np.int32]) -> int:
    """The pixels of the gap that (y, x) belongs to, taken out of `gaps`; return how many."""
    height, width = gaps.shape
    places[0, 0], places[0, 1], gaps[y, x] = y, x, 0
    n, at = 1, 0
    while at < n:
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                v, u = places[at, 0] + dy, places[at, 1] + dx
                if 0 <= v < height and 0 <= u < width and gaps[v, u]:
                    gaps[v, u] = 0
                    places[n, 0], places[n, 1] = v, u
                    n += 1
        at += 1
    return n


@njit(cache=True, nogil=True)
def _is_dark(shown: NDArray[np.float32], mask: Mask, places: NDArray[np.int32], threshold: float) -> bool:
    """Whether a gap, in means over 3x3 px, is below that level, and all of it film."""
    height, width = shown.shape
    total, count = 0.0, 0
    for k in range(len(places)):
        y, x = places[k]
        if mask[y, x] != _BACKGROUND:
            return False
        for v in range(max(y - 1, 0), min(y + 2, height)):
            for u in range(max(x - 1, 0), min(x + 2, width)):
                total += shown[v, u]
                count += 1
    return total < threshold * count


@njit(cache=True, nogil=True)
def _parts(window: Mask, places: NDArray[np.int32], top: int, left: int) -> int:
    """Into how many parts the domains that touch a gap fall, near it. The window is used up."""
    height, width = window.shape
    stack = np.empty((height * width, 2), np.int32)
    parts = 0
    for k in range(len(places)):
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                y, x = places[k, 0] - top + dy, places[k, 1] - left + dx
                if not (0 <= y < height and 0 <= x < width and window[y, x]):
                    continue
                parts += 1
                stack[0, 0], stack[0, 1], window[y, x] = y, x, 0
                n = 1
                while n:
                    n -= 1
                    v, u = stack[n, 0], stack[n, 1]
                    for b in range(max(v - 1, 0), min(v + 2, height)):
                        for a in range(max(u - 1, 0), min(u + 2, width)):
                            if window[b, a]:
                                window[b, a] = 0
                                stack[n, 0], stack[n, 1] = b, a
                                n += 1
    return parts
