"""From pgoutput messages to chunks of changes; remembers the relations and types that the stream announces."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from struct import Struct

from replication import pgoutput
from replication.changes import CHANGE_OVERHEAD, TRUNCATE, Change, Chunk, Column, Relation
from replication.copy_both import XLOG_DATA, XLOG_DATA_HEADER, unpack_start_lsn
from replication.errors import PgOutputError, ProtocolViolation, UnknownRelation
from replication.facts import TableFacts
from replication.lsn import LSN, Position
from replication.record import OWN_TABLES

_INSERT, _UPDATE, _DELETE, _RELATION, _BEGIN, _COMMIT = b"IUDRBC"
_OID = slice(XLOG_DATA_HEADER + 1, XLOG_DATA_HEADER + 5)
_OVERHEAD = CHANGE_OVERHEAD - XLOG_DATA_HEADER
_BEGIN_FRAME, _COMMIT_FRAME = Struct("!25xBQqI"), Struct("!25xBxQQ8x")
_END_OF_TIME = 1 << 57
"""Microseconds that are certainly before the year 9999."""
_new_tuple = tuple.__new__  # a NamedTuple's own constructor takes twice as long


class Assembler:
    """Feed it the stream, frame by frame; it hands out chunks.

    ``type_names`` maps the OIDs of built-in types to their names (the others are announced by the stream).
    ``hidden`` names tables (``(schema, table)``) whose changes are left out. A chunk is handed out when its transaction
    ends or when it holds ``max_rows`` changes or ``max_bytes``; `take` hands out what is there before that.
    """

    def __init__(
        self,
        type_names: Mapping[int, str],
        *,
        hidden: Collection[tuple[str, str]] = (),
        max_rows: int = 5000,
        max_bytes: int = 1 << 20,
    ) -> None:
        self._type_names = dict(type_names)
        self._relations: dict[int, Relation | None] = {}
        # Most rows follow one of the same table: its relation need not be looked up again.
        self._row_oid: bytes | None = None
        self._row_relation: Relation | None = None
        self._hidden = hidden
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._begin: pgoutput.Begin | None = None
        self._changes: list[Change] = []
        self._size = 0
        self._lsn, self._ordinal = 0, 0
        self.end_lsn = 0
        """Where the newest complete transaction ends; the place to go on from."""
        self.new_relations: list[Relation] = []
        """Announced since somebody last emptied this: the catalogue has not been asked about them."""

    @property
    def position(self) -> Position:
        """Of the newest change of the open transaction, though it could not be read."""
        return Position(self.open_commit_lsn or 0, self._lsn, self._ordinal)

    @property
    def idle(self) -> bool:
        """No transaction is open."""
        return self._begin is None

    @property
    def open_commit_lsn(self) -> int | None:
        """The commit LSN of the open transaction."""
        return None if self._begin is None else self._begin.final_lsn

    def feed(self, start_lsn: int, data: bytes) -> Chunk | None:
        """Take the payload of one XLogData that starts at ``start_lsn``; a chunk comes back when one is complete.

        An empty chunk with ``is_last`` says that a transaction ended whose changes are already handed out (or that had
        none). Raises `PgOutputError`, `UnknownRelation` (the change is left out; the stream can go on) or
        `ProtocolViolation` (it cannot).
        """
        kind = data[0] if data else 0
        if kind == _INSERT or kind == _UPDATE or kind == _DELETE:  # noqa: PLR1714, SIM109 - twice as fast as `in`
            # Counted first: what cannot be read has its position, and the others keep theirs.
            self._ordinal = self._ordinal + 1 if start_lsn == self._lsn else 0
            self._lsn = start_lsn
            if (row_oid := data[1:5]) != self._row_oid:
                self._row_relation = self._relation(pgoutput.relation_oid(data), start_lsn)
                self._row_oid = row_oid
            if self._row_relation is not None:
                self._changes.append(_new_tuple(Change, (start_lsn, self._ordinal, self._row_relation, data)))
                self._size += len(data) + CHANGE_OVERHEAD
            if self._size >= self._max_bytes or len(self._changes) >= self._max_rows:
                return self.take()
            return None
        if kind == _BEGIN:
            begin = pgoutput.decode_begin(data)
            if self._begin is not None:
                raise ProtocolViolation("a transaction began inside another", LSN(start_lsn))
            self._begin, self._lsn, self._ordinal = begin, 0, 0
            return None
        if kind == _COMMIT:
            lsn, end_lsn = pgoutput.decode_commit(data)
            if self._begin is None or lsn != self._begin.final_lsn:
                raise ProtocolViolation("a commit came that belongs to no transaction", LSN(start_lsn))
            chunk = self.take() or self._chunk([], 0)
            chunk.is_last = True
            self._begin, self.end_lsn = None, end_lsn
            return chunk
        try:
            message = pgoutput.decode(data)
        except PgOutputError:
            if kind == _RELATION:
                # What follows belongs to a relation that we do not know; not to what it was before.
                self._row_oid = None
                self._relations.pop(int.from_bytes(data[1:5]), None)
            raise
        match message:
            case pgoutput.Relation() as relation:
                self._row_oid = None
                remembered = self._relations[relation.oid] = self._remember(relation)
                if remembered is not None:
                    self.new_relations.append(remembered)
            case pgoutput.Type(oid=oid, name=name):
                self._type_names[oid] = name
            case pgoutput.Truncate(relation_oids=oids):
                for oid in oids:
                    self._truncate(start_lsn, oid)
            case _:
                pass  # Origin and LogicalMessage carry nothing that is broadcast.
        return None

    def feed_rows(self, frames: Sequence[bytes], start: int) -> tuple[int, Chunk | None]:
        """Take the frames from ``start`` on as long as they are row changes of the table before: most are.

        They are taken as `feed` takes their payloads, in half the time. Where the first one stands that is for `feed`
        (or for somebody else) comes back, and a chunk if one is complete.
        """
        row_oid, relation, changes, size = self._row_oid, self._row_relation, self._changes, self._size
        lsn, ordinal, number = self._lsn, self._ordinal, start
        for frame in frames[start : start + self._max_rows - len(changes)]:
            # Behind the header of an XLogData: the kind, and the relation's OID.
            if frame[_OID] != row_oid or frame[0] != XLOG_DATA or frame[XLOG_DATA_HEADER] not in pgoutput.ROW_KINDS:
                break
            (start_lsn,) = unpack_start_lsn(frame)
            ordinal = ordinal + 1 if start_lsn == lsn else 0
            lsn = start_lsn
            number += 1
            if relation is not None:
                changes.append(_new_tuple(Change, (start_lsn, ordinal, relation, frame[XLOG_DATA_HEADER:])))
                size += len(frame) + _OVERHEAD
                if size >= self._max_bytes:
                    break
        self._lsn, self._ordinal, self._size = lsn, ordinal, size
        is_complete = number > start and (size >= self._max_bytes or len(changes) >= self._max_rows)
        return number, self.take() if is_complete else None

    def feed_commit(self, frames: Sequence[bytes], start: int) -> Chunk | None:
        """Take three frames that are a whole transaction with one row change of the table before: most commits are.

        They are taken as `feed` takes their payloads, in half the time. `None`: they are something else, for `feed`.
        """
        begin, row, commit = frames[start : start + 3]
        if (
            row[_OID] != self._row_oid
            or row[XLOG_DATA_HEADER] not in pgoutput.ROW_KINDS
            or len(begin) != _BEGIN_FRAME.size
            or len(commit) != _COMMIT_FRAME.size
            or not begin[0] == row[0] == commit[0] == XLOG_DATA
            or self._begin is not None
        ):
            return None
        kind, final_lsn, microseconds, xid = _BEGIN_FRAME.unpack(begin)
        end_kind, lsn, end_lsn = _COMMIT_FRAME.unpack(commit)
        (start_lsn,) = unpack_start_lsn(row)
        size = len(row) + _OVERHEAD
        if kind != _BEGIN or end_kind != _COMMIT or lsn != final_lsn or not start_lsn:
            return None
        if size >= self._max_bytes or self._max_rows <= 1 or not 0 <= microseconds < _END_OF_TIME:
            return None
        self._lsn, self._ordinal, self.end_lsn = start_lsn, 0, end_lsn
        changes = []
        if self._row_relation is not None:
            changes.append(_new_tuple(Change, (start_lsn, 0, self._row_relation, row[XLOG_DATA_HEADER:])))
        committed_at = pgoutput.POSTGRES_EPOCH + timedelta(microseconds=microseconds)
        return Chunk(final_lsn, committed_at, xid, changes, is_last=True, size=size if changes else 0)

    @property
    def relations(self) -> list[Relation]:
        """The relations that changes come of, as they were announced last."""
        return [relation for relation in self._relations.values() if relation is not None]

    def renew(self, relation: Relation, facts: TableFacts) -> None:
        """What comes from now on belongs to a relation with these facts, if ``relation`` still stands."""
        if self._relations.get(relation.oid) is relation:
            self._row_oid = None
            self._relations[relation.oid] = replace(relation, facts=facts)

    def take(self) -> Chunk | None:
        """Hand out the changes that are waiting, or `None`. Everything is committed: it may be published."""
        if not self._changes:
            return None
        chunk = self._chunk(self._changes, self._size)
        self._changes, self._size = [], 0
        return chunk

    def _truncate(self, lsn: int, oid: int) -> None:
        self._ordinal = self._ordinal + 1 if lsn == self._lsn else 0
        self._lsn = lsn
        if (relation := self._relation(oid, lsn)) is not None:
            self._changes.append(Change(lsn, self._ordinal, relation, TRUNCATE))
            self._size += len(TRUNCATE) + CHANGE_OVERHEAD

    def _chunk(self, changes: list[Change], size: int) -> Chunk:
        if self._begin is None:
            raise ProtocolViolation("a change came outside a transaction", LSN(self._lsn))
        committed_at: datetime = self._begin.committed_at
        return Chunk(self._begin.final_lsn, committed_at, self._begin.xid, changes, size=size)

    def _relation(self, oid: int, lsn: int) -> Relation | None:
        try:
            return self._relations[oid]
        except KeyError:
            raise UnknownRelation(oid, LSN(lsn)) from None

    def _remember(self, relation: pgoutput.Relation) -> Relation | None:
        if relation.name in OWN_TABLES or (relation.schema, relation.name) in self._hidden:
            return None
        columns = tuple(
            Column(c.name, self._type_names.get(c.type_oid, str(c.type_oid)), c.type_oid, c.type_modifier, c.is_key)
            for c in relation.columns
        )
        return Relation(relation.oid, relation.schema, relation.name, relation.replica_identity, columns)
