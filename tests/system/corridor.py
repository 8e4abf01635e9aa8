"""The corridor in its production form: a replicator, some Daphnes, and a client that speaks the legacy protocol."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from websockets.asyncio.client import ClientConnection, connect

from tests.servers import free_port
from tests.system.server import PROJECT, ManagedProcess, http_status

LIMIT_S = 20.0


def replicator(env: Mapping[str, str]) -> ManagedProcess:
    """``manage.py run_replicator``, ready when it streams or stands by."""
    return ManagedProcess(
        [sys.executable, PROJECT / "manage.py", "run_replicator"],
        env,
        lambda process: " streaming " in process.log or "standing by" in process.log,
    )


class DaphneProcess(ManagedProcess):
    """``daphne realtime_project.asgi:application`` on a free port, or on one that it may share."""

    def __init__(
        self,
        env: Mapping[str, str],
        application: str = "realtime_project.asgi:application",
        *,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        endpoint = f"tcp:port={self.port}:interface=127.0.0.1:backlog=4096"
        daphne = Path(sys.executable).with_name("daphne")
        super().__init__([daphne, "-e", endpoint, application], env, lambda _: http_status(self.port) == 200)

    @property
    def ws_url(self) -> str:
        """Of its socket, in full."""
        return f"ws://127.0.0.1:{self.port}/socket/websocket"


class LegacyClient:
    """A plain websocket that joins topics the way clients of 2021 do."""

    def __init__(self, url: str, *topics: str) -> None:
        self._url, self._topics = url, topics
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        self._socket = await connect(self._url, max_size=None)
        for number, topic in enumerate(self._topics):
            await self.send({"topic": topic, "event": "phx_join", "payload": {}, "ref": str(number)})
            assert (await self.receive())["payload"] == {"status": "ok", "response": {}}
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

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one message."""
        await self.socket.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        """The next message; `TimeoutError` after `LIMIT_S`."""
        import asyncio

        message: dict[str, Any] = json.loads(await asyncio.wait_for(self.socket.recv(), LIMIT_S))
        return message

    async def records(self, count: int, column: str = "id") -> list[str]:
        """That column of the next ``count`` changes."""
        return [(await self.receive())["payload"]["record"][column] for _ in range(count)]


def execute(dsn: str, *statements: str) -> None:
    """Run each statement in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
