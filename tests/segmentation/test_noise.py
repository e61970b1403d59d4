"""What looks like noise, and what does not."""

import cv2
import numpy as np
import pytest

import realtime_skyseg as sky
from realtime_skyseg.segmentation import scale
from realtime_skyseg.segmentation.model import load_model, save_model
from realtime_skyseg.segmentation.noise import looks_like_noise
from realtime_skyseg.segmentation.threshold import save_threshold

SHAPE = 384, 512
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]


def noise(correlated_px: float, seed: int = 0) -> np.ndarray:
    """Standard deviation 1; the correlation is that of a Gaussian blur of so much."""
    white = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
    blurred = cv2.GaussianBlur(white, (0, 0), correlated_px) if correlated_px else white
    return np.asarray(blurred / blurred.std(), np.float32)


def discs(diameter: float, spacing: float, n: int = 10_000) -> np.ndarray:
    """1 inside of discs on a square lattice."""
    image = np.zeros(SHAPE, np.float32)
    places = [(y, x) for y in np.arange(spacing, SHAPE[0], spacing) for x in np.arange(spacing, SHAPE[1], spacing)]
    for y, x in places[:n]:
        image[(ROWS - y) ** 2 + (COLUMNS - x) ** 2 <= diameter**2 / 4] = 1
    return image


STRIPES = {width: (COLUMNS // width % 2).astype(np.float32) for width in (5, 10, 30, 100)}


@pytest.mark.parametrize("correlated_px", [0, 0.5, 1, 1.5, 2, 3])
def test_noise_looks_like_noise(correlated_px: float) -> None:
    slope = np.linspace(0, 2, SHAPE[1], dtype=np.float32)  # uneven light
    found = [looks_like_noise(scale(noise(correlated_px, seed) + slope)) for seed in range(40)]
    assert sum(found) >= 38


@pytest.mark.parametrize(
    ("signal", "cnr"),
    [
        (discs(5, 10), 1.5), (discs(8, 14), 1.0), (discs(10, 20), 0.7), (discs(20, 40), 0.5), (discs(40, 90), 0.5),
        (discs(10, 150, 1), 2.0), (discs(14, 150, 1), 1.0), (discs(60, 190, 1), 0.5), (discs(8, 100, 5), 1.5),
        (STRIPES[5], 1.5), (STRIPES[10], 0.7), (STRIPES[30], 0.5), (STRIPES[100], 0.5),
        (noise(3) * (noise(10) > 0), 0.5),
    ],
)  # fmt: skip
def test_a_film_that_shows_something_does_not(signal: np.ndarray, cnr: float) -> None:
    found = [looks_like_noise(scale(noise(0, seed) - np.float32(cnr) * signal)) for seed in range(20)]
    assert sum(found) <= 1


def test_small_images_tell_too_little() -> None:
    assert not looks_like_noise(scale(np.ascontiguousarray(noise(0)[:200, :200])))


def test_what_is_found_in_noise_is_not_believed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A threshold takes every dark spot of correlated noise for a skyrmion, and as many in the negative."""
    folder = tmp_path_factory.mktemp("models")
    network = load_model(str(save_threshold(folder / "t.safetensors", 0.3, 1.0, bright=False))).load_network()
    for polarity in ("any", "dark"):
        save_model(network, folder / f"{polarity}.safetensors", {}, polarity=polarity)
    grey = (128 + 20 * noise(2)).clip(0, 255).astype(np.uint8)
    film = (128 + 20 * (noise(2) - 3 * discs(14, 60))).clip(0, 255).astype(np.uint8)
    believing = sky.Segmenter.load(str(folder / "any.safetensors"), "torch")
    assert believing(grey).count > 100
    sceptical = sky.Segmenter.load(str(folder / "dark.safetensors"), "torch")
    assert (sceptical(grey).count, sceptical(grey).mask.max()) == (0, 0)
    assert sceptical(film).count >= 48
