"""Captions and scale bars, as programs draw them into what they export, are left out."""

import cv2
import numpy as np
import pytest

import realtime_skyseg as sky
from realtime_skyseg.config import AnalysisSettings
from realtime_skyseg.preparation.caption import find_drawn
from realtime_skyseg.records import Class

SHAPE = 240, 320


def film(dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Noise, by 8 or 16 bits or as floats, and a few dark discs."""
    image = np.random.default_rng(seed).normal(128, 25, SHAPE)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for y, x in ((60, 60), (60, 200), (150, 120)):
        image[(rows - y) ** 2 + (columns - x) ** 2 < 12**2] -= 70
    image = image.clip(0, 255)
    return (image * 257 if dtype == "uint16" else image).astype(dtype)


def with_bar(image: np.ndarray, ink: float, tall: int = 28) -> np.ndarray:
    """A bar below, with letters and a scale bar; `ink` is 0 or 1, of the image's range."""
    bar = np.full((tall, image.shape[1]), round(255 * (1 - ink)), np.uint8)
    cv2.putText(bar, "20x  1.2 mT  2024-05-17", (6, tall - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255 * ink, 1, cv2.LINE_AA)
    cv2.rectangle(bar, (image.shape[1] - 90, tall // 3), (image.shape[1] - 20, tall // 2), 255 * ink, -1)
    factor = 257 if image.dtype == np.uint16 else 1
    return np.vstack([image, (bar * float(factor)).astype(image.dtype)])


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize(("dtype", "ink"), [("uint8", 1.0), ("uint8", 0.0), ("uint16", 1.0), ("float32", 1.0)])
def test_a_bar_along_any_side_is_found_to_the_pixel(dtype: str, ink: float, turn: int) -> None:
    image = np.rot90(with_bar(film(dtype), ink), turn)
    expected = np.rot90(np.arange(SHAPE[0] + 28)[:, None].repeat(SHAPE[1], 1) >= SHAPE[0], turn)
    drawn = find_drawn(image)
    assert drawn is not None
    mask = np.zeros(image.shape, np.uint8)
    drawn.put(mask, 1)
    np.testing.assert_array_equal(mask > 0, expected)


def test_where_a_bar_was_the_network_is_shown_the_film_mirrored() -> None:
    image = with_bar(film(), 1.0)
    drawn = find_drawn(image)
    assert drawn is not None
    clean = drawn.without(image)
    np.testing.assert_array_equal(clean[: SHAPE[0]], image[: SHAPE[0]])
    np.testing.assert_array_equal(clean[SHAPE[0] :], image[SHAPE[0] - 28 : SHAPE[0]][::-1])


def test_a_scale_bar_in_the_film_is_found_with_its_letters() -> None:
    image = film().clip(10, 240)
    cv2.rectangle(image, (220, 205), (290, 210), 255, -1)
    cv2.putText(image, "20 um", (230, 198), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    drawn = find_drawn(image)
    assert drawn is not None
    assert drawn.inside is not None
    assert drawn.inside[image == 255].all()
    assert not drawn.inside[:170].any()
    assert drawn.inside.sum() < 3 * (image == 255).sum()
    assert drawn.without(image)[drawn.inside].max() < 200


ELEMENT = np.where(np.hypot(*np.mgrid[-120:120, -160:160]) < 110, film(), 0).astype(np.uint8)
FEW_LEVELS = (film() // 40).astype(np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        film(), film("float32"), film("uint16"), ELEMENT, FEW_LEVELS, np.full(SHAPE, 7, np.uint8),
        np.where(np.mgrid[: SHAPE[0], : SHAPE[1]][1] < 100, 40, 90).astype(np.uint8),
        np.where(film() > 128, 255, 0).astype(np.uint8), np.full(SHAPE, np.nan, np.float32),
    ],
    ids=["film", "floats", "16 bits", "element in black", "few levels", "one level", "two levels", "binary", "NaN"],
)  # fmt: skip
def test_films_have_none(image: np.ndarray) -> None:
    assert find_drawn(image) is None


@pytest.mark.parametrize("ink", [0.0, 1.0])
def test_what_is_found_in_the_film_is_what_would_be_found_without_a_caption(ink: float) -> None:
    segmenter = sky.Segmenter.load("compact", "torch")
    plain, found = segmenter(film()), segmenter(with_bar(film(), ink))
    assert plain.count == found.count == 3
    assert found.drawn
    assert not plain.drawn
    assert (found.mask[SHAPE[0] :] == Class.OUTSIDE).all()
    assert (found.mask[: SHAPE[0]] != plain.mask).mean() < 0.002
    kept = sky.Segmenter(segmenter.model, AnalysisSettings(engine="torch", captions=False))(with_bar(film(), ink))
    assert not kept.drawn


def test_frames_of_another_size_after_one_with_a_scale_bar() -> None:
    image = film().clip(10, 240)
    cv2.rectangle(image, (220, 205), (290, 210), 255, -1)
    segmenter = sky.Segmenter.load("compact", engine="torch")
    assert segmenter(image).drawn
    segmenter.open((160, 200))
    assert not segmenter(film()[:160, :200]).drawn
