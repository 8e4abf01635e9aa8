"""The row that survives us: in which history we are, and whether we still are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.lsn import Position
from replication.models import DjangoRecordStore, ReplicationRecord
from replication.record import Epoch, Identity, Record, continue_history, contradicts, source_hash

_AT = datetime(2026, 11, 24, 16, 3, 1, 529232, tzinfo=UTC)
_EPOCH = Epoch(0x6B05E049B0871E00, 1, 1_700_000_000, "3b312a46")
_RECORD = Record(_EPOCH, Position(500, 490, 2), Position(400, 390, 0), 745, _AT)
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
    assert record == Record(replace(_EPOCH, generation=_NOW), Position(450, 0, 0), Position(450, 0, 0))


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


def test_a_promoted_standby_is_another_timeline_of_the_same_generation() -> None:
    record = _continued(_RECORD, replace(_SAME, timeline=2))
    assert record == replace(_RECORD, epoch=replace(_EPOCH, timeline=2))


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
    assert await ReplicationRecord.objects.acount() == 2


@pytest.mark.django_db(transaction=True)
async def test_a_record_that_this_version_cannot_read_is_none() -> None:
    await ReplicationRecord.objects.acreate(name="slot", epoch="from the future", published="?", floor="?")
    assert await DjangoRecordStore().load("slot") is None
