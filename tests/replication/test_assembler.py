"""From messages to chunks: positions, bounds, what is remembered, and what cannot be."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from replication.assembler import Assembler
from replication.changes import Chunk, change_size
from replication.errors import PgOutputError, ProtocolViolation, UnknownRelation
from replication.lsn import Position
from replication.pgoutput import Begin, Commit, decode
from tests.golden import record

_TYPE_NAMES = {20: "int8", 23: "int4", 25: "text", 1007: "_int4", 1184: "timestamptz"}
_VERSIONS = [15, 16, 18]

Stream = list[tuple[int, bytes]]


def _load(version: int, name: str) -> Stream:
    return [(int(lsn), data) for lsn, data in record.load(version, name)]


def _feed(assembler: Assembler, stream: Stream) -> list[Chunk]:
    return [chunk for lsn, data in stream if (chunk := assembler.feed(lsn, data)) is not None]


def _told(name: str, version: int = 18, **options: object) -> list[Chunk]:
    return _feed(Assembler(_TYPE_NAMES, **options), _load(version, name))  # type: ignore[arg-type]


def _events(chunks: list[Chunk]) -> list[tuple[str, str]]:
    return [(change.event, str(change.relation)) for chunk in chunks for change in chunk.changes]


# Transactions and positions


@pytest.mark.parametrize("version", _VERSIONS)
def test_a_transaction_comes_out_at_its_commit(version: int) -> None:
    stream = _load(version, "two_transactions")
    assembler, begin, commit = Assembler(_TYPE_NAMES), decode(stream[0][1]), decode(stream[3][1])
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert assembler.idle
    for lsn, data in stream[:3]:
        assert assembler.feed(lsn, data) is None
        assert not assembler.idle
        assert assembler.open_commit_lsn == begin.final_lsn
    chunk = assembler.feed(*stream[3])
    assert chunk is not None
    assert (chunk.commit_lsn, chunk.committed_at, chunk.xid) == begin[:3]
    assert chunk.is_last
    assert chunk.first == chunk.last == Position(begin.final_lsn, stream[2][0], 0)
    assert chunk.size == sum(map(change_size, chunk.changes))
    assert assembler.idle
    assert assembler.open_commit_lsn is None
    assert assembler.end_lsn == commit.end_lsn


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("name", [case.name for case in record.CASES if case.since <= min(_VERSIONS)])
def test_positions_rise_through_every_recorded_story(version: int, name: str) -> None:
    positions = [
        Position(chunk.commit_lsn, change.lsn, change.ordinal)
        for chunk in _told(name, version)
        for change in chunk.changes
    ]
    assert positions == sorted(set(positions))


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("name", [case.name for case in record.CASES if case.since <= min(_VERSIONS)])
@pytest.mark.parametrize("options", [{}, {"max_rows": 2}, {"max_bytes": 500}, {"hidden": {("public", "users")}}])
def test_rows_that_are_taken_together_are_the_same(version: int, name: str, options: dict[str, object]) -> None:
    stream = _load(version, name)
    frames = [b"w" + struct.pack("!QQq", lsn, 0, 0) + data for lsn, data in stream]
    assembler, chunks, number = Assembler(_TYPE_NAMES, **options), [], 0  # type: ignore[arg-type]
    while number < len(frames):
        if number + 3 <= len(frames) and (chunk := assembler.feed_commit(frames, number)) is not None:
            number += 3
        else:
            number, chunk = assembler.feed_rows(frames, number)
            if chunk is None and number < len(frames):
                chunk = assembler.feed(*stream[number])
                number += 1
        if chunk is not None:
            chunks.append(chunk)
    assert list(map(_shown, chunks)) == list(map(_shown, _told(name, version, **options)))


def _shown(chunk: Chunk) -> object:
    changes = [(c.lsn, c.ordinal, str(c.relation), c.data) for c in chunk.changes]
    return chunk.commit_lsn, chunk.committed_at, chunk.xid, chunk.is_last, chunk.size, changes


def _one_row_commit() -> tuple[Assembler, list[bytes], Chunk]:
    """Three frames that are a transaction, an assembler that has read them before, and what it made of them."""
    stream = [(lsn, data) for lsn, data in _load(18, "origin") if data[:1] in b"BRIC"]
    assembler = Assembler(_TYPE_NAMES)
    (chunk,) = [chunk for message in stream if (chunk := assembler.feed(*message)) is not None]
    frames = [b"w" + struct.pack("!QQq", lsn, 0, 0) + data for lsn, data in stream if data[:1] in b"BIC"]
    assert [frame[25:26] for frame in frames] == [b"B", b"I", b"C"]
    return assembler, frames, chunk


def test_a_commit_of_one_row_is_taken_at_once() -> None:
    assembler, frames, chunk = _one_row_commit()
    end_lsn, assembler.end_lsn = assembler.end_lsn, 0
    taken = assembler.feed_commit([b"k", *frames], 1)
    assert taken is not None
    assert _shown(taken) == _shown(chunk)
    assert (assembler.end_lsn, assembler.idle) == (end_lsn, True)
    assert assembler.position.lsn == chunk.last.lsn


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(lambda frame: frame[:-1], id="cut short"),
        pytest.param(lambda frame: frame + b"x", id="too long"),
        pytest.param(lambda frame: b"x" + frame[1:], id="no XLogData"),
        pytest.param(lambda frame: frame[:25] + b"M" + frame[26:], id="another message"),
        pytest.param(lambda _: b"k" + struct.pack("!QqB", 0, 0, 0), id="a keepalive"),
        pytest.param(lambda frame: frame[:26] + b"\xff" * 20 + frame[46:], id="other numbers"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_commit_of_one_row_is_left_alone(odd: Callable[[bytes], bytes], place: int) -> None:
    assembler, frames, chunk = _one_row_commit()
    odd_frames = [odd(frame) if number == place else frame for number, frame in enumerate(frames)]
    before = assembler.end_lsn, assembler.position
    taken = assembler.feed_commit(odd_frames, 0)
    if place == 1 and odd_frames[1][:30] == frames[1][:30]:
        assert taken is not None, "whoever decodes the row says what is wrong with it"
    else:
        assert taken is None
        assert (assembler.end_lsn, assembler.position) == before
        taken = assembler.feed_commit(frames, 0)
        assert taken is not None
        assert _shown(taken) == _shown(chunk)


@pytest.mark.parametrize("options", [{"max_rows": 1}, {"max_bytes": 200}])
def test_a_commit_of_one_row_that_fills_a_chunk_is_left_alone(options: dict[str, object]) -> None:
    stream = [(lsn, data) for lsn, data in _load(18, "origin") if data[:1] in b"BRIC"]
    assembler = Assembler(_TYPE_NAMES, **options)  # type: ignore[arg-type]
    chunks = [chunk for message in stream if (chunk := assembler.feed(*message)) is not None]
    assert [(len(chunk.changes), chunk.is_last) for chunk in chunks] == [(1, False), (0, True)]
    frames = [b"w" + struct.pack("!QQq", lsn, 0, 0) + data for lsn, data in stream if data[:1] in b"BIC"]
    assert assembler.feed_commit(frames, 0) is None


def test_within_a_transaction_no_other_is_taken() -> None:
    assembler, frames, _ = _one_row_commit()
    assembler.feed(0, frames[0][25:])
    assert assembler.feed_commit(frames, 0) is None


def test_a_keepalive_ends_what_is_taken_together() -> None:
    stream = _load(18, "many_rows_in_a_record")
    assembler = Assembler(_TYPE_NAMES)
    row = next(number for number, (_, data) in enumerate(stream) if data[:1] == b"I")
    for message in stream[: row + 1]:
        assembler.feed(*message)
    frames = [b"w" + struct.pack("!QQq", lsn, 0, 0) + data for lsn, data in stream[row + 1 :]]
    keepalive = b"k" + struct.pack("!QqB", 0, 0, 0)
    assert assembler.feed_rows([frames[0], keepalive, frames[1]], 0) == (1, None)
    assert assembler.feed_rows([b"w" + frames[0][1:25]], 0) == (0, None)
    assert assembler.feed_rows([b"x" + frames[0][1:]], 0) == (0, None)


@pytest.mark.parametrize("version", _VERSIONS)
def test_rows_of_one_record_are_told_apart_by_their_ordinals(version: int) -> None:
    (chunk,) = _told("many_rows_in_a_record", version)
    assert len({change.lsn for change in chunk.changes}) == 1
    assert [change.ordinal for change in chunk.changes] == [0, 1, 2, 3]


@pytest.mark.parametrize("version", _VERSIONS)
def test_every_table_of_a_truncate_is_a_change(version: int) -> None:
    first, second = _told("truncate_many", version)
    assert _events([first]) == [("TRUNCATE", f"public.{name}") for name in ("parent", "other", "child")]
    assert [change.ordinal for change in first.changes] == [0, 1, 2]
    assert [change.ordinal for change in second.changes] == [0]
    assert first.changes[0].decode() is None


def test_a_position_is_the_same_however_the_stream_was_read() -> None:
    stream = _load(18, "many_rows_in_a_record")
    at_once = [(c.lsn, c.ordinal) for chunk in _told("many_rows_in_a_record") for c in chunk.changes]
    assembler, one_by_one = Assembler(_TYPE_NAMES), []
    for lsn, data in stream:
        for chunk in (assembler.feed(lsn, data), assembler.take()):
            if chunk is not None:
                one_by_one += [(c.lsn, c.ordinal) for c in chunk.changes]
    assert one_by_one == at_once


def test_origins_and_logical_messages_are_passed_over() -> None:
    for name in ("origin", "logical_messages"):
        assert _events(_told(name)) == [("INSERT", "public.users")]


# Bounds


def test_a_transaction_leaves_in_chunks_of_so_many_rows() -> None:
    chunks = _told("many_rows_in_a_record", max_rows=3)
    assert [(len(chunk.changes), chunk.is_last) for chunk in chunks] == [(3, False), (1, True)]
    assert [change.ordinal for chunk in chunks for change in chunk.changes] == [0, 1, 2, 3]
    assert len({(chunk.commit_lsn, chunk.xid, chunk.committed_at) for chunk in chunks}) == 1


def test_a_transaction_leaves_in_chunks_of_so_many_bytes() -> None:
    (whole,) = _told("many_rows_in_a_record")
    one = change_size(whole.changes[0])
    chunks = _told("many_rows_in_a_record", max_bytes=2 * one)
    assert [(len(chunk.changes), chunk.is_last) for chunk in chunks] == [(2, False), (2, False), (0, True)]
    assert [chunk.size for chunk in chunks] == [2 * one, 2 * one, 0]


def test_what_waits_can_be_taken_before_the_commit() -> None:
    stream, assembler = _load(18, "insert"), Assembler(_TYPE_NAMES)
    assert assembler.take() is None
    for lsn, data in stream[:-1]:
        assembler.feed(lsn, data)
    early = assembler.take()
    assert early is not None
    assert (len(early.changes), early.is_last) == (1, False)
    assert assembler.take() is None
    end = assembler.feed(*stream[-1])
    assert end is not None
    assert (end.changes, end.is_last, end.commit_lsn, end.size) == ([], True, early.commit_lsn, 0)


# Relations and types


@pytest.mark.parametrize("version", _VERSIONS)
def test_a_change_has_the_relation_as_it_was_at_that_moment(version: int) -> None:
    changes = [change for chunk in _told("altered_table", version) for change in chunk.changes]
    assert [[column.name for column in change.relation.columns] for change in changes] == [
        ["id", "name"],
        ["id", "name", "age"],
        ["id", "full_name"],
    ]
    assert len({change.relation.oid for change in changes}) == 1


def test_rows_of_one_table_share_its_relation() -> None:
    (chunk,) = _told("many_rows_in_a_record")
    assert len({id(change.relation) for change in chunk.changes}) == 1


@pytest.mark.parametrize("version", _VERSIONS)
def test_types_have_their_names(version: int) -> None:
    (chunk,) = _told("user_types", version)
    assert {column.name: column.type_name for column in chunk.changes[0].relation.columns} == {
        "id": "int4",
        "status": "user_status",
        "statuses": "_user_status",
        "domain_int": "int4",
        "domain_ts": "timestamptz",
        "composite": "comp",
        "composites": "_comp",
        "mood": "Mood!",
    }


def test_a_type_that_nobody_named_goes_by_its_oid() -> None:
    (chunk,) = _feed(Assembler({}), _load(18, "insert"))
    assert [column.type_name for column in chunk.changes[0].relation.columns] == ["20", "25"]


def test_hidden_tables_are_left_out_and_their_rows_still_count() -> None:
    hidden = {("public", "parent"), ("public", "child")}
    first, second = _told("truncate_many", hidden=hidden)
    assert _events([first, second]) == [("TRUNCATE", "public.other")] * 2
    # So that a position stays what it is when a table is hidden or shown.
    assert [change.ordinal for change in first.changes] == [1]


def test_a_transaction_of_hidden_tables_only_still_ends() -> None:
    (chunk,) = _told("insert", hidden={("public", "users")})
    assert (chunk.changes, chunk.is_last) == ([], True)


# What should not be


def test_a_change_of_an_unknown_relation_is_left_out_and_the_others_are_not() -> None:
    begin, relation, insert, commit = _load(18, "insert")
    stranger = (insert[0] + 1, insert[1][:1] + b"\0\0\xff\xff" + insert[1][5:])
    assembler = Assembler(_TYPE_NAMES)
    for lsn, data in (begin, relation, insert):
        assembler.feed(lsn, data)
    with pytest.raises(UnknownRelation) as caught:
        assembler.feed(*stranger)
    assert (caught.value.oid, caught.value.lsn) == (0xFFFF, stranger[0])
    assembler.feed(insert[0] + 2, insert[1])
    chunk = assembler.feed(*commit)
    assert chunk is not None
    assert [(change.lsn, change.ordinal) for change in chunk.changes] == [(insert[0], 0), (insert[0] + 2, 0)]


def test_what_cannot_be_read_has_its_position_and_the_others_keep_theirs() -> None:
    begin, relation, insert, commit = _load(18, "insert")
    stranger = insert[1][:1] + b"\0\0\xff\xff" + insert[1][5:]
    assembler = Assembler(_TYPE_NAMES)
    for lsn, data in (begin, relation, insert):
        assembler.feed(lsn, data)
    with pytest.raises(UnknownRelation):
        assembler.feed(insert[0], stranger)
    commit_lsn = assembler.open_commit_lsn
    assert assembler.position == Position(commit_lsn or 0, insert[0], 1)
    assembler.feed(insert[0], insert[1])
    chunk = assembler.feed(*commit)
    assert chunk is not None
    assert [change.ordinal for change in chunk.changes] == [0, 2]


def test_a_relation_that_cannot_be_read_is_unknown_from_then_on() -> None:
    # What follows has other columns: to read it as what the table was before would be worse than to leave it out.
    begin, relation, insert, _ = _load(18, "insert")
    assembler = Assembler(_TYPE_NAMES)
    for lsn, data in (begin, relation, insert):
        assembler.feed(lsn, data)
    with pytest.raises(PgOutputError):
        assembler.feed(relation[0], relation[1][:-3])
    with pytest.raises(UnknownRelation):
        assembler.feed(insert[0] + 1, insert[1])
    assembler.feed(*relation)
    assert assembler.feed(insert[0] + 2, insert[1]) is None


@pytest.mark.parametrize("data", [b"", b"?", b"I", b"U\0", b"D\0\0\0", b"B\0", b"R\0\0\0\0"], ids=repr)
def test_a_message_that_cannot_be_read_is_reported_and_the_transaction_goes_on(data: bytes) -> None:
    begin, relation, insert, commit = _load(18, "insert")
    for prefix in ([begin], [begin, relation], [begin, relation, insert]):
        assembler = Assembler(_TYPE_NAMES)
        for lsn, message in prefix:
            assembler.feed(lsn, message)
        with pytest.raises(PgOutputError):
            assembler.feed(insert[0], data)
        chunk = assembler.feed(*commit)
        assert chunk is not None
        assert len(chunk.changes) == len(prefix) // 3


def test_a_transaction_inside_another_cannot_be() -> None:
    begin, *_ = _load(18, "insert")
    assembler = Assembler(_TYPE_NAMES)
    assembler.feed(*begin)
    with pytest.raises(ProtocolViolation) as caught:
        assembler.feed(*begin)
    assert caught.value.lsn == begin[0]


def test_a_commit_that_nothing_began_cannot_be() -> None:
    *_, commit = _load(18, "insert")
    with pytest.raises(ProtocolViolation):
        Assembler(_TYPE_NAMES).feed(*commit)


def test_a_commit_of_another_transaction_cannot_be() -> None:
    first, second = _load(18, "insert"), _load(18, "update")
    assembler = Assembler(_TYPE_NAMES)
    assembler.feed(*first[0])
    with pytest.raises(ProtocolViolation):
        assembler.feed(*second[-1])


def test_a_change_outside_a_transaction_cannot_be() -> None:
    _, relation, insert, _ = _load(18, "insert")
    assembler = Assembler(_TYPE_NAMES)
    assembler.feed(*relation)
    with pytest.raises(ProtocolViolation):  # noqa: PT012 - at the change, or at the latest when it is taken
        assembler.feed(*insert)
        assembler.take()
