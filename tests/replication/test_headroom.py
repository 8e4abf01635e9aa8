"""What is said of a slot's budget, and how old is what we have done with."""

from __future__ import annotations

import pytest

from replication.headroom import Budget, Doublings, LagClock, Level, Steps, wal_budget

MB = 1 << 20
GB = 1 << 30


def test_each_level_is_news_once() -> None:
    steps = Steps()
    said = [steps.take(share) for share in (0.1, 0.49, 0.5, 0.6, 0.79, 0.8, 0.81, 1.0, 3.0)]
    assert said == [None, None, Level.HALF, None, None, Level.MOST, None, Level.OVER, None]


def test_a_level_that_is_left_is_news_too_but_not_on_the_line() -> None:
    steps = Steps()
    assert steps.take(0.82) is Level.MOST
    assert [steps.take(share) for share in (0.79, 0.81, 0.78, 0.8)] == [None] * 4
    assert steps.take(0.6) is Level.HALF
    assert steps.take(0.2) is Level.FINE
    assert steps.take(0.2) is None


def test_a_level_that_comes_back_is_said_again() -> None:
    steps = Steps()
    assert [steps.take(share) for share in (0.5, 0.1, 0.5)] == [Level.HALF, Level.FINE, Level.HALF]


def test_a_leap_over_levels_says_the_highest_only() -> None:
    assert Steps().take(0.95) is Level.MOST


def test_the_servers_budget_counts_what_it_still_allows() -> None:
    # 16 MB segments: right after a switch a slot may have a segment more than the setting says.
    budget = wal_budget(max_slot_wal_keep_bytes=64 * MB, safe_wal_size=16 * MB, retained_bytes=60 * MB)
    assert (budget.used, budget.left, budget.share) == (48 * MB, 16 * MB, 0.75)
    assert wal_budget(max_slot_wal_keep_bytes=64 * MB, safe_wal_size=80 * MB, retained_bytes=0).share == 0.0
    over = wal_budget(max_slot_wal_keep_bytes=64 * MB, safe_wal_size=-8 * MB, retained_bytes=90 * MB)
    assert (over.left, over.share) == (0, 72 / 64)


def test_a_lost_slot_has_no_safe_size_and_its_kept_bytes_count() -> None:
    budget = wal_budget(max_slot_wal_keep_bytes=64 * MB, safe_wal_size=None, retained_bytes=32 * MB)
    assert budget.share == 0.5


@pytest.mark.parametrize("limit", [0, -1])
def test_a_budget_of_nothing_is_never_used(limit: int) -> None:
    assert Budget("x", limit, 5).share == 0.0


def test_what_has_no_bound_is_news_at_every_doubling() -> None:
    doublings = Doublings()
    said = [size for size in range(0, 9 * GB, GB // 4) if doublings.take(size)]
    assert said == [GB, 2 * GB, 4 * GB, 8 * GB]


def test_what_has_fallen_may_be_news_again() -> None:
    doublings = Doublings()
    assert doublings.take(4 * GB)
    assert not doublings.take(3 * GB)
    assert not doublings.take(GB)
    assert doublings.take(2 * GB)


def test_without_lag_the_lag_is_nothing() -> None:
    clock = LagClock()
    assert clock.lag_s(0, 0.0) == 0.0
    for second in range(10):
        clock.saw(1000 + second, float(second))
        assert clock.lag_s(1000 + second, second + 0.5) == 0.0


def test_an_idle_server_makes_no_lag() -> None:
    clock = LagClock()
    clock.saw(1000, 0.0)
    for second in range(1, 100):
        clock.saw(1000, float(second))
    assert clock.lag_s(1000, 100.0) == 0.0
    clock.saw(1001, 100.0)
    assert clock.lag_s(1000, 100.5) == 1.5


def test_the_lag_is_the_age_of_what_was_the_end_then() -> None:
    clock = LagClock()
    for second in range(60):
        clock.saw(1000 + second * 10, float(second))
    assert clock.lag_s(1190, 60.0) == 41.0
    assert clock.lag_s(1195, 60.0) == 41.0
    assert clock.lag_s(1590, 60.0) == 0.0


def test_a_reader_that_never_was_level_lags_since_the_first_look() -> None:
    clock = LagClock()
    clock.saw(1000, 5.0)
    clock.saw(2000, 10.0)
    assert clock.lag_s(10, 12.0) == 7.0


def test_a_day_of_lag_stays_small_and_right() -> None:
    clock = LagClock()
    day = 86_400
    for second in range(day):
        clock.saw(second + 1, float(second))
    assert len(clock._samples) <= 2048
    assert clock.lag_s(1, float(day)) == pytest.approx(day, rel=0.1)


def test_another_history_begins_anew() -> None:
    clock = LagClock()
    clock.saw(9000, 0.0)
    clock.saw(100, 1.0)
    assert clock.lag_s(100, 2.0) == 0.0
    assert clock.lag_s(50, 2.0) == 1.0
