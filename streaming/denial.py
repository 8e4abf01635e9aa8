"""How a websocket is refused before it is one: with an HTTP answer."""

from __future__ import annotations

from asgiref.typing import ASGISendCallable, WebSocketScope

_POLICY = 1008


async def deny(
    scope: WebSocketScope, send: ASGISendCallable, status: int, body: bytes = b"", content_type: str | None = None
) -> None:
    """Answer a websocket's handshake with ``status`` and ``body`` in place of the upgrade.

    The ``websocket.connect`` message has to be received before. A server without the extension answers every refusal
    with its own 403: it learns no more than that there will be no websocket.

    Source: https://asgi.readthedocs.io/en/latest/extensions.html#websocket-denial-response
    """
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _POLICY, "reason": None})
        return
    headers = [(b"content-length", str(len(body)).encode())]
    if content_type is not None:
        headers.append((b"content-type", content_type.encode()))
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
