"""Dark or bright: a network that knows dark skyrmions only is shown negatives if they are bright."""

from pathlib import Path

import numpy as np
import pytest
from test_analyse import forget_results

import realtime_skyseg as sky
from realtime_skyseg.batch import analyse
from realtime_skyseg.config import validate
from realtime_skyseg.records import Polarity

SHAPE = 96, 128


def film(discs: int, sign: int, seed: int = 0) -> np.ndarray:
    """(height, width) uint8 with so many discs of 10 px, darker (-1) or brighter (1) than the film."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = rng.normal(128, 3, SHAPE)
    for k in range(discs):
        y, x = 12 + 24 * (k // 5), 12 + 24 * (k % 5)
        image[(rows - y) ** 2 + (columns - x) ** 2 <= 25] += 30 * sign
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("setting", "sign", "count"),
    [
        ("auto", -1, 9), ("auto", 1, 9), ("dark", -1, 9), ("dark", 1, 0), ("bright", 1, 9), ("bright", -1, 0),
        ("both", -1, 9), ("both", 1, 9),
    ],
)  # fmt: skip
def test_one_image(dark_only: str, setting: Polarity, sign: int, count: int) -> None:
    found = sky.Segmenter.load(dark_only, "torch", polarity=setting)(film(9, sign))
    assert found.count == count
    if setting == "auto":
        assert found.polarity == sign
        opposite = sky.Segmenter.load(dark_only, "torch")(np.invert(film(9, sign)))
        np.testing.assert_array_equal(found.mask, opposite.mask)


@pytest.mark.parametrize(
    ("films", "polarity"),
    [  # (discs, dark or bright) of each frame, and what is known after it
        ([(9, 1), (9, 1), (0, 1)], [1, 1, 1]),
        ([(0, 1), (1, 1), (9, 1), (1, 1)], [0, 0, 1, 1]),  # one disc tells too little
        ([(9, -1), (0, 1), (1, 1), (9, 1), (2, 1)], [-1, -1, -1, 1, 1]),  # the film was reversed: the other branch
    ],
)
def test_a_run_holds_what_its_frames_have_told(
    tmp_path: Path, dark_only: str, films: list[tuple[int, int]], polarity: list[int]
) -> None:
    np.save(tmp_path / "film.npy", np.stack([film(*one, seed) for seed, one in enumerate(films)]))
    tree = {
        "camera": {"driver": "replay", "path": str(tmp_path / "film.npy"), "rate_hz": "max"},
        "analysis": {"policy": "every", "model": dark_only, "engine": "torch"}, "stream": {"enabled": False},
        "record": {"folder": str(tmp_path), "name": "run"},
    }  # fmt: skip
    summary = sky.Service(validate(tree)).run()
    changes = [k for k in range(len(polarity)) if polarity[k] != [0, *polarity][k]]
    with sky.open_run(summary.run_file) as run:
        assert run.table["polarity"].tolist() == polarity
        told = {int(event["frame"]): event["message"] for event in run.events if event["kind"] == "polarity"}
        assert list(told) == [k for k in changes if polarity[k] > 0 or any(polarity[:k])]
        assert all(("dark" if polarity[k] < 0 else "bright") in message for k, message in told.items())
        live = run.mask[()]
    for frame in set(range(len(films))) - set(changes):
        part = forget_results(Path(summary.run_file), tmp_path / "part.h5", [frame])
        done = analyse(part, tmp_path / f"out-{frame}")
        with sky.open_run(done["run_file"]) as run:
            np.testing.assert_array_equal(run.mask[()], live)
            assert run.table["polarity"].tolist() == polarity
            assert not any(run.problem(frame) for frame in range(run.n_frames))
