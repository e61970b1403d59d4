"""Numbers and texts as people type them: in YAML files, with --set, and with tell."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from realtime_skyseg import yaml_text
from realtime_skyseg.cli import main
from realtime_skyseg.config import load_config
from realtime_skyseg.errors import SettingsError

SCALARS = [
    ("010", 10), ("-0100", -100), ("+7", 7), ("0o17", 15), ("0x1F", 31), ("1_000", "1_000"), ("1e3", 1000.0),
    ("1.", 1.0), (".5", 0.5), ("-1.5E-3", -0.0015), (".inf", math.inf), ("-.INF", -math.inf), ("yes", "yes"),
    ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"), ("true", True), ("False", False), ("null", None),
    ("~", None), ("1:30", "1:30"), ("190:20:30.15", "190:20:30.15"), ("2026-11-25", "2026-11-25"),
    ("0b11", "0b11"), ("0o9", "0o9"), ("1e", "1e"), ("infinity", "infinity"), ("-", "-"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: object) -> None:
    if text != "-":  # in a file the begin of a list
        assert yaml_text.load(f"key: {text}") == {"key": value}
        assert type(yaml_text.load(f"key: {text}")["key"]) is type(value)
        assert yaml_text.load(f"[{text}]") == [value]
    assert yaml_text.typed(text) == value


TYPED: list[tuple[str, Any, Any]] = [
    ("/x/sample #2", str, "/x/sample #2"), ("/x/sample #2", Path, "/x/sample #2"), ("010", str, "010"),
    ("a: b", str, "a: b"), ("2026-11-25", str, "2026-11-25"), ("yes", str, "yes"), ("null", str, "null"),
    ("null", str | None, None), ("", str, ""), ("'quoted # text'", str, "quoted # text"), ('"a\\tb"', str, "a\tb"),
    ("[a]", str, "[a]"), ("[-07, 07]", tuple[float, float], [-7, 7]), ("5 # five", float, "5 # five"),
    ("{a: 010}", dict[str, int], {"a": 10}), ("a: b", None, "a: b"), (" 7 ", float, 7), ("- 1", None, "- 1"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "value"), TYPED)
def test_what_is_typed_is_taken_so(text: str, kind: Any, value: object) -> None:
    assert yaml_text.typed(text, kind) == value


WRONG = [
    ("a: 1\nb: 2\na: 3", "'a' stands there twice"), ("a: {b: 1, b: 1}", "'b' stands there twice"),
    ("[" * 3000, "nested too deeply"), ("a: [1", "expected ',' or ']'"), ("a: " + "9" * 5000, "digits"),
    ("a: \x00", "special characters are not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_what_is_no_yaml_is_one_error(text: str, sentence: str) -> None:
    with pytest.raises(yaml.YAMLError, match=sentence):
        yaml_text.load(text)


texts = st.sampled_from([text for text, _ in SCALARS]) | st.text(st.characters(exclude_categories=["Cs", "Cc"]))
numbers = st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()
trees = st.recursive(
    texts | numbers, lambda below: st.lists(below, max_size=4) | st.dictionaries(texts, below, max_size=4), max_leaves=9
)


@given(st.dictionaries(texts, trees, max_size=5))
def test_what_is_written_is_read_as_the_same(tree: dict[str, Any]) -> None:
    text = yaml_text.dump(tree)
    assert yaml_text.load(text) == tree
    assert yaml.safe_load(text) == tree  # and by whoever reads YAML 1.1


def test_a_key_twice_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("camera: {driver: replay}\nrecord: {name: a}\nrecord: {name: b}\n")
    with pytest.raises(SettingsError, match=r"twice.yaml', line 3, column 1: not valid YAML \('record' stands there"):
        load_config(tmp_path / "twice.yaml")


def test_texts_and_numbers_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
    folder = tmp_path / "sample #2"
    folder.mkdir()
    shutil.copy(Path(__file__).parents[2] / "docs" / "images" / "soak.png", folder / "1.png")
    config = load_config(demo, [f"camera.path={folder}", "camera.rate_hz=010", "record.title=2026-11-25 # first"])
    assert config.record.title == "2026-11-25 # first"
    assert config.camera.model_extra is not None
    assert config.camera.model_extra["path"] == str(folder)
    assert config.camera.model_extra["rate_hz"] == 10
    assert main(["check", demo, "--set", "camera.rate_hz=yes"]) == 2
    assert "camera.rate_hz" in capsys.readouterr().err
