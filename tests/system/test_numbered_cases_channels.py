"""The numbered cases G21 to G47: joins, leaves, and frames that are none."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
from websockets.exceptions import ConnectionClosed

from tests.servers import wait_until
from tests.system.golden import LIMIT_S, Marker, connect_to, open_socket, run_sql
from tests.system.legacy import (
    SECRET,
    Json,
    closed,
    exchange,
    joining,
    leaving,
    listening,
    message,
    ok,
    refused,
    signed,
    topics_of,
)
from tests.system.server import RealtimeServer
from tests.system.wire import RawSocket, masked, upgrade_request

USERS = "realtime:public:users"
V2 = "vsn=2.0.0"
OK = {"response": {}, "status": "ok"}
INSERT = "INSERT INTO users (name) VALUES ('Bob')"


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        server.wait_for_log("replicator streaming")
        yield server


@pytest.fixture(scope="module")
def connection(server: RealtimeServer) -> Iterator[psycopg.Connection[Any]]:
    with closing(connect_to(server.dsn)) as connection:
        connection.execute("CREATE TABLE users (id bigserial PRIMARY KEY, name text)")
        yield connection


@pytest.fixture(scope="module")
def marker(connection: psycopg.Connection[Any]) -> Marker:
    return Marker(connection)


# What a reply is: each case on a socket of its own

HEARTBEAT = message("phoenix", "heartbeat", "2")
STRANGE = "realtime:bad topic !@# ünï"


@pytest.mark.parametrize(
    ("sent", "frames"),
    [
        pytest.param([HEARTBEAT], [ok("phoenix", "2")], id="G21"),
        pytest.param(
            [message("phoenix", "heartbeat", None, {"msg": "ping"})], [ok("phoenix", None)], id="G22-exactly 4 keys"
        ),
        pytest.param([HEARTBEAT | {"ref": {"a": 1}}], [ok("phoenix", {"a": 1})], id="G23-ref object"),
        pytest.param([HEARTBEAT | {"zzz": 1}], [ok("phoenix", "2")], id="G23-extra key"),
        pytest.param(
            [joining(USERS, "1"), leaving(USERS, "3")], [ok(USERS, "1"), ok(USERS, "3"), closed(USERS)], id="G24"
        ),
        pytest.param(
            [joining(USERS, "1", join_ref="1"), leaving(USERS, "3")],
            [ok(USERS, "1"), ok(USERS, "3"), closed(USERS, "1")],
            id="G25",
        ),
        pytest.param([joining("realtime:", "1")], [ok("realtime:", "1")], id="G26-no name"),
        *(
            pytest.param(
                [joining(STRANGE, ref) | {"payload": payload}], [ok(STRANGE, ref)], id=f"G26-{json.dumps(payload)}"
            )
            for ref, payload in (("1", None), ("1", [1]), (7, "str"), (1.5, {"user_token": "x"}))
        ),
        *(
            pytest.param([joining(topic, "1")], [refused(topic, "1")], id=f"G27-{topic}")
            for topic in ("room:1", "realtime", "REALTIME:x", "phoenix", 5)
        ),
        *(
            pytest.param([message("realtime:x", event, "1")], [refused("realtime:x", "1")], id=f"G28-{event}")
            for event in ("foo", "heartbeat", "access_token")
        ),
        pytest.param([leaving(USERS, "3")], [ok(USERS, "3")], id="G29"),
        pytest.param([joining(USERS, "1"), joining(USERS, "2")], [ok(USERS, "1"), ok(USERS, "2")], id="G30-replies"),
        # Ours: an event that no channel knows is ignored; the original ended the channel.
        pytest.param([joining(USERS, "1"), message(USERS, "foo", "2")], [ok(USERS, "1")], id="G31-no reply"),
        pytest.param(
            [json.dumps(message("phoenix", "heartbeat", "1")).encode()], [ok("phoenix", "1")], id="G34-binary"
        ),
    ],
)
def test_version_1(sent: list[Json], frames: list[Json], server: RealtimeServer) -> None:
    assert exchange(server.ws_url, *sent) == (frames, None)


@pytest.mark.parametrize(
    "frame",
    [
        *(pytest.param(text, id=f"G33-{text}") for text in ("not json", "[]", "5", "null", "", "{}")),
        *(
            pytest.param(
                json.dumps({key: value for key, value in HEARTBEAT.items() if key != missing}), id=f"G33-no {missing}"
            )
            for missing in ("ref", "payload")
        ),
    ],
)
def test_a_frame_that_is_no_message_closes_the_socket(frame: str, server: RealtimeServer) -> None:
    assert exchange(server.ws_url, joining(USERS, "1"), frame) == ([ok(USERS, "1")], 1011)


def reply(join_ref: Json, ref: Json, topic: str, payload: Json = None) -> Json:
    return [join_ref, ref, topic, "phx_reply", payload or OK]


def close(join_ref: Json, topic: str) -> Json:
    return [join_ref, join_ref, topic, "phx_close", {}]


JOIN = ["1", "1", USERS, "phx_join", {}]


@pytest.mark.parametrize(
    ("sent", "frames"),
    [
        pytest.param([JOIN], [reply("1", "1", USERS)], id="G35"),
        pytest.param([["8", "4", "phoenix", "heartbeat", {}]], [reply(None, "4", "phoenix")], id="G36"),
        pytest.param(
            [JOIN, ["1", "3", USERS, "phx_leave", {}]],
            [reply("1", "1", USERS), reply("1", "3", USERS), close("1", USERS)],
            id="G37",
        ),
        pytest.param(
            [[None, "1", USERS, "phx_join", {}], [None, "3", USERS, "phx_leave", {}]],
            [reply(None, "1", USERS), reply("1", "3", USERS), close(None, USERS)],
            id="G38",
        ),
        pytest.param(
            [["1", "1", "room:x", "phx_join", {}]],
            [reply(None, "1", "room:x", {"response": {"reason": "unmatched topic"}, "status": "error"})],
            id="G39",
        ),
        pytest.param([["9", "3", USERS, "phx_leave", {}]], [reply("9", "3", USERS)], id="G40"),
        pytest.param(
            [JOIN, ["2", "2", USERS, "phx_join", {}], ["1", "3", USERS, "phx_leave", {}]],
            [reply("1", "1", USERS), reply("2", "2", USERS), reply("2", "3", USERS), close("2", USERS)],
            id="G41-a stale leave leaves",
        ),
        pytest.param([[*JOIN, "more"]], [reply("1", "1", USERS)], id="G42-6 elements"),
        # Ours: the channel goes on.
        pytest.param([JOIN, ["1", "2", USERS, "foo", {}]], [reply("1", "1", USERS)], id="G43-no reply"),
    ],
)
def test_version_2(sent: list[Json], frames: list[Json], server: RealtimeServer) -> None:
    assert exchange(server.ws_url, *sent, query=V2) == (frames, None)


@pytest.mark.parametrize("frame", [pytest.param(JOIN[:4], id="G42-4 elements"), pytest.param({}, id="G42-object")])
def test_an_unreadable_frame_of_version_2_closes_the_socket(frame: Json, server: RealtimeServer) -> None:
    assert exchange(server.ws_url, frame, query=V2) == ([], 1011)


# What becomes of a subscription


def test_g30_after_a_second_join_a_change_comes_once(
    server: RealtimeServer, connection: psycopg.Connection[Any], marker: Marker
) -> None:
    with listening(server.ws_url, marker, USERS) as ear:
        ear.send(joining(USERS, "2"))
        assert ear.next() == ok(USERS, "2")
        assert topics_of(ear.after(connection, INSERT)) == [("public:users", "INSERT")]


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        pytest.param("foo", {}, id="G31-foo"),
        pytest.param("phx_close", {}, id="G31-phx_close"),
        pytest.param("access_token", {"access_token": "x"}, id="G32-access_token"),
        pytest.param("access_token", {"access_token": None}, id="G32-access_token null"),
    ],
)
def test_other_events_are_silent_and_the_subscription_survives(
    event: str, payload: Json, server: RealtimeServer, connection: psycopg.Connection[Any], marker: Marker
) -> None:
    with listening(server.ws_url, marker, USERS) as ear:
        ear.send(message(USERS, event, "2", payload))
        ear.send(message(USERS, event, "3", payload))
        assert topics_of(ear.after(connection, INSERT)) == [("public:users", "INSERT")]


def test_g43_the_same_in_version_2(server: RealtimeServer, connection: psycopg.Connection[Any], marker: Marker) -> None:
    with listening(server.ws_url, marker, USERS, query=V2) as ear:
        ear.send(["j0", "2", USERS, "foo", {}])
        assert topics_of(ear.after(connection, INSERT)) == [("public:users", "INSERT")]


def test_g46_after_a_leave_there_is_silence(
    server: RealtimeServer, connection: psycopg.Connection[Any], marker: Marker
) -> None:
    with listening(server.ws_url, marker, USERS) as ear:
        ear.send(leaving(USERS, "3"))
        assert [ear.next(), ear.next()] == [ok(USERS, "3"), closed(USERS)]
        assert ear.after(connection, INSERT) == []


# Time

IDLE_S = 1.0


@pytest.fixture(scope="module")
def impatient(server: RealtimeServer) -> Iterator[RealtimeServer]:
    """A second server of the same database, which does not wait for 60 s."""
    env = {
        "DATABASE_URL": server.dsn,
        "SECURE_CHANNELS": "false",
        "IDLE_TIMEOUT_S": str(IDLE_S),
        "WEBSOCKET_PINGS": "false",
    }
    with RealtimeServer(env) as server:
        server.wait_for_log("replicator streaming")
        yield server


def test_g44_who_only_listens_is_cut(impatient: RealtimeServer, connection: psycopg.Connection[Any]) -> None:
    heard = 0
    with open_socket(impatient.ws_url) as socket:
        socket.send(json.dumps(joining(USERS, "1")))
        joined_at = time.monotonic()
        assert json.loads(socket.recv(LIMIT_S)) == ok(USERS, "1")
        with suppress(ConnectionClosed):
            while True:
                assert run_sql(connection, [INSERT]) == []
                socket.recv(LIMIT_S)
                heard += 1
                with suppress(TimeoutError):
                    socket.recv(IDLE_S / 10)
        assert (socket.close_code, socket.close_reason) == (1000, "")
        assert IDLE_S * 0.9 < time.monotonic() - joined_at < IDLE_S + 2
    assert heard > 2


def test_g45_pings_of_the_client_keep_the_socket(impatient: RealtimeServer) -> None:
    with RawSocket(impatient.port) as raw:
        raw.send(upgrade_request("/socket/websocket"))
        assert raw.response().status == 101
        until = time.monotonic() + 2.5 * IDLE_S
        while time.monotonic() < until:
            raw.send(masked("ping", b"still here"))
            answer = raw.frame()
            assert answer is not None
            assert (answer.type, answer.data) == ("pong", b"still here")
            time.sleep(IDLE_S / 4)  # the pace of the pings
        raw.send(masked("text", json.dumps(HEARTBEAT).encode()))
        answer = raw.frame()
    assert answer is not None
    assert json.loads(answer.data) == ok("phoenix", "2")


@pytest.mark.parametrize(
    ("ends_channels", "answer"),
    [
        pytest.param("false", ok(USERS, "1"), id="G47-as in 2021"),
        # Ours: a token that has ended opens nothing, unless a setting says otherwise.
        pytest.param(
            "true", refused(USERS, "1", f"error occurred when joining {USERS}: token_expired"), id="G47-by default"
        ),
    ],
)
def test_a_join_after_the_end_of_the_token(ends_channels: str, answer: Json, server: RealtimeServer) -> None:
    env = {"SECURE_CHANNELS": "true", "JWT_SECRET": SECRET, "EXPIRED_TOKENS_END_CHANNELS": ends_channels}
    with RealtimeServer({"DATABASE_URL": server.dsn} | env) as secured:
        ends_at = time.time() + 0.5
        with open_socket(secured.ws_url, f"apikey={signed({'exp': ends_at})}") as socket:
            wait_until(lambda: time.time() > ends_at, "the end of the token")
            socket.send(json.dumps(joining(USERS, "1")))
            assert json.loads(socket.recv(LIMIT_S)) == answer
