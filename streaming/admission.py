"""Websockets wait a moment, at the start of a process, until it knows where the chain stands."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from streaming.hub import Hub

READY_S: Final = 2.0
"""How long after the first connection a hub that has not heard of the chain keeps websockets waiting. Then they are
admitted all the same: a replicator that is away is no reason to turn clients away."""


class WhenReady:
    """ASGI middleware for websockets. Who joined before it is known where the chain stands would miss something."""

    def __init__(self, application: Any, hub: Hub, within_s: float = READY_S) -> None:
        self._application, self._hub, self._within_s = application, hub, within_s
        self._until: float | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if not self._hub.ready.is_set():
            if self._until is None:
                self._until = asyncio.get_running_loop().time() + self._within_s
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._until):
                    await self._hub.ready.wait()
        await self._application(scope, receive, send)
