"""The application as Daphne serves it when nothing of ours is in Daphne: messages take ASGI's way, one by one."""

from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol

from realtime_project.asgi import application

__all__ = ["application"]

WebSocketFactory.protocol = WebSocketProtocol
