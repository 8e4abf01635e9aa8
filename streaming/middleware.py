"""At the door: a websocket shows its token, or stays outside."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final, cast

import orjson
from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from django.conf import settings

from streaming.denial import deny
from streaming.errors import HandshakeRefused, TokenRefused, UnsupportedVersion
from streaming.jwks import Jwks
from streaming.limits import Traffic
from streaming.phoenix import Serializer, serializer_for
from streaming.reasons import signer_error
from streaming.tally import tally
from streaming.tokens import Claims, Headers, TokenVerifier, query_parameters, token_from

logger = logging.getLogger(__name__)

# Where today's clients connect; they show the error in a refusal's body. Elsewhere it is empty, as in 2021.
_CURRENT_PATH: Final = re.compile(r"/*realtime/+v1(?:/|$)")

_OTHER_ERROR = "Error connecting to Realtime"
_ERRORS: Final = {
    "token_missing": "API key is missing",
    "token_malformed": "The token provided is not a valid JWT",
    "signature_mismatch": "Failed to validate JWT signature",
    "token_expired": "Token has expired",
}


def configured_verifier(*, even_if_open: bool = False) -> TokenVerifier | None:
    """What checks tokens, as the settings say; `None` where channels are not secured, unless it is wanted all the same.

    Raises `UnusableSecret` if there is nothing to check them with.
    """
    if not settings.SECURE_CHANNELS and not even_if_open:
        return None
    secrets = [secret for secret in (settings.JWT_SECRET, *settings.JWT_PREVIOUS_SECRETS) if secret]
    source = _jwks(settings.JWT_JWKS) if settings.JWT_JWKS else None
    return TokenVerifier(
        secrets,
        settings.JWT_CLAIM_VALIDATORS,
        source=source,
        leeway_s=settings.JWT_LEEWAY_S,
        default_role=settings.JWT_DEFAULT_ROLE or None,
    )


@lru_cache(maxsize=1)
def _jwks(source: str) -> Jwks:
    """The process's own: who asks later finds the keys that have been fetched."""
    return Jwks(source)


def requested_serializer(query_string: bytes) -> Serializer:
    """The serializer that a websocket's URL asks for. Raises `UnsupportedVersion`."""
    return serializer_for(query_parameters(query_string).get("vsn"))


def check_handshake(
    path: str, headers: Headers, query_string: bytes, verifier: TokenVerifier | None, now: float
) -> Claims | None:
    """Decide whether a websocket may be opened on ``path`` at ``now`` (seconds since 1970): first its token, then vsn.

    Returns what the token says; `None` without a verifier, when tokens are not looked at. Raises `HandshakeRefused`,
    which holds the HTTP answer.
    """
    claims = None
    if verifier is not None:
        try:
            if (token := token_from(headers, query_string)) is None:
                raise TokenRefused("token_missing")
            claims = verifier.verify(token, now)
        except TokenRefused as refused:
            raise _unauthorized(path, refused, token) from None
    try:
        requested_serializer(query_string)
    except UnsupportedVersion:
        raise HandshakeRefused("vsn_unsupported", 403) from None
    return claims


def _unauthorized(path: str, refused: TokenRefused, token: str | None) -> HandshakeRefused:
    if not _CURRENT_PATH.match(path):
        return HandshakeRefused(refused.code, 403)
    if refused.code in ("algorithm_not_allowed", "key_unknown"):
        return _told(path, refused.code, 401, signer_error(refused, token))
    return _told(path, refused.code, 401, _ERRORS.get(refused.code, _OTHER_ERROR))


def _told(path: str, code: str, status: int, words: str) -> HandshakeRefused:
    """A refusal that says why where today's clients read it."""
    if not _CURRENT_PATH.match(path):
        return HandshakeRefused(code, status)
    return HandshakeRefused(code, status, orjson.dumps({"error": words}), "application/json; charset=utf-8")


def check_traffic(path: str, traffic: Traffic, now: float) -> None:
    """Whether the process can take one more websocket at ``now``. Raises `HandshakeRefused`."""
    if traffic.too_many_users():
        raise _told(path, "too_many_users", 429, "Too many connected users")
    if traffic.too_many_joins(now):
        raise _told(path, "too_many_joins", 429, "Too many joins per second")


class TokenAuthMiddleware:
    """Puts what the token says into ``scope["claims"]`` of a websocket, or refuses it before the upgrade.

    Without a ``verifier`` channels are not secured: everybody enters, and ``scope["claims"]`` is `None`. Other scopes
    pass untouched. So is who comes while ``traffic`` is at its limits. ``clock`` gives seconds since 1970.
    """

    def __init__(
        self,
        app: ASGI3Application,
        verifier: TokenVerifier | None,
        traffic: Traffic | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._verifier, self._traffic = verifier, traffic
        self._clock = clock

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if self._verifier is not None and (token := token_from(scope["headers"], scope["query_string"])) is not None:
            await self._verifier.prepare(token)
        try:
            claims = check_handshake(path, scope["headers"], scope["query_string"], self._verifier, self._clock())
            if self._traffic is not None:
                check_traffic(path, self._traffic, self._clock())
        except HandshakeRefused as refused:
            client = scope.get("client")
            tally.refused("handshake", refused.code)
            logger.info(
                "handshake refused", extra={"code": refused.code, "path": path, "client": client[0] if client else None}
            )
            await receive()  # websocket.connect: a server sends it first and waits for the answer
            await deny(scope, send, refused.status, refused.body, refused.content_type)
            return
        await self._app(cast("Scope", {**scope, "claims": claims}), receive, send)
