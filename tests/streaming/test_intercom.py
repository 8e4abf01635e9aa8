"""One process asks another: through a real Valkey, and inside one process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from streaming.errors import CommandFailed, ProcessSilent
from streaming.intercom import Intercom
from tests.replication.corridor import until
from tests.servers import ValkeyServer, free_port


@pytest.fixture(params=["memory", "redis"])
def layers(request: pytest.FixtureRequest, valkey: ValkeyServer) -> tuple[Any, Any]:
    """What two processes have: one layer each on the same Redis, or one for both in memory."""
    if request.param == "memory":
        layer = InMemoryChannelLayer()
        return layer, layer
    prefix = secrets.token_hex(4)
    one, other = (RedisPubSubChannelLayer(hosts=[valkey.url], prefix=prefix) for _ in range(2))
    return one, other


@asynccontextmanager
async def running(*intercoms: Intercom) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(intercom.run()) for intercom in intercoms]
    try:
        for intercom in intercoms:
            await asyncio.wait_for(intercom.ready.wait(), 10)
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for intercom in intercoms:
            await intercom._layer.flush()


async def test_another_process_performs_a_command_and_answers(layers: tuple[Any, Any]) -> None:
    one, two = (Intercom(layer, name) for layer, name in zip(layers, ("one", "two"), strict=True))

    async def double(number: int) -> dict[str, int]:
        return {"doubled": number * 2}

    two.on("double", double)
    async with running(one, two):
        assert await one.ask("two", "double", 21) == {"doubled": 42}


async def test_a_process_may_ask_itself(layers: tuple[Any, Any]) -> None:
    one = Intercom(layers[0], "one")
    one.on("name", lambda _: "me")
    async with running(one):
        assert await one.ask("one", "name") == "me"


async def test_a_failure_is_told_to_who_asked(layers: tuple[Any, Any]) -> None:
    one, two = (Intercom(layer, name) for layer, name in zip(layers, ("one", "two"), strict=True))

    def refuse(_: Any) -> None:
        raise LookupError("no such socket")

    two.on("disconnect", refuse)
    async with running(one, two):
        with pytest.raises(CommandFailed, match="no such socket"):
            await one.ask("two", "disconnect", "x")
        with pytest.raises(CommandFailed, match="one version of Walcast"):
            await one.ask("two", "unheard of")


async def test_nobody_answers_for_a_process_that_is_gone(layers: tuple[Any, Any]) -> None:
    one = Intercom(layers[0], "one")
    async with running(one):
        with pytest.raises(ProcessSilent, match="process gone did not answer"):
            await one.ask("gone", "disconnect", timeout_s=0.2)


async def test_everybody_is_told(layers: tuple[Any, Any]) -> None:
    one, two = (Intercom(layer, name) for layer, name in zip(layers, ("one", "two"), strict=True))
    heard: list[str] = []

    def note(process: str, text: str) -> None:
        heard.append(f"{process} {text}")

    for intercom in (one, two):
        intercom.on("note", partial(note, intercom.process))
    async with running(one, two):
        await one.tell_everybody("note", "hears")
        await until(lambda: len(heard) == 2, "both hearing of it")
    assert sorted(heard) == ["one hears", "two hears"]


async def test_a_slow_command_holds_up_no_other(layers: tuple[Any, Any]) -> None:
    one, two = (Intercom(layer, name) for layer, name in zip(layers, ("one", "two"), strict=True))
    may_end = asyncio.Event()
    two.on("slow", lambda _: may_end.wait())
    two.on("fast", lambda _: "done")
    async with running(one, two):
        slow = asyncio.create_task(one.ask("two", "slow", timeout_s=20))
        await asyncio.sleep(0)
        assert await one.ask("two", "fast") == "done"
        may_end.set()
        assert await slow is True


async def test_who_asks_while_the_layer_is_away_is_told_in_time() -> None:
    one = Intercom(RedisPubSubChannelLayer(hosts=[f"redis://127.0.0.1:{free_port()}/0"]), "one")
    task = asyncio.create_task(one.run())

    with pytest.raises(ProcessSilent):
        await one.ask("two", "name", timeout_s=0.3)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
