"""What a server says about itself and about our role."""

from __future__ import annotations

import pytest

from replication.server import server_facts
from tests.replication.connections import Connection, connected_as, name_of
from tests.servers import PostgresCluster


async def test_the_server_tells_what_it_is(conn: Connection, postgres: PostgresCluster, database: str) -> None:
    facts = await server_facts(conn)
    assert facts.version_num == conn.info.server_version
    assert facts.version.startswith(str(facts.version_num // 10000))
    assert (facts.database, facts.role, facts.wal_level) == (name_of(database), "postgres", "logical")
    assert (facts.max_replication_slots, facts.max_wal_senders, facts.in_recovery) == (20, 20, False)
    assert facts.is_superuser
    assert facts.can_replicate


@pytest.mark.parametrize(
    ("grant", "can_replicate"),
    [
        ("SELECT", False),
        ("ALTER ROLE ordinary REPLICATION", True),
        ("CREATE ROLE rds_replication; GRANT rds_replication TO ordinary", True),
    ],
)
async def test_the_privilege_to_replicate_is_seen(
    conn: Connection, postgres: PostgresCluster, role: str, *, grant: str, can_replicate: bool
) -> None:
    await conn.execute(grant.encode())
    try:
        async with connected_as(role, postgres, conn.info.dbname) as ordinary:
            facts = await server_facts(ordinary)
        assert (facts.is_superuser, facts.can_replicate) == (False, can_replicate)
    finally:
        await conn.execute("DROP ROLE IF EXISTS rds_replication")
