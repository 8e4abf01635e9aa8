"""The ring of recent changes: what can still be replayed. The replicator keeps one, and so does every hub."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator

from replication.changes import Chunk
from replication.errors import BelowFloor
from replication.lsn import BEGINNING, Position


class Changelog:
    """Recent chunks in order, bounded by bytes and age.

    ``floor`` is the position of the newest change that has left (or was never here); everything above it up to
    ``last`` is here. Time is told, in seconds of any steady clock.
    """

    def __init__(self, *, max_bytes: int = 64 << 20, max_age_s: float = 120.0) -> None:
        self.max_bytes, self.max_age_s = max_bytes, max_age_s
        self.floor = BEGINNING
        self.last = BEGINNING
        self.size = 0
        """Bytes kept, roughly."""
        self._chunks: deque[tuple[float, Chunk]] = deque()

    def __len__(self) -> int:
        return len(self._chunks)

    def restart(self, floor: Position) -> None:
        """Forget everything; the history goes on above ``floor``."""
        self._chunks.clear()
        self.size = 0
        self.floor = self.last = floor

    def append(self, chunk: Chunk, now: float) -> Chunk | None:
        """Keep a chunk. What is at or below ``last`` is dropped; what remains comes back, or `None`."""
        if not chunk.changes:
            return None
        above = chunk.above(self.last)
        if above is None:
            return None
        self._chunks.append((now, above))
        self.size += above.size
        self.last = above.last
        return above

    def evict(self, now: float, *, keep_above: Position) -> None:
        """Let go of what is too old or too much, but of nothing above ``keep_above`` (what is not yet published)."""
        chunks = self._chunks
        while chunks:
            kept_at, chunk = chunks[0]
            if self.size <= self.max_bytes and now - kept_at < self.max_age_s:
                break
            if (last := chunk.last) > keep_above:
                break
            chunks.popleft()
            self.size -= chunk.size
            self.floor = last

    @property
    def is_full(self) -> bool:
        """More is kept than the bound allows."""
        return self.size > self.max_bytes

    @property
    def oldest_commit_lsn(self) -> int | None:
        """The commit LSN of the oldest transaction of which something is kept."""
        return self._chunks[0][1].commit_lsn if self._chunks else None

    def since(self, position: Position) -> Iterator[Chunk]:
        """The changes above ``position``, in order. Raises `BelowFloor` if some of them have left."""
        if position < self.floor:
            raise BelowFloor(position, self.floor)
        start = bisect_right(self._chunks, position, key=lambda kept: kept[1].last)
        for index in range(start, len(self._chunks)):
            if (chunk := self._chunks[index][1].above(position)) is not None:
                yield chunk
