"""What an ASGI server serves: ``daphne realtime_project.asgi:application``, next to ``manage.py run_replicator``."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realtime_project.settings")

import django

django.setup()

from channels.layers import get_channel_layer
from django.conf import settings

from realtime_project.application import make_application, make_hub, process_parts, run_together
from realtime_project.secret_key import keep_secret_key
from streaming.drain import drain
from streaming.follower import Follower
from streaming.short_way import before_shutdown, hurry

READY_S = 2.0
"""How long after its start a hub that has not heard of the chain keeps websockets waiting. Then they are admitted all
the same: a replicator that is away is no reason to turn clients away."""

if not settings.REDIS_URL:
    sys.exit(
        "Walcast cannot start: REDIS_URL is not set, and the replicator is another process, so no change would arrive; "
        "set it to a Redis or Valkey such as redis://localhost:6379/0, or run everything in one process: "
        "manage.py realtime"
    )
if settings.KEEPS_SECRET_KEY:
    settings.SECRET_KEY = keep_secret_key(settings.WALCAST_HOME, settings.SECRET_KEY)


class Application:
    """The ASGI application of a process that follows the chain.

    It begins to follow when its server starts, if the server says so (the lifespan protocol of ASGI, or `start`), and
    with the first connection otherwise.
    """

    def __init__(self) -> None:
        self._hub = make_hub()
        self._application = make_application(self._hub)
        self._follower: Follower | None = None
        self._task: asyncio.Future[Any] | None = None
        self._started = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        follower = self._follower or self._follow()
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] == "websocket" and not follower.ready.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._started + READY_S):
                    await follower.ready.wait()
        await self._application(scope, receive, send)

    def start(self) -> None:
        """Begin to follow, in the loop that is about to run."""
        asyncio.get_event_loop().call_soon(self._follow)

    async def _live(self, receive: Any, send: Any) -> None:
        while True:
            match (await receive())["type"]:
                case "lifespan.startup":
                    await send({"type": "lifespan.startup.complete"})
                case "lifespan.shutdown":
                    await self._stop()
                    await send({"type": "lifespan.shutdown.complete"})
                    return

    def _follow(self) -> Follower:
        if self._follower is not None:
            return self._follower
        layer = get_channel_layer()
        assert layer is not None
        self._started = asyncio.get_running_loop().time()
        self._follower = Follower(self._hub, layer)
        parts = run_together(self._follower.run(), self._hub.tend(), *process_parts())
        self._task = asyncio.create_task(parts, name="walcast")
        before_shutdown(self._stop)
        return self._follower

    async def _stop(self) -> None:
        try:
            await drain(self._hub, settings.DRAIN_S, hurry())
        finally:
            if self._task is not None:
                self._task.cancel()
                with suppress(asyncio.CancelledError):
                    await self._task


application = Application()
