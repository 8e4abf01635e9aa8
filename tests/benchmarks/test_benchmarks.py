"""The benchmark itself, in small: figures are worth something only if every message is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.load import LoadFailed, NoCompiler, compiled
from tests.benchmarks.scenarios import SCENARIOS, MessagesMissing, Target, run
from tests.system.server import RealtimeServer


@pytest.fixture(scope="module", autouse=True)
def _load_client() -> None:
    try:
        compiled()
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture
def target(realtime_server: RealtimeServer) -> Target:
    return Target(realtime_server.ws_url, realtime_server.dsn, [realtime_server.pid])


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_scenario_counts_every_message_of_every_client(name: str, target: Target) -> None:
    full = SCENARIOS[name]
    rows, each = {"filters": (1000, 1), "bindings": (1000, 1), "presence": (20, 21)}.get(name, (20, full.each))
    scenario = replace(full, clients=3, rows=rows, each=each, rounds=min(full.rounds, 2))

    figures = run(scenario, target)

    assert figures.messages_per_s > 0
    if full.rows and name != "unwatched":
        assert figures.p50_ms is not None
        assert figures.p95_ms is not None
        assert figures.p99_ms is not None
        assert 0 < figures.p50_ms <= figures.p95_ms <= figures.p99_ms < 30_000
    assert figures.peak_rss_mb is not None
    assert 10 < figures.peak_rss_mb < 1_000


def test_a_server_that_refuses_is_named_as_the_reason(target: Target) -> None:
    refusing = replace(target, url=f"{target.url}?vsn=7.0.0")

    with pytest.raises(LoadFailed, match=r"did not upgrade: HTTP/1\.1 403"):
        run(replace(SCENARIOS["paced"], clients=1, rows=1), refusing)


def test_missing_messages_are_an_error_and_not_a_figure(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.load.IDLE_S", 0.5)
    monkeypatch.setattr("tests.benchmarks.scenarios._write", lambda *_: 0.0)

    with pytest.raises(MessagesMissing, match="each client should receive 5 messages"):
        run(replace(SCENARIOS["fanout"], clients=2, rows=5), target)
