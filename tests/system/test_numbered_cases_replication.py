"""The numbered cases G80 to G93: slots, publications, lost databases, lag."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from websockets.sync.client import ClientConnection

from tests.replication.receiver import Receiver
from tests.servers import PostgresCluster, postgres_versions, wait_until
from tests.system.golden import LIMIT_S, Marker, connect_to, fields_of, join, open_socket, run_sql
from tests.system.legacy import Json, listening, rows_of
from tests.system.server import RealtimeServer

Connection = psycopg.Connection[Any]

TABLE = "CREATE TABLE o (id int PRIMARY KEY, v text)"
PUBLICATION = "CREATE PUBLICATION supabase_realtime FOR ALL TABLES"
FILLER = "INSERT INTO filler SELECT repeat(md5(i::text), 20) FROM generate_series(1, {}) i"
"""About 700 bytes of WAL a row."""


@pytest.fixture
def connection(database18: str) -> Iterator[Connection]:
    """To a database with a table and a publication of everything."""
    with closing(connect_to(database18)) as connection:
        connection.execute(TABLE)
        connection.execute(PUBLICATION)
        yield connection


@pytest.fixture
def slot(database18: str) -> str:
    """The name of a slot that nobody else has, as the slots of all databases are in one place."""
    return f"{conninfo_to_dict(database18)['dbname']}_slot"


def serving(dsn: str, **env: str) -> RealtimeServer:
    return RealtimeServer({"DATABASE_URL": dsn, "SECURE_CHANNELS": "false"} | env)


@contextmanager
def streaming(dsn: str, **env: str) -> Iterator[RealtimeServer]:
    with serving(dsn, **env) as server:
        server.wait_for_log("replicator streaming")
        yield server


@contextmanager
def joined(server: RealtimeServer) -> Iterator[ClientConnection]:
    """A socket that has joined everything."""
    with open_socket(server.ws_url) as socket:
        join(socket, ["realtime:*"])
        yield socket


def insert(connection: Connection, number: int) -> None:
    assert run_sql(connection, [f"INSERT INTO o VALUES ({number})"]) == []


def next_id(socket: ClientConnection) -> str:
    """The row that the next frame tells of; another frame than that of an insert is a failure."""
    frame = fields_of(str(socket.recv(LIMIT_S)))
    assert (frame["topic"], frame["event"]) == ("realtime:*", "INSERT")
    return str(frame["payload"]["record"]["id"])


def ids_of(frames: list[Json]) -> list[str]:
    return [record["id"] for _, record, _ in rows_of(frames)]


def slots_of(connection: Connection) -> list[tuple[str, str, bool, bool]]:
    """Name, plugin, temporary, active of the slots of this database."""
    return connection.execute(
        "SELECT slot_name, plugin, temporary, active FROM pg_replication_slots WHERE database = current_database()"
    ).fetchall()


def value(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def is_acknowledged(connection: Connection, slot: str, lsn: str) -> bool:
    query = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s"
    return connection.execute(query, [lsn, slot]).fetchone() == (True,)


# Slots


def test_g80_a_named_slot_is_lowered_permanent_and_stays(database18: str, connection: Connection, slot: str) -> None:
    with streaming(database18, SLOT_NAME=slot.title()):
        assert slots_of(connection) == [(slot, "pgoutput", False, True)]
    assert slots_of(connection) == [(slot, "pgoutput", False, False)]


def test_g81_what_is_committed_meanwhile_is_for_those_who_are_there_at_once(
    database18: str, connection: Connection, slot: str, postgres18: PostgresCluster
) -> None:
    marker = Marker(connection)
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    name = sql.Identifier(str(conninfo_to_dict(database18)["dbname"]))
    with streaming(database18, SLOT_NAME=slot) as server, closing(connect_to(postgres18)) as elsewhere:
        server.stop()
        insert(connection, 1)
        # So that the first moments last until the client has joined.
        elsewhere.execute(allow.format(name, sql.SQL("false")))
        server.start()
        server.wait_for_log("not streaming")
        with joined(server) as early:
            elsewhere.execute(allow.format(name, sql.SQL("true")))
            assert next_id(early) == "1"
            with listening(server.ws_url, marker, "realtime:*") as late:
                assert ids_of(late.after(connection, "INSERT INTO o VALUES (2)")) == ["2"]


def test_g82_without_a_name_the_slot_goes_with_the_server(database18: str, connection: Connection) -> None:
    with streaming(database18):
        ((_, plugin, temporary, active),) = slots_of(connection)
        assert (plugin, temporary, active) == ("pgoutput", True, True)
    wait_until(lambda: slots_of(connection) == [], "the end of the temporary slot")


def test_g83_a_delivered_transaction_is_acknowledged_up_to_its_end(
    database18: str, connection: Connection, slot: str
) -> None:
    # Ours: what the ring keeps for those who come back is not acknowledged. Here it keeps nothing.
    with streaming(database18, SLOT_NAME=slot, RING_MAX_AGE_S="0") as server, joined(server) as socket:
        insert(connection, 1)
        end_lsn = value(connection, "SELECT pg_current_wal_lsn()")
        assert next_id(socket) == "1"
        wait_until(lambda: is_acknowledged(connection, slot, end_lsn), "the acknowledgement")


def test_g87_a_slot_that_somebody_reads_is_waited_for(database18: str, connection: Connection, slot: str) -> None:
    with streaming(database18, SLOT_NAME=slot) as first, serving(database18, SLOT_NAME=slot) as second:
        second.wait_for_log("standing by")
        with joined(second) as socket:
            first.stop()
            second.wait_for_log("replicator streaming")
            insert(connection, 1)
            assert next_id(socket) == "1"


# Publications


def test_g84_a_missing_publication_is_waited_for_and_the_slot_stays(
    database18: str, connection: Connection, slot: str
) -> None:
    connection.execute("DROP PUBLICATION supabase_realtime")
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    oldest = f"SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
    made_at = value(connection, oldest)
    with serving(database18, SLOT_NAME=slot) as server, joined(server) as socket:
        server.wait_for_log("not streaming")
        assert value(connection, oldest) == made_at
        connection.execute(PUBLICATION)
        server.wait_for_log("replicator streaming")
        insert(connection, 1)
        assert next_id(socket) == "1"
        assert "slot created" not in server.log
        assert "slot dropped" not in server.log


def test_g85_a_publication_that_comes_back_is_streamed_again(
    database18: str, connection: Connection, slot: str
) -> None:
    with streaming(database18, SLOT_NAME=slot) as server, joined(server) as socket:
        # Up to PostgreSQL 17 that ends the stream for good; 18 leaves out what was committed without the publication,
        # and says so in its log alone. Here the slot is made anew either way, and clients are told.
        connection.execute("DROP PUBLICATION supabase_realtime")
        insert(connection, 1)
        connection.execute(PUBLICATION)
        assert fields_of(str(socket.recv(LIMIT_S)))["event"] == "phx_error"
        join(socket, ["realtime:*"])
        insert(connection, 2)
        assert next_id(socket) == "2"
        assert slots_of(connection) == [(slot, "pgoutput", False, True)]
        assert server.log.count("slot dropped and made anew") == 1


def test_g86_two_publications_are_one_stream(database18: str, connection: Connection) -> None:
    connection.execute("CREATE TABLE p (id int PRIMARY KEY)")
    connection.execute("CREATE PUBLICATION one FOR TABLE o")
    connection.execute("CREATE PUBLICATION two FOR TABLE p")
    with streaming(database18, PUBLICATIONS='["one", "two"]') as server, joined(server) as socket:
        insert(connection, 1)
        connection.execute("INSERT INTO p VALUES (2)")
        assert [next_id(socket), next_id(socket)] == ["1", "2"]


# Lost connections


def test_g88_a_terminated_walsender_is_replaced(database18: str, connection: Connection, slot: str) -> None:
    marker = Marker(connection)
    with streaming(database18, SLOT_NAME=slot) as server, listening(server.ws_url, marker, "realtime:*") as ear:
        frames = ear.after(
            connection,
            "INSERT INTO o VALUES (1)",
            f"SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '{slot}'",
            "INSERT INTO o VALUES (2)",
        )
    assert ids_of(frames) == ["1", "2"]


def test_g89_a_restart_of_postgresql_is_silent_and_loses_nothing() -> None:
    with PostgresCluster(postgres_versions()[18]) as cluster:
        with closing(connect_to(cluster)) as connection:
            connection.execute(TABLE)
            connection.execute(PUBLICATION)
        with streaming(cluster.dsn(), SLOT_NAME="g89") as server, joined(server) as socket:
            cluster.restart()
            with closing(connect_to(cluster)) as connection:
                for number in (1, 2):
                    insert(connection, number)
                assert [next_id(socket), next_id(socket)] == ["1", "2"]
            assert "not streaming" in server.log


# Lag


def test_g90_over_the_limit_at_the_start_the_slot_is_made_anew(
    database18: str, connection: Connection, slot: str
) -> None:
    connection.execute("CREATE TABLE filler (t text)")
    marker = Marker(connection)
    with streaming(database18, SLOT_NAME=slot):
        pass
    insert(connection, 1)
    connection.execute(FILLER.format(5_000).encode())
    with (
        streaming(database18, SLOT_NAME=slot, MAX_REPLICATION_LAG_MB="1") as server,
        listening(server.ws_url, marker, "realtime:public:o") as ear,
    ):
        assert ids_of(ear.after(connection, "INSERT INTO o VALUES (2)")) == ["2"]
        assert "slot dropped and made anew" in server.log
    assert slots_of(connection) == [(slot, "pgoutput", False, False)]


def test_g91_over_the_limit_while_running_the_slot_is_made_anew_and_clients_are_told(
    database18: str, connection: Connection, slot: str
) -> None:
    connection.execute("CREATE TABLE filler (t text)")
    with (
        streaming(database18, SLOT_NAME=slot, MAX_REPLICATION_LAG_MB="1") as server,
        joined(server) as socket,
    ):
        insert(connection, 1)
        assert next_id(socket) == "1"
        walsender = value(connection, f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'")
        os.kill(walsender, signal.SIGSTOP)
        try:
            connection.execute(FILLER.format(5_000).encode())
            server.wait_for_log("is over MAX_REPLICATION_LAG_MB", limit_s=15)
        finally:
            os.kill(walsender, signal.SIGCONT)
        error = json.loads(socket.recv(LIMIT_S))
        assert error == {"topic": "realtime:*", "event": "phx_error", "payload": {}, "ref": None}
        server.wait_for_log("slot dropped and made anew")
        join(socket, ["realtime:*"])
        insert(connection, 2)
        assert next_id(socket) == "2"


def test_g92_the_slot_moves_on_while_only_other_tables_are_written(database15: str) -> None:
    slot = f"{conninfo_to_dict(database15)['dbname']}_slot"
    with closing(connect_to(database15)) as connection:
        connection.execute(TABLE)
        connection.execute("CREATE TABLE filler (t text)")
        connection.execute("CREATE PUBLICATION supabase_realtime FOR TABLE o")
        with streaming(database15, SLOT_NAME=slot):
            connection.execute(FILLER.format(10_000).encode())
            end_lsn = value(connection, "SELECT pg_current_wal_lsn()")
            # It is told at the next keepalive, and answers.
            wait_until(lambda: is_acknowledged(connection, slot, end_lsn), "the slot's progress", limit_s=15)


@pytest.fixture
def database15(request: pytest.FixtureRequest) -> Iterator[str]:
    # The version from which on empty transactions are skipped.
    start: Any = request.getfixturevalue("_cluster")
    cluster: PostgresCluster = start(15)
    dsn = cluster.create_database()
    yield dsn
    cluster.drop_database(dsn)


def test_g93_a_hung_webhook_delays_nobody(database18: str, connection: Connection, tmp_path: Path) -> None:
    with Receiver() as receiver:
        receiver.may_answer.clear()
        file = tmp_path / "configuration.json"
        webhooks = [{"config": {"endpoint": receiver.url()}}]
        file.write_text(json.dumps({"realtime": [{"relation": "*", "events": ["INSERT"]}], "webhooks": webhooks}))
        with streaming(database18, CONFIGURATION_FILE=str(file)) as server, joined(server) as socket:
            insert(connection, 1)
            assert next_id(socket) == "1"
            receiver.wait_for(1)
            for number in (2, 3):
                insert(connection, number)
                assert next_id(socket) == str(number)
            assert len(receiver.received) == 1  # it has hung all the time


def test_every_number_has_its_test() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_numbered_cases_*.py"))
    numbers = {int(number) for number in re.findall(r'(?:def test_g|"G)(\d\d)', text)}
    assert numbers == set(range(1, 94))
