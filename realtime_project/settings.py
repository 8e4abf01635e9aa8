"""The environment is read here, and only here.

Settings of the Supabase Realtime server of 2021 keep their names. A bad value ends the process before anything starts,
naming the variable, the value, and what would be right.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import environ
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_project.logs import logging_config
from replication.configuration import BROADCAST_EVERYTHING, load
from replication.errors import ReplicationError
from replication.slots import validate_slot_name
from streaming.errors import StreamingError, UnusableSecret
from streaming.jwks import Jwks
from streaming.tokens import parse_validators, secret_key

BASE_DIR = Path(__file__).resolve().parent.parent

T = TypeVar("T")
env = environ.Env()
_problems: list[str] = []

if (_dot_env := BASE_DIR / ".env").is_file():
    environ.Env.read_env(_dot_env)


def _read(name: str, convert: Callable[[str], T], default: T, expected: str) -> T:
    """The variable's value; an absent or empty one means the default, a bad one is told of below."""
    text = env.str(name, default="").strip()
    if not text:
        return default
    try:
        return convert(text)
    except (ValueError, TypeError, ReplicationError, StreamingError, ProgrammingError, ImproperlyConfigured) as error:
        shown = (
            "(hidden)" if any(word in name for word in ("SECRET", "PASSWORD", "URL", "JWKS", "HEADERS")) else repr(text)
        )
        # Our own errors never repeat what is hidden.
        is_telling = isinstance(error, StreamingError) or (shown != "(hidden)" and type(error) is not ValueError)
        detail = f" ({error})" if is_telling else ""
        _problems.append(f"{name}={shown} cannot be used{detail}; right would be {expected}")
        return default


def _bool(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise ValueError


def _number(lowest: float, highest: float = float("inf")) -> Callable[[str], float]:
    def convert(text: str) -> float:
        number = float(text)
        if not math.isfinite(number) or not lowest <= number <= highest:
            raise ValueError
        return number

    return convert


def _integer(lowest: int, highest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        number = int(text)
        if not lowest <= number <= highest:
            raise ValueError
        return number

    return convert


def _one_of(*choices: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    return convert


def _names(text: str) -> list[str]:
    """A JSON array of strings, or names with commas between."""
    names = json.loads(text) if text.startswith("[") else [name.strip() for name in text.split(",")]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError
    return list(names)


def _texts(text: str) -> list[str]:
    texts = json.loads(text)
    if not isinstance(texts, list) or not all(isinstance(item, str) and item for item in texts):
        raise ValueError
    return texts


def _fault(secret: str) -> str | None:
    try:
        secret_key(secret)
    except UnusableSecret as error:
        return str(error)
    return None


def _jwks(text: str) -> str:
    Jwks(text)
    return text


def _tables(text: str) -> list[tuple[str, str]]:
    tables = []
    for name in _names(text):
        schema, dot, table = name.partition(".")
        tables.append((schema, table) if dot else ("public", schema))
    return tables


def _django_database(text: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unknown engine is told of below
        config: dict[str, Any] = environ.Env.db_url_config(text)
    if not config.get("ENGINE"):
        raise ValueError
    return config


def _conninfo(text: str) -> str:
    conninfo_to_dict(text)
    return text


def _time_zone(text: str) -> str:
    try:
        return ZoneInfo(text).key
    except ZoneInfoNotFoundError as error:
        raise ValueError from error


def _headers(text: str) -> dict[str, str]:
    headers = {}
    for item in text.split(":"):
        name, equals, value = item.partition("=")
        if not equals or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[ -~]*", value):
            raise ValueError
        headers[name.lower()] = value
    return headers


def _redis_urls(text: str) -> list[str]:
    urls = _names(text)
    if not all(url.startswith(("redis://", "rediss://", "unix://")) for url in urls):
        raise ValueError
    return urls


def _host(text: str) -> str:
    ipaddress.ip_address(text.strip("[]"))
    return text.strip("[]")


# The server

DEBUG = _read("DEBUG", _bool, env.str("MIX_ENV", default="prod") == "dev", "true or false")
LOG_LEVEL = _read("LOG_LEVEL", lambda text: _one_of("debug", "info", "warning", "error")(text).upper(), "INFO", "INFO")
WALCAST_HOME_IS_SET = bool(os.environ.get("WALCAST_HOME"))
# Installed as a package, there is no project folder: then the home is where the process was started.
_project = BASE_DIR if (BASE_DIR / "manage.py").is_file() else Path.cwd()
WALCAST_HOME = Path(env.str("WALCAST_HOME", default="") or _project / ".walcast").expanduser().resolve()

# The database whose changes are streamed

_DB_NAMES = ("DATABASE_URL", "DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD")
DATABASE_IS_CONFIGURED = any(os.environ.get(name) for name in _DB_NAMES)
QUICK_START = sys.argv[1:2] == ["realtime"] and not DATABASE_IS_CONFIGURED
"""`manage.py realtime` brings its own database: what it holds is a demonstration."""

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ssl = _read("DB_SSL", _one_of("true", "false", *_SSL_MODES), "true", f"true, false or one of {', '.join(_SSL_MODES)}")
_url = _read("DATABASE_URL", _conninfo, "", "a PostgreSQL URL such as postgresql://user:password@host:5432/name")
_parts = {
    "host": env.str("DB_HOST", default="") or "localhost",
    "port": _read("DB_PORT", _integer(1, 65535), 5432, "a port number, 1 to 65535"),
    "dbname": env.str("DB_NAME", default="") or "postgres",
    "user": env.str("DB_USER", default="") or "postgres",
    "password": env.str("DB_PASSWORD", default="") or "postgres",
    # true asks for TLS and goes on without it if the server has none, as the original does
    "sslmode": {"true": "prefer", "false": "disable"}.get(_ssl, _ssl),
    "sslrootcert": env.str("DB_SSL_ROOT_CERT", default=""),
}
STREAM_DSN = _url or make_conninfo("", **{key: value for key, value in _parts.items() if value})
DB_IP_VERSION = _read("DB_IP_VERSION", _one_of("ipv4", "ipv6"), "", "ipv4 or ipv6 (or nothing: the system decides)")
PUBLICATIONS = _read("PUBLICATIONS", _names, ["supabase_realtime"], '["supabase_realtime"] (a JSON array of names)')
SLOT_NAME = _read("SLOT_NAME", validate_slot_name, "", "1 to 63 characters out of a-z, 0-9 and _")
MAX_REPLICATION_LAG_MB = _read("MAX_REPLICATION_LAG_MB", _number(0), 0.0, "a number of megabytes; 0 sets no limit")
SESSION_TIMEZONE = _read("SESSION_TIMEZONE", _time_zone, "UTC", "a time zone such as UTC or Europe/Rome")
HIDDEN_TABLES = _read(
    "HIDDEN_TABLES",
    _tables,
    [("public", name) for name in ("auth_user", "django_session", "django_admin_log")],
    "table names with commas between, such as public.auth_user,public.django_session",
)
RING_MAX_MB = _read("RING_MAX_MB", _number(1), 64.0, "a number of megabytes, at least 1")
RING_MAX_AGE_S = _read("RING_MAX_AGE_S", _number(0), 120.0, "a number of seconds")

# Trust

SECURE_CHANNELS = _read("SECURE_CHANNELS", _bool, not (DEBUG or QUICK_START), "true or false")
# Not through `env`: it takes a value that begins with a dollar sign for the name of another variable.
JWT_SECRET = os.environ.get("JWT_SECRET", "")
JWT_PREVIOUS_SECRETS: list[str] = _read("JWT_PREVIOUS_SECRETS", _texts, [], 'a JSON array such as ["the old secret"]')
JWT_JWKS = _read("JWT_JWKS", _jwks, "", 'a JSON object {"keys": [...]}, the path of a file with one, or its URL')
JWT_CLAIM_VALIDATORS = _read(
    "JWT_CLAIM_VALIDATORS", parse_validators, parse_validators("{}"), 'a JSON object such as {"iss": "Issuer"}'
)
JWT_LEEWAY_S = _read("JWT_LEEWAY_S", _number(0, 3600), 0.0, "a number of seconds, 0 to 3600")
EXPIRED_TOKENS_END_CHANNELS = _read("EXPIRED_TOKENS_END_CHANNELS", _bool, True, "true or false")
# These open no socket: they say what is missing, and make it.
_no_sockets = sys.argv[1:2] in (["check"], ["token"])
if SECURE_CHANNELS and not (JWT_SECRET or JWT_JWKS or _no_sockets):
    _problems.append(
        "JWT_SECRET is empty while channels are secure (SECURE_CHANNELS, the default): JWT secret is missing, so no "
        "token could be checked; set it to the secret your tokens are signed with, or JWT_JWKS to their public keys, "
        "or make a secret with: manage.py token secret"
    )
if SECURE_CHANNELS and not _no_sockets:
    _problems += [problem for secret in (JWT_SECRET, *JWT_PREVIOUS_SECRETS) if secret and (problem := _fault(secret))]

# The sockets

HOST = _read("HOST", _host, "127.0.0.1" if QUICK_START else "::", "an IP address to listen on, such as 127.0.0.1 or ::")
PORT = _read("PORT", _integer(0, 65535), 4000, "a port number, 0 to 65535")
IDLE_TIMEOUT_S = _read("IDLE_TIMEOUT_S", _number(0), 60.0, "a number of seconds; 0 turns it off")
WEBSOCKET_PINGS = _read("WEBSOCKET_PINGS", _bool, True, "true or false")
MAX_TOPICS = _read("MAX_TOPICS", _integer(1, 1_000_000), 1000, "how many topics one socket may join")
MAX_TOPIC_LENGTH = _read("MAX_TOPIC_LENGTH", _integer(10, 1_000_000), 10_240, "how many characters a topic may have")
SLOW_READER_MAX_MB = _read("SLOW_READER_MAX_MB", _number(1), 32.0, "a number of megabytes, at least 1")
SLOW_READER_MAX_WAIT_S = _read("SLOW_READER_MAX_WAIT_S", _number(1), 10.0, "a number of seconds, at least 1")
BROADCAST_STAR_EVENT = _read("BROADCAST_STAR_EVENT", _bool, False, "true or false")

# What is broadcast, and who else is told

CONFIGURATION = _read(
    "CONFIGURATION_FILE",
    load,
    BROADCAST_EVERYTHING,
    'the path of a JSON file such as {"realtime": [{"relation": "*:*", "events": ["INSERT", "UPDATE", "DELETE"]}]}',
)
WEBHOOK_HEADERS: dict[str, str] = _read(
    "WEBHOOK_HEADERS", _headers, {}, "names and values, as in authorization=secret:x-from=walcast"
)
WEBHOOK_TIMEOUT_S = _read("WEBHOOK_TIMEOUT_S", _number(0.1, 300), 5.0, "a number of seconds, 0.1 to 300")
WEBHOOK_ATTEMPTS = _read("WEBHOOK_ATTEMPTS", _integer(1, 100), 10, "how often a post is tried, 1 to 100")
WEBHOOK_QUEUE_MAX_MB = _read("WEBHOOK_QUEUE_MAX_MB", _number(0.1), 16.0, "a number of megabytes, at least 0.1")
WEBHOOK_MAX_ROWS = _read("WEBHOOK_MAX_ROWS", _integer(1, 1_000_000), 1000, "how many changes a post may hold")

# More than one process

REDIS_URL: list[str] = _read(
    "REDIS_URL", _redis_urls, [], "redis://host:6379/0 (several, with commas between, are used as shards)"
)
TOPIC_GROUPS: list[str] = _read(
    "TOPIC_GROUPS", _names, [], "tables with commas between, such as public.users,billing.* (nothing: off)"
)

_DJANGO_DATABASE = _read(
    "DJANGO_DATABASE_URL",
    _django_database,
    _django_database(f"sqlite:///{WALCAST_HOME / 'walcast.sqlite3'}"),
    "a database URL such as sqlite:////var/lib/walcast/walcast.sqlite3 or postgres://user:password@host:5432/name",
)

if _problems:
    sys.exit("\n".join(["Walcast cannot start:", *(f"  {problem}" for problem in _problems)]))

# Django

SECRET_KEY = env.str("DJANGO_SECRET_KEY", default="") or get_random_secret_key()
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"] if QUICK_START else ["*"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
ROOT_URLCONF = "realtime_project.urls"
ASGI_APPLICATION = "realtime_project.asgi.application"
INSTALLED_APPS = [
    "django.contrib.staticfiles",
    "channels",
    "realtime_project",
    "replication",
    "streaming",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "streaming.views.ContentSecurityPolicy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
APPEND_SLASH = False
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]
DATABASES = {
    "default": _DJANGO_DATABASE,
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
CHANNEL_LAYERS = (
    {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": REDIS_URL},
        }
    }
    if REDIS_URL
    else {
        "default": {
            "BACKEND": "channels.layers.InMemoryChannelLayer",
            # It must neither drop nor forget: the stock bounds are 100 messages, a minute, a day.
            "CONFIG": {"capacity": 1_000_000, "expiry": 3600, "group_expiry": 10 * 365 * 86400},
        }
    }
)
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False
LOGGING = logging_config(LOG_LEVEL)
SILENCED_SYSTEM_CHECKS = ["models.W042"]

# What `manage.py realtime` fills in while it runs on its own database
DEMO_DSN: str | None = None
DEMO_PSQL: str | None = None
