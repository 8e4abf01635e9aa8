"""Rooms of two Daphnes with Redis between them: what is said and who is present, also when one of them is killed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.servers import ValkeyServer
from tests.system.channels import V1, Channels, UserBroadcast, ok, push_frame
from tests.system.corridor import DaphneProcess
from tests.system.test_asgi_servers import UvicornProcess

LEASE_S = 4.0


@pytest.fixture(scope="module")
def env(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of processes that share rooms; no database is needed for them."""
    home: Path = tmp_path_factory.mktemp("home")
    return {
        "REDIS_URL": valkey.url,
        "REDIS_PREFIX": secrets.token_hex(4),
        "SECURE_CHANNELS": "false",
        "WALCAST_HOME": str(home),
        "DATABASE_URL": "postgresql://postgres@127.0.0.1:1/nothing",
    }


@pytest.fixture(scope="module")
def daphnes(env: dict[str, str]) -> Iterator[list[DaphneProcess]]:
    with DaphneProcess(env) as one, DaphneProcess(env) as two:
        yield [one, two]


@pytest.fixture
def room() -> str:
    """A topic of the test's own."""
    return f"realtime:room-{secrets.token_hex(4)}"


async def test_a_broadcast_crosses_text_and_binary_in_order(daphnes: list[DaphneProcess], room: str) -> None:
    async with (
        Channels(daphnes[0].ws_url) as one,
        Channels(daphnes[1].ws_url) as two,
        Channels(daphnes[1].ws_url, V1) as old,
    ):
        for channels in (one, two, old):
            await channels.joined(room, {"broadcast": {"ack": True}})
        for number in range(0, 200, 2):
            await one.send("1", "2", room, "broadcast", {"event": "e", "n": number})
            await one.socket.send(push_frame("1", "3", room, "e", b'{"n":%d}' % (number + 1), encoding=1))
        assert await one.many(200) == [ok("1", ref, room) for _ in range(100) for ref in ("2", "3")]
        heard = await two.many(200)
        numbers = [int(item.data[5:-1]) if isinstance(item, UserBroadcast) else item[4]["n"] for item in heard]
        assert numbers == list(range(200))
        in_text = [message[4] for message in await old.many(200)]
        assert [payload["n"] if "n" in payload else payload["payload"]["n"] for payload in in_text] == list(range(200))


async def test_the_first_broadcast_after_a_join_is_heard(daphnes: list[DaphneProcess], room: str) -> None:
    async with Channels(daphnes[0].ws_url) as one, Channels(daphnes[1].ws_url) as two:
        for number in range(20):
            topic, ref = f"{room}:{number}", str(number)
            await one.joined(topic, ref=ref)
            await two.joined(topic, ref=ref)
            await one.send(ref, "2", topic, "broadcast", {"n": number})
            assert await two.next() == [None, None, topic, "broadcast", {"n": number}]


async def test_a_post_to_one_process_is_heard_in_both(daphnes: list[DaphneProcess], room: str) -> None:
    name = room.removeprefix("realtime:")
    async with Channels(daphnes[0].ws_url) as one, Channels(daphnes[1].ws_url) as two, httpx2.AsyncClient() as client:
        await one.joined(room)
        await two.joined(room)
        url = f"http://127.0.0.1:{daphnes[1].port}/api/broadcast/{name}/events/e"
        response = await client.post(url, content=b"\x00\x01", headers={"Content-Type": "application/octet-stream"})
        assert response.status_code == 202
        assert await one.next() == await two.next() == UserBroadcast(room, "e", b"", 0, b"\x00\x01")


async def test_presence_crosses_and_newcomers_see_it(daphnes: list[DaphneProcess], room: str) -> None:
    async with Channels(daphnes[0].ws_url) as one, Channels(daphnes[1].ws_url) as two:
        for key, channels in (("a", one), ("b", two)):
            await channels.joined(room, {"presence": {"key": key, "enabled": False}})
        await one.send("1", "2", room, "presence", {"event": "track", "payload": {"n": 1}})
        assert (await one.next())[3] == "phx_reply"
        assert (await one.next())[4] == (await two.next())[4]
        async with Channels(daphnes[1].ws_url) as newcomer:
            await newcomer.joined(room, {"presence": {"enabled": True}})
            [meta] = (await newcomer.next())[4]["a"]["metas"]
            assert meta["n"] == 1
        await one.socket.close()
        assert list((await two.next())[4]["leaves"]) == ["a"]


async def test_another_server_of_asgi_will_do(env: dict[str, str], daphnes: list[DaphneProcess], room: str) -> None:
    with UvicornProcess(env) as uvicorn:
        async with Channels(uvicorn.ws_url) as one, Channels(daphnes[0].ws_url) as two, httpx2.AsyncClient() as client:
            await one.joined(room)
            await two.joined(room)
            await two.socket.send(push_frame("1", "2", room, "e", b"\x00\xff", encoding=0))
            assert await one.next() == UserBroadcast(room, "e", b"", 0, b"\x00\xff")
            await one.socket.send(push_frame("1", "2", room, "e", b"{}", encoding=1))
            assert await two.next() == UserBroadcast(room, "e", b"", 1, b"{}")
            name = room.removeprefix("realtime:")
            url = f"http://127.0.0.1:{uvicorn.port}/api/broadcast/{name}/events/a%2Fb?private=false"
            assert (await client.post(url, json={})).status_code == 202
            assert await one.next() == await two.next() == UserBroadcast(room, "a/b", b"", 1, b"{}")


async def test_a_killed_process_leaves_no_phantom(daphnes: list[DaphneProcess], room: str) -> None:
    async with Channels(daphnes[1].ws_url) as stays:
        await stays.joined(room, {"presence": {"key": "stays", "enabled": False}})
        async with Channels(daphnes[0].ws_url) as dies, Channels(daphnes[0].ws_url) as too:
            for number, channels in enumerate((dies, too)):
                await channels.joined(room, {"presence": {"key": "dies", "enabled": False}})
                await channels.send("1", "2", room, "presence", {"event": "track", "payload": {"n": number}})
                assert list((await stays.next())[4]["joins"]) == ["dies"]
            killed_at = time.monotonic()
            await asyncio.to_thread(daphnes[0].kill)
            message = await stays.next()
        assert message[3] == "presence_diff"
        assert sorted(meta["n"] for meta in message[4]["leaves"]["dies"]["metas"]) == [0, 1]
        assert time.monotonic() - killed_at < LEASE_S + 3
        async with Channels(daphnes[1].ws_url) as newcomer:
            await newcomer.joined(room, {"presence": {"enabled": True}})
            assert (await newcomer.next())[4] == {}

    # The one that comes in its place is as good as the old one.
    await asyncio.to_thread(daphnes[0].start)
    async with Channels(daphnes[0].ws_url) as one, Channels(daphnes[1].ws_url) as two:
        await one.joined(room)
        await two.joined(room)
        await two.send("1", "2", room, "broadcast", {"n": 1})
        assert (await one.next())[4] == {"n": 1}
