"""Bytes to one socket; knows how much it has not taken yet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from streaming.frames import TEXT, Parcel
from streaming.tally import tally

logger = logging.getLogger(__name__)

Send = Callable[[Any], Awaitable[None]]

SLOW_READER, SLOW_READER_REASON = 1013, "slow-reader"


@dataclass(frozen=True, slots=True)
class OutletLimits:
    """When a reader is too slow: more than ``max_bytes`` wait for it, or nothing has moved for ``max_wait_s``."""

    max_bytes: int = 32 << 20
    max_wait_s: float = 10.0


class Outlet(Protocol):
    """One socket's way out. Nothing here waits: what the socket does not take stays in its queue, by reference."""

    queued_bytes: int

    def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
        """Send the messages in their turn.

        What is not ``bounded`` (a replay comes at once, however fast its client reads) does not count as too much.
        """

    def urgent(self, parcel: Parcel) -> None:
        """Send the messages before what is queued."""

    def close(self, code: int, reason: str) -> None:
        """End the socket with a close frame."""

    def check(self, now: float) -> None:
        """Close the socket if its reader is too slow or its client gone. ``now`` as `time.monotonic` has it."""


class ShortWay(Protocol):
    """What a server lends us of one websocket connection, so that ready frames reach its transport directly."""

    on_drained: Callable[[], None] | None
    """Called when what `send_later` took has left; may be called once too often."""

    on_control: Callable[[bytes], bool] | None
    """Asked with each ping and pong that the server is about to send: True if it must not, because we will."""

    on_close: Callable[[Callable[[], None]], bool] | None
    """Asked when the server is about to send a close frame of its own: True if it must not yet, because a frame of ours
    is half out. The callable that it hands over is called when that one has ended, or else the way is aborted."""

    def send_now(self, frames: bytes | memoryview) -> int:
        """How many bytes of the frames the socket took at once; call it only when nothing waits in `send_later`."""

    def send_later(self, piece: bytes) -> None:
        """Buffer a small piece; ``on_drained`` is called when it has left."""

    def close_with(self, code: int, reason: str) -> None:
        """Send a close frame, and end the connection soon, whether or not the client answers."""

    def check_idle(self, now: float) -> None:
        """End the connection if nothing has come from its client for too long. ``now`` as `time.monotonic` has it."""

    def abort(self) -> None:
        """End the connection at once."""


_PIECE_BYTES = 64 << 10
"""What a connection's transport is given to buffer at a time: the only copy that is made for one socket alone."""

_MOST_URGENT = 100

_NOTHING: deque[bytes] = deque()

LAST_WORDS_S = 5.0
"""How long a reader may take for what stands before its close frame, and then to answer that."""


class DirectOutlet:
    """The short way: ready frames, the same bytes for everyone, straight to the connection's socket."""

    __slots__ = (
        "_allowance",
        "_ending",
        "_finish",
        "_is_clear",
        "_limits",
        "_moved_at",
        "_offset",
        "_queue",
        "_urgent",
        "_way",
        "queued_bytes",
        "sent_bytes",
        "sent_messages",
    )

    def __init__(self, way: ShortWay, limits: OutletLimits) -> None:
        self._way, self._limits = way, limits
        # Made where something waits: an empty deque takes more memory than all else here.
        self._queue = self._urgent = _NOTHING
        self._offset = 0
        self._ending: tuple[int, str] | None = None
        self._finish: Callable[[], None] | None = None
        self._is_clear = True
        """Nothing waits, and nothing ends."""
        self._moved_at = 0.0
        self._allowance = 0
        self.queued_bytes = self.sent_bytes = self.sent_messages = 0
        way.on_drained = self._drain
        way.on_control = self._interject
        way.on_close = self._close_behind

    def write(self, parcel: Parcel, *, bounded: bool = True) -> None:  # see Outlet
        # Kept short where nothing waits: it is done for each of thousands of sockets.
        if not self._is_clear and (self._ending is not None or self._finish is not None):
            return
        self.sent_messages += parcel.count
        self.sent_bytes += parcel.size
        frames = parcel.frames
        if self._is_clear and bounded:
            sent = self._way.send_now(frames)
            if sent != len(frames):
                self._allowance = 0
                self._begin_to_wait(frames, sent)
            return
        if not bounded:
            self._allowance = parcel.size + (self._allowance if self._queue else 0)
        self._put(frames)

    def urgent(self, parcel: Parcel) -> None:  # see Outlet
        if self._ending is not None or self._finish is not None:
            return
        if self._queue:
            self._urgent.append(parcel.frames)
        else:
            self._put(parcel.frames)

    def _interject(self, frame: bytes) -> bool:
        """Whether a ping or pong of the server's has to wait for the place between two parcels."""
        if not self._queue:
            return False
        # A client that pings and does not read is not owed every pong; nor is one whose end has begun.
        if len(self._urgent) < _MOST_URGENT and self._finish is None:
            self._urgent.append(frame)
        return True

    def _close_behind(self, finish: Callable[[], None]) -> bool:
        """Whether a close frame of the server's has to wait for the end of the parcel that is half out."""
        if not self._queue:
            return False
        if self._finish is None:
            self._finish = finish
            self._keep_half_out()
        return True

    def close(self, code: int, reason: str) -> None:  # see Outlet
        if self._ending is None and self._finish is None:
            self._ending, self._is_clear = (code, reason), False
            if not self._queue:
                self._way.close_with(code, reason)

    @property
    def is_closing(self) -> bool:
        """We are ending the socket, or have."""
        return self._ending is not None or bool(getattr(self._way, "has_closed", False))

    def check(self, now: float) -> None:  # see Outlet
        self._way.check_idle(now)
        is_ending = self._ending is not None or self._finish is not None
        if self._queue and not is_ending and now - self._moved_at > self._limits.max_wait_s:
            self._too_slow("wait")

    def _put(self, frames: bytes) -> None:
        if not self._queue:
            sent = self._way.send_now(frames)
            if sent != len(frames):
                self._begin_to_wait(frames, sent)
            return
        self._queue.append(frames)
        self.queued_bytes += len(frames)
        if self.queued_bytes > self._limits.max_bytes + self._allowance:
            self._too_slow("bytes")

    def _begin_to_wait(self, frames: bytes, sent: int) -> None:
        self._is_clear = False
        self._queue, self._urgent = deque([frames]), deque()
        self._offset = sent
        self.queued_bytes = len(frames) - sent
        self._feed()

    def _feed(self) -> None:
        # The socket takes no more now. A piece in the transport's buffer makes it tell us when it does again.
        piece = bytes(memoryview(self._queue[0])[self._offset : self._offset + _PIECE_BYTES])
        self._offset += len(piece)
        self.queued_bytes -= len(piece)
        self._moved_at = time.monotonic()
        self._way.send_later(piece)

    def _drain(self) -> None:
        queue = self._queue
        while queue:
            head = queue[0]
            if self._offset < len(head):
                sent = self._way.send_now(memoryview(head)[self._offset :])
                self._offset += sent
                self.queued_bytes -= sent
                if self._offset < len(head):
                    self._feed()
                    return
            queue.popleft()
            self._offset = 0
            # Between two parcels is the place for what may overtake.
            if self._urgent:
                queue.extendleft(reversed(self._urgent))
                self.queued_bytes += sum(map(len, self._urgent))
                self._urgent.clear()
        self._queue = self._urgent = _NOTHING
        if self._finish is not None:
            self._finish()
        elif self._ending is not None:
            self._way.close_with(*self._ending)
        else:
            self._is_clear = True

    def _too_slow(self, bound: str) -> None:
        logger.warning("slow reader closed", extra={"queued_bytes": self.queued_bytes, "bound": bound})
        self._ending = SLOW_READER, SLOW_READER_REASON
        self._keep_half_out()

    def _keep_half_out(self) -> None:
        # The frame that is half out must end before the close frame can be read.
        head = self._queue[0]
        self._queue.clear()
        self._urgent.clear()
        self._queue.append(head)
        self.queued_bytes = len(head) - self._offset
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._way.abort)


class AsgiOutlet:
    """Any ASGI server: one task takes the queue and awaits the server's ``send`` for each message."""

    def __init__(self, send: Send, limits: OutletLimits) -> None:
        self._send, self._limits = send, limits
        self._queue: deque[tuple[bytes, int]] = deque()
        self._urgent: deque[tuple[bytes, int]] = deque()
        self._ending: tuple[int, str] | None = None
        self._allowance = 0
        self.queued_bytes = self.sent_bytes = self.sent_messages = 0
        self._moved_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def write(self, parcel: Parcel, *, bounded: bool = True) -> None:  # see Outlet
        if self._ending is not None:
            return
        if not bounded:
            self._allowance = parcel.size + (self._allowance if self._queue else 0)
        elif not self._queue:
            self._allowance = 0
        self._queue.extend((message, parcel.opcode) for message in parcel.messages)
        self.queued_bytes += parcel.size
        self.sent_messages += len(parcel.messages)
        self.sent_bytes += parcel.size
        if self.queued_bytes > self._limits.max_bytes + self._allowance:
            self._too_slow("bytes")
        self._wake()

    def urgent(self, parcel: Parcel) -> None:  # see Outlet
        if self._ending is None:
            self._urgent.extend((message, parcel.opcode) for message in parcel.messages)
            self._wake()

    def close(self, code: int, reason: str) -> None:  # see Outlet
        if self._ending is None:
            self._ending = code, reason
            self._wake()

    @property
    def is_closing(self) -> bool:
        """We are ending the socket, or have."""
        return self._ending is not None

    def check(self, now: float) -> None:  # see Outlet
        if self._task is not None and self._ending is None and now - self._moved_at > self._limits.max_wait_s:
            self._too_slow("wait")

    def _wake(self) -> None:
        if self._task is None:
            self._moved_at = time.monotonic()
            self._task = asyncio.get_running_loop().create_task(self._drain(), name="websocket outlet")

    async def _drain(self) -> None:
        try:
            while self._urgent or self._queue:
                if self._urgent:
                    message, opcode = self._urgent.popleft()
                else:
                    message, opcode = self._queue.popleft()
                    self.queued_bytes -= len(message)
                content = {"text": message.decode()} if opcode == TEXT else {"bytes": message}
                await self._send({"type": "websocket.send", **content})
                self._moved_at = time.monotonic()
            if self._ending is not None:
                code, reason = self._ending
                tally.closed("server", code)
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except Exception as error:  # the connection is gone, in whatever words the server says so
            logger.debug("socket gone", extra={"error": error})
            self._queue.clear()
            self.queued_bytes = 0
        finally:
            self._task = None

    def _too_slow(self, bound: str) -> None:
        logger.warning("slow reader closed", extra={"queued_bytes": self.queued_bytes, "bound": bound})
        self._queue.clear()
        self.queued_bytes = 0
        self._ending = SLOW_READER, SLOW_READER_REASON


WAY_EXTENSION = "walcast.short_way"
"""Where a server leaves its `ShortWay` in ``scope["extensions"]``."""


def outlet_for(scope: Mapping[str, Any], send: Send, limits: OutletLimits) -> Outlet:
    """The best way out that this connection's server offers."""
    way = (scope.get("extensions") or {}).get(WAY_EXTENSION)
    return AsgiOutlet(send, limits) if way is None else DirectOutlet(way, limits)
