"""pgoutput: what real servers sent is read to the byte, and whatever else comes is refused in one way."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replication import pgoutput
from replication.errors import PgOutputError
from replication.pgoutput import (
    UNCHANGED_TOAST,
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Row,
    Truncate,
    Type,
    Update,
    decode,
    decode_row,
)
from tests.golden import record

_RECORDINGS = list(record.recordings())
_MESSAGES = sorted({data for _, messages, _ in _RECORDINGS for _, data in messages})
_ROWS = [data for data in _MESSAGES if data[0] in pgoutput.ROW_KINDS]
_VERSIONS = sorted({name.partition("/")[0] for name, _, _ in _RECORDINGS})

_MINUS_ONE = 4294967295


def _told(version: str, name: str) -> list[Message]:
    """What a server said in one story, without the frame of its transactions."""
    messages = [decode(data) for _, data in record.load(int(version.removeprefix("pg")), name)]
    return [message for message in messages if not isinstance(message, Begin | Commit)]


def _changes(version: str, name: str) -> list[Message]:
    return [message for message in _told(version, name) if not isinstance(message, Relation | Type)]


# What was recorded


@pytest.mark.parametrize(("messages", "said"), [pytest.param(m, s, id=name) for name, m, s in _RECORDINGS])
def test_a_recorded_message_says_what_was_recorded(messages: list[tuple[int, bytes]], said: list[Any]) -> None:
    assert [record.described(decode(data)) for _, data in messages] == said


def test_every_kind_of_message_and_of_value_was_recorded() -> None:
    for version in _VERSIONS:
        messages = [decode(data) for name, m, _ in _RECORDINGS if name.startswith(version) for _, data in m]
        assert {type(message) for message in messages} == {
            Begin, Commit, Origin, Relation, Type, Insert, Update, Delete, Truncate, LogicalMessage,
        }  # fmt: skip
        assert {m.old_kind for m in messages if isinstance(m, Update)} == {None, "K", "O"}
        assert {m.old_kind for m in messages if isinstance(m, Delete)} == {"K", "O"}
        assert {m.replica_identity for m in messages if isinstance(m, Relation)} == set("dnfi")
        kinds = {type(value) for m in messages if isinstance(m, Insert | Update) for value in m.new}
        assert kinds == {bytes, type(None), type(UNCHANGED_TOAST)}


@pytest.mark.parametrize("version", _VERSIONS)
def test_a_transaction_begins_with_the_lsn_that_its_commit_repeats(version: str) -> None:
    messages = [(lsn, decode(data)) for lsn, data in record.load(int(version.removeprefix("pg")), "two_transactions")]
    (_, begin), *_, (_, commit) = messages[:4]
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert begin.final_lsn == commit.lsn < commit.end_lsn
    assert begin.committed_at == commit.committed_at
    assert begin.committed_at.tzinfo is UTC
    assert all(lsn <= commit.end_lsn for lsn, _ in messages[:4])


@pytest.mark.parametrize("version", _VERSIONS)
class TestStories:
    """What the stories mean, said independently of what was recorded."""

    def test_null_and_the_empty_text_are_two_things(self, version: str) -> None:
        first, second = _changes(version, "insert_null_and_empty")
        assert isinstance(first, Insert)
        assert isinstance(second, Insert)
        assert (first.new, second.new) == ([b"1", None], [b"2", b""])

    def test_an_update_that_keeps_its_key_has_no_old_row(self, version: str) -> None:
        (update,) = _changes(version, "update")
        assert isinstance(update, Update)
        assert update[1:] == (None, None, [b"1", b"Bobby"])

    def test_an_update_of_the_key_sends_the_old_key(self, version: str) -> None:
        (update,) = _changes(version, "update_of_the_key")
        assert isinstance(update, Update)
        assert update[1:] == ("K", [b"1", None], [b"2", b"Bob"])

    def test_a_deleted_row_arrives_with_its_key_only(self, version: str) -> None:
        (delete,) = _changes(version, "delete")
        assert isinstance(delete, Delete)
        assert delete[1:] == ("K", [b"1", None])

    def test_full_identity_sends_the_whole_old_row_and_makes_every_column_a_key(self, version: str) -> None:
        relation, *changes = _told(version, "identity_full")
        assert isinstance(relation, Relation)
        assert all(column.is_key for column in relation.columns)
        update, delete = changes
        assert isinstance(update, Update)
        assert update[1:] == ("O", [b"1", b"a", None], [b"1", b"b", None])
        assert isinstance(delete, Delete)
        assert delete[1:] == ("O", [b"1", b"b", None])

    def test_index_identity_sends_the_columns_of_the_index(self, version: str) -> None:
        relation, *changes = _told(version, "identity_index")
        assert isinstance(relation, Relation)
        assert [column.name for column in relation.columns if column.is_key] == ["code"]
        assert [change[1:] for change in changes] == [
            (None, None, [b"1", b"x", b"6"]),
            ("K", [None, b"x", None], [b"1", b"y", b"6"]),
            ("K", [None, b"y", None]),
        ]

    @pytest.mark.parametrize(("name", "identity"), [("identity_nothing", "n"), ("no_primary_key", "d")])
    def test_without_an_identity_no_column_is_a_key(self, version: str, name: str, identity: str) -> None:
        relation, _ = _told(version, name)
        assert isinstance(relation, Relation)
        assert relation.replica_identity == identity
        assert not any(column.is_key for column in relation.columns)

    def test_a_large_value_that_was_not_touched_is_not_sent_again(self, version: str) -> None:
        (update,) = _changes(version, "update_with_unchanged_toast")
        assert isinstance(update, Update)
        assert update[1:] == (None, None, [b"1", UNCHANGED_TOAST, b"1"])

    def test_under_full_identity_the_old_row_has_the_large_value(self, version: str) -> None:
        (update,) = _changes(version, "update_with_unchanged_toast_and_full_identity")
        assert isinstance(update, Update)
        assert update.old == [b"1", b"toast" * 500, b"0"]
        assert update.new == [b"1", UNCHANGED_TOAST, b"1"]

    def test_truncate_names_every_table_that_it_emptied(self, version: str) -> None:
        told = _told(version, "truncate_many")
        names = {message.oid: message.name for message in told if isinstance(message, Relation)}
        first, second = (message for message in told if isinstance(message, Truncate))
        assert [names[oid] for oid in first.relation_oids] == ["parent", "other", "child"]
        assert first.options == 3  # CASCADE and RESTART IDENTITY
        assert [names[oid] for oid in second.relation_oids] == ["other"]
        assert second.options == 0

    def test_a_type_is_announced_before_the_table_that_has_it_and_a_domain_by_its_base(self, version: str) -> None:
        *types, relation, insert = _told(version, "user_types")
        assert isinstance(relation, Relation)
        assert isinstance(insert, Insert)
        names = {m.oid: (m.schema, m.name) for m in types if isinstance(m, Type)}
        assert {column.name: names.get(column.type_oid) for column in relation.columns} == {
            "id": None,
            "status": ("public", "user_status"),
            "statuses": ("public", "_user_status"),
            "domain_int": ("pg_catalog", "int4"),
            "domain_ts": ("pg_catalog", "timestamptz"),
            "composite": ("public", "comp"),
            "composites": ("public", "_comp"),
            "mood": ("other schema", "Mood!"),
        }
        assert insert.new[1:3] == [b"ACTIVE", b"{ACTIVE,AWAY}"]
        assert insert.new[5:7] == [b'(1,"x y")', b'{"(1,a)","(2,)"}']

    def test_a_type_modifier_counts_unsigned(self, version: str) -> None:
        relation, insert = _told(version, "built_in_types")
        assert isinstance(relation, Relation)
        assert isinstance(insert, Insert)
        columns = {column.name: column for column in relation.columns}
        values = dict(zip(columns, insert.new, strict=True))
        assert columns["id"] == RelationColumn(True, "id", 20, _MINUS_ONE)
        assert [columns[name].type_modifier for name in ("vc", "ch", "num", "ts3", "bits")] == [14, 9, 655366, 3, 3]
        assert values["id"] == b"9223372036854775807"
        assert values["txt"] == 'quote " back \\ tab \t new\nline é 🐘'.encode()
        assert (values["ch"], values["cash"], values["bin"]) == (b"bp   ", b"$1,234.50", rb"\xdeadbeef")

    def test_a_partition_speaks_for_itself_or_its_root_for_it(self, version: str) -> None:
        for name, expected in (("partitions", {"parted_low", "parted_high"}), ("partitions_via_root", {"parted"})):
            told = _told(version, name)
            names = {message.oid: message.name for message in told if isinstance(message, Relation)}
            changes = [message for message in told if isinstance(message, Insert | Delete)]
            assert {names[change.relation_oid] for change in changes} == expected
            # A row that moves to another partition is deleted here and inserted there.
            assert [type(change) for change in changes] == [Insert, Insert, Delete, Insert, Delete]
            (truncate,) = (message for message in told if isinstance(message, Truncate))
            assert {names[oid] for oid in truncate.relation_oids} == expected

    def test_a_row_filter_turns_an_update_across_its_edge_into_a_delete_or_an_insert(self, version: str) -> None:
        gone, come = _changes(version, "row_filter")
        assert isinstance(gone, Delete)
        assert gone.old == [b"1", b"in", b"5"]
        assert isinstance(come, Insert)
        assert come.new == [b"2", b"out", b"7"]

    def test_a_generated_column_is_left_out(self, version: str) -> None:
        _, insert = _told(version, "generated_column_left_out")
        assert isinstance(insert, Insert)
        assert insert.new == [b"21", b"z"]

    def test_an_altered_table_is_announced_again(self, version: str) -> None:
        told = _told(version, "altered_table")
        assert [[column.name for column in m.columns] for m in told if isinstance(m, Relation)] == [
            ["id", "name"],
            ["id", "name", "age"],
            ["id", "full_name"],
        ]

    def test_what_was_rolled_back_never_comes(self, version: str) -> None:
        inserts = [m.new[0] for m in _changes(version, "rolled_back_savepoint") if isinstance(m, Insert)]
        assert inserts == [b"1", b"3"]

    def test_names_come_as_they_are(self, version: str) -> None:
        relation, _ = _told(version, "names_to_be_quoted")
        assert isinstance(relation, Relation)
        assert (relation.schema, relation.name) == ("odd:schema", "Weird Tbl é")
        assert [column.name for column in relation.columns] == ["Col:One", 'a"b']

    def test_a_replicated_transaction_names_its_origin_and_keeps_its_time(self, version: str) -> None:
        begin, origin = (decode(data) for _, data in record.load(int(version.removeprefix("pg")), "origin")[:2])
        assert isinstance(begin, Begin)
        assert begin.committed_at == datetime(2021, 6, 22, 21, 48, 20, tzinfo=UTC)
        assert origin == Origin(0x16B374D848, "elsewhere")

    def test_a_logical_message_comes_in_its_transaction_or_on_its_own(self, version: str) -> None:
        outside, inside, _ = _changes(version, "logical_messages")
        assert isinstance(inside, LogicalMessage)
        assert (inside.transactional, inside.prefix, inside.content.decode()) == (True, "walcast", "in order: é")
        assert isinstance(outside, LogicalMessage)
        assert (outside.transactional, outside.prefix, outside.content) == (False, "", b"\x00\xff")


@pytest.mark.skipif("pg18" not in _VERSIONS, reason="nothing was recorded on PostgreSQL 18")
def test_a_generated_column_comes_where_it_is_published() -> None:
    _, insert = _told("pg18", "generated_column_published")
    assert isinstance(insert, Insert)
    assert insert.new == [b"21", b"42", b"z"]


# Known vectors, of PostgreSQL 15.18: v(id int PRIMARY KEY, name text, st user_status), vf(id, name) with full identity

_AT = datetime(2026, 11, 24, 16, 3, 1, 529232, tzinfo=UTC)
_ID, _NAME = RelationColumn(True, "id", 23, _MINUS_ONE), RelationColumn(False, "name", 25, _MINUS_ONE)
_V, _VF = 0x4082, 0x4089
_VECTORS: dict[str, tuple[str, Message]] = {
    "type": (
        "59000040017075626c696300757365725f73746174757300",
        Type(0x4001, "public", "user_status"),
    ),
    "relation": (
        "52000040827075626c69630076006400030169640000000017ffffffff006e616d650000000019ffffffff0073740000004001ffffffff",
        Relation(_V, "public", "v", "d", [_ID, _NAME, RelationColumn(False, "st", 0x4001, _MINUS_ONE)]),
    ),
    "begin": ("4200000000024ff220000304069d102a9000000340", Begin(0x24FF220, _AT, 832)),
    "insert": (
        "49000040824e00037400000001317400000003426f627400000006414354495645",
        Insert(_V, [b"1", b"Bob", b"ACTIVE"]),
    ),
    "commit": (
        "430000000000024ff22000000000024ff250000304069d102a90",
        Commit(0x24FF220, 0x24FF250, _AT),
    ),
    "update of the key": (
        "55000040824b00037400000001316e6e4e00037400000001327400000003426f627400000006414354495645",
        Update(_V, "K", [b"1", None, None], [b"2", b"Bob", b"ACTIVE"]),
    ),
    "update": (
        "55000040824e00037400000001326e7400000006414354495645",
        Update(_V, None, None, [b"2", None, b"ACTIVE"]),
    ),
    "delete": ("44000040824b00037400000001326e6e", Delete(_V, "K", [b"2", None, None])),
    "relation with full identity": (
        "52000040897075626c6963007666006600020169640000000017ffffffff016e616d650000000019ffffffff",
        Relation(_VF, "public", "vf", "f", [_ID, _NAME._replace(is_key=True)]),
    ),
    "update with full identity": (
        "55000040894f00027400000001317400000001614e0002740000000131740000000162",
        Update(_VF, "O", [b"1", b"a"], [b"1", b"b"]),
    ),
    "delete with full identity": ("44000040894f0002740000000131740000000162", Delete(_VF, "O", [b"1", b"b"])),
    "truncate": ("5400000002000000408200004089", Truncate([_V, _VF], 0)),
}


@pytest.mark.parametrize(("data", "message"), [pytest.param(*vector, id=name) for name, vector in _VECTORS.items()])
def test_a_known_vector_is_read(data: str, message: Message) -> None:
    assert decode(bytes.fromhex(data)) == message


def test_the_system_schema_gets_its_name() -> None:
    assert decode(b"Y" + bytes(4) + b"\0int4\0") == Type(0, "pg_catalog", "int4")
    assert decode(b"R" + bytes(4) + b"\0t\0d\0\0") == Relation(0, "pg_catalog", "t", "d", [])


# Rows as texts


@pytest.mark.parametrize("data", _ROWS, ids=range(len(_ROWS)))
def test_a_row_as_texts_is_the_decoded_row(data: bytes) -> None:
    def texts(row: pgoutput.Tuple | None) -> list[pgoutput.Text] | None:
        return None if row is None else [value.decode() if isinstance(value, bytes) else value for value in row]

    match decode(data):
        case Insert(new=new):
            expected = Row(ord("I"), texts(new), None, None)
        case Update(old_kind=old_kind, old=old, new=new):
            expected = Row(ord("U"), texts(new), texts(old), old_kind)
        case Delete(old_kind=old_kind, old=old):
            expected = Row(ord("D"), None, texts(old), old_kind)
        case other:
            raise AssertionError(other)
    assert decode_row(data) == expected


@pytest.mark.parametrize("data", [data for data in _MESSAGES if data[0] not in pgoutput.ROW_KINDS][:20])
def test_what_is_no_row_is_refused_as_one(data: bytes) -> None:
    with pytest.raises(PgOutputError):
        decode_row(data)


def test_a_value_that_is_no_utf8_stays_bytes_and_is_no_text() -> None:
    data = b"I" + bytes(4) + b"N\0\1t\0\0\0\1\xff"
    assert decode(data) == Insert(0, [b"\xff"])
    with pytest.raises(PgOutputError):
        decode_row(data)


# Bytes that are not as they should be


@pytest.mark.parametrize("data", _MESSAGES, ids=range(len(_MESSAGES)))
def test_a_message_that_is_cut_short_or_goes_on_is_refused(data: bytes) -> None:
    # Every end of what is short; of long texts the first bytes and the last.
    ends = {*range(min(len(data), 300)), *range(max(0, len(data) - 50), len(data))}
    for end in ends:
        with pytest.raises(PgOutputError) as caught:
            decode(data[:end])
        assert caught.value.data == data[:end]
    with pytest.raises(PgOutputError):
        decode(data + b"\0")
    if data[0] in pgoutput.ROW_KINDS:
        for end in ends:
            with pytest.raises(PgOutputError):
                decode_row(data[:end])
        with pytest.raises(PgOutputError):
            decode_row(data + b"\0")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?",
        b"S" + bytes(8),
        b"I" + bytes(4) + b"K\0\0",
        b"U" + bytes(4) + b"K\0\0K\0\0",
        b"D" + bytes(4) + b"N\0\0",
        b"I" + bytes(4) + b"N\0\1b\0\0\0\1x",
        b"B" + bytes(8) + b"\x7f" + b"\xff" * 7 + bytes(4),
        b"R" + bytes(4) + b"\xff\0t\0d\0\0",
    ],
    ids=["empty", "unknown", "stream start", "insert K", "update K K", "delete N", "binary", "far future", "not UTF-8"],
)
def test_what_version_1_does_not_know_is_refused(data: bytes) -> None:
    with pytest.raises(PgOutputError) as caught:
        decode(data)
    assert caught.value.data == data


_READABLE = (
    Begin, Commit, Origin, Relation, Type, Insert, Update, Delete, Truncate, LogicalMessage,
)  # fmt: skip


def _decode_or_refuse(data: bytes) -> None:
    with suppress(PgOutputError):
        assert isinstance(decode(data), _READABLE)
    with suppress(PgOutputError):
        assert isinstance(decode_row(data), Row)


@given(st.builds(bytes.__add__, st.sampled_from([bytes([kind]) for kind in b"BCORYIUDTM"]), st.binary(max_size=80)))
@example(b"B" + b"\xff" * 20)
@example(b"I" + bytes(4) + b"N\xff\xff")
@example(b"T\xff\xff\xff\xff\0")
@example(b"M\0" + bytes(8) + b"\0\xff\xff\xff\xff")
def test_random_bytes_are_a_message_or_refused(data: bytes) -> None:
    _decode_or_refuse(data)


@given(st.sampled_from([data for data in _MESSAGES if len(data) < 500]), st.data())
def test_a_mutated_message_is_a_message_or_refused(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    gone = draw.draw(st.integers(0, 4))
    _decode_or_refuse(data[:at] + draw.draw(st.binary(max_size=6)) + data[at + gone :])


@given(
    st.lists(st.none() | st.just(UNCHANGED_TOAST) | st.binary(max_size=20), max_size=8),
    st.integers(0, 0xFFFFFFFF),
)
def test_any_row_is_read_back(values: list[pgoutput.Value], oid: int) -> None:
    parts = [
        b"n" if value is None else b"u" if value is UNCHANGED_TOAST else b"t" + len(value).to_bytes(4, "big") + value
        for value in values
    ]
    data = b"I" + oid.to_bytes(4, "big") + b"N" + len(values).to_bytes(2, "big") + b"".join(parts)
    assert decode(data) == Insert(oid, values)
    assert pgoutput.relation_oid(data) == oid


@pytest.mark.parametrize("size", range(5))
def test_a_relation_is_not_read_from_less_than_it_takes(size: int) -> None:
    with pytest.raises(PgOutputError):
        pgoutput.relation_oid(b"I\0\0\0\0"[:size])
