"""What a replicator knows of its stream and decides: what comes is kept, published, recorded, and then forgotten."""

from __future__ import annotations

from dataclasses import dataclass, replace

from replication.assembler import Assembler
from replication.changelog import Changelog, Tombstone
from replication.changes import Chunk, Envelope
from replication.copy_both import PrimaryKeepalive
from replication.errors import BelowFloor
from replication.lsn import BEGINNING, Position
from replication.progress import Progress
from replication.publisher import Tick
from replication.record import Identity, Record, Reunion, continue_history

MEET_AGAIN_BYTES = 1 << 20
STEP_BYTES, STEP_S = 64 << 10, 10.0
"""Where nothing is published, the server is told to forget so much WAL at a time, or what there is after so long."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How a new connection goes on: with ``record``, which is another one than was known (``was``) if it ``is_news``.

    ``begins_anew``: nobody holds what came before. ``keeps_ring``: what is in memory belongs to it, but for what
    commits above ``switch_lsn``, if there is one.
    """

    record: Record
    was: Record | None
    keeps_ring: bool
    switch_lsn: int | None
    ancestors: tuple[tuple[str, int], ...]
    wal_lsn: int
    """How far the server has come already."""

    @property
    def is_news(self) -> bool:
        """It is another epoch: to be saved before anything of it is published."""
        return self.was is None or self.record.epoch != self.was.epoch

    @property
    def begins_anew(self) -> bool:
        """Earlier positions do not hold in it."""
        return self.was is None or self.record.epoch.generation != self.was.epoch.generation


class History:
    """One stream from the first connection on, through all others. ``changelog`` is its ring.

    The order is everything: `enter`, then `begin` (after saving what `Entry.is_news`), then for what comes `keep`,
    `waiting`, `published`; now and then `due_record`, and when that is saved, `recorded`, which moves ``flushed_lsn``:
    the server is told of no more than that.
    """

    def __init__(self, changelog: Changelog, *, permanent: bool) -> None:
        self.changelog = changelog
        self.record: Record | None = None
        self.progress = Progress(permanent=permanent)
        self.assembler: Assembler | None = None
        self.resume_lsn = 0
        """Where to begin to stream: at the newest complete transaction, which we then meet again and so know that the
        history is the same one; or at its end, if it is large; 0 leaves it to the slot."""
        self.ended_lsn: int | None = None
        """The commit LSN of the newest transaction that has ended, until the publisher has been told."""
        self.flushed_lsn = 0
        """What the server may be told to forget."""
        self._permanent = permanent
        self._newest_bytes = 0
        """Of the transaction that is being read."""
        self._ancestors: tuple[tuple[str, int], ...] = ()
        self._wal_lsn = 0
        self._reunion: Reunion | None = None
        self._saved: Record | None = None
        self._saved_at = float("-inf")

    @property
    def known(self) -> Record:
        """The record, once there has been a connection."""
        assert self.record is not None
        return self.record

    @property
    def epoch(self) -> str:
        """The epoch of the stream; empty before the first connection."""
        return str(self.record.epoch) if self.record else ""

    # A connection

    def enter(self, stored: Record | None, identity: Identity, *, slot_lsn: int, slot_is_new: bool, now: int) -> Entry:
        """Decide how a connection goes on; ``stored`` is the record as it was last saved, by whomever."""
        ours, record = self.record, stored
        if ours is not None and (record is None or not record.is_ahead_of(ours)):
            record = ours
        else:
            ours = None  # another replicator has published more meanwhile: its record counts, and our ring is old
        entered = continue_history(record, identity, slot_lsn=slot_lsn, slot_is_new=slot_is_new, now=now)
        entered = replace(entered, acknowledged_lsn=max(entered.acknowledged_lsn, slot_lsn))
        keeps_ring = ours is not None and entered.epoch.generation == ours.epoch.generation
        switch_lsn = None
        if ours is not None and keeps_ring and entered.epoch != ours.epoch:
            switch_lsn = dict(identity.switches)[ours.epoch.timeline]
        ancestors = tuple((str(replace(entered.epoch, timeline=older)), lsn) for older, lsn in identity.switches)
        return Entry(entered, record, keeps_ring, switch_lsn, ancestors, identity.wal_lsn)

    def begin(self, entry: Entry, assembler: Assembler, *, slot_lsn: int) -> None:
        """Go on as decided; ``slot_lsn`` is where the slot stands."""
        if not entry.keeps_ring:
            self.changelog.restart(entry.record.floor)
        elif entry.switch_lsn is not None:
            # A standby was promoted: what commits above the switch never was, and we cannot have acknowledged it.
            self.changelog.cut(entry.switch_lsn)
        if not entry.keeps_ring or entry.switch_lsn is not None:
            self.resume_lsn, self.ended_lsn, self.flushed_lsn = 0, None, 0
            self.progress = Progress(permanent=self._permanent)
        self.record, self._ancestors, self.assembler = entry.record, entry.ancestors, assembler
        self._wal_lsn = entry.wal_lsn
        self._newest_bytes = 0
        self._reunion = Reunion(entry.record, max(slot_lsn, self.resume_lsn))
        self.progress.reconnected()

    # What comes, and where it goes

    def keep(self, chunk: Chunk, now: float, today: int) -> bool:
        """Take what the assembler hands out. False if it shows that the server's history is not the recorded one.

        Then a new generation has begun (with ``today``, in seconds since 1970), and the chunk is its first.
        """
        reunion = self._reunion
        agrees = reunion is None or not reunion.contradicted_by(chunk.commit_lsn, chunk.xid, chunk.committed_at)
        if not agrees:
            self._break_with_the_past(chunk.commit_lsn, today)
        self.changelog.append(chunk, now)
        self._newest_bytes += chunk.size
        if chunk.is_last and self.assembler is not None:
            if self._newest_bytes:
                is_small = self._newest_bytes <= MEET_AGAIN_BYTES
                self.resume_lsn = chunk.commit_lsn if is_small else self.assembler.end_lsn
            self.ended_lsn, self._newest_bytes = chunk.commit_lsn, 0
            self.progress.transaction_published(self.assembler.end_lsn)
        return agrees

    def heard(self, keepalive: PrimaryKeepalive, now: float, today: int) -> bool:
        """Take a keepalive. False as for `keep`."""
        idle = self.assembler is not None and self.assembler.idle
        self.progress.heard(keepalive, idle=idle, now=now)
        agrees = not idle or self._reunion is None or not self._reunion.missed_at(keepalive.wal_end)
        if not agrees:
            self._break_with_the_past(keepalive.wal_end, today)
        return agrees

    def _break_with_the_past(self, lsn: int, today: int) -> None:
        record, start = self.known, Position(lsn, 0, 0)
        epoch = replace(record.epoch, generation=max(today, record.epoch.generation + 1))
        self.record = Record(epoch, start, start, acknowledged_lsn=record.acknowledged_lsn)
        self._ancestors = ()
        self.changelog.restart(start)

    def waiting(self) -> Envelope | None:
        """What is to be published next; `None` if there is nothing new, or the ring is being filled again."""
        record = self.known
        if self.changelog.last <= record.published:
            return None
        chunks = list(self.changelog.since(record.published))
        return Envelope(str(record.epoch), record.published, self.changelog.last, chunks)

    def published(self, envelope: Envelope) -> None:
        """Everything up to the end of the envelope has been published."""
        last = envelope.chunks[-1]
        # Not the record as it was: what was acknowledged may have been recorded meanwhile.
        record = self.known
        self.record = Record(
            record.epoch, envelope.last, record.floor, last.xid, last.committed_at, record.acknowledged_lsn
        )

    def evict(self, now: float) -> None:
        """Let go of what the ring need not keep."""
        self.changelog.evict(now, keep_above=self.known.published, wal_end=self.progress.received_lsn)

    def shorten(self, max_wal_bytes: int) -> bool:
        """Let go of what makes the server keep more WAL than that; whether there was any."""
        published = self.record.published if self.record else BEGINNING
        return self.changelog.shorten(self.progress.received_lsn - max_wal_bytes, keep_above=published)

    # For the hubs

    def tick(self, instance: str, started: float) -> Tick:
        """Where the chain stands."""
        record, wal_end = self.known, max(self.progress.received_lsn, self._wal_lsn)
        return Tick(
            instance, self.epoch, started, self.changelog.floor, record.published, wal_end, ancestors=self._ancestors
        )

    def answer(self, epoch: str, position: Position, limit_bytes: int) -> Envelope | None:
        """What follows ``position``, about ``limit_bytes`` of it: the answer to a pull. `None` if unknown here."""
        record = self.record
        if record is None or epoch != self.epoch or position >= record.published:
            return None
        chunks: list[Chunk] = []
        size = 0
        try:
            for item in self.changelog.walk(position):
                if isinstance(item, Tombstone):
                    if not chunks:
                        return Envelope(epoch, position, item.last, [], item.relations)
                    break
                if item.first > record.published or (size and size + item.size > limit_bytes):
                    break
                chunks.append(item)
                size += item.size
        except BelowFloor:
            return None
        if chunks:
            return Envelope(epoch, position, chunks[-1].last, chunks)
        # Past a promotion nothing may lie between; but nobody knows while the ring is still being filled.
        is_filled = self.progress.received_lsn > record.published.commit_lsn
        return Envelope(epoch, position, record.published, []) if is_filled else None

    # What survives

    def due_record(self, now: float) -> Record | None:
        """What is to be saved at this moment, if anything; until it is, nothing more is acknowledged."""
        if self.record is None:
            return None
        record = replace(self.record, floor=self.changelog.recorded_floor)
        flushed_lsn = self.progress.acknowledgeable(
            oldest_kept=self.changelog.oldest_commit_lsn,
            open_commit_lsn=self.assembler.open_commit_lsn if self.assembler else None,
            unpublished=self.changelog.last > record.published,
        )
        if not self._permanent:
            self.flushed_lsn = flushed_lsn  # the slot does not survive us, so nobody will go on from the record
        else:
            step = flushed_lsn - record.acknowledged_lsn
            if record == self._saved and step < STEP_BYTES and now - self._saved_at < STEP_S:
                return None  # in a quiet database, the record would else be all that is ever written
            record = replace(record, acknowledged_lsn=max(record.acknowledged_lsn, flushed_lsn))
        return record if record != self._saved else None

    def recorded(self, record: Record, now: float) -> None:
        """It is saved: the server may be told what it says."""
        self._saved, self._saved_at = record, now
        if self.record is not None and self.record.epoch == record.epoch and self._permanent:
            self.record = replace(self.record, acknowledged_lsn=record.acknowledged_lsn)
            self.flushed_lsn = max(self.flushed_lsn, record.acknowledged_lsn)
