"""The row that survives us: in which history we are, and whether we still are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.errors import RecordIsAhead
from replication.lsn import Position
from replication.models import DjangoRecordStore, ReplicationRecord
from replication.record import Epoch, Identity, Record, Reunion, continue_history, contradicts, source_hash

_AT = datetime(2026, 11, 24, 16, 3, 1, 529232, tzinfo=UTC)
_EPOCH = Epoch(0x6B05E049B0871E00, 1, 1_700_000_000, "3b312a46")
_RECORD = Record(_EPOCH, Position(500, 490, 2), Position(400, 390, 0), 745, _AT, 460)
_SAME = Identity(_EPOCH.system_id, 1, 1000, "3b312a46")
_NOW = 1_800_000_000


def _continued(record: Record | None, identity: Identity = _SAME, *, is_new: bool = False, now: int = _NOW) -> Record:
    return continue_history(record, identity, slot_lsn=450, slot_is_new=is_new, now=now)


# The epoch


@given(
    st.builds(Epoch, st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1), st.integers(0, 2**40), st.just("3b312a46"))
)
def test_every_epoch_is_read_back(epoch: Epoch) -> None:
    assert Epoch.parse(str(epoch)) == epoch
    assert "." not in str(epoch)  # it stands before the first dot of a client's position


@pytest.mark.parametrize("text", ["", "a", "a-b-c", "x-1-1-s", "1-1-1-s-s"])
def test_what_is_no_epoch_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Epoch.parse(text)


def test_the_source_names_the_database_and_its_publications_in_any_order() -> None:
    assert source_hash("db", ["a", "b"]) == source_hash("db", ["b", "a"])
    others = [source_hash("db", ["a"]), source_hash("db2", ["a", "b"]), source_hash("db", ["a,b"]), source_hash("", [])]
    assert len({source_hash("db", ["a", "b"]), *others}) == 5


# Going on


def test_the_same_history_goes_on_as_recorded() -> None:
    assert _continued(_RECORD) == _RECORD


def test_without_a_record_a_history_begins_at_the_slot() -> None:
    record = _continued(None)
    start = Position(450, 0, 0)
    assert record == Record(replace(_EPOCH, generation=_NOW), start, start, acknowledged_lsn=450)


@pytest.mark.parametrize(
    ("identity", "is_new"),
    [
        (_SAME, True),
        (replace(_SAME, system_id=1), False),
        (replace(_SAME, source="other"), False),
        (replace(_SAME, wal_lsn=499), False),
    ],
    ids=["new slot", "other cluster", "other publications", "WAL went back"],
)
def test_another_history_is_another_generation(identity: Identity, is_new: bool) -> None:
    record = _continued(_RECORD, identity, is_new=is_new)
    assert record.epoch == Epoch(identity.system_id, identity.timeline, _NOW, identity.source)
    assert record.epoch.generation > _EPOCH.generation
    assert record.published == record.floor == Position(450, 0, 0)
    assert (record.xid, record.committed_at) == (0, None)


def test_generations_rise_even_where_the_clock_went_back() -> None:
    assert _continued(_RECORD, is_new=True, now=5).epoch.generation == _EPOCH.generation + 1


def test_a_server_that_ends_where_we_published_has_not_gone_back() -> None:
    assert _continued(_RECORD, replace(_SAME, wal_lsn=500)) == _RECORD


def _promoted(switch_lsn: int, timeline: int = 2) -> Identity:
    return replace(_SAME, timeline=timeline, wal_lsn=switch_lsn + 50, switches=((1, switch_lsn),))


def test_a_promoted_standby_that_has_all_of_it_goes_on_as_recorded() -> None:
    assert _continued(_RECORD, _promoted(501)) == replace(_RECORD, epoch=replace(_EPOCH, timeline=2))


def test_a_promoted_standby_that_lacks_the_end_goes_on_where_it_was_promoted() -> None:
    record, switch = _continued(_RECORD, _promoted(480)), Position(480, 0, 0)
    assert record == Record(replace(_EPOCH, timeline=2), switch, _RECORD.floor, acknowledged_lsn=460)


def test_the_floor_is_not_above_the_promotion() -> None:
    record = continue_history(_RECORD, _promoted(300), slot_lsn=250, slot_is_new=False, now=_NOW)
    assert record.published == record.floor == Position(300, 0, 0)
    assert record.acknowledged_lsn == 300


def test_a_timeline_of_unknown_descent_is_another_generation() -> None:
    for identity in (replace(_SAME, timeline=2), replace(_promoted(501, 3), switches=((2, 501),))):
        assert _continued(_RECORD, identity).epoch == Epoch(_EPOCH.system_id, identity.timeline, _NOW, "3b312a46")


def test_a_slot_that_stands_further_than_was_acknowledged_is_another_generation() -> None:
    record = continue_history(_RECORD, _SAME, slot_lsn=461, slot_is_new=False, now=_NOW)
    assert record.epoch.generation == _NOW
    assert record.published == record.floor == Position(461, 0, 0)


def test_a_record_of_a_later_timeline_or_generation_is_ahead_whatever_it_has_published() -> None:
    later = replace(_RECORD, published=Position(480, 0, 0), epoch=replace(_EPOCH, timeline=2))
    assert later.is_ahead_of(_RECORD)
    assert not _RECORD.is_ahead_of(later)
    assert replace(later, epoch=replace(_EPOCH, generation=_NOW)).is_ahead_of(later)


# Contradictions


def test_the_recorded_transaction_does_not_contradict_the_record() -> None:
    assert not contradicts(_RECORD, 500, 745, _AT)


@pytest.mark.parametrize(("xid", "at"), [(746, _AT), (745, _AT + timedelta(microseconds=1))])
def test_another_transaction_at_the_published_position_contradicts_the_record(xid: int, at: datetime) -> None:
    assert contradicts(_RECORD, 500, xid, at)


def test_transactions_elsewhere_do_not_contradict_the_record() -> None:
    assert not contradicts(_RECORD, 499, 1, _AT)
    assert not contradicts(_RECORD, 501, 1, _AT)


def test_a_record_that_knows_no_transaction_is_not_contradicted() -> None:
    assert not contradicts(replace(_RECORD, xid=0, committed_at=None), 500, 1, _AT)


def test_the_recorded_transaction_met_again_is_no_contradiction() -> None:
    reunion = Reunion(_RECORD, 450)
    assert not reunion.contradicted_by(460, 7, _AT)
    assert not reunion.contradicted_by(500, 745, _AT)
    assert not reunion.contradicted_by(510, 746, _AT)


def test_another_transaction_or_none_where_the_recorded_one_was_is_a_contradiction() -> None:
    assert Reunion(_RECORD, 450).contradicted_by(500, 746, _AT)
    assert Reunion(_RECORD, 500).contradicted_by(510, 746, _AT)


def test_where_the_recorded_transaction_is_not_sent_again_nothing_is_a_contradiction() -> None:
    assert not Reunion(_RECORD, 501).contradicted_by(510, 746, _AT)
    assert not Reunion(replace(_RECORD, committed_at=None), 450).contradicted_by(510, 746, _AT)


# In the Django database


@pytest.mark.django_db(transaction=True)
async def test_a_record_survives_in_the_django_database() -> None:
    store = DjangoRecordStore()
    assert await store.load("slot") is None
    await store.save("slot", _RECORD)
    assert await store.load("slot") == _RECORD
    later = replace(_RECORD, published=Position(2**64 - 1, 2**64 - 1, 10**9), committed_at=None)
    await store.save("slot", later)
    await store.save("other", _RECORD)
    assert await store.load("slot") == later
    with pytest.raises(RecordIsAhead):
        await store.save("slot", _RECORD)
    assert await store.load("slot") == later
    assert await ReplicationRecord.objects.acount() == 2


@pytest.mark.django_db(transaction=True)
async def test_a_record_that_this_version_cannot_read_is_none() -> None:
    await ReplicationRecord.objects.acreate(name="slot", epoch="from the future", published="?", floor="?")
    assert await DjangoRecordStore().load("slot") is None
