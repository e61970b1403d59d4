"""The order of files by the numbers in their names, as a person reads them."""

import re
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

_NUMBER = re.compile(r"([+-]?)([0-9]+)(?:([.,p])([0-9]+))?")


def in_order(names: Iterable[str]) -> list[str]:
    """Names in natural order: 2 before 10, -10 before -2 before 2, 0.5 before 1.25 before 1.5.

    Whether a hyphen is a sign and a point is decimal is decided for all names of the same build: `a-1`, `a-2` are
    numbered, `a-1`, `a0`, `a1` count; `1.9`, `1.10` are numbered, `1.25`, `1.5` are decimal.
    """
    split = {name: _split(name) for name in names}
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, (words, _) in split.items():
        alike[words].append(name)
    keys: dict[str, list[tuple[int, tuple[Decimal, Decimal], str]]] = {}
    for words, group in alike.items():
        columns = [[split[name][1][place] for name in group] for place in range(len(words) - 1)]
        signed = [_is_sign(words[place], place == 0, column) for place, column in enumerate(columns)]
        decimal = [_is_decimal(column) for column in columns]
        for name in group:
            key = [(1, _NOTHING, words[0])]
            for place, number in enumerate(split[name][1]):
                key += [(0, _value(number, signed[place], decimal[place]), ""), (1, _NOTHING, words[place + 1])]
            keys[name] = [part for part in key if part[0] == 0 or part[2]]
    return sorted(keys, key=lambda name: ([*keys[name], (-1, _NOTHING, "")], name))


_NOTHING = (Decimal(0), Decimal(0))
_Found = tuple[str, str, str, str]


def _split(name: str) -> tuple[tuple[str, ...], list[_Found]]:
    """The words between the numbers of a name, without its suffix, and the numbers: sign, digits, point, digits."""
    stem, dot, suffix = name.rpartition(".")
    text = (stem if dot and not suffix[:1].isdigit() else name).casefold()
    words, numbers, end = [], [], 0
    for found in _NUMBER.finditer(text):
        words.append(text[end : found.start()])
        numbers.append((found[1], found[2], found[3] or "", found[4] or ""))
        end = found.end()
    return (*words, text[end:]), numbers


def _is_sign(before: str, first: bool, column: list[_Found]) -> bool:
    """Whether a hyphen before a number is a minus: it begins the name, follows a mark, or only some names have it."""
    signs = {sign for sign, *_ in column}
    if not before and not first:
        return False  # it follows a number, as in dates
    return len(signs) > 1 or "+" in signs or (not before and "-" in signs) or before[-1:] in ("_", "=", " ", "(", ",")


def _is_decimal(column: list[_Found]) -> bool:
    fractions = [fraction for *_, fraction in column if fraction]
    points = {point for _, _, point, fraction in column if fraction}
    if not fractions or len(points) > 1:
        return False
    numbered = len({len(fraction) for fraction in fractions}) > 1 and any(
        len(fraction) > 1 and fraction.endswith("0") for fraction in fractions
    )
    return not numbered


def _value(number: _Found, signed: bool, decimal: bool) -> tuple[Decimal, Decimal]:
    sign, whole, _, fraction = number
    factor = -1 if signed and sign == "-" else 1
    if decimal:
        return factor * Decimal(f"{whole}.{fraction or 0}"), Decimal(0)
    return factor * Decimal(whole), Decimal(fraction or 0)
