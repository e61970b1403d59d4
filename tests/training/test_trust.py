"""How far results can be believed: looks, damage, what is learnt from them, and where it is kept."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import realtime_skyseg_simulator
from conftest import settings
from safetensors.numpy import load_file

import realtime_skyseg as sky
from realtime_skyseg.analysers.looks import FRAME_LOOKS, OBJECT_LOOKS, looks_of
from realtime_skyseg.analysers.objects import find_runs
from realtime_skyseg.analysers.trust import Trust
from realtime_skyseg.cli import main
from realtime_skyseg.config import load_config
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.recordings import open_recording
from realtime_skyseg.records import Kind
from realtime_skyseg.segmentation import load_model
from realtime_skyseg.segmentation.model import save_trust
from realtime_skyseg.training.calibrate import auroc, calibrate
from realtime_skyseg.training.cases import Case
from realtime_skyseg.training.damage import DAMAGE, REASONS, damaged

LOOKS = np.zeros(len(FRAME_LOOKS))

RECORDING = next((Path(realtime_skyseg_simulator.__file__).parent / "recordings").glob("*.tif"))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    with open_recording(RECORDING) as recording:
        return np.array(recording.read(0))


@pytest.fixture(scope="module")
def segmenter() -> sky.Segmenter:
    return sky.Segmenter.load("compact")


def look(segmenter: sky.Segmenter, image: np.ndarray) -> np.ndarray:
    found = segmenter(image)
    return looks_of(image, found.mask, found.objects, find_runs(found.mask), found.polarity > 0).frame


def test_looks_know_neither_brightness_nor_polarity(segmenter: sky.Segmenter, image: np.ndarray) -> None:
    usual = look(segmenter, image)
    assert np.isfinite(usual).all()
    assert len(usual) == len(FRAME_LOOKS)
    # The camera's levels are what they are; all else is in units of the contrast.
    told = [k for k, name in enumerate(FRAME_LOOKS) if name not in ("at_top", "at_bottom", "levels")]
    for other in (255 - image, image.astype(np.uint16) * 100 + 3000, image.astype(np.float32) / 7 - 1):
        np.testing.assert_allclose(look(segmenter, other)[told], usual[told], atol=0.05)


def test_a_crop_looks_as_it_does_alone(segmenter: sky.Segmenter, image: np.ndarray) -> None:
    part = image[32:352, 16:400].astype(np.float32)
    found = segmenter(part)
    alone = looks_of(part, found.mask, found.objects, find_runs(found.mask), False)
    whole, mask = np.full(image.shape, np.nan, np.float32), np.full(image.shape, 3, np.uint8)
    whole[32:352, 16:400], mask[32:352, 16:400] = part, found.mask
    objects = found.objects.copy()
    for name, offset in (("x", 16), ("left", 16), ("y", 32), ("top", 32)):
        objects[name] += offset
    placed = looks_of(whole, mask, objects, find_runs(mask), False)
    np.testing.assert_allclose(placed.frame, alone.frame, atol=1e-5)
    np.testing.assert_allclose(placed.objects, alone.objects, atol=1e-5)
    assert placed.objects.shape == (len(objects), len(OBJECT_LOOKS))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_done(kind: str, image: np.ndarray) -> None:
    reason, _ = DAMAGE[kind]
    assert reason in REASONS
    plain, mild = (damaged(image, kind, np.random.default_rng(3), severity) for severity in (1.0, 0.5))
    assert plain.shape == mild.shape == image.shape
    assert plain.dtype == np.uint8
    assert np.abs(plain.astype(float) - image).mean() > 0.5
    again = damaged(image, kind, np.random.default_rng(3), 1.0)
    np.testing.assert_array_equal(plain, again)


def made_cases(n: int = 240) -> list[Case]:
    """Of five folds of two sources each; every third one damaged, and what is out of focus looks so."""
    random = np.random.default_rng(0)
    cases = []
    for index in range(n):
        bad = index % 3 == 0
        frame = random.normal(0, 1, len(FRAME_LOOKS)).astype(np.float32)
        frame[FRAME_LOOKS.index("sharpness")] += 6 * bad
        objects = random.normal(0, 1, (30, len(OBJECT_LOOKS))).astype(np.float32)
        sure = 1 / (1 + np.exp(-3 - 2 * objects[:, 0]))
        right = random.random(30) < sure
        cases.append(
            Case(index % 5, f"{index % 5}{index % 2}", f"{index}", "defocus" if bad else "", 1.0 * bad, frame, objects,
                 np.ones(30, np.bool_), right, int(right.sum()))
        )  # fmt: skip
    return cases


@pytest.fixture(scope="module")
def made() -> tuple[Trust, dict]:
    return calibrate(made_cases(), "made cases")


def test_what_is_learnt_holds_on_folds_left_out(made: tuple[Trust, dict]) -> None:
    trust, figures = made
    assert figures["false_alarms"] <= 0.02
    assert figures["damage"]["defocus"]["flagged"] > 0.95
    assert figures["damage"]["defocus"]["right_reason"] == 1
    assert figures["auroc"] > 0.99
    for row in figures["folds"].values():
        assert row["ece"] < 0.06
        assert 0.8 <= row["held"] <= 1
        assert row["median_width"] < 16
    assert figures["selective"]["error"][-1] > 0
    judged = trust.judge(next(case.frame for case in made_cases() if not case.good))
    assert judged.domain < 0.5
    assert judged.reason == REASONS["focus"]


def test_an_interval_is_wider_out_of_range(made: tuple[Trust, dict]) -> None:
    trust, _ = made
    sure = np.full(20, 0.9)
    low, high, expected = trust.interval(LOOKS, sure, 0, 1.0)
    assert low <= 20 <= high
    assert low <= expected <= high
    wide_low, wide_high, _ = trust.interval(LOOKS, sure, 0, 0.1)
    assert wide_low < low
    assert wide_high > high
    assert trust.interval(LOOKS, np.zeros(0), 0, 1.0)[0] == 0


def test_one_fold_is_too_few() -> None:
    cases = [replace(case, fold=0) for case in made_cases(60)]
    with pytest.raises(SettingsError, match="two or more, so that one can be left out"):
        calibrate(cases, "one fold")


def test_areas_under_the_curve() -> None:
    assert auroc(np.array([0.0, 1, 2]), np.array([3.0, 4])) == 1
    assert auroc(np.array([0.0, 2]), np.array([1.0, 3])) == 0.75


def test_it_is_kept_in_the_model_s_file(made: tuple[Trust, dict], tmp_path: Path) -> None:
    trust, figures = made
    before = load_model("compact-0.1")
    path = tmp_path / "calibrated.safetensors"
    save_trust(before, trust.as_dict() | {"figures": figures}, path)
    after = load_model(str(path))
    assert after.sha256 == before.sha256  # run files know it by that
    kept = Trust.of(after.trust)
    assert kept is not None
    assert kept.calibrated_on == "made cases"
    np.testing.assert_allclose(kept.weights, trust.weights, rtol=1e-3, atol=1e-12)
    for name, array in load_file(before.path).items():
        np.testing.assert_array_equal(load_file(path)[name], array)
    # Other looks than those of this version: nothing is known.
    assert Trust.of({**(after.trust or {}), "looks": "0: none"}) is None
    assert Trust.of(None) is None
    # Weights that were changed since are other weights.
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = load_model(str(path))
    assert changed.trust is None
    assert changed.sha256 != before.sha256


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--left-out", "a.safetensors"], "--left-out 'a.safetensors': allowed: names of model files, with {fold}"),
        (["--images", "nowhere"], "images: 'nowhere' is not a folder"),
    ],
)
def test_mistakes(options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "calibrate",
        "compact",
        "--images",
        ".",
        "--labels",
        ".",
        "--table",
        "t.csv",
        "--out",
        str(tmp_path / "m"),
    ]
    assert main([*command, *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_model_without_calibration_says_so(tmp_path: Path) -> None:
    made = settings(tmp_path, {"path": "bundled", "limit": 3}, analysers={"domain": {}, "sureness": {}},
                    analysis={"model": "compact-0.1"})  # fmt: skip
    summary = sky.Service(made).run()
    assert summary.status == "ok"
    with sky.open_run(summary.run_file) as run:
        assert np.isnan(run.table["domain"]).all()
        assert np.isnan(run.table["count_low"]).all()
        assert (run.table["focus_px"] > 0).all()
        said = [event["message"] for event in run.events if event["kind"] == "not_calibrated"]
    assert len(said) == 2
    assert "was not calibrated" in said[0]


def test_rules_cannot_wait_for_a_score_that_nobody_gives() -> None:
    path = Path(__file__).parents[2] / "configs" / "sweep_stop.yaml"
    with pytest.raises(SettingsError, match=r"experiment\.min_domain: nothing gives a score of the domain"):
        load_config(path, ["experiment.min_domain=0.5"])
    with pytest.raises(SettingsError, match=r"experiment: out_of_range: 'pause' needs a lowest score"):
        load_config(path, ["experiment.out_of_range=pause"])
    scored = load_config(path, ["experiment.min_domain=0.5", "experiment.out_of_range=pause", "analysers={domain: {}}"])
    assert scored.experiment
    assert scored.experiment.out_of_range_s == 2


def test_the_focus_is_told(segmenter: sky.Segmenter, image: np.ndarray) -> None:
    widths = []
    for sigma in (0.0, 1.0, 2.0):
        blurred = cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image
        found = segmenter(blurred)
        widths.append(looks_of(blurred, found.mask, found.objects, find_runs(found.mask), False).focus)
    assert widths == sorted(widths)
    assert widths[2] > 1.2 * widths[0]


def test_shipped_models_know_their_range(segmenter: sky.Segmenter, image: np.ndarray) -> None:
    """The bundled recording is in it; the same with something wrong is not, for the reason that there is."""
    trust = Trust.of(segmenter.model.trust)
    assert trust is not None
    assert Trust.of(load_model("accurate").trust) is not None
    found = segmenter(image)
    looks = looks_of(image, found.mask, found.objects, find_runs(found.mask), False)
    assert trust.judge(looks.frame).domain > 0.5
    sure = trust.sureness(looks.objects)
    assert sure.mean() > 0.9
    low, high, _ = trust.interval(looks.frame, sure[found.objects["kind"] == Kind.SKYRMION], found.stripes, 1.0)
    assert low <= found.count <= high
    for kind in ("coarse noise", "smooth noise only", "gradient", "overexposed", "noise of columns", "clouds"):
        judged = trust.judge(look(segmenter, damaged(image, kind, np.random.default_rng(1), 1.0)))
        assert judged.domain < 0.5, kind
        assert judged.reason == REASONS[DAMAGE[kind][0]], kind


def test_a_run_out_of_range_says_so_first(image: np.ndarray, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    bad = [damaged(image, "clouds", random, 1.0) for _ in range(5)]
    np.save(tmp_path / "film.npy", np.stack([image, *bad]))
    made = settings(tmp_path, {"path": str(tmp_path / "film.npy")}, analysers={"domain": {}, "sureness": {}})
    summary = sky.Service(made).run()
    assert summary.status == "ok"
    assert summary.message.startswith(
        "counts cannot be believed: 83% of 6 frames were out of the model's range, mostly"
    )
    with sky.open_run(summary.run_file) as run:
        table = run.table
        kinds = [event["kind"] for event in run.events]
        objects = run.objects(0)
    assert (table["domain"] < 0.5).tolist() == [False, *[True] * 5]
    assert kinds.count("out_of_range") == 1
    assert (table["count_low"] <= table["count"]).all()
    assert (objects["sureness"] > 0.5).mean() > 0.8


@pytest.mark.parametrize(
    "frame",
    [
        np.full((64, 80), 255, np.uint8),
        np.where(np.arange(80) < 76, 65535, 1000).astype(np.uint16) * np.ones((64, 1), np.uint16),
        np.full((64, 80), np.nan, np.float32),
        np.where(np.arange(80) < 76, np.nan, np.arange(80)).astype(np.float32) * np.ones((64, 1), np.float32),
    ],
)
def test_a_frame_that_tells_nothing_has_no_count(segmenter: sky.Segmenter, frame: np.ndarray) -> None:
    assert segmenter(frame).count is None
