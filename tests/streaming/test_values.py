"""Values as JSON: as PostgreSQL's own to_jsonb has them, but for what the protocol has otherwise (G2, G53 to G55)."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.changes import Column, Relation
from replication.facts import TypeFacts, guessed_facts
from replication.lookup import table_facts
from streaming.values import converter, parse_array, parse_composite

# The type, a value, and what a client reads where that is not what to_jsonb says.
VALUES: list[tuple[str, str, Any]] = [
    ("int2", "-5", ...),
    ("int4", "0", ...),
    ("int8", "9223372036854775807", ...),
    ("numeric", "1.50", ...),
    ("numeric", "123456789012345678901234567890.123456789", ...),
    ("float4", "1.1", ...),
    ("float8", "1e+20", ...),
    ("float8", "-1.5e-07", ...),
    ("float8", "Infinity", None),
    ("float4", "NaN", None),
    ("numeric", "NaN", None),
    ("bool", "t", ...),
    ("bool", "f", ...),
    ("text", 'a "quoted" \\ text\n', ...),
    ("varchar", "ä", ...),
    ("bpchar", "ab ", ...),
    ("char(5)", "ab", "ab   "),
    ("name", "n", ...),
    ("bit(3)", "101", ...),
    ("varbit", "1", ...),
    ("uuid", "6f1ed002-ab5c-4f9e-8d0b-1d3a3f5f2c11", ...),
    ("bytea", "\\x0102ff", "0102ff"),
    ("date", "2024-01-02", ...),
    ("date", "infinity", ...),
    ("date", "0044-03-15 BC", ...),
    ("timestamp", "2024-01-02 03:04:05.678", ...),
    ("timestamp", "-infinity", ...),
    ("timestamp", "0044-03-15 12:00:00 BC", ...),
    ("timestamptz", "2024-01-02 01:04:05.678+00", ...),
    ("timestamptz", "0044-03-15 12:00:00+00 BC", ...),
    ("timestamptz", "infinity", ...),
    ("time", "03:04:05", ...),
    ("timetz", "03:04:05+02", ...),
    ("interval", "1 day 02:00:00", ...),
    ("json", '{"b": 1, "a": [1.0, null]}', ...),
    ("jsonb", '{"a": {"b": [true, "x"]}}', ...),
    ("jsonb", "null", ...),
    ("money", "$12.34", ...),
    ("oid", "42", ...),
    ("regclass", "pg_class", ...),
    ("pg_lsn", "16/B374D848", ...),
    ("int4range", "[1,5)", ...),
    ("tsrange", '["2024-01-01 00:00:00","2024-01-02 00:00:00")', ...),
    ("point", "(1,2)", ...),
    ("box", "(1,1),(0,0)", ...),
    ("inet", "10.0.0.1", ...),
    ("cidr", "10.0.0.0/8", ...),
    ("macaddr", "08:00:2b:01:02:03", ...),
    ("tsvector", "'a':1 'b'", ...),
    ("xml", "<a/>", ...),
    ("int2vector", "1 2", ...),
    ("oidvector", "1 2", ...),
    ("int4[]", "{1,NULL,3}", ...),
    ("int4[]", "{}", ...),
    ("int4[]", "{{1,2},{3,4}}", ...),
    ("int4[]", "[0:1]={1,2}", ...),
    ("text[]", '{"a b","c,d","NULL",NULL,"","\\"\\\\"}', ...),
    ("box[]", "{(1,1),(0,0);(2,2),(1,1)}", ...),
    ("bool[]", "{t,f}", ...),
    ("numeric[]", "{1.50}", ...),
    ("jsonb[]", '{"{\\"a\\": 1}"}', ...),
    ("timestamptz[]", '{"2024-01-02 01:04:05+00"}', ...),
    ("mood", "so so", ...),
    ("mood[]", '{"so so",ok}', ...),
    ("email", "a@b", ...),
    ("counts", "{1,2}", ...),
    ("place", '(1,"a ""b"" \\\\ (c)",)', ...),
    ("place", "(,,)", ...),
    ("place", '(1,x,"{t,f}")', ...),
    ("place[]", '{"(1,\\"a,b\\",)"}', ...),
    ("nested", '("(1,x,)",2024-01-02)', ...),
]

_TYPES = """
    CREATE TYPE mood AS ENUM ('so so', 'ok');
    CREATE DOMAIN email AS text CHECK (value LIKE '%@%');
    CREATE DOMAIN counts AS int[];
    CREATE TYPE place AS (x int, "the name" text, flags bool[]);
    CREATE TYPE nested AS (place place, day date);
"""


async def test_every_type_is_told_as_to_jsonb_tells_it(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(
        database, autocommit=True, options="-c TimeZone=UTC -c lc_monetary=C"
    ) as connection:
        await connection.execute(_TYPES)
        columns = ", ".join(f"c{number} {kind}" for number, (kind, _, _) in enumerate(VALUES))
        await connection.execute(f"CREATE TABLE everything ({columns})".encode())
        relation = await _relation(connection, "everything")
        [facts] = await table_facts(connection, [relation])
        for number, (kind, value, expected) in enumerate(VALUES):
            query = (
                f"INSERT INTO everything (c{number}) VALUES (%s) "
                f"RETURNING format('%%s', c{number}), to_jsonb(c{number})::text"
            )
            try:
                cursor = await connection.execute(query.encode(), [value])
            except psycopg.errors.FeatureNotSupported:
                assert kind == "xml"  # this PostgreSQL was built without
                continue
            row = await cursor.fetchone()
            assert row is not None
            text, theirs = row
            convert = converter(facts.columns[number].type)
            ours = orjson.dumps(text if convert is None else convert(text))
            wanted = json.loads(theirs, parse_float=Decimal) if expected is ... else expected
            assert json.loads(ours, parse_float=Decimal) == wanted, (kind, value)


async def _relation(connection: psycopg.AsyncConnection[Any], table: str) -> Relation:
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


def test_large_numbers_can_be_told_as_text() -> None:
    eight, pair = guessed_facts("int8"), TypeFacts("pair", "", "C", attributes=(("n", guessed_facts("numeric")),))
    assert converter(eight, numbers_as_text=True) is None
    convert = converter(guessed_facts("_int8"), numbers_as_text=True)
    assert convert is not None
    assert convert("{1,NULL}") == ["1", None]
    convert = converter(pair, numbers_as_text=True)
    assert convert is not None
    assert convert("(1.50)") == {"n": "1.50"}


def test_a_type_of_an_extension_is_not_taken_for_the_built_in_one_of_that_name() -> None:
    assert converter(TypeFacts("bool", "ours.bool", "U", is_built_in=False)) is None


@pytest.mark.parametrize("text", ["", "1", "{", "{1", "{1}x", "{{1}", '{"a}', "{1}}", "[1:2]=", "{a\\}"])
def test_what_is_no_array_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_array(text)


@pytest.mark.parametrize("text", ["", "1", "(", "(1", "(1)x", '("a)', "(1)2)"])
def test_what_is_no_composite_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_composite(text)


@given(st.text(st.sampled_from('{}(),"\\ aN1=[]:')))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_array, parse_composite):
        with suppress(ValueError):
            parse(text)
