"""What one socket has joined, and what it is answered: the channel protocol of 2021."""

from __future__ import annotations

import pytest

from streaming.errors import InvalidFrame
from streaming.phoenix import (
    ACCESS_TOKEN,
    HEARTBEAT,
    PHX_CLOSE,
    PHX_ERROR,
    PHX_JOIN,
    PHX_LEAVE,
    PHX_REPLY,
    Json,
    Message,
)
from streaming.session import Close, Effect, Refused, Send, Session, Subscribe, Unsubscribe, presented_token
from streaming.subscriptions import Subscription
from streaming.tokens import TokenVerifier, sign

TODOS = "realtime:public:todos"
NOW = 1_800_000_000.0


def ok(join_ref: Json, ref: Json, topic: Json) -> Send:
    return Send(Message(join_ref, ref, topic, PHX_REPLY, {"status": "ok", "response": {}}))


def refused(join_ref: Json, ref: Json, topic: Json, reason: str) -> Send:
    return Send(Message(join_ref, ref, topic, PHX_REPLY, {"status": "error", "response": {"reason": reason}}))


def unmatched(ref: Json, topic: Json) -> Send:
    return refused(None, ref, topic, "unmatched topic")


def join(
    session: Session, topic: Json = TODOS, join_ref: Json = "1", payload: Json = None, now: float = NOW
) -> list[Effect]:
    return session.receive(Message(join_ref, join_ref, topic, PHX_JOIN, payload), now)


def reason_of(effects: list[Effect]) -> str:
    [effect] = effects
    assert isinstance(effect, Send)
    payload = effect.message.payload
    assert isinstance(payload, dict)
    assert payload["status"] == "error"
    response = payload["response"]
    assert isinstance(response, dict)
    return str(response["reason"])


@pytest.mark.parametrize("ref", ["2", 7, None, {"a": 1}])
def test_a_heartbeat_is_answered_with_its_ref_and_no_join_ref(ref: Json) -> None:
    assert Session().receive(Message("8", ref, "phoenix", HEARTBEAT, {"msg": "ping"}), NOW) == [
        ok(None, ref, "phoenix")
    ]


def test_a_join_subscribes_before_it_is_answered() -> None:
    session = Session()
    assert session.receive(Message("1", "1", TODOS, PHX_JOIN, {}), NOW) == [
        Subscribe(Subscription(TODOS)),
        ok("1", "1", TODOS),
    ]
    assert session.topics == (TODOS,)


@pytest.mark.parametrize("topic", ["realtime:", "realtime:*", "realtime:bad topic !@# ünï", "realtime:t:id=gt.5"])
@pytest.mark.parametrize("payload", [None, [1], "str", {}, {"user_token": "x"}, {"config": None}, {"config": "x"}])
def test_any_realtime_topic_can_be_joined_whatever_the_payload(topic: str, payload: Json) -> None:
    assert join(Session(), topic, payload=payload) == [Subscribe(Subscription(topic)), ok("1", "1", topic)]


@pytest.mark.parametrize("topic", ["room:1", "realtime", "REALTIME:x", " realtime:*", "", "phoenix", 5, None, [], {}])
def test_a_join_of_another_topic_is_unmatched(topic: Json) -> None:
    session = Session()
    assert join(session, topic) == [unmatched("1", topic)]
    assert session.topics == ()


def test_a_second_join_replaces_the_first_silently_and_the_subscription_goes_on() -> None:
    session = Session()
    join(session, join_ref="1")
    assert join(session, join_ref="2") == [ok("2", "2", TODOS)]
    assert session.topics == (TODOS,)
    assert session.receive(Message("1", "3", TODOS, PHX_LEAVE, {}), NOW) == [
        Unsubscribe(TODOS),
        ok("2", "3", TODOS),
        Send(Message("2", "2", TODOS, PHX_CLOSE, {})),
    ]


def test_a_leave_unsubscribes_is_answered_and_closes() -> None:
    session = Session()
    join(session)
    assert session.receive(Message("1", "3", TODOS, PHX_LEAVE, {}), NOW) == [
        Unsubscribe(TODOS),
        ok("1", "3", TODOS),
        Send(Message("1", "1", TODOS, PHX_CLOSE, {})),
    ]
    assert session.topics == ()


def test_a_leave_after_a_join_without_join_ref_closes_with_null_refs() -> None:
    session = Session()
    assert session.receive(Message(None, "1", TODOS, PHX_JOIN, {}), NOW) == [
        Subscribe(Subscription(TODOS)),
        ok(None, "1", TODOS),
    ]
    assert session.receive(Message(None, "3", TODOS, PHX_LEAVE, {}), NOW) == [
        Unsubscribe(TODOS),
        ok("1", "3", TODOS),
        Send(Message(None, None, TODOS, PHX_CLOSE, {})),
    ]


@pytest.mark.parametrize("topic", [TODOS, "phoenix", "room:1", None, []])
def test_leaving_what_is_not_joined_is_fine(topic: Json) -> None:
    assert Session().receive(Message("9", "3", topic, PHX_LEAVE, {}), NOW) == [ok("9", "3", topic)]


def test_a_topic_that_was_left_can_be_joined_again() -> None:
    session = Session()
    join(session)
    session.receive(Message("1", "2", TODOS, PHX_LEAVE, {}), NOW)
    assert join(session, join_ref="3") == [Subscribe(Subscription(TODOS)), ok("3", "3", TODOS)]


@pytest.mark.parametrize("event", ["foo", HEARTBEAT, ACCESS_TOKEN, PHX_CLOSE, None, []])
def test_an_event_on_a_topic_that_is_not_joined_is_unmatched(event: Json) -> None:
    assert Session().receive(Message("1", "2", TODOS, event, {}), NOW) == [unmatched("2", TODOS)]


def test_an_unknown_event_on_the_phoenix_topic_is_unmatched() -> None:
    assert Session().receive(Message(None, "1", "phoenix", "foo", {}), NOW) == [unmatched("1", "phoenix")]


@pytest.mark.parametrize("event", ["foo", HEARTBEAT, ACCESS_TOKEN, PHX_CLOSE, PHX_ERROR, "broadcast", 5])
@pytest.mark.parametrize("payload", [{}, None, {"access_token": None}, b"\x00"])
def test_an_unknown_event_never_costs_the_subscription(event: Json, payload: Json | bytes) -> None:
    session = Session()
    join(session)
    assert session.receive(Message("1", "2", TODOS, event, payload), NOW) == []
    assert session.topics == (TODOS,)


def test_a_private_join_is_refused_and_not_let_in() -> None:
    session = Session()
    effects = join(session, payload={"config": {"private": True}})
    reason = "Unauthorized: You do not have permissions to read from this Channel topic: public:todos"
    assert effects == [refused("1", "1", TODOS, reason)]
    assert session.topics == ()


def test_a_refused_join_leaves_an_earlier_one_alone() -> None:
    session = Session()
    join(session)
    assert reason_of(join(session, join_ref="2", payload={"config": {"private": True}})).startswith("Unauthorized")
    assert session.topics == (TODOS,)


def test_a_socket_may_join_so_many_topics_and_no_more() -> None:
    session = Session(max_topics=2)
    join(session, "realtime:a")
    join(session, "realtime:b")
    assert join(session, "realtime:c") == [
        refused("1", "1", "realtime:c", "ChannelRateLimitReached: Too many channels"),
    ]
    assert join(session, "realtime:a", "5") == [ok("5", "5", "realtime:a")]
    session.receive(Message("5", "6", "realtime:a", PHX_LEAVE, {}), NOW)
    assert Subscribe(Subscription("realtime:c")) in join(session, "realtime:c")
    assert session.topics == ("realtime:b", "realtime:c")


def test_a_topic_may_be_so_long_and_no_longer() -> None:
    session = Session(max_topic_length=10)
    assert Subscribe(Subscription("realtime:a")) in join(session, "realtime:a")
    assert reason_of(join(session, "realtime:ab")).startswith("TopicTooLong")


def test_an_unreadable_frame_closes_the_socket() -> None:
    assert Session().unreadable() == [Close(1011, "")]
    assert Session().unreadable(InvalidFrame("it is not JSON")) == [Close(1011, "")]
    assert Session().unreadable(InvalidFrame("kind 4", binary_kind=4)) == [Close(1011, "")]


@pytest.mark.parametrize("kind", [0, 3])
def test_an_unreadable_binary_push_is_dropped(kind: int) -> None:
    assert Session().unreadable(InvalidFrame("its header is not UTF-8", binary_kind=kind)) == []


def test_a_failed_topic_hears_an_error_and_can_be_joined_again() -> None:
    session = Session()
    join(session)
    assert session.fail(TODOS) == [Unsubscribe(TODOS), Send(Message("1", "1", TODOS, PHX_ERROR, {}))]
    assert session.fail(TODOS) == []
    assert Subscribe(Subscription(TODOS)) in join(session)


def test_at_the_end_every_joined_topic_hears_an_error() -> None:
    session = Session()
    join(session, "realtime:a", "1")
    session.receive(Message(None, "2", "realtime:b", PHX_JOIN, {}), NOW)
    assert session.end() == [
        Unsubscribe("realtime:a"),
        Send(Message("1", "1", "realtime:a", PHX_ERROR, {})),
        Unsubscribe("realtime:b"),
        Send(Message(None, None, "realtime:b", PHX_ERROR, {})),
    ]
    assert session.topics == ()


# Tokens

GOOD = "a secret that the sessions below are checked with"


def token(ends_in: float | None = 60, secret: str = GOOD, **claims: object) -> str:
    return sign({**claims} if ends_in is None else {**claims, "exp": NOW + ends_in}, secret)


def secured(ends_in: float | None = 60, *, end_expired: bool = True, leeway_s: float = 0.0) -> Session:
    verifier = TokenVerifier([GOOD], {}, leeway_s=leeway_s)
    return Session(verifier=verifier, claims=verifier.verify(token(ends_in), NOW), end_expired=end_expired)


def renew(session: Session, text: Json, now: float = NOW) -> list[Effect]:
    return session.receive(Message("1", "9", TODOS, ACCESS_TOKEN, {"access_token": text}), now)


def error(topic: str = TODOS, join_ref: Json = "1") -> list[Effect]:
    return [Unsubscribe(topic), Send(Message(join_ref, join_ref, topic, PHX_ERROR, {}))]


def test_a_join_without_a_token_has_that_of_the_socket() -> None:
    session = secured(60)
    assert join(session, payload={}) == [Subscribe(Subscription(TODOS)), ok("1", "1", TODOS)]
    assert session.next_expiry == NOW + 60


def test_a_join_may_bring_its_own_token_and_later_joins_have_it_too() -> None:
    session = secured(60)
    join(session, "realtime:a", payload={"user_token": token(600)})
    join(session, "realtime:b", payload={})
    assert session.expire(NOW + 60) == []
    assert session.next_expiry == NOW + 600
    assert session.expire(NOW + 600)[0] == Refused("expiry", "token_expired", 2)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (token(0), "token_expired"),
        (token(secret="another"), "signature_mismatch"),
        ("garbage", "token_malformed"),
        ("", "token_missing"),
    ],
)
def test_a_join_with_a_bad_token_is_refused_with_a_reason_and_is_in_the_log(text: str, code: str) -> None:
    session = secured()
    assert join(session, payload={"user_token": text}) == [
        Refused(PHX_JOIN, code),
        refused("1", "1", TODOS, f"error occurred when joining {TODOS}: {code}"),
    ]
    assert session.topics == ()
    assert join(session, payload={}) == [Subscribe(Subscription(TODOS)), ok("1", "1", TODOS)]


def test_a_refused_token_in_a_second_join_leaves_the_first_alone() -> None:
    session = secured()
    join(session)
    join(session, join_ref="2", payload={"user_token": "garbage"})
    assert session.topics == (TODOS,)


@pytest.mark.parametrize("payload", [None, [], "x", {"user_token": None}, {"user_token": 5}, {"user_token": "sb_x"}])
def test_what_is_no_token_in_a_join_leaves_that_of_the_socket(payload: Json) -> None:
    session = secured(60)
    assert Subscribe(Subscription(TODOS)) in join(session, payload=payload)
    assert session.next_expiry == NOW + 60


def test_a_new_token_is_taken_without_a_word_and_the_channel_lives_as_long() -> None:
    session = secured(60)
    join(session)
    assert renew(session, token(600)) == []
    assert session.expire(NOW + 60) == []
    assert session.topics == (TODOS,)
    assert session.expire(NOW + 600) == [Refused("expiry", "token_expired", 1), *error()]


def test_a_new_token_is_that_of_its_channel_and_of_later_joins_but_not_of_other_channels() -> None:
    session = secured(60)
    join(session)
    join(session, "realtime:other", "2")
    renew(session, token(600))
    join(session, "realtime:later", "3")
    assert session.expire(NOW + 60) == [Refused("expiry", "token_expired", 1), *error("realtime:other", "2")]
    assert session.topics == (TODOS, "realtime:later")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (token(0), "token_expired"),
        (token(secret="another"), "signature_mismatch"),
        ("garbage", "token_malformed"),
        ("", "token_missing"),
    ],
)
def test_a_bad_new_token_ends_its_channel_and_no_other(text: str, code: str) -> None:
    session = secured()
    join(session)
    join(session, "realtime:other", "2")
    assert renew(session, text) == [Refused(ACCESS_TOKEN, code), *error()]
    assert session.topics == ("realtime:other",)
    assert renew(session, token()) == [unmatched("9", TODOS)]
    assert Subscribe(Subscription(TODOS)) in join(session)


@pytest.mark.parametrize("payload", [None, [], b"\x00", {}, {"access_token": None}, {"access_token": 5}, "x"])
def test_no_new_token_is_ignored(payload: Json | bytes) -> None:
    session = secured()
    join(session)
    assert session.receive(Message("1", "2", TODOS, ACCESS_TOKEN, payload), NOW) == []
    assert renew(session, "sb_publishable_x") == []
    assert session.topics == (TODOS,)


def test_the_same_token_again_is_ignored_even_when_it_has_expired() -> None:
    session = secured(60, end_expired=False)
    join(session)
    assert renew(session, token(60), NOW + 61) == []
    assert renew(session, token(59), NOW + 61)[0] == Refused(ACCESS_TOKEN, "token_expired")


def test_channels_end_at_the_moment_of_their_token_and_not_before() -> None:
    session = secured(60)
    join(session)
    assert session.expire(NOW + 59.999) == []
    assert session.expire(NOW + 60) == [Refused("expiry", "token_expired", 1), *error()]
    assert (session.topics, session.next_expiry) == ((), None)
    assert reason_of([join(session, now=NOW + 60)[-1]]).endswith("token_expired")
    assert Subscribe(Subscription(TODOS)) in join(session, payload={"user_token": token(600)}, now=NOW + 60)


def test_the_leeway_lets_channels_live_on() -> None:
    session = secured(60, leeway_s=5)
    join(session)
    assert session.next_expiry == NOW + 65
    assert session.expire(NOW + 64.9) == []
    assert session.expire(NOW + 65) != []


def test_a_token_without_an_end_ends_nothing() -> None:
    session = secured(None)
    join(session)
    assert session.next_expiry is None
    assert session.expire(NOW + 1e9) == []


def test_an_end_that_nobody_waits_for_any_more_does_nothing() -> None:
    session = secured(60)
    join(session)
    session.receive(Message("1", "3", TODOS, PHX_LEAVE, {}), NOW)
    assert session.expire(NOW + 60) == []
    assert session.next_expiry is None


def test_expiry_can_be_switched_off() -> None:
    session = secured(60, end_expired=False)
    join(session)
    assert session.next_expiry is None
    assert session.expire(NOW + 60) == []
    assert Subscribe(Subscription("realtime:later")) in join(session, "realtime:later", now=NOW + 61)
    assert renew(session, "garbage")[0] == Refused(ACCESS_TOKEN, "token_malformed")


def test_a_secured_session_without_any_token_joins_nothing() -> None:
    session = Session(verifier=TokenVerifier([GOOD], {}))
    assert join(session)[0] == Refused(PHX_JOIN, "token_missing")
    assert session.topics == ()


def test_where_channels_are_open_tokens_are_not_looked_at() -> None:
    session = Session()
    assert Subscribe(Subscription(TODOS)) in join(session, payload={"user_token": "garbage"})
    assert renew(session, "garbage") == []
    assert session.next_expiry is None


@pytest.mark.parametrize(
    ("event", "payload", "found"),
    [
        (PHX_JOIN, {"user_token": "t", "access_token": "a"}, "t"),
        (ACCESS_TOKEN, {"user_token": "t", "access_token": "a"}, "a"),
        (PHX_LEAVE, {"access_token": "a"}, None),
        ("foo", {"access_token": "a"}, None),
        ([], {"access_token": "a"}, None),
    ],
)
def test_where_a_message_brings_its_token(event: Json, payload: Json, found: str | None) -> None:
    assert presented_token(Message("1", "1", TODOS, event, payload)) == found
