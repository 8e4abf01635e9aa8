"""Which websocket paths there are; the HTTP side of the same paths is in `streaming.views`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from channels.routing import URLRouter
from django.urls import re_path

from streaming.consumers import RealtimeConsumer
from streaming.crowd import CrowdLimit
from streaming.denial import deny
from streaming.hub import Hub
from streaming.middleware import TokenAuthMiddleware
from streaming.rooms import Rooms
from streaming.tokens import TokenVerifier
from streaming.transport import OutletLimits

# Empty path segments are ignored: clients put "/websocket" behind whatever endpoint they were given.
SOCKET_PATHS = r"^(?:/*)(?:socket|realtime/+v1)/+websocket/*$"


LIVE_PATH = r"^admin/live$"


async def not_found(scope: Any, receive: Any, send: Any) -> None:
    """Answer a websocket on an unknown path with 404, before the upgrade."""
    await receive()
    await deny(scope, send, 404, b"Not Found", "text/html; charset=utf-8")


def websocket_application(
    hub: Hub,
    verifier: TokenVerifier | None,
    *,
    limits: OutletLimits,
    max_topics: int,
    max_topic_length: int,
    end_expired: bool,
    bypass_roles: Collection[str] | None = None,
    rooms: Rooms | None = None,
    presence_enabled: bool = False,
    max_sockets: int = 0,
    max_sockets_per_address: int = 0,
    no_channel_timeout_s: float = 0.0,
    live: Any = None,
) -> URLRouter:
    """The ASGI application of all websockets; ``live`` serves the dashboard.

    Without a ``verifier`` channels are not secured. A socket that has had current channels, and has had none for
    ``no_channel_timeout_s`` (0: ever), is closed.

    Tables with row security are heard by ``bypass_roles`` alone (`None`: by everybody).
    """
    rooms = rooms if rooms is not None else Rooms("alone")
    consumer = RealtimeConsumer.as_asgi(
        hub=hub,
        rooms=rooms,
        presence_enabled=presence_enabled,
        limits=limits,
        verifier=verifier,
        max_topics=max_topics,
        max_topic_length=max_topic_length,
        end_expired=end_expired,
        bypass_roles=bypass_roles,
        no_channel_timeout_s=no_channel_timeout_s,
    )
    door: Any = TokenAuthMiddleware(consumer, verifier, rooms.traffic)
    if max_sockets or max_sockets_per_address:
        door = CrowdLimit(door, max_sockets, max_sockets_per_address)
    routes: list[Any] = [(SOCKET_PATHS, door), (r"", not_found)]
    if live is not None:
        routes.insert(1, (LIVE_PATH, live))
    return URLRouter([re_path(path, application) for path, application in routes])
