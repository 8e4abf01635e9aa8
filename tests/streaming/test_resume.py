"""Joins that resume, on the hub's side: replayed and live without a hole and without a double, or told so."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson
import pytest

from replication.assembler import Assembler
from replication.changelog import Changelog, Tombstone
from replication.changes import Chunk, Envelope
from replication.lsn import BEGINNING, Position, position_token
from replication.publisher import Tick
from streaming.frames import Parcel
from streaming.hub import Hub
from streaming.phoenix import V1, V2, Serializer
from streaming.subscriptions import Resumed, Subscription
from tests.golden import record

EPOCH, LATER = "1-1-1-cafe", "1-1-2-cafe"
FAR = 1 << 60
NAMES = ("insert", "update", "several_changes_in_a_transaction", "delete", "partitions")
ALL = Subscription("realtime:*", positions=True)


class Socket:
    """A way out that keeps what it is given, and the one who owns it."""

    def __init__(self) -> None:
        self.queued_bytes = 0
        self.parcels: list[Parcel] = []
        self.gaps: list[Collection[str]] = []

    def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
        """Keep it."""
        self.parcels.append(parcel)

    def urgent(self, parcel: Parcel) -> None:
        """Keep it."""
        self.parcels.append(parcel)

    def close(self, code: int, reason: str) -> None:
        """Not expected here."""
        raise AssertionError

    def check(self, now: float) -> None:
        """Nothing to look after."""

    def fail_all(self) -> None:
        """Not expected here."""
        raise AssertionError

    def tell_gap(self, topics: Collection[str]) -> None:
        """Note it."""
        self.gaps.append(topics)

    def refuse_changes(self, topic: str, reason: str) -> None:
        """Not used here."""
        raise AssertionError

    @property
    def positions(self) -> list[str]:
        """Of the payloads that a client would read."""
        return [orjson.loads(message)["payload"]["position"] for parcel in self.parcels for message in parcel.messages]


@pytest.fixture(scope="module")
def chunks() -> list[Chunk]:
    """Recorded transactions, one behind the other."""
    assembler, made = Assembler({20: "int8", 23: "int4", 25: "text"}), []
    for number, name in enumerate(NAMES, 1):
        for lsn, data in record.load(18, name):
            if (chunk := assembler.feed(lsn, data)) is not None and chunk.changes:
                made.append(Chunk(number << 32, chunk.committed_at, number, chunk.changes, chunk.is_last, chunk.size))
    return made


def tick(hub: Hub, *, wal_end: int = FAR, ancestors: Any = (), epoch: str = EPOCH) -> Tick:
    return Tick("instance", epoch, 0.0, hub.log.floor, hub.have, wal_end, ancestors)


class House:
    """A hub whose log is the ring, as in the replicator's own process."""

    def __init__(self) -> None:
        self.hub = Hub(Changelog(max_bytes=1 << 20, max_age_s=60))
        self.hub.settle(tick(self.hub))

    def publish(self, *chunks: Chunk) -> None:
        """The next link of the chain."""
        for chunk in chunks:
            self.hub.log.append(chunk, 0.0)
        self.hub.receive(Envelope(EPOCH, self.hub.have, chunks[-1].last, list(chunks)))

    def socket(self) -> Socket:
        """A new one."""
        socket = Socket()
        self.hub.admit(socket, socket)
        return socket

    def resume(
        self, since: str | None, subscription: Subscription = ALL, serializer: Serializer = V1
    ) -> tuple[Socket, Resumed]:
        """What a client does that comes back."""
        socket = self.socket()
        outcome, parcels = self.hub.resume(socket, subscription, serializer, since)
        for parcel in parcels:
            socket.write(parcel)
        return socket, outcome


@pytest.fixture
def house() -> House:
    return House()


def expected(chunks: list[Chunk]) -> list[str]:
    return [
        position_token(EPOCH, Position(chunk.commit_lsn, change.lsn, change.ordinal))
        for chunk in chunks
        for change in chunk.changes
    ]


def test_a_first_join_is_told_where_it_stands_and_gets_what_comes(house: House, chunks: list[Chunk]) -> None:
    house.publish(chunks[0])
    socket, outcome = house.resume(None)
    assert outcome == Resumed(False, 0, position_token(EPOCH, chunks[0].last))
    house.publish(chunks[1])
    assert socket.positions == expected(chunks[1:2])


def test_from_wherever_a_client_left_it_gets_the_rest_once_and_in_order(house: House, chunks: list[Chunk]) -> None:
    half = len(chunks) // 2
    house.publish(*chunks[:half])
    every, live = expected(chunks), len(expected(chunks[half:]))
    for seen in range(len(expected(chunks[:half]))):
        other = House()
        other.publish(*chunks[:half])
        socket, outcome = other.resume(every[seen])
        missed = len(every) - live - seen - 1
        assert outcome == Resumed(True, missed, position_token(EPOCH, chunks[half - 1].last))
        other.publish(*chunks[half:])
        assert socket.positions == every[seen + 1 :]


def test_a_replay_passes_through_the_topic(house: House, chunks: list[Chunk]) -> None:
    house.publish(*chunks)
    subscription = Subscription("realtime:public:parted_low", positions=True)
    socket, outcome = house.resume(position_token(EPOCH, BEGINNING), subscription)
    events = [orjson.loads(message)["event"] for parcel in socket.parcels for message in parcel.messages]
    assert (outcome.recovered, outcome.replayed) == (True, 3)
    assert events == ["INSERT", "DELETE", "TRUNCATE"]


def test_what_is_in_the_ring_and_not_yet_published_is_not_replayed_but_delivered(
    house: House, chunks: list[Chunk]
) -> None:
    house.publish(chunks[0])
    house.hub.log.append(chunks[1], 0.0)
    socket, outcome = house.resume(position_token(EPOCH, BEGINNING))
    assert outcome.replayed == len(expected(chunks[:1]))
    house.hub.receive(Envelope(EPOCH, chunks[0].last, chunks[1].last, [chunks[1]]))
    assert socket.positions == expected(chunks[:2])


def test_a_client_that_is_ahead_of_us_hears_nothing_twice(house: House, chunks: list[Chunk]) -> None:
    house.publish(chunks[0])
    ahead = expected(chunks)[len(expected(chunks[:2])) - 1]
    socket, outcome = house.resume(ahead)
    assert outcome == Resumed(True, 0, ahead)
    assert house.hub.settled_position(socket) is None
    house.publish(chunks[1])
    house.publish(chunks[2])
    assert socket.positions == expected(chunks[2:3])
    assert house.hub.settled_position(socket) == position_token(EPOCH, chunks[2].last)


@pytest.mark.parametrize("since", ["", "nonsense", f"{LATER}.1.1.0", f"{EPOCH}.FFFFFFFFFFFFFFF.1.0", f"{EPOCH}.-1.0.0"])
def test_a_position_that_holds_nowhere_is_not_recovered_and_the_join_goes_on(
    house: House, chunks: list[Chunk], since: str
) -> None:
    house.publish(chunks[0])
    house.hub.heard(tick(house.hub, wal_end=chunks[-1].commit_lsn))
    socket, outcome = house.resume(since)
    assert outcome == Resumed(False, 0, position_token(EPOCH, chunks[0].last))
    house.publish(chunks[1])
    assert socket.positions == expected(chunks[1:2])


def test_below_the_floor_nothing_is_replayed(house: House, chunks: list[Chunk]) -> None:
    house.publish(*chunks)
    house.hub.log.evict(1000.0, keep_above=chunks[1].last)
    assert house.hub.log.floor == chunks[1].last
    socket, outcome = house.resume(position_token(EPOCH, chunks[0].last))
    assert (outcome.recovered, outcome.replayed, socket.parcels) == (False, 0, [])
    assert house.resume(position_token(EPOCH, chunks[1].last))[1].recovered


def test_a_tombstone_is_in_the_way_of_those_who_hear_its_tables_only(house: House, chunks: list[Chunk]) -> None:
    house.publish(chunks[0])
    buried = Position(chunks[0].commit_lsn + 1, 1, 0)
    house.hub.log.bury(Tombstone(chunks[0].last, buried, frozenset({("public", "huge")})), 0.0)
    since = position_token(EPOCH, BEGINNING)
    assert not house.resume(since)[1].recovered
    assert not house.resume(since, Subscription("realtime:public:huge:id=eq.1", positions=True))[1].recovered
    assert house.resume(since, Subscription("realtime:public:users", positions=True))[1] == Resumed(
        True, len(expected(chunks[:1])), house.hub.position
    )


def test_positions_of_the_timeline_before_a_promotion_hold_up_to_the_switch(house: House, chunks: list[Chunk]) -> None:
    house.publish(*chunks[:2])
    switch = chunks[1].commit_lsn + 1
    house.hub.settle(tick(house.hub, ancestors=((EPOCH, switch),), epoch=LATER))
    assert house.resume(position_token(EPOCH, chunks[0].last))[1].recovered
    assert not house.resume(position_token(EPOCH, Position(switch + 1, 0, 0)))[1].recovered


def test_clients_that_ask_for_the_same_get_the_same_bytes(house: House, chunks: list[Chunk]) -> None:
    house.publish(*chunks)
    since = position_token(EPOCH, BEGINNING)
    first, second, other = house.resume(since)[0], house.resume(since)[0], house.resume(since, serializer=V2)[0]
    assert all(one is another for one, another in zip(first.parcels, second.parcels, strict=True))
    assert other.parcels[0] is not first.parcels[0]


def test_without_resume_payloads_have_no_position(house: House, chunks: list[Chunk]) -> None:
    plain = house.socket()
    house.hub.join(plain, Subscription("realtime:*"), V1)
    knowing, _ = house.resume(None)
    house.publish(chunks[0])
    (without,) = [orjson.loads(message)["payload"] for parcel in plain.parcels for message in parcel.messages]
    (with_position,) = [orjson.loads(message)["payload"] for parcel in knowing.parcels for message in parcel.messages]
    assert with_position == {**without, "position": expected(chunks[:1])[0]}


def test_a_gap_in_some_tables_is_told_to_those_who_hear_them(house: House) -> None:
    todos, users, everything = house.socket(), house.socket(), house.socket()
    for socket, topic in (
        (todos, "realtime:public:todos"),
        (users, "realtime:public:users"),
        (everything, "realtime:*"),
    ):
        house.hub.join(socket, Subscription(topic), V1)
    house.hub.tell_gap({("public", "todos")})
    assert (todos.gaps, users.gaps, everything.gaps) == ([["realtime:public:todos"]], [], [["realtime:*"]])
    house.hub.tell_gap()
    assert len(users.gaps) == 1


async def test_a_resume_waits_for_the_next_tick_if_it_seems_to_come_from_the_future(
    house: House, chunks: list[Chunk]
) -> None:
    import asyncio

    house.publish(chunks[0])
    house.hub.heard(tick(house.hub, wal_end=chunks[0].commit_lsn + 1))
    ahead = position_token(EPOCH, chunks[1].last)
    waiting = asyncio.create_task(house.hub.prepare(ahead))
    await asyncio.sleep(0)
    assert not waiting.done()
    house.hub.heard(tick(house.hub, wal_end=chunks[1].commit_lsn + 1))
    await waiting
    assert house.resume(ahead)[1].recovered


def test_while_the_log_is_being_filled_nothing_is_recovered_and_the_position_is_where_delivery_begins(
    house: House, chunks: list[Chunk]
) -> None:
    hub = house.hub
    hub.ready.clear()
    hub.silent_up_to = chunks[1].last
    hub.have = chunks[0].last
    told = position_token(EPOCH, chunks[1].last)
    assert house.resume(position_token(EPOCH, BEGINNING))[1] == Resumed(False, 0, told)
    assert house.resume(None)[1] == Resumed(False, 0, told)
