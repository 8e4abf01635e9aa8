"""How a replicator is: what it tells once a second, for health checks, metrics and the dashboard."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, Final, Literal

from replication.changes import Change, Chunk, Relation
from replication.errors import ReplicationError, ServerNotReady, SlotIsActive
from replication.lsn import LSN, Position
from replication.publications import PublishedTable
from replication.slots import SlotStatus

Role = Literal["connecting", "active", "standby"]

RATE_WINDOW_S: Final = 5.0

MOST_TABLES: Final = 100
OTHER_TABLES: Final = "(other)"
_RELATION_OF: Final = itemgetter(Change._fields.index("relation"))


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong last. ``message`` says why and what to do; it may name hosts and roles, never a password.

    ``kind`` is the error's class, ``at`` seconds since 1970. ``needs_somebody``: it does not heal by itself.
    """

    kind: str
    message: str
    sqlstate: str | None
    needs_somebody: bool
    at: float

    @classmethod
    def of(cls, error: BaseException, at: float) -> Trouble:
        """What there is to tell of an error."""
        sqlstate = getattr(error, "sqlstate", None)
        text = str(error).strip() or type(error).__name__
        return cls(type(error).__name__, text, sqlstate, isinstance(error, ServerNotReady), at)


@dataclass(frozen=True, slots=True)
class RingStatus:
    """The ring of recent changes: ``floor`` is the newest position that has left, ``age_s`` how old its oldest is."""

    floor: Position
    last: Position
    bytes: int
    chunks: int
    age_s: float
    max_bytes: int
    max_age_s: float


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A bound on what the slot holds back, as `replication.headroom.Budget` has it; ``left_s`` at the present rate."""

    name: str
    limit: int
    used: int
    share: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Rates:
    """Of the last few seconds."""

    changes_per_s: float
    transactions_per_s: float
    wal_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ReplicatorStatus:
    """One replicator at one moment.

    ``progress_age_s``: seconds since the server last said something on the stream (`None`: never yet). ``lag_bytes``
    and ``lag_s`` reach from what has been published to the end of the server's WAL, and say nothing of what the ring
    holds back. ``catalog_xmin_age`` and sizes are in ``slots``, of which ``slot_name`` is ours. ``tables`` are the
    first `MOST_TABLES` of the ``table_count`` published ones: it is told every second.
    """

    instance: str
    role: Role
    started_at: float
    epoch: str
    slot_name: str | None
    temporary: bool
    publications: Sequence[str]
    published: Position | None
    published_at: datetime | None
    server_wal_end: LSN | None
    confirmed_flush_lsn: LSN | None
    lag_bytes: int | None
    lag_s: float | None
    progress_age_s: float | None
    ring: RingStatus
    rates: Rates
    changes: int
    transactions: int
    unreadable: int
    changes_by_table: dict[str, int]
    connections: int
    slots_replaced: int
    error: Trouble | None
    budgets: Sequence[BudgetStatus]
    slots: Sequence[SlotStatus]
    tables: Sequence[PublishedTable]
    table_count: int
    server_version: str | None

    def as_json(self) -> dict[str, Any]:
        """The same in values that JSON has: LSNs and positions as text, moments in ISO 8601."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}


class Meter:
    """What a replicator counts of itself. Moments are told, in seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self.role: Role = "connecting"
        self.trouble: Trouble | None = None
        self.tables: Counter[Relation] = Counter()
        """Changes by table, since the start."""
        self.changes = self.transactions = self.unreadable = self.connections = 0
        self.progress_at: float | None = None
        self._samples: deque[tuple[float, int, int, int]] = deque()
        self._named: set[str] = set()

    def streams(self, now: float) -> None:
        """The slot is being read."""
        self.role, self.trouble = "active", None
        self.connections += 1
        self.progress_at = now

    def failed(self, error: BaseException, at: float) -> None:
        """Not, or no longer, because of this; ``at`` in seconds since 1970."""
        self.role = "standby" if isinstance(error, SlotIsActive) else "connecting"
        # What comes again and again has begun when it came first.
        trouble = Trouble.of(error, at)
        if self.trouble is None or (self.trouble.kind, self.trouble.message) != (trouble.kind, trouble.message):
            self.trouble = trouble

    def read(self, chunk: Chunk) -> None:
        """Some changes came, and may be the last of their transaction."""
        count = len(chunk.changes)
        self.changes += count
        self.transactions += chunk.is_last
        if count == 1:
            self.tables[chunk.changes[0].relation] += 1
            return
        if not count:
            return
        # Most chunks are of one table, and then nothing is counted one by one.
        relations = list(map(_RELATION_OF, chunk.changes))
        if relations.count(relations[0]) == count:
            self.tables[relations[0]] += count
        else:
            self.tables.update(relations)

    def by_table(self) -> dict[str, int]:
        """Changes by ``schema.table``: those of the busiest `MOST_TABLES`, the rest together as ``(other)``.

        A table that once had a name of its own here keeps it, so that its count never falls.
        """
        counts: Counter[str] = Counter()
        for relation, count in self.tables.items():
            counts[str(relation)] += count
        for name, _ in counts.most_common(MOST_TABLES):
            if len(self._named) >= MOST_TABLES:
                break
            self._named.add(name)
        told = {name: count for name, count in counts.items() if name in self._named}
        if other := sum(counts.values()) - sum(told.values()):
            told[OTHER_TABLES] = other
        return told

    def rates(self, wal_end: int, now: float) -> Rates:
        """Rates since about `RATE_WINDOW_S` ago; to be asked about once a second."""
        samples = self._samples
        samples.append((now, self.changes, self.transactions, wal_end))
        while len(samples) > 2 and now - samples[1][0] >= RATE_WINDOW_S:
            samples.popleft()
        then, changes, transactions, old_end = samples[0]
        elapsed_s = now - then
        if elapsed_s <= 0:
            return Rates(0.0, 0.0, 0.0)
        wal_bytes = max(0, wal_end - old_end) if old_end else 0
        return Rates(
            (self.changes - changes) / elapsed_s, (self.transactions - transactions) / elapsed_s, wal_bytes / elapsed_s
        )


def plain(value: Any) -> Any:
    """A value of ours in those that JSON has."""
    match value:
        case LSN() | Position():
            return str(value)
        case datetime():
            return value.isoformat()
        case ReplicationError():
            return str(value)
        case list() | tuple():
            return [plain(item) for item in value]
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case _ if is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        case _:
            return value
