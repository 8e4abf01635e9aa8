"""Texts by name: the process's environment, or what a Django project says of Walcast in its own settings.

Any of them may be in a file, as Docker and Kubernetes hand secrets over: ``JWT_SECRET_FILE`` names the file in which
``JWT_SECRET`` stands. What is read here is text; what it means is for `realtime_project.settings`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import make_conninfo

_FILE = "_FILE"

# What libpq calls by the same name as Django's OPTIONS.
_LIBPQ_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "service", "passfile", "connect_timeout")


class Texts(Mapping[str, str]):
    """A mapping of texts, in which the text of ``NAME`` may also be in the file that ``NAME_FILE`` names.

    Line ends at the end of a file do not belong to its text. ``problems`` collects what cannot be read, in words for
    the operator; such a name counts as absent. ``asked`` are the names that somebody wanted to know.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self.problems: list[str] = []
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        file = self._texts.get(name + _FILE)
        if not file:
            return self._texts[name]
        if self._texts.get(name):
            self._tell(f"{name} and {name}{_FILE} are both set, and only one of them can be meant; take one away")
            return self._texts[name]
        try:
            return Path(file).expanduser().read_text().rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            self._tell(f"{name}{_FILE}={file!r} cannot be read ({reason}); right would be the path of a file that can")
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def unknown(self) -> list[str]:
        """The names that are there, and that nobody has asked for."""
        known = self.asked | {name + _FILE for name in self.asked}
        return sorted(name for name in self if name not in known)

    def _tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


class Environment(environ.Env):  # type: ignore[misc]  # it has no types
    """django-environ on `Texts`, in which a dollar sign is a dollar sign: passwords begin with one."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        super().__init__()
        self.texts = Texts(texts)
        self.ENVIRON = _Escaped(self.texts)
        self.escape_proxy = True

    def has(self, name: str) -> bool:
        """Tell whether there is a text for it that is not empty."""
        return bool(self.texts.get(name))


class _Escaped(Mapping[str, str]):
    """The texts as django-environ has to see them, which takes ``$NAME`` for another variable's value."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def __getitem__(self, name: str) -> str:
        return self._texts[name].replace("$", r"\$")

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def texts_of(values: Mapping[str, Any]) -> dict[str, str]:
    """A project's own values (``True``, ``4000``, ``["public.users"]``) as the environment would spell them."""
    return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return str(value)


def libpq_dsn(database: Mapping[str, Any]) -> str | None:
    """The connection string of one of Django's ``DATABASES``; `None` if that is not a PostgreSQL."""
    engine = str(database.get("ENGINE", ""))
    if not engine.endswith(("postgresql", "postgis", "postgresql_psycopg2")):
        return None
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    parts = {ours: str(database[theirs]) for theirs, ours in names.items() if database.get(theirs)}
    options = database.get("OPTIONS") or {}
    parts |= {name: str(options[name]) for name in _LIBPQ_OPTIONS if options.get(name)}
    return make_conninfo("", **parts)


def of_project(settings: Any) -> dict[str, str]:
    """What the settings of a project say to Walcast, when it is one of several apps there.

    That is the dictionary ``WALCAST``, with the names of our environment variables; and where it is silent, ``DEBUG``
    and the default database speak. The environment is the project's own affair. Raises `ImproperlyConfigured`.
    """
    given = getattr(settings, "WALCAST", {})
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ImproperlyConfigured(
            "the setting WALCAST is not a dictionary of names and values, so Walcast cannot start; "
            'right would be, for example, WALCAST = {"SLOT_NAME": "walcast"}'
        )
    texts = texts_of(given)
    texts.setdefault("DEBUG", _text(settings.DEBUG))
    if base := getattr(settings, "BASE_DIR", None):
        texts.setdefault("WALCAST_HOME", str(Path(base) / ".walcast"))
    names = ("DATABASE_URL", "DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD")
    if not any(texts.get(name) or texts.get(name + _FILE) for name in names):
        texts["DATABASE_URL"] = libpq_dsn(settings.DATABASES.get("default", {})) or ""
    return texts
