"""Neighbours, bond order, cells, g(r) and S(q), against what is known and against other ways to work it out."""

import math
from pathlib import Path

import freud
import numpy as np
import pytest
from conftest import settings
from scipy.spatial import Delaunay, Voronoi

import realtime_skyseg as sky
from realtime_skyseg.analysers.api import View
from realtime_skyseg.analysers.lattice import (
    LatticeAnalyser,
    LatticeSettings,
    lattice_of,
    pair_correlation,
    structure_factor,
)
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.records import Class, Kind

SPACING = 12.0


def triangular(rows: int = 30, columns: int = 30, turned: float = 0.0) -> np.ndarray:
    """(n, 2) points of a perfect triangular lattice, moved by 1e-6 at random, so that its triangulation is unique."""
    y, x = np.mgrid[:rows, :columns]
    points = np.stack([(x + 0.5 * (y % 2)).ravel(), y.ravel() * math.sqrt(3) / 2], 1) * SPACING + 6
    points += np.random.default_rng(0).normal(0, 1e-6, points.shape)
    turn = np.array([[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]])
    return np.asarray(points @ turn.T)


def square(n: int = 30) -> np.ndarray:
    y, x = np.mgrid[:n, :n]
    points = np.stack([x.ravel(), y.ravel()], 1) * SPACING + 6
    return np.asarray(points + np.random.default_rng(0).normal(0, 1e-6, points.shape))


def random_points(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, (672, 512), (n, 2))


@pytest.mark.parametrize("turned", [0.0, 0.3, 1.0])
def test_a_perfect_triangular_lattice(turned: float) -> None:
    points = triangular(turned=turned)
    points -= points.min(0) - 6
    height, width = points[:, 1].max() + 6, points[:, 0].max() + 6
    lattice = lattice_of(points, (height, width))
    assert lattice.inner.sum() > 600
    assert set(lattice.neighbours[lattice.inner]) == {6}
    np.testing.assert_allclose(np.abs(lattice.psi6[lattice.inner]), 1, atol=1e-5)
    assert lattice.mean(lattice.psi6) == pytest.approx(1, abs=1e-5)
    assert lattice.mean(lattice.distance) == pytest.approx(SPACING, abs=1e-4)
    np.testing.assert_allclose(lattice.cell_area[lattice.inner], SPACING**2 * math.sqrt(3) / 2, rtol=1e-5)
    assert np.angle(lattice.psi6[lattice.inner].mean()) == pytest.approx(math.remainder(6 * turned, math.tau), abs=1e-4)


def test_a_perfect_square_lattice() -> None:
    """Its diagonals are chance: without them, psi4 is 1."""
    lattice = lattice_of(square(), (360, 360), longest_side=False)
    assert lattice.mean(np.abs(lattice.psi4)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(lattice.cell_area[lattice.inner], SPACING**2, rtol=1e-4)
    with_diagonals = lattice_of(square(), (360, 360))
    assert with_diagonals.mean(np.abs(with_diagonals.psi4)) == pytest.approx(0.366, abs=0.02)


@pytest.mark.parametrize("smallest_angle", [0.0, 20.0, 40.0])
@pytest.mark.parametrize("n", [5, 60, 400])
def test_random_points_against_their_definition(n: int, smallest_angle: float) -> None:
    points = random_points(n)
    lattice = lattice_of(points, (512, 672), smallest_angle)
    bonds = set()
    for triangle in Delaunay(points).simplices:
        a, b, c = points[triangle]
        angles = [
            math.degrees(math.acos(np.dot(p - o, q - o) / np.linalg.norm(p - o) / np.linalg.norm(q - o)))
            for o, p, q in ((a, b, c), (b, c, a), (c, a, b))
        ]
        if min(angles) >= smallest_angle:
            bonds |= {tuple(sorted(map(int, pair))) for pair in zip(triangle, np.roll(triangle, 1), strict=True)}
    assert {(int(a), int(b)) for a, b in lattice.bonds} == bonds
    for k in range(n):
        ends = [b if a == k else a for a, b in bonds if k in (a, b)]
        assert lattice.neighbours[k] == len(ends)
        steps = points[ends] - points[k]
        if ends:
            angles = np.arctan2(steps[:, 1], steps[:, 0])
            assert lattice.psi6[k] == pytest.approx(np.exp(6j * angles).mean(), abs=1e-9)
            assert lattice.psi4[k] == pytest.approx(np.exp(4j * angles).mean(), abs=1e-9)
            assert lattice.distance[k] == pytest.approx(np.linalg.norm(steps, axis=1).mean())
        else:
            assert np.isnan(lattice.psi6[k])


def test_cells_against_scipys_voronoi_diagram() -> None:
    points = random_points(300)
    lattice = lattice_of(points, (512, 672))
    diagram = Voronoi(points)
    inside = 0
    for k in range(len(points)):
        region = diagram.regions[diagram.point_region[k]]
        corners = diagram.vertices[region]
        closed = -1 not in region and ((corners >= -0.5) & (corners <= (671.5, 511.5))).all()
        assert closed or not lattice.inner[k]
        if lattice.inner[k]:
            x, y = corners.T
            area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
            assert lattice.cell_area[k] == pytest.approx(area)
            inside += 1
    assert inside > 200


@pytest.mark.parametrize(
    "points",
    [np.zeros((0, 2)), random_points(1), random_points(3), np.stack([np.arange(9.0), 2 * np.arange(9.0)], 1)],
    ids=["none", "one", "three", "on a line"],
)
def test_too_few_have_no_lattice(points: np.ndarray) -> None:
    lattice = lattice_of(points, (512, 672))
    assert len(lattice.bonds) == 0
    assert not lattice.neighbours.any()
    assert np.isnan(lattice.psi6).all()
    assert math.isnan(lattice.mean(lattice.psi6))


def test_an_ideal_gas_has_no_correlation() -> None:
    found = [pair_correlation(random_points(1500, seed), (512, 672), 120, 12)[1] for seed in range(10)]
    np.testing.assert_allclose(np.mean(found, 0), 1, atol=0.03)
    assert np.isnan(pair_correlation(random_points(1), (512, 672), 120)[1]).all()


def test_a_lattice_has_its_peaks_where_they_belong() -> None:
    points = triangular(40, 40) + np.random.default_rng(3).normal(0, 0.3, (1600, 2))
    shape = points[:, 1].max() + 6, points[:, 0].max() + 6
    r, g = pair_correlation(points, shape, 30, 120)
    assert r[g.argmax()] == pytest.approx(SPACING, abs=0.5)
    second = (r > 1.4 * SPACING) & (r < 1.86 * SPACING)
    assert r[second][g[second].argmax()] == pytest.approx(math.sqrt(3) * SPACING, abs=0.5)
    qx, qy, power = structure_factor(points, shape, 60)
    row, column = np.unravel_index(np.nanargmax(power), power.shape)
    assert math.hypot(qx[column], qy[row]) == pytest.approx(4 * math.pi / math.sqrt(3) / SPACING, rel=0.03)
    assert np.nanmax(power) > 0.5 * len(points)


def test_the_quantities_of_a_frame() -> None:
    mask = np.zeros((240, 320), np.uint8)
    for row in range(9):
        for column in range(12):
            y, x = 16 + 24 * row, 16 + 25 * column + 12 * (row % 2)
            mask[y : y + 7, x : x + 7] = Class.SKYRMION
    mask[2:6, 40:240] = Class.SKYRMION  # a stripe
    found = measure(mask, polarity="both")
    view = View(0, 0.0, math.nan, mask, mask, found.objects, {})
    values = LatticeAnalyser(LatticeSettings())(view)
    stripe = found.objects["kind"] == Kind.STRIPE
    assert stripe.sum() == 1
    assert (values["neighbours"][stripe] == -1).all()
    assert np.isnan(values["psi6"][stripe]).all()
    assert values["mean_psi6"] > 0.95
    assert values["global_psi6"] > 0.95
    assert values["spacing_px"] == pytest.approx(26, abs=1.5)
    assert values["fivefold"] + values["sevenfold"] == 0
    declared = {quantity.name for quantity in LatticeAnalyser.quantities}
    assert set(values) == declared
    nothing = LatticeAnalyser(LatticeSettings())(View(0, 0.0, math.nan, mask, mask, found.objects[:0], {}))
    assert math.isnan(nothing["mean_psi6"])
    assert math.isnan(nothing["fivefold"])
    assert nothing["inner"] == 0


def test_in_a_run_it_stands_in_the_file_with_units_and_meaning(tmp_path: Path) -> None:
    analysers = {"lattice": {"smallest_angle_deg": 15}, "shapes": {}}
    summary = sky.Service(settings(tmp_path, {"path": "bundled"}, analysers=analysers)).run()
    assert summary.status == "ok"
    with sky.open_run(summary.run_file) as run:
        assert run.quantities["spacing_px"].unit == "px"
        last = len(run.table) - 1
        objects = run.objects(last)
        skyrmions = objects["kind"] == Kind.SKYRMION
        points = np.stack([objects["x"], objects["y"]], 1)[skyrmions].astype(np.float64)
        lattice = lattice_of(points, run.mask.shape[1:], 15)
        assert run.table["inner"][last] == lattice.inner.sum()
        np.testing.assert_array_equal(
            objects["neighbours"][skyrmions], np.where(lattice.neighbours, lattice.neighbours, -1)
        )
        assert (objects["major_axis_px"] >= objects["minor_axis_px"]).all()
        assert run.summary["analysers"]["lattice"]["failed"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_order_that_freud_finds(seed: int) -> None:
    freud.parallel.set_num_threads(1)
    points = random_points(300, seed) if seed else triangular()[:300] + np.random.default_rng(7).normal(0, 1, (300, 2))
    lattice = lattice_of(points, (512, 672))
    box = freud.box.Box(Lx=900, Ly=900)  # in one of 4000 px it takes 15 s
    box.periodic = False
    there = np.pad(points - points.mean(0), ((0, 0), (0, 1)))
    neighbours = freud.locality.Voronoi().compute((box, there)).nlist
    order = freud.order.Hexatic(k=6).compute((box, there), neighbors=neighbours).particle_order
    np.testing.assert_array_equal(lattice.neighbours[lattice.inner], neighbours.neighbor_counts[lattice.inner])
    np.testing.assert_allclose(np.abs(lattice.psi6[lattice.inner]), np.abs(order[lattice.inner]), atol=1e-5)
    assert lattice.inner.sum() > 150
