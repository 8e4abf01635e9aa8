"""What ``manage.py check`` says before any socket opens."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from streaming.errors import UnusableSecret
from streaming.tokens import TokenVerifier

SHORTEST_SECRET_BYTES = 32
"""A shared secret should be at least as long as what HS256 makes of it (RFC 7518, section 3.2)."""

_CURE = 'Make one with: python -c "import secrets; print(secrets.token_urlsafe(48))"'


@register(Tags.security)
def check_secret(**_: Any) -> list[CheckMessage]:
    """Secured channels need a secret that nobody guesses."""
    if not settings.SECURE_CHANNELS:
        return []
    secret: str = settings.JWT_SECRET
    if not secret:
        return [
            Error(
                "SECURE_CHANNELS is on and JWT_SECRET is empty, so no token can be checked and no socket opened.",
                hint=f"Set JWT_SECRET. {_CURE}. Or set SECURE_CHANNELS=false, and everybody may listen.",
                id="streaming.E001",
            )
        ]
    try:
        TokenVerifier([secret], settings.JWT_CLAIM_VALIDATORS)
    except UnusableSecret as error:
        return [Error(str(error), hint=f"JWT_SECRET is a shared secret. {_CURE}.", id="streaming.E002")]
    if (length := len(secret.encode())) < SHORTEST_SECRET_BYTES:
        return [
            Warning(
                f"JWT_SECRET has {length} bytes; one that is shorter than {SHORTEST_SECRET_BYTES} can be found by "
                "trying, and then anybody makes tokens.",
                hint=f"{_CURE}.",
                id="streaming.W001",
            )
        ]
    return []
