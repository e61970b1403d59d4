"""The simulated film: repeatable, with hysteresis, and with the counts and sizes that were measured on a prototype."""

import itertools

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from realtime_skyseg_simulator.film import Film
from realtime_skyseg_simulator.kinds import open_sample
from realtime_skyseg_simulator.patterns import edge_of, element_of
from realtime_skyseg_simulator.samples import FilmSampleSettings, FilmSettings, truth_of

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class

#: Field, objects of at least 10 px at 512x512, their median diameter in px, mean of phi: measured with a prototype.
TABLE = [
    (0.12, 406, 14.8, 0.33),
    (0.16, 394, 13.8, 0.42),
    (0.20, 377, 12.4, 0.51),
    (0.24, 343, 11.1, 0.60),
    (0.26, 308, 10.5, 0.65),
    (0.28, 260, 9.6, 0.70),
    (0.30, 194, 9.0, 0.75),
    (0.32, 114, 8.3, 0.79),
    (0.34, 43, 7.9, 0.82),
    (0.36, 3, 6.3, 0.85),
    (0.38, 0, 0.0, 0.86),
    (0.40, 0, 0.0, 0.87),
]


def skyrmion_film(size: int, seed: int = 1) -> Film:
    film = Film(size, size, seed)
    film.saturate()
    film.pulse(0.12)
    film.step(0.12, 150)
    return film


def diameters(phi: np.ndarray) -> np.ndarray:
    """Of all objects, stripes too, in px."""
    _, _, statistics, _ = cv2.connectedComponentsWithStats((phi < 0).astype(np.uint8), connectivity=8)
    area = statistics[1:, cv2.CC_STAT_AREA]
    return np.asarray(np.sqrt(4 * area[area >= 10] / np.pi))


# --- the film


def test_the_state_is_float32_of_the_shape_that_was_asked_for() -> None:
    phi = Film(40, 72).step(0.1, 3)
    assert phi.shape == (40, 72)
    assert phi.dtype == np.float32


def test_the_same_seed_gives_the_same_film() -> None:
    def states(seed: int) -> list[np.ndarray]:
        film = Film(48, 64, seed)
        return [film.phi, film.step(0.2, 5), film.pulse(0.12), film.step(-0.1)]

    assert all(np.array_equal(a, b) for a, b in zip(states(3), states(3), strict=True))
    assert not np.array_equal(states(3)[-1], states(4)[-1])


def test_a_state_handed_out_does_not_change_any_more() -> None:
    film = Film(32, 32)
    before = film.step(0.1)
    copy = before.copy()
    film.step(0.1, 3)
    assert np.array_equal(before, copy)


def test_counts_fall_with_the_field_until_none_is_left() -> None:
    film = skyrmion_film(256)
    counts = {h: len(diameters(film.step(h, 150))) for h in (0.16, 0.2, 0.24, 0.27, 0.3, 0.35, 0.4)}
    assert counts[0.2] == pytest.approx(377 / 4, rel=0.15)  # a quarter of the film of TABLE
    assert counts[0.3] == pytest.approx(194 / 4, rel=0.35)
    assert counts[0.4] == 0
    assert film.phi.mean() == pytest.approx(0.87, abs=0.02)


@pytest.mark.slow
def test_counts_and_diameters_at_full_size() -> None:
    # Annihilation takes time: with 100 steps a field instead of 225, a third more are left at h = 0.32.
    films = [skyrmion_film(512, seed) for seed in (1, 2, 3, 4, 5)]
    for field, count, diameter, mean in TABLE:
        states = [film.step(field, 225) for film in films]
        sizes = [diameters(phi) for phi in states]
        assert np.mean([len(s) for s in sizes]) == pytest.approx(count, rel=0.1, abs=0.5 if count < 10 else 0), field
        assert np.mean([phi.mean() for phi in states]) == pytest.approx(mean, abs=0.015), field
        if count > 10:  # the last few are about to vanish
            assert np.median(np.concatenate(sizes)) == pytest.approx(diameter, rel=0.1), field


def test_the_loop_is_sheared_and_nucleation_lies_below_annihilation() -> None:
    def sweep(film: Film, fields: np.ndarray) -> np.ndarray:
        return np.array([film.step(float(h), 15).mean() for h in fields])

    film = Film(128, 128, seed=1)
    film.saturate()
    down = np.arange(0.5, -0.501, -0.02)
    from_above, from_below = sweep(film, down), sweep(film, -down)[::-1]
    assert from_above[0] > 0.88
    assert from_above[-1] < -0.88
    assert np.max(from_above - from_below) > 0.4  # open: hysteresis
    assert np.all(np.diff(from_above) < 0.03)  # sheared: it never jumps back
    assert np.abs(np.diff(from_above)).max() < 0.25
    # Between 0.06 and 0.36 the film is still saturated on its way down, and full of domains on its way up.
    between = (down > 0.1) & (down < 0.3)
    assert (from_above[between] > 0.6).all()
    assert (from_below[between] < 0.65).all()


def test_without_field_the_film_is_half_up_half_down() -> None:
    phi = Film(128, 128, seed=2).step(0.0, 300)
    assert abs(phi.mean()) < 0.05
    assert phi.std() > 0.6  # domains, not grey


def test_a_film_without_noise_or_disorder_stays_saturated() -> None:
    film = Film(32, 48, settings=FilmSettings(temperature=0, anisotropy_disorder=0, pinning=0))
    film.saturate()
    assert np.ptp(film.step(0.5, 20)) < 1e-4


@pytest.mark.parametrize("field", [float("nan"), float("inf")])
def test_a_field_must_be_finite(field: float) -> None:
    with pytest.raises(SettingsError, match=f"field: {field} is not allowed"):
        Film(16, 16).step(field)


def test_a_film_must_have_some_size() -> None:
    with pytest.raises(SettingsError, match="4x100 px is too small"):
        Film(4, 100)


# --- the film as a sample


def sample_settings(**changes: object) -> FilmSampleSettings:
    return FilmSampleSettings.model_validate({"seed": 3, **changes})


def test_a_sample_is_larger_than_its_view_and_repeatable() -> None:
    def states() -> list[np.ndarray]:
        sample = open_sample(sample_settings(), 96, 128)
        seen = [sample.magnetisation().copy()]
        for field_mT, in_plane_mT in ((1.5, 0.0), (1.2, 30.0), (-1.0, 0.0)):
            sample.advance(1 / 16, field_mT, in_plane_mT)
            seen.append(sample.magnetisation().copy())
        return seen

    once, again = states(), states()
    assert once[0].shape >= (96 + 48, 128 + 48)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(once))


def test_time_is_kept_over_short_calls() -> None:
    whole, pieces = (open_sample(sample_settings(steps_per_s=100), 64, 64) for _ in range(2))
    whole.advance(0.3, 1.0)
    for _ in range(60):
        pieces.advance(0.005, 1.0)  # half a step each
    assert np.array_equal(whole.magnetisation(), pieces.magnetisation())


def test_the_field_of_annihilation_empties_the_sample_and_a_pulse_fills_it() -> None:
    sample = open_sample(sample_settings(annihilation_mT=12.0, steps_per_s=1600), 160, 160)
    full = sample.truth().count
    sample.advance(0.3, 12.0 * 0.42 / 0.37)
    assert (full > 30, sample.truth().count) == (True, 0)
    sample.advance(0.3, 12.0 * 0.45)
    assert sample.truth().count == 0  # a lower field alone brings none back
    sample.advance(0.04, 12.0 * 0.45, in_plane_mT=25.0)
    sample.advance(0.1, 12.0 * 0.45)
    assert sample.truth().count > 0.3 * full


@pytest.mark.parametrize(
    ("start", "start_mT", "lowest", "highest"), [("saturated", 2.2, 0.7, 1.0), ("demagnetised", 0.8, -0.2, 0.4)]
)
def test_other_starts(start: str, start_mT: float, lowest: float, highest: float) -> None:
    sample = open_sample(sample_settings(start=start, start_mT=start_mT), 96, 96)
    assert lowest < sample.magnetisation().mean() < highest


def test_a_scaled_film_has_larger_and_fewer_skyrmions() -> None:
    def look(scale: float) -> tuple[int, float]:
        truth = open_sample(sample_settings(scale=scale), 256, 256).truth()
        return truth.count, float(np.median(diameters(np.where(truth.mask == Class.SKYRMION, -1, 1))))

    (many, small), (few, large) = look(1), look(2)
    assert many == pytest.approx(4 * few, rel=0.35)
    assert large == pytest.approx(2 * small, rel=0.15)


@pytest.mark.parametrize(
    ("seconds", "field_mT", "in_plane_mT", "message"),
    [
        (-1.0, 0.0, 0.0, "seconds: -1.0"),
        (1.0, float("nan"), 0.0, "field_mT: nan"),
        (1.0, 0.0, float("inf"), "in_plane"),
    ],
)
def test_time_and_fields_must_be_finite(seconds: float, field_mT: float, in_plane_mT: float, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        open_sample(sample_settings(), 32, 32).advance(seconds, field_mT, in_plane_mT)


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ValidationError):
        FilmSettings(time_step=0.9)


# --- truth


def test_truth_counts_what_the_service_would_count_in_a_perfect_mask() -> None:
    mask = open_sample(sample_settings(start="demagnetised", start_mT=1.3), 200, 200).truth().mask
    truth, found = truth_of(mask), measure(mask.copy(), polarity="both")
    assert found.stripes > 0
    assert truth.count == found.count
    skyrmions = found.objects[found.objects["kind"] == 0]
    skyrmions = np.sort(skyrmions, order=["y", "x"])
    assert np.allclose(truth.positions_px, np.stack([skyrmions["x"], skyrmions["y"]], axis=-1), atol=0.01)


def test_truth_of_nothing() -> None:
    truth = truth_of(np.zeros((20, 30), np.uint8))
    assert (truth.count, truth.positions_px.shape) == (0, (0, 2))


# --- elements


@pytest.mark.parametrize(
    ("pattern", "share"),  # of the sample, from the formulas of the areas
    [
        ("disc", np.pi / 4 * 120**2 / (200 * 250)),
        ("triangle", 120**2 / np.sqrt(3) / (200 * 250)),
        ("wire", 120 / 200),
        ("hall_bar", (60 * 250 + 4 * 30 * 30) / (200 * 250)),
    ],
)
def test_elements_have_the_stated_size(pattern: str, share: float) -> None:
    element = element_of(pattern, (200, 250), (160, 200), 0.75)  # type: ignore[arg-type]
    assert element is not None
    assert element.mean() == pytest.approx(share, rel=0.02)
    edge = edge_of(element)
    assert (edge & element).any()
    assert (edge & ~element).sum() > 2 * (edge & element).sum()


def test_an_element_must_have_some_width() -> None:
    with pytest.raises(SettingsError, match=r"pattern_size: 0\.1 makes a disc 6\.4 px wide"):
        element_of("disc", (100, 100), (64, 64), 0.1)


@pytest.mark.parametrize("pattern", ["disc", "triangle", "wire", "hall_bar"])
def test_skyrmions_live_inside_the_element_only(pattern: str) -> None:
    sample = open_sample(sample_settings(pattern=pattern), 192, 256)
    assert sample.element is not None
    seen, truth = sample.magnetisation(), sample.truth()
    assert not seen[~sample.element].any()
    assert np.abs(seen[sample.element]).mean() > 0.5
    assert truth.count > 5
    classes = set(np.unique(truth.mask).tolist())
    assert classes == {Class.BACKGROUND, Class.SKYRMION, Class.OUTSIDE, Class.EDGE}
    for x, y in truth.positions_px:
        assert sample.element[round(float(y)), round(float(x))]
