"""How many websockets are let in."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from streaming.crowd import CrowdLimit

EXTENSION: dict[str, Any] = {"websocket.http.response": {}}


class House:
    """An application whose sockets stay until they are told to go, behind the limit."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self._leave = asyncio.Event()
        self.door = CrowdLimit(self._stay, most, most_per_address)

    async def _stay(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await self._leave.wait()

    async def come(self, address: str) -> tuple[asyncio.Task[None], Any]:
        """One websocket, and the first thing that it is sent."""
        sent: asyncio.Queue[Any] = asyncio.Queue()

        async def connect() -> Any:
            return {"type": "websocket.connect"}

        scope = {"type": "websocket", "path": "/", "client": (address, 1), "extensions": EXTENSION}
        task = asyncio.create_task(self.door(scope, connect, sent.put))
        return task, await sent.get()

    async def is_let_in(self, address: str) -> bool:
        """Whether one more is accepted."""
        _, first = await self.come(address)
        return bool(first["type"] == "websocket.accept")


async def test_one_too_many_is_refused_with_429_and_may_come_when_another_has_gone() -> None:
    house = House(2, 0)
    first, _ = await house.come("10.0.0.1")
    assert await house.is_let_in("10.0.0.2")
    refused, answer = await house.come("10.0.0.3")
    await refused
    assert (answer["type"], answer["status"]) == ("websocket.http.response.start", 429)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    assert await house.is_let_in("10.0.0.3")


@pytest.mark.parametrize("most", [0, 100])
async def test_one_address_may_have_so_many_and_leaves_room_for_others(most: int) -> None:
    house = House(most, 2)
    assert [await house.is_let_in("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert await house.is_let_in("10.0.0.2")
