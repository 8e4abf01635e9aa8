"""`manage.py realtime`, as a person meets it: how it starts, what it says, what it leaves behind, how it ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.servers import PostgresCluster, free_port, postgres_versions, wait_until
from tests.system.golden import LIMIT_S, closed_with, connect_to, fields_of, join, open_socket
from tests.system.server import PROJECT, ManagedProcess, RealtimeServer

_COMMAND = (sys.executable, str(PROJECT / "manage.py"), "realtime")
_PUBLICATION = "CREATE PUBLICATION supabase_realtime FOR ALL TABLES"


def ended(env: dict[str, str], *args: str) -> tuple[int, str]:
    """Run the command, which is expected to end by itself: its code, and all it said."""
    with ManagedProcess([*_COMMAND, *args], env) as process:
        return process.wait(), process.log


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty ``WALCAST_HOME`` that PostgreSQL's user can enter, as it cannot those of pytest."""
    with tempfile.TemporaryDirectory(prefix="walcast-home-") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path
        stop_postgres(path)


def stop_postgres(home: Path) -> None:
    """End an embedded PostgreSQL that was left running (by a test that has failed)."""
    pid_file = home / "postgres" / "postmaster.pid"
    if pid_file.exists():
        with suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGINT)
            wait_until(lambda: not pid_file.exists(), "the end of PostgreSQL")


# Its own database


def test_it_says_where_to_look_and_how_to_reach_its_database() -> None:
    with RealtimeServer() as server:
        server.wait_for_log("Ctrl-C stops everything, the database included.")
        said = server.log
        assert f"http://localhost:{server.port}" in said
        assert f"ws://localhost:{server.port}/socket (every client may listen)" in said
        assert "our own (made just now)" in said
        psql = re.search(r"^ +psql +(psql .+)$", said, re.MULTILINE)
        assert psql is not None
        url = shlex.split(psql[1])[1]
        assert conninfo_to_dict(url) == conninfo_to_dict(server.dsn)
        with closing(connect_to(url)) as connection:
            assert connection.execute("SELECT count(*) FROM todos").fetchone() == (3,)
        assert stat.S_IMODE((server.home / "dsn").stat().st_mode) == 0o600


def test_the_doctor_finds_it_well_without_any_settings() -> None:
    with RealtimeServer() as server:
        server.wait_for_log("replicator streaming")
        with ManagedProcess([*_COMMAND[:2], "doctor", "--strict"], {"WALCAST_HOME": str(server.home)}) as doctor:
            assert doctor.wait() == 0, doctor.log
            assert "all is well" in doctor.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with RealtimeServer() as server, open_socket(server.ws_url) as client:
        join(client, ["realtime:*", "realtime:public:todos"])
        database_port = int(conninfo_to_dict(server.dsn)["port"] or 0)
        server.send_signal(number)
        told = [fields_of(str(client.recv(LIMIT_S))) for _ in range(2)]
        assert closed_with(client) == 1012
        assert server.wait() == 0
        assert [(message["topic"], message["event"], message["payload"]) for message in told] == [
            ("realtime:*", "phx_error", {}),
            ("realtime:public:todos", "phx_error", {}),
        ]
        assert server.log.endswith("stopped\n")
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log
        # PostgreSQL has ended, too, in order.
        assert not (server.home / "postgres" / "postmaster.pid").exists()
        assert not (server.home / "dsn").exists()
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", database_port)):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["walcast.lock", "postgres", "postgres/postmaster.pid"])
def test_a_signal_while_it_starts_ends_it_with_its_database(number: signal.Signals, moment: str, home: Path) -> None:
    env = {"WALCAST_HOME": str(home), "PORT": str(free_port())}
    with ManagedProcess(_COMMAND, env, lambda _: (home / moment).exists()) as process:
        process.send_signal(number)
        process.wait()
        assert "Traceback" not in process.log
        assert not (home / "postgres" / "postmaster.pid").exists()


def test_a_start_after_an_interrupted_one_is_a_good_one(home: Path) -> None:
    env = {"WALCAST_HOME": str(home), "PORT": str(free_port())}
    with ManagedProcess(_COMMAND, env, lambda _: (home / "postgres").exists()) as process:
        process.kill()
    with ManagedProcess(_COMMAND, env, lambda process: "Walcast is running" in process.log) as process:
        process.wait_for_log("replicator streaming")
        assert process.stop() == 0


def test_its_data_are_kept_between_runs() -> None:
    with RealtimeServer() as server:
        with closing(connect_to(server.dsn)) as connection:
            connection.execute("INSERT INTO todos (task) VALUES ('Remember me')")
        psql = server.dsn
        assert server.restart() == 0
        server.wait_for_log("kept from before")
        assert server.dsn == psql
        with closing(connect_to(server.dsn)) as connection:
            assert connection.execute("SELECT count(*) FROM todos WHERE task = 'Remember me'").fetchone() == (1,)


def test_a_second_start_on_the_same_home_is_refused_with_the_cure() -> None:
    with RealtimeServer() as server:
        code, said = ended({"WALCAST_HOME": str(server.home), "PORT": "0"})
        assert code == 1
        assert f"the Walcast process {server.pid} already serves the embedded database in {server.home}" in said
        assert "WALCAST_HOME" in said
        assert "Traceback" not in said
        # The first one has not noticed.
        with open_socket(server.ws_url) as client:
            join(client, ["realtime:public:todos"])


def test_a_taken_port_is_named_with_its_cure(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = ended({"WALCAST_HOME": str(home), "PORT": str(port)})
    assert code == 1
    assert f"port {port} on 127.0.0.1 is taken by another program" in said
    assert "set another PORT" in said
    assert "Traceback" not in said
    assert list(home.iterdir()) == []


def test_port_0_is_any_port_and_the_one_that_it_got_is_said(home: Path) -> None:
    env = {"WALCAST_HOME": str(home)}
    with ManagedProcess([*_COMMAND, "--port", "0"], env, lambda process: "Ctrl-C" in process.log) as process:
        match = re.search(r"ws://localhost:(\d+)/socket", process.log)
        assert match is not None
        with open_socket(f"ws://127.0.0.1:{match[1]}/socket/websocket") as client:
            join(client, ["realtime:public:todos"])
        assert process.stop() == 0


# Settings

_BAD = {
    "DEBUG": "perhaps",
    "LOG_LEVEL": "loud",
    "LOG_FORMAT": "xml",
    "DATABASE_URL": "postgresql://localhost/name?colour=blue",
    "DB_PORT": "abc",
    "DB_SSL": "maybe",
    "DB_IP_VERSION": "ipv5",
    "PUBLICATIONS": "[]",
    "SLOT_NAME": "my-slot",
    "SLOT_FAILOVER": "sometimes",
    "MAX_REPLICATION_LAG_MB": "-1",
    "SESSION_TIMEZONE": "Nowhere/Land",
    "HIDDEN_TABLES": '["", 1]',
    "RING_MAX_MB": "0",
    "RING_MAX_AGE_S": "long",
    "RING_MAX_WAL_MB": "-1",
    "HEARTBEAT_INTERVAL_S": "-1",
    "SECURE_CHANNELS": "sometimes",
    "JWT_PREVIOUS_SECRETS": '["old", 5]',
    "JWT_JWKS": '{"keys": []}',
    "JWT_CLAIM_VALIDATORS": "{'iss': 'x'}",
    "JWT_LEEWAY_S": "-1",
    "EXPIRED_TOKENS_END_CHANNELS": "later",
    "BYPASS_ROLES": ",",
    "IGNORE_ROW_SECURITY": "perhaps",
    "HOST": "localhost",
    "PORT": "65536",
    "TRUSTED_PROXIES": "proxy",
    "IDLE_TIMEOUT_S": "nan",
    "NO_CHANNEL_TIMEOUT_S": "nan",
    "WEBSOCKET_PINGS": "2",
    "MAX_CONNECTIONS": "-1",
    "MAX_CONNECTIONS_PER_ADDRESS": "-1",
    "MAX_TOPICS": "0",
    "MAX_TOPIC_LENGTH": "9",
    "SLOW_READER_MAX_MB": "inf",
    "SLOW_READER_MAX_WAIT_S": "0",
    "DRAIN_S": "-1",
    "MAX_FRAME_BYTES": "0",
    "MAX_RECORD_BYTES": "-1",
    "BROADCAST_STAR_EVENT": "*",
    "TENANT_MAX_CONCURRENT_USERS": "-1",
    "TENANT_MAX_JOINS_PER_SECOND": "-1",
    "TENANT_MAX_EVENTS_PER_SECOND": "-1",
    "MAX_PRESENCE_EVENTS_PER_SECOND": "-1",
    "CLIENT_PRESENCE_MAX_CALLS": "-1",
    "CLIENT_PRESENCE_WINDOW_MS": "0",
    "MAX_PAYLOAD_SIZE_IN_KB": "-1",
    "PRESENCE_ENABLED": "perhaps",
    "CONFIGURATION_FILE": "/nowhere/configuration.json",
    "WEBHOOK_HEADERS": "authorization",
    "WEBHOOK_TIMEOUT_S": "0",
    "WEBHOOK_ATTEMPTS": "0",
    "WEBHOOK_QUEUE_MAX_MB": "0",
    "WEBHOOK_MAX_ROWS": "0",
    "WORKERS": "-1",
    "REUSE_PORT": "perhaps",
    "REDIS_URL": "localhost",
    "REDIS_PREFIX": "two words",
    "TOPIC_GROUPS": ",",
    "READY_WITHIN_S": "0",
    "DJANGO_DATABASE_URL": "nonsense",
    "DASHBOARD": "perhaps",
    "INSPECTOR": "perhaps",
    "HTTPS_ONLY": "perhaps",
}


def test_every_setting_that_is_converted_is_among_those_below() -> None:
    text = (PROJECT / "realtime_project" / "settings.py").read_text()
    assert set(re.findall(r'_read\(\s*"(\w+)"', text)) <= set(_BAD)


@pytest.mark.parametrize("name", _BAD)
def test_a_bad_setting_is_named_with_its_value_and_what_would_be_right(name: str, home: Path) -> None:
    code, said = ended({"WALCAST_HOME": str(home), "PORT": "0"} | {name: _BAD[name]})
    assert code == 1
    assert "Walcast cannot start:" in said
    line = next(line for line in said.splitlines() if line.strip().startswith(f"{name}="))
    secret = any(word in name for word in ("URL", "SECRET", "JWKS", "HEADERS"))
    assert ("(hidden)" if secret else repr(_BAD[name])) in line
    assert not secret or f"={_BAD[name]}" not in said
    assert "right would be" in line
    assert "Traceback" not in said
    assert list(home.iterdir()) == []


def test_all_bad_settings_are_named_at_once(home: Path) -> None:
    _, said = ended({"WALCAST_HOME": str(home), "PORT": "abc", "MAX_TOPICS": "many", "SLOT_NAME": "a b"})
    assert [line.split("=")[0].strip() for line in said.splitlines()[1:]] == ["SLOT_NAME", "PORT", "MAX_TOPICS"]


@pytest.mark.parametrize("env", [{"SECURE_CHANNELS": "true"}, {"DATABASE_URL": "postgresql://localhost/name"}])
def test_secure_channels_need_a_secret(env: dict[str, str], home: Path) -> None:
    code, said = ended({"WALCAST_HOME": str(home), "PORT": "0"} | env)
    assert code == 1
    assert "JWT secret is missing" in said
    assert "SECURE_CHANNELS" in said
    assert "manage.py token secret" in said
    assert list(home.iterdir()) == []


# A configured database

_CATALOGUE = """
    SELECT 'relation', oid::regclass::text FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT 'namespace', nspname FROM pg_namespace WHERE nspname !~ '^pg_(temp|toast_temp)_'
    UNION ALL SELECT 'type', oid::regtype::text FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'publication', pubname FROM pg_publication
    UNION ALL SELECT 'event trigger', evtname FROM pg_event_trigger
    UNION ALL SELECT 'role', rolname FROM pg_roles
    UNION ALL SELECT 'slot', slot_name FROM pg_replication_slots WHERE database = current_database()
"""


def _catalogue(connection: psycopg.Connection[Any]) -> set[tuple[str, str]]:
    return set(connection.execute(_CATALOGUE).fetchall())


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with closing(connect_to(database)) as connection:
        connection.execute("CREATE TABLE o (id int PRIMARY KEY)")
        yield connection


def test_nothing_is_made_in_a_configured_database_but_the_slot(
    database: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute(_PUBLICATION)
    before = _catalogue(connection)
    env = {"DATABASE_URL": database, "SECURE_CHANNELS": "false", "SLOT_NAME": "made_by_test"}
    with RealtimeServer(env) as server:
        server.wait_for_log("replicator streaming")
        with open_socket(server.ws_url) as client:
            join(client, ["realtime:*"])
            connection.execute("INSERT INTO o VALUES (1)")
            assert fields_of(str(client.recv(LIMIT_S)))["payload"]["record"] == {"id": "1"}
        assert _catalogue(connection) - before == {("slot", "made_by_test")}
        assert server.stop() == 0
        assert "Traceback" not in server.log
        assert "Ctrl-C stops everything.\n" in server.log
        assert not (server.home / "postgres").exists()
    assert _catalogue(connection) - before == {("slot", "made_by_test")}
    assert before <= _catalogue(connection)


def test_a_missing_publication_is_made_when_asked_for(database: str, connection: psycopg.Connection[Any]) -> None:
    env = {"DATABASE_URL": database, "SECURE_CHANNELS": "false", "PUBLICATIONS": "one_of_ours"}
    with RealtimeServer(env) as server:
        server.wait_for_log("CREATE PUBLICATION")
        assert 'publication \\"one_of_ours\\" is not in database' in server.log
        assert connection.execute("SELECT pubname FROM pg_publication").fetchall() == []
    with RealtimeServer(env, ["--create-publication"]) as server:
        server.wait_for_log("replicator streaming")
        assert connection.execute("SELECT pubname, puballtables FROM pg_publication").fetchall() == [
            ("one_of_ours", True)
        ]


def test_without_a_slot_name_it_says_what_that_means(database: str, connection: psycopg.Connection[Any]) -> None:
    connection.execute(_PUBLICATION)
    slots = "SELECT temporary FROM pg_replication_slots WHERE database = current_database()"
    with RealtimeServer({"DATABASE_URL": database, "SECURE_CHANNELS": "false"}) as server:
        server.wait_for_log("the slot is temporary: what is committed while nobody reads is lost; set SLOT_NAME")
        assert "a temporary slot: set SLOT_NAME to lose nothing while this is stopped" in server.log
        assert connection.execute(slots).fetchall() == [(True,)]
    wait_until(lambda: connection.execute(slots).fetchall() == [], "the end of the temporary slot")


@pytest.mark.parametrize("version", sorted(postgres_versions()))
def test_what_is_committed_while_it_is_stopped_arrives_once_after_a_restart(version: int) -> None:
    with ExitStack() as stack:
        cluster = stack.enter_context(PostgresCluster(postgres_versions()[version]))
        with closing(connect_to(cluster)) as connection:
            connection.execute("CREATE TABLE o (id int PRIMARY KEY)")
            connection.execute(_PUBLICATION)
        env = {"DATABASE_URL": cluster.dsn(), "SECURE_CHANNELS": "false", "SLOT_NAME": "kept"}
        server = stack.enter_context(RealtimeServer(env))
        server.wait_for_log("replicator streaming")
        with open_socket(server.ws_url) as client, closing(connect_to(cluster)) as connection:
            join(client, ["realtime:*"])
            connection.execute("INSERT INTO o VALUES (1)")
            assert fields_of(str(client.recv(LIMIT_S)))["payload"]["record"] == {"id": "1"}
            assert server.stop() == 0
            connection.execute("INSERT INTO o VALUES (2)")
        # So that a client can join before the backlog is read, the database comes back last.
        cluster.stop()
        server.start()
        with open_socket(server.ws_url) as client:
            join(client, ["realtime:*"])
            cluster.start()
            with closing(connect_to(cluster)) as connection:
                connection.execute("INSERT INTO o VALUES (3)")
            records = [fields_of(str(client.recv(LIMIT_S)))["payload"]["record"] for _ in range(2)]
        assert records == [{"id": "2"}, {"id": "3"}]


def test_help_shows_how_to_start_it() -> None:
    said = subprocess.run([*_COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "DATABASE_URL=postgresql://user:password@host/name SLOT_NAME=walcast" in said
    assert "--create-publication" in said
