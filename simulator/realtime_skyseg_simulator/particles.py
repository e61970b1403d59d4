"""Diffusing skyrmions: Brownian quasi-particles that repel each other and the edges, and stick to pinning sites.

    dx/dt = mu R(theta) F + sqrt(2 D) xi,   mu = D / kT

F is the sum of the repulsion by other skyrmions and by edges, both exponential in the gap (as measured by Y. Ge et
al., Commun. Phys. 6, 30, 2023), of Gaussian pinning wells, and of a drive; R(theta) turns the motion by the
skyrmion Hall angle. This is the overdamped Thiele equation of a rigid particle at a temperature.

What it is not: the skyrmions keep their number unless the field annihilates them or an in-plane pulse brings them back;
they do not merge, stretch or reverse. Wells act on the centres, whereas in real films pinning acts on the boundary and
depends on the size (R. Gruber et al., Nat. Commun. 13, 3144, 2022). Made for fields that shrink the skyrmions.

Inside, lengths are in um, energies in kT, times in s. Without an element the sample is periodic at its borders.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from realtime_skyseg.errors import SettingsError
from realtime_skyseg_simulator.film import MARGIN_PX
from realtime_skyseg_simulator.patterns import edge_of, element_of
from realtime_skyseg_simulator.samples import FloatImage, ParticleSampleSettings, Truth, check_advance, class_mask

_SHRINKING = 0.63  # of the diameter from no field to annihilation: a line through the film's diameters
_LARGEST = 1.5  # diameter in negative fields, relative to that without field
_RANGE = 6.0  # decay lengths of the repulsion, and 4/6 of it standard deviations of a well, after which forces are 0
_LIST_S = 0.0625  # how long a list of neighbours is used
_SMALLEST_STEPS = 0.15  # random step of a time step, relative to the shortest length of the forces
_SEPARATION = 1.1  # distance to others, in diameters, that a skyrmion needs to nucleate


class ParticleSample:
    """Skyrmions as particles under a microscope, as a `realtime_skyseg_simulator.samples.Sample`.

    `positions_um` is (N, 2) float64, x and y from the centre of the first pixel; they go on beyond the borders of a
    periodic sample, so that displacements can be read off. `alive`, (N,) bool, says which of them exist.
    """

    def __init__(self, settings: ParticleSampleSettings, height: int, width: int) -> None:
        """Place the skyrmions; see `realtime_skyseg_simulator.samples.open_sample`."""
        self.settings = s = settings
        self.shape = (height + 2 * MARGIN_PX, width + 2 * MARGIN_PX)
        self.element = element_of(s.pattern, self.shape, (height, width), s.pattern_size)
        self._edge = None if self.element is None else edge_of(self.element)
        self._extent = np.array(self.shape[::-1]) * s.pixel_um  # x, y
        self._random = np.random.default_rng(s.seed)
        size = self._random.standard_normal(s.skyrmions).clip(-2.5, 2.5)
        self._diameter_um = s.diameter_um * (1 + s.diameter_spread * size)
        # The small ones vanish first, the last of all at the annihilation field.
        self._annihilation_mT = s.annihilation_mT * np.minimum(1 + s.annihilation_spread * (size - 2), 1)
        # x^2 and y^2 are weighed with exp(+-2 a), and x y with 4 b: ellipses of equal area, to first order.
        self._ellipse = s.ellipticity * self._random.standard_normal((2, s.skyrmions)).clip(-2, 2).astype(np.float32)
        self._sites = self._nucleation_sites()
        chosen = self._random.permutation(len(self._sites))[: s.skyrmions]
        self.positions_um = self._sites[chosen].copy()
        self.alive = np.ones(s.skyrmions, np.bool_)
        self._pins = self._random.uniform(0, 1, (s.pins, 2)) * self._extent
        self._pin_depths = self._random.exponential(s.pin_depth_kT, s.pins) if s.pin_depth_kT else np.zeros(s.pins)
        self._pin_tree = cKDTree(self._pins, boxsize=self._box()) if s.pins else None
        if self.element is not None:
            # With a frame around it: where a wire leaves the sample, there is an edge too.
            material = np.pad(self.element.astype(np.uint8), 1)
            inner, outer = (cv2.distanceTransform(m, cv2.DIST_L2, 5)[1:-1, 1:-1] for m in (material, 1 - material))
            self._to_edge = np.asarray(inner - outer, np.float32) * np.float32(s.pixel_um)
            self._from_edge = np.stack(np.gradient(self._to_edge, s.pixel_um)[::-1], axis=-1)  # unit vectors inwards
        self._field_mT = 0.0
        self._seen: FloatImage | None = None

    def advance(self, seconds: float, field_mT: float, in_plane_mT: float = 0.0) -> None:
        """Let time pass; see `samples.Sample`."""
        check_advance(seconds, field_mT, in_plane_mT)
        s = self.settings
        self._field_mT, self._seen = field_mT, None
        self.alive &= field_mT < self._annihilation_mT
        if abs(in_plane_mT) >= s.in_plane_threshold_mT:
            self._nucleate(seconds)
        parts = math.ceil(seconds / _LIST_S)
        for _ in range(parts):
            self._move(seconds / parts)

    def magnetisation(self) -> FloatImage:
        """The magnetisation, (H, W) float32; see `samples.Sample`."""
        if self._seen is None:
            self._seen = self._draw()
        return self._seen

    def truth(self) -> Truth:
        """What is there now; see `samples.Sample`. The positions are the particles' own, to sub-pixels."""
        mask = class_mask(self.magnetisation(), self.element, self._edge)
        positions = self._wrapped() / self.settings.pixel_um
        return Truth(mask, positions.astype(np.float32), len(positions))

    def _diameters(self) -> NDArray[np.float64]:
        """(N,) of those alive, in um, in the present field."""
        shrunk = 1 - _SHRINKING * self._field_mT / self.settings.annihilation_mT
        return np.asarray(self._diameter_um[self.alive] * min(max(shrunk, 0.0), _LARGEST))

    def _move(self, seconds: float) -> None:
        """Integrate over a time in which nobody gets far enough for a new list of neighbours."""
        s = self.settings
        x = self.positions_um[self.alive]
        if not len(x):
            return
        diameter = self._diameters()
        reach = _RANGE / 2 * math.sqrt(2 * s.diffusion_um2_per_s * seconds) + abs(s.drive_um_per_s) * seconds
        inside = self._wrapped()
        tree = cKDTree(inside, boxsize=self._box())
        first, second = tree.query_pairs(
            diameter.max() + _RANGE * s.repulsion_um + 2 * reach, output_type="ndarray"
        ).T  # fmt: skip
        contact = (diameter[first] + diameter[second]) / 2
        pinned, well = self._near_pins(tree, reach)
        depth = self._pin_depths[well] / s.pin_radius_um**2

        shortest = min(s.repulsion_um, s.pin_radius_um) * _SMALLEST_STEPS
        steps = max(1, math.ceil(seconds * 2 * s.diffusion_um2_per_s / shortest**2))
        dt = seconds / steps
        mobility = s.diffusion_um2_per_s
        jump = math.sqrt(2 * s.diffusion_um2_per_s * dt)
        angle = math.radians(s.hall_angle_deg)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # rows times this
        drive = np.array([s.drive_um_per_s, 0.0])
        strength = s.repulsion_kT / s.repulsion_um
        for kick in self._random.standard_normal((steps, *x.shape)):
            apart = self._shortest(x[first] - x[second])
            distance = np.maximum(np.hypot(apart[:, 0], apart[:, 1]), 1e-9)
            push = strength * np.exp(np.minimum((contact - distance) / s.repulsion_um, 4)) / distance
            apart *= push[:, None]
            off = self._shortest(x[pinned] - self._pins[well])
            off *= (depth * np.exp(-0.5 * (off**2).sum(1) / s.pin_radius_um**2))[:, None]
            force = np.empty_like(x)
            for axis in (0, 1):
                force[:, axis] = np.bincount(first, apart[:, axis], len(x))
                force[:, axis] -= np.bincount(second, apart[:, axis], len(x))
                force[:, axis] -= np.bincount(pinned, off[:, axis], len(x))
            if self.element is not None:
                force += self._edge_force(x, diameter)
            x += ((mobility * force + drive) @ turn) * dt + jump * kick
        self.positions_um[self.alive] = x

    def _near_pins(self, tree: cKDTree, reach: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which skyrmions may come near which wells: two index arrays."""
        if self._pin_tree is None:
            return np.empty(0, np.intp), np.empty(0, np.intp)
        near = tree.sparse_distance_matrix(
            self._pin_tree, 4 / 6 * _RANGE * self.settings.pin_radius_um + reach, output_type="ndarray"
        )
        order = np.lexsort((near["j"], near["i"]))  # sums in a fixed order: the same bits each time
        return near["i"][order], near["j"][order]

    def _edge_force(self, x: NDArray[np.float64], diameter: NDArray[np.float64]) -> NDArray[np.float64]:
        s = self.settings
        column, row = np.rint(x / s.pixel_um).astype(np.intp).T
        row, column = row.clip(0, self.shape[0] - 1), column.clip(0, self.shape[1] - 1)
        inwards = self._from_edge[row, column]
        pixel = np.stack([column, row], axis=-1) * s.pixel_um
        gap = self._to_edge[row, column] + ((x - pixel) * inwards).sum(1) - diameter / 2
        push = s.repulsion_kT / s.repulsion_um * np.exp(np.minimum(-gap / s.repulsion_um, 4))
        return np.asarray(push[:, None] * inwards)

    def _nucleate(self, seconds: float) -> None:
        """Bring some of the vanished back, at free places, as an in-plane pulse of this length does."""
        s = self.settings
        chance = 1 - math.exp(-seconds / s.nucleation_s)
        dead = np.flatnonzero(~self.alive & (self._field_mT < self._annihilation_mT))
        dead = dead[self._random.random(len(dead)) < chance]
        sites = self._sites[self._random.permutation(len(self._sites))]
        if self.alive.any():
            gap, _ = cKDTree(self._wrapped(), boxsize=self._box()).query(sites)
            sites = sites[gap > _SEPARATION * s.diameter_um]
        born = dead[: len(sites)]
        self.positions_um[born] = sites[: len(born)]
        self.alive[born] = True

    def _nucleation_sites(self) -> NDArray[np.float64]:
        """(M, 2) places for at least all skyrmions: a hexagonal lattice in the material, somewhat disturbed."""
        s = self.settings
        area = float(np.prod(self._extent)) * (1.0 if self.element is None else float(self.element.mean()))
        spacing = math.sqrt(area / s.skyrmions / math.sqrt(0.75))
        material = None
        if self.element is not None:  # not too close to its edge
            rim = math.ceil(s.diameter_um / 2 / s.pixel_um)
            material = cv2.erode(np.pad(self.element, 1, mode="edge").astype(np.uint8), np.ones((2 * rim + 1,) * 2))
        while spacing > _SEPARATION * s.diameter_um:
            rows = np.arange(spacing / 2, self._extent[1] - spacing / 4, spacing * math.sqrt(0.75))
            columns = np.arange(spacing / 2, self._extent[0] - spacing / 4, spacing)
            y, x = np.meshgrid(rows, columns, indexing="ij")
            x[1::2] += spacing / 2
            sites = np.stack([x.ravel(), y.ravel()], axis=-1)
            column, row = np.rint(sites / s.pixel_um).astype(np.intp).T
            kept = (column < self.shape[1]) & (row < self.shape[0])
            if material is not None:
                kept &= material[row.clip(0, self.shape[0]) + 1, column.clip(0, self.shape[1]) + 1] > 0
            sites = sites[kept]
            if len(sites) >= s.skyrmions:
                room = 0.5 * (spacing - _SEPARATION * s.diameter_um)
                return np.asarray(sites + self._random.uniform(-0.5, 0.5, sites.shape) * room)
            spacing *= 0.98
        raise SettingsError(
            f"skyrmions: {s.skyrmions} of {s.diameter_um:g} um do not fit into the sample of {area:.0f} um^2; "
            f"allowed: about {int(0.8 * area / s.diameter_um**2)}"
        )

    def _box(self) -> NDArray[np.float64] | None:
        return self._extent if self.element is None else None

    def _wrapped(self) -> NDArray[np.float64]:
        """(N, 2) of those alive, inside the sample."""
        x = self.positions_um[self.alive]
        return np.asarray(np.mod(x, self._extent) if self.element is None else x)

    def _shortest(self, apart: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distances to the nearest copies in a periodic sample; changed in place."""
        if self.element is None:
            apart -= self._extent * np.rint(apart / self._extent)
        return apart

    def _draw(self) -> FloatImage:
        s = self.settings
        height, width = self.shape
        radius = (self._diameters() / 2 / s.pixel_um).astype(np.float32)
        reach = math.ceil(float(radius.max(initial=0)) + 3 * s.wall_px)
        canvas = np.ones((height + 2 * reach, width + 2 * reach), np.float32)
        centres = self._wrapped() / s.pixel_um
        corners = np.rint(centres).astype(np.intp)
        window = np.arange(-reach, reach + 1, dtype=np.float32)
        x, y = (window[None, :] - (centres - corners)[:, axis, None].astype(np.float32) for axis in (0, 1))
        along, across = self._ellipse[:, self.alive, None]
        discs = (across * 4 * y)[:, :, None] * x[:, None, :]
        discs += (np.exp(2 * along) * x**2)[:, None, :]
        discs += (np.exp(-2 * along) * y**2)[:, :, None]
        np.sqrt(np.maximum(discs, 0, out=discs), out=discs)
        discs -= radius[:, None, None]
        discs *= np.float32(1 / s.wall_px)
        np.tanh(discs, out=discs)
        side = 2 * reach + 1
        for (column, row), disc in zip(corners.clip(0, [width, height]), discs, strict=True):
            place = canvas[row : row + side, column : column + side]
            np.minimum(place, disc[: place.shape[0], : place.shape[1]], out=place)
        if self.element is None:  # what sticks out on one side belongs to the other
            canvas[reach : 2 * reach] = np.minimum(canvas[reach : 2 * reach], canvas[height + reach :])
            canvas[height : height + reach] = np.minimum(canvas[height : height + reach], canvas[:reach])
            canvas[:, reach : 2 * reach] = np.minimum(canvas[:, reach : 2 * reach], canvas[:, width + reach :])
            canvas[:, width : width + reach] = np.minimum(canvas[:, width : width + reach], canvas[:, :reach])
        seen = np.ascontiguousarray(canvas[reach : reach + height, reach : reach + width])
        if self.element is not None:
            seen *= self.element
        return seen
