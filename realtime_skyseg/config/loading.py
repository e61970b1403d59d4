"""Settings files: reading, includes, `--set`, checking, and the schema for editors."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from realtime_skyseg import devices, yaml_text
from realtime_skyseg.config.sections import CameraSettings, FieldSettings
from realtime_skyseg.config.sentences import sentence
from realtime_skyseg.config.settings import Config
from realtime_skyseg.config.training import TrainingSettings
from realtime_skyseg.errors import SettingsError

AnySettings = TypeVar("AnySettings", Config, TrainingSettings)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read and validate the YAML settings of a run.

    Args:
        path: the YAML file.
        overrides: "key.subkey=value" texts that replace values of the file; values are YAML.

    Raises:
        SettingsError: one sentence that names the key, the value and what is allowed.
    """
    return validate(_included(path), overrides)


def _included(path: str | Path) -> dict[str, Any]:
    """The tree of a settings file on top of the one that its key `include` names, from the file's own folder."""
    tree = read_yaml(path)
    if "include" not in tree:
        return tree
    name = tree.pop("include")
    if not isinstance(name, str):
        raise SettingsError(f"include: {name!r} is not allowed: a settings file, from the folder of '{path}'")
    below = read_yaml(Path(path).parent / name)
    if "include" in below:
        raise SettingsError(f"include: '{name}' has an include too; allowed: files without")
    return _merged(below, tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = below | above
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            both[key] = _merged(below[key], value)
    return both


def load_training(path: str | Path, overrides: Iterable[str] = ()) -> TrainingSettings:
    """Read and validate the YAML settings of a training. Raises like `load_config`."""
    return _validate(TrainingSettings, read_yaml(path), overrides)


def validate(tree: dict[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Validate settings that are already a tree of dictionaries. Raises like `load_config`."""
    return _validate(Config, tree, overrides)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text; a recording goes to camera.path"
        raise SettingsError(f"settings file '{path}' cannot be read: {reason}") from error
    try:
        tree = yaml_text.load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(
            f"settings file '{path}'{place}: not valid YAML ({getattr(error, 'problem', error)})"
        ) from error
    if not isinstance(tree, dict):
        held = "nothing" if tree is None else "a list" if isinstance(tree, list) else "a single value"
        raise SettingsError(f"settings file '{path}' holds {held}; allowed: a mapping of keys to values")
    return tree


def json_schema() -> str:
    """The JSON Schema of `Config`, for editors; the drivers' keys are those of each installed driver."""
    schema = Config.model_json_schema()
    schema["properties"]["include"] = {
        "type": "string",
        "description": "Another settings file, from this one's folder; what is said here goes before it.",
    }
    schema["required"] = []  # an included file may say it
    for kind, section in (("cameras", CameraSettings), ("fields", FieldSettings)):
        common = schema["$defs"][section.__name__]
        choices = []
        for name in devices.drivers(kind):
            choice = devices.driver(kind, name).Settings.model_json_schema()
            driver = {**common["properties"], "driver": {**common["properties"]["driver"], "const": name}}
            choice["properties"] = {**driver, **choice.get("properties", {})}
            choice["required"] = [*common["required"], *choice.get("required", [])]
            schema["$defs"].update(choice.pop("$defs", {}))
            choices.append(choice)
        schema["$defs"][section.__name__] = {"description": section.__doc__, "oneOf": choices}
    return json.dumps(schema, indent=2) + "\n"


def _validate(kind: type[AnySettings], tree: dict[str, Any], overrides: Iterable[str]) -> AnySettings:
    for override in overrides:
        tree = overridden(tree, override, kind)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(sentence(error, kind)) from None


def overridden(tree: dict[str, Any], override: str, kind: Any = None) -> dict[str, Any]:
    """The settings with one replaced, `override` being "key=value". Raises `SettingsError` where it is not.

    Args:
        tree: the settings.
        override: the value is read as its key's kind, see `yaml_text.typed`.
        kind: what the tree is to become.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set '{override}': allowed: key=value, for example camera.rate_hz=25")
    first, *rest = key.strip().split(".")
    below_kind = _kind_of(kind, first, tree)
    if not rest:
        try:
            return {**tree, first: yaml_text.typed(text, below_kind)}
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {key}: '{text}' is not a YAML value") from error
    below = tree.get(first) or {}
    if isinstance(below, list):  # its items by their numbers
        if not (rest[0].isdigit() and int(rest[0]) < len(below)):
            raise SettingsError(f"--set {key}: '{rest[0]}' is not allowed: a number from 0 to {len(below) - 1}")
        items = {str(number): item for number, item in enumerate(below)}
        return {**tree, first: list(overridden(items, f"{'.'.join(rest)}={text}").values())}
    if not isinstance(below, dict):
        raise SettingsError(f"--set {key}: '{first}' is the value {below!r}, not a section")
    return {**tree, first: overridden(below, f"{'.'.join(rest)}={text}", below_kind)}


def _kind_of(kind: Any, key: str, tree: dict[str, Any]) -> Any:
    """The annotation of a key, as far as it can be known: of a driver's own keys too."""
    kind = next((one for one in (*get_args(kind), kind) if isinstance(one, type) and issubclass(one, BaseModel)), None)
    if kind is None:
        return None
    if key not in kind.model_fields and kind in (CameraSettings, FieldSettings) and "driver" in tree:
        with contextlib.suppress(SettingsError):
            kind = devices.driver("cameras" if kind is CameraSettings else "fields", str(tree["driver"])).Settings
    field = kind.model_fields.get(key)
    return field.annotation if field else None
