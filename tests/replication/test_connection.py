"""libpq's COPY BOTH on real servers: frames come, status goes, and every end has its name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from replication import pgoutput
from replication.connection import (
    READ_LIMIT_BYTES,
    ReplicationConnection,
    parse_timeline_history,
    replication_conninfo,
    with_address,
)
from replication.copy_both import PrimaryKeepalive, StandbyStatusUpdate, XLogData, parse
from replication.errors import (
    ConnectionFailed,
    PublicationMissing,
    ReplicationError,
    SlotIsActive,
    SlotLost,
    StreamEnded,
)
from replication.lsn import LSN
from tests.replication.corridor import confirmed_lsn, execute, until, value
from tests.servers import PostgresCluster, free_port

LIMIT_S = 20.0


def _slot_of(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["dbname"])


async def _connect(dsn: str) -> ReplicationConnection:
    version = int(await value(dsn, "SELECT current_setting('server_version_num')"))
    return await ReplicationConnection.connect(dsn, server_version=version)


@pytest.fixture
async def prepared(database: str) -> str:
    """A database with a table, a publication and a slot of its own name."""
    await _prepare(database)
    return database


@pytest.fixture
async def prepared18(database18: str) -> str:
    await _prepare(database18)
    return database18


async def _prepare(dsn: str) -> None:
    await execute(
        dsn,
        "CREATE TABLE t (id int PRIMARY KEY, name text)",
        "CREATE PUBLICATION pub FOR ALL TABLES",
        f"SELECT pg_create_logical_replication_slot('{_slot_of(dsn)}', 'pgoutput')",
    )


async def _frames(connection: ReplicationConnection) -> AsyncIterator[XLogData | PrimaryKeepalive]:
    while True:
        frames, more = connection.read_ready()
        for frame in frames:
            yield parse(frame)
        if not more:
            await asyncio.wait_for(connection.wait_readable(), LIMIT_S)


async def _messages_until_commit(connection: ReplicationConnection) -> list[pgoutput.Message]:
    messages = []
    async for frame in _frames(connection):
        if isinstance(frame, XLogData):
            messages.append(pgoutput.decode(frame.data))
            if isinstance(messages[-1], pgoutput.Commit):
                break
    return messages


async def _end(connection: ReplicationConnection) -> ReplicationError:
    """Read until the stream ends."""
    try:
        async for _ in _frames(connection):
            pass
    except ReplicationError as error:
        return error
    raise AssertionError("the frames came to an end by themselves")


# What comes and goes


async def test_the_server_says_who_it_is(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        identity = await connection.identify_system()
    system_id = await value(prepared, "SELECT system_identifier FROM pg_control_system()")
    timeline = await value(prepared, "SELECT timeline_id FROM pg_control_checkpoint()")
    assert (identity.system_id, identity.timeline, identity.database) == (system_id, timeline, _slot_of(prepared))
    assert 0 < identity.wal_lsn <= LSN.parse(await value(prepared, "SELECT pg_current_wal_lsn()::text"))


async def test_a_transaction_comes_through(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub"])
        await execute(prepared, "INSERT INTO t VALUES (1, 'a')")
        begin, _, insert, commit = await _messages_until_commit(connection)
    assert isinstance(begin, pgoutput.Begin)
    assert isinstance(insert, pgoutput.Insert)
    assert isinstance(commit, pgoutput.Commit)
    assert insert.new == [b"1", b"a"]


async def test_a_stream_goes_on_from_an_end_lsn(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub"])
        await execute(prepared, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'b')")
        commit = (await _messages_until_commit(connection))[-1]
        assert isinstance(commit, pgoutput.Commit)
    await _is_free(prepared)
    for lsn, expected in ((commit.end_lsn, b"2"), (commit.lsn, b"1")):
        async with await _connect(prepared) as connection:
            await connection.start(_slot_of(prepared), lsn, ["pub"])
            insert = (await _messages_until_commit(connection))[-2]
        assert isinstance(insert, pgoutput.Insert)
        assert insert.new[0] == expected
        await _is_free(prepared)


async def _is_free(dsn: str) -> None:
    active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"

    async def is_free() -> bool:
        return await value(dsn, active, _slot_of(dsn)) is False

    await until(is_free, "the end of the walsender")


async def test_a_status_moves_the_slot(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub"])
        await execute(prepared, "INSERT INTO t VALUES (1, 'a')")
        commit = (await _messages_until_commit(connection))[-1]
        assert isinstance(commit, pgoutput.Commit)
        await connection.send(StandbyStatusUpdate(commit.end_lsn, commit.end_lsn, commit.end_lsn, 0))

        async def has_moved() -> bool:
            return await confirmed_lsn(prepared, _slot_of(prepared)) == commit.end_lsn

        await until(has_moved, "the slot's move")


async def test_a_status_that_asks_is_answered(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub"])
        await connection.send(StandbyStatusUpdate(0, 0, 0, 0, reply_requested=True))
        async for frame in _frames(connection):
            if isinstance(frame, PrimaryKeepalive):
                break


async def test_a_large_value_comes_whole(prepared: str) -> None:
    size = 3 << 20
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub"])
        await execute(prepared, f"INSERT INTO t VALUES (1, repeat('x', {size}))")
        insert = (await _messages_until_commit(connection))[-2]
    assert isinstance(insert, pgoutput.Insert)
    assert insert.new[1] == b"x" * size


async def test_what_is_ready_comes_in_bounded_portions(prepared18: str) -> None:
    async with await _connect(prepared18) as connection:
        await connection.start(_slot_of(prepared18), 0, ["pub"])
        await execute(prepared18, "INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 50000) AS n")
        rows = 0
        while rows < 50_000:
            frames, more = connection.read_ready()
            assert sum(map(len, frames)) < READ_LIMIT_BYTES + 1000
            rows += sum(frame[25:26] == b"I" for frame in frames)
            if not more and rows < 50_000:
                await asyncio.wait_for(connection.wait_readable(), LIMIT_S)
    assert rows == 50_000


async def test_a_cancelled_wait_does_not_end_the_stream(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub"])
        for _ in range(5):
            while True:
                _, more = connection.read_ready()
                waiting = asyncio.create_task(connection.wait_readable())
                await asyncio.sleep(0)
                if not more and not waiting.done():
                    break
                waiting.cancel()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await execute(prepared, "INSERT INTO t VALUES (1, 'a')")
        assert len(await _messages_until_commit(connection)) == 4


async def test_a_temporary_slot_lives_as_long_as_its_connection(prepared: str) -> None:
    exists = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
    name = f"{_slot_of(prepared)}_t"
    async with await _connect(prepared) as connection:
        lsn = await connection.create_temporary_slot(name)
        assert await value(prepared, exists, name) == 1
        await connection.start(name, 0, ["pub"])
        await execute(prepared, "INSERT INTO t VALUES (1, 'a')")
        commit = (await _messages_until_commit(connection))[-1]
        assert isinstance(commit, pgoutput.Commit)
        assert commit.lsn >= lsn

    async def is_gone() -> bool:
        return bool(await value(prepared, exists, name) == 0)

    await until(is_gone, "the end of the slot")


# Ends

_TERMINATE = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s"


async def test_a_walsender_that_is_ended_ends_the_stream(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub"])
        await value(prepared, _TERMINATE, _slot_of(prepared))
        error = await _end(connection)
        assert isinstance(error, StreamEnded)
        # However often it is asked.
        with pytest.raises(StreamEnded):
            connection.read_ready()
        with pytest.raises(StreamEnded):
            await _send_until_refused(connection)


async def _send_until_refused(connection: ReplicationConnection) -> None:
    for _ in range(100):
        await connection.send(StandbyStatusUpdate(0, 0, 0, 0))


async def test_what_came_before_the_end_is_read_first(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub"])
        await execute(prepared, "INSERT INTO t VALUES (1, 'a')")
        sent = (
            "SELECT sent_lsn >= pg_current_wal_lsn() FROM pg_stat_replication"
            " JOIN pg_replication_slots ON pid = active_pid WHERE slot_name = %s"
        )

        async def is_sent() -> bool:
            return await value(prepared, sent, _slot_of(prepared)) is True

        await until(is_sent, "the sending of the transaction")
        await value(prepared, _TERMINATE, _slot_of(prepared))
        await _is_free(prepared)
        assert len(await _messages_until_commit(connection)) == 4
        assert isinstance(await _end(connection), StreamEnded)


async def test_a_slot_that_is_read_by_another_is_active(prepared: str) -> None:
    async with await _connect(prepared) as first, await _connect(prepared) as second:
        await first.start(_slot_of(prepared), 0, ["pub"])
        with pytest.raises(SlotIsActive) as caught:
            await second.start(_slot_of(prepared), 0, ["pub"])
    assert (caught.value.slot_name, caught.value.sqlstate) == (_slot_of(prepared), "55006")


async def test_a_slot_that_does_not_exist_is_lost(prepared: str) -> None:
    async with await _connect(prepared) as connection:
        with pytest.raises(SlotLost) as caught:
            await connection.start("no_such_slot", 0, ["pub"])
    assert (caught.value.slot_name, caught.value.sqlstate) == ("no_such_slot", "42704")


async def test_the_server_says_why_it_ends_the_stream_though_changes_came_before(prepared: str) -> None:
    # PostgreSQL 18 only warns, and goes on with the publications that are there: so it is we who end.
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ["pub", "no such one"])
        await execute(prepared, "INSERT INTO t VALUES (1, 'a')")
        error = await _end(connection)
    assert isinstance(error, PublicationMissing)
    assert error.sqlstate == "42704"


async def test_a_refused_connection_has_failed() -> None:
    with pytest.raises(ConnectionFailed, match="refused"):
        await ReplicationConnection.connect(f"host=127.0.0.1 port={free_port()} dbname=x", server_version=180000)


async def test_a_wrong_password_has_failed(postgres18: PostgresCluster) -> None:
    with pytest.raises(ConnectionFailed, match="password") as caught:
        await ReplicationConnection.connect(postgres18.dsn(password="wrong"), server_version=180000)
    assert "wrong" not in str(caught.value)


async def test_names_with_quotes_are_only_names(prepared: str) -> None:
    await execute(prepared, 'CREATE PUBLICATION "it\'s, ""odd""" FOR TABLE t')
    async with await _connect(prepared) as connection:
        await connection.start(_slot_of(prepared), 0, ['it\'s, "odd"'])
        await execute(prepared, "INSERT INTO t VALUES (1, 'a')")
        assert len(await _messages_until_commit(connection)) == 4


# The connection string


def _options(conninfo: str) -> str:
    return str(conninfo_to_dict(conninfo)["options"])


def test_our_settings_come_after_those_of_the_dsn() -> None:
    conninfo = replication_conninfo(
        make_conninfo("dbname=x", options="-c statement_timeout=5 -c TimeZone=Asia/Kolkata"),
        time_zone="Europe/Berlin",
        server_version=180000,
    )
    options = _options(conninfo)
    assert options.startswith("-c statement_timeout=5 -c TimeZone=Asia/Kolkata -c DateStyle=ISO")
    assert options.index("TimeZone=Europe/Berlin") > options.index("TimeZone=Asia/Kolkata")
    assert conninfo_to_dict(conninfo)["replication"] == "database"


def test_an_old_server_is_not_asked_for_what_it_does_not_know() -> None:
    assert "wal_sender_timeout" in _options(replication_conninfo("", time_zone="UTC", server_version=120000))
    assert "wal_sender_timeout" not in _options(replication_conninfo("", time_zone="UTC", server_version=110000))


async def test_the_settings_are_those_of_the_walsender(prepared18: str) -> None:
    conninfo = replication_conninfo(
        make_conninfo(prepared18, options="-c DateStyle=German"), time_zone="Asia/Kolkata", server_version=180000
    )
    # The same string without replication opens an ordinary session, which can be asked.
    ordinary = make_conninfo(conninfo, replication="false")
    for name, expected in {
        "DateStyle": "ISO, DMY",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "search_path": "pg_catalog",
        "quote_all_identifiers": "off",
        "lc_monetary": "C",
        "client_encoding": "UTF8",
        "TimeZone": "Asia/Kolkata",
        "wal_sender_timeout": "10s",
    }.items():
        assert await value(ordinary, "SELECT current_setting(%s)", name) == expected


@pytest.mark.parametrize("dsn", ["host=127.0.0.1", "host=::1", "host=/run/postgresql", "dbname=x", "host=a,b", ""])
async def test_what_is_no_name_needs_no_address(dsn: str) -> None:
    assert await with_address(dsn, "ipv4") == dsn
    assert await with_address(dsn, "ipv6") == dsn


async def test_a_given_address_stays(database18: str) -> None:
    dsn = make_conninfo(database18, host="localhost", hostaddr="127.0.0.1")
    assert await with_address(dsn, "ipv6") == dsn


async def test_without_a_preference_the_system_decides() -> None:
    assert await with_address("host=localhost", None) == "host=localhost"


async def test_a_name_gets_an_address_of_the_asked_version_and_stays_for_the_certificate(database18: str) -> None:
    dsn = await with_address(make_conninfo(database18, host="localhost"), "ipv4")
    parts = conninfo_to_dict(dsn)
    assert (parts["host"], parts["hostaddr"]) == ("localhost", "127.0.0.1")
    assert await value(dsn, "SELECT host(inet_server_addr())") == "127.0.0.1"


async def test_a_name_without_such_an_address_has_failed() -> None:
    with pytest.raises(ConnectionFailed, match=r"a\.\.b has no ipv6 address"):
        await with_address("host=a..b", "ipv6")


# The line


async def test_a_status_does_not_wait_for_a_reader(prepared18: str) -> None:
    # The server is busy sending and does not read; we do not read either: both must come out of it.
    async with await _connect(prepared18) as connection:
        await connection.start(_slot_of(prepared18), 0, ["pub"])
        await execute(prepared18, "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) AS n")
        started = time.monotonic()
        for _ in range(1000):
            await connection.send(StandbyStatusUpdate(0, 0, 0, 0))
        assert time.monotonic() - started < LIMIT_S
        rows = 0
        async for frame in _frames(connection):
            rows += isinstance(frame, XLogData) and frame.data[:1] == b"I"
            if rows == 20_000:
                break


# Timelines


async def test_the_first_timeline_comes_from_nowhere_and_an_unknown_one_tells_nothing(
    prepared: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with await _connect(prepared) as connection:
        assert await connection.timeline_history(1) == ()
        assert await connection.timeline_history(77) == ()
        assert "history of the timeline unknown" in caplog.text
        assert (await connection.identify_system()).timeline == 1, "the connection is as good as before"


def test_a_history_file_names_every_earlier_timeline() -> None:
    text = "# a comment\n1\t0/3000000\tno recovery target specified\n\n2\t16/B374D848\tbefore 2026-11-25 19:33:33+00\n"
    assert parse_timeline_history(text) == ((1, LSN(0x3000000)), (2, LSN(0x16B374D848)))
