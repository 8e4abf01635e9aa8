"""Asks the catalogue for what the stream does not say about its relations.

Runs on an ordinary connection, on PostgreSQL 10 to 18; columns that came later are read through ``to_jsonb``. What is
asked is today's catalogue: types keep their meaning as long as they exist, and whether a table is under row security is
asked again whenever the stream announces it, which PostgreSQL does after every ALTER TABLE.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from replication.changes import Relation
from replication.facts import UNKNOWN_COLLATION, Collation, ColumnFacts, TableFacts, TypeFacts, guessed_facts

# A partition is read through its parents as well, and then their row security holds: so theirs counts for it.
_TABLES = """
    SELECT relation.oid::int8,
           EXISTS (
               WITH RECURSIVE above(oid) AS (
                   SELECT relation.oid
                   UNION SELECT parent.inhparent FROM above JOIN pg_inherits AS parent ON parent.inhrelid = above.oid
               )
               SELECT FROM above JOIN pg_class USING (oid) WHERE relrowsecurity
           ),
           coalesce((
               SELECT array_agg(attribute.attname::text ORDER BY attribute.attnum)
               FROM pg_index AS key
               JOIN pg_attribute AS attribute ON attribute.attrelid = key.indrelid
                    AND attribute.attnum = ANY ((key.indkey::int2[])
                        [0 : coalesce((to_jsonb(key) ->> 'indnkeyatts')::int, key.indnatts) - 1])
               WHERE key.indrelid = relation.oid AND key.indisprimary
           ), '{}')
    FROM pg_class AS relation
    WHERE relation.oid = ANY (%s::oid[])
"""

_COLLATIONS = """
    SELECT attribute.attrelid::int8, attribute.attname::text,
           quote_ident(namespace.nspname) || '.' || quote_ident(it.collname), to_jsonb(it),
           (SELECT to_jsonb(database) - 'datacl' FROM pg_database AS database WHERE datname = current_database()),
           current_setting('server_encoding')
    FROM pg_attribute AS attribute
    JOIN pg_collation AS it ON it.oid = attribute.attcollation
    JOIN pg_namespace AS namespace ON namespace.oid = it.collnamespace
    WHERE attribute.attrelid = ANY (%s::oid[]) AND attribute.attnum > 0 AND NOT attribute.attisdropped
"""

# Arrays are told as PostgreSQL's own to_jsonb tells them: of varying length, with elements (int2vector is none).
_TYPES = """
    WITH RECURSIVE reached(oid) AS (
        SELECT unnest(%s::oid[])
        UNION
        SELECT inside.oid
        FROM reached
        JOIN pg_type AS outer_type ON outer_type.oid = reached.oid
        CROSS JOIN LATERAL (
            SELECT outer_type.typbasetype WHERE outer_type.typtype = 'd'
            UNION ALL
            SELECT outer_type.typelem
            WHERE outer_type.typtype <> 'd' AND outer_type.typcategory = 'A' AND outer_type.typlen = -1
            UNION ALL
            SELECT attribute.atttypid FROM pg_attribute AS attribute
            WHERE outer_type.typtype = 'c' AND attribute.attrelid = outer_type.typrelid
                  AND attribute.attnum > 0 AND NOT attribute.attisdropped
        ) AS inside(oid)
        WHERE inside.oid <> 0
    )
    SELECT it.oid::int8, it.typname::text, quote_ident(namespace.nspname) || '.' || quote_ident(it.typname),
           it.typtype::text, it.typcategory::text, it.typdelim::text, it.typbasetype::int8,
           CASE WHEN it.typtype <> 'd' AND it.typcategory = 'A' AND it.typlen = -1 THEN it.typelem::int8 ELSE 0 END,
           coalesce((
               SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = it.oid
           ), '{}'),
           coalesce((
               SELECT jsonb_agg(jsonb_build_array(attname, atttypid::int8) ORDER BY attnum) FROM pg_attribute
               WHERE it.typtype = 'c' AND attrelid = it.typrelid AND attnum > 0 AND NOT attisdropped
           ), '[]'),
           it.oid < 16384
    FROM reached
    JOIN pg_type AS it USING (oid)
    JOIN pg_namespace AS namespace ON namespace.oid = it.typnamespace
"""

_BYTE_ORDERED = frozenset({"C", "POSIX", "C.UTF-8", "C.UTF8", "PG_UNICODE_FAST"})
"""Locales of PostgreSQL's builtin provider: they differ in their letters, not in their order."""

_FIRST_USER_OID = 16384  # FirstNormalObjectId: what lies below is the same in every database of this version

_Rows = list[tuple[Any, ...]]


async def table_facts(conn: AsyncConnection[Any], relations: Collection[Relation]) -> list[TableFacts]:
    """The facts of each relation, in the given order; what is no longer there is left open."""
    oids = [relation.oid for relation in relations]
    tables = {oid: (row_security, key) for oid, row_security, key in await _rows(conn, _TABLES, oids)}
    collations = {
        (oid, column): _collation(sql, collation, database, encoding)
        for oid, column, sql, collation, database, encoding in await _rows(conn, _COLLATIONS, oids)
    }
    types = await type_facts(conn, {column.type_oid for relation in relations for column in relation.columns})
    return [_assembled(relation, tables.get(relation.oid), collations, types) for relation in relations]


async def type_names(conn: AsyncConnection[Any]) -> dict[int, str]:
    """``pg_type.typname`` by OID for the built-in types, which pgoutput does not announce (``_int4``: int4[])."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute("SELECT oid::int, typname::text FROM pg_type WHERE oid < %s", [_FIRST_USER_OID])
        return dict(await cursor.fetchall())


async def type_facts(conn: AsyncConnection[Any], oids: Collection[int]) -> dict[int, tuple[str, TypeFacts]]:
    """Of each type that exists: its own name, and what it is."""
    rows = {row[0]: row for row in await _rows(conn, _TYPES, list(oids))}
    known: dict[int, TypeFacts] = {}

    def facts(oid: int) -> TypeFacts:
        if oid not in known:
            if (row := rows.get(oid)) is None:
                return guessed_facts(str(oid))  # dropped while we were asking
            _, name, sql, kind, category, delimiter, base, element, labels, attributes, is_built_in = row
            if kind == "d":
                known[oid] = facts(base)
            else:
                known[oid] = TypeFacts(
                    name,
                    sql,
                    category,
                    # An array's values are separated as its element's type says.
                    rows[element][5] if element in rows else delimiter,
                    facts(element) if element else None,
                    tuple((attribute, facts(inner)) for attribute, inner in attributes),
                    tuple(labels),
                    is_built_in,
                )
        return known[oid]

    return {oid: (rows[oid][1], facts(oid)) for oid in oids if oid in rows}


def _assembled(
    relation: Relation,
    table: tuple[bool, Sequence[str]] | None,
    collations: Mapping[tuple[int, str], Collation],
    types: Mapping[int, tuple[str, TypeFacts]],
) -> TableFacts:
    columns = []
    for column in relation.columns:
        declared, kind = types.get(column.type_oid) or (column.type_name, guessed_facts(column.type_name))
        collation = collations.get((relation.oid, column.name), UNKNOWN_COLLATION if table is None else None)
        columns.append(ColumnFacts(declared, kind, collation))
    if table is None:
        key = [c.name for c in relation.columns if c.is_key and relation.replica_identity != "f"]
        return TableFacts(tuple(columns), tuple(key), None)
    row_security, primary_key = table
    return TableFacts(tuple(columns), tuple(primary_key), row_security)


def _collation(sql: str, collation: Mapping[str, Any], database: Mapping[str, Any], encoding: str) -> Collation:
    if collation["collprovider"] == "d":
        sql = ""
        provider = database.get("datlocprovider") or "c"
        order, letters = database["datcollate"], database["datctype"]
        locale = database.get("datlocale")
        is_deterministic = True  # PostgreSQL has no database whose own collation is not
    else:
        provider = collation["collprovider"]
        order, letters = collation.get("collcollate"), collation.get("collctype")
        locale = collation.get("colllocale")
        is_deterministic = bool(collation.get("collisdeterministic", True))
    if encoding != "UTF8":
        # Elsewhere the bytes that we see are not those that PostgreSQL compares.
        return Collation(sql, False, False, is_deterministic)
    if provider == "b":
        return Collation(sql, locale in _BYTE_ORDERED, locale in ("C", "POSIX"), is_deterministic, True)
    if provider == "c":
        return Collation(sql, order in ("C", "POSIX"), letters in ("C", "POSIX"), is_deterministic, True)
    return Collation(sql, False, False, is_deterministic, True)


async def _rows(conn: AsyncConnection[Any], query: str, oids: Sequence[int]) -> _Rows:
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(query.encode(), [list(oids)])
        return await cursor.fetchall()
