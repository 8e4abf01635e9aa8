"""The envelope: what goes in at the replicator comes out at the hubs, and nothing else is taken for one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.assembler import Assembler
from replication.changes import EVENTS, Change, Chunk, Column, Envelope, Relation, change_size
from replication.errors import EnvelopeError, PgOutputError
from replication.lsn import BEGINNING, Position
from replication.pgoutput import UNCHANGED_TOAST
from replication.publisher import Tick
from tests.golden import record

_AT = datetime(2026, 11, 24, 16, 3, 1, 529232, tzinfo=UTC)
_USERS = Relation(16385, "public", "users", "d", (Column("id", "int8", 20, -1 & 0xFFFFFFFF, True),))
_TODOS = Relation(16390, "odd:schema", "Tödos", "f", ())

_lsns = st.integers(0, 2**64 - 1)
_oids = st.integers(0, 2**32 - 1)
_columns = st.builds(
    Column,
    st.text(max_size=5),
    st.text(max_size=5),
    _oids,
    _oids,
    st.booleans(),
)
_relations = st.builds(
    Relation,
    _oids,
    st.text(max_size=5),
    st.text(max_size=5),
    st.sampled_from("dnfi"),
    st.lists(_columns, max_size=3).map(tuple),
)


@st.composite
def _chunks(draw: st.DrawFn) -> Chunk:
    relations = draw(st.lists(_relations, min_size=1, max_size=3))
    changes = draw(
        st.lists(
            st.builds(Change, _lsns, st.integers(0, 2**32), st.sampled_from(relations), st.binary(max_size=20)),
            min_size=1,
            max_size=4,
        )
    )
    at = draw(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)))
    size = sum(map(change_size, changes))
    return Chunk(
        draw(_lsns), at.replace(tzinfo=UTC), draw(st.integers(0, 2**32 - 1)), changes, draw(st.booleans()), size
    )


_envelopes = st.builds(
    Envelope,
    st.text(max_size=20),
    st.builds(Position, _lsns, _lsns, st.integers(0, 2**32)),
    st.builds(Position, _lsns, _lsns, st.integers(0, 2**32)),
    st.lists(_chunks(), max_size=3),
    st.frozensets(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=3),
)


def _plain(envelope: Envelope) -> Any:
    """An envelope as values that compare by what is in them: relations are compared by identity."""
    return (
        envelope.epoch,
        envelope.prev,
        envelope.last,
        envelope.missing,
        [
            (
                *(chunk.commit_lsn, chunk.committed_at, chunk.xid, chunk.is_last, chunk.size),
                [(change.lsn, change.ordinal, change.data, astuple(change.relation)) for change in chunk.changes],
            )
            for chunk in envelope.chunks
        ],
    )


def _envelope(*chunks: Chunk) -> Envelope:
    return Envelope("1a-1-2b-cafe", BEGINNING, chunks[-1].last, list(chunks))


def _chunk(*positions: tuple[int, int], commit_lsn: int = 100, is_last: bool = True) -> Chunk:
    changes = [Change(lsn, ordinal, _USERS, b"I") for lsn, ordinal in positions]
    return Chunk(commit_lsn, _AT, 745, changes, is_last, sum(map(change_size, changes)))


# There and back


@given(_envelopes)
def test_every_envelope_comes_back(envelope: Envelope) -> None:
    again = Envelope.decode(envelope.encode())
    assert _plain(again) == _plain(envelope)
    assert isinstance(again.prev, Position)
    assert isinstance(again.last, Position)


@pytest.mark.parametrize(("version", "name"), [(18, case.name) for case in record.CASES], ids=str)
def test_recorded_transactions_come_back(version: int, name: str) -> None:
    assembler, chunks = Assembler({23: "int4", 25: "text"}), []
    for lsn, data in record.load(version, name):
        if (chunk := assembler.feed(lsn, data)) is not None and chunk.changes:
            chunks.append(chunk)
    envelope = _envelope(*chunks)
    again = Envelope.decode(envelope.encode())
    assert _plain(again) == _plain(envelope)
    assert [c.decode() for chunk in again.chunks for c in chunk.changes] == [
        c.decode() for chunk in chunks for c in chunk.changes
    ]


def test_a_relation_travels_once_and_is_the_same_object_in_every_envelope() -> None:
    once = _envelope(Chunk(1, _AT, 7, [Change(1, 0, _USERS, b"x")]))
    often = _envelope(Chunk(1, _AT, 7, [Change(lsn, 0, _USERS, b"x") for lsn in range(20)]))
    assert len(often.encode()) - len(once.encode()) < 19 * 10
    first, second = Envelope.decode(once.encode()), Envelope.decode(often.encode())
    relations = {id(change.relation) for chunk in (*first.chunks, *second.chunks) for change in chunk.changes}
    assert len(relations) == 1


def test_a_relation_that_was_altered_is_another_one() -> None:
    altered = Relation(_USERS.oid, "public", "users", "d", (*_USERS.columns, Column("name", "text", 25, 0, False)))
    changes = [Change(1, 0, _USERS, b"x"), Change(2, 0, altered, b"x")]
    one, other = Envelope.decode(_envelope(Chunk(1, _AT, 7, changes)).encode()).chunks[0].changes
    assert one.relation is not other.relation
    assert [len(change.relation.columns) for change in (one, other)] == [1, 2]


def test_times_keep_their_microseconds_on_both_sides_of_the_epoch() -> None:
    for at in (_AT, datetime(1970, 1, 1, microsecond=1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC)):
        (chunk,) = Envelope.decode(_envelope(Chunk(1, at, 7, [Change(1, 0, _USERS, b"x")])).encode()).chunks
        assert chunk.committed_at == at
        assert chunk.committed_at.utcoffset() == timedelta(0)


def test_every_tick_comes_back() -> None:
    tick = Tick("1a2b3c4d", "1a-1-2b-cafe", 1780000000.25, Position(1, 2, 3), Position(4, 5, 6), 2**64 - 1)
    promoted = replace(tick, epoch="1a-2-2b-cafe", ancestors=(("1a-1-2b-cafe", 2**64 - 1), ("", 0)))
    assert Tick.decode(tick.encode()) == tick
    assert Tick.decode(promoted.encode()) == promoted


def test_positions_of_an_earlier_timeline_hold_up_to_the_promotion() -> None:
    tick = Tick("1", "third", 0.0, BEGINNING, BEGINNING, 0, (("first", 100), ("second", 200)))
    assert tick.holds("third", Position(999, 0, 0))
    assert tick.holds("first", Position(99, 98, 5))
    assert not tick.holds("first", Position(100, 1, 0))
    assert tick.holds("second", Position(150, 1, 0))
    assert not tick.holds("other", BEGINNING)


# What is no envelope


@given(st.binary(max_size=60))
def test_random_bytes_are_no_envelope(data: bytes) -> None:
    with pytest.raises(EnvelopeError):
        Envelope.decode(data)
    with pytest.raises(EnvelopeError):
        Tick.decode(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_packed_values_of_another_shape_are_no_envelope(value: Any) -> None:
    for decode in (Envelope.decode, Tick.decode):
        with pytest.raises(EnvelopeError):
            decode(msgpack.packb(value))


@given(_envelopes, st.data())
def test_a_mutated_envelope_is_an_envelope_or_refused(envelope: Envelope, draw: st.DataObject) -> None:
    data = envelope.encode()
    at = draw.draw(st.integers(0, len(data)))
    with suppress(EnvelopeError):
        mutated = data[:at] + draw.draw(st.binary(max_size=4)) + data[at + draw.draw(st.integers(0, 4)) :]
        assert isinstance(Envelope.decode(mutated), Envelope)


@given(_envelopes)
def test_an_envelope_that_is_cut_short_or_goes_on_is_refused(envelope: Envelope) -> None:
    data = envelope.encode()
    for wrong in (data[:-1], data[: len(data) // 2], data + b"\0"):
        with pytest.raises(EnvelopeError):
            Envelope.decode(wrong)


def test_an_envelope_of_another_version_is_named_as_one() -> None:
    fields = list(msgpack.unpackb(_envelope(_chunk((1, 0))).encode()))
    fields[0] += 1
    with pytest.raises(EnvelopeError, match="version 3, this process reads version 2"):
        Envelope.decode(msgpack.packb(fields))


# A change and its row


def test_a_change_names_its_event() -> None:
    assert [Change(1, 0, _USERS, bytes([kind])).event for kind in b"IUDT"] == ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    assert set(EVENTS) == set(b"IUDT")


def test_a_row_is_read_when_it_is_asked_for() -> None:
    row = Change(1, 0, _USERS, bytes.fromhex("49000040824e00036e75740000000162")).decode()
    assert row is not None
    assert row.new == [None, UNCHANGED_TOAST, "b"]
    assert Change(1, 0, _USERS, b"T").decode() is None
    with pytest.raises(PgOutputError):
        Change(1, 0, _USERS, b"I\0\0\0\0N").decode()


# Parts of a chunk


@pytest.mark.parametrize(
    ("position", "left"),
    [
        (BEGINNING, [(10, 0), (10, 1), (20, 0)]),
        (Position(99, 999, 9), [(10, 0), (10, 1), (20, 0)]),
        (Position(100, 9, 9), [(10, 0), (10, 1), (20, 0)]),
        (Position(100, 10, 0), [(10, 1), (20, 0)]),
        (Position(100, 10, 1), [(20, 0)]),
        (Position(100, 15, 0), [(20, 0)]),
        (Position(100, 20, 0), None),
        (Position(101, 0, 0), None),
    ],
    ids=str,
)
def test_what_stands_above_a_position_is_left(position: Position, left: list[tuple[int, int]] | None) -> None:
    chunk = _chunk((10, 0), (10, 1), (20, 0))
    above = chunk.above(position)
    assert (above and [(change.lsn, change.ordinal) for change in above.changes]) == left
    if above is not None:
        assert above.size == sum(map(change_size, above.changes))
        assert (above.commit_lsn, above.committed_at, above.xid, above.is_last) == (100, _AT, 745, True)


def test_a_chunk_that_stands_above_whole_is_not_copied() -> None:
    chunk = _chunk((10, 0))
    assert chunk.above(BEGINNING) is chunk
    assert (chunk.first, chunk.last) == (Position(100, 10, 0), Position(100, 10, 0))
