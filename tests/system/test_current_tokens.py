"""Tokens on current channels and limits of what clients may do. The numbers are those of the golden cases."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from streaming.tokens import sign
from tests.system.channels import SECRET, V1, Channels, close, ok, system
from tests.system.server import RealtimeServer

REQUIRED = "Fields `role` and `exp` are required in JWT"
MALFORMED = "The token provided is not a valid JWT"
SIGNER = "Failed to generate JWT signer, check your JWT secret or JWKS configuration"


@pytest.fixture
def room() -> str:
    """A topic of the test's own."""
    return f"realtime:room-{secrets.token_hex(4)}"


def token(*, secret: str = SECRET, **claims: Any) -> str:
    """A good token, but for these claims; `None` leaves one out."""
    all_claims = {"role": "authenticated", "exp": time.time() + 600} | claims
    return sign({name: value for name, value in all_claims.items() if value is not None}, secret)


def current_url(server: RealtimeServer) -> str:
    return server.ws_url.replace("/socket/", "/realtime/v1/")


HANDSHAKES = [
    pytest.param({}, 401, "API key is missing", id="c04"),
    pytest.param({"apikey": "notajwt"}, 401, MALFORMED, id="c05"),
    pytest.param({"apikey": lambda: token(exp=1)}, 401, "Token has expired", id="c06"),
    pytest.param({"apikey": lambda: token(secret="x" * 32)}, 401, "Failed to validate JWT signature", id="c09"),
    pytest.param({"apikey": lambda: token(), "vsn": "3.0.0"}, 403, None, id="c03"),
    pytest.param({"apikey": lambda: token(), "vsn": "2.0.0"}, 426, None, id="c01"),
    pytest.param({"apikey": lambda: token()}, 426, None, id="c02"),
    pytest.param({"apikey": lambda: token(exp=time.time() + 9.5, iat=time.time() - 0.5)}, 426, None, id="c12"),
    pytest.param({"apikey": lambda: " ".join(token())}, 426, None, id="c18"),
]


@pytest.mark.parametrize(("parameters", "status", "words"), HANDSHAKES)
async def test_handshakes(
    parameters: dict[str, Any], status: int, words: str | None, secure_server: RealtimeServer
) -> None:
    called = {name: value() if callable(value) else value for name, value in parameters.items()}
    async with httpx2.AsyncClient() as client:
        response = await client.get(f"{secure_server.http_url}/realtime/v1/websocket", params=called)
    assert response.status_code == status
    if words is not None:
        assert response.json() == {"error": words}


JOINS = [
    pytest.param(
        {"access_token": lambda: token(exp=time.time() - 100)}, "InvalidJWTToken: Token has expired 10", id="j10"
    ),
    pytest.param({"access_token": lambda: token(role=None)}, f"InvalidJWTToken: {REQUIRED}", id="j11"),
    pytest.param({"access_token": lambda: token(exp=None)}, f"InvalidJWTToken: {REQUIRED}", id="j11b"),
    pytest.param({"access_token": "abc"}, f"MalformedJWT: {MALFORMED}", id="j12"),
    pytest.param({"access_token": ""}, f"MalformedJWT: {MALFORMED}", id="empty"),
    pytest.param(
        {"access_token": lambda: token(secret="x" * 32)},
        "JwtSignatureError: Failed to validate JWT signature",
        id="signature",
    ),
    pytest.param({"access_token": "sb_publishable_x"}, None, id="j13"),
    pytest.param({"access_token": "sb_publishable_x", "user_token": "abc"}, None, id="j13b"),
    pytest.param({"access_token": "abc", "user_token": lambda: token()}, None, id="j14"),
    pytest.param({"access_token": None}, None, id="j15a"),
    pytest.param({"access_token": 7}, None, id="j15b"),
    pytest.param({}, None, id="j15c"),
]  # fmt: skip


@pytest.mark.parametrize(("tokens", "reason"), JOINS)
async def test_joins(tokens: dict[str, Any], reason: str | None, secure_server: RealtimeServer, room: str) -> None:
    called = {name: value() if callable(value) else value for name, value in tokens.items()}
    async with Channels(current_url(secure_server), apikey=token()) as one:
        reply = await one.join(room, {}, **called)
        if reason is None:
            assert reply == {"status": "ok", "response": {"postgres_changes": []}}
        else:
            assert reply["status"] == "error"
            assert reply["response"]["reason"].startswith(reason)


async def test_a_key_without_role_opens_a_socket_but_no_current_channel(
    secure_server: RealtimeServer, room: str
) -> None:  # C7 and C8, where the channel decides
    async with Channels(current_url(secure_server), apikey=token(role=None)) as one:
        reply = await one.join(room, {})
        assert reply == {"status": "error", "response": {"reason": f"InvalidJWTToken: {REQUIRED}"}}
        await one.send("2", "2", room, "phx_join", {})
        assert await one.next() == ok("2", "2", room)


REFRESHES = [
    pytest.param("", MALFORMED, id="t03"),
    pytest.param(lambda: token(exp=time.time() - 60), "Token has expired 6", id="t04"),
    pytest.param(lambda: token(role=None), REQUIRED, id="t05a"),
    pytest.param(lambda: token(exp=None), REQUIRED, id="t05b"),
    pytest.param("a.b.c", MALFORMED, id="t06"),
    pytest.param(lambda: token(secret="x" * 32), "Failed to validate JWT signature", id="signature"),
]


@pytest.mark.parametrize(("new", "words"), REFRESHES)
async def test_a_refresh_that_fails_closes_the_channel(
    new: Any, words: str, secure_server: RealtimeServer, room: str
) -> None:
    async with (
        Channels(current_url(secure_server), apikey=token()) as one,
        Channels(current_url(secure_server), apikey=token()) as other,
    ):
        await one.joined(room, {"presence": {"key": "k", "enabled": False}})
        await one.joined(f"{room}2", ref="9")
        await other.joined(room)
        await one.send("1", "2", room, "presence", {"event": "track", "payload": {}})
        assert [(await one.next())[3] for _ in range(2)] == ["phx_reply", "presence_diff"]
        assert (await other.next())[4]["joins"].keys() == {"k"}
        await one.send("1", "3", room, "access_token", {"access_token": new() if callable(new) else new})
        told = await one.next()
        assert told[4]["message"].startswith(words)
        assert told == system(room, told[4]["message"])
        assert await one.next() == close(room)
        assert (await other.next())[4]["leaves"].keys() == {"k"}
        # The socket and its other channels live.
        await one.send("9", "4", f"{room}2", "access_token", {"access_token": token(sub="again")})
        await one.silence()


async def test_t01_t07_a_good_token_and_what_is_none_are_taken_without_a_word(
    secure_server: RealtimeServer, room: str
) -> None:
    key = token()
    async with Channels(current_url(secure_server), apikey=key) as one:
        await one.joined(room)
        for new in (token(sub="new"), "sb_publishable_x", key, None, 7):
            await one.send("1", "2", room, "access_token", {"access_token": new})
        await one.silence()


async def test_t02_a_new_token_is_told_of_where_changes_are_heard(secure_server: RealtimeServer, room: str) -> None:
    binding = {"event": "*", "schema": "public", "table": "todos"}
    async with Channels(current_url(secure_server), apikey=token()) as one:
        await one.joined(room, {"postgres_changes": [binding]})
        first = await one.next()
        assert (first[3], first[4]["status"], first[4]["message"]) == ("system", "ok", "Subscribed to PostgreSQL")
        await one.send("1", "2", room, "access_token", {"access_token": token(sub="new")})
        assert await one.next() == first
        await one.silence()


@pytest.mark.parametrize("vsn", [V1, "2.0.0"])
async def test_t13_a_channel_ends_with_its_token(vsn: str, secure_server: RealtimeServer, room: str) -> None:
    async with Channels(current_url(secure_server), vsn, apikey=token()) as one:
        await one.joined(room, access_token=token(exp=time.time() + 1))
        await one.joined(f"{room}2", ref="2", access_token=token(exp=time.time() + 600))
        told, end = await one.many(2)
        assert (told[2:4], told[4]["message"]) == ([room, "system"], "Token has expired 0 seconds ago")
        assert end[1:] == close(room)[1:]
        await one.silence()


async def test_a_refresh_in_time_keeps_the_channel(secure_server: RealtimeServer, room: str) -> None:
    ends_at = time.time() + 1
    async with Channels(current_url(secure_server), apikey=token()) as one:
        await one.joined(room, access_token=token(exp=ends_at))
        await one.joined(f"{room}2", ref="2", access_token=token(exp=ends_at))
        await one.send("1", "2", room, "access_token", {"access_token": token()})
        assert [(await one.next())[2] for _ in range(2)] == [f"{room}2", f"{room}2"]
        await one.silence()


BEARERS = [
    pytest.param({}, 401, id="none"),
    pytest.param({"Authorization": "Bearer abc"}, 401, id="b30"),
    pytest.param({"Authorization": lambda: f"Bearer {token(exp=1)}"}, 401, id="b30 expired"),
    pytest.param({"Authorization": lambda: f"Bearer {token(role=None)}"}, 401, id="no role"),
    pytest.param({"Authorization": lambda: f"bEARER {token()}"}, 202, id="any case"),
    pytest.param({"apikey": lambda: token()}, 202, id="apikey"),
    pytest.param({"Authorization": "", "apikey": lambda: token()}, 202, id="empty bearer"),
    pytest.param({"Authorization": "Bearer", "apikey": lambda: token()}, 202, id="bearer of nothing"),
    pytest.param({"Authorization": "Bearer abc", "apikey": lambda: token()}, 401, id="the bearer counts"),
]


@pytest.mark.parametrize(("headers", "status"), BEARERS)
async def test_broadcasts_by_http_need_a_token(
    headers: dict[str, Any], status: int, secure_server: RealtimeServer
) -> None:
    called = {name: value() if callable(value) else value for name, value in headers.items()}
    message = {"topic": "t", "event": "e", "payload": {}}
    async with httpx2.AsyncClient(base_url=secure_server.http_url, headers=called) as client:
        batch = await client.post("/api/broadcast", json={"messages": [message]})
        one = await client.post("/realtime/v1/api/broadcast/t/events/e", json={})
    assert [response.status_code for response in (batch, one)] == [status, status]
    if status == 401:
        assert batch.json() == one.json() == {"message": "Unauthorized"}


async def test_no_token_reaches_the_log(secure_server: RealtimeServer, room: str) -> None:
    canaries = [token(sub="canary"), token(sub="canary", secret="x" * 32), token(sub="canary", exp=1)]
    async with Channels(current_url(secure_server), apikey=canaries[0]) as one:
        for number, canary in enumerate(canaries):
            await one.join(f"{room}{number}", {}, ref=str(number), access_token=canary)
        for canary in canaries[1:]:
            await one.joined(room, ref="9")
            await one.send("9", "10", room, "access_token", {"access_token": canary})
            assert [(await one.next())[3] for _ in range(2)] == ["system", "phx_close"]
    async with httpx2.AsyncClient(base_url=secure_server.http_url) as client:
        for canary in canaries:
            await client.post("/api/broadcast/t/events/e", json={}, headers={"Authorization": f"Bearer {canary}"})
    assert not any(part in secure_server.log for canary in canaries for part in canary.split(".")[1:])


# Limits


@pytest.fixture(scope="module")
def narrow_server(secure_server: RealtimeServer) -> Iterator[RealtimeServer]:
    """A server with limits that a test can reach, on the database of the other one."""
    limits = {
        "TENANT_MAX_CONCURRENT_USERS": "2",
        "TENANT_MAX_JOINS_PER_SECOND": "0.2",  # twelve within a minute
        "TENANT_MAX_EVENTS_PER_SECOND": "0.25",  # fifteen
        "MAX_PRESENCE_EVENTS_PER_SECOND": "0.5",  # thirty
        "CLIENT_PRESENCE_MAX_CALLS": "5",
        "MAX_PAYLOAD_SIZE_IN_KB": "1",
        "PRESENCE_ENABLED": "true",
        "MAX_TOPICS": "2",
    }
    with RealtimeServer({"SECURE_CHANNELS": "false", "DATABASE_URL": secure_server.dsn, **limits}) as server:
        yield server


@pytest.fixture
def fresh(narrow_server: RealtimeServer) -> RealtimeServer:
    """The same, and nothing has happened yet."""
    narrow_server.restart()
    return narrow_server


async def test_b14_b15_a_payload_over_the_limit_is_refused(fresh: RealtimeServer, room: str) -> None:
    large = {"type": "broadcast", "event": "e", "payload": {"x": "x" * 1_501}}
    async with Channels(fresh.ws_url) as one, Channels(fresh.ws_url) as other:
        await one.joined(room, {"broadcast": {"ack": True}})
        await other.joined(room)
        for channels in (one, other):
            assert (await channels.next())[3] == "presence_state"  # P21
        await one.send("1", "2", room, "broadcast", large)
        assert (await one.next())[4] == {"status": "error", "response": "payload_size_exceeded"}
        await other.send("1", "2", room, "broadcast", large)
        await other.silence()
        await one.silence()


async def test_b23_b28_b41_broadcasts_over_the_rate(fresh: RealtimeServer, room: str) -> None:
    async with Channels(fresh.ws_url) as one, httpx2.AsyncClient(base_url=fresh.http_url) as client:
        await one.joined(room, {"broadcast": {"ack": True, "self": True}})
        assert (await one.next())[3] == "presence_state"
        message = {"topic": "t", "event": "e", "payload": {}}
        response = await client.post("/api/broadcast", json={"messages": [message] * 16})
        told = {"message": "Too many messages to broadcast, please reduce the batch size"}
        assert (response.status_code, response.json()) == (429, told)
        assert response.headers["x-rate-limit"] == "0.25"
        assert "x-rate-rolling" in response.headers
        assert "x-rate-limit-remaining" in response.headers
        for number in range(8):  # each is sent and delivered
            await one.send("1", str(number), room, "broadcast", {"n": number})
            assert [(await one.next())[3] for _ in range(2)] == ["broadcast", "phx_reply"]
        response = await client.post("/api/broadcast/t/events/e", json={})
        assert (response.status_code, response.json()) == (429, {"message": "You have exceeded your rate limit"})
        await one.send("1", "9", room, "broadcast", {"n": 9})
        assert await one.many(2) == [system(room, "Too many messages per second"), close(room)]
        await one.silence()


async def test_p14_p15_presence_calls_of_one_channel(fresh: RealtimeServer, room: str) -> None:
    async with Channels(fresh.ws_url) as one, Channels(fresh.ws_url) as other:
        for channels in (one, other):
            await channels.joined(room)
            assert (await channels.next())[3] == "presence_state"
        for number in range(5):
            await one.send("1", str(number), room, "presence", {"event": "untrack"})
            assert await one.next() == ok("1", str(number), room)
        await one.send("1", "6", room, "presence", {"event": "untrack"})
        assert await one.many(2) == [system(room, "Client presence rate limit exceeded"), close(room)]
        await other.send("1", "2", room, "presence", {"event": "untrack"})
        assert await other.next() == ok("1", "2", room)


async def test_p16_presence_over_the_rate(fresh: RealtimeServer, room: str) -> None:
    async with Channels(fresh.ws_url) as one:
        for number in range(10):
            topic = f"{room}{number}"
            await one.send(str(number), "1", topic, "phx_join", {"config": {}})
            assert [(await one.next())[3] for _ in range(2)] == ["phx_reply", "presence_state"]
            for call in range(2):
                await one.send(str(number), "2", topic, "presence", {"event": "track", "payload": {"n": call}})
                message = await one.next()
                if message[3] == "system":
                    assert message == system(topic, "Too many presence messages per second", str(number))
                    assert await one.next() == close(topic, str(number))
                    return
                assert (await one.next())[3] == "presence_diff"
            await one.send(str(number), "3", topic, "phx_leave", {})
            assert [(await one.next())[3] for _ in range(2)] == ["phx_reply", "phx_close"]
    pytest.fail("the limit was never reached")


async def test_j18_j19_j20_c15_c16_joins_over_the_limits(fresh: RealtimeServer, room: str) -> None:
    async with (
        Channels(fresh.ws_url) as one,
        Channels(fresh.ws_url) as two,
        Channels(fresh.ws_url) as three,
        Channels(fresh.ws_url) as four,
    ):
        for number in range(2):
            await one.joined(f"{room}{number}", ref=str(number))
            assert (await one.next())[3] == "presence_state"
        reply = await one.join(f"{room}2", {})
        assert reply["response"] == {"reason": "ChannelRateLimitReached: Too many channels"}
        await two.send("1", "1", room, "phx_join", {})
        assert await two.next() == ok("1", "1", room)
        reply = await three.join(room, {})
        assert reply["response"] == {"reason": "ConnectionRateLimitReached: Too many connected users"}
        with pytest.raises(Exception, match="429"):
            await Channels(current_url(fresh)).__aenter__()
        await two.send("1", "2", room, "phx_leave", {})
        assert [(await two.next())[3] for _ in range(2)] == ["phx_reply", "phx_close"]
        for number in range(8):
            await two.send("1", "1", room, "phx_join", {})
            assert await two.next() == ok("1", "1", room), number
        reply = await four.join(room, {})
        assert reply["status"] == "error"
        reply = await two.join(room, {}, ref="20")
        assert reply["response"] == {"reason": "ClientJoinRateLimitReached: Too many joins per second"}
        assert (await two.closed())[0] == 1001
        with pytest.raises(Exception, match="429"):
            await Channels(current_url(fresh)).__aenter__()
