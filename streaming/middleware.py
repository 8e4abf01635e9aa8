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
from streaming.phoenix import Serializer, serializer_for
from streaming.tokens import Claims, Headers, TokenVerifier, query_parameters, token_from

logger = logging.getLogger(__name__)

# Where today's clients connect; they show the error in a refusal's body. Elsewhere it is empty, as in 2021.
_CURRENT_PATH: Final = re.compile(r"/*realtime/+v1(?:/|$)")

_SIGNER_ERROR = "Failed to generate JWT signer, check your JWT secret or JWKS configuration"
_OTHER_ERROR = "Error connecting to Realtime"
_ERRORS: Final = {
    "token_missing": "API key is missing",
    "token_malformed": "The token provided is not a valid JWT",
    "algorithm_not_allowed": _SIGNER_ERROR,
    "key_unknown": _SIGNER_ERROR,
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
    return TokenVerifier(secrets, settings.JWT_CLAIM_VALIDATORS, source=source, leeway_s=settings.JWT_LEEWAY_S)


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
            raise _unauthorized(path, refused) from None
    try:
        requested_serializer(query_string)
    except UnsupportedVersion:
        raise HandshakeRefused("vsn_unsupported", 403) from None
    return claims


def _unauthorized(path: str, refused: TokenRefused) -> HandshakeRefused:
    if not _CURRENT_PATH.match(path):
        return HandshakeRefused(refused.code, 403)
    body = orjson.dumps({"error": _ERRORS.get(refused.code, _OTHER_ERROR)})
    return HandshakeRefused(refused.code, 401, body, "application/json; charset=utf-8")


class TokenAuthMiddleware:
    """Puts what the token says into ``scope["claims"]`` of a websocket, or refuses it before the upgrade.

    Without a ``verifier`` channels are not secured: everybody enters, and ``scope["claims"]`` is `None`. Other scopes
    pass untouched. ``clock`` gives seconds since 1970.
    """

    def __init__(
        self, app: ASGI3Application, verifier: TokenVerifier | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._app = app
        self._verifier = verifier
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
        except HandshakeRefused as refused:
            client = scope.get("client")
            logger.info(
                "handshake refused", extra={"code": refused.code, "path": path, "client": client[0] if client else None}
            )
            await receive()  # websocket.connect: a server sends it first and waits for the answer
            await deny(scope, send, refused.status, refused.body, refused.content_type)
            return
        await self._app(cast("Scope", {**scope, "claims": claims}), receive, send)
