"""Daphne's websocket protocol with what Walcast needs of it: the short way out, plain refusals, and an idle timeout.

Daphne builds its connections from ``WebSocketFactory.protocol``; `install` puts `RealtimeProtocol` there, so that the
plain ``daphne`` command has it too.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.tcp import Connection
from zope.interface import implementer

from streaming.transport import WAY_EXTENSION

DENIAL_EXTENSION = "websocket.http.response"

_PHRASES = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 429: "Too Many Requests"}
_CLOSE_TIMEOUT_S = 5.0


@implementer(IPullProducer)
class RealtimeProtocol(WebSocketProtocol):  # type: ignore[misc]  # Daphne has no type hints
    """One websocket connection under Daphne; to an `Outlet` it is a `ShortWay`.

    Twisted's ``transport.write`` waits for the next turn of the loop and registers with the selector each time. So
    frames go to the plain socket at once while nothing is buffered, and only the rest takes Twisted's way. A transport
    that is no plain TCP connection (TLS) takes Twisted's way always.
    """

    idle_timeout_s: float | None = 60.0
    on_drained: Callable[[], None] | None = None
    _denial: tuple[int, list[tuple[bytes, bytes]]] | None = None
    _producing = False

    # The way out

    def send_now(self, frames: bytes | memoryview) -> int:  # see ShortWay
        transport = self.transport
        if self.state != self.STATE_OPEN or not transport.connected:
            return len(frames)  # nobody reads any more
        if not isinstance(transport, Connection) or transport.dataBuffer or transport._tempDataBuffer:
            return 0
        try:
            sent: int = transport.socket.send(frames)
        except BlockingIOError:
            return 0
        except OSError:
            return 0  # Twisted meets the same error when it writes, and ends the connection in good order
        return sent

    def send_later(self, piece: bytes) -> None:  # see ShortWay
        self.transport.write(piece)
        if not self._producing:
            self._producing = True
            self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Twisted: the buffer is empty (or we have just registered)."""
        transport = self.transport
        if isinstance(transport, Connection) and (transport.dataBuffer or transport._tempDataBuffer):
            return
        buffered_before = self._producing
        self._stop_producing()
        if buffered_before and self.on_drained is not None:
            self.on_drained()

    def stopProducing(self) -> None:
        """Twisted: the connection is gone."""
        self._producing = False

    def _stop_producing(self) -> None:
        if self._producing:
            self._producing = False
            self.transport.unregisterProducer()

    def close_with(self, code: int, reason: str) -> None:  # see ShortWay
        self._stop_producing()
        self._close(code, reason)

    def serverClose(self, code: int | None = None) -> None:
        """Daphne: the application closes the socket."""
        self._close(1000 if code is None else code, "")

    def _close(self, code: int, reason: str) -> None:
        # Autobahn's sendClose allows applications 1000 and 3000 to 4999 only; we are the server, and say 1011 or 1012.
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode()[:123] or None, isReply=False)

    def abort(self) -> None:  # see ShortWay
        self._stop_producing()
        self.dropConnection(abort=True)

    def connectionMade(self) -> None:
        """Twisted: a connection begins; Autobahn has just copied its factory's options."""
        super().connectionMade()
        # The HTTP channel that read the upgrade is still the transport's producer; nobody speaks through it any more.
        self.transport.unregisterProducer()
        self.failByDrop = False  # a client that breaks the protocol is told why (1002, 1007) before the end
        self.echoCloseCodeReason = True

    def connectionLost(self, reason: Any = None) -> None:
        """Twisted: the connection has ended."""
        self.on_drained = None
        super().connectionLost(reason)

    # Refusals before the upgrade (the ASGI extension "Websocket Denial Response", which Daphne lacks)

    def handle_reply(self, message: dict[str, Any]) -> None:
        """Daphne: the application says something."""
        kind = message.get("type")
        if kind == "websocket.http.response.start":
            self._denial = message["status"], list(message.get("headers", []))
        elif kind == "websocket.http.response.body":
            if self._denial is not None:
                status, headers = self._denial
                self._denial = None
                self._refuse(status, headers, message.get("body", b""))
        elif kind == "websocket.close" and self.state == self.STATE_CONNECTING:
            self._refuse(403, [], b"")
        elif kind == "websocket.close" and message.get("reason"):
            self._close(message.get("code") or 1000, message["reason"])
        else:
            super().handle_reply(message)

    def _refuse(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Refused')}".encode()]
        lines += [name + b": " + value for name, value in headers if name.lower() != b"content-length"]
        lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
        self.sendData(b"\r\n".join(lines))
        self.server.protocol_disconnected(self)
        self.dropConnection(abort=False)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        """Autobahn: the handshake is no good. A bare status: 400, whatever was wrong with it."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in responseHeaders or ())
        self.sendData(f"HTTP/1.1 400 Bad Request\r\n{extra}content-length: 0\r\nconnection: close\r\n\r\n".encode())

    # Idle sockets

    def dataReceived(self, data: bytes) -> None:
        """Twisted: bytes came. Any byte counts as life, pongs to our pings too."""
        self._heard_at = time.monotonic()
        super().dataReceived(data)

    def check_idle(self, now: float) -> None:  # see ShortWay
        if self.idle_timeout_s and now - self._heard_at > self.idle_timeout_s and self.state == self.STATE_OPEN:
            self.close_with(1000, "")


def install(*, idle_timeout_s: float | None = 60.0, pings: bool = True) -> None:
    """Make Daphne build `RealtimeProtocol` connections that tell the application of their `ShortWay`.

    ``pings`` off is for tests of the idle timeout: the pong to our ping counts as life.
    """
    protocol = type(
        "ConfiguredRealtimeProtocol",
        (RealtimeProtocol,),
        {"idle_timeout_s": idle_timeout_s, **({} if pings else {"_sendAutoPing": lambda self: None})},
    )
    WebSocketFactory.protocol = protocol
    if getattr(Server.create_application, "knows_the_short_way", False):
        return
    stock = Server.create_application

    def create_application(server: Server, protocol: object, scope: dict[str, Any]) -> object:
        if isinstance(protocol, RealtimeProtocol):
            # A day (Daphne's default) is no reason to cut a socket; idle ones are our own business.
            server.websocket_timeout = -1
            scope["extensions"] = {WAY_EXTENSION: protocol, DENIAL_EXTENSION: {}}
        return stock(server, protocol, scope)

    create_application.knows_the_short_way = True  # type: ignore[attr-defined]
    Server.create_application = create_application


def before_shutdown(coroutine_function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run this when Daphne's reactor is told to stop, and let it finish; under other servers nothing happens."""
    if (reactor := sys.modules.get("twisted.internet.reactor")) is not None and getattr(reactor, "running", False):
        reactor.addSystemEventTrigger(
            "before", "shutdown", lambda: Deferred.fromFuture(asyncio.ensure_future(coroutine_function()))
        )
