"""The rule of a Python file."""

import hashlib
from collections.abc import Callable, Sequence

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.experiment.rules.seen import Seen
from realtime_skyseg.programme import PythonRule, Rule


def load_function(rule: PythonRule) -> Callable[[Sequence[Seen]], object]:
    """The function of a Python rule. Raises `SettingsError` where there is none."""
    names: dict[str, object] = {"__name__": rule.file.stem, "__file__": str(rule.file)}
    try:
        exec(compile(rule.file.read_bytes(), str(rule.file), "exec"), names)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"experiment.rules: file '{rule.file}' cannot be read: {error}") from error
    except Exception as error:
        raise SettingsError(f"experiment.rules: file '{rule.file}' cannot be run: {error!r}") from error
    function = names.get(rule.function)
    if not callable(function):
        raise SettingsError(f"experiment.rules: file '{rule.file}' has no function '{rule.function}'")
    return function


def sources(rules: Sequence[Rule]) -> dict[str, str]:
    """SHA-256 of each file of a Python rule."""
    files = [rule.file for rule in rules if isinstance(rule, PythonRule)]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
