"""Following the chain: what a hub has of it, and what to do with what comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from replication.changelog import Changelog, Tombstone
from replication.changes import Chunk, Envelope, Table
from replication.lsn import BEGINNING, Position
from replication.publisher import Tick
from replication.record import Epoch

OUTDATED_S = 10.0
"""So long after the last tick of a later epoch, those of an earlier one are not believed: a replicator that has been
cut off from the database, or the one of a primary that has been replaced, may go on ticking for a while."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """These changes are new, and nothing is missing before them. They are in the log."""

    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class Pull:
    """Something is missing: ask for what follows ``have``."""

    epoch: str
    have: Position


@dataclass(frozen=True, slots=True)
class Gap:
    """What followed ``have`` cannot be had any more: tell those who joined; the chain goes on above ``floor``.

    ``relations`` are the tables of what is missing; `None` if that is not known.
    """

    have: Position
    floor: Position
    relations: frozenset[Table] | None = None


Step: TypeAlias = Deliver | Pull | Gap


class Chain:
    """One hub's place in the chain. Everything up to ``have`` is in ``log`` (as far as its bounds allow).

    An envelope that ends at or below ``have`` is dropped; of one that follows something at or below ``have``, what is
    above ``have`` is new; any other shows a hole, and what fills it is pulled. Nothing is held back: what is above a
    hole is in the replicator's ring.
    """

    def __init__(self, log: Changelog) -> None:
        self.log = log
        self.epoch = ""
        self.have = BEGINNING
        self.tick: Tick | None = None
        """The newest one."""
        self._ticked_at = float("-inf")
        self._target = BEGINNING
        self.silent_up_to = BEGINNING
        """What comes up to here fills the log, and is delivered to nobody."""

    @property
    def level(self) -> bool:
        """Nothing is known to be missing."""
        return bool(self.epoch) and self.have >= self._target

    def holds(self, epoch: str, position: Position) -> bool:
        """Whether a position of ``epoch`` is one of the history that this chain tells."""
        return self.tick is not None and self.tick.holds(epoch, position)

    def offer(self, envelope: Envelope, now: float) -> list[Step]:
        """Take an envelope, pushed or pulled; before the first tick nobody knows where the chain stands."""
        if envelope.epoch != self.epoch:
            return []  # an old history's, or one whose tick is still to come
        self._target = max(self._target, envelope.last)
        if envelope.last <= self.have:
            return []
        if envelope.prev > self.have:
            return [Pull(self.epoch, self.have)]
        steps = self._take_missing(envelope, now) if envelope.missing else self._take_chunks(envelope, now)
        self.have = envelope.last
        self.log.evict(now, keep_above=self.have)
        return steps if self.level else [*steps, Pull(self.epoch, self.have)]

    def _take_chunks(self, envelope: Envelope, now: float) -> list[Step]:
        new = []
        for chunk in envelope.chunks:
            kept = self.log.append(chunk, now)
            if kept is not None and (loud := kept.above(self.silent_up_to)) is not None:
                new.append(loud)
        return [Deliver(new)] if new else []

    def _take_missing(self, envelope: Envelope, now: float) -> list[Step]:
        self.log.bury(Tombstone(self.have, envelope.last, envelope.missing), now)
        return [Gap(self.have, envelope.last, envelope.missing)] if envelope.last > self.silent_up_to else []

    def settle(self, tick: Tick, now: float) -> list[Step]:
        """Take a tick: the start, a new history, a lost last envelope, and what has left the ring show in it."""
        if self._is_outdated(tick, now):
            return []
        before = self.have
        is_gap = self._enter(tick) if tick.epoch != self.epoch else False
        if self.have < tick.floor:
            is_gap = is_gap or tick.floor > self.silent_up_to
            self.have = tick.floor
            self.log.restart(tick.floor)
        self.tick, self._ticked_at = tick, now
        self._target = max(self._target, tick.published)
        self.log.evict(now, keep_above=self.have)
        steps: list[Step] = [Gap(before, self.have)] if is_gap else []
        return steps if self.level else [*steps, Pull(self.epoch, self.have)]

    def _is_outdated(self, tick: Tick, now: float) -> bool:
        if tick.epoch == self.epoch or now - self._ticked_at > OUTDATED_S:
            return False
        try:
            told, ours = Epoch.parse(tick.epoch), Epoch.parse(self.epoch)
        except ValueError:
            return False
        same = (told.system_id, told.source) == (ours.system_id, ours.source)
        return same and told.order < ours.order

    def _enter(self, tick: Tick) -> bool:
        """Follow another epoch from now on; whether something that followed ``have`` cannot be had in it."""
        is_first, switch_lsn = not self.epoch, tick.switch_lsn(self.epoch)
        self.epoch, self._target = tick.epoch, tick.published
        if switch_lsn is not None:
            # A standby was promoted. What commits above the switch never was, in the history that goes on.
            start, have = Position(switch_lsn, 0, 0), self.have
            self.log.cut(switch_lsn)
            self.have, self.silent_up_to = min(have, start), min(self.silent_up_to, start)
            return have > start
        self.have = tick.floor
        self.log.restart(tick.floor)
        # The ring fills our log; those who have joined meanwhile asked for what comes, not for what was.
        self.silent_up_to = tick.published if is_first else BEGINNING
        return not is_first
