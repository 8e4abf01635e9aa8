"""A change as the JSON a client reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache

import orjson

from replication.changes import Change, Relation
from replication.pgoutput import UNCHANGED_TOAST, Delete, Insert, Tuple, Update, Value

Text = str | None


def legacy_commit_timestamp(committed_at: datetime) -> str:
    """``2019-07-18T17:02:35Z``: whole seconds, the fraction cut off, as the legacy protocol has it."""
    return committed_at.strftime("%Y-%m-%dT%H:%M:%SZ") if committed_at.year >= 1000 else committed_at.isoformat()


_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)([+-]\d\d(?::\d\d)?)?(?::\d\d)?", re.ASCII)


def legacy_timestamp(text: str) -> str:
    """``2021-02-16 23:47:47.51+05:30`` as ``2021-02-16T23:47:47.51+05:30``; UTC and no zone become ``Z``.

    What is no plain date of the years 1 to 9999 (infinity, BC) stays PostgreSQL's text.
    """
    if not (match := _TIMESTAMP.fullmatch(text)):
        return text
    day, time, zone = match.groups()
    if zone is None or zone in ("+00", "-00", "+00:00"):
        return f"{day}T{time}Z"
    return f"{day}T{time}{zone if len(zone) > 3 else zone + ':00'}"


class LegacyRelation:
    """What the legacy payloads of one relation have in common, encoded once.

    Values are the text of PostgreSQL's output functions, NULL is null, an unchanged TOAST value the text
    ``unchanged_toast``; only ``timestamp`` and ``timestamptz`` are turned into ISO 8601.
    """

    def __init__(self, relation: Relation) -> None:
        self.names = [column.name for column in relation.columns]
        self._converters: list[tuple[int, Callable[[str], str]]] = [
            (index, legacy_timestamp)
            for index, column in enumerate(relation.columns)
            if column.type_name in ("timestamp", "timestamptz")
        ]
        columns = [
            {
                "flags": ["key"] if column.is_key else [],
                "name": column.name,
                "type": column.type_name,
                "type_modifier": column.type_modifier,
            }
            for column in relation.columns
        ]
        self._columns = b'{"columns":' + orjson.dumps(columns) + b","
        schema, table = orjson.dumps(relation.schema), orjson.dumps(relation.name)
        self._tails = {
            event: b',"schema":' + schema + b',"table":' + table + b',"type":"' + event.encode() + b'"}'
            for event in ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
        }

    def texts(self, row: Tuple) -> list[Text]:
        """The values of a row as the payload shows them. Raises `UnicodeDecodeError` for what is not UTF-8."""
        texts = [None if value is None else _text(value) for value in row]
        for index, convert in self._converters:
            if index < len(row) and (text := texts[index]) is not None and row[index] is not UNCHANGED_TOAST:
                texts[index] = convert(text)
        return texts

    def truncate(self, commit_timestamp: str) -> bytes:
        """The payload of a TRUNCATE."""
        return b'{"commit_timestamp":"' + commit_timestamp.encode() + b'"' + self._tails["TRUNCATE"]

    def payload(self, change: Insert | Update | Delete, commit_timestamp: str) -> tuple[bytes, list[Text], Tuple]:
        """The payload of a row change; with it the texts and the raw values of the row that column topics look at."""
        stamp = b'"commit_timestamp":"' + commit_timestamp.encode() + b'"'
        names = self.names
        if isinstance(change, Delete):
            texts = self.texts(change.old)
            old = orjson.dumps(dict(zip(names, texts, strict=True)))
            return self._columns + stamp + b',"old_record":' + old + self._tails["DELETE"], texts, change.old
        texts = self.texts(change.new)
        record = b',"record":' + orjson.dumps(dict(zip(names, texts, strict=True)))
        if isinstance(change, Insert):
            return self._columns + stamp + record + self._tails["INSERT"], texts, change.new
        # Only the whole old row is shown; the old key that PostgreSQL sends when it changes is not.
        old = b"{}"
        if change.old is not None and change.old_kind == "O":
            old = orjson.dumps(dict(zip(names, self.texts(change.old), strict=True)))
        return self._columns + stamp + b',"old_record":' + old + record + self._tails["UPDATE"], texts, change.new


def _text(value: Value) -> str:
    return value.decode() if isinstance(value, bytes) else "unchanged_toast"


@lru_cache(maxsize=4096)
def legacy_relation(relation: Relation) -> LegacyRelation:
    """The `LegacyRelation` of a relation, made at most once."""
    return LegacyRelation(relation)


def legacy_payload(change: Change, committed_at: datetime) -> bytes:
    """The whole legacy payload of one change, as JSON. Raises `PgOutputError` or `ValueError` if it cannot be read."""
    shared, stamp = legacy_relation(change.relation), legacy_commit_timestamp(committed_at)
    row = change.decode()
    return shared.truncate(stamp) if row is None else shared.payload(row, stamp)[0]
