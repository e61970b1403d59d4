"""What is wrong with a setting, in one sentence that names the key, the value and what is allowed."""

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

#: Shows values in messages: what is long or deep is cut.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def sentence(error: ValidationError, kind: type[BaseModel], prefix: str = "", common: Sequence[str] = ()) -> str:
    """The first fault of a validation as one sentence, and how many more there are.

    Args:
        error: the faults.
        kind: what was validated.
        prefix: of the keys, where the settings are part of others.
        common: keys that those others allow beside the keys of `kind`.
    """
    faults = error.errors()
    # A misspelt key is often a missing one too: the misspelling says more.
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    location = [str(part) for part in fault["loc"]]
    key = ".".join([prefix, *location] if prefix else location)
    value = fault.get("input")
    if fault["type"] == "extra_forbidden":
        known = [*_keys(kind, location[:-1]), *(common if len(location) == 1 else ())]
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        text = f"{key}: unknown key; {hint}allowed: {', '.join(known)}"
    elif fault["type"] == "missing":
        text = f"{key}: this key is missing"
    else:
        message = _said(fault)
        others = [one for one in faults if _place(one) == _place(fault)]
        if len(others) > 1:  # a key that takes this or that
            key = ".".join(filter(None, [prefix, *_place(fault)]))
            message = " or ".join(dict.fromkeys(map(_said, others))).replace(" or input should be ", " or ")
            faults = [fault, *(one for one in faults if one not in others)]
        shown = "" if isinstance(value, dict | BaseModel) else f" {_SHORT.repr(value)} is not allowed:"
        if not shown and " is not allowed: " in message:  # it names a key of this section itself
            return f"{key}.{message}" if key else message
        text = f"{key}:{shown} {message}" if key else message
    more = len(faults) - 1
    return text + (f" (and {more} more)" if more else "")


def _said(fault: Any) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = "input should be a mapping of keys to values"
    return message[0].lower() + message[1:]


def _place(fault: Any) -> tuple[str, ...]:
    """Where a fault is, without the names that pydantic gives to the alternatives of a value."""
    return tuple(part for part in map(str, fault["loc"]) if "[" not in part and part not in _ALTERNATIVES)


_ALTERNATIVES = ("constrained-float", "constrained-int", "constrained-str", "float", "int", "str", "bool")


def _keys(kind: type[BaseModel], location: list[str]) -> list[str]:
    """The keys allowed at a place; in a list the place has the item's number, and the tag of its kind."""
    kinds = [kind]
    for part in location:
        tagged = [one for one in kinds if part in _tags(one)]
        if tagged:
            kinds = tagged
        elif not part.isdigit():
            kinds = [below for one in kinds if part in one.model_fields for below in _models(one, part)]
    return list(kinds[0].model_fields) if kinds else []


def _models(kind: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """The sections that a key may hold, in whatever lists and alternatives."""
    todo, found = [kind.model_fields[key].annotation], []
    while todo:
        one = todo.pop(0)
        if isinstance(one, type) and issubclass(one, BaseModel):
            found.append(one)
        todo += get_args(one)
    return found


def _tags(kind: type[BaseModel]) -> set[Any]:
    """What tells a kind from its alternatives: the values of `do` or `rule`."""
    fields = (kind.model_fields.get(name) for name in ("do", "rule"))
    return {value for one in fields if one is not None for value in get_args(one.annotation)}
