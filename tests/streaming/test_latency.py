"""Buckets, quantiles, and another clock's time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.latency import BOUNDS_S, CommitClock, Histogram, difference, quantile, total


def histogram(*values: float) -> Histogram:
    made = Histogram()
    for value in values:
        made.observe(value)
    return made


def test_nothing_has_no_quantile() -> None:
    assert quantile(Histogram().counts, 0.5) is None


def test_a_value_on_a_bound_belongs_to_the_bucket_that_ends_there() -> None:
    assert histogram(BOUNDS_S[3]).counts[3] == 1


def test_what_is_longer_than_the_last_bound_counts_as_that_bound() -> None:
    assert quantile(histogram(1e6).counts, 0.5) == BOUNDS_S[-1]


@given(st.lists(st.floats(0, 59), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], fraction: float) -> None:
    estimated = quantile(histogram(*values).counts, fraction)
    true = sorted(values)[max(0, -(-int(len(values) * fraction * 1000) // 1000) - 1)]
    assert estimated is not None
    bounds = (0.0, *BOUNDS_S)
    low = max(bound for bound in bounds if bound < true or bound == 0.0)
    assert estimated >= low


def test_counts_are_added_and_subtracted() -> None:
    early, late = histogram(0.001), histogram(0.001, 0.1, 0.1)
    assert sum(difference(late.counts, early.counts)) == 2
    assert total([early.counts, late.counts])[BOUNDS_S.index(0.1)] == 2
    assert sum(total([])) == 0


def test_a_database_whose_clock_is_ahead_is_noticed_by_what_arrives_before_its_commit() -> None:
    clock = CommitClock()
    assert clock.since(committed_at=105.0, now=100.0) == 0.0
    assert clock.offset_s == 5.0
    assert clock.since(committed_at=106.0, now=101.5) == 0.5


def test_a_measured_offset_counts_only_above_its_uncertainty() -> None:
    clock = CommitClock()
    clock.measured(0.002, uncertainty_s=0.01)
    assert clock.offset_s == 0.0
    clock.measured(-3.0, uncertainty_s=0.01)
    assert clock.since(committed_at=97.0, now=100.25) == pytest.approx(0.25)
