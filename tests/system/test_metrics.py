"""What Prometheus is told, of one process and of several; and who may ask."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from streaming.tokens import sign
from tests.servers import PostgresCluster, ValkeyServer, wait_until
from tests.system.corridor import DaphneProcess, LegacyClient, execute, replicator
from tests.system.server import ManagedProcess, RealtimeServer

SECRET = "a-secret-of-this-test-that-is-long-enough"
CANARY = "eyJhbGciOiJIUzI1NiJ9.Y2FuYXJ5.canary-3f7a91"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(port: int, headers: Mapping[str, str] | None = None, path: str = "/metrics") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=dict(headers or {}))
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text: str = response.read().decode()
        return text


def status_of(port: int, headers: Mapping[str, str] | None = None) -> int:
    try:
        scrape(port, headers)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(port: int, name: str, **labels: str) -> float:
    """The sample that has these labels (among others); their sum if there are several."""
    wanted = set(labels.items())
    return sum(
        number for (found, has), number in samples(scrape(port)).items() if found == f"walcast_{name}" and wanted <= has
    )


@pytest.fixture(scope="module")
def env(
    postgres18: PostgresCluster, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    database = postgres18.create_database()
    execute(
        database,
        "create table items(id bigint primary key, name text)",
        "create table quiet(id bigint primary key)",
        "create publication supabase_realtime for all tables",
    )
    name = f"metrics_{secrets.token_hex(4)}"
    yield {
        "DATABASE_URL": database,
        "REDIS_URL": valkey.url,
        "REDIS_PREFIX": name,
        "JWT_SECRET": SECRET,
        "SLOT_NAME": name,
        "MAX_REPLICATION_LAG_MB": "100",
        "WALCAST_HOME": str(tmp_path_factory.mktemp("home")),
    }
    postgres18.drop_database(database)


@pytest.fixture(scope="module")
def reader(env: dict[str, str]) -> Iterator[ManagedProcess]:
    with replicator(env) as reader:
        yield reader


@pytest.fixture(scope="module")
def daphne(env: dict[str, str], reader: ManagedProcess) -> Iterator[DaphneProcess]:
    with DaphneProcess(env) as daphne:
        yield daphne


def authorized(daphne: DaphneProcess) -> str:
    return f"{daphne.ws_url}?apikey={sign({'role': 'anon'}, SECRET)}"


async def test_what_a_change_meets_on_its_way_is_counted(env: dict[str, str], daphne: DaphneProcess) -> None:
    async with LegacyClient(authorized(daphne), "realtime:public:items") as one, LegacyClient(authorized(daphne)):
        execute(
            env["DATABASE_URL"],
            "insert into items select i, 'x' from generate_series(1, 50) i",
            "insert into quiet values (1)",
        )
        await one.records(50)
        wait_until(lambda: value(daphne.port, "changes_total") == 51, "the last change")
        assert value(daphne.port, "changes_matched_total") == 50
        assert value(daphne.port, "table_changes_matched_total", table="public.items") == 50
        assert value(daphne.port, "messages_sent_total") == 50
        assert value(daphne.port, "sent_bytes_total") > 50 * 100
        assert value(daphne.port, "commit_to_socket_seconds_count") >= 1
        assert 0 < value(daphne.port, "commit_to_socket_seconds_sum") < 60
        assert value(daphne.port, "commit_to_socket_seconds_bucket", le="+Inf") == value(
            daphne.port, "commit_to_socket_seconds_count"
        )
        assert value(daphne.port, "joins_total", protocol="legacy", result="ok") == 1
        assert value(daphne.port, "sockets") == 2
        assert value(daphne.port, "topics") == 1
        assert value(daphne.port, "buffered_bytes_max") == 0
    wait_until(lambda: value(daphne.port, "sockets") == 0, "the end of the sockets")
    assert value(daphne.port, "closes_total", by="client", code="1000") == 2


def test_what_the_replicator_tells_is_there_too(env: dict[str, str], daphne: DaphneProcess) -> None:
    execute(env["DATABASE_URL"], "insert into quiet values (2)")
    port = daphne.port
    wait_until(lambda: value(port, "table_changes_decoded_total", table="public.quiet") >= 1, "the change")
    assert value(port, "replicator_up", role="active") == 1
    assert value(port, "replicator_decoded_transactions_total") >= 1
    assert value(port, "replicator_stream_starts_total") == 1
    assert value(port, "slot_active", slot=env["SLOT_NAME"]) == 1
    assert value(port, "wal_headroom_bytes", budget="MAX_REPLICATION_LAG_MB") > 90_000_000
    assert value(port, "wal_budget_used_ratio", budget="MAX_REPLICATION_LAG_MB") < 0.1
    assert value(port, "replicator_progress_age_seconds") < 10
    assert value(port, "replicator_lag_seconds") < 10
    assert value(port, "replicator_ring_age_seconds") > 0


async def test_refusals_are_counted_by_reason_and_show_no_token(
    env: dict[str, str], daphne: DaphneProcess, reader: ManagedProcess
) -> None:
    with pytest.raises(InvalidStatus):
        await connect(f"{daphne.ws_url}?apikey={CANARY}")
    with pytest.raises(InvalidStatus):
        await connect(daphne.ws_url)
    async with LegacyClient(authorized(daphne)) as client:
        join = {"topic": "realtime:public:items", "event": "phx_join", "payload": {"user_token": CANARY}, "ref": "1"}
        await client.send(join)
        assert (await client.receive())["payload"]["status"] == "error"
        await client.socket.send(f"no json, but {CANARY}")
        await client.socket.wait_closed()

    port = daphne.port
    assert value(port, "refusals_total", where="handshake", code="token_missing") == 1
    assert value(port, "refusals_total", where="handshake") == 2
    assert value(port, "refusals_total", where="phx_join") == 1
    assert value(port, "joins_total", result="refused") == 1
    assert value(port, "closes_total", by="server", code="1011") == 1
    # What Daphne's own access log says of a query string is not ours.
    ours = "\n".join(line for line in daphne.log.splitlines() if " streaming." in line)
    for told in (scrape(port), reader.log, ours):
        assert CANARY not in told
        assert SECRET not in told
    assert "token refused" in ours


async def test_resumes_are_counted_by_result_and_size(env: dict[str, str], daphne: DaphneProcess) -> None:
    async def join(resume: dict[str, str]) -> dict[str, object]:
        async with LegacyClient(authorized(daphne)) as client:
            payload = {"resume": resume}
            await client.send({"topic": "realtime:public:items", "event": "phx_join", "payload": payload, "ref": "1"})
            response: dict[str, object] = (await client.receive())["payload"]["response"]
            return response

    changes, before = value(daphne.port, "changes_total"), await join({})
    execute(env["DATABASE_URL"], "insert into items select i, 'y' from generate_series(101, 105) i")
    # A join before the changes have arrived is recovered with fewer.
    wait_until(lambda: value(daphne.port, "changes_total") == changes + 5, "the changes")
    again = await join({"since": str(before["position"])})
    assert (again["recovered"], again["replayed"]) == (True, 5)
    assert (await join({"since": "nonsense.1.1.1"}))["recovered"] is False
    assert value(daphne.port, "resumes_total", result="recovered") >= 1
    assert value(daphne.port, "resumes_total", result="not_recovered") == 1
    assert value(daphne.port, "resume_replayed_changes_bucket", le="10.0") >= 1
    assert value(daphne.port, "resume_replayed_changes_sum") >= 5


async def test_broadcasts_and_who_is_present_are_counted(daphne: DaphneProcess) -> None:
    topic = "realtime:room"
    token = sign({"role": "anon", "exp": 4_000_000_000}, SECRET)

    async def joined(client: LegacyClient, key: str) -> None:
        config = {"broadcast": {"self": False}, "presence": {"key": key, "enabled": True}}
        payload = {"config": config, "access_token": token}
        await client.send({"topic": topic, "event": "phx_join", "payload": payload, "ref": "1", "join_ref": "1"})
        while (message := await client.receive())["event"] != "phx_reply":
            pass
        assert message["payload"]["status"] == "ok"

    async with LegacyClient(authorized(daphne)) as one, LegacyClient(authorized(daphne)) as two:
        await joined(one, "one")
        await joined(two, "two")
        said = {"type": "broadcast", "event": "note", "payload": {}}
        await one.send({"topic": topic, "event": "broadcast", "payload": said, "ref": "2", "join_ref": "1"})
        while (await two.receive())["event"] != "broadcast":
            pass
        shown = {"type": "presence", "event": "track", "payload": {}}
        await one.send({"topic": topic, "event": "presence", "payload": shown, "ref": "3", "join_ref": "1"})
        while (await two.receive())["event"] != "presence_diff":
            pass
        assert value(daphne.port, "broadcasts_total") == 1
        assert value(daphne.port, "room_messages_sent_total") >= 1
        assert value(daphne.port, "presence_changes_total") >= 1
        assert value(daphne.port, "presences") == 1
        assert value(daphne.port, "users") == 2
        assert value(daphne.port, "joins_total", protocol="current", result="ok") == 2


def test_others_than_this_machine_may_not_ask_and_a_proxy_is_another(daphne: DaphneProcess) -> None:
    assert status_of(daphne.port) == 200
    assert status_of(daphne.port, {"X-Forwarded-For": "203.0.113.9"}) == 403
    assert status_of(daphne.port, {"Forwarded": "for=203.0.113.9"}) == 403


def test_with_a_token_only_who_brings_it_may_ask(env: dict[str, str], reader: ManagedProcess) -> None:
    token = secrets.token_urlsafe(16)
    with DaphneProcess(env | {"METRICS_TOKEN": token}) as daphne:
        assert status_of(daphne.port) == 403
        assert status_of(daphne.port, {"Authorization": "Bearer wrong"}) == 403
        assert status_of(daphne.port, {"Authorization": "Bearer Grüße".encode().decode("latin-1")}) == 403
        assert status_of(daphne.port, {"Authorization": token}) == 403
        assert status_of(daphne.port, {"Authorization": f"Bearer {token}", "X-Forwarded-For": "203.0.113.9"}) == 200
        assert token not in daphne.log


async def test_processes_that_share_a_folder_tell_the_sum_and_forget_who_was_killed(
    env: dict[str, str], reader: ManagedProcess, tmp_path: Path
) -> None:
    shared = env | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    with DaphneProcess(shared) as one, DaphneProcess(shared) as other:
        async with LegacyClient(authorized(one), "realtime:a"), LegacyClient(authorized(other), "realtime:b"):
            wait_until(lambda: value(one.port, "sockets") == 2, "the sum at one")
            wait_until(lambda: value(other.port, "sockets") == 2, "the sum at the other")
            assert value(one.port, "joins_total", result="ok") == 2
            other.kill()
            wait_until(lambda: value(one.port, "sockets") == 1, "the end of the other's socket")
            assert value(one.port, "joins_total", result="ok") == 2, "what was counted stays"


def test_the_exposition_is_as_prometheus_asks(daphne: DaphneProcess) -> None:
    text = scrape(daphne.port)
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names)), "each family once"
    ours = [name for name in names if not name.startswith("process_")]
    assert all(name.startswith("walcast_") for name in ours)
    assert text.endswith("\n")


def test_everything_in_one_process_tells_of_itself(realtime_server: RealtimeServer) -> None:
    wait_until(lambda: value(realtime_server.port, "replicator_up", role="active") == 1, "the replicator's word")
    assert "process_resident_memory_bytes" in scrape(realtime_server.port)
    assert json.dumps(realtime_server.dsn) not in scrape(realtime_server.port)
