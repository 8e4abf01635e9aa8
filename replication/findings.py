"""What an examination is of, and what it ends in: findings, each with its cure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Level = Literal["ok", "warning", "failure"]

SHOWN: Final = 8
"""How many names are told of; of more, how many they are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    ``message`` says what is so, and for what is not well why it matters. ``cure`` says what to do, ``sql`` with which
    statements; a statement that only a person can decide upon is left to ``cure``.
    """

    check: str
    level: Level
    message: str
    cure: str = ""
    sql: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be streamed: where from, and by which names. ``hidden_tables`` are published but never broadcast.

    Only tokens of the roles ``secured_for`` hear of tables with row security (`None`: everybody does).
    """

    dsn: str
    publications: Sequence[str]
    slot_name: str | None
    max_lag_bytes: int = 0
    hidden_tables: Collection[tuple[str, str]] = ()
    ip_version: str | None = None
    secured_for: Collection[str] | None = None


def listed(names: Iterable[str]) -> str:
    """The first of these names, and how many more there are."""
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def size(count: float) -> str:
    """A number of bytes, to be read."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
