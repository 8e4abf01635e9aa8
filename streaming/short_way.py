"""Daphne's websocket protocol with what Walcast needs of it: the short way out, plain refusals, and an idle timeout.

Daphne builds its connections from ``WebSocketFactory.protocol``; `install` puts `RealtimeProtocol` there, so that the
plain ``daphne`` command has it too.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from autobahn.twisted import websocket as autobahn_twisted
from autobahn.websocket import protocol as autobahn_protocol
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.tcp import Connection, Port
from twisted.web.http import HTTPChannel
from zope.interface import implementer

from streaming.frames import message_frames
from streaming.tally import tally
from streaming.transport import LAST_WORDS_S, WAY_EXTENSION

logger = logging.getLogger(__name__)

DENIAL_EXTENSION = "websocket.http.response"

_PHRASES = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 429: "Too Many Requests"}
_PING_PONG = (9, 10)


@implementer(IPullProducer)
class RealtimeProtocol(WebSocketProtocol):  # type: ignore[misc]  # Daphne has no type hints
    """One websocket connection under Daphne; to an `Outlet` it is a `ShortWay`.

    Twisted's ``transport.write`` waits for the next turn of the loop and registers with the selector each time. So
    frames go to the plain socket at once while nothing is buffered, and only the rest takes Twisted's way. A transport
    that is no plain TCP connection (TLS) takes Twisted's way always.
    """

    idle_timeout_s: float | None = 60.0
    max_message_bytes = 0
    # Autobahn's options, where they are not its factory's:
    failByDrop = False  # a client that breaks the protocol is told why (1002, 1007) before the end
    echoCloseCodeReason = True
    closeHandshakeTimeout = LAST_WORDS_S  # in one second a slow client does not come to the close frame
    maxFramePayloadSize = maxMessagePayloadSize = 0  # Daphne's 1 MiB; `max_message_bytes` takes its place

    on_drained: Callable[[], None] | None = None
    on_control: Callable[[bytes], bool] | None = None
    on_close: Callable[[Callable[[], None]], bool] | None = None
    _is_ending = _drops_then = False
    _upgrade: object = None
    _denial: tuple[int, list[tuple[bytes, bytes]]] | None = None
    _producing = False
    has_closed = False
    """We have ended it: what the client's close says then is only an echo."""

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
        if self.state == self.STATE_OPEN and not self._is_ending:
            self.has_closed = True
            tally.closed("server", code)
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode()[:123] or None, isReply=False)

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Autobahn: end it, because its client breaks the protocol (1002, 1007, 1009) or has sent a close frame.

        What is half out ends first: until then the connection stays open, and what its client says is not heard.
        """
        if self._is_ending:
            return
        ask = self.on_close if self.state == self.STATE_OPEN else None
        if ask is not None and ask(partial(self._finish, code, reasonUtf8, isReply)):
            self._is_ending = True
        else:
            super().sendCloseFrame(code, reasonUtf8, isReply)

    def _finish(self, code: int | None, reason: bytes | None, is_reply: bool) -> None:
        self._is_ending = False
        super().sendCloseFrame(code, reason, is_reply)
        if self._drops_then:
            self.dropConnection(abort=False)

    def dropConnection(self, abort: bool = False) -> None:
        """Autobahn: end the connection, behind its close frame unless it is an ``abort``."""
        if self._is_ending and not abort:
            self._drops_then = True
        else:
            super().dropConnection(abort)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Autobahn: a message came."""
        if not self._is_ending:
            super().onMessage(payload, isBinary)

    def sendFrame(self, opcode: int, payload: bytes = b"", *more: Any, **options: Any) -> None:
        """Autobahn: send a ping, or the pong to one. In the middle of a frame that is half out it would break that."""
        ask = self.on_control if opcode in _PING_PONG else None
        if ask is None or not ask(message_frames([payload], opcode)):
            super().sendFrame(opcode, payload, *more, **options)

    def abort(self) -> None:  # see ShortWay
        self._stop_producing()
        self.dropConnection(abort=True)
        self.transport.abortConnection()  # if it has been dropped already, what it buffers may still wait for a reader

    def connectionMade(self) -> None:
        """Twisted: a connection begins."""
        self._share_options()
        super().connectionMade()
        # The HTTP channel that read the upgrade is still the transport's producer; nobody speaks through it any more.
        self._upgrade = getattr(self.transport, "producer", None)
        self.transport.unregisterProducer()

    def _share_options(self) -> None:
        # Autobahn copies its factory's options into each connection that has none of its own: that would be half of the
        # memory of an idle one.
        shared, factory = type(self), self.factory
        for name in () if "autoFragmentSize" in shared.__dict__ else self.CONFIG_ATTRS:
            if not hasattr(shared, name):
                value = getattr(factory, name)
                setattr(shared, name, staticmethod(value) if callable(value) else value)

    def onOpen(self) -> None:
        """Autobahn: the handshake is done; what it needed may go."""
        self.http_request_data = self.http_response_data = self.http_status_line = ""
        self.http_headers = self.request.headers = dict[str, str]()
        upgrade: Any = self._upgrade
        self._upgrade = None
        is_http: bool = isinstance(upgrade, HTTPChannel)
        if is_http:
            upgrade.setTimeout(None)
            for request in upgrade.requests:
                request.channel = None
            upgrade.requests.clear()
        super().onOpen()

    def connectionLost(self, reason: Any = None) -> None:
        """Twisted: the connection has ended."""
        self.on_drained = self.on_control = self.on_close = None
        super().connectionLost(reason)
        # Without these circles a connection is freed when it has ended; else it would wait for the garbage collector.
        self.is_closed = self.is_open = self._transport_details = None
        self.application_deferred = None

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

    # Large messages

    def onMessageFrameBegin(self, length: int) -> None:
        """Autobahn: a frame of the client begins. (Its own limits are some for what we send as well.)"""
        super().onMessageFrameBegin(length)
        size, most = self.message_data_total_length, self.max_message_bytes
        if 0 < most < size and not self.failedByMe:
            self._max_message_size_exceeded(size, most, "message-too-big")

    # Idle sockets

    def dataReceived(self, data: bytes) -> None:
        """Twisted: bytes came. Any byte counts as life, pongs to our pings too."""
        self._heard_at = time.monotonic()
        super().dataReceived(data)

    def check_idle(self, now: float) -> None:  # see ShortWay
        if self.idle_timeout_s and now - self._heard_at > self.idle_timeout_s and self.state == self.STATE_OPEN:
            self.close_with(1000, "")


def install(
    *, idle_timeout_s: float | None = 60.0, pings: bool = True, share_port: bool = False, max_message_bytes: int = 0
) -> None:
    """Make Daphne build `RealtimeProtocol` connections that tell the application of their `ShortWay`.

    ``pings`` off is for tests of the idle timeout: the pong to our ping counts as life. ``share_port`` lets other
    processes listen on the same port. A client's message of more than ``max_message_bytes`` (0: any) closes its socket
    with 1009.
    """
    protocol = type(
        "ConfiguredRealtimeProtocol",
        (RealtimeProtocol,),
        {
            "idle_timeout_s": idle_timeout_s,
            "max_message_bytes": max_message_bytes,
            **({} if pings else {"_sendAutoPing": lambda self: None}),
        },
    )
    WebSocketFactory.protocol = protocol
    _spare_debug_texts()
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
    _end_in_order()
    if share_port:
        _share_ports()


def _spare_debug_texts() -> None:
    """Autobahn composes texts for its debug log, read or not: a fifth of the time that a handshake takes."""

    def nothing(*_: object, **__: object) -> str:
        return ""

    for module in (autobahn_protocol, autobahn_twisted):
        for name in ("pformat", "hl", "hltype", "hlval", "hlid"):
            if hasattr(module, name):
                setattr(module, name, nothing)


def _share_ports() -> None:
    """Daphne listens with SO_REUSEPORT: the kernel spreads new connections over all processes of the port."""
    stock: Any = Port.createInternetSocket

    def create_internet_socket(port: Port) -> socket.socket:
        listener: socket.socket = stock(port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return listener

    Port.createInternetSocket = create_internet_socket  # type: ignore[method-assign]


# The end of the process

_endings: list[Callable[[], Coroutine[Any, Any, None]]] = []
_hurry: asyncio.Event | None = None


def before_shutdown(coroutine_function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run this when Daphne is told to stop, and let it finish; under other servers nothing happens.

    Nobody can connect any more then, and the sockets that are open go on as before.
    """
    _endings.append(coroutine_function)


def hurry() -> asyncio.Event:
    """Set when Daphne is told to stop a second time: whoever takes his time to end should not."""
    global _hurry  # noqa: PLW0603 - a process has one end
    if _hurry is None:
        _hurry = asyncio.Event()
    return _hurry


def _end_in_order() -> None:
    # Daphne cancels what runs for its connections as soon as it is told to stop. First comes what we have to do, while
    # clients are still answered.
    stock, stock_listen_success = Server.kill_all_applications, Server.listen_success
    ports: list[Port] = []

    def listen_success(server: Server, port: Port) -> None:
        ports.append(port)  # Daphne itself forgets it
        stock_listen_success(server, port)

    async def end(server: Server) -> None:
        loop, second = asyncio.get_running_loop(), hurry()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread, where signals are none of our business
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(second.set))
        # It takes a turn of the loop: a client that is told before comes back to us, and is cut off.
        closing = [maybeDeferred(port.stopListening).asFuture(loop) for port in ports]
        await asyncio.gather(*closing, return_exceptions=True)
        for outcome in await asyncio.gather(*(ending() for ending in _endings), return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("not ended in order", exc_info=outcome)
        # Stock Daphne stumbles over a connection whose application has ended already.
        server.connections = {
            protocol: details for protocol, details in server.connections.items() if "application_instance" in details
        }
        await stock(server).asFuture(loop)

    def kill_all_applications(server: Server) -> object:
        return Deferred.fromFuture(asyncio.ensure_future(end(server)))

    Server.kill_all_applications = kill_all_applications
    Server.listen_success = listen_success
