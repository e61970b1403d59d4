"""Objects of a mask: their table, the count, skyrmion or stripe."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.records import OBJECT_DTYPE, Class, Kind, Polarity


def disc(mask: np.ndarray, y: float, x: float, diameter: float) -> np.ndarray:
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    mask[(rows - y) ** 2 + (columns - x) ** 2 < (diameter / 2) ** 2] = Class.SKYRMION
    return mask


def empty() -> np.ndarray:
    return np.zeros((100, 140), np.uint8)


def bar(height: int, width: int) -> np.ndarray:
    mask = empty()
    mask[20 : 20 + height, 30 : 30 + width] = Class.SKYRMION
    return mask


def ring(radius: float, thickness: float) -> np.ndarray:
    rows, columns = np.ogrid[:100, :140]
    distance = np.hypot(rows - 50, columns - 70)
    return (abs(distance - radius) < thickness / 2).astype(np.uint8)


KINDS = [
    # what, mask, skyrmions, stripes
    ("nothing", empty(), 0, 0),
    ("a disc", disc(empty(), 50, 70, 16), 1, 0),
    ("a small disc", disc(empty(), 50, 70, 4.2), 1, 0),
    ("a square", bar(12, 12), 1, 0),
    ("twice as long as wide", bar(10, 20), 1, 0),
    ("a stripe", bar(6, 60), 0, 1),
    ("a bent stripe", ring(30, 7), 0, 1),
    ("two discs", disc(disc(empty(), 30, 30, 14), 70, 100, 14), 2, 0),
    ("two discs that touch at a corner", disc(disc(empty(), 30, 30, 14), 40, 40, 14), 1, 0),
    ("below the least area", bar(3, 3), 0, 0),
    ("only defects", bar(30, 30) * np.uint8(2), 0, 0),
]


@pytest.mark.parametrize(("what", "mask", "skyrmions", "stripes"), KINDS, ids=[row[0] for row in KINDS])
def test_kinds_are_counted(what: str, mask: np.ndarray, skyrmions: int, stripes: int) -> None:
    found = measure(mask)
    assert (found.count, found.stripes) == (skyrmions, stripes)
    assert len(found.objects) == skyrmions + stripes
    assert found.objects.dtype == OBJECT_DTYPE


def test_a_disc_is_measured() -> None:
    found = measure(disc(empty(), 40, 90, 20)).objects[0]
    assert found["x"] == pytest.approx(90)
    assert found["y"] == pytest.approx(40)
    assert found["area"] == pytest.approx(np.pi * 100, rel=0.05)
    assert found["diameter"] == pytest.approx(20, rel=0.03)
    assert found["elongation"] == pytest.approx(1, abs=0.02)
    assert (found["left"], found["top"], found["width"], found["height"]) == (81, 31, 19, 19)
    assert found["kind"] == Kind.SKYRMION
    assert found["border"] == 0


def test_a_bar_has_the_ratio_of_its_sides() -> None:
    assert measure(bar(8, 40)).objects["elongation"][0] == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize(("y", "x"), [(0, 70), (99, 70), (50, 0), (50, 139)])
def test_objects_cut_off_by_the_border_are_marked(y: int, x: int) -> None:
    found = measure(disc(empty(), y, x, 14))
    assert found.objects["border"].tolist() == [1]
    assert found.count == 1, "half a disc is compact"


def test_the_area_fraction_is_of_the_sample() -> None:
    mask = bar(10, 10)
    assert measure(mask).area_fraction == pytest.approx(100 / mask.size)
    mask[60:] = Class.OUTSIDE
    assert measure(mask).area_fraction == pytest.approx(100 / (60 * 140))
    assert measure(np.full((20, 20), Class.OUTSIDE, np.uint8)).area_fraction == 0


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 4)),
    st.integers(1, 30),
)
def test_any_mask_agrees_with_scipy(mask: np.ndarray, min_area_px: int) -> None:
    found = measure(mask, min_area_px)
    labels, n = scipy.ndimage.label(mask == Class.SKYRMION, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    kept = np.flatnonzero(areas >= min_area_px)
    assert len(found.objects) == found.count + found.stripes == len(kept)
    assert sorted(found.objects["area"]) == sorted(areas[kept])
    centres = scipy.ndimage.center_of_mass(mask == Class.SKYRMION, labels, kept + 1)
    key = [("x", 3), ("y", 3)]
    ours = sorted(tuple(round(float(row[name]), digits) for name, digits in key) for row in found.objects)
    theirs = sorted((round(float(np.float32(x)), 3), round(float(np.float32(y)), 3)) for y, x in centres)
    np.testing.assert_allclose(ours, theirs, atol=2e-3) if ours else None
    assert (found.objects["elongation"] >= 1 - 1e-6).all()
    assert np.isfinite(found.objects["elongation"]).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 6), st.floats(-1, 1.5), st.floats(1.2, 4))
def test_a_stripe_is_told_by_the_largest_disc_inside_it(
    seed: int, roughness_px: float, level: float, slenderness: float
) -> None:
    """Blobs of all forms, with holes and bays, against the distances of OpenCV, which have the same steps."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal((60, 90)), (0, 0), roughness_px)
    mask = (noise > level * noise.std()).astype(np.uint8)
    found = measure(mask, 3, slenderness)
    distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
    labels, _ = scipy.ndimage.label(mask, np.ones((3, 3)))
    for row in found.objects:
        inside = labels == label_of(labels, row)
        ratio = inside.sum() / (slenderness * np.pi * max(1.0, float(distance[inside].max())) ** 2)
        if abs(ratio - 1) > 1e-3:  # OpenCV rounds its steps
            assert row["kind"] == (Kind.STRIPE if ratio > 1 else Kind.SKYRMION)


def label_of(labels: np.ndarray, row: np.void) -> int:
    """The component that has an object's box and area."""
    top, left = int(row["top"]), int(row["left"])
    place = (slice(top, top + int(row["height"])), slice(left, left + int(row["width"])))
    boxes = scipy.ndimage.find_objects(labels)
    return next(k for k, box in enumerate(boxes, 1) if box == place and (labels == k).sum() == row["area"])


def film(illumination: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A scaled image of five dark discs and one bright disc, all of them in the mask."""
    image = np.tile(np.linspace(-illumination, illumination, 240, dtype=np.float32), (160, 1))
    mask = np.zeros(image.shape, np.uint8)
    for k, (x, y) in enumerate([(30, 40), (90, 40), (150, 40), (210, 40), (30, 110), (210, 110)]):
        disc = cv2.circle(np.zeros_like(mask), (x, y), 7, 1, -1) > 0
        mask[disc] = Class.SKYRMION
        image[disc] += 0.5 if k == 5 else -0.5
    return image, mask


POLARITIES: list[tuple[Polarity, int]] = [("auto", 5), ("dark", 5), ("bright", 1), ("both", 6)]


@pytest.mark.parametrize(("polarity", "count"), POLARITIES)
@pytest.mark.parametrize("illumination", [0.0, 1.5])
def test_one_polarity_in_an_image(polarity: Polarity, count: int, illumination: float) -> None:
    """Also where the illumination varies by more than the contrast."""
    image, mask = film(illumination)
    found = measure(mask.copy(), image=image, polarity=polarity)
    assert found.count == len(found.objects) == count
    assert (found.mask == Class.SKYRMION).sum() == found.objects["area"].sum()
    inverted = measure(mask.copy(), image=-image, polarity=polarity)
    assert inverted.count == {"dark": 1, "bright": 5}.get(polarity, count)


def test_a_substrate_does_not_turn_the_polarity() -> None:
    """Dark skyrmions beside a substrate that is darker still."""
    image, mask = film()
    image[:, 45:80], mask[:, 45:80] = -2.0, Class.OUTSIDE
    image[60:100], mask[60:100] = -2.0, Class.OUTSIDE
    assert measure(mask, image=image).count == 5


def test_an_image_full_of_skyrmions_has_a_polarity() -> None:
    """No background pixel anywhere: the object is compared with the median, 0."""
    image = np.full((64, 64), -0.3, np.float32)
    mask = np.full((64, 64), Class.SKYRMION, np.uint8)
    assert measure(mask.copy(), image=image, polarity="dark").area_fraction == 1.0
    assert measure(mask.copy(), image=image, polarity="bright").area_fraction == 0.0
