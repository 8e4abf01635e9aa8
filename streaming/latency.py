"""How long a change takes from its commit to a place on its way: fixed buckets, quantiles, and another clock's time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

# fmt: off
BOUNDS_S: Final = (
    0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)
# fmt: on
"""The upper ends of the buckets, in seconds; one more bucket holds what is longer."""


class Histogram:
    """Counts by bucket since the start of the process: cheap to add to, and two of them can be added or subtracted."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


def difference(later: Sequence[int], earlier: Sequence[int]) -> list[int]:
    """The counts of what came between two moments."""
    return [new - old for new, old in zip(later, earlier, strict=True)]


def total(several: Sequence[Sequence[int]]) -> list[int]:
    """The counts of several histograms as one."""
    return [sum(column) for column in zip(*several, strict=True)] if several else [0] * (len(BOUNDS_S) + 1)


def quantile(counts: Sequence[int], fraction: float) -> float | None:
    """The value that ``fraction`` of the values do not exceed, in seconds; straight lines within a bucket.

    `None` without values. What is longer than the last bound counts as that bound.
    """
    wanted = sum(counts) * fraction
    if not wanted:
        return None
    seen = 0
    for index, count in enumerate(counts):
        if count and seen + count >= wanted:
            if index == len(BOUNDS_S):
                break
            low = BOUNDS_S[index - 1] if index else 0.0
            return low + (BOUNDS_S[index] - low) * (wanted - seen) / count
        seen += count
    return BOUNDS_S[-1]


class CommitClock:
    """Seconds since a commit, although the database goes by another clock than we do.

    ``offset_s`` is the database's clock minus ours: 0 until somebody measured it. Nothing arrives before it was
    committed, so what seems to do so shows that the database's clock is ahead at least so far.
    """

    __slots__ = ("offset_s",)

    def __init__(self) -> None:
        self.offset_s = 0.0

    def measured(self, offset_s: float, uncertainty_s: float) -> None:
        """Somebody asked the database for the time; below the uncertainty of that, the clocks count as equal."""
        self.offset_s = offset_s if abs(offset_s) > uncertainty_s else 0.0

    def since(self, committed_at: float, now: float) -> float:
        """Seconds from a commit (by the database's clock) to ``now`` (by ours), both in seconds since 1970."""
        age = now + self.offset_s - committed_at
        if age < 0:
            self.offset_s -= age
            return 0.0
        return age
