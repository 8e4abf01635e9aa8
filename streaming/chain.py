"""Following the chain: what a hub has of it, and what to do with what comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from replication.changelog import Changelog
from replication.changes import Chunk, Envelope
from replication.lsn import BEGINNING, Position
from replication.publisher import Tick


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
    """What followed ``have`` cannot be had any more: tell those who joined; the chain goes on above ``floor``."""

    have: Position
    floor: Position


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
        self._target = BEGINNING
        self._silent_up_to = BEGINNING

    @property
    def level(self) -> bool:
        """Nothing is known to be missing."""
        return bool(self.epoch) and self.have >= self._target

    def offer(self, envelope: Envelope, now: float) -> list[Step]:
        """Take an envelope, pushed or pulled; before the first tick nobody knows where the chain stands."""
        if envelope.epoch != self.epoch:
            return []  # an old history's, or one whose tick is still to come
        self._target = max(self._target, envelope.last)
        if envelope.last <= self.have:
            return []
        if envelope.prev > self.have:
            return [Pull(self.epoch, self.have)]
        new = []
        for chunk in envelope.chunks:
            kept = self.log.append(chunk, now)
            if kept is not None and (loud := kept.above(self._silent_up_to)) is not None:
                new.append(loud)
        self.have = envelope.last
        steps: list[Step] = [Deliver(new)] if new else []
        return steps if self.level else [*steps, Pull(self.epoch, self.have)]

    def settle(self, tick: Tick, now: float) -> list[Step]:
        """Take a tick: the start, a new history, a lost last envelope, and what has left the ring show in it."""
        steps: list[Step] = []
        if tick.epoch != self.epoch:
            is_first, self.epoch = not self.epoch, tick.epoch
            before, self.have = self.have, tick.floor
            self.log.restart(tick.floor)
            self._target = tick.published
            if is_first:
                # The ring fills our log; those who have joined meanwhile asked for what comes, not for what was.
                self._silent_up_to = tick.published
            else:
                steps.append(Gap(before, tick.floor))
        elif self.have < tick.floor:
            steps.append(Gap(self.have, tick.floor))
            self.have = tick.floor
            self.log.restart(tick.floor)
        self._target = max(self._target, tick.published)
        self.log.evict(now, keep_above=self.have)
        return steps if self.level else [*steps, Pull(self.epoch, self.have)]
