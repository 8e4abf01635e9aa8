"""A client of the current protocol that hides nothing: every frame goes out and comes back as it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from websockets.asyncio.client import ClientConnection, connect

LIMIT_S = 20.0
V1, V2 = "1.0.0", "2.0.0"
SECRET = "a secret that is longer than thirty-two bytes"
"""Of servers with secured channels."""


class UserBroadcast(NamedTuple):
    """A binary frame of kind 4."""

    topic: str
    event: str
    metadata: bytes
    encoding: int
    data: bytes

    @classmethod
    def of(cls, frame: bytes) -> Self:
        """Take the frame apart."""
        kind, topic, event, metadata, encoding = frame[:5]
        assert kind == 4
        start = 5
        parts = []
        for size in (topic, event, metadata):
            parts.append(frame[start : start + size])
            start += size
        return cls(parts[0].decode(), parts[1].decode(), parts[2], encoding, frame[start:])


def push_frame(
    join_ref: str, ref: str, topic: str, event: str, data: bytes, *, encoding: int, metadata: bytes = b""
) -> bytes:
    """A binary frame of kind 3."""
    fields = [join_ref.encode(), ref.encode(), topic.encode(), event.encode(), metadata]
    return bytes([3, *map(len, fields), encoding]) + b"".join(fields) + data


class Channels:
    """One websocket of either protocol version; messages are lists of five, binary ones `UserBroadcast`.

    Those of version 1.0.0 have no join_ref: it is shown as `None`.
    """

    def __init__(self, url: str, vsn: str = V2, **parameters: str) -> None:
        query = "&".join(f"{name}={value}" for name, value in {"vsn": vsn, **parameters}.items())
        self._url, self.vsn = f"{url}?{query}", vsn
        self._socket: ClientConnection | None = None
        self._refs = 0

    async def __aenter__(self) -> Self:
        self._socket = await connect(self._url, max_size=None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.socket.close()

    @property
    def socket(self) -> ClientConnection:
        """The websocket itself."""
        assert self._socket is not None
        return self._socket

    async def send(self, join_ref: Any, ref: Any, topic: str, event: str, payload: Any) -> None:
        """Send one message."""
        if self.vsn == V1:
            fields = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
            await self.socket.send(json.dumps(fields))
        else:
            await self.socket.send(json.dumps([join_ref, ref, topic, event, payload]))

    async def next(self) -> Any:
        """The next message. Raises `TimeoutError` after `LIMIT_S`."""
        frame = await asyncio.wait_for(self.socket.recv(), LIMIT_S)
        if isinstance(frame, bytes):
            return UserBroadcast.of(frame)
        message = json.loads(frame)
        if self.vsn == V1:
            assert sorted(message) == ["event", "payload", "ref", "topic"]
            return [None, message["ref"], message["topic"], message["event"], message["payload"]]
        return message

    async def many(self, count: int) -> list[Any]:
        """The next messages."""
        return [await self.next() for _ in range(count)]

    async def join(
        self, topic: str, config: Mapping[str, Any] | None = None, *, ref: str = "1", **more: Any
    ) -> dict[str, Any]:
        """Join a current channel, join_ref and ref alike, and return the payload of the reply."""
        await self.send(ref, ref, topic, "phx_join", {"config": dict(config or {}), **more})
        reply = await self.next()
        assert reply[1:4] == [ref, topic, "phx_reply"]
        payload: dict[str, Any] = reply[4]
        return payload

    async def joined(self, topic: str, config: Mapping[str, Any] | None = None, **more: Any) -> None:
        """The same, and it has to succeed."""
        reply = await self.join(topic, config, **more)
        assert reply["status"] == "ok", reply

    async def silence(self) -> None:
        """Everything that was sent to the client has been read: a heartbeat's answer is the next message."""
        self._refs += 1
        ref = f"beat {self._refs}"
        await self.send(None, ref, "phoenix", "heartbeat", {})
        assert await self.next() == [None, ref, "phoenix", "phx_reply", {"status": "ok", "response": {}}]

    async def closed(self) -> tuple[int | None, str | None]:
        """The code and the reason that the server closes with, whatever it says before."""
        async with asyncio.timeout(LIMIT_S):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


def ok(join_ref: Any, ref: Any, topic: str, response: Any = None) -> list[Any]:
    """A reply that all is well."""
    return [join_ref, ref, topic, "phx_reply", {"status": "ok", "response": response or {}}]


def error(join_ref: Any, ref: Any, topic: str, response: Any) -> list[Any]:
    """A reply that it is not."""
    return [join_ref, ref, topic, "phx_reply", {"status": "error", "response": response}]


def system(topic: str, message: str, join_ref: Any = "1") -> list[Any]:
    """What a current channel is told before it is closed."""
    told = {
        "extension": "system",
        "status": "error",
        "message": message,
        "channel": topic.removeprefix("realtime:"),
    }
    return [join_ref, None, topic, "system", told]


def close(topic: str, join_ref: Any = "1") -> list[Any]:
    """The end of a channel."""
    return [join_ref, join_ref, topic, "phx_close", {}]
