"""Shapes of objects against other ways to work them out."""

import math

import cv2
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull

from realtime_skyseg.analysers.api import View
from realtime_skyseg.analysers.objects import measure
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
