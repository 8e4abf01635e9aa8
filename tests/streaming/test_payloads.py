"""What a legacy client reads of a change: every key, every value, every identity."""

from __future__ import annotations

import struct
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.assembler import Assembler
from replication.changes import Change, Column, Relation
from replication.errors import PgOutputError
from replication.pgoutput import decode_row
from streaming.payloads import LegacyRelation, legacy_commit_timestamp, legacy_payload, legacy_timestamp
from tests.golden import record

_NAMES = {
    16: "bool", 17: "bytea", 18: "char", 19: "name", 20: "int8", 21: "int2", 23: "int4", 25: "text", 26: "oid",
    114: "json", 600: "point", 603: "box", 650: "cidr", 700: "float4", 701: "float8", 790: "money", 829: "macaddr",
    869: "inet", 1007: "_int4", 1009: "_text", 1042: "bpchar", 1043: "varchar", 1082: "date", 1083: "time",
    1114: "timestamp", 1182: "_date", 1184: "timestamptz", 1186: "interval", 1266: "timetz", 1560: "bit",
    1562: "varbit", 1700: "numeric", 2950: "uuid", 3614: "tsvector", 3615: "tsquery", 3802: "jsonb",
    3904: "int4range", 3910: "tstzrange", 4072: "jsonpath",
}  # fmt: skip
_AT = datetime(2019, 7, 18, 17, 2, 35, 726322, tzinfo=UTC)


def _changes(name: str, version: int = 18) -> list[Change]:
    assembler, changes = Assembler(_NAMES), []
    for lsn, data in record.load(version, name):
        if (chunk := assembler.feed(lsn, data)) is not None:
            changes += chunk.changes
    return changes


def _payloads(name: str, version: int = 18) -> list[dict[str, Any]]:
    return [orjson.loads(legacy_payload(change, _AT)) for change in _changes(name, version)]


def _column(name: str, type_name: str, *, key: bool = False, modifier: int = 4294967295) -> dict[str, Any]:
    return {"flags": ["key"] if key else [], "name": name, "type": type_name, "type_modifier": modifier}


_USERS = [_column("id", "int8", key=True), _column("name", "text")]
_COMMON = {"commit_timestamp": "2019-07-18T17:02:35Z", "schema": "public", "table": "users"}


# The keys


def test_an_insert_has_a_record_and_no_old_record() -> None:
    assert _payloads("insert") == [
        _COMMON | {"type": "INSERT", "columns": _USERS, "record": {"id": "1", "name": "Bob"}}
    ]


def test_an_update_has_a_record_and_an_empty_old_record() -> None:
    assert _payloads("update") == [
        _COMMON | {"type": "UPDATE", "columns": _USERS, "record": {"id": "1", "name": "Bobby"}, "old_record": {}}
    ]


def test_the_old_key_that_comes_with_an_update_is_not_shown() -> None:
    (payload,) = _payloads("update_of_the_key")
    assert payload["old_record"] == {}
    assert payload["record"] == {"id": "2", "name": "Bob"}


def test_a_delete_has_an_old_record_of_its_key_with_nulls_and_no_record() -> None:
    assert _payloads("delete") == [
        _COMMON | {"type": "DELETE", "columns": _USERS, "old_record": {"id": "1", "name": None}}
    ]


def test_a_truncate_has_neither_columns_nor_records() -> None:
    assert _payloads("truncate_many")[:2] == [
        _COMMON | {"type": "TRUNCATE", "table": "parent"},
        _COMMON | {"type": "TRUNCATE", "table": "other"},
    ]


# Identities


def test_under_full_identity_old_rows_come_whole_and_every_column_is_flagged() -> None:
    update, delete = _payloads("identity_full")
    assert update["old_record"] == {"id": "1", "name": "a", "n": None}
    assert update["record"] == {"id": "1", "name": "b", "n": None}
    assert delete["old_record"] == {"id": "1", "name": "b", "n": None}
    assert [column["flags"] for column in update["columns"]] == [["key"]] * 3


def test_under_index_identity_only_a_delete_shows_the_columns_of_the_index() -> None:
    update, of_the_key, delete = _payloads("identity_index")
    assert update["old_record"] == of_the_key["old_record"] == {}
    assert delete["old_record"] == {"id": None, "code": "y", "n": None}
    assert [column["flags"] for column in delete["columns"]] == [[], ["key"], []]


@pytest.mark.parametrize("name", ["identity_nothing", "no_primary_key"])
def test_without_an_identity_nothing_is_flagged(name: str) -> None:
    (payload,) = _payloads(name)
    assert all(column["flags"] == [] for column in payload["columns"])


# Values


@pytest.mark.parametrize("version", [15, 16, 18])
def test_values_are_the_text_that_postgresql_printed(version: int) -> None:
    (payload,) = _payloads("built_in_types", version)
    assert payload["record"] == {
        "id": "9223372036854775807",
        "b": "t",
        "i2": "-32768",
        "i4": "2147483647",
        "o": "4294967295",
        "num": "1.50",
        "nan": "NaN",
        "f4": "1.25",
        "f8": "1e+300",
        "cash": "$1,234.50",
        "txt": 'quote " back \\ tab \t new\nline é 🐘',
        "vc": "ten",
        "ch": "bp   ",
        "char": "c",
        "nam": "a name",
        "bin": "\\xdeadbeef",
        "j": '{"a":  1}',
        "jb": '{"a": 1, "b": 2}',
        "u": "00000000-0000-0000-0000-00000000002a",
        "d": "2021-02-16",
        "t": "23:47:47.5",
        "ttz": "23:47:47+02",
        "ts": "2021-02-16T23:47:47.51613Z",
        "ts3": "2021-02-16T23:47:47.1Z",
        "tstz": "2021-02-16T21:47:47.51613Z",
        "span": "1 year 2 mons 3 days 04:05:06.7",
        "ip": "10.1.2.3/8",
        "net": "10.0.0.0/8",
        "mac": "08:00:2b:01:02:03",
        "bits": "101",
        "vbits": "10",
        "pt": "(1,2)",
        "bx": "(1,1),(0,0)",
        "ts_vector": "'a' 'cat' 'sat'",
        "ts_query": "'cat' & 'sat'",
        "ints": "{1,2,NULL}",
        "texts": '{"a b",c}',
        "days": "{2021-02-16}",
        "int_range": "[1,5)",
        "time_range": '["2021-02-16 00:00:00+00",)',
        "path": '$."a"[*]',
    }
    types = {column["name"]: (column["type"], column["type_modifier"]) for column in payload["columns"]}
    assert list(types) == list(payload["record"])
    assert [types[name] for name in ("vc", "ch", "num", "ts3", "bits", "char", "int_range")] == [
        ("varchar", 14),
        ("bpchar", 9),
        ("numeric", 655366),
        ("timestamp", 3),
        ("bit", 3),
        ("char", 4294967295),
        ("int4range", 4294967295),
    ]


@pytest.mark.parametrize("version", [15, 16, 18])
def test_types_of_users_have_their_names_and_domains_their_base(version: int) -> None:
    (payload,) = _payloads("user_types", version)
    assert {column["name"]: column["type"] for column in payload["columns"]} == {
        "id": "int4",
        "status": "user_status",
        "statuses": "_user_status",
        "domain_int": "int4",
        "domain_ts": "timestamptz",
        "composite": "comp",
        "composites": "_comp",
        "mood": "Mood!",
    }
    assert payload["record"]["domain_ts"] == "2021-02-16T21:47:47.5Z"
    assert payload["record"]["composite"] == '(1,"x y")'


def test_null_is_null_and_the_empty_text_is_a_text() -> None:
    assert [payload["record"]["name"] for payload in _payloads("insert_null_and_empty")] == [None, ""]


def test_a_large_value_that_was_not_resent_is_the_text_unchanged_toast() -> None:
    (payload,) = _payloads("update_with_unchanged_toast")
    assert payload["record"] == {"id": "1", "big": "unchanged_toast", "n": "1"}
    assert payload["old_record"] == {}


def test_under_full_identity_the_old_record_has_the_large_value() -> None:
    (payload,) = _payloads("update_with_unchanged_toast_and_full_identity")
    assert payload["record"]["big"] == "unchanged_toast"
    assert payload["old_record"] == {"id": "1", "big": "toast" * 500, "n": "0"}


def test_names_are_raw() -> None:
    (payload,) = _payloads("names_to_be_quoted")
    assert (payload["schema"], payload["table"]) == ("odd:schema", "Weird Tbl é")
    assert payload["record"] == {"Col:One": "v", 'a"b': "1"}


def test_columns_follow_the_table_as_it_was() -> None:
    assert [payload["record"] for payload in _payloads("altered_table")] == [
        {"id": "1", "name": "before"},
        {"id": "2", "name": "added", "age": "30"},
        {"id": "3", "full_name": "renamed"},
    ]


def test_partitions_go_by_their_own_name_or_by_that_of_their_root() -> None:
    assert {payload["table"] for payload in _payloads("partitions")} == {"parted_low", "parted_high"}
    assert {payload["table"] for payload in _payloads("partitions_via_root")} == {"parted"}


def test_a_generated_column_comes_only_where_it_is_published() -> None:
    assert _payloads("generated_column_left_out")[0]["record"] == {"id": "21", "z": "z"}
    assert _payloads("generated_column_published")[0]["record"] == {"id": "21", "double": "42", "z": "z"}


# Times


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("2021-02-16 23:47:47.51613", "2021-02-16T23:47:47.51613Z"),
        ("2021-02-16 23:47:47.1", "2021-02-16T23:47:47.1Z"),
        ("2021-02-16 23:47:47", "2021-02-16T23:47:47Z"),
        ("2021-02-16 23:47:47.51613+00", "2021-02-16T23:47:47.51613Z"),
        ("2021-02-17 05:17:47.51613+05:30", "2021-02-17T05:17:47.51613+05:30"),
        ("2021-02-17 00:47:47+01", "2021-02-17T00:47:47+01:00"),
        ("2021-02-16 20:17:47-03:30", "2021-02-16T20:17:47-03:30"),
        ("1850-01-01 05:53:28+05:53:28", "1850-01-01T05:53:28+05:53"),
        ("0099-01-01 00:00:00", "0099-01-01T00:00:00Z"),
        ("infinity", "infinity"),
        ("-infinity", "-infinity"),
        ("12021-01-01 00:00:00", "12021-01-01 00:00:00"),
        ("0044-03-15 00:00:00 BC", "0044-03-15 00:00:00 BC"),
        ("0044-03-15 12:00:00+00 BC", "0044-03-15 12:00:00+00 BC"),
        ("", ""),
        ("2021-02-16", "2021-02-16"),
    ],
)
def test_a_timestamp_becomes_iso_8601_if_it_is_a_plain_one(printed: str, shown: str) -> None:
    assert legacy_timestamp(printed) == shown


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (_AT, "2019-07-18T17:02:35Z"),
        (_AT.replace(microsecond=999999), "2019-07-18T17:02:35Z"),
        (_AT.replace(microsecond=0), "2019-07-18T17:02:35Z"),
        (datetime(1999, 12, 31, 23, 59, 59, 1, tzinfo=UTC), "1999-12-31T23:59:59Z"),
    ],
)
def test_the_fraction_of_a_commit_timestamp_is_cut_off(at: datetime, shown: str) -> None:
    assert legacy_commit_timestamp(at) == shown


def test_every_transaction_has_its_own_commit_timestamp() -> None:
    first, second = _changes("two_transactions")
    stamps = [
        orjson.loads(legacy_payload(change, at))["commit_timestamp"]
        for change, at in ((first, _AT), (second, _AT.replace(second=36)), (first, _AT))
    ]
    assert stamps == ["2019-07-18T17:02:35Z", "2019-07-18T17:02:36Z", "2019-07-18T17:02:35Z"]


# What cannot be shown


def test_a_row_that_is_not_of_its_table_is_an_error_and_no_wrong_payload() -> None:
    (change,) = _changes("insert")
    for columns in (change.relation.columns[:1], (*change.relation.columns, change.relation.columns[0])):
        with pytest.raises(ValueError):
            legacy_payload(change._replace(relation=replace(change.relation, columns=columns)), _AT)


def test_a_value_that_is_no_text_is_an_error() -> None:
    (change,) = _changes("insert")
    with pytest.raises(PgOutputError):
        legacy_payload(change._replace(data=change.data[:-1] + b"\xff"), _AT)


# The quick way for plain rows


def _row(*values: str | bytes | None, kind: bytes = b"I") -> bytes:
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    cells = [b"n" if value is None else b"t" + struct.pack("!I", len(value)) + value for value in encoded]
    return kind + struct.pack("!IcH", 1, b"N", len(cells)) + b"".join(cells)


@pytest.mark.parametrize("version", [15, 16, 18])
def test_the_quick_way_shows_what_the_long_way_shows_for_everything_that_servers_sent(version: int) -> None:
    quick = 0
    for name in (path.stem for path in sorted((record.FOLDER / f"pg{version}").glob("*.hex"))):
        for change in _changes(name, version):
            if (row := change.decode()) is None:
                continue
            shared, stamp = LegacyRelation(change.relation), legacy_commit_timestamp(_AT)
            if (plain := shared.plain_payload(change.data, stamp)) is not None:
                quick += 1
                assert plain[0] == shared.payload(row, stamp)[0]
    assert quick > 10


@given(
    st.lists(
        st.one_of(st.none(), st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([b"I", b"U"]),
)
def test_the_quick_way_shows_what_the_long_way_shows_whatever_the_values(values: list[str | None], kind: bytes) -> None:
    columns = tuple(Column(f'c"{number}', "text", 25, -1, False) for number in range(len(values)))
    shared = LegacyRelation(Relation(1, "public", "t", "d", columns))
    data = _row(*values, kind=kind)
    plain = shared.plain_payload(data, "2019-07-18T17:02:35Z")
    if plain is not None:
        assert plain[0] == shared.payload(decode_row(data), "2019-07-18T17:02:35Z")[0]
        assert [value.decode() for value in plain[1][1:]] == values
    else:
        assert any(value is None or set(value) & _ESCAPED for value in values)


_ESCAPED = {chr(code) for code in range(0x20)} | {'"', "\\"}

_texts = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300)


@given(
    st.lists(st.tuples(_texts, st.one_of(_texts, st.none()), _texts), min_size=1, max_size=8),
    st.sampled_from([b"I", b"U"]),
)
def test_many_rows_at_once_show_what_each_shows_alone(rows: list[tuple[str | None, ...]], kind: bytes) -> None:
    columns = tuple(Column(name, "text", 25, -1, False) for name in ("a", "b", "c"))
    shared, stamp = LegacyRelation(Relation(1, "public", "t", "d", columns)), "2019-07-18T17:02:35Z"
    data = [_row(*row, kind=kind) for row in rows]
    values, apart = shared.plain_values(data), [shared.plain_payload(row, stamp) for row in data]
    assert (values is None) == (None in apart)
    if values is not None:
        together = shared.plain_payloads(kind[0], values, range(len(rows)), stamp)
        assert together == {number: plain[0] for number, plain in enumerate(apart) if plain is not None}
        some = range(0, len(rows), 2)
        assert shared.plain_payloads(kind[0], values, some, stamp) == {number: together[number] for number in some}


def test_timestamps_of_many_rows_are_written_as_those_of_one() -> None:
    columns = (Column("id", "int8", 20, -1, True), Column("at", "timestamptz", 1184, -1, False))
    shared, stamp = LegacyRelation(Relation(1, "public", "t", "d", columns)), "2019-07-18T17:02:35Z"
    data = [_row("1", "2021-02-16 23:47:47.51+05:30"), _row("2", "infinity"), _row("3", "2021-02-16 00:00:00+00")]
    values = shared.plain_values(data)
    assert values is not None
    assert list(shared.plain_payloads(data[0][0], values, range(3), stamp).values()) == [
        shared.payload(decode_row(row), stamp)[0] for row in data
    ]


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(_row("1", "2", "3"), id="another width"),
        pytest.param(_row("1", "2")[:-1], id="cut short"),
        pytest.param(_row("1", "2") + b"x", id="too long"),
        pytest.param(_row("1", None), id="a NULL"),
        pytest.param(_row("1", b"\xff"), id="no UTF-8"),
        pytest.param(_row(b"\xc3", b"\xa4"), id="a character that is cut in two"),
        pytest.param(_row("1", 'a "quote"'), id="a quote"),
        pytest.param(_row("1", "x" * 65536), id="a value whose size takes three bytes"),
        pytest.param(_row("1", "2", kind=b"U"), id="another kind"),
        pytest.param(b"I\0\0\0\x01N\0", id="hardly a head"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_odd_row_leaves_all_of_them_to_the_long_way(odd: bytes, place: int) -> None:
    columns = (Column("id", "int8", 20, -1, True), Column("name", "text", 25, -1, False))
    shared = LegacyRelation(Relation(1, "public", "t", "d", columns))
    rows = [_row("1", "a"), _row("2", "t")]
    rows.insert(place, odd)
    assert shared.plain_values(rows) is None


@given(st.binary(max_size=60))
def test_bytes_that_are_no_row_are_none_for_the_quick_way(data: bytes) -> None:
    columns = (Column("id", "int8", 20, -1, True), Column("name", "text", 25, -1, False))
    shared = LegacyRelation(Relation(1, "public", "t", "d", columns))
    if (plain := shared.plain_payload(data, "2019-07-18T17:02:35Z")) is not None:
        assert plain[0] == shared.payload(decode_row(data), "2019-07-18T17:02:35Z")[0]


def test_the_quick_way_leaves_a_row_of_another_width_to_the_long_way_which_refuses_it() -> None:
    shared = LegacyRelation(Relation(1, "public", "t", "d", (Column("id", "int8", 20, -1, True),)))
    assert shared.plain_payload(_row("1", "2"), "2019-07-18T17:02:35Z") is None
    with pytest.raises(ValueError, match="zip"):
        shared.payload(decode_row(_row("1", "2")), "2019-07-18T17:02:35Z")
