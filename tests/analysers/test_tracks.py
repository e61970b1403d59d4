"""Numbers that skyrmions keep, against the truth of points that were moved."""

import math
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import trackpy
from conftest import settings
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import realtime_skyseg as sky
from realtime_skyseg.analysers.api import View
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.analysers.tracks import Linker, TrackAnalyser, TrackSettings, common_step, link
from realtime_skyseg.records import Kind

SPACING = 12.0


def lattice(n: int, seed: int = 0) -> np.ndarray:
    """(n * n, 2) of a triangular lattice, each point jittered by a tenth of the spacing."""
    y, x = np.mgrid[:n, :n]
    points = np.stack([(x + 0.5 * (y % 2)).ravel(), y.ravel() * math.sqrt(3) / 2], 1) * SPACING
    return np.asarray(points + np.random.default_rng(seed).normal(0, 0.1 * SPACING, points.shape))


@pytest.mark.parametrize(("share", "right"), [(0.05, 1.0), (0.1, 0.999), (0.2, 0.97), (0.3, 0.85)])
def test_links_of_a_jittered_lattice(share: float, right: float) -> None:
    """`share` of the spacing is the rms step; the points come back in another order."""
    random = np.random.default_rng(1)
    before = lattice(25)
    order = random.permutation(len(before))
    after = (before + random.normal(0, share * SPACING / math.sqrt(2), before.shape))[order]
    ours, theirs = link(before, after, 0.5 * SPACING)
    assert len(set(ours)) == len(ours)
    assert len(set(theirs)) == len(theirs)
    assert (order[theirs] == ours).mean() >= right
    assert len(ours) >= right * (0.9 if share > 0.2 else 1.0) * len(before)


@pytest.mark.parametrize("seed", range(8))
def test_links_are_the_best_of_all(seed: int) -> None:
    """Against one assignment of all points, with a price for every point that is left out."""
    random = np.random.default_rng(seed)
    before, after = random.uniform(0, 60, (25, 2)), random.uniform(0, 60, (30, 2))
    reach = 9.0
    squares = cdist(before, after) ** 2
    cost = np.where(squares <= reach**2, squares, 1e6)
    rows, columns = linear_sum_assignment(cost)
    best = cost[rows, columns] < 1e6
    ours, theirs = link(before, after, reach)
    assert len(ours) == best.sum()
    assert squares[ours, theirs].sum() == pytest.approx(cost[rows, columns][best].sum())


@pytest.mark.parametrize("drift", [(0.0, 0.0), (3.0, -2.0), (-4.5, 1.0)])
def test_the_drift_is_no_step_of_anyone(drift: tuple[float, float]) -> None:
    linker = Linker()
    points = lattice(15)
    first = linker(points)
    moved = points + drift + np.random.default_rng(2).normal(0, 0.3, points.shape)
    np.testing.assert_array_equal(linker(moved), first)
    assert linker.drift == pytest.approx(drift, abs=0.1)
    assert np.abs(linker.steps.mean(0)).max() < 0.1
    assert linker.steps.std() == pytest.approx(0.3, rel=0.1)
    assert common_step(points, points[:0], 5.0) == (0.0, 0.0)


def test_who_is_missed_for_a_while_keeps_its_number_and_who_comes_gets_a_new_one() -> None:
    linker = Linker(memory=2)
    points = lattice(6)
    numbers = linker(points)
    for _ in range(2):
        linker(points[1:])
        assert linker.born == 0
    back = linker(points)
    np.testing.assert_array_equal(back, numbers)
    assert np.isnan(linker.steps[0]).all()  # it was not in the frame before
    for _ in range(3):
        linker(points[1:])
    late = linker(points)
    assert late[0] == len(points)
    assert linker.born == 1
    assert len(linker(points[:0])) == 0
    np.testing.assert_array_equal(linker(points)[1:], numbers[1:])


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # trackpy's use of pandas
def test_the_same_links_as_trackpy() -> None:
    """Where both are at their best: steps well below the spacing."""
    frames, points = [], lattice(12, 3)
    random = np.random.default_rng(3)
    for _ in range(8):
        frames.append(points[random.random(len(points)) > 0.05])  # some are missed
        points = points + random.normal(0, 1.0, points.shape)
    rows = pd.DataFrame([(k, x, y) for k, one in enumerate(frames) for x, y in one], columns=["frame", "x", "y"])
    trackpy.quiet()
    theirs = trackpy.link(rows, search_range=8, memory=2).sort_index()["particle"].to_numpy()
    linker = Linker(reach=8, memory=2)
    ours = np.concatenate([linker(one) for one in frames])
    pairs = set(zip(ours.tolist(), theirs.tolist(), strict=True))
    assert len(pairs) == len(set(ours.tolist())) == len(set(theirs.tolist()))


def discs(*places: tuple[float, float, float]) -> View:
    """A frame of discs: x, y, radius."""
    mask = np.zeros((120, 200), np.uint8)
    for x, y, radius in places:
        cv2.circle(mask, (round(x), round(y)), round(radius), 1, -1)
    found = measure(mask, polarity="both", stripe_slenderness=9)
    return View(0, 0.0, math.nan, mask, found.mask, found.objects, {})


def test_merging_and_splitting() -> None:
    analyser = TrackAnalyser(TrackSettings(reach_px=15, memory_frames=0))
    apart = discs((40, 60, 10), (70, 60, 12), (150, 60, 10))
    one = discs((40, 60, 10), (52, 60, 10), (70, 60, 14), (150, 60, 10))
    first = analyser(apart)
    assert (first["track"] >= 0).all()
    assert "merges" not in first
    left, right = (first["track"][np.argmin(np.abs(apart.objects["x"] - x))] for x in (40, 70))
    merged = analyser(one)
    assert len(one.objects) == 2
    place = int(np.argmin(one.objects["x"]))
    assert (merged["merges"], merged["splits"], merged["lost_tracks"], merged["new_tracks"]) == (1, 0, 1, 0)
    assert {merged["track"][place], merged["absorbed_track"][place]} == {left, right}
    split = analyser(apart)
    assert (split["merges"], split["splits"], split["lost_tracks"], split["new_tracks"]) == (0, 1, 0, 1)
    new = int(np.argmax(split["parent_track"]))
    assert split["parent_track"][new] == merged["track"][place]
    assert split["track"][new] not in (left, right)
    gone = analyser(discs((40, 60, 10)))  # one is left, and nothing is where the others were
    assert (gone["merges"], gone["splits"], gone["lost_tracks"]) == (0, 0, 2)


def test_in_a_run(tmp_path: Path) -> None:
    summary = sky.Service(settings(tmp_path, {"path": "bundled"}, analysers={"tracks": {}})).run()
    assert summary.status == "ok"
    with sky.open_run(summary.run_file) as run:
        table = run.table
        assert np.isnan(table["linked"][0])
        seen: set[int] = set()
        for index in range(len(table)):
            objects = run.objects(index)
            numbers = objects["track"][objects["kind"] == Kind.SKYRMION]
            assert len(set(numbers)) == len(numbers)
            assert (objects["track"][objects["kind"] == Kind.STRIPE] == -1).all()
            if index:
                assert table["new_tracks"][index] == len(set(numbers.tolist()) - seen)
            seen |= set(numbers.tolist())
        assert np.nanmax(table["links_trusted"]) == 1
