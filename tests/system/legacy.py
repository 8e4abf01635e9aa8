"""The numbered cases of the protocol of 2021: their shorthand, and ears that hear exactly what is committed."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import psycopg
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.system.golden import (
    LIMIT_S,
    Marker,
    closed_with,
    fields_of,
    heartbeat_frame,
    join,
    open_socket,
    run_sql,
    until_reply,
)

Json: TypeAlias = Any
"""A frame as it was parsed, or a part of one."""

_END = "end of case"


# Frames of protocol 1.0.0


def message(topic: Json, event: Json, ref: Json, payload: Json = None, **more: Json) -> dict[str, Json]:
    """What a client sends; no payload means an empty one."""
    return {"topic": topic, "event": event, "payload": {} if payload is None else payload, "ref": ref} | more


def joining(topic: Json, ref: Json, **more: Json) -> dict[str, Json]:
    """``J(topic, ref)`` of the cases."""
    return message(topic, "phx_join", ref, **more)


def leaving(topic: Json, ref: Json) -> dict[str, Json]:
    """A ``phx_leave``."""
    return message(topic, "phx_leave", ref)


def ok(topic: Json, ref: Json) -> dict[str, Json]:
    """``OK(topic, ref)``: the reply to whatever is well."""
    return message(topic, "phx_reply", ref, {"response": {}, "status": "ok"})


def refused(topic: Json, ref: Json, reason: str = "unmatched topic") -> dict[str, Json]:
    """``UM(topic, ref)``: the reply to what nobody serves."""
    return message(topic, "phx_reply", ref, {"response": {"reason": reason}, "status": "error"})


def closed(topic: Json, ref: Json = None) -> dict[str, Json]:
    """``X(topic)``: the channel has ended, as was wished."""
    return message(topic, "phx_close", ref)


def exchange(url: str, *sent: Json, query: str | None = None) -> tuple[list[Json], int | None]:
    """Send frames on a socket of their own: what comes back up to the end, and the code if the server closes.

    Text and bytes go out as they stand, everything else as JSON. A last heartbeat shows that there is no more.
    """
    frames: list[Json] = []
    with open_socket(url, query) as socket:
        with suppress(ConnectionClosed):
            for frame in sent:
                socket.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
            socket.send(heartbeat_frame(_END, query))
        try:
            for frame in until_reply(socket, _END):
                frames.append(json.loads(frame))  # one by one: those before a close count
        except ConnectionClosed:
            return frames, closed_with(socket)
    return frames, None


# Changes


class Ear:
    """A socket that has joined some topics. It hears what is committed from its start on, and nothing of before."""

    def __init__(self, socket: ClientConnection, marker: Marker) -> None:
        self.socket, self._marker = socket, marker

    def send(self, frame: Json) -> None:
        """Send one frame."""
        self.socket.send(json.dumps(frame))

    def next(self) -> Json:
        """The next frame, exactly as it came."""
        return json.loads(self.socket.recv(LIMIT_S))

    def heard(self) -> list[Json]:
        """The frames that have come since, and what is committed already; well-formed commit times become a word."""
        return [json.loads(frame) for frame in self._marker.frames_before(self.socket)]

    def after(self, connection: psycopg.Connection[Any], *statements: str) -> list[Json]:
        """Run the statements, and return what was heard of them."""
        assert run_sql(connection, statements) == []
        return self.heard()


@contextmanager
def listening(url: str, marker: Marker, *topics: str, query: str | None = None) -> Iterator[Ear]:
    """An `Ear` that has joined these topics."""
    with open_socket(url, query) as socket:
        marker.begin(socket, query)
        join(socket, topics, query)
        yield Ear(socket, marker)


def topics_of(frames: list[Json]) -> list[tuple[str, str]]:
    """Topic, without ``realtime:``, and event of each frame."""
    fields = [fields_of(json.dumps(frame)) for frame in frames]
    return [(frame["topic"].removeprefix("realtime:"), frame["event"]) for frame in fields]


def rows_of(frames: list[Json]) -> list[tuple[str, Json, Json]]:
    """Event, ``record`` and ``old_record`` of each frame; a key that is not there is `None`."""
    payloads = [fields_of(json.dumps(frame))["payload"] for frame in frames]
    return [(payload["type"], payload.get("record"), payload.get("old_record")) for payload in payloads]


# Tokens


SECRET = "the secret of the numbered cases, which no example has"


def signed(claims: Json, secret: str = SECRET, **header: Json) -> str:
    """A JWT of any header and claims; header fields that are `None` are left out, text is taken as it stands."""
    fields: Mapping[str, Json] = {"alg": "HS256", "typ": "JWT"} | header
    head = {name: value for name, value in fields.items() if value is not None}
    text = ".".join(_segment(part if isinstance(part, str) else json.dumps(part)) for part in (head, claims))
    digest = {"HS384": hashlib.sha384, "HS512": hashlib.sha512}.get(str(head.get("alg")), hashlib.sha256)
    return f"{text}.{_base64(hmac.digest(secret.encode(), text.encode(), digest))}"


def _segment(text: str) -> str:
    return _base64(text.encode())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")
