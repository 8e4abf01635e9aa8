"""What ``manage.py check`` says of the settings that belong to no part: contradictions, proxies, pages, Redis.

The errors are told by every check; what is merely unwise, by ``check --deploy``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register

from replication.hosts import is_here

_PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"
_DB_PARTS = ("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSL", "DB_SSL_ROOT_CERT")


@register(Tags.security)
def check_project(**_: Any) -> list[CheckMessage]:
    """What would keep changes from arriving, where Walcast is an app of somebody's project."""
    return list(_project()) if settings.IS_GUEST else []


@register(Tags.security, deploy=True)
def check_deployment(**_: Any) -> list[CheckMessage]:
    """Contradictions, and what should be different when strangers can reach the server."""
    messages = [*_contradictions(), *_proxies(), *_redis()]
    if not settings.IS_GUEST:
        messages += [*_pages(), *_record(), *_dot_env()]
    return messages


def _project() -> Iterator[CheckMessage]:
    if not settings.DATABASE_IS_CONFIGURED:
        yield Error(
            "The default database is no PostgreSQL, and WALCAST names none, so there is nothing to stream.",
            hint='WALCAST = {"DATABASE_URL": "postgresql://walcast:...@host/name", ...}',
            id="realtime_project.E001",
        )
    backend = settings.CHANNEL_LAYERS.get("default", {}).get("BACKEND")
    if settings.REDIS_URL and backend != _PUBSUB:
        yield Error(
            f"The default channel layer is {backend}: it drops changes, or brings none to other processes.",
            hint=f'CHANNEL_LAYERS = {{"default": {{"BACKEND": "{_PUBSUB}", "CONFIG": {{"hosts": [...]}}}}}}, or leave '
            "CHANNEL_LAYERS to Walcast.",
            id="realtime_project.E002",
        )


def _contradictions() -> Iterator[CheckMessage]:
    given: frozenset[str] = settings.GIVEN
    if "DATABASE_URL" in given and (idle := [name for name in _DB_PARTS if name in given]):
        yield Warning(
            f"DATABASE_URL is set, so {', '.join(idle)} mean nothing.",
            hint="Say it in DATABASE_URL (sslmode=verify-full, for one), and take the others away.",
            id="realtime_project.W001",
        )
    elif "DB_SSL_ROOT_CERT" in given and "verify-" not in settings.STREAM_DSN:
        yield Warning(
            "DB_SSL_ROOT_CERT is set, and DB_SSL does not ask to verify anything, so nobody looks at it.",
            hint="Set DB_SSL=verify-full.",
            id="realtime_project.W002",
        )
    if {"DEBUG", "MIX_ENV"} <= given:
        yield Warning(
            "DEBUG and MIX_ENV are both set; DEBUG is what counts.",
            hint="Take MIX_ENV away.",
            id="realtime_project.W003",
        )
    if settings.INSPECTOR and not settings.DEBUG and not settings.SECURE_CHANNELS:
        yield Info(
            "INSPECTOR is on while everybody may listen: strangers browse the tables with it.",
            hint="Set INSPECTOR=false, or SECURE_CHANNELS=true.",
            id="realtime_project.I001",
        )


def _proxies() -> Iterator[CheckMessage]:
    if settings.TRUSTED_PROXIES.everybody:
        yield Warning(
            "TRUSTED_PROXIES names everybody, so whoever reaches the server directly chooses the address that it has.",
            hint="Name the proxies' own addresses or network.",
            id="realtime_project.W004",
        )
    if settings.SESSION_COOKIE_SECURE and not settings.TRUSTED_PROXIES and not settings.IS_GUEST:
        yield Warning(
            "HTTPS_ONLY is on, so a proxy ends TLS, and TRUSTED_PROXIES names none: every client has the proxy's "
            "address, limits for each address hit all at once, and forms of the dashboard may be refused.",
            hint="Set TRUSTED_PROXIES=127.0.0.1, or wherever the proxy is.",
            id="realtime_project.W005",
        )
    for origin in settings.CSRF_TRUSTED_ORIGINS:
        if "*" in origin or (settings.SESSION_COOKIE_SECURE and origin.startswith("http:")):
            yield Warning(
                f"CSRF_TRUSTED_ORIGINS takes forms of {origin}, which others than you may serve.",
                hint="Name the origins one by one, with https.",
                id="realtime_project.W006",
            )


def _pages() -> Iterator[CheckMessage]:
    if "*" in settings.ALLOWED_HOSTS:
        yield Warning(
            "ALLOWED_HOSTS takes every name, so a page can be made to believe that it has another one.",
            hint="Set ALLOWED_HOSTS=realtime.example.org; if the proxy lets no other name through, silence this check.",
            id="realtime_project.W007",
        )
    if settings.DASHBOARD and not settings.HTTPS_ONLY:
        yield Warning(
            "HTTPS_ONLY is off, so the dashboard's session may travel over plain http, where it can be taken.",
            hint="Put TLS in front and set HTTPS_ONLY=true, or set DASHBOARD=false.",
            id="realtime_project.W008",
        )
    if settings.LOG_LEVEL == "DEBUG":
        yield Warning(
            "LOG_LEVEL is debug: the log shows what travels, rows among it.",
            hint="Set LOG_LEVEL=info.",
            id="realtime_project.W009",
        )


def _redis() -> Iterator[CheckMessage]:
    for text in settings.REDIS_URL:
        url = urlsplit(text)
        if url.scheme == "redis" and not is_here(url.hostname or "") and not url.password:
            yield Warning(
                f"Redis at {url.hostname} asks for no password: who reaches it reads all changes and can send some.",
                hint="Let nobody else into its network, give it a password, or use rediss://.",
                id="realtime_project.W010",
            )


def _record() -> Iterator[CheckMessage]:
    if not settings.REDIS_URL:
        return
    if "DJANGO_DATABASE_URL" not in settings.GIVEN:
        yield Info(
            "DJANGO_DATABASE_URL is not set, so the record of what was published is in SQLite: a replicator on another "
            "machine does not know it, and would publish some changes twice.",
            hint="Set it to a PostgreSQL, if there are several machines.",
            id="realtime_project.I002",
        )
    if settings.DASHBOARD and "DJANGO_SECRET_KEY" not in settings.GIVEN:
        yield Info(
            "DJANGO_SECRET_KEY is not set, so each machine has one of its own, and a session of the dashboard holds on "
            "one of them.",
            hint="Set the same one everywhere, if there are several machines.",
            id="realtime_project.I003",
        )


def _dot_env() -> Iterator[CheckMessage]:
    path: Path | None = settings.DOT_ENV
    if path is not None and path.stat().st_mode & 0o007:
        yield Warning(
            f"Every user of this machine can read or change {path}, and secrets may be in it.",
            hint=f"chmod 600 {path}",
            id="realtime_project.W011",
        )
