"""Filters against PostgreSQL as the oracle: for every type and operator, ours and a WHERE clause pick the same rows."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql

from replication.changes import Relation
from replication.pgoutput import Row
from streaming.binding_index import BindingIndex
from streaming.bindings import Binding
from streaming.catalogue import Catalogue
from streaming.current_payloads import Images
from streaming.filter_language import Condition
from streaming.knowledge import Knowledge
from tests.servers import PostgresCluster, postgres_versions

_letters = st.text(st.sampled_from("aAbBzZäÄßİ_% .\\-0é"), max_size=5)
_ints = st.one_of(st.integers(-3, 3), st.sampled_from([-(2**15), 2**15 - 1])).map(str)
_numbers = st.one_of(
    st.decimals(-3, 3, places=2).map(str),
    st.sampled_from(["1.50", "1.5", "-0", "0.00", "NaN", "Infinity", "-Infinity", "1e3", "123456789012345678901234.5"]),
)
_floats = st.one_of(
    st.floats(width=32).map(repr).map(lambda text: text.replace("inf", "Infinity").replace("nan", "NaN")),
    st.sampled_from(["0", "-0", "1.1", "1e-30"]),
)
_moments = st.one_of(
    st.datetimes().map(lambda at: at.isoformat(" ")),
    st.sampled_from(
        ["infinity", "-infinity", "0044-03-15 12:00:00 BC", "0001-01-01 00:00:00 BC", "12345-01-01 00:00:00.5"]
    ),
)
_zones = st.sampled_from(["", "+00", "+05:30", "-11"])
_hex = st.text("0123456789abcdefABCDEF", min_size=32, max_size=32)

ENUM = ["sad", "ok", "Happy"]

# The type of a column, texts that it takes, and whether LIKE and regular expressions are for it.
TYPES: dict[str, tuple[str, st.SearchStrategy[str], bool]] = {
    "int2": ("int2", _ints, False),
    "int4": ("int4", _ints, False),
    "int8": ("int8", st.one_of(_ints, st.sampled_from(["9223372036854775807", "007", " 5 "])), False),
    "oid": ("oid", st.integers(0, 2**32 - 1).map(str), False),
    "numeric": ("numeric", _numbers, False),
    "float4": ("float4", _floats, False),
    "float8": ("float8", _floats, False),
    "bool": ("bool", st.sampled_from(["t", "f", "true", "no", "1"]), False),
    "uuid": ("uuid", st.one_of(st.uuids().map(str), _hex), False),
    "bytea": ("bytea", st.binary(max_size=3).map(lambda data: f"\\x{data.hex()}"), False),
    "date": ("date", _moments.map(lambda text: text.split(" ")[0] + (" BC" if "BC" in text else "")), False),
    "timestamp": ("timestamp", _moments, False),
    "timestamptz": (
        "timestamptz",
        st.tuples(st.datetimes(datetime(2, 1, 1)), _zones).map(lambda pair: pair[0].isoformat(" ") + pair[1]),
        False,
    ),
    "time": ("time", st.one_of(st.times().map(str), st.just("24:00:00")), False),
    "text": ("text", _letters, True),
    "varchar": ("varchar(5)", _letters, True),
    "char": ("char(5)", _letters.filter(lambda text: len(text) < 6), True),
    "name": ("name", _letters, True),
    "text C": ('text COLLATE "C"', _letters, True),
    "text en": ('text COLLATE "en-x-icu"', _letters, True),
    "text nobody's": ("text COLLATE loose", _letters, False),
    "enum": ("mood", st.sampled_from(ENUM), False),
    "domain": ("positive", st.integers(1, 5).map(str), False),
    "interval": ("interval", st.sampled_from(["1 month", "30 days", "24:00:00", "1 day", "-1 s"]), False),
    "inet": ("inet", st.sampled_from(["10.0.0.1", "10.0.0.1/32", "10.0.0.0/8", "::1"]), False),
    "jsonb": ("jsonb", st.sampled_from(['{"a":1}', '{"a": 1.0}', "null", "[]", '"x"']), False),
    "array": ("int4[]", st.sampled_from(["{}", "{1,2}", "{1,NULL}", "{2}"]), False),
    "range": ("int4range", st.sampled_from(["[1,3)", "[1,2]", "empty"]), False),
    "composite": ("pair", st.sampled_from(["(1,a)", "(1,)", "(2,b)"]), False),
}

NEEDS_ICU = ("text en", "text nobody's")

_OPERATORS = {
    "eq": "v = {x}",
    "neq": "v <> {x}",
    "lt": "v < {x}",
    "lte": "v <= {x}",
    "gt": "v > {x}",
    "gte": "v >= {x}",
    "isdistinct": "v IS DISTINCT FROM {x}",
}
_PATTERNS = {"like": "v LIKE {x}", "ilike": "v ILIKE {x}", "match": "v ~ {x}", "imatch": "v ~* {x}"}


def cast_of(name: str) -> str:
    """The type without a modifier, which would cut values."""
    return "bpchar" if name == "char" else TYPES[name][0].split(" COLLATE ")[0].split("(")[0]


class Oracle:
    """A table with a column ``v`` of each type, and everything that judges its rows; all on one event loop."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute("SET TimeZone = 'UTC'")
        self.connection.execute(
            """
            CREATE TYPE mood AS ENUM ('sad', 'ok', 'Happy');
            CREATE DOMAIN positive AS int CHECK (value > 0);
            CREATE TYPE pair AS (x int, y text);
            CREATE PUBLICATION oracle FOR ALL TABLES;
            """
        )
        try:
            self.connection.execute(
                "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
            self.has_icu = True
        except psycopg.Error:
            self.has_icu = False
        self.loop = asyncio.new_event_loop()
        self.knowledge = Knowledge()
        self.catalogue = Catalogue(dsn, self.knowledge, publications=["oracle"])
        self.relations: dict[str, Relation] = {}

    def relation(self, name: str) -> Relation:
        """The table of a type, as the stream would announce it."""
        if name in NEEDS_ICU and not self.has_icu:
            pytest.skip("this PostgreSQL was built without ICU")
        if name not in self.relations:
            table = sql.Identifier(name)
            self.connection.execute(sql.SQL("CREATE TABLE {} (v {})").format(table, sql.SQL(TYPES[name][0])))
            wanted = Binding("*", "public", name, (Condition("v", "is", "null"),))
            [self.relations[name]] = self.loop.run_until_complete(self.catalogue._relations(wanted, fresh=True))
        return self.relations[name]

    def ours(self, name: str, condition: Condition, texts: list[str | None]) -> list[bool] | str:
        """Which rows we pick, or why the database objects to the filter."""
        relation = self.relation(name)
        binding = Binding("*", "public", name, (condition,))
        verdict = self.loop.run_until_complete(self.catalogue.check((binding,)))
        if verdict.problem is not None:
            return verdict.problem
        index = BindingIndex()
        index.add(binding, self.knowledge.operands)
        plan = index.plans_of(relation)[ord("I")]
        picked = []
        for text in texts:
            wanted, asked = plan.match(Images(relation, Row(ord("I"), [text], None, None)))
            holds: Any = bool(wanted)
            for _, alternatives in asked:
                questions = [item.question for alternative in alternatives for item in alternative]
                self.knowledge.remember(self.loop.run_until_complete(self.catalogue.ask(questions)))
                holds = self.knowledge.judge(alternatives)
            picked.append(holds)
        return picked

    def theirs(self, name: str, clause: str, operand: str, values: list[str | None]) -> list[tuple[str | None, bool]]:
        """The rows as PostgreSQL prints them, and which of them the clause picks. Raises what PostgreSQL raises."""
        table = sql.Identifier(name)
        kind = cast_of(name)
        with self.connection.transaction(force_rollback=True):
            for value in values:
                self.connection.execute(sql.SQL("INSERT INTO {} VALUES (%s)").format(table), [value])
            picks = sql.SQL(
                "SELECT CASE WHEN v IS DISTINCT FROM NULL THEN format('%%s', v) END, coalesce(({}), false) FROM {}"
            ).format(
                sql.SQL(clause.format(x=f"(%s::text)::{kind}")),
                table,
            )
            return self.connection.execute(picks, [operand]).fetchall()

    def close(self) -> None:
        """End it."""
        self.loop.run_until_complete(self.catalogue.close())
        self.loop.close()
        self.connection.close()


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    versions = postgres_versions()
    # Debian's has ICU, whose collations are the ones that Python cannot judge.
    with PostgresCluster(versions.get(15) or versions[18]) as cluster:
        oracle = Oracle(cluster.create_database())
        yield oracle
        oracle.close()


_bounded = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.generate, Phase.target),
)


@pytest.mark.parametrize("name", TYPES)
@_bounded
@given(data=st.data())
def test_python_and_postgres_pick_the_same_rows(name: str, data: st.DataObject, oracle: Oracle) -> None:
    texts, has_patterns = TYPES[name][1:]
    operators = _OPERATORS | (_PATTERNS if has_patterns else {})
    operator = data.draw(st.sampled_from(sorted(operators)), label="operator")
    operand = data.draw(texts, label="operand")
    values = data.draw(st.lists(st.one_of(st.none(), texts), max_size=6), label="values")
    values.append("x" if operator in _PATTERNS else operand if len(operand) < 6 else None)
    negated = data.draw(st.booleans(), label="negated")
    condition = Condition("v", operator, operand, negated)
    clause = f"NOT ({operators[operator]})" if negated else operators[operator]
    oracle.relation(name)
    try:
        theirs = oracle.theirs(name, clause, operand, values)
    except psycopg.DataError:
        return  # a value that the column does not take, or a pattern that is none
    ours = oracle.ours(name, condition, [text for text, _ in theirs])
    if isinstance(ours, str):
        # PostgreSQL finds a pattern that ends with its escape character only when it gets there; we do at once.
        assert "must not end with escape character" in ours
    else:
        assert ours == [picked for _, picked in theirs]


@pytest.mark.parametrize("name", TYPES)
@_bounded
@given(data=st.data())
def test_they_do_so_for_lists(name: str, data: st.DataObject, oracle: Oracle) -> None:
    texts = TYPES[name][1]
    items = data.draw(st.lists(texts, max_size=4), label="items")
    values = data.draw(st.lists(texts, max_size=4), label="values") + items
    negated = data.draw(st.booleans(), label="negated")
    has_null = data.draw(st.booleans(), label="has_null")
    quoted = ['"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items]
    operand = "{" + ",".join(quoted + ["null"] * has_null) + "}"
    oracle.relation(name)
    clause = f"v = ANY((%s::text)::{cast_of(name)}[])"
    if name == "array":
        return  # an array of arrays has another shape
    with oracle.connection.transaction(force_rollback=True):
        table = sql.Identifier(name)
        try:
            for value in values:
                oracle.connection.execute(sql.SQL("INSERT INTO {} VALUES (%s)").format(table), [value])
        except psycopg.DataError:
            return
        picks = f"coalesce({'NOT ' if negated else ''}({clause}), false)"
        query = f"SELECT CASE WHEN v IS DISTINCT FROM NULL THEN format('%%s', v) END, {picks} FROM {{}}"
        theirs = oracle.connection.execute(sql.SQL(query).format(table), [operand]).fetchall()
    ours = oracle.ours(name, Condition("v", "in", operand, negated), [text for text, _ in theirs])
    assert ours == [picked for _, picked in theirs]


@_bounded
@given(
    pattern=st.text(st.sampled_from("ab%_\\" + string.ascii_uppercase[:2]), max_size=8),
    values=st.lists(st.text(st.sampled_from("abAB%_\\\n"), max_size=8), min_size=1, max_size=8),
    operator=st.sampled_from(["like", "ilike"]),
)
def test_patterns_with_many_wildcards(pattern: str, values: list[str], operator: str, oracle: Oracle) -> None:
    oracle.relation("text C")
    try:
        theirs = oracle.theirs("text C", _PATTERNS[operator], pattern, list(values))
    except psycopg.DataError:
        return
    ours = oracle.ours("text C", Condition("v", operator, pattern), [text for text, _ in theirs])
    if isinstance(ours, str):
        # PostgreSQL finds a pattern that ends with its escape character only when it gets there; we do at once.
        assert "must not end with escape character" in ours
    else:
        assert ours == [picked for _, picked in theirs]


def test_a_row_without_the_value_meets_no_condition(oracle: Oracle) -> None:
    assert oracle.ours("text", Condition("v", "is", "null"), [None, "a"]) == [True, False]


def test_what_is_asked_is_remembered(oracle: Oracle) -> None:
    condition = Condition("v", "eq", "30 days")
    assert oracle.ours("interval", condition, ["1 mon"]) == [True]
    index = BindingIndex()
    binding = Binding("*", "public", "interval", (condition,))
    index.add(binding, oracle.knowledge.operands)
    plan = index.plans_of(oracle.relation("interval"))[ord("I")]
    images = Images(oracle.relation("interval"), Row(ord("I"), ["1 mon"], None, None))
    [(_, alternatives)] = plan.match(images)[1]
    assert oracle.knowledge.judge(alternatives) is True
