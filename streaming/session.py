"""One socket's joins and refs: a message in, effects out.

The session decides and touches nothing: whoever owns the socket performs the effects, in their order and in one turn.

Sources: https://hexdocs.pm/phoenix/Phoenix.Channel.html and
https://hexdocs.pm/phoenix/writing_a_channels_client.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from streaming.errors import InvalidFrame, TokenRefused
from streaming.phoenix import (
    ACCESS_TOKEN,
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
from streaming.tokens import Claims, TokenVerifier

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

EXPIRY = "expiry"
"""Beside phx_join and access_token: where a token is refused."""


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


@dataclass(frozen=True, slots=True)
class Refused:
    """For the log: a token was refused at ``event`` (phx_join, access_token, `EXPIRY`), ``topics`` times."""

    event: str
    code: str
    topics: int = 1


Effect: TypeAlias = Subscribe | Unsubscribe | Send | Close | Refused


class _Channel(NamedTuple):
    """A joined topic, with the refs of its join, and what its token says (`None` where tokens are not looked at)."""

    join_ref: Json
    ref: Json
    claims: Claims | None


class Session:
    """What one socket has joined, and what it is answered.

    A joined topic is an opaque text: it hears the changes whose topic equals it, byte for byte. ``max_topics`` and
    ``max_topic_length`` (in characters) bound what one socket can make us remember.

    A token belongs to its channel. The newest one that was verified on the socket (at first that of the handshake,
    ``claims``) is that of joins which bring none. ``verifier`` is `None` where channels are not secured: then tokens
    are not looked at. ``end_expired`` says whether a channel ends with its token.
    """

    __slots__ = (
        "_channels",
        "_claims",
        "_end_expired",
        "_max_topic_length",
        "_max_topics",
        "_verifier",
        "next_expiry",
    )

    def __init__(
        self,
        *,
        max_topics: int = MAX_TOPICS,
        max_topic_length: int = MAX_TOPIC_LENGTH,
        verifier: TokenVerifier | None = None,
        claims: Claims | None = None,
        end_expired: bool = True,
    ) -> None:
        self._channels: dict[str, _Channel] = {}
        self._max_topics = max_topics
        self._max_topic_length = max_topic_length
        self._verifier, self._claims, self._end_expired = verifier, claims, end_expired
        self.next_expiry: float | None = None
        """When to call `expire` next, in seconds since 1970. It may be too early, as tokens are renewed."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The joined topics, the oldest join first."""
        return tuple(self._channels)

    def receive(self, message: Message, now: float) -> list[Effect]:
        """Answer one message that the client sent, at ``now`` (seconds since 1970): effects in their order.

        `Subscribe` comes before the reply that says so, `Unsubscribe` before its reply: no change falls between the
        two. Events that no channel knows are ignored and cost nothing.
        """
        topic, event = message.topic, message.event
        if event == PHX_JOIN:
            return self._join(message, now)
        if event == PHX_LEAVE:
            return self._leave(message)
        if topic == PHOENIX_TOPIC and event == HEARTBEAT:
            return [_reply(None, message, "ok", {})]
        if isinstance(topic, str) and (channel := self._channels.get(topic)) is not None:
            return self._renew(topic, channel, message, now) if event == ACCESS_TOKEN else []
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

    def expire(self, now: float) -> list[Effect]:
        """End the channels whose tokens have expired at ``now``; clients join again, with a new token if they have one.

        Nothing happens before `next_expiry`.
        """
        if self.next_expiry is None or now < self.next_expiry:
            return []
        ended = [topic for topic, channel in self._channels.items() if _has_ended(channel.claims, now)]
        effects: list[Effect] = [Refused(EXPIRY, "token_expired", len(ended))] if ended else []
        effects += [effect for topic in ended for effect in self.fail(topic)]
        self.next_expiry = None
        for channel in self._channels.values():
            self._expect_end(channel.claims)
        return effects

    def end(self) -> list[Effect]:
        """The server shuts down: every joined topic fails, so that its client joins it again elsewhere."""
        return [effect for topic in self.topics for effect in self.fail(topic)]

    def _join(self, message: Message, now: float) -> list[Effect]:
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
        try:
            claims = self._claims_of(presented_token(message), now)
        except TokenRefused as refused:
            reason = f"error occurred when joining {topic}: {refused.code}"
            return [Refused(PHX_JOIN, refused.code), _refusal(message.join_ref, message, reason)]
        self._channels[topic] = _Channel(message.join_ref, message.ref, claims)
        self._expect_end(claims)
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

    def _claims_of(self, token: str | None, now: float) -> Claims | None:
        """What the token of a new channel says, or without one that of the socket. Raises `TokenRefused`."""
        if self._verifier is None:
            return None
        if token is not None and (self._claims is None or token != self._claims.token):
            self._claims = self._verifier.verify(token, now)
        if self._claims is None:
            raise TokenRefused("token_missing")
        if self._end_expired and _has_ended(self._claims, now):
            raise TokenRefused("token_expired")
        return self._claims

    def _renew(self, topic: str, channel: _Channel, message: Message, now: float) -> list[Effect]:
        """Take a new token for the channel, without a word. A bad one ends it."""
        token = presented_token(message)
        if self._verifier is None or token is None or (channel.claims is not None and token == channel.claims.token):
            return []
        try:
            claims = self._verifier.verify(token, now)
        except TokenRefused as refused:
            return [Refused(ACCESS_TOKEN, refused.code), *self.fail(topic)]
        self._claims = claims
        self._channels[topic] = channel._replace(claims=claims)
        self._expect_end(claims)
        return []

    def _expect_end(self, claims: Claims | None) -> None:
        if self._end_expired and claims is not None and claims.ends_at is not None:
            ends_at = claims.ends_at
            self.next_expiry = ends_at if self.next_expiry is None else min(self.next_expiry, ends_at)


_TOKEN_KEYS = {PHX_JOIN: "user_token", ACCESS_TOKEN: "access_token"}


def presented_token(message: Message) -> str | None:
    """The token that a message brings along, for its channel.

    `None` if there is none, or null, or an API key (``sb_…``): that is no token, and what the socket has goes on.
    """
    key = _TOKEN_KEYS.get(message.event) if isinstance(message.event, str) else None
    if key is None or not isinstance(message.payload, dict):
        return None
    token = message.payload.get(key)
    return token if isinstance(token, str) and not token.startswith("sb_") else None


def _has_ended(claims: Claims | None, now: float) -> bool:
    return claims is not None and claims.ends_at is not None and claims.ends_at <= now


def _reply(join_ref: Json, message: Message, status: str, response: dict[str, Json]) -> Send:
    payload: dict[str, Json] = {"response": response, "status": status}
    return Send(Message(join_ref, message.ref, message.topic, PHX_REPLY, payload))


def _refusal(join_ref: Json, message: Message, reason: str) -> Send:
    return _reply(join_ref, message, "error", {"reason": reason})
