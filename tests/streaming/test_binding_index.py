"""Which bindings a change is for, what is asked of PostgreSQL, and how its answers are put together."""

from __future__ import annotations

import pytest

from replication.changes import Column, Relation
from replication.facts import Collation, ColumnFacts, TableFacts, TypeFacts
from replication.pgoutput import UNCHANGED_TOAST, Row, Text
from streaming.binding_index import Alternatives, BindingIndex
from streaming.bindings import Binding, parse_binding
from streaming.current_payloads import Images
from streaming.knowledge import Failed, Knowledge
from streaming.predicates import Asked, Operand, Question

C = Collation("", orders_bytes=True, lowers_ascii=True, is_deterministic=True, is_utf8=True)
OTHER = Collation('pg_catalog."en-x-icu"', is_deterministic=True, is_utf8=True)
INSERT, UPDATE, DELETE, TRUNCATE = b"IUDT"


def table(identity: str = "d") -> Relation:
    """``t(id int4 primary key, name text, word text COLLATE "en-x-icu", price numeric)``."""
    kinds = [("id", "int4", None), ("name", "text", C), ("word", "text", OTHER), ("price", "numeric", None)]
    columns = tuple(Column(name, kind, 0, -1, identity == "f" or name == "id") for name, kind, _ in kinds)
    relation = Relation(1, "public", "t", identity, columns)
    facts = tuple(
        ColumnFacts(kind, TypeFacts(kind, f"pg_catalog.{kind}", "S" if kind == "text" else "N"), collation)
        for _, kind, collation in kinds
    )
    relation.learn(TableFacts(facts, ("id",), False))
    return relation


def on(filter: str = "", **more: str) -> Binding:
    return parse_binding({"event": "*", "schema": "public", "table": "t", "filter": filter, **more})


def wanted(index: BindingIndex, relation: Relation, row: Row) -> set[Binding]:
    """Who wants the change without a question; nobody may have one."""
    found, asked = index.plans_of(relation)[row.kind].match(Images(relation, row))
    assert asked == []
    assert len(found) == len(set(found))
    return set(found)


def insert(*texts: Text) -> Row:
    return Row(INSERT, [*texts, None, None, None][:4], None, None)


def index_of(*bindings: Binding) -> BindingIndex:
    index = BindingIndex()
    for binding in bindings:
        index.add(binding, {})
    return index


def test_only_those_whose_filter_holds_want_a_change() -> None:
    everything, one, few, large = on(), on("id=eq.1"), on("id=in.(1,2)"), on("id=gt.1")
    index, relation = index_of(everything, one, few, large), table()
    assert wanted(index, relation, insert("1")) == {everything, one, few}
    assert wanted(index, relation, insert("2")) == {everything, few, large}
    assert wanted(index, relation, insert("3")) == {everything, large}


def test_the_other_conditions_of_an_indexed_binding_are_tested() -> None:
    both = on("name=eq.a,id=lt.5")
    index, relation = index_of(both), table()
    assert wanted(index, relation, insert("1", "a")) == {both}
    assert wanted(index, relation, insert("7", "a")) == set()
    assert wanted(index, relation, insert("1", "b")) == set()


def test_equal_numbers_are_found_whatever_their_digits() -> None:
    binding, relation = on("price=in.(1.5,NaN)"), table()
    index = BindingIndex()
    index.add(binding, {(binding.conditions[0], "pg_catalog.numeric"): Operand(("1.5", "NaN"))})
    assert wanted(index, relation, insert("1", None, None, "1.500")) == {binding}
    assert wanted(index, relation, insert("1", None, None, "NaN")) == {binding}
    assert wanted(index, relation, insert("1", None, None, "2")) == set()


def test_plans_that_are_made_already_learn_of_bindings_that_come_and_go() -> None:
    index, relation = index_of(), table()
    assert not index.plans_of(relation)[INSERT].is_watched
    first, second, third = on("id=eq.1"), on("id=eq.1,name=eq.a"), on("id=gt.0")
    for binding in (first, second, third):
        index.add(binding, {})
    assert wanted(index, relation, insert("1", "a")) == {first, second, third}
    index.discard(first)
    assert wanted(index, relation, insert("1", "a")) == {second, third}
    index.discard(second)
    index.discard(third)
    assert not index.plans_of(relation)[INSERT].is_watched
    assert not index


def test_a_column_that_the_table_does_not_have_matches_nothing() -> None:
    assert not index_of(on("nope=is.null")).plans_of(table())[INSERT].is_watched


def test_a_truncate_has_no_row_to_judge() -> None:
    binding = on("id=eq.1", event="TRUNCATE")
    assert index_of(binding, on()).plans_of(table())[TRUNCATE].match(None) == ([binding], [])


def test_a_delete_is_judged_by_its_key_and_what_is_not_there_meets_no_condition() -> None:
    by_key, by_name, by_null = on("id=eq.1"), on("name=eq.a"), on("name=is.null")
    index = index_of(by_key, by_name, by_null)
    assert wanted(index, table(), Row(DELETE, None, ["1", None, None, None], "K")) == {by_key}
    assert wanted(index, table("f"), Row(DELETE, None, ["1", "a", None, None], "O")) == {by_key, by_name}


def test_an_update_with_its_whole_old_row_is_judged_by_both() -> None:
    was, became = on("name=eq.a"), on("name=eq.b")
    index = index_of(was, became)
    full = Row(UPDATE, ["1", "b", None, None], ["1", "a", None, None], "O")
    assert wanted(index, table("f"), full) == {was, became}
    assert wanted(index, table(), Row(UPDATE, ["1", "b", None, None], None, None)) == {became}


def test_an_unchanged_value_is_judged_by_the_old_row_where_that_was_sent() -> None:
    binding = on("name=eq.a")
    index = index_of(binding)
    new: list[Text] = ["1", UNCHANGED_TOAST, None, None]
    assert wanted(index, table("f"), Row(UPDATE, new, ["1", "a", None, None], "O")) == {binding}
    assert wanted(index, table(), Row(UPDATE, new, None, None)) == set()


def asked_of(index: BindingIndex, relation: Relation, row: Row) -> list[tuple[Binding, Alternatives]]:
    found, asked = index.plans_of(relation)[row.kind].match(Images(relation, row))
    assert found == []
    return asked


def question(operator: str, left: str, right: str) -> Question:
    return Question(operator, "pg_catalog.text", OTHER.sql, left, right)


def test_what_python_cannot_tell_is_a_question() -> None:
    binding = on("word=not.lt.m,id=gt.0")
    index, relation = index_of(binding), table()
    assert asked_of(index, relation, insert("1", None, "x")) == [(binding, ((Asked(question("<", "x", "m"), False),),))]
    assert asked_of(index, relation, insert("0", None, "x")) == []  # the other condition does not hold: no question
    assert asked_of(index, relation, insert("1", None, None)) == []


def test_two_rows_make_two_alternatives() -> None:
    binding = on("word=match.^a")
    row = Row(UPDATE, ["1", None, "b", None], ["1", None, "a", None], "O")
    [(_, alternatives)] = asked_of(index_of(binding), table("f"), row)
    assert [[asked.question.left for asked in alternative] for alternative in alternatives] == [["b"], ["a"]]


YES, NO = Asked(question("~", "a", "^a"), True), Asked(question("~", "a", "^b"), True)
NEVER = Asked(question("~", "a", "("), True)


@pytest.mark.parametrize(
    ("alternatives", "verdict"),
    [
        (((YES,),), True),
        (((NO,),), False),
        (((YES, NO),), False),
        (((NO,), (YES,)), True),
        (((NEVER,),), Failed("why")),
        (((NEVER,), (YES,)), True),
        (((NO, NEVER),), False),
        (((Asked(question("~", "?", "?"), True),),), None),
        (((Asked(question("~", "?", "?"), True), NO),), False),
        (((Asked(question("<", "n", "n"), False),),), False),
    ],
)
def test_answers_are_put_together(alternatives: Alternatives, verdict: bool | Failed | None) -> None:
    knowledge = Knowledge()
    knowledge.remember(
        {YES.question: True, NO.question: False, NEVER.question: Failed("why"), question("<", "n", "n"): None}
    )
    assert knowledge.judge(alternatives) == verdict


def test_the_newest_answers_count_even_if_they_are_not_remembered() -> None:
    assert Knowledge().judge(((YES,),), {YES.question: True}) is True


def test_memory_has_a_bound_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.knowledge.MOST_ANSWERS", 2)
    knowledge = Knowledge()
    questions = [question("=", name, "x") for name in "abc"]
    for asked in questions:
        knowledge.remember({asked: True})
    assert knowledge.unknown(questions) == questions[:1]
