"""Settings: what is refused, and with which sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from realtime_skyseg.config import DEMO, json_schema, load_config, load_training, validate
from realtime_skyseg.errors import SettingsError

CONFIGS = Path(__file__).parents[2] / "configs"

WRONG = [
    # settings, what the sentence must say
    ({}, "camera: this key is missing"),
    ({"camera": {}}, "camera.driver: this key is missing"),
    ({"camera": {"driver": "nokia"}}, "'nokia' is not among the installed cameras; allowed: "),
    ({"camera": {"driver": "replay", "pth": "x"}}, "camera.pth: unknown key; did you mean 'path'? allowed: "),
    ({"camera": {"driver": "replay", "rate_hz": -1}}, "camera.rate_hz"),
    ({"camera": {"driver": "replay", "path": "bundled", "rate_hz": True}}, "camera.rate_hz: True is not allowed"),
    ({**DEMO, "field": {"driver": "manual", "limit_mT": [True, 5]}}, "field.limit_mT: [True, 5] is not allowed"),
    ({**DEMO, "analysys": {}}, "analysys: unknown key; did you mean 'analysis'? allowed: camera, "),
    ({**DEMO, "analysis": {"engine": "abacus"}}, "analysis.engine: 'abacus' is not allowed"),
    ({**DEMO, "analysis": {"policy": "some"}}, "'latest' or 'every'"),
    ({**DEMO, "analysis": {"queue_frames": 0}}, "analysis.queue_frames: 0 is not allowed"),
    ({**DEMO, "measure": {"min_area_px": "ten"}}, "measure.min_area_px: 'ten' is not allowed"),
    ({**DEMO, "measure": {"stripe_slenderness": float("nan")}}, "measure.stripe_slenderness"),
    ({**DEMO, "stream": {"address": "udp://127.0.0.1:1"}}, "should be tcp://HOST:PORT"),
    ({**DEMO, "stream": {"address": "tcp://127.0.0.1:99999"}}, "should be tcp://HOST:PORT"),
    ({**DEMO, "stream": {"address": "tcp://0.0.0.0:5555"}}, "insecure: true"),
    ({**DEMO, "record": {"name": "../elsewhere"}}, "record.name"),
    ({**DEMO, "record": {"flush_s": float("inf")}}, "record.flush_s"),
]


@pytest.mark.parametrize(("tree", "sentence"), WRONG)
def test_wrong_settings_are_one_sentence(tree: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validate(tree)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


DATA = {"images": "i", "labels": "l", "out": "m.safetensors"}

WRONG_TRAINING = [
    # settings, what the sentence must say
    ({}, "images: this key is missing"),
    ({**DATA, "train_folds": [0]}, "train_folds and validate_folds are set together"),
    ({**DATA, "train_folds": [0], "validate_folds": [1]}, "train_folds needs the table"),
    ({**DATA, "table": "t", "train_folds": [0, 1], "validate_folds": [1]}, "has fold 1, which is among train_folds"),
    (
        {**DATA, "table": "t", "train_folds": [0], "validate_folds": [1], "validate_sources": ["7"]},
        "validate_sources and folds exclude each other",
    ),
    ({**DATA, "validate_share": 1.0}, "validate_share: 1.0 is not allowed"),
    ({**DATA, "start_from": "compact", "depth": 2}, "depth is fixed by the model of start_from"),
    ({**DATA, "start_from": "compact", "split_levels": 2}, "split_levels is fixed by the model of start_from"),
    ({**DATA, "label_values": {0: "hole"}}, "label_values.0: 'hole' is not allowed"),
    ({**DATA, "step": 5}, "step: unknown key; did you mean 'steps'?"),
]


@pytest.mark.parametrize(("tree", "sentence"), WRONG_TRAINING)
def test_wrong_training_settings(tmp_path: Path, tree: dict[str, object], sentence: str) -> None:
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingsError) as caught:
        load_training(tmp_path / "train.yaml")
    assert sentence in str(caught.value)


FILES = [
    ("camera: [", "line 1"),
    ("- just\n- a list\n", "holds a list"),
    ("", "holds nothing"),
]


@pytest.mark.parametrize(("text", "sentence"), FILES)
def test_files_that_hold_no_settings(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        load_config(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml' cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["demo.yaml", "replay.yaml"])
def test_the_examples_are_valid(name: str) -> None:
    load_config(CONFIGS / name)


def test_the_training_example_is_valid() -> None:
    load_training(CONFIGS / "train.yaml")


def test_the_demo_needs_no_file_and_equals_its_example() -> None:
    assert validate(DEMO) == load_config(CONFIGS / "demo.yaml")


def test_a_fold_is_never_both_learned_and_scored() -> None:
    with pytest.raises(SettingsError, match="fold 3, which is among train_folds"):
        load_training(CONFIGS / "train.yaml", ["validate_folds=[3, 5]"])


OVERRIDES = [
    # --set, path to the value, expected
    ("analysis.policy=latest", ("analysis", "policy"), "latest"),
    ("camera.rate_hz=12.5", ("camera", "rate_hz"), 12.5),
    ("stream.enabled=false", ("stream", "enabled"), False),
    ("measure.pixel_size_um=0.2", ("measure", "pixel_size_um"), 0.2),
    ("analysis.threads=null", ("analysis", "threads"), None),
]


@pytest.mark.parametrize(("override", "path", "expected"), OVERRIDES)
def test_overrides_replace_values(override: str, path: tuple[str, str], expected: object) -> None:
    config = load_config(CONFIGS / "demo.yaml", [override])
    assert config.model_dump(mode="json")[path[0]][path[1]] == expected


@pytest.mark.parametrize("override", ["analysis.policy", "=3", "camera.driver.x=1", "analysis.policy=["])
def test_wrong_overrides(override: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        load_config(CONFIGS / "demo.yaml", [override])


@given(
    rate_hz=st.one_of(st.just("max"), st.floats(0.001, 1e4)),
    loop=st.booleans(),
    policy=st.sampled_from(["latest", "every"]),
    min_area_px=st.integers(1, 10_000),
    slenderness=st.floats(1.01, 100),
    title=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40),
    port=st.integers(0, 65535),
)
def test_settings_survive_yaml(
    rate_hz: object, loop: bool, policy: str, min_area_px: int, slenderness: float, title: str, port: int
) -> None:
    """The settings that a run file keeps are those that the run had."""
    config = validate(
        {
            "camera": {"driver": "replay", "path": "bundled", "rate_hz": rate_hz, "loop": loop},
            "analysis": {"policy": policy},
            "measure": {"min_area_px": min_area_px, "stripe_slenderness": slenderness},
            "stream": {"address": f"tcp://127.0.0.1:{port}"},
            "record": {"title": title},
        }
    )
    assert validate(yaml.safe_load(config.to_yaml())) == config


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda below: st.lists(below) | st.dictionaries(st.text(), below),
        max_leaves=12,
    )
)
def test_any_tree_is_settings_or_one_error(value: object) -> None:
    tree = value if isinstance(value, dict) else {"camera": value}
    with pytest.raises(SettingsError):
        validate(tree)


def test_the_schema_for_editors_is_current() -> None:
    """Renew with: python -m realtime_skyseg.config > configs/skyseg.schema.json"""
    assert (CONFIGS / "skyseg.schema.json").read_text() == json_schema()


def test_help_answers_without_heavy_imports() -> None:
    code = (
        "import sys; from realtime_skyseg.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'openvino', 'cv2', 'h5py', 'zmq', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
