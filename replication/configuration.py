"""What is broadcast at which level of topics, and who else is told: the CONFIGURATION_FILE, read and decided.

    {"realtime": [{"relation": "public:users", "events": ["INSERT", "DELETE"]}],
     "webhooks": [{"event": "INSERT", "relation": "public:users", "config": {"endpoint": "https://example.org/hook"}}]}

The form is that of the Supabase Realtime server of 2021.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from replication.changes import EVENTS, Relation
from replication.errors import ReplicationError

_EVENTS = frozenset(EVENTS.values())


class InvalidConfiguration(ReplicationError, ValueError):
    """The configuration file cannot be followed; ``place`` is where in it, such as ``realtime[0].events``."""

    def __init__(self, place: str, problem: str) -> None:
        self.place = place
        super().__init__(f"{place} {problem}")


@dataclass(frozen=True, slots=True)
class Levels:
    """At which levels the changes of one table and event are broadcast; the levels do not depend on one another."""

    schema: bool
    """``realtime:S``"""
    everything: bool
    """``realtime:*``"""
    table: bool
    """``realtime:S:T``"""
    columns: frozenset[str] | None
    """The columns with topics ``realtime:S:T:C=eq.V``; `None` means all of them."""

    def has_column(self, name: str) -> bool:
        """Whether the column has topics."""
        return self.columns is None or name in self.columns


@dataclass(frozen=True, slots=True)
class Broadcast:
    """An item of ``realtime``: these events are broadcast at the level that ``relation`` names.

    ``relation`` is ``*``, a schema, ``S:T`` or ``S:T:C``, each part a name or ``*``.
    """

    relation: str
    events: frozenset[str]


@dataclass(frozen=True, slots=True)
class Webhook:
    """An item of ``webhooks``: whole transactions with a matching change are posted to ``endpoint``.

    ``event`` is an event or ``*``; ``relation`` is ``*`` or empty (all), a schema, or ``S:T``.
    """

    endpoint: str
    event: str = "*"
    relation: str = "*"

    def matches(self, event: str, relation: Relation) -> bool:
        """Whether a change is meant."""
        if self.event not in ("*", event):
            return False
        match self.relation.split(":"):
            case ["*"] | [""]:
                return True
            case [schema]:
                return schema == relation.schema
            case [schema, table]:
                return (schema, table) == (relation.schema, relation.name)
            case _:
                return False


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the file says, or what holds without one."""

    realtime: tuple[Broadcast, ...] = ()
    webhooks: tuple[Webhook, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Configuration:
        """Read the file's text. Without ``realtime`` nothing is broadcast. Raises `InvalidConfiguration`."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidConfiguration("the file", f"is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise InvalidConfiguration("the file", 'has to be a JSON object with "realtime" or "webhooks" or both')
        return cls(
            tuple(_broadcast(place, item) for place, item in _items(document, "realtime")),
            tuple(_webhook(place, item) for place, item in _items(document, "webhooks")),
        )

    def levels(self, event: str, relation: Relation) -> Levels:
        """Where changes of this event and table are broadcast."""
        named = {item.relation for item in self.realtime if event in item.events}
        schemas, tables = ("*", relation.schema), ("*", relation.name)
        both = [f"{schema}:{table}" for schema in schemas for table in tables]
        return Levels(
            schema=not named.isdisjoint(schemas),
            everything="*" in named,
            table=not named.isdisjoint(both),
            columns=None
            if "*:*:*" in named
            else frozenset(
                column.name
                for column in relation.columns
                if not named.isdisjoint(f"{name}:{part}" for name in both for part in ("*", column.name))
            ),
        )

    def oddities(self) -> Iterator[tuple[str, str]]:
        """What is allowed and does not do what it seems to say: place and reason."""
        for number, item in enumerate(self.realtime):
            if unknown := sorted(item.events - _EVENTS):
                known = ", ".join(sorted(_EVENTS))
                yield f"realtime[{number}].events", f"{', '.join(unknown)} is no event: there are {known}, each by name"
            if not item.relation or item.relation.count(":") > 2:
                yield f"realtime[{number}].relation", "names no level: right would be *, S, S:T or S:T:C"
        for number, hook in enumerate(self.webhooks):
            if hook.event not in _EVENTS | {"*"}:
                yield (
                    f"webhooks[{number}].event",
                    f"{hook.event} is no event: there are {', '.join(sorted(_EVENTS))}, *",
                )
            if hook.relation.count(":") > 1:
                yield f"webhooks[{number}].relation", "is malformed and matches nothing: right would be *, S or S:T"
            elif ":" in hook.relation and "*" in hook.relation.split(":"):
                yield f"webhooks[{number}].relation", "matches only a name that is *: for a whole schema, write S alone"


BROADCAST_EVERYTHING = Configuration(tuple(Broadcast(relation, _EVENTS) for relation in ("*", "*:*", "*:*:*")))
"""What holds without a file."""


def load(path: str) -> Configuration:
    """Read the file. Raises `InvalidConfiguration`."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfiguration(
            "the file", f"cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    return Configuration.parse(text)


def _items(document: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    items = document.get(key, [])
    if not isinstance(items, list):
        raise InvalidConfiguration(key, "has to be a list of objects")
    for number, item in enumerate(items):
        place = f"{key}[{number}]"
        if not isinstance(item, dict):
            raise InvalidConfiguration(place, "has to be an object")
        yield place, item


def _broadcast(place: str, item: dict[str, Any]) -> Broadcast:
    events = item.get("events")
    if not isinstance(events, list) or not all(isinstance(event, str) for event in events):
        raise InvalidConfiguration(f"{place}.events", 'has to be a list of events such as ["INSERT", "UPDATE"]')
    return Broadcast(_text(place, item, "relation"), frozenset(events))


def _webhook(place: str, item: dict[str, Any]) -> Webhook:
    config = item.get("config")
    endpoint = config.get("endpoint") if isinstance(config, dict) else None
    if not isinstance(endpoint, str) or not _is_url(endpoint):
        # The value is not shown: an endpoint may carry a secret.
        raise InvalidConfiguration(
            f"{place}.config.endpoint", "has to be the URL to post to, such as https://example.org/hook"
        )
    return Webhook(endpoint, _text(place, item, "event", "*"), _text(place, item, "relation", "*"))


def _text(place: str, item: dict[str, Any], key: str, default: str | None = None) -> str:
    value = item.get(key, default)
    if not isinstance(value, str):
        example = '"INSERT"' if key == "event" else '"public:users"'
        raise InvalidConfiguration(f"{place}.{key}", f"has to be a string such as {example}")
    return value


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # A port that is no number shows only when it is asked for.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
