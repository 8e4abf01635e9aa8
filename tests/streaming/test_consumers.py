"""One websocket between its client and the hub: what its consumer does with the session's effects."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator

from streaming.hub import Hub
from streaming.routing import websocket_application
from streaming.tokens import TokenVerifier, sign
from streaming.transport import OutletLimits

SECRET = "a secret that is longer than thirty-two bytes"
TODOS = "realtime:public:todos"
LIMIT_S = 10


class Socket:
    """A client on the other side of the application."""

    def __init__(self, hub: Hub, communicator: Any) -> None:
        self.hub, self._communicator = hub, communicator

    async def send(self, topic: str, event: str, payload: Any = None, ref: str = "1") -> None:
        frame = {"topic": topic, "event": event, "payload": payload or {}, "ref": ref}
        await self._communicator.send_to(text_data=json.dumps(frame))

    async def send_text(self, text: str) -> None:
        await self._communicator.send_to(text_data=text)

    async def frame(self) -> Any:
        return json.loads(await self._communicator.receive_from(LIMIT_S))

    async def output(self) -> Any:
        return await self._communicator.receive_output(LIMIT_S)

    async def settled(self) -> None:
        """Every frame that was sent has been looked at: each takes a few turns of the loop."""
        for _ in range(100):
            await asyncio.sleep(0)

    async def all_done(self) -> None:
        await self._communicator.disconnect()


@asynccontextmanager
async def opened(verifier: TokenVerifier | None = None, query: str = "", **more: Any) -> AsyncIterator[Socket]:
    hub = Hub()
    options = {"max_topics": 10, "max_topic_length": 100, "end_expired": True, **more}
    application = websocket_application(hub, verifier, limits=OutletLimits(1 << 20, 10.0), **options)
    communicator: Any = WebsocketCommunicator(application, f"/socket/websocket?{query}")
    connected, _ = await communicator.connect(LIMIT_S)
    assert connected
    try:
        yield Socket(hub, communicator)
    finally:
        await communicator.disconnect()


def timers() -> int:
    """How many timers of consumers the loop holds."""
    loop: Any = asyncio.get_running_loop()
    return sum(1 for handle in loop._scheduled if not handle.cancelled() and "RealtimeConsumer" in repr(handle))


async def test_frames_that_arrive_after_we_closed_are_ignored() -> None:
    async with opened() as socket:
        await socket.send_text("no message")
        for _ in range(3):
            await socket.send(TODOS, "phx_join")
        assert await socket.output() == {"type": "websocket.close", "code": 1011, "reason": ""}
        await socket.settled()
        assert (socket.hub.topic_count, socket.hub.socket_count) == (0, 0)


async def test_the_longest_topic_is_a_setting() -> None:
    async with opened(max_topic_length=12) as socket:
        await socket.send("realtime:abc", "phx_join")
        assert (await socket.frame())["payload"]["status"] == "ok"
        await socket.send("realtime:abcd", "phx_join")
        assert (await socket.frame())["payload"]["response"]["reason"].startswith("TopicTooLong")


async def test_a_channel_ends_with_its_token_and_the_hub_hears_of_it() -> None:
    text = sign({"exp": time.time() + 0.3}, SECRET)
    async with opened(TokenVerifier([SECRET], {}), f"apikey={text}") as socket:
        await socket.send(TODOS, "phx_join")
        assert (await socket.frame())["payload"]["status"] == "ok"
        assert socket.hub.topic_count == 1
        assert await socket.frame() == {"topic": TODOS, "event": "phx_error", "payload": {}, "ref": None}
        assert (socket.hub.topic_count, socket.hub.socket_count) == (0, 1)
        assert timers() == 0


async def test_a_socket_has_one_timer_and_only_while_something_expires() -> None:
    verifier = TokenVerifier([SECRET], {})
    for exp, wanted in (({}, 0), ({"exp": time.time() + 3600}, 1)):
        async with opened(verifier, f"apikey={sign(exp, SECRET)}") as socket:
            assert timers() == 0
            for topic in ("realtime:a", "realtime:b", "realtime:c"):
                await socket.send(topic, "phx_join")
                await socket.frame()
            assert timers() == wanted
        assert timers() == 0


@pytest.mark.parametrize("end", ["disconnect", "close"])
async def test_the_timer_ends_with_the_socket(end: str) -> None:
    text = sign({"exp": time.time() + 3600}, SECRET)
    async with opened(TokenVerifier([SECRET], {}), f"apikey={text}") as socket:
        await socket.send(TODOS, "phx_join")
        await socket.frame()
        assert timers() == 1
        if end == "close":
            await socket.send_text("no message")
            await socket.output()
        else:
            await socket.all_done()
        assert timers() == 0


async def join_and_leave(socket: Socket, payload: Any) -> None:
    await socket.send(TODOS, "phx_join", payload)
    assert (await socket.frame())["payload"]["status"] == "ok"
    await socket.send(TODOS, "phx_leave")
    assert [(await socket.frame())["event"] for _ in range(2)] == ["phx_reply", "phx_close"]


async def test_a_socket_that_has_no_channel_any_more_is_closed_in_the_end() -> None:
    async with opened(no_channel_timeout_s=0.2) as socket:
        await join_and_leave(socket, {"config": {}})
        await socket.send("phoenix", "heartbeat")  # it says that the client is there, and not that it wants anything
        assert (await socket.frame())["event"] == "phx_reply"
        assert await socket.output() == {"type": "websocket.close", "code": 1001, "reason": "no-channels"}
        assert socket.hub.socket_count == 0
        assert timers() == 0


async def test_a_socket_waits_for_its_end_only_while_it_has_no_channel_any_more() -> None:
    async with opened(no_channel_timeout_s=3600) as socket:
        assert timers() == 0, "it has had none yet"
        await join_and_leave(socket, {"config": {}})
        assert timers() == 1
        await socket.send("realtime:other", "phx_join", {"config": {}})
        await socket.frame()
        assert timers() == 0
        await socket.send("realtime:other", "phx_leave")
        await socket.frame()
        assert timers() == 1
    assert timers() == 0


@pytest.mark.parametrize(("payload", "timeout_s"), [({}, 3600), ({"config": {}}, 0)])
async def test_a_socket_of_2021_stays_without_channels_and_any_if_that_is_the_setting(
    payload: Any, timeout_s: float
) -> None:
    async with opened(no_channel_timeout_s=timeout_s) as socket:
        await join_and_leave(socket, payload)
        assert timers() == 0


async def test_odd_fields_of_a_join_are_named_in_the_log_once_and_no_more_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "streaming"):
        async with opened() as socket:
            config = {"broadcast": {"self": "a-secret"}, "private": "another-secret"}
            await socket.send(TODOS, "phx_join", {"config": config, "access_token": "sb_secret"})
            assert (await socket.frame())["payload"]["status"] == "ok"
            await socket.send("phoenix", "heartbeat")
            await socket.frame()
    [record] = [record for record in caplog.records if record.getMessage() == "join with odd fields"]
    assert record.levelno == logging.INFO
    assert record.__dict__["fields"] == "broadcast.self,private"
    assert "secret" not in str(record.__dict__)
