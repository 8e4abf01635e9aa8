"""The row that survives us: the history we follow, how far it is published, and what has left the ring."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from replication.lsn import Position

OWN_TABLES = frozenset({"walcast_replication_record"})
"""The record may live in the very database that is streamed. It is never broadcast: each save would make another."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The history in which positions hold.

    ``generation`` rises whenever the slot is made anew or the server's history went back.
    """

    system_id: int
    timeline: int
    generation: int
    source: str
    """A short hash of the database and its publications."""

    def __str__(self) -> str:
        return f"{self.system_id:x}-{self.timeline:x}-{self.generation:x}-{self.source}"

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
    """What a fresh process must know; ``xid`` and ``committed_at`` are those of the published transaction."""

    epoch: Epoch
    published: Position
    floor: Position
    xid: int = 0
    committed_at: datetime | None = None

    def is_ahead_of(self, other: Record) -> bool:
        """Whether it tells of a newer history, or of more of the same one."""
        return (self.epoch.generation, self.published) > (other.epoch.generation, other.published)


@dataclass(frozen=True, slots=True)
class Identity:
    """What IDENTIFY_SYSTEM and the settings say about the history behind a connection."""

    system_id: int
    timeline: int
    wal_lsn: int
    source: str


def continue_history(
    record: Record | None, identity: Identity, *, slot_lsn: int, slot_is_new: bool, now: int
) -> Record:
    """Decide in which epoch the stream of a slot is, and where it goes on.

    ``slot_lsn`` is the slot's confirmed flush LSN (of a new one, its consistent point), ``now`` the time in whole
    seconds: generations rise with it, even when the record was lost.

    A record of the same history is continued. A new slot, another database cluster, or a server whose WAL ends before
    what was already published begins a new generation: nobody may believe that it holds what came before.
    """
    start = Position(slot_lsn, 0, 0)
    if record is not None:
        generation = max(now, record.epoch.generation + 1)
        same = (record.epoch.system_id, record.epoch.source) == (identity.system_id, identity.source)
        went_back = identity.wal_lsn < record.published.commit_lsn
        if same and not slot_is_new and not went_back:
            if record.epoch.timeline == identity.timeline:
                return record
            return replace(record, epoch=replace(record.epoch, timeline=identity.timeline))
    else:
        generation = now
    epoch = Epoch(identity.system_id, identity.timeline, generation, identity.source)
    return Record(epoch, start, start)


def contradicts(record: Record, commit_lsn: int, xid: int, committed_at: datetime) -> bool:
    """Whether a transaction of the stream stands where the record knows another one: history went back unseen."""
    return (
        record.committed_at is not None
        and commit_lsn == record.published.commit_lsn
        and (xid, committed_at) != (record.xid, record.committed_at)
    )
