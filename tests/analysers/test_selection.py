"""Which objects count."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import settings

import realtime_skyseg as sky
from realtime_skyseg.analysers.api import View
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.analysers.selection import SelectionAnalyser, SelectionSettings, select
from realtime_skyseg.config import validate
from realtime_skyseg.errors import SettingsError


def discs(*radii: int) -> np.ndarray:
    """A mask of discs, the first at the border."""
    mask = np.zeros((120, 60 * len(radii)), np.uint8)
    for k, radius in enumerate(radii):
        cv2.circle(mask, (60 * k, 60), radius, 1, -1)
    return mask


@pytest.mark.parametrize(
    ("limits", "border", "expected"),
    [
        ({}, True, [1, 1, 1, 1]),
        ({}, False, [0, 1, 1, 1]),
        ({"diameter": [15, None]}, False, [0, 0, 1, 1]),
        ({"diameter": [None, 30], "area": [100, 100000]}, False, [0, 1, 1, 0]),
        ({"diameter": [100, 200]}, True, [0, 0, 0, 0]),
    ],
)
def test_limits(limits: dict, border: bool, expected: list[int]) -> None:
    found = measure(discs(10, 6, 10, 20), polarity="both")
    analyser = SelectionAnalyser(SelectionSettings.model_validate({"limits": limits, "border": border}))
    values = analyser(View(0, 0.0, math.nan, found.mask, found.mask, found.objects, {}))
    assert sorted(values["selected"].astype(int)) == sorted(expected)
    assert values["selected_count"] + values["selected_stripes"] == sum(expected)
    chosen = select(found.objects, analyser.settings.limits, border)
    assert sorted(found.objects["area"][chosen]) == sorted(
        area for area, one in zip(found.objects["area"][np.argsort(found.objects["x"])], expected, strict=True) if one
    )


def test_analysers_below_take_the_chosen_only(tmp_path: Path) -> None:
    chosen = {"shapes": {}, "selection": {"limits": {"ellipticity": [None, 0.3]}, "border": False}, "lattice": {}}
    made = settings(tmp_path, {"path": "bundled", "limit": 3}, analysers=chosen)
    with sky.open_run(sky.Service(made).run().run_file) as run:
        objects, table = run.objects(), run.table
    kept = objects["selected"] == 1
    assert (objects["ellipticity"][kept] <= 0.3).all()
    assert (objects["border"][kept] == 0).all()
    assert 0.3 < kept.mean() < 0.95
    assert (objects["neighbours"][~kept] == -1).all()
    assert (objects["neighbours"][kept & (objects["kind"] == 0)] > 0).all()
    for frame in range(3):
        mine = (objects["frame"] == frame) & kept & (objects["kind"] == 0)
        assert table["selected_count"][frame] == mine.sum() < table["count"][frame]


@pytest.mark.parametrize(
    ("analysers", "sentence"),
    [
        ({"selection": {"limits": {"diameter": [5, 3]}}}, "5 to 3 is no range"),
        ({"selection": {"limits": {"cnr": [1, None]}}}, "'cnr' is no quantity of objects that stands above it"),
        ({"selection": {"limits": {"cnr": [1, None]}}, "shapes": {}}, "'cnr' is no quantity"),
    ],
)
def test_limits_that_cannot_be(analysers: dict, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        validate({"camera": {"driver": "replay", "path": "bundled"}, "analysers": analysers})
