"""Who is present in a room, as its clients are told. The numbers are those of the golden cases."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

import pytest

from tests.system.channels import V1, Channels, close, error, ok
from tests.system.server import RealtimeServer

SHOWN = {"presence": {"enabled": True}}


@pytest.fixture
def room() -> str:
    """A topic of the test's own."""
    return f"realtime:room-{secrets.token_hex(4)}"


def keyed(key: Any, *, enabled: bool = True) -> dict[str, Any]:
    return {"presence": {"key": key, "enabled": enabled}}


def call(event: str = "track", **payload: Any) -> dict[str, Any]:
    return {"type": "presence", "event": event, "payload": payload}


def metas(keys: dict[str, Any]) -> dict[str, list[Any]]:
    """Presences without their refs, of which each meta has one."""
    shown: dict[str, list[Any]] = {}
    for key, entry in keys.items():
        assert list(entry) == ["metas"]
        assert all(isinstance(meta["phx_ref"], str) and len(meta["phx_ref"]) == 16 for meta in entry["metas"])
        shown[key] = [{n: v for n, v in meta.items() if not n.startswith("phx_ref")} for meta in entry["metas"]]
    return shown


async def diff(channels: Channels, topic: str) -> list[Any]:
    """The next message, which has to be a diff: its joins and leaves."""
    message = await channels.next()
    assert message[:4] == [None, None, topic, "presence_diff"]
    assert sorted(message[4]) == ["joins", "leaves"]
    return [metas(message[4]["joins"]), metas(message[4]["leaves"])]


async def state(channels: Channels, topic: str) -> dict[str, Any]:
    """The next message, which has to be a state."""
    message = await channels.next()
    assert message[1:4] == [None, topic, "presence_state"]
    return metas(message[4])


async def test_p01_a_state_follows_the_join(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, keyed(""))
        assert await one.next() == ["1", None, room, "presence_state", {}]
        await one.silence()


async def test_p02_but_only_if_it_is_wanted(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, keyed("", enabled=False))
        await one.joined(f"{room}2", {})
        await one.silence()


async def test_clients_from_before_the_field_want_it(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, {"presence": {"key": ""}})
        assert await state(one, room) == {}


async def test_p03_track_is_answered_and_shown_under_a_key_of_ours(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, keyed(""))
        assert await state(one, room) == {}
        shown = {"name": "n", "t": 1814.7000000029802}
        await one.send("1", "2", room, "presence", call("TRACK", **shown))
        assert await one.next() == ok("1", "2", room)
        [joins, leaves] = await diff(one, room)
        [key] = joins
        assert uuid.UUID(key)
        assert (joins[key], leaves) == ([shown], {})


async def test_p04_who_wants_no_state_may_track_and_hears_diffs(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url, V1) as other:
        await one.joined(room, keyed("a", enabled=False))
        await other.joined(room, keyed("b", enabled=False))
        await one.send("1", "2", room, "presence", call(n=1))
        assert await one.next() == ok("1", "2", room)
        assert await diff(one, room) == await diff(other, room) == [{"a": [{"n": 1}]}, {}]  # P4b


async def test_p05_p22_the_state_has_everybody(realtime_server: RealtimeServer, room: str) -> None:
    async with (
        Channels(realtime_server.ws_url) as one,
        Channels(realtime_server.ws_url) as two,
        Channels(realtime_server.ws_url, V1) as three,
    ):
        for number, channels in enumerate((one, two)):
            await channels.joined(room, keyed("k", enabled=False))
            await channels.send("1", "2", room, "presence", call(n=number))
            assert await channels.next() == ok("1", "2", room)
            assert await diff(channels, room) == [{"k": [{"n": number}]}, {}]
        await three.joined(room, SHOWN)
        assert await state(three, room) == {"k": [{"n": 0}, {"n": 1}]}


async def test_p06_p07_p08_p09_track_replaces_and_untrack_ends(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, keyed("k", enabled=False))
        steps = [
            (call("untrack"), None),
            (call(a=1), [{"k": [{"a": 1}]}, {}]),
            (call(a=1), None),
            (call(a=2), [{"k": [{"a": 2}]}, {"k": [{"a": 1}]}]),
            (call("untrack"), [{}, {"k": [{"a": 2}]}]),
            (call(a=2), [{"k": [{"a": 2}]}, {}]),
        ]
        for number, (payload, wanted) in enumerate(steps):
            await one.send("1", str(number), room, "presence", payload)
            assert await one.next() == ok("1", str(number), room)
            if wanted is not None:
                assert await diff(one, room) == wanted
        await one.silence()


@pytest.mark.parametrize("how", ["leave", "close", "cut", "join again"])
async def test_p10_presence_ends_with_its_channel(how: str, realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url) as other:
        await other.joined(room)
        await one.joined(room, keyed("k", enabled=False))
        await one.send("1", "2", room, "presence", call(n=1))
        assert await diff(other, room) == [{"k": [{"n": 1}]}, {}]
        match how:
            case "leave":
                await one.send("1", "3", room, "phx_leave", {})
            case "close":
                await one.socket.close()
            case "cut":
                one.socket.transport.abort()
            case _:
                await one.send("4", "4", room, "phx_join", {"config": SHOWN})
        assert await diff(other, room) == [{}, {"k": [{"n": 1}]}]
        await other.silence()


async def test_p11_p12_p13_calls_that_are_odd(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, keyed("k", enabled=False))
        for payload, response in (
            ({"event": "track", "payload": "x"}, {"reason": "Presence track payload must be a map"}),
            ({"event": "track", "payload": None}, {"reason": "Presence track payload must be a map"}),
            ({"event": "unknown"}, {}),
        ):
            await one.send("1", "2", room, "presence", payload)
            assert await one.next() == error("1", "2", room, response)
        for odd in ({}, {"type": "presence"}):
            await one.send("1", "3", room, "presence", odd)
            assert await one.next() == ok("1", "3", room)
        await one.send(None, "4", room, "presence", {"event": "track"})  # F14, and no payload is an empty one
        assert (await one.next())[1:] == ok("1", "4", room)[1:]
        assert await diff(one, room) == [{"k": [{}]}, {}]


async def test_j09_a_key_that_is_no_text_becomes_one(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, keyed(123))
        assert await state(one, room) == {}
        await one.send("1", "2", room, "presence", call())
        assert await one.next() == ok("1", "2", room)
        assert await diff(one, room) == [{"123": [{}]}, {}]


async def test_p17_a_payload_too_large_closes_the_channel(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, keyed("k", enabled=False))
        await one.send("1", "2", room, "presence", call(x="x" * 3_000_501))
        message = await one.next()
        assert (message[3], message[4]["message"]) == ("system", "Track message size exceeded")
        assert await one.next() == close(room)


async def test_a_second_join_shows_the_newcomer_without_its_older_self(
    realtime_server: RealtimeServer, room: str
) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, keyed("k"))
        assert await state(one, room) == {}
        await one.send("1", "2", room, "presence", call(n=1))
        assert await one.next() == ok("1", "2", room)
        assert await diff(one, room) == [{"k": [{"n": 1}]}, {}]
        await one.joined(room, keyed("k"), ref="5")
        assert await one.next() == close(room)
        assert await one.next() == ["5", None, room, "presence_state", {}]
        await one.silence()
