"""The grammar of topics: which changes a topic stands for, read and printed back.

Joins do not need it: a joined topic is compared as a whole, byte for byte. It is for people and for what acts on their
behalf: the doctor, webhooks, the dashboard.
"""

from __future__ import annotations

from dataclasses import dataclass

from streaming.errors import InvalidTopic

_PREFIX = "realtime:"
_EQUALS = "=eq."


@dataclass(frozen=True, slots=True)
class Topic:
    """Everything, a schema, a table, or the rows of a table whose column has a value: as many fields as apply.

    Names and values stand as they are in the database; nothing is quoted or escaped.
    """

    schema: str | None = None
    table: str | None = None
    column: str | None = None
    value: str | None = None

    def __str__(self) -> str:
        if self.schema is None:
            return f"{_PREFIX}*"
        text = f"{_PREFIX}{self.schema}"
        if self.table is not None:
            text += f":{self.table}"
        if self.column is not None:
            text += f":{self.column}{_EQUALS}{self.value}"
        return text


def parse(topic: str) -> Topic:
    """Read ``realtime:*``, ``realtime:schema``, ``realtime:schema:table`` or ``realtime:schema:table:column=eq.value``.

    ``str(parse(topic)) == topic``. Since names are not escaped, a topic can have two readings; the first colons and the
    first ``=eq.`` are taken to separate, so a value may contain both (a table's name may not). Raises `InvalidTopic`.
    """
    if not topic.startswith(_PREFIX):
        raise InvalidTopic(topic)
    schema, *rest = topic.removeprefix(_PREFIX).split(":", 2)
    if not schema or (rest and not rest[0]):
        raise InvalidTopic(topic)
    if not rest:
        return Topic() if schema == "*" else Topic(schema)
    if len(rest) == 1:
        return Topic(schema, rest[0])
    column, equals, value = rest[1].partition(_EQUALS)
    if not column or not equals:
        raise InvalidTopic(topic)
    return Topic(schema, rest[0], column, value)


def column_heads(topic: str) -> list[str]:
    """What stands before each ``=eq.`` of a topic, the shortest first; usually one, none if it is no column topic.

    A column topic is published as ``head=eq.value``, so whoever has a change and its column's head finds the topics
    that may want it, without reading them. Names and values may hold ``=eq.`` themselves: then each is a possible head.
    """
    heads: list[str] = []
    at = topic.find(_EQUALS)
    while at >= 0:
        heads.append(topic[:at])
        at = topic.find(_EQUALS, at + len(_EQUALS))
    return heads
