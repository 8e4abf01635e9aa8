"""One room of this process: a topic, its sockets, and what is said to them.

What is said is encoded once for each serializer, and every socket is handed the same bytes. It goes out at once. A room
that is busy rests after each time for as long as it took, and what is said meanwhile goes out together: then a socket
costs one write for many messages, and no room takes more than half of the process's time. An idle room adds no delay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from streaming.frames import BINARY, TEXT, Parcel
from streaming.phoenix import Serializer, UserBroadcast, Verbatim
from streaming.transport import Outlet

logger = logging.getLogger(__name__)

Broadcast: TypeAlias = Verbatim | UserBroadcast

QUICK_S: Final = 0.001
"""Who has handed out as quickly as this does not rest."""

LONGEST_REST_S: Final = 0.05
GATHERED_BYTES: Final = 256 << 10
"""So much does not wait any longer."""

_UNWRITABLE: Final = 1011


class _Said(NamedTuple):
    """One message: its bytes and opcode by version, and the socket that is not to hear it."""

    messages: dict[str, tuple[bytes, int]]
    leave_out: Outlet | None


class Room:
    """A topic's sockets. ``on_broken`` is called with one that cannot be written to; it has to leave."""

    __slots__ = (
        "_heads",
        "_on_broken",
        "_outlets",
        "_rests_until",
        "_said",
        "_said_bytes",
        "_serializers",
        "_timer",
        "bytes",
        "messages",
        "topic",
    )

    def __init__(self, topic: str, on_broken: Callable[[Outlet], None]) -> None:
        self.topic, self._on_broken = topic, on_broken
        self._serializers: dict[str, Serializer] = {}
        self._outlets: dict[str, dict[Outlet, None]] = {}
        self._heads: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        self._said: list[_Said] = []
        self._said_bytes = 0
        self._rests_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.messages = self.bytes = 0
        """What has been handed to its sockets."""

    def __len__(self) -> int:
        return sum(map(len, self._outlets.values()))

    def enter(self, outlet: Outlet, serializer: Serializer) -> None:
        """The socket hears what is said from now on."""
        self.flush()
        self._serializers[serializer.vsn] = serializer
        self._outlets.setdefault(serializer.vsn, {})[outlet] = None

    def leave(self, outlet: Outlet) -> None:
        """The socket has heard what was said until now, and hears no more."""
        self.flush()
        for vsn, outlets in list(self._outlets.items()):
            outlets.pop(outlet, None)
            if not outlets:
                del self._outlets[vsn]

    def broadcast(self, broadcast: Broadcast, leave_out: Outlet | None = None) -> int:
        """Say this to everybody but ``leave_out``; returns how many that are. Who cannot read it hears nothing."""
        messages: dict[str, tuple[bytes, int]] = {}
        for vsn in self._outlets:
            if (written := self._serializers[vsn].broadcast(self.topic, broadcast)) is not None:
                messages[vsn] = written[0], BINARY if written[1] else TEXT
        return self._say(_Said(messages, leave_out))

    def push(self, event: str, payload: bytes) -> int:
        """Push an event with an already encoded payload to everybody; returns how many that are."""
        messages: dict[str, tuple[bytes, int]] = {}
        for vsn in self._outlets:
            around = self._heads.get((vsn, event))
            if around is None:
                around = self._heads[vsn, event] = self._serializers[vsn].push(self.topic, event)
            messages[vsn] = around[0] + payload + around[1], TEXT
        return self._say(_Said(messages, None))

    def _say(self, said: _Said) -> int:
        self._said.append(said)
        self._said_bytes += max((len(message) for message, _ in said.messages.values()), default=0)
        rest_s = self._rests_until - time.perf_counter() if self._rests_until else 0.0
        if rest_s <= 0 or self._said_bytes > GATHERED_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(rest_s, self.flush)
        hearing = [self._outlets[vsn] for vsn in said.messages if vsn in self._outlets]
        return sum(map(len, hearing)) - any(said.leave_out in outlets for outlets in hearing)

    def flush(self) -> None:
        """Hand out what has been said and waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        said, self._said, self._said_bytes = self._said, [], 0
        if not said:
            return
        started = time.perf_counter()
        for vsn, outlets in list(self._outlets.items()):
            for_all = list(_parcels(said, vsn, None))
            speakers = {item.leave_out for item in said if item.leave_out is not None and item.leave_out in outlets}
            # A socket that ends while we write leaves the room: so the outlets are counted out first.
            for outlet in list(outlets):
                self._write(outlet, list(_parcels(said, vsn, outlet)) if outlet in speakers else for_all)
        ended = time.perf_counter()
        took_s = ended - started
        self._rests_until = ended + min(took_s, LONGEST_REST_S) if took_s > QUICK_S else 0.0

    def _write(self, outlet: Outlet, parcels: Sequence[Parcel]) -> None:
        try:
            for parcel in parcels:
                outlet.write(parcel)
                self.messages += len(parcel.messages)
                self.bytes += parcel.size
        except Exception:  # one socket's trouble is nobody else's
            logger.exception("socket dropped: it cannot be written to")
            self._on_broken(outlet)
            outlet.close(_UNWRITABLE, "")


def _parcels(said: Sequence[_Said], vsn: str, reader: Outlet | None) -> Iterator[Parcel]:
    """What was said, without what ``reader`` said itself: one parcel for all that are alike, text or binary."""
    messages: list[bytes] = []
    opcode = TEXT
    for item in said:
        if vsn not in item.messages or (reader is not None and item.leave_out is reader):
            continue
        message, its_opcode = item.messages[vsn]
        if its_opcode != opcode and messages:
            yield Parcel(messages, opcode)
            messages = []
        opcode = its_opcode
        messages.append(message)
    if messages:
        yield Parcel(messages, opcode)
