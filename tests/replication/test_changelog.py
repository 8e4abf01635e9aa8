"""The ring: what can still be replayed, and what has left."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.changelog import Changelog, Tombstone
from replication.changes import Change, Chunk, Relation, change_size
from replication.errors import BelowFloor
from replication.lsn import BEGINNING, Position

_AT = datetime(2026, 11, 24, tzinfo=UTC)
_TABLE = Relation(1, "public", "t", "d", ())
_ONE = change_size(Change(0, 0, _TABLE, b"I"))


def _chunk(commit_lsn: int, *lsns: int) -> Chunk:
    changes = [Change(lsn, 0, _TABLE, b"I") for lsn in lsns or (commit_lsn - 1,)]
    return Chunk(commit_lsn, _AT, 1, changes, True, len(changes) * _ONE)


def _lsns(log: Changelog, position: Position = BEGINNING) -> list[int]:
    return [change.lsn for chunk in log.since(position) for change in chunk.changes]


def _filled(count: int = 3, **bounds: float) -> Changelog:
    """Transactions at 10, 20, … that came at second 1, 2, …"""
    log = Changelog(**bounds)  # type: ignore[arg-type]
    for number in range(1, count + 1):
        log.append(_chunk(number * 10), now=float(number))
    return log


_EVERYTHING = Position(2**63, 0, 0)


def test_a_new_ring_has_nothing_and_misses_nothing() -> None:
    log = Changelog()
    assert (log.floor, log.last, log.size, len(log), log.oldest_commit_lsn) == (BEGINNING, BEGINNING, 0, 0, None)
    assert list(log.since(BEGINNING)) == []


def test_changes_are_kept_in_order() -> None:
    log = _filled()
    assert _lsns(log) == [9, 19, 29]
    assert (log.last, log.size, log.oldest_commit_lsn) == (Position(30, 29, 0), 3 * _ONE, 10)


def test_what_is_here_already_is_dropped_and_the_rest_comes_back() -> None:
    log = _filled(2)
    assert log.append(_chunk(20), now=5) is None
    assert log.append(_chunk(10), now=5) is None
    above = log.append(_chunk(20, 19, 21, 22), now=5)
    assert above is not None
    assert [change.lsn for change in above.changes] == [21, 22]
    assert _lsns(log) == [9, 19, 21, 22]
    assert log.size == 4 * _ONE


def test_an_empty_chunk_is_nothing_to_keep() -> None:
    log = Changelog()
    assert log.append(Chunk(10, _AT, 1, [], True), now=0) is None
    assert len(log) == 0


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (BEGINNING, [9, 19, 29]),
        (Position(10, 9, 0), [19, 29]),
        (Position(10, 9, 7), [19, 29]),
        (Position(15, 0, 0), [19, 29]),
        (Position(30, 28, 0), [29]),
        (Position(30, 29, 0), []),
        (_EVERYTHING, []),
    ],
    ids=str,
)
def test_what_follows_a_position_is_replayed(position: Position, expected: list[int]) -> None:
    assert _lsns(_filled(), position) == expected


def test_a_replay_can_begin_inside_a_transaction() -> None:
    log = Changelog()
    log.append(_chunk(10, 1, 2, 3), now=0)
    assert _lsns(log, Position(10, 2, 0)) == [3]


# What leaves


def test_what_is_too_old_leaves_and_becomes_the_floor() -> None:
    log = _filled(max_age_s=10)
    log.evict(now=10.9, keep_above=_EVERYTHING)
    assert (_lsns(log), log.floor) == ([9, 19, 29], BEGINNING)
    log.evict(now=12, keep_above=_EVERYTHING)
    assert log.floor == Position(20, 19, 0)
    assert _lsns(log, log.floor) == [29]
    assert (log.size, log.oldest_commit_lsn) == (_ONE, 30)


def test_what_is_too_much_leaves_oldest_first() -> None:
    log = _filled(max_bytes=2 * _ONE)
    assert log.is_full
    log.evict(now=3, keep_above=_EVERYTHING)
    assert not log.is_full
    assert log.floor == Position(10, 9, 0)
    assert _lsns(log, log.floor) == [19, 29]


@pytest.mark.parametrize(("max_bytes", "max_age_s"), [(0, 1000.0), (1 << 30, 0.0)], ids=["by bytes", "by age"])
def test_what_is_not_published_does_not_leave(max_bytes: int, max_age_s: float) -> None:
    log = _filled(max_bytes=max_bytes, max_age_s=max_age_s)
    log.evict(now=100, keep_above=BEGINNING)
    assert _lsns(log) == [9, 19, 29]
    log.evict(now=100, keep_above=Position(20, 18, 0))
    assert log.floor == Position(10, 9, 0)
    log.evict(now=100, keep_above=Position(20, 19, 0))
    assert (log.floor, _lsns(log, log.floor)) == (Position(20, 19, 0), [29])


def test_what_has_left_cannot_be_replayed_and_nothing_is_passed_over() -> None:
    log = _filled(max_age_s=0)
    log.evict(now=100, keep_above=Position(20, 19, 0))
    for below in (BEGINNING, Position(10, 9, 0), Position(20, 18, 9)):
        with pytest.raises(BelowFloor) as caught:
            list(log.since(below))
        assert (caught.value.position, caught.value.floor) == (below, log.floor)


def test_an_empty_ring_keeps_its_floor() -> None:
    log = _filled(max_age_s=0)
    log.evict(now=100, keep_above=_EVERYTHING)
    assert (len(log), log.size, log.oldest_commit_lsn) == (0, 0, None)
    assert log.floor == log.last == Position(30, 29, 0)
    assert list(log.since(log.floor)) == []


def test_a_restart_forgets_everything_up_to_a_new_floor() -> None:
    log = _filled()
    log.restart(Position(15, 0, 0))
    assert (len(log), log.size, log.floor, log.last) == (0, 0, Position(15, 0, 0), Position(15, 0, 0))
    assert log.append(_chunk(10), now=5) is None
    assert log.append(_chunk(20), now=5) is not None


# Transactions that do not fit


_OTHER = Relation(2, "public", "other", "d", ())
_ITEMS, _REST = ("public", "t"), ("public", "other")


def _part(commit_lsn: int, lsn: int, relation: Relation = _TABLE) -> Chunk:
    return Chunk(commit_lsn, _AT, 1, [Change(lsn, 0, relation, b"I")], False, _ONE)


def _with_a_large_one() -> Changelog:
    """A bound of six; two small transactions, one of five rows (more than half), a small one; the first row is gone."""
    log = Changelog(max_bytes=6 * _ONE)
    for number in (10, 20):
        log.append(_part(number, number - 1, _OTHER), now=1)
    for lsn in range(30, 35):
        log.append(_part(50, lsn), now=2)
        log.evict(2, keep_above=_EVERYTHING)
    log.append(_part(60, 59, _OTHER), now=3)
    return log


def test_a_transaction_of_more_than_half_the_bound_buries_its_own_beginning() -> None:
    log = _with_a_large_one()
    first, second, tombstone, *rest = log.walk(BEGINNING)
    assert (first.last.commit_lsn, second.last.commit_lsn) == (10, 20)
    assert tombstone == Tombstone(Position(20, 19, 0), Position(50, 30, 0), frozenset({_ITEMS}))
    assert [item.last for item in rest] == [*(Position(50, lsn, 0) for lsn in range(31, 35)), Position(60, 59, 0)]
    assert (log.floor, log.oldest_commit_lsn) == (BEGINNING, 10)


def test_only_who_needs_what_is_buried_is_refused() -> None:
    log = _with_a_large_one()
    assert [chunk.commit_lsn for chunk in log.since(BEGINNING, needs=lambda table: table == _REST)][:2] == [10, 20]
    for needs in (None, lambda table: table == _ITEMS):
        with pytest.raises(BelowFloor):
            log.since(Position(50, 29, 0), needs=needs)
    assert len(list(log.since(Position(50, 30, 0)))) == 5


def test_a_replay_from_within_what_is_buried_begins_within_it() -> None:
    item, *_ = _with_a_large_one().walk(Position(50, 29, 0))
    assert item == Tombstone(Position(50, 29, 0), Position(50, 30, 0), frozenset({_ITEMS}))


def test_a_tombstone_at_the_head_need_not_be_sent_again() -> None:
    log = _with_a_large_one()
    log.shorten(30, keep_above=_EVERYTHING)
    assert log.floor == Position(20, 19, 0)
    assert log.recorded_floor == Position(50, 30, 0)
    assert log.oldest_commit_lsn == 50
    log.shorten(60, keep_above=_EVERYTHING)
    assert (log.floor, log.recorded_floor) == (Position(50, 34, 0),) * 2


def test_what_is_buried_grows_old_as_everything_does() -> None:
    log = _with_a_large_one()
    log.evict(1000, keep_above=_EVERYTHING)
    assert (len(log), log.size, log.floor) == (0, 0, log.last)


def test_a_large_transaction_is_not_buried_before_it_is_published() -> None:
    log = Changelog(max_bytes=_ONE)
    for lsn in range(30, 35):
        log.append(_part(50, lsn), now=2)
    log.evict(1000, keep_above=Position(50, 30, 0))
    assert log.floor == Position(50, 30, 0)
    assert len(list(log.since(log.floor))) == 4


def test_a_tombstone_that_came_from_elsewhere_is_kept_in_its_place() -> None:
    log, told = _filled(2), Tombstone(Position(20, 19, 0), Position(30, 25, 0), frozenset({_ITEMS}))
    log.bury(told, now=5)
    log.bury(Tombstone(BEGINNING, Position(20, 19, 0), frozenset()), now=5)  # nothing that is here gets lost by it
    assert log.append(_part(30, 25), now=5) is None
    log.append(_part(30, 26), now=5)
    assert [item.last for item in log.walk(Position(10, 9, 0))] == [
        Position(20, 19, 0),
        told.last,
        Position(30, 26, 0),
    ]


# Bounds of WAL, and other histories


def test_what_makes_the_server_keep_too_much_wal_leaves() -> None:
    log = _filled(max_wal_bytes=15)
    log.evict(now=3, keep_above=_EVERYTHING, wal_end=35)
    assert _lsns(log, log.floor) == [19, 29]
    log.evict(now=3, keep_above=Position(20, 19, 0), wal_end=1000)
    assert _lsns(log, log.floor) == [29]


def test_a_ring_is_shortened_when_asked() -> None:
    log = _filled()
    assert log.shorten(20, keep_above=_EVERYTHING)
    assert not log.shorten(20, keep_above=_EVERYTHING)
    assert _lsns(log, log.floor) == [19, 29]
    assert not log.shorten(1000, keep_above=BEGINNING)


def test_past_a_switch_of_timelines_what_never_was_is_forgotten() -> None:
    log = _filled()
    log.cut(40)
    assert _lsns(log) == [9, 19, 29]
    log.cut(20)
    assert (_lsns(log), log.last, log.size) == ([9], Position(10, 9, 0), _ONE)
    assert log.append(_chunk(25), now=5) is not None
    log.restart(Position(50, 49, 0))
    log.cut(45)
    assert log.floor == log.last == Position(45, 0, 0)


def test_many_that_have_left_take_no_room() -> None:
    log = _filled(5000, max_bytes=10 * _ONE)
    log.evict(5000, keep_above=_EVERYTHING)
    assert len(log) == len(list(log.since(log.floor))) == 10


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3)), max_size=20),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60)), max_size=5),
    st.integers(0, 8),
    st.integers(0, 60),
)
def test_above_the_floor_nothing_is_ever_missing(
    arrivals: list[tuple[int, int]], evictions: list[tuple[int, int]], bound: int, asked: int
) -> None:
    log, all_positions = Changelog(max_bytes=bound * _ONE, max_age_s=10), []
    for number, (commit_lsn, count) in enumerate(arrivals):
        if commit_lsn * 10 > log.last.commit_lsn:
            chunk = _chunk(commit_lsn * 10, *range(count))
            log.append(chunk, now=float(number))
            all_positions += [Position(chunk.commit_lsn, change.lsn, 0) for change in chunk.changes]
        for at, keep in evictions:
            if at == number:
                log.evict(float(number), keep_above=Position(keep * 10, 0, 0))
    position = Position(asked * 10, 0, 0)
    expected = [p for p in all_positions if p > position]
    # Everything is here, or a tombstone says that it was; what is here can be replayed in order.
    try:
        items = list(log.walk(position))
    except BelowFloor:
        assert position < log.floor
        return
    here = [Position(c.commit_lsn, change.lsn, 0) for c in items if isinstance(c, Chunk) for change in c.changes]
    buried = [(t.after, t.last) for t in items if isinstance(t, Tombstone)]
    assert here == sorted(here)
    assert sorted([*here, *(p for p in expected if any(after < p <= last for after, last in buried))]) == expected
    try:
        replayed = [Position(c.commit_lsn, change.lsn, 0) for c in log.since(position) for change in c.changes]
    except BelowFloor:
        assert buried
    else:
        assert not buried
        assert replayed == expected
    assert log.size == sum(item.size for item in log.walk(log.floor) if isinstance(item, Chunk))
