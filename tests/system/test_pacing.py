"""A transaction larger than any queue reaches those who read as fast as they can, and nobody waits for the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.system.corridor import LegacyClient
from tests.system.golden import join_frame
from tests.system.server import RealtimeServer, listeners
from tests.system.wire import masked, upgrade_request

ROWS, VALUE_CHARACTERS = 40_000, 1000
QUEUE_MB = 4
LIMIT_S = 60.0
_INSERT = "INSERT INTO large SELECT i, repeat('x', %s) FROM generate_series(1, %s) AS i"


@pytest.fixture(scope="module", params=[(), ("--workers", "1")], ids=["one process", "through Valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RealtimeServer]:
    # Between processes the word to wait takes a while, and what is under way meanwhile has to find room.
    queue_mb = 4 * QUEUE_MB if request.param else QUEUE_MB
    with RealtimeServer({"SLOW_READER_MAX_MB": str(queue_mb), "RING_MAX_MB": "16"}, args=request.param) as server:
        server.wait_for_log("replicator streaming")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE large (id bigint, value text)")
            connection.execute("CREATE TABLE small (id bigint)")
        yield server


def memory_mb(pid: int, what: str) -> float:
    """``VmRSS`` of a process, or its highest value so far, ``VmHWM``."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


class Reader:
    """A client that has joined, and reads so many bytes a second."""

    def __init__(self, server: RealtimeServer, bytes_per_s: float) -> None:
        self._server, self._bytes_per_s = server, bytes_per_s
        self.messages, self.closed = 0, False

    async def join(self) -> None:
        self._reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port, limit=1 << 16)
        self._writer = writer
        writer.write(upgrade_request("/socket/websocket").encode())
        await self._reader.readuntil(b"\r\n\r\n")
        writer.write(masked("text", join_frame("realtime:public:large", "1").encode()))
        await self._reader.readuntil(b"phx_reply")

    async def read(self, wanted: int) -> None:
        """Read until so many changes have come, or the server has closed the socket."""
        rest, started, got = b"", time.monotonic(), 0
        while self.messages < wanted:
            piece = await self._reader.read(1 << 16)
            if not piece:
                self.closed = True
                break
            got += len(piece)
            text = rest + piece
            self.messages += text.count(b'"event":"INSERT"')
            rest = text[-15:] if not text.endswith(b'"event":"INSERT"') else b""
            await asyncio.sleep(max(0.0, got / self._bytes_per_s - (time.monotonic() - started)))

    async def close(self) -> None:
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()


async def insert_large(server: RealtimeServer, rows: int) -> None:
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
        await connection.execute(_INSERT, [VALUE_CHARACTERS, rows])


async def test_a_transaction_of_many_times_the_queue_reaches_a_reader_that_takes_its_time(
    server: RealtimeServer,
) -> None:
    reader = Reader(server, 12e6)
    await reader.join()
    await insert_large(server, 1000)
    (serving,) = listeners(server.port)
    before = memory_mb(serving, "VmRSS")
    await insert_large(server, ROWS - 1000)
    await asyncio.wait_for(reader.read(ROWS), LIMIT_S)
    await reader.close()
    assert (reader.messages, reader.closed) == (ROWS, False)
    assert "slow reader closed" not in server.log
    assert memory_mb(serving, "VmHWM") - before < 60


async def test_a_reader_that_hardly_moves_is_cut_off_and_others_get_theirs_soon(server: RealtimeServer) -> None:
    said = len(server.log)
    slow = Reader(server, 50e3)
    await slow.join()
    async with LegacyClient(server.ws_url, "realtime:public:small") as other:
        reading = asyncio.create_task(slow.read(ROWS))
        await insert_large(server, ROWS)
        async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
            await connection.execute("INSERT INTO small VALUES (1)")
        committed = time.monotonic()
        assert await other.records(1) == ["1"]
        assert time.monotonic() - committed < 15
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await slow.close()
    assert "slow reader closed" in server.log[said:]
