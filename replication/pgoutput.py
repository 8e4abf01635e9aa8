"""pgoutput, protocol version 1: bytes in, messages out.

Source: https://www.postgresql.org/docs/15/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from struct import Struct
from struct import error as StructError
from typing import Any, Final, Literal, NamedTuple

from replication.errors import PgOutputError


class _Unchanged(Enum):
    UNCHANGED_TOAST = "unchanged_toast"

    def __repr__(self) -> str:
        return "UNCHANGED_TOAST"


UNCHANGED_TOAST: Final = _Unchanged.UNCHANGED_TOAST
"""The value of a large column that an UPDATE did not touch and PostgreSQL did not resend; it is not `None`."""

Value = bytes | None | Literal[_Unchanged.UNCHANGED_TOAST]
"""A column's value: the text PostgreSQL printed (in the session's client encoding), SQL NULL, or not resent."""

Tuple = list[Value]
"""The values of one row, in wire order (that of the relation's columns)."""

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Begin(NamedTuple):
    """The start of a transaction; ``final_lsn`` is the LSN of its commit record."""

    final_lsn: int
    committed_at: datetime
    xid: int


class Commit(NamedTuple):
    """The end of a transaction; ``end_lsn`` is the one to go on from."""

    lsn: int
    end_lsn: int
    committed_at: datetime


class Origin(NamedTuple):
    """The transaction came from another server through logical replication."""

    commit_lsn: int
    name: str


class RelationColumn(NamedTuple):
    """A column as the wire describes it; ``type_modifier`` is ``atttypmod`` read as unsigned (none = 4294967295)."""

    is_key: bool
    name: str
    type_oid: int
    type_modifier: int


class Relation(NamedTuple):
    """A table, announced before its first change and again when it has been altered.

    ``replica_identity`` is PostgreSQL's letter: d(efault), n(othing), f(ull), i(ndex).
    """

    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: list[RelationColumn]


class Type(NamedTuple):
    """A type that is not built in. For a domain, PostgreSQL gives the name of its base type."""

    oid: int
    schema: str
    name: str


class Insert(NamedTuple):
    """One new row."""

    relation_oid: int
    new: Tuple


class Update(NamedTuple):
    """One changed row. ``old`` is the old key or the whole old row as ``old_kind`` (K or O) says, or `None`."""

    relation_oid: int
    old_kind: str | None
    old: Tuple | None
    new: Tuple


class Delete(NamedTuple):
    """One deleted row: its key (K; the other columns are NULL) or the whole old row (O)."""

    relation_oid: int
    old_kind: str
    old: Tuple


class Truncate(NamedTuple):
    """Emptied tables. ``options``: 1 CASCADE, 2 RESTART IDENTITY."""

    relation_oids: list[int]
    options: int


class LogicalMessage(NamedTuple):
    """What ``pg_logical_emit_message`` wrote."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


RowChange = Insert | Update | Delete
Message = Begin | Commit | Origin | Relation | Type | RowChange | Truncate | LogicalMessage

_INT16, _INT32 = Struct("!H"), Struct("!I")
_BEGIN, _COMMIT, _INT64 = Struct("!QqI"), Struct("!BQQq"), Struct("!Q")
_RELATION_COLUMN = Struct("!II")
_read_int16, _read_int32 = _INT16.unpack_from, _INT32.unpack_from

_new_tuple = tuple.__new__  # a NamedTuple's own constructor takes twice as long

_NULL, _UNCHANGED, _TEXT = b"nut"
_NEW = ord("N")
_OLD_KINDS = b"KO"
_INSERT_KIND, _UPDATE_KIND, _DELETE_KIND = b"IUD"


def decode(data: bytes) -> Message:
    """Decode one pgoutput message.

    ``data`` is the payload of one XLogData: a type byte and its fields, integers big-endian, strings UTF-8 and
    NUL-terminated. Column values stay the bytes PostgreSQL printed; commit times become aware UTC datetimes (the wire
    counts microseconds from 2000-01-01).

    Raises `PgOutputError` if the message is cut short, goes on after its end, or has an unknown type.

    Source: https://www.postgresql.org/docs/15/protocol-logicalrep-message-formats.html
    """
    if not data:
        raise PgOutputError(data, "is empty")
    if (decoder := _DECODERS.get(data[0])) is None:
        raise PgOutputError(data, "has an unknown type")
    try:
        message, end = decoder(data)
    except (StructError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise PgOutputError(data, f"cannot be read ({error})") from error
    if end != len(data):
        raise PgOutputError(data, f"goes on {len(data) - end} bytes after its end")
    return message


def decode_begin(data: bytes) -> Begin:
    """What `decode` makes of a Begin, without asking what it is."""
    if len(data) != 1 + _BEGIN.size:
        raise PgOutputError(data, f"is a Begin of {len(data)} bytes")
    try:
        return _begin(data)[0]
    except OverflowError as error:
        raise PgOutputError(data, f"cannot be read ({error})") from error


def decode_commit(data: bytes) -> tuple[int, int]:
    """The LSN of a Commit and that of its end: all but the time, which its Begin has told."""
    if len(data) != 1 + _COMMIT.size:
        raise PgOutputError(data, f"is a Commit of {len(data)} bytes")
    _flags, lsn, end_lsn, _microseconds = _COMMIT.unpack_from(data, 1)
    return lsn, end_lsn


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at) if b"\0" in data[at:] else -1
    if end < 0:
        raise IndexError("a string without its end")
    return data[at:end].decode(), end + 1


def _time(microseconds: int) -> datetime:
    return POSTGRES_EPOCH + timedelta(microseconds=microseconds)


def _begin(data: bytes) -> tuple[Begin, int]:
    final_lsn, microseconds, xid = _BEGIN.unpack_from(data, 1)
    return Begin(final_lsn, _time(microseconds), xid), 21


def _commit(data: bytes) -> tuple[Message, int]:
    _flags, lsn, end_lsn, microseconds = _COMMIT.unpack_from(data, 1)
    return Commit(lsn, end_lsn, _time(microseconds)), 26


def _origin(data: bytes) -> tuple[Message, int]:
    name, end = _string(data, 9)
    return Origin(_INT64.unpack_from(data, 1)[0], name), end


def _relation(data: bytes) -> tuple[Message, int]:
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    identity = chr(data[at])
    (count,) = _read_int16(data, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        flags = data[at]
        column, at = _string(data, at + 1)
        type_oid, type_modifier = _RELATION_COLUMN.unpack_from(data, at)
        columns.append(RelationColumn(bool(flags & 1), column, type_oid, type_modifier))
        at += 8
    # PostgreSQL names the system schema by the empty string.
    return Relation(_read_int32(data, 1)[0], schema or "pg_catalog", name, identity, columns), at


def _type(data: bytes) -> tuple[Message, int]:
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    return Type(_read_int32(data, 1)[0], schema or "pg_catalog", name), at


def read_tuple(data: bytes, at: int) -> tuple[Tuple, int]:
    """Read TupleData at ``at``: the values, and where the next field starts."""
    (count,) = _read_int16(data, at)
    at += 2
    values: Tuple = []
    append = values.append
    for _ in range(count):
        kind = data[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _read_int32(data, at + 1)[0]
            append(data[start:at])
        elif kind == _NULL:
            append(None)
            at += 1
        elif kind == _UNCHANGED:
            append(UNCHANGED_TOAST)
            at += 1
        else:
            raise IndexError(f"a value of unknown kind {chr(kind)!r}")
    if at > len(data):
        raise IndexError("a value without its end")
    return values, at


Text = str | None | Literal[_Unchanged.UNCHANGED_TOAST]
"""A column's value as text."""


def read_texts(data: bytes, at: int) -> tuple[list[Text], int]:
    """Read TupleData at ``at`` with its values decoded from UTF-8: the way that is taken for every delivered row."""
    (count,) = _read_int16(data, at)
    at += 2
    texts: list[Text] = []
    append = texts.append
    for _ in range(count):
        kind = data[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _read_int32(data, at + 1)[0]
            append(data[start:at].decode())
        elif kind == _NULL:
            append(None)
            at += 1
        elif kind == _UNCHANGED:
            append(UNCHANGED_TOAST)
            at += 1
        else:
            raise IndexError(f"a value of unknown kind {chr(kind)!r}")
    if at > len(data):
        raise IndexError("a value without its end")
    return texts, at


class Row(NamedTuple):
    """A row change as texts: ``new`` of INSERT and UPDATE; ``old`` of DELETE, and of UPDATE where it was sent.

    ``kind`` is the message's type byte (I, U or D); ``old_kind`` says whether ``old`` is the key (K) or the whole
    row (O).
    """

    kind: int
    new: list[Text] | None
    old: list[Text] | None
    old_kind: str | None


_split = re.compile(rb"t\0\0..", re.DOTALL).split
_split_ascii = re.compile("t\0\0..", re.DOTALL).split
_VALUE, _NO_VALUE = b"t\0\0", b"t\0\0\0\0"


def _plain_insert(data: bytes) -> list[Text] | None:
    """The values of an INSERT in the usual shape, in half the time that reading them one by one takes; else `None`.

    Text holds no NUL, so ``t`` and two NULs can only be where a value of less than 64 KiB starts, and the next two
    bytes are its length: if there are as many of these as columns, no column is NULL and the row can be split there.
    Short values of ASCII are all decoded at once.
    """
    row = data[8:]
    is_ascii = row.isascii()
    pieces: list[Any] = _split_ascii(row.decode("ascii")) if is_ascii else _split(row)
    size = len(pieces[-1])
    if pieces[0] or len(pieces) - 1 != data[6] << 8 | data[7] or size != data[-size - 2] << 8 | data[-size - 1]:
        return None
    del pieces[0]
    return pieces if is_ascii else [piece.decode() for piece in pieces]


def plain_values(data: bytes) -> list[bytes] | None:
    """The values of an INSERT, or of an UPDATE that tells of no old row, behind an empty first item; or `None`.

    `None` means that the row has another shape (a NULL, a value of 64 KiB or more, an old row) and is for `decode_row`,
    which also says what is wrong with bytes that are no row at all. The values are not decoded: they may be anything.
    """
    if len(data) < 10 or data[5] != _NEW:
        return None
    values = _split(data[8:])
    size = len(values[-1])
    if values[0] or len(values) - 1 != data[6] << 8 | data[7] or size != data[-size - 2] << 8 | data[-size - 1]:
        return None
    return values


def plain_rows(rows: Sequence[bytes]) -> list[bytes] | None:
    """The same for some messages of one kind and relation, one behind the other; `None` if one of them is not such.

    The values of all rows are found by one search: between two rows stands what looks like an empty value.
    """
    heads = {row[:8] for row in rows}
    head = heads.pop()
    if heads or len(head) < 8 or head[5] != _NEW:
        return None
    values = [piece[2:] for piece in _NO_VALUE.join([row[8:] for row in rows]).split(_VALUE)]
    width = 1 + (head[6] << 8 | head[7])
    if len(values) != width * len(rows):
        return None
    sizes = list(map(len, values[width - 1 :: width]))
    if [row[-size - 2] << 8 | row[-size - 1] for row, size in zip(rows, sizes, strict=True)] != sizes:
        return None
    return values


def decode_row(data: bytes) -> Row:
    """Decode a row change (`ROW_KINDS`) to texts. Raises `PgOutputError`, also for what is not UTF-8."""
    try:
        kind = data[0]
        if kind == _INSERT_KIND and data[5] == _NEW and (texts := _plain_insert(data)) is not None:
            return _new_tuple(Row, (kind, texts, None, None))
        if kind == _INSERT_KIND and data[5] == _NEW:
            new, at = read_texts(data, 6)
            row = _new_tuple(Row, (kind, new, None, None))
        elif kind == _DELETE_KIND and data[5] in _OLD_KINDS:
            old, at = read_texts(data, 6)
            row = Row(kind, None, old, chr(data[5]))
        elif kind == _UPDATE_KIND and data[5] in _OLD_KINDS:
            old, at = read_texts(data, 6)
            if data[at] != _NEW:
                raise IndexError("an UPDATE without a new row")
            new, at = read_texts(data, at + 1)
            row = Row(kind, new, old, chr(data[5]))
        elif kind == _UPDATE_KIND and data[5] == _NEW:
            new, at = read_texts(data, 6)
            row = Row(kind, new, None, None)
        else:
            raise IndexError("no row where one should be")
    except (StructError, IndexError, UnicodeDecodeError) as error:
        raise PgOutputError(data, f"cannot be read ({error})") from error
    if at != len(data):
        raise PgOutputError(data, f"goes on {len(data) - at} bytes after its end")
    return row


def _insert(data: bytes) -> tuple[Message, int]:
    if data[5] != _NEW:
        raise IndexError("an INSERT without a new row")
    new, at = read_tuple(data, 6)
    return Insert(_read_int32(data, 1)[0], new), at


def _update(data: bytes) -> tuple[Message, int]:
    old, old_kind, at = None, None, 5
    if data[at] in _OLD_KINDS:
        old_kind = chr(data[at])
        old, at = read_tuple(data, at + 1)
    if data[at] != _NEW:
        raise IndexError("an UPDATE without a new row")
    new, at = read_tuple(data, at + 1)
    return Update(_read_int32(data, 1)[0], old_kind, old, new), at


def _delete(data: bytes) -> tuple[Message, int]:
    if data[5] not in _OLD_KINDS:
        raise IndexError("a DELETE without an old row")
    old, at = read_tuple(data, 6)
    return Delete(_read_int32(data, 1)[0], chr(data[5]), old), at


def _truncate(data: bytes) -> tuple[Message, int]:
    (count,) = _read_int32(data, 1)
    end = 6 + 4 * count
    if end > len(data):
        raise IndexError("a TRUNCATE without all of its relations")
    return Truncate([_read_int32(data, at)[0] for at in range(6, end, 4)], data[5]), end


def _logical_message(data: bytes) -> tuple[Message, int]:
    prefix, at = _string(data, 10)
    (size,) = _read_int32(data, at)
    end = at + 4 + size
    content = data[at + 4 : end]
    return LogicalMessage(bool(data[1] & 1), _INT64.unpack_from(data, 2)[0], prefix, content), max(end, at + 4)


_DECODERS: dict[int, Callable[[bytes], tuple[Message, int]]] = {
    ord("B"): _begin,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("M"): _logical_message,
}

ROW_KINDS = frozenset(b"IUD")
"""The type bytes of row changes. Their bytes travel as they are, and are read where somebody watches the table."""


def relation_oid(data: bytes) -> int:
    """The relation of a row change (`ROW_KINDS`), without reading the row. Raises `PgOutputError` if cut short."""
    try:
        oid: int = _read_int32(data, 1)[0]
    except StructError as error:
        raise PgOutputError(data, "is cut short") from error
    return oid
