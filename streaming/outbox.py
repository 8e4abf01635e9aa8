"""What a process has to say to others through the channel layer, in its order and without waiting for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from channels.layers import BaseChannelLayer

from replication.publisher import stop_if_cancelled

RETRY_S: Final = 0.5
STALE_S: Final = 5.0
"""Broadcasts and presence are for the moment: what could not be sent for so long is left out."""

_OVERHEAD_BYTES: Final = 200


@dataclass(frozen=True, slots=True)
class _Letter:
    told_at: float
    size: int
    target: str
    message: dict[str, Any]
    is_direct: bool


class Outbox:
    """Messages for groups and channels, sent one after the other while `run` runs.

    At most ``max_bytes`` wait; what is above it is left out and counted in ``lost``, as is what grew stale.
    ``on_error`` is told what a layer that is away raises.
    """

    def __init__(self, layer: BaseChannelLayer, max_bytes: int, on_error: Callable[[Exception], None]) -> None:
        self._layer, self._max_bytes, self._on_error = layer, max_bytes, on_error
        self._letters: deque[_Letter] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self.lost = 0

    def to_group(self, group: str, message: dict[str, Any], size: int = 0) -> None:
        """Send this to a group; ``size`` is about how many bytes it holds."""
        self._put(_Letter(time.monotonic(), size + _OVERHEAD_BYTES, group, message, is_direct=False))

    def to_channel(self, channel: str, message: dict[str, Any], size: int = 0) -> None:
        """Send this to one channel."""
        self._put(_Letter(time.monotonic(), size + _OVERHEAD_BYTES, channel, message, is_direct=True))

    def _put(self, letter: _Letter) -> None:
        if self._bytes + letter.size > self._max_bytes:
            self.lost += 1
            return
        self._letters.append(letter)
        self._bytes += letter.size
        self._more.set()

    async def run(self) -> None:
        """Send, until cancelled."""
        while True:
            stop_if_cancelled()
            if not self._letters:
                self._more.clear()
                await self._more.wait()
            letter = self._letters[0]
            if time.monotonic() - letter.told_at > STALE_S:
                self.lost += 1
            else:
                try:
                    send = self._layer.send if letter.is_direct else self._layer.group_send
                    await send(letter.target, letter.message)
                except Exception as error:  # whatever a layer's driver raises
                    self._on_error(error)
                    await asyncio.sleep(RETRY_S)
                    continue
            self._letters.popleft()
            self._bytes -= letter.size
