"""What real servers send: records pgoutput messages, once for each version of PostgreSQL that is installed.

    python -m tests.golden.record [NAME ...]

makes ``tests/golden/pgoutput/pg18/update_with_unchanged_toast.hex`` and its like anew. A line of the ``.hex`` file is
the LSN of one message and its bytes; the ``.json`` file beside it has the same messages decoded, to be read and
reviewed: it is what the decoder made of them when they were recorded. OIDs, LSNs, xids and times differ with every
recording, so look at a diff before you keep it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from replication import pgoutput
from replication.lsn import LSN
from tests.servers import PostgresCluster, postgres_versions

FOLDER = Path(__file__).parent / "pgoutput"

_SLOT = "golden"
_PEEK = "SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, VARIADIC %s::text[])"


@dataclass(frozen=True, slots=True)
class Case:
    """A story that a server tells: ``setup`` before the slot exists, ``story`` while it does.

    Every string of the story is one transaction.
    ``publication`` goes behind the publication's name. ``options`` are those of pgoutput, on top of the usual.
    """

    name: str
    setup: str
    story: tuple[str, ...]
    publication: str = "FOR ALL TABLES"
    options: tuple[str, ...] = ()
    since: int = 10
    """The first major version that can tell it."""


_USERS = "CREATE TABLE users (id bigint PRIMARY KEY, name text)"
_FULL = "CREATE TABLE full_t (id int PRIMARY KEY, name text, n int); ALTER TABLE full_t REPLICA IDENTITY FULL"
_INDEXED = (
    "CREATE TABLE idx_t (id int PRIMARY KEY, code text NOT NULL UNIQUE, n int);"
    "ALTER TABLE idx_t REPLICA IDENTITY USING INDEX idx_t_code_key"
)
_TOAST = (
    "CREATE TABLE toast_t (id int PRIMARY KEY, big text, n int);"
    "ALTER TABLE toast_t ALTER big SET STORAGE EXTERNAL;"
    "INSERT INTO toast_t VALUES (1, repeat('toast', 500), 0)"
)
_PARTITIONED = (
    "CREATE TABLE parted (id int PRIMARY KEY, name text) PARTITION BY RANGE (id);"
    "CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (100);"
    "CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (100) TO (200)"
)
_PARTITIONED_STORY = (
    "INSERT INTO parted VALUES (1, 'low'), (101, 'high')",
    "UPDATE parted SET id = 102 WHERE id = 1",
    "DELETE FROM parted WHERE id = 101",
    "TRUNCATE parted",
)
_USER_TYPES = """
    CREATE TYPE user_status AS ENUM ('ACTIVE', 'AWAY');
    CREATE DOMAIN small AS int CHECK (VALUE < 100);
    CREATE DOMAIN moment AS timestamptz(3);
    CREATE TYPE comp AS (a int, b text);
    CREATE SCHEMA "other schema";
    CREATE TYPE "other schema"."Mood!" AS ENUM ('so so');
    CREATE TABLE user_types (
        id int PRIMARY KEY, status user_status, statuses user_status[], domain_int small, domain_ts moment,
        composite comp, composites comp[], mood "other schema"."Mood!"
    )
"""
_BUILT_IN_TYPES = """
    CREATE TABLE built_in_types (
        id bigint PRIMARY KEY,
        b bool, i2 int2, i4 int4, o oid, num numeric(10, 2), nan numeric, f4 float4, f8 float8, cash money,
        txt text, vc varchar(10), ch char(5), "char" "char", nam name,
        bin bytea, j json, jb jsonb, u uuid,
        d date, t time, ttz timetz, ts timestamp, ts3 timestamp(3), tstz timestamptz, span interval,
        ip inet, net cidr, mac macaddr, bits bit(3), vbits varbit(5),
        pt point, bx box, ts_vector tsvector, ts_query tsquery,
        ints int4[], texts text[], days date[], int_range int4range, time_range tstzrange, path jsonpath
    )
"""
_BUILT_IN_VALUES = """
    INSERT INTO built_in_types VALUES (
        9223372036854775807,
        true, -32768, 2147483647, 4294967295, 1.5, 'NaN', 1.25, 1e300, 1234.5,
        E'quote " back \\\\ tab \\t new\\nline é 🐘', 'ten', 'bp', 'c', 'a name',
        '\\xdeadbeef', '{"a":  1}', '{"b": 2, "a": 1}', '00000000-0000-0000-0000-00000000002a',
        '2021-02-16', '23:47:47.5', '23:47:47+02', '2021-02-16 23:47:47.51613', '2021-02-16 23:47:47.1004',
        '2021-02-16 23:47:47.51613+02', '1 year 2 mons 3 days 04:05:06.7',
        '10.1.2.3/8', '10.0.0.0/8', '08:00:2b:01:02:03', '101', '10',
        '(1,2)', '((0,0),(1,1))', 'a cat sat', 'cat & sat',
        '{1,2,NULL}', '{"a b",c}', '{2021-02-16}', '[1,5)', '[2021-02-16 00:00:00+00,)', '$.a[*]'
    )
"""

CASES = (
    Case("insert", _USERS, ("INSERT INTO users VALUES (1, 'Bob')",)),
    Case("insert_null_and_empty", _USERS, ("INSERT INTO users VALUES (1, NULL), (2, '')",)),
    Case(
        "several_changes_in_a_transaction",
        _USERS,
        ("INSERT INTO users VALUES (1, 'a'); UPDATE users SET name = 'b'; DELETE FROM users",),
    ),
    Case(
        "two_transactions", _USERS, ("INSERT INTO users VALUES (1, 'first')", "INSERT INTO users VALUES (2, 'second')")
    ),
    Case(
        "rolled_back_savepoint",
        _USERS,
        (
            "INSERT INTO users VALUES (1, 'kept'); SAVEPOINT s; INSERT INTO users VALUES (2, 'undone');"
            "ROLLBACK TO s; INSERT INTO users VALUES (3, 'kept too')",
            "INSERT INTO users VALUES (4, 'undone'); ROLLBACK",
        ),
    ),
    Case(
        "many_rows_in_a_record",
        "CREATE TABLE copied (id int, name text)",
        ("COPY copied FROM PROGRAM 'printf \"1\\ta\\n2\\tb\\n3\\tc\\n4\\td\\n\"'",),
    ),
    Case(
        "update",
        _USERS + "; INSERT INTO users VALUES (1, 'Bob')",
        ("UPDATE users SET name = 'Bobby' WHERE id = 1",),
    ),
    Case(
        "update_of_the_key",
        _USERS + "; INSERT INTO users VALUES (1, 'Bob')",
        ("UPDATE users SET id = 2 WHERE id = 1",),
    ),
    Case("delete", _USERS + "; INSERT INTO users VALUES (1, 'Bob')", ("DELETE FROM users WHERE id = 1",)),
    Case(
        "identity_full",
        _FULL + "; INSERT INTO full_t VALUES (1, 'a', NULL)",
        ("UPDATE full_t SET name = 'b'", "DELETE FROM full_t"),
    ),
    Case(
        "identity_index",
        _INDEXED + "; INSERT INTO idx_t VALUES (1, 'x', 5)",
        ("UPDATE idx_t SET n = 6", "UPDATE idx_t SET code = 'y'", "DELETE FROM idx_t"),
    ),
    Case(
        "identity_nothing",
        "CREATE TABLE nothing_t (id int PRIMARY KEY); ALTER TABLE nothing_t REPLICA IDENTITY NOTHING",
        ("INSERT INTO nothing_t VALUES (1)",),
    ),
    Case("no_primary_key", "CREATE TABLE nopk (a int, b text)", ("INSERT INTO nopk VALUES (1, 'b')",)),
    Case("update_with_unchanged_toast", _TOAST, ("UPDATE toast_t SET n = 1",)),
    Case(
        "update_with_unchanged_toast_and_full_identity",
        _TOAST + "; ALTER TABLE toast_t REPLICA IDENTITY FULL",
        ("UPDATE toast_t SET n = 1",),
    ),
    Case(
        "truncate_many",
        "CREATE TABLE parent (id serial PRIMARY KEY); CREATE TABLE child (id int REFERENCES parent);"
        "CREATE TABLE other (id int)",
        ("TRUNCATE parent, other RESTART IDENTITY CASCADE", "TRUNCATE other"),
        since=11,
    ),
    Case("built_in_types", _BUILT_IN_TYPES, (_BUILT_IN_VALUES,), since=12),
    Case(
        "user_types",
        _USER_TYPES,
        (
            "INSERT INTO user_types VALUES (1, 'ACTIVE', '{ACTIVE,AWAY}', 42, '2021-02-16 23:47:47.5+02',"
            " '(1,\"x y\")', '{\"(1,a)\",\"(2,)\"}', 'so so')",
        ),
    ),
    Case(
        "generated_column_left_out",
        "CREATE TABLE generated_t (id int PRIMARY KEY, double int GENERATED ALWAYS AS (id * 2) STORED, z text)",
        ("INSERT INTO generated_t (id, z) VALUES (21, 'z')",),
        since=12,
    ),
    Case(
        "generated_column_published",
        "CREATE TABLE generated_t (id int PRIMARY KEY, double int GENERATED ALWAYS AS (id * 2) STORED, z text)",
        ("INSERT INTO generated_t (id, z) VALUES (21, 'z')",),
        publication="FOR ALL TABLES WITH (publish_generated_columns = stored)",
        since=18,
    ),
    Case("partitions", _PARTITIONED, _PARTITIONED_STORY, since=11),
    Case(
        "partitions_via_root",
        _PARTITIONED,
        _PARTITIONED_STORY,
        publication="FOR ALL TABLES WITH (publish_via_partition_root)",
        since=13,
    ),
    Case(
        "row_filter",
        _FULL + "; INSERT INTO full_t VALUES (1, 'in', 5), (2, 'out', 0)",
        ("UPDATE full_t SET n = 0 WHERE id = 1", "UPDATE full_t SET n = 7 WHERE id = 2"),
        publication="FOR TABLE full_t WHERE (n > 3)",
        since=15,
    ),
    Case(
        "column_list",
        _USERS + "; ALTER TABLE users ADD secret text",
        ("INSERT INTO users VALUES (1, 'Bob', 'not told')",),
        publication="FOR TABLE users (id, name)",
        since=15,
    ),
    Case(
        "altered_table",
        _USERS,
        (
            "INSERT INTO users VALUES (1, 'before')",
            "ALTER TABLE users ADD age int; INSERT INTO users VALUES (2, 'added', 30)",
            "ALTER TABLE users RENAME name TO full_name; ALTER TABLE users DROP age",
            "INSERT INTO users VALUES (3, 'renamed')",
        ),
    ),
    Case(
        "names_to_be_quoted",
        'CREATE SCHEMA "odd:schema"; CREATE TABLE "odd:schema"."Weird Tbl é" ("Col:One" text PRIMARY KEY, "a""b" int)',
        ('INSERT INTO "odd:schema"."Weird Tbl é" VALUES (\'v\', 1)',),
    ),
    Case(
        "origin",
        _USERS + "; SELECT pg_replication_origin_create('elsewhere')",
        (
            "SELECT pg_replication_origin_session_setup('elsewhere')",
            "SELECT pg_replication_origin_xact_setup('16/B374D848', '2021-06-22 21:48:20+00');"
            "INSERT INTO users VALUES (1, 'from afar')",
            "SELECT pg_replication_origin_session_reset()",
            "SELECT pg_replication_origin_drop('elsewhere')",
        ),
    ),
    Case(
        "logical_messages",
        _USERS,
        (
            # First: outside a transaction, nothing flushes it, and what is not flushed is not decoded.
            "SELECT pg_logical_emit_message(false, '', '\\x00ff'::bytea)",
            "SELECT pg_logical_emit_message(true, 'walcast', 'in order: é'); INSERT INTO users VALUES (1, 'Bob')",
        ),
        options=("messages", "true"),
        since=14,
    ),
)


def record(dsn: str, case: Case) -> list[tuple[LSN, bytes]]:
    """Let the server tell a story in an empty database: its messages, each with its LSN."""
    options = ["proto_version", "1", "publication_names", "pub", *case.options]
    with psycopg.connect(dsn, autocommit=True) as connection:
        version = connection.info.server_version // 10000
        assert version >= case.since
        connection.execute(case.setup.encode())
        connection.execute(f"CREATE PUBLICATION pub {case.publication}".encode())
        # A name for the database at hand: slots are one name space for the whole server.
        slot = f"{_SLOT}_{connection.info.dbname}"
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        for transaction in case.story:
            connection.execute(f"BEGIN; {transaction}; COMMIT".encode())
        rows = connection.execute(_PEEK, [slot, options]).fetchall()
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    return [(LSN.parse(lsn), bytes(data)) for lsn, data in rows]


def described(message: Any) -> Any:
    """A message, or a part of one, as JSON can hold it: its fields by name, values as text."""
    match message:
        case bytes():
            return message.decode(errors="backslashreplace")
        case datetime():
            return message.isoformat()
        case pgoutput.UNCHANGED_TOAST:
            return {"unchanged": "toast"}
        case pgoutput.RelationColumn():
            return {name: described(value) for name, value in message._asdict().items()}
        case tuple() if hasattr(message, "_asdict"):
            return {"message": type(message).__name__} | {
                name: described(value) for name, value in message._asdict().items()
            }
        case list():
            return [described(part) for part in message]
    return message


def to_lines(messages: list[tuple[LSN, bytes]]) -> str:
    """The text of a ``.hex`` file."""
    return "".join(f"{lsn} {data.hex()}\n" for lsn, data in messages)


def from_lines(text: str) -> list[tuple[LSN, bytes]]:
    """What `to_lines` wrote."""
    return [(LSN.parse(lsn), bytes.fromhex(data)) for lsn, data in map(str.split, text.splitlines())]


def load(version: int, name: str) -> list[tuple[LSN, bytes]]:
    """The recorded messages of one case."""
    return from_lines((FOLDER / f"pg{version}" / f"{name}.hex").read_text())


def recordings() -> Iterator[tuple[str, list[tuple[LSN, bytes]], list[Any]]]:
    """Every recorded case: ``pg18/insert``, its messages, and what they say."""
    for path in sorted(FOLDER.glob("pg*/*.hex")):
        said = json.loads(path.with_suffix(".json").read_text())
        yield f"{path.parent.name}/{path.stem}", from_lines(path.read_text()), said


def main(names: list[str]) -> None:
    """Record the named cases, or every case, on every version that is installed."""
    for version, bin_dir in postgres_versions().items():
        folder = FOLDER / f"pg{version}"
        folder.mkdir(parents=True, exist_ok=True)
        with PostgresCluster(bin_dir) as cluster:
            for case in CASES:
                if version < case.since or (names and case.name not in names):
                    continue
                dsn = cluster.create_database()
                messages = record(dsn, case)
                cluster.drop_database(dsn)
                (folder / f"{case.name}.hex").write_text(to_lines(messages))
                said = [described(pgoutput.decode(data)) for _, data in messages]
                text = json.dumps(said, indent=1, ensure_ascii=False)
                (folder / f"{case.name}.json").write_text(text + "\n")
                print(f"pg{version}/{case.name}: {len(messages)} messages")


if __name__ == "__main__":
    main(sys.argv[1:])
