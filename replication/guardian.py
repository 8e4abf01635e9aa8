"""Keeps an eye on the slot while it is read: what it holds back, how far that may go, and who is to be told.

A slot that nobody reads fills the database's disk, or is lost. So every few seconds the guardian looks, says at half
and at four fifths of a budget what is going on and what helps, and lets the ring be shortened before a slot is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from psycopg import AsyncConnection

from replication import slots
from replication.errors import StreamEnded
from replication.headroom import HALF, MOST, Budget, Doublings, LagClock, Level, Steps, wal_budget
from replication.lsn import LSN
from replication.publications import PublishedTable, publication_tables
from replication.slots import Limits, SlotStatus

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at where the server's WAL ends."""
SLOTS_EVERY, TABLES_EVERY = 5, 30
"""How many looks lie between two at the slots (none when one is short of WAL), and at the published tables."""

OUR_LIMIT, SERVER_LIMIT, XID_LIMIT = "MAX_REPLICATION_LAG_MB", "max_slot_wal_keep_size", "autovacuum_freeze_max_age"

_CURES = {
    OUR_LIMIT: "changes come faster than they are published: see lag_s and the CPU of this process, or raise "
    "MAX_REPLICATION_LAG_MB; at the limit the slot is dropped, and changes are missing",
    SERVER_LIMIT: "let the replicator catch up, end transactions that have been open for long, or run: "
    "ALTER SYSTEM SET max_slot_wal_keep_size = '{twice}'; SELECT pg_reload_conf(); at the limit the slot is lost, and "
    "changes are missing",
    XID_LIMIT: "end what holds the slot back: a transaction that has been open for long, or a replicator that does not "
    "publish; dead rows of the catalogues stay until then",
}
_UNBOUNDED_CURE = (
    "bound it, so that a slot can never fill the disk: set MAX_REPLICATION_LAG_MB, or run: "
    "ALTER SYSTEM SET max_slot_wal_keep_size = '16GB'; SELECT pg_reload_conf()"
)


def budgets(
    slot: SlotStatus | None, limits: Limits | None, *, max_lag_bytes: int, lag_bytes: int | None
) -> list[Budget]:
    """Every bound that there is for a slot, and how much of it is used; what is `None` is not known.

    ``lag_bytes`` is what is not yet published, and ``max_lag_bytes`` bounds it (0: nothing does).
    """
    found = []
    if max_lag_bytes and lag_bytes is not None:
        found.append(Budget(OUR_LIMIT, max_lag_bytes, lag_bytes))
    if slot is not None and limits is not None:
        if limits.max_slot_wal_keep_bytes is not None:
            found.append(
                wal_budget(
                    max_slot_wal_keep_bytes=limits.max_slot_wal_keep_bytes,
                    safe_wal_size=slot.safe_wal_size,
                    retained_bytes=slot.retained_bytes,
                )
            )
        if slot.catalog_xmin_age is not None:
            found.append(Budget(XID_LIMIT, limits.freeze_max_age, slot.catalog_xmin_age))
    return found


class Guardian:
    """Watches one slot on an ordinary connection, and remembers what it has seen.

    ``max_lag_bytes`` bounds what is not yet published (0: nothing does). ``shorten_ring(bytes)`` lets what is published
    leave the ring until it holds back no more WAL than that, and says whether anything left.
    """

    def __init__(
        self, *, publications: Sequence[str], max_lag_bytes: int, shorten_ring: Callable[[int], bool] | None = None
    ) -> None:
        self._publications, self._max_lag_bytes, self._shorten_ring = publications, max_lag_bytes, shorten_ring
        self._steps = {name: Steps() for name in (OUR_LIMIT, SERVER_LIMIT, XID_LIMIT)}
        self._doublings = Doublings()
        self._lag = LagClock()
        self._pressed = 0
        """How often in a row the ring has been shortened."""
        self.slots: Sequence[SlotStatus] = ()
        self.tables: Sequence[PublishedTable] = ()
        self.limits: Limits | None = None
        self.wal_end: LSN | None = None
        """Where the server's WAL ended at the last look."""

    async def watch(self, conn: AsyncConnection[Any], slot_name: str, done_lsn: Callable[[], int]) -> None:
        """Look until cancelled. ``done_lsn`` says up to where everything has been published.

        Raises `StreamEnded` when the slot has become useless, and psycopg's errors when the connection breaks.
        """
        turn = 0
        while True:
            self.wal_end = await slots.wal_position(conn)
            self._lag.saw(self.wal_end, time.monotonic())
            if turn % SLOTS_EVERY == 0 or self._is_tight:
                self.limits = await slots.limits(conn)
                self.slots = await slots.all_slots(conn)
                self._judge(slot_name, done_lsn())
            if turn % TABLES_EVERY == 0:
                self.tables = await publication_tables(conn, self._publications)
            turn += 1
            await asyncio.sleep(LOOK_S)

    @property
    def _is_tight(self) -> bool:
        """Half of a budget of WAL is used, or more: it is time to look more often."""
        return any(self._steps[name].said > Level.FINE for name in (OUR_LIMIT, SERVER_LIMIT))

    def slot(self, name: str | None) -> SlotStatus | None:
        """The slot of that name as it was last seen."""
        return next((slot for slot in self.slots if slot.name == name), None)

    def lag_bytes(self, done_lsn: int) -> int | None:
        """From ``done_lsn`` to the end of the server's WAL; `None` before the first look."""
        return None if self.wal_end is None else max(0, self.wal_end - done_lsn)

    def lag_s(self, done_lsn: int) -> float:
        """How long ago the server's WAL ended at ``done_lsn``."""
        return self._lag.lag_s(done_lsn, time.monotonic())

    def budgets(self, slot_name: str | None, done_lsn: int) -> list[Budget]:
        """Every bound that there is, and how much of it is used."""
        return budgets(
            self.slot(slot_name), self.limits, max_lag_bytes=self._max_lag_bytes, lag_bytes=self.lag_bytes(done_lsn)
        )

    def left_s(self, budget: Budget, wal_bytes_per_s: float) -> float | None:
        """In how many seconds a bound on bytes is reached at this rate; `None` if nobody can tell."""
        if budget.name == XID_LIMIT or wal_bytes_per_s <= 0:
            return None
        return budget.left / wal_bytes_per_s

    def _judge(self, slot_name: str, done_lsn: int) -> None:
        slot, limits = self.slot(slot_name), self.limits
        if slot is None or limits is None:
            return  # a temporary slot of another session; or dropped, and then the stream ends by itself
        if (reason := slot.lost_because) is not None:
            raise StreamEnded(reason)
        budgets = self.budgets(slot_name, done_lsn)
        for budget in budgets:
            if budget.name == SERVER_LIMIT:
                self._save_slot(slot_name, budget, done_lsn)
            level = self._steps[budget.name].take(budget.share)
            if level is not None:
                self._say(level, slot, budget, limits)
        is_bounded = any(budget.name in (OUR_LIMIT, SERVER_LIMIT) for budget in budgets)
        if not is_bounded and self._doublings.take(slot.retained_bytes or 0):
            logger.warning(
                "slot keeps much WAL, and nothing bounds it", extra=_facts(slot, limits) | {"cure": _UNBOUNDED_CURE}
            )

    def _save_slot(self, slot_name: str, budget: Budget, done_lsn: int) -> None:
        """Let the ring hold back less and less WAL, while the slot is near its end and until it is well again."""
        if budget.share < HALF:
            self._pressed = 0
        if self._shorten_ring is None or budget.share < (HALF if self._pressed else MOST):
            return
        # What is published but kept for resuming clients is worth less than the slot. A slot lags twice: PostgreSQL
        # moves restart_lsn on only when all of what it had decoded at some earlier moment has been acknowledged.
        allowed = max(0, (budget.limit >> 2 + self._pressed) - (self.lag_bytes(done_lsn) or 0))
        has_left, self._pressed = self._shorten_ring(allowed), self._pressed + 1
        if has_left and self._pressed == 1:
            logger.warning(
                "ring shortened: the slot was about to be lost",
                extra={"slot": slot_name, "used_percent": round(budget.share * 100), "budget": budget.name},
            )

    def _say(self, level: Level, slot: SlotStatus, budget: Budget, limits: Limits) -> None:
        facts = _facts(slot, limits) | {"budget": budget.name, "used_percent": round(budget.share * 100)}
        if level is Level.FINE:
            logger.info("slot is well within its budget again", extra=facts)
            return
        facts["left"] = budget.left
        facts["cure"] = _CURES[budget.name].format(twice=f"{max(2, budget.limit * 2 >> 20)}MB")
        if budget.name == XID_LIMIT:
            logger.warning("slot keeps dead rows of the catalogues from being vacuumed", extra=facts)
        elif level is Level.HALF:
            logger.warning("slot has used half of its budget of WAL", extra=facts)
        elif level is Level.MOST:
            logger.error("slot has used four fifths of its budget of WAL", extra=facts)
        else:
            logger.error("slot is over its budget of WAL", extra=facts)


def _facts(slot: SlotStatus, limits: Limits) -> dict[str, Any]:
    held_back_s = round(limits.held_back_s)
    return {
        "slot": slot.name,
        "wal_status": slot.wal_status,
        "retained_bytes": slot.retained_bytes,
        "safe_wal_size": slot.safe_wal_size,
        "catalog_xmin_age": slot.catalog_xmin_age,
        # An open transaction pins WAL however fast we read; short ones are nothing to tell of.
        "oldest_transaction_s": held_back_s if held_back_s >= 60 else None,
    }
