"""What travels from the replicator to the hubs: changes, their relations, and the envelope that carries them.

A change keeps the bytes of its pgoutput message: the row is read where somebody watches its table, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from operator import index
from typing import NamedTuple, TypeAlias

import msgpack

from replication import pgoutput
from replication.errors import EnvelopeError
from replication.facts import TableFacts, unpack_table_facts
from replication.lsn import Position

ENVELOPE_VERSION = 2
CHANGE_OVERHEAD = 200
"""Bytes that Python adds to the data of one change in memory, roughly."""

_new_tuple = tuple.__new__  # a NamedTuple's own constructor takes twice as long

TRUNCATE = b"T"
"""The data of a change that is one table of a TRUNCATE."""

EVENTS = {ord("I"): "INSERT", ord("U"): "UPDATE", ord("D"): "DELETE", ord("T"): "TRUNCATE"}


Table: TypeAlias = tuple[str, str]
"""Schema and name."""


class Column(NamedTuple):
    """A column of a relation; ``type_name`` is ``pg_type.typname``, for domains that of the base type."""

    name: str
    type_name: str
    type_oid: int
    type_modifier: int
    is_key: bool


@dataclass(frozen=True, eq=False)
class Relation:
    """A table at one moment of its history. Altering the table makes another `Relation`; compared by identity.

    ``facts`` is what the catalogue adds (see `learn`); `None` until it has been asked.
    """

    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[Column, ...]
    facts: TableFacts | None = None

    def learn(self, facts: TableFacts) -> None:
        """Take in what the catalogue says. It has to be before anybody is shown the relation: it is not told again."""
        object.__setattr__(self, "facts", facts)

    @cached_property
    def table(self) -> Table:
        """Its schema and name: what altering it does not change."""
        return self.schema, self.name

    @property
    def is_secured(self) -> bool:
        """Row security is on, or nobody knows whether it is."""
        return self.facts is None or self.facts.row_security is not False

    @cached_property
    def packed(self) -> list[object]:
        """The form that travels in an envelope."""
        columns = [list(column) for column in self.columns]
        return [self.oid, self.schema, self.name, self.replica_identity, columns, self.facts]

    @classmethod
    def unpack(cls, packed: Sequence[object]) -> Relation:
        """The reverse of `packed`."""
        oid, schema, name, identity, columns, facts = packed
        return cls(
            oid,  # type: ignore[arg-type]
            schema,  # type: ignore[arg-type]
            name,  # type: ignore[arg-type]
            identity,  # type: ignore[arg-type]
            tuple(Column(*column) for column in columns),  # type: ignore[attr-defined]
            unpack_table_facts(facts) if facts is not None else None,  # type: ignore[arg-type]
        )

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Change(NamedTuple):
    """One INSERT, UPDATE or DELETE, or one table of a TRUNCATE.

    ``data`` is the pgoutput message (of a TRUNCATE its first byte alone).
    """

    lsn: int
    ordinal: int
    relation: Relation
    data: bytes

    @property
    def event(self) -> str:
        """INSERT, UPDATE, DELETE or TRUNCATE."""
        return EVENTS[self.data[0]]

    def decode(self) -> pgoutput.Row | None:
        """Read the row; `None` for TRUNCATE. Raises `PgOutputError`."""
        return None if self.data == TRUNCATE else pgoutput.decode_row(self.data)


@dataclass(slots=True)
class Chunk:
    """Some changes of one transaction, in order; a large transaction makes several.

    ``commit_lsn`` is where its commit record starts. ``is_last``: the transaction ends here.
    """

    commit_lsn: int
    committed_at: datetime
    xid: int
    changes: list[Change]
    is_last: bool = False
    size: int = field(default=0)
    """Bytes in memory, roughly; set by whoever fills the chunk."""

    @property
    def first(self) -> Position:
        """The position of its first change."""
        change = self.changes[0]
        return Position(self.commit_lsn, change.lsn, change.ordinal)

    @property
    def last(self) -> Position:
        """The position of its last change."""
        change = self.changes[-1]
        return _new_tuple(Position, (self.commit_lsn, change.lsn, change.ordinal))

    def above(self, position: Position) -> Chunk | None:
        """The part of it that comes after ``position``: all of it, some of it, or `None`."""
        if position.commit_lsn < self.commit_lsn or position < self.first:
            return self
        if position >= self.last:
            return None
        changes = [c for c in self.changes if (self.commit_lsn, c.lsn, c.ordinal) > position]
        return Chunk(
            self.commit_lsn, self.committed_at, self.xid, changes, self.is_last, sum(change_size(c) for c in changes)
        )


def change_size(change: Change) -> int:
    """The bytes a change takes in memory, roughly."""
    return len(change.data) + CHANGE_OVERHEAD


@dataclass(frozen=True, slots=True)
class Envelope:
    """A link of the chain: nothing lies between ``prev`` and the first change of ``chunks``.

    ``last`` is the position of the last change. ``epoch`` names the history in which the positions hold.

    The answer to a pull may have no chunks, but say what is ``missing``: between ``prev`` and ``last`` were changes of
    these tables, and of no other, that have left the ring.
    """

    epoch: str
    prev: Position
    last: Position
    chunks: list[Chunk]
    missing: frozenset[Table] = frozenset()

    def encode(self) -> bytes:
        """The bytes for the channel layer: msgpack, each relation once, rows as PostgreSQL sent them."""
        relations: dict[Relation, int] = {}
        chunks = []
        for chunk in self.chunks:
            changes = [
                (change.lsn, change.ordinal, relations.setdefault(change.relation, len(relations)), change.data)
                for change in chunk.changes
            ]
            committed_us = (chunk.committed_at - pgoutput.POSTGRES_EPOCH) // _MICROSECOND
            chunks.append((chunk.commit_lsn, committed_us, chunk.xid, chunk.is_last, changes))
        packed = (
            ENVELOPE_VERSION,
            self.epoch,
            self.prev,
            self.last,
            [relation.packed for relation in relations],
            chunks,
            sorted(self.missing),
        )
        data: bytes = msgpack.packb(packed)
        return data

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """The reverse of `encode`. Raises `EnvelopeError` for bytes that are no envelope of this version."""
        try:
            version, *fields = msgpack.unpackb(data, use_list=False)
            if version != ENVELOPE_VERSION:
                raise EnvelopeError(f"is of version {version}, this process reads version {ENVELOPE_VERSION}")
            epoch, prev, last, packed_relations, packed_chunks, missing = fields
            relations = [_interned(packed) for packed in packed_relations]
            chunks = []
            for commit_lsn, committed_us, xid, is_last, packed_changes in packed_chunks:
                changes = [
                    _new_tuple(Change, (lsn, ordinal, relations[r], row)) for lsn, ordinal, r, row in packed_changes
                ]
                committed_at = pgoutput.POSTGRES_EPOCH + committed_us * _MICROSECOND
                size = sum(map(change_size, changes))
                chunks.append(Chunk(commit_lsn, committed_at, xid, changes, is_last, size))
            if not isinstance(epoch, str):
                raise TypeError("an epoch that is no text")
            tables = frozenset((str(schema), str(name)) for schema, name in missing)
            return cls(epoch, Position(*map(index, prev)), Position(*map(index, last)), chunks, tables)
        except EnvelopeError:
            raise
        except Exception as error:  # whatever the bytes, one family of errors
            raise EnvelopeError(f"cannot be read ({type(error).__name__}: {error})") from error


_MICROSECOND = timedelta(microseconds=1)

_interned_relations: dict[object, Relation] = {}
_INTERNED_LIMIT = 4096


def _interned(packed: Sequence[object]) -> Relation:
    # Equal relations of different envelopes are one object, so that what is remembered about a relation is found again.
    relation = _interned_relations.get(packed)
    if relation is None:
        if len(_interned_relations) >= _INTERNED_LIMIT:
            _interned_relations.clear()
        relation = _interned_relations[packed] = Relation.unpack(packed)
    return relation
