"""Where in the write-ahead log: LSN and Position."""

from __future__ import annotations

import re
from typing import NamedTuple

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)


class LSN(int):
    """A byte position in the write-ahead log: an unsigned 64-bit integer that prints as ``16/B374D848``.

    Source: https://www.postgresql.org/docs/current/datatype-pg-lsn.html
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> LSN:
        """Read PostgreSQL's two hexadecimal halves. Raises `ValueError` for anything else."""
        if not (match := _LSN.fullmatch(text)):
            raise ValueError(f"{text!r} is no LSN; one looks like 16/B374D848")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"LSN({str(self)!r})"


class Position(NamedTuple):
    """The place of one change in the history: ordered, and the same on every node and after every restart.

    ``commit_lsn`` is where the transaction's commit record starts (``Begin.final_lsn``), ``lsn`` where the change
    itself stands, ``ordinal`` counts the changes of one LSN (a COPY puts many rows into one record).
    """

    commit_lsn: int
    lsn: int
    ordinal: int

    def __str__(self) -> str:
        return f"{self.commit_lsn:X}.{self.lsn:X}.{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what `str` printed. Raises `ValueError` for anything else."""
        commit_lsn, lsn, ordinal = text.split(".")
        position = cls(int(commit_lsn, 16), int(lsn, 16), int(ordinal))
        if str(position) != text or min(position) < 0:
            raise ValueError(f"{text!r} is no position")
        return position


BEGINNING = Position(0, 0, 0)
"""Before every change."""


def position_token(epoch: str, position: Position) -> str:
    """The opaque string a client sees: ``epoch.commit.lsn.ordinal``."""
    return f"{epoch}.{position}"


def parse_position_token(token: str) -> tuple[str, Position]:
    """Take a client's position apart into epoch and `Position`. Raises `ValueError` for anything else."""
    epoch, dot, rest = token.partition(".")
    if not epoch or not dot:
        raise ValueError(f"{token!r} is no position")
    return epoch, Position.parse(rest)
