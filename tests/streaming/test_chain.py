"""What a hub makes of the chain, whatever is lost, doubled or late."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from replication.changelog import Changelog
from replication.changes import Change, Chunk, Envelope, Relation, change_size
from replication.errors import BelowFloor
from replication.lsn import Position
from replication.publisher import Tick
from streaming.chain import OUTDATED_S, Chain, Deliver, Gap, Pull, Step

ITEMS = Relation(1, "public", "items", "d", ())
NOW = datetime(2026, 11, 24, tzinfo=UTC)
START = Position(100, 0, 0)


def chunk(number: int) -> Chunk:
    change = Change(100 + number * 10, 0, ITEMS, b"I" + bytes([number % 256]))
    return Chunk(101 + number * 10, NOW, number, [change], True, change_size(change))


def position(number: int) -> Position:
    return START if number < 0 else chunk(number).last


def envelope(first: int, last: int, epoch: str = "one") -> Envelope:
    return Envelope(epoch, position(first - 1), position(last), [chunk(n) for n in range(first, last + 1)])


def tick(published: int, *, floor: int = -1, epoch: str = "one") -> Tick:
    return Tick("instance", epoch, 0.0, position(floor), position(published), 0)


@pytest.fixture
def chain() -> Chain:
    chain = Chain(Changelog())
    assert chain.settle(tick(-1), 0.0) == []
    return chain


def numbers(steps: list[Step]) -> list[int]:
    return [c.xid for step in steps if isinstance(step, Deliver) for c in step.chunks]


def test_links_that_follow_each_other_are_delivered(chain: Chain) -> None:
    assert numbers(chain.offer(envelope(0, 1), 0.0)) == [0, 1]
    assert numbers(chain.offer(envelope(2, 2), 0.0)) == [2]
    assert chain.level


def test_an_envelope_that_comes_twice_is_delivered_once(chain: Chain) -> None:
    chain.offer(envelope(0, 1), 0.0)
    assert chain.offer(envelope(0, 1), 0.0) == []


def test_of_an_envelope_that_overlaps_only_what_is_new_is_delivered(chain: Chain) -> None:
    chain.offer(envelope(0, 2), 0.0)
    assert numbers(chain.offer(envelope(1, 4), 0.0)) == [3, 4]


def test_a_hole_is_pulled_and_nothing_above_it_is_delivered(chain: Chain) -> None:
    chain.offer(envelope(0, 0), 0.0)
    assert chain.offer(envelope(2, 2), 0.0) == [Pull("one", position(0))]
    assert not chain.level
    assert numbers(chain.offer(envelope(1, 2), 0.0)) == [1, 2]
    assert chain.level


def test_a_bounded_answer_is_followed_by_another_pull(chain: Chain) -> None:
    chain.offer(envelope(5, 5), 0.0)
    steps = chain.offer(envelope(0, 2), 0.0)
    assert numbers(steps) == [0, 1, 2]
    assert steps[-1] == Pull("one", position(2))


def test_a_tick_shows_a_lost_last_envelope(chain: Chain) -> None:
    assert chain.settle(tick(3), 0.0) == [Pull("one", START)]


def test_what_has_left_the_ring_is_a_gap_and_the_chain_goes_on_above_it(chain: Chain) -> None:
    chain.offer(envelope(0, 1), 0.0)
    assert chain.settle(tick(9, floor=5), 0.0) == [Gap(position(1), position(5)), Pull("one", position(5))]
    assert numbers(chain.offer(envelope(6, 9), 0.0)) == [6, 7, 8, 9]


def test_a_new_history_is_a_gap(chain: Chain) -> None:
    chain.offer(envelope(0, 1), 0.0)
    assert chain.settle(tick(0, epoch="two"), 0.0) == [Gap(position(1), START), Pull("two", START)]
    assert chain.offer(envelope(2, 2), 0.0) == []
    assert numbers(chain.offer(envelope(0, 0, epoch="two"), 0.0)) == [0]


def test_before_the_first_tick_nothing_is_taken_and_the_past_is_logged_in_silence() -> None:
    chain = Chain(Changelog())
    assert chain.offer(envelope(0, 1), 0.0) == []
    assert chain.settle(tick(3), 0.0) == [Pull("one", START)]
    assert numbers(chain.offer(envelope(0, 3), 0.0)) == []
    assert [c.xid for c in chain.log.since(START)] == [0, 1, 2, 3]
    assert numbers(chain.offer(envelope(4, 4), 0.0)) == [4]


TABLES = frozenset({("public", "items")})


def test_what_the_ring_has_buried_is_a_gap_for_those_who_read_its_tables(chain: Chain) -> None:
    chain.offer(envelope(0, 0), 0.0)
    assert chain.settle(tick(5), 0.0) == [Pull("one", position(0))]
    answer = Envelope("one", position(0), position(3), [], TABLES)
    assert chain.offer(answer, 0.0) == [Gap(position(0), position(3), TABLES), Pull("one", position(3))]
    assert numbers(chain.offer(envelope(4, 5), 0.0)) == [4, 5]
    with pytest.raises(BelowFloor):
        chain.log.since(position(0))
    assert list(chain.log.since(START, needs=lambda table: table not in TABLES))


def test_what_was_buried_before_our_start_is_a_gap_for_nobody() -> None:
    chain = Chain(Changelog())
    chain.settle(tick(3), 0.0)
    assert chain.offer(Envelope("one", START, position(3), [], TABLES), 0.0) == []
    assert chain.level


def test_an_answer_with_nothing_in_it_says_that_nothing_lies_between(chain: Chain) -> None:
    chain.settle(tick(3), 0.0)
    assert chain.offer(Envelope("one", START, position(3), []), 0.0) == []
    assert chain.level


def promoted(switch_lsn: int, published: int = -1, *, floor: int = -1) -> Tick:
    return replace(tick(published, floor=floor, epoch="two"), ancestors=(("one", switch_lsn),))


def test_past_a_promotion_a_hub_that_has_nothing_above_it_goes_on(chain: Chain) -> None:
    chain.offer(envelope(0, 2), 0.0)
    assert chain.settle(promoted(position(2).commit_lsn + 1, 3), 0.0) == [Pull("two", position(2))]
    assert numbers(chain.offer(envelope(3, 3, epoch="two"), 0.0)) == [3]
    assert [c.xid for c in chain.log.since(START)] == [0, 1, 2, 3]
    assert chain.holds("one", position(2))
    assert not chain.holds("one", position(3))


def test_past_a_promotion_what_never_was_is_a_gap_and_the_rest_stays(chain: Chain) -> None:
    chain.offer(envelope(0, 3), 0.0)
    switch = Position(position(2).commit_lsn, 0, 0)
    assert chain.settle(promoted(switch.commit_lsn, 1), 0.0) == [Gap(position(3), switch)]
    assert [c.xid for c in chain.log.since(START)] == [0, 1]
    assert numbers(chain.offer(envelope(2, 2, epoch="two"), 0.0)) == [2]


def test_an_epoch_that_is_over_is_not_believed_for_a_while(chain: Chain) -> None:
    old, new = "1a-1-10-cafe", "1a-1-11-cafe"
    chain.settle(tick(0, epoch=old), 0.0)
    chain.settle(tick(-1, epoch=new), 1.0)
    assert chain.settle(tick(5, epoch=old), 2.0) == []
    assert chain.epoch == new
    assert any(isinstance(step, Gap) for step in chain.settle(tick(5, epoch=old), 1.0 + OUTDATED_S + 1))
    assert chain.epoch == old


@pytest.mark.parametrize("seed", range(300))
def test_in_any_history_of_drops_and_repeats_everything_comes_once_and_in_order(chain: Chain, seed: int) -> None:
    dice = random.Random(seed)
    published, delivered = -1, []
    pulls: list[Pull] = []

    def take(steps: list[Step]) -> None:
        delivered.extend(numbers(steps))
        pulls.extend(step for step in steps if isinstance(step, Pull))
        assert not any(isinstance(step, Gap) for step in steps)

    for _ in range(60):
        match dice.randrange(4):
            case 0 | 1:
                last = published + dice.randint(1, 4)
                link = envelope(published + 1, last)
                published = last
                for _ in range(dice.choice([0, 1, 1, 1, 2])):
                    take(chain.offer(link, 0.0))
            case 2:
                take(chain.settle(tick(published), 0.0))
            case 3 if pulls:
                pull = pulls.pop(dice.randrange(len(pulls)))
                first = next(n for n in range(-1, published + 2) if position(n) == pull.have) + 1
                if first <= published and dice.random() < 0.8:
                    take(chain.offer(envelope(first, min(published, first + dice.randint(0, 5))), 0.0))
    while not chain.level or len(delivered) <= published:
        pulls.clear()
        take(chain.settle(tick(published), 0.0))
        if not pulls:
            break
        first = next(n for n in range(-1, published + 2) if position(n) == pulls[-1].have) + 1
        take(chain.offer(envelope(first, published), 0.0))
    assert delivered == list(range(published + 1))
