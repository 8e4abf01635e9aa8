"""What this process knows of itself: its clients and topics, its rates of the last minutes, its newest problems.

It looks at itself once a second, which costs as much with a thousand clients as with one, and tells the roster. Lists
are made only when somebody asks, and only as long as was asked for.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import platform
import re
import resource
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from realtime_project import __version__
from streaming.hub import Hub
from streaming.intercom import Intercom
from streaming.latency import BOUNDS_S, Histogram, difference, quantile
from streaming.problems import Problems
from streaming.rooms import Rooms
from streaming.roster import Roster, keep, process_name
from streaming.session import Session
from streaming.subscriptions import Subscription
from streaming.timed import TimedPublisher
from streaming.transport import Outlet

PROCESSES: Final = "process"
"""The kind of the processes' records in the roster: name to what `Observatory.report` returns."""

CLIENTS, TOPICS, HISTORY, DISCONNECT, CLOCK = "clients", "topics", "history", "disconnect", "clock"
"""The commands that a process performs for a dashboard anywhere."""

LOOK_S, LEASE_S = 1.0, 5.0
HISTORY_S: Final = 300
WINDOW_S: Final = 10
"""Latencies are those of the last so many seconds."""

DISCONNECTED, DISCONNECTED_REASON = 1008, "disconnected by the operator"

MOST_ROWS: Final = 500
_MOST_TOPICS_SHOWN = 50


class Sample(NamedTuple):
    """One second: rates a second, latencies in seconds, the rest as it stood at its end."""

    at: int
    changes: float
    messages: float
    bytes: float
    p50: float | None
    p99: float | None
    queued_bytes: int
    sockets: int


class Client(Protocol):
    """What a socket's owner tells of it (`streaming.consumers.RealtimeConsumer`)."""

    scope: Any
    session: Session
    connected_at: float
    heartbeat_at: float | None


class Observatory:
    """Looks while `run` runs.

    ``kind`` says what the process is: realtime, sockets or replicator. Without a ``hub`` it has no clients. ``timed``
    knows how long changes take from their commit to the replicator of this process, if it has one.
    """

    def __init__(
        self,
        problems: Problems,
        *,
        hub: Hub | None = None,
        rooms: Rooms | None = None,
        timed: TimedPublisher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.kind = "sockets"
        self._problems, self._hub, self._rooms = problems, hub, rooms
        self._decoded = timed.latency if timed is not None else None
        self._clocks = [part.clock for part in (hub, timed) if part is not None]
        self._clock = clock
        self._started_at = clock()
        self._samples: deque[Sample] = deque(maxlen=HISTORY_S)
        self._counts: deque[tuple[list[int], ...]] = deque(maxlen=WINDOW_S + 1)
        self._before: tuple[float, int, int, int] | None = None
        self._rates: dict[str, float] = {}
        self._queued: tuple[int, int] = 0, 0
        self._topics_before: tuple[float, dict[int, int]] = 0.0, {}
        self._topic_rates: dict[str, float] = {}
        self._loop_delay_s = 0.0
        self._cpu: tuple[float, float] | None = None
        self._cpu_share = 0.0

    def answer(self, intercom: Intercom) -> None:
        """Perform the commands of dashboards, in this process and in others."""
        intercom.on(CLIENTS, self.clients)
        intercom.on(TOPICS, self.topics)
        intercom.on(HISTORY, lambda _: [list(sample) for sample in self._samples])
        intercom.on(DISCONNECT, self.disconnect)
        intercom.on(CLOCK, self.take_clock)

    async def run(self, roster: Roster) -> None:
        """Look, and tell the roster, once a second until cancelled."""
        looking = asyncio.create_task(self._look_on(), name="observatory")
        try:
            await keep(roster, PROCESSES, process_name(), self._told, every_s=LOOK_S, lease_s=LEASE_S)
        finally:
            looking.cancel()

    async def _told(self) -> dict[str, Any]:
        return self.report()

    async def _look_on(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wanted = loop.time() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self._loop_delay_s = loop.time() - wanted
            self.look()

    def look(self) -> None:
        """Take the sample of this second."""
        now = self._clock()
        self._cpu_share = self._measure_cpu()
        histograms = [self._hub.latency, self._hub.arrivals] if self._hub else [Histogram(), Histogram()]
        histograms.append(self._decoded or Histogram())
        self._counts.append(tuple(list(histogram.counts) for histogram in histograms))
        if (hub := self._hub) is None:
            return
        queued = [outlet.queued_bytes for outlet, _ in hub.sockets]
        self._queued = sum(queued), max(queued, default=0)
        counters = hub.counters
        spoken, spoken_bytes = self._rooms.handed_out if self._rooms else (0, 0)
        counts = now, counters.changes, counters.messages + spoken, counters.bytes + spoken_bytes
        if self._before is not None and now > self._before[0]:
            elapsed_s = now - self._before[0]
            changes, messages_s, bytes_s = (
                (new - old) / elapsed_s for new, old in zip(counts[1:], self._before[1:], strict=True)
            )
            window = self._window(0, 1)
            p50, p99 = quantile(window, 0.5), quantile(window, 0.99)
            self._samples.append(Sample(int(now), changes, messages_s, bytes_s, p50, p99, self._queued[0], len(queued)))
        self._before = counts
        self._measure_topics(now)

    def report(self) -> dict[str, Any]:
        """What the others are told of this process: facts, rates, counts of latencies, and its newest problems."""
        problems = self._problems.report(limit=10)
        report: dict[str, Any] = {
            "kind": self.kind,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "python": platform.python_version(),
            "started_at": self._started_at,
            "cpu": round(self._cpu_share, 3),
            "rss_bytes": _rss_bytes(),
            "loop_delay_s": round(max(0.0, self._loop_delay_s), 4),
            "problems": [{**problem, "times": problem["times"][-20:]} for problem in problems],
            "serves": self._hub is not None,
        }
        if self._decoded is not None:
            report["decoded"] = self._window(2, WINDOW_S)
        if (hub := self._hub) is not None:
            last = self._samples[-1] if self._samples else None
            report |= {
                "sockets": hub.socket_count,
                "topics": len(self._topic_names(hub)),
                "changes_per_s": _recent(self._samples, "changes"),
                "messages_per_s": _recent(self._samples, "messages"),
                "bytes_per_s": _recent(self._samples, "bytes"),
                "queued_bytes": self._queued[0],
                "queued_most": self._queued[1],
                "latency": self._window(0, WINDOW_S),
                "arrived": self._window(1, WINDOW_S),
                "sample": list(last) if last else None,
                "epoch": hub.epoch,
                "have": str(hub.have),
                "is_level": hub.ready.is_set(),
                "ring_bytes": hub.log.size,
                "clock_offset_s": round(hub.clock.offset_s, 4),
                "totals": {"changes": hub.counters.changes, "messages": hub.counters.messages},
            }
        return report

    # Lists, for who asks

    def clients(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The sockets that match ``search``, in the order of ``sort`` (a key of `_ORDERS`), the first ``limit``.

        Returns ``rows``, each with its sort key as ``order``, and how many sockets there are and match.
        """
        if self._hub is None:
            return {"rows": [], "total": 0, "matching": 0}
        search, descending = str(wanted.get("search") or "").casefold(), bool(wanted.get("descending"))
        order: Order = _ORDERS.get(str(wanted.get("sort")), _connected_at)
        limit = _limit(wanted)
        sockets: list[tuple[Outlet, Any]] = list(self._hub.sockets)
        if search:
            sockets = [(outlet, client) for outlet, client in sockets if search in _text(client)]

        def key(pair: tuple[Outlet, Any]) -> tuple[Any, int]:
            return order(*pair), id(pair[0])

        chosen = (heapq.nlargest if descending else heapq.nsmallest)(limit, sockets, key=key)
        rows = [self._client(outlet, client) | {"order": order(outlet, client)} for outlet, client in chosen]
        return {"rows": rows, "total": self._hub.socket_count, "matching": len(sockets)}

    def topics(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The topics that match ``search``, those with the most members first, at most ``limit``."""
        if self._hub is None:
            return {"rows": [], "total": 0, "matching": 0}
        search, members = str(wanted.get("search") or "").casefold(), self._topic_names(self._hub)
        matching = [topic for topic in members if search in topic.casefold()] if search else list(members)
        chosen = sorted(matching, key=lambda topic: (-members[topic], topic))[: _limit(wanted)]
        rows: dict[str, dict[str, Any]] = {
            topic: {"topic": topic, "members": members[topic], "filters": [], "kinds": []} for topic in chosen
        }
        for audience in self._hub.audiences:
            if (row := rows.get(audience.topic)) is None:
                continue
            subscription = audience.subscription
            kind = "legacy" if subscription.bindings is None else "postgres_changes"
            if kind not in row["kinds"]:
                row["kinds"].append(kind)
            for text in _filters(subscription):
                if text not in row["filters"] and len(row["filters"]) < _MOST_TOPICS_SHOWN:
                    row["filters"].append(text)
        rooms = self._rooms.topics if self._rooms else {}
        for topic, row in rows.items():
            if topic in rooms:
                row["kinds"].append("room")
            row["events_per_s"] = round(self._topic_rates.get(topic, 0.0), 2)
        return {"rows": list(rows.values()), "total": len(members), "matching": len(matching)}

    def take_clock(self, measured: Mapping[str, Any]) -> None:
        """Somebody has asked the database for the time: ``offset_s`` is its clock minus ours, give or take."""
        if measured["host"] != socket.gethostname():
            return  # that is another clock
        for clock in self._clocks:
            clock.measured(float(measured["offset_s"]), float(measured["uncertainty_s"]))

    def disconnect(self, wanted: Mapping[str, Any]) -> bool:
        """Close the socket of that ``id``; false if it is not there any more."""
        for outlet, client in self._hub.sockets if self._hub else ():
            if _id(outlet, client) == wanted.get("id"):
                outlet.close(DISCONNECTED, DISCONNECTED_REASON)
                return True
        return False

    def _client(self, outlet: Outlet, client: Any) -> dict[str, Any]:
        session: Session = client.session
        claims, topics = session.claims, session.topics
        agent = _header(client.scope, b"user-agent")
        return {
            "id": _id(outlet, client),
            "address": _address(client.scope),
            "sub": claims.subject if claims else None,
            "role": claims.role if claims else None,
            "expires_at": claims.expires_at if claims else None,
            "protocol": "current" if session.is_current else "legacy",
            "vsn": client.serializer.vsn,
            "path": client.scope.get("path", ""),
            "library": library(_header(client.scope, b"x-client-info"), agent),
            "agent": agent[:300],
            "connected_at": client.connected_at,
            "heartbeat_at": client.heartbeat_at,
            "topics": list(topics[:_MOST_TOPICS_SHOWN]),
            "topic_count": len(topics),
            "messages": getattr(outlet, "sent_messages", 0),
            "bytes": getattr(outlet, "sent_bytes", 0),
            "queued_bytes": outlet.queued_bytes,
        }

    # What is measured

    def _window(self, which: int, seconds: int) -> list[int]:
        if len(self._counts) < 2:
            return [0] * (len(BOUNDS_S) + 1)
        later, earlier = self._counts[-1][which], self._counts[max(0, len(self._counts) - 1 - seconds)][which]
        return difference(later, earlier)

    def _topic_names(self, hub: Hub) -> Counter[str]:
        """Every topic that somebody has joined here, and how many sockets."""
        members: Counter[str] = Counter()
        for audience in hub.audiences:
            members[audience.topic] += len(audience.outlets)
        for topic, count in (self._rooms.topics if self._rooms else {}).items():
            members[topic] = max(members[topic], count)
        return members

    def _measure_topics(self, now: float) -> None:
        then, before = self._topics_before
        if self._hub is None or now - then < 2 * LOOK_S:
            return
        counts, rates = {}, Counter[str]()
        for audience in self._hub.audiences:
            counts[id(audience)] = audience.sent
            if then:
                gained = audience.sent - before.get(id(audience), 0)
                rates[audience.topic] = max(rates[audience.topic], max(0, gained) / (now - then))  # type: ignore[assignment]
        self._topics_before, self._topic_rates = (now, counts), dict(rates)

    def _measure_cpu(self) -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu, wall = used.ru_utime + used.ru_stime, time.monotonic()
        before, self._cpu = self._cpu, (cpu, wall)
        return (cpu - before[0]) / (wall - before[1]) if before and wall > before[1] else 0.0


def library(client_info: str, agent: str) -> str:
    """The client library as far as it says so: ``x-client-info`` of Supabase's clients, else what its agent is."""
    if client_info:
        return client_info[:60]
    for name, pattern in _AGENTS:
        if match := pattern.search(agent):
            version = match.group(1) if match.groups() else ""
            return f"{name} {version}".strip()
    return agent.partition(" ")[0][:40].replace("/", " ")


_AGENTS = [
    (name, re.compile(pattern))
    for name, pattern in (
        ("Edge", r"Edg/(\d+)"),
        ("Firefox", r"Firefox/(\d+)"),
        ("Chrome", r"(?:Headless)?Chrome/(\d+)"),
        ("Safari", r"Version/(\d+)[\d.]* (?:Mobile/\w+ )?Safari"),
        ("websockets (Python)", r"websockets/([\d.]+)"),
        ("Dart", r"Dart/([\d.]+)"),
        ("Node.js", r"\bnode\b"),
    )
]


def _connected_at(outlet: Outlet, client: Any) -> float:
    return float(client.connected_at)


Order = Callable[[Outlet, Any], Any]

_ORDERS: Final[dict[str, Order]] = {
    "connected": _connected_at,
    "address": lambda outlet, client: _address(client.scope),
    "user": lambda outlet, client: (client.session.claims.subject or "") if client.session.claims else "",
    "topics": lambda outlet, client: len(client.session.topics),
    "messages": lambda outlet, client: getattr(outlet, "sent_messages", 0),
    "bytes": lambda outlet, client: getattr(outlet, "sent_bytes", 0),
    "queued": lambda outlet, client: outlet.queued_bytes,
    "heartbeat": lambda outlet, client: client.heartbeat_at or client.connected_at,
}


def _limit(wanted: Mapping[str, Any]) -> int:
    return max(1, min(int(wanted.get("limit") or 50), MOST_ROWS))


def _id(outlet: Outlet, client: Any) -> str:
    return f"{id(outlet):x}-{int(getattr(client, 'connected_at', 0.0) * 1000):x}"


def _address(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""


def _header(scope: Mapping[str, Any], wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == wanted), "")


def _text(client: Any) -> str:
    """Where a search looks, in lower case."""
    claims = client.session.claims
    who = [claims.subject or "", claims.role or ""] if claims else []
    agent = _header(client.scope, b"user-agent")
    said = library(_header(client.scope, b"x-client-info"), agent)
    protocol = "current" if client.session.is_current else "legacy"
    return "\n".join([_address(client.scope), said, agent, protocol, *who, *client.session.topics]).casefold()


def _filters(subscription: Subscription) -> list[str]:
    texts = []
    for binding in subscription.bindings or ():
        conditions = " and ".join(
            f"{c.column}={'not.' if c.negated else ''}{c.operator}.{c.value}" for c in binding.conditions
        )
        texts.append(f"{binding.event} {binding.schema}.{binding.table}{' where ' + conditions if conditions else ''}")
    return texts


def _recent(samples: deque[Sample], field: str) -> float:
    """The mean of the last three seconds: one second alone jumps about."""
    newest = list(samples)[-3:]
    return round(sum(getattr(sample, field) for sample in newest) / len(newest), 2) if newest else 0.0


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
