"""What tracks tell: mean squared displacement, diffusion, van Hove function, where skyrmions stay."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (m, 2): x, y


@dataclass(frozen=True, slots=True)
class Diffusion:
    """A diffusion constant, in the points' unit squared per frame.

    Attributes:
        constant: over all tracks.
        error: one standard error, from the scatter between tracks.
        noise: how uncertain a position is, standard deviation along one axis; NaN where it comes out imaginary.
        tracks: (n,) numbers of the tracks with three positions in a row.
        of_track: (n,) the constant of each.
        error_of_track: (n,) its standard error, from the number of steps alone.
    """

    constant: float
    error: float
    noise: float
    tracks: NDArray[np.int64]
    of_track: NDArray[np.float64]
    error_of_track: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StayMap:
    """Where skyrmions stay, in square cells of the frame.

    Attributes:
        visits: (rows, columns) positions in the cell, of all tracks and frames.
        dwell_frames: (rows, columns) mean number of frames for which a track stays in the cell; NaN: never.
        diffusion: (rows, columns) mean squared step from the cell / 4, in the points' unit squared per frame.
        energy_kT: (rows, columns) -ln(visits / most visits): the energy landscape of what is free to move, up to a
            constant; NaN: never there.
    """

    visits: NDArray[np.int64]
    dwell_frames: NDArray[np.float64]
    diffusion: NDArray[np.float64]
    energy_kT: NDArray[np.float64]


def displacements(
    track: NDArray[np.integer], frame: NDArray[np.integer], points: Points, lag: int
) -> tuple[NDArray[np.int64], Points]:
    """All displacements of tracks between frames so many apart.

    Args:
        track: (m,) of each point; below 0: none, left out.
        frame: (m,) of each point.
        points: (m, 2), x and y, without drift.
        lag: in frames.

    Returns:
        (k,) index of the point where it begins, and (k, 2) the displacement.
    """
    known = np.flatnonzero(track >= 0)
    if not len(known):
        return np.zeros(0, np.int64), np.zeros((0, 2))
    numbers = np.unique(track[known], return_inverse=True)[1].astype(np.int64)
    first = int(frame[known].min())
    span = int(frame[known].max()) - first + lag + 1
    key = numbers * span + (frame[known].astype(np.int64) - first)
    order = np.argsort(key, kind="stable")
    at = np.minimum(np.searchsorted(key[order], key + lag), len(key) - 1)
    found = key[order][at] == key + lag
    begin, end = known[found], known[order[at[found]]]
    return begin, points[end] - points[begin]


def mean_squared_displacement(
    track: NDArray[np.integer], frame: NDArray[np.integer], points: Points, longest: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Mean over all tracks and all pairs of frames so many apart.

    Args:
        track: (m,) of each point; below 0: none, left out.
        frame: (m,) of each point.
        points: (m, 2), x and y, without drift.
        longest: lag, in frames.

    Returns:
        (longest,) MSD at lags 1, 2, ... in the points' unit squared; its standard error, from the scatter between
        tracks; and the number of tracks that bring something. NaN where none does.
    """
    msd, error, tracks = np.full(longest, np.nan), np.full(longest, np.nan), np.zeros(longest, np.intp)
    for lag in range(1, longest + 1):
        begin, steps = displacements(track, frame, points, lag)
        if len(begin):
            names, at = np.unique(track[begin], return_inverse=True)
            msd[lag - 1], error[lag - 1] = _mean_of_tracks((steps**2).sum(1), at, len(names))
            tracks[lag - 1] = len(names)
    return msd, error, tracks


def diffusion(track: NDArray[np.integer], frame: NDArray[np.integer], points: Points) -> Diffusion:
    """The diffusion constant of free walkers whose positions are uncertain, without a fit.

    From steps d_n of one frame along each axis: D = <d_n^2> / 2 + <d_n d_n+1>, in which the uncertainty of the
    positions cancels. Source: C. L. Vestergaard, P. C. Blainey, H. Flyvbjerg, Phys. Rev. E 89, 022726 (2014),
    https://doi.org/10.1103/PhysRevE.89.022726, equation 14, without motion blur.

    Args:
        track: (m,) of each point; below 0: none, left out.
        frame: (m,) of each point.
        points: (m, 2), x and y, without drift.
    """
    begin, steps = displacements(track, frame, points, 1)
    place = np.full(len(track), -1, np.int64)
    place[begin] = np.arange(len(begin))
    ahead = _next_points(track, frame)
    inner = begin[ahead[begin] >= 0]
    inner = inner[place[ahead[inner]] >= 0]  # which another step follows
    one, other = steps[place[inner]], steps[place[ahead[inner]]]
    names, at = np.unique(track[inner], return_inverse=True)
    if not len(names):
        nothing = np.zeros(0)
        return Diffusion(math.nan, math.nan, math.nan, np.zeros(0, np.int64), nothing, nothing)
    squares = ((one**2).sum(1) + (other**2).sum(1)) / 2
    products = (one * other).sum(1)
    each = squares / 4 + products / 2  # mean of both axes
    n = np.bincount(at)
    of_track = np.bincount(at, each) / n
    mean, error = _mean_of_tracks(each, at, len(names))
    variance = -float(products.mean()) / 2
    noise = math.sqrt(variance) if variance >= 0 else math.nan
    # Equation 17 there, for both axes.
    epsilon = variance / mean if mean > 0 else 0.0
    share = (6 + 4 * epsilon + 2 * epsilon**2) / n + 4 * (1 + epsilon) ** 2 / n**2
    error_of_track = np.abs(mean) * np.sqrt(np.maximum(share, 0) / 2)
    return Diffusion(mean, error, noise, names.astype(np.int64), of_track, error_of_track)


def van_hove(steps: Points, bins: int = 51) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The self part of the van Hove function along an axis, both axes together.

    Args:
        steps: (k, 2) displacements at one lag, see `displacements`.
        bins: of equal width, out to five standard deviations.

    Returns:
        Middles of the bins, the density there, and the non-Gaussian parameter <r^4> / (2 <r^2>^2) - 1 (two
        dimensions), which is 0 for free diffusion. NaN without steps.
    """
    along = steps.ravel()
    if not len(along) or not (along**2).sum() > 0:
        return np.full(bins, np.nan), np.full(bins, np.nan), math.nan
    edges = np.linspace(-5, 5, bins + 1) * float(np.sqrt((along**2).mean()))
    density, _ = np.histogram(along, edges, density=True)
    square = (steps**2).sum(1)
    return (edges[1:] + edges[:-1]) / 2, density, float((square**2).mean() / (2 * square.mean() ** 2) - 1)


def stay_map(
    track: NDArray[np.integer], frame: NDArray[np.integer], points: Points, shape: tuple[int, int], cell: float
) -> StayMap:
    """Where skyrmions stay and how they leave: pins of the film.

    What is free to move is found where its energy is low, as exp(-E / kT) tells; R. Gruber et al., Nat. Commun. 13,
    3144 (2022), https://doi.org/10.1038/s41467-022-30743-4, and, with dwell times and diffusion, arXiv:2510.15713.

    Args:
        track: (m,) of each point; below 0: none, left out.
        frame: (m,) of each point.
        points: (m, 2), x and y in the frame, drift and all, so that pins stay in place.
        shape: (height, width) of the frame.
        cell: side of a cell, in the points' unit.
    """
    rows, columns = math.ceil(shape[0] / cell), math.ceil(shape[1] / cell)
    column = np.clip(((points[:, 0] + 0.5) / cell).astype(np.int64), 0, columns - 1)
    row = np.clip(((points[:, 1] + 0.5) / cell).astype(np.int64), 0, rows - 1)
    place, n = row * columns + column, rows * columns
    known = track >= 0
    visits = np.bincount(place[known], minlength=n)
    ahead = _next_points(track, frame)
    # A stay ends where the track does not go on in the same cell.
    ends = known & ((ahead < 0) | (place[ahead] != place))
    stays = np.bincount(place[ends], minlength=n)
    begin, steps = displacements(track, frame, points, 1)
    moved = np.bincount(place[begin], minlength=n)
    squares = np.bincount(place[begin], (steps**2).sum(1), minlength=n)
    with np.errstate(divide="ignore", invalid="ignore"):
        dwell = np.where(stays > 0, visits / stays, np.nan)
        local = np.where(moved > 0, squares / moved / 4, np.nan)
        energy = np.where(visits > 0, -np.log(visits / max(visits.max(), 1)), np.nan)
    side = (rows, columns)
    return StayMap(visits.reshape(side), dwell.reshape(side), local.reshape(side), energy.reshape(side))


def _next_points(track: NDArray[np.integer], frame: NDArray[np.integer]) -> NDArray[np.int64]:
    """(m,) index of the point of the same track one frame later; -1: there is none."""
    ahead = np.full(len(track), -1, np.int64)
    order = np.lexsort((frame, track))
    here, there = order[:-1], order[1:]
    follows = (track[here] == track[there]) & (track[here] >= 0) & (frame[there] == frame[here] + 1)
    ahead[here[follows]] = there[follows]
    return ahead


def _mean_of_tracks(values: NDArray[np.float64], at: NDArray[np.intp], n: int) -> tuple[float, float]:
    """Mean of values, and its standard error from the scatter between tracks; `at`: the track of each."""
    weight = np.bincount(at, minlength=n)
    mean = float(values.mean())
    if n < 2:
        return mean, math.nan
    means = np.bincount(at, values, minlength=n) / weight
    scatter = float(((weight / weight.sum() * (means - mean)) ** 2).sum())
    return mean, math.sqrt(scatter * n / (n - 1))
