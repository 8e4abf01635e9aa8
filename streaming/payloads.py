"""A change as the JSON a client reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache

import orjson

from replication.changes import Change, Relation
from replication.pgoutput import Row, Text
from streaming.plain import PlainRows


def legacy_commit_timestamp(committed_at: datetime) -> str:
    """``2019-07-18T17:02:35Z``: whole seconds, the fraction cut off, as the legacy protocol has it."""
    return _to_the_second(committed_at.replace(microsecond=0))


@lru_cache(maxsize=16)
def _to_the_second(committed_at: datetime) -> str:
    return committed_at.strftime("%Y-%m-%dT%H:%M:%SZ") if committed_at.year >= 1000 else committed_at.isoformat()


_INSERT, _UPDATE = b"IU"

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
        self.width = 1 + len(self.names)
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
        schema, table = orjson.dumps(relation.schema), orjson.dumps(relation.name)
        self._tails = {
            event: b',"schema":' + schema + b',"table":' + table + b',"type":"' + event.encode() + b'"}'
            for event in ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
        }
        self._plain_heads: dict[int, bytes] = {}
        self._plain = {
            kind: PlainRows(
                [
                    (b'","' if index else b'{"') + orjson.dumps(name)[1:-1] + b'":"'
                    for index, name in enumerate(self.names)
                ],
                b'"}' + self._tails[event],
                [(index + 1, _plain_timestamp) for index, _ in self._converters],
            )
            for kind, event in ((_INSERT, "INSERT"), (_UPDATE, "UPDATE"))
            if self.names
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
        self._plain_heads = {_INSERT: self._record_head, _UPDATE: self._head + b',"old_record":{},"record":'}

    def plain_payload(self, data: bytes, commit_timestamp: str) -> tuple[bytes, list[bytes]] | None:
        """What `payload` gives for an INSERT or UPDATE of plain texts, in a third of the time; `None` for other rows.

        ``data`` is the pgoutput message. The values are bytes here, behind something else (see `PlainRows.one`).
        """
        if (plain := self._plain.get(data[0] if data else 0)) is None:
            return None
        if commit_timestamp != self._stamp:
            self._set_stamp(commit_timestamp)
        return plain.one(data, self._plain_heads[data[0]])

    def plain_values(self, rows: Sequence[bytes]) -> list[bytes] | None:
        """The values of some changes of one kind, if all are of plain texts; else `None`.

        They stand one behind the other, each row's behind something else: `width` of them belong to a row.
        """
        plain = self._plain.get(rows[0][0])
        return None if plain is None else plain.split(rows)

    def plain_payloads(
        self, kind: int, values: list[bytes], numbers: Sequence[int], commit_timestamp: str
    ) -> dict[int, bytes]:
        """By their numbers the payloads of some of the rows whose values `plain_values` has found."""
        if commit_timestamp != self._stamp:
            self._set_stamp(commit_timestamp)
        if len(numbers) * self.width < len(values):
            starts = [number * self.width for number in numbers]
            values = [value for start in starts for value in values[start : start + self.width]]
        texts = self._plain[kind].join(values, [self._plain_heads[kind]] * len(numbers))
        return dict(zip(numbers, texts, strict=True))


def _plain_timestamp(text: bytes) -> bytes:
    return legacy_timestamp(text.decode()).encode()


@lru_cache(maxsize=4096)
def legacy_relation(relation: Relation) -> LegacyRelation:
    """The `LegacyRelation` of a relation, made at most once."""
    return LegacyRelation(relation)


def legacy_payload(change: Change, committed_at: datetime) -> bytes:
    """The whole legacy payload of one change, as JSON. Raises `PgOutputError` or `ValueError` if it cannot be read."""
    shared, stamp = legacy_relation(change.relation), legacy_commit_timestamp(committed_at)
    row = change.decode()
    return shared.truncate(stamp) if row is None else shared.payload(row, stamp)[0]
