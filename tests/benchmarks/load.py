"""The load client: compiled from ``load.c`` when first needed, then a subprocess that reads what a server sends."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.servers import cache_folder

SOURCE = Path(__file__).with_name("load.c")

IDLE_S = 8.0
"""So long may nothing arrive before a run counts as ended."""


AT_ONCE = 64
"""Handshakes that are under way at a time."""


class NoCompiler(RuntimeError):
    """Nothing here compiles C."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{reason}, and the load client has to be compiled once: a slower one would be what is measured; "
            "install a compiler (Debian: apt-get install gcc libc6-dev), or name yours in CC"
        )


class LoadFailed(RuntimeError):
    """The load client gave up; ``reason`` is what it said."""

    def __init__(self, reason: str) -> None:
        self.reason = reason.strip() or "it said nothing"
        super().__init__(f"the load client gave up, so there is nothing to show: {self.reason}")


@dataclass(frozen=True, slots=True)
class Received:
    """What all clients together received: counts, the seconds from the first message to the last, latencies in ms."""

    messages: int
    fewest: int
    most: int
    closed: int
    bytes: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def compiled() -> Path:
    """The program, compiled for this source if it is not in the cache yet. Raises `NoCompiler`."""
    program = cache_folder() / f"load-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    if program.exists():
        return program
    if (compiler := os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")) is None:
        raise NoCompiler("there is no C compiler")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as unfinished:
        output = Path(unfinished, "load")
        try:
            subprocess.run([*compiler.split(), "-O2", "-o", output, SOURCE], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoCompiler(f"{compiler} does not compile ({error})") from error
        output.rename(program)
    return program


class LoadClients:
    """``clients`` sockets on one topic, each waiting for ``messages`` of an event; all have joined when it is entered.

    ``{n}`` in the topic or in the payload of the join is the number of the client, from 0. ``at_once`` of them shake
    hands at a time. After ``idle_s`` without a message (`IDLE_S`) nothing more is expected.

    Raises `LoadFailed` if they cannot connect, or are refused.
    """

    def __init__(
        self,
        *,
        port: int,
        path: str,
        topic: str,
        clients: int,
        messages: int,
        limit_s: float,
        idle_s: float | None = None,
        at_once: int = AT_ONCE,
        join: str = "{}",
        event: str = "INSERT",
    ) -> None:
        numbers = (clients, messages, idle_s or IDLE_S, limit_s, at_once)
        self._argv: Sequence[str] = (str(compiled()), str(port), path, *map(str, numbers), topic, join, event)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            raise LoadFailed(self._process.communicate()[1])
        self.connect_s = float(line.split()[1])
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def received(self) -> Received:
        """Wait until everything has come, or nothing comes any more, and tell what it was."""
        output, errors = self._process.communicate()
        if self._process.returncode != 0:
            raise LoadFailed(errors)
        return Received(**json.loads(output))
