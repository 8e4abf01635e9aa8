"""A change as the JSON a client reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache

import orjson

from replication.changes import Change, Relation
from replication.pgoutput import Row, Text, plain_values


def legacy_commit_timestamp(committed_at: datetime) -> str:
    """``2019-07-18T17:02:35Z``: whole seconds, the fraction cut off, as the legacy protocol has it."""
    return _to_the_second(committed_at.replace(microsecond=0))


@lru_cache(maxsize=16)
def _to_the_second(committed_at: datetime) -> str:
    return committed_at.strftime("%Y-%m-%dT%H:%M:%SZ") if committed_at.year >= 1000 else committed_at.isoformat()


_INSERT, _UPDATE = b"IU"

NOT_PLAIN = bytes(byte for byte in range(256) if byte < 0x20 or byte > 0x7E or byte in b'"\\')
"""What a JSON string cannot hold as it is, and what is not ASCII: a text without any of these is its own JSON."""

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
        self._stamp, self._head, self._record_head = "", b"", b""
        # Of a row of plain texts: what stands before each value, with a place before it and a place behind it.
        self._plain: dict[int, list[bytes]] = {}
        self._plain_size = len(self.names) + 1
        self._between = [b'","' + orjson.dumps(name)[1:-1] + b'":"' for name in self.names]
        schema, table = orjson.dumps(relation.schema), orjson.dumps(relation.name)
        self._tails = {
            event: b',"schema":' + schema + b',"table":' + table + b',"type":"' + event.encode() + b'"}'
            for event in ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
        }

    def convert(self, texts: list[Text]) -> list[Text]:
        """The values of a row as the payload shows them (in place), but for those that were not resent."""
        for index, convert in self._converters:
            if isinstance(text := texts[index], str):
                texts[index] = convert(text)
        return texts

    def _json(self, texts: list[Text]) -> bytes:
        # UNCHANGED_TOAST is an enum's member, and orjson writes its value: the text that legacy clients know. A row of
        # another width than its relation is a ValueError.
        return orjson.dumps(dict(zip(self.names, texts, strict=True)))

    def truncate(self, commit_timestamp: str) -> bytes:
        """The payload of a TRUNCATE."""
        return b'{"commit_timestamp":"' + commit_timestamp.encode() + b'"' + self._tails["TRUNCATE"]

    def payload(self, row: Row, commit_timestamp: str) -> tuple[bytes, list[Text]]:
        """The payload of a row change, and the values that column topics look at."""
        if commit_timestamp != self._stamp:
            self._set_stamp(commit_timestamp)
        kind, new, old, old_kind = row
        if new is None:
            assert old is not None
            self.convert(old)
            return self._head + b',"old_record":' + self._json(old) + self._tails["DELETE"], old
        if self._converters:
            self.convert(new)
        record = self._json(new)
        if kind == _INSERT:
            return self._record_head + record + self._tails["INSERT"], new
        # Only the whole old row is shown; the old key that PostgreSQL sends when it changes is not.
        shown_old = self._json(self.convert(old)) if old is not None and old_kind == "O" else b"{}"
        return (
            self._head + b',"old_record":' + shown_old + b',"record":' + record + self._tails["UPDATE"],
            new,
        )

    def _set_stamp(self, commit_timestamp: str) -> None:
        self._stamp = commit_timestamp
        self._head = self._columns + b'"commit_timestamp":"' + commit_timestamp.encode() + b'"'
        self._record_head = self._head + b',"record":'
        if self.names:
            for kind, head in ((_INSERT, self._record_head), (_UPDATE, self._head + b',"old_record":{},"record":')):
                parts = [b""] * (2 * self._plain_size)
                parts[1:-1:2] = [head + b"{" + self._between[0][2:], *self._between[1:]]
                parts[-1] = b'"}' + self._tails["INSERT" if kind == _INSERT else "UPDATE"]
                self._plain[kind] = parts

    def plain_payload(self, data: bytes, commit_timestamp: str) -> tuple[bytes, list[bytes]] | None:
        """What `payload` gives for an INSERT or UPDATE of plain texts, in a third of the time; `None` for other rows.

        ``data`` is the pgoutput message. Most rows are such: every value a short text of ASCII without quotes, and of
        the old row nothing was sent. JSON has these as they are, so the payload is put together without reading it. The
        values are bytes here, behind an empty first one.
        """
        values = plain_values(data)
        if values is None or len(values) != self._plain_size:
            return None
        if commit_timestamp != self._stamp:
            self._set_stamp(commit_timestamp)
        if (parts := self._plain.get(data[0])) is None:
            return None
        text = b"".join(values)
        if len(text.translate(None, NOT_PLAIN)) != len(text):
            return None
        for index, convert in self._converters:
            values[index + 1] = convert(values[index + 1].decode()).encode()
        parts = parts.copy()
        parts[::2] = values
        return b"".join(parts), values


@lru_cache(maxsize=4096)
def legacy_relation(relation: Relation) -> LegacyRelation:
    """The `LegacyRelation` of a relation, made at most once."""
    return LegacyRelation(relation)


def legacy_payload(change: Change, committed_at: datetime) -> bytes:
    """The whole legacy payload of one change, as JSON. Raises `PgOutputError` or `ValueError` if it cannot be read."""
    shared, stamp = legacy_relation(change.relation), legacy_commit_timestamp(committed_at)
    row = change.decode()
    return shared.truncate(stamp) if row is None else shared.payload(row, stamp)[0]
