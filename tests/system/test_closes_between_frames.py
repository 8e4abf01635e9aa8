"""How connections end: behind a whole frame, however much is on its way, and for want of a channel."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.servers import wait_until
from tests.system.corridor import execute
from tests.system.golden import fields_of, join_frame, stopped_reader
from tests.system.server import RealtimeServer
from tests.system.wire import Frame, RawSocket, masked, upgrade_request

TOPIC = "realtime:public:pages"
ROWS, VALUE_CHARACTERS = 3_000, 10_000
"""Together far more than two kernels buffer: most of it stays in the server, with a frame half out."""

UNMASKED = b"\x81\x02hi"
INVALID_TEXT = masked("text", b"\xff")
GOODBYE = masked("close", b"\x03\xe8bye")
HEARTBEAT = masked("text", b'{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"beat"}')

_TCP_ESTABLISHED = 1


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    env = {"SLOW_READER_MAX_MB": "1000", "SLOW_READER_MAX_WAIT_S": "60", "NO_CHANNEL_TIMEOUT_S": "0.5"}
    with RealtimeServer(env) as server:
        server.wait_for_log("replicator streaming")
        execute(server.dsn, "CREATE TABLE pages (id int PRIMARY KEY, value text)")
        yield server


def write(server: RealtimeServer) -> None:
    """Commit the rows, and wait until the server has handed on their last one."""
    with RawSocket(server.port) as witness:
        witness.send(upgrade_request("/socket/websocket"))
        assert witness.response().status == 101
        witness.send(masked("text", join_frame("realtime:public:pages:id=eq.0", "1").encode()))
        assert witness.frame() is not None
        fill = f"INSERT INTO pages SELECT n, repeat('x', {VALUE_CHARACTERS}) FROM generate_series(1, {ROWS}) n"
        execute(server.dsn, "TRUNCATE pages", fill, "INSERT INTO pages VALUES (0, 'the last one')")
        while (frame := witness.frame()) is not None and b"the last one" not in frame.data:
            pass
        assert frame is not None


def read_to_the_end(client: RawSocket) -> tuple[list[int], Frame]:
    """The numbers of the rows that came, and the last frame, with nothing behind it."""
    frames = []
    while (frame := client.frame()) is not None:
        frames.append(frame)
    assert client.rest == b""
    *changes, last = (frame for frame in frames if frame.type != "ping")
    payloads = [fields_of(frame.data.decode())["payload"] for frame in changes]
    return [int(payload["record"]["id"]) for payload in payloads if payload["type"] == "INSERT"], last


@pytest.mark.parametrize(
    ("said", "code"),
    [
        pytest.param(UNMASKED, 1002, id="a frame that is not masked"),
        pytest.param(INVALID_TEXT, 1007, id="a text that is not UTF-8"),
        pytest.param(GOODBYE, 1000, id="a close frame"),
        pytest.param(UNMASKED + HEARTBEAT + INVALID_TEXT + GOODBYE, 1002, id="all of them at once"),
    ],
)
def test_a_client_that_is_behind_reads_whole_frames_and_then_the_close_frame(
    server: RealtimeServer, said: bytes, code: int
) -> None:
    with stopped_reader(server.port, TOPIC) as client:
        write(server)
        client.send(said)
        ids, last = read_to_the_end(client)
    assert (last.type, last.code) == ("close", code)
    assert 0 < len(ids) < ROWS, "what was half out has come, and what waited behind it has not"
    assert ids == list(range(1, len(ids) + 1))


def test_a_client_that_says_goodbye_and_reads_no_more_is_gone_soon(server: RealtimeServer) -> None:
    with stopped_reader(server.port, TOPIC) as client:
        write(server)
        client.send(GOODBYE)
        wait_until(lambda: client.tcp_state() != _TCP_ESTABLISHED, "the end of the connection", limit_s=15)


def test_a_client_that_has_left_its_last_channel_is_sent_away_in_the_end(server: RealtimeServer) -> None:
    with RawSocket(server.port) as client:
        client.send(upgrade_request("/realtime/v1/websocket"))
        assert client.response().status == 101
        for event in ("phx_join", "phx_leave"):
            frame: dict[str, object] = {"topic": "realtime:room", "event": event, "payload": {"config": {}}, "ref": "1"}
            client.send(masked("text", json.dumps(frame).encode()))
        frames = list(iter(client.frame, None))
    assert [frame.type for frame in frames] == ["text", "text", "text", "close"]
    assert (frames[-1].code, frames[-1].reason) == (1001, "no-channels")
