"""A TCP proxy that cuts: what a bad network does to a websocket, as often as a test needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 16 << 10


class CuttingProxy:
    """Forwards a port of 127.0.0.1 to another one, and cuts connections off without a goodbye.

    ``cut_after()`` says, for each connection, after how many bytes towards the client it is cut; `None` is never. While
    `is_closed`, connections are refused in the same way as soon as they are made.
    """

    def __init__(self, port: int, cut_after: Callable[[], int | None] = lambda: None) -> None:
        self._target = port
        self.cut_after = cut_after
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.is_closed = False
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.is_closed = True
        self.cut()
        await self._server.wait_closed()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def port(self) -> int:
        """Where clients connect."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Cut every connection now."""
        for writer in list(self._writers):
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_closed:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        if self.is_closed:  # meanwhile
            self._writers.discard(writer)
            for each in (writer, upstream_writer):
                each.transport.abort()
            return
        self._writers.add(upstream_writer)
        up = asyncio.create_task(_pump(reader, upstream_writer, None))
        down = asyncio.create_task(_pump(upstream_reader, writer, self.cut_after()))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            self.cuts += down.done() and not down.cancelled() and down.result()
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.wait([up, down])
            for each in (writer, upstream_writer):
                self._writers.discard(each)
                each.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> bool:
    """Carry bytes until one side ends; True if it was ended after ``limit`` bytes."""
    with suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            if limit is not None and len(data) >= limit:
                writer.write(data[:limit])
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await writer.drain()
                return True
            writer.write(data)
            await writer.drain()
            if limit is not None:
                limit -= len(data)
    return False
