"""The streaming replication messages inside COPY BOTH: what the walsender says, and what we answer.

Source: https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from replication.errors import CopyBothError

_XLOG_DATA = Struct("!xQQq")
_START_LSN = Struct("!xQ")
_KEEPALIVE = Struct("!xQqB")
_STATUS = Struct("!cQQQqB")

XLOG_DATA_HEADER = _XLOG_DATA.size
"""Bytes before the payload of an XLogData frame."""

_new_tuple = tuple.__new__  # a NamedTuple's own constructor takes twice as long
XLOG_DATA, _K = ord("w"), ord("k")
unpack_start_lsn = _START_LSN.unpack_from
"""The LSN of an XLogData frame, as a tuple of one."""


class XLogData(NamedTuple):
    """A piece of the logical stream. LSNs count bytes, ``sent_at`` microseconds since 2000-01-01 UTC."""

    start_lsn: int
    wal_end: int
    sent_at: int
    data: bytes


class PrimaryKeepalive(NamedTuple):
    """Where the server's stream stands, and whether it wants an answer now."""

    wal_end: int
    sent_at: int
    reply_requested: bool


class StandbyStatusUpdate(NamedTuple):
    """How far we are: received, flushed (may be forgotten by the server), applied."""

    written_lsn: int
    flushed_lsn: int
    applied_lsn: int
    sent_at: int
    reply_requested: bool = False

    def encode(self) -> bytes:
        """The bytes of one ``r`` message."""
        return _STATUS.pack(b"r", *self[:4], self.reply_requested)


def xlog_payload(frame: bytes) -> tuple[int, bytes] | None:
    """``start_lsn`` and ``data`` of an XLogData, in half the time that `parse` takes; `None` for any other frame."""
    if len(frame) < XLOG_DATA_HEADER or frame[0] != XLOG_DATA:
        return None
    return unpack_start_lsn(frame)[0], frame[XLOG_DATA_HEADER:]


def xlog_kind(frame: bytes) -> int | None:
    """The first byte of an XLogData's ``data``; `None` for any other frame, and for one without data."""
    return frame[XLOG_DATA_HEADER] if len(frame) > XLOG_DATA_HEADER and frame[0] == XLOG_DATA else None


def is_quiet_keepalive(frame: bytes) -> bool:
    """A keepalive that wants no answer: whatever comes after it tells more."""
    return len(frame) == _KEEPALIVE.size and frame[0] == _K and not frame[-1]


def parse(frame: bytes) -> XLogData | PrimaryKeepalive:
    """Read one CopyData frame of the walsender.

    Raises `CopyBothError` if it is cut short, goes on after its end, or has an unknown type.
    """
    try:
        kind = frame[0]
        if kind == XLOG_DATA:
            start_lsn, wal_end, sent_at = _XLOG_DATA.unpack_from(frame)
            return _new_tuple(XLogData, (start_lsn, wal_end, sent_at, frame[XLOG_DATA_HEADER:]))
        if kind == _K:
            wal_end, sent_at, reply_requested = _KEEPALIVE.unpack(frame)
            return PrimaryKeepalive(wal_end, sent_at, bool(reply_requested))
    except (StructError, IndexError) as error:
        raise CopyBothError(frame, "is cut short or too long") from error
    raise CopyBothError(frame, "has an unknown type")
