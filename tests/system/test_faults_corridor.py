"""Tests that try to lose a change: real processes, under load, and something breaks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.faults import LOSING, OF_THE_CORRIDOR, large_transaction
from tests.faults.ordeal import HEADER, Corridor, Report, corridor_of, go_through
from tests.servers import PostgresCluster, postgres_versions

_LARGE_ROWS = 100_000


@pytest.fixture(scope="module")
def corridor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corridor]:
    """The whole corridor, with a PostgreSQL that may be broken."""
    settings = {"max_wal_size": "'64MB'", "min_wal_size": "'32MB'"}
    with (
        PostgresCluster(postgres_versions()[18], settings) as cluster,
        corridor_of(cluster, cluster.create_database(), tmp_path_factory.mktemp("faults")) as corridor,
    ):
        yield corridor


@pytest.fixture(scope="module", autouse=True)
def reports() -> Iterator[list[Report]]:
    """What came of each fault, shown at the end."""
    reports: list[Report] = []
    yield reports
    print("\n".join(["", HEADER, *(report.row() for report in reports)]))


@pytest.mark.parametrize("name", OF_THE_CORRIDOR)
async def test_whatever_breaks_no_change_is_lost_or_doubled_in_silence(
    corridor: Corridor, reports: list[Report], name: str
) -> None:
    seed = list(OF_THE_CORRIDOR).index(name)
    report = await go_through(corridor, name, OF_THE_CORRIDOR[name], seed=seed)
    reports.append(report)
    assert report.problems == []
    assert report.written > 20
    if name not in LOSING:
        assert report.gaps_to_resumers == 0, "who resumes misses nothing"


async def test_a_large_transaction_under_load_comes_whole_and_in_order(
    corridor: Corridor, reports: list[Report]
) -> None:
    fault = large_transaction(_LARGE_ROWS)
    report = await go_through(corridor, f"transaction of {_LARGE_ROWS} rows", fault, resuming=2, others=0)
    reports.append(report)
    assert report.problems == []
    assert report.written > _LARGE_ROWS
    assert report.gaps_to_resumers == 0
