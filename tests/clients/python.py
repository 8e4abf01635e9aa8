"""The Python clients of 2021 and 2022: each release in a virtual environment of its own, made once.

client = PythonClient.install("1.0.6")
async with Line.to(server.ws_url) as line, client.listen(line.url, "realtime:public:todos", "INSERT") as listener:
    await line.says(b'"ref":null,"topic":"realtime:public:todos"')
    ...
    change = await listener.expect("change")
"""

from __future__ import annotations

import asyncio
import fcntl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.clients.install import Listener
from tests.servers import cache_folder

_HERE = Path(__file__).resolve().parent
_INSTALL_LIMIT_S = 300


class NotInstallable(Exception):
    """The package cannot be fetched here."""


@dataclass(frozen=True, slots=True)
class PythonClient:
    """A Python that has one release of ``realtime``."""

    python: Path

    @classmethod
    def install(cls, version: str) -> PythonClient:
        """Fetch the release with pip, unless the cache has it. Raises `NotInstallable`."""
        name = f"realtime-{version}-python-{sys.version_info.major}.{sys.version_info.minor}"
        folder = cache_folder() / name
        python = folder / "bin" / "python"
        # A virtual environment cannot be moved once it is made, so a file says that this one is complete.
        complete = folder / "complete"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the same run may be at it
            if not complete.exists():
                cls._make(folder, version)
                complete.touch()
        return cls(python)

    @staticmethod
    def _make(folder: Path, version: str) -> None:
        python = folder / "bin" / "python"
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", f"realtime=={version}")
        if version.startswith("0."):
            # It asks for websockets 9, which no longer runs on Python 3.10; 10 is the next one.
            _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "websockets==10.4")

    @asynccontextmanager
    async def listen(self, url: str, topic: str, events: str, count: int = 0) -> AsyncIterator[Listener]:
        """Start ``listen.py`` with these arguments, and end it at the latest when the block does."""
        process = await asyncio.create_subprocess_exec(
            *(self.python, _HERE / "listen.py", url, topic, events, str(count)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        listener = Listener(process)
        try:
            yield listener
        finally:
            await listener.stop()


def _run(*command: str) -> None:
    with tempfile.TemporaryFile() as output:
        try:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=_INSTALL_LIMIT_S, check=False
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotInstallable(f"{command}: {error}") from error
        output.seek(0)
        if code != 0:
            raise NotInstallable(f"{command} ended with {code}:\n{output.read().decode(errors='replace')}")


class Line:
    """A TCP line to a server that remembers what the server said: these clients do not show the replies they get."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self.url = ""
        """The server's URL through this line."""
        self.said = b""
        self._more = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Line]:
        """A line to the server of a websocket URL, open as long as the block."""
        line = cls(url)
        async with await asyncio.start_server(line._carry, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            line.url = line._server._replace(netloc=f"127.0.0.1:{port}").geturl()
            yield line

    async def says(self, words: bytes, times: int = 1, *, timeout_s: float = 15) -> None:
        """Wait until the server has said it so often."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.said.count(words) < times:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"the server did not say {words!r} {times} times; it said {self.said!r}") from None

    async def _carry(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        server_in, server_out = await asyncio.open_connection(self._server.hostname, self._server.port)

        async def forth() -> None:
            while data := await client_in.read(65536):
                server_out.write(data)
            server_out.write_eof()

        async def back() -> None:
            while data := await server_in.read(65536):
                self.said += data
                self._more.set()
                client_out.write(data)

        try:
            with suppress(ConnectionError):
                await asyncio.gather(forth(), back())
        finally:
            for writer in (server_out, client_out):
                writer.close()
