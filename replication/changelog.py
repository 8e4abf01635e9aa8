"""The ring of recent changes: what can still be replayed. The replicator keeps one, and so does every hub."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from replication.changes import Chunk, Table
from replication.errors import BelowFloor
from replication.lsn import BEGINNING, Position

_COMPACT_AT = 1024
_NEAR = 8
_relation = attrgetter("relation")


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What a transaction too large for the ring has left behind: its changes above ``after``, up to ``last``, are gone.

    They were changes of ``relations`` and of no other table, so only who needs one of these has lost anything.
    """

    after: Position
    last: Position
    relations: frozenset[Table]

    @property
    def commit_lsn(self) -> int:
        """Of its transaction."""
        return self.last.commit_lsn


Item: TypeAlias = Chunk | Tombstone


class _Kept(NamedTuple):
    last: Position
    at: float
    item: Item


class Changelog:
    """Recent chunks in order, bounded by bytes, age, and the WAL that the server has to keep for them.

    ``floor`` is the position of the newest change that has left (or was never here); everything above it up to
    ``last`` is here, but for what the tombstones tell of. Time is told, in seconds of any steady clock.

    The oldest leave first. But a transaction that by itself takes more than half of ``max_bytes`` buries its own
    beginning: what others wrote before it stays, and can be replayed to all who do not read its tables.
    """

    def __init__(
        self, *, max_bytes: int = 64 << 20, max_age_s: float = 120.0, max_wal_bytes: int | None = None
    ) -> None:
        self.max_bytes, self.max_age_s, self.max_wal_bytes = max_bytes, max_age_s, max_wal_bytes
        self.floor = BEGINNING
        self.last = BEGINNING
        self.size = 0
        """Bytes kept, roughly."""
        self._kept: list[_Kept] = []
        self._head = 0
        """Where ``_kept`` begins: what stands before has left, and is let go of many at a time."""
        self._newest_size = 0
        """Bytes kept of the newest transaction."""

    def __len__(self) -> int:
        return len(self._kept) - self._head

    def restart(self, floor: Position) -> None:
        """Forget everything; the history goes on above ``floor``."""
        self._kept, self._head = [], 0
        self.size = self._newest_size = 0
        self.floor = self.last = floor

    def cut(self, switch_lsn: int) -> None:
        """The history goes on at ``switch_lsn`` in another way: forget what commits there or above."""
        start = Position(switch_lsn, 0, 0)
        if self.last <= start:
            return
        if self.floor >= start:
            self.restart(start)
            return
        end = bisect_left(self._kept, start, lo=self._head, key=_last)
        self.size -= sum(_size(kept.item) for kept in self._kept[end:])
        del self._kept[end:]
        self.last = self._kept[-1].last if len(self) else self.floor
        self._newest_size = 0  # it is complete, and was never too large

    def append(self, chunk: Chunk, now: float) -> Chunk | None:
        """Keep a chunk. What is at or below ``last`` is dropped; what remains comes back, or `None`."""
        if not chunk.changes:
            return None
        above = chunk.above(self.last)
        if above is None:
            return None
        if above.commit_lsn != self.last.commit_lsn:
            self._newest_size = 0
        self.last = above.last
        self._kept.append(_Kept(self.last, now, above))
        self.size += above.size
        self._newest_size += above.size
        return above

    def bury(self, tombstone: Tombstone, now: float) -> None:
        """Take note that changes which follow ``last`` are not to be had any more, of which tables."""
        if tombstone.last > self.last:
            self._kept.append(_Kept(tombstone.last, now, tombstone))
            self._newest_size = 0
            self.last = tombstone.last

    def evict(self, now: float, *, keep_above: Position, wal_end: int = 0) -> None:
        """Let go of what is too old or too much, but of nothing above ``keep_above`` (what is not yet published).

        ``wal_end`` is how far the server's WAL has come: it keeps all of it for what commits above our oldest.
        """
        wal_start = wal_end - self.max_wal_bytes if self.max_wal_bytes is not None else 0
        while len(self):
            last, kept_at, _ = self._kept[self._head]
            if last > keep_above:
                break
            if now - kept_at >= self.max_age_s or last.commit_lsn < wal_start:
                self._drop_oldest()
            elif self.size > self.max_bytes:
                if not self._shrink_newest(now, keep_above):
                    self._drop_oldest()
            else:
                break

    def shorten(self, wal_start: int, *, keep_above: Position) -> bool:
        """Let go of what commits below ``wal_start``, so that the server can forget its WAL; whether there was any."""
        floor = self.floor
        while len(self) and (last := self._kept[self._head].last).commit_lsn < wal_start and last <= keep_above:
            self._drop_oldest()
        return self.floor > floor

    @property
    def is_full(self) -> bool:
        """More is kept than the bound allows."""
        return self.size > self.max_bytes

    def age_s(self, now: float) -> float:
        """How long the oldest of what is kept has been here; 0 if nothing is."""
        return now - self._kept[self._head].at if len(self) else 0.0

    @property
    def oldest_commit_lsn(self) -> int | None:
        """The commit LSN of the oldest transaction of which something is kept."""
        oldest = self._oldest_chunk()
        return oldest.last.commit_lsn if oldest is not None else None

    @property
    def recorded_floor(self) -> Position:
        """The floor of whoever fills a ring again from `oldest_commit_lsn`: tombstones at the head are not repeated."""
        floor = self.floor
        for kept in self._snapshot():
            if isinstance(kept.item, Chunk):
                break
            floor = kept.last
        return floor

    def since(self, position: Position, needs: Callable[[Table], bool] | None = None) -> Iterator[Chunk]:
        """The changes above ``position``, in order.

        Raises `BelowFloor`, at once, if some of them have left: those that are ``needs``, or (`None`) any.
        """
        kept = self._above(position)
        for _, _, item in kept:
            if isinstance(item, Tombstone) and (needs is None or any(map(needs, item.relations))):
                raise BelowFloor(position, item.last)
        return (chunk for _, _, item in kept if isinstance(item, Chunk) and (chunk := item.above(position)) is not None)

    def walk(self, position: Position) -> Iterator[Item]:
        """The same, with the tombstones where they stand. Raises `BelowFloor`, at once."""
        kept = self._above(position)
        return (above for _, _, item in kept if (above := _above(item, position)) is not None)

    def _above(self, position: Position) -> Sequence[_Kept]:
        if position < self.floor:
            raise BelowFloor(position, self.floor)
        # Mostly it is the newest that are asked for: they are found without a look at old ones.
        kept, start = self._kept, len(self._kept)
        near = max(self._head, start - _NEAR)
        while start > near and kept[start - 1].last > position:
            start -= 1
        if start == near:
            start = bisect_right(kept, position, lo=self._head, hi=near, key=_last)
        return kept[start:]

    def _snapshot(self) -> Iterator[_Kept]:
        kept = self._kept
        return (kept[index] for index in range(self._head, len(kept)))

    def _oldest_chunk(self) -> _Kept | None:
        return next((kept for kept in self._snapshot() if isinstance(kept.item, Chunk)), None)

    def _drop_oldest(self) -> None:
        last, _, item = self._kept[self._head]
        self.size -= _size(item)
        if last.commit_lsn == self.last.commit_lsn:
            self._newest_size -= min(_size(item), self._newest_size)
        self.floor = last
        self._kept[self._head] = _GONE
        self._head += 1
        if self._head >= _COMPACT_AT and self._head * 2 >= len(self._kept):
            self._kept, self._head = self._kept[self._head :], 0

    def _shrink_newest(self, now: float, keep_above: Position) -> bool:
        """Put the newest transaction's oldest chunks under its tombstone, if it is too large to be kept whole."""
        if self._newest_size * 2 <= self.max_bytes:
            return False
        kept, commit_lsn = self._kept, self.last.commit_lsn
        start = bisect_left(kept, commit_lsn, lo=self._head, key=_commit_lsn)
        after = kept[start - 1].last if start > self._head else self.floor
        relations: set[Table] = set()
        end, size = start, self.size
        while end < len(kept) and kept[end].last <= keep_above:
            item = kept[end].item
            if isinstance(item, Tombstone):
                after = item.after if end == start else after
                relations |= item.relations
            elif size <= self.max_bytes:
                break
            else:
                relations.update(relation.table for relation in set(map(_relation, item.changes)))
                size -= item.size
            end += 1
        if size == self.size:
            return False
        self._newest_size -= self.size - size
        self.size = size
        tombstone = Tombstone(after, kept[end - 1].last, frozenset(relations))
        kept[start:end] = [_Kept(tombstone.last, now, tombstone)]
        return True


def _last(kept: _Kept) -> Position:
    return kept.last


def _commit_lsn(kept: _Kept) -> int:
    return kept.last.commit_lsn


def _size(item: Item) -> int:
    return item.size if isinstance(item, Chunk) else 0


def _above(item: Item, position: Position) -> Item | None:
    if isinstance(item, Chunk):
        return item.above(position)
    if item.last <= position:
        return None
    return item if item.after >= position else Tombstone(position, item.last, item.relations)


_GONE = _Kept(BEGINNING, 0.0, Tombstone(BEGINNING, BEGINNING, frozenset()))
