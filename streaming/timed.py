"""How long changes take from their commit to the replicator."""

from __future__ import annotations

import time

from replication.changes import Envelope
from replication.publisher import Publisher, Tick
from streaming.latency import CommitClock, Histogram


class TimedPublisher:
    """A replicator's `Publisher` that notes how long changes took from their commit to here, and hands them on."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher, self.clock = publisher, CommitClock()
        self.latency = Histogram()

    async def publish(self, envelope: Envelope) -> None:
        """Hand the envelope on."""
        now = time.time()
        await self._publisher.publish(envelope)
        if envelope.chunks:
            committed_at = envelope.chunks[-1].committed_at.timestamp()
            self.latency.observe(self.clock.since(committed_at, now))

    async def committed(self, commit_lsn: int) -> None:
        """Hand it on."""
        await self._publisher.committed(commit_lsn)

    async def tick(self, tick: Tick) -> None:
        """Hand it on."""
        await self._publisher.tick(tick)
