"""Interference rings are taken out of what the network is shown, and nothing else is."""

import cv2
import numpy as np
import pytest

import realtime_skyseg as sky
from realtime_skyseg.config import AnalysisSettings
from realtime_skyseg.preparation.rings import without_rings

SHAPE = 320, 448


def rings(x: float, y: float, closest: float, strength: float) -> np.ndarray:
    """Newton's rings around a centre, at least `closest` px apart."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float32)
    square = (rows - y) ** 2 + (columns - x) ** 2
    return strength * np.cos(square * np.pi / (closest * square.max() ** 0.5))


def noise(seed: int = 0) -> np.ndarray:
    """Mean 128, standard deviation 12."""
    return np.random.default_rng(seed).normal(128, 12, SHAPE)


def discs() -> np.ndarray:
    """Where a hundred skyrmions are."""
    mask = np.zeros(SHAPE, np.uint8)
    for x, y in np.random.default_rng(4).uniform((10, 10), (438, 310), (100, 2)).astype(int):
        cv2.circle(mask, (int(x), int(y)), 7, 1, -1)
    return mask


def as_recorded(image: np.ndarray) -> np.ndarray:
    """In 8 bits."""
    return image.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("x", "y", "closest", "strength"),
    [(224, 160, 20, 8), (-200, 300, 14, 5), (600, -200, 58, 12), (100, 600, 40, 4), (440, 10, 25, 12)],
)
def test_what_is_left_without_the_rings_is_the_film(x: float, y: float, closest: float, strength: float) -> None:
    film = noise()
    clean = without_rings(as_recorded(film + rings(x, y, closest, strength)))
    assert clean is not None
    left = cv2.GaussianBlur((clean - clean.mean() - (film - film.mean())).astype(np.float32), (0, 0), 3)
    assert left.std() < 0.25 * strength / 2**0.5


def test_skyrmions_under_rings_stay() -> None:
    film = noise() - 12 * discs()
    clean = without_rings(as_recorded(film + rings(300, 100, 30, 12)))
    assert clean is not None
    inside = discs() > 0
    assert clean[~inside].mean() - clean[inside].mean() == pytest.approx(12, abs=1.5)


@pytest.mark.parametrize("strength", [0, 12, 40])
def test_straight_stripes_are_no_rings(strength: float) -> None:
    columns = np.arange(SHAPE[1])
    assert without_rings(as_recorded(noise() + strength * np.cos(columns / 4))) is None


@pytest.mark.parametrize("radius", [20, 60, 120])
def test_a_round_domain_is_no_ring(radius: int) -> None:
    domain = np.zeros(SHAPE, np.float32)
    cv2.circle(domain, (200, 170), radius, 1, -1)
    assert without_rings(as_recorded(noise() - 30 * domain)) is None


@pytest.mark.parametrize("image", [np.zeros(SHAPE), np.zeros((40, 30)), np.full(SHAPE, np.nan), np.eye(320)])
def test_odd_images_have_none(image: np.ndarray) -> None:
    assert without_rings(image) is None


def test_a_saturated_film_with_rings_has_no_skyrmions() -> None:
    images = [as_recorded(noise(seed) + rings(*at)) for seed, at in enumerate([(90, 279, 30, 8), (600, 300, 18, 10)])]
    segmenter = sky.Segmenter.load("compact", engine="torch")
    found = [segmenter(image) for image in images]
    assert [(one.count, one.stripes, one.ringed) for one in found] == [(0, 0, True)] * 2
    kept = sky.Segmenter(segmenter.model, AnalysisSettings(engine="torch", rings=False))(images[1])
    assert not kept.ringed
    assert (kept.count or 0) + (kept.stripes or 0) > 0  # so that the test shows something
