"""A client of a running server, over its websocket: joins, comes back after a cut, and goes on where it stopped.

It is what `manage.py tail` follows. It speaks protocol 2.0.0, of which it needs little: joins, heartbeats, refs.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

HEARTBEAT_S = 25.0
REPLY_LIMIT_S = 10.0
OPEN_LIMIT_S = 10.0
RECONNECT_S = (1.0, 2.0, 5.0, 10.0)

CHANGES = frozenset({"INSERT", "UPDATE", "DELETE", "TRUNCATE"})
POSTGRES_CHANGES = "postgres_changes"


class ClientError(Exception):
    """The base of what ends a `Client`: nothing that trying again would cure."""


class NoServer(ClientError):
    """Nobody answers at the address, and nobody has yet."""

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = url, reason
        super().__init__(
            f"no server answers at {url} ({reason}), so there is nothing to follow; "
            "start one with: manage.py realtime, or name another with --url ws://HOST:PORT/socket"
        )


class NoWebsocket(ClientError):
    """Something answers, but it opens no websocket."""

    def __init__(self, url: str, status: int) -> None:
        self.url, self.status = url, status
        super().__init__(
            f"{url} answered {status} and opened no websocket, so it is no realtime server, or not that path of one; "
            "the path is /socket, or /realtime/v1 behind Supabase's gateway"
        )


class SocketRefused(ClientError):
    """The server takes no socket without a token, or none with this one."""

    def __init__(self, url: str, *, has_token: bool) -> None:
        self.url, self.has_token = url, has_token
        if has_token:
            why = "the server refused the token; see why with: manage.py token check TOKEN, where the server runs"
        else:
            why = (
                "the server asks for a token, and none was given; pass one with --token, or where JWT_SECRET is "
                "known make one on the way with --mint"
            )
        super().__init__(why)


class JoinRefused(ClientError):
    """The server does not let this channel be joined; ``reason`` is its own word."""

    def __init__(self, topic: str, reason: str) -> None:
        self.topic, self.reason = topic, reason
        cure = "see the topics in the README" if reason == "unmatched topic" else "the server's log says more"
        super().__init__(f"the server refused to join {topic}: {reason}; {cure}")


@dataclass(frozen=True, slots=True)
class Event:
    """What came on the topic. ``position`` is set for changes; ``is_replayed`` if it was missed before."""

    event: str
    payload: Any
    position: str | None = None
    is_replayed: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    """The channel is joined: for the first time, or again.

    ``recovered``: nothing is missing since the position that was asked for, and ``replayed`` changes come again now;
    `None` if none was asked for, or the server knows nothing of positions.
    """

    recovered: bool | None
    replayed: int
    position: str | None


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection or the channel has ended; it is tried again in ``retry_s``."""

    reason: str
    retry_s: float


Happening: TypeAlias = Event | Joined | Lost


@dataclass(slots=True)
class Client:
    """Follows one channel. ``token()`` is asked for a token before each connection and join; `None` is none.

    ``config`` is that of a current join, `None` for a legacy one. ``since`` is where to go on, and moves: it is the
    position of the newest change that `follow` has yielded (of a heartbeat, where nothing came for a while).
    """

    url: str
    topic: str
    config: dict[str, Any] | None = None
    token: Callable[[], str | None] = lambda: None
    since: str | None = None
    is_reconnecting: bool = True
    _refs: int = 0
    _had_socket: bool = False
    _tries: int = 0
    _replaying: int = 0
    _heartbeat_ref: str | None = None
    _joined: bool = field(default=False)

    async def follow(self) -> AsyncGenerator[Happening]:
        """Everything that happens, for ever. Raises `ClientError` where trying again is of no use."""
        while True:
            try:
                async with aclosing(self._socket()) as happenings:
                    async for happening in happenings:
                        yield happening
                reason = "the channel ended"
            except InvalidStatus as answer:
                status = answer.response.status_code
                if status in (401, 403):
                    raise SocketRefused(self.url, has_token=self.token() is not None) from None
                if not self._had_socket and status != 503:
                    raise NoWebsocket(self.url, status) from None
                reason = f"the server answered {status}"
            except InvalidURI:
                raise NoServer(self.url, "this is no address of a websocket") from None
            except ConnectionClosed as closed:
                reason = _why(closed)
            except (OSError, InvalidHandshake, InvalidMessage, EOFError) as error:
                reason = str(error) or type(error).__name__
                if isinstance(error, TimeoutError):
                    reason = "no answer in time"
                if not self._had_socket:
                    raise NoServer(self.url, reason) from None
            if not self.is_reconnecting:
                yield Lost(reason, 0)
                return
            wait = RECONNECT_S[min(self._tries, len(RECONNECT_S) - 1)] * random.uniform(0.8, 1.2)
            self._tries += 1
            yield Lost(reason, wait)
            await asyncio.sleep(wait)

    async def _socket(self) -> AsyncGenerator[Happening]:
        """One connection, from its opening to its end (or to that of the channel)."""
        token = self.token()
        headers = {"x-api-key": token} if token else {}
        self._joined, self._replaying, self._heartbeat_ref = False, 0, None
        async with connect(
            with_vsn(self.url), additional_headers=headers, max_size=None, open_timeout=OPEN_LIMIT_S, close_timeout=1
        ) as socket:
            self._had_socket = True
            join_ref = await self._send(socket, self.topic, "phx_join", self._join_payload(token), is_join=True)
            beating = asyncio.create_task(self._beat(socket))
            try:
                async with asyncio.timeout(REPLY_LIMIT_S) as limit:
                    async for frame in socket:
                        message = read_frame(frame)
                        if message is None:
                            continue
                        ref, topic, event, payload = message
                        if event == "phx_reply" and ref == join_ref:
                            limit.reschedule(None)
                            yield self._join_reply(payload)
                        elif event in ("phx_error", "phx_close") and topic == self.topic:
                            self._joined = False
                            return
                        elif (happening := self._receive(ref, topic, event, payload)) is not None:
                            yield happening
            finally:
                beating.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await beating
        if socket.protocol.close_exc is not None:
            raise socket.protocol.close_exc

    def _join_payload(self, token: str | None) -> dict[str, Any]:
        payload: dict[str, Any] = {} if self.config is None else {"config": self.config}
        if self.config is None or self.config.get(POSTGRES_CHANGES):
            payload["resume"] = {} if self.since is None else {"since": self.since}
        if token:
            payload["user_token" if self.config is None else "access_token"] = token
        return payload

    def _join_reply(self, payload: Any) -> Joined:
        response = payload.get("response") or {}
        if payload.get("status") != "ok":
            raise JoinRefused(self.topic, str(response.get("reason", "no reason given")))
        self._tries, self._joined = 0, True
        recovered, position = response.get("recovered"), response.get("position")
        asked = self.since is not None and isinstance(recovered, bool)
        self._replaying = int(response.get("replayed") or 0)
        # While missed changes come, they say how far we are: the socket may be cut before the last of them.
        if isinstance(position, str) and not (asked and recovered and self._replaying):
            self.since = position
        return Joined(recovered if asked else None, self._replaying, position)

    def _receive(self, ref: Any, topic: str, event: str, payload: Any) -> Event | None:
        if topic == "phoenix":
            if ref == self._heartbeat_ref:
                self._heartbeat_ref = None
                have = (payload.get("response") or {}).get("have")
                # The server gives it when nothing at or below it is still on its way to us.
                if isinstance(have, str) and self._joined and not self._replaying:
                    self.since = have
            return None
        if topic != self.topic or event == "phx_reply":
            return None
        data = payload.get("data", {}) if event == POSTGRES_CHANGES else payload
        if event not in CHANGES and event != POSTGRES_CHANGES:
            return Event(event, payload)
        position = data.get("position")
        is_replayed = self._replaying > 0
        self._replaying = max(0, self._replaying - 1)
        if isinstance(position, str):
            self.since = position
        return Event(data.get("type", event), payload, position, is_replayed)

    async def _send(
        self, socket: ClientConnection, topic: str, event: str, payload: dict[str, Any], *, is_join: bool = False
    ) -> str:
        self._refs += 1
        ref = str(self._refs)
        await socket.send(json.dumps([ref if is_join else None, ref, topic, event, payload]))
        return ref

    async def _beat(self, socket: ClientConnection) -> None:
        while True:
            self._heartbeat_ref = await self._send(socket, "phoenix", "heartbeat", {})
            await asyncio.sleep(HEARTBEAT_S)
            if self._heartbeat_ref is not None:
                await socket.close(reason="heartbeat not answered")
                return


def read_frame(frame: str | bytes) -> tuple[Any, str, str, Any] | None:
    """Ref, topic, event and payload of a frame; `None` for one that is not of the protocol.

    Binary frames are broadcasts (kind 4); a payload of bytes becomes ``{"bytes": how many, "hex": the first of them}``.
    """
    if isinstance(frame, str):
        try:
            _, ref, topic, event, payload = json.loads(frame)
        except ValueError:
            return None
        return ref, topic, event, payload
    if len(frame) < 5 or frame[0] != 4:
        return None
    topic_end = 5 + frame[1]
    event_end = topic_end + frame[2]
    body = frame[event_end + frame[3] :]
    try:
        topic, event = frame[5:topic_end].decode(), frame[topic_end:event_end].decode()
        payload = json.loads(body) if frame[4] else {"bytes": len(body), "hex": body[:256].hex()}
    except ValueError:
        return None
    return None, topic, "broadcast", {"type": "broadcast", "event": event, "payload": payload}


def socket_url(text: str) -> str:
    """The address of the websocket that somebody means: a page, a server, or an endpoint as clients take it.

    Raises `ValueError` for what is no address.
    """
    parts = urlsplit(text if "://" in text else f"ws://{text}")
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname or parts.username or parts.query:
        raise ValueError(text)
    path = parts.path.rstrip("/") or "/socket"
    return urlunsplit((scheme, parts.netloc, path if path.endswith("/websocket") else f"{path}/websocket", "", ""))


def with_vsn(url: str) -> str:
    """The address with the protocol version that we speak."""
    return f"{url}?{urlencode({'vsn': '2.0.0'})}"


def config_of(bindings: Sequence[dict[str, Any]], *, presence: bool = False, private: bool = False) -> dict[str, Any]:
    """The config of a current join that listens only."""
    return {
        "broadcast": {"self": False, "ack": False},
        "presence": {"key": "", "enabled": presence},
        POSTGRES_CHANGES: list(bindings),
        "private": private,
    }


def _why(closed: ConnectionClosed) -> str:
    if closed.rcvd is None:
        return "the connection was cut"
    names = {1000: "closed", 1001: "going away", 1012: "the server shuts down", 1013: "too slow a reader"}
    return closed.rcvd.reason or names.get(closed.rcvd.code, f"closed with {closed.rcvd.code}")
