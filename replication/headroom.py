"""How far a slot lags, how much of its budget of WAL it has used, and when that is worth a word."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

HALF, MOST = 0.5, 0.8
"""The shares of a budget at which somebody is warned."""

_BACK = 0.05
"""So far below a share everything is well again: a slot that lies on the line is not reported every few seconds."""

_UNBOUNDED_FROM = 1 << 30
_SAMPLES = 2048


class Level(IntEnum):
    """How much of a budget is used."""

    FINE = 0
    HALF = 1
    MOST = 2
    OVER = 3


@dataclass(frozen=True, slots=True)
class Budget:
    """A bound on something that a slot holds back, and how much of it is used.

    ``name`` is the setting that bounds it. Bytes of WAL, or for ``autovacuum_freeze_max_age`` transactions.
    """

    name: str
    limit: int
    used: int

    @property
    def share(self) -> float:
        """The used part: 0 to 1, and above."""
        return max(0.0, self.used / self.limit) if self.limit > 0 else 0.0

    @property
    def left(self) -> int:
        """What may still come before the bound is reached."""
        return max(0, self.limit - self.used)


def wal_budget(*, max_slot_wal_keep_bytes: int, safe_wal_size: int | None, retained_bytes: int | None) -> Budget:
    """PostgreSQL's own bound, ``max_slot_wal_keep_size``: how much of it is used.

    What counts is ``safe_wal_size``, where the server tells it: the bound is kept in whole segments, so that a slot may
    have a little more than the setting says. Source:
    https://www.postgresql.org/docs/current/view-pg-replication-slots.html
    """
    if safe_wal_size is not None:
        return Budget("max_slot_wal_keep_size", max_slot_wal_keep_bytes, max_slot_wal_keep_bytes - safe_wal_size)
    return Budget("max_slot_wal_keep_size", max_slot_wal_keep_bytes, retained_bytes or 0)


class Steps:
    """What has been said of one budget: a level is news when it is reached, and when it is left again."""

    def __init__(self) -> None:
        self.said = Level.FINE

    def take(self, share: float) -> Level | None:
        """The level to speak of now; `None` if it is no other than before."""
        level = _level(share)
        if level < self.said and _level(share + _BACK) >= self.said:
            return None
        if level == self.said:
            return None
        self.said = level
        return level


def _level(share: float) -> Level:
    if share >= 1.0:
        return Level.OVER
    if share >= MOST:
        return Level.MOST
    return Level.HALF if share >= HALF else Level.FINE


class Doublings:
    """For what has no bound: it is news at 1 GiB, at every doubling, and not again until it has fallen by half."""

    def __init__(self) -> None:
        self._said = 0

    def take(self, size: int) -> bool:
        """Whether ``size`` bytes are worth a word now."""
        if size < self._said // 2:
            self._said = size
        if size < max(_UNBOUNDED_FROM, self._said * 2):
            return False
        self._said = size
        return True


class LagClock:
    """How old the end of the server's WAL is that we have done with, in seconds.

    It is told now and then where the server's WAL ends. What we have done with now was that end some time ago: so long
    ago is the lag. Nobody's clock but ours counts, and a server that writes nothing makes none.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def saw(self, wal_end: int, now: float) -> None:
        """The server's WAL ends here now."""
        samples = self._samples
        if samples and wal_end == samples[-1][1]:
            samples.pop()  # it still ends there
        elif samples and wal_end < samples[-1][1]:
            samples.clear()  # another server, or another history
        samples.append((now, wal_end))
        if len(samples) > _SAMPLES:
            # After half an hour of lag, every other second is exact enough.
            self._samples = deque([*list(samples)[:-1:2], samples[-1]])

    def lag_s(self, done_lsn: int, now: float) -> float:
        """Seconds since the server's WAL ended no further than ``done_lsn``; 0 if it still does."""
        samples = self._samples
        while len(samples) > 1 and samples[1][1] <= done_lsn:
            samples.popleft()
        if not samples or samples[-1][1] <= done_lsn:
            return 0.0
        return max(0.0, now - samples[0][0])
