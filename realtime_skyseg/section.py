"""The base of every part of the settings, of whatever is read from YAML."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Unknown keys, NaN and infinity are refused, and `true` where a number belongs; nothing changes once validated.

    A docstring below a key becomes its description in the JSON Schema for editors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, values: Any) -> Any:
        """Pydantic takes `true` for 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(key)
            if field and _holds_a_switch(value) and not _is_for_switches(field.annotation):
                raise ValueError(f"{key}: {value!r} is not allowed: true and false are no numbers")
        return values


def _holds_a_switch(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_a_switch, value)))


def _is_for_switches(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_is_for_switches, get_args(annotation)))
