"""RealtimeConsumer: one websocket; performs what its session decides."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, assert_never, cast

from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from streaming.errors import InvalidFrame
from streaming.frames import Parcel
from streaming.hub import Hub
from streaming.middleware import requested_serializer
from streaming.phoenix import PHOENIX_TOPIC, Message, Serializer
from streaming.session import Close, Effect, Refused, Send, Session, Subscribe, Unsubscribe, presented_token
from streaming.tokens import TokenVerifier
from streaming.transport import Outlet, OutletLimits, outlet_for

logger = logging.getLogger(__name__)

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

    def __init__(
        self,
        *,
        hub: Hub,
        limits: OutletLimits,
        verifier: TokenVerifier | None,
        max_topics: int,
        max_topic_length: int,
        end_expired: bool,
    ) -> None:
        super().__init__()
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
        )
        self.outlet = outlet_for(scope, self.base_send, self._limits)
        await self.accept()
        self._hub.admit(self.outlet, self)

    def fail_all(self) -> None:
        """Every joined topic ends with ``phx_error``: clients join again, and their application hears of it."""
        self.perform(self.session.end())

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
        self.perform(self.session.receive(message, time.time()))

    async def websocket_disconnect(self, message: Any) -> None:
        """The socket is gone; for the database see `dispatch`."""
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
                case Subscribe(topic=topic):
                    self._hub.join(self.outlet, topic, self.serializer)
                case Unsubscribe(topic=topic):
                    self._hub.leave(self.outlet, topic, self.serializer)
                case Send(message=message):
                    self._send(message)
                case Refused(event=event, code=code, topics=topics):
                    client = self.scope.get("client")
                    facts = {"event": event, "code": code, "topics": topics, "client": client[0] if client else None}
                    logger.info("token refused", extra=facts)
                case Close(code=code, reason=reason):
                    self._end()
                    self.outlet.close(code, reason)
                case _:
                    assert_never(effect)
        self._set_timer()

    def _end(self) -> None:
        self._closed = True
        self._hub.drop(self.outlet)
        self._set_timer()

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
            # Behind a full queue the reply would come too late, and the client would give up a healthy connection.
            self.outlet.urgent(parcel)
        else:
            self.outlet.write(parcel)
