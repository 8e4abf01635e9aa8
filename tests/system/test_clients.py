"""Stock clients: a committed row reaches each of them, and they come back when the server does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.clients.install import NodeClients
from tests.system.golden import fields_of, heartbeat_frame, join_frame
from tests.system.server import RealtimeServer

LIMIT_S = 30.0

TOPIC = "realtime:public:todos"

# Version, and what it listens to: the oldest and Phoenix's own know no wildcard.
LISTENERS = [("1.7.5", "*"), ("1.0.11", "*"), ("0.9.0", "INSERT,UPDATE,DELETE"), ("phoenix", "INSERT,UPDATE,DELETE")]


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        server.wait_for_log("replicator streaming")
        yield server


async def commit(server: RealtimeServer, statement: str) -> None:
    """Run one statement on the server's own database, in a transaction of its own."""
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
        await connection.execute(statement.encode())


async def messages(socket: ClientConnection) -> AsyncGenerator[dict[str, Any]]:
    """The server's messages, each within `LIMIT_S`."""
    while True:
        async with asyncio.timeout(LIMIT_S):
            frame = await socket.recv()
        assert isinstance(frame, str)
        yield fields_of(frame)


@pytest.mark.parametrize(("version", "events"), LISTENERS)
async def test_a_committed_row_reaches_the_client(
    version: str, events: str, server: RealtimeServer, node_clients: NodeClients
) -> None:
    async with node_clients.listen(version, server.ws_url, TOPIC, events, count=3) as listener:
        await listener.expect("joined")
        await commit(server, "INSERT INTO todos (task) VALUES ('Say hello')")
        inserted = (await listener.expect("change"))["payload"]
        await commit(server, f"UPDATE todos SET done = true WHERE id = {inserted['record']['id']}")
        updated = (await listener.expect("change"))["payload"]
        await commit(server, f"DELETE FROM todos WHERE id = {inserted['record']['id']}")
        deleted = (await listener.expect("change"))["payload"]
        assert await listener.wait() == 0
    assert [change["type"] for change in (inserted, updated, deleted)] == ["INSERT", "UPDATE", "DELETE"]
    assert inserted["record"]["task"] == updated["record"]["task"] == deleted["old_record"]["task"] == "Say hello"
    # Booleans stay PostgreSQL's text: these clients convert by the type of the column.
    assert [updated["old_record"]["done"], updated["record"]["done"]] == ["f", "t"]
    assert {column["name"]: column["type"] for column in inserted["columns"]}["done"] == "bool"


@pytest.mark.parametrize("version", ["1.7.5", "0.9.0", "phoenix"])
async def test_the_client_filters_by_a_column(version: str, server: RealtimeServer, node_clients: NodeClients) -> None:
    topic = f"{TOPIC}:task=eq.for {version}"
    async with node_clients.listen(version, server.ws_url, topic, "INSERT", count=1) as listener:
        await listener.expect("joined")
        await commit(server, f"INSERT INTO todos (task) VALUES ('for nobody'), ('for {version}')")
        change = await listener.expect("change")
        assert await listener.wait() == 0
    assert change["payload"]["record"]["task"] == f"for {version}"
    assert [line["what"] for line in listener.heard].count("change") == 1


async def test_a_committed_row_reaches_websockets(server: RealtimeServer) -> None:
    async with connect(server.ws_url) as socket, aclosing(messages(socket)) as received:
        await socket.send(join_frame(TOPIC, "1"))
        assert (await anext(received))["payload"] == {"status": "ok", "response": {}}
        await commit(server, "INSERT INTO todos (task) VALUES ('Say hello, too')")
        change = await anext(received)
    assert (change["topic"], change["event"], change["ref"]) == (TOPIC, "INSERT", None)
    assert change["payload"]["record"]["task"] == "Say hello, too"


@pytest.mark.parametrize("query", ["vsn=1.0.0", "vsn=2.0.0"])
async def test_a_heartbeat_is_answered_while_changes_come(query: str, server: RealtimeServer) -> None:
    async with connect(f"{server.ws_url}?{query}") as socket, aclosing(messages(socket)) as received:
        await socket.send(join_frame(TOPIC, "1", query))
        assert (await anext(received))["event"] == "phx_reply"
        await commit(server, "INSERT INTO todos (task) SELECT 'Count' FROM generate_series(1, 2000)")
        await socket.send(heartbeat_frame("beat", query))
        events = []
        async for message in received:
            events.append(message["event"])
            if message["event"] == "phx_reply":
                assert (message["topic"], message["ref"]) == ("phoenix", "beat")
            if len(events) == 2001:
                break
    assert sorted(set(events)) == ["INSERT", "phx_reply"]
    assert events.count("phx_reply") == 1


async def test_heartbeats_keep_a_client_that_has_nothing_else_to_say() -> None:
    idle_timeout_s = 2.0
    clock = asyncio.get_running_loop().time
    with RealtimeServer({"IDLE_TIMEOUT_S": str(idle_timeout_s), "WEBSOCKET_PINGS": "false"}) as server:
        async with (
            connect(server.ws_url, ping_interval=None) as beating,
            connect(server.ws_url, ping_interval=None) as silent,
        ):
            cut = asyncio.create_task(silent.wait_closed())
            start = clock()
            # Until the silent one is cut, and long enough for the other one to have been cut as well.
            while not cut.done() or clock() - start < 3 * idle_timeout_s:
                await beating.send(heartbeat_frame("beat"))
                async with asyncio.timeout(LIMIT_S):
                    assert fields_of(str(await beating.recv()))["ref"] == "beat"
                await asyncio.sleep(idle_timeout_s / 8)  # the pace of the heartbeats
                assert clock() - start < LIMIT_S, "the silent client was not cut"
            assert (silent.close_code, silent.close_reason) == (1000, "")


async def test_every_client_comes_back_after_the_server(server: RealtimeServer, node_clients: NodeClients) -> None:
    async with AsyncExitStack() as stack:
        listeners = [
            await stack.enter_async_context(node_clients.listen(version, server.ws_url, TOPIC, events))
            for version, events in LISTENERS
        ]
        for listener in listeners:
            await listener.expect("joined")
        returned = asyncio.create_task(_row_after_a_restart(server.ws_url))
        stack.callback(returned.cancel)
        assert await asyncio.to_thread(server.restart) == 0
        for listener in listeners:
            await listener.expect("joined", timeout_s=LIMIT_S)
        await commit(server, "INSERT INTO todos (task) VALUES ('Welcome back')")
        for listener in listeners:
            change = await listener.expect("change", timeout_s=LIMIT_S)
            assert change["payload"]["record"]["task"] == "Welcome back"
        # The one in Python may have missed the row while it was away: it is told another one until it hears it.
        while not returned.done():
            await commit(server, "INSERT INTO todos (task) VALUES ('Welcome back')")
            await asyncio.wait([returned], timeout=0.5)
        assert (await returned)["record"]["task"] == "Welcome back"


async def _row_after_a_restart(url: str) -> dict[str, Any]:
    """What a client hears first that connects, is cut off, and connects again, as websockets' manual has it."""
    async for socket in connect(url):
        try:
            await socket.send(join_frame(TOPIC, "1"))
            async with aclosing(messages(socket)) as received:
                async for message in received:
                    if message["event"] == "INSERT":
                        payload: dict[str, Any] = message["payload"]
                        return payload
        except ConnectionClosed:
            continue
    raise AssertionError("websockets gave up")


async def test_a_client_is_told_of_the_shutdown_before_its_socket_closes(server: RealtimeServer) -> None:
    async with connect(server.ws_url) as socket:
        for ref, topic in enumerate([TOPIC, "realtime:*"]):
            await socket.send(join_frame(topic, str(ref)))
            async with asyncio.timeout(LIMIT_S):
                await socket.recv()
        stopping = asyncio.create_task(asyncio.to_thread(server.restart))
        async with asyncio.timeout(LIMIT_S):
            told = [json.loads(frame) async for frame in _frames_until_the_end(socket)]
        assert await stopping == 0
    assert told == [
        {"topic": topic, "event": "phx_error", "payload": {}, "ref": None} for topic in (TOPIC, "realtime:*")
    ]
    assert socket.close_code == 1012


async def _frames_until_the_end(socket: ClientConnection) -> AsyncGenerator[str]:
    with suppress(ConnectionClosed):
        while True:
            yield str(await socket.recv())
