"""The simulated film and microscope: repeatable, and with the behaviour that the rest relies on."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from realtime_skyseg.errors import SettingsError
from simulator import make_recording as maker
from simulator.film import Film, FilmSettings
from simulator.kerr_camera import KerrCamera, KerrSettings
from simulator.readers import BUNDLED

QUIET = KerrSettings(flicker=0, vibration_px=0, dirt_spots=0, vignetting=0, offset_px=(0, 0), drift_px=(0, 0))


def skyrmion_film(size: int, seed: int = 1) -> Film:
    film = Film(size, size, seed)
    film.saturate()
    film.pulse(0.12)
    film.step(0.12, 150)
    return film


def disc(height: int = 96, width: int = 128, radius: float = 8) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    inside = np.hypot(rows - height / 2, columns - width / 2) < radius
    return np.where(inside, np.float32(-1), np.float32(1))


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
    # A quarter of the film for which counts of 377 and 194 at h = 0.2 and 0.3 were measured with a first prototype.
    film = skyrmion_film(256)
    counts = {h: maker.true_count(film.step(h, 150)) for h in (0.16, 0.2, 0.24, 0.27, 0.3, 0.35, 0.4)}
    assert counts[0.2] == pytest.approx(377 / 4, rel=0.15)
    assert counts[0.3] == pytest.approx(194 / 4, rel=0.35)
    assert counts[0.4] == 0
    assert film.phi.mean() == pytest.approx(0.87, abs=0.02)


@pytest.mark.slow
def test_counts_at_full_size() -> None:
    film = skyrmion_film(512)
    counts = {h: maker.true_count(film.step(h, 150)) for h in (0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36, 0.4, 0.42)}
    assert counts[0.2] == pytest.approx(377, rel=0.1)
    assert counts[0.4] == counts[0.42] == 0


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


# --- the microscope


@pytest.mark.parametrize(
    ("polarity", "bits", "background", "skyrmion"),
    [
        ("dark", 8, 128, 98),
        ("bright", 8, 128, 158),
        ("dark", 16, 128 * 257, 98 * 257),
        ("bright", 16, 128 * 257, 158 * 257),
    ],
)
def test_grey_levels(polarity: str, bits: int, background: float, skyrmion: float) -> None:
    settings = KerrSettings(**{**vars(QUIET), "polarity": polarity, "bits": bits, "grey_contrast": 30})
    phi = disc()
    image = KerrCamera(phi.shape, settings=settings).image(phi)
    assert image.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.mean(image[:20]) == pytest.approx(background, rel=0.01)
    assert np.mean(image[44:52, 60:68]) == pytest.approx(skyrmion, rel=0.03)


@pytest.mark.parametrize(
    ("contrast", "average", "expected"),
    [(0.02, 1, 2.75), (0.005, 1, 0.69), (0.005, 16, 2.0)],
)
def test_ratio_of_contrast_to_noise(contrast: float, average: int, expected: float) -> None:
    # Photon noise of 20,000 electrons is 0.71 %, and the background of 16 exposures adds a little.
    settings = KerrSettings(**{**vars(QUIET), "contrast": contrast, "average": average, "bits": 16})
    camera = KerrCamera((128, 128), settings=settings)
    up, down = np.ones((128, 128), np.float32), np.full((128, 128), -1, np.float32)
    light, dark = (camera.image(phi).astype(float) for phi in (up, down))
    assert (light.mean() - dark.mean()) / light.std() == pytest.approx(expected, rel=0.06)


def test_the_sample_drifts_by_the_stated_pixels() -> None:
    phi = disc()
    settings = {**vars(QUIET), "offset_px": (1.5, -2.25), "electrons": 1e8, "bits": 16}
    image = KerrCamera(phi.shape, settings=KerrSettings(**settings)).image(phi)
    weight = 128 * 257 - image.astype(float)
    weight[weight < 2000] = 0
    rows, columns = np.indices(phi.shape)
    inside = phi < 0
    moved = [(weight * axis).sum() / weight.sum() - axis[inside].mean() for axis in (rows, columns)]
    assert moved == pytest.approx([1.5, -2.25], abs=0.03)


def test_dirt_is_seen_only_after_drift() -> None:
    def spread(offset: tuple[float, float]) -> float:
        settings = {**vars(QUIET), "dirt_spots": 30, "electrons": 1e8, "offset_px": offset}
        image = KerrCamera((96, 96), settings=KerrSettings(**settings)).image(np.ones((96, 96), np.float32))
        return float(np.ptp(image))

    assert spread((0.0, 0.0)) <= 2
    assert spread((0.4, 0.25)) > 50


def test_the_view_is_the_centre_of_the_sample() -> None:
    phi = disc(96, 128)
    image = KerrCamera(phi.shape, (48, 64), settings=QUIET).image(phi)
    assert image.shape == (48, 64)
    assert image[20:28, 28:36].mean() < image[:6].mean() - 15


def test_the_same_seed_gives_the_same_images() -> None:
    def images(seed: int) -> list[np.ndarray]:
        camera = KerrCamera((32, 48), seed=seed)
        return [camera.image(np.ones((32, 48), np.float32)) for _ in range(3)]

    assert all(np.array_equal(a, b) for a, b in zip(images(1), images(1), strict=True))
    assert not np.array_equal(images(1)[0], images(2)[0])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(SettingsError, match="view_shape"):
        KerrCamera((32, 32), (33, 32))
    with pytest.raises(SettingsError, match=r"phi: the shape \(16, 16\)"):
        KerrCamera((32, 32)).image(np.ones((16, 16), np.float32))
    with pytest.raises(SettingsError, match="average"):
        KerrCamera((32, 32), settings=KerrSettings(average=0))


# --- the bundled recording


def test_a_recording_is_made_anew_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "VIEW", (64, 96))
    monkeypatch.setattr(maker, "FIELDS", (0.13, 0.2, 0.6))
    for name in ("one.tif", "two.tif"):
        described = maker.make_recording(tmp_path / name, seed=5)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()
    assert described["field_mT"] == [1.3, 2.0, 6.0]
    assert described["true_count"][0] > 5
    assert described["true_count"][2] == 0


def test_the_bundled_recording_is_as_described() -> None:
    with tifffile.TiffFile(BUNDLED) as tiff:
        described = json.loads(tiff.pages.first.description)
        assert len(tiff.pages) == 48
        frame = tiff.pages[40].asarray()
    assert described["synthetic"] is True
    assert described["seed"] == maker.SEED
    assert described["rate_hz"] == 16
    assert described["field_mT"] == [round(h * 10, 3) for h in maker.FIELDS]
    counts = described["true_count"]
    assert counts[0] > 400
    assert counts[-1] < 20
    assert all(later <= earlier for earlier, later in itertools.pairwise(counts))
    assert (frame.shape, frame.dtype) == ((512, 672), np.uint8)
    assert sum(f.stat().st_size for f in BUNDLED.parent.iterdir()) <= 11.5e6


@pytest.mark.slow
def test_the_bundled_recording_comes_from_this_code(tmp_path: Path) -> None:
    described = maker.make_recording(tmp_path / "again.tif")
    with tifffile.TiffFile(BUNDLED) as tiff:
        assert json.loads(tiff.pages.first.description)["true_count"] == pytest.approx(described["true_count"], abs=5)
