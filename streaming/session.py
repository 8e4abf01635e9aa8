"""One socket's joins and refs: a message in, effects out.

The session decides and touches nothing: whoever owns the socket performs the effects, in their order and in one turn.

Sources: https://hexdocs.pm/phoenix/Phoenix.Channel.html and
https://hexdocs.pm/phoenix/writing_a_channels_client.html
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import orjson

from streaming.errors import InvalidFrame, TokenRefused
from streaming.joins import JoinConfig, Resume, parse_config, parse_resume
from streaming.limits import Traffic, Window
from streaming.phoenix import (
    ACCESS_TOKEN,
    BROADCAST,
    HEARTBEAT,
    PHOENIX_TOPIC,
    PHX_CLOSE,
    PHX_ERROR,
    PHX_JOIN,
    PHX_LEAVE,
    PHX_REPLY,
    POSTGRES_CHANGES,
    PRESENCE,
    SYSTEM,
    Json,
    Message,
    UserBroadcast,
    Verbatim,
)
from streaming.reasons import expired, token_reason
from streaming.subscriptions import Resumed, Subscription
from streaming.tokens import Claims, TokenVerifier

TOPIC_PREFIX = "realtime:"

MAX_TOPICS = 1_000
"""Topics that one socket may have joined at a time."""

MAX_TOPIC_LENGTH = 10_240
"""Characters of a topic. The longest that a change can belong to are far shorter."""

UNREADABLE, TOO_MANY_JOINS = 1011, 1001
"""The close codes after a frame that is no message, and after one join too many: clients reconnect on both."""

# realtime-js 2.81 to 2.110.3 counts the lengths of a header in UTF-16 units, so a name that is not ASCII spoils a frame
# of an otherwise sound client. Kind 0 is Phoenix's push, kind 3 a broadcast.
_FORGIVEN_KINDS = frozenset({0, 3})

_UNMATCHED = "unmatched topic"
_TOO_MANY = "ChannelRateLimitReached: Too many channels"
_TOO_LONG = "TopicTooLong: The topic name is too long"
_NO_NAME = "TopicNameRequired: You must provide a topic name"
_NOT_PERMITTED = "Unauthorized: You do not have permissions to read from this Channel topic: {}"
_SUBSCRIBED = "Subscribed to PostgreSQL"
_MISSING = "Changes are missing, and cannot be replayed any more"
_TOO_MANY_USERS = "ConnectionRateLimitReached: Too many connected users"
_TOO_MANY_JOINS = "ClientJoinRateLimitReached: Too many joins per second"
_TOO_MANY_MESSAGES = "Too many messages per second"
_TOO_MANY_PRESENCE_MESSAGES = "Too many presence messages per second"
_TOO_MANY_CALLS = "Client presence rate limit exceeded"
_TRACK_TOO_LARGE = "Track message size exceeded"
_NO_MAP = "Presence track payload must be a map"
_PAYLOAD_TOO_LARGE = "payload_size_exceeded"

EXPIRY = "expiry"
"""Beside phx_join and access_token: where a token is refused."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """From now on these changes go to the socket, instead of what it heard of the topic."""

    subscription: Subscription


@dataclass(frozen=True, slots=True)
class SubscribeSince:
    """The same; but first the reply goes out, completed by `resumed`, and then what came after ``since`` again."""

    subscription: Subscription
    since: str | None
    reply: Message


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """From now on they do not."""

    topic: str


@dataclass(frozen=True, slots=True)
class Send:
    """Write this message to the socket."""

    message: Message


@dataclass(frozen=True, slots=True)
class Beat:
    """Answer a heartbeat; with the position that the socket has come to, if the channels of it know positions."""

    reply: Message


@dataclass(frozen=True, slots=True)
class Check:
    """Tell the current channel whether what its bindings ask for can be had (``system``), some time after its reply."""

    topic: str
    join_ref: Json
    config: JoinConfig


@dataclass(frozen=True, slots=True)
class Enter:
    """From now on the socket is in this room: it hears what is said there, and who is present.

    Without ``takes_binary`` what is JSON comes as text, in any version.
    """

    topic: str
    takes_binary: bool = True


@dataclass(frozen=True, slots=True)
class Exit:
    """From now on it is not, nor present there."""

    topic: str


@dataclass(frozen=True, slots=True)
class Say:
    """Tell everybody in the room; the socket itself only if ``includes_self``."""

    topic: str
    broadcast: Verbatim | UserBroadcast
    includes_self: bool


@dataclass(frozen=True, slots=True)
class ShowPresence:
    """Tell the socket who is present in the room: `PRESENCE_STATE` to the channel with this join_ref."""

    topic: str
    join_ref: Json


@dataclass(frozen=True, slots=True)
class Track:
    """Be present in the room under ``key``, with this in place of what was shown before."""

    topic: str
    key: str
    payload: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Untrack:
    """Be present in the room no more."""

    topic: str


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


@dataclass(frozen=True, slots=True)
class Odd:
    """For the log: a join was accepted, but these fields of its config were not what they should be.

    They have their defaults. The names are ours, as they stand in the documentation, and never a client's words.
    """

    fields: tuple[str, ...]


Effect: TypeAlias = (
    Subscribe
    | SubscribeSince
    | Unsubscribe
    | Send
    | Beat
    | Check
    | Enter
    | Exit
    | Say
    | ShowPresence
    | Track
    | Untrack
    | Close
    | Refused
    | Odd
)


class _Channel(NamedTuple):
    """A joined topic, with the refs of its join, and what its token says (`None` where tokens are not looked at).

    A current channel has a ``config``, a legacy one has none. A current one is present under its ``key``, and its
    presence calls are counted.
    """

    join_ref: Json
    ref: Json
    claims: Claims | None
    config: JoinConfig | None
    subscription: Subscription
    key: str = ""
    presence_calls: Window | None = None


class Session:
    """What one socket has joined, and what it is answered.

    The channel, not the socket, has a protocol: a join with an object ``config`` makes a current channel, any other a
    legacy one. The topic of a legacy channel is an opaque text: it hears the changes whose topic equals it, byte for
    byte. ``max_topics`` and ``max_topic_length`` (in characters) bound what one socket can make us remember.

    A token belongs to its channel. The newest one that was verified on the socket (at first that of the handshake,
    ``claims``) is that of joins which bring none. ``verifier`` is `None` where channels are not secured: then tokens
    are not looked at. ``end_expired`` says whether a channel ends with its token. Tables with row security are heard by
    ``bypass_roles`` alone (`None`: by everybody).

    ``traffic`` is what all clients of the process do, and may do. ``presence_enabled`` shows current channels who is
    present even if they do not ask. ``new_key`` makes presence keys for those who bring none.
    """

    __slots__ = (
        "_bypass_roles",
        "_channels",
        "_claims",
        "_end_expired",
        "_max_topic_length",
        "_max_topics",
        "_new_key",
        "_presence_enabled",
        "_traffic",
        "_verifier",
        "is_current",
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
        bypass_roles: Collection[str] | None = None,
        traffic: Traffic | None = None,
        presence_enabled: bool = False,
        new_key: Callable[[], str] = lambda: str(uuid.uuid1()),
    ) -> None:
        self._traffic = traffic if traffic is not None else Traffic()
        self._presence_enabled, self._new_key = presence_enabled, new_key
        self._channels: dict[str, _Channel] = {}
        self._bypass_roles = bypass_roles
        self.is_current = False
        """A current join was accepted on this socket."""
        self._max_topics = max_topics
        self._max_topic_length = max_topic_length
        self._verifier, self._claims, self._end_expired = verifier, claims, end_expired
        self.next_expiry: float | None = None
        """When to call `expire` next, in seconds since 1970. It may be too early, as tokens are renewed."""

    @property
    def claims(self) -> Claims | None:
        """What the newest token says that was verified on this socket."""
        return self._claims

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
            reply = _reply(None, message, "ok", {})
            knows = any(channel.subscription.positions for channel in self._channels.values())
            return [Beat(reply.message) if knows else reply]
        if isinstance(topic, str) and (channel := self._channels.get(topic)) is not None:
            if event == ACCESS_TOKEN:
                return self._renew(topic, channel, message, now)
            return [] if channel.config is None else self._hear(topic, channel, channel.config, message, now)
        return [_refusal(None, message, _UNMATCHED)]

    def would_enter(self, message: Message) -> bool:
        """Whether this join, if nothing is against it, enters a room."""
        topic, config = message.topic, parse_config(message.payload)
        return isinstance(topic, str) and config is not None and _objection(topic, config) is None

    def unreadable(self, error: InvalidFrame | None = None) -> list[Effect]:
        """Answer a frame that is no message; ``error`` is what decoding it raised."""
        if self.is_current or (error is not None and error.binary_kind in _FORGIVEN_KINDS):
            return []
        return [Close(UNREADABLE, "")]

    def fail(self, topic: str) -> list[Effect]:
        """End a topic in a way that makes the client join it again; nothing happens if it is not joined."""
        if (channel := self._channels.pop(topic, None)) is None:
            return []
        return [
            *_ends(topic, channel),
            Send(Message(channel.join_ref, channel.join_ref, topic, PHX_ERROR, {})),
        ]

    def tell_gap(self, topics: Collection[str]) -> list[Effect]:
        """Changes of these topics are missing: their channels end, and clients join again. A current one hears why."""
        effects: list[Effect] = []
        for topic in topics:
            channel = self._channels.get(topic)
            if channel is not None and channel.config is not None:
                effects.append(_system(topic, channel, "error", _MISSING))
            effects += self.fail(topic)
        return effects

    def tell_changes(self, topic: str, join_ref: Json, problem: str | None) -> list[Effect]:
        """Tell a current channel, if it is still that of ``join_ref``, that it hears its changes, or why not."""
        channel = self._channels.get(topic)
        if channel is None or channel.config is None or channel.join_ref != join_ref:
            return []
        status, text = ("ok", _SUBSCRIBED) if problem is None else ("error", problem)
        return [_system(topic, channel, status, text, POSTGRES_CHANGES)]

    def refuse_changes(self, topic: str, problem: str) -> list[Effect]:
        """Tell a current channel why it hears no changes any more."""
        channel = self._channels.get(topic)
        return [] if channel is None else self.tell_changes(topic, channel.join_ref, problem)

    def expire(self, now: float) -> list[Effect]:
        """End the channels whose tokens have expired at ``now``; clients join again, with a new token if they have one.

        Nothing happens before `next_expiry`.
        """
        if self.next_expiry is None or now < self.next_expiry:
            return []
        ended = [topic for topic, channel in self._channels.items() if _has_ended(channel.claims, now)]
        effects: list[Effect] = [Refused(EXPIRY, "token_expired", len(ended))] if ended else []
        effects += [effect for topic in ended for effect in self._end_expired_channel(topic, now)]
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
        config = parse_config(payload)
        if config is not None and (reason := _objection(topic, config)) is not None:
            return [_refusal(message.join_ref, message, reason)]
        if not self._channels and self._traffic.too_many_users():
            return [_refusal(message.join_ref, message, _TOO_MANY_USERS)]
        if self._traffic.too_many_joins(now):
            return [_refusal(message.join_ref, message, _TOO_MANY_JOINS), Close(TOO_MANY_JOINS, "")]
        self._traffic.joins.add(1, now)
        before = self._channels.get(topic)
        if before is None and len(self._channels) >= self._max_topics:
            return [_refusal(message.join_ref, message, _TOO_MANY)]
        token = presented_token(message)
        try:
            claims = self._claims_of(token, now, is_current=config is not None)
        except TokenRefused as refused:
            if token is None and self._claims is not None:
                token = self._claims.token
            if config is None:
                reason = f"error occurred when joining {topic}: {refused.code}"
            else:
                reason = ": ".join(token_reason(refused, token, now))
            return [Refused(PHX_JOIN, refused.code), _refusal(message.join_ref, message, reason)]
        resume = parse_resume(payload)
        channel = _Channel(
            message.join_ref,
            message.ref,
            claims,
            config,
            self._subscription(topic, config, claims, resume),
            "" if config is None else self._key(config),
            None if config is None else self._traffic.limits.presence_calls_of_one(),
        )
        effects: list[Effect] = [] if before is None else self._replace(topic, before)
        self._channels[topic] = channel
        self._expect_end(claims)
        response: dict[str, Json] = {}
        if config is not None:
            self.is_current = True
            response["postgres_changes"] = list(config.wanted)
            effects.append(Enter(topic, config.takes_binary))
        effects += self._admit(channel, _reply(message.join_ref, message, "ok", response), resume, before)
        if before is not None and before.config is not None:
            effects.append(Send(Message(before.join_ref, before.join_ref, topic, PHX_CLOSE, {})))
        if config is not None and config.wanted:
            effects.append(Check(topic, message.join_ref, config))
        if config is not None and (config.presence_enabled or self._presence_enabled):
            effects.append(ShowPresence(topic, message.join_ref))
        if config is not None and config.oddities:
            effects.append(Odd(config.oddities))
        return effects

    def _key(self, config: JoinConfig) -> str:
        """What the channel is present under: its own text, another value as text, or a new one."""
        key = config.presence_key
        if isinstance(key, str):
            return key or self._new_key()
        return orjson.dumps(key).decode()

    def _hear(self, topic: str, channel: _Channel, config: JoinConfig, message: Message, now: float) -> list[Effect]:
        """Answer what a current channel says."""
        if message.event == BROADCAST:
            return self._broadcast(topic, config, message, now)
        if message.event == PRESENCE:
            return self._presence(topic, channel, message, now)
        self._traffic.events.add(1, now)
        return []

    def _broadcast(self, topic: str, config: JoinConfig, message: Message, now: float) -> list[Effect]:
        broadcast = message.payload
        if not isinstance(broadcast, Verbatim | UserBroadcast):
            return []  # Phoenix's binary push, which nobody here could read
        if self._traffic.too_many_events(now):
            return self._close(topic, _TOO_MANY_MESSAGES)
        size = len(broadcast.text if isinstance(broadcast, Verbatim) else broadcast.data)
        if self._traffic.limits.is_too_large(size):
            return [_reply(message.join_ref, message, "error", _PAYLOAD_TOO_LARGE)] if config.acknowledges else []
        effects: list[Effect] = [Say(topic, broadcast, config.includes_self)]
        if config.acknowledges:
            effects.append(_reply(message.join_ref, message, "ok", {}))
        return effects

    def _presence(self, topic: str, channel: _Channel, message: Message, now: float) -> list[Effect]:
        payload = message.payload if isinstance(message.payload, dict) else {}
        if "event" not in payload:
            return [_reply(message.join_ref, message, "ok", {})]
        if channel.presence_calls is not None and not channel.presence_calls.admits(now):
            return self._close(topic, _TOO_MANY_CALLS)
        if self._traffic.too_many_presence_events(now):
            return self._close(topic, _TOO_MANY_PRESENCE_MESSAGES)
        self._traffic.presence.add(1, now)
        done = _reply(message.join_ref, message, "ok", {})
        match str(payload["event"]).lower():
            case "track":
                shown = payload.get("payload", {})
                if not isinstance(shown, dict):
                    return [_refusal(message.join_ref, message, _NO_MAP)]
                if self._traffic.limits.is_too_large(len(orjson.dumps(shown))):
                    return self._close(topic, _TRACK_TOO_LARGE)
                return [done, Track(topic, channel.key, shown)]
            case "untrack":
                return [done, Untrack(topic)]
            case _:
                return [_reply(message.join_ref, message, "error", {})]

    def _subscription(
        self, topic: str, config: JoinConfig | None, claims: Claims | None, resume: Resume | None
    ) -> Subscription:
        return Subscription(
            topic,
            bindings=None if config is None else config.bindings,
            positions=resume is not None,
            sees_secured=self._bypass_roles is None or (claims is not None and claims.role in self._bypass_roles),
        )

    def _replace(self, topic: str, before: _Channel) -> list[Effect]:
        """What ends of a channel whose topic is joined again, before the reply; its subscription is replaced."""
        return [] if before.config is None else [Exit(topic)]

    def _admit(self, channel: _Channel, reply: Send, resume: Resume | None, before: _Channel | None) -> list[Effect]:
        subscription = channel.subscription
        if subscription.bindings == ():
            # It hears no change, as a channel for broadcasts and presence alone.
            return [reply] if before is None else [Unsubscribe(subscription.topic), reply]
        if resume is not None:
            return [SubscribeSince(subscription, resume.since, reply.message)]
        # A second join replaces the first one; a legacy one without a word: a phx_close with a null ref would end the
        # client's new channel as well. An equal subscription simply goes on.
        if before is not None and before.subscription == subscription:
            return [reply]
        return [Subscribe(subscription), reply]

    def _leave(self, message: Message) -> list[Effect]:
        topic = message.topic
        channel = self._channels.get(topic) if isinstance(topic, str) else None
        if not isinstance(topic, str) or channel is None:
            return [_reply(message.join_ref, message, "ok", {})]
        # On legacy channels the join_ref of the leave is not looked at: 2021's clients send none, or an older join's.
        if channel.config is not None and message.join_ref is not None and message.join_ref != channel.join_ref:
            return [_reply(message.join_ref, message, "ok", {})]
        del self._channels[topic]
        replied = channel.ref if channel.join_ref is None else channel.join_ref
        return [
            *_ends(topic, channel),
            _reply(replied, message, "ok", {}),
            Send(Message(channel.join_ref, channel.join_ref, topic, PHX_CLOSE, {})),
        ]

    def _claims_of(self, token: str | None, now: float, *, is_current: bool) -> Claims | None:
        """What the token of a new channel says, or without one that of the socket. Raises `TokenRefused`."""
        if self._verifier is None:
            return None
        claims = self._claims
        if token is not None and (claims is None or token != claims.token):
            claims = self._verifier.verify(token, now)
        if claims is None:
            raise TokenRefused("token_missing")
        if self._end_expired and _has_ended(claims, now):
            raise TokenRefused("token_expired")
        if is_current:
            _require(claims)
        self._claims = claims
        return claims

    def _renew(self, topic: str, channel: _Channel, message: Message, now: float) -> list[Effect]:
        """Take a new token for the channel, without a word. A bad one ends it."""
        token = presented_token(message)
        if self._verifier is None or token is None or (channel.claims is not None and token == channel.claims.token):
            return []
        try:
            claims = self._verifier.verify(token, now)
            if channel.config is not None:
                _require(claims)
        except TokenRefused as refused:
            words = token_reason(refused, token, now)[1]
            ended = self.fail(topic) if channel.config is None else self._close(topic, words)
            return [Refused(ACCESS_TOKEN, refused.code), *ended]
        self._claims = claims
        resume = Resume() if channel.subscription.positions else None
        renewed = channel._replace(
            claims=claims, subscription=self._subscription(topic, channel.config, claims, resume)
        )
        self._channels[topic] = renewed
        self._expect_end(claims)
        effects: list[Effect] = []
        if renewed.subscription != channel.subscription and renewed.subscription.bindings != ():
            effects.append(Subscribe(renewed.subscription))
        if channel.config is not None and channel.config.wanted:
            effects.append(Check(topic, channel.join_ref, channel.config))
        return effects

    def _end_expired_channel(self, topic: str, now: float) -> list[Effect]:
        channel = self._channels[topic]
        if channel.config is None or channel.claims is None or channel.claims.ends_at is None:
            return self.fail(topic)
        return self._close(topic, expired(channel.claims.ends_at, now))

    def _close(self, topic: str, reason: str) -> list[Effect]:
        """End a current channel for good, and say why: its client does not join it again by itself."""
        channel = self._channels.pop(topic)
        return [
            *_ends(topic, channel),
            _system(topic, channel, "error", reason),
            Send(Message(channel.join_ref, channel.join_ref, topic, PHX_CLOSE, {})),
        ]

    def _expect_end(self, claims: Claims | None) -> None:
        if self._end_expired and claims is not None and claims.ends_at is not None:
            ends_at = claims.ends_at
            self.next_expiry = ends_at if self.next_expiry is None else min(self.next_expiry, ends_at)


def resumed(reply: Message, outcome: Resumed) -> Message:
    """The reply to a join with ``resume``, completed by what has become of it."""
    payload = reply.payload
    assert isinstance(payload, dict)
    response = payload["response"]
    assert isinstance(response, dict)
    told: dict[str, Json] = {
        **response,
        "recovered": outcome.recovered,
        "replayed": outcome.replayed,
        "position": outcome.position,
    }
    return reply._replace(payload={**payload, "response": told})


def beaten(reply: Message, position: str | None) -> Message:
    """The reply to a heartbeat, with the position that the socket has come to (`None`: something is still due)."""
    if position is None:
        return reply
    payload: dict[str, Json] = {"response": {"have": position}, "status": "ok"}
    return reply._replace(payload=payload)


def _ends(topic: str, channel: _Channel) -> list[Effect]:
    """A channel hears nothing more, and a current one is in its room no more."""
    return [Unsubscribe(topic)] if channel.config is None else [Unsubscribe(topic), Exit(topic)]


def _require(claims: Claims) -> None:
    """A current channel knows whose it is and when it ends. Raises `TokenRefused`."""
    if claims.expires_at is None or claims.role is None:
        raise TokenRefused("claims_required")


def _objection(topic: str, config: JoinConfig) -> str | None:
    """Why a current join is refused whatever its token; `None` if it is not."""
    if topic == TOPIC_PREFIX:
        return _NO_NAME
    if config.private:
        # Without policies nobody can say who may read a private channel: so nobody may.
        return _NOT_PERMITTED.format(topic.removeprefix(TOPIC_PREFIX))
    return None


def _system(topic: str, channel: _Channel, status: str, text: str, extension: str = "system") -> Send:
    payload: dict[str, Json] = {
        "channel": topic.removeprefix(TOPIC_PREFIX),
        "extension": extension,
        "message": text,
        "status": status,
    }
    return Send(Message(channel.join_ref, None, topic, SYSTEM, payload))


def presented_token(message: Message) -> str | None:
    """The token that a message brings along, for its channel.

    In a join it is ``user_token``, or on a current one ``access_token``. `None` if there is none, or null, or an API
    key (``sb_…``): that is no token, and what the socket has goes on. On a current join a key in ``access_token``
    counts more than a ``user_token``.
    """
    if not isinstance(payload := message.payload, dict):
        return None
    token: Json = None
    if message.event == ACCESS_TOKEN:
        token = payload.get("access_token")
    elif message.event == PHX_JOIN:
        token = payload.get("user_token")
        if isinstance(payload.get("config"), dict):
            access = payload.get("access_token")
            if isinstance(access, str) and (not isinstance(token, str) or access.startswith("sb_")):
                token = access
    return token if isinstance(token, str) and not token.startswith("sb_") else None


def _has_ended(claims: Claims | None, now: float) -> bool:
    return claims is not None and claims.ends_at is not None and claims.ends_at <= now


def _reply(join_ref: Json, message: Message, status: str, response: Json) -> Send:
    payload: dict[str, Json] = {"response": response, "status": status}
    return Send(Message(join_ref, message.ref, message.topic, PHX_REPLY, payload))


def _refusal(join_ref: Json, message: Message, reason: str) -> Send:
    return _reply(join_ref, message, "error", {"reason": reason})
