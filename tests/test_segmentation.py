"""From an image to a mask: scaling, models, engines."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import realtime_skyseg as sky
from realtime_skyseg.errors import FrameError, ModelError, ParityError, SettingsError
from realtime_skyseg.segmentation import load_model, open_engine, scale, shipped_models
from realtime_skyseg.segmentation.engine import check_parity
from realtime_skyseg.segmentation.scaling import scale_mirrored


def discs(height: int = 200, width: int = 260, n: int = 12, contrast: float = -45.0, seed: int = 0) -> np.ndarray:
    """White noise with `n` well separated discs of 14 px: an 8 bit image whose count is known."""
    rng = np.random.default_rng(seed)
    image = rng.normal(128, 15, (height, width))
    rows, columns = np.ogrid[:height, :width]
    for k in range(n):
        y, x = 30 + 50 * (k // 4), 35 + 60 * (k % 4)
        image += contrast * ((rows - y) ** 2 + (columns - x) ** 2 < 49)
    return np.clip(image, 0, 255).astype(np.uint8)


# --- scaling ---


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=16, max_side=60)),
)
def test_scaling_is_odd_under_inversion(image: np.ndarray) -> None:
    np.testing.assert_allclose(scale(255 - image), -scale(image), atol=1e-4)


@given(st.integers(0, 20_000), st.integers(1, 100))
def test_scaling_ignores_offset_and_contrast(offset: int, gain: int) -> None:
    image = discs(64, 64, 1)
    np.testing.assert_allclose(scale(image.astype(np.uint16) * gain + offset), scale(image), atol=1e-3)


@given(hnp.arrays(np.float32, (16, 20), elements=st.floats(width=32)))
def test_scaling_is_finite_whatever_the_pixels(image: np.ndarray) -> None:
    assert np.isfinite(scale(image)).all()


@pytest.mark.parametrize("shape", [(16, 16), (20, 33), (64, 64)])
@pytest.mark.parametrize("larger", [(64, 64), (128, 256)])
def test_an_image_is_mirrored_beyond_its_borders(shape: tuple[int, int], larger: tuple[int, int]) -> None:
    """Also where the rest is larger than the image itself, as with deep networks."""
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    out = np.full(larger, np.nan, np.float32)
    scale_mirrored(image, out)
    rest = [(0, more - size) for more, size in zip(larger, shape, strict=True)]
    np.testing.assert_array_equal(out, np.pad(scale(image), rest, mode="symmetric"))


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_image_scales_to_zero(value: int) -> None:
    assert not scale(np.full((64, 64), value, np.uint8)).any()


UNUSABLE = [
    # image, what the sentence says
    (np.zeros((5, 5), np.uint8), "sides of 16 px or more"),
    (np.zeros((32, 32, 3), np.uint8), r"\(32, 32, 3\)"),
    (np.zeros(32, np.uint8), r"\(32,\)"),
    (np.zeros((32, 32), bool), "bool"),
    (np.zeros((32, 32), np.complex64), "complex64"),
]


@pytest.mark.parametrize(("image", "sentence"), UNUSABLE)
def test_unusable_images_are_refused(image: np.ndarray, sentence: str) -> None:
    with pytest.raises(FrameError, match=sentence):
        sky.Segmenter.load("compact", "torch")(image)


# --- models ---


def test_the_default_model_is_shipped() -> None:
    assert "compact" in shipped_models()
    model = load_model("compact")
    assert model.training["settings"]["train_folds"] == [0, 1, 2, 3]
    assert len(model.sha256) == 64


def test_unknown_model() -> None:
    with pytest.raises(SettingsError, match=r"'resnet' is neither a shipped model nor a file; allowed: compact"):
        load_model("resnet")


def test_broken_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"no weights here")
    with pytest.raises(ModelError, match=r"broken\.safetensors cannot be read"):
        load_model(str(path))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(ModelError, match="has format 'None'; allowed: 'skyseg-model-1'"):
        load_model(str(path))


# --- engines ---


@pytest.mark.parametrize("shape", [(200, 260), (64, 64), (161, 97)])
def test_engines_agree(shape: tuple[int, int], tmp_path: Path) -> None:
    """Parity gate: the built engine reports how well it agrees with torch float32."""
    model = load_model("compact")
    engine = open_engine(model, shape, "openvino", cache=tmp_path)
    assert engine.agreement >= 0.995
    reference = open_engine(model, shape, "torch")
    assert (reference.name, reference.precision) in {("torch", "float32"), ("torch", "float16")}
    assert engine.input.shape == reference.input.shape
    assert all(side % 16 == 0 for side in engine.input.shape)


def test_an_engine_that_disagrees_is_refused() -> None:
    with pytest.raises(ParityError, match=r"agrees with torch float32 on .*allowed: 99.5% or more"):
        check_parity(load_model("compact"), "broken", lambda image: np.ones(image.shape, np.uint8), (64, 64))


def test_a_cached_engine_starts_without_torch(tmp_path: Path) -> None:
    """The second start reads the cache, gives the same masks, and leaves torch alone."""
    model = load_model("compact")
    first = open_engine(model, (64, 64), "openvino", cache=tmp_path)
    first.input[...] = scale(discs(64, 64, 1))
    code = (
        "import sys, numpy as np, pathlib\n"
        "from realtime_skyseg.segmentation import load_model, open_engine\n"
        f"engine = open_engine(load_model('compact'), (64, 64), 'openvino', cache=pathlib.Path({str(tmp_path)!r}))\n"
        f"engine.input[...] = np.load({str(tmp_path / 'image.npy')!r})\n"
        f"np.save({str(tmp_path / 'mask.npy')!r}, engine.run())\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    np.save(tmp_path / "image.npy", first.input)
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy"), first.run())


@pytest.mark.gpu
def test_torch_runs_on_the_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    engine = open_engine(load_model("compact"), (512, 672), "auto")
    assert engine.name == "torch"
    assert engine.precision == "float16"
    assert engine.agreement >= 0.995


# --- the segmenter: what users call ---


@pytest.fixture(scope="module")
def segmenter() -> sky.Segmenter:
    return sky.Segmenter.load("compact", "openvino")


@pytest.mark.parametrize("contrast", [-45.0, 45.0], ids=["dark", "bright"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_discs_are_counted(segmenter: sky.Segmenter, contrast: float, kind: type) -> None:
    image = discs(contrast=contrast).astype(kind)
    found = segmenter(image * kind(13) if kind is np.uint16 else image)
    assert found.count == 12
    assert found.stripes == 0
    assert found.mask.shape == image.shape
    assert found.area_fraction == pytest.approx(12 * np.pi * 7**2 / image.size, rel=0.25)


EMPTY = [
    ("constant", np.full((96, 96), 90, np.uint8)),
    ("noise", np.random.default_rng(1).normal(128, 12, (192, 192)).astype(np.uint8)),
    ("not finite", np.full((64, 64), np.nan, np.float32)),
]


@pytest.mark.parametrize(("name", "image"), EMPTY, ids=[name for name, _ in EMPTY])
def test_a_saturated_film_has_no_skyrmions(segmenter: sky.Segmenter, name: str, image: np.ndarray) -> None:
    assert segmenter(image).count == 0


def test_the_same_image_gives_the_same_mask(segmenter: sky.Segmenter) -> None:
    image = discs()
    np.testing.assert_array_equal(segmenter(image).mask, segmenter(image.copy()).mask)


def test_masks_belong_to_the_caller(segmenter: sky.Segmenter) -> None:
    first = segmenter(discs(seed=1)).mask
    kept = first.copy()
    segmenter(discs(seed=2, n=3))
    np.testing.assert_array_equal(first, kept)


def test_the_public_names() -> None:
    assert sky.__all__ == ["Segmenter", "Service", "Subscriber", "load_config", "open_run"]
    for name in sky.__all__:
        assert getattr(sky, name).__name__ == name
