"""A change as the current protocol's clients read it: the ``data`` of a `postgres_changes` message.

Rendered once for each shape that somebody wants; the ids of the bindings are put around it for each audience.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import orjson

from replication.changes import EVENTS, Relation
from replication.facts import ColumnFacts, guessed_facts
from replication.pgoutput import UNCHANGED_TOAST, Row, Text
from streaming.bindings import Shape
from streaming.plain import PlainRows
from streaming.values import names_and_converters, plain_converter

TOO_LARGE = "Error 413: Payload Too Large"
UNREADABLE = "Error 500: The change cannot be read"
KEPT_BYTES = 64
"""Of a record that is too large, values whose JSON is no longer than this are sent."""

_INSERT, _UPDATE, _DELETE, _TRUNCATE = b"IUDT"


@lru_cache(maxsize=16)
def current_commit_timestamp(committed_at: datetime) -> str:
    """``2024-01-02T03:04:05.678Z``: milliseconds, the rest cut off."""
    return f"{committed_at:%Y-%m-%dT%H:%M:%S}.{committed_at.microsecond // 1000:03d}Z"


def facts_of(relation: Relation) -> Sequence[ColumnFacts]:
    """What is known about the relation's columns; where the catalogue was not asked, what their types' names tell."""
    if relation.facts is not None:
        return relation.facts.columns
    return [ColumnFacts(column.type_name, guessed_facts(column.type_name)) for column in relation.columns]


class Images:
    """The rows of one change as filters and payloads see them: ``new`` and ``old``, `None` where there is none.

    Texts in the order of the relation's columns. What was not resent is `UNCHANGED_TOAST`, unless the whole old row
    has it; columns outside the replica identity are `UNCHANGED_TOAST` in ``old``: they are not there. ``sees_old``:
    ``old`` is a whole row.
    """

    __slots__ = ("new", "old", "sees_old", "unchanged")

    def __init__(self, relation: Relation, row: Row) -> None:
        kind, new, old, old_kind = row
        self.unchanged: list[int] = []
        if kind == _UPDATE and new is not None and UNCHANGED_TOAST in new:
            self.unchanged = [index for index, text in enumerate(new) if text is UNCHANGED_TOAST]
            if old is not None and old_kind == "O":
                new = list(new)  # whoever shares the row sees what was sent
                for index in self.unchanged:
                    new[index] = old[index]
        self.new: list[Text] | None = new
        self.sees_old = old is not None and old_kind == "O"
        if kind == _INSERT or self.sees_old:
            self.old: list[Text] | None = old
        else:
            # The key is sent only if it has changed.
            key = old if old is not None else new
            assert key is not None
            self.old = [
                text if column.is_key else UNCHANGED_TOAST for text, column in zip(key, relation.columns, strict=True)
            ]


class CurrentRelation:
    """What the payloads of one relation in one shape have in common, encoded once."""

    def __init__(self, relation: Relation, shape: Shape, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lists_unchanged = shape.lists_unchanged
        facts = facts_of(relation)
        selected = shape.select
        if selected is not None:
            key = relation.facts.primary_key if relation.facts is not None else ()
            selected = selected | set(key)
        shown = [index for index, column in enumerate(relation.columns) if selected is None or column.name in selected]
        self._shown = shown if len(shown) < len(relation.columns) else None
        self._all_names = [column.name for column in relation.columns]
        self._names = [relation.columns[index].name for index in shown]
        self._converters = names_and_converters(
            [(relation.columns[index].name, facts[index].type) for index in shown],
            numbers_as_text=shape.numbers_as_text,
        )
        columns = [{"name": relation.columns[index].name, "type": facts[index].declared} for index in shown]
        self._columns = b'{"columns":' + orjson.dumps(columns) + b',"commit_timestamp":"'
        self._stamp, self._head = "", b""
        names = orjson.dumps(relation.schema), orjson.dumps(relation.name)
        self._tails = {
            kind: b',"schema":%b,"table":%b,"type":"%b"' % (*names, event.encode()) for kind, event in EVENTS.items()
        }
        self._plain = self._plain_rows(relation, facts, shape)

    def data(self, kind: int, images: Images | None, commit_timestamp: str) -> bytes:
        """The object without its closing brace, so that a position may follow. ``images`` `None`: of a TRUNCATE.

        ``kind`` is the first byte of the change's data. Raises `ValueError` for a row of another width.
        """
        head = self._head_at(commit_timestamp)
        if images is None:
            return head + b"null" + self._tails[kind]
        new, old = images.new, images.old
        if old is None and new is not None:
            record = self._json(new)
            if len(record) <= self._max_bytes:
                return head + b'null,"record":' + record + self._tails[kind]
        record = b"" if new is None else b',"record":' + self._json(new)
        old_record = b"" if old is None else b',"old_record":' + self._json(old)
        errors = b"null"
        if len(record) + len(old_record) > self._max_bytes:
            errors = orjson.dumps([TOO_LARGE])
            record = b"" if new is None else b',"record":' + self._short_json(new)
            old_record = b"" if old is None else b',"old_record":' + self._short_json(old)
        unchanged = b""
        if self._lists_unchanged and kind == _UPDATE:
            names = set(self._names)
            listed = [name for index in images.unchanged if (name := self._all_names[index]) in names]
            unchanged = b',"unchanged":' + orjson.dumps(listed)
        return head + errors + old_record + record + unchanged + self._tails[kind]

    def _plain_rows(self, relation: Relation, facts: Sequence[ColumnFacts], shape: Shape) -> PlainRows | None:
        """The quick way for rows of plain texts; `None` if there is none."""
        if self._shown is not None or not facts:
            return None
        between, converters, closing = [], [], b'null,"record":{'
        for number, (column, known) in enumerate(zip(relation.columns, facts, strict=True), start=1):
            found = plain_converter(known.type, numbers_as_text=shape.numbers_as_text)
            if found is None:
                return None
            is_quoted, convert = found
            between.append(closing + orjson.dumps(column.name) + (b':"' if is_quoted else b":"))
            closing = b'",' if is_quoted else b","
            if convert is not None:
                converters.append((number, convert))
        return PlainRows(between, closing[:-1] + b"}" + self._tails[_INSERT], converters)

    def plain_data(self, data: bytes, commit_timestamp: str) -> bytes | None:
        """What `data` gives for an INSERT of plain texts (see `LegacyRelation.plain_payload`), or `None`."""
        if self._plain is None or len(data) > self._max_bytes:
            return None
        plain = self._plain.one(data, self._head_at(commit_timestamp))
        return None if plain is None else plain[0]

    def plain_data_of_all(self, rows: Sequence[bytes], commit_timestamps: Sequence[str]) -> list[bytes] | None:
        """The same for some INSERTs, if all are of plain texts; else `None`."""
        if self._plain is None or max(map(len, rows)) > self._max_bytes:
            return None
        heads = {stamp: self._head_at(stamp) for stamp in set(commit_timestamps)}
        return self._plain.many(rows, [heads[stamp] for stamp in commit_timestamps])

    def _head_at(self, commit_timestamp: str) -> bytes:
        if commit_timestamp != self._stamp:
            self._stamp = commit_timestamp
            self._head = self._columns + commit_timestamp.encode() + b'","errors":'
        return self._head

    def unreadable(self, kind: int, commit_timestamp: str) -> bytes:
        """The object, without its closing brace, for a change whose row cannot be read: the client hears of it."""
        record = b"" if kind in (_DELETE, _TRUNCATE) else b',"record":{}'
        old_record = b"" if kind in (_INSERT, _TRUNCATE) else b',"old_record":{}'
        errors = orjson.dumps([UNREADABLE])
        return self._head_at(commit_timestamp) + errors + old_record + record + self._tails[kind]

    def _json(self, texts: list[Text]) -> bytes:
        return orjson.dumps(self._values(texts))

    def _short_json(self, texts: list[Text]) -> bytes:
        return orjson.dumps(
            {name: value for name, value in self._values(texts).items() if len(orjson.dumps(value)) <= KEPT_BYTES}
        )

    def _values(self, texts: list[Text]) -> dict[str, Any]:
        values: list[Any] = list(texts) if self._shown is None else [texts[index] for index in self._shown]
        for index, convert in self._converters:
            if isinstance(text := values[index], str):
                with suppress(ValueError):  # a composite altered since the catalogue was asked: it stays text
                    values[index] = convert(text)
        record = dict(zip(self._names, values, strict=True))
        if UNCHANGED_TOAST in values:
            return {name: value for name, value in record.items() if value is not UNCHANGED_TOAST}
        return record
