"""What tracks tell, against what the points were made with, and against trackpy."""

import math

import numpy as np
import pandas as pd
import pytest
import trackpy

from realtime_skyseg.analysers.motion import diffusion, displacements, mean_squared_displacement, stay_map, van_hove


def walkers(n: int, frames: int, step: float, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Free walkers: tracks, frames, points; `step` and `noise` along each axis."""
    random = np.random.default_rng(seed)
    paths = np.cumsum(random.normal(0, step, (frames, n, 2)), 0) + random.uniform(0, 500, (1, n, 2))
    paths += random.normal(0, noise, paths.shape)
    track, frame = np.tile(np.arange(n), frames), np.repeat(np.arange(frames), n)
    return track, frame, paths.reshape(-1, 2)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_diffusion_of_free_walkers(noise: float) -> None:
    """Within three errors, and the errors are right, over the ensemble and of each track."""
    true, off, each, told = 0.5 * 0.4**2, [], [], []
    for seed in range(30):
        found = diffusion(*walkers(60, 40, 0.4, noise, seed))
        off.append((found.constant - true) / found.error)
        each.append(found.of_track.std())
        told.append(found.error_of_track.mean())
        assert found.noise == pytest.approx(noise, abs=0.12) or (noise == 0 and math.isnan(found.noise))
    assert np.abs(off).max() < 4
    assert np.std(off) == pytest.approx(1, abs=0.3)
    assert np.mean(told) == pytest.approx(np.mean(each), rel=0.15)


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # trackpy's use of pandas
def test_mean_squared_displacement_and_that_of_trackpy() -> None:
    track, frame, points = walkers(40, 50, 0.4, 0.0, 1)
    kept = np.random.default_rng(0).random(len(track)) > 0.1  # with gaps, and in any order
    order = np.random.default_rng(1).permutation(int(kept.sum()))
    track, frame, points = (one[kept][order] for one in (track, frame, points))
    msd, error, tracks = mean_squared_displacement(track, frame, points, 10)
    assert (tracks == 40).all()
    np.testing.assert_allclose(msd, 4 * 0.5 * 0.16 * np.arange(1, 11), rtol=0.3)
    assert (np.diff(error) > 0).all()
    rows = pd.DataFrame({"particle": track, "frame": frame, "x": points[:, 0], "y": points[:, 1]})
    theirs = [
        trackpy.msd(one.sort_values("frame").set_index("frame", drop=False), 1, 1, 10)
        for _, one in rows.groupby("particle")
    ]
    mine = [
        mean_squared_displacement(track[track == k], frame[track == k], points[track == k], 10)[0] for k in range(40)
    ]
    np.testing.assert_allclose(np.array(mine), np.array([one["msd"] for one in theirs]), rtol=1e-9)


def test_van_hove_of_free_and_of_two_kinds_of_walkers() -> None:
    track, frame, points = walkers(300, 20, 0.5, 0.0, 2)
    _, steps = displacements(track, frame, points, 1)
    place, density, beyond = van_hove(steps)
    np.testing.assert_allclose(density, np.exp(-(place**2) / 0.5) / math.sqrt(0.5 * math.pi), atol=0.05)
    assert beyond == pytest.approx(0, abs=0.1)
    steps[::2] *= 4  # half of them are pinned, in comparison
    assert van_hove(steps)[2] > 0.5
    assert math.isnan(van_hove(steps[:0])[2])


def test_a_pin_is_where_one_stays() -> None:
    """Energies of a walker between two wells of 2 kT difference."""
    random = np.random.default_rng(0)
    deep, shallow = (20.0, 30.0), (60.0, 30.0)
    at = np.where(random.random(4000) < 1 / (1 + math.exp(-2)), 0, 1)
    points = np.array([deep, shallow])[at] + random.uniform(-2, 2, (4000, 2))
    found = stay_map(np.zeros(4000, int), np.arange(4000), points, (60, 80), 10.0)
    assert found.visits.shape == (6, 8)
    assert found.visits.sum() == 4000
    one, other = (
        found.energy_kT[int(y // 10 - 1) : int(y // 10 + 1), int(x // 10 - 1) : int(x // 10 + 1)]
        for x, y in (deep, shallow)
    )
    weights = [np.exp(-part).sum() for part in (one, other)]
    assert math.log(weights[0] / weights[1]) == pytest.approx(2, abs=0.2)
    assert np.isnan(found.energy_kT[0, 0])
    still = stay_map(np.zeros(50, int), np.arange(50), np.tile([[5.0, 5.0]], (50, 1)), (20, 20), 10.0)
    assert still.dwell_frames[0, 0] == 50
    assert still.diffusion[0, 0] == 0


def test_nothing_is_nothing() -> None:
    none = np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2))
    untracked = np.full(5, -1), np.arange(5), np.ones((5, 2))
    for points in (none, untracked):
        assert np.isnan(mean_squared_displacement(*points, 3)[0]).all()
        assert math.isnan(diffusion(*points).constant)
        assert stay_map(*points, (20, 20), 5.0).visits.sum() == 0
        assert len(displacements(*points, 1)[0]) == 0
    alone = diffusion(np.zeros(9, int), np.arange(9), np.random.default_rng(0).normal(size=(9, 2)).cumsum(0))
    assert math.isnan(alone.error)
    assert alone.error_of_track[0] > 0
