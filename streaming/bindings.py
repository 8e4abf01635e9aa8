"""The bindings of a channel: which changes its `postgres_changes` listeners want, and in what shape.

A client names them in its join, gets each back with an id, and is sent those ids with every change they want.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from streaming.errors import InvalidBinding, InvalidFilter
from streaming.filter_language import Condition, parse, quoted, quoted_list

ALL = "*"
EVENTS = frozenset(("INSERT", "UPDATE", "DELETE"))
TRUNCATE = "TRUNCATE"

OPTIONS = "postgres_changes_options"
"""Beside the bindings in a join's config: what holds for all of them, unless one says otherwise itself."""

NUMBERS, AS_TEXT = "numbers", "text"
"""``"numbers": "text"``: int8 and numeric come as strings, which JavaScript does not round."""

UNCHANGED = "unchanged"
"""``"unchanged": true``: a change lists the columns whose values were too large to be sent again."""

_MOST_IDS = 2**31 - 1
"""Some clients keep an id in 32 bits."""

_SELECT_IS_NO_LIST = (
    "Error parsing `select` params: expected a list of column name strings, e.g. select: "
    '["col1", "col2"]'  # as the protocol has it
)
_SELECT_OF_MANY = (
    "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name."
)
_SECRETS = ("user_token", "auth_token")


class Shape(NamedTuple):
    """What a change looks like for a binding. ``select`` names columns, `None` all of them."""

    select: frozenset[str] | None = None
    numbers_as_text: bool = False
    lists_unchanged: bool = False


@dataclass(frozen=True)
class Binding:
    """One listener's wish. ``event`` is INSERT, UPDATE, DELETE, TRUNCATE or ``*`` (the first three).

    ``schema`` and ``table`` are names as the database has them, or ``*`` for all; a change is wanted if every one of
    ``conditions`` holds for its row. Equal bindings are one.
    """

    event: str
    schema: str
    table: str
    conditions: tuple[Condition, ...] = ()
    shape: Shape = field(default=Shape())

    @cached_property
    def _hash(self) -> int:
        return hash((self.event, self.schema, self.table, self.conditions, self.shape))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def id(self) -> int:
        """Its number towards clients: the same on every node and after every join, and never 0."""
        return self.id_after(0)

    def id_after(self, collisions: int) -> int:
        """Another number, should another binding of the same channel have the first by chance."""
        select = sorted(self.shape.select) if self.shape.select is not None else None
        conditions = [list(condition) for condition in self.conditions]
        key = [self.event, self.schema, self.table, conditions, select, *self.shape[1:], collisions]
        digest = blake2b(orjson.dumps(key), digest_size=8).digest()
        return 1 + int.from_bytes(digest) % _MOST_IDS

    def wants_event(self, event: str) -> bool:
        """Whether it wants changes of this kind."""
        return self.event == event or (self.event == ALL and event != TRUNCATE)

    def wants_table(self, schema: str, table: str) -> bool:
        """Whether it wants changes of this table."""
        return self.schema in (ALL, schema) and self.table in (ALL, table)

    def __str__(self) -> str:
        """As the messages of the protocol show it."""
        filters = ", ".join(
            f"{{{quoted(c.column)}, {quoted(c.operator)}, {quoted(c.value)}, {str(c.negated).lower()}}}"
            for c in self.conditions
        )
        select = self.shape.select
        shown = "nil" if select is None else quoted_list(sorted(select))
        return (
            f"[event: {self.event}, schema: {self.schema}, table: {self.table}, filters: [{filters}], select: {shown}]"
        )


def parse_binding(raw: object, options: object = None) -> Binding:
    """Read one element of a join's ``postgres_changes``; ``options`` is its config's `OPTIONS`.

    Raises `InvalidBinding`, whose text is what the client is told.
    """
    if not isinstance(raw, dict):
        raise InvalidBinding(f"No subscription params provided. {_PLEASE}{_inspected(raw)}")
    schema, table, text = raw.get("schema"), raw.get("table"), raw.get("filter")
    named = {key for key in ("schema", "table", "filter") if key in raw}
    if (
        not named & {"schema", "table"}
        or ("filter" in named and "table" not in named)
        or not all(isinstance(raw[key], str) for key in named)
    ):
        hidden = any(secret in raw for secret in _SECRETS)
        raise InvalidBinding(f"No subscription params provided. {_PLEASE}{'<redacted>' if hidden else _inspected(raw)}")
    schema = schema if schema is not None else "public"
    table = table if table is not None else ALL
    try:
        conditions = parse(text) if text is not None else ()
    except InvalidFilter as error:
        raise InvalidBinding(f"Error parsing `filter` params: {error.reason}") from None
    select = raw.get("select")
    if select is not None and not isinstance(select, list):
        raise InvalidBinding(_SELECT_IS_NO_LIST)
    columns = frozenset(name for name in select or () if isinstance(name, str)) or None
    if columns is not None and ALL in (schema, table):
        raise InvalidBinding(_SELECT_OF_MANY)
    event = raw.get("event")
    event = event.upper() if isinstance(event, str) else ALL
    wanted = {**options, **raw} if isinstance(options, dict) else raw
    shape = Shape(columns, wanted.get(NUMBERS) == AS_TEXT, wanted.get(UNCHANGED) is True)
    return Binding(event if event in EVENTS or event == TRUNCATE else ALL, schema, table, conditions, shape)


def not_enabled(binding: Binding) -> str:
    """What a client is told whose binding names no published table."""
    return f"{_UNABLE} Please check Realtime is enabled for the given connect parameters: {binding}"


def rejected(binding: Binding, reason: str) -> str:
    """What a client is told whose binding PostgreSQL objects to; ``reason`` begins with the SQLSTATE."""
    return (
        f"{_UNABLE} An exception happened so please check your connect parameters: {binding}. Exception: ERROR {reason}"
    )


_UNABLE = "Unable to subscribe to changes with given parameters."
_PLEASE = "Please provide at least a `schema` or `table` to subscribe to: "


def ids_of(bindings: Sequence[Binding]) -> list[int]:
    """The id of each binding of one channel: equal ones have the same, different ones never."""
    taken: dict[int, Binding] = {}
    ids = []
    for binding in bindings:
        collisions, number = 0, binding.id
        while taken.setdefault(number, binding) != binding:
            collisions += 1
            number = binding.id_after(collisions)
        ids.append(number)
    return ids


def _inspected(value: Any) -> str:
    """A JSON value as the original prints it."""
    match value:
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case str():
            return quoted(value)
        case Mapping():
            return "%{" + ", ".join(f"{quoted(key)} => {_inspected(item)}" for key, item in sorted(value.items())) + "}"
        case list():
            return "[" + ", ".join(map(_inspected, value)) + "]"
    return str(value)
