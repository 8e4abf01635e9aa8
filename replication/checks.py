"""What ``manage.py check`` says of the database whose changes are streamed, and of who else is told.

The errors are told by every check; what is merely unwise, by ``check --deploy``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register
from psycopg.conninfo import conninfo_to_dict

from replication.hosts import address_of, is_here
from replication.providers import pooler_of, pooler_port

_CHECKED = ("verify-ca", "verify-full")
_SENSITIVE = {("public", "auth_user"), ("public", "django_session"), ("public", "django_admin_log")}


@register(Tags.security)
def check_connection(**_: Any) -> list[CheckMessage]:
    """What would keep replication from working at all."""
    return list(_connection())


@register(Tags.security, deploy=True)
def check_database(**_: Any) -> list[CheckMessage]:
    """How the connection is protected, what may be lost, and what gets out that should not."""
    return [*_protection(), *_endurance(), *_outsiders()]


def _connection() -> Iterator[CheckMessage]:
    parts = conninfo_to_dict(settings.STREAM_DSN)
    host = str(parts.get("host") or "")
    if pooler := pooler_of(host):
        yield Error(
            f"The database's host {host} is a pooler, and replication does not pass through one.",
            hint=f"It is {pooler}.",
            id="replication.E001",
        )
    address, version = address_of(host), settings.DB_IP_VERSION
    if address is not None and version and version != f"ipv{address.version}":
        yield Error(
            f"DB_IP_VERSION is {version}, and the database's host {host} is an address of IPv{address.version}, so "
            "nothing could be connected to.",
            hint="Take DB_IP_VERSION away; it is for host names.",
            id="replication.E002",
        )


def _protection() -> Iterator[CheckMessage]:
    parts = conninfo_to_dict(settings.STREAM_DSN)
    host, user = str(parts.get("host") or ""), str(parts.get("user") or "")
    mode = str(parts.get("sslmode") or "prefer")
    if not is_here(host) and mode not in (*_CHECKED, "require"):
        yield Warning(
            f"The connection to {host} may be unencrypted (sslmode {mode}): who listens on the way reads every change, "
            "and can learn the password.",
            hint="Set DB_SSL=verify-full, or sslmode in DATABASE_URL.",
            id="replication.W001",
        )
    elif not is_here(host) and mode not in _CHECKED:
        yield Warning(
            f"The connection to {host} is encrypted, but nobody checks who answers there.",
            hint="Set DB_SSL=verify-full and DB_SSL_ROOT_CERT, or the like in DATABASE_URL.",
            id="replication.W002",
        )
    if user == "postgres":
        yield Warning(
            "Walcast connects as postgres, as a rule a superuser: what it needs is to log in and to replicate.",
            hint="CREATE ROLE walcast LOGIN REPLICATION PASSWORD '...'; and set DB_USER.",
            id="replication.W003",
        )
    if parts.get("password") == "postgres":
        yield Warning(
            "The database's password is the default, postgres, which everybody tries first.",
            hint="Set another one: ALTER ROLE ... PASSWORD '...'; and DB_PASSWORD, or DB_PASSWORD_FILE.",
            id="replication.W004",
        )
    if why := pooler_port(int(parts.get("port") or 5432)):
        yield Warning(
            f"Port {parts['port']} is {why}: replication does not pass through a pooler.",
            hint="If PostgreSQL itself listens there, silence this check.",
            id="replication.W005",
        )


def _endurance() -> Iterator[CheckMessage]:
    if not settings.SLOT_NAME:
        yield Warning(
            "SLOT_NAME is empty, so the slot is a temporary one: what is committed while Walcast is stopped is lost.",
            hint="Set SLOT_NAME=walcast.",
            id="replication.W006",
        )
    elif not settings.MAX_REPLICATION_LAG_MB:
        yield Info(
            "MAX_REPLICATION_LAG_MB sets no limit: a slot that nobody reads keeps WAL until the disk is full.",
            hint="Set it, or max_slot_wal_keep_size in PostgreSQL (13 or newer).",
            id="replication.I001",
        )


def _outsiders() -> Iterator[CheckMessage]:
    if shown := sorted(f"{schema}.{table}" for schema, table in _SENSITIVE - set(settings.HIDDEN_TABLES)):
        yield Warning(
            f"HIDDEN_TABLES lets {', '.join(shown)} be broadcast: passwords and sessions, if they are published and "
            "hold those of a Django project.",
            hint="HIDDEN_TABLES replaces the default: name these tables in it as well.",
            id="replication.W007",
        )
    configuration = settings.CONFIGURATION
    for place, reason in configuration.oddities():
        yield Warning(
            f"Part of CONFIGURATION_FILE has no effect: {place}: {reason}.",
            hint="Correct it, or take it out.",
            id="replication.W008",
        )
    for endpoint in sorted({hook.endpoint for hook in configuration.webhooks}):
        url = urlsplit(endpoint)
        if url.scheme == "http" and not is_here(url.hostname or ""):
            yield Warning(
                f"Webhooks go to {url.hostname} over plain http: rows and WEBHOOK_HEADERS can be read on the way.",
                hint="Use its https URL.",
                id="replication.W009",
            )
    if settings.WEBHOOK_HEADERS and not configuration.webhooks:
        yield Warning(
            "WEBHOOK_HEADERS is set, and CONFIGURATION_FILE names no webhooks, so nothing is sent with them.",
            hint="Name the webhooks, or take WEBHOOK_HEADERS away.",
            id="replication.W010",
        )
