"""When the garbage collector looks, and at what.

What the ring and the hub keep is many small values without cycles: reference counts free them, and looking through all
of them again and again would only make clients wait, for tens of milliseconds. So what is new is looked at once, soon,
and set aside; and all there is at long intervals, in a moment when little happens.

Source: https://docs.python.org/3/library/gc.html#gc.freeze
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from typing import Any, Final

logger = logging.getLogger(__name__)

YOUNG: Final = 20_000
"""So many new objects are looked at together, within about a millisecond."""

LOOK_S, WHOLE_S = 1.0, 600.0
"""All is looked at after so long, as soon as a second has passed in which nothing new was; or after twice as long."""

_looks = 0


def tune() -> None:
    """Look at what is new, and set aside what there is."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    if _set_aside not in gc.callbacks:
        gc.callbacks.append(_set_aside)


def _set_aside(phase: str, _: dict[str, Any]) -> None:
    global _looks  # noqa: PLW0603 - a process has one collector
    if phase == "stop":
        _looks += 1
        gc.freeze()


def collect() -> int:
    """Look at all there is; returns how many unreachable objects there were."""
    gc.unfreeze()
    return gc.collect()


async def tend(*, look_s: float = LOOK_S, whole_s: float = WHOLE_S) -> None:
    """Look at all there is now and then, until cancelled. What was set aside while it was in use may be garbage now."""
    looks_then, looked_at = _looks, time.monotonic()
    while True:
        looks = _looks
        await asyncio.sleep(look_s)
        age_s = time.monotonic() - looked_at
        if looks == looks_then or age_s < whole_s or (_looks != looks and age_s < 2 * whole_s):
            continue
        started = time.perf_counter()
        found = collect()
        logger.debug("garbage collected", extra={"objects": found, "took_s": time.perf_counter() - started})
        looks_then, looked_at = _looks, time.monotonic()
