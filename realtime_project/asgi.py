"""What an ASGI server serves: ``daphne realtime_project.asgi:application``, next to ``manage.py run_replicator``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
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

logger = logging.getLogger(__name__)

END_S = 5.0
"""How long what runs beside the sockets may take to end."""


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

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        self._follow()
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
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
                # A driver may swallow the cancellation of what waits for it: the process ends all the same.
                _, late = await asyncio.wait([self._task], timeout=END_S)
                if late:
                    logger.warning("parts of the process did not end in time", extra={"waited_s": END_S})


application = Application()
