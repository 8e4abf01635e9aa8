"""A client whose socket is cut again and again under load: it comes back with its position, and misses nothing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.servers import ValkeyServer
from tests.system.corridor import DaphneProcess, execute, replicator
from tests.system.server import RealtimeServer

TOPIC = "realtime:public:numbered"
ROWS, BURST = 1_600, 20
LIMIT_S = 60.0


class Resumer:
    """A client that knows its position. ``url`` may change from connection to connection: there are several servers."""

    def __init__(self, urls: list[str], seed: int, *, resumes: bool = True) -> None:
        self._urls, self._resumes = urls, resumes
        self._random = random.Random(seed)
        self.position: str | None = None
        self.numbers: list[int] = []
        self.cuts = self.replayed = 0
        self.joined = asyncio.Event()

    async def run(self, last: int) -> None:
        """Listen, cut the socket at random moments, come back; until the row ``last`` has come."""
        while not self.numbers or self.numbers[-1] < last:
            async with connect(self._random.choice(self._urls), max_size=None) as socket:
                await self._join(socket)
                await self._listen(socket, last, self._random.uniform(0.02, 0.4))
            self.cuts += 1

    async def _join(self, socket: ClientConnection) -> None:
        resume = {"since": self.position} if self.position is not None and self._resumes else {}
        await socket.send(json.dumps({"topic": TOPIC, "event": "phx_join", "payload": {"resume": resume}, "ref": "1"}))
        reply = json.loads(await socket.recv())["payload"]
        assert reply["status"] == "ok", reply
        response = reply["response"]
        if resume:
            assert response["recovered"] is True, response
        self.replayed += response["replayed"]
        if self.position is None or not self._resumes:
            self.position = response["position"]
        self.joined.set()

    async def _listen(self, socket: ClientConnection, last: int, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not self.numbers or self.numbers[-1] < last:
                    payload: dict[str, Any] = json.loads(await socket.recv())["payload"]
                    self.numbers.append(int(payload["record"]["id"]))
                    self.position = payload["position"]
        except TimeoutError:
            socket.transport.abort()


async def write_slowly(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for start in range(0, ROWS, BURST):
            await connection.execute(
                "insert into numbered select i from generate_series(%s::int, %s::int) i", [start, start + BURST - 1]
            )
            await asyncio.sleep(0.02)


async def write_on(dsn: str, until: asyncio.Task[None]) -> None:
    """More rows, so that who has missed the last one comes to an end as well."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        number = ROWS
        while not until.done():
            await connection.execute("insert into numbered values (%s)", [number])
            number += 1
            await asyncio.wait([until], timeout=0.05)


async def listen_and_write(dsn: str, clients: list[Resumer]) -> None:
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(ROWS - 1))
        for client in clients:
            await client.joined.wait()
        await write_slowly(dsn)


@pytest.fixture(params=["one process", "two Daphnes"])
def house(
    request: pytest.FixtureRequest, database18: str, valkey: ValkeyServer, tmp_path: Path
) -> Iterator[tuple[str, list[str]]]:
    """A database with a published table, and where to connect."""
    execute(database18, "create table numbered(id int primary key)", "create publication p for table numbered")
    env = {
        "DATABASE_URL": database18,
        "PUBLICATIONS": "p",
        "SECURE_CHANNELS": "false",
        "SLOT_NAME": f"resume_{tmp_path.name[-20:].lower().replace('-', '_')}",
        "WALCAST_HOME": str(tmp_path),
    }
    with ExitStack() as stack:
        if request.param == "one process":
            urls = [f"{stack.enter_context(RealtimeServer(env)).ws_url}"]
        else:
            env["REDIS_URL"] = valkey.url
            stack.enter_context(replicator(env))
            urls = [stack.enter_context(DaphneProcess(env)).ws_url for _ in range(2)]
        yield database18, urls


async def test_whoever_comes_back_with_a_position_misses_nothing_and_hears_nothing_twice(
    house: tuple[str, list[str]],
) -> None:
    dsn, urls = house
    clients = [Resumer(urls, seed) for seed in range(5)]
    await listen_and_write(dsn, clients)
    for client in clients:
        assert client.numbers == list(range(ROWS))
    assert all(client.cuts > 1 for client in clients)
    assert sum(client.replayed for client in clients) > 0


async def test_whoever_comes_back_without_one_has_missed_something(house: tuple[str, list[str]]) -> None:
    dsn, urls = house
    client = Resumer(urls, 7, resumes=False)
    async with asyncio.timeout(LIMIT_S):
        listening = asyncio.create_task(client.run(ROWS - 1))
        await client.joined.wait()
        await write_slowly(dsn)
        await write_on(dsn, listening)
        await listening
    heard = [number for number in client.numbers if number < ROWS]
    assert heard != list(range(ROWS))
    assert sorted(set(heard)) == heard
