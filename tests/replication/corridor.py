"""What the tests of the replicator share: a publisher that remembers, a record in memory, a run and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any, Self

import psycopg

from replication.changes import Chunk, Envelope
from replication.lsn import LSN, Position
from replication.options import ReplicatorSettings
from replication.publisher import Publisher, Tick
from replication.record import Record
from replication.replicator import RecordStore, Replicator

LIMIT_S = 30.0

Seen = tuple[str, str, dict[str, Any]]
"""Event, table, and the row that a reader of its topic would see (of a TRUNCATE, nothing)."""


async def until(happened: Callable[[], bool | Awaitable[bool]], what: str, *, limit_s: float = LIMIT_S) -> None:
    """Ask again and again, often, until it is so. Raises `TimeoutError` that names what did not happen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while True:
        answer = happened()
        if answer if isinstance(answer, bool) else await answer:
            return
        if loop.time() > deadline:
            raise TimeoutError(f"{what} did not happen within {limit_s} s")
        await asyncio.sleep(0.02)


class Recorder:
    """A publisher that keeps what it is given, as it arrives at the other end of a channel layer."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.ticks: list[Tick] = []
        self.committed_lsns: list[int] = []

    async def publish(self, envelope: Envelope) -> None:
        """Keep the envelope, through its bytes."""
        self.envelopes.append(Envelope.decode(envelope.encode()))

    async def committed(self, commit_lsn: int) -> None:
        """Keep the LSN; whatever comes later belongs to a later transaction."""
        self.committed_lsns.append(commit_lsn)

    async def tick(self, tick: Tick) -> None:
        """Keep the tick, through its bytes."""
        self.ticks.append(Tick.decode(tick.encode()))

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks in the order in which they came."""
        return [chunk for envelope in self.envelopes for chunk in envelope.chunks]

    @property
    def seen(self) -> list[Seen]:
        """All changes in the order in which they came."""
        return [seen(change) for chunk in self.chunks for change in chunk.changes]

    @property
    def ids(self) -> list[int]:
        """The ``id`` of every change that has a row."""
        return [int(row["id"]) for _, _, row in self.seen if row]

    async def has(self, count: int) -> None:
        """Wait until so many changes have come."""
        await until(
            lambda: sum(len(chunk.changes) for chunk in self.chunks) >= count, f"the arrival of {count} changes"
        )

    def assert_one_chain(self) -> None:
        """Every link follows the one before, and every change stands above the one before."""
        for before, after in pairwise(self.envelopes):
            if before.epoch == after.epoch:
                assert after.prev == before.last
        for epoch in {envelope.epoch for envelope in self.envelopes}:
            positions = [
                Position(chunk.commit_lsn, change.lsn, change.ordinal)
                for envelope in self.envelopes
                if envelope.epoch == epoch
                for chunk in envelope.chunks
                for change in chunk.changes
            ]
            assert all(one < other for one, other in pairwise(positions))
        for envelope in self.envelopes:
            assert envelope.prev < envelope.chunks[0].first
            assert envelope.last == envelope.chunks[-1].last


def seen(change: Any) -> Seen:
    """A change as its readers see it."""
    row = change.decode()
    names = [column.name for column in change.relation.columns]
    texts = [] if row is None else row.old if row.new is None else row.new
    return change.event, change.relation.name, dict(zip(names, texts, strict=bool(texts)))


class MemoryStore:
    """A `RecordStore` that outlives its replicators, as a database would."""

    def __init__(self) -> None:
        self.saved: list[Record] = []

    async def load(self, name: str) -> Record | None:
        """The newest record."""
        return self.saved[-1] if self.saved else None

    async def save(self, name: str, record: Record) -> None:
        """Keep it; the ones before stay, to be looked at."""
        self.saved.append(record)


@asynccontextmanager
async def started(settings: ReplicatorSettings, publisher: Publisher, store: RecordStore) -> AsyncIterator[Replicator]:
    """A replicator that runs, whether or not it streams; afterwards it is cancelled and has ended.

    If it ends by itself, what the test waits for is cancelled, and the error is the test's.
    """
    replicator = Replicator(settings, publisher, store)
    test = asyncio.current_task()
    assert test is not None
    task = asyncio.create_task(replicator.run())

    def has_ended(_: asyncio.Task[None]) -> None:
        test.cancel("the replicator has ended by itself")

    task.add_done_callback(has_ended)
    try:
        yield replicator
    finally:
        task.remove_done_callback(has_ended)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def streaming(
    settings: ReplicatorSettings, publisher: Publisher, store: RecordStore
) -> AsyncIterator[Replicator]:
    """The same, entered when the slot is being read."""
    async with started(settings, publisher, store) as replicator:
        await until(replicator.streaming.is_set, "streaming")
        yield replicator


class Line:
    """A TCP line to a server, with a ``dsn`` that goes through it; it can be slow, cut, and mended."""

    def __init__(self, dsn: str, *, lump_at: bytes | None = None) -> None:
        """``lump_at``: once the client has said this, the server's words are held until it has no more to say."""
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        self._server, self._dsn = (str(parts["host"]), int(str(parts["port"]))), dsn
        self._lump_at = lump_at
        self._cut = False
        self._ways: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.dsn = psycopg.conninfo.make_conninfo(self._dsn, port=self._listener.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self.cut()

    async def cut(self) -> None:
        """End every connection, and let no other through."""
        self._cut = True
        for way in self._ways:
            way.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)

    def mend(self) -> None:
        """Let connections through again."""
        self._cut = False

    def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        way = asyncio.create_task(self._carry(client_in, client_out))
        self._ways.add(way)
        way.add_done_callback(self._ways.discard)

    async def _carry(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        writers, tasks = [client_out], []
        try:
            if self._cut:
                return
            server_in, server_out = await asyncio.open_connection(*self._server)
            writers.append(server_out)
            lumping = asyncio.Event()

            async def ask() -> None:
                while data := await client_in.read(65536):
                    if self._lump_at and self._lump_at in data:
                        lumping.set()
                    server_out.write(data)

            async def answer() -> None:
                while data := await server_in.read(65536):
                    if lumping.is_set():
                        with suppress(TimeoutError):
                            while more := await asyncio.wait_for(server_in.read(65536), 0.5):
                                data += more
                        lumping.clear()
                    client_out.write(data)

            tasks = [asyncio.create_task(ask()), asyncio.create_task(answer())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in writers:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()


async def execute(dsn: str, *statements: str) -> None:
    """Run the statements, each a transaction of its own unless it says otherwise."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def value(dsn: str, query: str, *parameters: object) -> Any:
    """The first value that a query gives; None if it gives nothing."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        row = await (await connection.execute(query.encode(), parameters)).fetchone()
        return row[0] if row else None


async def confirmed_lsn(dsn: str, slot_name: str) -> LSN:
    """What the server believes that we have done with."""
    text = await value(dsn, "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", slot_name)
    return LSN.parse(text)
