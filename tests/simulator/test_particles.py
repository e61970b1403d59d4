"""Diffusing skyrmions: they diffuse as Einstein says, repel, stick, drift, vanish and come back."""

import numpy as np
import pytest
from realtime_skyseg_simulator.particles import ParticleSample
from realtime_skyseg_simulator.samples import ParticleSampleSettings, truth_of

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class

FREE = {"pins": 0, "repulsion_kT": 0.0}


def sample(height: int = 256, width: int = 320, **changes: object) -> ParticleSample:
    settings = ParticleSampleSettings.model_validate({"seed": 1, "skyrmions": 60, "pins": 120, **changes})
    return ParticleSample(settings, height, width)


def path_of(particles: ParticleSample, frames: int, field_mT: float = 0.0) -> np.ndarray:
    """Positions, (frames + 1, N, 2) um, at 16 frames per second."""
    path = [particles.positions_um.copy()]
    for _ in range(frames):
        particles.advance(1 / 16, field_mT)
        path.append(particles.positions_um.copy())
    return np.array(path)


def diffusion(path: np.ndarray, lag: int) -> float:
    """From the mean square of displacements over disjoint intervals of `lag` frames."""
    steps = path[lag::lag] - path[:-lag:lag]
    return float((steps**2).sum(-1).mean() / (4 * lag / 16))


@pytest.mark.parametrize("coefficient", [0.05, 0.3, 1.0])
def test_free_skyrmions_diffuse_as_stated(coefficient: float) -> None:
    # 400 x 40 independent squares of 2 axes: 0.6 % statistical error.
    path = path_of(sample(skyrmions=400, diameter_um=1.2, diffusion_um2_per_s=coefficient, **FREE), 40)
    assert diffusion(path, 1) == pytest.approx(coefficient, rel=0.03)


@pytest.mark.slow
def test_free_skyrmions_diffuse_as_stated_over_long_times() -> None:
    path = path_of(sample(skyrmions=2000, diameter_um=0.8, height=512, width=672, **FREE), 128)
    for lag in (1, 4, 16):
        assert diffusion(path, lag) == pytest.approx(0.3, rel=0.03)


def test_pins_hold_skyrmions() -> None:
    free = diffusion(path_of(sample(**FREE), 64), 16)
    held = diffusion(path_of(sample(pins=2000, pin_depth_kT=6.0, repulsion_kT=0.0), 64), 16)
    assert held < 0.6 * free


def test_wells_are_occupied_as_boltzmann_says() -> None:
    particles = sample(64, 64, skyrmions=120, diameter_um=0.8, pins=30, repulsion_kT=0.0, diffusion_um2_per_s=1.0)
    particles._pin_depths[:] = 2.0  # deep ones would take too long to fill
    path_of(particles, 60)
    path = path_of(particles, 240)[::4]

    def energy(x: np.ndarray) -> np.ndarray:
        apart = particles._shortest(x[..., None, :] - particles._pins)
        return np.asarray(-(particles._pin_depths * np.exp(-0.5 * (apart**2).sum(-1) / 0.4**2)).sum(-1))

    # What share of the time they should spend where the wells are deeper than 1 kT, by the sum over a fine grid.
    axis = np.arange(0, 112 * 0.2, 0.1)
    everywhere = energy(np.stack(np.meshgrid(axis, axis), axis=-1))
    weight = np.exp(-everywhere)
    expected = weight[everywhere < -1].sum() / weight.sum()
    evenly = np.count_nonzero(everywhere < -1) / everywhere.size
    held = float(np.mean(energy(path) < -1))
    assert expected > 2.5 * evenly
    assert held == pytest.approx(expected, rel=0.15)


def test_skyrmions_keep_their_distance() -> None:
    def closest(repulsion_kT: float) -> float:
        particles = sample(skyrmions=200, diameter_um=2.0, pins=0, repulsion_kT=repulsion_kT, diffusion_um2_per_s=1.0)
        x = path_of(particles, 60)[-1]
        apart = particles._shortest(x[:, None] - x[None, :])
        distance = np.hypot(apart[..., 0], apart[..., 1]) + 99 * np.eye(len(x))
        return float(np.percentile(distance.min(1), 5))

    assert closest(0.0) < 1.0
    assert closest(5.0) > 1.7


@pytest.mark.parametrize("hall_angle_deg", [0.0, 20.0])
def test_a_drive_moves_them_at_the_stated_velocity_and_angle(hall_angle_deg: float) -> None:
    particles = sample(drive_um_per_s=4.0, hall_angle_deg=hall_angle_deg, diffusion_um2_per_s=0.01, **FREE)
    path = path_of(particles, 32)
    along, down = (path[-1] - path[0]).mean(0) / 2.0
    assert np.hypot(along, down) == pytest.approx(4.0, rel=0.02)
    assert np.degrees(np.arctan2(down, along)) == pytest.approx(hall_angle_deg, abs=1)


@pytest.mark.parametrize("pattern", ["disc", "triangle", "wire", "hall_bar"])
def test_they_stay_inside_an_element(pattern: str) -> None:
    particles = sample(pattern=pattern, skyrmions=20, pins=40, diffusion_um2_per_s=2.0)
    path_of(particles, 60)
    assert particles.element is not None
    truth = particles.truth()
    held = [
        0 <= x < particles.shape[1]
        and 0 <= y < particles.shape[0]
        and particles.element[round(float(y)), round(float(x))]
        for x, y in truth.positions_px
    ]
    assert all(held)
    assert set(np.unique(truth.mask)) == {Class.BACKGROUND, Class.SKYRMION, Class.OUTSIDE, Class.EDGE}


def test_they_shrink_vanish_and_come_back_with_a_pulse() -> None:
    particles = sample(annihilation_mT=10.0)
    areas, counts = [], []
    for field_mT in (0.0, 4.0, 7.0, 9.0, 10.0):
        particles.advance(1 / 16, field_mT)
        counts.append(particles.truth().count)
        areas.append(np.count_nonzero(particles.magnetisation() < 0) / max(counts[-1], 1))
    assert counts[0] == counts[1] == 60
    assert 0 < counts[3] < counts[2] <= 60
    assert counts[4] == areas[4] == 0
    assert areas[1] < 0.7 * areas[0]
    particles.advance(1 / 16, 4.0)
    assert particles.truth().count == 0  # a lower field alone brings none back
    particles.advance(0.3, 4.0, in_plane_mT=25.0)
    assert particles.truth().count >= 55


def test_the_image_shows_discs_of_the_stated_size_where_they_are() -> None:
    particles = sample(skyrmions=25, diameter_um=3.0, diameter_spread=0.0, ellipticity=0.0, wall_px=1.0)
    particles.advance(1 / 16, 0.0)
    truth = particles.truth()
    seen = truth_of(truth.mask)
    assert truth.count == 25
    assert np.count_nonzero(truth.mask == Class.SKYRMION) == pytest.approx(25 * np.pi / 4 * 15**2, rel=0.03)
    inner = (truth.positions_px > 12).all(1) & (truth.positions_px < np.array(particles.shape[::-1]) - 12).all(1)
    for position in truth.positions_px[inner]:
        assert np.hypot(*(seen.positions_px - position).T).min() < 0.3


def test_what_leaves_on_one_side_comes_in_on_the_other() -> None:
    particles = sample(skyrmions=1, diameter_spread=0.0, diffusion_um2_per_s=0.0, **FREE)
    areas = []
    for column in (100.0, 0.3, 367.6):  # the sample is 368 px wide
        particles.positions_um[0] = column * 0.2, 150 * 0.2
        particles.advance(0.0, 0.0)
        areas.append(np.count_nonzero(particles.magnetisation() < 0))
    assert areas[1:] == pytest.approx([areas[0]] * 2, abs=6)


def test_the_same_seed_gives_the_same_images() -> None:
    def images(seed: int) -> list[np.ndarray]:
        particles = sample(seed=seed)
        seen = []
        for in_plane_mT in (0.0, 30.0, 0.0):
            particles.advance(1 / 16, 3.0, in_plane_mT)
            seen.append(particles.magnetisation().copy())
        return seen

    assert all(np.array_equal(a, b) for a, b in zip(images(1), images(1), strict=True))
    assert not np.array_equal(images(1)[0], images(2)[0])


def test_too_many_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"skyrmions: 5000 of 2.6 um do not fit into the sample of \d+ um\^2"):
        sample(skyrmions=5000)
