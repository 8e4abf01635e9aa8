"""What is said of servers and slots that nobody has at hand: old ones, far ones, and those that are in a bad way."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from replication import diagnosis
from replication.findings import Finding, Subject, listed, size
from replication.lsn import LSN
from replication.server import ServerFacts
from replication.slots import Limits, SlotStatus

FACTS = ServerFacts(
    version_num=180000,
    version="18.0",
    database="app",
    role="walcast",
    wal_level="logical",
    max_replication_slots=2,
    max_wal_senders=2,
    in_recovery=False,
    is_superuser=False,
    can_replicate=True,
)
SUBJECT = Subject("dbname=app", ("pub",), "walcast")
UNBOUNDED = Limits(None, 200_000_000, None, None)
GIB = 1 << 30


def slot(name: str = "walcast", **more: Any) -> SlotStatus:
    facts: dict[str, Any] = dict.fromkeys(SlotStatus.__slots__) | {
        "name": name,
        "plugin": "pgoutput",
        "slot_type": "logical",
        "database": "app",
        "temporary": False,
        "active": False,
        "restart_lsn": LSN(1),
        "confirmed_flush_lsn": LSN(1),
        "retained_bytes": 0,
        "lag_bytes": 0,
        "wal_status": "reserved",
    }
    return SlotStatus(**facts | more)


@pytest.mark.parametrize(
    ("version_num", "in_recovery", "level", "word"),
    [
        (90600, False, "failure", "has no publications"),
        (100000, False, "warning", "cannot bound what a slot keeps"),
        (130000, False, "ok", ""),
        (150000, True, "failure", "cannot decode the WAL on a standby"),
        (160000, True, "ok", "a standby"),
    ],
)
def test_a_version_is_judged_by_what_it_can_do(version_num: int, level: str, word: str, *, in_recovery: bool) -> None:
    finding = diagnosis.version(replace(FACTS, version_num=version_num, in_recovery=in_recovery))
    assert finding.level == level
    assert word in finding.message


@pytest.mark.parametrize(
    ("host", "encrypted", "level"),
    [
        ("db.example.org", False, "warning"),
        ("db.example.org", True, "ok"),
        ("db.example.org", None, "ok"),
        ("127.0.0.1", False, "ok"),
        ("/var/run/postgresql", False, "ok"),
    ],
)
def test_only_a_far_server_needs_encryption(host: str, level: str, *, encrypted: bool | None) -> None:
    assert diagnosis.reachable(host, 5432, FACTS, encrypted=encrypted).level == level


def test_without_a_free_slot_the_unread_ones_are_named() -> None:
    read, unread = slot("read", active=True), slot("unread")
    full = diagnosis.free_slots(FACTS, [read, unread], None)
    assert (full.level, full.sql) == ("failure", ["ALTER SYSTEM SET max_replication_slots = 6;"])
    assert "(unread)" in full.cure
    assert "all of them are read now" in diagnosis.free_slots(FACTS, [read, read], None).cure
    assert diagnosis.free_slots(FACTS, [read, unread], unread).level == "ok"  # ours is among them


def test_whoever_waits_for_an_active_slot_inherits_its_walsender() -> None:
    assert diagnosis.free_walsenders(FACTS, 2, None).level == "failure"
    assert diagnosis.free_walsenders(FACTS, 2, slot(active=True)).level == "ok"


def test_a_slot_of_another_database_is_not_ours() -> None:
    finding = diagnosis.slot(SUBJECT, FACTS, slot(database="other"))
    assert (finding.level, finding.sql) == ("failure", ["SELECT pg_drop_replication_slot('walcast');"])


def test_a_lost_slot_is_told_of_with_the_reason() -> None:
    finding = diagnosis.slot(SUBJECT, FACTS, slot(wal_status="lost", invalidation_reason="wal_removed"))
    assert finding.level == "warning"
    assert "invalidation_reason = wal_removed" in finding.message


def test_an_unread_slot_is_a_warning_once_it_keeps_much_wal() -> None:
    assert diagnosis.slot(SUBJECT, FACTS, slot(retained_bytes=GIB - 1)).level == "ok"
    assert diagnosis.slot(SUBJECT, FACTS, slot(retained_bytes=GIB, active=True)).level == "ok"
    finding = diagnosis.slot(SUBJECT, FACTS, slot(retained_bytes=GIB))
    assert finding.level == "warning"
    assert "keeps 1.0 GiB" in finding.message


def test_forgotten_slots_of_others_are_named_with_their_age() -> None:
    since = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
    others = [slot("old", retained_bytes=2 * GIB, inactive_since=since), slot("small"), slot(retained_bytes=2 * GIB)]
    (finding,) = diagnosis.other_slots(SUBJECT, others)
    assert finding.message.startswith("old: nobody reads it since 2026-11-01 12:30, and it keeps 2.0 GiB")


def test_headroom_is_judged_by_the_tightest_bound() -> None:
    bounded = replace(UNBOUNDED, max_slot_wal_keep_bytes=100)
    for left, level in ((60, "ok"), (50, "warning"), (20, "failure")):
        assert diagnosis.headroom(SUBJECT, slot(safe_wal_size=left), bounded, LSN(1)).level == level
    assert diagnosis.headroom(SUBJECT, slot(), UNBOUNDED, LSN(1)).level == "warning"
    tight = diagnosis.headroom(replace(SUBJECT, max_lag_bytes=10), slot(safe_wal_size=90), bounded, LSN(10))
    assert (tight.level, tight.message) == ("failure", "90 % of MAX_REPLICATION_LAG_MB is used")


def test_a_clock_is_wrong_only_by_what_the_way_does_not_explain() -> None:
    assert diagnosis.clock(105.0, asked_at=100.0, answered_at=110.0).level == "ok"
    assert "2.0 s ahead" in diagnosis.clock(112.0, asked_at=100.0, answered_at=110.0).message
    assert "3.0 s behind" in diagnosis.clock(97.0, asked_at=100.0, answered_at=110.0).message


def test_a_prepared_transaction_is_looked_for_where_it_is() -> None:
    finding = diagnosis.transactions(replace(UNBOUNDED, oldest_write_s=5.0, prepared_s=1200.0))
    assert (finding.level, finding.cure) == ("warning", "see pg_prepared_xacts, and end it")
    assert "20 minutes" in finding.message


def test_settings_that_surprise_are_told_of() -> None:
    assert list(diagnosis.settings(synchronous_commit="on", idle_slot_timeout="0")) == []
    found = diagnosis.settings(synchronous_commit="off", idle_slot_timeout="1h")
    assert [finding.check for finding in found] == ["synchronous_commit", "idle_replication_slot_timeout"]


def test_cures_are_those_of_who_runs_the_database() -> None:
    sick = [
        Finding("wal_level", "failure", "it is replica", "restart", ["ALTER SYSTEM SET wal_level = logical;"]),
        Finding("no pooler", "failure", "a pooler stands between", "connect to the server"),
        Finding("privilege", "ok", "a superuser"),
    ]
    level, pooler, privilege = diagnosis.in_the_words_of_the_provider(sick, "db1.abc.eu-west-1.rds.amazonaws.com")
    assert level.cure.startswith("with Amazon RDS or Aurora: set rds.logical_replication = 1")
    assert level.sql == ()
    assert pooler == sick[1]
    assert privilege == sick[2]

    _, pooler, _ = diagnosis.in_the_words_of_the_provider(sick, "ep-cool-dawn-1-pooler.eu-central-1.aws.neon.tech")
    assert "take -pooler out of the host name" in pooler.cure
    assert diagnosis.in_the_words_of_the_provider(sick, "localhost") == sick


def test_long_lists_are_cut_and_sizes_can_be_read() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcdefghij") == "a, b, c, d, e, f, g, h and 2 more"
    assert [size(count) for count in (512, 1536, 3 << 40)] == ["512 bytes", "1.5 KiB", "3.0 TiB"]
