"""One socket's joins and refs: a message in, effects out.

The session decides and touches nothing: whoever owns the socket performs the effects, in their order and in one turn.

Sources: https://hexdocs.pm/phoenix/Phoenix.Channel.html and
https://hexdocs.pm/phoenix/writing_a_channels_client.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from streaming.errors import InvalidFrame
from streaming.phoenix import (
    HEARTBEAT,
    PHOENIX_TOPIC,
    PHX_CLOSE,
    PHX_ERROR,
    PHX_JOIN,
    PHX_LEAVE,
    PHX_REPLY,
    Json,
    Message,
)

TOPIC_PREFIX = "realtime:"

MAX_TOPICS = 1_000
"""Topics that one socket may have joined at a time."""

MAX_TOPIC_LENGTH = 10_240
"""Characters of a topic. The longest that a change can belong to are far shorter."""

UNREADABLE = 1011
"""The close code after a frame that is no message: clients reconnect on it."""

# realtime-js 2.81 to 2.110.3 counts the lengths of a header in UTF-16 units, so a name that is not ASCII spoils a frame
# of an otherwise sound client. Kind 0 is Phoenix's push, kind 3 a broadcast.
_FORGIVEN_KINDS = frozenset({0, 3})

_UNMATCHED = "unmatched topic"
_TOO_MANY = "ChannelRateLimitReached: Too many channels"
_TOO_LONG = "TopicTooLong: The topic name is too long"
_NOT_SERVED = "ConfigNotSupported: Channels with a config are not supported"


@dataclass(frozen=True, slots=True)
class Subscribe:
    """From now on the changes of this topic go to the socket."""

    topic: str


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """From now on they do not."""

    topic: str


@dataclass(frozen=True, slots=True)
class Send:
    """Write this message to the socket."""

    message: Message


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket."""

    code: int
    reason: str


Effect: TypeAlias = Subscribe | Unsubscribe | Send | Close


class _Channel(NamedTuple):
    """A joined topic, with the refs of its join."""

    join_ref: Json
    ref: Json


class Session:
    """What one socket has joined, and what it is answered.

    A joined topic is an opaque text: it hears the changes whose topic equals it, byte for byte. ``max_topics`` and
    ``max_topic_length`` (in characters) bound what one socket can make us remember.
    """

    __slots__ = ("_channels", "_max_topic_length", "_max_topics")

    def __init__(self, *, max_topics: int = MAX_TOPICS, max_topic_length: int = MAX_TOPIC_LENGTH) -> None:
        self._channels: dict[str, _Channel] = {}
        self._max_topics = max_topics
        self._max_topic_length = max_topic_length

    @property
    def topics(self) -> tuple[str, ...]:
        """The joined topics, the oldest join first."""
        return tuple(self._channels)

    def receive(self, message: Message) -> list[Effect]:
        """Answer one message of the client: effects in their order.

        `Subscribe` comes before the reply that says so, `Unsubscribe` before its reply: no change falls between the
        two. Events that no channel knows are ignored and cost nothing, `access_token` among them.
        """
        topic, event = message.topic, message.event
        if event == PHX_JOIN:
            return self._join(message)
        if event == PHX_LEAVE:
            return self._leave(message)
        if topic == PHOENIX_TOPIC and event == HEARTBEAT:
            return [_reply(None, message, "ok", {})]
        if isinstance(topic, str) and topic in self._channels:
            return []
        return [_refusal(None, message, _UNMATCHED)]

    def unreadable(self, error: InvalidFrame | None = None) -> list[Effect]:
        """Answer a frame that is no message; ``error`` is what decoding it raised."""
        if error is not None and error.binary_kind in _FORGIVEN_KINDS:
            return []
        return [Close(UNREADABLE, "")]

    def fail(self, topic: str) -> list[Effect]:
        """End a topic in a way that makes the client join it again; nothing happens if it is not joined."""
        if (channel := self._channels.pop(topic, None)) is None:
            return []
        return [
            Unsubscribe(topic),
            Send(Message(channel.join_ref, channel.join_ref, topic, PHX_ERROR, {})),
        ]

    def end(self) -> list[Effect]:
        """The server shuts down: every joined topic fails, so that its client joins it again elsewhere."""
        return [effect for topic in self.topics for effect in self.fail(topic)]

    def _join(self, message: Message) -> list[Effect]:
        topic, payload = message.topic, message.payload
        if not isinstance(topic, str) or not topic.startswith(TOPIC_PREFIX):
            return [_refusal(None, message, _UNMATCHED)]
        if len(topic) > self._max_topic_length:
            return [_refusal(message.join_ref, message, _TOO_LONG)]
        if isinstance(payload, dict) and isinstance(payload.get("config"), dict):
            return [_refusal(message.join_ref, message, _NOT_SERVED)]
        joined = topic in self._channels
        if not joined and len(self._channels) >= self._max_topics:
            return [_refusal(message.join_ref, message, _TOO_MANY)]
        self._channels[topic] = _Channel(message.join_ref, message.ref)
        reply = _reply(message.join_ref, message, "ok", {})
        # A second join replaces the first without a word: a phx_close with a null ref would end the client's new
        # channel as well. The subscription has no other part than its topic, so it simply goes on.
        return [reply] if joined else [Subscribe(topic), reply]

    def _leave(self, message: Message) -> list[Effect]:
        topic = message.topic
        if not isinstance(topic, str) or (channel := self._channels.pop(topic, None)) is None:
            return [_reply(message.join_ref, message, "ok", {})]
        # The join_ref of the leave is not looked at: 2021's clients send none, or that of an older join.
        replied = channel.ref if channel.join_ref is None else channel.join_ref
        return [
            Unsubscribe(topic),
            _reply(replied, message, "ok", {}),
            Send(Message(channel.join_ref, channel.join_ref, topic, PHX_CLOSE, {})),
        ]


def _reply(join_ref: Json, message: Message, status: str, response: dict[str, Json]) -> Send:
    payload: dict[str, Json] = {"response": response, "status": status}
    return Send(Message(join_ref, message.ref, message.topic, PHX_REPLY, payload))


def _refusal(join_ref: Json, message: Message, reason: str) -> Send:
    return _reply(join_ref, message, "error", {"reason": reason})
