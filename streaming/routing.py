"""Which websocket paths there are; the HTTP side of the same paths is in `streaming.views`."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import re_path

from streaming.consumers import RealtimeConsumer
from streaming.denial import deny
from streaming.hub import Hub
from streaming.middleware import TokenAuthMiddleware
from streaming.tokens import TokenVerifier
from streaming.transport import OutletLimits

# Empty path segments are ignored: clients put "/websocket" behind whatever endpoint they were given.
SOCKET_PATHS = r"^/*(?:socket|realtime/+v1)/+websocket/*$"


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
) -> URLRouter:
    """The ASGI application of all websockets. Without a ``verifier`` channels are not secured."""
    consumer = RealtimeConsumer.as_asgi(
        hub=hub,
        limits=limits,
        verifier=verifier,
        max_topics=max_topics,
        max_topic_length=max_topic_length,
        end_expired=end_expired,
    )
    routes: list[Any] = [(SOCKET_PATHS, TokenAuthMiddleware(consumer, verifier)), (r"", not_found)]
    return URLRouter([re_path(path, application) for path, application in routes])
