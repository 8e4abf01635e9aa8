"""Asks PostgreSQL what only it can say: which tables are published, how it reads a filter's value, whether a row fits.

One connection a process, opened when first needed. Its session prints values as the replication session does.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from replication.changes import Column, Relation, Table
from replication.connection import session_options, with_address
from replication.errors import ReplicationError
from replication.facts import ColumnFacts
from replication.lookup import table_facts
from replication.record import OWN_TABLES
from streaming.bindings import Binding, not_enabled, rejected
from streaming.errors import CatalogueAway
from streaming.filter_language import MOST_VALUES, Condition
from streaming.knowledge import Answer, Failed, Knowledge
from streaming.predicates import (
    PATTERN_OPERATORS,
    SQL_OPERATORS,
    Operand,
    Question,
    is_decided_here,
    local_operand,
)

logger = logging.getLogger(__name__)

REMEMBER_S = 10.0
"""So long a table that was found to be published counts as such. What was not found is asked again every time."""

CONNECT_S = 5
STATEMENT_MS = 2_000
"""A pattern that takes longer is given up: its subscription fails, and nobody else waits for it."""

MOST_TABLES = 10_000

_PUBLISHED = """
    SELECT relation.oid::int8, published.schemaname::text, published.tablename::text, relation.relreplident::text,
           array_agg(ARRAY[attribute.attname::text, type.typname::text, type.oid::text] ORDER BY attribute.attnum)
    FROM pg_publication_tables AS published
    JOIN pg_namespace AS namespace ON namespace.nspname = published.schemaname
    JOIN pg_class AS relation ON relation.relnamespace = namespace.oid AND relation.relname = published.tablename
    JOIN pg_attribute AS attribute ON attribute.attrelid = relation.oid AND attribute.attnum > 0
         AND NOT attribute.attisdropped
         AND coalesce(to_jsonb(published) -> 'attnames' ? attribute.attname::text,
                      to_jsonb(attribute) ->> 'attgenerated' = '', true)
    JOIN pg_type AS type ON type.oid = attribute.atttypid
    WHERE published.pubname = ANY (%(publications)s::text[])
          AND %(schema)s::text IN ('*', published.schemaname) AND %(table)s::text IN ('*', published.tablename)
    GROUP BY 1, 2, 3, 4
    ORDER BY 2, 3
    LIMIT %(limit)s
"""

_IS_OPERANDS = ("null", "true", "false", "unknown")


class Verdict(NamedTuple):
    """Whether a channel's bindings can be had: ``problem`` is what the client is told if not.

    ``asks``: some of their filters are for PostgreSQL to judge. It holds ``until`` then, by the steady clock.
    """

    problem: str | None
    asks: bool
    until: float


class _Rejected(Exception):
    """PostgreSQL, or we in its words, refuse a binding; ``reason`` begins with the SQLSTATE."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def _raised(message: str) -> _Rejected:
    return _Rejected(f"P0001 (raise_exception) {message}")


class Catalogue:
    """The process's questions to the database with the published tables.

    ``publications`` are those that are streamed, ``hidden`` tables that are left out of them. What is learned goes
    into ``knowledge``.
    """

    def __init__(
        self,
        dsn: str,
        knowledge: Knowledge,
        *,
        publications: Sequence[str],
        hidden: Collection[Table] = (),
        time_zone: str = "UTC",
        ip_version: str | None = None,
    ) -> None:
        self.knowledge = knowledge
        self._dsn, self._ip_version, self._time_zone = dsn, ip_version, time_zone
        self._publications, self._hidden = list(publications), frozenset(hidden)
        self._conn: AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self._verdicts: dict[tuple[Binding, ...], Verdict] = {}
        self._published: dict[tuple[str, str, int], tuple[float, list[Relation]]] = {}

    # Joins

    def verdict(self, bindings: tuple[Binding, ...]) -> Verdict | None:
        """What `check` has found out about these bindings a moment ago; `None` if it has to be asked."""
        verdict = self._verdicts.get(bindings)
        return verdict if verdict is not None and time.monotonic() < verdict.until else None

    async def check(self, bindings: tuple[Binding, ...]) -> Verdict:
        """Find out whether every binding can be had, and how PostgreSQL reads their values.

        One that cannot be had fails them all, as in the original. Raises `CatalogueAway`.
        """
        if (known := self.verdict(bindings)) is not None:
            return known
        problem, asks = None, False
        for binding in dict.fromkeys(bindings):
            problem, binding_asks = await self._problem(binding)
            asks = asks or binding_asks
            if problem is not None:
                break
        # A refusal holds for this join: who tries again is answered anew.
        verdict = Verdict(problem, asks, time.monotonic() + (REMEMBER_S if problem is None else 0.2))
        if len(self._verdicts) > MOST_TABLES:
            self._verdicts.clear()
        self._verdicts[bindings] = verdict
        return verdict

    async def _problem(self, binding: Binding) -> tuple[str | None, bool]:
        """What is wrong with a binding, if anything is; and whether PostgreSQL has to judge its filter."""
        problem: str | None = None
        for is_fresh in (False, True):
            relations = await self._relations(binding, fresh=is_fresh)
            if not relations:
                problem = not_enabled(binding)
            else:
                try:
                    asks = [await self._check(binding, relation) for relation in relations]
                except _Rejected as refusal:
                    problem = rejected(binding, refusal.reason)
                else:
                    return None, any(asks)
        return problem, False

    async def _relations(self, binding: Binding, *, fresh: bool) -> list[Relation]:
        """The published tables that a binding names; of one that asks for nothing in particular, one is enough."""
        limit = MOST_TABLES if binding.conditions or binding.shape.select is not None else 1
        key = binding.schema, binding.table, limit
        until, relations = self._published.get(key, (0.0, []))
        if not fresh and time.monotonic() < until:
            return relations
        relations = []
        async with self._lock:
            until, known = self._published.get(key, (0.0, []))
            if not fresh and time.monotonic() < until:
                return known  # somebody who was before us in the queue has asked
            try:
                conn = await self._connected()
                async with conn.cursor(row_factory=tuple_row) as cursor:
                    parameters = {
                        "publications": self._publications,
                        "schema": binding.schema,
                        "table": binding.table,
                        "limit": limit + len(self._hidden) + len(OWN_TABLES),
                    }
                    await cursor.execute(_PUBLISHED, parameters)
                    for oid, schema, name, identity, columns in await cursor.fetchall():
                        if name not in OWN_TABLES and (schema, name) not in self._hidden:
                            described = [Column(c, kind, int(type_oid), -1, False) for c, kind, type_oid in columns]
                            relations.append(Relation(oid, schema, name, identity, tuple(described)))
                if limit > 1:
                    for relation, facts in zip(relations, await table_facts(conn, relations), strict=True):
                        relation.learn(facts)
            except psycopg.DataError:
                relations = []  # a name that PostgreSQL cannot even be asked about (NUL)
            except psycopg.Error as error:
                raise await self._away(error) from error
        if len(self._published) > MOST_TABLES:
            self._published.clear()
        if relations:
            self._published[key] = time.monotonic() + REMEMBER_S, relations
        return relations

    async def _check(self, binding: Binding, relation: Relation) -> bool:
        """Whether PostgreSQL has to judge the binding's filter. Raises `_Rejected` if it cannot be had."""
        if relation.facts is None:
            return False
        asks = False
        columns = {column.name: facts for column, facts in zip(relation.columns, relation.facts.columns, strict=True)}
        for condition in binding.conditions:
            if (facts := columns.get(condition.column)) is None:
                raise _raised(f"invalid column for filter {condition.column}")
            asks = not await self._check_condition(condition, facts) or asks
        for name in sorted(binding.shape.select or ()):
            if name not in columns:
                raise _raised(f"invalid column for select {name}")
        return asks

    async def _check_condition(self, condition: Condition, column: ColumnFacts) -> bool:
        """Whether Python can judge it. Raises `_Rejected`."""
        kind = column.type
        operator, value = condition.operator, condition.value
        if operator == "is":
            if value not in _IS_OPERANDS:
                raise _raised("invalid value for is filter: must be null, true, false, or unknown")
            if value != "null" and kind.name != "bool":
                shown = await self._shown_type(kind.sql)
                raise _raised(f"is {value} filter requires a boolean column, got {shown}")
            return True
        if operator in PATTERN_OPERATORS and kind.category != "S":
            shown = await self._shown_type(kind.sql)
            raise _raised(f"operator {operator} requires a text-compatible column type, got {shown}")
        operand = self.knowledge.operands.get((condition, kind.sql)) or local_operand(condition, kind)
        if operand is None:
            operand = await self._read_operand(condition, kind.sql)
            self.knowledge.remember_operand(condition, kind.sql, operand)
        if operator == "in" and len(operand.texts) > MOST_VALUES:
            raise _raised(f"too many values for `in` filter. Maximum {MOST_VALUES}")
        return is_decided_here(condition, column, operand)

    async def _shown_type(self, type_sql: str) -> str:
        return str(await self._value("SELECT format_type(to_regtype(%s)::oid, NULL)", [type_sql]))

    async def _read_operand(self, condition: Condition, type_sql: str) -> Operand:
        """Let PostgreSQL read the value, and try the operator. Raises `_Rejected` with its words."""
        operator, value = condition.operator, condition.value
        sql = SQL_OPERATORS[operator]
        if operator == "in":
            # Types and operators are written by the catalogue and by us; what clients say goes as parameters.
            read = (
                "SELECT ARRAY(SELECT CASE WHEN item IS DISTINCT FROM NULL THEN format('%%s', item) END "  # noqa: S608
                f"FROM unnest((%s::text)::{type_sql}[]) AS item), "
                f"(SELECT bool_or(item = item) FROM unnest((%s::text)::{type_sql}[]) AS item)"
            )
            texts, _ = await self._row(read, [value, value], condition)
            return Operand(tuple(text for text in texts if text is not None), None in texts)
        if operator in PATTERN_OPERATORS:
            if operator in ("like", "ilike") and _ends_escaped(value):
                raise _Rejected("22025 (invalid_escape_sequence) LIKE pattern must not end with escape character")
            read = f"SELECT (%s::text)::{type_sql}, (''::text)::{type_sql} {sql} (%s::text)::{type_sql}"
            await self._row(read, [value, value], condition)
            return Operand((value,))
        # Not a cast to text: of some types it is another text than the one that PostgreSQL prints.
        read = f"SELECT format('%%s', (%s::text)::{type_sql}), (%s::text)::{type_sql} {sql} (%s::text)::{type_sql}"
        text, _ = await self._row(read, [value, value, value], condition)
        return Operand((text,))

    async def _row(self, query: str, parameters: Sequence[object], condition: Condition) -> tuple[Any, ...]:
        async with self._lock:
            try:
                conn = await self._connected()
                async with conn.cursor(row_factory=tuple_row) as cursor:
                    await cursor.execute(query.encode(), parameters)
                    row = await cursor.fetchone()
            except psycopg.Error as error:
                if _is_about_the_question(error):
                    raise _Rejected(_told(error, condition)) from error
                raise await self._away(error) from error
        assert row is not None
        return row

    async def _value(self, query: str, parameters: Sequence[object]) -> Any:
        async with self._lock:
            try:
                conn = await self._connected()
                async with conn.cursor(row_factory=tuple_row) as cursor:
                    await cursor.execute(query.encode(), parameters)
                    row = await cursor.fetchone()
            except psycopg.Error as error:
                raise await self._away(error) from error
        assert row is not None
        return row[0]

    # Changes

    async def ask(self, questions: Collection[Question]) -> dict[Question, Answer]:
        """Let PostgreSQL answer; a question that it refuses is `Failed`, the others are answered all the same.

        Raises `CatalogueAway`.
        """
        kinds: dict[tuple[str, ...], list[Question]] = {}
        for question in questions:
            # A regular expression can take for ever: each for itself, so that it is known which one did.
            pattern = (question.right,) if question.operator in ("~", "~*") else ()
            kinds.setdefault((*question[:3], *pattern), []).append(question)
        answers: dict[Question, Answer] = {}
        async with self._lock:
            for of_kind in kinds.values():
                await self._ask_alike(of_kind, answers)
        return answers

    async def _ask_alike(self, questions: Sequence[Question], answers: dict[Question, Answer]) -> None:
        operator, type_sql, collation = questions[0][:3]
        left = f"pair.l::{type_sql}" + (f" COLLATE {collation}" if collation else "")
        right = f"(pair.r::{type_sql}[])" if operator == "= ANY" else f"pair.r::{type_sql}"
        query = (
            f"SELECT {left} {operator} {right} "  # noqa: S608 - see `_read_operand`
            "FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS pair(l, r, n) ORDER BY n"
        )
        try:
            conn = await self._connected()
            async with conn.cursor(row_factory=tuple_row) as cursor:
                texts = [[question.left for question in questions], [question.right for question in questions]]
                await cursor.execute(query.encode(), texts)
                for question, (answer,) in zip(questions, await cursor.fetchall(), strict=True):
                    answers[question] = answer
        except psycopg.Error as error:
            if not _is_about_the_question(error):
                raise await self._away(error) from error
            if len(questions) == 1 or isinstance(error, psycopg.errors.QueryCanceled):
                answers |= dict.fromkeys(questions, Failed(_told(error)))
                return
            middle = len(questions) // 2
            await self._ask_alike(questions[:middle], answers)
            await self._ask_alike(questions[middle:], answers)

    # The connection

    async def _connected(self) -> AsyncConnection[Any]:
        if self._conn is None or self._conn.closed:
            self._conn = None
            try:
                dsn = await with_address(self._dsn, self._ip_version)
                options = session_options(self._dsn, time_zone=self._time_zone, statement_timeout_ms=STATEMENT_MS)
                self._conn = await AsyncConnection.connect(
                    dsn,
                    autocommit=True,
                    application_name="walcast catalogue",
                    connect_timeout=CONNECT_S,
                    options=options,
                    client_encoding="UTF8",
                )
            except (psycopg.Error, ReplicationError, OSError) as error:
                raise CatalogueAway(str(error).strip()) from error
        return self._conn

    async def _away(self, error: psycopg.Error) -> CatalogueAway:
        await self._disconnect()
        return CatalogueAway(str(error).strip())

    async def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()

    async def close(self) -> None:
        """End the connection; the next question opens another."""
        async with self._lock:
            await self._disconnect()


def _is_about_the_question(error: psycopg.Error) -> bool:
    """Whether the database is well, and it is the question that it objects to."""
    if isinstance(error, psycopg.errors.QueryCanceled):
        return True
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    return error.sqlstate is None or not error.sqlstate.startswith(("08", "53", "57", "58", "XX"))


def _told(error: psycopg.Error, condition: Condition | None = None) -> str:
    """PostgreSQL's objection as the protocol shows it: the code, its name and the message."""
    if error.sqlstate is None:
        # psycopg does not send what no text of PostgreSQL can hold.
        return f"22021 (character_not_in_repertoire) {str(error).strip()}"
    message = error.diag.message_primary or str(error).strip()
    if condition is not None and isinstance(error, psycopg.errors.InvalidRegularExpression):
        return (
            f"P0001 (raise_exception) invalid regular expression for {condition.operator} filter: "
            f"{message.removeprefix('invalid regular expression: ')}"
        )
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()
    return f"{error.sqlstate} ({name}) {message}"


def _ends_escaped(pattern: str) -> bool:
    """Whether a LIKE pattern ends with an escape character that escapes nothing."""
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1
