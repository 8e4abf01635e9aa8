"""Today's stock clients talk to each other and see who is present."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest

from streaming.tokens import sign
from tests.clients.install import NodeClients
from tests.clients.python import PythonClient
from tests.clients.talking import NODE_CLIENTS, PYTHON_VERSION, Talker, talking
from tests.system.channels import SECRET, Channels
from tests.system.server import RealtimeServer

ALL = [*NODE_CLIENTS, "python"]
ACK = {"broadcast": {"ack": True, "self": False}}
# Phoenix's own client throws at a binary frame that is not Phoenix's.
TEXT = {"broadcast": {"ack": True, "self": False, "binary": False}}


@pytest.fixture(scope="session")
def python_client() -> PythonClient:
    return PythonClient.install(PYTHON_VERSION)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def room() -> str:
    """The name of a room of the test's own."""
    return f"room {secrets.token_hex(4)}/ä"


def token(lasts_s: float = 600, **claims: Any) -> str:
    return sign({"role": "authenticated", "exp": time.time() + lasts_s, **claims}, SECRET)


def client(
    version: str,
    server: RealtimeServer,
    room: str,
    config: dict[str, Any],
    node_clients: NodeClients,
    python_client: PythonClient,
    *,
    key: str = "none",
) -> AbstractAsyncContextManager[Talker]:
    """Not yet joined. supabase-js knows the server by its root, the others by their socket's path."""
    base = server.http_url if version == "supabase" else server.ws_url.removesuffix("/websocket")
    url = f"{base}?apikey={key}"
    chosen = python_client if version == "python" else node_clients
    return talking(chosen, version, url, room, config)


async def test_every_client_hears_every_other(
    realtime_server: RealtimeServer,
    node_clients: NodeClients,
    python_client: PythonClient,
    room: str,
    stack: AsyncExitStack,
) -> None:
    talkers = {
        version: await stack.enter_async_context(
            client(version, realtime_server, room, TEXT if version == "phoenix" else ACK, node_clients, python_client)
        )
        for version in (*ALL, "phoenix")
    }
    for talker in talkers.values():
        await talker.join()
    for version, talker in talkers.items():
        payload = {"from": version, "n": 1.5, "ü": [None, "→"]}
        assert await talker.do("send", event="TEST", payload=payload) == "ok"
        for other, hears in talkers.items():
            if other != version:
                line = await hears.hear("broadcast")
                assert (line["event"], line["payload"]) == ("TEST", payload), f"{other} from {version}"


@pytest.mark.parametrize("version", NODE_CLIENTS)
async def test_with_self_a_client_hears_itself(
    version: str, realtime_server: RealtimeServer, node_clients: NodeClients, python_client: PythonClient, room: str
) -> None:
    config = {"broadcast": {"ack": True, "self": True}}
    async with client(version, realtime_server, room, config, node_clients, python_client) as one:
        await one.join()
        assert await one.do("send", event="TEST", payload={"n": 1}) == "ok"
        assert (await one.hear("broadcast"))["payload"] == {"n": 1}


async def test_bytes_arrive_as_bytes(
    realtime_server: RealtimeServer, node_clients: NodeClients, python_client: PythonClient, stack: AsyncExitStack
) -> None:
    room = secrets.token_hex(4)
    latest, supabase, old = [
        await stack.enter_async_context(client(version, realtime_server, room, ACK, node_clients, python_client))
        for version in ("latest", "supabase", "latest-v1")
    ]
    for talker in (latest, supabase, old):
        await talker.join()
    assert await latest.do("bytes", event="TEST", hex="00ff10") == "ok"
    assert (await supabase.hear("broadcast"))["payload"] == {"bytes": "00ff10"}
    assert (await supabase.do("post bytes", event="TEST", hex="0102"))["success"] is True
    assert (await latest.hear("broadcast"))["payload"] == {"bytes": "0102"}
    # Bytes are not for clients of 1.0.0: the next thing they hear is text.
    assert await latest.do("send", event="TEST", payload={"n": 1}) == "ok"
    assert (await old.hear("broadcast"))["payload"] == {"n": 1}


@pytest.mark.parametrize("version", ALL)
async def test_a_client_posts_without_having_joined(
    version: str,
    secure_server: RealtimeServer,
    node_clients: NodeClients,
    python_client: PythonClient,
    room: str,
) -> None:
    key = token()
    url = secure_server.ws_url.replace("/socket/", "/realtime/v1/")
    async with (
        Channels(url, apikey=key) as listener,
        client(version, secure_server, room, ACK, node_clients, python_client, key=key) as one,
    ):
        await listener.joined(f"realtime:{room}")
        if version not in ("2.11.15", "python"):
            assert (await one.do("post", event="a/b", payload={"n": 1}))["success"] is True
            heard = await listener.next()
            assert (heard.event, heard.data) == ("a/b", b'{"n":1}')
        if version == "python":
            await one.do("post", event="a/b", payload={"n": 1})
            heard = await listener.next()
            assert (heard.event, heard.encoding) == ("a/b", 1)
        else:
            assert await one.do("send", event="TEST", payload={"n": 2}) == "ok"
            message = await listener.next()
            assert message[4] == {"event": "TEST", "payload": {"n": 2}, "type": "broadcast"}


@pytest.mark.parametrize("version", [*ALL, "phoenix"])
async def test_presence_is_seen_by_and_from_the_client(
    version: str, realtime_server: RealtimeServer, node_clients: NodeClients, python_client: PythonClient, room: str
) -> None:
    def presence(key: str) -> dict[str, Any]:
        return {"presence": {"key": key, "enabled": True}} if version != "2.11.15" else {"presence": {"key": key}}

    async with client(version, realtime_server, room, presence("a"), node_clients, python_client) as one:
        await one.join()
        if version != "phoenix":  # it says nothing of an empty state
            await one.present({})
        await one.do("track", payload={"n": 1})
        await one.present({"a": [{"n": 1}]})
        async with client("latest", realtime_server, room, presence("b"), node_clients, python_client) as other:
            await other.join()
            await other.present({"a": [{"n": 1}]})
            assert await other.do("track", payload={"n": 2}) == "ok"
            await one.present({"a": [{"n": 1}], "b": [{"n": 2}]})
            await one.do("track", payload={"n": 3})
            await other.present({"a": [{"n": 3}], "b": [{"n": 2}]})
            await one.do("untrack")
            await other.present({"b": [{"n": 2}]})
        await one.present({})


@pytest.mark.parametrize("version", ["2.11.15", "latest", "supabase"])
async def test_a_client_renews_its_token_and_is_told_when_it_ends(
    version: str, secure_server: RealtimeServer, node_clients: NodeClients, python_client: PythonClient, room: str
) -> None:
    ends_at = time.time() + 3
    async with client(version, secure_server, room, ACK, node_clients, python_client, key=token(3)) as one:
        await one.join()
        await one.do("setAuth", token=token(4))
        assert await one.do("send", event="TEST", payload={"n": 1}) == "ok"
        message = await one.hear("system")
        assert message["payload"]["message"].startswith("Token has expired")
        assert time.time() > ends_at + 0.5, "the first token still counted"
        assert (await one.hear("status"))["status"] == "CLOSED"


async def test_a_private_room_is_refused_to_the_client(
    realtime_server: RealtimeServer, node_clients: NodeClients, python_client: PythonClient, room: str
) -> None:
    async with client("latest", realtime_server, room, {"private": True}, node_clients, python_client) as one:
        await one.do("join")
        status = await one.hear("status")
        assert status["status"] == "CHANNEL_ERROR"
        assert "You do not have permissions to read from this Channel topic" in status["message"]
