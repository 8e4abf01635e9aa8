"""Replication slots, on the servers they are for."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import AsyncConnection

from replication import slots
from replication.errors import InvalidSlotName, ReplicationPrivilegeMissing, SlotIsActive, UnsupportedServer
from replication.lsn import LSN
from replication.publications import create_publications
from tests.replication.connections import Connection, connected_as, name_of
from tests.replication.corridor import until
from tests.servers import PostgresCluster

# Names


@pytest.mark.parametrize(("name", "valid"), [("walcast", "walcast"), ("Legacy_Slot", "legacy_slot"), ("0", "0")])
def test_a_slot_name_is_lowered(name: str, valid: str) -> None:
    assert slots.validate_slot_name(name) == valid


@pytest.mark.parametrize("name", ["", "a" * 64, "a-b", "a b", "slot;", "slöt", "slot\n", "K" + "\N{KELVIN SIGN}"])
def test_a_name_that_postgresql_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(InvalidSlotName) as caught:
        slots.validate_slot_name(name)
    assert caught.value.name == name


# The WAL


async def test_the_wal_position_moves_when_something_is_written(conn: Connection) -> None:
    before = await slots.wal_position(conn)
    await conn.execute("CREATE TABLE t (id int)")
    after = await slots.wal_position(conn)
    assert isinstance(after, LSN)
    assert after > before > 0


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
    assert (status.database, status.temporary, status.active) == (name_of(database), False, False)
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
    await create_publications(conn, ["pub"])
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
    async with connected_as(role, postgres, name_of(database)) as ordinary:
        with pytest.raises(ReplicationPrivilegeMissing) as caught:
            await slots.create_slot(ordinary, slot_name)
    assert (caught.value.role, caught.value.sqlstate) == (role, "42501")
