"""What is counted, in the words of Prometheus.

The paths that changes take count in plain integers. Here they are carried over when somebody asks (`carry`), so that
counting costs the paths nothing more. Processes that share a port sum up through files in PROMETHEUS_MULTIPROC_DIR, as
prometheus-client does it; then each carries over once a second, for whichever of them is asked. What a replicator tells
of itself stands in the roster, and every process shows it.

prometheus-client looks for PROMETHEUS_MULTIPROC_DIR when it is imported, so import this module late.

Source: https://prometheus.io/docs/practices/naming/ and https://prometheus.github.io/client_python/multiprocess/
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from streaming.latency import BOUNDS_S
from streaming.process import this_process
from streaming.tally import REPLAY_BOUNDS, tally

CARRY_S: Final = 1.0
MOST_TABLES: Final = 100
OTHER_TABLES: Final = "(other)"

REGISTRY = CollectorRegistry()
"""Of this process's own counts, not prometheus-client's global one: another app in the process may use that."""


class CarriedHistogram(Histogram):
    """A histogram that was counted elsewhere, in the same buckets."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Count so many more in each bucket, whose values sum up to ``total``."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        if total:
            self._sum.inc(total)


def _counter(name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    return Counter(f"walcast_{name}", documentation, labels, registry=REGISTRY)


def _gauge(name: str, documentation: str, mode: Any = "livesum") -> Gauge:
    return Gauge(f"walcast_{name}", documentation, registry=REGISTRY, multiprocess_mode=mode)


def _histogram(name: str, documentation: str, bounds: Sequence[float]) -> CarriedHistogram:
    return CarriedHistogram(f"walcast_{name}", documentation, registry=REGISTRY, buckets=bounds)


class _Carrier:
    """Brings the metrics level with what this process has counted."""

    def __init__(self) -> None:
        self._carried: dict[Any, float] = {}
        self._seen: dict[str, list[int]] = {}
        self._named: set[str] = set()
        self.changes = _counter("changes", "Changes that came to this process, watched or not")
        self.rendered = _counter("changes_matched", "Changes that somebody listens to, each counted once")
        self.by_table = _counter("table_changes_matched", "The same by table", ["table"])
        self.unreadable = _counter("changes_unreadable", "Changes that could not be read, and were left out")
        self.messages = _counter("messages_sent", "Messages with changes handed to sockets")
        self.bytes = _counter("sent_bytes", "Bytes of messages with changes handed to sockets")
        self.busy = _counter("deliver_seconds", "Time spent on matching, rendering and handing out")
        self.gaps = _counter("gaps", "Times that subscribers were told of missing changes")
        self.joins = _counter("joins", "Joins by protocol and result", ["protocol", "result"])
        self.refusals = _counter("refusals", "Refused tokens and handshakes by reason code", ["where", "code"])
        self.closes = _counter("closes", "Closed sockets by who closed and close code", ["by", "code"])
        self.resumes = _counter("resumes", "Joins that came back with a position", ["result"])
        self.replayed = _histogram("resume_replayed_changes", "Changes replayed to one resume", REPLAY_BOUNDS)
        self.latency = _histogram(
            "commit_to_socket_seconds", "From a commit until its changes were handed to the last socket", BOUNDS_S
        )
        self.arrival = _histogram("commit_to_arrival_seconds", "From a commit until its changes were here", BOUNDS_S)
        self.sockets = _gauge("sockets", "Open websockets")
        self.topics = _gauge("topics", "Topics that somebody hears changes of, in each process")
        self.buffered = _gauge("buffered_bytes", "Bytes that wait for slow readers")
        self.buffered_p99 = _gauge("buffered_bytes_p99", "What 99 of 100 sockets have waiting at most", "livemax")
        self.buffered_max = _gauge("buffered_bytes_max", "What the slowest reader has waiting", "livemax")
        self.broadcasts = _counter("broadcasts", "Broadcasts said here, or heard of another process", ["from"])
        self.room_messages = _counter("room_messages_sent", "Messages of broadcast and presence handed to sockets")
        self.room_bytes = _counter("room_sent_bytes", "Bytes of messages of broadcast and presence handed to sockets")
        self.presence_changes = _counter("presence_changes", "Times that somebody came, went or showed something else")
        self.users = _gauge("users", "Websockets that have joined something")
        # Each process knows of everybody: the sum would count them again and again.
        self.presences = _gauge("presences", "What is shown by those who are present, in all processes", "livemax")
        self.log_age = _gauge("log_age_seconds", "How far back a client can resume here", "livemin")
        self.log_bytes = _gauge("log_bytes", "Size of what can be replayed here")

    def carry(self, now: float) -> None:
        """Add what has come since the last time. ``now`` as `time.monotonic` has it."""
        self._carry_tally()
        self._carry_rooms()
        if (hub := this_process.hub) is None:
            return
        counters = hub.counters
        self._more(self.changes, "changes", counters.changes)
        self._more(self.rendered, "rendered", counters.rendered)
        self._more(self.unreadable, "unreadable", counters.unreadable)
        self._more(self.messages, "messages", counters.messages)
        self._more(self.bytes, "bytes", counters.bytes)
        self._more(self.busy, "busy", getattr(counters, "hub_busy_s", 0.0))
        self._more(self.gaps, "gaps", counters.gaps)
        self._more(self.resumes.labels("recovered"), "recovered", counters.resumed)
        self._more(self.resumes.labels("not_recovered"), "not_recovered", counters.not_recovered)
        for relation, count in counters.tables.items():
            self.by_table.labels(self._name_of(str(relation))).inc(count)
        counters.tables.clear()
        self._more_of(self.latency, "latency", hub.latency.counts, hub.latency.sum_s)
        self._more_of(self.arrival, "arrival", hub.arrivals.counts, hub.arrivals.sum_s)
        self.sockets.set(hub.socket_count)
        self.topics.set(hub.topic_count)
        queued = sorted(outlet.queued_bytes for outlet, _ in hub.sockets)
        self.buffered.set(sum(queued))
        self.buffered_max.set(queued[-1] if queued else 0)
        self.buffered_p99.set(queued[min(len(queued) - 1, len(queued) * 99 // 100)] if queued else 0)
        self.log_age.set(hub.log.age_s(now))
        self.log_bytes.set(hub.log.size)

    def _carry_tally(self) -> None:
        for metric, counts in ((self.joins, tally.joins), (self.refusals, tally.refusals), (self.closes, tally.closes)):
            for labels, count in counts.items():
                self._more(metric.labels(*labels), (metric, labels), count)
        self._more_of(self.replayed, "replayed", tally.replays, tally.replayed)

    def _carry_rooms(self) -> None:
        if (rooms := this_process.rooms) is None:
            return
        messages, size = rooms.handed_out
        self._more(self.broadcasts.labels("here"), "broadcasts", rooms.counters.broadcasts)
        self._more(self.broadcasts.labels("elsewhere"), "from_elsewhere", rooms.counters.from_elsewhere)
        self._more(self.presence_changes, "presence_changes", rooms.counters.presence_changes)
        self._more(self.room_messages, "room_messages", messages)
        self._more(self.room_bytes, "room_bytes", size)
        self.users.set(rooms.traffic.users)
        self.presences.set(rooms.presences.count())

    def _more(self, metric: Counter, key: Any, total: float) -> None:
        if (more := total - self._carried.get(key, 0)) > 0:
            metric.inc(more)
            self._carried[key] = total

    def _more_of(self, metric: CarriedHistogram, key: str, counts: Sequence[int], total: float) -> None:
        before = self._seen.get(key) or [0] * len(counts)
        metric.add([new - old for new, old in zip(counts, before, strict=True)], total - self._carried.get(key, 0))
        self._seen[key], self._carried[key] = list(counts), total

    def _name_of(self, table: str) -> str:
        if table not in self._named:
            if len(self._named) >= MOST_TABLES:
                return OTHER_TABLES
            self._named.add(table)
        return table


def _folder() -> Path | None:
    folder: str = settings.PROMETHEUS_MULTIPROC_DIR
    return Path(folder) if folder else None


if (_shared := _folder()) is not None:
    _shared.mkdir(parents=True, exist_ok=True)

_carrier = _Carrier()
if _shared is None:
    ProcessCollector(registry=REGISTRY)


async def carry_on() -> None:
    """Where processes share a port: bring this one's counts level once a second, until cancelled."""
    if _shared is None:
        return
    loop = asyncio.get_running_loop()
    while True:
        _carrier.carry(loop.time())
        await asyncio.sleep(CARRY_S)


def exposition(replicators: Mapping[str, Mapping[str, Any]], now: float) -> bytes:
    """All of it as Prometheus reads it. ``now`` as `time.monotonic` has it."""
    _carrier.carry(now)
    registry = CollectorRegistry()
    if _shared is None:
        own = generate_latest(REGISTRY)
    else:
        _forget_dead(_shared)
        MultiProcessCollector(registry, str(_shared))  # type: ignore[no-untyped-call]
        own = b""
    registry.register(_Replicators(replicators))
    return own + generate_latest(registry)


def _forget_dead(folder: Path) -> None:
    """What a process had (sockets…) ends with it, also if it was killed; what it counted stays."""
    for pid in {file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*_*.db")}:
        if pid.isdecimal() and not _is_alive(int(pid)):
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class _Replicators:
    """What the replicators told last."""

    def __init__(self, replicators: Mapping[str, Mapping[str, Any]]) -> None:
        self._replicators = replicators

    def collect(self) -> Iterator[Metric]:
        """Every metric with one sample for each replicator, but for what only the active one knows."""
        replicators = list(self._replicators.values())
        up = GaugeMetricFamily("walcast_replicator_up", "1 for each replicator, by role", labels=["replicator", "role"])
        for status in replicators:
            up.add_metric([status["instance"], status["role"]], 1)
        yield up
        active = [status for status in replicators if status["role"] == "active"]
        for name, documentation, key in _GAUGES:
            yield _family(GaugeMetricFamily, name, documentation, active, lambda status, key=key: status.get(key))
        for name, documentation, key in _RING:
            yield _family(
                GaugeMetricFamily, name, documentation, active, lambda status, key=key: status["ring"].get(key)
            )
        for name, documentation, key in _COUNTS:
            yield _family(
                CounterMetricFamily, name, documentation, replicators, lambda status, key=key: status.get(key)
            )
        yield from _labelled(active)
        yield from _webhooks(replicators)


_GAUGES: Final = (
    ("lag_bytes", "WAL that is not yet published", "lag_bytes"),
    ("lag_seconds", "How long ago the server's WAL ended where it is published to", "lag_s"),
    ("progress_age_seconds", "Since PostgreSQL was last heard on the stream", "progress_age_s"),
)
_RING: Final = (
    ("ring_bytes", "Size of the ring of recent changes", "bytes"),
    ("ring_age_seconds", "Age of the oldest change in the ring: how far back a client can resume", "age_s"),
)
_COUNTS: Final = (
    ("decoded_changes", "Changes read from PostgreSQL", "changes"),
    ("decoded_transactions", "Transactions read from PostgreSQL", "transactions"),
    ("undecodable_changes", "Changes that could not be read from the stream", "unreadable"),
    ("stream_starts", "Times that streaming has begun", "connections"),
    ("slots_replaced", "Slots dropped and made anew: changes are missing", "slots_replaced"),
)


def _webhooks(replicators: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    labels = ["replicator", "webhook", "result"]
    posts = CounterMetricFamily("walcast_webhook_posts", "Posts to webhooks by what became of them", labels=labels)
    waiting = GaugeMetricFamily("walcast_webhook_posts_waiting", "Posts that wait for an endpoint", labels=labels[:2])
    for status in replicators:
        for webhook in status.get("webhooks", ()):
            for result in ("delivered", "failed", "dropped"):
                posts.add_metric([status["instance"], webhook["name"], result], webhook[result])
            waiting.add_metric([status["instance"], webhook["name"]], webhook["waiting"])
    yield from (posts, waiting)


def _family(kind: Any, name: str, documentation: str, statuses: Iterable[Mapping[str, Any]], read: Any) -> Metric:
    family: Metric = kind(f"walcast_replicator_{name}", documentation, labels=["replicator"])
    for status in statuses:
        if (value := read(status)) is not None:
            family.add_metric([status["instance"]], value)  # type: ignore[attr-defined]
    return family


def _labelled(active: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    used = GaugeMetricFamily("walcast_wal_budget_used_ratio", "Used share of a bound on the slot", labels=["budget"])
    left = GaugeMetricFamily(
        "walcast_wal_headroom_bytes", "WAL until a bound on the slot is reached", labels=["budget"]
    )
    xids = GaugeMetricFamily("walcast_catalog_xmin_headroom", "Transactions until the catalogues' oldest is too old")
    kept = GaugeMetricFamily("walcast_slot_retained_bytes", "WAL kept on the database's disk", labels=["slot"])
    read = GaugeMetricFamily("walcast_slot_active", "1 while somebody reads the slot", labels=["slot"])
    lost = GaugeMetricFamily("walcast_slot_lost", "1 once the slot's WAL is gone", labels=["slot"])
    tables = CounterMetricFamily("walcast_table_changes_decoded", "Changes read, by table", labels=["table"])
    for status in active[:1]:  # of two that overlap at a takeover, one tells
        for budget in status["budgets"]:
            used.add_metric([budget["name"]], budget["share"])
            remaining = max(0, budget["limit"] - budget["used"])
            if budget["name"] == "autovacuum_freeze_max_age":
                xids.add_metric([], remaining)
            else:
                left.add_metric([budget["name"]], remaining)
        for slot in status["slots"]:
            kept.add_metric([slot["name"]], slot["retained_bytes"] or 0)
            read.add_metric([slot["name"]], int(slot["active"]))
            lost.add_metric([slot["name"]], int(slot["wal_status"] == "lost" or bool(slot["invalidation_reason"])))
        for table, count in status["changes_by_table"].items():
            tables.add_metric([table], count)
    yield from (used, left, xids, kept, read, lost, tables)
