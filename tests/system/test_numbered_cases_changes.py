"""The numbered cases G48 to G79: what is told of a change, and to whom."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.replication.receiver import Receiver
from tests.servers import wait_until
from tests.system.golden import Marker, connect_to, heartbeat_frame, join, open_socket, until_reply
from tests.system.legacy import Json, listening, rows_of, topics_of
from tests.system.server import RealtimeServer

TABLES = """
    CREATE TABLE users (id bigint PRIMARY KEY, name text);
    CREATE TABLE full_t (id int PRIMARY KEY, name text, n int);
    ALTER TABLE full_t REPLICA IDENTITY FULL;
    CREATE TABLE idx_t (id int PRIMARY KEY, code text UNIQUE NOT NULL, n int);
    ALTER TABLE idx_t REPLICA IDENTITY USING INDEX idx_t_code_key;
    CREATE TABLE nopk (a int, b text);
    CREATE TABLE toast_t (id int PRIMARY KEY, big text STORAGE EXTERNAL, n int);
"""
USERS = "realtime:public:users"
ROW = {"id": "1", "name": "Bob"}
COMMIT_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
NO_MODIFIER = 4294967295

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        server.wait_for_log("replicator streaming")
        yield server


@pytest.fixture(scope="module")
def connection(server: RealtimeServer) -> Iterator[Connection]:
    with closing(connect_to(server.dsn)) as connection:
        connection.execute(TABLES)
        yield connection


@pytest.fixture(scope="module")
def marker(connection: Connection) -> Marker:
    return Marker(connection)


@pytest.fixture(autouse=True)
def empty_tables(connection: Connection) -> None:
    connection.execute("TRUNCATE users, full_t, idx_t, nopk, toast_t")


@contextmanager
def beside(server: RealtimeServer, **env: str) -> Iterator[RealtimeServer]:
    """Another server of the same database, with other settings."""
    with RealtimeServer({"DATABASE_URL": server.dsn, "SECURE_CHANNELS": "false"} | env) as other:
        other.wait_for_log("replicator streaming")
        yield other


def topics(*names: str) -> list[str]:
    return [f"realtime:{name}" for name in names]


def columns_of(frame: Json) -> list[tuple[str, Any, bool, int]]:
    """Name, type, whether it is part of the key, and modifier."""
    columns = frame["payload"]["columns"]
    assert all(column["flags"] in ([], ["key"]) for column in columns)
    return [(column["name"], column["type"], column["flags"] == ["key"], column["type_modifier"]) for column in columns]


# Rows and their topics


def test_g48_an_insert_and_its_topics(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    # Joined in another order than that of the frames.
    joined = ("auth", "public:users:name=eq.", "public:users:name=eq.Bob", "public:users:id=eq.1")
    with listening(
        server.ws_url, marker, *topics(*joined), USERS, *topics("public", "*"), "realtime:public:users:id=eq.10"
    ) as ear:
        connection.execute("INSERT INTO users VALUES (1, 'Bob')")
        frames = [ear.next() for _ in range(5)]
        assert ear.heard() == []
    assert [frame["topic"].removeprefix("realtime:") for frame in frames] == [
        *("public", "*", "public:users", "public:users:id=eq.1", "public:users:name=eq.Bob")
    ]
    commit_timestamp = frames[0]["payload"]["commit_timestamp"]
    assert COMMIT_TIMESTAMP.fullmatch(commit_timestamp)
    payload = {
        "type": "INSERT",
        "schema": "public",
        "table": "users",
        "commit_timestamp": commit_timestamp,
        "columns": [
            {"name": "id", "type": "int8", "flags": ["key"], "type_modifier": NO_MODIFIER},
            {"name": "name", "type": "text", "flags": [], "type_modifier": NO_MODIFIER},
        ],
        "record": ROW,
    }
    for frame in frames:
        assert frame == {"topic": frame["topic"], "event": "INSERT", "payload": payload, "ref": None}


def test_g49_the_same_in_version_2(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    with listening(server.ws_url, marker, USERS, query="vsn=2.0.0") as ear:
        (frame,) = ear.after(connection, "INSERT INTO users VALUES (1, 'Bob')")
    assert frame[:4] == [None, None, USERS, "INSERT"]
    assert frame[4]["record"] == ROW


def test_g50_an_update(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("INSERT INTO users VALUES (1, 'Bob')")
    joined = topics("public:users", "public:users:name=eq.Bob", "public:users:id=eq.1")
    with listening(server.ws_url, marker, *joined) as ear:
        frames = ear.after(connection, "UPDATE users SET name = 'Bobby' WHERE id = 1")
    assert topics_of(frames) == [("public:users", "UPDATE"), ("public:users:id=eq.1", "UPDATE")]
    assert rows_of(frames) == [("UPDATE", {"id": "1", "name": "Bobby"}, {})] * 2


def test_g51_an_update_of_the_key(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("INSERT INTO users VALUES (1, 'Bob')")
    with listening(server.ws_url, marker, *topics("public:users:id=eq.1", "public:users:id=eq.2")) as ear:
        frames = ear.after(connection, "UPDATE users SET id = 2 WHERE id = 1")
    assert topics_of(frames) == [("public:users:id=eq.2", "UPDATE")]
    assert rows_of(frames) == [("UPDATE", {"id": "2", "name": "Bob"}, {})]


def test_g52_a_delete(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("INSERT INTO users VALUES (2, 'Bobby')")
    joined = topics("public:users:name=eq.Bobby", "public:users:id=eq.2", "public:users")
    with listening(server.ws_url, marker, *joined) as ear:
        frames = ear.after(connection, "DELETE FROM users WHERE id = 2")
    assert topics_of(frames) == [("public:users", "DELETE"), ("public:users:id=eq.2", "DELETE")]
    assert rows_of(frames) == [("DELETE", None, {"id": "2", "name": None})] * 2


def test_g53_null_has_no_topic_and_the_empty_text_has(
    server: RealtimeServer, connection: Connection, marker: Marker
) -> None:
    joined = topics("public:users", "public:users:name=eq.", "public:users:name=eq.null", "public:users:name=eq.NULL")
    with listening(server.ws_url, marker, *joined) as ear:
        frames = ear.after(connection, "INSERT INTO users VALUES (1, NULL)", "INSERT INTO users VALUES (2, '')")
    assert topics_of(frames) == [(name, "INSERT") for name in (*["public:users"] * 2, "public:users:name=eq.")]
    assert rows_of(frames)[0] == ("INSERT", {"id": "1", "name": None}, None)


def test_g54_replica_identity_full(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    columns = topics(*(f"public:full_t:{text}" for text in ("name=eq.b", "name=eq.a", "n=eq.5")))
    with listening(server.ws_url, marker, *columns, "realtime:public:full_t") as ear:
        inserted = ear.after(connection, "INSERT INTO full_t VALUES (1, 'a', 5)")
        updated = ear.after(connection, "UPDATE full_t SET name = 'b'")
        deleted = ear.after(connection, "DELETE FROM full_t")
    assert [is_key for _, _, is_key, _ in columns_of(inserted[0])] == [True, True, True]
    old, new = {"id": "1", "name": "a", "n": "5"}, {"id": "1", "name": "b", "n": "5"}
    assert rows_of(updated) == [("UPDATE", new, old)] * 3
    assert rows_of(deleted) == [("DELETE", None, new)] * 3
    told = ["public:full_t", "public:full_t:n=eq.5", "public:full_t:name=eq.b"]
    assert [name for name, _ in topics_of(updated)] == [name for name, _ in topics_of(deleted)] == told


def test_g55_replica_identity_using_an_index(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("INSERT INTO idx_t VALUES (1, 'x', 5)")
    joined = topics("public:idx_t", "public:idx_t:id=eq.1", "public:idx_t:code=eq.y")
    with listening(server.ws_url, marker, *joined) as ear:
        updated = ear.after(connection, "UPDATE idx_t SET code = 'y'")
        deleted = ear.after(connection, "DELETE FROM idx_t")
    assert [name for name, _, is_key, _ in columns_of(updated[0]) if is_key] == ["code"]
    assert rows_of(updated)[0] == ("UPDATE", {"id": "1", "code": "y", "n": "5"}, {})
    assert topics_of(deleted) == [("public:idx_t", "DELETE"), ("public:idx_t:code=eq.y", "DELETE")]
    assert rows_of(deleted)[0] == ("DELETE", None, {"id": None, "code": "y", "n": None})


def test_g56_a_table_without_a_key(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    with listening(server.ws_url, marker, "realtime:public:nopk") as ear:
        (frame,) = ear.after(connection, "INSERT INTO nopk VALUES (1, 'x')")
    assert columns_of(frame) == [("a", "int4", False, NO_MODIFIER), ("b", "text", False, NO_MODIFIER)]


def test_g57_a_truncate(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("INSERT INTO users VALUES (1, 'Bob')")
    joined = topics("public:users:id=eq.1", "public:todos", "public:users", "*", "public")
    with listening(server.ws_url, marker, *joined) as ear:
        frames = ear.after(connection, "TRUNCATE users, todos")
    told = [name for table in ("public:users", "public:todos") for name in ("public", "*", table)]
    assert topics_of(frames) == [(name, "TRUNCATE") for name in told]
    payload = {"type": "TRUNCATE", "schema": "public", "table": "users", "commit_timestamp": "COMMITTED"}
    assert [frame["payload"] for frame in frames[:3]] == [payload] * 3


def test_g58_a_truncate_of_postgresql_10() -> None:
    pytest.skip("PostgreSQL 10, which does not replicate TRUNCATE, is not to be had: its support ended in 2022")


def test_g59_a_table_that_is_not_published(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("CREATE PUBLICATION only_users FOR TABLE users, golden.marker")
    with beside(server, PUBLICATIONS="only_users") as other, listening(other.ws_url, marker, "realtime:*") as ear:
        frames = ear.after(
            connection, "INSERT INTO todos (task) VALUES ('not published')", "INSERT INTO users VALUES (1, 'published')"
        )
    assert [frame["payload"]["table"] for frame in frames] == ["users"]
    connection.execute("DROP PUBLICATION only_users")


def test_g60_a_transaction_comes_whole_and_in_order(
    server: RealtimeServer, connection: Connection, marker: Marker
) -> None:
    with listening(server.ws_url, marker, USERS) as ear:
        with connection.transaction():
            connection.execute("INSERT INTO users VALUES (1, 'a')")
            connection.execute("SELECT pg_sleep(1.1)")  # commit times have whole seconds
            connection.execute("UPDATE users SET name = 'b'")
            connection.execute("DELETE FROM users")
        frames = [ear.next() for _ in range(3)]
        assert ear.heard() == []
    assert [frame["event"] for frame in frames] == ["INSERT", "UPDATE", "DELETE"]
    assert len({frame["payload"]["commit_timestamp"] for frame in frames}) == 1


def test_g61_what_is_rolled_back_never_happened(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    with listening(server.ws_url, marker, USERS) as ear:
        frames = ear.after(
            connection,
            "BEGIN; INSERT INTO users VALUES (1, 'rolled back'); ROLLBACK",
            "BEGIN; INSERT INTO users VALUES (2, 'kept'); SAVEPOINT s; INSERT INTO users VALUES (3, 'rolled back'); "
            "ROLLBACK TO s; COMMIT",
        )
    assert rows_of(frames) == [("INSERT", {"id": "2", "name": "kept"}, None)]


@pytest.mark.parametrize(
    ("name", "has_topic"),
    [
        pytest.param("W" * 99, True, id="G62-99 letters"),
        pytest.param("W" * 100, False, id="G62-100 letters"),
        pytest.param("é" * 99, True, id="G62-99 accents"),
        pytest.param("👨‍👩‍👧" * 99, True, id="G62-99 families"),
    ],
)
def test_long_values(
    name: str, has_topic: bool, server: RealtimeServer, connection: Connection, marker: Marker
) -> None:
    with listening(server.ws_url, marker, USERS, f"{USERS}:name=eq.{name}") as ear:
        frames = ear.after(connection, f"INSERT INTO users VALUES (1, '{name}')")
    told = ["public:users", f"public:users:name=eq.{name}"] if has_topic else ["public:users"]
    assert [topic for topic, _ in topics_of(frames)] == told


def test_g63_values_stand_in_topics_as_they_are(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    name = "a:b=eq.c d%&?#\"\\'é"
    with listening(server.ws_url, marker, f"{USERS}:name=eq.{name}") as ear:
        frames = ear.after(connection, f"INSERT INTO users VALUES (1, $${name}$$)")
    assert topics_of(frames) == [(f"public:users:name=eq.{name}", "INSERT")]
    assert rows_of(frames)[0][1]["name"] == name


def test_g64_names_stand_in_topics_as_they_are(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute('CREATE TABLE "Weird Tbl" ("Col:One" text, "camelCase" text)')
    joined = topics(
        *("public:Weird Tbl:camelCase=eq.w", "public:Weird Tbl:Col:One=eq.v"), *("public:Weird Tbl", "public:weird tbl")
    )
    with listening(server.ws_url, marker, *joined) as ear:
        frames = ear.after(connection, """INSERT INTO "Weird Tbl" VALUES ('v', 'w')""")
    told = ["public:Weird Tbl", "public:Weird Tbl:Col:One=eq.v", "public:Weird Tbl:camelCase=eq.w"]
    assert [topic for topic, _ in topics_of(frames)] == told


def test_g65_a_schema_with_a_colon(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute('CREATE SCHEMA "odd:schema"')
    connection.execute('CREATE TABLE "odd:schema".t (id int)')
    with listening(server.ws_url, marker, *topics("odd:schema:t:id=eq.1", "odd:schema:t", "odd:schema", "odd")) as ear:
        frames = ear.after(connection, 'INSERT INTO "odd:schema".t VALUES (1)')
    assert [topic for topic, _ in topics_of(frames)] == ["odd:schema", "odd:schema:t", "odd:schema:t:id=eq.1"]


def test_g66_a_large_value_that_did_not_change(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("INSERT INTO toast_t VALUES (1, repeat('x', 9000), 1)")
    joined = topics("public:toast_t", "public:toast_t:big=eq.unchanged_toast", "public:toast_t:n=eq.2")
    with listening(server.ws_url, marker, *joined) as ear:
        frames = ear.after(connection, "UPDATE toast_t SET n = 2")
    assert [topic for topic, _ in topics_of(frames)] == ["public:toast_t", "public:toast_t:n=eq.2"]
    assert rows_of(frames)[0] == ("UPDATE", {"id": "1", "big": "unchanged_toast", "n": "2"}, {})


def test_g67_a_generated_column(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("CREATE TABLE gen (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id + 1) STORED)")
    with listening(server.ws_url, marker, *topics("public:gen", "public:gen:g=eq.2")) as ear:
        (frame,) = ear.after(connection, "INSERT INTO gen VALUES (1)")
    assert [name for name, *_ in columns_of(frame)] == ["id"]
    assert frame["payload"]["record"] == {"id": "1"}


# Types: SQL type, SQL value, name, modifier, text

Row = tuple[str, str, str, int, str]

COMMON: list[Row] = [
    ("bool", "true", "bool", NO_MODIFIER, "t"),
    ("int2", "-1", "int2", NO_MODIFIER, "-1"),
    ("int4", "1", "int4", NO_MODIFIER, "1"),
    ("int8", "9223372036854775807", "int8", NO_MODIFIER, "9223372036854775807"),
    ("oid", "26", "oid", NO_MODIFIER, "26"),
    ("numeric", "12345678901234567890.123", "numeric", NO_MODIFIER, "12345678901234567890.123"),
    ("numeric(10,2)", "1.5", "numeric", 655366, "1.50"),
    ("numeric", "'NaN'", "numeric", NO_MODIFIER, "NaN"),
    ("float4", "1.5", "float4", NO_MODIFIER, "1.5"),
    ("float8", "0.1", "float8", NO_MODIFIER, "0.1"),
    ("money", "1234.5", "money", NO_MODIFIER, "$1,234.50"),
    ("text", "'x'", "text", NO_MODIFIER, "x"),
    ("varchar(10)", "'x'", "varchar", 14, "x"),
    ("char(5)", "'bp'", "bpchar", 9, "bp   "),
    ('"char"', "'c'", "char", NO_MODIFIER, "c"),
    ("name", "'n'", "name", NO_MODIFIER, "n"),
    ("bytea", r"'\xdeadbeef'", "bytea", NO_MODIFIER, r"\xdeadbeef"),
    ("json", """'{"a":  1}'""", "json", NO_MODIFIER, '{"a":  1}'),
    ("jsonb", """'{"a":  1}'""", "jsonb", NO_MODIFIER, '{"a": 1}'),
    ("int4[]", "'{1,2,NULL}'", "_int4", NO_MODIFIER, "{1,2,NULL}"),
    ("text[]", """'{a,"b c"}'""", "_text", NO_MODIFIER, '{a,"b c"}'),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "uuid", NO_MODIFIER, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("inet", "'10.0.0.1/8'", "inet", NO_MODIFIER, "10.0.0.1/8"),
    ("point", "'(1,2)'", "point", NO_MODIFIER, "(1,2)"),
    ("bit(3)", "B'101'", "bit", 3, "101"),
    ("tsvector", "'a:1'", "tsvector", NO_MODIFIER, "'a':1"),
    ("interval", "'1 day 2 hours'", "interval", NO_MODIFIER, "1 day 02:00:00"),
    ("date", "'2021-02-16'", "date", NO_MODIFIER, "2021-02-16"),
    ("time", "'23:47:47'", "time", NO_MODIFIER, "23:47:47"),
    ("timetz", "'23:47:47+02'", "timetz", NO_MODIFIER, "23:47:47+02"),
    ("timestamp(3)", "'2021-02-16 23:47:47.516'", "timestamp", 3, "2021-02-16T23:47:47.516Z"),
    ("timestamptz", "'2021-02-16 23:47:47+00'", "timestamptz", NO_MODIFIER, "2021-02-16T23:47:47Z"),
    ("timestamp[]", "'{2021-02-16 23:47:47}'", "_timestamp", NO_MODIFIER, '{"2021-02-16 23:47:47"}'),
]
# Ours: these have their names and their values; in the original they had a number, and no value.
ONCE_MISSING: list[Row] = [
    ("int4range", "'[1,5)'", "int4range", NO_MODIFIER, "[1,5)"),
    (
        "tstzrange",
        "'[2021-02-16 00:00:00+00,)'",
        "tstzrange",
        NO_MODIFIER,
        '["2021-02-16 00:00:00+00",)',
    ),
    ("int4multirange", "'{[1,2),[5,9)}'", "int4multirange", NO_MODIFIER, "{[1,2),[5,9)}"),
    ("jsonpath", "'$.a'", "jsonpath", NO_MODIFIER, '$."a"'),
    ("xid8", "'7'", "xid8", NO_MODIFIER, "7"),
    ("pg_snapshot", "'10:20:10,14,15'", "pg_snapshot", NO_MODIFIER, "10:20:10,14,15"),
]
OWN: list[Row] = [
    ("user_status", "'ACTIVE'", "user_status", NO_MODIFIER, "ACTIVE"),
    ("user_status[]", "'{ACTIVE}'", "_user_status", NO_MODIFIER, "{ACTIVE}"),
    ("moment", "'2021-02-16 23:47:47+00'", "timestamptz", NO_MODIFIER, "2021-02-16T23:47:47Z"),
    ("posint", "7", "int4", NO_MODIFIER, "7"),
    ("comp", "(1, 'x')", "comp", NO_MODIFIER, "(1,x)"),
]
TIMES: list[Row] = [
    ("timestamp", "'2021-02-16 23:47:47.51613'", "timestamp", NO_MODIFIER, "2021-02-16T23:47:47.51613Z"),
    ("timestamp", "'2021-02-16 23:47:47.100000'", "timestamp", NO_MODIFIER, "2021-02-16T23:47:47.1Z"),
    ("timestamp", "'2021-02-16 23:47:47'", "timestamp", NO_MODIFIER, "2021-02-16T23:47:47Z"),
]
FAR_TIMES: list[Row] = [
    *(
        (name, f"'{value}'", name, NO_MODIFIER, value)
        for name in ("timestamp", "timestamptz")
        for value in ("infinity", "-infinity")
    ),
    ("timestamp", "'12021-01-01'", "timestamp", NO_MODIFIER, "12021-01-01 00:00:00"),
    ("timestamp", "'0044-03-15 BC'", "timestamp", NO_MODIFIER, "0044-03-15 00:00:00 BC"),
    # Ours: the original took it for a day after Christ.
    ("timestamptz", "'0044-03-15 12:00+00 BC'", "timestamptz", NO_MODIFIER, "0044-03-15 12:00:00+00 BC"),
    ("timestamp", "'0099-01-01'", "timestamp", NO_MODIFIER, "0099-01-01T00:00:00Z"),
]


@pytest.mark.parametrize(
    ("number", "rows"),
    [
        pytest.param(number, rows, id=number)
        for number, rows in (
            *(("G68", COMMON), ("G69", ONCE_MISSING), ("G70", OWN), ("G71", TIMES), ("G73", FAR_TIMES)),
        )
    ],
)
def test_types_and_their_values(
    number: str, rows: list[Row], server: RealtimeServer, connection: Connection, marker: Marker
) -> None:
    table = f"types_{number.lower()}"
    if rows is OWN:
        connection.execute("CREATE TYPE user_status AS ENUM ('ACTIVE', 'INACTIVE')")
        connection.execute("CREATE DOMAIN moment AS timestamptz")
        connection.execute("CREATE DOMAIN posint AS int CHECK (value > 0)")
        connection.execute("CREATE TYPE comp AS (a int, b text)")
    columns = ", ".join(f"c{at} {row[0]}" for at, row in enumerate(rows))
    connection.execute(f"CREATE TABLE {table} ({columns})".encode())
    by_value = [f"realtime:public:{table}:c{at}=eq.{row[4]}" for at, row in enumerate(rows)]
    with listening(server.ws_url, marker, f"realtime:public:{table}", *by_value) as ear:
        frames = ear.after(connection, f"INSERT INTO {table} VALUES ({', '.join(row[1] for row in rows)})")
        (nulls,) = ear.after(connection, f"INSERT INTO {table} VALUES ({', '.join(['NULL'] * len(rows))})")
    first = frames[0]
    assert [(name, kind, modifier) for name, kind, _, modifier in columns_of(first)] == [
        (f"c{at}", row[2], row[3]) for at, row in enumerate(rows)
    ]
    assert first["payload"]["record"] == {f"c{at}": row[4] for at, row in enumerate(rows)}
    assert nulls["payload"]["record"] == {f"c{at}": None for at in range(len(rows))}
    # Each value stands in its topic as it stands in the record.
    assert {frame["topic"] for frame in frames[1:]} == set(by_value)


def test_g72_another_time_zone(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("CREATE TABLE zoned (t timestamptz)")
    value = "2021-02-17T05:17:47.51613+05:30"
    with (
        beside(server, SESSION_TIMEZONE="Asia/Kolkata") as other,
        listening(other.ws_url, marker, f"realtime:public:zoned:t=eq.{value}") as ear,
    ):
        frames = ear.after(connection, "INSERT INTO zoned VALUES ('2021-02-16 23:47:47.51613+00')")
    assert rows_of(frames) == [("INSERT", {"t": value}, None)]


def test_g74_a_table_that_is_altered(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    connection.execute("CREATE TABLE altered (a int, b int)")
    records = []
    with listening(server.ws_url, marker, "realtime:public:altered") as ear:
        for change in ("ADD c int", "RENAME b TO z", "DROP a"):
            (frame,) = ear.after(
                connection, f"ALTER TABLE altered {change}", "INSERT INTO altered SELECT FROM generate_series(1, 1)"
            )
            assert {name for name, *_ in columns_of(frame)} == frame["payload"]["record"].keys()
            records.append(sorted(frame["payload"]["record"]))
    assert records == [["a", "b", "c"], ["a", "c", "z"], ["c", "z"]]


def test_g75_each_socket_hears_it_once(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    with listening(server.ws_url, marker, USERS) as one, listening(server.ws_url, marker, USERS) as two:
        assert topics_of(one.after(connection, "INSERT INTO users VALUES (1, 'a')")) == [("public:users", "INSERT")]
        assert topics_of(two.heard()) == [("public:users", "INSERT")]


# The configuration file

HEARS_THE_MARKER = {"relation": "golden:marker", "events": ["INSERT"]}


def configuration(folder: Path, **items: Json) -> str:
    """The path of a file with this in it."""
    path = folder / "configuration.json"
    path.write_text(json.dumps(items))
    return str(path)


def test_g76_each_level_is_configured_by_itself(
    server: RealtimeServer, connection: Connection, marker: Marker, tmp_path: Path
) -> None:
    file = configuration(
        tmp_path,
        realtime=[
            {"relation": "public", "events": ["INSERT", "UPDATE"]},
            {"relation": "public:users", "events": ["DELETE"]},
            {"relation": "*:*:name", "events": ["INSERT"]},
            HEARS_THE_MARKER,
        ],
    )
    joined = topics(*("*", "public", "public:users", "public:users:id=eq.1"), *("public:users:name=eq.n1", "public:*"))
    with beside(server, CONFIGURATION_FILE=file) as other, listening(other.ws_url, marker, *joined) as ear:
        inserted = ear.after(connection, "INSERT INTO users VALUES (1, 'n1')")
        updated = ear.after(connection, "UPDATE users SET name = 'n2'")
        deleted = ear.after(connection, "DELETE FROM users")
    assert topics_of(inserted) == [("public", "INSERT"), ("public:users:name=eq.n1", "INSERT")]
    assert topics_of(updated) == [("public", "UPDATE")]
    assert topics_of(deleted) == [("public:users", "DELETE")]


def test_g77_an_empty_configuration_is_silent_and_acknowledges(
    server: RealtimeServer, connection: Connection, tmp_path: Path
) -> None:
    env = {"SLOT_NAME": "g77", "RING_MAX_AGE_S": "0", "CONFIGURATION_FILE": configuration(tmp_path)}
    with beside(server, **env) as other, open_socket(other.ws_url) as socket:
        join(socket, topics("*", "public", "public:users", "public:users:id=eq.1"))
        connection.execute("INSERT INTO users VALUES (1, 'Bob')")
        end_lsn = connection.execute("SELECT pg_current_wal_lsn()").fetchone()

        def acknowledged() -> bool:
            query = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = 'g77'"
            return connection.execute(query, end_lsn).fetchone() == (True,)

        wait_until(acknowledged, "the acknowledgement")
        socket.send(heartbeat_frame("end"))
        assert list(until_reply(socket, "end")) == []
    connection.execute("SELECT pg_drop_replication_slot('g77')")


def test_g78_webhooks_are_told_what_they_ask_for(
    server: RealtimeServer, connection: Connection, tmp_path: Path
) -> None:
    with Receiver() as receiver:

        def webhook(path: str, **more: Json) -> Json:
            return {"config": {"endpoint": receiver.url(path)}} | more

        file = configuration(
            tmp_path,
            webhooks=[
                webhook("/all", event="*"),
                webhook("/users", event="INSERT", relation="public:users"),
                webhook("/star", event="INSERT", relation="public:*"),
                webhook("/malformed", event="INSERT", relation="public:users:x"),
            ],
        )
        with beside(server, CONFIGURATION_FILE=file):
            connection.execute("INSERT INTO users VALUES (1, 'Bob')")
            connection.execute("INSERT INTO users VALUES (2, 'Bobby')")  # what is not there by then never comes
            for path in ("/all", "/users"):
                first = receiver.wait_for(2, path)[0]
                assert first.headers["content-type"] == "application/json"
                assert first.json.keys() == {"changes", "commit_timestamp"}
                assert COMMIT_TIMESTAMP.fullmatch(first.json["commit_timestamp"])
                (change,) = first.json["changes"]
                assert (change["type"], change["table"], change["record"]) == ("INSERT", "users", ROW)
        assert {request.path for request in receiver.received} == {"/all", "/users"}


def test_g79_the_star_event_of_older_servers(server: RealtimeServer, connection: Connection, marker: Marker) -> None:
    joined = topics("public", "*", "public:users", "public:users:id=eq.1")
    with beside(server, BROADCAST_STAR_EVENT="true") as other, listening(other.ws_url, marker, *joined) as ear:
        inserted = ear.after(connection, "INSERT INTO users VALUES (1, 'a')")
        truncated = ear.after(connection, "TRUNCATE users")
    names = [topic.removeprefix("realtime:") for topic in joined]
    assert topics_of(inserted) == [(name, event) for name in names for event in ("*", "INSERT")]
    assert topics_of(truncated) == [(name, event) for name in names[:3] for event in ("*", "TRUNCATE")]
    assert all(star["payload"] == typed["payload"] for star, typed in zip(inserted[::2], inserted[1::2], strict=True))
