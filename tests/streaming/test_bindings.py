"""Bindings: what a client may ask for, in what shape, and the ids that it is given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import bindings as module
from streaming.bindings import Binding, Shape, ids_of, parse_binding
from streaming.errors import InvalidBinding
from streaming.filter_language import Condition


def read(**raw: Any) -> Binding:
    return parse_binding(raw)


def test_a_table_alone_is_one_of_the_schema_public() -> None:
    assert read(event="INSERT", table="t") == Binding("INSERT", "public", "t")


def test_a_schema_alone_means_all_of_its_tables() -> None:
    assert read(schema="s") == Binding("*", "s", "*")


@pytest.mark.parametrize(
    ("event", "understood"),
    [("insert", "INSERT"), ("*", "*"), ("nonsense", "*"), (None, "*"), (5, "*"), ("Truncate", "TRUNCATE")],
)
def test_events_are_read_in_any_case_and_unknown_ones_mean_all(event: Any, understood: str) -> None:
    assert read(event=event, table="t").event == understood


def test_all_events_are_those_of_rows() -> None:
    binding = read(table="t")
    assert [event for event in ("INSERT", "UPDATE", "DELETE", "TRUNCATE") if binding.wants_event(event)] == [
        "INSERT",
        "UPDATE",
        "DELETE",
    ]
    assert read(table="t", event="TRUNCATE").wants_event("TRUNCATE")


def test_names_are_compared_as_they_are() -> None:
    assert read(table="a_b").wants_table("public", "a_b")
    assert not read(table="a_b").wants_table("public", "axb")
    assert read(schema="*", table="t").wants_table("anything", "t")


def test_filter_and_choice_are_part_of_a_binding() -> None:
    binding = read(table="t", filter="a=eq.1", select=["b", 5, "a", "b"])
    assert binding.conditions == (Condition("a", "eq", "1"),)
    assert binding.shape == Shape(frozenset({"a", "b"}))
    assert read(table="t", select=[]).shape == read(table="t", select=None).shape == Shape()


def test_options_hold_for_all_bindings_unless_one_says_otherwise() -> None:
    raw = {"table": "t"}
    assert parse_binding(raw, {"numbers": "text", "unchanged": True}).shape == Shape(None, True, True)
    assert parse_binding({**raw, "numbers": "number"}, {"numbers": "text"}).shape == Shape()
    assert parse_binding(raw, {"numbers": 5, "unchanged": "yes"}).shape == Shape()
    assert parse_binding(raw, "nonsense").shape == Shape()


@pytest.mark.parametrize(
    "raw", [{}, {"filter": "a=eq.1"}, {"schema": None}, {"table": 5}, {"schema": "s", "filter": "a"}, "x", 5, []]
)
def test_what_names_nothing_is_refused(raw: Any) -> None:
    with pytest.raises(InvalidBinding, match="No subscription params provided"):
        parse_binding(raw)


def test_it_is_shown_as_in_the_messages_of_the_protocol() -> None:
    assert str(read(event="*", schema="public", table="test", filter='notacolumn=not.eq."x\\"y"')) == (
        '[event: *, schema: public, table: test, filters: [{"notacolumn", "eq", "x\\"y", true}], select: nil]'
    )


def test_equal_bindings_have_equal_ids_and_others_have_others() -> None:
    one, two, other = read(table="t", event="insert"), read(schema="public", table="t", event="INSERT"), read(table="u")
    assert one == two
    assert ids_of([one, other, two]) == [one.id, other.id, one.id]
    assert one.id != other.id


def test_ids_are_the_same_in_every_process() -> None:
    # Written down once: a client that comes back to another node finds the same.
    assert read(event="INSERT", schema="public", table="t", filter="a=eq.1").id == 1_991_185_897


def test_bindings_of_one_channel_never_share_an_id_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_IDS", 3)
    ids = ids_of([read(table=name) for name in "abc"])
    assert sorted(ids) == [1, 2, 3]


@given(st.text(), st.text(), st.sampled_from(["INSERT", "*"]))
def test_ids_are_positive_and_fit_into_32_bits(schema: str, table: str, event: str) -> None:
    assert 0 < Binding(event, schema, table).id < 2**31
