"""The resume helper: stock clients whose sockets are cut at random under load lose nothing, or are told."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.clients.install import NodeClients
from tests.system.cutting_proxy import CuttingProxy
from tests.system.server import PROJECT, RealtimeServer

HELPER = PROJECT / "streaming" / "static" / "streaming" / "walcast-resume.mjs"
CLIENT = Path(__file__).resolve().parents[1] / "clients" / "resume.mjs"
TOPIC = "realtime:public:todos"
LIMIT_S = 60.0

LEGACY = ("1.0.11", "1.7.5", "phoenix")
CURRENT = ("2.11.15", "latest")

WRITERS, TRANSACTIONS, RETURNS = 3, 100, 4
"""Each writer numbers its rows, some transactions having several: so many at least, and until each client has come back
so often."""


OVERFLOW = "INSERT INTO todos (task) SELECT repeat(md5(random()::text), 10000) FROM generate_series(1, 4)"
"""Six times, these are about 7.5 MB, and go through a ring of 4 MB."""


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer({"RING_MAX_MB": "4"}) as server:
        server.wait_for_log("replicator streaming")
        yield server


class ResumingClient:
    """A running ``resume.mjs``: ``tasks`` are those of the rows it was told of, in that order."""

    def __init__(self, version: str, process: asyncio.subprocess.Process) -> None:
        self.version, self._process = version, process
        self.tasks: list[str] = []
        self.joins = self.resumes = self.replayed = self.commit_lsn = 0
        self.gaps: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    def __repr__(self) -> str:
        return (
            f"<{self.version}: {len(self.tasks)} changes, {self.joins} joins, {self.resumes} resumes, "
            f"{self.replayed} replayed, gaps {self.gaps}, errors {self.errors}>"
        )

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for text in self._process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"what": "error", "reason": text.decode().strip()}
            match line["what"]:
                case "change":
                    self.tasks.append(line["task"])
                case "joined":
                    self.joins += 1
                case "resumed":
                    self.resumes += 1
                    self.replayed += line["replayed"]
                case "position":
                    self.commit_lsn = int(line["position"].split(".")[1], 16)
                case "gap":
                    self.gaps.append(line)
                case "error":
                    self.errors.append(line)
            self._changed.set()

    async def until(self, happened: Callable[[], object], what: str) -> None:
        """Wait until ``happened()``."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not happened():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} within {LIMIT_S} s: {self}") from None

    async def stop(self) -> None:
        """End it by closing its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader


@asynccontextmanager
async def running(
    clients: NodeClients, version: str, port: int, helper: Path | None = HELPER, *, topic: str = TOPIC, more: str = ""
) -> AsyncIterator[ResumingClient]:
    """The client, joined."""
    process = await asyncio.create_subprocess_exec(
        *(clients.node, CLIENT, version, f"ws://127.0.0.1:{port}/socket", topic, str(helper or "none"), more),
        cwd=clients.folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=16 * 2**20,
    )
    client = ResumingClient(version, process)
    try:
        await client.until(lambda: client.joins, "join")
        yield client
    finally:
        await client.stop()


async def execute(server: RealtimeServer, *statements: str) -> None:
    """Each statement in a transaction of its own."""
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def write(server: RealtimeServer, writer: int, seed: int, enough: Callable[[], bool]) -> list[str]:
    """Numbered rows of one writer, until it is ``enough``; returns them in the order of their commits."""
    dice = random.Random(f"{seed} writer {writer}")
    written: list[str] = []
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
        transactions = 0
        while transactions < TRANSACTIONS or not enough():
            transactions += 1
            names = [f"{writer}:{len(written) + number}" for number in range(dice.choice((1, 1, 1, 2, 10)))]
            await connection.execute("INSERT INTO todos (task) SELECT unnest(%s::text[])", [names])
            written += names
            await asyncio.sleep(dice.random() * 0.04)  # the pace of the load
    return written


def faults(heard: list[str], written: list[list[str]]) -> list[str]:
    """What is wrong with a client's story: rows lost, doubled, foreign, or out of their writer's order."""
    found = []
    wanted = {name for names in written for name in names}
    counts = Counter(heard)
    if lost := wanted - set(heard):
        found.append(f"{len(lost)} lost, such as {min(lost)}")
    if doubled := [name for name, count in counts.items() if count > 1]:
        found.append(f"{len(doubled)} doubled, such as {doubled[0]}")
    if foreign := set(heard) - wanted:
        found.append(f"{len(foreign)} foreign, such as {min(foreign)}")
    for writer in range(len(written)):
        prefix = f"{writer}:"
        order = [int(name.partition(":")[2]) for name in heard if name.startswith(prefix)]
        if order != sorted(order):
            found.append(f"those of writer {writer} out of order")
    return found


async def cut_under_load(
    server: RealtimeServer, node_clients: NodeClients, versions: tuple[str, ...], helper: Path | None
) -> tuple[list[ResumingClient], list[list[str]], int]:
    """Run the clients behind a proxy that cuts at random while rows are written; the last row comes through."""
    seed = int(os.environ.get("WALCAST_SEED") or random.randrange(2**32))
    print(f"WALCAST_SEED={seed}")
    dice = random.Random(seed)
    is_cutting = True
    # Some cuts come in the middle of the handshake or of the join, some in the middle of a replay, some later. What is
    # still to be replayed grows meanwhile: long ones let it all through.
    lengths = (0, 300, 900, 5_000, 30_000, 100_000, 300_000, 300_000)

    def cut_after() -> int | None:
        return dice.choice(lengths) + dice.randrange(500) if is_cutting else None

    async with CuttingProxy(server.port) as proxy, AsyncExitStack() as stack:
        clients = await asyncio.gather(
            *(stack.enter_async_context(running(node_clients, version, proxy.port, helper)) for version in versions)
        )
        proxy.cut_after = cut_after
        proxy.cut()

        def enough() -> bool:
            return all((client.resumes if helper else client.joins) >= RETURNS for client in clients)

        try:
            async with asyncio.timeout(LIMIT_S):
                written = await asyncio.gather(*(write(server, writer, seed, enough) for writer in range(WRITERS)))
        except TimeoutError:
            raise AssertionError(f"not every client came back {RETURNS} times: {clients}") from None
        is_cutting = False
        cuts = proxy.cuts
        proxy.cut()
        await asyncio.gather(*(hears_the_end(server, client, f"end of {client.version}") for client in clients))
    for client in clients:
        client.tasks = [task for task in client.tasks if not task.startswith("end of ")]
    return clients, written, cuts


async def hears_the_end(server: RealtimeServer, client: ResumingClient, last: str) -> None:
    """Write rows until the client has been told of one: without the helper it may miss some while it comes back."""
    heard = asyncio.create_task(client.until(lambda: last in client.tasks, "last row"))
    while not heard.done():
        await execute(server, f"INSERT INTO todos (task) VALUES ('{last}')")
        await asyncio.wait([heard], timeout=0.5)
    await heard


async def test_clients_whose_sockets_are_cut_at_random_lose_nothing(
    server: RealtimeServer, node_clients: NodeClients
) -> None:
    clients, written, cuts = await cut_under_load(server, node_clients, LEGACY + CURRENT, HELPER)

    assert {client.version: faults(client.tasks, written) for client in clients} == {
        version: [] for version in LEGACY + CURRENT
    }
    assert [client.gaps for client in clients] == [[]] * len(clients)
    assert [client.errors for client in clients] == [[]] * len(clients)
    # One order for all of them, over all writers.
    assert [client.version for client in clients if client.tasks != clients[0].tasks] == []
    # And it was not easy.
    assert cuts >= RETURNS * len(clients)
    assert all(client.replayed for client in clients)


async def test_the_checker_reports_what_is_lost_without_the_helper(
    server: RealtimeServer, node_clients: NodeClients
) -> None:
    clients, written, _ = await cut_under_load(server, node_clients, ("phoenix",), None)

    (found,) = (faults(client.tasks, written) for client in clients)
    assert found
    assert "lost" in found[0]


@pytest.mark.parametrize("version", ["1.7.5", "latest"])
async def test_who_was_away_for_too_long_is_told_that_changes_are_missing(
    version: str, server: RealtimeServer, node_clients: NodeClients
) -> None:
    async with CuttingProxy(server.port) as proxy, running(node_clients, version, proxy.port) as client:
        await execute(server, "INSERT INTO todos (task) VALUES ('before')")
        await client.until(lambda: "before" in client.tasks, "change")
        proxy.is_closed = True
        proxy.cut()
        await execute(server, *[OVERFLOW] * 6)
        proxy.is_closed = False
        await client.until(lambda: client.gaps, "gap")
        await execute(server, "INSERT INTO todos (task) VALUES ('after')")
        await client.until(lambda: "after" in client.tasks, "change after the gap")

    assert [gap["topic"] for gap in client.gaps] == [TOPIC if version == "1.7.5" else "realtime:resumes"]
    assert client.tasks == ["before", "after"]


@pytest.mark.parametrize("version", ["1.0.11", "latest"])
async def test_a_quiet_topic_moves_on_with_heartbeats_and_misses_nothing_by_being_quiet(
    version: str, server: RealtimeServer, node_clients: NodeClients
) -> None:
    await execute(server, "CREATE TABLE IF NOT EXISTS quiet (id int, task text)")
    topic = "realtime:public:quiet"
    async with (
        CuttingProxy(server.port) as proxy,
        running(node_clients, version, proxy.port, topic=topic, more="500") as client,
    ):
        await execute(server, *[OVERFLOW] * 6)
        before = await current_lsn(server)
        await execute(server, "INSERT INTO todos (task) VALUES ('the last loud one')")
        await client.until(lambda: client.commit_lsn > before, "heartbeat that tells of the last position")
        proxy.cut()
        await client.until(lambda: client.resumes, "return")
        await execute(server, "INSERT INTO quiet VALUES (1, 'a quiet one')")
        await client.until(lambda: client.tasks, "change")

    assert (client.tasks, client.gaps) == (["a quiet one"], [])


async def current_lsn(server: RealtimeServer) -> int:
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
        cursor = await connection.execute("SELECT pg_current_wal_lsn() - '0/0'")
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


def test_the_helper_is_served_to_every_origin(server: RealtimeServer) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/static/streaming/walcast-resume.mjs")
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()

    assert (answer.status, body) == (200, HELPER.read_text())
    assert answer.headers["Content-Type"].startswith("text/javascript")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
