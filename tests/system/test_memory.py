"""Thousands who come and go, or come at once: nothing of them stays, and nobody is turned away.

The full measure is taken by the benchmark: ``python -m tests.benchmarks churn`` (100,000 clients) and ``storm``.
"""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.benchmarks.load import LoadClients, NoCompiler, compiled
from tests.benchmarks.scenarios import SCENARIOS, TOPIC, Target, run
from tests.servers import PostgresCluster, ValkeyServer, wait_until
from tests.system.corridor import DaphneProcess, execute, replicator
from tests.system.server import RealtimeServer, http_status
from tests.system.wire import RawSocket, masked, upgrade_request


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    try:
        compiled()
    except NoCompiler as error:
        pytest.skip(str(error))
    with RealtimeServer() as server:
        server.wait_for_log(" streaming ")
        yield server


def test_nothing_stays_of_two_thousand_clients_that_have_come_and_gone(server: RealtimeServer) -> None:
    target = Target(server.ws_url, server.dsn, [server.pid])
    scenario = replace(SCENARIOS["churn"], clients=100, rounds=20)
    # A connection takes about 25 KiB while it is there, and whatever stays of one stays of each, in every run. What a
    # run takes because for a while more of them were there than ever before is taken once, and used again.
    left: list[float] = []
    while not left or (min(left) >= 1 and len(left) < 5):
        left.append(run(scenario, target).kib_per_client or 0.0)
    assert min(left) < 1, left


ENDS = {
    "a close frame": masked("close", struct.pack("!H", 1000)),
    "a frame that is not masked": b"\x81\x02hi",
    "a message that is none": masked("text", b"no message"),
    "no word": b"",
}


@pytest.fixture(scope="module")
def daphne(
    postgres18: PostgresCluster, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaphneProcess]:
    database = postgres18.create_database()
    execute(database, "CREATE PUBLICATION supabase_realtime FOR ALL TABLES")
    env = {
        "DATABASE_URL": database,
        "REDIS_URL": valkey.url,
        "REDIS_PREFIX": "memory",
        "SECURE_CHANNELS": "false",
        "WALCAST_HOME": str(tmp_path_factory.mktemp("home")),
    }
    with replicator(env), DaphneProcess(env, "tests.system.counting_daphne:application") as daphne:
        yield daphne
    postgres18.drop_database(database)


def alive(daphne: DaphneProcess) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{daphne.port}/alive", timeout=10) as response:
        counts: dict[str, int] = json.load(response)
    return counts


@pytest.mark.parametrize("last_words", ENDS.values(), ids=ENDS.keys())
def test_a_socket_that_has_ended_is_forgotten_without_the_garbage_collector(
    daphne: DaphneProcess, last_words: bytes
) -> None:
    sockets = [RawSocket(daphne.port) for _ in range(10)]
    for socket in sockets:
        socket.send(upgrade_request("/socket/websocket"))
        assert socket.response().status == 101
        for ref, payload in enumerate(({}, {"config": {"presence": {"enabled": True}}})):
            join = {"topic": f"realtime:public:t{ref}", "event": "phx_join", "payload": payload, "ref": str(ref)}
            socket.send(masked("text", json.dumps(join).encode()))
            assert socket.frame() is not None
    assert alive(daphne) == dict.fromkeys(("RealtimeProtocol", "RealtimeConsumer", "Session", "DirectOutlet"), 10)
    for socket in sockets:
        socket.send(last_words)
        socket.__exit__()
    wait_until(lambda: alive(daphne) == {}, "the end of what was theirs")


def test_a_crowd_that_comes_back_at_once_is_let_in_and_everybody_else_is_served_afterwards(
    server: RealtimeServer,
) -> None:
    crowd = LoadClients(
        port=server.port,
        path="/socket/websocket?vsn=1.0.0",
        topic=TOPIC,
        clients=1000,
        messages=1,
        limit_s=60,
        at_once=1000,
    )
    for _ in range(2):
        with crowd:
            assert crowd.connect_s < 30
            wait_until(lambda: http_status(server.port) == 200, "an answer", limit_s=2)
    assert "Traceback" not in server.log
