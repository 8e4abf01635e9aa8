"""Outlets: order, urgency, and readers that are too slow, against a socket of any appetite."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from streaming.frames import BINARY, Parcel, text_frames
from streaming.transport import (
    SLOW_READER,
    SLOW_READER_REASON,
    AsgiOutlet,
    DirectOutlet,
    OutletLimits,
    outlet_for,
)


class HungrySocket:
    """A `ShortWay` whose other end takes ``appetite`` bytes between two meals."""

    def __init__(self, appetite: int) -> None:
        self.on_drained: Callable[[], None] | None = None
        self.on_control: Callable[[bytes], bool] | None = None
        self.on_close: Callable[[Callable[[], None]], bool] | None = None
        self.taken = bytearray()
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self._buffer = b""
        self._appetite = self._room = appetite

    def send_now(self, frames: bytes | memoryview) -> int:
        assert not self._buffer, "nothing may overtake what is buffered"
        piece = bytes(frames[: self._room])
        self.taken += piece
        self._room -= len(piece)
        return len(piece)

    def send_later(self, piece: bytes) -> None:
        assert not self._buffer
        self._buffer = piece

    def close_with(self, code: int, reason: str) -> None:
        self.closed = code, reason

    def check_idle(self, now: float) -> None:
        self.checked_at = now

    def abort(self) -> None:
        self.aborted = True

    def meal(self) -> None:
        """The other end reads; what was buffered leaves, and whoever waits is told."""
        self._room = self._appetite
        eaten, self._buffer = self._buffer[: self._room], self._buffer[self._room :]
        self.taken += eaten
        self._room -= len(eaten)
        if eaten and not self._buffer and self.on_drained is not None:
            self.on_drained()


def messages(first: int, last: int, size: int = 40) -> list[bytes]:
    return [f"{number:08}".encode() + b"x" * size for number in range(first, last)]


def test_a_socket_that_takes_everything_is_written_at_once_with_the_shared_bytes() -> None:
    way = HungrySocket(1 << 20)
    outlet, parcel = DirectOutlet(way, OutletLimits()), Parcel(messages(0, 10))
    outlet.write(parcel)
    assert bytes(way.taken) == text_frames(parcel.messages)
    assert outlet.queued_bytes == 0


@pytest.mark.parametrize("seed", range(50))
def test_whatever_the_socket_takes_at_a_time_all_frames_arrive_in_order(seed: int) -> None:
    dice = random.Random(seed)
    way = HungrySocket(dice.choice([1, 7, 100, 5000, 200_000]))
    outlet = DirectOutlet(way, OutletLimits())
    expected, number = b"", 0
    for _ in range(12):
        count = dice.randint(1, 8)
        parcel = Parcel(messages(number, number + count, dice.choice([5, 200, 3000])))
        number += count
        expected += parcel.frames
        outlet.write(parcel)
        for _ in range(dice.randint(0, 3)):
            way.meal()
    while len(way.taken) < len(expected):
        way.meal()
    assert bytes(way.taken) == expected
    assert outlet.queued_bytes == 0


def test_an_urgent_message_overtakes_the_queue_but_breaks_no_frame() -> None:
    way = HungrySocket(10)
    outlet = DirectOutlet(way, OutletLimits())
    first, second, urgent = Parcel(messages(0, 1)), Parcel(messages(1, 2)), Parcel([b"heartbeat"])
    outlet.write(first)
    outlet.write(second)
    outlet.urgent(urgent)
    expected = first.frames + urgent.frames + second.frames
    while len(way.taken) < len(expected):
        way.meal()
    assert bytes(way.taken) == expected


def test_closing_lets_the_queue_out_first() -> None:
    way = HungrySocket(10)
    outlet, parcel = DirectOutlet(way, OutletLimits()), Parcel(messages(0, 3))
    outlet.write(parcel)
    outlet.close(1012, "shutdown")
    outlet.write(Parcel([b"too late"]))
    assert way.closed is None
    while way.closed is None:
        way.meal()
    assert bytes(way.taken) == parcel.frames
    assert way.closed == (1012, "shutdown")


async def test_a_reader_with_too_much_before_it_is_closed_by_name_after_the_frame_that_is_half_out() -> None:
    way = HungrySocket(10)
    outlet = DirectOutlet(way, OutletLimits(max_bytes=1000))
    first = Parcel(messages(0, 1))
    outlet.write(first)
    for _ in range(30):
        outlet.write(Parcel(messages(1, 2)))
    assert outlet.queued_bytes < 1000
    while way.closed is None:
        way.meal()
    assert bytes(way.taken) == first.frames
    assert way.closed == (SLOW_READER, SLOW_READER_REASON)


async def test_a_reader_that_takes_nothing_for_too_long_is_closed() -> None:
    way = HungrySocket(10)
    outlet = DirectOutlet(way, OutletLimits(max_wait_s=5))
    outlet.write(Parcel(messages(0, 3)))
    outlet.check(time.monotonic() + 4)
    queued = outlet.queued_bytes
    outlet.check(time.monotonic() + 6)
    outlet.write(Parcel([b"too late"]))
    assert outlet.queued_bytes <= queued
    while way.closed is None:
        way.meal()
    assert way.closed == (SLOW_READER, SLOW_READER_REASON)


async def test_through_any_asgi_server_messages_go_out_one_by_one_and_urgent_ones_first() -> None:
    sent: list[Any] = []
    may_go, done = asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        await may_go.wait()
        sent.append(message)
        if message["type"] == "websocket.close":
            done.set()

    outlet = outlet_for({"extensions": {}}, send, OutletLimits())
    assert isinstance(outlet, AsgiOutlet)
    outlet.write(Parcel([b"one", b"two"]))
    outlet.write(Parcel([b"\x00\xff"], BINARY))
    outlet.urgent(Parcel([b"now"]))
    outlet.close(1012, "shutdown")
    may_go.set()
    await asyncio.wait_for(done.wait(), 5)
    assert [message.get("text") for message in sent] == ["now", "one", "two", None, None]
    assert [message.get("bytes") for message in sent] == [None, None, None, b"\x00\xff", None]
    assert sent[-1] == {"type": "websocket.close", "code": 1012, "reason": "shutdown"}


def test_a_pong_waits_for_the_place_between_two_parcels() -> None:
    socket = HungrySocket(appetite=100)
    outlet = DirectOutlet(socket, OutletLimits())
    assert socket.on_control is not None
    assert not socket.on_control(b"<early>")  # nothing is half out: it may go at once
    first, second = Parcel([b"a" * 300]), Parcel([b"b" * 300])
    outlet.write(first)
    outlet.write(second)
    assert socket.on_control(b"<pong>")
    expected = first.frames + b"<pong>" + second.frames
    while len(socket.taken) < len(expected):
        socket.meal()
    assert bytes(socket.taken) == expected


def test_who_pings_and_does_not_read_is_not_owed_every_pong() -> None:
    socket = HungrySocket(appetite=100)
    outlet = DirectOutlet(socket, OutletLimits())
    outlet.write(Parcel([b"a" * 300]))
    assert socket.on_control is not None
    assert all(socket.on_control(b"!") for _ in range(10_000))
    for _ in range(20):
        socket.meal()
    assert socket.taken.count(b"!") == 100


@pytest.mark.parametrize("appetite", [1, 100, 250])
async def test_a_close_frame_of_the_servers_waits_for_the_frame_that_is_half_out_and_nothing_else(
    appetite: int,
) -> None:
    socket = HungrySocket(appetite)
    outlet = DirectOutlet(socket, OutletLimits(max_wait_s=5))
    finished: list[bytes] = []
    assert socket.on_close is not None
    assert not socket.on_close(lambda: finished.append(b"early"))  # nothing is half out: it may go at once
    half_out, waiting = Parcel([b"a" * 300]), Parcel([b"b" * 300])
    outlet.write(half_out)
    outlet.write(waiting)
    outlet.urgent(Parcel([b"heartbeat"]))
    assert socket.on_close(lambda: finished.append(bytes(socket.taken)))
    outlet.write(Parcel([b"too late"]))
    outlet.urgent(Parcel([b"too late"]))
    outlet.close(1012, "too late")
    outlet.check(time.monotonic() + 100)
    assert finished == []
    while not finished:
        socket.meal()
    assert finished == [half_out.frames]
    assert socket.closed is None


async def test_a_closing_reader_that_was_too_slow_is_answered_after_its_last_frame() -> None:
    socket = HungrySocket(appetite=100)
    outlet = DirectOutlet(socket, OutletLimits(max_bytes=1000))
    first = Parcel(messages(0, 10))
    outlet.write(first)
    for _ in range(30):
        outlet.write(Parcel(messages(1, 2)))
    assert socket.on_close is not None
    finished: list[bytes] = []
    assert socket.on_close(lambda: finished.append(bytes(socket.taken)))
    while not finished:
        socket.meal()
    assert finished == [first.frames]
    assert socket.closed is None
