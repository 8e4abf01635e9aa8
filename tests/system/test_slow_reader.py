"""A client that stops reading: it is closed with a name, nobody else waits, and the server's memory stays bounded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.servers import wait_until
from tests.system.golden import LIMIT_S, fields_of, join_frame, stopped_reader
from tests.system.server import RealtimeServer
from tests.system.test_metrics import value

TOPIC = "realtime:public:bulk"
ROWS, VALUE_CHARACTERS = 100, 10_000
"""Of one transaction: about a megabyte on the wire."""

_TCP_ESTABLISHED = 1


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    env = {"SLOW_READER_MAX_MB": "2", "SLOW_READER_MAX_WAIT_S": "60", "RING_MAX_MB": "1"}
    with RealtimeServer(env) as server:
        prepare(server)
        yield server


def prepare(server: RealtimeServer) -> None:
    """Make the table, once changes of it are streamed."""
    server.wait_for_log("replicator streaming")
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE bulk (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, value text)")


@asynccontextmanager
async def eager_reader(server: RealtimeServer) -> AsyncIterator[ClientConnection]:
    """A client that has joined, and keeps up."""
    async with connect(server.ws_url, compression=None, max_size=None, max_queue=None) as reader:
        await reader.send(join_frame(TOPIC, "1"))
        assert fields_of(str(await reader.recv()))["event"] == "phx_reply"
        yield reader


async def write(server: RealtimeServer, reader: ClientConnection, megabytes: int) -> None:
    """Commit about so much, a megabyte at a time, each as soon as the eager reader has the one before."""
    statement = "INSERT INTO bulk (value) SELECT repeat('x', %s) FROM generate_series(1, %s)"
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
        for _ in range(megabytes):
            await connection.execute(statement, [VALUE_CHARACTERS, ROWS])
            async with asyncio.timeout(LIMIT_S):
                for _ in range(ROWS):
                    assert len(await reader.recv()) > VALUE_CHARACTERS


def memory_mb(server: RealtimeServer, what: str) -> float:
    """``VmRSS`` or its highest value so far, ``VmHWM``."""
    match = re.search(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


async def test_it_is_closed_and_the_others_get_everything_in_bounded_memory(server: RealtimeServer) -> None:
    async with eager_reader(server) as eager:
        await write(server, eager, 3)  # what is allocated once
        before = memory_mb(server, "VmRSS")
        said = len(server.log)
        with stopped_reader(server.port, TOPIC), stopped_reader(server.port, TOPIC), stopped_reader(server.port, TOPIC):
            await write(server, eager, 60)
            grown = memory_mb(server, "VmHWM") - before
        assert server.log[said:].count("slow reader closed") == 3
    assert grown < 30


async def test_it_reads_whole_frames_up_to_its_close_frame_if_it_reads_on(server: RealtimeServer) -> None:
    said = len(server.log)
    async with eager_reader(server) as eager:
        with stopped_reader(server.port, TOPIC) as stopped:
            for _ in range(30):
                await write(server, eager, 1)
                if "slow reader closed" in server.log[said:]:
                    break
            frames = []
            while (frame := stopped.frame()) is not None:
                frames.append(frame)
    *changes, last = (frame for frame in frames if frame.type != "ping")
    assert (last.type, last.code, last.reason) == ("close", 1013, "slow-reader")
    ids = [int(fields_of(frame.data.decode())["payload"]["record"]["id"]) for frame in changes]
    assert len(ids) > ROWS
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert "bound=bytes" in server.log[said:]


async def test_it_hears_why_although_the_rest_takes_it_a_while(server: RealtimeServer) -> None:
    said, closed = len(server.log), _closed(server)
    async with eager_reader(server) as eager:
        with stopped_reader(server.port, TOPIC) as stopped:
            while "slow reader closed" not in server.log[said:]:
                await write(server, eager, 1)
            while _closed(server) == closed:
                frames = [stopped.frame() for _ in range(10)]
            # The close frame has left the process, and waits in the kernel behind what has not been read.
            await asyncio.sleep(1.5)
            while (frame := stopped.frame()) is not None:
                frames.append(frame)
    last = frames[-1]
    assert last is not None
    assert (last.type, last.code, last.reason) == ("close", 1013, "slow-reader")


def _closed(server: RealtimeServer) -> float:
    return value(server.port, "closes_total", by="server", code="1013")


async def test_its_connection_ends_even_if_it_never_reads_again(server: RealtimeServer) -> None:
    said = len(server.log)
    async with eager_reader(server) as eager:
        with stopped_reader(server.port, TOPIC) as stopped:
            await write(server, eager, 30)
            server.wait_for_log("slow reader closed", since=said)
            wait_until(lambda: stopped.tcp_state() != _TCP_ESTABLISHED, "the end of the connection")


async def test_it_is_closed_when_nothing_moves_for_too_long_however_little_waits() -> None:
    env = {"SLOW_READER_MAX_MB": "1000", "SLOW_READER_MAX_WAIT_S": "1"}
    with RealtimeServer(env) as server:
        prepare(server)
        async with eager_reader(server) as eager:
            with stopped_reader(server.port, TOPIC):
                await write(server, eager, 10)
                server.wait_for_log("slow reader closed")
                assert "bound=wait" in server.log
            await write(server, eager, 1)
