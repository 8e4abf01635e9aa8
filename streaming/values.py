"""The text of a PostgreSQL value as JSON, by the type of its column.

As PostgreSQL's own ``to_jsonb`` has it, and the current protocol with it: numbers with all their digits, ``json`` as it
is, arrays and composites taken apart, NaN and infinity null. What has no counterpart in JSON stays the text.

Source: https://www.postgresql.org/docs/current/functions-json.html#FUNCTIONS-JSON-CREATION
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import orjson

from replication.facts import TypeFacts

Convert: TypeAlias = Callable[[str], Any]
"""From a value's text to what orjson writes."""

_FRAGMENTS = frozenset(("int2", "int4", "int8", "json", "jsonb"))
_ROUNDED_BY_JAVASCRIPT = frozenset(("int8", "numeric"))
_NOT_FINITE = re.compile("-?Infinity|NaN")
_ZONE = re.compile(r"[+-]\d\d(?= BC$|$)", re.ASCII)


def _float(text: str) -> Any:
    return None if _NOT_FINITE.fullmatch(text) else orjson.Fragment(text)


def _bool(text: str) -> bool:
    return text == "t"


def _bytea(text: str) -> str:
    return text.removeprefix("\\x")


def _timestamp(text: str) -> str:
    """``2024-01-02 03:04:05.678`` with a T in the middle; infinity stays itself."""
    return text.replace(" ", "T", 1)


def _timestamptz(text: str) -> str:
    """The same; the zone gets its minutes: ``+00:00``."""
    if text[-3:-2] in ("+", "-"):
        return text.replace(" ", "T", 1) + ":00"
    return _ZONE.sub(_with_minutes, text.replace(" ", "T", 1), count=1)


def _with_minutes(match: re.Match[str]) -> str:
    return match[0] + ":00"


_CONVERTERS: dict[str, Convert] = {
    "bool": _bool,
    "float4": _float,
    "float8": _float,
    "numeric": _float,
    "bytea": _bytea,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    **dict.fromkeys(_FRAGMENTS, orjson.Fragment),
}


# Arrays that are printed otherwise.
_VECTORS: dict[str, Convert] = {
    "int2vector": lambda text: [int(item) for item in text.split()],
    "oidvector": str.split,
}


def converter(facts: TypeFacts, *, numbers_as_text: bool = False) -> Convert | None:
    """What makes JSON of the texts of a type; `None` if they are JSON strings as they are.

    The result may raise `ValueError` for a text that is none of the type's. ``numbers_as_text`` leaves ``int8`` and
    ``numeric`` texts, also inside arrays and composites.
    """
    if facts.attributes:
        return _composite_converter(facts, numbers_as_text=numbers_as_text)
    if facts.element is not None and facts.name not in _VECTORS:
        return _array_converter(facts.element, facts.delimiter, numbers_as_text=numbers_as_text)
    if facts.name in _VECTORS and facts.is_built_in:
        return _VECTORS[facts.name]
    if not facts.is_built_in or (numbers_as_text and facts.name in _ROUNDED_BY_JAVASCRIPT):
        return None
    return _CONVERTERS.get(facts.name)


def _array_converter(element: TypeFacts, delimiter: str, *, numbers_as_text: bool) -> Convert:
    convert = converter(element, numbers_as_text=numbers_as_text)

    def converted(item: Any) -> Any:
        if isinstance(item, list):
            return [converted(inner) for inner in item]
        return item if item is None or convert is None else convert(item)

    return lambda text: converted(parse_array(text, delimiter))


def _composite_converter(facts: TypeFacts, *, numbers_as_text: bool) -> Convert:
    names = [name for name, _ in facts.attributes]
    converters = [converter(kind, numbers_as_text=numbers_as_text) for _, kind in facts.attributes]

    def convert(text: str) -> dict[str, Any]:
        return {
            name: item if item is None or of_type is None else of_type(item)
            for name, of_type, item in zip(names, converters, parse_composite(text), strict=True)
        }

    return convert


PlainConvert: TypeAlias = Callable[[bytes], bytes | None]
"""The same for a short text of ASCII that needs no escapes, as bytes; `None` if this one is not for the quick way."""


def _plain_number(text: bytes) -> bytes | None:
    return None if text[-1:] in b"Ny" else text  # NaN, Infinity


def _plain_timestamptz(text: bytes) -> bytes:
    if text[-3:-2] in (b"+", b"-"):
        return text.replace(b" ", b"T", 1) + b":00"
    return _timestamptz(text.decode()).encode()


_PLAIN_NUMBERS: dict[str, PlainConvert | None] = {
    "int2": None,
    "int4": None,
    "int8": None,
    "numeric": _plain_number,
    "float4": _plain_number,
    "float8": _plain_number,
    "bool": lambda text: b"true" if text == b"t" else b"false",
}
_PLAIN_TEXTS: dict[str, PlainConvert] = {
    "timestamp": lambda text: text.replace(b" ", b"T", 1),
    "timestamptz": _plain_timestamptz,
}


def plain_converter(facts: TypeFacts, *, numbers_as_text: bool = False) -> tuple[bool, PlainConvert | None] | None:
    """For a type's plain texts: whether JSON quotes them, and what converts them, if anything does.

    `None` if there is no such way.
    """
    if converter(facts, numbers_as_text=numbers_as_text) is None:
        return True, None
    if facts.element is None and not facts.attributes:
        if facts.name in _PLAIN_NUMBERS:
            return False, _PLAIN_NUMBERS[facts.name]
        if facts.name in _PLAIN_TEXTS:
            return True, _PLAIN_TEXTS[facts.name]
    return None


_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_BOUNDS = re.compile(r"(?:\[[+-]?\d+:[+-]?\d+\])+=", re.ASCII)


def parse_array(text: str, delimiter: str = ",") -> list[Any]:
    """The elements of an array as PostgreSQL prints it: texts, `None` for NULL, lists in lists for more dimensions.

    Raises `ValueError` for any other text.

    Source: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    match = _BOUNDS.match(text)  # subscripts that do not begin at 1; JSON has no such thing
    at = match.end() if match else 0
    open_lists: list[list[Any]] = []
    for token in _array_tokens(delimiter).finditer(text, at):
        if token.start() != at:
            break
        at = token.end()
        opening, closing, quoted, plain = token.groups()
        if opening:
            inner: list[Any] = []
            if open_lists:
                open_lists[-1].append(inner)
            open_lists.append(inner)
        elif not open_lists:
            break
        elif closing:
            done = open_lists.pop()
            if not open_lists:
                if at != len(text):
                    break
                return done
        elif quoted is not None:
            open_lists[-1].append(_ESCAPED.sub(r"\1", quoted) if "\\" in quoted else quoted)
        elif plain is not None:
            open_lists[-1].append(None if plain == "NULL" else plain)
    raise ValueError("an array cannot be read")


@cache
def _array_tokens(delimiter: str) -> re.Pattern[str]:
    between = re.escape(delimiter)
    return re.compile(r'(\{)|(\})|"((?:[^"\\]|\\.)*)"|([^"\\{}' + between + "]+)|" + between, re.DOTALL)


_FIELD = re.compile(r'((?:[^",()\\]|\\.|"(?:[^"\\]|\\.|"")*")*)', re.DOTALL)


def parse_composite(text: str) -> list[str | None]:
    """The fields of a composite as PostgreSQL prints it; `None` for NULL. Raises `ValueError` for any other text.

    Source: https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX
    """
    if text[:1] != "(":
        raise ValueError("a composite begins with a parenthesis")
    fields: list[str | None] = []
    at = 1
    while True:
        match = _FIELD.match(text, at)
        assert match is not None  # it matches nothing as well
        fields.append(_field(match[1]) if match[1] else None)
        at = match.end()
        following = text[at : at + 1]
        at += 1
        if following == ")":
            break
        if following != ",":
            raise ValueError("a field of a composite is followed by something else")
    if at != len(text):
        raise ValueError("a composite goes on after its end")
    return fields


def _field(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        # PostgreSQL quotes a field as a whole, and doubles quotes and backslashes inside.
        return text[1:-1].replace('""', '"').replace("\\\\", "\\")
    return text


def names_and_converters(
    columns: Sequence[tuple[str, TypeFacts]], *, numbers_as_text: bool
) -> list[tuple[int, Convert]]:
    """Of the columns whose texts are not JSON strings as they are: where they stand, and what converts them."""
    found = []
    for index, (_, facts) in enumerate(columns):
        if (convert := converter(facts, numbers_as_text=numbers_as_text)) is not None:
            found.append((index, convert))
    return found
