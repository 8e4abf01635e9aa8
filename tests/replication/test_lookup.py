"""What the catalogue says of relations: types taken apart, collations, keys, row security."""

from __future__ import annotations

from typing import Any

import msgpack
import psycopg
import pytest

from replication.assembler import Assembler
from replication.changes import Column, Relation
from replication.facts import Collation, TableFacts, guessed_facts
from replication.lookup import table_facts, type_names

TABLES = """
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    ALTER TYPE mood ADD VALUE 'fine' BEFORE 'ok';
    CREATE TYPE pair AS (x int, "the y" numeric(5, 2));
    CREATE DOMAIN email AS text CHECK (value LIKE '%@%');
    CREATE DOMAIN mails AS email[];
    CREATE TABLE typed (
        id int, mood mood, pair pair, mail email, mails mails, boxes box[], matrix int[], c text COLLATE "C",
        n int NOT NULL, PRIMARY KEY (n, id)
    );
    CREATE TABLE bare (a int);
    CREATE TABLE secured (a int PRIMARY KEY) PARTITION BY LIST (a);
    CREATE TABLE leaf PARTITION OF secured DEFAULT;
    ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
"""


@pytest.fixture
async def connection(database: str) -> Any:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(TABLES)
        yield connection


async def relation(connection: psycopg.AsyncConnection[Any], table: str) -> Relation:
    """The table as the stream would announce it."""
    cursor = await connection.execute(
        """
        SELECT attrelid::int8, attname::text, typname::text, atttypid::int8 FROM pg_attribute
        JOIN pg_type ON pg_type.oid = atttypid WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum
        """,
        [table],
    )
    rows = await cursor.fetchall()
    columns = tuple(Column(name, kind, oid, -1, False) for _, name, kind, oid in rows)
    return Relation(rows[0][0], "public", table, "d", columns)


async def facts_of(connection: psycopg.AsyncConnection[Any], table: str) -> TableFacts:
    [facts] = await table_facts(connection, [await relation(connection, table)])
    return facts


async def test_type_names_are_those_that_clients_know(connection: psycopg.AsyncConnection[Any]) -> None:
    names = await type_names(connection)
    assert {names[oid] for oid in (20, 25, 1007, 1043, 1184, 3904, 4451)} == {
        "int8",
        "text",
        "_int4",
        "varchar",
        "timestamptz",
        "int4range",
        "int4multirange",
    }
    assert "mood" not in names.values()


async def test_types_are_taken_apart_and_domains_resolved(connection: psycopg.AsyncConnection[Any]) -> None:
    names = ("id", "mood", "pair", "mail", "mails", "boxes", "matrix", "c", "n")
    columns = dict(zip(names, (await facts_of(connection, "typed")).columns, strict=True))
    assert columns["mood"].type.labels == ("sad", "fine", "ok")
    assert columns["mood"].type.sql == "public.mood"
    assert [(name, kind.name) for name, kind in columns["pair"].type.attributes] == [
        ("x", "int4"),
        ("the y", "numeric"),
    ]
    assert (columns["mail"].declared, columns["mail"].type.sql) == ("email", "pg_catalog.text")
    assert columns["mails"].declared == "mails"
    assert columns["mails"].type.element is not None
    assert columns["mails"].type.element.name == "text"
    assert (columns["boxes"].type.delimiter, columns["matrix"].type.delimiter) == (";", ",")


async def test_collations_say_what_can_be_decided_without_the_database(
    connection: psycopg.AsyncConnection[Any],
) -> None:
    columns = (await facts_of(connection, "typed")).columns
    known = {"orders_bytes": True, "lowers_ascii": True, "is_deterministic": True, "is_utf8": True}
    assert columns[7].collation == Collation('pg_catalog."C"', **known)
    assert columns[3].collation == Collation("", **known)  # the cluster's own locale is C
    assert columns[0].collation is None


async def test_collations_of_icu_order_by_rules_of_their_own(connection: psycopg.AsyncConnection[Any]) -> None:
    try:
        await connection.execute('CREATE TABLE words (a text COLLATE "en-x-icu")')
    except psycopg.errors.UndefinedObject:
        pytest.skip("this PostgreSQL was built without ICU")
    [column] = (await facts_of(connection, "words")).columns
    assert column.collation == Collation('pg_catalog."en-x-icu"', is_deterministic=True, is_utf8=True)


async def test_primary_keys_and_row_security(connection: psycopg.AsyncConnection[Any]) -> None:
    typed, bare = await facts_of(connection, "typed"), await facts_of(connection, "bare")
    assert (typed.primary_key, typed.row_security) == (("id", "n"), False)
    assert (bare.primary_key, bare.row_security) == ((), False)


async def test_a_partition_is_secured_with_its_parent(connection: psycopg.AsyncConnection[Any]) -> None:
    assert (await facts_of(connection, "secured")).row_security is True
    assert (await facts_of(connection, "leaf")).row_security is True


async def test_of_a_table_that_is_gone_nothing_is_taken_for_granted(connection: psycopg.AsyncConnection[Any]) -> None:
    gone = await relation(connection, "typed")
    await connection.execute("DROP TABLE typed")
    [facts] = await table_facts(connection, [gone])
    gone.learn(facts)
    assert facts.row_security is None
    assert gone.is_secured
    assert facts.columns[1].type.labels  # its types are still there
    assert facts.columns[7].collation == Collation()


async def test_facts_travel_in_an_envelope(connection: psycopg.AsyncConnection[Any]) -> None:
    sent = await relation(connection, "typed")
    [facts] = await table_facts(connection, [sent])
    sent.learn(facts)
    received = Relation.unpack(msgpack.unpackb(msgpack.packb(sent.packed), use_list=False))
    assert received.facts == facts
    assert received.columns == sent.columns
    assert not received.is_secured


def test_a_name_alone_tells_of_arrays() -> None:
    element = guessed_facts("_int4").element
    assert element is not None
    assert element.name == "int4"
    assert guessed_facts("_box").delimiter == ";"


def test_what_comes_after_new_facts_belongs_to_a_relation_that_has_them() -> None:
    assembler = Assembler({23: "int4"})
    announcement = (
        b"R" + (7).to_bytes(4) + b"public\0t\0d" + (1).to_bytes(2) + b"\1id\0" + (23).to_bytes(4) + b"\xff" * 4
    )
    row = b"I" + (7).to_bytes(4) + b"N" + (1).to_bytes(2) + b"t" + (1).to_bytes(4) + b"1"
    assembler.feed(1, b"B" + bytes(16) + (1).to_bytes(4))
    assembler.feed(1, announcement)
    [relation] = assembler.new_relations
    relation.learn(TableFacts((), (), False))
    assembler.feed(2, row)
    assembler.renew(relation, TableFacts((), (), True))
    assembler.renew(relation, TableFacts((), (), False))  # it does not stand any more
    assembler.feed(3, row)
    chunk = assembler.take()
    assert chunk is not None
    assert [change.relation.is_secured for change in chunk.changes] == [False, True]
