"""Who is waited for: the fastest reader of a channel, as long as it is fast."""

from __future__ import annotations

import asyncio

import pytest

from streaming.audiences import Audience
from streaming.frames import Parcel
from streaming.pacing import Pace
from streaming.phoenix import serializer_for
from streaming.subscriptions import Subscription

LIMIT_S = 5.0


class Reader:
    """An outlet with a queue, and an appetite."""

    def __init__(self, queued_bytes: int, per_s: int = 0) -> None:
        self.queued_bytes = queued_bytes
        self.per_s = per_s

    def write(self, parcel: Parcel, bounded: bool = True) -> None:
        self.queued_bytes += parcel.size

    def urgent(self, parcel: Parcel) -> None:
        raise NotImplementedError

    def close(self, code: int, reason: str) -> None:
        raise NotImplementedError

    def check(self, now: float) -> None:
        raise NotImplementedError

    async def read(self) -> None:
        while self.queued_bytes:
            await asyncio.sleep(0.01)
            self.queued_bytes = max(0, self.queued_bytes - self.per_s // 100)


def audience(*readers: Reader) -> Audience:
    made = Audience(Subscription("realtime:*"), serializer_for("1.0.0"))
    made.outlets = dict.fromkeys(readers, 0)
    return made


@pytest.fixture
def pace() -> Pace:
    return Pace(bound_bytes=1000, least_bytes_per_s=5000, look_s=0.1)


def test_nobody_is_waited_for_while_one_of_them_has_room(pace: Pace) -> None:
    pace.note(audience(Reader(50_000), Reader(999), Reader(50_000)))
    assert not pace.is_full


def test_channels_without_readers_are_not_waited_for(pace: Pace) -> None:
    pace.note(audience())
    assert not pace.is_full


async def test_the_fastest_is_waited_for_until_it_has_room(pace: Pace) -> None:
    slow, fast = Reader(50_000), Reader(20_000, per_s=50_000)
    reading = asyncio.create_task(fast.read())
    pace.note(audience(slow, fast))
    async with asyncio.timeout(LIMIT_S):
        await pace.room()
    assert 0 < fast.queued_bytes <= 1000
    assert not pace.is_full
    await reading


async def test_a_reader_that_hardly_moves_is_waited_for_once_and_not_again_until_it_has_caught_up(pace: Pace) -> None:
    reader = Reader(20_000)
    channel = audience(reader)
    pace.note(channel)
    async with asyncio.timeout(LIMIT_S):
        await pace.room()
    assert reader.queued_bytes == 20_000
    pace.note(channel)
    assert not pace.is_full
    reader.queued_bytes = 0
    pace.note(channel)
    reader.queued_bytes = 20_000
    pace.note(channel)
    assert pace.is_full


async def test_a_reader_that_goes_away_is_not_waited_for(pace: Pace) -> None:
    channel = audience(Reader(20_000, per_s=10_000))
    pace.note(channel)
    waiting = asyncio.create_task(pace.room())
    await asyncio.sleep(0)
    channel.outlets.clear()
    await asyncio.wait_for(waiting, LIMIT_S)
