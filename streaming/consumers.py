"""RealtimeConsumer: one websocket; performs what its session decides."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

from channels.generic.websocket import AsyncWebsocketConsumer

from streaming.errors import InvalidFrame
from streaming.frames import Parcel
from streaming.hub import Hub
from streaming.middleware import requested_serializer
from streaming.phoenix import PHOENIX_TOPIC, Message, Serializer
from streaming.session import Close, Effect, Send, Session, Subscribe, Unsubscribe
from streaming.transport import Outlet, OutletLimits, outlet_for

logger = logging.getLogger(__name__)


class RealtimeConsumer(AsyncWebsocketConsumer):
    """One client's websocket: joins, leaves, heartbeats. Changes reach it through the hub, not through here.

    It is a member of no group and needs no channel of its own: ``channel_layer_alias`` names a layer that is not there.
    """

    channel_layer_alias = ""
    outlet: Outlet
    serializer: Serializer

    def __init__(self, *, hub: Hub, limits: OutletLimits, max_topics: int) -> None:
        super().__init__()
        self._hub, self._limits = hub, limits
        self.session = Session(max_topics=max_topics)
        self.connected_at = time.time()

    async def connect(self) -> None:
        """Admit the socket; its token and ``vsn`` were checked at the door (`TokenAuthMiddleware`)."""
        self.serializer = requested_serializer(self.scope["query_string"])
        self.outlet = outlet_for(cast("dict[str, Any]", self.scope), self.base_send, self._limits)
        await self.accept()
        self._hub.admit(self.outlet, self)

    def fail_all(self) -> None:
        """Every joined topic ends with ``phx_error``: clients join again, and their application hears of it."""
        self.perform(self.session.end())

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Answer one frame of the client."""
        frame = text_data if text_data is not None else bytes_data
        try:
            message = self.serializer.decode(frame if frame is not None else "")
        except InvalidFrame as error:
            logger.debug("unreadable frame", extra={"error": error})
            self.perform(self.session.unreadable(error))
            return
        self.perform(self.session.receive(message))

    async def disconnect(self, code: int) -> None:
        """The socket is gone."""
        if hasattr(self, "outlet"):
            self._hub.drop(self.outlet)

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
                case Close(code=code, reason=reason):
                    self._hub.drop(self.outlet)
                    self.outlet.close(code, reason)

    def _send(self, message: Message) -> None:
        parcel = Parcel([self.serializer.encode(message)])
        if message.topic == PHOENIX_TOPIC:
            # Behind a full queue the reply would come too late, and the client would give up a healthy connection.
            self.outlet.urgent(parcel)
        else:
            self.outlet.write(parcel)
