"""A client whose socket is cut again and again under load: it comes back with its position, and misses nothing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack, suppress
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


class Writer:
    """Commits numbers in bursts until nobody listens any more, so that who has missed the last one ends as well."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._committed = asyncio.Condition()

    async def run(self, listeners: list[asyncio.Task[None]]) -> None:
        number = 0
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            while not all(listener.done() for listener in listeners):
                await connection.execute(
                    "insert into numbered select i from generate_series(%s::int, %s::int) i",
                    [number, number + BURST - 1],
                )
                number += BURST
                async with self._committed:
                    self._committed.notify_all()
                await asyncio.wait(listeners, timeout=0.02)

    async def next_commit(self) -> None:
        async with self._committed:
            await self._committed.wait()


class Resumer:
    """A client that knows its position. ``urls``: it comes back at one of them, there are several servers."""

    def __init__(self, writer: Writer, urls: list[str], seed: int, *, resumes: bool = True) -> None:
        self._writer, self._urls, self._resumes = writer, urls, resumes
        self._random = random.Random(seed)
        self.position: str | None = None
        self.numbers: list[int] = []
        self.cuts = self.replayed = 0
        self.joined = asyncio.Event()

    async def run(self) -> None:
        """Listen, cut the socket at random moments, be away for a commit, come back; until the last row has come."""
        while True:
            async with connect(self._random.choice(self._urls), max_size=None) as socket:
                await self._join(socket)
                await self._listen(socket, self._random.uniform(0.02, 0.4))
            if self._is_done:
                return
            self.cuts += 1
            await self._writer.next_commit()

    @property
    def _is_done(self) -> bool:
        return bool(self.numbers) and self.numbers[-1] >= ROWS - 1

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

    async def _listen(self, socket: ClientConnection, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._is_done:
                    payload: dict[str, Any] = json.loads(await socket.recv())["payload"]
                    self.numbers.append(int(payload["record"]["id"]))
                    self.position = payload["position"]
        socket.transport.abort()


async def listen_and_write(writer: Writer, clients: list[Resumer]) -> None:
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        listeners = [group.create_task(client.run()) for client in clients]
        for client in clients:
            await client.joined.wait()
        await writer.run(listeners)


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
    writer = Writer(dsn)
    clients = [Resumer(writer, urls, seed) for seed in range(5)]
    await listen_and_write(writer, clients)
    for client in clients:
        assert client.numbers == list(range(ROWS))
    assert all(client.cuts > 1 for client in clients)
    assert all(client.replayed > 0 for client in clients)


async def test_whoever_comes_back_without_one_has_missed_something(house: tuple[str, list[str]]) -> None:
    dsn, urls = house
    writer = Writer(dsn)
    client = Resumer(writer, urls, 7, resumes=False)
    await listen_and_write(writer, [client])
    assert client.cuts > 1
    assert client.numbers != list(range(client.numbers[-1] + 1))
    assert sorted(set(client.numbers)) == client.numbers
