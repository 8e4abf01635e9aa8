"""What is ready is sent together, and nothing waits for more: a busy system batches, an idle one adds no delay."""

from __future__ import annotations

import asyncio
import re
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from replication.connection import ReplicationConnection
from replication.options import ReplicatorSettings
from streaming.hub import Hub
from streaming.local import LocalPublisher
from streaming.phoenix import V2
from streaming.subscriptions import Subscription
from streaming.transport import DirectOutlet, OutletLimits
from tests.replication.corridor import MemoryStore, started, until
from tests.servers import ValkeyServer, wait_until
from tests.system.corridor import DaphneProcess, LegacyClient, execute, replicator
from tests.system.server import RealtimeServer

COMMITS = 200
TOPIC = "realtime:public:ticks"
_TABLE = "CREATE TABLE IF NOT EXISTS ticks (id int)"


class CountingWay:
    """A `ShortWay` to a client that takes everything at once; it notes each write."""

    def __init__(self, note: Callable[[], int]) -> None:
        self.on_drained: Callable[[], None] | None = None
        self.on_control: Callable[[bytes], bool] | None = None
        self.on_close: Callable[[Callable[[], None]], bool] | None = None
        self.writes: list[int] = []
        """What ``note`` said at each of them."""
        self.frames = bytearray()
        self._note = note

    def send_now(self, frames: bytes | memoryview) -> int:
        self.writes.append(self._note())
        self.frames += frames
        return len(frames)

    def send_later(self, piece: bytes) -> None:
        raise NotImplementedError

    def close_with(self, code: int, reason: str) -> None:
        raise NotImplementedError

    def check_idle(self, now: float) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError


class Turns:
    """Counts the turns of the loop: while it does, none of them waits for anything."""

    def __init__(self) -> None:
        self.count = self.woken = 0
        """This turn, and the one in which the replicator was last told that its connection has something."""
        self._handle: asyncio.Handle | None = None

    def start(self) -> None:
        self.count += 1
        self._handle = asyncio.get_running_loop().call_soon(self.start)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    turns, wait_readable = Turns(), ReplicationConnection.wait_readable

    async def wait_and_note(self: ReplicationConnection) -> None:
        await wait_readable(self)
        turns.woken = turns.count

    monkeypatch.setattr(ReplicationConnection, "wait_readable", wait_and_note)
    yield turns
    turns.stop()


@pytest.fixture
async def way(database18: str, turns: Turns) -> AsyncIterator[CountingWay]:
    """A client of a process that has a replicator, as it is after its first change."""
    execute(database18, _TABLE)
    hub, way = Hub(), CountingWay(lambda: turns.count - turns.woken)
    settings = ReplicatorSettings(database18, ["pub"], None, create_publication=True)
    async with started(settings, LocalPublisher(hub), MemoryStore()) as replicator:
        hub.log = replicator.changelog
        await until(replicator.streaming.is_set, "streaming")
        hub.join(DirectOutlet(way, OutletLimits()), Subscription(TOPIC), V2)
        execute(database18, "INSERT INTO ticks VALUES (0)")
        await until(lambda: ids(way) == [0], "the first change")
        way.writes.clear()
        yield way


def ids(way: CountingWay) -> list[int]:
    """The rows that have come."""
    return [int(number) for number in re.findall(rb'"record":\{"id":"(\d+)"\}', way.frames)]


def commit(dsn: str, first: int, last: int) -> None:
    """Commit the rows one by one; returns when PostgreSQL has sent them all to whoever reads its log."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(first, last + 1):
            connection.execute("INSERT INTO ticks VALUES (%s)", [number])
        row = connection.execute("SELECT pg_current_wal_lsn()").fetchone()
        assert row is not None
        committed_lsn = str(row[0])

        def are_sent() -> bool:
            query = "SELECT bool_and(sent_lsn >= %s::pg_lsn) FROM pg_stat_replication"
            row = connection.execute(query, [committed_lsn]).fetchone()
            return row is not None and bool(row[0])

        wait_until(are_sent, "the last commit on its way")


async def test_one_commit_is_written_in_the_turn_of_the_loop_in_which_it_has_arrived(
    database18: str, turns: Turns, way: CountingWay
) -> None:
    for number in range(1, 6):
        turns.start()
        await asyncio.to_thread(execute, database18, f"INSERT INTO ticks VALUES ({number})")
        await until(lambda number=number: ids(way)[-1] == number, "the change")  # type: ignore[misc]
        turns.stop()
    assert ids(way) == list(range(6))
    assert way.writes == [0] * 5, "one write each, and neither a timer nor a turn before it"


async def test_commits_that_came_while_the_loop_was_busy_are_written_at_once(database18: str, way: CountingWay) -> None:
    commit(database18, 1, COMMITS)  # in the loop's own thread: nothing else runs meanwhile
    assert way.writes == []
    await until(lambda: ids(way)[-1] == COMMITS, "the last change")
    assert ids(way) == list(range(COMMITS + 1))
    assert len(way.writes) == 1


def deliveries(port: int) -> int:
    """How often something was handed to the sockets."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text: str = response.read().decode()
    match = re.search(r"^walcast_commit_to_socket_seconds_count (\d+)", text, re.MULTILINE)
    assert match is not None
    return int(match[1])


async def test_a_server_that_comes_to_itself_hands_on_what_has_gathered_in_one_go(
    realtime_server: RealtimeServer,
) -> None:
    execute(realtime_server.dsn, _TABLE)
    async with LegacyClient(realtime_server.ws_url, TOPIC) as client:
        for number in range(5):
            execute(realtime_server.dsn, f"INSERT INTO ticks VALUES ({number})")
            assert await client.records(1) == [str(number)]
        before = deliveries(realtime_server.port)
        for number in range(5):
            execute(realtime_server.dsn, f"INSERT INTO ticks VALUES ({number})")
            assert await client.records(1) == [str(number)]
        assert deliveries(realtime_server.port) - before == 5, "one by one, if they come one by one"
        realtime_server.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: "(stopped)" in Path(f"/proc/{realtime_server.pid}/status").read_text(), "its stop")
            await asyncio.to_thread(commit, realtime_server.dsn, 1, COMMITS)
        finally:
            realtime_server.send_signal(signal.SIGCONT)
        assert await client.records(COMMITS) == [str(number) for number in range(1, COMMITS + 1)]
        assert deliveries(realtime_server.port) - before == 6, "all of them at once"


async def test_a_daphne_that_comes_to_itself_hands_on_together_what_the_layer_has_brought(
    database18: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    execute(database18, _TABLE, "CREATE PUBLICATION supabase_realtime FOR ALL TABLES")
    env = {
        "DATABASE_URL": database18,
        "REDIS_URL": valkey.url,
        "SECURE_CHANNELS": "false",
        "SLOT_NAME": "batching",
        "WALCAST_HOME": str(tmp_path),
    }
    expected = [str(number) for number in range(1, COMMITS + 1)]
    with replicator(env), DaphneProcess(env) as daphne, DaphneProcess(env) as other:
        async with LegacyClient(daphne.ws_url, TOPIC) as client, LegacyClient(other.ws_url, TOPIC) as awake:
            before = deliveries(daphne.port)
            daphne.send_signal(signal.SIGSTOP)
            try:
                await asyncio.to_thread(commit, database18, 1, COMMITS)
                assert await awake.records(COMMITS) == expected, "all of it has gone through the layer"
            finally:
                daphne.send_signal(signal.SIGCONT)
            assert await client.records(COMMITS) == expected
            # One by one they would be 200; what the layer's client reads at a time is one.
            assert 1 <= deliveries(daphne.port) - before <= 10
