"""How fast the log is read: as fast as somebody can take it, and no faster.

A large transaction would fill the queues of all its readers, and cut them off, if it were read faster than the fastest
of them reads. So whoever reads the log waits while even the fastest reader of some channel has too much before it. A
reader that is slow although others are fast makes nobody wait, and neither does one that hardly moves.
"""

from __future__ import annotations

import asyncio
import time

from streaming.audiences import Audience

BOUND_BYTES = 4 << 20
"""The fastest reader may have so much before it."""

LEAST_BYTES_PER_S = 4_000_000
"""Who takes less than this is no fast reader, and nobody waits for him."""

LOOK_S = 0.5
"""So long is a reader looked at before it is judged."""

POLL_S = 0.002


class Pace:
    """The readers that may have to be waited for. `note` whom something was handed to; then wait for `room`."""

    def __init__(
        self, *, bound_bytes: int = BOUND_BYTES, least_bytes_per_s: int = LEAST_BYTES_PER_S, look_s: float = LOOK_S
    ) -> None:
        self.bound_bytes, self._least_bytes_per_s, self._look_s = bound_bytes, least_bytes_per_s, look_s
        self._full: list[Audience] = []
        self._slow: set[Audience] = set()
        """Those that were waited for in vain, until one of them has caught up."""
        self.waited_s = 0.0

    @property
    def is_full(self) -> bool:
        """Somebody has to be waited for."""
        return bool(self._full)

    def note(self, audience: Audience) -> None:
        """Something was handed to those who hear the same, or waits for PostgreSQL's word on their filters."""
        bound = self.bound_bytes - audience.waiting_bytes
        for outlet in audience.outlets:
            if outlet.queued_bytes <= bound:
                if self._slow:
                    self._slow.discard(audience)
                return
        if audience.outlets and audience not in self._slow:
            self._full.append(audience)

    async def room(self) -> None:
        """Wait until the fastest reader of each channel that was noted has room, or has shown that it is slow."""
        started = time.monotonic()
        while self._full:
            await self._wait_for(self._full.pop())
        self.waited_s += time.monotonic() - started
        if self._slow:
            self._slow = {audience for audience in self._slow if audience.outlets}

    async def _wait_for(self, audience: Audience) -> None:
        looked_at, had = time.monotonic(), _least(audience)
        while True:
            now = time.monotonic()
            if (least := _least(audience)) <= self.bound_bytes:
                return
            if now - looked_at >= self._look_s:
                if had - least < self._least_bytes_per_s * (now - looked_at):
                    self._slow.add(audience)
                    return
                looked_at, had = now, least
            # Of thousands of readers, looking at all is work as well.
            await asyncio.sleep(max(POLL_S, 10 * (time.monotonic() - now)))


def _least(audience: Audience) -> int:
    return audience.waiting_bytes + min((outlet.queued_bytes for outlet in audience.outlets), default=0)
