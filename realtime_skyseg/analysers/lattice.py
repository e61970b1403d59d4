"""Order among the skyrmions of a frame: neighbours, Voronoi cells, bond order, defects of the lattice.

Neighbours are those of the Delaunay triangulation of the centroids, by Qhull (Barber et al., ACM Trans. Math. Softw.
22, 469, 1996). The Voronoi cell of an inner point is made up of the parts that its triangles bring (Meyer et al.,
Discrete Differential-Geometry Operators, 2003, equation 7), so that no second diagram is needed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial import Delaunay, KDTree, QhullError

from realtime_skyseg.analysers.api import Analyser, AnalyserSettings, View
from realtime_skyseg.analysers.selection import chosen_skyrmions, points_of
from realtime_skyseg.quantities import Quantity

Points = NDArray[np.float64]  # (n, 2): x, y

#: Fewer have no lattice.
_FEWEST = 4

#: Twice the area over the square of the longest side: of triangles without an area, and of thin ones along the border.
_FLAT, _THIN = 1e-9, 0.1


@dataclass(frozen=True, slots=True)
class Lattice:
    """What a triangulation tells of n points; NaN, or 0 neighbours, where there is none.

    Attributes:
        bonds: (m, 2) pairs of neighbours, each once, as indices of points.
        neighbours: (n,) how many.
        distance: (n,) mean distance of them, in the points' unit.
        psi6, psi4: (n,) complex, mean of exp(6 i theta), exp(4 i theta) over the bonds of a point, theta their angles
            (Nelson and Halperin, Phys. Rev. B 19, 2457, 1979). 1 in modulus in a triangular, a square lattice.
        cell_area: (n,) of the Voronoi cell; NaN where the point is not inner.
        inner: (n,) whether the cell is closed and inside of the frame and of the outermost points: only they tell of
            the lattice.
    """

    bonds: NDArray[np.int32]
    neighbours: NDArray[np.int32]
    distance: NDArray[np.float64]
    psi6: NDArray[np.complex128]
    psi4: NDArray[np.complex128]
    cell_area: NDArray[np.float64]
    inner: NDArray[np.bool_]

    def mean(self, values: NDArray[Any]) -> float:
        """Over the inner points; of complex numbers the modulus of their mean. NaN without any."""
        chosen = values[self.inner & (self.neighbours > 0)]
        return float(abs(chosen.mean())) if len(chosen) else math.nan


def lattice_of(
    points: Points, shape: tuple[float, float], smallest_angle_deg: float = 0.0, longest_side: bool = True
) -> Lattice:
    """The lattice of points in a frame.

    Args:
        points: (n, 2), x and y.
        shape: (height, width) of the frame, from -0.5 on as pixels' centres are counted.
        smallest_angle_deg: triangles with a smaller angle have no bonds of their own; 0 to 60. At the border of a cloud
            of points long thin ones join what are no neighbours.
        longest_side: False leaves the longest side of both of its triangles out of `psi4`: a square lattice's diagonal.
    """
    n = len(points)
    nan = complex(math.nan, math.nan)
    lattice = Lattice(
        np.zeros((0, 2), np.int32), np.zeros(n, np.int32), np.full(n, np.nan), np.full(n, nan), np.full(n, nan),
        np.full(n, np.nan), np.zeros(n, np.bool_),
    )  # fmt: skip
    if n < _FEWEST:
        return lattice
    try:
        found = Delaunay(points)
    except QhullError:  # all on a line
        return lattice
    bonds = _measure(
        points, found.simplices, found.neighbors, shape[0], shape[1], math.radians(smallest_angle_deg), longest_side,
        lattice.neighbours, lattice.distance, lattice.psi6, lattice.psi4, lattice.cell_area, lattice.inner,
    )  # fmt: skip
    return replace(lattice, bonds=bonds)


@njit(cache=True, nogil=True)
def _sides(points: Points, triangles: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squares of the sides opposite of each corner, (t, 3), and twice the areas, (t,)."""
    squares, twice = np.empty((len(triangles), 3)), np.empty(len(triangles))
    for i in range(len(triangles)):
        a, b, c = points[triangles[i, 0]], points[triangles[i, 1]], points[triangles[i, 2]]
        twice[i] = abs((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))
        for k in range(3):
            one, other = points[triangles[i, (k + 1) % 3]], points[triangles[i, (k + 2) % 3]]
            squares[i, k] = (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2
    return squares, twice


@njit(cache=True, nogil=True)
def _outer(
    points: Points,
    triangles: NDArray[np.int32],
    beyond: NDArray[np.int32],
    squares: NDArray[np.float64],
    twice: NDArray[np.float64],
    height: float,
    width: float,
) -> NDArray[np.bool_]:
    """(n,) whether a point's cell reaches beyond the frame or the outermost points."""
    outer, gone = np.zeros(len(points), np.bool_), np.zeros(len(triangles), np.bool_)
    changed = True
    while changed:  # thin triangles along the border, one beside the other, belong to what is beyond
        changed = False
        for i in range(len(triangles)):
            if gone[i] or twice[i] > _THIN * squares[i].max():
                continue
            for k in range(3):
                if beyond[i, k] < 0 or gone[beyond[i, k]]:
                    gone[i] = changed = True
    for i in range(len(triangles)):
        x = y = total = 0.0
        within = not gone[i]
        for k in range(3):
            cosine = squares[i, (k + 1) % 3] + squares[i, (k + 2) % 3] - squares[i, k]
            weight = squares[i, k] * cosine
            corner = points[triangles[i, k]]
            x, y, total = x + weight * corner[0], y + weight * corner[1], total + weight
            if beyond[i, k] < 0 or gone[beyond[i, k]]:
                outer[triangles[i, (k + 1) % 3]] = outer[triangles[i, (k + 2) % 3]] = True
                within = within and cosine >= 0  # else the centre lies beyond this side
        # The centre of the circle around, where three cells meet, has to lie in the frame.
        within = within and -0.5 * total <= x <= (width - 0.5) * total and -0.5 * total <= y <= (height - 0.5) * total
        for k in range(3):
            outer[triangles[i, k]] |= not within
    return outer


@njit(cache=True, nogil=True)
def _measure(  # noqa: PLR0913 - one pass over triangles, and arrays to fill
    points: Points,
    triangles: NDArray[np.int32],
    beyond: NDArray[np.int32],  # (t, 3) the triangle across the side opposite of each corner; -1: none
    height: float,
    width: float,
    smallest_angle: float,
    longest_side: bool,
    neighbours: NDArray[np.int32],
    distance: NDArray[np.float64],
    psi6: NDArray[np.complex128],
    psi4: NDArray[np.complex128],
    cell_area: NDArray[np.float64],
    inner: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """Fill the arrays (n,), and return the bonds (m, 2)."""
    n, t = len(points), len(triangles)
    squares, twice = _sides(points, triangles)
    outer = _outer(points, triangles, beyond, squares, twice, height, width)
    wide, longest = np.empty(t, np.bool_), np.empty(t, np.int32)
    inner[:] = False
    cell_area[:] = 0
    for i in range(t):
        longest[i], s = np.argmax(squares[i]), np.argmin(squares[i])
        flat = twice[i] <= _FLAT * squares[i, longest[i]]
        # The smallest angle is opposite of the shortest side.
        cosine = squares[i, (s + 1) % 3] + squares[i, (s + 2) % 3] - squares[i, s]
        wide[i] = not flat and math.atan2(2 * twice[i], cosine) >= smallest_angle
        for k in range(3):
            corner, q, r = triangles[i, k], (k + 1) % 3, (k + 2) % 3
            inner[corner] = True
            if not flat:
                # The side opposite of q has the ends k and r.
                part = squares[i, q] * (squares[i, k] + squares[i, r] - squares[i, q])
                part += squares[i, r] * (squares[i, k] + squares[i, q] - squares[i, r])
                cell_area[corner] += part / (16 * twice[i])
    bonds, m = np.empty((3 * t, 2), np.int32), 0
    diagonals = np.zeros(n, np.int32)
    neighbours[:] = 0
    distance[:] = 0
    psi6[:] = 0
    psi4[:] = 0
    for i in range(t):
        for k in range(3):
            j, p, q = beyond[i, k], triangles[i, (k + 1) % 3], triangles[i, (k + 2) % 3]
            if 0 <= j < i or not (wide[i] or (j >= 0 and wide[j])):
                continue
            bonds[m, 0], bonds[m, 1] = min(p, q), max(p, q)
            m += 1
            length = math.sqrt(squares[i, k])
            step = complex(points[q, 0] - points[p, 0], points[q, 1] - points[p, 1]) / length
            fourth = step * step * step * step
            is_longest = longest[i] == k or not wide[i]  # in all triangles that count
            if j >= 0 and wide[j]:
                across = triangles[j, longest[j]]
                is_longest &= across not in (p, q)
            for end in (p, q):  # from either end the powers are the same
                neighbours[end] += 1
                distance[end] += length
                psi6[end] += fourth * step * step
                if longest_side or not is_longest:
                    psi4[end] += fourth
                else:
                    diagonals[end] += 1
    for end in range(n):
        inner[end] &= not outer[end]
        if neighbours[end]:
            distance[end] /= neighbours[end]
            psi6[end] /= neighbours[end]
        else:
            distance[end] = np.nan
            psi6[end] = complex(np.nan, np.nan)
        left = neighbours[end] - diagonals[end]
        psi4[end] = psi4[end] / left if left else complex(np.nan, np.nan)
        if not inner[end]:
            cell_area[end] = np.nan
    return bonds[:m]


def spacing_of_lattice(points: Points, shape: tuple[float, float]) -> float:
    """Distance of neighbours in a triangular lattice of as many points in the frame; infinite without points."""
    return math.sqrt(2 / math.sqrt(3) * shape[0] * shape[1] / len(points)) if len(points) else math.inf


def pair_correlation(
    points: Points, shape: tuple[float, float], longest: float, bins: int = 50
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """g(r): how many points there are at a distance from a point, relative to what chance would bring.

    Pairs near the border are weighted by the overlap of the frame with itself moved by their distance vector, which
    takes the missing surroundings into account without bias (Ohser and Stoyan's translation correction, Biometrical J.
    23, 523, 1981).

    Args:
        points: (n, 2), x and y.
        shape: (height, width) of the frame, in the points' unit.
        longest: distance up to which it is counted; at most the frame's shorter side.
        bins: of equal width.

    Returns:
        Middles of the bins, and g there; NaN with fewer than two points.
    """
    edges = np.linspace(0, longest, bins + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    n = len(points)
    if n < 2:
        return middles, np.full(bins, np.nan)
    pairs = KDTree(points).query_pairs(longest, output_type="ndarray")
    step = np.abs(points[pairs[:, 0]] - points[pairs[:, 1]])
    height, width = shape
    overlap = (width - step[:, 0]) * (height - step[:, 1])
    counted, _ = np.histogram(np.hypot(step[:, 0], step[:, 1]), edges, weights=2 / overlap)
    ring = np.pi * (edges[1:] ** 2 - edges[:-1] ** 2)
    density = n * (n - 1) / (height * width) ** 2
    return middles, np.asarray(counted / (ring * density))


def structure_factor(
    points: Points, shape: tuple[float, float], highest: int = 40
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """S(q) = |sum exp(-i q r)|^2 / n on the wave vectors that fit into the frame.

    Args:
        points: (n, 2), x and y.
        shape: (height, width) of the frame.
        highest: largest number of waves across the frame.

    Returns:
        qx (2 highest + 1,), qy (2 highest + 1,) in 1 / unit, and S (qy, qx), NaN at q = 0, where it is n.
    """
    waves = np.arange(-highest, highest + 1)
    height, width = shape
    qx, qy = 2 * np.pi * waves / width, 2 * np.pi * waves / height
    along, down = np.exp(-1j * np.outer(points[:, 0], qx)), np.exp(-1j * np.outer(points[:, 1], qy))
    power = np.abs(down.T @ along) ** 2 / max(len(points), 1)
    power[highest, highest] = np.nan
    return np.asarray(qx, np.float64), np.asarray(qy, np.float64), np.asarray(power, np.float64)


class LatticeSettings(AnalyserSettings):
    """Which triangles count."""

    smallest_angle_deg: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Triangles with a smaller angle are left out."""
    psi4_longest_side: bool = True
    """False: what is the longest side in both of its triangles is left out of psi4."""


class LatticeAnalyser(Analyser):
    """Neighbours and order of the skyrmions of each frame, without stripes."""

    Settings = LatticeSettings
    quantities = (
        Quantity(
            "neighbours", "i2", -1, "", "Delaunay neighbours; -1: a stripe, or fewer than four skyrmions", "object"
        ),
        Quantity("neighbour_distance_px", "f4", np.nan, "px", "mean distance of the neighbours", "object"),
        Quantity("psi6", "f4", np.nan, "", "modulus of the mean of exp(6 i angle) over the neighbours", "object"),
        Quantity("psi4", "f4", np.nan, "", "modulus of the mean of exp(4 i angle) over the neighbours", "object"),
        Quantity(
            "cell_area", "f4", np.nan, "px^2", "of the Voronoi cell; NaN where it reaches beyond the frame", "object"
        ),
        Quantity("mean_psi6", "f4", np.nan, "", "mean of psi6 over the inner skyrmions", "frame"),
        Quantity(
            "global_psi6", "f4", np.nan, "", "modulus of the mean of the complex psi6: orientation alike", "frame"
        ),
        Quantity("mean_psi4", "f4", np.nan, "", "mean of psi4 over the inner skyrmions", "frame"),
        Quantity("global_psi4", "f4", np.nan, "", "modulus of the mean of the complex psi4", "frame"),
        Quantity("spacing_px", "f4", np.nan, "px", "mean distance of neighbours of the inner skyrmions", "frame"),
        Quantity("fivefold", "f4", np.nan, "", "inner skyrmions with five neighbours", "frame"),
        Quantity("sevenfold", "f4", np.nan, "", "inner skyrmions with seven neighbours", "frame"),
        Quantity("inner", "f4", np.nan, "", "skyrmions whose Voronoi cell lies inside of the frame", "frame"),
    )

    def __call__(self, view: View) -> Mapping[str, Any]:
        """See `Analyser`."""
        assert isinstance(self.settings, LatticeSettings)
        objects = view.objects
        chosen = chosen_skyrmions(objects)
        points = points_of(objects)[chosen]
        shape = view.mask.shape[0], view.mask.shape[1]
        lattice = lattice_of(points, shape, self.settings.smallest_angle_deg, self.settings.psi4_longest_side)
        none = lattice.neighbours == 0
        inner = lattice.neighbours[lattice.inner]
        enough = bool(lattice.inner.any())
        return {
            "neighbours": _column(chosen, np.where(none, -1, lattice.neighbours), -1),
            "neighbour_distance_px": _column(chosen, lattice.distance, np.nan),
            "psi6": _column(chosen, np.abs(lattice.psi6), np.nan),
            "psi4": _column(chosen, np.abs(lattice.psi4), np.nan),
            "cell_area": _column(chosen, lattice.cell_area, np.nan),
            "mean_psi6": lattice.mean(np.abs(lattice.psi6)),
            "global_psi6": lattice.mean(lattice.psi6),
            "mean_psi4": lattice.mean(np.abs(lattice.psi4)),
            "global_psi4": lattice.mean(lattice.psi4),
            "spacing_px": lattice.mean(lattice.distance),
            "fivefold": float((inner == 5).sum()) if enough else math.nan,
            "sevenfold": float((inner == 7).sum()) if enough else math.nan,
            "inner": float(lattice.inner.sum()),
        }


def _column(chosen: NDArray[np.bool_], values: NDArray[Any], fill: float) -> NDArray[Any]:
    column = np.full(len(chosen), fill, np.float64)
    column[chosen] = values
    return column
