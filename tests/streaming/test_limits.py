"""How much clients may do."""

from __future__ import annotations

from streaming.limits import Limits, Rate, Traffic, Window


def test_a_rate_is_the_average_of_the_last_minute() -> None:
    rate = Rate()
    rate.add(600, 1000.0)
    assert rate.average(1000.0) == 10
    assert rate.average(1054.0) == 10
    assert rate.average(1061.0) == 0


def test_a_rate_forgets_a_little_every_five_seconds() -> None:
    rate = Rate()
    for second in range(60):
        rate.add(1, 1000.0 + second)
    assert [rate.average(1059.0), rate.average(1064.0), rate.average(1090.0)] == [1, 55 / 60, 25 / 60]


def test_a_rate_that_rested_for_long_begins_at_nothing() -> None:
    rate = Rate()
    rate.add(1_000, 5.0)
    rate.add(60, 1_000_000.0)
    assert rate.average(1_000_000.0) == 1


def test_a_window_admits_so_many_calls_and_again_when_the_first_has_left_it() -> None:
    window = Window(5, 30.0)
    assert [window.admits(second) for second in (0.0, 1.0, 2.0, 3.0, 4.0)] == [True] * 5
    assert not window.admits(29.9)
    assert window.admits(30.0)
    assert not window.admits(30.5)
    assert window.admits(31.0)


def test_a_limit_of_nothing_is_none() -> None:
    traffic = Traffic(Limits())
    traffic.events.add(10**9, 0.0)
    traffic.users = 10**9
    assert not traffic.too_many_events(0.0)
    assert not traffic.too_many_users()
    assert not traffic.limits.is_too_large(10**9)
    assert all(Window(0, 1.0).admits(0.0) for _ in range(100))


def test_a_rate_at_its_limit_is_too_much() -> None:
    traffic = Traffic(Limits(events_per_s=10, joins_per_s=1, presence_events_per_s=2, users=1))
    for rate, count in ((traffic.events, 599), (traffic.joins, 59), (traffic.presence, 119)):
        rate.add(count, 0.0)
    before = traffic.too_many_events(1.0), traffic.too_many_joins(1.0), traffic.too_many_presence_events(1.0)
    for rate in (traffic.events, traffic.joins, traffic.presence):
        rate.add(1, 1.0)
    after = traffic.too_many_events(1.0), traffic.too_many_joins(1.0), traffic.too_many_presence_events(1.0)
    assert (before, after) == ((False,) * 3, (True,) * 3)


def test_a_payload_may_be_a_little_larger_than_its_limit() -> None:
    limits = Limits(payload_bytes=3_000_000)
    assert [limits.is_too_large(size) for size in (3_000_000, 3_000_500, 3_000_501)] == [False, False, True]
