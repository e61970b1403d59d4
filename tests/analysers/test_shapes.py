"""Shapes of objects against other ways to work them out."""

import math

import cv2
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull
from skimage import measure as skimage_measure

from realtime_skyseg.analysers.api import View
from realtime_skyseg.analysers.objects import label_image, measure
from realtime_skyseg.analysers.shapes import ShapeAnalyser, ShapeSettings
from realtime_skyseg.records import Class

SHAPE = 120, 160


def shapes_of(mask: np.ndarray, image: np.ndarray | None = None, **settings: object) -> tuple[np.ndarray, dict]:
    """Objects and what is found of them."""
    found = measure(mask.copy(), polarity="both")
    view = View(0, 0.0, math.nan, mask if image is None else image, found.mask, found.objects, {})
    return found.objects, dict(ShapeAnalyser(ShapeSettings.model_validate(settings))(view))


def random_mask(seed: int) -> np.ndarray:
    """Blobs of all shapes, with holes, at the border too."""
    grain = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(SHAPE), (0, 0), 2 + seed % 4)
    return (grain > (0.2 + 0.3 * (seed % 3)) * grain.std()).astype(np.uint8)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("point_pixels", [False, True])
def test_random_masks_against_their_definitions(seed: int, point_pixels: bool) -> None:
    mask = random_mask(seed)
    objects, found = shapes_of(mask, point_pixels=point_pixels)
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    seen = set()
    for k, one in enumerate(objects):
        # The label of the object: the one whose pixels have its centroid and area.
        inside = labels[one["top"] : one["top"] + one["height"], one["left"] : one["left"] + one["width"]]
        for label in set(inside.ravel()) - {0} - seen:
            y, x = np.nonzero(labels == label)
            if len(x) == one["area"] and abs(x.mean() - one["x"]) < 1e-3 and abs(y.mean() - one["y"]) < 1e-3:
                seen.add(label)
                break
        moments = np.cov(x, y, bias=True) + (0 if point_pixels else np.eye(2) / 12)
        values, vectors = np.linalg.eigh(moments)
        assert found["major_axis_px"][k] == pytest.approx(4 * math.sqrt(values[1]), rel=1e-9)
        assert found["minor_axis_px"][k] == pytest.approx(4 * math.sqrt(max(values[0], 0)), rel=1e-6, abs=1e-6)
        if values[1] > 1.001 * values[0]:
            angle = -math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
            assert abs(math.remainder(found["orientation_deg"][k] - angle, 180)) < 1e-6
        corners = np.concatenate([np.stack([x + dx, y + dy], 1) for dx in (0, 1) for dy in (0, 1)])
        hull = ConvexHull(corners).volume
        assert found["hull_diameter_px"][k] == pytest.approx(math.sqrt(4 / math.pi * hull), rel=1e-9)
        assert found["hull_deficit"][k] == pytest.approx(1 - math.sqrt(len(x) / hull), abs=1e-6)
        filled = ndimage.binary_fill_holes(labels == label)
        assert found["hole_area"][k] == filled.sum() - len(x)
    assert len(seen) == len(objects) > 3


@pytest.mark.parametrize(("turn", "expected"), [(0, 0), (30, 30), (60, 60), (90, 90), (-45, -45)])
def test_the_orientation_is_counted_upwards(turn: float, expected: float) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    cv2.ellipse(mask, (80, 60), (40, 12), -turn, 0, 360, 1, -1)  # OpenCV turns clockwise
    _, found = shapes_of(mask)
    assert abs(math.remainder(found["orientation_deg"][0] - expected, 180)) < 1.5
    assert found["major_axis_px"][0] == pytest.approx(81, abs=2)
    assert found["ellipticity"][0] == pytest.approx(0.7, abs=0.02)


def test_contrast_is_that_against_the_film_around() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    cv2.circle(mask, (40, 60), 12, 1, -1)
    cv2.circle(mask, (120, 60), 12, 1, -1)
    mask[:, 150:] = Class.OUTSIDE
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    image = np.where(mask == Class.SKYRMION, 80, 130) + noise + np.where(np.arange(SHAPE[1]) < 80, 0, 40)
    image[:, 150:] = 10
    _, found = shapes_of(mask, image.astype(np.float32), ring_px=8)
    np.testing.assert_allclose(found["contrast"], 50, atol=1.5)
    np.testing.assert_allclose(found["cnr"], 10, atol=1.2)


def test_small_objects_are_passed_over_and_nothing_is_nothing() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:12, 10:12] = mask[14:16, 40:42] = 1  # below the least area
    mask[10:20, 60:70] = mask[60:64, 5:40] = 1
    objects, found = shapes_of(mask)
    assert objects["area"].tolist() == [100, 140]
    assert found["hull_deficit"] == pytest.approx([0, 0], abs=1e-9)
    assert found["minor_axis_px"] == pytest.approx([4 * math.sqrt(100 / 12), 4 * math.sqrt(16 / 12)])
    none, empty = shapes_of(np.zeros(SHAPE, np.uint8))
    assert len(none) == 0
    assert all(len(values) == 0 for values in empty.values())


def test_a_hundred_random_masks_against_scikit_image() -> None:
    """Its convex area counts pixels whose centres lie in the hull, and its filled one takes holes that open at a corner
    for none: these two are compared above, by their definitions."""
    compared = 0
    for seed in range(100, 200):
        mask = random_mask(seed)
        objects, found = shapes_of(mask, point_pixels=True)  # as theirs
        regions = [
            one for one in skimage_measure.regionprops(skimage_measure.label(mask, connectivity=2)) if one.area >= 10
        ]
        of_place = {(round(one.centroid[1], 3), round(one.centroid[0], 3), int(one.area)): one for one in regions}
        assert len(regions) == len(objects) == len(of_place)
        for k, one in enumerate(objects):
            near = min(of_place, key=lambda key: abs(key[0] - one["x"]) + abs(key[1] - one["y"]))
            theirs = of_place[near]
            assert theirs.area == one["area"]
            assert one["x"] == pytest.approx(theirs.centroid[1], rel=1e-6)
            assert one["diameter"] == pytest.approx(theirs.equivalent_diameter_area, rel=1e-6)
            assert found["major_axis_px"][k] == pytest.approx(theirs.axis_major_length, rel=1e-6)
            assert found["minor_axis_px"][k] == pytest.approx(theirs.axis_minor_length, rel=1e-6, abs=1e-6)
            if found["ellipticity"][k] > 1e-3:  # theirs is against the columns
                turn = math.degrees(theirs.orientation) + 90
                assert abs(math.remainder(found["orientation_deg"][k] - turn, 180)) < 1e-6
            compared += 1
    assert compared > 1000


def test_the_columns_are_those_of_the_notebooks() -> None:
    """By their own definitions: points for pixels, the hull and the holes of a mask of twice the size."""
    holes = 0
    for seed in range(40):
        mask = random_mask(seed)
        objects, found = shapes_of(mask, point_pixels=True)
        labels = label_image(mask, objects)
        for k in range(len(objects)):
            inside = labels == k + 1
            y, x = np.nonzero(inside)
            values, vectors = np.linalg.eigh(np.cov(x, y, bias=True))
            assert found["major_axis_px"][k] == pytest.approx(4 * math.sqrt(values[1]), rel=1e-9)
            way = vectors[:, 1] * (1 if vectors[0, 1] >= 0 else -1)
            angle = -math.degrees(math.atan2(way[1], way[0]))
            if values[1] > 1.001 * values[0]:
                assert abs(math.remainder(found["orientation_deg"][k] - angle, 180)) < 1e-6
            twice = inside.astype(np.uint8).repeat(2, 0).repeat(2, 1)
            outlines, tree = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            outer = [
                np.ceil(cv2.convexHull(one) / 2) for one, node in zip(outlines, tree[0], strict=True) if node[3] < 0
            ]
            inner = [np.ceil(one / 2) for one, node in zip(outlines, tree[0], strict=True) if node[3] >= 0]
            hull = sum(cv2.contourArea(one.astype(np.int32)) for one in outer)
            assert found["hull_diameter_px"][k] == pytest.approx(math.sqrt(4 / math.pi * hull), rel=1e-9)
            assert found["hole_area"][k] == sum(cv2.contourArea(one.astype(np.int32)) for one in inner)
            holes += bool(inner)
    assert holes > 10


def test_a_centroid_by_probability_is_finer_than_by_pixels() -> None:
    """Of blurred discs, of which a mask keeps whole pixels only."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float32)
    random = np.random.default_rng(0)
    by_pixels, by_weight = [], []
    for _ in range(20):
        place = np.array([80, 60]) + random.uniform(-0.5, 0.5, 2)
        probability = (1 / (1 + np.exp((np.hypot(x - place[0], y - place[1]) - 4.2) / 0.7))).astype(np.float32)
        found = measure((probability > 0.5).astype(np.uint8), polarity="both")
        view = View(0, 0.0, math.nan, probability, found.mask, found.objects, {}, output_of=lambda *_: probability)  # noqa: B023
        analyser = ShapeAnalyser(ShapeSettings(weighted=True))
        assert analyser.needs == {"probability"}
        assert ShapeAnalyser(ShapeSettings()).needs == set()
        values = analyser(view)
        by_pixels.append(np.hypot(found.objects["x"][0] - place[0], found.objects["y"][0] - place[1]))
        by_weight.append(np.hypot(values["x_weighted_px"][0] - place[0], values["y_weighted_px"][0] - place[1]))
    assert np.mean(by_weight) < 0.02 < np.mean(by_pixels)
