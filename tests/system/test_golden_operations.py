"""What became of the original server, and becomes of ours: bad settings, lost databases, restarts, shutdown."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Self

import psycopg
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.golden.differences import NOT_RUN
from tests.servers import PostgresCluster, postgres_versions
from tests.system.golden import (
    LIMIT_S,
    Case,
    Marker,
    all_cases,
    canonical,
    cases,
    close_code,
    closed_with,
    connect_to,
    fields_of,
    frames_of,
    hold_against,
    join,
    open_socket,
    run_sql,
    the_case,
)
from tests.system.server import RealtimeServer

_TABLE = "CREATE TABLE o (id int PRIMARY KEY, v text)"
_PUBLICATION = "CREATE PUBLICATION supabase_realtime FOR ALL TABLES"
_SLOT = "recorded"


@pytest.fixture
def connection(database18: str) -> Iterator[psycopg.Connection[Any]]:
    with closing(connect_to(database18)) as connection:
        connection.execute(_TABLE)
        yield connection


@contextmanager
def serving(dsn: str, **env: str) -> Iterator[RealtimeServer]:
    """A server of the database, once it streams."""
    with RealtimeServer({"DATABASE_URL": dsn, "SECURE_CHANNELS": "false"} | env) as server:
        server.wait_for_log("replicator streaming")
        yield server


@contextmanager
def listening(server: RealtimeServer) -> Iterator[ClientConnection]:
    """A socket that has joined everything."""
    with open_socket(server.ws_url) as socket:
        join(socket, ["realtime:*"])
        yield socket


def next_frame(socket: ClientConnection) -> str:
    """The next frame, in canonical form."""
    frame = socket.recv(LIMIT_S)
    assert isinstance(frame, str)
    return canonical(frame)


_BAD_SETTINGS = ("ops_boot_bad_claim_validators", "ops_boot_bad_port", "ops_boot_lag_not_number")


@cases("ops", only=lambda case: case.name in _BAD_SETTINGS)
def test_a_bad_setting_ends_the_process(case: Case, tmp_path: Path) -> None:
    env = case.facts["env"] | {"WALCAST_HOME": str(tmp_path), "PORT": "0"}
    with pytest.raises(RuntimeError, match=r"ended with [1-9]"), RealtimeServer(env):
        pass
    hold_against(case, {"alive": False}, {"alive": case.facts["still_alive"]})


_NO_DATABASE = ("ops_boot_db_unreachable", "ops_boot_db_missing")


@cases("ops", only=lambda case: case.name in _NO_DATABASE)
def test_a_database_that_cannot_be_reached(case: Case, postgres18: PostgresCluster) -> None:
    env = {"DATABASE_URL": postgres18.dsn("nope")} if "DB_NAME" in case.facts["env"] else dict(case.facts["env"])
    with RealtimeServer(env | {"SECURE_CHANNELS": "false"}) as server:
        server.wait_for_log("not streaming")
        with listening(server):
            alive = server.running
    hold_against(case, {"alive": alive}, {"alive": case.facts["still_alive"]})


def test_a_configuration_that_is_wrong_ends_the_process(tmp_path: Path) -> None:
    case = the_case("ops_config_bad_no_relation")
    env = {"CONFIGURATION_FILE": _written(case.facts["configuration"], tmp_path)}
    with pytest.raises(RuntimeError, match=r"ended with [1-9]"), RealtimeServer(env):
        pass
    hold_against(case, {"alive": False}, {"alive": case.facts["alive"]})


def _written(configuration: dict[str, Any], folder: Path) -> str:
    path = folder / "configuration.json"
    path.write_text(json.dumps(configuration))
    return str(path)


class Receiver(ThreadingHTTPServer):
    """A web server that webhooks are posted to; ``heard`` has what came, ``complete`` is set by a post to ``/end``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.heard: list[tuple[str, str | None, str]] = []
        self.changed = Condition()

    def __enter__(self) -> Self:
        self._thread = Thread(target=self.serve_forever, args=[0.05])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def wait_for(self, count: int) -> list[tuple[str, str | None, str]]:
        """Wait for so many posts beside the last one: path, content type, and body."""
        with self.changed:
            arrived = self.changed.wait_for(
                lambda: len(self.heard) > count and any(path == "/end" for path, _, _ in self.heard), LIMIT_S
            )
        assert arrived, f"not {count} posts and the last one, but {self.heard}"
        return [post for post in self.heard if post[0] != "/end"]


class _Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        # Before the answer, which lets the next one come.
        with self.server.changed:
            if "golden" not in body or self.path == "/end":
                self.server.heard.append((self.path, self.headers["content-type"], canonical(body)))
            self.server.changed.notify_all()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@cases("ops", only=lambda case: "topics" in case.facts)
def test_what_a_configuration_broadcasts_and_posts(
    case: Case, database18: str, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    connection.execute(_PUBLICATION)
    connection.execute("INSERT INTO o VALUES (100, 'q2'), (101, 'q')")
    with Receiver() as receiver:
        text = json.dumps(case.facts["configuration"]).replace(":45551/", f":{receiver.server_port}/")
        configuration = json.loads(text)
        # The marker is broadcast and posted whatever else is.
        marked = {"relation": "golden:marker", "events": ["INSERT"]}
        configuration["realtime"] = [*configuration["realtime"], marked]
        end = {"relation": "golden:marker", "config": {"endpoint": f"http://127.0.0.1:{receiver.server_port}/end"}}
        configuration["webhooks"] = [*configuration.get("webhooks", []), end]
        marker = Marker(connection)
        with serving(database18, CONFIGURATION_FILE=_written(configuration, tmp_path)) as server:
            with open_socket(server.ws_url) as socket:
                join(socket, case.facts["topics"])
                assert marker.watch(socket) == []
                assert run_sql(connection, case.facts["sql"]) == []
                frames = marker.frames_before(socket)
            posts = receiver.wait_for(len(case.facts["webhook_requests"]))
    recorded_posts = [
        (request["path"], request["headers"]["Content-Type"], canonical(request["body"]))
        for request in case.facts["webhook_requests"]
    ]
    hold_against(case, {"frames": frames, "posts": posts}, {"frames": frames_of(case), "posts": recorded_posts})


def test_a_missing_publication_is_waited_for(database18: str, connection: psycopg.Connection[Any]) -> None:
    case = the_case("ops_publication_missing_then_created")
    with (
        RealtimeServer({"DATABASE_URL": database18, "SECURE_CHANNELS": "false"}) as server,
        listening(server) as socket,
    ):
        server.wait_for_log("not streaming")
        connection.execute("INSERT INTO o VALUES (1, 'before publication')")
        connection.execute(_PUBLICATION)
        server.wait_for_log("replicator streaming")
        connection.execute("INSERT INTO o VALUES (2, 'after publication')")
        frames = [next_frame(socket)]
    hold_against(case, {"frames": frames}, {"frames": frames_of(case)})


def test_a_publication_that_is_dropped_and_made_again(database18: str, connection: psycopg.Connection[Any]) -> None:
    case = the_case("ops_publication_dropped_while_running")
    connection.execute(_PUBLICATION)
    with serving(database18) as server, listening(server) as socket:
        connection.execute("INSERT INTO o VALUES (3, 'a')")
        frames = [next_frame(socket)]
        connection.execute("DROP PUBLICATION supabase_realtime")
        connection.execute("INSERT INTO o VALUES (4, 'b')")
        connection.execute(_PUBLICATION)
        # What was committed without the publication cannot be had: that is said, and clients join again.
        assert fields_of(str(socket.recv(LIMIT_S)))["event"] == "phx_error"
        join(socket, ["realtime:*"])
        connection.execute("INSERT INTO o VALUES (5, 'c')")
        frames.append(next_frame(socket))
    hold_against(case, {"frames": frames}, {"frames": frames_of(case)})


def test_a_stopped_postgresql() -> None:
    case = the_case("ops_postgres_down")
    with ExitStack() as stack:
        cluster = stack.enter_context(PostgresCluster(postgres_versions()[18]))
        with closing(connect_to(cluster)) as connection:
            connection.execute(_TABLE)
            connection.execute(_PUBLICATION)
        server = stack.enter_context(serving(cluster.dsn(), SLOT_NAME=_SLOT))
        socket = stack.enter_context(listening(server))
        cluster.stop()
        server.wait_for_log("not streaming")
        said = len(server.log)
        cluster.start()
        server.wait_for_log("replicator streaming", since=said)
        with closing(connect_to(cluster)) as connection:
            marker = Marker(connection)
            frames = [*marker.watch(socket), *marker.frames_before(socket)]
        answer = {"frames": frames, "alive": server.running, "close": socket.close_code}
    recorded = {"frames": frames_of(case), "alive": case.facts["alive"], "close": close_code(case)}
    hold_against(case, answer, recorded)


def test_a_terminated_walsender(database18: str, connection: psycopg.Connection[Any]) -> None:
    case = the_case("ops_walsender_terminated")
    connection.execute(_PUBLICATION)
    with serving(database18, SLOT_NAME=_SLOT) as server, listening(server) as socket:
        _terminate_walsender(connection)
        connection.execute("INSERT INTO o VALUES (20, 'after kill')")
        frames = [next_frame(socket)]
    hold_against(case, {"frames": frames}, {"frames": frames_of(case)})


def _terminate_walsender(connection: psycopg.Connection[Any]) -> None:
    query = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = %s"
    assert connection.execute(query, [_SLOT]).fetchall() == [(True,)]


def test_a_named_slot_outlives_the_server(database18: str, connection: psycopg.Connection[Any]) -> None:
    case = the_case("ops_named_slot_persists")
    connection.execute(_PUBLICATION)
    marker = Marker(connection)
    with serving(database18, SLOT_NAME="My_Slot") as server:
        with listening(server) as socket:
            connection.execute("INSERT INTO o VALUES (8, 'x')")
            frames = [next_frame(socket)]
        server.stop()
        slots = connection.execute("SELECT slot_name, temporary, active FROM pg_replication_slots").fetchall()
        connection.execute("INSERT INTO o VALUES (9, 'while it was down')")
        said = len(server.log)
        server.start()
        server.wait_for_log("replicator streaming", since=said)
        with open_socket(server.ws_url) as socket:
            assert marker.watch(socket) == []
            marker.frames_before(socket)  # so that what was committed before has been published, to nobody
        with listening(server) as socket:
            connection.execute("INSERT INTO o VALUES (10, 'y')")
            frames.append(next_frame(socket))
    after_stop = case.facts["slots"]["after_stop"]
    recorded_slots = [(name, temporary == "True", active == "True") for name, temporary, active, _ in after_stop]
    hold_against(case, {"frames": frames, "slots": slots}, {"frames": frames_of(case), "slots": recorded_slots})


def test_a_publication_of_one_table_that_publishes_inserts_only(
    database18: str, connection: psycopg.Connection[Any]
) -> None:
    case = the_case("ops_publication_for_one_table_insert_only")
    marker = Marker(connection)
    connection.execute("CREATE TABLE o2 (id int PRIMARY KEY)")
    connection.execute("CREATE PUBLICATION supabase_realtime FOR TABLE o2, golden.marker WITH (publish = 'insert')")
    with serving(database18) as server, listening(server) as socket:
        assert marker.watch(socket) == []
        connection.execute("INSERT INTO o VALUES (1, 'of another table')")
        connection.execute("INSERT INTO o2 VALUES (1)")
        connection.execute("UPDATE o2 SET id = 2")
        connection.execute("DELETE FROM o2")
        connection.execute("TRUNCATE o2")
        frames = marker.frames_before(socket)
    hold_against(case, {"frames": frames}, {"frames": frames_of(case)})


def test_a_socket_that_only_listens_is_idle(database18: str, connection: psycopg.Connection[Any]) -> None:
    case = the_case("ops_idle_timeout_while_receiving_events")
    connection.execute(_PUBLICATION)
    received = 0
    with (
        serving(database18, IDLE_TIMEOUT_S="2", WEBSOCKET_PINGS="false") as server,
        listening(server) as socket,
        suppress(ConnectionClosed),
    ):
        while True:
            connection.execute("INSERT INTO o VALUES (%s, 'while it is idle')", [received])
            next_frame(socket)
            received += 1
            with suppress(TimeoutError):
                socket.recv(0.2)
    assert received > 3
    answer = {"close": socket.close_code, "reason": socket.close_reason}
    hold_against(case, answer, {"close": close_code(case), "reason": case.facts["close"]["reason"]})


def test_a_transaction_of_many_rows(database18: str, connection: psycopg.Connection[Any]) -> None:
    case = the_case("ops_transaction_10000_rows")
    connection.execute(_PUBLICATION)
    with serving(database18) as server, listening(server) as socket:
        connection.execute("INSERT INTO o SELECT 1000000 + n, 'b' FROM generate_series(0, 9999) n")
        frames = [next_frame(socket) for _ in range(10_000)]
        ids = [int(fields_of(frame)["payload"]["record"]["id"]) for frame in frames]
    answer = {"frames": [frames[0], frames[-1]], "frames_received": len(frames), "in_order": ids == sorted(ids)}
    recorded = {name: case.facts[name] for name in ("frames_received", "in_order")} | {"frames": frames_of(case)}
    hold_against(case, answer, recorded)


def test_a_terminated_server(database18: str) -> None:
    case = the_case("ops_sigterm")
    with closing(connect_to(database18)) as connection:
        connection.execute(_PUBLICATION)
    with serving(database18) as server, listening(server) as socket:
        server.send_signal(signal.SIGTERM)
        frames = [next_frame(socket)]
        answer = {"frames": frames, "close": closed_with(socket)}
    hold_against(case, answer, {"frames": frames_of(case), "close": close_code(case)})


def test_every_recorded_operation_is_replayed_or_listed() -> None:
    named = set(re.findall(r'"(ops_\w+)"', Path(__file__).read_text()))
    configured = {case.name for case in all_cases() if case.kind == "ops" and "topics" in case.facts}
    assert named | configured | set(NOT_RUN) == {case.name for case in all_cases() if case.kind == "ops"}
