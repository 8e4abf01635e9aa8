"""The pages around the socket: the landing page, the answer to every other path, and the policy they carry.

Status codes and bodies are those of the 2021 server, whose `/` answers browsers only and whose every other path is a
404 that speaks HTML or JSON.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse
from django.http.request import split_domain_port
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.views.decorators.csrf import csrf_exempt

from streaming.errors import HandshakeRefused
from streaming.middleware import check_handshake, configured_verifier
from streaming.tokens import token_from

BROWSER_HEADERS: Final = {"X-Frame-Options": "SAMEORIGIN", "X-Content-Type-Options": "nosniff"}
SOCKET_PATH: Final = "/socket/websocket"


@csrf_exempt
def landing(request: HttpRequest) -> HttpResponse:
    """`/`: the live page, for GET and HEAD; 406 for who wants no HTML, 404 for other methods."""
    if request.method not in ("GET", "HEAD"):
        return not_found(request)
    if not request.accepts("text/html"):
        return _words(request, HTTPStatus.NOT_ACCEPTABLE)
    context = {
        "demo": settings.DEMO_DSN is not None,
        "psql": settings.DEMO_PSQL if _is_at_this_machine(request) else None,
        "socket_path": SOCKET_PATH,
        "inspector": settings.INSPECTOR,
        "dashboard": settings.DASHBOARD,
    }
    return HttpResponse(render_to_string("landing.html", context, request), headers=BROWSER_HEADERS)


@csrf_exempt
def inspector(request: HttpRequest) -> HttpResponse:
    """`/inspector`: a page that joins topics of this server, for GET and HEAD; 404 if `INSPECTOR` is off.

    It has no authority of its own: what it may hear is decided by the token that its visitor brings to the websocket.
    """
    if request.method not in ("GET", "HEAD") or not settings.INSPECTOR:
        return not_found(request)
    context = {
        "demo": settings.DEMO_DSN is not None,
        "secured": settings.SECURE_CHANNELS,
        "inspector": settings.INSPECTOR,
        "dashboard": settings.DASHBOARD,
    }
    return HttpResponse(render_to_string("inspector.html", context, request), headers=BROWSER_HEADERS)


def _is_at_this_machine(request: HttpRequest) -> bool:
    """Tell whether the visitor sits at the server: only they may read the database's password off the page.

    A proxy or tunnel on this machine shows in the host name, and so does a foreign name that resolves to 127.0.0.1.
    """
    is_near = request.META.get("REMOTE_ADDR") in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    return is_near and split_domain_port(request.get_host())[0] in ("127.0.0.1", "[::1]", "localhost")


def to_dashboard(request: HttpRequest) -> HttpResponse:
    """`/admin`, as people type it."""
    return HttpResponse(status=HTTPStatus.FOUND, headers={"Location": "/admin/"})


@csrf_exempt
def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """404 for any method: Django's `handler404`, and the view of every path that nothing else answers."""
    return _words(request, HTTPStatus.NOT_FOUND)


def _words(request: HttpRequest, status: HTTPStatus) -> HttpResponse:
    """The status's own words: a JSON string for who prefers JSON to HTML, plain text called HTML for the rest."""
    if request.get_preferred_type(["text/html", "application/json"]) == "application/json":
        body, content_type = f'"{status.phrase}"', "application/json; charset=utf-8"
    else:
        body, content_type = status.phrase, "text/html; charset=utf-8"
    return HttpResponse(body, content_type=content_type, status=status, headers=BROWSER_HEADERS)


class ContentSecurityPolicy:
    """Middleware: everything a page of ours loads or talks to is this server; nothing is inline.

    The websocket schemes are spelled out with the host, because ``'self'`` covers them only in newer browsers.
    A view's own policy is left as it is. Source: https://www.w3.org/TR/CSP3/
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        response = self.get_response(request)
        if isinstance(response, HttpResponseBase):
            return _with_policy(request, response)
        return self._when_ready(request, response)

    async def _when_ready(self, request: HttpRequest, response: Awaitable[HttpResponseBase]) -> HttpResponseBase:
        return _with_policy(request, await response)


def _with_policy(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    try:
        host = request.get_host()
    except DisallowedHost:
        sockets = ""
    else:
        sockets = f" ws://{host} wss://{host}"
    response.headers.setdefault(
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src 'self'{sockets}; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    )
    return response


@csrf_exempt
async def socket_without_upgrade(request: HttpRequest) -> HttpResponse:
    """A websocket's path, asked for without an upgrade: 426 for who would be let in, the handshake's refusal otherwise.

    Source: https://www.rfc-editor.org/rfc/rfc9110#status.426
    """
    if request.method != "GET":
        return HttpResponse(status=HTTPStatus.BAD_REQUEST, headers=BROWSER_HEADERS)
    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
    query = request.META.get("QUERY_STRING", "").encode()
    verifier = configured_verifier()
    if verifier is not None and (token := token_from(headers, query)) is not None:
        await verifier.prepare(token)
    try:
        check_handshake(request.path, headers, query, verifier, time.time())
    except HandshakeRefused as refused:
        return HttpResponse(refused.body, status=refused.status, content_type=refused.content_type or "text/html")
    return HttpResponse(status=HTTPStatus.UPGRADE_REQUIRED, headers={"Connection": "upgrade", "Upgrade": "websocket"})
