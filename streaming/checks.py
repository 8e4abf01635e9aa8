"""What ``manage.py check`` says before any socket opens."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from streaming.errors import UnusableSecret
from streaming.tokens import secret_key

SHORTEST_SECRET_BYTES = 32
"""A shared secret should be at least as long as what HS256 makes of it (RFC 7518, section 3.2)."""

_CURE = "Make one with: manage.py token secret"
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@register(Tags.security)
def check_secret(**_: Any) -> list[CheckMessage]:
    """Secured channels need a secret that nobody guesses, or keys that nobody forges."""
    if not settings.SECURE_CHANNELS:
        return []
    jwks: str = settings.JWT_JWKS
    secrets = [("JWT_SECRET", settings.JWT_SECRET)] if settings.JWT_SECRET else []
    secrets += [("JWT_PREVIOUS_SECRETS", secret) for secret in settings.JWT_PREVIOUS_SECRETS]
    messages = [message for name, secret in secrets if (message := _secret(name, secret)) is not None]
    if not settings.JWT_SECRET and not jwks:
        messages.append(
            Error(
                "SECURE_CHANNELS is on, JWT_SECRET and JWT_JWKS are empty, so no token can be checked and no socket "
                "opened.",
                hint=f"Set JWT_SECRET. {_CURE}. Or set SECURE_CHANNELS=false, and everybody may listen.",
                id="streaming.E001",
            )
        )
    if jwks.startswith("http:") and urlsplit(jwks).hostname not in _THIS_MACHINE:
        messages.append(
            Warning(
                "JWT_JWKS is fetched over plain http: who can change what comes back can make tokens.",
                hint="Use its https URL.",
                id="streaming.W002",
            )
        )
    return messages


def _secret(name: str, secret: str) -> CheckMessage | None:
    try:
        secret_key(secret)
    except UnusableSecret as error:
        return Error(f"{name}: {error}", hint=f"{name} is for shared secrets. {_CURE}.", id="streaming.E002")
    if (length := len(secret.encode())) < SHORTEST_SECRET_BYTES:
        return Warning(
            f"{name} has {length} bytes; one that is shorter than {SHORTEST_SECRET_BYTES} can be found by trying, and "
            "then anybody makes tokens.",
            hint=f"{_CURE}.",
            id="streaming.W001",
        )
    return None
