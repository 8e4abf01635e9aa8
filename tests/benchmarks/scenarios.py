"""What is measured: the scenarios, and one run of one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlsplit

import psycopg

from tests.benchmarks.load import LoadClients
from tests.servers import wait_until

TABLE = "walcast_benchmark"
TOPIC = f"realtime:public:{TABLE}"
LIMIT_S = 120.0

_CREATE: LiteralString = """
    CREATE TABLE IF NOT EXISTS public.walcast_benchmark (id bigint, name text, email text, n int, stamp text)
"""
# The mark is read by the load client: when the row was written, in microseconds. It says clock_timestamp(), for now()
# would be the beginning of the transaction.
_INSERT: LiteralString = """
    INSERT INTO public.walcast_benchmark
    SELECT i, 'name ' || i, 'user' || i || '@example.com', i,
           '@@' || (extract(epoch FROM clock_timestamp()) * 1e6)::bigint
    FROM generate_series(%s::int, %s::int) AS i
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """``rows`` rows reach each of ``clients`` clients of their table.

    In one transaction, or in one each: back to back, or ``rate`` in a second.
    """

    name: str
    clients: int
    rows: int
    one_transaction: bool = False
    rate: float | None = None

    def __str__(self) -> str:
        if self.one_transaction:
            how = "rows in one transaction"
        else:
            how = f"one-row commits, {self.rate:g} a second" if self.rate else "one-row commits back to back"
        return f"{self.clients:,} client{'s' if self.clients > 1 else ''}, {self.rows:,} {how}"


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("fanout", clients=500, rows=200),
        Scenario("bulk", clients=1, rows=50_000, one_transaction=True),
        Scenario("burst", clients=100, rows=10_000, one_transaction=True),
        Scenario("paced", clients=100, rows=500, rate=100),
    )
}


@dataclass(frozen=True, slots=True)
class Target:
    """The server that is measured: its socket's URL, its database, and the processes whose memory and time count."""

    url: str
    dsn: str
    pids: Sequence[int]

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
    """What one run measured. ``peak_rss_mb`` and ``cpu_s_per_million`` are `None` if no process was named."""

    messages_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    peak_rss_mb: float | None
    cpu_s_per_million: float | None
    connect_s: float
    write_s: float


class MessagesMissing(RuntimeError):
    """Not every client received every row exactly once."""

    def __init__(self, scenario: Scenario, fewest: int, most: int, closed: int) -> None:
        self.scenario, self.fewest, self.most, self.closed = scenario, fewest, most, closed
        super().__init__(
            f"{scenario.name}: each client should receive {scenario.rows} messages, but the clients received {fewest} "
            f"to {most}, and {closed} were closed, so the figures would mean nothing; see what the server's log says"
        )


def run(scenario: Scenario, target: Target) -> Run:
    """Run it once. Raises `MessagesMissing` if the server did not deliver, `LoadFailed` if it let nobody in."""
    with psycopg.connect(target.dsn, autocommit=True) as connection:
        connection.execute(_CREATE)
        connection.execute("TRUNCATE public.walcast_benchmark")
        wait_until(lambda: _is_being_read(connection), "a replicator reading the database's changes")
        _forget_peaks(target.pids)
        cpu_s = _cpu_s(target.pids)
        with LoadClients(
            port=target.port,
            path=target.path,
            topic=TOPIC,
            clients=scenario.clients,
            messages=scenario.rows,
            limit_s=LIMIT_S,
        ) as clients:
            connected_cpu_s = _cpu_s(target.pids)
            started = time.perf_counter()
            _write(connection, scenario)
            write_s = time.perf_counter() - started
            received = clients.received()
            cpu_s = _cpu_s(target.pids) - connected_cpu_s
            peak_rss_mb = _peak_rss_mb(target.pids)
    if (received.fewest, received.most) != (scenario.rows, scenario.rows):
        raise MessagesMissing(scenario, received.fewest, received.most, received.closed)
    return Run(
        messages_per_s=received.messages / received.seconds,
        p50_ms=received.p50_ms,
        p95_ms=received.p95_ms,
        p99_ms=received.p99_ms,
        peak_rss_mb=peak_rss_mb if target.pids else None,
        cpu_s_per_million=cpu_s / received.messages * 1e6 if target.pids else None,
        connect_s=clients.connect_s,
        write_s=write_s,
    )


def drop_table(dsn: str) -> None:
    """Leave the database as it was found."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS public.walcast_benchmark")


def _write(connection: psycopg.Connection[tuple[object, ...]], scenario: Scenario) -> None:
    if scenario.one_transaction:
        connection.execute(_INSERT, [1, scenario.rows])
        return
    due = time.perf_counter()
    for number in range(1, scenario.rows + 1):
        connection.execute(_INSERT, [number, number])
        if scenario.rate:
            due += 1 / scenario.rate
            time.sleep(max(0.0, due - time.perf_counter()))


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


def _peak_rss_mb(pids: Sequence[int]) -> float:
    peaks_kib = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        peaks_kib += int(status.split("VmHWM:")[1].split()[0])
    return peaks_kib * 1024 / 1e6
