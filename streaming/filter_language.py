"""The filters of `postgres_changes`: ``column=op.value``, several with commas between, read into conditions.

What a condition means is PostgreSQL's business (`predicates`); here it is only taken apart.

Source: https://supabase.com/docs/guides/realtime/postgres-changes#available-filters
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from streaming.errors import InvalidFilter

OPERATORS = frozenset(
    ("eq", "neq", "lt", "lte", "gt", "gte", "in", "like", "ilike", "is", "match", "imatch", "isdistinct")
)

MOST_VALUES = 100
"""So many values may an ``in`` have."""


class Condition(NamedTuple):
    """One segment of a filter. The value of ``in`` is PostgreSQL's text of an array: ``{1,2}``."""

    column: str
    operator: str
    value: str
    negated: bool = False


def parse(text: str) -> tuple[Condition, ...]:
    """Read a filter: all its conditions have to hold; none for a blank text. Raises `InvalidFilter`.

    Segments are separated by commas outside parentheses and quotes. A quote opens only directly after ``.``, ``(`` or
    ``,``; elsewhere it stands for itself. Column names are taken as they are, without quotes or casts.
    """
    text = text.strip()
    return tuple(_condition(segment) for segment in _segments(text)) if text else ()


def _segments(text: str) -> Iterator[str]:
    start, depth, at = 0, 0, 0
    while at < len(text):
        character = text[at]
        if character == '"' and at and text[at - 1] in ".(,":
            at = _end_of_quote(text, at)
            continue
        if character == "(":
            depth += 1
        elif character == ")":
            depth = max(0, depth - 1)
        elif character == "," and depth == 0:
            yield text[start:at].strip()
            start = at + 1
        at += 1
    yield text[start:].strip()


def _end_of_quote(text: str, at: int) -> int:
    """Where what follows a quoted run starts; the end of the text if it is not closed."""
    at += 1
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text[at] == '"':
            return at + 1
        else:
            at += 1
    return len(text)


def _condition(segment: str) -> Condition:
    if not segment:
        raise InvalidFilter("filter must not contain empty segments (check for extra commas)")
    column, equals, rest = segment.partition("=")
    if not equals:
        raise InvalidFilter(quoted_list([segment]))
    negated = rest.startswith("not.")
    if negated:
        rest = rest.removeprefix("not.")
    operator, dot, value = rest.partition(".")
    if not dot:
        raise InvalidFilter(quoted_list([rest]))
    if operator not in OPERATORS:
        raise InvalidFilter(quoted_list([operator, value]))
    if operator == "in":
        if len(value) < 2 or value[0] != "(" or value[-1] != ")":
            raise InvalidFilter("`in` filter value must be wrapped by parentheses")
        return Condition(column, operator, "{" + value[1:-1] + "}", negated)
    return Condition(column, operator, _unquoted(value), negated)


def _unquoted(value: str) -> str:
    """A value that is quoted as a whole without its quotes; any other as it stands."""
    if len(value) < 2 or value[0] != '"' or _end_of_quote(value, 0) != len(value) or value[-1] != '"':
        return value
    characters, at = [], 1
    while at < len(value) - 1:
        if value[at] == "\\":
            at += 1
            if at == len(value) - 1:
                return value  # the closing quote was escaped: it never ended
        characters.append(value[at])
        at += 1
    return "".join(characters)


def quoted_list(texts: Sequence[str]) -> str:
    """A list of strings as the messages of the protocol show it."""
    return "[" + ", ".join(quoted(text) for text in texts) + "]"


_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def quoted(text: str) -> str:
    """A string as the messages of the protocol show it."""
    return f'"{text.translate(_ESCAPES)}"'
