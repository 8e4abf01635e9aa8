"""Health checks: ready means that changes come through."""

from __future__ import annotations

import json
import secrets
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers import PostgresCluster, ValkeyServer, postgres_versions, wait_until
from tests.system.corridor import DaphneProcess, execute, replicator
from tests.system.server import ManagedProcess, RealtimeServer

Answer = tuple[int, dict[str, Any]]


def get(port: int, path: str = "/health/ready") -> Answer:
    """Status and body of a GET to 127.0.0.1."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def wait_until_ready(port: int) -> None:
    """Wait for it; if it does not come, the reason is told."""
    answers: list[Answer] = []

    def is_ready() -> bool:
        answers[:] = [get(port)]
        return answers[0][0] == 200

    try:
        wait_until(is_ready, "readiness", limit_s=15)
    except TimeoutError:
        pytest.fail(f"it does not get ready: {answers}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    """One that may be stopped."""
    with PostgresCluster(postgres_versions()[18]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def own_valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def env(cluster: PostgresCluster, own_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    database = cluster.create_database()
    execute(
        database, "create table items(id bigint primary key)", "create publication supabase_realtime for all tables"
    )
    return {
        "DATABASE_URL": database,
        "REDIS_URL": own_valkey.url,
        "SECURE_CHANNELS": "false",
        "SLOT_NAME": f"health_{secrets.token_hex(4)}",
        "READY_WITHIN_S": "5",
        "WALCAST_HOME": str(tmp_path_factory.mktemp("home")),
    }


@pytest.fixture(scope="module")
def daphne(env: dict[str, str]) -> Iterator[DaphneProcess]:
    with DaphneProcess(env) as daphne:
        yield daphne


@pytest.fixture
def reader(env: dict[str, str]) -> Iterator[ManagedProcess]:
    with replicator(env) as reader:
        yield reader


def test_without_a_replicator_nobody_is_ready(daphne: DaphneProcess) -> None:
    status, body = get(daphne.port)

    assert status == 503
    assert (body["status"], body["reason"]) == ("unavailable", "no_replicator")
    assert "manage.py run_replicator" in body["message"]


def test_a_process_is_ready_while_a_replicator_streams_and_not_when_it_has_gone(
    daphne: DaphneProcess, reader: ManagedProcess
) -> None:
    wait_until_ready(daphne.port)
    status, body = get(daphne.port, "/realtime/v1/health/ready")
    assert (status, body["status"]) == (200, "ready")
    assert body["progress_age_s"] < 5

    reader.stop()
    wait_until(lambda: get(daphne.port)[1].get("reason") == "no_replicator", "the replicator's absence")


def test_a_replicator_that_was_killed_is_missed_within_seconds(daphne: DaphneProcess, reader: ManagedProcess) -> None:
    wait_until_ready(daphne.port)
    reader.kill()
    wait_until(lambda: get(daphne.port)[1].get("reason") == "no_replicator", "the end of its lease", limit_s=10)


def test_without_a_database_it_is_not_streaming_and_afterwards_ready_again(
    daphne: DaphneProcess, reader: ManagedProcess, cluster: PostgresCluster
) -> None:
    wait_until_ready(daphne.port)
    cluster.stop("fast")
    wait_until(lambda: get(daphne.port)[1].get("reason") == "not_streaming", "word of the stop")
    body = get(daphne.port)[1]
    cluster.start()

    assert body["errors"] in (["OperationalError"], ["ConnectionFailed"], ["StreamEnded"])
    assert str(cluster.port) not in json.dumps(body), "health checks are public, and the database's address is not"
    wait_until_ready(daphne.port)


def test_a_database_that_hangs_is_no_progress(
    daphne: DaphneProcess, reader: ManagedProcess, cluster: PostgresCluster
) -> None:
    wait_until_ready(daphne.port)
    senders = _walsenders(cluster)
    for pid in senders:
        _signal(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: get(daphne.port)[1].get("reason") == "no_progress", "silence")
        assert get(daphne.port)[1]["progress_age_s"] > 5
    finally:
        for pid in senders:
            _signal(pid, signal.SIGCONT)
    wait_until_ready(daphne.port)


def test_without_redis_the_roster_is_away(
    daphne: DaphneProcess, reader: ManagedProcess, own_valkey: ValkeyServer
) -> None:
    wait_until_ready(daphne.port)
    own_valkey.kill()
    wait_until(lambda: get(daphne.port)[1].get("reason") == "roster_away", "Redis's absence")
    assert get(daphne.port, "/health/live") == (200, {"status": "live"})
    own_valkey.start()
    wait_until_ready(daphne.port)


@pytest.mark.parametrize("prefix", ["", "/realtime/v1"])
def test_the_paths_of_todays_server_answer(daphne: DaphneProcess, prefix: str) -> None:
    assert get(daphne.port, f"{prefix}/api/ping") == (200, {"message": "Success"})
    with urllib.request.urlopen(f"http://127.0.0.1:{daphne.port}{prefix}/healthcheck", timeout=10) as response:
        assert (response.status, response.read()) == (200, b"ok")


def test_everything_in_one_process_is_ready_too(realtime_server: RealtimeServer) -> None:
    wait_until_ready(realtime_server.port)
    assert get(realtime_server.port, "/health/live")[0] == 200


def _walsenders(cluster: PostgresCluster) -> list[int]:
    import psycopg

    with psycopg.connect(cluster.dsn()) as connection:
        rows = connection.execute("select pid from pg_stat_activity where backend_type = 'walsender'").fetchall()
    return [pid for (pid,) in rows]


def _signal(pid: int, number: signal.Signals) -> None:
    import os

    os.kill(pid, number)
