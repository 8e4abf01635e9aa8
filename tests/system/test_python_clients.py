"""The Python clients of 2021 and 2022, unpatched: a committed row reaches each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.clients.install import Listener
from tests.clients.python import Line, NotInstallable, PythonClient
from tests.system.corridor import execute
from tests.system.server import RealtimeServer

VERSIONS = ["0.0.4", "1.0.6"]

TOPIC = "realtime:public:todos"
HEARTBEAT_REPLY = b'{"event":"phx_reply","payload":{"response":{},"status":"ok"},"ref":null,"topic":"phoenix"}'


@pytest.fixture
def server(realtime_server: RealtimeServer) -> RealtimeServer:
    realtime_server.wait_for_log("replicator streaming")
    return realtime_server


def installed(version: str) -> PythonClient:
    try:
        return PythonClient.install(version)
    except NotInstallable as error:
        pytest.skip(f"realtime {version} cannot be installed: {error}")


@asynccontextmanager
async def listening(
    version: str, server: RealtimeServer, events: str, count: int = 0, topic: str = TOPIC
) -> AsyncIterator[tuple[Listener, Line]]:
    """A client that has joined."""
    client = await asyncio.to_thread(installed, version)
    async with Line.to(server.ws_url) as line, client.listen(line.url, topic, events, count) as listener:
        try:
            await line.says(b'"ref":null,"topic":"%s"' % topic.encode())
        except AssertionError as error:
            await listener.stop()
            error.add_note(f"the client said {listener.heard}")
            raise
        yield listener, line


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_committed_row_reaches_the_client(version: str, server: RealtimeServer) -> None:
    async with listening(version, server, "INSERT,UPDATE,DELETE", count=3) as (listener, _):
        execute(
            server.dsn,
            "INSERT INTO todos (task) VALUES ('Say hello')",
            "UPDATE todos SET done = true WHERE task = 'Say hello'",
            "DELETE FROM todos WHERE task = 'Say hello'",
        )
        changes = [await listener.expect("change") for _ in range(3)]
        assert await listener.wait() == 0
    assert [change["event"] for change in changes] == ["INSERT", "UPDATE", "DELETE"]
    inserted, updated, deleted = [change["payload"] for change in changes]
    assert [change["type"] for change in (inserted, updated, deleted)] == ["INSERT", "UPDATE", "DELETE"]
    assert inserted["record"]["task"] == updated["record"]["task"] == deleted["old_record"]["task"] == "Say hello"
    assert [updated["old_record"]["done"], updated["record"]["done"]] == ["f", "t"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_client_filters_by_a_column(version: str, server: RealtimeServer) -> None:
    async with listening(version, server, "INSERT", 1, f"{TOPIC}:task=eq.for {version}") as (listener, _):
        execute(server.dsn, f"INSERT INTO todos (task) VALUES ('for nobody'), ('for {version}')")
        change = await listener.expect("change")
        assert await listener.wait() == 0
    assert change["payload"]["record"]["task"] == f"for {version}"
    assert [line["what"] for line in listener.heard].count("change") == 1


async def test_a_star_listener_of_1_0_hears_each_change_once(server: RealtimeServer) -> None:
    async with listening("1.0.6", server, "*") as (listener, _):
        execute(server.dsn, "INSERT INTO todos (task) VALUES ('one')", "INSERT INTO todos (task) VALUES ('two')")
        payloads = [(await listener.expect("change"))["payload"] for _ in range(2)]
    assert [payload["record"]["task"] for payload in payloads] == ["one", "two"]


async def test_a_star_listener_of_0_0_hears_the_star_event(server: RealtimeServer) -> None:
    # It compares literally, as the servers of its time sent each change as the event "*", too.
    env = {"DATABASE_URL": server.dsn, "SECURE_CHANNELS": "false", "BROADCAST_STAR_EVENT": "true"}
    with RealtimeServer(env) as older:
        older.wait_for_log("replicator streaming")
        async with listening("0.0.4", older, "*,INSERT", count=2) as (listener, _):
            execute(server.dsn, "INSERT INTO todos (task) VALUES ('star')")
            changes = [await listener.expect("change") for _ in range(2)]
    assert [(change["event"], change["payload"]["record"]["task"]) for change in changes] == [
        ("*", "star"),
        ("INSERT", "star"),
    ]


async def test_heartbeats_without_a_ref_are_answered(server: RealtimeServer) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(listening(version, server, "INSERT")) for version in VERSIONS]
        for _, line in clients:
            await line.says(HEARTBEAT_REPLY, times=2)  # one at once, one after 5 s
        execute(server.dsn, "INSERT INTO todos (task) VALUES ('still here')")
        for listener, _ in clients:
            assert (await listener.expect("change"))["payload"]["record"]["task"] == "still here"
