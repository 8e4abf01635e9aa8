"""Who listens hears every row once and in commit order, or is told that some are missing: this finds out.

The writers number their rows; the listeners keep what they hear. Used by the model and by the tests on real servers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Gap:
    """The listener was told that changes are missing: of these tables, or of any (`None`)."""

    tables: frozenset[str] | None = None


Heard: TypeAlias = int | Gap
"""The number of a row, or the word that some are missing."""


@dataclass(slots=True)
class Verdict:
    """What a listener heard, and what is wrong with it."""

    delivered: int = 0
    told: int = 0
    """How often it was told that changes are missing."""
    excused: int = 0
    """Rows that it did not get, and was told of."""
    lost: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    disordered: list[int] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What must not be, in words; empty if all is well."""
        found = {
            "lost": self.lost,
            "doubled": self.doubled,
            "out of order": self.disordered,
            "never committed": self.foreign,
        }
        return [f"{what}: {numbers[:10]} ({len(numbers)})" for what, numbers in found.items() if numbers]


def judge(
    heard: Iterable[Heard],
    committed: Sequence[int],
    *,
    tables: Mapping[int, str] | None = None,
    undone: Collection[int] = (),
    after: int | None = None,
    complete: bool = True,
) -> Verdict:
    """Compare what a listener heard with what was committed for it, in commit order.

    ``tables`` says which table a row is in, for gaps of some tables only. ``undone`` are rows that were committed and
    then were not, in the history that went on (a standby without them was promoted): who has heard one must be told.
    ``after`` is the row after which the listener joined (`None`: before all; or it has no beginning that is known, if
    it is not among them). ``complete``: it has listened to the end.
    """
    verdict, places = Verdict(), {number: place for place, number in enumerate(committed)}
    at = -1 if after is None else places.get(after)
    excused: set[str] = set()
    is_gap, owed, seen = False, list[int](), set[int]()

    def skipped(until: int) -> None:
        if is_gap or at is None:
            verdict.excused += 0 if at is None else max(0, until - at - 1)
            return
        for number in committed[at + 1 : until]:
            if tables is not None and tables[number] in excused:
                verdict.excused += 1
            else:
                verdict.lost.append(number)

    for item in heard:
        if isinstance(item, Gap):
            verdict.told += 1
            if item.tables is None:
                is_gap, owed, seen = True, [], set()
            else:
                excused |= item.tables
            continue
        verdict.delivered += 1
        place = places.get(item)
        if item in seen:
            verdict.doubled.append(item)
            continue
        seen.add(item)
        if place is None:
            (owed if item in undone else verdict.foreign).append(item)
            continue
        if at is not None and place <= at and not is_gap:
            verdict.disordered.append(item)
            continue
        skipped(place)
        at, is_gap, excused = place, False, set()
        verdict.foreign += owed  # it went on as if these were part of what is
        owed = []
    verdict.foreign += owed if complete else []
    if complete:
        skipped(len(committed))
    return verdict
