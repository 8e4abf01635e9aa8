"""The end of a replicator whose channel layer swallows cancellations, as redis-py may."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import psycopg
import pytest

from replication.changes import Envelope
from replication.options import ReplicatorSettings
from replication.publisher import Tick
from replication.replicator import Replicator
from tests.replication.corridor import MemoryStore, Recorder, execute


class Swallowing(Recorder):
    """Does not come back from one call until that is cancelled; and then as if nothing had been."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where
        self.inside = asyncio.Event()

    async def tick(self, tick: Tick) -> None:
        """Where the chores are."""
        await self._swallow("tick")

    async def publish(self, envelope: Envelope) -> None:
        """Where the loop is."""
        await self._swallow("publish")

    async def _swallow(self, where: str) -> None:
        if where == self._where and not self.inside.is_set():
            self.inside.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


@pytest.mark.parametrize("where", ["tick", "publish"])
async def test_a_replicator_ends_although_a_cancellation_was_swallowed(database18: str, where: str) -> None:
    await execute(database18, "CREATE TABLE t (id int)")
    slot = str(psycopg.conninfo.conninfo_to_dict(database18)["dbname"])
    publisher = Swallowing(where)
    replicator = Replicator(
        ReplicatorSettings(database18, ["pub"], slot, create_publication=True), publisher, MemoryStore()
    )
    task = asyncio.create_task(replicator.run())
    async with asyncio.timeout(20):
        await replicator.streaming.wait()
        await execute(database18, "INSERT INTO t VALUES (1)")
        await publisher.inside.wait()
    task.cancel()
    ended, _ = await asyncio.wait([task], timeout=10)
    try:
        assert ended, "the replicator goes on"
    finally:
        task.cancel()
        await asyncio.wait([task])
