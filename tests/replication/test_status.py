"""What a replicator counts of itself, and how it tells."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from replication.changes import Change, Chunk, Relation
from replication.errors import PublicationMissing, SlotIsActive, StreamEnded
from replication.lsn import LSN, Position
from replication.status import MOST_TABLES, OTHER_TABLES, Meter, plain

NOW = datetime(2026, 11, 25, 19, 0, tzinfo=UTC)


def relation(name: str) -> Relation:
    return Relation(1, "public", name, "d", ())


def chunk(*relations: Relation, is_last: bool = True) -> Chunk:
    return Chunk(1, NOW, 1, [Change(number, 0, table, b"I") for number, table in enumerate(relations)], is_last)


def test_changes_are_counted_by_table() -> None:
    meter, one, other = Meter(), relation("one"), relation("other")
    meter.read(chunk(one, one, one, is_last=False))
    meter.read(chunk(one, other))
    meter.read(chunk())

    assert (meter.changes, meter.transactions) == (5, 2)
    assert meter.by_table() == {"public.one": 4, "public.other": 1}


def test_a_table_that_was_altered_is_still_the_same_table() -> None:
    meter = Meter()
    meter.read(chunk(relation("one")))
    meter.read(chunk(relation("one"), relation("one")))
    assert meter.by_table() == {"public.one": 3}


def test_only_so_many_tables_have_names_and_no_count_falls() -> None:
    meter = Meter()
    tables = [relation(f"t{number}") for number in range(MOST_TABLES + 20)]
    for table in tables:
        meter.read(chunk(table, table))
    first = meter.by_table()
    assert len(first) == MOST_TABLES + 1
    assert first[OTHER_TABLES] == 40
    assert sum(first.values()) == meter.changes

    for table in tables[::-1][:50]:
        meter.read(chunk(*[table] * 100))
    then = meter.by_table()
    assert set(then) == set(first)
    assert all(then[name] >= count for name, count in first.items())


def test_rates_are_those_of_the_last_seconds() -> None:
    meter, table = Meter(), relation("one")
    assert meter.rates(1000, 0.0).changes_per_s == 0.0
    for second in range(1, 21):
        meter.read(chunk(*[table] * 10))
        rates = meter.rates(1000 + second * 500, float(second))
    assert rates.changes_per_s == pytest.approx(10, rel=0.01)
    assert rates.transactions_per_s == pytest.approx(1, rel=0.01)
    assert rates.wal_bytes_per_s == pytest.approx(500, rel=0.01)
    for second in range(21, 30):
        rates = meter.rates(11_000, float(second))
    assert (rates.changes_per_s, rates.wal_bytes_per_s) == (0.0, 0.0)


def test_a_server_whose_wal_went_back_has_no_negative_rate() -> None:
    meter = Meter()
    meter.rates(5000, 0.0)
    assert meter.rates(100, 1.0).wal_bytes_per_s == 0.0


def test_trouble_that_comes_again_and_again_has_begun_when_it_came_first() -> None:
    meter = Meter()
    meter.failed(StreamEnded("cut"), 10.0)
    meter.failed(StreamEnded("cut"), 20.0)
    assert meter.trouble is not None
    assert (meter.trouble.kind, meter.trouble.at, meter.trouble.needs_somebody) == ("StreamEnded", 10.0, False)
    meter.failed(PublicationMissing(["pub"], "app"), 30.0)
    assert (meter.trouble.at, meter.trouble.needs_somebody) == (30.0, True)
    meter.streams(40.0)
    assert meter.trouble is None


def test_who_waits_for_another_is_a_standby() -> None:
    meter = Meter()
    roles: list[str] = [meter.role]
    meter.failed(SlotIsActive("walcast", 7), 1.0)
    roles.append(meter.role)
    meter.streams(2.0)
    roles.append(meter.role)
    meter.failed(StreamEnded("cut"), 3.0)
    roles.append(meter.role)
    assert roles == ["connecting", "standby", "active", "connecting"]
    assert meter.connections == 1


def test_it_tells_in_values_that_json_has() -> None:
    told = plain({"lsn": LSN(255), "at": Position(1, 2, 3), "moment": NOW, "many": (LSN(1), None, 1.5), "b": True})
    assert json.loads(json.dumps(told)) == {
        "lsn": "0/FF",
        "at": "1.2.3",
        "moment": "2026-11-25T19:00:00+00:00",
        "many": ["0/1", None, 1.5],
        "b": True,
    }
