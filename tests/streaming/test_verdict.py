"""How everything is, in a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from streaming.verdict import duration, judge, milliseconds, size

ACTIVE = {"role": "active", "progress_age_s": 0.2, "error": None}
PROCESS = {"host": "web1", "pid": 7, "serves": True, "is_level": True, "loop_delay_s": 0.001}
SLOT = {"name": "walcast", "lost_because": None, "headroom": None}


def state(**changes: Any) -> dict[str, Any]:
    well: dict[str, Any] = {
        "replicators": [ACTIVE],
        "processes": [PROCESS],
        "slots": [SLOT],
        "our_slot": "walcast",
        "lag": {"bytes": 0, "s": 0.0},
        "p50": 0.0011,
        "p99": 0.004,
        "clients": 42,
        "changes_per_s": 3.0,
        "database_error": None,
        "roster_error": None,
        "paused_pid": None,
    }
    return well | changes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "All is well. 42 clients hear of a change 1.1 ms after its commit."),
        ({"clients": 1}, "All is well. One client hears of a change 1.1 ms after its commit."),
        ({"clients": 0}, "All is well. Nobody is listening yet."),
        ({"p50": None}, "All is well. 42 clients hear every change; at the moment there are none."),
    ],
)
def test_when_all_is_well_it_says_who_hears_and_how_soon(changes: dict[str, Any], sentence: str) -> None:
    verdict = judge(state(**changes))
    assert (verdict.level, verdict.sentence, verdict.findings) == ("good", sentence, ())


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"replicators": []}, "bad", "No replicator is running."),
        ({"replicators": [], "paused_pid": 12}, "bad", "is silent"),
        ({"replicators": [ACTIVE | {"progress_age_s": 30.0}]}, "bad", "silent for 30 s"),
        ({"replicators": [{"role": "standby"}]}, "bad", "standing by"),
        ({"replicators": [{"role": "connecting"}]}, "fair", "connecting"),
        ({"lag": {"bytes": 5_000_000, "s": 12.0}}, "fair", "12 s behind: 5.0 MB"),
        ({"lag": {"bytes": 5_000_000, "s": 120.0}}, "bad", "2 min behind"),
        ({"slots": [SLOT | {"lost_because": "wal_status = lost"}]}, "bad", "is lost"),
        ({"processes": []}, "bad", "No process serves sockets."),
        ({"processes": [PROCESS | {"is_level": False}]}, "fair", "web1 (7) is behind"),
        ({"processes": [PROCESS | {"loop_delay_s": 2.0}]}, "fair", "its loop is 2.0 s late"),
        ({"p99": 3.0}, "fair", "3.0 s or more"),
        ({"database_error": "connection refused"}, "fair", "cannot ask the database"),
        ({"roster_error": "connection refused"}, "bad", "Redis does not answer."),
    ],
)
def test_what_is_not_well_is_said_with_what_to_do(changes: dict[str, Any], level: str, words: str) -> None:
    verdict = judge(state(**changes))
    assert verdict.level == level
    assert words in verdict.sentence
    assert all(finding.why and finding.cure and finding.section for finding in verdict.findings)


def test_an_error_that_needs_somebody_is_quoted() -> None:
    error = {"kind": "WalLevelTooLow", "message": "wal_level is replica; set it", "needs_somebody": True}
    (finding,) = judge(state(replicators=[{"role": "connecting", "error": error}])).findings
    assert finding.why == "wal_level is replica; set it"


@pytest.mark.parametrize(("share", "level"), [(0.3, "good"), (0.6, "fair"), (0.9, "bad")])
def test_the_room_of_our_slot_is_watched(share: float, level: str) -> None:
    headroom = {"name": "max_slot_wal_keep_size", "share": share, "left_s": 3600.0}
    assert judge(state(slots=[SLOT | {"headroom": headroom}])).level == level
    assert judge(state(slots=[SLOT | {"name": "foreign", "headroom": headroom}])).level == "good"


def test_the_worst_comes_first() -> None:
    verdict = judge(state(p99=3.0, replicators=[]))
    assert [finding.level for finding in verdict.findings] == ["bad", "fair"]
    assert verdict.as_json()["findings"][0]["what"] == verdict.sentence


def test_amounts_are_said_as_people_say_them() -> None:
    assert [milliseconds(0.0008), milliseconds(0.012), milliseconds(1.4)] == ["0.8 ms", "12 ms", "1.4 s"]
    assert [size(512), size(64_000), size(1.5e9), size(2e15)] == ["512 bytes", "64 kB", "1.5 GB", "2000 TB"]
    assert [duration(40), duration(720), duration(18_000), duration(300_000)] == ["40 s", "12 min", "5 h", "3 days"]
