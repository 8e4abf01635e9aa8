"""What the database itself says, while somebody looks at the dashboard: its slots, where its WAL ends, its tables.

One connection for all viewers of a process, and at most one question in so many seconds; it goes when nobody has asked
for a while. It works without a replicator, and while the replicator is stuck: that is when one wants to know.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from replication import slots
from replication.connection import with_address
from replication.errors import ReplicationError
from replication.lsn import LSN
from streaming.advice import advise

SLOTS_EVERY_S: Final = 2.0
TABLES_EVERY_S: Final = 15.0
IDLE_S: Final = 30.0
_LIMIT_S: Final = 5.0
_MOST_TABLES: Final = 1000

_SERVER = """
    SELECT current_database()::text AS database, current_setting('server_version') AS version,
           extract(epoch FROM clock_timestamp())::float8 AS clock,
           (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS max_slot_wal_keep_mb
"""

_TABLES = """
    SELECT namespace.nspname::text AS schema, relation.relname::text AS name,
           CASE WHEN relation.relkind = 'p' THEN 'partitioned' WHEN relation.relispartition THEN 'partition'
                ELSE 'table' END AS kind,
           relation.relpersistence = 'u' AS unlogged, relation.relreplident::text AS replica_identity,
           EXISTS (SELECT FROM pg_index WHERE indrelid = relation.oid AND indisprimary) AS has_primary_key,
           relation.relrowsecurity AS row_security, greatest(relation.reltuples, 0)::float8 AS rows,
           ARRAY(SELECT published.pubname::text FROM pg_publication_tables AS published
                 WHERE published.schemaname = namespace.nspname AND published.tablename = relation.relname
                   AND published.pubname = ANY (%(publications)s::text[]) ORDER BY 1) AS published
    FROM pg_class AS relation JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
    WHERE relation.relkind IN ('r', 'p') AND namespace.nspname NOT IN ('pg_catalog', 'information_schema')
      AND namespace.nspname !~ '^pg_(toast|temp)'
    ORDER BY 1, 2 LIMIT %(limit)s
"""

_PUBLICATIONS = "SELECT pubname::text, to_jsonb(pg_publication) FROM pg_publication WHERE pubname = ANY (%s::text[])"

_IDENTITIES = {"d": "default", "n": "nothing", "f": "full", "i": "index"}
_EVENTS = ("insert", "update", "delete", "truncate")


class Survey:
    """The database's own word. ``dsn`` is asked anew for each connection, and ``our_slot`` is marked as ours."""

    def __init__(
        self,
        dsn: Callable[[], str],
        *,
        publications: Sequence[str],
        hidden: Collection[tuple[str, str]],
        withholds_secured: bool,
        ip_version: str | None = None,
    ) -> None:
        self._dsn, self._publications, self._hidden = dsn, list(publications), frozenset(hidden)
        self._withholds_secured, self._ip_version = withholds_secured, ip_version
        self._connection: AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self._slots: tuple[float, dict[str, Any]] | None = None
        self._tables: tuple[float, dict[str, Any]] | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def slots(self) -> dict[str, Any]:
        """The server, its slots, and where its WAL ends; ``error`` and nothing else if it cannot be asked.

        At most `SLOTS_EVERY_S` old.
        """
        if self._slots is None or time.monotonic() - self._slots[0] >= SLOTS_EVERY_S:
            self._slots = time.monotonic(), await self._ask(self._read_slots)
        return self._slots[1]

    async def tables(self) -> dict[str, Any]:
        """Every table of the database with what a subscriber would receive, under ``tables``; or ``error``."""
        if self._tables is None or time.monotonic() - self._tables[0] >= TABLES_EVERY_S:
            self._tables = time.monotonic(), await self._ask(self._read_tables)
        return self._tables[1]

    async def drop_slot(self, name: str) -> bool:
        """Drop a slot that nobody reads; false if there is none. Raises a `ReplicationError` or psycopg's error."""
        async with self._lock, asyncio.timeout(_LIMIT_S):
            dropped = await slots.drop_slot(await self._connected(), name)
        self._slots = None
        return dropped

    async def close(self) -> None:
        """Let go of the connection."""
        if self._idle is not None:
            self._idle.cancel()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def _ask(self, read: Callable[[AsyncConnection[Any]], Any]) -> dict[str, Any]:
        async with self._lock:
            try:
                async with asyncio.timeout(_LIMIT_S):
                    answer: dict[str, Any] = await read(await self._connected())
                    return answer
            except (psycopg.Error, ReplicationError, OSError, TimeoutError) as error:
                with suppress(Exception):
                    await self.close()
                return {"error": str(error).strip() or f"no answer within {_LIMIT_S:g} s"}
            finally:
                self._close_when_idle()

    async def _connected(self) -> AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            dsn = await with_address(self._dsn(), self._ip_version)
            self._connection = await AsyncConnection.connect(
                make_conninfo(dsn, application_name="walcast dashboard", connect_timeout="4"), autocommit=True
            )
        return self._connection

    def _close_when_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(IDLE_S, lambda: loop.create_task(self.close()))

    async def _read_slots(self, connection: AsyncConnection[Any]) -> dict[str, Any]:
        asked_at = time.time()
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_SERVER)
            server = await cursor.fetchone()
        answered_at = time.time()
        assert server is not None
        wal_end = await slots.wal_position(connection)
        where = conninfo_to_dict(self._dsn())
        return {
            "at": answered_at,
            "database": server["database"],
            "version": server["version"].partition(" ")[0],
            "host": f"{where.get('host') or 'local socket'}:{where.get('port') or 5432}",
            "clock_offset_s": server["clock"] - (asked_at + answered_at) / 2,
            "clock_uncertainty_s": (answered_at - asked_at) / 2 + 0.001,
            "max_slot_wal_keep_bytes": _bytes_of_mb(server["max_slot_wal_keep_mb"]),
            "wal_end": int(wal_end),
            "slots": [_as_json(slot) for slot in await slots.all_slots(connection)],
        }

    async def _read_tables(self, connection: AsyncConnection[Any]) -> dict[str, Any]:
        async with connection.cursor() as cursor:
            await cursor.execute(_PUBLICATIONS, [self._publications])
            found: dict[str, dict[str, Any]] = dict(await cursor.fetchall())
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_TABLES, {"publications": self._publications, "limit": _MOST_TABLES})
            tables = []
            for row in await cursor.fetchall():
                events = [
                    event for event in _EVENTS if any(found[name].get(f"pub{event}") for name in row["published"])
                ]
                facts = row | {"replica_identity": _IDENTITIES[row["replica_identity"]], "events": events}
                advice = advise(
                    facts,
                    publications=[name for name in self._publications if name in found] or self._publications,
                    hidden=self._hidden,
                    withholds_secured=self._withholds_secured,
                )
                tables.append(facts | advice.as_json())
        missing = [name for name in self._publications if name not in found]
        return {"tables": tables, "publications": self._publications, "missing_publications": missing}


def _bytes_of_mb(megabytes: int | None) -> int | None:
    return None if megabytes is None or megabytes < 0 else megabytes << 20


def _as_json(slot: slots.SlotStatus) -> dict[str, Any]:
    facts = dataclasses.asdict(slot)
    for key, value in facts.items():
        if isinstance(value, LSN):
            facts[key] = str(value)
        elif hasattr(value, "isoformat"):
            facts[key] = value.isoformat()
    return facts | {"lost_because": slot.lost_because}
