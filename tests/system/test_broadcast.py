"""What clients say to each other, over websockets and by HTTP. The numbers are those of the golden cases."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed

from tests.system.channels import V1, V2, Channels, UserBroadcast, close, error, ok, push_frame
from tests.system.server import RealtimeServer

SELF_ACK = {"broadcast": {"self": True, "ack": True}}


@pytest.fixture
def room() -> str:
    """A topic of the test's own."""
    return f"realtime:room-{secrets.token_hex(4)}"


def said(payload: Any = None, event: str = "TEST") -> dict[str, Any]:
    return {"type": "broadcast", "event": event, "payload": {"msg": 1} if payload is None else payload}


def heard(topic: str, payload: Any) -> list[Any]:
    return [None, None, topic, "broadcast", payload]


async def test_b01_with_self_a_broadcast_comes_back_before_its_ack(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, SELF_ACK)
        await one.send("1", "2", room, "broadcast", said())
        assert await one.many(2) == [heard(room, said()), ok("1", "2", room)]


async def test_b02_b03_b04_the_sender_is_left_out_and_ack_is_a_wish(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as asks, Channels(realtime_server.ws_url) as other:
        await asks.joined(room, {"broadcast": {"ack": True, "self": False}})
        await other.joined(room)
        await asks.send("1", "2", room, "broadcast", said())
        assert await asks.next() == ok("1", "2", room)
        assert await other.next() == heard(room, said())
        await other.send("1", "2", room, "broadcast", said())
        assert await asks.next() == heard(room, said())
        await other.silence()
        await asks.silence()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({"event": "e", "extra": [1, {"a": None}], "type": "other"}, id="b05"),
        pytest.param({}, id="b06"),
    ],
)
async def test_b05_b06_the_payload_is_handed_on_unread(
    payload: Any, realtime_server: RealtimeServer, room: str
) -> None:
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url, V1) as other:
        await one.joined(room)
        await other.joined(room)
        await one.send("1", "2", room, "broadcast", payload)
        assert await other.next() == heard(room, payload)


@pytest.mark.parametrize("payload", ["text", [1, "two"]])
async def test_b07_even_if_it_is_no_object(payload: Any, realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url, V1) as one, Channels(realtime_server.ws_url, V1) as other:
        await one.joined(room)
        await other.joined(room)
        await one.send("1", "2", room, "broadcast", payload)
        assert await other.next() == heard(room, payload)


async def test_b08_b09_b10_b11_binary_broadcasts(realtime_server: RealtimeServer, room: str) -> None:
    async with (
        Channels(realtime_server.ws_url) as one,
        Channels(realtime_server.ws_url) as new,
        Channels(realtime_server.ws_url, V1) as old,
    ):
        await one.joined(room, {"broadcast": {"ack": True}})
        await new.joined(room)
        await old.joined(room)
        await one.socket.send(push_frame("1", "2", room, "e", b'{"a":"b"}', encoding=1))
        await one.socket.send(push_frame("1", "3", room, "e", b"\x00\xffefg", encoding=0, metadata=b'{"x":1}'))
        assert await one.many(2) == [ok("1", "2", room), ok("1", "3", room)]
        assert await new.many(2) == [
            UserBroadcast(room, "e", b"", 1, b'{"a":"b"}'),
            UserBroadcast(room, "e", b"", 0, b"\x00\xffefg"),
        ]
        assert await old.next() == heard(room, {"event": "e", "payload": {"a": "b"}, "type": "broadcast"})
        await old.silence()


async def test_b13_text_reaches_both_versions(realtime_server: RealtimeServer, room: str) -> None:
    async with (
        Channels(realtime_server.ws_url, V1) as one,
        Channels(realtime_server.ws_url) as new,
        Channels(realtime_server.ws_url, V1) as old,
    ):
        for channels in (one, new, old):
            await channels.joined(room)
        await one.send("1", "2", room, "broadcast", said())
        assert await new.next() == await old.next() == heard(room, said())


async def test_what_one_sender_says_stays_in_order_text_and_binary_mixed(
    realtime_server: RealtimeServer, room: str
) -> None:
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url) as other:
        await one.joined(room)
        await other.joined(room)
        for number in range(0, 500, 2):
            await one.send("1", None, room, "broadcast", said({"n": number}))
            await one.socket.send(push_frame("1", "", room, "e", str(number + 1).encode(), encoding=0))
        got = await other.many(500)
        numbers = [int(item.data) if isinstance(item, UserBroadcast) else item[4]["payload"]["n"] for item in got]
        assert numbers == list(range(500))


async def test_a_room_is_its_topic_and_nothing_else(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url) as other:
        await one.joined(room, {"broadcast": {"ack": True}})
        await other.joined(f"{room}2")
        await one.send("1", "2", room, "broadcast", said())
        assert await one.next() == ok("1", "2", room)
        await other.silence()


async def test_legacy_channels_neither_hear_nor_say(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as current, Channels(realtime_server.ws_url) as legacy:
        await current.joined(room, {**SELF_ACK, "presence": {"enabled": True}})
        assert (await current.next())[3] == "presence_state"
        await legacy.send("1", "1", room, "phx_join", {})
        assert await legacy.next() == ok("1", "1", room)
        await legacy.send("1", "2", room, "broadcast", said())
        await legacy.send("1", "3", room, "presence", {"event": "track", "payload": {}})
        await legacy.silence()
        await current.send("1", "2", room, "broadcast", said())
        await current.send("1", "3", room, "presence", {"event": "track", "payload": {}})
        assert [message[3] for message in await current.many(4)] == [
            "broadcast",
            "phx_reply",
            "phx_reply",
            "presence_diff",
        ]
        await legacy.silence()


async def test_who_leaves_hears_nothing_more(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url) as other:
        await one.joined(room, {"broadcast": {"ack": True}})
        await other.joined(room)
        await other.send("1", "2", room, "phx_leave", {})
        assert await other.many(2) == [ok("1", "2", room), close(room)]  # F9
        await one.send("1", "2", room, "broadcast", said())
        assert await one.next() == ok("1", "2", room)
        await other.silence()


async def test_f11_a_second_join_replaces_the_first(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, SELF_ACK)
        await one.joined(room, SELF_ACK, ref="5")
        assert await one.next() == close(room)
        await one.send("5", "6", room, "broadcast", said())
        assert await one.many(2) == [heard(room, said()), ok("5", "6", room)]
        await one.silence()


async def test_f12_f13_pushes_that_are_odd(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room, {"broadcast": {"ack": True}})
        await one.send("1", "4", room, "foo", {})
        await one.silence()
        for join_ref in ("other", None):
            await one.send(join_ref, "7", room, "broadcast", said())
            assert (await one.next())[1:] == ok("1", "7", room)[1:]


@pytest.mark.parametrize("frame", ["", "{bad", '"str"', '["1","1","realtime:x"]', '{"topic":"phoenix"}'])
async def test_f03_f04_f05_an_unreadable_frame_is_dropped_on_a_current_socket(
    frame: str, realtime_server: RealtimeServer, room: str
) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined(room)
        await one.socket.send(frame)
        await one.silence()


async def test_f16_f20_binary_frames_that_are_broken_or_unknown_harm_nobody(
    realtime_server: RealtimeServer, room: str
) -> None:
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url) as other:
        await one.joined(room, {"broadcast": {"ack": True}})
        await other.joined(room)
        sound = push_frame("1", "2", room, "e", b"{}", encoding=1)
        for frame in (b"", b"\x03", sound[:9], b"\x02" + sound[1:], b"\xff" * 40, sound[:-2] + b"{"):
            await one.socket.send(frame)
        await one.socket.send(sound)
        assert await one.next() == ok("1", "2", room)
        assert await other.next() == UserBroadcast(room, "e", b"", 1, b"{}")


async def test_f21_a_frame_too_large_closes_its_socket(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url) as other:
        await other.joined(room)
        await one.joined(room)
        await one.socket.send("x" * 5_000_000)
        await one.silence()
        with suppress(ConnectionClosed):  # the answer may come before all of it has left
            await one.socket.send("x" * 5_000_001)
        assert (await one.closed())[0] == 1009
        await other.silence()


async def test_f07_f08_topics_that_are_not_joined(realtime_server: RealtimeServer) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.send(None, "2", "realtime:nojoin", "broadcast", {})
        assert await one.next() == error(None, "2", "realtime:nojoin", {"reason": "unmatched topic"})
        await one.socket.send(push_frame("1", "3", "realtime:nojoin", "e", b"{}", encoding=1))
        assert await one.next() == error(None, "3", "realtime:nojoin", {"reason": "unmatched topic"})
        await one.send("1", "1", "room:1", "phx_join", {"config": {}})
        assert await one.next() == error(None, "1", "room:1", {"reason": "unmatched topic"})
        await one.send(None, "4", "realtime:nojoin", "phx_leave", {})
        assert (await one.next())[3:] == ["phx_reply", {"status": "ok", "response": {}}]  # F10


async def test_j06_j07_j08_j25_joins_that_are_odd(realtime_server: RealtimeServer, room: str) -> None:
    async with Channels(realtime_server.ws_url) as one:
        reply = await one.join("realtime:", {})
        assert reply["response"] == {"reason": "TopicNameRequired: You must provide a topic name"}
        reply = await one.join(room, {"private": True})
        sub_topic = room.removeprefix("realtime:")
        words = f"Unauthorized: You do not have permissions to read from this Channel topic: {sub_topic}"
        assert reply == {"status": "error", "response": {"reason": words}}
        assert await one.join(room, {"broadcast": "x"}) == {"status": "ok", "response": {"postgres_changes": []}}  # J1
        await one.joined(f"{room}2", {"broadcast": {"self": "True"}})
        await one.send("1", "2", f"{room}2", "broadcast", said())
        assert await one.next() == heard(f"{room}2", said())


# By HTTP


async def post(server: RealtimeServer, path: str, **more: Any) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.post(server.http_url + path, **more)


BATCH = pytest.mark.parametrize("path", ["/api/broadcast", "/realtime/v1/api/broadcast"])


@BATCH
async def test_b24_b25_a_batch_reaches_its_topics(path: str, realtime_server: RealtimeServer, room: str) -> None:
    name = room.removeprefix("realtime:")
    messages = [
        {"topic": name, "event": "a", "payload": {"n": 12345678901234567890123}},
        {"topic": f"{name}2", "event": "b", "payload": {}, "id": "m1", "private": False},
        {"topic": name, "event": "hidden", "payload": {}, "private": True},  # B29: nobody may be there
    ]
    async with Channels(realtime_server.ws_url) as one, Channels(realtime_server.ws_url, V1) as old:
        await one.joined(room)
        await old.joined(f"{room}2")
        response = await post(realtime_server, path, json={"messages": messages})
        assert (response.status_code, response.content) == (202, b"")
        assert response.headers["access-control-allow-origin"] == "*"
        big = {"event": "a", "payload": {"n": 12345678901234567890123}, "type": "broadcast"}
        assert await one.next() == heard(room, big)
        told = {"event": "b", "payload": {}, "type": "broadcast", "meta": {"id": "m1"}}
        assert await old.next() == heard(f"{room}2", told)
        await one.silence()


BLANK, INVALID = ["can't be blank"], ["is invalid"]


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({}, BLANK),
        ({"messages": []}, BLANK),
        ([], BLANK),
        ({"messages": "x"}, INVALID),
        ({"messages": ["x"]}, INVALID),
        (
            {"messages": [{"topic": "t", "event": "e"}, {"topic": "t", "event": "e", "payload": {}}]},
            [{"payload": BLANK}, {}],
        ),
        ({"messages": [{}]}, [{"topic": BLANK, "event": BLANK, "payload": BLANK}]),
        (
            {"messages": [{"topic": "", "event": 7, "payload": []}]},
            [{"topic": BLANK, "event": INVALID, "payload": INVALID}],
        ),
        ({"messages": [{"topic": "t", "event": "e", "payload": {}, "private": "x"}]}, [{"private": INVALID}]),
    ],
)  # fmt: skip
async def test_b26_a_batch_with_a_fault_is_refused_as_a_whole(
    body: Any, errors: Any, realtime_server: RealtimeServer
) -> None:
    async with Channels(realtime_server.ws_url) as one:
        await one.joined("realtime:t")
        response = await post(realtime_server, "/api/broadcast", json=body)
        assert (response.status_code, response.json()) == (422, {"errors": {"messages": errors}})
        await one.silence()


async def test_b27_b40_what_is_too_large_is_refused(realtime_server: RealtimeServer, room: str) -> None:
    too_large = ["Payload size exceeds tenant limit"]
    big = {"topic": "t", "event": "e", "payload": {"x": "x" * 3_000_500}}
    response = await post(realtime_server, "/api/broadcast", json={"messages": [big]})
    assert (response.status_code, response.json()) == (422, {"errors": {"messages": [{"payload": too_large}]}})
    for content_type in ("application/json", "application/octet-stream"):
        response = await post(
            realtime_server,
            "/api/broadcast/t/events/e",
            content=b'"' + b"x" * 3_000_500 + b'"',
            headers={"Content-Type": content_type},
        )
        assert (response.status_code, response.json()) == (422, {"errors": {"payload": too_large}})
    response = await post(realtime_server, "/api/broadcast/t/events/e", content=b"x" * 8_000_001)
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("content_type", "body", "encoding", "data"),
    [
        pytest.param("application/json", b'{"a":1}', 1, b'{"a":1}', id="b32"),
        pytest.param("application/json", b"{}", 1, b"{}", id="b33"),
        pytest.param("application/octet-stream", b"\x00efg", 0, b"\x00efg", id="b34"),
        pytest.param("application/octet-stream", b"", 0, b"", id="b35"),
        pytest.param("application/json; charset=utf-8", b' {"a": 1.50} ', 1, b'{"a": 1.50}', id="b37"),
        pytest.param(None, b"[1]", 1, b'{"_json":[1]}', id="no content type, no object"),
        pytest.param("Application/JSON", b"", 1, b"{}", id="nothing"),
    ],
)
async def test_b32_to_b37_a_single_broadcast(
    content_type: str | None, body: bytes, encoding: int, data: bytes, realtime_server: RealtimeServer
) -> None:
    room = f"realtime:room:{secrets.token_hex(4)}/ä"
    path = f"/realtime/v1/api/broadcast/{quote(room.removeprefix('realtime:'), safe='')}"
    headers = {} if content_type is None else {"Content-Type": content_type}
    async with Channels(realtime_server.ws_url) as new, Channels(realtime_server.ws_url, V1) as old:
        await new.joined(room)
        await old.joined(room)
        response = await post(
            realtime_server, f"{path}/events/e%2Fv%20?apikey=x&vsn=2.0.0&private=false", content=body, headers=headers
        )
        assert (response.status_code, response.content) == (202, b"")
        assert await new.next() == UserBroadcast(room, "e/v ", b"", encoding, data)
        if encoding:
            payload = {"event": "e/v ", "payload": json.loads(data), "type": "broadcast"}
            assert await old.next() == heard(room, payload)
        await old.silence()


@pytest.mark.parametrize(
    ("path", "content_type", "status", "body"),
    [
        (
            "/api/broadcast/t/events/e",
            "text/plain",
            415,
            {"error": "Unsupported Media Type. Use application/json or application/octet-stream"},
        ),
        ("/api/broadcast/t/events/e?private=true", "application/json", 403, {"message": "Unauthorized"}),
        ("/api/broadcast/t/events/e", "application/json", 400, {"message": "Bad Request: the body is no JSON"}),
        ("/api/broadcast/a/b/events/e", "application/json", 404, {"message": "Not Found"}),
        ("/api/broadcast/%FF/events/e", "application/json", 400, {"message": "Bad Request: the path is not UTF-8"}),
        (
            f"/api/broadcast/{'t' * 247}/events/{'e' * 256}",
            "application/octet-stream",
            422,
            {"errors": {n: ["should be at most 255 byte(s) for a binary payload"] for n in ("topic", "event")}},
        ),
    ],
)  # fmt: skip
async def test_b36_b38_a_single_broadcast_that_is_refused(
    path: str, content_type: str, status: int, body: Any, realtime_server: RealtimeServer
) -> None:
    response = await post(realtime_server, path, content=b"no json", headers={"Content-Type": content_type})
    assert (response.status_code, response.json()) == (status, body)


async def test_names_too_long_for_a_binary_frame_are_told_in_text(realtime_server: RealtimeServer) -> None:
    name = secrets.token_hex(150)
    async with Channels(realtime_server.ws_url) as new:
        await new.joined(f"realtime:{name}")
        response = await post(realtime_server, f"/api/broadcast/{name}/events/e", json={"a": 1})
        assert response.status_code == 202
        assert await new.next() == heard(f"realtime:{name}", {"event": "e", "payload": {"a": 1}, "type": "broadcast"})


@pytest.mark.parametrize("path", ["/api/broadcast", "/realtime/v1/api/broadcast/t/events/e"])
async def test_browsers_may_ask_first(path: str, realtime_server: RealtimeServer) -> None:
    async with httpx2.AsyncClient() as client:
        response = await client.options(
            realtime_server.http_url + path,
            headers={
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "apikey,authorization,content-type",
            },
        )
        other = await client.get(realtime_server.http_url + path)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "*"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == "apikey,authorization,content-type"
    assert (other.status_code, other.headers["allow"]) == (405, "POST, OPTIONS")


async def test_b42_the_interface_is_described_and_alive(realtime_server: RealtimeServer) -> None:
    async with httpx2.AsyncClient() as client:
        for prefix in ("", "/realtime/v1"):
            document = (await client.get(f"{realtime_server.http_url}{prefix}/api/openapi")).json()
            ping = await client.get(f"{realtime_server.http_url}{prefix}/api/ping")
            assert (ping.status_code, ping.json()) == (200, {"message": "Success"})
    assert document["openapi"].startswith("3.1")
    for path in document["paths"]:
        named = path.format(topic="t", event="e")
        assert (await post(realtime_server, named, json={})).status_code in (202, 422)


async def test_a_flood_of_posts_is_heard_whole(realtime_server: RealtimeServer, room: str) -> None:
    name = room.removeprefix("realtime:")
    messages = [{"topic": name, "event": "e", "payload": {"n": number}} for number in range(2_000)]
    async with Channels(realtime_server.ws_url, V2) as one:
        await one.joined(room)
        response = await post(realtime_server, "/api/broadcast", json={"messages": messages})
        assert response.status_code == 202
        assert [message[4]["payload"]["n"] for message in await one.many(2_000)] == list(range(2_000))
