"""RealtimeConsumer: one websocket; performs what its session decides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, assert_never, cast

from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from streaming.catalogue import Catalogue
from streaming.errors import CatalogueAway, InvalidFrame
from streaming.frames import Parcel
from streaming.hub import Hub
from streaming.joins import parse_config, parse_resume
from streaming.middleware import requested_serializer
from streaming.phoenix import PHOENIX_TOPIC, PHX_JOIN, PRESENCE_STATE, V2, V2_TEXT, Message, Serializer
from streaming.rooms import Rooms
from streaming.session import (
    Beat,
    Check,
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
    Subscribe,
    SubscribeSince,
    Track,
    Unsubscribe,
    Untrack,
    beaten,
    presented_token,
    resumed,
)
from streaming.subscriptions import Resumed, Subscription
from streaming.tally import is_answer, tally
from streaming.tokens import TokenVerifier
from streaming.transport import Outlet, OutletLimits, outlet_for

logger = logging.getLogger(__name__)

CHECK_S = 4.0
"""How long a join waits for the database to look at its bindings; then it is answered, and told later."""

CHECK_AGAIN_S = 2.0

NO_CHANNELS, NO_CHANNELS_REASON = 1001, "no-channels"
"""How a socket is closed that had channels and has none any more: clients connect again, if they still want to."""

LONGEST_TIMER_S = 3600.0
"""Timers run by another clock than tokens: one that is set again now and then meets the moment all the same."""


class RealtimeConsumer(AsyncWebsocketConsumer):
    """One client's websocket: joins, leaves, heartbeats. Changes reach it through the hub, not through here.

    It is a member of no group and needs no channel of its own: ``channel_layer_alias`` names a layer that is not there.
    """

    channel_layer_alias = ""
    outlet: Outlet
    serializer: Serializer
    session: Session
    connected_at = 0.0
    heartbeat_at: float | None = None
    """Both in seconds since 1970."""
    _sweep: asyncio.TimerHandle | None = None
    _checks: set[asyncio.Task[None]] | None = None
    """What is under way; most never have any."""

    def __init__(
        self,
        *,
        hub: Hub,
        rooms: Rooms,
        limits: OutletLimits,
        verifier: TokenVerifier | None,
        max_topics: int,
        max_topic_length: int,
        end_expired: bool,
        bypass_roles: Collection[str] | None = None,
        presence_enabled: bool = False,
        no_channel_timeout_s: float = 0.0,
    ) -> None:
        super().__init__()
        self._no_channel_timeout_s = no_channel_timeout_s
        self._rooms, self._presence_enabled = rooms, presence_enabled
        self._is_counted = False
        self._bypass_roles = bypass_roles
        self._hub, self._limits, self._verifier = hub, limits, verifier
        self._max_topics, self._max_topic_length, self._end_expired = max_topics, max_topic_length, end_expired
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_is_for: float | None = None

    async def dispatch(self, message: Any) -> None:
        """Hand the message to its handler: nothing here uses Django's database.

        Channels would close old database connections before each message, in another thread.
        """
        await getattr(self, get_handler_name(message))(message)

    async def connect(self) -> None:
        """Admit the socket; its token and ``vsn`` were checked at the door (`TokenAuthMiddleware`)."""
        self.serializer = requested_serializer(self.scope["query_string"])
        scope = cast("dict[str, Any]", self.scope)
        self.session = Session(
            max_topics=self._max_topics,
            max_topic_length=self._max_topic_length,
            verifier=self._verifier,
            claims=scope["claims"],
            end_expired=self._end_expired,
            bypass_roles=self._bypass_roles,
            traffic=self._rooms.traffic,
            presence_enabled=self._presence_enabled,
        )
        self.outlet = outlet_for(scope, self.base_send, self._limits)
        self.connected_at = time.time()
        await self.accept()
        self._hub.admit(self.outlet, self)

    def fail_all(self) -> None:
        """Every joined topic ends with ``phx_error``: clients join again, and their application hears of it."""
        self.perform(self.session.end())

    def tell_gap(self, topics: Collection[str]) -> None:
        """Changes of these topics are missing for good."""
        self.perform(self.session.tell_gap(topics))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Answer one frame of the client; after we have closed the socket, none."""
        if self._closed:
            return
        frame = text_data if text_data is not None else bytes_data
        try:
            message = self.serializer.decode(frame if frame is not None else "")
        except InvalidFrame as error:
            logger.debug("unreadable frame", extra={"error": error})
            self.perform(self.session.unreadable(error))
            return
        if self._verifier is not None and (token := presented_token(message)) is not None:
            await self._verifier.prepare(token)
        if message.event == PHX_JOIN:
            await self._prepare_changes(message)
        if message.event == PHX_JOIN and isinstance(message.topic, str) and self.session.would_enter(message):
            await self._rooms.prepare(message.topic)
        if not self._closed:
            effects = self.session.receive(message, time.time())
            if message.event == PHX_JOIN:
                _count_join(message, effects)
            self.perform(effects)

    # Changes

    async def _prepare_changes(self, message: Message) -> None:
        """Before a join: wait for what its answer depends on, the chain and the database, but not for long."""
        resume, config = parse_resume(message.payload), parse_config(message.payload)
        if resume is not None:
            await self._hub.prepare(resume.since)
        if config is None or not config.bindings or (catalogue := self._hub.catalogue) is None:
            return
        with suppress(CatalogueAway, TimeoutError):
            async with asyncio.timeout(CHECK_S):
                await self._hub.ready.wait()  # until then the publication may have yet to be made
                verdict = await catalogue.check(config.bindings)
            if resume is not None and resume.since is not None and verdict.asks:
                await self._hub.prepare_replay(config.bindings, resume.since)

    def _is_refused(self, subscription: Subscription) -> bool:
        """Whether the database is known to object to what the subscription asks for."""
        catalogue = self._hub.catalogue
        if catalogue is None or not subscription.bindings:
            return False
        verdict = catalogue.verdict(subscription.bindings)
        return verdict is not None and verdict.problem is not None

    def _check(self, check: Check) -> None:
        """Tell a channel whether what it asks for can be had: at once, or as soon as the database answers."""
        catalogue, config = self._hub.catalogue, check.config
        if config.problem is not None or catalogue is None:
            self.perform(self.session.tell_changes(check.topic, check.join_ref, config.problem))
        elif (verdict := catalogue.verdict(config.bindings)) is not None:
            self.perform(self.session.tell_changes(check.topic, check.join_ref, verdict.problem))
        else:
            task = asyncio.get_running_loop().create_task(self._check_later(check, catalogue), name="bindings checked")
            self._checks = self._checks if self._checks is not None else set()
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    async def _check_later(self, check: Check, catalogue: Catalogue) -> None:
        while True:
            try:
                verdict = await catalogue.check(check.config.bindings)
                break
            except CatalogueAway as error:
                logger.debug("bindings not yet checked", extra={"topic": check.topic, "error": error.reason})
                await asyncio.sleep(CHECK_AGAIN_S)
        told = self.session.tell_changes(check.topic, check.join_ref, verdict.problem)
        if told and verdict.problem is not None:
            self._hub.leave(self.outlet, check.topic)
        self.perform(told)

    def refuse_changes(self, topic: str, reason: str) -> None:
        """The database objects to a filter of this topic."""
        self.perform(self.session.refuse_changes(topic, reason))

    async def websocket_disconnect(self, message: Any) -> None:
        """The socket is gone; for the database see `dispatch`."""
        if not self._closed and not getattr(getattr(self, "outlet", None), "is_closing", False):
            tally.closed("client", message["code"])
        await self.disconnect(message["code"])
        raise StopConsumer

    async def disconnect(self, code: int) -> None:
        """The socket is gone."""
        if hasattr(self, "outlet"):
            self._end()

    def perform(self, effects: list[Effect]) -> None:
        """Carry the effects out, in their order and without a pause: no change falls between a join and its reply."""
        for effect in effects:
            match effect:
                case Subscribe(subscription=subscription):
                    if self._is_refused(subscription):
                        self._hub.leave(self.outlet, subscription.topic)
                    else:
                        self._hub.join(self.outlet, subscription, self.serializer)
                case SubscribeSince(subscription=subscription, reply=reply) if self._is_refused(subscription):
                    self._hub.leave(self.outlet, subscription.topic)
                    self._send(resumed(reply, Resumed(False, 0, self._hub.position)))
                case SubscribeSince(subscription=subscription, since=since, reply=reply):
                    outcome, replay = self._hub.resume(self.outlet, subscription, self.serializer, since)
                    self._send(resumed(reply, outcome))
                    if outcome.recovered:
                        tally.replay(outcome.replayed)
                    for parcel in replay:
                        self.outlet.write(parcel, bounded=False)
                case Unsubscribe(topic=topic):
                    self._hub.leave(self.outlet, topic)
                case Beat(reply=reply):
                    self._send(beaten(reply, self._hub.settled_position(self.outlet)))
                case Check() as check:
                    self._check(check)
                case Enter(topic=topic, takes_binary=takes_binary):
                    serializer = V2_TEXT if self.serializer is V2 and not takes_binary else self.serializer
                    self._rooms.enter(topic, self.outlet, serializer)
                case Exit(topic=topic):
                    self._rooms.leave(topic, self.outlet)
                case Say(topic=topic, broadcast=broadcast, includes_self=includes_self):
                    leave_out = None if includes_self else self.outlet
                    self._rooms.broadcast(topic, broadcast, leave_out=leave_out, before_reply=includes_self)
                case ShowPresence(topic=topic, join_ref=join_ref):
                    state = self._rooms.presence_state(topic)
                    self._send(Message(join_ref, None, topic, PRESENCE_STATE, state))
                case Track(topic=topic, key=key, payload=payload):
                    self._rooms.track(topic, self.outlet, key, payload)
                case Untrack(topic=topic):
                    self._rooms.untrack(topic, self.outlet)
                case Send(message=message):
                    self._send(message)
                case Refused(event=event, code=code, topics=topics):
                    client = self.scope.get("client")
                    facts = {"event": event, "code": code, "topics": topics, "client": client[0] if client else None}
                    logger.info("token refused", extra=facts)
                    tally.refused(event, code)
                case Odd(fields=fields):
                    client = self.scope.get("client")
                    facts = {"fields": ",".join(fields), "client": client[0] if client else None}
                    logger.info("join with odd fields", extra=facts)
                case Close(code=code, reason=reason):
                    self._end()
                    self.outlet.close(code, reason)
                case _:
                    assert_never(effect)
        self._set_timer()
        self._count(bool(self.session.topics) and not self._closed)
        self._set_sweep()

    def _end(self) -> None:
        for task in self._checks or ():
            task.cancel()
        self._closed = True
        self._hub.drop(self.outlet)
        self._rooms.drop(self.outlet)
        self._count(False)
        self._set_timer()
        self._set_sweep()

    def _count(self, is_user: bool) -> None:
        """Whoever has joined a topic is one of the process's users."""
        if is_user != self._is_counted:
            self._is_counted = is_user
            self._rooms.traffic.users += 1 if is_user else -1

    def _set_sweep(self) -> None:
        """Have a timer while the socket has no channel any more; clients of today's server know that one from there."""
        is_empty = self.session.is_current and not self._is_counted and not self._closed
        if is_empty == (self._sweep is not None) or not self._no_channel_timeout_s:
            return
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        else:
            self._sweep = asyncio.get_running_loop().call_later(self._no_channel_timeout_s, self._sweep_up)

    def _sweep_up(self) -> None:
        self._sweep = None
        self.perform([Close(NO_CHANNELS, NO_CHANNELS_REASON)])

    def _set_timer(self) -> None:
        """Have one timer if anything expires on this socket, and none otherwise."""
        next_expiry = None if self._closed else self.session.next_expiry
        if next_expiry == self._timer_is_for:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_is_for = next_expiry
        if next_expiry is not None:
            delay = min(max(next_expiry - time.time(), 0.0), LONGEST_TIMER_S)
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        self._timer = self._timer_is_for = None
        self.perform(self.session.expire(time.time()))

    def _send(self, message: Message) -> None:
        parcel = Parcel([self.serializer.encode(message)])
        if message.topic == PHOENIX_TOPIC:
            self.heartbeat_at = time.time()
            # Behind a full queue the reply would come too late, and the client would give up a healthy connection.
            self.outlet.urgent(parcel)
        else:
            self.outlet.write(parcel)


def _count_join(message: Message, effects: Sequence[Effect]) -> None:
    for effect in effects:
        if isinstance(effect, SubscribeSince):
            tally.joined(message, effect.reply)
            return
        if isinstance(effect, Send) and is_answer(message, effect.message):
            tally.joined(message, effect.message)
            return
