"""The row that survives us: the history we follow, how far it is published, and what has left the ring."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from replication.lsn import Position

OWN_TABLES = frozenset({"walcast_replication_record"})
"""The record may live in the very database that is streamed. It is never broadcast: each save would make another."""


@dataclass(frozen=True)
class Epoch:
    """The history in which positions hold.

    ``generation`` rises whenever the slot is made anew or the server's history went back.
    """

    system_id: int
    timeline: int
    generation: int
    source: str
    """A short hash of the database and its publications."""

    @cached_property
    def _text(self) -> str:
        return f"{self.system_id:x}-{self.timeline:x}-{self.generation:x}-{self.source}"

    def __str__(self) -> str:
        return self._text

    @property
    def order(self) -> tuple[int, int]:
        """Which of two epochs of one server is the later one."""
        return self.generation, self.timeline

    @classmethod
    def parse(cls, text: str) -> Epoch:
        """Read what `str` printed. Raises `ValueError`."""
        system_id, timeline, generation, source = text.split("-")
        return cls(int(system_id, 16), int(timeline, 16), int(generation, 16), source)


def source_hash(database: str, publications: Sequence[str]) -> str:
    """The ``source`` of an epoch."""
    text = "\0".join([database, *sorted(publications)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Record:
    """What a fresh process must know; ``xid`` and ``committed_at`` are those of the published transaction.

    ``acknowledged_lsn`` is the most that PostgreSQL was told to forget (0: not known). A slot that stands further on
    was moved, or made anew, by somebody else.
    """

    epoch: Epoch
    published: Position
    floor: Position
    xid: int = 0
    committed_at: datetime | None = None
    acknowledged_lsn: int = 0

    def is_ahead_of(self, other: Record) -> bool:
        """Whether it tells of a newer history, or of more of the same one."""
        ours, theirs = ((record.epoch.order, record.published, record.acknowledged_lsn) for record in (self, other))
        return ours > theirs


@dataclass(frozen=True, slots=True)
class Identity:
    """What IDENTIFY_SYSTEM, TIMELINE_HISTORY and the settings say about the history behind a connection.

    ``switches`` tells for every earlier timeline at which LSN it was left.
    """

    system_id: int
    timeline: int
    wal_lsn: int
    source: str
    switches: tuple[tuple[int, int], ...] = ()


def continue_history(
    record: Record | None, identity: Identity, *, slot_lsn: int, slot_is_new: bool, now: int
) -> Record:
    """Decide in which epoch the stream of a slot is, and where it goes on.

    ``slot_lsn`` is the slot's confirmed flush LSN (of a new one, its consistent point), ``now`` the time in whole
    seconds: generations rise with it, even when the record was lost.

    A record of the same history is continued; after a promotion, as far as the new timeline shares it. A new slot, one
    that somebody else has moved on, another database cluster, or a server whose WAL ends before what was already
    published begins a new generation: nobody may believe that it holds what came before.
    """
    start = Position(slot_lsn, 0, 0)
    if record is None:
        generation = now
    else:
        generation = max(now, record.epoch.generation + 1)
        same = (record.epoch.system_id, record.epoch.source) == (identity.system_id, identity.source)
        was_moved = record.acknowledged_lsn != 0 and slot_lsn > record.acknowledged_lsn
        if same and not slot_is_new and not was_moved:
            if record.epoch.timeline == identity.timeline:
                if identity.wal_lsn >= record.published.commit_lsn:
                    return record
            elif (switch_lsn := dict(identity.switches).get(record.epoch.timeline)) is not None:
                return _switched(record, identity.timeline, switch_lsn)
    epoch = Epoch(identity.system_id, identity.timeline, generation, identity.source)
    return Record(epoch, start, start, acknowledged_lsn=slot_lsn)


def _switched(record: Record, timeline: int, switch_lsn: int) -> Record:
    """The record on the timeline that left the old one at ``switch_lsn``: what commits there or above never was."""
    switch, epoch = Position(switch_lsn, 0, 0), replace(record.epoch, timeline=timeline)
    acknowledged_lsn = min(record.acknowledged_lsn, switch_lsn)
    if record.published <= switch:
        return replace(record, epoch=epoch, acknowledged_lsn=acknowledged_lsn)
    return Record(epoch, switch, min(record.floor, switch), acknowledged_lsn=acknowledged_lsn)


def contradicts(record: Record, commit_lsn: int, xid: int, committed_at: datetime) -> bool:
    """Whether a transaction of the stream stands where the record knows another one: history went back unseen."""
    return (
        record.committed_at is not None
        and commit_lsn == record.published.commit_lsn
        and (xid, committed_at) != (record.xid, record.committed_at)
    )


class Reunion:
    """Watches a stream that is sent again for the transaction that the record knows as published.

    Another one in its place, or none, shows that history went back on the same timeline (a snapshot of the server's
    disk was restored, say) and has gone on since. ``sent_from_lsn`` is where the stream begins.
    """

    def __init__(self, record: Record, sent_from_lsn: int) -> None:
        self._record = record
        self._expected = record.committed_at is not None and sent_from_lsn <= record.published.commit_lsn

    def contradicted_by(self, commit_lsn: int, xid: int, committed_at: datetime) -> bool:
        """Whether this transaction of the stream cannot be, if the record is right."""
        if not self._expected or commit_lsn < self._record.published.commit_lsn:
            return False
        self._expected = False
        return commit_lsn != self._record.published.commit_lsn or contradicts(
            self._record, commit_lsn, xid, committed_at
        )

    def missed_at(self, wal_end: int) -> bool:
        """Whether the stream has come so far, with no transaction open, and the recorded one has not been met."""
        if not self._expected or wal_end <= self._record.published.commit_lsn:
            return False
        self._expected = False
        return True
