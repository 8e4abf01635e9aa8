"""Broadcasts by HTTP: what a service says in a room without joining it.

``POST /api/broadcast`` takes a batch, ``POST /api/broadcast/{topic}/events/{event}`` one broadcast whose payload is the
body, JSON or any bytes. Both are there under ``/realtime/v1`` as well. Topics are named without ``realtime:``. Status
codes and bodies are those that today's clients know.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote_to_bytes

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path, re_path
from django.views.decorators.csrf import csrf_exempt

from streaming.errors import TokenRefused
from streaming.limits import Traffic
from streaming.middleware import configured_verifier
from streaming.openapi import document
from streaming.phoenix import LONGEST_FIELD, UserBroadcast, Verbatim, fits_header, read_json, write_json
from streaming.process import this_process
from streaming.rooms import Rooms
from streaming.session import TOPIC_PREFIX

BODY_MAX_BYTES: Final = 8_000_000
MOST_MESSAGES: Final = 10_000

JSON, BYTES = "application/json", "application/octet-stream"

_BLANK, _INVALID = "can't be blank", "is invalid"
_TOO_LARGE: Final = "Payload size exceeds tenant limit"

_ALLOWED_HEADERS: Final = "authorization, apikey, content-type, x-client-info"
_CORS: Final = {"Access-Control-Allow-Origin": "*"}
_PREFLIGHT: Final = {"Access-Control-Allow-Methods": "POST, OPTIONS", "Access-Control-Max-Age": "86400"}

Faults: TypeAlias = dict[str, list[str]]
View: TypeAlias = Callable[[HttpRequest, Rooms], Awaitable[HttpResponse]]


class _Refused(Exception):
    """The answer to a request that is not followed."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status, self.body = status, body
        super().__init__(f"refused with {status}")


def _answer(status: int, body: Mapping[str, Any] | None = None) -> HttpResponse:
    if body is None:
        response = HttpResponse(status=status)
        del response["Content-Type"]
        return response
    return HttpResponse(orjson.dumps(body), status=status, content_type="application/json; charset=utf-8")


def _door(view: View) -> Callable[..., Any]:
    """Around both views: browsers ask first, tokens are checked, rates are counted."""

    @csrf_exempt
    @wraps(view)
    async def through(request: HttpRequest) -> HttpResponse:
        if request.method == "OPTIONS":
            asked = request.headers.get("Access-Control-Request-Headers", _ALLOWED_HEADERS)
            return HttpResponse(status=204, headers=_CORS | _PREFLIGHT | {"Access-Control-Allow-Headers": asked})
        headers = _CORS
        try:
            if request.method != "POST":
                headers = headers | {"Allow": "POST, OPTIONS"}
                raise _Refused(405, {"message": "Method Not Allowed"})
            if (rooms := this_process.rooms) is None:
                raise _Refused(503, {"message": "This process serves no sockets"})
            await _check_token(request)
            headers = headers | _count_request(rooms.traffic)
            response = await view(request, rooms)
        except _Refused as refused:
            response = _answer(refused.status, refused.body)
            response._has_been_logged = True  # type: ignore[attr-defined]  # Django would warn of each
        for name, value in headers.items():
            response[name] = value
        return response

    return through


async def _check_token(request: HttpRequest) -> None:
    """Where channels are secured, whoever broadcasts shows a token with ``role`` and ``exp``."""
    if (verifier := configured_verifier()) is None:
        return
    scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        token = request.headers.get("apikey", "")
    try:
        await verifier.prepare(token)
        claims = verifier.verify(token, time.time())
    except TokenRefused:
        raise _Refused(401, {"message": "Unauthorized"}) from None
    if claims.expires_at is None or claims.role is None:
        raise _Refused(401, {"message": "Unauthorized"})


def _count_request(traffic: Traffic) -> dict[str, str]:
    now, limit = time.time(), traffic.limits.events_per_s
    if not limit:
        return {}
    average = traffic.requests.average(now)
    if average >= limit:
        raise _Refused(429, {"message": "Too many requests"})
    traffic.requests.add(1, now)
    return {
        "x-rate-rolling": f"{average:.2f}",
        "x-rate-limit": f"{limit:g}",
        "x-rate-limit-remaining": f"{max(limit - average, 0):g}",
    }


def _body(request: HttpRequest) -> bytes:
    # Not request.body: a project's DATA_UPLOAD_MAX_MEMORY_SIZE is meant for its forms.
    body: bytes = request.read(BODY_MAX_BYTES + 1)
    if len(body) > BODY_MAX_BYTES:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"message": "Payload Too Large"})
    return body


def _json(body: bytes) -> Any:
    try:
        return read_json(body)
    except ValueError:
        raise _Refused(400, {"message": "Bad Request: the body is no JSON"}) from None


@_door
async def broadcast_batch(request: HttpRequest, rooms: Rooms) -> HttpResponse:
    """``POST /api/broadcast``: all messages of a batch, or none."""
    body = _json(_body(request) or b"{}")
    messages = body.get("messages") if isinstance(body, dict) else None
    if messages is None or messages == []:
        raise _Refused(422, {"errors": {"messages": [_BLANK]}})
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _Refused(422, {"errors": {"messages": [_INVALID]}})
    if len(messages) > MOST_MESSAGES:
        raise _Refused(422, {"errors": {"messages": [f"should have at most {MOST_MESSAGES} item(s)"]}})
    read = [_read_item(message, rooms.traffic) for message in messages]
    if any(faults for _, _, faults in read):
        raise _Refused(422, {"errors": {"messages": [faults for _, _, faults in read]}})
    _check_rate(rooms.traffic, len(messages))
    for message, (topic, broadcast, _) in zip(messages, read, strict=True):
        # Nobody can be in a private room before its policies are evaluated, and nobody is told so.
        if message.get("private") is not True:
            rooms.broadcast(topic, broadcast)
    return _answer(202)


def _read_item(message: dict[str, Any], traffic: Traffic) -> tuple[str, Verbatim, Faults]:
    faults: Faults = {}
    for name, kind in (("topic", str), ("event", str), ("payload", dict)):
        value = message.get(name)
        if value is None or (kind is str and isinstance(value, str) and not value.strip()):
            faults[name] = [_BLANK]
        elif not isinstance(value, kind):
            faults[name] = [_INVALID]
    for name, other_kind in (("private", bool), ("id", str)):
        if message.get(name) is not None and not isinstance(message[name], other_kind):
            faults[name] = [_INVALID]
    if faults:
        return "", Verbatim(b""), faults
    topic = TOPIC_PREFIX + message["topic"]
    if fault := _topic_fault(topic):
        faults["topic"] = [fault]
    payload = {"event": message["event"], "payload": message["payload"], "type": "broadcast"}
    if message.get("id") is not None:
        payload["meta"] = {"id": message["id"]}
    try:
        text = write_json(payload)
    except ValueError:
        return topic, Verbatim(b""), {"payload": [_INVALID]}
    if traffic.limits.is_too_large(len(text)):
        faults["payload"] = [_TOO_LARGE]
    return topic, Verbatim(text), faults


def _topic_fault(topic: str) -> str | None:
    most: int = settings.MAX_TOPIC_LENGTH
    return f"should be at most {most - len(TOPIC_PREFIX)} character(s)" if len(topic) > most else None


def _check_rate(traffic: Traffic, count: int) -> None:
    now, limit = time.time(), traffic.limits.events_per_s
    if not limit:
        return
    if traffic.too_many_events(now):
        raise _Refused(429, {"message": "You have exceeded your rate limit"})
    if traffic.events.average(now) + count > limit and count > 1:
        raise _Refused(429, {"message": "Too many messages to broadcast, please reduce the batch size"})


_ONE_PATH = re.compile(r"/api/+broadcast/+([^/]+)/+events/+([^/]+)/*$")


@_door
async def broadcast_one(request: HttpRequest, rooms: Rooms) -> HttpResponse:
    """``POST /api/broadcast/{topic}/events/{event}``: the body is the payload."""
    topic, event = _named(request)
    content_type = (request.headers.get("Content-Type") or JSON).partition(";")[0].strip().lower()
    if content_type not in (JSON, BYTES):
        raise _Refused(415, {"error": f"Unsupported Media Type. Use {JSON} or {BYTES}"})
    if request.GET.get("private", "").lower() == "true":
        raise _Refused(403, {"message": "Unauthorized"})
    body = _body(request)
    is_json = content_type == JSON
    faults: Faults = {}
    if fault := _topic_fault(topic):
        faults["topic"] = [fault]
    if rooms.traffic.limits.is_too_large(len(body)):
        faults["payload"] = [_TOO_LARGE]
    elif is_json:
        body = body.strip() or b"{}"
        if not isinstance(_json(body), dict):
            body = b'{"_json":%b}' % body
    elif not fits_header(topic, event):
        # Bytes travel in binary frames only, and those have no room for such names.
        long = [name for name, value in (("topic", topic), ("event", event)) if not fits_header(value)]
        faults |= {name: [f"should be at most {LONGEST_FIELD} byte(s) for a binary payload"] for name in long}
    if faults:
        raise _Refused(422, {"errors": faults})
    _check_rate(rooms.traffic, 1)
    rooms.broadcast(topic, UserBroadcast(event, body, is_json))
    return _answer(202)


def _named(request: HttpRequest) -> tuple[str, str]:
    """The topic and the event of the path. A slash within one is ``%2F``, so the path is taken apart undecoded."""
    scope = getattr(request, "scope", {})
    raw = scope.get("raw_path") or quote(request.path).encode()
    match = _ONE_PATH.search(raw.decode("ascii", "replace").partition("?")[0])
    if match is None:
        raise _Refused(404, {"message": "Not Found"})
    try:
        topic, event = (unquote_to_bytes(part).decode() for part in match.groups())
    except UnicodeDecodeError:
        raise _Refused(400, {"message": "Bad Request: the path is not UTF-8"}) from None
    return TOPIC_PREFIX + topic, event


async def openapi(request: HttpRequest) -> HttpResponse:
    """``GET /api/openapi``: what is described here, for machines."""
    response = _answer(200, document())
    response["Access-Control-Allow-Origin"] = "*"
    return response


urlpatterns = [
    path("api/broadcast", broadcast_batch),
    re_path(r"^api/broadcast/.+/events/.+$", broadcast_one),
    path("api/openapi", openapi),
]
"""Also included below ``realtime/v1/``."""
