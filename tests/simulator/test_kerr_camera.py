"""The simulated microscope: what it does to the light is what its settings say."""

import numpy as np
import pytest
from realtime_skyseg_simulator.kerr_camera import KerrCamera, KerrSettings

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class

QUIET = KerrSettings(
    flicker=0,
    vibration_px=0,
    dirt_spots=0,
    vignetting=0,
    offset_px=(0, 0),
    drift_px=(0, 0),
    illumination_drift=(0, 0),
)
#: So many electrons that no noise is left.
BRIGHT = {"electrons_per_ms": 2e6, "full_well": 1.5e8}


def quiet(**changes: object) -> KerrSettings:
    return KerrSettings.model_validate({**QUIET.model_dump(), **changes})


def disc(height: int = 96, width: int = 128, radius: float = 8) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    inside = np.hypot(rows - height / 2, columns - width / 2) < radius
    return np.where(inside, np.float32(-1), np.float32(1))


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
    settings = quiet(polarity=polarity, bits=bits, grey_contrast=30)
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
    camera = KerrCamera((128, 128), settings=quiet(contrast=contrast, average=average, bits=16))
    up, down = np.ones((128, 128), np.float32), np.full((128, 128), -1, np.float32)
    light, dark = (camera.image(phi).astype(float) for phi in (up, down))
    assert (light.mean() - dark.mean()) / light.std() == pytest.approx(expected, rel=0.06)


def test_the_sample_drifts_by_the_stated_pixels() -> None:
    phi = disc()
    camera = KerrCamera(phi.shape, settings=quiet(offset_px=(1.0, -2.25), bits=16, **BRIGHT))
    camera.drift_px = (0.5, 0.0)  # a jump
    image = camera.image(phi)
    assert camera.shift_px == (1.5, -2.25)
    weight = 128 * 257 - image.astype(float)
    weight[weight < 2000] = 0
    rows, columns = np.indices(phi.shape)
    inside = phi < 0
    moved = [(weight * axis).sum() / weight.sum() - axis[inside].mean() for axis in (rows, columns)]
    assert moved == pytest.approx([1.5, -2.25], abs=0.03)


def test_dirt_is_seen_only_after_drift() -> None:
    def spread(offset: tuple[float, float]) -> float:
        settings = quiet(dirt_spots=30, offset_px=offset, **BRIGHT)
        image = KerrCamera((96, 96), settings=settings).image(np.ones((96, 96), np.float32))
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
    with pytest.raises(SettingsError, match=r"magnetisation: the shape \(16, 16\)"):
        KerrCamera((32, 32)).image(np.ones((16, 16), np.float32))


@pytest.mark.parametrize(("bits", "dtype", "mean"), [(8, np.uint8, 171), (12, np.uint16, 2731), (16, np.uint16, 43691)])
def test_raw_images_show_almost_nothing(bits: int, dtype: type, mean: float) -> None:
    camera = KerrCamera((96, 128), settings=quiet(camera_bits=bits))  # 20,000 electrons of 30,000
    raw = camera.take(disc())
    assert (raw.dtype, camera.dtype) == (dtype, dtype)
    assert raw.mean() == pytest.approx(mean, rel=0.01)
    inside = disc() < 0
    assert abs(raw[inside].mean() / raw[~inside].mean() - 1) < 0.02
    assert abs(float(camera.difference(raw)[inside].mean()) - 128) > 20


def test_a_longer_exposure_is_brighter_and_less_noisy_until_it_saturates() -> None:
    up = np.ones((64, 64), np.float32)
    short, long, too_long = (
        KerrCamera((64, 64), settings=quiet(exposure_ms=ms)).take(up).astype(float) for ms in (15, 60, 90)
    )
    assert long.mean() == pytest.approx(4 * short.mean(), rel=0.01)
    assert long.std() / long.mean() == pytest.approx(short.std() / short.mean() / 2, rel=0.05)
    assert too_long.min() == too_long.max() == 4095


def test_averaging_makes_less_noise() -> None:
    up = np.ones((64, 64), np.float32)
    one, many = (KerrCamera((64, 64), settings=quiet(average=n)).take(up).astype(float).std() for n in (1, 25))
    assert many == pytest.approx(one / 5, rel=0.05)


def test_what_faults_change() -> None:
    phi = disc()
    camera = KerrCamera(phi.shape, settings=quiet(bits=16, **BRIGHT))
    sharp, brightness = camera.image(phi).astype(float), camera.take(phi).mean()
    camera.defocus_px = 3.0
    blurred = camera.image(phi).astype(float)
    steepest = [np.abs(np.diff(image, axis=1)).max() for image in (sharp, blurred)]
    assert steepest[1] < 0.5 * steepest[0]
    assert blurred.mean() == pytest.approx(sharp.mean(), rel=1e-3)
    camera.lamp = 0.8
    assert camera.take(phi).mean() == pytest.approx(0.8 * brightness, rel=1e-3)


def test_a_change_of_the_light_tilts_the_difference_image() -> None:
    up = np.ones((64, 64), np.float32)
    settings = quiet(illumination_drift=(0.0, 0.003), contrast=0.015, grey_contrast=30, **BRIGHT)
    image = KerrCamera((64, 64), settings=settings).image(up).astype(float)
    assert image[:, -1].mean() - image[:, 0].mean() == pytest.approx(6, abs=0.5)


@pytest.mark.parametrize(("background", "material"), [("up", 128), ("demagnetised", 143), ("down", 158)])
def test_an_element_against_what_is_beside_it(background: str, material: float) -> None:
    element = np.zeros((64, 96), np.bool_)
    element[16:48] = True
    camera = KerrCamera((64, 96), settings=quiet(background=background, grey_contrast=30, **BRIGHT), element=element)
    raw = camera.take(element.astype(np.float32))
    assert raw[2:10].mean() / raw[24:40].mean() == pytest.approx(0.6, abs=0.01)  # the substrate reflects less
    image = camera.difference(raw)
    assert image[24:40].mean() == pytest.approx(material, abs=1.5)
    assert image[2:10].mean() == pytest.approx(128, abs=1)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -2.0), (-30.0, 12.0)])
def test_the_truth_moves_with_the_image(shift: tuple[float, float]) -> None:
    phi = disc(128, 160, 10)
    camera = KerrCamera(phi.shape, (64, 80), settings=quiet(**BRIGHT))
    camera.drift_px = shift
    image = camera.image(phi)
    mask = camera.take_truth((phi < 0).astype(np.uint8))
    assert mask.shape == image.shape == camera.shape
    assert np.array_equal(mask == Class.SKYRMION, image < 113)
