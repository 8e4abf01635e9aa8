"""Publications: which are there, what is in them, and how they are made.

Everything here runs on an ordinary connection in autocommit mode, on PostgreSQL 10 to 18.

Source: https://www.postgresql.org/docs/current/view-pg-publication-tables.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, errors, sql
from psycopg.rows import tuple_row

from replication.errors import PublicationMissing

_TABLES = """
    SELECT DISTINCT published.schemaname::text, published.tablename::text, relation.relreplident::text,
           EXISTS (SELECT FROM pg_index WHERE indrelid = relation.oid AND indisprimary), relation.relrowsecurity
    FROM pg_publication_tables AS published
    JOIN pg_namespace AS namespace ON namespace.nspname = published.schemaname
    JOIN pg_class AS relation ON relation.relnamespace = namespace.oid AND relation.relname = published.tablename
    WHERE published.pubname = ANY (%s::text[])
    ORDER BY 1, 2
"""

_REPLICA_IDENTITIES = {"d": "default", "n": "nothing", "f": "full", "i": "index"}


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of a publication; ``replica_identity`` is default, nothing, full or index."""

    schema: str
    name: str
    replica_identity: str
    has_primary_key: bool
    row_security: bool


async def missing_publications(conn: AsyncConnection[Any], publications: Sequence[str]) -> list[str]:
    """Those of these names, each once, that no publication of the database has."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(
            "SELECT pubname::text FROM pg_publication WHERE pubname = ANY (%s::text[])", [list(publications)]
        )
        existing = {name for (name,) in await cursor.fetchall()}
    return [name for name in dict.fromkeys(publications) if name not in existing]


async def create_publications(conn: AsyncConnection[Any], names: Sequence[str]) -> None:
    """Publish all tables under each of these names; what exists already stays as it is.

    Raises `PublicationMissing` if our role may not: FOR ALL TABLES takes a superuser.
    """
    for name in names:
        try:
            await conn.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(sql.Identifier(name)))
        except errors.InsufficientPrivilege as error:
            raise PublicationMissing([name], conn.info.dbname, sqlstate=error.sqlstate) from error
        except (errors.DuplicateObject, errors.UniqueViolation):
            pass  # another process came first; in a dead heat, its row in the catalogue is the first to say so


async def publication_tables(conn: AsyncConnection[Any], publications: Sequence[str]) -> list[PublishedTable]:
    """The tables of these publications, each once, by schema and name."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_TABLES, [list(publications)])
        return [
            PublishedTable(schema, name, _REPLICA_IDENTITIES[identity], has_primary_key, row_security)
            for schema, name, identity, has_primary_key, row_security in await cursor.fetchall()
        ]
