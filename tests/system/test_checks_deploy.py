"""``manage.py check --deploy`` has nothing to say of sound settings, and something of each that is not."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.core.checks import CheckMessage
from django.test import override_settings

from replication.configuration import BROADCAST_EVERYTHING, Broadcast, Webhook
from streaming.proxies import TrustedProxies
from tests.system.server import PROJECT
from tests.system.test_deployment_proxies import example

SECRET = secrets.token_urlsafe(40)
DSN = "host=db.example.org port=5432 dbname=app user=walcast password=long sslmode=verify-full"
FOREIGN_LAYER = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}

SOUND: dict[str, Any] = {
    "DEBUG": False,
    "GIVEN": frozenset({"DB_HOST", "JWT_SECRET", "DJANGO_SECRET_KEY", "DJANGO_DATABASE_URL"}),
    "IS_GUEST": False,
    "DATABASE_IS_CONFIGURED": True,
    "DOT_ENV": None,
    "LOG_LEVEL": "INFO",
    "STREAM_DSN": DSN,
    "DB_IP_VERSION": "",
    "SLOT_NAME": "walcast",
    "MAX_REPLICATION_LAG_MB": 1000.0,
    "HIDDEN_TABLES": [("public", name) for name in ("auth_user", "django_session", "django_admin_log")],
    "CONFIGURATION": BROADCAST_EVERYTHING,
    "WEBHOOK_HEADERS": {},
    "SECURE_CHANNELS": True,
    "JWT_SECRET": SECRET,
    "JWT_PREVIOUS_SECRETS": [],
    "JWT_JWKS": "",
    "JWT_LEEWAY_S": 0.0,
    "EXPIRED_TOKENS_END_CHANNELS": True,
    "IGNORE_ROW_SECURITY": False,
    "BYPASS_ROLES": ["service_role"],
    "JWT_DEFAULT_ROLE": "",
    "IDLE_TIMEOUT_S": 60.0,
    "METRICS_TOKEN": "",
    "REDIS_URL": ["redis://127.0.0.1:6379/0"],
    "TRUSTED_PROXIES": TrustedProxies(["127.0.0.1"]),
    "HTTPS_ONLY": True,
    "SESSION_COOKIE_SECURE": True,
    "CSRF_COOKIE_SECURE": True,
    "ALLOWED_HOSTS": ["realtime.example.org"],
    "CSRF_TRUSTED_ORIGINS": [],
    "DASHBOARD": True,
    "INSPECTOR": True,
    "SECRET_KEY": secrets.token_urlsafe(50),
}


def given(*names: str) -> frozenset[str]:
    return frozenset(SOUND["GIVEN"] | set(names))


def endpoint(url: str) -> Any:
    return replace(BROADCAST_EVERYTHING, webhooks=(Webhook(endpoint=url),))


UNSOUND: list[tuple[str, Mapping[str, Any]]] = [
    ("security.W018", {"DEBUG": True}),
    ("security.W020", {"ALLOWED_HOSTS": []}),
    ("realtime_project.E001", {"IS_GUEST": True, "DATABASE_IS_CONFIGURED": False}),
    ("realtime_project.E002", {"IS_GUEST": True, "CHANNEL_LAYERS": FOREIGN_LAYER}),
    ("realtime_project.W001", {"GIVEN": given("DATABASE_URL", "DB_SSL")}),
    (
        "realtime_project.W002",
        {"GIVEN": given("DB_SSL_ROOT_CERT"), "STREAM_DSN": DSN.replace("verify-full", "require")},
    ),
    ("realtime_project.W003", {"GIVEN": given("DEBUG", "MIX_ENV")}),
    ("realtime_project.W004", {"TRUSTED_PROXIES": TrustedProxies(["0.0.0.0/0"])}),
    ("realtime_project.W005", {"TRUSTED_PROXIES": TrustedProxies([])}),
    ("realtime_project.W006", {"CSRF_TRUSTED_ORIGINS": ["http://realtime.example.org"]}),
    ("realtime_project.W006", {"CSRF_TRUSTED_ORIGINS": ["https://*.example.org"]}),
    ("realtime_project.W007", {"ALLOWED_HOSTS": ["*"]}),
    ("realtime_project.W008", {"HTTPS_ONLY": False}),
    ("realtime_project.W009", {"LOG_LEVEL": "DEBUG"}),
    ("realtime_project.W010", {"REDIS_URL": ["redis://redis.example.org:6379/0"]}),
    ("realtime_project.I001", {"SECURE_CHANNELS": False, "GIVEN": frozenset()}),
    ("realtime_project.I002", {"GIVEN": frozenset({"DJANGO_SECRET_KEY"})}),
    ("realtime_project.I003", {"GIVEN": frozenset({"DJANGO_DATABASE_URL"})}),
    ("replication.E001", {"STREAM_DSN": DSN.replace("db.example.org", "aws-0-eu-west-1.pooler.supabase.com")}),
    ("replication.E002", {"STREAM_DSN": DSN.replace("db.example.org", "192.0.2.1"), "DB_IP_VERSION": "ipv6"}),
    ("replication.W001", {"STREAM_DSN": DSN.replace("verify-full", "prefer")}),
    ("replication.W002", {"STREAM_DSN": DSN.replace("verify-full", "require")}),
    ("replication.W003", {"STREAM_DSN": DSN.replace("user=walcast", "user=postgres")}),
    ("replication.W004", {"STREAM_DSN": DSN.replace("password=long", "password=postgres")}),
    ("replication.W005", {"STREAM_DSN": DSN.replace("5432", "6432")}),
    ("replication.W006", {"SLOT_NAME": ""}),
    ("replication.I001", {"MAX_REPLICATION_LAG_MB": 0.0}),
    ("replication.W007", {"HIDDEN_TABLES": [("public", "accounts")]}),
    ("replication.W008", {"CONFIGURATION": replace(BROADCAST_EVERYTHING, realtime=(Broadcast("", frozenset()),))}),
    ("replication.W009", {"CONFIGURATION": endpoint("http://example.org/hook")}),
    ("replication.W010", {"WEBHOOK_HEADERS": {"authorization": "x"}}),
    ("streaming.E001", {"JWT_SECRET": ""}),
    ("streaming.E002", {"JWT_SECRET": "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"}),
    ("streaming.E003", {"JWT_SECRET": "super-secret-jwt-token-with-at-least-32-characters-long"}),
    ("streaming.W001", {"JWT_SECRET": "short"}),
    ("streaming.W002", {"JWT_JWKS": "http://issuer.example/jwks.json"}),
    ("streaming.W003", {"SECURE_CHANNELS": False, "GIVEN": frozenset()}),
    ("streaming.W004", {"SECURE_CHANNELS": False}),
    ("streaming.W005", {"JWT_PREVIOUS_SECRETS": [SECRET]}),
    ("streaming.W006", {"JWT_LEEWAY_S": 3600.0}),
    ("streaming.W007", {"EXPIRED_TOKENS_END_CHANNELS": False}),
    ("streaming.W008", {"IGNORE_ROW_SECURITY": True}),
    ("streaming.W009", {"BYPASS_ROLES": ["service_role", "authenticated"]}),
    ("streaming.W010", {"IDLE_TIMEOUT_S": 0.0}),
    ("streaming.W011", {"METRICS_TOKEN": "short"}),
]


def said(**changes: Any) -> list[CheckMessage]:
    """What the checks say of the sound settings with these changes, but for what our own settings silence."""
    with override_settings(**SOUND | changes):
        messages = checks.run_checks(include_deployment_checks=True)
        return [message for message in messages if not message.is_silenced()]


def test_nothing_is_said_of_sound_settings() -> None:
    assert said() == []


@pytest.mark.parametrize(("wanted", "changes"), UNSOUND, ids=[f"{id}-{'-'.join(c)}" for id, c in UNSOUND])
def test_what_is_unsound_is_told_of_with_a_cure(wanted: str, changes: Mapping[str, Any]) -> None:
    messages = said(**changes)

    found = next((message for message in messages if message.id == wanted), None)
    assert found is not None, messages
    assert found.hint or wanted.startswith("security.")


def test_every_message_of_ours_is_tried() -> None:
    sources = [(PROJECT / app / "checks.py").read_text() for app in ("realtime_project", "replication", "streaming")]
    ids = {id for source in sources for id in re.findall(r'id="([\w.]+)"', source)}

    assert ids - {id for id, _ in UNSOUND} == {"realtime_project.W011"}


def test_a_file_of_settings_that_everybody_can_read_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("JWT_SECRET=x")
    path.chmod(0o644)
    assert [message.id for message in said(DOT_ENV=path)] == ["realtime_project.W011"]

    path.chmod(0o600)
    assert said(DOT_ENV=path) == []


def test_no_secret_is_shown() -> None:
    shown = str(
        said(JWT_SECRET="short-and-secret", STREAM_DSN=DSN.replace("long", "hidden-password"), METRICS_TOKEN="m")
    )

    assert "short-and-secret" not in shown
    assert "hidden-password" not in shown


def test_the_example_of_an_environment_is_sound(tmp_path: Path) -> None:
    for name in ("db_password", "jwt_secret", "django_secret_key"):
        (tmp_path / name).write_text(secrets.token_urlsafe(40))
    env = example("walcast.env.example") | {"WALCAST_HOME": str(tmp_path)}
    env = {name: value.replace("/etc/walcast/secrets", str(tmp_path)) for name, value in env.items()}

    done = subprocess.run(
        [sys.executable, PROJECT / "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        env={"PATH": "/usr/bin:/bin"} | env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
