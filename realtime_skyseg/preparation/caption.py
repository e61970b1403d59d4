"""Caption bars and scale bars, as microscopes' programs draw them into what they export."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.records import Image, Mask

#: In a bar neighbouring pixels differ by no more than this much of what they differ by in the film, which has noise.
_FLAT = 0.2

#: At least this share of neighbouring pixels differ in an image of a film.
_NOISY = 0.2

#: Shares of a row that have the bar's level: in its outermost row, in a row of letters, and not in the film beyond it.
_OUTERMOST, _LETTERS, _FILM = 0.9, 0.25, 0.15

#: Heights of a bar: px, and share of the image.
_LEAST_PX, _MOST = 6, 0.4

#: A scale bar in the film has one extreme grey level: its least length and thickness, px, length over thickness, share
#: of its box that it fills, and the largest share of the image with that level.
_LONG_PX, _THICK_PX, _SLENDER, _FILLED, _RARE = 24, 2, 4, 0.98, 0.05

#: Where specks of the extreme level, below so many px^2, cover more than this share, the film's noise has some: then
#: they are no parts of letters.
_SPECK_PX2, _SPECKLED = 4, 0.001


@dataclass(frozen=True, slots=True)
class Drawn:
    """What shows no sample."""

    film: tuple[slice, slice]  # rows and columns between the bars along the sides
    inside: NDArray[np.bool_] | None  # scale bars and letters in the film, of its shape

    def put(self, mask: Mask, value: int) -> None:
        """Give that class to what is drawn, in place."""
        rows, columns = self.film
        mask[: rows.start] = mask[rows.stop :] = mask[:, : columns.start] = mask[:, columns.stop :] = value
        if self.inside is not None:
            mask[self.film][self.inside] = value

    def without(self, image: Image) -> Image:
        """A copy in which what is drawn shows film: mirrored from beyond a bar, and the median within the film."""
        film = image[self.film]
        if self.inside is not None:
            film = film.copy()
            film[self.inside] = np.median(film[::4, ::4]).astype(film.dtype)
        missing = [(side.start, n - side.stop) for side, n in zip(self.film, image.shape, strict=True)]
        whole: Any = np.pad(film, missing, mode="symmetric")
        return np.asarray(whole)


def find_drawn(image: Image) -> Drawn | None:
    """Pixels that show no sample but what a program drew: bars of one level along a side, scale bars in the film.

    A bar along a side is flat, where a film has noise, but for letters, and ends along a straight line. A scale bar
    is a filled rectangle of the image's highest or lowest level; letters beside it belong to it. An image without
    noise, of which nothing of this can be told, has none.

    Args:
        image: (height, width), of any kind of number.

    Returns:
        None where nothing is drawn.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # pixels that are not finite are like no other
        return _find(image)


def _find(image: Image) -> Drawn | None:
    few: Any = np.abs(np.diff(image[:: max(1, image.shape[0] // 12)].astype(np.float32), axis=1))[:, ::3]
    few = few[np.isfinite(few)] if image.dtype.kind == "f" else few
    if not few.size:
        return None
    noise = float(np.median(few) or few.mean())  # the camera's few levels may leave most neighbours equal
    if not 0 < noise < np.inf or np.mean(few > 0) < _NOISY:
        return None
    ends = [_bar(side, _FLAT * noise) for side in (image, image[::-1], image.T, image.T[::-1])]
    film = slice(ends[0], image.shape[0] - ends[1]), slice(ends[2], image.shape[1] - ends[3])
    inside = _scale_bars(image[film])
    return Drawn(film, inside) if any(ends) or inside is not None else None


def _bar(side: Image, tolerance: float) -> int:
    """How many rows from the first are a bar; 0: none."""
    level = np.float32(np.median(side[0, ::4]))
    if not np.mean(np.abs(side[0].astype(np.float32) - level) <= tolerance) >= _OUTERMOST:
        return 0
    most = int(_MOST * side.shape[0])
    alike = np.mean(np.abs(side[: most + 1].astype(np.float32) - level) <= tolerance, axis=1)
    film = np.flatnonzero(alike < _LETTERS)
    if not len(film) or film[0] < _LEAST_PX or alike[film[0]] > _FILM:
        return 0
    return int(film[0])


def _scale_bars(film: Image) -> NDArray[np.bool_] | None:
    """Scale bars that lie in the film, with what is written beside them."""
    few = film[::_THICK_PX, :: _LONG_PX // 3]  # three of them, in a row, lie in any bar
    drawn = None
    for extreme in (few.max(), few.min()):
        hit = few == extreme
        if not (hit[:, :-2] & hit[:, 1:-1] & hit[:, 2:]).any() or hit.mean() > _RARE:
            continue
        same: Any = (film == extreme).astype(np.uint8)
        if same.mean() > _RARE:
            continue
        _, labels, stats, _ = cv2.connectedComponentsWithStats(same, connectivity=8)
        left, top, width, height, area = (stats[1:, column].astype(np.float64) for column in range(5))
        long = (width >= _LONG_PX) & (height >= _THICK_PX) & (width >= _SLENDER * height)
        least = _SPECK_PX2 if area[area < _SPECK_PX2].sum() > _SPECKLED * film.size else 1
        for bar in np.flatnonzero(long & (area >= _FILLED * width * height)):
            reach = max(3 * height[bar], width[bar] / 2, 20)
            near = (
                (area >= least)
                & (left + width > left[bar] - width[bar] / 4)
                & (left < left[bar] + 1.25 * width[bar])
                & (top + height > top[bar] - reach)
                & (top < top[bar] + height[bar] + reach)
            )
            letters = np.isin(labels, 1 + np.flatnonzero(near)).astype(np.uint8)
            rim: Any = cv2.dilate(letters, np.ones((5, 5), np.uint8)) > 0
            drawn = rim if drawn is None else drawn | rim
    return drawn
