"""From raw images to what is segmented: each step against what is known, the state against itself, and whole runs."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import tifffile
import yaml
from conftest import settings
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from realtime_skyseg_simulator.film import Film
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings
from test_service import free_address

import realtime_skyseg as sky
from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.config import Config, PrepareSettings, validate
from realtime_skyseg.errors import FrameError, SettingsError
from realtime_skyseg.pipeline import Pipeline
from realtime_skyseg.preparation import Drift, Preparation, load_image
from realtime_skyseg.records import Background, Class, Segmentation, Skipped
from realtime_skyseg.streaming import ImageMessage
from realtime_skyseg.training.evaluate import Scores, score_image

SHAPE = (256, 320)
MARGIN = 24  # of the sample around the view


@pytest.fixture(scope="module")
def skyrmions() -> np.ndarray:
    """Magnetisation of a film with skyrmions, larger than the view."""
    film = Film(SHAPE[0] + 2 * MARGIN, SHAPE[1] + 2 * MARGIN, seed=3)
    film.saturate()
    film.pulse(0.12)
    film.step(0.12, 120)
    return film.step(0.2, 60).copy()


def saturated() -> np.ndarray:
    return np.ones((SHAPE[0] + 2 * MARGIN, SHAPE[1] + 2 * MARGIN), np.float32)


def microscope(seed: int = 5, **changes: Any) -> KerrCamera:
    """One that drifts, vibrates and flickers, unless told otherwise."""
    chosen = {"drift_px": (0.03, 0.02), "vibration_px": 0.15, **changes}
    return KerrCamera(saturated().shape, SHAPE, seed, KerrSettings.model_validate(chosen))  # type: ignore[arg-type]


STILL: dict[str, Any] = {
    "drift_px": (0, 0), "offset_px": (0, 0), "vibration_px": 0, "flicker": 0, "illumination_drift": (0, 0),
}  # fmt: skip


def texture(shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Something with structure everywhere, as float32 around 1000."""
    noise = np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)
    return 1000 + 200 * cv2.GaussianBlur(noise, (0, 0), 2.0)


def moved(image: np.ndarray, right: float, down: float) -> np.ndarray:
    """An image shifted around its borders, exactly."""
    rows, columns = np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])[None, :]
    phase = np.exp(-2j * np.pi * (rows * down + columns * right))
    return np.fft.irfft2(np.fft.rfft2(image) * phase, s=image.shape).astype(np.float32)


def preparation(**keys: Any) -> Preparation:
    return Preparation(PrepareSettings(**keys), SHAPE)


def against(background: np.ndarray, **keys: Any) -> Preparation:
    """With a background that is there from the first frame on."""
    chosen = PrepareSettings(background="take", **keys)
    return Preparation(chosen, background.shape, [Background(background, 0, "test")])  # type: ignore[arg-type]


def write_stack(path: Path, frames: Any) -> str:
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, contiguous=False)
    return str(path)


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


# --- drift


@pytest.mark.parametrize(("contrast", "dirt_spots"), [(0.005, 25), (0.02, 25), (0.01, 100)])
def test_the_drift_of_the_twin_is_found(skyrmions: np.ndarray, contrast: float, dirt_spots: int) -> None:
    """The background is averaged without drift, so that its place is known."""
    changes = {"contrast": contrast, "dirt_spots": dirt_spots}
    still = microscope(**{**STILL, **changes, "average": 16})
    camera = microscope(offset_px=(1.4, -2.25), **changes)
    prepare = against(still.take(saturated()).astype(np.float32), drift=True)
    errors = []
    for index in range(25):
        found = prepare(camera.take(skyrmions), index)
        assert found.drift_quality > 15
        errors.append(np.subtract(found.drift_px[::-1], camera.shift_px))
    assert rms(errors) < 0.05


SHIFTS = [(0.0, 0.0), (0.3, -0.45), (-3.5, 2.25), (12.6, 0.0), (-20.2, 33.3)]


@pytest.mark.parametrize("shape", [(200, 260), (131, 157), (64, 80)])
@pytest.mark.parametrize(("right", "down"), SHIFTS)
def test_drift_in_frames_of_any_size(shape: tuple[int, int], right: float, down: float) -> None:
    if max(abs(right), abs(down)) > min(shape) / 4:
        pytest.skip("farther than the reach in an image of this size")
    large = texture((shape[0] + 96, shape[1] + 96))
    inside = np.s_[48:-48, 48:-48]
    found, quality = Drift(large[inside].copy()).measure(moved(large, right, down)[inside].copy())
    assert quality > (15 if min(shape) > 100 else 8.5)
    # In small images it counts that what comes into view was never seen.
    assert found == pytest.approx((right, down), abs={200: 0.02, 131: 0.07, 64: 0.12}[shape[0]])


@pytest.mark.parametrize("move", [(61.9, 0.0), (65.0, -3.0), (66.0, -66.0), (-90.0, 10.0)])
def test_drift_at_the_end_of_the_reach_and_beyond(move: tuple[float, float]) -> None:
    """What lies beyond is not taken for something nearer: the last drift is held."""
    large = texture((500, 500))
    inside = np.s_[100:-100, 100:-100]
    prepared = against(large[inside].copy(), drift=True)(moved(large, *move)[inside], 0)
    assert prepared.image.shape == (300, 300)
    if max(map(abs, move)) < 64:
        assert prepared.drift_px == pytest.approx(move, abs=0.05)
    else:
        assert prepared.drift_px == (0.0, 0.0)
        assert prepared.drift_quality < 8


def test_large_frames_are_measured_in_their_centre() -> None:
    large = np.tile(texture((600, 600)), (2, 2))
    found, _ = Drift(large).measure(moved(large, 1.25, -0.5))
    assert found == pytest.approx((1.25, -0.5), abs=0.02)


def test_chance_is_no_drift() -> None:
    """White noise against a texture: the quality stays below the default of `drift_quality`."""
    drift, noise = Drift(texture()), np.random.default_rng(1)
    qualities = [drift.measure(noise.normal(1000, 50, SHAPE).astype(np.float32))[1] for _ in range(30)]
    assert max(qualities) < 6.5
    assert drift.measure(np.full(SHAPE, 7.0, np.float32)) == ((0.0, 0.0), 0.0)


def test_a_drift_that_cannot_be_seen_is_held_and_said() -> None:
    background, noise = texture(), np.random.default_rng(1)
    seen = moved(background, 1.5, -0.75)
    blind = noise.normal(1000, 50, SHAPE).astype(np.float32)
    prepare = against(background, drift=True)
    found = [prepare(image, index) for index, image in enumerate([seen, blind, blind, seen, seen])]
    assert [one.drift_px for one in found] == [pytest.approx((1.5, -0.75), abs=0.02)] * 5
    assert found[1].drift_px == found[0].drift_px == found[2].drift_px
    assert [[kind for kind, _ in one.events] for one in found] == [[], ["drift_lost"], [], ["drift_found"], []]
    assert "the last is held: 1.5" in found[1].events[0][1]
    assert found[1].drift_quality < 8 < found[0].drift_quality


# --- subtraction, flat field, crop, average


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (0.3, -0.45), (5.0, 0.0), (-3.5, 2.25)])
def test_the_background_follows_the_frame(right: float, down: float) -> None:
    background = texture()
    prepared = against(background, drift=True)(moved(background, right, down), 0)
    left = rms(prepared.image[16:-16, 16:-16]) / (background.std())
    assert left < 0.012  # 1 without any correction; 0.1 where the shift is wrong by 0.2 px


def test_a_flickering_lamp_leaves_no_structure() -> None:
    background = texture()
    prepare = against(background)
    for index, lamp in enumerate((1.0, 0.9, 1.25)):
        image = prepare((background * lamp).astype(np.float32), index).image
        assert np.abs(image).max() < 0.01 * background.std()


def lit(shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None, :]
    return (1 - 0.4 * (rows**2 + columns**2) / 2).astype(np.float32)


@pytest.mark.parametrize("source", ["none", "background", "file"])
def test_a_flat_field_makes_contrast_even(tmp_path: Path, source: str) -> None:
    """Equal skyrmions in the middle and in a dark corner."""
    light = lit(SHAPE) * 2000
    frame = light.copy()
    for row, column in ((128, 160), (20, 20)):
        frame[row - 5 : row + 6, column - 5 : column + 6] *= 0.98
    if source == "file":
        cv2.imwrite(str(tmp_path / "flat.png"), light.astype(np.uint16))
        source = str(tmp_path / "flat.png")
    image = against(light, flat_field=source)(frame, 0).image
    middle, corner = image[128, 160], image[20, 20]
    assert middle < -20
    assert corner / middle == pytest.approx(light[20, 20] / light[128, 160] if source == "none" else 1.0, abs=0.03)


def test_an_average_has_less_noise_and_moves_with_the_frame() -> None:
    """A bright spot on the sample stays sharp in the mean of 9 frames that drift by up to 8 px."""
    background, noise = texture(), np.random.default_rng(2)
    spot = background.copy()
    spot[100:111, 150:161] += 400
    prepare = against(background, drift=True, average_frames=9)
    for index in range(12):
        right, down = float(index % 9), float(-(index % 5))
        frame = moved(spot, right, down) + noise.normal(0, 60, SHAPE).astype(np.float32)
        prepared = prepare(frame, index)
    image = prepared.image
    assert np.std(image[180:, :]) == pytest.approx(60 / 3, rel=0.1)
    top, left = 100 + int(down), 150 + int(right)
    assert image[top + 1 : top + 10, left + 1 : left + 10].mean() > 300
    assert abs(image[top + 1 : top + 10, left + 14 : left + 24].mean()) < 40
    assert np.isfinite(image).all()


def test_an_average_has_no_seam_where_earlier_frames_show_nothing() -> None:
    scene = texture()
    prepare = preparation(drift=True, average_frames=4)
    for index in range(4):
        image = prepare(moved(scene, 5.0 * index, -3.0 * index), index).image
    np.testing.assert_allclose(image[16:-16, 16:-16], moved(scene, 15.0, -9.0)[16:-16, 16:-16], atol=2)
    for edge in (image[:, :10], image[-10:], image[:10], image[:, -10:]):
        assert np.median(edge) == pytest.approx(1000, abs=15)


def test_without_drift_an_average_is_the_mean() -> None:
    frames = [texture(seed=k).astype(np.uint16) for k in range(5)]
    prepare = preparation(average_frames=3)
    for index, frame in enumerate(frames):
        image = prepare(frame, index).image
        np.testing.assert_allclose(image, np.mean(frames[max(0, index - 2) : index + 1], axis=0), rtol=1e-6)


def test_a_crop_knows_what_comes_into_view() -> None:
    """Inside a crop the shifted background is right up to the border."""
    background = texture()
    prepare = against(background, drift=True, crop_px=(40, 30, 200, 160))
    assert prepare.shape == (160, 200)
    prepared = prepare(moved(background, 7.5, -6.25), 0)
    assert prepared.image.shape == (160, 200)
    assert rms(prepared.image) < 0.012 * background.std()


def test_masks_of_a_crop_have_the_frames_size(skyrmions: np.ndarray) -> None:
    segmenter = Segmenter.load("compact", "openvino")
    camera = microscope(**STILL, contrast=0.02)
    whole = against(camera.take(saturated()).astype(np.float32))
    cropped = against(camera.take(saturated()).astype(np.float32), crop_px=(64, 32, 192, 160))
    frame = camera.take(skyrmions)
    full = whole.place(segmenter(whole(frame, 0).image))
    part = cropped.place(segmenter(cropped(frame, 0).image))
    assert part.mask.shape == SHAPE
    inside = np.zeros(SHAPE, bool)
    inside[32:192, 64:256] = True
    assert (part.mask[~inside] == Class.OUTSIDE).all()
    assert np.mean(part.mask[inside] == full.mask[inside]) > 0.94
    assert part.area_fraction == pytest.approx(np.mean(part.mask[inside] == Class.SKYRMION))
    for row in part.objects:
        assert part.mask[row["top"], row["left"] : row["left"] + row["width"]].max() == Class.SKYRMION
        assert row["left"] <= row["x"] <= row["left"] + row["width"]
        assert row["top"] <= row["y"] <= row["top"] + row["height"]
    assert part.objects["border"].sum() > 0, "what the crop cuts is at a border"


# --- hostile frames


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_frames_without_any_content_are_prepared(dtype: type) -> None:
    prepare = against(texture() / 5, drift=True, average_frames=3, flat_field="background")
    top = 65504 if dtype is np.float32 else np.iinfo(dtype).max
    for index, level in enumerate((0, top, 7, top)):
        prepared = prepare(np.full(SHAPE, level, dtype), index)
        assert np.isfinite(prepared.image).all()
        assert prepared.drift_px == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(16, 16), (17, 300), (129, 40)])
def test_small_and_odd_frames_are_prepared(shape: tuple[int, int]) -> None:
    prepare = against(texture(shape), drift=True, average_frames=3, flat_field="background")
    for index in range(4):
        prepared = prepare(moved(texture(shape), 0.5 * index, 0.25), index)
        assert prepared.image.shape == shape
        assert np.isfinite(prepared.image).all()
        assert np.abs(prepared.drift_px).max() <= min(shape) / 4 + 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_no_difference(value: float) -> None:
    background = texture()
    broken = moved(background, 1.5, 0.5)
    broken[40:44, :] = value
    prepare = against(background, drift=True, average_frames=2)
    for index, image in enumerate((broken, background, np.full(SHAPE, value, np.float32), background)):
        prepared = prepare(image, index)
        assert np.isfinite(prepared.image).all()
        if index == 0:
            assert prepared.drift_px == pytest.approx((1.5, 0.5), abs=0.05)
            assert (prepared.image[40:44] == 0).all()


WRONG_FRAMES = [
    (np.zeros((10, 10), np.uint8), "frame 4 is (10, 10) uint8; allowed: (256, 320), integers or floats"),
    (np.zeros((*SHAPE, 3), np.uint8), "frame 4 is (256, 320, 3) uint8; allowed: "),
    (np.zeros(SHAPE, bool), "frame 4 is (256, 320) bool; allowed: "),
    (np.zeros(SHAPE, np.complex64), "frame 4 is (256, 320) complex64; allowed: "),
]


@pytest.mark.parametrize(("image", "sentence"), WRONG_FRAMES)
def test_wrong_frames_are_refused_and_leave_no_trace(image: Any, sentence: str) -> None:
    one, other = (preparation(average_frames=2) for _ in range(2))
    frames = [texture(seed=k) for k in range(2)]
    one(frames[0], 3)
    other(frames[0], 3)
    with pytest.raises(FrameError) as caught:
        one(image, 4)
    assert str(caught.value).startswith(sentence)
    np.testing.assert_array_equal(one(frames[1], 5).image, other(frames[1], 5).image)


# --- backgrounds


def test_a_background_is_taken_from_the_next_frames() -> None:
    frames = [texture(seed=1) * np.float32(1 + k / 100) for k in range(6)]
    prepare = preparation(background="take")
    first = prepare(frames[0], 0)
    assert [kind for kind, _ in first.events] == ["background_missing"]
    np.testing.assert_array_equal(first.image, frames[0])
    prepare.take_background(3)
    for index in (1, 2, 4):  # frame 3 was not analysed
        found = prepare(frames[index], index)
        np.testing.assert_array_equal(found.image, frames[index])
    (background,) = found.backgrounds
    assert found.events == (("background_taken", "the mean of 3 frames up to frame 4 is subtracted from frame 5 on"),)
    assert (background.first_frame, background.source) == (5, "taken")
    np.testing.assert_allclose(background.image, np.mean([frames[k] for k in (1, 2, 4)], axis=0), rtol=1e-6)
    assert np.abs(prepare(frames[5], 5).image).max() < 0.01


def test_a_new_background_begins_the_average_and_the_drift_anew() -> None:
    noise, scene = np.random.default_rng(1), texture()
    prepare = preparation(background="take", drift=True, average_frames=3)
    prepare(moved(scene, -4, -4), 0)
    prepare.take_background(1)
    assert prepare(scene, 1).drift_px == pytest.approx((4, 4), abs=0.02)
    blind = noise.normal(1000, 50, SHAPE).astype(np.float32)
    found = prepare(blind, 2)
    assert found.drift_px == (0.0, 0.0), "not the drift against what came before the background"
    brightness = scene.mean() / blind.mean()
    np.testing.assert_allclose(found.image, blind * brightness - scene, atol=0.01)


def test_a_taken_background_is_registered_to_its_first_frame() -> None:
    """So that vibration does not blur it."""
    scene, noise = texture(), np.random.default_rng(3)
    prepare = preparation(background="take", drift=True)
    prepare.take_background(8)
    for index in range(8):
        right, down = (0.0, 0.0) if index == 0 else noise.uniform(-1.5, 1.5, 2)
        found = prepare(moved(scene, right, down) + noise.normal(0, 5, SHAPE).astype(np.float32), index)
    inside = np.s_[16:-16, 16:-16]
    assert rms((found.backgrounds[0].image - scene)[inside]) < 5
    assert found.drift_px != (0.0, 0.0)
    assert prepare(scene, 8).drift_px == pytest.approx((0, 0), abs=0.02)


def test_a_background_that_shows_nothing_is_refused_and_one_overexposed_is_told() -> None:
    prepare = preparation(background="take")
    prepare.take_background(1)
    refused = prepare(np.full(SHAPE, 9, np.uint8), 0)
    assert [kind for kind, _ in refused.events] == ["background_missing", "background_refused"]
    assert refused.backgrounds == ()
    prepare.take_background(1)
    taken = prepare(np.minimum(texture(), 1010).astype(np.uint16), 1)
    assert [kind for kind, _ in taken.events] == ["background_taken", "background_overexposed"]


@pytest.mark.parametrize("background", ["none", "rolling_median"])
def test_nothing_is_taken_where_the_settings_say_otherwise(background: str) -> None:
    with pytest.raises(SettingsError, match=f"prepare.background: '{background}' is not taken on request; allowed: "):
        preparation(background=background).take_background(8)


def test_the_rolling_median_is_the_median(tmp_path: Path) -> None:
    """Of every third analysed frame; the latest five count."""
    shape = (37, 48)
    frames = [texture(shape, seed=k).astype(np.uint16) for k in range(30)]
    prepare = Preparation(PrepareSettings(background="rolling_median", median_frames=5, median_every=3), shape)
    made = [(index, one) for index, frame in enumerate(frames) for one in prepare(frame, index).backgrounds]
    assert [one.first_frame for _, one in made] == [index + 1 for index, _ in made] == list(range(9, 31, 3))
    for index, one in made:
        samples = frames[: index + 1 : 3][-5:]
        np.testing.assert_allclose(one.image, np.median(samples, axis=0), rtol=1e-6)


def write_run(folder: Path, frames: list[np.ndarray], **prepare: Any) -> str:
    write_stack(folder / "recording.tif", frames)
    sections = {"prepare": prepare} if prepare else {}
    run = settings(folder, {"path": str(folder / "recording.tif")}, stream={"enabled": False}, **sections)
    return sky.Service(run).run().run_file


@pytest.mark.parametrize("kind", [".png", ".tif", ".npy", "stack.tif", "run", "run with a background"])
def test_a_background_comes_from_a_file(tmp_path: Path, kind: str) -> None:
    frames = [texture(seed=k).astype(np.uint16) for k in range(3)]
    expected: np.ndarray = frames[0]
    path = str(tmp_path / f"background{kind}")
    if kind == ".png":
        cv2.imwrite(path, frames[0])
    elif kind == ".tif":
        tifffile.imwrite(path, frames[0])
    elif kind == ".npy":
        np.save(path, frames[0].astype(np.float64))
    elif kind == "stack.tif":
        write_stack(path, frames)
        expected = np.mean(frames, axis=0)
    elif kind == "run":
        path = write_run(tmp_path, frames)
        expected = np.mean(frames, axis=0)
    else:
        np.save(tmp_path / "first.npy", frames[1])
        path = write_run(tmp_path, frames, background=str(tmp_path / "first.npy"))
        expected = frames[1]
    np.testing.assert_allclose(load_image(path, SHAPE, "prepare.background"), expected, rtol=1e-6)


def save(name: str, image: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.save(folder / name, image)
        return str(folder / name)

    return make


def write(name: str, content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


BAD_FILES = [
    (lambda folder: str(folder / "none.png"), "does not exist; allowed: "),
    (write("empty.png", b""), "cannot be read as an image: the file is empty"),
    (write("empty.tif", b""), "cannot be read as an image: the file is empty"),
    (write("noise.png", b"noise"), "cannot be read as an image: it is not an intact image"),
    (write("noise.tif", b"noise"), "cannot be read as an image: "),
    (write("noise.npy", b"noise"), "cannot be read as an image: "),
    (write("noise.h5", b"noise"), "cannot be read as an image: "),
    (save("small.npy", np.zeros((20, 30))), "is 20 x 30 px; allowed: the frames' 256 x 320"),
    (save("colour.npy", np.zeros((*SHAPE, 3))), "cannot be read as an image: its shape is (256, 320, 3)"),
    (save("none.npy", np.zeros((0, *SHAPE))), "cannot be read as an image: the array holds no frames"),
    (save("complex.npy", np.zeros(SHAPE, complex)), "its pixels are complex128; allowed: integers and floats"),
    (save("nan.npy", np.where(np.arange(320) == 7, np.nan, texture())), "has pixels that are not finite"),
    (save("flat.npy", np.full(SHAPE, 4)), "is 4 everywhere; allowed: an image of the sample"),
]  # fmt: skip


@pytest.mark.parametrize("key", ["background", "flat_field"])
@pytest.mark.parametrize(("make", "sentence"), BAD_FILES)
def test_bad_files_are_one_sentence(tmp_path: Path, make: Callable[[Path], str], sentence: str, key: str) -> None:
    path = make(tmp_path)
    with pytest.raises(SettingsError) as caught:
        preparation(**{key: path})
    assert str(caught.value).startswith(f"prepare.{key}: '{path}' ")
    assert sentence in str(caught.value)


BAD_SETTINGS = [
    ({"crop_px": [10, 20, 8, 64]}, "prepare: crop_px is [10, 20, 8, 64]; allowed: [left, top, width, height]"),
    ({"crop_px": [-1, 0, 64, 64]}, "prepare: crop_px is [-1, 0, 64, 64]; allowed: "),
    ({"flat_field": "background"}, "prepare: flat_field is 'background', but there is none; allowed: "),
    ({"average_frames": 0}, "prepare.average_frames: 0 is not allowed: "),
    ({"median_frames": 2}, "prepare.median_frames: 2 is not allowed: "),
    ({"backround": "take"}, "prepare.backround: unknown key; did you mean 'background'? "),
]


@pytest.mark.parametrize(("prepare", "sentence"), BAD_SETTINGS)
def test_bad_settings_are_one_sentence(prepare: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validate({"camera": {"driver": "replay", "path": "bundled"}, "prepare": prepare})
    assert str(caught.value).startswith(sentence)


def test_a_crop_must_fit_the_frame() -> None:
    with pytest.raises(SettingsError, match=r"prepare.crop_px: \[300, 0, 64, 64\] reaches beyond the frame; allowed: "):
        preparation(crop_px=(300, 0, 64, 64))


# --- the state depends on the frames that were analysed, in order, and on the backgrounds, on nothing else

WAYS: list[dict[str, Any]] = [
    {"background": "take", "drift": True, "average_frames": 4, "flat_field": "background"},
    {"background": "take", "average_frames": 3, "crop_px": (16, 8, 40, 50)},
    {"background": "rolling_median", "median_frames": 4, "median_every": 2, "drift": True, "average_frames": 3},
    {"drift": True, "average_frames": 5},
]


@pytest.mark.parametrize("way", WAYS, ids=["take", "take and crop", "rolling median", "no background"])
@example_settings(max_examples=15)
@given(
    analysed=st.lists(st.booleans(), min_size=5, max_size=25),
    takes=st.dictionaries(st.integers(0, 20), st.integers(1, 4), max_size=3),
    seed=st.integers(0, 5),
)
def test_a_run_can_be_had_again_and_gaps_can_be_filled(
    way: dict[str, Any], analysed: list[bool], takes: dict[int, int], seed: int
) -> None:
    """From the stored backgrounds, bit for bit; and a frame filled in is what it would have been live, alone."""
    shape, random = (64, 72), np.random.default_rng(seed)
    scene = texture(shape, seed)
    frames = [
        (moved(scene, *random.uniform(-1, 1, 2)) + random.normal(0, 20, shape)).astype(np.uint16) for _ in analysed
    ]
    chosen = PrepareSettings(**way)

    def live(also: int = -1) -> tuple[dict[int, np.ndarray], dict[int, tuple[float, float]], list[Background]]:
        """Where frame `also` is analysed too, the run ends with it."""
        prepare = Preparation(chosen, shape)
        images, drifts, backgrounds = {}, {}, []
        for index, frame in enumerate(frames[: also + 1] if also >= 0 else frames):
            if index in takes and way.get("background") == "take":
                prepare.take_background(takes[index])
            if analysed[index] or index == also:
                found = prepare(frame, index)
                images[index], drifts[index] = found.image.copy(), found.drift_px
                backgrounds += found.backgrounds
        return images, drifts, backgrounds

    images, drifts, backgrounds = live()
    again = Preparation(chosen, shape, backgrounds)
    for index, frame in enumerate(frames):
        found = again(frame, index, keep=analysed[index])
        if analysed[index]:
            np.testing.assert_array_equal(found.image, images[index])
            np.testing.assert_equal(found.drift_px, drifts[index])
        elif any(analysed[:index]) and index not in takes:
            np.testing.assert_array_equal(found.image, live(also=index)[0][index])


# --- whole runs


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_section_without_steps_changes_nothing(dtype: type) -> None:
    segmenter, image = Segmenter.load("compact", "openvino"), (texture() / 5).astype(dtype)
    plain = segmenter(image)
    found = segmenter(preparation()(image, 0).image)
    assert same(plain.mask, found.mask)
    assert same(plain.objects, found.objects)


@dataclass
class Raw:
    """A recording of a raw microscope: frames of the saturated film, then of skyrmions, and where they really were."""

    frames: list[np.ndarray] = field(default_factory=list)
    shifts: list[tuple[float, float]] = field(default_factory=list)

    def add(self, camera: KerrCamera, magnetisation: np.ndarray, n: int) -> None:
        for _ in range(n):
            self.frames.append(camera.take(magnetisation))  # type: ignore[arg-type]
            self.shifts.append(camera.shift_px)


def label(magnetisation: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    """What is true in a frame whose sample has moved by (down, right)."""
    return (moved(magnetisation, shift[1], shift[0]) < 0).astype(np.uint8)[MARGIN:-MARGIN, MARGIN:-MARGIN]


def object_f1(found: list[np.ndarray], true: list[np.ndarray]) -> float:
    return float(Scores([score_image("", *pair) for pair in zip(found, true, strict=True)]).figures()["object_f1"])


@pytest.mark.parametrize(("contrast", "average"), [(0.02, 1), (0.01, 4), (0.005, 16)])
def test_raw_frames_prepared_live_are_segmented_as_well_as_ideal_ones(
    tmp_path: Path, skyrmions: np.ndarray, contrast: float, average: int
) -> None:
    """Against the same noise on frames that never moved, minus a background that is free of noise."""
    shown = average + 11
    camera = microscope(contrast=contrast)
    raw = Raw()
    n = max(32, 8 * average)  # else the background's noise would be seen beside that of the average
    raw.add(camera, saturated(), n)
    raw.add(camera, skyrmions, shown)
    write_stack(tmp_path / "raw.tif", raw.frames)
    prepare = {"background": "take", "drift": True, "average_frames": average, "flat_field": "background"}
    config = settings(
        tmp_path, {"path": str(tmp_path / "raw.tif"), "rate_hz": 100}, prepare=prepare, stream={"enabled": False}
    )
    service = TakesAtOnce(config, n)
    with sky.open_run(service.run().run_file) as run:
        assert run.config["prepare"]["average_frames"] == average
        (background,) = run.backgrounds()
        assert background.first_frame == n
        assert {"background_missing", "background_taken"} == {event["kind"] for event in run.events}
        table = run.table
        drift = np.stack([table["drift_y_px"], table["drift_x_px"]], axis=1)[n:]
        true = np.array(raw.shifts[n:]) - raw.shifts[0]  # the background's place is that of its first frame
        # ... which is known as well as one frame shows it: that error is the same for all.
        assert rms(drift - true - (drift - true).mean(axis=0)) < 0.05
        assert rms(drift - true) < 0.07
        tested = list(range(n + average - 1, len(raw.frames), max(1, average // 4)))
        live = [run.mask[k] for k in tested]

    still = {**STILL, "contrast": contrast}
    camera = microscope(**{**still, "flicker": 0.003})
    ideal = Raw()
    ideal.add(camera, saturated(), n)
    ideal.add(camera, skyrmions, shown)
    quiet = {"exposure_ms": 50e4, "full_well": 3e8, "camera_bits": 16, "read_noise": 0}
    reference = microscope(**{**still, **quiet}).take(saturated()).astype(np.float64)
    segmenter = Segmenter.load("compact")
    best = []
    for k in tested:
        mean = np.mean([frame / frame.mean() for frame in ideal.frames[k - average + 1 : k + 1]], axis=0)
        best.append(segmenter((mean - reference / reference.mean()).astype(np.float32)).mask)
    f1_live = object_f1(live, [label(skyrmions, raw.shifts[k]) for k in tested])
    f1_best = object_f1(best, [label(skyrmions, (0, 0)) for _ in tested])
    assert f1_best > 0.9
    assert f1_live > f1_best - 0.02


class TakesAtOnce(sky.Service):
    """Asks for a background before the first frame comes, as a client of the control socket would a little later."""

    def __init__(self, config: Config, frames: int) -> None:
        super().__init__(config)
        self._frames = frames

    def _drive(self, pipeline: Pipeline, *rest: Any) -> None:
        self.take_background(self._frames)
        super()._drive(pipeline, *rest)


def test_a_run_with_everything_on_can_be_had_again_from_its_file(tmp_path: Path, skyrmions: np.ndarray) -> None:
    """Also where the analysis skipped frames; and the stream says the drift."""
    raw = Raw()
    camera = microscope(contrast=0.02)
    raw.add(camera, saturated(), 8)
    raw.add(camera, skyrmions, 22)
    write_stack(tmp_path / "raw.tif", raw.frames)
    keys = {
        "background": "take", "drift": True, "average_frames": 3, "flat_field": "background",
        "crop_px": [32, 32, 256, 192],
    }  # fmt: skip
    config = settings(
        tmp_path,
        {"path": str(tmp_path / "raw.tif"), "rate_hz": 60},
        prepare=keys,
        analysis={"policy": "latest", "lag_frames": 1, "threads": 1},
        stream={"wait_for_subscribers": 1},
    )
    service = TakesAtOnce(config, 4)
    with service.start() as running:
        with sky.Subscriber(running.address) as stream:
            messages = [m for m in stream.every(timeout_s=30) if isinstance(m, ImageMessage)]
        summary = running.wait()
    assert summary.status == "ok", summary.message
    segmenter = Segmenter.load("compact", threads=1)
    with sky.open_run(summary.run_file) as run:
        assert len(list(run.backgrounds())) == 1
        again = Preparation(PrepareSettings.model_validate(run.config["prepare"]), SHAPE, run.backgrounds())
        table = run.table
        for index in range(run.n_frames):
            np.testing.assert_array_equal(run.raw[index], raw.frames[index], "raw frames stay as they were")
            live = table["skipped"][index] == Skipped.NOT_SKIPPED
            prepared = again(run.raw[index], index, keep=bool(live))
            found: Segmentation = again.place(segmenter(prepared.image))
            if live:
                assert same(found.mask, run.mask[index]), f"frame {index}"
                assert same(np.float32(prepared.drift_px), np.float32([table[f"drift_{a}_px"][index] for a in "xy"]))
                for name in found.objects.dtype.names or ():
                    np.testing.assert_array_equal(found.objects[name], run.objects(index)[name])
        by_frame = {message.frame: message for message in messages}
        assert len(by_frame) == summary.frames["analysed"]
        for index, message in by_frame.items():
            expected = [table["drift_x_px"][index], table["drift_y_px"][index]]
            if np.isfinite(expected[0]):
                np.testing.assert_array_equal(np.float32(message.drift_px), expected)
            assert message.shape == SHAPE
        # Some messages carry a drift, or this would compare nothing.
        assert any(message.drift_px for message in messages)


def test_a_file_as_background_in_a_run(tmp_path: Path, skyrmions: np.ndarray) -> None:
    camera = microscope(contrast=0.02, vibration_px=0.05)
    np.save(tmp_path / "background.npy", np.mean([camera.take(saturated()) for _ in range(8)], axis=0))
    raw = Raw()
    raw.add(camera, skyrmions, 6)
    write_stack(tmp_path / "raw.tif", raw.frames)
    prepare = {"background": str(tmp_path / "background.npy"), "drift": True}
    config = settings(tmp_path, {"path": str(tmp_path / "raw.tif")}, prepare=prepare, stream={"enabled": False})
    summary = sky.Service(config).run()
    with sky.open_run(summary.run_file) as run:
        (background,) = run.backgrounds()
        assert (background.first_frame, background.source) == (0, str(tmp_path / "background.npy"))
        np.testing.assert_array_equal(background.image, np.load(tmp_path / "background.npy").astype(np.float32))
        assert np.isfinite(run.table["drift_x_px"]).all()
        masks = [run.mask[k] for k in range(6)]
    assert object_f1(masks, [label(skyrmions, shift) for shift in raw.shifts]) > 0.9
    assert summary.latency_ms["prepare"]["p50"] is not None


def test_a_run_without_the_section_has_no_drift_and_no_background(tmp_path: Path) -> None:
    frames = [texture(seed=k).astype(np.uint16) for k in range(3)]
    with sky.open_run(write_run(tmp_path, frames)) as run:
        assert list(run.backgrounds()) == []
        assert np.isnan(run.table["drift_x_px"]).all()
        segmenter = Segmenter.load("compact")
        for index, frame in enumerate(frames):
            known = int(run.table["polarity"][index - 1]) if index else 0
            assert same(segmenter(frame, polarity=known).mask, run.mask[index])


def test_a_wrong_background_ends_before_anything_is_recorded(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.eye(20))
    with pytest.raises(SettingsError, match=r"small.npy' is 20 x 20 px; allowed: the frames' 256 x 320"):
        write_run(tmp_path, [texture().astype(np.uint16)] * 3, background=str(tmp_path / "small.npy"))
    assert list(tmp_path.glob("*.h5*")) == []


def test_the_control_socket_takes_a_background(tmp_path: Path) -> None:
    frames = np.stack([texture().astype(np.uint16)] * 4)
    write_stack(tmp_path / "raw.tif", frames)
    camera = {"path": str(tmp_path / "raw.tif"), "rate_hz": 100, "loop": True}
    service = sky.Service(settings(tmp_path, camera, prepare={"background": "take"}))
    asked: list[Any] = []

    def ask(pipeline: Pipeline) -> None:
        if not asked and pipeline.last:
            with sky.Control(service.control_address) as control:
                asked.append(control.ask("take_background", frames=2))
        elif any("background_taken" in notice for notice in pipeline.notices):
            service.stop()

    summary = service.run(ask, watch_s=0.02)
    with sky.open_run(summary.run_file) as run:
        (background,) = run.backgrounds()
        np.testing.assert_array_equal(background.image, frames[0].astype(np.float32))
        taken = [event for event in run.events if event["kind"] == "background_taken"]
        assert taken[0]["frame"] == background.first_frame - 1
        assert json.loads(json.dumps(run.config))["prepare"]["background"] == "take"


def test_the_example_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "raw-images.md").read_text(encoding="utf-8")
    sections = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    scene = texture((512, 672))
    write_stack(tmp_path / "raw.tif", [moved(scene, 0.5 * k, 0).astype(np.uint16) for k in range(4)])
    config = settings(tmp_path, {"path": str(tmp_path / "raw.tif")}, stream={"enabled": False}, **sections)
    run_file = TakesAtOnce(config, 1).run().run_file
    exec(page.split("```python\n")[1].split("```")[0].replace('"runs/film.h5"', repr(run_file)), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3"]
    assert float(lines[3].split()[1].strip("(,")) == pytest.approx(1.5, abs=0.02)


@pytest.mark.slow
def test_the_twins_raw_images_live(tmp_path: Path) -> None:
    """The whole way of docs/raw-images.md on the virtual microscope, with a contrast of 1 %, against its truth."""
    address, twin = free_address(), int(free_address().rpartition(":")[2])
    overrides = [
        f"camera.port={twin}", f"field.port={twin}", "camera.rate_hz=null", "analysis.policy=every", "camera.image=raw",
        "camera.optics.contrast=0.01", "camera.optics.vibration_px=0.1", f"camera.truth={tmp_path / 'truth.h5'}",
        f"control.address={address}", "control.enabled=true", "stream.enabled=false", f"record.folder={tmp_path}",
        "prepare.background=take", "prepare.drift=true", "prepare.average_frames=4", "prepare.flat_field=background",
    ]  # fmt: skip
    service = sky.Service(sky.load_config(Path(__file__).parents[2] / "configs" / "twin.yaml", overrides))
    summaries: list[Any] = []
    runner = threading.Thread(target=lambda: summaries.append(service.run()))

    def wait(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    runner.start()
    try:
        wait(lambda: bool(service.control_address))
        with sky.Control(address) as control:

            def analysed() -> int:
                return int(control.ask("status")["status"]["frames"]["analysed"])

            def frames(n: int) -> None:
                until = analysed() + n
                wait(lambda: analysed() >= until)

            def field(field_mT: float) -> None:
                control.set_field(field_mT, wait=True)

            wait(lambda: analysed() > 0)
            field(6.0)
            frames(20)
            control.ask("take_background", frames=32)
            frames(40)
            field(1.6)
            control.ask("pulse", in_plane_mT=40.0, seconds=0.5)
            frames(120)
    finally:
        service.stop()
        runner.join(60)
    with sky.open_run(summaries[0].run_file) as run, h5py.File(tmp_path / "truth.h5") as truth:
        first, table = next(run.backgrounds()).first_frame, run.table
        row = {int(number): k for k, number in enumerate(truth["frames/number"][:])}
        rows = [row[int(number)] for number in table["number"]]
        true = np.stack([truth[f"frames/shift_{axis}_px"][:][rows] for axis in ("down", "right")], axis=1)
        drift = np.stack([table["drift_y_px"], table["drift_x_px"]], axis=1)
        error = (drift - true)[first:]
        assert rms(error - error.mean(axis=0)) < 0.05  # the background's own place is not known
        last = range(run.n_frames - 30, run.n_frames, 6)
        assert object_f1([run.mask[k] for k in last], [truth["mask"][rows[k]] for k in last]) > 0.9
