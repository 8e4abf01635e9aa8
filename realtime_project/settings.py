"""The environment is read here, and only here.

Settings of the Supabase Realtime server of 2021 keep their names. A bad value ends the process before anything starts,
naming the variable, the value, and what would be right. Each may stand in a file instead, named by NAME_FILE.

Where Walcast is one app of several in somebody's project, this module is not the project's settings, and it reads no
environment: the same names are keys of the project's setting ``WALCAST``, and `realtime_project.apps` adds the outcome
to the settings there.
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
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import environ
from django.conf import settings as _in_force
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from realtime_project.environment import Environment, of_project
from realtime_project.logs import logging_config
from realtime_project.secret_key import kept_secret_key
from replication.configuration import BROADCAST_EVERYTHING, load
from replication.errors import ReplicationError
from replication.slots import validate_slot_name
from streaming.errors import StreamingError, UnusableSecret
from streaming.jwks import Jwks
from streaming.proxies import TrustedProxies
from streaming.tokens import parse_validators, secret_key

BASE_DIR = Path(__file__).resolve().parent.parent

T = TypeVar("T")
IS_GUEST = _in_force.configured
"""Whether the settings in force are those of somebody's project, and Walcast is one of its apps."""

# Installed as a package, there is no project folder: then it is where the process was started.
_project = BASE_DIR if (BASE_DIR / "manage.py").is_file() else Path.cwd()
DOT_ENV = _project / ".env" if not IS_GUEST and (_project / ".env").is_file() else None
if DOT_ENV:
    environ.Env.read_env(DOT_ENV)
env = Environment(of_project(_in_force) if IS_GUEST else os.environ)
_problems = env.texts.problems


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
    if config["ENGINE"].endswith("sqlite3"):
        # The record, sessions and the audit log are written by several threads and processes: each waits for its turn
        # from the beginning of its transaction on. One that reads first cannot wait, and fails ("database is locked").
        config.setdefault("OPTIONS", {}).update(transaction_mode="IMMEDIATE", timeout=20)
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


def _redis_prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", text):
        raise ValueError
    return text


def _host(text: str) -> str:
    ipaddress.ip_address(text.strip("[]"))
    return text.strip("[]")


# The server

DEBUG = _read("DEBUG", _bool, env.str("MIX_ENV", default="prod") == "dev", "true or false")
LOG_LEVEL = _read("LOG_LEVEL", lambda text: _one_of("debug", "info", "warning", "error")(text).upper(), "INFO", "INFO")
LOG_FORMAT = _read("LOG_FORMAT", _one_of("keyvalue", "json"), "keyvalue", "keyvalue or json")
WALCAST_HOME_IS_SET = env.has("WALCAST_HOME")
WALCAST_HOME = Path(env.str("WALCAST_HOME", default="") or _project / ".walcast").expanduser().resolve()

# The database whose changes are streamed

_DB_NAMES = ("DATABASE_URL", "DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD")
DATABASE_IS_CONFIGURED = any(env.has(name) for name in _DB_NAMES)
QUICK_START = sys.argv[1:2] in (["realtime"], ["doctor"]) and not DATABASE_IS_CONFIGURED and not IS_GUEST
"""`manage.py realtime` brings its own database: what it holds is a demonstration. The doctor looks at that as it is."""

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
SLOT_FAILOVER = _read("SLOT_FAILOVER", _bool, False, "true or false")
if SLOT_FAILOVER and not SLOT_NAME:
    _problems.append(
        "SLOT_FAILOVER is on and SLOT_NAME is empty, so the slot is temporary and no standby could keep a copy of it; "
        "set SLOT_NAME to a name for the slot, or SLOT_FAILOVER=false"
    )
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
RING_MAX_WAL_MB = _read("RING_MAX_WAL_MB", _number(1), 256.0, "a number of megabytes, at least 1")
HEARTBEAT_INTERVAL_S = _read("HEARTBEAT_INTERVAL_S", _number(0), 0.0, "a number of seconds; 0 turns it off")

# Trust

SECURE_CHANNELS = _read("SECURE_CHANNELS", _bool, not (DEBUG or QUICK_START), "true or false")
JWT_SECRET = env.str("JWT_SECRET", default="")
JWT_PREVIOUS_SECRETS: list[str] = _read("JWT_PREVIOUS_SECRETS", _texts, [], 'a JSON array such as ["the old secret"]')
JWT_JWKS = _read("JWT_JWKS", _jwks, "", 'a JSON object {"keys": [...]}, the path of a file with one, or its URL')
JWT_CLAIM_VALIDATORS = _read(
    "JWT_CLAIM_VALIDATORS", parse_validators, parse_validators("{}"), 'a JSON object such as {"iss": "Issuer"}'
)
JWT_LEEWAY_S = _read("JWT_LEEWAY_S", _number(0, 3600), 0.0, "a number of seconds, 0 to 3600")
JWT_DEFAULT_ROLE = env.str("JWT_DEFAULT_ROLE", default="")
EXPIRED_TOKENS_END_CHANNELS = _read("EXPIRED_TOKENS_END_CHANNELS", _bool, True, "true or false")
BYPASS_ROLES: list[str] = _read("BYPASS_ROLES", _names, ["service_role"], "role names with commas between")
IGNORE_ROW_SECURITY = _read("IGNORE_ROW_SECURITY", _bool, False, "true or false")
# These open no socket: they say what is missing, and make it.
_no_sockets = IS_GUEST or sys.argv[1:2] in (
    [[name] for name in ("check", "token", "tail", "doctor", "slot", "migrate", "createsuperuser", "changepassword")]
)
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
TRUSTED_PROXIES = _read(
    "TRUSTED_PROXIES",
    lambda text: TrustedProxies(_names(text)),
    TrustedProxies([]),
    "addresses and networks with commas between, such as 127.0.0.1,10.0.0.0/8, and unix for a Unix socket",
)
IDLE_TIMEOUT_S = _read("IDLE_TIMEOUT_S", _number(0), 60.0, "a number of seconds; 0 turns it off")
NO_CHANNEL_TIMEOUT_S = _read("NO_CHANNEL_TIMEOUT_S", _number(0), 600.0, "a number of seconds; 0 turns it off")
WEBSOCKET_PINGS = _read("WEBSOCKET_PINGS", _bool, True, "true or false")
MAX_CONNECTIONS = _read("MAX_CONNECTIONS", _integer(0, 10_000_000), 0, "how many sockets a process may have; 0: any")
MAX_CONNECTIONS_PER_ADDRESS = _read(
    "MAX_CONNECTIONS_PER_ADDRESS", _integer(0, 10_000_000), 0, "how many of them one address may have; 0: any"
)
MAX_TOPICS = _read("MAX_TOPICS", _integer(1, 1_000_000), 1000, "how many topics one socket may join")
MAX_TOPIC_LENGTH = _read("MAX_TOPIC_LENGTH", _integer(10, 1_000_000), 10_240, "how many characters a topic may have")
SLOW_READER_MAX_MB = _read("SLOW_READER_MAX_MB", _number(1), 32.0, "a number of megabytes, at least 1")
SLOW_READER_MAX_WAIT_S = _read("SLOW_READER_MAX_WAIT_S", _number(1), 10.0, "a number of seconds, at least 1")
DRAIN_S = _read("DRAIN_S", _number(0, 600), 5.0, "a number of seconds, 0 to 600")
MAX_FRAME_BYTES = _read("MAX_FRAME_BYTES", _integer(1000, 1 << 30), 5_000_000, "bytes of one frame, 1000 or more")
MAX_RECORD_BYTES = _read("MAX_RECORD_BYTES", _integer(1000, 1 << 30), 1 << 20, "bytes of a record, 1000 or more")
BROADCAST_STAR_EVENT = _read("BROADCAST_STAR_EVENT", _bool, False, "true or false")

# What clients say to each other, in one process; 0 sets no limit. The names are those of today's server.

TENANT_MAX_CONCURRENT_USERS = _read(
    "TENANT_MAX_CONCURRENT_USERS", _integer(0, 10_000_000), 0, "how many sockets may have joined a channel; 0: any"
)
TENANT_MAX_JOINS_PER_SECOND = _read(
    "TENANT_MAX_JOINS_PER_SECOND", _number(0), 0.0, "a number of joins a second; 0 sets no limit"
)
TENANT_MAX_EVENTS_PER_SECOND = _read(
    "TENANT_MAX_EVENTS_PER_SECOND", _number(0), 0.0, "a number of broadcasts a second; 0 sets no limit"
)
MAX_PRESENCE_EVENTS_PER_SECOND = _read(
    "MAX_PRESENCE_EVENTS_PER_SECOND", _number(0), 0.0, "a number of presence events a second; 0 sets no limit"
)
CLIENT_PRESENCE_MAX_CALLS = _read(
    "CLIENT_PRESENCE_MAX_CALLS", _integer(0, 1_000_000), 300, "how many presence calls a channel may make; 0: any"
)
CLIENT_PRESENCE_WINDOW_MS = _read(
    "CLIENT_PRESENCE_WINDOW_MS", _integer(1, 86_400_000), 30_000, "a number of milliseconds, at least 1"
)
MAX_PAYLOAD_SIZE_IN_KB = _read(
    "MAX_PAYLOAD_SIZE_IN_KB", _integer(0, 1_000_000), 3000, "a number of kilobytes; 0 sets no limit"
)
PRESENCE_ENABLED = _read("PRESENCE_ENABLED", _bool, False, "true or false")

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

WORKERS = _read("WORKERS", _integer(0, 256), 0, "a number of processes, 0 to 256; 0 lets one process do everything")
REUSE_PORT = _read("REUSE_PORT", _bool, False, "true or false")
REDIS_URL: list[str] = _read(
    "REDIS_URL", _redis_urls, [], "redis://host:6379/0 (several, with commas between, are used as shards)"
)
REDIS_PREFIX = _read("REDIS_PREFIX", _redis_prefix, "asgi", "1 to 40 characters out of a-z, A-Z, 0-9, -, _ and .")
TOPIC_GROUPS: list[str] = _read(
    "TOPIC_GROUPS", _names, [], "tables with commas between, such as public.users,billing.* (nothing: off)"
)

# Watching over it

READY_WITHIN_S = _read("READY_WITHIN_S", _number(5), 10.0, "a number of seconds, at least 5")
METRICS_TOKEN = env.str("METRICS_TOKEN", default="")
PROMETHEUS_MULTIPROC_DIR = env.str("PROMETHEUS_MULTIPROC_DIR", default="")

_DJANGO_DATABASE = _read(
    "DJANGO_DATABASE_URL",
    _django_database,
    _django_database(f"sqlite:///{WALCAST_HOME / 'walcast.sqlite3'}"),
    "a database URL such as sqlite:////var/lib/walcast/walcast.sqlite3 or postgres://user:password@host:5432/name",
)

DASHBOARD = _read("DASHBOARD", _bool, True, "true or false")
INSPECTOR = _read("INSPECTOR", _bool, True, "true or false")
_secret_key = env.str("DJANGO_SECRET_KEY", default="")
KEEPS_SECRET_KEY = not _secret_key and not IS_GUEST
if _secret_key and not DEBUG and (len(_secret_key) < 32 or _secret_key.startswith("django-insecure-")):
    _problems.append(
        "DJANGO_SECRET_KEY=(hidden) cannot be used (who guesses it can forge a session of the dashboard); right would "
        "be at least 32 random characters: python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
    )
HTTPS_ONLY = _read("HTTPS_ONLY", _bool, False, "true or false")

if _problems:
    _told = "\n".join(["Walcast cannot start:", *(f"  {problem}" for problem in _problems)])
    if IS_GUEST:
        raise ImproperlyConfigured(_told)
    sys.exit(_told)
if IS_GUEST and (_unknown := env.texts.unknown()):
    raise ImproperlyConfigured(
        f"Walcast cannot start: the setting WALCAST has {', '.join(_unknown)}, which Walcast does not know; see the "
        "names in its README"
    )
_not_ours = ("BASE_DIR", "BROADCAST_EVERYTHING", "DEBUG", "DOT_ENV", "LOG_LEVEL", "LOG_FORMAT", "T")
OURS = tuple(name for name in list(globals()) if name.isupper() and name[0] != "_" and name not in _not_ours)
"""What a project is given that has Walcast among its apps. What follows is for Django, and there the project's own."""

# Django

SECRET_KEY = env.str("DJANGO_SECRET_KEY", default="") or kept_secret_key(WALCAST_HOME) or get_random_secret_key()
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"] if QUICK_START else ["*"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS_ONLY
ROOT_URLCONF = "realtime_project.urls"
ASGI_APPLICATION = "realtime_project.asgi.application"
INSTALLED_APPS = [
    "streaming",  # before the admin, some of whose templates are ours
    "realtime_project.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "channels",
    "realtime_project",
    "replication",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "streaming.views.ContentSecurityPolicy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]
APPEND_SLASH = False
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": _DJANGO_DATABASE,
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def channel_layers(redis_urls: list[str]) -> dict[str, dict[str, Any]]:
    """Django's setting: Redis's pub/sub, in shards if there are several, or memory if there is none."""
    if redis_urls:
        backend = "channels_redis.pubsub.RedisPubSubChannelLayer"
        # RESP2: in RESP3, redis-py 8 writes out every message for its log, read or not, a tenth of a hub's time.
        hosts = [{"address": url, "protocol": 2} for url in redis_urls]
        return {"default": {"BACKEND": backend, "CONFIG": {"hosts": hosts, "prefix": REDIS_PREFIX}}}
    # It must neither drop nor forget: the stock bounds are 100 messages, a minute, a day.
    bounds = {"capacity": 1_000_000, "expiry": 3600, "group_expiry": 10 * 365 * 86400}
    return {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": bounds}}


CHANNEL_LAYERS = channel_layers(REDIS_URL)
# Who may see the dashboard: Django's staff users, in the Django database; five wrong passwords, and a pause
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=10)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_TEMPLATE = "admin/locked.html"
AXES_VERBOSE = False
SESSION_COOKIE_NAME = "walcast_session"
SESSION_COOKIE_PATH = "/admin/"
SESSION_COOKIE_AGE = 12 * 3600
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False
LOGGING = logging_config(LOG_LEVEL, LOG_FORMAT)
SILENCED_SYSTEM_CHECKS = [
    "models.W042",
    # HSTS and the redirect to https are the proxy's; of cookies `realtime_project.checks` speaks, in our words.
    "security.W004", "security.W008", "security.W012", "security.W016",
]  # fmt: skip
GIVEN = frozenset(name for name in env.texts.asked if env.has(name))
"""The variables that somebody has set, whatever to."""

# What `manage.py realtime` fills in while it runs on its own database
DEMO_DSN: str | None = None
DEMO_PSQL: str | None = None
