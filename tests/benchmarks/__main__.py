"""The benchmark: `python -m tests.benchmarks`. What it says is good for comparisons on one machine, to about 20 %."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from rich.console import Console
from rich.table import Table

from tests.benchmarks.load import LoadFailed, NoCompiler
from tests.benchmarks.picture import bars
from tests.benchmarks.rivals import TRIGGER
from tests.benchmarks.scenarios import ON_DEMAND, SCENARIOS, MessagesMissing, Run, Scenario, Target, drop_table, run
from tests.servers import PostgresCluster, ValkeyServer, free_port, postgres_versions, wait_until
from tests.system.server import PROJECT, ManagedProcess, RealtimeServer, children, http_status, listeners

RESULTS = Path(__file__).with_name("results")
BASELINE = RESULTS / "baseline.json"
FIGURES = ("messages_per_s", "p50_ms", "p95_ms", "p99_ms", "peak_rss_mb", "kib_per_client", "cpu_s_per_million")
RIVALS = ("notify", "channels", "channels-redis")
WHAT_RIVALS_CAN = ("fanout", "bulk", "paced")
PLOT = PROJECT / ".assets" / "benchmarks.svg"
_SHOWN_LOG = 4_000

_EPILOG = """
scenarios
{scenarios}

figures
  msg/s      messages received by all clients together, from the first of them to the last
             (unwatched: rows a second; connect, storm, idle and churn: clients a second)
  p50 …      milliseconds from the writing of a row (inside its transaction, before the commit) to its arrival
  RSS        most memory that the server's processes held at once, each at its own time, in MB
  KiB each   what one client added to it, connected or (churn) gone again
  CPU        seconds of processor time that they took for a million of these; PostgreSQL's is not counted
  each as the median of all runs, their worst and their best; then the median's ratio to the saved baseline

examples
  python -m tests.benchmarks                              everything, against a server and a PostgreSQL of its own
  python -m tests.benchmarks fanout --runs 5 --save-baseline
  python -m tests.benchmarks fanout --form redis          a replicator, Daphne, and Valkey between them
  python -m tests.benchmarks fanout --form workers        manage.py realtime --workers 2
  python -m tests.benchmarks --rivals --plot              what people write instead, beside Walcast, and a picture of it
  python -m tests.benchmarks bulk --url ws://127.0.0.1:4000/socket/websocket --dsn postgresql://… --pid 4711

Its own PostgreSQL does not wait for the disk (fsync=off), or the disk would be measured; commits are synchronous
otherwise. A running server must let everybody in (SECURE_CHANNELS=false) and publish the table {table},
which is created and dropped again. Clients and server share the processors of this machine.
"""


def main() -> None:
    """Run what the command line asks for, and print a table."""
    options = _options()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    scenarios = [SCENARIOS[name] for name in options.scenario or [name for name in SCENARIOS if name not in ON_DEMAND]]
    forms = ["running"] if options.url else [options.form, *(RIVALS if options.rivals else ())]
    measured: dict[str, dict[str, list[Run]]] = {form: {} for form in forms}
    try:
        for scenario in scenarios:
            for form in forms:
                if form not in RIVALS or scenario.name in WHAT_RIVALS_CAN:
                    with console.status(f"{form}, {scenario.name}: {scenario}"):
                        measured[form][scenario.name] = _runs(options, form, scenario)
    except (NoCompiler, LoadFailed, MessagesMissing, TimeoutError, RuntimeError, psycopg.Error) as error:
        sys.exit(f"error: {error}")
    medians = {f"{form}/{name}": _medians(runs) for form in forms for name, runs in measured[form].items()}
    for form in forms:
        console.print(_table(scenarios, measured[form], form, _baseline()))
    if options.json:
        facts = {"machine": _machine(), "medians": medians}
        facts["runs"] = {
            f"{form}/{name}": [asdict(one) for one in runs] for form in forms for name, runs in measured[form].items()
        }
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    if options.save_baseline:
        RESULTS.mkdir(exist_ok=True)
        BASELINE.write_text(json.dumps({"machine": _machine(), "medians": _baseline() | medians}, indent=2) + "\n")
        console.print(f"saved as this machine's baseline in {BASELINE.relative_to(PROJECT)}")
    if options.plot:
        PLOT.write_text(
            bars({name: {form: measured[form].get(name, []) for form in forms} for name in WHAT_RIVALS_CAN})
        )
        console.print(f"drawn in {PLOT.relative_to(PROJECT)}")


def _runs(options: argparse.Namespace, form: str, scenario: Scenario) -> list[Run]:
    """All runs of a scenario, in one server; those that look at its memory get a fresh one each."""
    if not scenario.writes.startswith("nothing"):
        with _target(options, form) as target:
            try:
                return [run(scenario, target) for _ in range(options.runs)]
            finally:
                drop_table(target.dsn)
    runs = []
    for _ in range(options.runs):
        with _target(options, form) as target:
            try:
                runs.append(run(scenario, target))
            finally:
                drop_table(target.dsn)
    return runs


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure how fast committed rows reach websockets.",
        epilog=_EPILOG.format(
            scenarios="\n".join(f"  {name:<10} {scenario}" for name, scenario in SCENARIOS.items()),
            table="public.walcast_benchmark",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenario", nargs="*", metavar="scenario", help=f"which to run (default: all but {', '.join(ON_DEMAND)})"
    )
    parser.add_argument("--runs", type=int, default=3, help="how often each is run (default: 3)")
    parser.add_argument(
        "--form",
        choices=("realtime", "redis", "workers"),
        default="realtime",
        help="one process (manage.py realtime), or replicator and Daphne with Valkey between them, or two workers "
        "(default: realtime)",
    )
    parser.add_argument("--rivals", action="store_true", help="measure what people write instead as well")
    parser.add_argument("--plot", action="store_true", help=f"draw {PLOT.relative_to(PROJECT)}")
    parser.add_argument(
        "--postgres",
        type=int,
        choices=sorted(postgres_versions()),
        default=max(postgres_versions(), default=None),
        help="major version of its own PostgreSQL (default: the newest that is installed)",
    )
    parser.add_argument("--url", help="the socket of a server that runs already, on this machine")
    parser.add_argument("--dsn", help="the database of that server")
    parser.add_argument("--pid", type=int, action="append", default=[], help="its process, for memory and time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--save-baseline", action="store_true", help="what later runs here are compared with")
    options = parser.parse_args()
    if unknown := [name for name in options.scenario if name not in SCENARIOS]:
        parser.error(f"no scenario is called {unknown[0]}; there are {', '.join(SCENARIOS)}")
    if not 1 <= options.runs <= 100:
        parser.error(f"--runs {options.runs}: 1 to 100 runs")
    if bool(options.url) != bool(options.dsn):
        parser.error("--url and --dsn belong together: the rows are written there, and read here")
    if options.url and urlsplit(options.url).hostname not in ("127.0.0.1", "localhost"):
        parser.error(f"--url {options.url}: only a server on this machine is loaded, at 127.0.0.1")
    return options


@contextmanager
def _target(options: argparse.Namespace, form: str) -> Iterator[Target]:
    """The running server that was named, or a fresh one with a PostgreSQL of its own."""
    if options.url:
        yield Target(options.url, options.dsn, options.pid)
        return
    with ExitStack() as stack:
        cluster = stack.enter_context(PostgresCluster(postgres_versions()[options.postgres]))
        dsn = cluster.create_database()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE PUBLICATION supabase_realtime FOR ALL TABLES")
        env = {"DATABASE_URL": dsn, "SLOT_NAME": "benchmark", "SECURE_CHANNELS": "false", "HOST": "127.0.0.1"}
        if form == "realtime":
            server = stack.enter_context(RealtimeServer(env))
            with _telling_logs(server):
                yield Target(server.ws_url, dsn, [server.pid])
            return
        if form == "workers":
            server = stack.enter_context(RealtimeServer(env, args=["--workers", "2"]))
            family = children(server.pid)
            wait_until(lambda: len(listeners(server.port)) == 2, "two workers")
            # Any of them may answer; that one is never asked, of so many times, does not happen.
            wait_until(lambda: all(_is_level(server.port) for _ in range(16)), "workers that are level")
            with _telling_logs(server):
                yield Target(server.ws_url, dsn, [server.pid, *family])
            return
        if form in RIVALS:
            yield stack.enter_context(_rival(form, dsn))
            return
        env["REDIS_URL"] = stack.enter_context(ValkeyServer()).url
        env["WALCAST_HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="walcast-benchmark-"))
        replicator = stack.enter_context(
            ManagedProcess(
                [sys.executable, PROJECT / "manage.py", "run_replicator"],
                env,
                lambda process: "streaming" in process.log,
            )
        )
        port = free_port()
        endpoint = f"tcp:port={port}:interface=127.0.0.1:backlog=4096"
        daphne = stack.enter_context(
            ManagedProcess(
                [sys.executable, "-m", "daphne", "-e", endpoint, "realtime_project.asgi:application"],
                env,
                lambda _: _is_level(port),
            )
        )
        with _telling_logs(replicator, daphne):
            yield Target(f"ws://127.0.0.1:{port}/socket/websocket", dsn, [replicator.pid, daphne.pid])


def _is_level(port: int) -> bool:
    return http_status(port, "/health/ready") == 200


@contextmanager
def _rival(form: str, dsn: str) -> Iterator[Target]:
    with ExitStack() as stack:
        redis = [stack.enter_context(ValkeyServer()).url] if form == "channels-redis" else []
        port, program = free_port(), form.partition("-")[0]
        argv = [sys.executable, "-m", "tests.benchmarks.rivals", program, str(port), dsn, *redis]
        process = stack.enter_context(ManagedProcess(argv, {}, lambda _: http_status(port) == 200))
        with _telling_logs(process):
            yield Target(f"ws://127.0.0.1:{port}/socket/websocket", dsn, [process.pid], TRIGGER, idle_s=60)


@contextmanager
def _telling_logs(*processes: ManagedProcess) -> Iterator[None]:
    """If what is done meanwhile fails, show what the servers said: their logs go with them."""
    try:
        yield
    except Exception:
        for process in processes:
            print(f"{' '.join(process.argv)} said:\n{process.log[-_SHOWN_LOG:]}", file=sys.stderr)
        raise


def _machine() -> dict[str, Any]:
    return {"node": platform.node(), "processors": os.cpu_count(), "python": platform.python_version()}


def _baseline() -> dict[str, dict[str, float]]:
    """The saved medians, by form and scenario; none if they are of another machine."""
    try:
        saved = json.loads(BASELINE.read_text())
    except FileNotFoundError:
        return {}
    medians: dict[str, dict[str, float]] = saved["medians"] if saved["machine"]["node"] == platform.node() else {}
    return medians


def _values(runs: Sequence[Run], figure: str) -> list[float]:
    return [value for one in runs if (value := getattr(one, figure)) is not None]


def _medians(runs: Sequence[Run]) -> dict[str, float]:
    return {figure: statistics.median(values) for figure in FIGURES if (values := _values(runs, figure))}


def _table(
    scenarios: Sequence[Scenario], results: dict[str, list[Run]], form: str, baseline: dict[str, dict[str, float]]
) -> Table:
    runs = max(map(len, results.values()), default=0)
    table = Table(title=f"{form}, {runs} run{'s' if runs > 1 else ''} each", title_justify="left")
    table.add_column("scenario")
    table.add_column("")
    for heading in ("msg/s", "p50 ms", "p95 ms", "p99 ms", "RSS MB", "KiB each", "CPU s/M"):
        table.add_column(heading, justify="right", no_wrap=True)
    for scenario in scenarios:
        if scenario.name not in results:
            continue
        before = baseline.get(f"{form}/{scenario.name}", {})
        labels = ["median", "worst", "best", *(["× baseline"] if before else [])]
        cells = [_cell(_values(results[scenario.name], figure), figure, before.get(figure)) for figure in FIGURES]
        table.add_row(f"[bold]{scenario.name}[/]", "\n".join(labels), *cells, end_section=True)
    return table


def _cell(values: list[float], figure: str, before: float | None) -> str:
    """Median, worst, best; and the ratio to the baseline, which is good above 1 for rates and below 1 for the rest."""
    if not values:
        return "–"
    more_is_better = figure == "messages_per_s"
    decimals = 0 if more_is_better or figure == "peak_rss_mb" else 2
    median = statistics.median(values)
    worst, best = (min(values), max(values)) if more_is_better else (max(values), min(values))
    lines = [f"[bold]{median:,.{decimals}f}[/]", f"{worst:,.{decimals}f}", f"{best:,.{decimals}f}"]
    if before:
        ratio = median / before
        colour = "green" if (ratio >= 1) == more_is_better else "yellow"
        lines.append(f"[{colour}]{ratio:.2f}[/]")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
