"""Settings as people write them: one reader for YAML files, for `--set key=value` and for `skyseg tell do key=value`.

YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema) on PyYAML, which by itself reads 010 as eight, yes
as true and 1:30 as ninety. A key twice is refused.
"""

import math
import re
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml

_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_TRUTH = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_INTEGER = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_NUMBER = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_RESOLVED = (
    ("bool", _TRUTH, "tTfF"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _NUMBER, "-+.0123456789"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<$"), "<"),
)


#: Of what people write. Values that repeat others (`*name`) could grow without end.
_MOST_VALUES, _DEEPEST, _MOST_CHARACTERS = 200_000, 40, 4_000_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars, no key twice, and nothing that grows beyond what was written."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", None)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _weight(node, {}) > _MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, "its repeated values grow too large", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in known:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"'{key.value}' stands there twice", key.start_mark
                    )
                known.add(key.value)
        return super().construct_mapping(node, deep)


def _weight(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for, with those that it repeats; infinite where it repeats itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_weight(part, known) for part in inner))
    return known[id(node)]


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text[2:], 8 if text[1] == "o" else 16) if text[:2] in ("0o", "0x") else int(text)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


for _name, _pattern, _first in _RESOLVED:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
    if _name in ("int", "float"):
        _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load(text: str) -> Any:
    """What a YAML text says. Raises `yaml.YAMLError`, and nothing else, where it is none."""
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text)} characters; allowed: up to {_MOST_CHARACTERS}")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None


def dump(tree: Any) -> str:
    """A tree of plain values as YAML, that `load` reads as the same."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def typed(text: str, kind: Any = None) -> Any:
    """A value as typed on a command line.

    Args:
        text: what was typed. In brackets or quotes it is YAML, else a scalar, in which nothing is a comment.
        kind: the annotation of where it goes. A text or path is taken as it is.

    Raises:
        yaml.YAMLError: it begins like YAML and is none.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if text[:1] in ("'", '"') and isinstance(value := load(text), str):
        return value
    if str in kinds or Path in kinds:
        return None if type(None) in kinds and text in ("null", "~") else text
    if text[:1] in ("[", "{"):
        return load(text)
    plain = text.strip()
    if any(pattern.match(plain) for name, pattern, _ in _RESOLVED if name != "merge"):
        return load(plain)
    return text
