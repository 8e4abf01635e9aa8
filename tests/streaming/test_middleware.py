"""Who is let in, and how the others are told: before the upgrade."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from asgiref.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
    WebSocketConnectEvent,
)
from django.test import override_settings

from streaming.errors import HandshakeRefused, TokenRefused, UnsupportedVersion
from streaming.jwks import Jwks
from streaming.limits import Limits, Traffic
from streaming.middleware import (
    TokenAuthMiddleware,
    check_handshake,
    check_traffic,
    configured_verifier,
    requested_serializer,
)
from streaming.phoenix import V1, V2
from streaming.tokens import Claims, TokenVerifier

NOW = 1_800_000_000.0
SECRET = "a secret of more than thirty-two bytes"
LEGACY, CURRENT = "/socket/websocket", "/realtime/v1/websocket"
DENIAL: dict[str, dict[object, object]] = {"websocket.http.response": {}}


def token(secret: str = SECRET, algorithm: str = "HS256", kid: str | None = None, **claims: object) -> str:
    head = {"alg": algorithm, "typ": "JWT"} if kid is None else {"alg": algorithm, "kid": kid}
    parts = [head, {"exp": NOW + 60, **claims}]
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    digest = hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def jwks_of(kid: str, secret: str) -> str:
    k = base64.urlsafe_b64encode(secret.encode()).decode().rstrip("=")
    return json.dumps({"keys": [{"kty": "oct", "kid": kid, "k": k}]})


def verifier(**validators: object) -> TokenVerifier:
    return TokenVerifier([SECRET], validators)


def refusal(path: str, query: str, with_verifier: TokenVerifier | None) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        check_handshake(path, [], query.encode(), with_verifier, NOW)
    return caught.value


def test_a_good_token_opens_and_says_who() -> None:
    claims = check_handshake(LEGACY, [], f"apikey={token(role='anon')}".encode(), verifier(), NOW)
    assert claims is not None
    assert (claims.role, claims.expires_at) == ("anon", NOW + 60)


def test_without_a_verifier_tokens_are_not_looked_at() -> None:
    assert check_handshake(LEGACY, [], b"apikey=garbage", None, NOW) is None


@pytest.mark.parametrize(
    ("query", "code", "error"),
    [
        ("", "token_missing", "API key is missing"),
        ("apikey[]=x", "token_missing", "API key is missing"),
        ("apikey=notajwt", "token_malformed", "The token provided is not a valid JWT"),
        (f"apikey={token(exp=NOW)}", "token_expired", "Token has expired"),
        (f"apikey={token('another')}", "signature_mismatch", "Failed to validate JWT signature"),
        (
            f"apikey={token(algorithm='RS256')}",
            "algorithm_not_allowed",
            "Failed to generate JWT signer, check your JWT secret or JWKS configuration",
        ),
        (f"apikey={token(exp='x')}", "exp_invalid", "Error connecting to Realtime"),
        (f"apikey={token(iss='x')}", "claim_mismatch", "Error connecting to Realtime"),
        (f"token=bad&apikey={token(iss='i')}", "token_malformed", "The token provided is not a valid JWT"),
        ("vsn=abc", "token_missing", "API key is missing"),
    ],
)
def test_a_refused_token_is_403_and_empty_for_2021_and_401_with_the_reason_for_today(
    query: str, code: str, error: str
) -> None:
    legacy = refusal(LEGACY, query, verifier(iss="i"))
    assert (legacy.code, legacy.status, legacy.body, legacy.content_type) == (code, 403, b"", None)
    current = refusal(CURRENT, query, verifier(iss="i"))
    assert (current.code, current.status) == (code, 401)
    assert json.loads(current.body) == {"error": error}
    assert current.content_type == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/realtime/v1/websocket", 401),
        ("//realtime//v1//websocket/", 401),
        ("/realtime/v1", 401),
        ("/realtime/v10/websocket", 403),
        ("/socket/realtime/v1", 403),
        ("/socket//websocket", 403),
    ],
)
def test_the_path_says_which_client_is_answered(path: str, status: int) -> None:
    assert refusal(path, "", verifier()).status == status


@pytest.mark.parametrize("path", [LEGACY, CURRENT])
@pytest.mark.parametrize("vsn", ["", "1.0", "abc", "3.0.0"])
@pytest.mark.parametrize("secure", [False, True])
def test_a_bad_vsn_is_403_and_empty_on_both_paths(path: str, vsn: str, secure: bool) -> None:
    refused = refusal(path, f"vsn={vsn}&apikey={token()}", verifier() if secure else None)
    assert (refused.code, refused.status, refused.body) == ("vsn_unsupported", 403, b"")


@pytest.mark.parametrize(
    ("limits", "words"),
    [(Limits(users=2), "Too many connected users"), (Limits(joins_per_s=1), "Too many joins per second")],
)
def test_who_comes_over_the_limits_is_told_429(limits: Limits, words: str) -> None:  # C15, C16
    traffic = Traffic(limits, users=1)
    traffic.joins.add(59, NOW)
    check_traffic(CURRENT, traffic, NOW)
    traffic.users = 2
    traffic.joins.add(1, NOW)
    for path, body in ((CURRENT, json.dumps({"error": words}).replace(": ", ":")), (LEGACY, "")):
        with pytest.raises(HandshakeRefused) as caught:
            check_traffic(path, traffic, NOW)
        assert (caught.value.status, caught.value.body.decode()) == (429, body)


def test_a_key_that_is_missing_is_named() -> None:  # C10
    source = Jwks(jwks_of("other", SECRET))
    keys = TokenVerifier([], {}, source=source)
    refused = refusal(CURRENT, f"apikey={token(kid='k1')}", keys)
    words = 'Failed to generate JWT signer for key ID (kid) "k1", check your JWT secret or JWKS configuration'
    assert (refused.status, json.loads(refused.body)) == (401, {"error": words})


def test_the_url_chooses_the_serializer() -> None:
    assert requested_serializer(b"apikey=x") is V1
    assert requested_serializer(b"vsn=1.0.0&vsn=2.0.0") is V2
    for query in (b"vsn=", b"vsn[]=1.0.0", b"vsn=1.0.0-rc.1"):
        with pytest.raises(UnsupportedVersion):
            requested_serializer(query)


class Handshake:
    """One websocket at the door, as an ASGI server brings it."""

    def __init__(self, query: str, path: str = LEGACY, *, kind: str = "websocket", **more: object) -> None:
        self.scope = cast(
            "Scope",
            {
                "type": kind,
                "path": path,
                "headers": [],
                "query_string": query.encode(),
                "client": ("127.0.0.1", 50_000),
                **more,
            },
        )
        self.received = 0
        self.sent: list[ASGISendEvent] = []
        self.entered: list[dict[str, Any]] = []

    async def knock(self, with_verifier: TokenVerifier | None) -> None:
        await TokenAuthMiddleware(self.app, with_verifier, clock=lambda: NOW)(self.scope, self.receive, self.send)

    async def app(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self.entered.append(dict(scope))

    async def receive(self) -> ASGIReceiveEvent:
        self.received += 1
        connect: WebSocketConnectEvent = {"type": "websocket.connect"}
        return connect

    async def send(self, event: ASGISendEvent) -> None:
        assert self.received == 1, "the connect message comes first"
        self.sent.append(event)


async def test_claims_are_in_the_scope_of_who_enters() -> None:
    handshake = Handshake(f"apikey={token(sub='u1')}")
    await handshake.knock(verifier())
    [scope] = handshake.entered
    assert isinstance(scope["claims"], Claims)
    assert scope["claims"].subject == "u1"
    assert (scope["path"], handshake.received, handshake.sent) == (LEGACY, 0, [])
    assert "claims" not in handshake.scope


async def test_in_insecure_mode_claims_are_none() -> None:
    handshake = Handshake("apikey=whatever")
    await handshake.knock(None)
    assert [scope["claims"] for scope in handshake.entered] == [None]


async def test_http_passes_untouched() -> None:
    handshake = Handshake("", kind="http")
    await handshake.knock(verifier())
    assert handshake.entered == [dict(handshake.scope)]


async def test_a_refusal_is_an_http_answer_where_the_server_can_give_one() -> None:
    handshake = Handshake("", CURRENT, extensions=DENIAL)
    await handshake.knock(verifier())
    body = b'{"error":"API key is missing"}'
    assert handshake.entered == []
    assert handshake.sent == [
        {
            "type": "websocket.http.response.start",
            "status": 401,
            "headers": [
                (b"content-length", str(len(body)).encode()),
                (b"content-type", b"application/json; charset=utf-8"),
            ],
        },
        {"type": "websocket.http.response.body", "body": body, "more_body": False},
    ]


async def test_an_empty_refusal_has_no_content_type() -> None:
    handshake = Handshake("", extensions=DENIAL)
    await handshake.knock(verifier())
    assert handshake.sent == [
        {"type": "websocket.http.response.start", "status": 403, "headers": [(b"content-length", b"0")]},
        {"type": "websocket.http.response.body", "body": b"", "more_body": False},
    ]


@pytest.mark.parametrize("extensions", [None, {}, {"tls": {}}])
async def test_elsewhere_it_is_a_close_before_the_upgrade(extensions: object) -> None:
    handshake = Handshake("", CURRENT, extensions=extensions)
    await handshake.knock(verifier())
    assert [event["type"] for event in handshake.sent] == ["websocket.close"]
    assert handshake.entered == []


async def test_a_refusal_is_logged_once_and_without_the_token(caplog: pytest.LogCaptureFixture) -> None:
    text = token("another")
    with caplog.at_level(logging.DEBUG):
        await Handshake(f"apikey={text}").knock(verifier())
    [record] = [record for record in caplog.records if record.name == "streaming.middleware"]
    assert (record.levelname, record.getMessage()) == ("INFO", "handshake refused")
    assert record.__dict__["code"] == "signature_mismatch"
    assert not any(text in str(value) or SECRET in str(value) for value in record.__dict__.values())


async def test_a_key_that_has_to_be_fetched_is_fetched_before_the_answer(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(jwks_of("first", "a first secret that is long enough"))
    source = Jwks(str(file))
    file.write_text(jwks_of("second", "a second secret that is long enough"))
    handshake = Handshake(f"apikey={token('a second secret that is long enough', kid='second')}")
    await handshake.knock(TokenVerifier([], {}, source=source))
    assert [scope["claims"].expires_at for scope in handshake.entered] == [NOW + 60]


def test_the_settings_say_what_checks_tokens() -> None:
    jwks = jwks_of("k", "a secret of the set that is long enough")
    with override_settings(
        SECURE_CHANNELS=True,
        JWT_SECRET=SECRET,
        JWT_PREVIOUS_SECRETS=["the one before"],
        JWT_JWKS=jwks,
        JWT_CLAIM_VALIDATORS={},
        JWT_LEEWAY_S=2.0,
    ):
        made = configured_verifier()
    assert made is not None
    for secret in (SECRET, "the one before", "a secret of the set that is long enough"):
        claims = made.verify(token(secret), NOW)
        assert claims.ends_at == NOW + 62
    with pytest.raises(TokenRefused, match="kid"):
        made.verify(token("another", kid="another"), NOW)


def test_where_channels_are_open_nothing_checks_tokens() -> None:
    with override_settings(SECURE_CHANNELS=False, JWT_SECRET=""):
        assert configured_verifier() is None
