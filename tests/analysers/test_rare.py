"""What comes, goes, merges and splits, on drawn frames."""

import cv2
import numpy as np
import pytest

from realtime_skyseg.analysers import View
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.analysers.rare import RareAnalyser, RareSettings

ONE, TWO = [(60, 60, 10)], [(60, 60, 10), (60, 120, 10)]
BRIDGED = [*TWO, (60, 90, 24)]  # the same two, and a disc that joins them
SMALL = [(60, 60, 10), (60, 120, 4)]


def view_of(frame: int, discs: list[tuple[int, int, int]], **values: float) -> View:
    mask = np.zeros((160, 200), np.uint8)
    for y, x, radius in discs:
        cv2.circle(mask, (x, y), radius, 1, -1)
    found = measure(mask, 10, 100)
    return View(frame, frame / 10, 0.0, mask, mask, found.objects, {"count": float(found.count or 0), **values})


HAPPENS = [
    # frames, what has happened with the last
    ([ONE, ONE, TWO, TWO], {"nucleated": 1}),
    ([TWO, TWO, ONE, ONE], {"annihilated": 1}),
    ([TWO, TWO, SMALL, SMALL, ONE, ONE], {"annihilated": 1, "collapsed": 1}),
    ([TWO, TWO, BRIDGED, BRIDGED], {"merged": 1}),
    ([BRIDGED, BRIDGED, TWO, TWO], {"split": 1}),
    ([ONE, ONE, TWO, ONE], {}),  # the doubt of one frame
    ([TWO, TWO, ONE, TWO], {}),
    ([TWO, TWO, BRIDGED, TWO], {}),
    ([ONE, TWO, TWO, TWO], {}),  # it was told before
    ([ONE, ONE, [(72, 72, 10)], [(84, 84, 10)]], {}),  # it only moves
    ([[], [], [(3, 60, 10)], [(3, 60, 10)]], {}),  # it may have walked in
    ([[], [], [], []], {}),
]


@pytest.mark.parametrize(("frames", "expected"), HAPPENS)
def test_what_has_happened(frames: list[list[tuple[int, int, int]]], expected: dict[str, int]) -> None:
    rare = RareAnalyser(RareSettings())
    for number, discs in enumerate(frames):
        view = view_of(number, discs)
        found = dict(rare(view))
    assert {name: n for name, n in found.items() if n} == expected
    told = {kind for kind, _ in view.told}
    assert told == set(expected) - {"collapsed"}


def test_many_at_once_are_an_avalanche() -> None:
    rare = RareAnalyser(RareSettings())
    many = [(20 + 25 * (k % 5), 20 + 25 * (k // 5), 6) for k in range(25)]
    for number, discs in enumerate([many[:15], many[:15], many, many]):
        view = view_of(number, discs)
        rare(view)
    assert dict(view.told)["avalanche"] == "10 of 15 objects changed between frames 1 and 2: 10 came, 0 went"
    assert dict(view.told)["nucleated"].startswith("10 nucleated between frames 1 and 2: at (")
    assert dict(view.told)["nucleated"].endswith("and 5 more")


def test_a_count_beyond_its_interval_for_two_frames() -> None:
    rare, told = RareAnalyser(RareSettings()), []
    for number, discs in enumerate([*[ONE] * 6, *[TWO] * 4]):
        view = view_of(number, discs, count_low=0.0, count_high=1.0, domain=0.9)
        rare(view)
        told += [kind for kind, _ in view.told]
    assert told == ["count_jump", "nucleated"]


def test_a_jump_of_the_domain_score() -> None:
    rare, told = RareAnalyser(RareSettings()), []
    for number in range(8):
        view = view_of(number, ONE, domain=0.9 if number < 6 else 0.1)
        rare(view)
        told += view.told
    assert told == [("domain_jump", "the domain score went from 0.90 to 0.10")]


def test_nothing_is_remembered_after_a_reset() -> None:
    rare = RareAnalyser(RareSettings())
    for number, discs in enumerate([ONE, ONE]):
        rare(view_of(number, discs))
    rare.reset()
    for number, discs in enumerate([TWO, TWO, TWO]):
        assert not rare(view_of(number, discs))
