"""The data of `postgres_changes`: what it holds for each kind of change, and that the quick way gives the same."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.changes import Column, Relation
from replication.facts import ColumnFacts, TableFacts, guessed_facts
from replication.pgoutput import UNCHANGED_TOAST, Row, Text, decode_row
from streaming.bindings import Shape
from streaming.current_payloads import CurrentRelation, Images, current_commit_timestamp

INSERT, UPDATE, DELETE = b"IUD"
PLAIN = Shape()
STAMP = "2024-01-02T03:04:05.678Z"
TYPES = ("int4", "text", "numeric", "float8", "bool", "timestamp", "timestamptz", "date", "jsonb")


def relation(*types: str, identity: str = "d", key: int = 1) -> Relation:
    """A table with a column of each type; the first ``key`` are the primary key."""
    columns = tuple(
        Column(f"c{number}", name, 0, -1, identity == "f" or number < key) for number, name in enumerate(types)
    )
    made = Relation(1, "public", "t", identity, columns)
    facts = tuple(ColumnFacts(name, guessed_facts(name)) for name in types)
    made.learn(TableFacts(facts, tuple(column.name for column in columns[:key]), False))
    return made


def told(table: Relation, row: Row, *, shape: Shape = PLAIN, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """The data of a change, read again."""
    data = CurrentRelation(table, shape, max_bytes).data(row.kind, Images(table, row), STAMP)
    value: dict[str, Any] = orjson.loads(data + b"}")
    return value


def test_the_timestamp_has_milliseconds_cut_off() -> None:
    assert current_commit_timestamp(datetime(2024, 1, 2, 3, 4, 5, 678_999, UTC)) == STAMP


def test_an_update_without_old_values_shows_the_key_of_the_new_row() -> None:
    data = told(relation("int4", "text"), Row(UPDATE, ["1", "a"], None, None))
    assert (data["record"], data["old_record"]) == ({"c0": 1, "c1": "a"}, {"c0": 1})


def test_an_update_of_the_key_shows_the_old_one() -> None:
    data = told(relation("int4", "text"), Row(UPDATE, ["2", "a"], ["1", None], "K"))
    assert (data["record"], data["old_record"]) == ({"c0": 2, "c1": "a"}, {"c0": 1})


def test_an_unchanged_value_is_left_out_and_listed_for_who_asks() -> None:
    table, row = relation("int4", "text"), Row(UPDATE, ["1", UNCHANGED_TOAST], None, None)
    assert told(table, row)["record"] == {"c0": 1}
    assert "unchanged" not in told(table, row)
    assert told(table, row, shape=Shape(lists_unchanged=True))["unchanged"] == ["c1"]


def test_with_full_identity_it_is_that_of_the_old_row() -> None:
    new: list[Text] = ["1", UNCHANGED_TOAST]
    data = told(relation("int4", "text", identity="f"), Row(UPDATE, new, ["1", "long"], "O"))
    assert data["record"] == data["old_record"] == {"c0": 1, "c1": "long"}
    assert new == ["1", UNCHANGED_TOAST]  # whoever shares the row sees what was sent


def test_a_delete_shows_what_is_known() -> None:
    assert told(relation("int4", "text"), Row(DELETE, None, ["1", None], "K"))["old_record"] == {"c0": 1}
    full = relation("int4", "text", identity="f")
    assert told(full, Row(DELETE, None, ["1", None], "O"))["old_record"] == {"c0": 1, "c1": None}


def test_chosen_columns_come_with_the_primary_key() -> None:
    data = told(
        relation("int4", "text", "bool"), Row(INSERT, ["1", "a", "t"], None, None), shape=Shape(frozenset({"c2"}))
    )
    assert data["record"] == {"c0": 1, "c2": True}
    assert [column["name"] for column in data["columns"]] == ["c0", "c2"]


def test_of_a_record_that_is_too_large_short_values_are_left() -> None:
    row = Row(UPDATE, ["1", "x" * 63, "y" * 62], ["0", None, None], "K")
    data = told(relation("int4", "text", "text"), row, max_bytes=100)
    assert data["errors"] == ["Error 413: Payload Too Large"]
    assert (data["record"], data["old_record"]) == ({"c0": 1, "c2": "y" * 62}, {"c0": 0})


def test_a_row_of_another_width_is_an_error() -> None:
    with pytest.raises(ValueError):
        told(relation("int4", "text"), Row(INSERT, ["1"], None, None))


def test_a_composite_that_has_been_altered_stays_text() -> None:
    kind = guessed_facts("pair")._replace(attributes=(("x", guessed_facts("int4")),))
    table = relation("int4", "pair")
    table.learn(TableFacts((ColumnFacts("int4", guessed_facts("int4")), ColumnFacts("pair", kind)), ("c0",), False))
    assert told(table, Row(INSERT, ["1", "(1,2)"], None, None))["record"] == {"c0": 1, "c1": "(1,2)"}


def _insert(values: list[str | None]) -> bytes:
    fields = [
        b"n" if value is None else b"t" + struct.pack("!I", len(value.encode())) + value.encode() for value in values
    ]
    return b"I" + struct.pack("!IcH", 1, b"N", len(values)) + b"".join(fields)


_values = {
    "int4": st.integers(-5, 5).map(str),
    "text": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    "numeric": st.sampled_from(["1.50", "NaN", "Infinity", "-Infinity", "0"]),
    "float8": st.sampled_from(["1e+20", "NaN", "-Infinity", "-0", "1.5"]),
    "bool": st.sampled_from(["t", "f"]),
    "timestamp": st.sampled_from(["2024-01-02 03:04:05.678", "infinity", "0044-03-15 12:00:00 BC"]),
    "timestamptz": st.sampled_from(
        ["2024-01-02 03:04:05+00", "2024-01-02 03:04:05-03:30", "infinity", "-infinity", "0044-03-15 12:00:00+00 BC"]
    ),
    "date": st.sampled_from(["2024-01-02", "-infinity"]),
    "jsonb": st.sampled_from(["1", "null", '{"a": 1}', "[]"]),
}


@given(st.data())
def test_the_quick_way_gives_the_same(data: st.DataObject) -> None:
    types = data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
    values = [data.draw(st.one_of(st.none(), _values[name], _values[name])) for name in types]
    table, message = relation(*types), _insert(values)
    shared = CurrentRelation(table, Shape(numbers_as_text=data.draw(st.booleans())), 1 << 20)
    quick = shared.plain_data(message, STAMP)
    if quick is not None:
        assert quick == shared.data(INSERT, Images(table, decode_row(message)), STAMP)


def test_the_quick_way_is_taken() -> None:
    table = relation("int4", "text", "numeric", "bool", "timestamptz")
    shared = CurrentRelation(table, Shape(), 1 << 20)
    assert shared.plain_data(_insert(["1", "a", "1.5", "t", "2024-01-02 03:04:05+00"]), STAMP) is not None
    assert shared.plain_data(_insert(["1", "ä", "1.5", "t", "2024-01-02 03:04:05+00"]), STAMP) is not None
    assert shared.plain_data(_insert(["1", '"', "1.5", "t", "2024-01-02 03:04:05+00"]), STAMP) is None


@given(st.data())
def test_many_rows_at_once_give_what_each_gives_alone(data: st.DataObject) -> None:
    types = data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
    row = st.tuples(*(_values[name] for name in types)).map(list)
    rows = [_insert(values) for values in data.draw(st.lists(row, min_size=1, max_size=5))]
    shared = CurrentRelation(relation(*types), Shape(numbers_as_text=data.draw(st.booleans())), 1 << 20)
    stamps = [data.draw(st.sampled_from([STAMP, "2026-11-26T07:00:00.001Z"])) for _ in rows]
    together = shared.plain_data_of_all(rows, stamps)
    apart = [shared.plain_data(row, stamp) for row, stamp in zip(rows, stamps, strict=True)]
    assert together == (None if None in apart else apart)


def test_a_row_over_the_bound_leaves_all_to_the_long_way() -> None:
    shared = CurrentRelation(relation("text"), Shape(), 100)
    assert shared.plain_data_of_all([_insert(["a"]), _insert(["x" * 100])], [STAMP] * 2) is None
