"""Any ASGI server will do: uvicorn, and Daphne without the short way."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from typing import Protocol

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.servers import PostgresCluster, ValkeyServer, free_port
from tests.system.corridor import LIMIT_S, DaphneProcess, LegacyClient, execute, replicator
from tests.system.server import ManagedProcess, http_status


class UvicornProcess(ManagedProcess):
    """``uvicorn realtime_project.asgi:application`` on a free port."""

    def __init__(self, env: dict[str, str]) -> None:
        self.port = free_port()
        options = ["--host", "127.0.0.1", "--port", str(self.port)]
        super().__init__(
            [sys.executable, "-m", "uvicorn", *options, "realtime_project.asgi:application"],
            env,
            lambda _: http_status(self.port) == 200,
        )

    @property
    def ws_url(self) -> str:
        """Of its socket, in full."""
        return f"ws://127.0.0.1:{self.port}/socket/websocket"


class Serving(Protocol):
    """What both are."""

    env: dict[str, str]

    @property
    def ws_url(self) -> str: ...

    @property
    def log(self) -> str: ...

    def send_signal(self, number: signal.Signals) -> None: ...

    def wait(self, limit_s: float = ...) -> int: ...


@pytest.fixture(scope="module")
def env(
    postgres18: PostgresCluster, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    database = postgres18.create_database()
    execute(database, "CREATE TABLE items (id bigint PRIMARY KEY, name text)")
    execute(database, "CREATE PUBLICATION supabase_realtime FOR ALL TABLES")
    env = {
        "DATABASE_URL": database,
        "REDIS_URL": valkey.url,
        "REDIS_PREFIX": "asgi-servers",
        "SECURE_CHANNELS": "false",
        "WALCAST_HOME": str(tmp_path_factory.mktemp("home")),
    }
    with replicator(env):
        yield env
    postgres18.drop_database(database)


@pytest.fixture(params=["uvicorn", "daphne"])
def serving(env: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Serving]:
    if request.param == "uvicorn":
        with UvicornProcess(env) as uvicorn:
            yield uvicorn
    else:
        with DaphneProcess(env, "tests.system.plain_daphne:application") as daphne:
            yield daphne


async def test_changes_arrive_in_order_replies_overtake_nothing_and_a_stop_is_told(serving: Serving) -> None:
    execute(serving.env["DATABASE_URL"], "TRUNCATE items")
    async with LegacyClient(serving.ws_url, "realtime:public:items") as client:
        execute(
            serving.env["DATABASE_URL"],
            "INSERT INTO items SELECT i, repeat('é', 50) FROM generate_series(1, 3000) AS i",
            *(f"INSERT INTO items VALUES ({number}, 'x')" for number in range(3001, 3031)),
        )
        assert await client.records(3030) == [str(number) for number in range(1, 3031)]
        await client.send({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "9"})
        assert (await client.receive())["payload"] == {"status": "ok", "response": {}}
        await client.send({"topic": "realtime:public:items", "event": "phx_leave", "payload": {}, "ref": "10"})
        assert (await client.receive())["event"] == "phx_reply"
        serving.send_signal(signal.SIGTERM)
        await asyncio.wait_for(client.socket.wait_closed(), LIMIT_S)
        # Stock Daphne lets applications close with 1000 and 3000 to 4999 only: its clients see the end of the process.
        assert client.socket.close_code == (1012 if isinstance(serving, UvicornProcess) else 1006)
    assert "Traceback" not in serving.log


async def test_an_unknown_version_is_refused_before_the_upgrade(serving: Serving) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{serving.ws_url}?vsn=7.0.0"):
            pass
    assert refused.value.response.status_code == 403
