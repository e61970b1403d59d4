"""`skyseg bench`: whole runs, a subscriber in another process, figures as the command line's contract has them."""

import json
from pathlib import Path

import numpy as np
import pytest

from realtime_skyseg.bench import Case, against, saturation
from realtime_skyseg.bench.peers import tiled, tiles
from realtime_skyseg.cli import main
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.pipeline import STAGES
from realtime_skyseg.segmentation.threshold import save_threshold


def test_figures_of_two_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    sizes = ["--size", "96x128", "--size", "128x96", "--plot", str(picture)]
    assert main(["bench", "--seconds", "1", "--rate-hz", "10", *sizes, "--engine", "torch", "--json", str(out)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    figures = json.loads(out.read_text())
    assert {"frames", "latency_ms", "rate_hz", "engine", "device", "model", "machine", "runs"} <= set(figures)
    assert [(run["case"]["height"], run["case"]["width"]) for run in figures["runs"]] == [(96, 128), (128, 96)]
    for run in figures["runs"]:
        frames = run["frames"]
        assert frames["received"] == frames["written"] == 10
        assert frames["received"] == frames["analysed"] + sum(frames["not_analysed"].values())
        assert run["stream"]["received"] == frames["analysed"]
        assert list(run["latency_ms"]) == list(STAGES)
        histograms = run["histograms_ms"]
        assert sum(histograms["total"]) == sum(histograms["subscriber"]) == frames["analysed"]
        middle = np.searchsorted(np.cumsum(histograms["total"]), frames["analysed"] / 2)
        assert (
            histograms["edges"][middle] / 1.1
            < run["latency_ms"]["total"]["p50"]
            < histograms["edges"][middle + 1] * 1.1
        )
        # The subscriber gets a mask after the service has sent it; `published` is stamped a little later.
        assert run["stream"]["max"] > run["latency_ms"]["segment"]["p50"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("compact torch (float32) 96x128 at 10 Hz: ")


@pytest.mark.parametrize(("objects", "size"), [(1, "64x64"), (300, "512x672")])
def test_frames_of_so_many_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str], objects: int, size: str) -> None:
    out = tmp_path / "bench.json"
    arguments = ["--objects", str(objects), "--size", size, "--seconds", "1", "--rate-hz", "5", "--json", str(out)]
    assert main(["bench", *arguments]) == 0
    figures = json.loads(out.read_text())["runs"][0]
    assert figures["count"] == objects
    assert "{height}x{width}".format(**figures["case"]) == size
    assert f"{objects} skyrmions each" in capsys.readouterr().out


def test_as_fast_as_it_goes_ends_in_time(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "--seconds", "0.5", "--rate-hz", "max", "--size", "96x128", "--engine", "torch",
                 "--json", str(out)]) == 0  # fmt: skip
    frames = json.loads(out.read_text())["frames"]
    assert frames["received"] == frames["analysed"] == frames["written"] > 2


@pytest.mark.slow
def test_saturation_is_between_a_rate_that_held_and_one_that_did_not(tmp_path: Path) -> None:
    save_threshold(tmp_path / "threshold.safetensors", 0.25, 1.5, False)
    found = saturation(Case(str(tmp_path / "threshold.safetensors"), "torch", (512, 512), seconds=0.5))
    held = [tried["rate_hz"] for tried in found["tries"] if not tried["missed"]]
    assert found["rate_hz"] in held
    frames = found["run"]["frames"]
    assert frames["received"] == frames["analysed"] == frames["written"] >= 150


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (512, [(0, 0, 512)]),
        (672, [(0, 0, 306), (160, 306, 612), (160, 612, 672)]),  # three passes, as the reference does
        (1024, [(0, 0, 306), (203, 306, 612), (509, 612, 918), (512, 918, 1024)]),
    ],
)
def test_tiles_of_the_reference(length: int, expected: list[tuple[int, int, int]]) -> None:
    assert tiles(length) == expected


@pytest.mark.parametrize("shape", [(64, 64), (64, 84), (150, 90), (40, 70)])
def test_tiling_gives_what_one_pass_gives(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape)

    def predict(part: np.ndarray) -> np.ndarray:
        assert part.shape == (1, 64, 64, 1)
        return np.concatenate([1 - part, part, np.full_like(part, 0.6)], 3)

    expected = np.stack([1 - image, image, np.full_like(image, 0.6)], 2).argmax(2)
    np.testing.assert_array_equal(tiled(predict, image, 64), expected)


def test_peers_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "against.json"
    assert main(["bench", "--against", "--rounds", "1", "--size", "96x128", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    peers, ours, lines = figures["peers"], figures["ours"], capsys.readouterr().out.splitlines()
    assert {"our network, eager torch", "naive loop"} <= set(peers)
    for name, than in (("our network, eager torch", "segment"), ("naive loop", "service")):
        assert peers[name]["ratio"] == pytest.approx(peers[name]["ms"] / ours[than], rel=1)
        assert len(peers[name]["ratios"]) == 1
        assert any(line.startswith(f"{name}: {peers[name]['ms']} ms") for line in lines)
    if "tensorflow" in figures["missing"]:
        assert any(line.startswith("tensorflow: missing") and "pip install tensorflow-cpu" in line for line in lines)
    else:
        assert peers["large U-Net, tiling"]["ratio"] > peers["large U-Net, predict"]["ratio"]
        assert figures["versions"]["parameters"] == "small 24548, large 6278659"


def test_a_peer_that_cannot_start() -> None:
    with pytest.raises(SettingsError, match="--tensorflow '/nowhere/python'"):
        against(Case(shape=(96, 128)), 1, "/nowhere/python")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "big"], "--size 'big': allowed: HEIGHTxWIDTH of 64 to 8192 px"),
        (["--size", "10x10"], "--size '10x10': allowed"),
        (["--rate-hz", "fast"], "--rate-hz 'fast': allowed: frames per second, or max"),
        (["--rate-hz", "0"], "camera.rate_hz"),
        (["--model", "nobody"], "nobody"),
        (["--source", "/nowhere.tif"], "/nowhere.tif"),
        (["--against", "--saturation"], "allowed: one of them"),
        (["--against", "--engine", "torch", "--engine", "openvino"], "allowed: one of them"),
        (["--objects", "0"], "--objects 0: allowed on 512x672 px: 1 to 1755"),
        (["--objects", "30", "--size", "512x512", "--size", "64x64"], "--objects 30: allowed on 64x64 px: 1 to 20"),
    ],
)
def test_wrong_use(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert main(["bench", "--seconds", "1", *arguments]) == 2
    assert sentence in capsys.readouterr().err
