"""What a subscriber of a table gets, and the SQL that cures what falls short."""

from __future__ import annotations

from typing import Any

import pytest

from streaming.advice import Advice, advise, quoted

TABLE: dict[str, Any] = {
    "schema": "public",
    "name": "todos",
    "kind": "table",
    "unlogged": False,
    "replica_identity": "full",
    "has_primary_key": True,
    "row_security": False,
    "published": ["supabase_realtime"],
    "events": ["insert", "update", "delete", "truncate"],
}


def of(withholds_secured: bool = True, **changes: Any) -> Advice:
    return advise(
        TABLE | changes,
        publications=["supabase_realtime"],
        hidden={("public", "auth_user")},
        withholds_secured=withholds_secured,
    )


def test_a_published_table_with_full_identity_lacks_nothing() -> None:
    assert of() == Advice("good", "INSERT, UPDATE and DELETE, with the whole row before and after.")


def test_by_default_the_old_row_is_its_key_and_more_can_be_had() -> None:
    advice = of(replica_identity="default")
    assert advice.level == "good"
    assert advice.receives == "INSERT, UPDATE and DELETE; of the row before, the key only."
    assert [sql for _, sql in advice.cures] == ["ALTER TABLE public.todos REPLICA IDENTITY FULL;"]


@pytest.mark.parametrize("identity", ["default", "nothing"])
def test_without_anything_that_identifies_a_row_writes_fail(identity: str) -> None:
    advice = of(replica_identity=identity, has_primary_key=False)
    assert advice.level == "bad"
    assert len(advice.cures) == 2


def test_inserts_alone_need_no_identity() -> None:
    advice = of(replica_identity="default", has_primary_key=False, events=["insert"])
    assert advice.level == "fair"
    assert advice.receives.startswith("INSERT with the whole row. Not UPDATE and DELETE")


@pytest.mark.parametrize(
    ("changes", "words", "sql"),
    [
        (
            {"published": []},
            "in none of the publications",
            "ALTER PUBLICATION supabase_realtime ADD TABLE public.todos;",
        ),
        ({"unlogged": True}, "unlogged", "ALTER TABLE public.todos SET LOGGED;"),
        ({"name": "auth_user"}, "HIDDEN_TABLES", None),
        ({"published": [], "kind": "partition"}, "name of its parent", None),
    ],
)
def test_what_is_not_heard_says_why(changes: dict[str, Any], words: str, sql: str | None) -> None:
    advice = of(**changes)
    assert advice.level == "off"
    assert words in advice.receives
    assert [cure for _, cure in advice.cures] == ([sql] if sql else [])


def test_row_security_is_told_as_it_is_applied() -> None:
    assert "BYPASS_ROLES" in of(row_security=True).receives
    assert "every client hears every row" in of(withholds_secured=False, row_security=True).receives


@pytest.mark.parametrize(
    ("name", "shown"), [("todos", "todos"), ("Todos", '"Todos"'), ("user", '"user"'), ('a"b', '"a""b"'), ("1a", '"1a"')]
)
def test_names_are_quoted_where_sql_needs_it(name: str, shown: str) -> None:
    assert quoted(name) == shown
