"""The SQL of the house, on the servers it is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from replication import slots
from replication.errors import (
    InvalidSlotName,
    NoFreeReplicationSlot,
    NoFreeWalSender,
    PublicationMissing,
    ReplicationPrivilegeMissing,
    SlotIsActive,
    SlotWrongDatabase,
    SlotWrongPlugin,
    UnsupportedServer,
    WalLevelTooLow,
)
from replication.lsn import LSN
from tests.replication.corridor import until
from tests.servers import PostgresCluster, postgres_versions

Connection = AsyncConnection[Any]

_PASSWORD = "only for tests"


@pytest.fixture
async def conn(database: str) -> AsyncIterator[Connection]:
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def slot_name(database: str) -> str:
    """As unique as the database: slots are one name space for the whole server."""
    return _name_of(database)


@pytest.fixture
def role(postgres: PostgresCluster) -> Iterator[str]:
    name = "ordinary"
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), _PASSWORD))
        yield name
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def _name_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


async def _preflight(
    conn: Connection, *, slot_name: str | None = None, publications: tuple[str, ...] = ("pub",), create: bool = False
) -> slots.Preflight:
    return await slots.preflight(conn, publications=publications, slot_name=slot_name, create_publication=create)


@asynccontextmanager
async def _connected_as(role: str, postgres: PostgresCluster, database_name: str) -> AsyncIterator[Connection]:
    dsn = postgres.dsn(database_name, user=role, password=_PASSWORD)
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


# Names


@pytest.mark.parametrize(("name", "valid"), [("walcast", "walcast"), ("Legacy_Slot", "legacy_slot"), ("0", "0")])
def test_a_slot_name_is_lowered(name: str, valid: str) -> None:
    assert slots.validate_slot_name(name) == valid


@pytest.mark.parametrize("name", ["", "a" * 64, "a-b", "a b", "slot;", "slöt", "slot\n", "K" + "\N{KELVIN SIGN}"])
def test_a_name_that_postgresql_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(InvalidSlotName) as caught:
        slots.validate_slot_name(name)
    assert caught.value.name == name


# Facts


async def test_the_server_tells_what_it_is(conn: Connection, postgres: PostgresCluster, database: str) -> None:
    facts = await slots.server_facts(conn)
    assert facts.version_num == conn.info.server_version
    assert facts.version.startswith(str(facts.version_num // 10000))
    assert (facts.database, facts.role, facts.wal_level) == (_name_of(database), "postgres", "logical")
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
        async with _connected_as(role, postgres, conn.info.dbname) as ordinary:
            facts = await slots.server_facts(ordinary)
        assert (facts.is_superuser, facts.can_replicate) == (False, can_replicate)
    finally:
        await conn.execute("DROP ROLE IF EXISTS rds_replication")


async def test_the_wal_position_moves_when_something_is_written(conn: Connection) -> None:
    before = await slots.wal_position(conn)
    await conn.execute("CREATE TABLE t (id int)")
    after = await slots.wal_position(conn)
    assert isinstance(after, LSN)
    assert after > before > 0


async def test_type_names_are_those_that_clients_know(conn: Connection) -> None:
    names = await slots.type_names(conn)
    assert {names[oid] for oid in (20, 25, 1007, 1043, 1184, 3904, 4451)} == {
        "int8",
        "text",
        "_int4",
        "varchar",
        "timestamptz",
        "int4range",
        "int4multirange",
    }
    await conn.execute("CREATE TYPE mood AS ENUM ('happy')")
    assert "mood" not in (await slots.type_names(conn)).values()


async def test_row_factories_of_the_connection_do_not_matter(conn: Connection, slot_name: str) -> None:
    conn.row_factory = psycopg.rows.dict_row
    await slots.create_slot(conn, slot_name)
    assert (await slots.server_facts(conn)).database == slot_name
    assert await slots.slot_status(conn, slot_name)
    assert await slots.wal_position(conn)
    assert await slots.type_names(conn)
    await _preflight(conn, create=True)
    assert await slots.publication_tables(conn, ["pub"]) == []


# Slots


async def test_a_slot_that_waits_for_an_open_transaction_says_so(
    conn: Connection,
    database: str,
    slot_name: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "CREATION_SLOW_S", 0.1)
    await conn.execute("CREATE TABLE t (id int)")
    async with await AsyncConnection.connect(database) as other:
        await other.execute("INSERT INTO t VALUES (1)")
        creating = asyncio.create_task(slots.create_slot(conn, slot_name))
        await until(lambda: "slot creation waits for open transactions" in caplog.text, "word of it")
        assert not creating.done()
        await other.commit()
        await asyncio.wait_for(creating, 10)
    assert caplog.text.count("slot creation waits") == 1


async def test_a_slot_is_made_seen_and_dropped(conn: Connection, slot_name: str, database: str) -> None:
    assert await slots.slot_status(conn, slot_name) is None

    consistent_point = await slots.create_slot(conn, slot_name)

    status = await slots.slot_status(conn, slot_name)
    assert status is not None
    assert (status.name, status.plugin, status.slot_type) == (slot_name, "pgoutput", "logical")
    assert (status.database, status.temporary, status.active) == (_name_of(database), False, False)
    assert (status.active_pid, status.lost_because) == (None, None)
    assert status.confirmed_flush_lsn == consistent_point
    assert status.restart_lsn is not None
    assert status.restart_lsn <= consistent_point
    assert status.catalog_xmin_age is not None
    assert status.wal_status == "reserved"
    assert await slots.drop_slot(conn, slot_name)
    assert await slots.slot_status(conn, slot_name) is None


async def test_a_new_slot_sends_what_commits_after_it_was_made(conn: Connection, slot_name: str) -> None:
    await conn.execute("CREATE TABLE t (id int)")
    await slots.create_publication(conn, "pub")
    await conn.execute("INSERT INTO t VALUES (1)")
    await slots.create_slot(conn, slot_name)
    await conn.execute("INSERT INTO t VALUES (2)")
    cursor = await conn.execute(
        "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
        " 'publication_names', 'pub')",
        [slot_name],
    )
    inserted = [data for (data,) in await cursor.fetchall() if data.startswith(b"I")]
    assert [data[-1:] for data in inserted] == [b"2"]


async def test_a_slot_holds_back_what_is_written_after_it(conn: Connection, slot_name: str) -> None:
    await slots.create_slot(conn, slot_name)
    before = await slots.wal_position(conn)
    await conn.execute("CREATE TABLE t AS SELECT repeat('x', 100) FROM generate_series(1, 1000)")
    written = await slots.wal_position(conn) - before

    status = await slots.slot_status(conn, slot_name)

    assert written > 100_000
    assert status is not None
    assert status.lag_bytes is not None
    assert status.retained_bytes is not None
    assert written <= status.lag_bytes <= status.retained_bytes


async def test_all_slots_of_the_server_are_listed(conn: Connection, slot_name: str) -> None:
    physical = f"{slot_name}_physical"
    await slots.create_slot(conn, slot_name)
    await conn.execute("SELECT pg_create_physical_replication_slot(%s)", [physical])
    await conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [f"{slot_name}_temporary"])
    try:
        listed = {slot.name: slot for slot in await slots.all_slots(conn)}
    finally:
        await slots.drop_slot(conn, physical)
    assert listed[physical].plugin is None
    assert listed[physical].database is None
    assert listed[physical].confirmed_flush_lsn is None
    assert listed[f"{slot_name}_temporary"].temporary
    assert listed[f"{slot_name}_temporary"].active_pid == conn.info.backend_pid
    assert listed[slot_name].temporary is False


async def test_dropping_a_slot_that_is_not_there_is_no_error(conn: Connection, slot_name: str) -> None:
    assert await slots.drop_slot(conn, slot_name) is False


async def test_a_slot_that_somebody_reads_is_not_dropped(conn: Connection, slot_name: str, database: str) -> None:
    async with await AsyncConnection.connect(database, autocommit=True) as owner:
        await owner.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [slot_name])
        with pytest.raises(SlotIsActive) as caught:
            await slots.drop_slot(conn, slot_name)
        assert caught.value.active_pid == owner.info.backend_pid
        assert caught.value.sqlstate == "55006"
        assert f"pg_terminate_backend({owner.info.backend_pid})" in str(caught.value)


async def test_a_failover_slot_needs_postgresql_17(conn: Connection, slot_name: str) -> None:
    if conn.info.server_version < 170000:
        with pytest.raises(UnsupportedServer) as caught:
            await slots.create_slot(conn, slot_name, failover=True)
        assert caught.value.version_num == conn.info.server_version
        assert await slots.slot_status(conn, slot_name) is None
    else:
        await slots.create_slot(conn, slot_name, failover=True)
        status = await slots.slot_status(conn, slot_name)
        assert status is not None
        assert status.failover is True
        assert status.inactive_since is not None
        assert status.inactive_since.tzinfo is not None


async def test_an_ordinary_role_cannot_make_a_slot(
    postgres: PostgresCluster, database: str, role: str, slot_name: str
) -> None:
    async with _connected_as(role, postgres, _name_of(database)) as ordinary:
        with pytest.raises(ReplicationPrivilegeMissing) as caught:
            await slots.create_slot(ordinary, slot_name)
    assert (caught.value.role, caught.value.sqlstate) == (role, "42501")


# Publications


async def test_the_tables_of_publications_are_listed_once_each(conn: Connection) -> None:
    await conn.execute(b"""
        CREATE SCHEMA "Odd Schema";
        CREATE TABLE a_plain (id int PRIMARY KEY);
        CREATE TABLE b_full (id int); ALTER TABLE b_full REPLICA IDENTITY FULL;
        CREATE TABLE c_index (id int NOT NULL UNIQUE); ALTER TABLE c_index REPLICA IDENTITY USING INDEX c_index_id_key;
        CREATE TABLE "Odd Schema"."D:nothing" (id int PRIMARY KEY);
        ALTER TABLE "Odd Schema"."D:nothing" REPLICA IDENTITY NOTHING, ENABLE ROW LEVEL SECURITY;
        CREATE TABLE unpublished (id int);
        CREATE PUBLICATION "First One" FOR TABLE a_plain, b_full, "Odd Schema"."D:nothing";
        CREATE PUBLICATION second FOR TABLE a_plain, c_index;
    """)
    assert await slots.publication_tables(conn, ["First One", "second"]) == [
        slots.PublishedTable("Odd Schema", "D:nothing", "nothing", has_primary_key=True, row_security=True),
        slots.PublishedTable("public", "a_plain", "default", has_primary_key=True, row_security=False),
        slots.PublishedTable("public", "b_full", "full", has_primary_key=False, row_security=False),
        slots.PublishedTable("public", "c_index", "index", has_primary_key=False, row_security=False),
    ]


async def test_a_publication_that_exists_is_left_as_it_is(conn: Connection) -> None:
    await conn.execute("CREATE TABLE t (id int)")
    await conn.execute("CREATE PUBLICATION pub")
    await slots.create_publication(conn, "pub")
    assert await slots.publication_tables(conn, ["pub"]) == []


async def test_two_processes_may_create_the_publication_at_once(conn: Connection, database: str) -> None:
    async with await AsyncConnection.connect(database, autocommit=True) as other:
        await asyncio.gather(*(slots.create_publication(one, "pub") for one in (conn, other)))
    assert (await _preflight(conn)).created_publications == ()


# Preflight


async def test_a_server_that_is_ready_passes(conn: Connection, slot_name: str) -> None:
    await conn.execute("CREATE PUBLICATION pub")
    checked = await _preflight(conn, slot_name=slot_name.upper())
    assert checked.slot is None
    assert checked.facts == await slots.server_facts(conn)

    await slots.create_slot(conn, slot_name)

    checked = await _preflight(conn, slot_name=slot_name.upper())
    assert checked.slot is not None
    assert checked.slot.name == slot_name


async def test_every_missing_publication_is_named(conn: Connection, database: str) -> None:
    await conn.execute("CREATE PUBLICATION here")
    with pytest.raises(PublicationMissing) as caught:
        await _preflight(conn, publications=("gone", "here", 'Odd "one"'))
    assert caught.value.publications == ("gone", 'Odd "one"')
    assert caught.value.database == _name_of(database)
    await conn.execute(str(caught.value).split("with: ")[1].encode())  # the cure cures
    await _preflight(conn, publications=("gone", "here", 'Odd "one"'))


async def test_missing_publications_are_made_when_asked(conn: Connection) -> None:
    await conn.execute("CREATE TABLE t (id int)")
    checked = await _preflight(conn, publications=("one", "Two"), create=True)
    assert checked.created_publications == ("one", "Two")
    assert [table.name for table in await slots.publication_tables(conn, ["Two"])] == ["t"]


async def test_a_role_that_may_not_create_the_publication_is_told_what_to_run(
    conn: Connection, postgres: PostgresCluster, database: str, role: str
) -> None:
    await conn.execute("ALTER ROLE ordinary REPLICATION")
    async with _connected_as(role, postgres, _name_of(database)) as ordinary:
        with pytest.raises(PublicationMissing, match="a superuser creates it with") as caught:
            await _preflight(ordinary, create=True)
    assert caught.value.sqlstate == "42501"


async def test_a_role_without_replication_is_named(postgres: PostgresCluster, database: str, role: str) -> None:
    async with _connected_as(role, postgres, _name_of(database)) as ordinary:
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
            assert (await slots.server_facts(conn)).in_recovery
            assert await slots.wal_position(conn) > 0
            assert await slots.all_slots(conn) == []
            with pytest.raises(UnsupportedServer if version < 16 else PublicationMissing):
                await _preflight(conn, create=True)
