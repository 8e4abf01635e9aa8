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
from streaming.session import Close, Effect, Send, Session, Subscribe, Unsubscribe

TODOS = "realtime:public:todos"


def ok(join_ref: Json, ref: Json, topic: Json) -> Send:
    return Send(Message(join_ref, ref, topic, PHX_REPLY, {"status": "ok", "response": {}}))


def refused(join_ref: Json, ref: Json, topic: Json, reason: str) -> Send:
    return Send(Message(join_ref, ref, topic, PHX_REPLY, {"status": "error", "response": {"reason": reason}}))


def unmatched(ref: Json, topic: Json) -> Send:
    return refused(None, ref, topic, "unmatched topic")


def join(session: Session, topic: Json = TODOS, join_ref: Json = "1", payload: Json = None) -> list[Effect]:
    return session.receive(Message(join_ref, join_ref, topic, PHX_JOIN, payload))


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
    assert Session().receive(Message("8", ref, "phoenix", HEARTBEAT, {"msg": "ping"})) == [ok(None, ref, "phoenix")]


def test_a_join_subscribes_before_it_is_answered() -> None:
    session = Session()
    assert session.receive(Message("1", "1", TODOS, PHX_JOIN, {})) == [Subscribe(TODOS), ok("1", "1", TODOS)]
    assert session.topics == (TODOS,)


@pytest.mark.parametrize("topic", ["realtime:", "realtime:*", "realtime:bad topic !@# ünï", "realtime:t:id=gt.5"])
@pytest.mark.parametrize("payload", [None, [1], "str", {}, {"user_token": "x"}, {"config": None}, {"config": "x"}])
def test_any_realtime_topic_can_be_joined_whatever_the_payload(topic: str, payload: Json) -> None:
    assert join(Session(), topic, payload=payload) == [Subscribe(topic), ok("1", "1", topic)]


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
    assert session.receive(Message("1", "3", TODOS, PHX_LEAVE, {})) == [
        Unsubscribe(TODOS),
        ok("2", "3", TODOS),
        Send(Message("2", "2", TODOS, PHX_CLOSE, {})),
    ]


def test_a_leave_unsubscribes_is_answered_and_closes() -> None:
    session = Session()
    join(session)
    assert session.receive(Message("1", "3", TODOS, PHX_LEAVE, {})) == [
        Unsubscribe(TODOS),
        ok("1", "3", TODOS),
        Send(Message("1", "1", TODOS, PHX_CLOSE, {})),
    ]
    assert session.topics == ()


def test_a_leave_after_a_join_without_join_ref_closes_with_null_refs() -> None:
    session = Session()
    assert session.receive(Message(None, "1", TODOS, PHX_JOIN, {})) == [Subscribe(TODOS), ok(None, "1", TODOS)]
    assert session.receive(Message(None, "3", TODOS, PHX_LEAVE, {})) == [
        Unsubscribe(TODOS),
        ok("1", "3", TODOS),
        Send(Message(None, None, TODOS, PHX_CLOSE, {})),
    ]


@pytest.mark.parametrize("topic", [TODOS, "phoenix", "room:1", None, []])
def test_leaving_what_is_not_joined_is_fine(topic: Json) -> None:
    assert Session().receive(Message("9", "3", topic, PHX_LEAVE, {})) == [ok("9", "3", topic)]


def test_a_topic_that_was_left_can_be_joined_again() -> None:
    session = Session()
    join(session)
    session.receive(Message("1", "2", TODOS, PHX_LEAVE, {}))
    assert join(session, join_ref="3") == [Subscribe(TODOS), ok("3", "3", TODOS)]


@pytest.mark.parametrize("event", ["foo", HEARTBEAT, ACCESS_TOKEN, PHX_CLOSE, None, []])
def test_an_event_on_a_topic_that_is_not_joined_is_unmatched(event: Json) -> None:
    assert Session().receive(Message("1", "2", TODOS, event, {})) == [unmatched("2", TODOS)]


def test_an_unknown_event_on_the_phoenix_topic_is_unmatched() -> None:
    assert Session().receive(Message(None, "1", "phoenix", "foo", {})) == [unmatched("1", "phoenix")]


@pytest.mark.parametrize("event", ["foo", HEARTBEAT, ACCESS_TOKEN, PHX_CLOSE, PHX_ERROR, "broadcast", 5])
@pytest.mark.parametrize("payload", [{}, None, {"access_token": None}, b"\x00"])
def test_an_unknown_event_never_costs_the_subscription(event: Json, payload: Json | bytes) -> None:
    session = Session()
    join(session)
    assert session.receive(Message("1", "2", TODOS, event, payload)) == []
    assert session.topics == (TODOS,)


def test_a_join_with_a_config_is_refused_and_not_let_in() -> None:
    session = Session()
    effects = join(session, payload={"config": {"private": True}})
    assert effects == [refused("1", "1", TODOS, "ConfigNotSupported: Channels with a config are not supported")]
    assert session.topics == ()


def test_a_refused_join_leaves_an_earlier_one_alone() -> None:
    session = Session()
    join(session)
    assert reason_of(join(session, join_ref="2", payload={"config": {}})).startswith("ConfigNotSupported")
    assert session.topics == (TODOS,)


def test_a_socket_may_join_so_many_topics_and_no_more() -> None:
    session = Session(max_topics=2)
    join(session, "realtime:a")
    join(session, "realtime:b")
    assert join(session, "realtime:c") == [
        refused("1", "1", "realtime:c", "ChannelRateLimitReached: Too many channels"),
    ]
    assert join(session, "realtime:a", "5") == [ok("5", "5", "realtime:a")]
    session.receive(Message("5", "6", "realtime:a", PHX_LEAVE, {}))
    assert Subscribe("realtime:c") in join(session, "realtime:c")
    assert session.topics == ("realtime:b", "realtime:c")


def test_a_topic_may_be_so_long_and_no_longer() -> None:
    session = Session(max_topic_length=10)
    assert Subscribe("realtime:a") in join(session, "realtime:a")
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
    assert Subscribe(TODOS) in join(session)


def test_at_the_end_every_joined_topic_hears_an_error() -> None:
    session = Session()
    join(session, "realtime:a", "1")
    session.receive(Message(None, "2", "realtime:b", PHX_JOIN, {}))
    assert session.end() == [
        Unsubscribe("realtime:a"),
        Send(Message("1", "1", "realtime:a", PHX_ERROR, {})),
        Unsubscribe("realtime:b"),
        Send(Message(None, None, "realtime:b", PHX_ERROR, {})),
    ]
    assert session.topics == ()
