"""What a current channel says and is told: broadcasts, presence, tokens, limits. The numbers are the golden cases'."""

from __future__ import annotations

from typing import Any

import pytest

from streaming.joins import parse_config
from streaming.limits import Limits, Traffic
from streaming.phoenix import (
    ACCESS_TOKEN,
    BROADCAST,
    PHX_CLOSE,
    PHX_ERROR,
    PHX_JOIN,
    PHX_LEAVE,
    PHX_REPLY,
    PRESENCE,
    SYSTEM,
    Json,
    Message,
    UserBroadcast,
    Verbatim,
)
from streaming.session import (
    Close,
    Effect,
    Enter,
    Exit,
    Odd,
    Refused,
    Say,
    Send,
    Session,
    ShowPresence,
    Track,
    Unsubscribe,
    Untrack,
)
from streaming.tokens import TokenVerifier, sign

ROOM = "realtime:room"
NOW = 1_800_000_000.0
SECRET = "a secret that is longer than thirty-two bytes"
TEXT = Verbatim(b'{"type":"broadcast","event":"e","payload":{}}')


def session(**more: Any) -> Session:
    return Session(new_key=lambda: "made", **more)


def joined(config: dict[str, Json] | None = None, **more: Any) -> Session:
    made = session(**more)
    join(made, config)
    return made


def join(one: Session, config: dict[str, Json] | None = None, ref: str = "1", **payload: Json) -> list[Effect]:
    return one.receive(Message(ref, ref, ROOM, PHX_JOIN, {"config": config or {}, **payload}), NOW)


def push(one: Session, event: str, payload: Any, now: float = NOW, join_ref: Json = "1") -> list[Effect]:
    return one.receive(Message(join_ref, "2", ROOM, event, payload), now)


def reply(status: str, response: Json, ref: str = "2", join_ref: Json = "1") -> Send:
    return Send(Message(join_ref, ref, ROOM, PHX_REPLY, {"status": status, "response": response}))


def closed(words: str) -> list[Effect]:
    told: dict[str, Json] = {"channel": "room", "extension": "system", "message": words, "status": "error"}
    return [
        Unsubscribe(ROOM),
        Exit(ROOM),
        Send(Message("1", None, ROOM, SYSTEM, told)),
        Send(Message("1", "1", ROOM, PHX_CLOSE, {})),
    ]


def token(**claims: Json) -> str:
    return sign({"role": "authenticated", "exp": NOW + 600} | claims, SECRET)


def test_a_join_enters_the_room_before_its_reply_and_shows_presence_after_it() -> None:
    assert join(session(), {"presence": {"enabled": True}}) == [
        Enter(ROOM),
        reply("ok", {"postgres_changes": []}, "1"),
        ShowPresence(ROOM, "1"),
    ]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, False),
        ({"presence": {"key": ""}}, True),
        ({"presence": {"key": "", "enabled": False}}, False),
        ({"presence": {"enabled": "TRUE"}}, True),
        ({"presence": None}, False),
        ({"presence": "x"}, False),
        ({"presence": {"enabled": None}}, False),
    ],
)
def test_who_wants_to_see_presence(config: Json, wanted: bool) -> None:
    parsed = parse_config({"config": config})
    assert parsed is not None
    assert parsed.presence_enabled is wanted


def test_the_server_may_show_it_to_everybody() -> None:  # P21
    assert ShowPresence(ROOM, "1") in join(session(presence_enabled=True), {"presence": {"enabled": False}})


@pytest.mark.parametrize(
    ("config", "effects"),
    [
        ({}, [Say(ROOM, TEXT, False)]),
        ({"self": True}, [Say(ROOM, TEXT, True)]),
        ({"ack": True, "self": "true"}, [Say(ROOM, TEXT, True), reply("ok", {})]),
    ],
)  # B1 to B4
def test_a_broadcast_is_said_and_then_answered(config: dict[str, Json], effects: list[Effect]) -> None:
    assert push(joined({"broadcast": config}), BROADCAST, TEXT) == effects


def test_a_binary_broadcast_is_said_too() -> None:
    broadcast = UserBroadcast("e", b"\xff", is_json=False)
    assert push(joined(), BROADCAST, broadcast) == [Say(ROOM, broadcast, False)]


def test_phoenixs_own_binary_push_is_no_broadcast() -> None:
    assert push(joined(), BROADCAST, b"\x00") == []


def test_a_reply_has_the_refs_of_its_push() -> None:  # F13
    one = joined({"broadcast": {"ack": True}})
    for join_ref in ("other", None):
        assert push(one, BROADCAST, TEXT, join_ref=join_ref)[1] == reply("ok", {}, join_ref=join_ref)


def test_a_payload_over_the_limit_is_not_said() -> None:  # B14, B15
    large = Verbatim(b'"' + b"x" * 600 + b'"')
    limits = Limits(payload_bytes=100)
    asks = joined({"broadcast": {"ack": True}}, traffic=Traffic(limits))
    assert push(asks, BROADCAST, large) == [reply("error", "payload_size_exceeded")]
    assert push(joined(traffic=Traffic(limits)), BROADCAST, large) == []


def test_a_broadcast_over_the_rate_ends_its_channel() -> None:  # B23
    traffic = Traffic(Limits(events_per_s=1))
    one = joined(traffic=traffic)
    assert push(one, BROADCAST, TEXT) == [Say(ROOM, TEXT, False)]
    traffic.events.add(60, NOW)
    assert push(one, BROADCAST, TEXT) == closed("Too many messages per second")
    assert one.topics == ()


def test_events_that_nobody_knows_count() -> None:  # F12
    traffic = Traffic(Limits(events_per_s=1))
    one = joined(traffic=traffic)
    for _ in range(60):
        assert push(one, "foo", {}) == []
    assert push(one, BROADCAST, TEXT) == closed("Too many messages per second")


@pytest.mark.parametrize(
    ("key", "shown"),
    [("mine", "mine"), ("", "made"), (None, "made"), (123, "123"), (1.5, "1.5"), (True, "true"), ({"a": 1}, '{"a":1}')],
)  # J9
def test_track_shows_the_payload_under_the_channels_key(key: Json, shown: str) -> None:
    one = joined({"presence": {"key": key}})
    assert push(one, PRESENCE, {"event": "TRACK", "payload": {"n": 1}}) == [
        reply("ok", {}),
        Track(ROOM, shown, {"n": 1}),
    ]


@pytest.mark.parametrize(
    ("payload", "effects"),
    [
        ({"event": "track"}, [reply("ok", {}), Track(ROOM, "made", {})]),
        ({"event": "untrack", "payload": {}}, [reply("ok", {}), Untrack(ROOM)]),
        ({"type": "presence"}, [reply("ok", {})]),
        ("text", [reply("ok", {})]),
        ({"event": "unknown"}, [reply("error", {})]),
        ({"event": None}, [reply("error", {})]),
        ({"event": "track", "payload": "x"}, [reply("error", {"reason": "Presence track payload must be a map"})]),
    ],
)  # P11 to P13
def test_presence_calls(payload: Json, effects: list[Effect]) -> None:
    assert push(joined(), PRESENCE, payload) == effects


def test_the_sixth_call_within_the_window_ends_the_channel() -> None:  # P14, P15
    traffic = Traffic(Limits(presence_calls=5, presence_window_s=30))
    one, other = joined(traffic=traffic), joined(traffic=traffic)
    for second in range(5):
        assert push(one, PRESENCE, {"event": "untrack"}, NOW + second)[0] == reply("ok", {})
    assert push(one, PRESENCE, {"no": "event"}, NOW + 5) == [reply("ok", {})]
    assert push(one, PRESENCE, {"event": "unknown"}, NOW + 6) == closed("Client presence rate limit exceeded")
    assert push(other, PRESENCE, {"event": "untrack"}, NOW + 7)[0] == reply("ok", {})


def test_presence_over_the_rate_or_the_size_ends_the_channel() -> None:  # P16, P17
    traffic = Traffic(Limits(presence_events_per_s=1, payload_bytes=100))
    large: Json = {"event": "track", "payload": {"x": "x" * 600}}
    assert push(joined(traffic=traffic), PRESENCE, large) == closed("Track message size exceeded")
    traffic.presence.add(60, NOW)
    assert push(joined(traffic=traffic), PRESENCE, {"event": "track"}) == closed(
        "Too many presence messages per second"
    )


@pytest.mark.parametrize("how", ["fail", "leave", "end", "gap"])
def test_a_channel_that_ends_leaves_its_room(how: str) -> None:
    one = joined()
    match how:
        case "fail":
            effects = one.fail(ROOM)
        case "leave":
            effects = push(one, PHX_LEAVE, {})
        case "end":
            effects = one.end()
        case _:
            effects = one.tell_gap([ROOM])
    assert effects.count(Exit(ROOM)) == 1
    assert one.topics == ()


def test_a_second_join_leaves_the_room_and_enters_it_anew() -> None:  # F11
    one = joined()
    effects = join(one, ref="5")
    assert effects[:2] == [Exit(ROOM), Enter(ROOM)]
    assert effects[-1] == Send(Message("1", "1", ROOM, PHX_CLOSE, {}))


def test_a_legacy_join_in_its_place_leaves_the_room() -> None:
    one = joined()
    effects = one.receive(Message("5", "5", ROOM, PHX_JOIN, {}), NOW)
    assert effects[0] == Exit(ROOM)
    assert Enter(ROOM) not in effects
    assert push(one, BROADCAST, TEXT) == []


def test_a_legacy_channel_is_in_no_room() -> None:
    one = session()
    one.receive(Message("1", "1", ROOM, PHX_JOIN, {}), NOW)
    assert push(one, BROADCAST, TEXT) == []
    assert push(one, PRESENCE, {"event": "track", "payload": {}}) == []
    assert one.fail(ROOM) == [Unsubscribe(ROOM), Send(Message("1", "1", ROOM, PHX_ERROR, {}))]


# Joins over the limits


def test_users_are_sockets_that_have_joined() -> None:  # J19
    traffic = Traffic(Limits(users=1))
    one, other = joined(traffic=traffic), session(traffic=traffic)
    traffic.users = 1
    [refusal] = join(other)
    assert refusal == reply("error", {"reason": "ConnectionRateLimitReached: Too many connected users"}, "1")
    assert one.receive(Message("7", "7", "realtime:more", PHX_JOIN, {"config": {}}), NOW)[0] == Enter("realtime:more")


def test_a_join_too_many_closes_the_socket() -> None:  # J20
    traffic = Traffic(Limits(joins_per_s=1))
    traffic.joins.add(60, NOW)
    reason: Json = {"reason": "ClientJoinRateLimitReached: Too many joins per second"}
    assert join(session(traffic=traffic)) == [reply("error", reason, "1"), Close(1001, "")]


# Tokens


def secured(**claims: Json) -> Session:
    verifier = TokenVerifier([SECRET], {})
    return session(verifier=verifier, claims=verifier.verify(token(**claims), NOW))


def reason(effects: list[Effect]) -> str:
    [refused, send] = effects
    assert isinstance(refused, Refused)
    assert isinstance(send, Send)
    payload: Any = send.message.payload
    return str(payload["response"]["reason"])


@pytest.mark.parametrize(
    ("presented", "words"),
    [
        (token(exp=NOW - 100), "InvalidJWTToken: Token has expired 100 seconds ago"),  # J10
        (token(role=None), "InvalidJWTToken: Fields `role` and `exp` are required in JWT"),  # J11
        (sign({"role": "a"}, SECRET), "InvalidJWTToken: Fields `role` and `exp` are required in JWT"),
        ("abc", "MalformedJWT: The token provided is not a valid JWT"),  # J12
        ("", "MalformedJWT: The token provided is not a valid JWT"),
        (sign({"exp": "soon"}, SECRET), "InvalidJWTToken: Token expiration time is invalid"),
        (sign({"exp": NOW + 1}, "x" * 40), "JwtSignatureError: Failed to validate JWT signature"),
    ],
)
def test_a_refused_join_says_why_in_the_words_that_clients_know(presented: str, words: str) -> None:
    assert reason(join(secured(), access_token=presented)) == words


def test_the_sockets_own_token_may_be_the_one_that_is_refused() -> None:
    one = secured(exp=NOW + 5)
    late = one.receive(Message("1", "1", ROOM, PHX_JOIN, {"config": {}}), NOW + 8)
    assert reason(late) == "InvalidJWTToken: Token has expired 3 seconds ago"


def test_a_refused_token_is_not_the_sockets() -> None:
    one = secured()
    join(one, access_token=token(role=None))
    assert join(one)[0] == Enter(ROOM)


def test_a_default_role_makes_good_what_tokens_lack() -> None:
    verifier = TokenVerifier([SECRET], {}, default_role="anon")
    one = session(verifier=verifier, claims=verifier.verify(token(role=None), NOW))
    assert join(one)[0] == Enter(ROOM)


@pytest.mark.parametrize(
    ("presented", "words"),
    [
        ("", "The token provided is not a valid JWT"),  # T3
        (token(exp=NOW - 7), "Token has expired 7 seconds ago"),  # T4
        (token(role=None), "Fields `role` and `exp` are required in JWT"),  # T5
        ("a.b.c", "The token provided is not a valid JWT"),  # T6
        (sign({"exp": NOW + 1}, "x" * 40), "Failed to validate JWT signature"),
    ],
)
def test_a_refresh_that_fails_closes_the_channel(presented: str, words: str) -> None:
    one = secured()
    join(one)
    assert push(one, ACCESS_TOKEN, {"access_token": presented})[1:] == closed(words)


@pytest.mark.parametrize("presented", [None, 7, "sb_secret_x", token()])
def test_what_is_no_new_token_is_ignored(presented: Json) -> None:  # T1, T7
    one = secured()
    join(one)
    assert push(one, ACCESS_TOKEN, {"access_token": presented}) == []


def test_a_channel_ends_with_its_token() -> None:  # T13
    one = secured(exp=NOW + 5)
    join(one)
    assert one.next_expiry == NOW + 5
    assert one.expire(NOW + 4.9) == []
    [refused, *rest] = one.expire(NOW + 5.2)
    assert isinstance(refused, Refused)
    assert rest == closed("Token has expired 0 seconds ago")


@pytest.mark.parametrize(("config", "takes"), [({}, True), ({"binary": False}, False), ({"binary": "x"}, False)])
def test_a_channel_may_do_without_binary_frames(config: dict[str, Json], takes: bool) -> None:
    assert join(session(), {"broadcast": config})[0] == Enter(ROOM, takes_binary=takes)


def test_a_join_with_odd_fields_is_accepted_and_their_names_are_for_the_log() -> None:
    config: dict[str, Json] = {
        "broadcast": {"self": 1, "ack": "no", "binary": []},
        "presence": {"enabled": {}},
        "postgres_changes": "*",
        "private": 0,
    }
    *effects, last = join(session(), config)
    assert last == Odd(
        ("postgres_changes", "broadcast.self", "broadcast.ack", "broadcast.binary", "presence.enabled", "private")
    )
    assert reply("ok", {"postgres_changes": []}, ref="1") in effects


def test_a_join_without_odd_fields_says_nothing_to_the_log() -> None:
    assert not any(isinstance(effect, Odd) for effect in join(session(), {"broadcast": {"self": "TRUE"}}))
