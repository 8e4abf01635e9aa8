"""Replication slots: made, looked at and dropped; what they hold back, and what bounds them.

Everything here runs on an ordinary connection in autocommit mode, on PostgreSQL 10 to 18. Columns that came later
(``wal_status`` in 13, ``invalidation_reason`` in 17, …) are read through ``to_jsonb``, so that a server without them
answers with nothing instead of an error. If the connection breaks, psycopg's own ``OperationalError`` comes through.

Source: https://www.postgresql.org/docs/current/view-pg-replication-slots.html
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, errors, sql
from psycopg.rows import dict_row, tuple_row

from replication.errors import (
    InvalidSlotName,
    NoFreeReplicationSlot,
    ReplicationPrivilegeMissing,
    SlotIsActive,
    UnsupportedServer,
    WalLevelTooLow,
)
from replication.lsn import LSN
from replication.server import server_facts

logger = logging.getLogger(__name__)

PLUGIN = "pgoutput"

CREATION_SLOW_S = 5.0
"""A slot that takes longer to make waits for somebody: that is worth a word."""

HAS_FAILOVER_SLOTS = 170000

_SLOT_NAME = re.compile(r"[A-Za-z0-9_]{1,63}")

# Both may be NULL on a standby that has not replayed anything yet.
_WAL_POSITION = """
    CASE WHEN pg_is_in_recovery()
         THEN coalesce(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn(), '0/0')
         ELSE pg_current_wal_lsn() END::text
"""

_SLOTS = f"""
    SELECT to_jsonb(slot) AS slot, age(slot.catalog_xmin) AS catalog_xmin_age, {_WAL_POSITION} AS wal_position
    FROM pg_replication_slots AS slot
    WHERE %(name)s::text IS NULL OR slot.slot_name = %(name)s::text
    ORDER BY slot.slot_name
"""  # noqa: S608 - the only part put in is our own, above

# Settings that came later are NULL; -1 stands for no bound.
_LIMITS = """
    SELECT pg_size_bytes(nullif(current_setting('max_slot_wal_keep_size', true), '-1')) AS max_slot_wal_keep_bytes,
           current_setting('autovacuum_freeze_max_age')::bigint AS freeze_max_age,
           (SELECT extract(epoch FROM clock_timestamp() - min(xact_start))::float
            FROM pg_stat_activity WHERE backend_xid IS NOT NULL) AS oldest_write_s,
           (SELECT extract(epoch FROM clock_timestamp() - min(prepared))::float FROM pg_prepared_xacts) AS prepared_s
"""


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """A replication slot at one moment.

    Sizes are bytes of WAL: ``retained_bytes`` is kept on disk for this slot, ``lag_bytes`` is not acknowledged yet,
    ``safe_wal_size`` may still be written before the slot is in danger (None: no limit is set, or the slot is lost).
    ``catalog_xmin_age`` counts transactions. None stands for what the server does not know or is too old to tell.
    """

    name: str
    plugin: str | None
    slot_type: str
    database: str | None
    temporary: bool
    active: bool
    active_pid: int | None
    restart_lsn: LSN | None
    confirmed_flush_lsn: LSN | None
    retained_bytes: int | None
    lag_bytes: int | None
    catalog_xmin_age: int | None
    wal_status: str | None
    safe_wal_size: int | None
    conflicting: bool | None
    invalidation_reason: str | None
    inactive_since: datetime | None
    failover: bool | None

    @property
    def lost_because(self) -> str | None:
        """Why nobody can stream from this slot any more; None if somebody can."""
        if self.invalidation_reason:
            return f"invalidation_reason = {self.invalidation_reason}"
        if self.wal_status == "lost":
            return "wal_status = lost"
        return "conflicting with recovery" if self.conflicting else None


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a slot, and what holds it back although we read.

    ``max_slot_wal_keep_bytes`` `None`: nothing does. ``oldest_write_s`` and ``prepared_s`` are the ages of the oldest
    open transaction that has written, and of the oldest prepared one: no slot lets go of WAL from before their
    beginning. Of other roles' transactions only members of ``pg_read_all_stats`` are told.
    """

    max_slot_wal_keep_bytes: int | None
    freeze_max_age: int
    oldest_write_s: float | None
    prepared_s: float | None

    @property
    def held_back_s(self) -> float:
        """How long a transaction has been open that holds slots back; 0 if none is known."""
        return max(self.oldest_write_s or 0.0, self.prepared_s or 0.0)


def validate_slot_name(name: str) -> str:
    """The name in lower case. Raises `InvalidSlotName` for what PostgreSQL would refuse."""
    # Of the name as it stands: there are letters beyond ASCII (the Kelvin sign) whose lower case is within.
    if not _SLOT_NAME.fullmatch(name):
        raise InvalidSlotName(name)
    return name.lower()


async def slot_status(conn: AsyncConnection[Any], name: str) -> SlotStatus | None:
    """The slot of that name, or None."""
    return next(iter(await _slots(conn, name)), None)


async def all_slots(conn: AsyncConnection[Any]) -> list[SlotStatus]:
    """Every slot of the server, physical and foreign ones too, by name."""
    return await _slots(conn, None)


def unread(slots: Iterable[SlotStatus]) -> list[str]:
    """The names of those that nobody reads at the moment."""
    return [slot.name for slot in slots if not slot.active]


async def limits(conn: AsyncConnection[Any]) -> Limits:
    """What bounds slots on this server."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LIMITS)
        row = await cursor.fetchone()
        assert row is not None
        return Limits(**row)


async def create_slot(conn: AsyncConnection[Any], name: str, *, failover: bool = False) -> LSN:
    """Create a permanent pgoutput slot, and return its consistent point: what commits later, it will send.

    Waits until the transactions that write at this moment have ended, and says so when that takes long. With
    ``failover`` (PostgreSQL 17), standbys that synchronise slots keep a copy.

    Raises `InvalidSlotName`, `NoFreeReplicationSlot`, `ReplicationPrivilegeMissing`, `WalLevelTooLow` or
    `UnsupportedServer`; psycopg's ``DuplicateObject`` if the slot exists.

    Source: https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION
    """
    name = validate_slot_name(name)
    if failover and conn.info.server_version < HAS_FAILOVER_SLOTS:
        raise UnsupportedServer(
            conn.info.server_version, "cannot keep a slot through a failover", "use 17 or newer, or switch it off"
        )
    query = sql.SQL("SELECT lsn::text FROM pg_create_logical_replication_slot(%s, %s{})").format(
        sql.SQL(", failover => true" if failover else "")
    )
    waiting = asyncio.get_running_loop().call_later(CREATION_SLOW_S, _say_waiting, name)
    try:
        return LSN.parse(await _value(conn, query, [name, PLUGIN]))
    except errors.ConfigurationLimitExceeded as error:
        maximum = (await server_facts(conn)).max_replication_slots
        raise NoFreeReplicationSlot(maximum, unread(await all_slots(conn)), sqlstate=error.sqlstate) from error
    except errors.InsufficientPrivilege as error:
        raise ReplicationPrivilegeMissing((await server_facts(conn)).role, sqlstate=error.sqlstate) from error
    except errors.ObjectNotInPrerequisiteState as error:
        facts = await server_facts(conn)
        if facts.wal_level == "logical":
            raise
        raise WalLevelTooLow(facts.wal_level, sqlstate=error.sqlstate) from error
    finally:
        waiting.cancel()


def _say_waiting(name: str) -> None:
    logger.warning(
        "slot creation waits for open transactions",
        extra={"slot": name, "cure": "see the oldest xact_start in pg_stat_activity, and pg_prepared_xacts; end it"},
    )


async def emit_heartbeat(conn: AsyncConnection[Any]) -> None:
    """Put a word into the WAL that nobody broadcasts: decoding passes it, and so moves on. Nothing on a standby."""
    await conn.execute(
        "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_logical_emit_message(false, 'walcast', 'heartbeat') END"
    )


async def drop_slot(conn: AsyncConnection[Any], name: str) -> bool:
    """Drop a slot; False if there was none. Raises `SlotIsActive` while somebody reads it."""
    try:
        await conn.execute("SELECT pg_drop_replication_slot(%s)", [name])
    except errors.UndefinedObject:
        return False
    except errors.ObjectInUse as error:
        slot = await slot_status(conn, name)
        raise SlotIsActive(name, slot.active_pid if slot else None, sqlstate=error.sqlstate) from error
    return True


async def wal_position(conn: AsyncConnection[Any]) -> LSN:
    """Where the server writes its WAL now; on a standby, how far it has replayed."""
    return LSN.parse(await _value(conn, sql.SQL("SELECT") + sql.SQL(_WAL_POSITION)))


async def _slots(conn: AsyncConnection[Any], name: str | None) -> list[SlotStatus]:
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_SLOTS, {"name": name})
        return [_slot(*row) for row in await cursor.fetchall()]


def _slot(slot: dict[str, Any], catalog_xmin_age: int | None, wal_position: str) -> SlotStatus:
    now = LSN.parse(wal_position)

    def lsn(key: str) -> LSN | None:
        return LSN.parse(slot[key]) if slot[key] else None

    def behind(lsn: LSN | None) -> int | None:
        return None if lsn is None else max(0, now - lsn)

    inactive_since = slot.get("inactive_since")
    restart_lsn, confirmed_flush_lsn = lsn("restart_lsn"), lsn("confirmed_flush_lsn")
    return SlotStatus(
        name=slot["slot_name"],
        plugin=slot["plugin"],
        slot_type=slot["slot_type"],
        database=slot["database"],
        temporary=slot["temporary"],
        active=slot["active"],
        active_pid=slot["active_pid"],
        restart_lsn=restart_lsn,
        confirmed_flush_lsn=confirmed_flush_lsn,
        retained_bytes=behind(restart_lsn),
        lag_bytes=behind(confirmed_flush_lsn),
        catalog_xmin_age=catalog_xmin_age,
        wal_status=slot.get("wal_status"),
        safe_wal_size=slot.get("safe_wal_size"),
        conflicting=slot.get("conflicting"),
        invalidation_reason=slot.get("invalidation_reason"),
        inactive_since=datetime.fromisoformat(inactive_since) if inactive_since else None,
        failover=slot.get("failover"),
    )


async def _value(conn: AsyncConnection[Any], query: sql.SQL | sql.Composed, parameters: Sequence[object] = ()) -> Any:
    """The single value of a query that always gives one."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(query, parameters)
        row = await cursor.fetchone()
        assert row is not None
        return row[0]
