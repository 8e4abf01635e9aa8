"""Pings and their pongs while a lot is on its way: they go between two frames, never into one."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress

from websockets.asyncio.client import ClientConnection, connect

from tests.system.corridor import execute
from tests.system.server import RealtimeServer

ROWS = 1_000
TABLE = "CREATE TABLE IF NOT EXISTS long_rows (id int PRIMARY KEY, body text)"
INSERT = f"INSERT INTO long_rows SELECT n, repeat('x', 3000) FROM generate_series(1, {ROWS}) n"


async def test_a_client_that_pings_while_it_is_behind_reads_every_frame(realtime_server: RealtimeServer) -> None:
    execute(realtime_server.dsn, TABLE, "TRUNCATE long_rows")
    # A small window, so that frames are half out most of the time.
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    small.connect(("127.0.0.1", realtime_server.port))
    small.setblocking(False)
    async with connect(realtime_server.ws_url, sock=small, max_size=None, ping_interval=None, max_queue=4) as client:
        topic = "realtime:public:long_rows"
        await client.send(json.dumps({"topic": topic, "event": "phx_join", "payload": {}, "ref": "1"}))
        await client.recv()
        pinging = asyncio.create_task(_ping(client))
        execute(realtime_server.dsn, INSERT)
        try:
            ids: list[int] = []
            async with asyncio.timeout(30):
                while len(ids) < ROWS:
                    payload = json.loads(await client.recv())["payload"]
                    if payload["type"] == "INSERT":
                        ids.append(int(payload["record"]["id"]))
        finally:
            pinging.cancel()
            with suppress(asyncio.CancelledError):
                await pinging
    assert ids == list(range(1, ROWS + 1))


async def _ping(client: ClientConnection) -> None:
    while True:
        await client.ping()
        await asyncio.sleep(0.002)
