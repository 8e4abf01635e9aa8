"""Received, published, kept: and so which LSN may be acknowledged."""

from __future__ import annotations

import pytest

from replication.copy_both import PrimaryKeepalive
from replication.progress import REPORT_PAUSE_S, STATUS_INTERVAL_S, Progress


def _keepalive(wal_end: int, *, asks: bool = False) -> PrimaryKeepalive:
    return PrimaryKeepalive(wal_end, 0, asks)


def _acknowledgeable(
    progress: Progress, kept: int | None = None, opened: int | None = None, *, unpublished: bool = False
) -> int:
    return progress.acknowledgeable(oldest_kept=kept, open_commit_lsn=opened, unpublished=unpublished)


@pytest.fixture
def permanent() -> Progress:
    return Progress(permanent=True)


@pytest.fixture
def temporary() -> Progress:
    return Progress(permanent=False)


# A permanent slot


def test_the_oldest_kept_transaction_is_what_is_acknowledged(permanent: Progress) -> None:
    permanent.transaction_published(300)
    permanent.heard(_keepalive(400), idle=True, now=0)
    assert _acknowledgeable(permanent, kept=100) == 100


def test_an_open_transaction_holds_back_what_is_acknowledged(permanent: Progress) -> None:
    permanent.heard(_keepalive(400), idle=False, now=0)
    assert _acknowledgeable(permanent, kept=200, opened=100) == 100
    assert _acknowledgeable(permanent, kept=200, opened=300) == 200
    assert _acknowledgeable(permanent, opened=300) == 300


def test_with_nothing_kept_the_keepalive_moves_the_slot(permanent: Progress) -> None:
    permanent.heard(_keepalive(400), idle=True, now=0)
    assert _acknowledgeable(permanent) == 400


def test_what_was_received_but_not_by_a_keepalive_moves_nothing(permanent: Progress) -> None:
    permanent.received(400)
    assert _acknowledgeable(permanent) == 0


def test_a_keepalive_inside_a_transaction_moves_nothing(permanent: Progress) -> None:
    permanent.heard(_keepalive(400), idle=False, now=0)
    assert _acknowledgeable(permanent) == 0


def test_what_is_not_published_is_not_acknowledged(permanent: Progress, temporary: Progress) -> None:
    for progress in (permanent, temporary):
        progress.heard(_keepalive(400), idle=True, now=0)
        assert _acknowledgeable(progress, unpublished=True) == 0


def test_a_published_transaction_that_is_kept_is_not_acknowledged(permanent: Progress) -> None:
    permanent.transaction_published(300)
    assert _acknowledgeable(permanent) == 0


def test_what_was_acknowledged_is_never_taken_back(permanent: Progress) -> None:
    permanent.heard(_keepalive(400), idle=True, now=0)
    assert _acknowledgeable(permanent) == 400
    # Sent again after a reconnection: the ring has an older transaction than what was acknowledged.
    assert _acknowledgeable(permanent, kept=100) == 400
    permanent.heard(_keepalive(300), idle=True, now=1)
    assert _acknowledgeable(permanent) == 400


# A temporary slot


def test_a_temporary_slot_is_acknowledged_when_published(temporary: Progress) -> None:
    temporary.transaction_published(300)
    assert _acknowledgeable(temporary, kept=100) == 300
    assert _acknowledgeable(temporary, kept=100, unpublished=True) == 300


def test_an_idle_temporary_slot_moves_with_the_keepalives(temporary: Progress) -> None:
    temporary.transaction_published(300)
    temporary.heard(_keepalive(400), idle=True, now=0)
    assert _acknowledgeable(temporary, kept=100, opened=350) == 300
    assert _acknowledgeable(temporary, kept=100) == 400


# The status


def test_a_status_is_due_at_once_and_then_now_and_again(permanent: Progress) -> None:
    assert permanent.status_due(10.0)
    permanent.status(0, 10.0, 0)
    assert not permanent.status_due(10.0 + STATUS_INTERVAL_S - 0.01)
    assert permanent.status_due(10.0 + STATUS_INTERVAL_S)


def test_a_status_is_due_when_the_server_asks(permanent: Progress) -> None:
    permanent.status(0, 10.0, 0)
    permanent.heard(_keepalive(400, asks=True), idle=True, now=10.1)
    assert permanent.status_due(10.1)
    permanent.status(0, 10.1, 0)
    assert not permanent.status_due(10.2)


def test_a_status_says_what_was_received_and_what_may_go(permanent: Progress) -> None:
    permanent.received(500)
    status = permanent.status(400, 10.0, sent_at=123)
    assert (status.written_lsn, status.flushed_lsn, status.applied_lsn, status.sent_at) == (500, 400, 400, 123)
    assert status.reply_requested, "a status of our own accord asks whether the server lives"


def test_an_answer_asks_nothing_back(permanent: Progress) -> None:
    permanent.heard(PrimaryKeepalive(500, 0, True), idle=True, now=10.0)
    assert not permanent.status(400, 10.0, sent_at=123).reply_requested
    assert permanent.status(400, 20.0, sent_at=456).reply_requested


def test_what_may_go_counts_as_received(permanent: Progress) -> None:
    assert permanent.status(400, 10.0, 0).written_lsn == 400


def test_the_server_hears_how_far_we_are_once_and_on_a_busy_stream_not_too_often(permanent: Progress) -> None:
    permanent.received(500)
    assert permanent.report_due(10.0)
    report = permanent.report(400, 10.0, sent_at=123)
    assert (report.written_lsn, report.flushed_lsn, report.applied_lsn, report.sent_at) == (500, 400, 400, 123)
    assert not report.reply_requested
    assert not permanent.report_due(20.0), "it knows that"
    permanent.received(600)
    assert not permanent.report_due(10.0 + REPORT_PAUSE_S / 2)
    assert permanent.report_due(10.0 + REPORT_PAUSE_S)
    permanent.report(400, 10.1, 0)
    permanent.reconnected()
    assert permanent.report_due(10.1), "another walsender knows nothing"


def test_a_report_is_no_status(permanent: Progress) -> None:
    permanent.received(500)
    permanent.report(400, 10.0, 0)
    assert permanent.status_due(10.0)


# A server that shuts down


def test_a_server_that_asks_again_and_again_waits_for_us(permanent: Progress) -> None:
    for number in range(3):
        assert not permanent.server_waits_for_us
        permanent.heard(_keepalive(400, asks=True), idle=True, now=10 + number / 1000)
    assert permanent.server_waits_for_us


def test_questions_far_apart_are_those_of_a_healthy_server(permanent: Progress) -> None:
    for number in range(10):
        permanent.heard(_keepalive(400, asks=True), idle=True, now=10.0 + number)
    assert not permanent.server_waits_for_us


def test_questions_with_news_are_those_of_a_healthy_server(permanent: Progress) -> None:
    for number in range(10):
        permanent.heard(_keepalive(400 + number, asks=True), idle=True, now=10 + number / 1000)
    assert not permanent.server_waits_for_us


def test_keepalives_that_ask_nothing_are_no_questions(permanent: Progress) -> None:
    for number in range(10):
        permanent.heard(_keepalive(400), idle=True, now=10 + number / 1000)
    assert not permanent.server_waits_for_us


def test_a_new_connection_begins_without_old_questions(permanent: Progress) -> None:
    for number in range(3):
        permanent.heard(_keepalive(400, asks=True), idle=True, now=10 + number / 1000)
    permanent.status(0, 10.0, 0)
    permanent.reconnected()
    assert not permanent.server_waits_for_us
    assert permanent.status_due(10.0)
