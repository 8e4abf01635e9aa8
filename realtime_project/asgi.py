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

from realtime_project.application import make_application, make_hub
from streaming.follower import Follower
from streaming.short_way import before_shutdown

READY_S = 2.0
"""How long after its start a hub that has not heard of the chain keeps websockets waiting. Then they are admitted all
the same: a replicator that is away is no reason to turn clients away."""

if not settings.REDIS_URL:
    sys.exit(
        "Walcast cannot start: REDIS_URL is not set, and the replicator is another process, so no change would arrive; "
        "set it to a Redis or Valkey such as redis://localhost:6379/0, or run everything in one process: "
        "manage.py realtime"
    )


class Application:
    """The ASGI application of a process that follows the chain; it begins to follow with the first connection."""

    def __init__(self) -> None:
        self._hub = make_hub()
        self._application = make_application(self._hub)
        self._follower: Follower | None = None
        self._task: asyncio.Future[Any] | None = None
        self._started = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        follower = self._follower or self._start()
        if scope["type"] == "websocket" and not follower.ready.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._started + READY_S):
                    await follower.ready.wait()
        await self._application(scope, receive, send)

    def _start(self) -> Follower:
        layer = get_channel_layer()
        assert layer is not None
        self._started = asyncio.get_running_loop().time()
        self._follower = Follower(self._hub, layer)
        self._task = asyncio.ensure_future(asyncio.gather(self._follower.run(), self._hub.tend()))
        before_shutdown(self._stop)
        return self._follower

    async def _stop(self) -> None:
        self._hub.close_all()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task


application = Application()
