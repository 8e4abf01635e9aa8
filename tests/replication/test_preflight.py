"""Servers that are ready to stream, and servers that are not, each in its own way."""

from __future__ import annotations

import pytest
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from replication import slots
from replication.errors import (
    NoFreeReplicationSlot,
    NoFreeWalSender,
    PublicationMissing,
    ReplicationPrivilegeMissing,
    SlotWrongDatabase,
    SlotWrongPlugin,
    UnsupportedServer,
    WalLevelTooLow,
)
from replication.lookup import type_names
from replication.preflight import Preflight, preflight
from replication.publications import publication_tables
from replication.server import server_facts
from tests.replication.connections import Connection, connected_as, name_of
from tests.servers import PostgresCluster, postgres_versions


async def _preflight(
    conn: Connection, *, slot_name: str | None = None, publications: tuple[str, ...] = ("pub",), create: bool = False
) -> Preflight:
    return await preflight(conn, publications=publications, slot_name=slot_name, create_publication=create)


async def test_a_server_that_is_ready_passes(conn: Connection, slot_name: str) -> None:
    await conn.execute("CREATE PUBLICATION pub")
    checked = await _preflight(conn, slot_name=slot_name.upper())
    assert checked.slot is None
    assert checked.facts == await server_facts(conn)

    await slots.create_slot(conn, slot_name)

    checked = await _preflight(conn, slot_name=slot_name.upper())
    assert checked.slot is not None
    assert checked.slot.name == slot_name


async def test_every_missing_publication_is_named(conn: Connection, database: str) -> None:
    await conn.execute("CREATE PUBLICATION here")
    with pytest.raises(PublicationMissing) as caught:
        await _preflight(conn, publications=("gone", "here", 'Odd "one"'))
    assert caught.value.publications == ("gone", 'Odd "one"')
    assert caught.value.database == name_of(database)
    await conn.execute(str(caught.value).split("with: ")[1].encode())  # the cure cures
    await _preflight(conn, publications=("gone", "here", 'Odd "one"'))


async def test_missing_publications_are_made_when_asked(conn: Connection) -> None:
    await conn.execute("CREATE TABLE t (id int)")
    checked = await _preflight(conn, publications=("one", "Two"), create=True)
    assert checked.created_publications == ("one", "Two")
    assert [table.name for table in await publication_tables(conn, ["Two"])] == ["t"]


async def test_a_role_that_may_not_create_the_publication_is_told_what_to_run(
    conn: Connection, postgres: PostgresCluster, database: str, role: str
) -> None:
    await conn.execute("ALTER ROLE ordinary REPLICATION")
    async with connected_as(role, postgres, name_of(database)) as ordinary:
        with pytest.raises(PublicationMissing, match="a superuser creates it with") as caught:
            await _preflight(ordinary, create=True)
    assert caught.value.sqlstate == "42501"


async def test_a_role_without_replication_is_named(postgres: PostgresCluster, database: str, role: str) -> None:
    async with connected_as(role, postgres, name_of(database)) as ordinary:
        with pytest.raises(ReplicationPrivilegeMissing, match='ALTER ROLE "ordinary" REPLICATION'):
            await _preflight(ordinary)


async def test_a_slot_of_another_plugin_is_not_ours(conn: Connection, slot_name: str) -> None:
    await conn.execute("SELECT pg_create_physical_replication_slot(%s)", [slot_name])
    try:
        with pytest.raises(SlotWrongPlugin) as caught:
            await _preflight(conn, slot_name=slot_name, create=True)
    finally:
        await slots.drop_slot(conn, slot_name)
    assert (caught.value.slot_name, caught.value.plugin) == (slot_name, None)


async def test_a_slot_of_another_database_is_not_ours(
    conn: Connection, postgres: PostgresCluster, slot_name: str
) -> None:
    await slots.create_slot(conn, slot_name)
    async with await AsyncConnection.connect(postgres.dsn("template1"), autocommit=True) as elsewhere:
        await elsewhere.execute("CREATE PUBLICATION pub")
        try:
            with pytest.raises(SlotWrongDatabase) as caught:
                await _preflight(elsewhere, slot_name=slot_name)
        finally:
            await elsewhere.execute("DROP PUBLICATION pub")
    assert (caught.value.slot_database, caught.value.database) == (slot_name, "template1")


async def test_an_active_slot_passes_and_tells_who_reads_it(conn: Connection, slot_name: str) -> None:
    await conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [slot_name])
    checked = await _preflight(conn, slot_name=slot_name, create=True)
    assert checked.slot is not None
    assert checked.slot.active_pid == conn.info.backend_pid


async def test_row_factories_of_the_connection_do_not_matter(conn: Connection, slot_name: str) -> None:
    conn.row_factory = dict_row
    await slots.create_slot(conn, slot_name)
    assert (await server_facts(conn)).database == slot_name
    assert await slots.slot_status(conn, slot_name)
    assert await slots.wal_position(conn)
    assert await type_names(conn)
    await _preflight(conn, create=True)
    assert await publication_tables(conn, ["pub"]) == []


# Servers that are not ready


async def test_without_a_free_slot_the_unused_ones_are_named() -> None:
    settings = {"max_replication_slots": "1"}
    with PostgresCluster(postgres_versions()[18], settings) as cluster:
        async with await AsyncConnection.connect(cluster.dsn(), autocommit=True) as conn:
            await slots.create_slot(conn, "forgotten")
            with pytest.raises(NoFreeReplicationSlot, match="'forgotten'") as caught:
                await _preflight(conn, slot_name="walcast", create=True)
            assert (caught.value.maximum, caught.value.inactive) == (1, ("forgotten",))
            with pytest.raises(NoFreeReplicationSlot) as caught:
                await _preflight(conn, slot_name=None, create=True)  # a temporary slot takes one as well
            with pytest.raises(NoFreeReplicationSlot) as caught:
                await slots.create_slot(conn, "walcast")
            assert caught.value.sqlstate == "53400"
            assert (await _preflight(conn, slot_name="forgotten")).slot is not None


async def test_without_wal_for_decoding_the_setting_is_named() -> None:
    with PostgresCluster(postgres_versions()[18], {"wal_level": "replica"}) as cluster:
        async with await AsyncConnection.connect(cluster.dsn(), autocommit=True) as conn:
            with pytest.raises(WalLevelTooLow, match="ALTER SYSTEM SET wal_level = logical") as caught:
                await _preflight(conn)
            assert caught.value.wal_level == "replica"
            with pytest.raises(WalLevelTooLow) as caught:
                await slots.create_slot(conn, "walcast")
            assert caught.value.sqlstate == "55000"
            await conn.execute("ALTER SYSTEM SET wal_level = logical")
        cluster.restart()
        async with await AsyncConnection.connect(cluster.dsn(), autocommit=True) as conn:
            await _preflight(conn, create=True)


async def test_without_walsenders_the_setting_is_named() -> None:
    with PostgresCluster(postgres_versions()[18], {"max_wal_senders": "0"}) as cluster:
        async with await AsyncConnection.connect(cluster.dsn(), autocommit=True) as conn:
            with pytest.raises(NoFreeWalSender, match="max_wal_senders") as caught:
                await _preflight(conn, create=True)
            assert caught.value.maximum == 0


async def test_a_slot_that_fell_too_far_behind_tells_that_it_is_lost() -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    with PostgresCluster(postgres_versions()[18], settings) as cluster:
        async with await AsyncConnection.connect(cluster.dsn(), autocommit=True) as conn:
            await slots.create_slot(conn, "slow")
            healthy = await slots.slot_status(conn, "slow")
            assert healthy is not None
            assert healthy.lost_because is None
            assert healthy.safe_wal_size is not None
            for _ in range(3):
                await conn.execute("SELECT pg_switch_wal(), pg_logical_emit_message(false, 'fill', repeat('x', 100))")
            await conn.execute("CHECKPOINT")

            status = await slots.slot_status(conn, "slow")

            assert status is not None
            assert (status.wal_status, status.safe_wal_size) == ("lost", None)
            assert status.lost_because == "invalidation_reason = wal_removed"
            checked = await _preflight(conn, slot_name="slow", create=True)  # what to do about it is not its business
            assert checked.slot is not None
            assert checked.slot.lost_because == status.lost_because


@pytest.mark.parametrize("version", [18, 15])
async def test_a_standby_decodes_from_16_on_but_takes_no_publication(version: int) -> None:
    if version not in postgres_versions():
        pytest.skip(f"PostgreSQL {version} is not installed")
    with PostgresCluster(postgres_versions()[version]) as cluster:
        cluster.stop()
        (cluster.data_dir / "standby.signal").touch()
        cluster.start()
        async with await AsyncConnection.connect(cluster.dsn(), autocommit=True) as conn:
            assert (await server_facts(conn)).in_recovery
            assert await slots.wal_position(conn) > 0
            assert await slots.all_slots(conn) == []
            with pytest.raises(UnsupportedServer if version < 16 else PublicationMissing):
                await _preflight(conn, create=True)
