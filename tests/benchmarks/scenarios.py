"""What is measured: the scenarios, and one run of one of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, LiteralString
from urllib.parse import urlsplit

import psycopg
from websockets.sync.client import connect

from tests.benchmarks.load import AT_ONCE, LoadClients
from tests.servers import wait_until

TABLE = "walcast_benchmark"
TOPIC = f"realtime:public:{TABLE}"
ROOM = "realtime:walcast benchmark"
LIMIT_S = 120.0

_CREATE: LiteralString = """
    CREATE TABLE IF NOT EXISTS public.walcast_benchmark (id bigint, name text, email text, n int, stamp text);
    CREATE TABLE IF NOT EXISTS public.walcast_benchmark_unwatched (LIKE public.walcast_benchmark)
"""
# The mark is read by the load client: when the row was written, in microseconds. It says clock_timestamp(), for now()
# would be the beginning of the transaction.
_MARK: LiteralString = "'@@' || (extract(epoch FROM clock_timestamp()) * 1e6)::bigint"
_ROWS: LiteralString = (
    " SELECT i, 'name ' || i, 'user' || i || '@example.com', i %% 1000, "
    + _MARK
    + " FROM generate_series(%s::int, %s::int) AS i"
)
_INSERT: LiteralString = "INSERT INTO public.walcast_benchmark" + _ROWS
_INSERT_ONE: LiteralString = "INSERT INTO public.walcast_benchmark VALUES (%s, %s, %s, %s, " + _MARK + ")"
_INSERT_UNWATCHED: LiteralString = "INSERT INTO public.walcast_benchmark_unwatched" + _ROWS


Writes = Literal[
    "one transaction", "commits", "unwatched", "nothing", "nothing, again and again", "broadcasts", "presence"
]


@dataclass(frozen=True, slots=True)
class Scenario:
    """``rows`` rows are written while ``clients`` clients listen to ``topic``, and each client receives ``messages``.

    They are written in one transaction, or in one each: back to back, or ``rate`` in a second. ``unwatched``: in one
    transaction to a table that nobody listens to, and behind it one row that is awaited. ``nothing``: the clients join,
    and that is what is measured; again and again, ``rounds`` times, and all of them leave in between. ``at_once`` of
    them shake hands at a time.
    """

    name: str
    clients: int
    rows: int
    writes: Writes
    rate: float | None = None
    topic: str = TOPIC
    binding: str | None = None
    """The filter of a `postgres_changes` binding that the clients have, instead of hearing what their topic says."""
    each: int | None = None
    rounds: int = 1
    at_once: int = AT_ONCE

    @property
    def is_talk(self) -> bool:
        """Nothing is written: one more client speaks in a room."""
        return self.writes in ("broadcasts", "presence")

    @property
    def join(self) -> str:
        """The payload with which the clients join."""
        if self.binding is not None:
            wish = {"event": "INSERT", "schema": "public", "table": TABLE, "filter": self.binding}
            return json.dumps({"config": {"postgres_changes": [wish]}})
        return '{"config":{}}' if self.is_talk else "{}"

    @property
    def event(self) -> str:
        """The messages that count."""
        if self.binding is not None:
            return "postgres_changes"
        return {"broadcasts": "broadcast", "presence": "presence_diff"}.get(self.writes, "INSERT")

    @property
    def messages(self) -> int:
        """What each client receives."""
        return self.rows if self.each is None else self.each

    def __str__(self) -> str:
        clients = f"{self.clients:,} client{'s' if self.clients > 1 else ''}"
        match self.writes:
            case "one transaction":
                return f"{clients}, {self.rows:,} rows in one transaction"
            case "unwatched":
                return f"{self.rows:,} rows in one transaction to a table that nobody listens to"
            case "nothing":
                together = ", all at once" if self.at_once >= self.clients else ""
                return f"{clients} connect and join{together}, and hear nothing"
            case "broadcasts":
                return f"{clients} in a room, in which one more client broadcasts {self.rows:,} times"
            case "presence":
                return f"{clients} in a room, in which one more client changes its presence {self.rows:,} times"
            case "nothing, again and again":
                return f"{clients} connect, join and go away, {self.rounds} times"
        kind = "filter" if self.binding is None else "binding"
        whose = "" if self.each is None else f" on a {kind} of its own ({self.each} rows of)"
        how = f"{self.rate:g} a second" if self.rate else "back to back"
        return f"{clients}{whose}, {self.rows:,} one-row commits {how}"


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("fanout", 500, 200, "commits"),
        Scenario("bulk", 1, 50_000, "one transaction"),
        Scenario("burst", 100, 10_000, "one transaction"),
        Scenario("paced", 100, 500, "commits", rate=100),
        Scenario("filters", 1000, 20_000, "commits", topic=f"{TOPIC}:n=eq.{{n}}", each=20),
        Scenario("bindings", 1000, 20_000, "commits", topic=f"{ROOM} {{n}}", binding="n=eq.{n}", each=20),
        Scenario("broadcast", 500, 1_000, "broadcasts", topic=ROOM),
        Scenario("presence", 500, 200, "presence", topic=ROOM, each=201),  # one tells that it has gone
        Scenario("unwatched", 1, 200_000, "unwatched", each=1),
        Scenario("connect", 1000, 0, "nothing", each=1),
        Scenario("storm", 5_000, 0, "nothing", each=1, at_once=5_000),
        Scenario("idle", 10_000, 0, "nothing", each=1),
        Scenario("churn", 1000, 0, "nothing, again and again", each=1, rounds=100),
    )
}
ON_DEMAND = ("churn",)
"""Those that take minutes, and are run only if they are named."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server that is measured: its socket's URL, its database, and the processes whose memory and time count.

    ``trigger`` is SQL for a server that does not read the log, but is told by the table.
    """

    url: str
    dsn: str
    pids: Sequence[int]
    trigger: LiteralString | None = None
    idle_s: float | None = None
    """How long it may say nothing; `None` is the usual time."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.url).port or 80

    @property
    def path(self) -> str:
        """Its socket's path, for the legacy protocol."""
        parts = urlsplit(self.url)
        return f"{parts.path or '/socket/websocket'}?{parts.query or 'vsn=1.0.0'}"


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured; `None` is what does not apply, or could not be seen as no process was named."""

    messages_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    peak_rss_mb: float | None
    cpu_s_per_million: float | None
    kib_per_client: float | None
    connect_s: float
    write_s: float


class MessagesMissing(RuntimeError):
    """Not every client received every row exactly once."""

    def __init__(self, scenario: Scenario, fewest: int, most: int, closed: int) -> None:
        self.scenario, self.fewest, self.most, self.closed = scenario, fewest, most, closed
        super().__init__(
            f"{scenario.name}: each client should receive {scenario.messages} messages, but the clients received "
            f"{fewest} to {most}, and {closed} were closed, so the figures would mean nothing; see what the server's "
            "log says"
        )


def run(scenario: Scenario, target: Target) -> Run:
    """Run it once. Raises `MessagesMissing` if the server did not deliver, `LoadFailed` if it let nobody in."""
    with psycopg.connect(target.dsn, autocommit=True) as connection:
        connection.execute(_CREATE)
        connection.execute("TRUNCATE public.walcast_benchmark, public.walcast_benchmark_unwatched")
        if target.trigger is None:
            wait_until(lambda: _is_being_read(connection), "a replicator reading the database's changes")
        else:
            connection.execute(target.trigger)
        if scenario.writes == "unwatched":
            connection.execute("CHECKPOINT")
        if scenario.rounds > 1:
            return _came_and_went(scenario, target)
        _forget_peaks(target.pids)
        cpu_s, rss_mb = _cpu_s(target.pids), _rss_mb(target.pids, "VmRSS")
        with LoadClients(
            port=target.port,
            path=target.path,
            topic=scenario.topic,
            clients=scenario.clients,
            messages=scenario.messages,
            limit_s=LIMIT_S,
            idle_s=target.idle_s,
            at_once=scenario.at_once,
            join=scenario.join,
            event=scenario.event,
        ) as clients:
            if scenario.writes == "nothing":
                return _joined(scenario, target, clients, cpu_s, rss_mb)
            connected_cpu_s = _cpu_s(target.pids)
            started = time.perf_counter()
            committed = _talk(target, scenario) if scenario.is_talk else _write(connection, scenario)
            write_s = time.perf_counter() - started
            received = clients.received()
            cpu_s = _cpu_s(target.pids) - connected_cpu_s
            peak_rss_mb = _rss_mb(target.pids, "VmHWM")
    if (received.fewest, received.most) != (scenario.messages, scenario.messages):
        raise MessagesMissing(scenario, received.fewest, received.most, received.closed)
    is_unwatched = scenario.writes == "unwatched"
    units = scenario.rows if is_unwatched else received.messages
    # The last row's way ends where that of all before it ends.
    seconds = write_s - committed + received.p50_ms / 1000 if is_unwatched else received.seconds
    return Run(
        messages_per_s=units / seconds,
        p50_ms=None if is_unwatched else received.p50_ms,
        p95_ms=None if is_unwatched else received.p95_ms,
        p99_ms=None if is_unwatched else received.p99_ms,
        peak_rss_mb=peak_rss_mb if target.pids else None,
        cpu_s_per_million=cpu_s / units * 1e6 if target.pids else None,
        kib_per_client=None,
        connect_s=clients.connect_s,
        write_s=write_s,
    )


def _joined(scenario: Scenario, target: Target, clients: LoadClients, cpu_s: float, rss_mb: float) -> Run:
    used_s, grown_mb = _cpu_s(target.pids) - cpu_s, _rss_mb(target.pids, "VmRSS") - rss_mb
    return Run(
        messages_per_s=scenario.clients / clients.connect_s,
        p50_ms=None,
        p95_ms=None,
        p99_ms=None,
        peak_rss_mb=_rss_mb(target.pids, "VmHWM") if target.pids else None,
        cpu_s_per_million=used_s / scenario.clients * 1e6 if target.pids else None,
        kib_per_client=grown_mb * 1e6 / 1024 / scenario.clients if target.pids else None,
        connect_s=clients.connect_s,
        write_s=0.0,
    )


def _came_and_went(scenario: Scenario, target: Target) -> Run:
    """What is left in memory of clients that have gone. A quarter of the rounds goes before, for what is made once."""
    warm, started = max(1, scenario.rounds // 4), 0.0
    cpu_s = rss_mb = connect_s = 0.0
    for number in range(scenario.rounds + warm):
        if number == warm:
            wait_until(lambda: _is_still(target.pids), "the server's rest")
            _forget_peaks(target.pids)
            cpu_s, rss_mb, started = _cpu_s(target.pids), _rss_mb(target.pids, "VmRSS"), time.perf_counter()
        with LoadClients(
            port=target.port,
            path=target.path,
            topic=scenario.topic,
            clients=scenario.clients,
            messages=1,
            limit_s=LIMIT_S,
            at_once=scenario.at_once,
        ) as clients:
            connect_s = clients.connect_s
    wait_until(lambda: _is_still(target.pids), "the server's rest")
    count, grown_mb = scenario.clients * scenario.rounds, _rss_mb(target.pids, "VmRSS") - rss_mb
    return Run(
        messages_per_s=count / (time.perf_counter() - started),
        p50_ms=None,
        p95_ms=None,
        p99_ms=None,
        peak_rss_mb=_rss_mb(target.pids, "VmHWM"),
        cpu_s_per_million=(_cpu_s(target.pids) - cpu_s) / count * 1e6,
        kib_per_client=grown_mb * 1e6 / 1024 / count,
        connect_s=connect_s,
        write_s=0.0,
    )


def _is_still(pids: Sequence[int]) -> bool:
    """The server has nothing to do any more: those who have gone are forgotten (Daphne looks once a second)."""
    before = _cpu_s(pids)
    time.sleep(1.5)
    return _cpu_s(pids) - before < 0.1


def drop_table(dsn: str) -> None:
    """Leave the database as it was found."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS public.walcast_benchmark, public.walcast_benchmark_unwatched")


def _write(connection: psycopg.Connection[tuple[object, ...]], scenario: Scenario) -> float:
    """Write the rows; the seconds after which the (first) transaction was committed come back."""
    started = due = time.perf_counter()
    if scenario.writes == "one transaction":
        connection.execute(_INSERT, [1, scenario.rows])
        return time.perf_counter() - started
    if scenario.writes == "unwatched":
        connection.execute(_INSERT_UNWATCHED, [1, scenario.rows])
        committed = time.perf_counter() - started
        connection.execute(_INSERT, [1, 1])
        return committed
    for number in range(1, scenario.rows + 1):
        row = [number, f"name {number}", f"user{number}@example.com", number % 1000]
        connection.execute(_INSERT_ONE, row)  # which is soon a prepared statement, and as quick as it gets
        if scenario.rate:
            due += 1 / scenario.rate
            time.sleep(max(0.0, due - time.perf_counter()))
    return 0.0


def _talk(target: Target, scenario: Scenario) -> float:
    """Say or show something again and again, as fast as the server takes it."""
    with connect(f"ws://127.0.0.1:{target.port}{target.path}", compression=None) as talker:
        refs = iter(range(1, scenario.rows + 3))

        def push(event: str, payload: object) -> None:
            talker.send(json.dumps({"topic": ROOM, "event": event, "payload": payload, "ref": str(next(refs))}))

        push("phx_join", {"config": {"presence": {"enabled": False}}})
        talker.recv()
        for number in range(scenario.rows):
            shown = {"n": number, "name": f"name {number}", "filler": "x" * 300, "stamp": f"@@{time.time_ns() // 1000}"}
            if scenario.writes == "broadcasts":
                push("broadcast", {"type": "broadcast", "event": "e", "payload": shown})
            else:
                push("presence", {"type": "presence", "event": "track", "payload": shown})
        # The answer to the last thing it says: everything before has been taken.
        push("presence", {"type": "presence"})
        while json.loads(talker.recv(timeout=LIMIT_S))["ref"] != str(scenario.rows + 2):
            pass
    return 0.0


def _is_being_read(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    row = connection.execute(
        "SELECT 1 FROM pg_replication_slots WHERE active AND plugin = 'pgoutput' AND database = current_database()"
    ).fetchone()
    return row is not None


# What the kernel says about processes: https://man7.org/linux/man-pages/man5/proc.5.html


def _cpu_s(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        # Behind the program's name, which may hold anything, fields 14 and 15: time in user and kernel mode.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _forget_peaks(pids: Sequence[int]) -> None:
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _rss_mb(pids: Sequence[int], what: Literal["VmRSS", "VmHWM"]) -> float:
    """Memory of all of them together, now or at most since `_forget_peaks`."""
    kib = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        kib += int(status.split(f"{what}:")[1].split()[0])
    return kib * 1024 / 1e6
