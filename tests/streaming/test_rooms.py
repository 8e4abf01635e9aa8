"""What clients say to each other in a room, within a process and across several."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels_redis.pubsub import RedisPubSubChannelLayer

from streaming import rooms as rooms_module
from streaming.frames import BINARY, TEXT, Parcel
from streaming.limits import Limits, Traffic
from streaming.phoenix import V1, V2, UserBroadcast, Verbatim
from streaming.rooms import Rooms, room_group
from tests.servers import ValkeyServer

ROOM = "realtime:room"
LIMIT_S = 10.0


class Socket:
    """A way out that keeps what it is given."""

    def __init__(self) -> None:
        self.queued_bytes = 0
        self.parcels: list[Parcel] = []
        self.closed: tuple[int, str] | None = None

    def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
        """Keep it."""
        self.parcels.append(parcel)

    def urgent(self, parcel: Parcel) -> None:
        """Not used by rooms."""
        raise AssertionError

    def close(self, code: int, reason: str) -> None:
        """Note it."""
        self.closed = code, reason

    def check(self, now: float) -> None:
        """Not used by rooms."""
        raise AssertionError

    @property
    def heard(self) -> list[Any]:
        """Every message, those in JSON as fields of 2.0.0 or as an object."""
        return [
            message if parcel.opcode == BINARY else json.loads(message)
            for parcel in self.parcels
            for message in parcel.messages
        ]

    def payloads(self, event: str) -> list[Any]:
        """Those of the pushes with this event."""
        return [message[4] for message in self.heard if message[3] == event]


def said(number: int) -> Verbatim:
    return Verbatim(b'{"type":"broadcast","event":"e","payload":{"n":%d}}' % number)


def numbers(socket: Socket) -> list[int]:
    """Of the broadcasts that `said` made."""
    return [payload["payload"]["n"] for payload in socket.payloads("broadcast")]


def entered(rooms: Rooms, *, topic: str = ROOM, serializer: Any = V2) -> Socket:
    socket = Socket()
    rooms.enter(topic, socket, serializer)
    return socket


# In one process


def test_everybody_in_the_room_hears_a_broadcast_as_the_same_bytes() -> None:
    rooms = Rooms("one")
    first, second, elsewhere = entered(rooms), entered(rooms), entered(rooms, topic="realtime:other")
    rooms.broadcast(ROOM, said(1))
    assert first.heard == [[None, None, ROOM, "broadcast", {"type": "broadcast", "event": "e", "payload": {"n": 1}}]]
    assert first.parcels[0] is second.parcels[0]
    assert elsewhere.heard == []


def test_a_sender_may_be_left_out_of_its_own_broadcast() -> None:  # B2
    rooms = Rooms("one")
    first, second = entered(rooms), entered(rooms)
    rooms.broadcast(ROOM, said(1), leave_out=first)
    assert (numbers(first), numbers(second)) == ([], [1])


def test_each_hears_it_in_its_own_version() -> None:  # B8, B9, B13
    rooms = Rooms("one")
    old, new = entered(rooms, serializer=V1), entered(rooms)
    rooms.broadcast(ROOM, UserBroadcast("e", b'{"a":"b"}', is_json=True))
    rooms.broadcast(ROOM, said(1))
    payloads = [
        {"event": "e", "payload": {"a": "b"}, "type": "broadcast"},
        {"type": "broadcast", "event": "e", "payload": {"n": 1}},
    ]
    assert old.heard == [{"topic": ROOM, "event": "broadcast", "payload": payload, "ref": None} for payload in payloads]
    assert new.heard == [
        bytes([4, len(ROOM), 1, 0, 1]) + ROOM.encode() + b'e{"a":"b"}',
        [None, None, ROOM, "broadcast", payloads[1]],
    ]
    assert [parcel.opcode for parcel in new.parcels] == [BINARY, TEXT]


def test_bytes_reach_clients_of_version_2_only() -> None:  # B10, B11
    rooms = Rooms("one")
    old, new = entered(rooms, serializer=V1), entered(rooms)
    rooms.broadcast(ROOM, UserBroadcast("e", b"\x00\xff", is_json=False))
    assert old.heard == []
    assert new.heard == [bytes([4, len(ROOM), 1, 0, 0]) + ROOM.encode() + b"e\x00\xff"]


def test_who_has_left_hears_nothing_more() -> None:
    rooms = Rooms("one")
    leaves, drops, stays = entered(rooms), entered(rooms), entered(rooms)
    rooms.leave(ROOM, leaves)
    rooms.drop(drops)
    rooms.broadcast(ROOM, said(1))
    assert [numbers(socket) for socket in (leaves, drops, stays)] == [[], [], [1]]
    rooms.drop(stays)
    assert rooms.topics == {}


async def test_one_socket_that_cannot_be_written_to_is_nobody_elses_trouble() -> None:
    class Broken(Socket):
        def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
            """It is gone."""
            raise OSError

    rooms = Rooms("one")
    broken = Broken()
    rooms.enter(ROOM, broken, V2)
    other = entered(rooms)
    rooms.broadcast(ROOM, said(1))
    rooms.broadcast(ROOM, said(2))
    await until(lambda: numbers(other) == [1, 2], "the second broadcast's arrival")
    assert (broken.closed, rooms.topics) == ((1011, ""), {ROOM: 1})


class Slow(Socket):
    """It takes its time, so that its room is busy."""

    def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
        """Keep it, after a while."""
        time.sleep(0.01)
        super().write(parcel)


async def test_what_is_said_in_a_busy_room_goes_out_together_and_in_order() -> None:
    rooms = Rooms("one")
    speaker, other = Slow(), Slow()
    for socket in (speaker, other):
        rooms.enter(ROOM, socket, V2)
    for number in range(6):
        rooms.broadcast(ROOM, said(number), leave_out=speaker if number % 2 else None)
    await until(lambda: numbers(other) == list(range(6)), "the broadcasts' arrival")
    assert numbers(speaker) == [0, 2, 4]
    assert [len(parcel.messages) for parcel in other.parcels] == [1, 5]


async def test_text_and_bytes_keep_their_order_in_a_busy_room() -> None:
    rooms = Rooms("one")
    slow = Slow()
    rooms.enter(ROOM, slow, V2)
    for number in range(6):
        rooms.broadcast(ROOM, said(number) if number % 3 else UserBroadcast("e", b"%d" % number, is_json=False))
    await until(lambda: len(slow.heard) == 6, "the broadcasts' arrival")
    heard = [m[4]["payload"]["n"] if isinstance(m, list) else int(m[-1:]) for m in slow.heard]
    assert heard == list(range(6))


async def test_nobody_waits_who_comes_or_goes_or_is_to_be_answered() -> None:
    rooms = Rooms("one")
    slow, leaves = Slow(), Slow()
    for socket in (slow, leaves):
        rooms.enter(ROOM, socket, V2)
    rooms.broadcast(ROOM, said(0))
    rooms.broadcast(ROOM, said(1), before_reply=True)
    assert numbers(slow) == [0, 1]
    rooms.broadcast(ROOM, said(2))
    rooms.leave(ROOM, leaves)
    assert numbers(leaves) == [0, 1, 2]
    rooms.broadcast(ROOM, said(3))
    late = entered(rooms)
    await until(lambda: numbers(slow) == [0, 1, 2, 3], "the broadcasts' arrival")
    assert (numbers(leaves), numbers(late)) == ([0, 1, 2], [])


def test_presence_is_shown_to_everybody_in_the_room_and_ends_with_its_socket() -> None:  # P3, P5, P10
    rooms = Rooms("one")
    first, second = entered(rooms), entered(rooms)
    rooms.track(ROOM, first, "a", {"n": 1})
    assert first.parcels[0] is second.parcels[0]
    [diff] = first.payloads("presence_diff")
    assert (list(diff["joins"]), diff["leaves"]) == (["a"], {})
    assert json.loads(rooms.presence_state(ROOM).text) == diff["joins"]
    rooms.drop(first)
    assert second.payloads("presence_diff")[1] == {"joins": {}, "leaves": diff["joins"]}
    assert rooms.presence_state(ROOM).text == b"{}"


def test_what_is_sent_and_delivered_counts() -> None:
    rooms = Rooms("one", traffic=Traffic(Limits(events_per_s=1)))
    for _ in range(3):
        entered(rooms)
    for number in range(15):
        assert not rooms.traffic.too_many_events(time.time())
        rooms.broadcast(ROOM, said(number))
    assert rooms.traffic.too_many_events(time.time())


# Across processes


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pace of the ticks, ten times as fast."""
    monkeypatch.setattr(rooms_module, "TICK_S", 0.1)
    monkeypatch.setattr(rooms_module, "LEASE_S", 0.6)


class Process:
    """Rooms as one of several processes has them."""

    def __init__(self, name: str, url: str, prefix: str) -> None:
        self.layer = RedisPubSubChannelLayer(hosts=[url], prefix=prefix)
        self.rooms = Rooms(name, self.layer)
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self.rooms.run())

    async def stop(self) -> None:
        """In order: it says goodbye."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.layer.flush()

    async def crash(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a word."""

        async def nothing(*_: object) -> None: ...

        monkeypatch.setattr(self.rooms, "_say_goodbye", nothing)
        await self.stop()

    async def entered(self, topic: str = ROOM, serializer: Any = V2) -> Socket:
        await self.rooms.prepare(topic)
        return entered(self.rooms, topic=topic, serializer=serializer)

    def keys(self, topic: str = ROOM) -> set[str]:
        """Who is present, as this process knows it."""
        return set(json.loads(self.rooms.presences.state(topic)))


@asynccontextmanager
async def processes(count: int, valkey: ValkeyServer) -> AsyncIterator[list[Process]]:
    prefix = secrets.token_hex(4)
    made = [Process(f"p{number}", valkey.url, prefix) for number in range(count)]
    for process in made:
        process.start()
    try:
        yield made
    finally:
        for process in made:
            if process.task is not None and not process.task.done():
                await process.stop()


async def until(happened: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(LIMIT_S):
            while not happened():  # noqa: ASYNC110 (it may be a fact of Redis, which sets no event here)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen within {LIMIT_S} s") from None


async def test_a_broadcast_reaches_the_other_processes_in_order_and_once(valkey: ValkeyServer) -> None:
    async with processes(3, valkey) as (one, two, three):
        sender, near = await one.entered(), await one.entered()
        far, old = await two.entered(), await two.entered(serializer=V1)
        elsewhere = await three.entered("realtime:other")
        for number in range(200):
            one.rooms.broadcast(ROOM, said(number), leave_out=sender)
        await until(lambda: all(len(who.heard) == 200 for who in (near, far, old)), "the broadcasts' arrival")
        assert numbers(near) == numbers(far) == list(range(200))
        assert [message["payload"]["payload"]["n"] for message in old.heard] == list(range(200))
        assert (sender.heard, elsewhere.heard) == ([], [])
        assert three.rooms.counters.from_elsewhere == 0, "a process without the room was told"


async def test_bytes_cross_as_they_are(valkey: ValkeyServer) -> None:
    async with processes(2, valkey) as (one, two):
        far = await two.entered()
        one.rooms.broadcast(ROOM, UserBroadcast("é", bytes(range(256)), is_json=False))
        one.rooms.broadcast(ROOM, UserBroadcast("e", b'{"n":1}', is_json=True))
        await until(lambda: len(far.heard) == 2, "the broadcasts' arrival")
        head = bytes([4, len(ROOM), 2, 0, 0]) + ROOM.encode() + "é".encode()
        assert far.heard == [head + bytes(range(256)), bytes([4, len(ROOM), 1, 0, 1]) + ROOM.encode() + b'e{"n":1}']


async def test_nothing_is_missed_once_a_join_has_been_prepared(valkey: ValkeyServer) -> None:
    async with processes(2, valkey) as (one, two):
        await one.rooms.prepare(ROOM)
        for number in range(30):
            topic = f"{ROOM}:{number}"
            far = await two.entered(topic)
            one.rooms.broadcast(topic, said(number))
            await until(lambda far=far: bool(far.heard), "the broadcast's arrival")  # type: ignore[misc]


async def test_an_empty_room_is_no_longer_listened_to(quick: None, valkey: ValkeyServer) -> None:
    async with processes(2, valkey) as (one, two):
        far = await two.entered()
        two.rooms.leave(ROOM, far)
        await until(lambda: ROOM not in two.rooms._groups, "leaving the group")
        one.rooms.broadcast(ROOM, said(1))
        again = await two.entered()
        one.rooms.broadcast(ROOM, said(2))
        await until(lambda: bool(again.heard), "the broadcast's arrival")
        assert (numbers(far), numbers(again)) == ([], [2])


async def test_presence_is_the_same_in_every_process(valkey: ValkeyServer) -> None:
    async with processes(2, valkey) as (one, two):
        near, far = await one.entered(), await two.entered()
        one.rooms.track(ROOM, near, "a", {"n": 1})
        two.rooms.track(ROOM, far, "b", {"n": 2})
        await until(lambda: one.keys() == two.keys() == {"a", "b"}, "both are known in both")
        assert sorted(key for diff in far.payloads("presence_diff") for key in diff["joins"]) == ["a", "b"]
        one.rooms.track(ROOM, near, "a", {"n": 3})
        await until(lambda: len(far.payloads("presence_diff")) == 3, "the update's arrival")
        update = far.payloads("presence_diff")[2]
        [new], [old] = update["joins"]["a"]["metas"], update["leaves"]["a"]["metas"]
        assert (new["n"], old["n"], new["phx_ref_prev"]) == (3, 1, old["phx_ref"])
        one.rooms.drop(near)
        await until(lambda: two.keys() == {"b"}, "the leave's arrival")


async def test_who_joins_in_a_process_that_has_just_come_sees_who_is_there(valkey: ValkeyServer) -> None:
    async with processes(1, valkey) as (one,):
        socket = await one.entered()
        for number in range(2_500):  # several pages
            one.rooms.track(f"{ROOM}:{number % 7}", (number, socket), f"k{number}", {"n": number})  # type: ignore[arg-type]
        await until(lambda: not one.rooms._presence_voice._letters, "the end of the burst")  # type: ignore[union-attr]
        newcomer = Process("newcomer", valkey.url, one.layer.prefix)
        newcomer.start()
        try:
            await newcomer.entered(f"{ROOM}:3")
            assert newcomer.keys(f"{ROOM}:3") == one.keys(f"{ROOM}:3")
            assert newcomer.rooms.presences.count() == 2_500
        finally:
            await newcomer.stop()


async def test_a_process_that_crashes_leaves_no_phantom(
    quick: None, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(2, valkey) as (one, two):
        near, far = await one.entered(), await two.entered()
        one.rooms.track(ROOM, near, "a", {"n": 1})
        await until(lambda: two.keys() == {"a"}, "the track's arrival")
        await one.crash(monkeypatch)
        assert two.keys() == {"a"}, "it said goodbye after all"
        await until(lambda: two.keys() == set(), "the end of the lease")
        assert list(far.payloads("presence_diff")[-1]["leaves"]) == ["a"]
        assert two.rooms.presences.processes() == []


async def test_a_process_that_stops_says_goodbye(valkey: ValkeyServer) -> None:
    async with processes(2, valkey) as (one, two):
        near, far = await one.entered(), await two.entered()
        one.rooms.track(ROOM, near, "a", {})
        await until(lambda: two.keys() == {"a"}, "the track's arrival")
        started = time.monotonic()
        await one.stop()
        await until(lambda: two.keys() == set(), "the goodbye's arrival")
        assert time.monotonic() - started < rooms_module.LEASE_S / 2
        assert len(far.payloads("presence_diff")) == 2


async def test_a_change_that_got_lost_is_made_good(
    quick: None, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(2, valkey) as (one, two):
        near, other, far = await one.entered(), await one.entered(), await two.entered()
        one.rooms.track(ROOM, near, "a", {})
        await until(lambda: two.keys() == {"a"}, "the track's arrival")
        heard = two.rooms._take
        lost: list[dict[str, Any]] = []

        def hear_all_but_changes(message: dict[str, Any]) -> None:
            if message["type"] == "rooms.changed":
                lost.append(message)
            else:
                heard(message)

        monkeypatch.setattr(two.rooms, "_take", hear_all_but_changes)
        one.rooms.track(ROOM, other, "b", {})
        one.rooms.untrack(ROOM, near)
        await until(lambda: two.keys() == {"b"}, "the tick's pull")
        assert len(lost) == 2
        diff = far.payloads("presence_diff")[-1]
        assert (list(diff["joins"]), list(diff["leaves"])) == (["b"], ["a"])


async def test_redis_going_away_and_coming_back_ends_nobodys_presence(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ValkeyServer() as own:
        async with processes(2, own) as (one, two):
            near, far = await one.entered(), await two.entered()
            one.rooms.track(ROOM, near, "a", {})
            await until(lambda: two.keys() == {"a"}, "the track's arrival")
            own.kill()
            await asyncio.sleep(3 * rooms_module.LEASE_S)
            assert two.keys() == {"a"}
            two.rooms.track(ROOM, far, "b", {})
            joined_meanwhile = await one.entered("realtime:meanwhile")
            await asyncio.to_thread(own.start)
            await until(lambda: one.keys() == two.keys() == {"a", "b"}, "both are known in both again")
            assert [list(diff["leaves"]) for diff in far.payloads("presence_diff")] == [[], []]
            await until(lambda: "realtime:meanwhile" in one.rooms._groups, "the room is heard")
            await until(lambda: _reaches(two, "realtime:meanwhile", joined_meanwhile), "a broadcast's arrival")


def _reaches(sender: Process, topic: str, socket: Socket) -> bool:
    sender.rooms.broadcast(topic, said(1))
    return bool(socket.heard)


async def test_what_others_send_into_our_groups_harms_nobody(valkey: ValkeyServer) -> None:
    async with processes(1, valkey) as (one,):
        socket = await one.entered()
        for message in (
            {"type": "something.else"},
            {"type": "room.said", "process": "x"},
            {"type": "room.said", "process": "x", "topic": ROOM, "text": 7},
            {"type": "rooms.changed", "process": "x", "number": 1, "topic": ROOM, "joins": [[1]], "leaves": []},
        ):
            await one.layer.group_send(room_group(ROOM), message)
        one.rooms.track(ROOM, socket, "a", {})
        sender = RedisPubSubChannelLayer(hosts=[valkey.url], prefix=one.layer.prefix)
        await sender.group_send(room_group(ROOM), rooms_module._said("other", ROOM, said(1)))
        await until(lambda: numbers(socket) == [1], "a sound broadcast's arrival")
        await sender.flush()


async def test_who_breaks_while_another_leaves_leaves_as_well() -> None:
    class Breaking(Slow):
        def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
            """The first time only."""
            if self.parcels:
                raise OSError
            super().write(parcel)

    rooms = Rooms("one")
    breaks, leaves = Breaking(), Slow()
    for socket in (breaks, leaves):
        rooms.enter(ROOM, socket, V2)
    rooms.broadcast(ROOM, said(0))
    rooms.broadcast(ROOM, said(1))  # it waits, for the room is busy
    rooms.leave(ROOM, leaves)
    assert (rooms.topics, numbers(leaves)) == ({}, [0, 1])


async def test_what_waits_for_a_room_crosses_together(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with processes(2, valkey) as (one, two):
        far, also = await two.entered(), await two.entered(f"{ROOM}2")
        sent = 0
        group_send = one.layer.group_send

        async def counted(group: str, message: dict[str, Any]) -> None:
            nonlocal sent
            sent += group == room_group(ROOM)
            await group_send(group, message)

        monkeypatch.setattr(one.layer, "group_send", counted)
        for number in range(300):
            one.rooms.broadcast(ROOM, said(number))
        one.rooms.broadcast(f"{ROOM}2", said(300))
        one.rooms.broadcast(ROOM, UserBroadcast("e", b"\xff", is_json=False))
        await until(lambda: len(far.heard) == 301 and bool(also.heard), "the broadcasts' arrival")
        assert [message[4]["payload"]["n"] for message in far.heard[:300]] == list(range(300))
        assert sent <= 4
