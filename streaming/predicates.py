"""Whether a row meets a condition, with PostgreSQL's semantics for the column's type.

Python decides only what is proved to come out as in PostgreSQL; everything else becomes a `Question` that PostgreSQL is
asked (`catalogue`): never approximated, never skipped.

Sources: https://www.postgresql.org/docs/current/functions-comparison.html and
https://www.postgresql.org/docs/current/functions-matching.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

from replication.facts import ColumnFacts, TypeFacts
from replication.pgoutput import UNCHANGED_TOAST, Text
from streaming.filter_language import Condition


class Question(NamedTuple):
    """``left operator right`` of a type and collation, as PostgreSQL is asked it; the answer is a bool or `None`."""

    operator: str
    type_sql: str
    collation: str
    left: str
    right: str


class Asked(NamedTuple):
    """The condition holds if the question's answer is ``wanted``; an answer of NULL is neither."""

    question: Question
    wanted: bool


Verdict: TypeAlias = bool | Asked
Test: TypeAlias = Callable[[Text], Verdict]
"""Whether a column's value meets a condition. A value that is not there (`UNCHANGED_TOAST`) meets none."""

Key: TypeAlias = Callable[[str], Any]
"""Turns a value's text into something that Python compares as PostgreSQL compares the values."""


class Operand(NamedTuple):
    """A condition's value as PostgreSQL understands it for one type: its own text of it.

    ``texts`` are several for ``in``; ``has_null`` says that a NULL is among them.
    """

    texts: tuple[str, ...]
    has_null: bool = False


SQL_OPERATORS = {
    "eq": "=",
    "neq": "<>",
    "lt": "<",
    "lte": "<=",
    "gt": ">",
    "gte": ">=",
    "in": "= ANY",
    "like": "LIKE",
    "ilike": "ILIKE",
    "match": "~",
    "imatch": "~*",
    "isdistinct": "IS DISTINCT FROM",
}

PATTERN_OPERATORS = frozenset(("like", "ilike", "match", "imatch"))

_TEXTS = frozenset(("text", "varchar"))


# Keys


def _text(text: str) -> str:
    return text


class _Extended(NamedTuple):
    """A number among infinity and NaN, which PostgreSQL puts behind everything else and takes for equal to itself."""

    rank: int
    number: Decimal | float


_NOT_FINITE = {"-Infinity": -1, "Infinity": 1, "NaN": 2}


def _numeric(text: str) -> _Extended:
    # Python compares decimals exactly, whatever their size.
    rank = _NOT_FINITE.get(text, 0)
    return _Extended(rank, Decimal(0) if rank else Decimal(text))


def _float(text: str) -> _Extended:
    # PostgreSQL prints the shortest text that reads back as the same number, so order and equality survive.
    rank = _NOT_FINITE.get(text, 0)
    return _Extended(rank, 0.0 if rank else float(text))


_DATE = re.compile(r"(\d{4,7})-(\d\d)-(\d\d)( BC)?", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4,7})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?"
    r"(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?( BC)?",
    re.ASCII,
)
_INFINITE_MOMENTS = {"-infinity": -1, "infinity": 1}


def _days(year: int, month: int, day: int) -> int:
    """Days since a fixed day of the Gregorian calendar, in any year.

    Source: https://howardhinnant.github.io/date_algorithms.html#days_from_civil
    """
    if month <= 2:
        year -= 1
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year


def _date(text: str) -> tuple[int, int]:
    if rank := _INFINITE_MOMENTS.get(text):
        return rank, 0
    if (match := _DATE.fullmatch(text)) is None:
        raise ValueError("no date")
    year, month, day, era = match.groups()
    return 0, _days(1 - int(year) if era else int(year), int(month), int(day))


def _moment(text: str) -> tuple[int, int]:
    """Of ``timestamp`` and ``timestamptz``: microseconds, in UTC where a zone is given."""
    if rank := _INFINITE_MOMENTS.get(text):
        return rank, 0
    if (match := _MOMENT.fullmatch(text)) is None:
        raise ValueError("no moment")
    year, month, day, hour, minute, second, fraction, sign, zone_h, zone_m, zone_s, era = match.groups()
    seconds = _days(1 - int(year) if era else int(year), int(month), int(day)) * 86_400
    seconds += int(hour) * 3600 + int(minute) * 60 + int(second)
    if sign:
        offset = int(zone_h) * 3600 + int(zone_m or 0) * 60 + int(zone_s or 0)
        seconds -= offset if sign == "+" else -offset
    return 0, seconds * 1_000_000 + int((fraction or "0").ljust(6, "0"))


def _bpchar(text: str) -> str:
    return text.rstrip(" ")


_KEYS: dict[str, Key] = {
    "int2": int,
    "int4": int,
    "int8": int,
    "oid": int,
    "numeric": _numeric,
    "float4": _float,
    "float8": _float,
    "bool": _text,  # f, t
    "uuid": _text,  # lower case, of one length
    "bytea": _text,  # hexadecimal
    "date": _date,
    "timestamp": _moment,
    "timestamptz": _moment,
    "time": _text,  # of one length, but for the fraction at the end
}
"""Built-in types whose values compare as these keys of their texts do, by equality and by order."""

_PLAIN_TEXTS = frozenset(("int2", "int4", "int8", "oid", "bool", "uuid", "bytea", "time", "text", "varchar", "name"))
"""Built-in types whose equal values have equal texts, so that no key has to be made."""


def equality_key(column: ColumnFacts) -> Key | None:
    """The key by which values of a column are equal, `_text` if it is their text; `None` if PostgreSQL has to tell."""
    kind, collation = column.type, column.collation
    if kind.labels:
        return _text
    if not kind.is_built_in or kind.element is not None or kind.attributes or not kind.sql:
        return None
    if kind.name in _TEXTS or kind.name in ("name", "bpchar"):
        if collation is None or not collation.is_deterministic:
            return None
        return _bpchar if kind.name == "bpchar" else _text
    return _text if kind.name in _PLAIN_TEXTS else _KEYS.get(kind.name)


def order_key(column: ColumnFacts) -> Key | None:
    """The key by which values of a column are ordered; `None` if PostgreSQL has to tell."""
    kind, collation = column.type, column.collation
    if kind.labels:
        # A label that is not among them has been added meanwhile.
        return {label: number for number, label in enumerate(kind.labels)}.__getitem__
    if not kind.is_built_in or kind.element is not None or kind.attributes or not kind.sql:
        return None
    if kind.name in _TEXTS or kind.name in ("name", "bpchar"):
        if collation is None or not collation.orders_bytes:
            return None
        return _bpchar if kind.name == "bpchar" else _text  # code points are ordered as their UTF-8
    return _KEYS.get(kind.name)


# Operands

_INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_RANGES = {"int2": 15, "int4": 31, "int8": 63}
_BOOLEANS = {"t": "t", "true": "t", "f": "f", "false": "f"}
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PLAIN_ITEMS = re.compile(r'[^\s"\\{},]+(?:,[^\s"\\{},]+)*')


def local_operand(condition: Condition, kind: TypeFacts) -> Operand | None:
    """A condition's value for a type, where it is plain how PostgreSQL reads it; `None` if it has to be asked."""
    if condition.operator == "is":
        return Operand((condition.value,))
    if condition.operator == "in":
        inner = condition.value[1:-1]
        if not inner:
            return Operand(())
        if _PLAIN_ITEMS.fullmatch(inner) is None:
            return None
        items = inner.split(",")
        texts = [_local_text(item, kind) for item in items if item.lower() != "null"]
        if None in texts:
            return None
        return Operand(tuple(text for text in texts if text is not None), len(texts) < len(items))
    if condition.operator in PATTERN_OPERATORS:
        return None
    text = _local_text(condition.value, kind)
    return None if text is None else Operand((text,))


def _local_text(raw: str, kind: TypeFacts) -> str | None:
    if "\0" in raw:
        return None
    if kind.labels:
        return raw if raw in kind.labels else None
    if not kind.is_built_in or kind.element is not None or kind.attributes:
        return None
    if (bits := _RANGES.get(kind.name)) is not None:
        limit = 1 << bits
        return raw if _INTEGER.fullmatch(raw) and len(raw) <= 20 and -limit <= int(raw) < limit else None
    if kind.name in _TEXTS or kind.name == "bpchar":
        return raw
    if kind.name == "bool":
        return _BOOLEANS.get(raw)
    if kind.name == "uuid":
        return raw if _UUID.fullmatch(raw) else None
    return None


# Tests

_NULL_SAFE = frozenset(("is", "isdistinct"))
_IS = {"null": None, "unknown": None, "true": "t", "false": "f"}


def compile_test(condition: Condition, column: ColumnFacts, operand: Operand | None) -> Test:
    """The test of one condition on one column. ``operand`` `None` means that PostgreSQL has not been asked for it."""
    if condition.operator == "is":
        wanted = _IS.get(condition.value)
        return _null_safe(lambda text: text == wanted, condition.negated)
    if operand is not None and (decide := _decided(condition, column, operand)) is not None:
        return decide
    return _question(condition, column)


def is_decided_here(condition: Condition, column: ColumnFacts, operand: Operand) -> bool:
    """Whether Python can tell, but for values that are new to it, so that PostgreSQL need not be asked."""
    return condition.operator == "is" or _decided(condition, column, operand) is not None


def _null_safe(holds: Callable[[str | None], bool], negated: bool) -> Test:
    return lambda text: text is not UNCHANGED_TOAST and holds(text) != negated


def _strict(holds: Callable[[str], bool], negated: bool) -> Test:
    """NULL meets neither a condition nor its negation."""
    return lambda text: isinstance(text, str) and holds(text) != negated


def _decided(condition: Condition, column: ColumnFacts, operand: Operand) -> Test | None:
    operator, negated = condition.operator, condition.negated
    if operator in ("eq", "neq", "in", "isdistinct"):
        key = equality_key(column)
        if key is None:
            return None
        if operator == "in":
            if operand.has_null and negated:
                return lambda text: False  # not equal to NULL is unknown
            if not operand.texts and negated:
                return _strict(lambda text: False, negated)
            return _or_ask(_strict(_among(frozenset(map(key, operand.texts)), key), negated), condition, column)
        value = key(operand.texts[0])
        holds = _equal(value, key)
        if operator == "isdistinct":
            safe = _null_safe(lambda text: text is None or not holds(text), negated)
            return _or_ask(safe, condition, column)
        return _or_ask(_strict(holds, negated != (operator == "neq")), condition, column)
    if operator in ("lt", "lte", "gt", "gte"):
        key = order_key(column)
        if key is None:
            return None
        try:
            value = key(operand.texts[0])
        except (ValueError, LookupError):
            return None
        return _or_ask(_strict(_ordered(operator, value, key), negated), condition, column)
    if operator in ("like", "ilike"):
        like = _like_test(condition, column)
        return None if like is None else _strict(like, negated)
    return None


def _or_ask(test: Test, condition: Condition, column: ColumnFacts) -> Test:
    """The test; but PostgreSQL is asked about a text that its key does not know (a label that is new to an enum)."""
    ask = _question(condition, column)

    def decide(text: Text) -> Verdict:
        try:
            return test(text)
        except (ValueError, ArithmeticError, LookupError):
            return ask(text)

    return decide


def _equal(value: Any, key: Key) -> Callable[[str], bool]:
    return value.__eq__ if key is _text else lambda text: bool(key(text) == value)


def _among(values: frozenset[Hashable], key: Key) -> Callable[[str], bool]:
    return values.__contains__ if key is _text else lambda text: key(text) in values


def _ordered(operator: str, value: Any, key: Key) -> Callable[[str], bool]:
    match operator:
        case "lt":
            return lambda text: bool(key(text) < value)
        case "lte":
            return lambda text: bool(key(text) <= value)
        case "gt":
            return lambda text: bool(key(text) > value)
    return lambda text: bool(key(text) >= value)


def _question(condition: Condition, column: ColumnFacts) -> Test:
    operator, kind = SQL_OPERATORS[condition.operator], column.type
    collation = column.collation.sql if column.collation is not None else ""
    value, wanted, distinct = condition.value, not condition.negated, condition.operator == "isdistinct"

    def ask(text: Text) -> Verdict:
        if isinstance(text, str):
            return Asked(Question(operator, kind.sql, collation, text, value), wanted)
        # The operand of isdistinct is never NULL itself.
        return distinct and wanted and text is None

    return ask


# Patterns


def _like_test(condition: Condition, column: ColumnFacts) -> Callable[[str], bool] | None:
    kind, collation = column.type, column.collation
    if kind.name not in _TEXTS or not kind.is_built_in or collation is None:
        return None
    # In UTF-8 a character is a code point, as it is here; where texts are equal by their bytes, so are their parts.
    if not collation.is_deterministic or not collation.is_utf8:
        return None
    if condition.operator == "like":
        return like_matcher(condition.value)
    if not collation.lowers_ascii or (holds := like_matcher(_ascii_lower(condition.value))) is None:
        return None
    return lambda text: holds(_ascii_lower(text))


def like_matcher(pattern: str) -> Callable[[str], bool] | None:
    """What LIKE says of a text; `None` if the pattern ends with its escape character, which is an error.

    The time it takes grows with the text and the pattern, and with nothing else: no pattern can stop the process.
    """
    pieces = _like_pieces(pattern)
    if pieces is None:
        return None
    if len(pieces) == 1:
        only = pieces[0]
        return lambda text: only.fullmatch(text) is not None
    first, *middle, last = pieces

    def holds(text: str) -> bool:
        if (match := first.match(text)) is None:
            return False
        at, end = match.end(), len(text) - last.length
        for piece in middle:
            # The leftmost place is as good as any other: it leaves most for the pieces that follow.
            if (match := piece.search(text, at)) is None:
                return False
            at = match.end()
        return at <= end and last.match(text, end) is not None

    return holds


def _like_pieces(pattern: str) -> list[_Piece] | None:
    """What stands between the percent signs."""
    pieces: list[list[str]] = [[]]
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "%":
            pieces.append([])
        elif character == "_":
            pieces[-1].append(".")
        else:
            if character == "\\":
                if at == len(pattern):
                    return None
                character = pattern[at]
                at += 1
            pieces[-1].append(re.escape(character))
    return [_Piece(piece) for piece in pieces]


class _Piece:
    """A part of a pattern without percent signs: its matches are all of one length."""

    def __init__(self, characters: list[str]) -> None:
        self.length = len(characters)
        compiled = re.compile("".join(characters), re.DOTALL)
        self.fullmatch, self.match, self.search = compiled.fullmatch, compiled.match, compiled.search


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _ascii_lower(text: str) -> str:
    return text.translate(_ASCII_LOWER)
