"""What is done to a mask after the network: large domains, broken stripes, what is outside."""

import cv2
import numpy as np
import pytest

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.analysis.broken import close_gaps
from realtime_skyseg.analysis.large_domains import may_show_large_domains
from realtime_skyseg.analysis.outside import keep_bordered
from realtime_skyseg.analysis.specks import mark_specks
from realtime_skyseg.config import AnalysisSettings
from realtime_skyseg.records import Class
from realtime_skyseg.segmentation import scale
from realtime_skyseg.segmentation.model import load_model

SHAPE = 480, 640
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE)


def disc(y: float, x: float, diameter: float) -> np.ndarray:
    return np.asarray((ROWS - y) ** 2 + (COLUMNS - x) ** 2 < diameter**2 / 4)


def lattice(diameter: float, spacing: float) -> np.ndarray:
    places = [(y, x) for y in np.arange(40, 440, spacing) for x in np.arange(40, 300, spacing)]
    return np.any([disc(y, x, diameter) for y, x in places], axis=0)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("diameter", "cnr"), [(120, 1.0), (200, 0.7), (300, 1.0)])
def test_a_large_domain_is_found_in_the_image_made_smaller(
    dark_only: str, diameter: float, cnr: float, sign: int
) -> None:
    domain = disc(240, 320, diameter)
    image = (128 + 20 * (noise() + sign * cnr * domain)).clip(0, 255).astype(np.uint8)
    found = Segmenter.load(dark_only, "torch")(image)
    seen = found.mask == Class.SKYRMION
    assert (found.count, found.stripes, found.polarity) == (1, 0, sign)
    assert (seen & domain).sum() / (seen | domain).sum() > 0.85
    without = Segmenter(load_model(dark_only), AnalysisSettings(engine="torch", large_domains=False))(image)
    assert not (without.mask == Class.SKYRMION).all(where=domain)


def test_many_small_ones_are_no_large_one(dark_only: str) -> None:
    """Half of the film has a lattice, which is dark on the whole."""
    small = lattice(12, 18)
    image = (128 + 20 * (noise() / 3 - 2 * small)).clip(0, 255).astype(np.uint8)
    assert may_show_large_domains(scale(image))
    found = Segmenter.load(dark_only, "torch")(image)
    assert found.count == len(np.arange(40, 440, 18)) * len(np.arange(40, 300, 18))


@pytest.mark.parametrize(
    ("image", "may"),
    [
        (noise(), False), (noise() - 2 * lattice(12, 20), True), (noise() - 2 * disc(240, 320, 12), False),
        (noise() - 2 * (COLUMNS // 8 % 2), False), (noise() - disc(240, 320, 90), True),
        (noise() - disc(240, 320, 300), True),
        (noise()[:100, :100], False),
    ],
    ids=["noise", "half a lattice", "a skyrmion", "stripes", "90 px", "300 px", "a small image"],
)  # fmt: skip
def test_a_second_look_is_taken_where_neighbouring_parts_are_alike(image: np.ndarray, may: bool) -> None:
    assert may_show_large_domains(scale(image.astype(np.float32))) == may


@pytest.mark.parametrize(
    ("between", "objects"),
    [(-0.5, 1), (-0.35, 1), (-0.15, 2), (0.0, 2)],  # grey level in the gap; of the film 0, of the stripe -0.5
)
def test_a_gap_is_closed_if_it_is_dark(between: float, objects: int) -> None:
    mask = np.zeros((60, 100), np.uint8)
    mask[27:33, 10:48] = mask[27:33, 52:90] = Class.SKYRMION
    shown = np.where(mask == Class.SKYRMION, -0.5, 0).astype(np.float32)
    shown[27:33, 48:52] = between
    shown += np.random.default_rng(1).normal(0, 0.05, shown.shape).astype(np.float32)
    before = mask.copy()
    close_gaps(mask, shown)
    assert cv2.connectedComponents((mask == Class.SKYRMION).astype(np.uint8))[0] - 1 == objects
    np.testing.assert_array_equal(mask[before == Class.SKYRMION], Class.SKYRMION)
    assert (mask != before).sum() <= 4 * 8


def test_a_notch_in_one_domain_is_left_and_so_is_dirt() -> None:
    mask = np.zeros((60, 100), np.uint8)
    mask[20:40, 10:90] = Class.SKYRMION
    mask[20:30, 48:51] = Class.BACKGROUND  # one object, of which the closing would fill a part
    dirty = mask.copy()
    dirty[:, 48:51] = Class.DEFECT
    for before in (mask, dirty):
        after = before.copy()
        close_gaps(after, np.full(mask.shape, -0.5, np.float32) * (before > 0))
        np.testing.assert_array_equal(after, before)


def test_outside_without_an_edge_or_skyrmions_along_it_is_film() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[100:200, 100:200] = Class.OUTSIDE  # in the midst of the film
    mask[:, 500:] = Class.OUTSIDE
    mask[:, 496:500] = Class.EDGE
    mask[300:400, :80] = Class.OUTSIDE
    mask[290:298, :90:3] = mask[402:410, :90:3] = Class.SKYRMION  # a lattice that ends there
    mask[290:410:3, 84:90] = Class.SKYRMION
    expected = mask.copy()
    expected[100:200, 100:200] = Class.BACKGROUND
    keep_bordered(mask)
    np.testing.assert_array_equal(mask, expected)
    everywhere = np.full((32, 32), Class.OUTSIDE, np.uint8)
    keep_bordered(everywhere)
    assert (everywhere == Class.OUTSIDE).all()


def speck(y: float, x: float, bright_side: float) -> np.ndarray:
    """A dark spot of 5 px with a bright one beside it, as drift leaves a speck of dirt."""
    spot = cv2.GaussianBlur(disc(y, x, 6).astype(np.float32), (0, 0), 1)
    return bright_side * np.roll(spot, 5, axis=1) - spot


@pytest.mark.parametrize(
    ("places", "bright_side", "expected"),
    [
        ([(100, 100)], 1.0, Class.DEFECT),
        ([(100, 100)], 0.0, Class.SKYRMION),
        ([(0, 300)], 0.0, Class.DEFECT),  # cut down to 3 px
        ([(6, 300)], 0.0, Class.SKYRMION),
        ([(60 * i, 60 * i) for i in range(1, 7)], 1.0, Class.DEFECT),
        ([(60 * i, 60 * i) for i in range(1, 7)], 0.0, Class.SKYRMION),
        ([(y, x) for y in range(20, 470, 20) for x in range(20, 630, 20)], 1.0, Class.SKYRMION),  # it cannot be told
    ],
)
def test_a_speck_of_dirt_is_no_skyrmion_where_there_are_few(
    places: list[tuple[int, int]], bright_side: float, expected: Class
) -> None:
    shown = (0.05 * noise() + sum(speck(y, x, bright_side) for y, x in places)).astype(np.float32)
    mask = np.full(SHAPE, Class.BACKGROUND, np.uint8)
    for y, x in places:
        mask[disc(y, x, 6)] = Class.SKYRMION
    mark_specks(mask, shown)
    assert [mask[place] for place in places] == [expected] * len(places)


def test_a_large_domain_beside_a_speck_is_left_as_it_is() -> None:
    shown = (0.05 * noise() + speck(100, 100, 1) - disc(240, 320, 30)).astype(np.float32)
    mask = np.full(SHAPE, Class.BACKGROUND, np.uint8)
    mask[disc(100, 100, 6) | disc(240, 320, 30)] = Class.SKYRMION
    mark_specks(mask, shown)
    assert (mask[100, 100], mask[240, 320]) == (Class.DEFECT, Class.SKYRMION)
