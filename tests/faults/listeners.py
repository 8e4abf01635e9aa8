"""Clients that keep everything they hear, come back when they are cut off, and may resume."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.faults.writers import TABLE
from tests.model.checker import Gap, Heard

TOPIC = f"realtime:public:{TABLE}"
_LIMIT_S = 10.0
_BACKOFF_S = (0.05, 0.3)


class Listener:
    """A socket that has joined the table, for as long as `run` runs; any of ``urls`` will do.

    If it ``resumes``, it names its position whenever it joins again, and a gap is what the server says is one.
    Otherwise every end of a socket or channel is a gap: that is how clients are told who do not resume.
    ``forgets`` counts down to a row that it loses by itself: the checker must find that.
    """

    def __init__(
        self, urls: Callable[[], Sequence[str]], *, resumes: bool, forgets: int | None = None, seed: int = 0
    ) -> None:
        self._urls, self.resumes, self._forgets = urls, resumes, forgets
        self._dice = random.Random(seed)
        self.heard: list[Heard] = []
        self.heard_at: dict[int, float] = {}
        self.gap_at = self.heard_last_at = 0.0
        self.forgotten: int | None = None
        self.joins = self.resumed = self.refused = 0
        self.joined = asyncio.Event()
        self.has_forgotten = asyncio.Event()
        """A row was lost, and another one heard after it."""
        self._position: str | None = None
        self._socket: ClientConnection | None = None

    def __str__(self) -> str:
        state = "joined" if self.joined.is_set() else "not joined"
        return (
            f"{'resuming' if self.resumes else 'other'} listener, {state}, {self.joins} joins, {self.resumed} resumed, "
            f"{self.refused} not, heard {len(self.heard)}, {time.monotonic() - self.heard_last_at:.1f} s ago the last, "
            f"position {self._position}"
        )

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                async with connect(self._dice.choice(self._urls()), max_size=None, open_timeout=_LIMIT_S) as socket:
                    self._socket = socket
                    await self._listen(socket)
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake):
                pass
            self._ended()
            await asyncio.sleep(self._dice.uniform(*_BACKOFF_S))

    async def cut(self) -> None:
        """End the connection as a broken line would."""
        if self._socket is not None:
            self._socket.transport.abort()

    def _is_told(self) -> None:
        self.heard.append(Gap())
        self.gap_at = time.monotonic()

    def _ended(self) -> None:
        if self.joined.is_set() and not self.resumes:
            self._is_told()
        self.joined.clear()

    async def _listen(self, socket: ClientConnection) -> None:
        while True:
            await self._join(socket)
            beating = asyncio.create_task(self._beat(socket))
            try:
                while True:
                    message: dict[str, Any] = orjson.loads(await socket.recv(decode=False))
                    if message["event"] in ("phx_error", "phx_close"):
                        break
                    self._take(message)
            finally:
                beating.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await beating
            self._ended()
            await asyncio.sleep(self._dice.uniform(*_BACKOFF_S))

    async def _join(self, socket: ClientConnection) -> None:
        self.joins += 1
        wish = {"resume": {"since": self._position} if self._position else {}} if self.resumes else {}
        ref = str(self.joins)
        await socket.send(json.dumps({"topic": TOPIC, "event": "phx_join", "payload": wish, "ref": ref}))
        while True:
            message = json.loads(await asyncio.wait_for(socket.recv(), _LIMIT_S))
            if message["event"] == "phx_reply" and message["ref"] == ref:
                break
            self._take(message)
        answer = message["payload"]["response"]
        if self.resumes:
            if self._position is not None and not answer["recovered"]:
                self.refused += 1
                self._is_told()
            self.resumed += bool(answer["recovered"])
            if not answer["recovered"]:
                self._position = answer["position"]
        self.joined.set()

    async def _beat(self, socket: ClientConnection) -> None:
        while True:
            await asyncio.sleep(1.0)
            await socket.send(json.dumps({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "beat"}))

    def _take(self, message: dict[str, Any]) -> None:
        if message["event"] != "INSERT":
            if message["ref"] == "beat" and (have := message["payload"]["response"].get("have")) and self.resumes:
                self._position = have
            return
        payload = message["payload"]
        number = int(payload["record"]["id"])
        if self.resumes:
            self._position = payload["position"]
        if self._forgets is not None:
            self._forgets -= 1
            if self._forgets == 0:
                self.forgotten = number
                return
        self.heard.append(number)
        if self.forgotten is not None:
            self.has_forgotten.set()
        self.heard_last_at = time.monotonic()
        self.heard_at.setdefault(number, self.heard_last_at)
