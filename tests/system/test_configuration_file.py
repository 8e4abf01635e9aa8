"""CONFIGURATION_FILE through the whole corridor: what is broadcast, who is posted to, and who waits for nobody."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from channels_redis.pubsub import RedisPubSubChannelLayer

from replication.groups import group_name
from tests.replication.receiver import Receiver
from tests.servers import ValkeyServer
from tests.system.corridor import DaphneProcess, replicator
from tests.system.golden import Marker, connect_to, fields_of, join, open_socket
from tests.system.server import RealtimeServer

EVENTS = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
TOPICS = ["realtime:*", "realtime:public", "realtime:public:users", "realtime:public:users:name=eq.n1"]

# The marker says when everything has come; its own topic has to be let through.
MARKER = {"relation": "golden:marker", "events": ["INSERT"]}
LEVELS: dict[str, Any] = {
    "realtime": [
        {"relation": "public", "events": ["INSERT", "UPDATE"]},
        {"relation": "public:users", "events": ["DELETE"]},
        {"relation": "*:*:name", "events": ["INSERT"]},
        MARKER,
    ]
}
CHANGES = ["INSERT INTO users VALUES (1, 'n1')", "UPDATE users SET name = 'n1'", "DELETE FROM users", "TRUNCATE users"]


@pytest.fixture
def connection(database18: str) -> Iterator[psycopg.Connection[Any]]:
    with closing(connect_to(database18)) as connection:
        connection.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
        connection.execute("CREATE PUBLICATION supabase_realtime FOR ALL TABLES")
        yield connection


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture
def env(database18: str, tmp_path: Path) -> dict[str, str]:
    """The settings of a server with a configuration file, whose path is `CONFIGURATION_FILE`."""
    return {
        "DATABASE_URL": database18,
        "SECURE_CHANNELS": "false",
        "CONFIGURATION_FILE": str(tmp_path / "configuration.json"),
        "SLOT_NAME": str(psycopg.conninfo.conninfo_to_dict(database18)["dbname"]),
    }


def write(env: dict[str, str], document: dict[str, Any]) -> None:
    """Write the configuration."""
    Path(env["CONFIGURATION_FILE"]).write_text(json.dumps(document))


def hook(endpoint: str, **more: str) -> dict[str, Any]:
    """An item of ``webhooks``."""
    return {"config": {"endpoint": endpoint}, **more}


def _heard(ws_url: str, connection: psycopg.Connection[Any], statements: list[str]) -> list[tuple[str, str]]:
    """Topic and event of each frame that the changes make, for a socket that has joined every level."""
    marker = Marker(connection)
    with open_socket(ws_url) as socket:
        marker.begin(socket)
        join(socket, TOPICS)
        for statement in statements:
            connection.execute(statement.encode())
        frames = [fields_of(frame) for frame in marker.frames_before(socket)]
    return [(frame["topic"].removeprefix("realtime:"), frame["event"]) for frame in frames]


_OF_LEVELS = [
    ("public", "INSERT"),
    ("public:users:name=eq.n1", "INSERT"),
    ("public", "UPDATE"),
    ("public:users", "DELETE"),
]


def test_each_event_is_broadcast_at_the_levels_that_name_it(
    env: dict[str, str], connection: psycopg.Connection[Any]
) -> None:
    write(env, LEVELS)
    with RealtimeServer(env) as server:
        server.wait_for_log("replicator streaming")
        assert _heard(server.ws_url, connection, CHANGES) == _OF_LEVELS


def test_without_realtime_nothing_is_broadcast_and_everything_is_acknowledged(
    env: dict[str, str], connection: psycopg.Connection[Any], receiver: Receiver
) -> None:
    write(env, {"webhooks": [hook(receiver.url())]})
    with RealtimeServer(env | {"RING_MAX_AGE_S": "0"}) as server, open_socket(server.ws_url) as socket:
        server.wait_for_log("replicator streaming")
        join(socket, TOPICS)
        connection.execute("INSERT INTO users VALUES (1, 'n1')")
        end = connection.execute("SELECT pg_current_wal_lsn()").fetchone()
        receiver.wait_for(1)
        deadline = time.monotonic() + 20
        query = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s"
        assert end is not None
        while connection.execute(query, [end[0], env["SLOT_NAME"]]).fetchone() != (True,):
            assert time.monotonic() < deadline, "the acknowledgement did not come"
        socket.send(json.dumps({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "last"}))
        assert json.loads(socket.recv(10))["ref"] == "last", "nothing came before the reply"


def test_webhooks_are_told_whole_transactions_that_match(
    env: dict[str, str], connection: psycopg.Connection[Any], receiver: Receiver
) -> None:
    hooks = [
        hook(receiver.url("/all"), event="*"),
        hook(receiver.url("/inserts"), event="INSERT", relation="public:users"),
        hook(receiver.url("/schema"), relation="public:*"),
        hook(receiver.url("/column"), relation="public:users:x"),
    ]
    write(env, {"webhooks": hooks})
    headers = "authorization=Bearer abc=:X-From=walcast"
    with RealtimeServer(env | {"WEBHOOK_HEADERS": headers}) as server:
        server.wait_for_log("replicator streaming")
        connection.execute("INSERT INTO users VALUES (1, 'n1')")
        connection.execute("UPDATE users SET name = 'n2'")
        receiver.wait_for(1, "/inserts")
        inserted, updated = receiver.wait_for(2, "/all")
        oddities = [line for line in server.log.splitlines() if "no effect" in line]
    assert [request.path for request in receiver.received].count("/inserts") == 1
    assert {request.path for request in receiver.received} == {"/all", "/inserts"}
    assert inserted.json["commit_timestamp"] == inserted.json["changes"][0]["commit_timestamp"]
    assert inserted.json["changes"][0]["record"] == {"id": "1", "name": "n1"}
    assert updated.json["changes"][0]["type"] == "UPDATE"
    assert inserted.headers["content-type"] == "application/json"
    assert (inserted.headers["authorization"], inserted.headers["x-from"]) == ("Bearer abc=", "walcast")
    assert inserted.key != updated.key
    assert ["webhooks[2].relation" in oddities[0], "webhooks[3].relation" in oddities[1]] == [True, True]


def test_a_hung_webhook_delays_neither_broadcasts_nor_the_end(
    env: dict[str, str], connection: psycopg.Connection[Any], receiver: Receiver
) -> None:
    receiver.may_answer.clear()
    everything = [{"relation": relation, "events": EVENTS} for relation in ("*", "*:*", "*:*:*")]
    write(env, {"realtime": everything, "webhooks": [hook(receiver.url())]})
    with RealtimeServer(env | {"WEBHOOK_TIMEOUT_S": "60"}) as server:
        server.wait_for_log("replicator streaming")
        with open_socket(server.ws_url) as socket:
            join(socket, ["realtime:public:users"])
            started = time.monotonic()
            for number in (1, 2, 3):
                connection.execute("INSERT INTO users VALUES (%s, 'x')", [number])
                frame = socket.recv(10)
                assert isinstance(frame, str)
                assert fields_of(frame)["payload"]["record"]["id"] == str(number)
            assert time.monotonic() - started < 3, "the original took 10 s for the third"
        receiver.wait_for(1)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 6
        assert "webhook posts lost at the end of the process" in server.log
    assert len(receiver.received) == 1


def test_a_killed_server_repeats_what_it_may_have_lost_with_the_same_key(
    env: dict[str, str], connection: psycopg.Connection[Any], receiver: Receiver
) -> None:
    write(env, {"webhooks": [hook(receiver.url())]})
    with RealtimeServer(env) as server:
        server.wait_for_log("replicator streaming")
        connection.execute("INSERT INTO users VALUES (1, 'x')")
        (first,) = receiver.wait_for(1)
        server.kill()
        said = len(server.log)
        server.start()
        server.wait_for_log("replicator streaming", since=said)
        connection.execute("INSERT INTO users VALUES (2, 'x')")
        last = receiver.wait_for(2)[-1]
        while last.ids != [2]:
            # The record is written once a second: whether the first comes again depends on when the kill struck.
            assert (last.key, last.body) == (first.key, first.body)
            last = receiver.wait_for(len(receiver.received) + 1)[-1]
    assert last.key != first.key


# In several processes


@pytest.fixture
def env_of_several(env: dict[str, str], valkey: ValkeyServer, tmp_path: Path) -> dict[str, str]:
    return env | {"REDIS_URL": valkey.url, "WALCAST_HOME": str(tmp_path)}


def test_it_holds_in_every_daphne_and_the_replicator_posts(
    env_of_several: dict[str, str], connection: psycopg.Connection[Any], receiver: Receiver
) -> None:
    write(env_of_several, LEVELS | {"webhooks": [hook(receiver.url(), relation="public")]})
    with replicator(env_of_several) as reader, DaphneProcess(env_of_several) as daphne:
        assert _heard(daphne.ws_url, connection, CHANGES) == _OF_LEVELS
        requests = receiver.wait_for(4)
        assert reader.stop() == 0
    assert [request.json["changes"][0]["type"] for request in requests] == EVENTS


async def test_it_holds_for_topic_groups(
    env_of_several: dict[str, str], connection: psycopg.Connection[Any], valkey: ValkeyServer
) -> None:
    write(env_of_several, LEVELS)
    layer = RedisPubSubChannelLayer(hosts=[valkey.url])
    channel = await layer.new_channel()
    for topic in [*TOPICS, "realtime:golden:marker"]:
        await layer.group_add(group_name(topic), channel)
    heard: list[tuple[str, str]] = []
    marker = Marker(connection)
    assert marker is not None
    try:
        with replicator(env_of_several | {"TOPIC_GROUPS": "public.users:name,golden.marker"}):
            for statement in [*CHANGES, "INSERT INTO golden.marker DEFAULT VALUES"]:
                connection.execute(statement.encode())
            async with asyncio.timeout(20):
                while not heard or heard[-1][0] != "golden:marker":
                    message = await layer.receive(channel)
                    if message["type"] == "realtime.change":
                        heard.append((message["topic"].removeprefix("realtime:"), message["payload"]["type"]))
    finally:
        await layer.flush()
    assert sorted(heard[:-1]) == sorted(_OF_LEVELS)


# What is refused


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"realtime": [{"events": ["INSERT"]}]}, 'realtime[0].relation has to be a string such as "public:users"'),
        ({"webhooks": [{"config": {}}]}, "webhooks[0].config.endpoint has to be the URL to post to"),
    ],
)
def test_a_wrong_file_ends_the_process_before_anything_starts(
    env: dict[str, str], document: dict[str, Any], told: str
) -> None:
    write(env, document)
    with pytest.raises(RuntimeError, match="ended with 1") as raised, RealtimeServer(env):
        pass
    assert f"CONFIGURATION_FILE='{env['CONFIGURATION_FILE']}' cannot be used" in str(raised.value)
    assert told in str(raised.value)


@pytest.mark.parametrize("headers", ["novalue", "na me=x", "=x", "a=b:c", "a=é"])
def test_wrong_headers_end_the_process_and_are_not_shown(env: dict[str, str], headers: str) -> None:
    write(env, {})
    with (
        pytest.raises(RuntimeError, match=r"WEBHOOK_HEADERS=\(hidden\) cannot be used"),
        RealtimeServer(env | {"WEBHOOK_HEADERS": headers}),
    ):
        pass
