"""A form made from settings: an input for each key, with what the key means."""

import contextlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from nicegui import ui
from pydantic import BaseModel
from pydantic.fields import FieldInfo

#: Endings of keys that are units, and how those are written.
_UNITS = {"um": "µm", "hz": "Hz", "px": "px", "ms": "ms", "s": "s", "mT": "mT", "gb": "GB", "mb": "MB"}


class Form:
    """Inputs for some keys of a section of settings.

    Args:
        section: the settings' class, whose annotations and texts are used.
        keys: that are asked for, in this order; those whose kind has no input are left out.
        values: that they have at first, besides their defaults.
        on_change: called when somebody has changed something.
    """

    def __init__(
        self,
        section: type[BaseModel],
        keys: list[str],
        values: dict[str, Any] | None = None,
        on_change: Callable[[], Any] | None = None,
    ) -> None:
        self._inputs: dict[str, Any] = {}
        self._defaults: dict[str, Any] = {}
        self._mixed = {key for key in keys if float in get_args(_plain(section.model_fields[key].annotation))}
        for key in keys:
            field = section.model_fields[key]
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            self._defaults[key] = default
            value = (values or {}).get(key, default)
            if (made := _input(key, field, value)) is not None:
                self._inputs[key] = made
                if on_change:
                    made.on_value_change(on_change)

    def values(self) -> dict[str, Any]:
        """What was filled in, but for what is as by default."""
        found = {}
        for key, made in self._inputs.items():
            value = made.value
            if value in ("", None):
                continue
            if isinstance(value, str) and key in self._mixed:
                with contextlib.suppress(ValueError):
                    value = float(value)
            if isinstance(value, float) and value.is_integer() and not isinstance(self._defaults[key], float):
                value = int(value)
            if value != self._defaults[key] and value != str(self._defaults[key]):
                found[key] = value
        return found


def _input(key: str, field: FieldInfo, value: Any) -> Any:
    kind = _plain(field.annotation)
    words, _, unit = key.rpartition("_")
    label = f"{words.replace('_', ' ')} ({_UNITS[unit]})" if words and unit in _UNITS else key.replace("_", " ")
    made: Any = None
    if kind is bool:
        made = ui.checkbox(label, value=bool(value))
    elif get_origin(kind) is Literal:
        options = [str(one) for one in get_args(kind)]
        made = ui.select(options, value=str(value) if str(value) in options else options[0], label=label)
    elif kind in (int, float):
        made = ui.number(label, value=value if isinstance(value, int | float) else None)
    elif kind in (str, Path) or get_origin(kind) in (Union, types.UnionType):
        made = ui.input(label, value="" if value is None else str(value))
    if made is None:
        return None
    made.props("dense" if kind is bool else "dense options-dense stack-label").classes("entry")
    made.props(f'aria-label="{label}"')
    text = " ".join((field.description or "").split())
    if text:
        with made:
            ui.tooltip(text).classes("tip")
    return made


def _plain(kind: Any) -> Any:
    """The kind of a key without `None` and without what pydantic checks."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [one for one in get_args(kind) if one is not type(None)]
        return _plain(kinds[0]) if len(kinds) == 1 else Union[tuple(_plain(one) for one in kinds)]  # noqa: UP007
    return kind
