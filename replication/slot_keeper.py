"""The slot that a replicator reads: found or made, and given up when it is of no use any more."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias

import psycopg

from replication import slots
from replication.connection import ReplicationConnection
from replication.errors import SlotIsActive, SlotReplacedTooOften, UnsupportedServer
from replication.lsn import LSN
from replication.options import ReplicatorSettings
from replication.preflight import Preflight

logger = logging.getLogger(__name__)

UNDECODABLE_TRIES = 3
REPLACEMENTS, REPLACEMENT_WINDOW_S = 3, 3600.0

Catalogue: TypeAlias = psycopg.AsyncConnection[Any]


class ReadySlot(NamedTuple):
    """A slot to be read: everything that commits at or above ``lsn`` is still in it."""

    name: str
    lsn: int
    is_new: bool


class SlotKeeper:
    """Finds the slot of a replicator, or makes it; makes it anew, if need be, `REPLACEMENTS` times an hour at most.

    ``published_lsn`` tells how far the changes have been published.
    """

    def __init__(self, settings: ReplicatorSettings, published_lsn: Callable[[], Awaitable[int]]) -> None:
        self._settings, self._published_lsn = settings, published_lsn
        self.replaced = 0
        """How many slots were given up since the start."""
        self._replaced_at: list[float] = []
        self._undecodable = 0

    async def ensure(self, catalogue: Catalogue, connection: ReplicationConnection, ready: Preflight) -> ReadySlot:
        """The slot to read, after ``ready`` has found what is there.

        Raises `SlotIsActive`, `SlotReplacedTooOften`, `UnsupportedServer`, and what `slots.create_slot` raises.
        """
        settings = self._settings
        if settings.slot_name is None:
            await self._be_the_only_one(catalogue)
            name = f"walcast_{secrets.token_hex(6)}"
            return ReadySlot(name, await connection.create_temporary_slot(name), is_new=True)
        if settings.slot_failover and ready.facts.version_num < slots.HAS_FAILOVER_SLOTS:
            raise UnsupportedServer(
                ready.facts.version_num,
                "cannot keep a slot through a failover, and SLOT_FAILOVER asks for it",
                "use 17 or newer, or set SLOT_FAILOVER=false",
            )
        name, slot = settings.slot_name, ready.slot
        if slot is not None and (reason := await self._useless_because(catalogue, slot)):
            await self._give_up(catalogue, name, reason)
            slot = None
        if slot is None:
            lsn = await slots.create_slot(catalogue, name, failover=settings.slot_failover)
            logger.info("slot created", extra={"slot": name, "lsn": LSN(lsn)})
            return ReadySlot(name, lsn, is_new=True)
        if settings.slot_failover and slot.failover is False and not slot.active:
            await connection.let_fail_over(name)
            logger.info("slot altered: standbys may keep a copy", extra={"slot": name})
        return ReadySlot(name, slot.confirmed_flush_lsn or 0, is_new=False)

    async def was_moved(self, catalogue: Catalogue, slot: ReadySlot) -> bool:
        """Whether its reader until now has moved the slot since `ensure` has seen it."""
        if slot.is_new:
            return False
        status = await slots.slot_status(catalogue, slot.name)
        return ((status.confirmed_flush_lsn if status is not None else None) or 0) != slot.lsn

    async def lag_reason(self, catalogue: Catalogue, known_lsn: int = 0) -> str | None:
        """Why the slot lags too far behind to be read on; `None` if it does not.

        What the ring holds back does not count: the limit is for what is not yet published. That is at least
        ``known_lsn``.
        """
        limit = self._settings.max_lag_bytes
        if not limit:
            return None
        published = max(await self._published_lsn(), known_lsn)
        lag_bytes = await slots.wal_position(catalogue) - published
        return f"lag of {lag_bytes} bytes is over MAX_REPLICATION_LAG_MB" if lag_bytes > limit else None

    def undecodable(self) -> None:
        """The server could not decode a change, although preflight found the publications."""
        self._undecodable += 1

    def decoded(self) -> None:
        """The server goes on decoding."""
        self._undecodable = 0

    async def _be_the_only_one(self, catalogue: Catalogue) -> None:
        # A permanent slot admits one reader; temporary ones have random names, so a lock named after the publications
        # does the same. It goes with the connection.
        if not self._settings.exclusive:
            return
        cursor = await catalogue.execute(
            "SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", ["walcast", self._settings.record_name]
        )
        if await cursor.fetchone() != (True,):
            raise SlotIsActive(self._settings.record_name)

    async def _useless_because(self, catalogue: Catalogue, slot: slots.SlotStatus) -> str | None:
        """Why an existing slot is to be made anew; `None` if it is to be read."""
        if slot.active:
            return None  # whoever reads it is in charge
        if slot.lost_because is not None:
            return slot.lost_because
        if self._undecodable >= UNDECODABLE_TRIES:
            # PostgreSQL reads the publications as they were when the change was made, and then ours was not there: one
            # that was dropped and made again leaves changes that no session can ever decode.
            return "the publication was missing when changes were made that are still to be read"
        return await self.lag_reason(catalogue, slot.confirmed_flush_lsn or 0)

    async def _give_up(self, catalogue: Catalogue, name: str, reason: str) -> None:
        now = time.monotonic()
        self._replaced_at = [at for at in self._replaced_at if now - at < REPLACEMENT_WINDOW_S]
        if len(self._replaced_at) >= REPLACEMENTS:
            raise SlotReplacedTooOften(name, reason, REPLACEMENTS)
        self._replaced_at.append(now)
        self._undecodable = 0
        self.replaced += 1
        logger.error("slot dropped and made anew: changes are missing", extra={"slot": name, "reason": reason})
        await slots.drop_slot(catalogue, name)
