"""Middle lines of stripes and mazes."""

import math

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import thin as thinned

from realtime_skyseg.analysers.api import View
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.analysers.skeletons import SkeletonAnalyser, SkeletonSettings, thin

SHAPE = 400, 500


def skeletons_of(mask: np.ndarray, **chosen: object) -> tuple[np.ndarray, dict]:
    """Objects and what is found of them."""
    found = measure(mask.astype(np.uint8), polarity="both")
    view = View(0, 0.0, math.nan, mask, found.mask, found.objects, {})
    return found.objects, dict(SkeletonAnalyser(SkeletonSettings.model_validate(chosen))(view))


def capsules(*ends: tuple[float, float, float, float], width: float = 9.0) -> np.ndarray:
    """Stripes with round ends: x, y of both ends of their middle lines."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    mask = np.zeros(SHAPE, bool)
    for x0, y0, x1, y1 in ends:
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
        mask |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) <= width / 2
    return mask


@pytest.mark.parametrize("angle", [0, 15, 30, 45, 60, 70, 90])
def test_a_straight_stripe(angle: float) -> None:
    way = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    first, last = np.array([250.3, 200.4]) - 100 * way, np.array([250.3, 200.4]) + 100 * way
    _, found = skeletons_of(capsules((*first, *last)))
    assert found["skeleton_length_px"][0] == pytest.approx(200, rel=0.03)
    assert found["width_px"][0] == pytest.approx(9, rel=0.05)
    assert (found["ends"][0], found["junctions"][0]) == (2, 0)
    assert found["curvature"][0] < 0.006  # a radius of 170 px; the steps of the pixels


@pytest.mark.parametrize("radius", [20, 40, 80, 150])
def test_a_ring(radius: float) -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    _, found = skeletons_of(np.abs(np.hypot(x - 250, y - 200) - radius) <= 4)
    assert found["skeleton_length_px"][0] == pytest.approx(2 * math.pi * radius, rel=0.03)
    assert found["width_px"][0] == pytest.approx(8, rel=0.05)
    assert (found["ends"][0], found["junctions"][0]) == (0, 0)
    assert found["curvature"][0] == pytest.approx(1 / radius, rel=0.1)


@pytest.mark.parametrize(
    ("stripes", "ends", "junctions", "length"),
    [
        ([(100, 200, 400, 200), (250, 200, 250, 350)], 3, 1, 450),
        ([(100, 200, 400, 200), (250, 50, 250, 350)], 4, 1, 600),
        ([(250, 200, 250, 350), (250, 200, 120, 125), (250, 200, 380, 125)], 3, 1, 450),
        ([(100, 100, 400, 100), (100, 100, 100, 300), (100, 300, 400, 300), (400, 100, 400, 300)], 0, 0, 1000),
        ([(100, 200, 400, 200), (180, 200, 180, 350), (320, 200, 320, 60)], 4, 2, 590),
    ],
    ids=["T", "X", "Y", "frame", "two"],
)
def test_junctions(stripes: list, ends: int, junctions: int, length: float) -> None:
    objects, found = skeletons_of(capsules(*stripes))
    assert len(objects) == 1
    assert (found["ends"][0], found["junctions"][0]) == (ends, junctions)
    assert found["skeleton_length_px"][0] == pytest.approx(length, rel=0.03)
    assert found["total_ends"] == ends


def maze(seed: int, grain: float = 6) -> np.ndarray:
    """Stripes of all kinds."""
    return cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(SHAPE), (0, 0), grain) > 0


@pytest.mark.parametrize("seed", range(6))
def test_thinning_is_that_of_scikit_image_and_keeps_what_hangs_together(seed: int) -> None:
    inside = maze(seed, 3 + seed)
    ours, theirs = thin(inside)[1:-1, 1:-1] > 0, thinned(inside)
    around = np.ones((3, 3))
    assert not (ours & ~theirs).any()  # but for corners of steps it is the same
    assert ndimage.distance_transform_edt(~ours)[theirs].max() < 1.5
    assert not (ours & ~inside).any()
    assert ndimage.label(ours, around)[1] == ndimage.label(inside, around)[1]
    holes = [ndimage.label(np.pad(~one, 1, constant_values=True))[1] for one in (ours, inside)]
    assert holes[0] == holes[1]


@pytest.mark.parametrize("seed", range(4))
def test_a_maze_keeps_its_topology(seed: int) -> None:
    """Of each object ends - junctions (of three lines each) = 2 (1 - holes)."""
    mask = maze(seed, 5)
    objects, found = skeletons_of(mask, skyrmions=True)
    largest = int(np.argmax(objects["area"]))
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    one = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    holes = ndimage.label(np.pad(~one, 1, constant_values=True))[1] - 1
    # A junction of four lines, or two in one place, count as one.
    assert found["ends"][largest] - found["junctions"][largest] == pytest.approx(2 - 2 * holes, abs=0.15 * holes + 2)
    assert found["skeleton_length_px"][largest] * found["width_px"][largest] == pytest.approx(one.sum(), rel=0.1)
    assert (objects["kind"] == 0).any()


def test_skyrmions_have_none_unless_asked_and_nothing_is_nothing() -> None:
    mask = capsules((100, 100, 101, 100), width=20) | capsules((100, 300, 400, 300))
    objects, found = skeletons_of(mask)
    assert objects["kind"].tolist() == [0, 1]
    assert math.isnan(found["skeleton_length_px"][0])
    assert found["ends"].tolist() == [-1, 2]
    _, found = skeletons_of(mask, skyrmions=True)
    assert found["width_px"][0] == pytest.approx(20, rel=0.1)
    none, empty = skeletons_of(np.zeros(SHAPE, bool))
    assert len(none) == 0
    assert empty["total_skeleton_px"] == 0
    assert math.isnan(empty["mean_width_px"])
