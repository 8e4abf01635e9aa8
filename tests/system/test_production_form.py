"""run_replicator, Daphne processes, and Valkey between them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from channels.consumer import AsyncConsumer
from channels_redis.pubsub import RedisPubSubChannelLayer

from replication.groups import group_name
from tests.servers import ValkeyServer, wait_until
from tests.system.corridor import LIMIT_S, DaphneProcess, LegacyClient, execute, replicator
from tests.system.server import ManagedProcess

TABLE = "create table items(id bigint primary key, name text)"


@pytest.fixture
def env(database: str, valkey: ValkeyServer, tmp_path: Path) -> dict[str, str]:
    """The settings of all processes of one test; Valkey is emptied of the others' channels by a database of its own."""
    execute(database, TABLE, "create publication supabase_realtime for all tables")
    return {
        "DATABASE_URL": database,
        "REDIS_URL": valkey.url,
        "SECURE_CHANNELS": "false",
        "SLOT_NAME": f"production_{tmp_path.name[-20:].lower().replace('-', '_')}",
        "WALCAST_HOME": str(tmp_path),
    }


@pytest.fixture
def running(env: dict[str, str]) -> Iterator[tuple[ManagedProcess, DaphneProcess]]:
    with replicator(env) as reader, DaphneProcess(env) as daphne:
        yield reader, daphne


async def test_a_committed_row_reaches_a_client_of_another_process(
    env: dict[str, str], running: tuple[ManagedProcess, DaphneProcess]
) -> None:
    _, daphne = running
    async with LegacyClient(daphne.ws_url, "realtime:public:items") as client:
        execute(env["DATABASE_URL"], "insert into items values (1, 'one')")
        message = await client.receive()
    assert message["topic"] == "realtime:public:items"
    assert message["event"] == "INSERT"
    assert message["payload"]["record"] == {"id": "1", "name": "one"}


async def test_two_daphnes_deliver_the_same_changes_in_commit_order(
    env: dict[str, str], running: tuple[ManagedProcess, DaphneProcess]
) -> None:
    _, daphne = running
    expected = [str(number) for number in range(300)]
    with DaphneProcess(env) as other:
        async with LegacyClient(daphne.ws_url, "realtime:*") as one, LegacyClient(other.ws_url, "realtime:*") as two:
            execute(env["DATABASE_URL"], *(f"insert into items values ({number}, 'x')" for number in range(300)))
            assert await one.records(300) == expected
            assert await two.records(300) == expected


async def test_a_large_transaction_arrives_whole_and_in_order(
    env: dict[str, str], running: tuple[ManagedProcess, DaphneProcess]
) -> None:
    _, daphne = running
    async with LegacyClient(daphne.ws_url, "realtime:public:items") as client:
        execute(env["DATABASE_URL"], "insert into items select i, repeat('x', 100) from generate_series(1, 30000) i")
        assert await client.records(30_000) == [str(number) for number in range(1, 30_001)]


async def test_a_killed_replicator_loses_and_doubles_nothing(
    env: dict[str, str], running: tuple[ManagedProcess, DaphneProcess]
) -> None:
    reader, daphne = running
    async with LegacyClient(daphne.ws_url, "realtime:public:items") as client:
        execute(env["DATABASE_URL"], *(f"insert into items values ({number}, 'x')" for number in range(50)))
        assert await client.records(50) == [str(number) for number in range(50)]
        reader.kill()
        execute(env["DATABASE_URL"], *(f"insert into items values ({number}, 'x')" for number in range(50, 100)))
        reader.start()
        execute(env["DATABASE_URL"], "insert into items values (100, 'last')")
        assert await client.records(51) == [str(number) for number in range(50, 101)]


async def test_a_second_replicator_stands_by_and_takes_over(
    env: dict[str, str], running: tuple[ManagedProcess, DaphneProcess]
) -> None:
    reader, daphne = running
    with replicator(env) as standby:
        assert "standing by" in standby.log
        async with LegacyClient(daphne.ws_url, "realtime:public:items") as client:
            execute(env["DATABASE_URL"], "insert into items values (1, 'first')")
            assert await client.records(1) == ["1"]
            reader.kill()
            execute(env["DATABASE_URL"], "insert into items values (2, 'second')")
            assert await client.records(1) == ["2"]
        assert " streaming " in standby.log


async def test_a_daphne_that_starts_later_knows_the_recent_past_and_delivers_only_what_comes(
    env: dict[str, str], running: tuple[ManagedProcess, DaphneProcess]
) -> None:
    execute(env["DATABASE_URL"], "insert into items values (1, 'before')")
    with DaphneProcess(env) as late:
        async with LegacyClient(late.ws_url, "realtime:public:items") as client:
            execute(env["DATABASE_URL"], "insert into items values (2, 'after')")
            assert await client.records(1) == ["2"]


async def test_after_a_restart_of_valkey_the_changes_go_on_without_loss(env: dict[str, str], tmp_path: Path) -> None:
    with ValkeyServer() as own:
        env = env | {"REDIS_URL": own.url}
        with replicator(env), DaphneProcess(env) as daphne:
            async with LegacyClient(daphne.ws_url, "realtime:public:items") as client:
                execute(env["DATABASE_URL"], "insert into items values (1, 'before')")
                assert await client.records(1) == ["1"]
                own.restart()
                execute(env["DATABASE_URL"], *(f"insert into items values ({number}, 'x')" for number in range(2, 40)))
                assert await client.records(38) == [str(number) for number in range(2, 40)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_stopped_daphne_tells_its_clients_to_go_elsewhere(env: dict[str, str], number: signal.Signals) -> None:
    with replicator(env), DaphneProcess(env) as daphne:
        async with LegacyClient(daphne.ws_url, "realtime:public:items") as client:
            daphne.send_signal(number)
            assert (await client.receive())["event"] == "phx_error"
            await asyncio.wait_for(client.socket.wait_closed(), LIMIT_S)
            assert client.socket.close_code == 1012
        assert daphne.wait() == 0
        assert "Traceback" not in daphne.log


def test_a_stopped_replicator_ends_in_order_and_keeps_its_record(env: dict[str, str], database: str) -> None:
    with replicator(env) as reader:
        execute(database, "insert into items values (1, 'one')")
        assert reader.stop() == 0
        assert "Traceback" not in reader.log
        assert reader.log.rstrip().endswith("stopped")
    with psycopg.connect(database) as connection:
        slot = connection.execute(
            "select active, temporary from pg_replication_slots where slot_name = %s", [env["SLOT_NAME"]]
        ).fetchone()
    assert slot == (False, False)


@pytest.mark.parametrize("program", ["run_replicator", "daphne"])
def test_neither_half_starts_without_redis(env: dict[str, str], program: str) -> None:
    del env["REDIS_URL"]
    process = replicator(env) if program == "run_replicator" else DaphneProcess(env)
    with pytest.raises(RuntimeError, match="REDIS_URL is not set"):
        process.__enter__()


# A consumer looks after old database connections before each message, and pytest-django guards these.
@pytest.mark.django_db(transaction=True)
async def test_an_ordinary_consumer_hears_changes_in_the_group_of_a_topic(
    env: dict[str, str], valkey: ValkeyServer
) -> None:
    heard: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    class Listener(AsyncConsumer):
        async def realtime_change(self, message: dict[str, object]) -> None:
            await heard.put(message)

    layer = RedisPubSubChannelLayer(hosts=[valkey.url])
    channel = await layer.new_channel()
    for topic in ("realtime:public:items", "realtime:public:items:name=eq.two words"):
        await layer.group_add(group_name(topic), channel)

    async def pump() -> None:
        listener = Listener()
        while True:
            await listener.dispatch(await layer.receive(channel))

    pumping = asyncio.create_task(pump())
    try:
        with replicator(env | {"TOPIC_GROUPS": "public.items:name"}):
            execute(env["DATABASE_URL"], "insert into items values (7, 'two words')")
            first, second = [await asyncio.wait_for(heard.get(), LIMIT_S) for _ in range(2)]
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)
        await layer.flush()
    assert first["topic"] == "realtime:public:items"
    assert second["topic"] == "realtime:public:items:name=eq.two words"
    assert isinstance(first["payload"], dict)
    assert first["payload"]["record"] == {"id": "7", "name": "two words"}
    assert first["type"] == second["type"] == "realtime.change"


def test_over_the_lag_limit_the_slot_is_made_anew_and_clients_are_told(env: dict[str, str]) -> None:
    database = env["DATABASE_URL"]
    with replicator(env) as reader:
        reader.stop()
    execute(
        database,
        "create table filler(t text)",
        "insert into filler select repeat(md5(i::text), 20) from generate_series(1, 10000) i",
    )
    with replicator(env | {"MAX_REPLICATION_LAG_MB": "1"}) as reader:
        wait_until(lambda: " streaming " in reader.log, "streaming again", limit_s=LIMIT_S)
        assert "slot dropped and made anew" in reader.log
        assert "MAX_REPLICATION_LAG_MB" in reader.log


async def test_two_replicators_without_a_slot_name_do_not_publish_twice(env: dict[str, str]) -> None:
    del env["SLOT_NAME"]
    with replicator(env) as reader, replicator(env) as standby, DaphneProcess(env) as daphne:
        assert "standing by" in standby.log
        async with LegacyClient(daphne.ws_url, "realtime:public:items") as client:
            execute(env["DATABASE_URL"], "insert into items values (1, 'one')", "insert into items values (2, 'two')")
            assert await client.records(2) == ["1", "2"]
            reader.kill()
            standby.wait_for_log(" streaming ")
            # The dead one's temporary slot took a new history with it: clients are told, and join again.
            assert (await client.receive())["event"] == "phx_error"


async def test_the_record_in_the_streamed_database_is_not_broadcast(env: dict[str, str]) -> None:
    host, port, user, password, name = (
        psycopg.conninfo.conninfo_to_dict(env["DATABASE_URL"])[key]
        for key in ("host", "port", "user", "password", "dbname")
    )
    env["DJANGO_DATABASE_URL"] = f"postgres://{user}:{password}@{host}:{port}/{name}"
    with replicator(env), DaphneProcess(env) as daphne:
        async with LegacyClient(daphne.ws_url, "realtime:*") as client:
            execute(env["DATABASE_URL"], "insert into items values (1, 'one')")
            assert (await client.receive())["payload"]["table"] == "items"
            await asyncio.sleep(2.5)  # the record is saved meanwhile, and each save is a change
            execute(env["DATABASE_URL"], "insert into items values (2, 'two')")
            assert (await client.receive())["payload"]["record"] == {"id": "2", "name": "two"}
