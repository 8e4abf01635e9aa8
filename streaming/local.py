"""The chain inside one process: no layer lies between the ring and the hub."""

from __future__ import annotations

from replication.changes import Envelope
from replication.publisher import Tick
from streaming.hub import Hub


class LocalPublisher:
    """A replicator's `Publisher` that hands its envelopes to the hub of the same process.

    The hub's log is the replicator's ring, so every link follows the one before.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def publish(self, envelope: Envelope) -> None:
        """Deliver the envelope to this process's sockets; returns when they can take more."""
        self._hub.receive(envelope)
        if self._hub.pace.is_full:
            await self._hub.pace.room()

    async def committed(self, commit_lsn: int) -> None:
        """The hub takes changes as they come."""

    async def tick(self, tick: Tick) -> None:
        """Nothing can have been missed; only the epoch may be news."""
        self._hub.settle(tick)
