"""What a process has to say to others through the channel layer, in its order and without waiting for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from channels.layers import BaseChannelLayer

from replication.publisher import stop_if_cancelled

RETRY_S: Final = 0.5
STALE_S: Final = 5.0
"""Broadcasts and presence are for the moment: what could not be sent for so long is left out."""

MANY: Final = "outbox.many"
"""The type of a message that holds several, for one group."""

MANY_BYTES: Final = 256 << 10
_OVERHEAD_BYTES: Final = 200


def unpacked(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The messages that came as one, in their order."""
    if message.get("type") == MANY and isinstance(messages := message.get("messages"), list):
        yield from messages
    else:
        yield message


@dataclass(frozen=True, slots=True)
class _Letter:
    told_at: float
    size: int
    target: str
    message: dict[str, Any]
    is_direct: bool


class Outbox:
    """Messages for groups and channels, sent one after the other while `run` runs.

    What waits for one group is sent together, as one message: `unpacked` takes it apart. An idle outbox adds no delay.

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
            letters = self._next()
            if time.monotonic() - letters[0].told_at > STALE_S:
                letters = letters[:1]
                self.lost += 1
            else:
                try:
                    await self._send(letters)
                except Exception as error:  # whatever a layer's driver raises
                    self._on_error(error)
                    await asyncio.sleep(RETRY_S)
                    continue
            for letter in letters:
                self._letters.popleft()
                self._bytes -= letter.size

    def _next(self) -> list[_Letter]:
        """The letters that go out next: the first, and those right behind it that go to the same group."""
        first = self._letters[0]
        letters, size = [first], first.size
        if not first.is_direct:
            for letter in islice(self._letters, 1, None):
                size += letter.size
                if letter.target != first.target or letter.is_direct or size > MANY_BYTES:
                    break
                letters.append(letter)
        return letters

    async def _send(self, letters: list[_Letter]) -> None:
        first = letters[0]
        if first.is_direct:
            await self._layer.send(first.target, first.message)
        elif len(letters) == 1:
            await self._layer.group_send(first.target, first.message)
        else:
            many = {"type": MANY, "messages": [letter.message for letter in letters]}
            await self._layer.group_send(first.target, many)
