"""What a frame and its objects look like, in some sixty numbers that cost a millisecond.

They tell neither place nor brightness: a sample that is moved, lit brighter or recorded with other skyrmions looks the
same. What the numbers are compared with stands in the model's file, see `segmentation.trust`.
"""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from realtime_skyseg.analysers.objects import Runs, rows_of_components
from realtime_skyseg.grey_levels import percentiles
from realtime_skyseg.records import Class, Image, Kind, Mask, Objects

_LEVELS = 6

#: The names of `Looks.frame`, in order. Grey levels are in units of the image's 99th - 1st percentile.
FRAME_LOOKS = (
    *(f"energy_{level}" for level in range(_LEVELS)),  # log10 of the variance of differences between 2x2 cells
    *(f"direction_{level}" for level in range(4)),  # ln of those along rows / those along columns
    *(f"tail_{level}" for level in range(4)),  # mean of |difference| / root of its mean square: .8 for a Gaussian
    "diagonal_0", "diagonal_1",  # ln of the diagonal differences / half of the others
    "rows", "columns",  # ln of how much the means of rows, columns scatter / what white noise gives
    "hum_rows", "hum_columns",  # ln of the strongest wave in these / median
    "blocks",  # ln of steps at every 8th column / at others
    "gradient", "bend",  # of a plane, of a paraboloid, through the film
    "tear",  # ln of the largest step between neighbouring rows / median step
    "at_top", "at_bottom", "levels",  # share of pixels at the largest and smallest value; log10 of how many values
    "skewness", "kurtosis",  # of 4x4 cells
    "film_spread", "film_skewness", "film_kurtosis",  # of 4x4 cells of film
    "film_bright", "film_dark", "film_far",  # shares of those beyond 4 standard deviations; ln of the farthest
    "film_related",  # how much neighbouring cells of film have in common
    "unexplained",  # share of the variance of 2x2 cells that is not between film and skyrmions
    "noise", "contrast", "cnr",  # log10 of the pixel's noise, the skyrmions' median contrast, and that / noise
    "contrast_spread", "sharpness", "sharpness_spread",  # over objects; step at the border / contrast
    "wide_sharpness",  # the same over three px
    "halo",  # how much brighter than film it is right beside objects / contrast
    "density", "area", "diameter", "diameter_spread", "elongation", "filled",  # of objects
    "stripes", "largest",  # shares of the skyrmion pixels in stripes, in the largest object
    "outside", "defect", "edge",  # shares of the pixels
)  # fmt: skip

#: The names of `Looks.objects`, in order.
OBJECT_LOOKS = (
    "contrast", "signal", "sharpness", "grain", "halo", "diameter", "elongation", "filled", "relative_contrast",
    "relative_diameter", "border", "stripe", "sides", "wide_sharpness",
)  # fmt: skip

# numba knows no enumerations of integers by their own type.
_FILM, _SKYRMION, _STRIPE = int(Class.BACKGROUND), int(Class.SKYRMION), int(Kind.STRIPE)
_OUTSIDE, _DEFECT, _EDGE = int(Class.OUTSIDE), int(Class.DEFECT), int(Class.EDGE)


class Looks(NamedTuple):
    """What a frame looks like."""

    frame: NDArray[np.float32]  # (len(FRAME_LOOKS),)
    objects: NDArray[np.float32]  # (n, len(OBJECT_LOOKS)), a row per object
    focus: float  # width of the skyrmions' borders, px; NaN without skyrmions


def looks_of(image: Image, mask: Mask, objects: Objects, runs: tuple[Runs, int], inverted: bool) -> Looks:
    """Look at a segmented frame.

    Args:
        image: (height, width) as it was segmented; NaN beyond a crop.
        mask: (height, width) uint8 of `Class`.
        objects: its table.
        runs: of the mask, see `find_runs`.
        inverted: skyrmions are bright.
    """
    area = _whole(image)
    part: Any = np.ascontiguousarray(image[area])
    if part.dtype not in (np.uint8, np.uint16, np.float32):
        part = part.astype(np.float32)
    offset, gain = percentiles(part)
    gain = -gain if inverted else gain
    inside = mask[area]
    values = dict.fromkeys(FRAME_LOOKS, 0.0)
    cells, energies, rows, columns, steps = _first_level(part, offset, gain)
    _levels(values, cells, energies, rows, columns, part.shape)
    values["blocks"] = _log(steps[0] / max(steps[1], 1e-9), 1e-6)
    _histogram(values, part)
    quarter = _halved(cells[1:] if len(cells) % 2 else cells)
    film = _film_cells(inside, quarter.shape[0], quarter.shape[1])
    _moments(values, quarter, film)
    values["unexplained"] = _unexplained(cells, inside)
    noise = math.sqrt(max(energies[0, 2] * 4, 1e-12))
    each, sharp = _objects(part, offset, gain, runs, objects, area, noise)
    values["noise"] = math.log10(noise)
    _of_objects(values, each, objects, noise, inside.size)
    shares = _class_shares(inside)
    values["outside"], values["defect"], values["edge"] = (
        math.sqrt(shares[kind]) for kind in (Class.OUTSIDE, Class.DEFECT, Class.EDGE)
    )
    frame = np.array([values[name] for name in FRAME_LOOKS], np.float32)
    return Looks(np.nan_to_num(frame, posinf=0, neginf=0), each, 1 / sharp if sharp > 0 else math.nan)


def _whole(image: Image) -> tuple[slice, slice]:
    """The part of an image that is not beyond a crop."""
    height, width = image.shape
    if image.dtype.kind != "f" or np.isfinite(image[[0, 0, -1, -1], [0, -1, 0, -1]]).all():
        return slice(0, height), slice(0, width)
    finite = np.isfinite(image)
    down, right = np.flatnonzero(finite.any(1)), np.flatnonzero(finite.any(0))
    return slice(int(down[0]), int(down[-1]) + 1), slice(int(right[0]), int(right[-1]) + 1)


def _log(value: float, least: float = 1e-9) -> float:
    return math.log(max(value, least))


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _first_level(
    image: Image, offset: float, gain: float
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32], NDArray[np.float32], tuple[float, float]]:
    """2x2 cells, energies of their differences, means of rows and columns, steps at every 8th column and elsewhere.

    A Haar transform; energies are those of `_energies`.
    """
    height, width = image.shape[0] // 2, image.shape[1] // 2
    cells = np.empty((height, width), np.float32)
    rows, columns = np.zeros(2 * height, np.float32), np.zeros(2 * width, np.float32)
    sums = np.zeros(6)
    top, bottom = np.empty(2 * width, np.float32), np.empty(2 * width, np.float32)
    factor, shift, limit = np.float32(gain), np.float32(offset * gain), np.float32(4)
    at_eighth = elsewhere = 0.0
    for y in range(height):
        for x in range(2 * width):
            one = np.float32(image[2 * y, x]) * factor - shift
            other = np.float32(image[2 * y + 1, x]) * factor - shift
            one = one if abs(one) < limit else (limit if one > 0 else (-limit if one < 0 else np.float32(0)))
            other = other if abs(other) < limit else (limit if other > 0 else (-limit if other < 0 else np.float32(0)))
            top[x], bottom[x] = one, other
        first = second = np.float32(0)
        for x in range(2 * width):
            first += top[x]
            second += bottom[x]
            columns[x] += top[x] + bottom[x]
        rows[2 * y], rows[2 * y + 1] = first / (2 * width), second / (2 * width)
        _differences(top, bottom, cells[y], sums)
        if y % 2 == 0:
            for x in range(7, 2 * width - 2, 8):
                at_eighth += abs(top[x + 1] - top[x])
                elsewhere += abs(top[x] - top[x - 1])
    for x in range(2 * width):
        columns[x] /= 2 * height
    energies = np.zeros((1, 6))
    energies[0] = sums / (height * width)
    return cells, energies, rows, columns, (at_eighth, elsewhere)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _differences(
    top: NDArray[np.float32], bottom: NDArray[np.float32], cells: NDArray[np.float32], sums: NDArray[np.float64]
) -> None:
    """Two rows to one of cells; adds along rows, along columns, diagonal: squares, then absolute values."""
    rr = cc = dd = r1 = c1 = d1 = np.float32(0)
    quarter = np.float32(0.25)
    for x in range(len(cells)):
        a, b, c, d = top[2 * x], top[2 * x + 1], bottom[2 * x], bottom[2 * x + 1]
        along, down, diagonal = (a - b + c - d) * quarter, (a + b - c - d) * quarter, (a - b - c + d) * quarter
        cells[x] = (a + b + c + d) * quarter
        rr += along * along
        cc += down * down
        dd += diagonal * diagonal
        r1 += abs(along)
        c1 += abs(down)
        d1 += abs(diagonal)
    sums[0] += rr
    sums[1] += cc
    sums[2] += dd
    sums[3] += r1
    sums[4] += c1
    sums[5] += d1


@njit(cache=True, nogil=True)
def _next_level(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    cells, sums = np.empty((height, width), np.float32), np.zeros(6)
    for y in range(height):
        _differences(image[2 * y], image[2 * y + 1], cells[y], sums)
    return cells, sums / max(1, height * width)


def _halved(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return _next_level(image)[0]


def _levels(
    values: dict[str, float],
    cells: NDArray[np.float32],
    first: NDArray[np.float64],
    rows: NDArray[np.float32],
    columns: NDArray[np.float32],
    shape: tuple[int, ...],
) -> None:
    """Energies of all levels, what rows and columns tell, and how the light falls."""
    energy = first[0]
    level_cells, coarse = cells, cells
    for level in range(_LEVELS):
        if level:
            if min(level_cells.shape) < 4:
                energy = np.zeros(6)
            else:
                level_cells, energy = _next_level(level_cells)
                coarse = level_cells if min(level_cells.shape) >= 8 else coarse
        along, down, diagonal, along_1, down_1, _ = energy.tolist()
        values[f"energy_{level}"] = math.log10(along + down + diagonal + 1e-8)
        if level < 4:
            values[f"direction_{level}"] = math.log((along + 1e-9) / (down + 1e-9))
            root = math.sqrt(along) + math.sqrt(down)
            values[f"tail_{level}"] = (along_1 + down_1) / root if root > 0 else 0.8
        if level < 2:
            values[f"diagonal_{level}"] = math.log((2 * diagonal + 1e-9) / (along + down + 1e-9))
    white = 4 * first[0, 2] + 1e-10
    for name, means, across in (("rows", rows, shape[1]), ("columns", columns, shape[0])):
        waved, square, largest, median = _bends(means)
        values[name] = 0.5 * math.log((square / 6 + 1e-12) / (white / across))
        waves = np.abs(np.fft.rfft(waved))[len(waved) // 40 :]
        strongest, common = _largest_and_median(waves)
        values[f"hum_{name}"] = _log(strongest / max(common, 1e-9))
        if name == "rows":
            values["tear"] = _log(largest / max(median, 1e-6))
    gradient, bend = _light(coarse)
    values["gradient"], values["bend"] = math.log10(gradient + 1e-3), math.log10(bend + 1e-3)


@njit(cache=True, nogil=True)
def _bends(means: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, float, float]:
    """Second differences of the means of rows in a Hann window, their mean square, the largest and the median step."""
    n = len(means) - 2
    waved, square, steps = np.empty(n), 0.0, np.empty(n + 1)
    for i in range(n):
        bend = means[i] - 2 * means[i + 1] + means[i + 2]
        square += bend * bend
        waved[i] = bend * (0.5 - 0.5 * math.cos(2 * math.pi * i / max(1, n - 1)))
    for i in range(n + 1):
        steps[i] = abs(means[i + 1] - means[i])
    return waved, square / n, steps.max(), np.median(steps)


@njit(cache=True, nogil=True)
def _largest_and_median(values: NDArray[np.float64]) -> tuple[float, float]:
    return values.max(), np.median(values)


@njit(cache=True, nogil=True)
def _light(coarse: NDArray[np.float32]) -> tuple[float, float]:
    """How much of a plane and of a paraboloid there is in the coarsest cells, in orthogonal polynomials."""
    height, width = coarse.shape
    parts = np.zeros(4)
    norms = np.zeros(4)
    squares = np.array([_mean_square(height), _mean_square(width)])
    for i in range(height):
        y = 2 * i / (height - 1) - 1
        for j in range(width):
            x = 2 * j / (width - 1) - 1
            along = (y, x, y * y - squares[0], x * x - squares[1])
            for k in range(4):
                parts[k] += coarse[i, j] * along[k]
                norms[k] += along[k] * along[k]
    parts /= np.sqrt(norms * height * width)
    return math.hypot(parts[0], parts[1]), math.hypot(parts[2], parts[3])


@njit(cache=True, nogil=True)
def _mean_square(n: int) -> float:
    total = 0.0
    for i in range(n):
        total += (2 * i / (n - 1) - 1) ** 2
    return total / n


def _histogram(values: dict[str, float], image: Image) -> None:
    """What the camera's grey levels tell, on some ten thousand pixels."""
    step = max(1, int((image.size / 10_000) ** 0.5))
    sample = image[::step, ::step].ravel()
    top, bottom = sample.max(), sample.min()
    values["at_top"] = math.log10(np.count_nonzero(sample == top) / len(sample) + 1e-3)
    values["at_bottom"] = math.log10(np.count_nonzero(sample == bottom) / len(sample) + 1e-3)
    if image.dtype == np.uint8:
        levels = int(np.count_nonzero(np.bincount(sample, minlength=256)))
    else:
        levels = len(np.unique(sample[:: len(sample) // 2000 or 1]))
    values["levels"] = math.log10(min(levels, 256))


@njit(cache=True, nogil=True)
def _film_cells(mask: Mask, height: int, width: int) -> NDArray[np.bool_]:
    """Which 4x4 cells are film alone; looked at on every third pixel, and one px around."""
    film = np.empty((height, width), np.bool_)
    bottom, right = mask.shape[0] - 1, mask.shape[1] - 1
    for y in range(height):
        for x in range(width):
            alone = True
            for dy in range(-1, 6, 3):
                line = min(max(4 * y + dy, 0), bottom)
                for dx in range(-1, 6, 3):
                    if mask[line, min(max(4 * x + dx, 0), right)] != _FILM:
                        alone = False
                        break
                if not alone:
                    break
            film[y, x] = alone
    return film


@njit(cache=True, nogil=True)
def _class_shares(mask: Mask) -> NDArray[np.float64]:
    """Shares of outside, defects and edges by class, of every fourth row."""
    counts = np.zeros(5)
    rows = 0
    for y in range(0, mask.shape[0], 4):
        line, outside, defect, edge = mask[y], 0, 0, 0
        for x in range(len(line)):
            outside += line[x] == _OUTSIDE
            defect += line[x] == _DEFECT
            edge += line[x] == _EDGE
        counts[_OUTSIDE] += outside
        counts[_DEFECT] += defect
        counts[_EDGE] += edge
        rows += 1
    counts /= rows * mask.shape[1]
    return counts


def _moments(values: dict[str, float], cells: NDArray[np.float32], film: NDArray[np.bool_]) -> None:
    """How 4x4 cells are distributed: all of them, and those of film, each less the level of 21 cells around."""
    alone = film.astype(np.float32)
    share: Any = cv2.blur(alone, (21, 21))
    total: Any = cv2.blur(cells * alone, (21, 21))
    n, skewness, kurtosis, variance, third, fourth, bright, dark, far, related = _sums(cells, film, share, total)
    values["skewness"], values["kurtosis"] = skewness, _log(kurtosis)
    if n < 0.02 * film.size:
        return
    values["film_spread"] = 0.5 * math.log10(variance)
    values["film_skewness"], values["film_kurtosis"] = third, _log(fourth)
    values["film_bright"], values["film_dark"] = math.log10(bright / n + 1e-4), math.log10(dark / n + 1e-4)
    values["film_far"], values["film_related"] = _log(far), related


@njit(cache=True, nogil=True)
def _sums(
    cells: NDArray[np.float32], film: NDArray[np.bool_], share: NDArray[np.float32], total: NDArray[np.float32]
) -> tuple[float, float, float, float, float, float, float, float, float, float]:
    """Standardised third and fourth moments of all cells; of those of film their number, variance, moments, how many
    lie beyond 4 standard deviations above and below, how many of these the farthest is off, and what neighbours share.
    """
    height, width = cells.shape
    mean, n = 0.0, 0.0
    for y in range(height):
        for x in range(width):
            mean += cells[y, x]
    mean /= height * width
    second = third = fourth = 0.0
    rest = np.zeros((height, width), np.float32)
    film_2 = film_3 = film_4 = far = related = 0.0
    for y in range(height):
        for x in range(width):
            value = cells[y, x] - mean
            square = value * value
            second += square
            third += square * value
            fourth += square * square
            if film[y, x]:
                value = cells[y, x] - total[y, x] / max(share[y, x], np.float32(0.02))
                rest[y, x] = value
                square = value * value
                n += 1
                film_2 += square
                film_3 += square * value
                film_4 += square * square
                far = max(far, square)
                if x > 0:
                    related += value * rest[y, x - 1]
                if y > 0:
                    related += value * rest[y - 1, x]
    m = height * width
    variance = second / m + 1e-12
    film_variance = film_2 / max(n, 1.0) + 1e-12
    limit, bright, dark = 4 * math.sqrt(film_variance), 0.0, 0.0
    for y in range(height):
        for x in range(width):
            bright += rest[y, x] > limit
            dark += rest[y, x] < -limit
    some = max(n, 1.0)
    return (
        n, third / m / variance**1.5, fourth / m / variance**2, film_variance, film_3 / some / film_variance**1.5,
        film_4 / some / film_variance**2, bright, dark, math.sqrt(far / film_variance),
        related / (2 * some * film_variance),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _unexplained(cells: NDArray[np.float32], mask: Mask) -> float:
    """Share of the variance of 2x2 cells within film and within skyrmions; N. Otsu, 1979."""
    n, total, squares = np.zeros(2), np.zeros(2), np.zeros(2)
    for y in range(0, cells.shape[0], 3):
        for x in range(0, cells.shape[1], 3):
            kind = mask[2 * y, 2 * x]
            if kind <= _SKYRMION:
                n[kind] += 1
                total[kind] += cells[y, x]
                squares[kind] += cells[y, x] * cells[y, x]
    if n[0] < 1 or n[1] < 1:
        return 1.0
    within = squares[0] - total[0] ** 2 / n[0] + squares[1] - total[1] ** 2 / n[1]
    whole = squares.sum() - total.sum() ** 2 / n.sum()
    return float(within / max(whole, 1e-9))


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _along_runs(
    image: Image, offset: float, gain: float, runs: Runs, components: int, top: int, left: int
) -> NDArray[np.float64]:
    """Of each component: pixels, their sum and squares; at its left and right ends the number of steps and their sum,
    what lies two and four px beyond, and the steps over three px.
    """
    sums = np.zeros((components, 8))
    width = image.shape[1]
    factor, shift = np.float32(gain), np.float32(offset * gain)
    for run in range(len(runs.row)):
        of, line = sums[runs.component[run]], image[runs.row[run] - top]
        begin, end = runs.start[run] - left, runs.end[run] - left
        total = squares = np.float32(0)
        for x in range(begin, end):
            value = np.float32(line[x]) * factor - shift
            total += value
            squares += value * value
        of[0] += end - begin
        of[1] += total
        of[2] += squares
        for side in range(2):
            inner = end - 1 if side else begin
            sign = 1 if side else -1
            far, outer, near, within = inner + 4 * sign, inner + 2 * sign, inner + sign, inner - sign
            if 0 <= far < width and 0 <= within < width:
                of[3] += 1
                of[4] += (np.float32(line[near]) - np.float32(line[inner])) * factor
                of[5] += np.float32(line[outer]) * factor - shift
                of[6] += np.float32(line[far]) * factor - shift
                of[7] += (np.float32(line[outer]) - np.float32(line[within])) * factor
    return sums


def _objects(
    image: Image,
    offset: float,
    gain: float,
    runs: tuple[Runs, int],
    objects: Objects,
    area: tuple[slice, slice],
    noise: float,
) -> tuple[NDArray[np.float32], float]:
    """What each object looks like; and the mean step at borders, per px, in units of the contrast."""
    each = np.zeros((len(objects), len(OBJECT_LOOKS)), np.float32)
    if not len(objects):
        return each, math.nan
    found, components = runs
    sums = _along_runs(image, offset, gain, found, components, area[0].start, area[1].start)
    row = rows_of_components(found, components, objects["area"].astype(np.int64), objects["top"].astype(np.int64))
    table = np.empty((7, len(objects)))
    for line, name in zip(table, ("area", "diameter", "elongation", "width", "height", "border", "kind"), strict=True):
        line[:] = objects[name]
    return each, _fill(each, sums, row, table, noise)


@njit(cache=True, nogil=True)
def _fill(
    each: NDArray[np.float32],
    sums: NDArray[np.float64],
    row_of: NDArray[np.int64],
    table: NDArray[np.float64],
    noise: float,
) -> float:
    """Write `OBJECT_LOOKS` of each object; return the mean step at borders, per px, in units of the contrast."""
    area, diameter, elongation, width, height, border, kind = table
    n = len(each)
    contrasts, sharpnesses, steps, heights = np.zeros(n), np.zeros(n), 0.0, 0.0
    for component in range(len(row_of)):
        row, of = row_of[component], sums[component]
        if row < 0:
            continue
        pixels, ends = max(of[0], 1.0), max(of[3], 1.0)
        inner, beside, far = of[1] / pixels, of[5] / ends, of[6] / ends
        contrast = far - inner if of[3] > 0 else 0.0
        safe = max(contrast, 0.02)
        contrasts[row], sharpnesses[row] = contrast, min(max(of[4] / ends / safe, -1.0), 2.0)
        steps, heights = steps + of[4], heights + safe * ends
        looks = each[row]
        looks[0] = contrast
        looks[1] = math.log10(max(contrast, 1e-3) * math.sqrt(pixels) / noise)
        looks[2] = sharpnesses[row]
        looks[3] = math.log10((math.sqrt(max(of[2] / pixels - inner**2, 0.0)) + 1e-3) / noise)
        looks[4] = min(max((beside - far) / safe, -1.0), 2.0)
        looks[5] = math.log10(diameter[row])
        looks[6] = math.log10(max(elongation[row], 1.0))
        looks[7] = area[row] / max(width[row] * height[row], 1.0)
        looks[10], looks[11] = border[row], kind[row] == _STRIPE
        looks[12] = math.log10(ends / max(diameter[row], 1.0))
        looks[13] = min(max(of[7] / ends / safe, -1.0), 2.0)
    usual, common = max(np.median(contrasts), 0.02), np.log10(np.median(diameter))
    for row in range(n):
        looks = each[row]
        looks[8] = min(max(contrasts[row] / usual, -1.0), 3.0)
        looks[9] = looks[5] - common
        for k in range(each.shape[1]):
            if not abs(looks[k]) < 1e6:
                looks[k] = 0
    return steps / max(heights, 1e-9)


@njit(cache=True, nogil=True)
def _medians_and_spreads(each: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    medians, spreads = np.empty(each.shape[1]), np.empty(each.shape[1])
    for k in range(each.shape[1]):
        column = each[:, k].copy()
        medians[k] = np.median(column)
        spreads[k] = np.abs(column - medians[k]).mean()
    return medians, spreads


def _of_objects(
    values: dict[str, float], each: NDArray[np.float32], objects: Objects, noise: float, pixels: int
) -> None:
    """Medians and spreads over the objects."""
    values["density"] = math.log10(1 + 1e5 * len(objects) / pixels)
    if not len(objects):
        values["contrast"], values["cnr"], values["filled"], values["sharpness"] = -1.0, 0.0, 0.75, 0.3
        values["diameter"], values["wide_sharpness"] = 1.1, 0.6
        return
    medians, spreads = _medians_and_spreads(each)
    look = dict(zip(OBJECT_LOOKS, zip(medians.tolist(), spreads.tolist(), strict=True), strict=True))
    median = max(look["contrast"][0], 0.02)
    values["contrast"] = math.log10(median)
    values["cnr"] = math.log10(median / noise)
    values["contrast_spread"] = look["contrast"][1] / median
    values["sharpness"], values["sharpness_spread"] = look["sharpness"]
    values["wide_sharpness"], values["halo"] = look["wide_sharpness"][0], look["halo"][0]
    values["diameter"], values["diameter_spread"] = look["diameter"]
    values["elongation"], values["filled"] = look["elongation"][0], look["filled"][0]
    area = objects["area"].astype(np.float64)
    values["area"] = math.sqrt(float(area.sum()) / pixels)
    values["stripes"] = float(area[objects["kind"] == Kind.STRIPE].sum() / area.sum())
    values["largest"] = float(area.max() / area.sum())
