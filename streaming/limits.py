"""How much clients may do: rates that are averaged over a minute, calls within a window, sizes.

Rates belong to the whole process and forgive bursts: what counts is the average of the last minute. A limit of 0 is
none. Changes of the database are under no such limit: they are never dropped for being many.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

BUCKET_S: Final = 5.0
BUCKETS: Final = 12

_ROOM_BYTES: Final = 500
"""What a payload may have on top of its limit, for what surrounds it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one process; 0 stands for none.

    Users are sockets with a joined channel. Events are broadcasts: each one that is sent and each one that is
    delivered. Presence events are tracks, untracks, states and delivered diffs. ``presence_calls`` are those of one
    channel within ``presence_window_s``.
    """

    users: int = 0
    joins_per_s: float = 0
    events_per_s: float = 0
    presence_events_per_s: float = 0
    presence_calls: int = 0
    presence_window_s: float = 30.0
    payload_bytes: int = 0

    def presence_calls_of_one(self) -> Window:
        """Counts the calls of one channel."""
        return Window(self.presence_calls, self.presence_window_s)

    def is_too_large(self, size: int) -> bool:
        """Whether a payload of so many bytes is refused."""
        return bool(self.payload_bytes) and size > self.payload_bytes + _ROOM_BYTES


class Rate:
    """How many a second: the average over `BUCKETS` buckets of `BUCKET_S` each. Moments are seconds of one clock."""

    __slots__ = ("_buckets", "_now")

    def __init__(self) -> None:
        self._buckets: deque[int] = deque([0] * BUCKETS, BUCKETS)
        self._now = 0

    def add(self, count: int, now: float) -> None:
        """So many have happened at ``now``."""
        self._move(now)
        self._buckets[-1] += count

    def average(self, now: float) -> float:
        """How many there were a second, over the last minute."""
        self._move(now)
        return sum(self._buckets) / (BUCKETS * BUCKET_S)

    def _move(self, now: float) -> None:
        bucket = int(now // BUCKET_S)
        if bucket > self._now:
            self._buckets.extend([0] * min(bucket - self._now, BUCKETS))
            self._now = bucket


class Window:
    """At most ``calls`` within any ``window_s``."""

    __slots__ = ("_calls", "_times", "_window_s")

    def __init__(self, calls: int, window_s: float) -> None:
        self._calls, self._window_s = calls, window_s
        self._times: deque[float] = deque(maxlen=max(calls, 1))

    def admits(self, now: float) -> bool:
        """Count one more call, if it is within the limit."""
        if not self._calls:
            return True
        if len(self._times) == self._calls and now - self._times[0] < self._window_s:
            return False
        self._times.append(now)
        return True


@dataclass(slots=True)
class Traffic:
    """What the clients of this process do, beside what they may: one for all its sockets."""

    limits: Limits = field(default_factory=Limits)
    events: Rate = field(default_factory=Rate)
    joins: Rate = field(default_factory=Rate)
    presence: Rate = field(default_factory=Rate)
    requests: Rate = field(default_factory=Rate)
    users: int = 0
    """How many sockets have joined a channel."""

    def too_many_users(self) -> bool:
        """Whether no further socket may join its first channel."""
        return bool(self.limits.users) and self.users >= self.limits.users

    def too_many_joins(self, now: float) -> bool:
        """Whether a join is refused."""
        return _is_over(self.joins, self.limits.joins_per_s, now)

    def too_many_events(self, now: float) -> bool:
        """Whether a broadcast is refused."""
        return _is_over(self.events, self.limits.events_per_s, now)

    def too_many_presence_events(self, now: float) -> bool:
        """Whether a presence event is refused."""
        return _is_over(self.presence, self.limits.presence_events_per_s, now)


def _is_over(rate: Rate, limit: float, now: float) -> bool:
    return bool(limit) and rate.average(now) >= limit
