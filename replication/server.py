"""What a PostgreSQL server is and allows, and what our role may do there.

Everything here runs on an ordinary connection, on PostgreSQL 10 to 18.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row, tuple_row

from replication.errors import ConnectionFailed

HAS_PUBLICATIONS = 100000
DECODES_ON_STANDBY = 160000
"""The versions that these came with, counted as in ``server_version_num``."""

_FACTS = """
    SELECT current_setting('server_version_num')::int AS version_num,
           current_setting('server_version') AS version,
           current_database()::text AS database,
           current_user::text AS role,
           current_setting('wal_level') AS wal_level,
           current_setting('max_replication_slots')::int AS max_replication_slots,
           current_setting('max_wal_senders')::int AS max_wal_senders,
           pg_is_in_recovery() AS in_recovery,
           rolsuper AS is_superuser,
           -- On Amazon RDS nobody has the attribute; members of this role may replicate instead.
           rolsuper OR rolreplication OR EXISTS (
               SELECT FROM pg_roles AS rds
               WHERE rds.rolname = 'rds_replication' AND pg_has_role(rds.oid, 'MEMBER')
           ) AS can_replicate
    FROM pg_roles WHERE rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server is and allows; ``version_num`` counts as in 150018."""

    version_num: int
    version: str
    database: str
    role: str
    wal_level: str
    max_replication_slots: int
    max_wal_senders: int
    in_recovery: bool
    is_superuser: bool
    can_replicate: bool


async def server_facts(conn: AsyncConnection[Any]) -> ServerFacts:
    """Ask the server about itself and about our role."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_FACTS)
        if (row := await cursor.fetchone()) is None:
            # pg_roles always holds the current role, unless somebody dropped it under our feet.
            raise ConnectionFailed("the role of this connection does not exist any more")
        return ServerFacts(**row)


async def busy_walsenders(conn: AsyncConnection[Any]) -> int:
    """How many walsenders serve somebody."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        # Every role sees the rows of this view, if not what is in them; in pg_stat_activity it would not know them.
        await cursor.execute("SELECT count(*) FROM pg_stat_replication")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])
