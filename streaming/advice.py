"""What a subscriber of a table would receive, in plain words, and the SQL that cures what falls short."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Level = Literal["good", "fair", "bad", "off"]

_EVENTS: Final = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True, slots=True)
class Advice:
    """``level`` is good, fair (something falls short), bad (PostgreSQL refuses writes) or off (nothing is heard).

    ``receives`` is one sentence. ``cures`` are pairs: what it is good for, and the SQL.
    """

    level: Level
    receives: str
    cures: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the dashboard."""
        return {"level": self.level, "receives": self.receives, "cures": [list(cure) for cure in self.cures]}


def quoted(name: str) -> str:
    """A name as SQL writes it: bare if it can be."""
    if name and name[0] in _FIRST and set(name) <= _REST and name not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz_")
_REST = _FIRST | frozenset("0123456789$")
# Not all of PostgreSQL's: those that somebody calls a table or a schema.
_RESERVED = {"all", "analyse", "analyze", "check", "column", "constraint", "default", "end", "group", "limit", "offset"}
_RESERVED |= {"only", "order", "primary", "references", "select", "table", "unique", "user", "using", "when", "window"}


def advise(
    table: Mapping[str, Any],
    *,
    publications: Sequence[str],
    hidden: Collection[tuple[str, str]],
    withholds_secured: bool,
) -> Advice:
    """Judge one table by its facts.

    ``table`` has schema, name, kind (table, partitioned, partition), unlogged, replica_identity (default, nothing,
    full, index), has_primary_key, row_security, published (the ones of ``publications`` that have it) and events (what
    these publish of it). ``withholds_secured``: tables with row security are kept from clients it applies to.
    """
    name = f"{quoted(table['schema'])}.{quoted(table['name'])}"
    if (table["schema"], table["name"]) in hidden:
        return Advice("off", "Nothing: HIDDEN_TABLES keeps it off the wire.")
    if table["unlogged"]:
        return Advice(
            "off",
            "Nothing: an unlogged table is not in the write-ahead log.",
            (("Write it to the log", f"ALTER TABLE {name} SET LOGGED;"),),
        )
    if not table["published"]:
        return _unpublished(table, name, publications)
    events, identity = set(table["events"]), table["replica_identity"]
    names_old_rows = identity in ("full", "index") or (identity == "default" and table["has_primary_key"])
    full = ("See old values, and match deletes by any column", f"ALTER TABLE {name} REPLICA IDENTITY FULL;")
    if not names_old_rows and events & {"update", "delete"}:
        return Advice(
            "bad",
            "Inserts. UPDATE and DELETE fail in PostgreSQL itself, because nothing identifies a row.",
            (
                ("Give it a key", f"ALTER TABLE {name} ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;"),
                ("Or identify rows by all their values", f"ALTER TABLE {name} REPLICA IDENTITY FULL;"),
            ),
        )
    cures: list[tuple[str, str]] = []
    sentence = _whole(events, identity)
    level: Level = "good"
    if missing := [event for event in _EVENTS[:3] if event not in events]:
        level = "fair"
        sentence += f" Not {' and '.join(event.upper() for event in missing)}: the publication leaves them out."
        publication = quoted(table["published"][0])
        cures.append(
            (
                "Publish all events",
                f"ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate');",
            )
        )
    if identity != "full" and events & {"update", "delete"}:
        cures.append(full)
    if table["row_security"]:
        level = "fair"
        sentence += (
            " Row security is on: only clients with a token of a role in BYPASS_ROLES hear of it."
            if withholds_secured
            else " Row security is on, and not looked at: every client hears every row."
        )
    return Advice(level, sentence, tuple(cures))


def _unpublished(table: Mapping[str, Any], name: str, publications: Sequence[str]) -> Advice:
    if table["kind"] == "partition":
        return Advice(
            "off", "Nothing under this name: its changes come under the name of its parent, if that is published."
        )
    publication = quoted(publications[0]) if publications else "supabase_realtime"
    cure = ("Publish it", f"ALTER PUBLICATION {publication} ADD TABLE {name};")
    if table["kind"] == "partitioned":
        return Advice("off", "Nothing under this name: partitions are published one by one, or not at all.", (cure,))
    return Advice("off", "Nothing: it is in none of the publications.", (cure,))


def _whole(events: set[str], identity: str) -> str:
    words = [event.upper() for event in _EVENTS[:3] if event in events]
    if not words:
        return "TRUNCATE only."
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    if not events & {"update", "delete"}:
        return f"{listed} with the whole row."
    if identity == "full":
        return f"{listed}, with the whole row before and after."
    what = "the columns of an index" if identity == "index" else "the key"
    return f"{listed}; of the row before, {what} only."
