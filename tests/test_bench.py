"""`skyseg bench`: whole runs, a subscriber in another process, figures as the command line's contract has them."""

import json
from pathlib import Path

import pytest

from realtime_skyseg.cli import main
from realtime_skyseg.pipeline import STAGES


def test_figures_of_two_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    sizes = ["--size", "96x128", "--size", "128x96"]
    assert main(["bench", "--seconds", "1", "--rate-hz", "10", *sizes, "--engine", "torch", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert {"frames", "latency_ms", "rate_hz", "engine", "device", "model", "machine", "runs"} <= set(figures)
    assert [(run["case"]["height"], run["case"]["width"]) for run in figures["runs"]] == [(96, 128), (128, 96)]
    for run in figures["runs"]:
        frames = run["frames"]
        assert frames["received"] == frames["written"] == 10
        assert frames["received"] == frames["analysed"] + sum(frames["not_analysed"].values())
        assert run["stream"]["received"] == frames["analysed"]
        assert list(run["latency_ms"]) == list(STAGES)
        # The subscriber gets a mask after the service has sent it; `published` is stamped a little later.
        assert run["stream"]["max"] > run["latency_ms"]["segment"]["p50"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("compact torch (float32) 96x128 at 10 Hz: ")


def test_as_fast_as_it_goes_ends_in_time(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "--seconds", "0.5", "--rate-hz", "max", "--size", "96x128", "--engine", "torch",
                 "--json", str(out)]) == 0  # fmt: skip
    frames = json.loads(out.read_text())["frames"]
    assert frames["received"] == frames["analysed"] == frames["written"] > 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "big"], "--size 'big': allowed: HEIGHTxWIDTH of 64 to 8192 px"),
        (["--size", "10x10"], "--size '10x10': allowed"),
        (["--rate-hz", "fast"], "--rate-hz 'fast': allowed: frames per second, or max"),
        (["--rate-hz", "0"], "camera.rate_hz"),
        (["--model", "nobody"], "nobody"),
        (["--source", "/nowhere.tif"], "/nowhere.tif"),
    ],
)
def test_wrong_use(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert main(["bench", "--seconds", "1", *arguments]) == 2
    assert sentence in capsys.readouterr().err
