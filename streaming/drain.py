"""The end of a process that has clients: they go elsewhere one after the other, and not all at once.

A thousand clients that lose their sockets in one moment connect again in one moment, to processes that have enough to
do. Until its turn comes a socket goes on as before: its client gets what is committed meanwhile, and with the position
of the last change it has, it goes on at another process without a hole.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from streaming.hub import SHUTDOWN, Hub

logger = logging.getLogger(__name__)

TURN_S = 0.05
AT_LEAST_PER_S = 200
"""Few sockets are no crowd: they are closed at this rate, and the process ends the sooner."""

GOODBYE_S = 2.0
"""How long clients have to answer the close frame."""


async def drain(hub: Hub, over_s: float, hurry: asyncio.Event) -> None:
    """Close the hub's sockets in turn, over at most ``over_s`` seconds: ``phx_error`` on each topic, then 1012.

    ``hurry``, once set, ends the waiting.
    """
    loop = asyncio.get_running_loop()
    waiting = hub.sockets
    if waiting:
        logger.info("sockets are closed one after the other", extra={"sockets": len(waiting), "over_s": over_s})
    per_s = max(len(waiting) / over_s, AT_LEAST_PER_S) if over_s else float("inf")
    started, told = loop.time(), 0
    while told < len(waiting) and not hurry.is_set():
        due = min(len(waiting), int((loop.time() - started + TURN_S) * per_s)) if over_s else len(waiting)
        for outlet, subscriber in waiting[told:due]:
            try:
                subscriber.fail_all()
            finally:
                outlet.close(SHUTDOWN, "shutdown")
        told = due
        if told < len(waiting):
            await _pause(TURN_S, hurry)
    hub.close_all()  # who came meanwhile, and all if there is no time
    ends_at = loop.time() + GOODBYE_S
    while hub.socket_count and loop.time() < ends_at and not hurry.is_set():
        await _pause(TURN_S, hurry)


async def _pause(seconds: float, hurry: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(hurry.wait(), seconds)
