"""Stock clients that talk in a room, each told by its test what to do.

async with talking(clients, "latest", server.ws_url, "room", {"broadcast": {"ack": True}}) as one:
    await one.join()
    assert await one.do("send", event="e", payload={"n": 1}) == "ok"
    ...
    heard = await other.expect("broadcast")
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.clients.install import Listener, NodeClients
from tests.clients.python import PythonClient

_HERE = Path(__file__).resolve().parent

NODE_CLIENTS = ("2.11.15", "latest", "latest-v1", "supabase")
"""What ``talk.mjs`` knows: three of realtime-js, and supabase-js; ``phoenix`` as well, which is another language."""

PYTHON_VERSION = "2.34.1"


class Talker(Listener):
    """A running ``talk.mjs`` or ``talk.py``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process)
        self._orders = process.stdin
        self._unread: list[dict[str, Any]] = []

    async def do(self, what: str, **facts: Any) -> Any:
        """Give an order, and return what came of it; what is heard meanwhile is kept for `hear`."""
        assert self._orders is not None
        self._orders.write(json.dumps({"do": what, **facts}).encode() + b"\n")
        await self._orders.drain()
        before = len(self.heard)
        done = await self.expect("done")
        self._unread += self.heard[before:-1]
        return done.get("result")

    async def hear(self, what: str) -> dict[str, Any]:
        """The next line of this kind that no `hear` has returned."""
        for line in self._unread:
            if line["what"] == what:
                self._unread.remove(line)
                return line
        before = len(self.heard)
        line = await self.expect(what)
        self._unread += self.heard[before:-1]
        return line

    async def join(self) -> None:
        """Join the room, and wait until the client says so."""
        await self.do("join")
        await self.hear("joined")

    async def present(self, keys: Mapping[str, Any]) -> None:
        """Wait until the client shows these presences, metas without what the protocol adds."""
        while True:
            state = (await self.hear("presence"))["state"]
            shown = {
                key: [{n: v for n, v in meta.items() if n not in ("presence_ref", "phx_ref")} for meta in metas]
                for key, metas in state.items()
            }
            if shown == keys:
                return


@asynccontextmanager
async def talking(
    clients: NodeClients | PythonClient, version: str, url: str, topic: str, config: Mapping[str, Any]
) -> AsyncIterator[Talker]:
    """Start a client, and end it at the latest when the block does."""
    if isinstance(clients, NodeClients):
        argv: list[str | Path] = [clients.node, _HERE / "talk.mjs", version, url, topic, json.dumps(config)]
        folder: Path | None = clients.folder
    else:
        argv, folder = [clients.python, _HERE / "talk.py", url, topic, json.dumps(config)], None
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=16 * 2**20,
    )
    talker = Talker(process)
    try:
        yield talker
    finally:
        await talker.stop()
