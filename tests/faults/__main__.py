"""The same faults for as long as one likes, in any order: ``python -m tests.faults --minutes 60``.

Prints a line for each fault as it is survived, and a summary at the end; ends with 1 if anything was lost or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faults.faults import LOSING, OF_THE_CORRIDOR, large_transaction
from tests.faults.ordeal import HEADER, Report, corridor_of, go_through
from tests.servers import PostgresCluster, postgres_versions

_LARGE_EVERY = 20
"""Every so many faults one is a large transaction, the first of all included."""


def main() -> int:
    """Run, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the order of the faults")
    parser.add_argument("--postgres", type=int, default=18, choices=sorted(postgres_versions()), help="version (18)")
    parser.add_argument("--only", choices=list(OF_THE_CORRIDOR), action="append", help="this fault (may be repeated)")
    parser.add_argument(
        "--large", type=int, default=0, metavar="ROWS", help="now and then a transaction of so many rows"
    )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    reports = asyncio.run(_soak(options))
    print("\n" + HEADER)
    for name in sorted({report.fault for report in reports}):
        print(_sum([report for report in reports if report.fault == name]).row())
    problems = [report for report in reports if report.problems]
    print(f"\n{len(reports)} faults, {len(problems)} with something wrong")
    return 1 if problems else 0


async def _soak(options: argparse.Namespace) -> list[Report]:
    dice, reports = random.Random(options.seed), list[Report]()
    names = options.only or list(OF_THE_CORRIDOR)
    until = time.monotonic() + options.minutes * 60
    # A slot may be made anew three times within an hour only, and each losing fault takes one; a restart forgets that.
    with (
        PostgresCluster(postgres_versions()[options.postgres]) as cluster,
        tempfile.TemporaryDirectory() as home,
        corridor_of(cluster, cluster.create_database(), Path(home)) as corridor,
    ):
        while not reports or time.monotonic() < until:
            name, more = dice.choice(names), dict[str, Any]()
            fault = OF_THE_CORRIDOR[name]
            if options.large and len(reports) % _LARGE_EVERY == 0:
                name, fault = f"transaction of {options.large} rows", large_transaction(options.large)
                more = {"resuming": 1, "others": 0, "patience_s": 60 + options.large / 1000}
            if name in LOSING:
                await asyncio.to_thread(corridor.replicator.restart)
            report = await go_through(corridor, name, fault, seed=dice.randrange(10**6), **more)
            reports.append(report)
            print(f"{time.strftime('%H:%M:%S')} {report.row()}", flush=True)
            if name not in LOSING and report.gaps_to_resumers and not name.startswith("transaction"):
                report.problems.append("a gap was told to clients that resume")
    return reports


def _sum(reports: list[Report]) -> Report:
    """All of one kind as one; of the times to heal the longest."""
    whole = Report(f"{reports[0].fault} (×{len(reports)})")
    for report in reports:
        whole.written += report.written
        whole.verdicts += report.verdicts
        whole.resumed += report.resumed
        whole.gaps_to_resumers += report.gaps_to_resumers
        whole.gaps_to_others += report.gaps_to_others
        whole.healed_s = max(whole.healed_s, report.healed_s)
        whole.problems += report.problems
    return whole


if __name__ == "__main__":
    sys.exit(main())
