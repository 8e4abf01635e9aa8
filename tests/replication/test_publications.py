"""Publications: what is in them, and how they are made."""

from __future__ import annotations

import asyncio

from psycopg import AsyncConnection

from replication.publications import PublishedTable, create_publications, missing_publications, publication_tables
from tests.replication.connections import Connection


async def test_the_tables_of_publications_are_listed_once_each(conn: Connection) -> None:
    await conn.execute(b"""
        CREATE SCHEMA "Odd Schema";
        CREATE TABLE a_plain (id int PRIMARY KEY);
        CREATE TABLE b_full (id int); ALTER TABLE b_full REPLICA IDENTITY FULL;
        CREATE TABLE c_index (id int NOT NULL UNIQUE); ALTER TABLE c_index REPLICA IDENTITY USING INDEX c_index_id_key;
        CREATE TABLE "Odd Schema"."D:nothing" (id int PRIMARY KEY);
        ALTER TABLE "Odd Schema"."D:nothing" REPLICA IDENTITY NOTHING, ENABLE ROW LEVEL SECURITY;
        CREATE TABLE unpublished (id int);
        CREATE PUBLICATION "First One" FOR TABLE a_plain, b_full, "Odd Schema"."D:nothing";
        CREATE PUBLICATION second FOR TABLE a_plain, c_index;
    """)
    assert await publication_tables(conn, ["First One", "second"]) == [
        PublishedTable("Odd Schema", "D:nothing", "nothing", has_primary_key=True, row_security=True),
        PublishedTable("public", "a_plain", "default", has_primary_key=True, row_security=False),
        PublishedTable("public", "b_full", "full", has_primary_key=False, row_security=False),
        PublishedTable("public", "c_index", "index", has_primary_key=False, row_security=False),
    ]


async def test_a_publication_that_exists_is_left_as_it_is(conn: Connection) -> None:
    await conn.execute("CREATE TABLE t (id int)")
    await conn.execute("CREATE PUBLICATION pub")
    await create_publications(conn, ["pub"])
    assert await publication_tables(conn, ["pub"]) == []


async def test_two_processes_may_create_the_publication_at_once(conn: Connection, database: str) -> None:
    async with await AsyncConnection.connect(database, autocommit=True) as other:
        await asyncio.gather(*(create_publications(one, ["pub"]) for one in (conn, other)))
    assert await missing_publications(conn, ["gone", "pub", "gone"]) == ["gone"]
