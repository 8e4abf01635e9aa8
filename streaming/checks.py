"""What ``manage.py check`` says before any socket opens; what is merely unwise, only ``check --deploy``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from replication.hosts import is_here
from streaming.errors import UnusableSecret
from streaming.tokens import secret_key

SHORTEST_SECRET_BYTES = 32
"""A shared secret should be at least as long as what HS256 makes of it (RFC 7518, section 3.2)."""

_CURE = "Make one with: manage.py token secret"
# Out of the READMEs and compose files that people start from, Supabase's among them
_KNOWN = frozenset(
    (
        "change-me",
        "changeme",
        "secret",
        "jwt_secret",
        "super-secret-jwt-token-with-at-least-32-characters-long",
        "your-super-secret-jwt-token-with-at-least-32-characters-long",
        "your-super-secret-and-long-postgres-password",
    )
)


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
    if jwks.startswith("http:") and not ((host := urlsplit(jwks).hostname) and is_here(host)):
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


@register(Tags.security)
def check_known_secrets(**_: Any) -> list[CheckMessage]:
    """Secrets out of examples are known to everybody."""
    if not settings.SECURE_CHANNELS:
        return []
    secrets = [("JWT_SECRET", settings.JWT_SECRET)]
    secrets += [("JWT_PREVIOUS_SECRETS", secret) for secret in settings.JWT_PREVIOUS_SECRETS]
    return [
        Error(
            f"{name} is a secret out of an example, so everybody can make tokens.",
            hint=f"{_CURE}.",
            id="streaming.E003",
        )
        for name, secret in secrets
        if secret.lower() in _KNOWN
    ]


@register(Tags.security, deploy=True)
def check_trust(**_: Any) -> list[CheckMessage]:
    """Who may listen to what, and for how long."""
    return [*_openness(), *_lifetimes(), *_rights()]


def _openness() -> Iterator[CheckMessage]:
    if settings.SECURE_CHANNELS:
        return
    yield Warning(
        "SECURE_CHANNELS is off: everybody who reaches the server hears every published table.",
        hint="Set SECURE_CHANNELS=true and JWT_SECRET (or JWT_JWKS).",
        id="streaming.W003",
    )
    names = ("JWT_SECRET", "JWT_PREVIOUS_SECRETS", "JWT_JWKS", "JWT_CLAIM_VALIDATORS")
    if idle := [name for name in names if name in settings.GIVEN]:
        yield Warning(
            f"{', '.join(idle)} {'is' if len(idle) == 1 else 'are'} set while SECURE_CHANNELS is off, so sockets open "
            "without a token all the same.",
            hint="Set SECURE_CHANNELS=true; DEBUG=true and MIX_ENV=dev switch it off by themselves.",
            id="streaming.W004",
        )


def _lifetimes() -> Iterator[CheckMessage]:
    if not settings.SECURE_CHANNELS:
        return
    if settings.JWT_SECRET and settings.JWT_SECRET in settings.JWT_PREVIOUS_SECRETS:
        yield Warning(
            "JWT_PREVIOUS_SECRETS has JWT_SECRET in it, so nothing has been replaced.",
            hint="Put the new secret into JWT_SECRET, and the old one into JWT_PREVIOUS_SECRETS.",
            id="streaming.W005",
        )
    if settings.JWT_LEEWAY_S > 300:
        yield Warning(
            f"JWT_LEEWAY_S takes tokens for {settings.JWT_LEEWAY_S:g} s after they have expired.",
            hint="Clocks differ by seconds; a minute is plenty.",
            id="streaming.W006",
        )
    if not settings.EXPIRED_TOKENS_END_CHANNELS:
        yield Warning(
            "EXPIRED_TOKENS_END_CHANNELS is off: whoever had a token once listens until the socket closes.",
            hint="Set it to true; clients stay by sending a new token in time.",
            id="streaming.W007",
        )


def _rights() -> Iterator[CheckMessage]:
    if settings.IGNORE_ROW_SECURITY:
        yield Warning(
            "IGNORE_ROW_SECURITY is on: tables with row security are broadcast whole, to every role.",
            hint="Set it to false, unless the policies are about writing only.",
            id="streaming.W008",
        )
    if loose := sorted({"anon", "authenticated", settings.JWT_DEFAULT_ROLE} & set(settings.BYPASS_ROLES)):
        yield Warning(
            f"BYPASS_ROLES has {', '.join(loose)}, which ordinary tokens have: row security then holds for few.",
            hint="Name only roles of services there.",
            id="streaming.W009",
        )
    if not settings.IDLE_TIMEOUT_S:
        yield Warning(
            "IDLE_TIMEOUT_S is 0: sockets of clients that have vanished are kept for ever.",
            hint="Set it to 60; clients that live answer pings by themselves.",
            id="streaming.W010",
        )
    if settings.METRICS_TOKEN and len(settings.METRICS_TOKEN) < 16:
        yield Warning(
            "METRICS_TOKEN is so short that it can be found by trying.",
            hint="""Make one with: python3 -c "import secrets; print(secrets.token_urlsafe(32))".""",
            id="streaming.W011",
        )
