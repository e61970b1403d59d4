"""From an image to a mask: scaling, models, engines."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import realtime_skyseg as sky
from realtime_skyseg.errors import FrameError, ModelError, ParityError, SettingsError
from realtime_skyseg.records import NOT_ANALYSED
from realtime_skyseg.segmentation import load_model, open_engine, scale, shipped_models
from realtime_skyseg.segmentation.network import UNet
from realtime_skyseg.segmentation.parity import check_parity
from realtime_skyseg.segmentation.scaling import scale_mirrored
from realtime_skyseg.segmentation.shape import NetworkShape
from realtime_skyseg.segmentation.tiles import TiledEngine, _tiles


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@given(st.data())
def test_whole_numbers_are_scaled_as_floats_are(dtype: type, data: st.DataObject) -> None:
    """Their percentiles are found by counting, those of floats by sorting."""
    image = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, min_side=16, max_side=40)))
    np.testing.assert_array_equal(scale(image), scale(image.astype(np.float32)))


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


def test_the_live_model_is_small() -> None:
    """At most 5 GFLOP per frame, and all weights of the package at most 12 MB."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = load_model("compact").load_network()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, 512, 672))
    assert counter.get_total_flops() <= 5e9
    assert sum(load_model(name).path.stat().st_size for name in shipped_models()) <= 20e6


def test_unknown_model() -> None:
    with pytest.raises(
        SettingsError, match=r"'resnet' is neither a shipped model nor a file; allowed: accurate, accurate-0.1, compact"
    ):
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


@pytest.mark.parametrize("damage", ["engine.json", "engine.xml", "engine.bin"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str) -> None:
    first = open_engine(load_model("compact"), (64, 64), "openvino", cache=tmp_path)
    (broken,) = tmp_path.glob(f"*/{damage}")
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    again = open_engine(load_model("compact"), (64, 64), "openvino", cache=tmp_path)
    first.input[...] = again.input[...] = scale(discs(64, 64, 1))
    np.testing.assert_array_equal(again.run(), first.run())
    assert broken.stat().st_size == pytest.approx(len(whole), abs=100)  # names of layers are numbered by the process


# --- large images ---


@pytest.mark.parametrize("shape", [(600, 700), (512, 1100), (1000, 100)])
def test_tiles_leave_no_seam(shape: tuple[int, int]) -> None:
    """Every pixel, also at the cuts, is that of the untiled image."""
    model = load_model("compact")
    image = scale(np.tile(discs(n=11), (6, 5))[: shape[0], : shape[1]])
    whole = open_engine(model, shape, "torch")
    tiled = open_engine(model, shape, "torch", max_layer_bytes=2**16)
    assert isinstance(tiled, TiledEngine)
    assert whole.input.shape == tiled.input.shape == model.shape.padded(shape)
    for engine in (whole, tiled):
        engine.input[: shape[0], : shape[1]] = image
    np.testing.assert_array_equal(whole.run(), tiled.run())
    assert (whole.run() == 1).any()


SHAPES = [
    NetworkShape(2, 4, 3),
    NetworkShape(2, 4, 3, doubled_from=2, split_levels=1),
    NetworkShape(4, 4, 2, doubled_from=3, split_levels=3),
    NetworkShape(1, 4, 1, kernel=4, split_levels=1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pixel_is_decided_by_what_lies_within_the_margin(shape: NetworkShape) -> None:
    torch.manual_seed(0)
    network = UNet(shape).eval()
    side = 2 * shape.margin + 2 * shape.multiple
    image = torch.zeros(1, 1, side, side)
    before = network(image)
    image[0, 0, 0, 0] = 1e6
    changed = (network(image) != before).any(1)[0].nonzero()
    assert 0 < (changed.max() + 1) * shape.unshuffle <= shape.margin + shape.multiple


def test_the_shape_fixes_channels_and_convolutions() -> None:
    network = UNet(NetworkShape(2, 16, 3, doubled_from=2, split_levels=1))
    convolutions = [layer for layer in network.down[0] if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.kernel_size for layer in convolutions] == [(3, 3), (1, 3), (3, 1)]
    assert [block[0].out_channels for block in [*network.down, network.lowest]] == [16, 16, 32, 64]


@given(more=st.integers(1, 5000), inside=st.integers(1, 600), margin=st.integers(0, 300))
def test_tiles_cover_an_axis(more: int, inside: int, margin: int) -> None:
    """Without gap or overlap, and a tile decides nothing nearer than the margin to where it was cut off."""
    side = 2 * margin + inside
    n = side + more
    tiles = _tiles(n, side, margin)
    assert [first for _, first, _ in tiles] == [0, *(end for _, _, end in tiles)][:-1]
    assert tiles[-1][2] == n
    for begin, first, end in tiles:
        assert 0 <= begin <= n - side
        assert begin == 0 or first >= begin + margin
        assert begin + side == n or end <= begin + side - margin


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
    """Of what is the same everywhere, or is no number, nothing is said: an overexposed frame may hold any number."""
    assert segmenter(image).count == (0 if name == "noise" else None)


HOSTILE: dict[str, Callable[[tuple[int, int], np.random.Generator], Any]] = {
    "constant": lambda shape, rng: np.full(shape, rng.integers(256), np.uint8),
    "constant float": lambda shape, rng: np.full(shape, rng.normal(), np.float32),
    "saturated": lambda shape, rng: np.full(shape, 65535, np.uint16),
    "nan": lambda shape, rng: np.full(shape, np.nan, np.float32),
    "inf": lambda shape, rng: np.full(shape, rng.choice([-np.inf, np.inf]), np.float32),
    "some nan and inf": lambda shape, rng: np.where(
        rng.random(shape) < 0.3, rng.choice([np.nan, np.inf, -np.inf]), rng.random(shape)
    ).astype(np.float32),
    "one bright pixel": lambda shape, rng: (np.arange(shape[0] * shape[1]) == 7).reshape(shape) * np.uint16(65535),
    "one hot pixel in noise": lambda shape, rng: np.where(
        np.arange(shape[0] * shape[1]).reshape(shape) == 7, 65535, rng.integers(90, 110, shape)
    ).astype(np.uint16),
    "float64 huge": lambda shape, rng: rng.normal(0, 1e300, shape),
    "float32 huge": lambda shape, rng: rng.uniform(-3e38, 3e38, shape).astype(np.float32),
    "float32 tiny": lambda shape, rng: rng.normal(0, 1e-44, shape).astype(np.float32),
    "float16": lambda shape, rng: rng.normal(0, 1, shape).astype(np.float16),
    "bool": lambda shape, rng: rng.random(shape) < 0.5,
    "complex": lambda shape, rng: rng.random(shape) * 1j,
    "signed": lambda shape, rng: rng.integers(-100, 100, shape, np.int16),
    "int64": lambda shape, rng: rng.integers(-(2**62), 2**62, shape),
    "big-endian": lambda shape, rng: rng.integers(0, 4096, shape).astype(">u2"),
    "transposed": lambda shape, rng: rng.integers(0, 255, shape[::-1], np.uint8).T,
    "every other pixel, backwards": lambda shape, rng: rng.integers(0, 255, (2 * shape[0], 2 * shape[1]), np.uint8)[
        ::-2, ::2
    ],
    "read-only": lambda shape, rng: np.broadcast_to(np.uint8(rng.integers(255)), shape),
    "RGBA": lambda shape, rng: np.zeros((*shape, 4), np.uint8),
    "a list": lambda shape, rng: np.zeros(shape, np.uint8).tolist(),
    "text": lambda shape, rng: np.full(shape, "a"),
    "objects": lambda shape, rng: np.full(shape, None),
    "masked": lambda shape, rng: np.ma.masked_less(rng.random(shape).astype(np.float32), 0.5),
}


REFUSED = {"bool", "complex", "RGBA", "a list", "text", "objects"}
NOTHING = {"constant", "constant float", "saturated", "nan", "inf", "float64 huge", "read-only"}


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (0, 0), (0, 64), (16, 16), (17, 33), (64, 64), (48, 100)])
def test_hostile_images(shape: tuple[int, int]) -> None:
    """200 in all: a result of the image's shape, or one clear error."""
    segmenter = sky.Segmenter.load("compact", "torch")
    for name, make in HOSTILE.items():
        image = make(shape, np.random.default_rng(len(name)))
        if min(shape) < 16 or name in REFUSED:
            with pytest.raises(FrameError, match=r"^image of .*; allowed: "):
                segmenter(image)
            continue
        found = segmenter(image)
        assert found.mask.shape == shape, name
        assert (found.mask == NOT_ANALYSED).all() if name in NOTHING else found.mask.max() <= 4, name
        if name in NOTHING:
            assert (found.count, found.stripes) == (None, None), name
            assert np.isnan(found.area_fraction), name
        if name == "one bright pixel":
            assert (found.count, found.stripes) == (0, 0)


def test_the_same_image_gives_the_same_mask(segmenter: sky.Segmenter) -> None:
    image = discs()
    np.testing.assert_array_equal(segmenter(image).mask, segmenter(image.copy()).mask)


def test_masks_belong_to_the_caller(segmenter: sky.Segmenter) -> None:
    first = segmenter(discs(seed=1)).mask
    kept = first.copy()
    segmenter(discs(seed=2, n=3))
    np.testing.assert_array_equal(first, kept)


def test_the_public_names() -> None:
    assert sky.__all__ == ["Control", "Segmenter", "Service", "Subscriber", "load_config", "open_run"]
    for name in sky.__all__:
        assert getattr(sky, name).__name__ == name
