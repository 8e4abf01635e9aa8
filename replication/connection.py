"""libpq's COPY BOTH: reads frames, writes status updates."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from replication.copy_both import StandbyStatusUpdate
from replication.errors import (
    ConnectionFailed,
    PublicationMissing,
    ReplicationError,
    SlotIsActive,
    SlotLost,
    StreamEnded,
    literal,
    quoted,
)
from replication.lsn import LSN

logger = logging.getLogger(__name__)

# pgoutput prints values by the session's TimeZone, DateStyle, bytea_output…: pinned here, whatever the role's are.
# They stand in the connection's options, which beat the defaults of roles and databases.
_PINNED = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "search_path": "pg_catalog",
    "quote_all_identifiers": "off",
    "lc_monetary": "C",
    "client_encoding": "UTF8",
}
_WAL_SENDER_TIMEOUT_MS = 10_000
"""Short, so that a slot is free for a standby soon after its reader's machine died."""
_FIRST_VERSION_WITH_SESSION_TIMEOUT = 120_000

READ_LIMIT_BYTES = 1 << 20
"""About how much one call of `ReplicationConnection.read_ready` hands out."""


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """The answer to IDENTIFY_SYSTEM."""

    system_id: int
    timeline: int
    wal_lsn: int
    database: str


def replication_conninfo(dsn: str, *, time_zone: str, server_version: int, encoding: str = "UTF8") -> str:
    """The connection string of a logical walsender on ``dsn``, with the session settings pinned.

    Source: https://www.postgresql.org/docs/current/protocol-logical-replication.html
    """
    settings = {**_PINNED, "TimeZone": time_zone, "client_encoding": encoding}
    if server_version >= _FIRST_VERSION_WITH_SESSION_TIMEOUT:
        settings["wal_sender_timeout"] = str(_WAL_SENDER_TIMEOUT_MS)
    options = _options(dsn, settings)
    return make_conninfo(dsn, replication="database", options=options, client_encoding=encoding)


def session_options(dsn: str, *, time_zone: str, statement_timeout_ms: int) -> str:
    """The ``options`` of an ordinary session that reads and prints values as the walsender prints them."""
    return _options(dsn, {**_PINNED, "TimeZone": time_zone, "statement_timeout": str(statement_timeout_ms)})


def _options(dsn: str, settings: Mapping[str, str]) -> str:
    own = str(conninfo_to_dict(dsn).get("options") or "")
    pinned = " ".join(f"-c {name}={_escape(value)}" for name, value in settings.items())
    return f"{own} {pinned}".strip()


def parse_timeline_history(text: str) -> tuple[tuple[int, LSN], ...]:
    """The lines of a history file: a timeline, the LSN at which it was left, and why. Comments begin with ``#``."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return tuple((int(timeline), LSN.parse(lsn)) for timeline, lsn, *_ in lines)


async def with_address(dsn: str, ip_version: str | None) -> str:
    """``dsn`` with an address of that IP version (``ipv4``, ``ipv6``) for its host; unchanged for `None` and literals.

    libpq has no such option: it is told the address as ``hostaddr``, and goes on checking certificates by the name.
    Raises `ConnectionFailed` if the host has no such address.
    """
    parts = conninfo_to_dict(dsn)
    host = str(parts.get("host") or "")
    if ip_version is None or not host or host.startswith("/") or "," in host or parts.get("hostaddr"):
        return dsn
    family = socket.AF_INET if ip_version == "ipv4" else socket.AF_INET6
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return dsn
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, family=family, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: what IDNA cannot encode
        raise ConnectionFailed(f"{host} has no {ip_version} address ({error})", host=host) from error
    return make_conninfo(dsn, hostaddr=str(found[0][4][0]))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


class ReplicationConnection:
    """One walsender. Use it as an async context manager, or `close` it."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        self._connection = connection
        self._pgconn: pq.abc.PGconn = connection.pgconn
        self._reading: asyncio.Future[None] | None = None
        self._stop_listening: Callable[[], object] | None = None
        """The loop tells us of what arrives, from a `wait_readable` on until something arrives and nobody waits."""
        self._early: list[bytes] = []
        """What was heard before `read_ready` asked for it."""
        self._end: ReplicationError | None = None
        """Why the stream ended, while frames that came before it are still to be read."""
        self._slot_name = ""
        self._publications: Sequence[str] = ()
        self._pgconn.notice_handler = self._noticed

    @classmethod
    async def connect(cls, dsn: str, *, time_zone: str = "UTC", server_version: int, encoding: str = "UTF8") -> Self:
        """Open the connection. Raises `ConnectionFailed`."""
        conninfo = replication_conninfo(dsn, time_zone=time_zone, server_version=server_version, encoding=encoding)
        try:
            return cls(await psycopg.AsyncConnection.connect(conninfo, autocommit=True))
        except psycopg.OperationalError as error:
            raise ConnectionFailed(str(error).strip()) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the walsender; a stream that is on is simply cut."""
        if self._reading is not None:
            self._reading.cancel()
        self._listen_no_more()
        await self._connection.close()

    async def identify_system(self) -> SystemIdentity:
        """Ask whose history this is."""
        row = await self._query("IDENTIFY_SYSTEM")
        return SystemIdentity(int(row["systemid"]), int(row["timeline"]), LSN.parse(row["xlogpos"]), row["dbname"])

    async def timeline_history(self, timeline: int) -> tuple[tuple[int, LSN], ...]:
        """Ask where a timeline comes from: every earlier one, and the LSN at which it was left. Nothing, if unknown.

        Source: https://www.postgresql.org/docs/current/protocol-replication.html (TIMELINE_HISTORY)
        """
        if timeline <= 1:
            return ()
        try:
            row = await self._query(f"TIMELINE_HISTORY {timeline}")
        except SlotLost as error:  # its file is gone: 58P01, as for a WAL segment
            logger.warning("history of the timeline unknown", extra={"timeline": timeline, "error": error.reason})
            return ()
        return parse_timeline_history(row["content"])

    async def let_fail_over(self, slot_name: str) -> None:
        """Let standbys keep a copy of a slot (PostgreSQL 17). Raises `SlotIsActive` while somebody reads it."""
        self._slot_name = slot_name
        result = await self._execute(f"ALTER_REPLICATION_SLOT {quoted(slot_name)} (FAILOVER true)")
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise self._error(result)

    async def create_temporary_slot(self, name: str) -> LSN:
        """Make a slot that lives as long as this connection; its consistent point comes back."""
        row = await self._query(f"CREATE_REPLICATION_SLOT {quoted(name)} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        return LSN.parse(row["consistent_point"])

    async def start(self, slot_name: str, lsn: int, publications: Sequence[str]) -> None:
        """START_REPLICATION; frames follow. Raises `SlotIsActive`, `SlotLost`, `PublicationMissing`…"""
        self._slot_name, self._publications = slot_name, publications
        names = ",".join(quoted(name) for name in publications)
        command = (
            f"START_REPLICATION SLOT {quoted(slot_name)} LOGICAL {LSN(lsn)} "
            f"(proto_version '1', publication_names {literal(names)})"
        )
        result = await self._execute(command)
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._error(result)

    async def wait_readable(self) -> None:
        """Return when the server has sent something. Call it only after `read_ready` has found nothing more."""
        loop = asyncio.get_running_loop()
        self._reading = loop.create_future()
        if self._stop_listening is None:
            descriptor = self._pgconn.socket
            loop.add_reader(descriptor, self._hear)
            self._stop_listening = partial(loop.remove_reader, descriptor)
        await self._reading

    def _hear(self) -> None:
        # What has arrived goes to libpq at once, or the loop would tell of it again before the one who waits has his
        # turn. So the socket need not be registered anew for each transaction.
        reading = self._reading
        if reading is None or reading.done():
            self._listen_no_more()  # whoever reads is busy elsewhere: the rest stays with the server
            return
        try:
            self._pgconn.consume_input()
            length, view = self._pgconn.get_copy_data(1)
        except psycopg.OperationalError as error:
            self._ends_with(StreamEnded(str(error).strip()))
        else:
            if self._end is not None:
                pass  # a notice has ended it: what follows is not ours to read
            elif length > 0:
                self._early.append(bytes(view))
            elif length < 0:
                self._ends_with(self._ended())
            else:
                return  # no whole frame
        reading.set_result(None)

    def _listen_no_more(self) -> None:
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def _ends_with(self, error: ReplicationError) -> None:
        self._end = error
        self._listen_no_more()  # libpq may have closed the socket, and another one may get its number

    def read_ready(self) -> tuple[list[bytes], bool]:
        """The frames that are here already, about `READ_LIMIT_BYTES` at most, and whether more are here.

        Raises `StreamEnded` (or what its SQLSTATE says) when the server has ended the stream.
        """
        frames, self._early = self._early, []
        size, is_fresh = sum(map(len, frames)), bool(frames)
        pgconn, append = self._pgconn, frames.append
        get_copy_data = pgconn.get_copy_data
        try:
            while self._end is None:
                if not is_fresh:
                    pgconn.consume_input()
                before = size
                while True:
                    length, view = get_copy_data(1)
                    if length <= 0 or self._end is not None:
                        break
                    append(bytes(view))
                    size += length
                    if size >= READ_LIMIT_BYTES:
                        return frames, True
                if self._end is not None:
                    break
                if length < 0:
                    # libpq tells the end once: whoever asks again hears "no COPY in progress", and not why.
                    self._ends_with(self._ended())
                elif size == before and not is_fresh:
                    return frames, False
                is_fresh = False
        except psycopg.OperationalError as error:
            self._ends_with(StreamEnded(str(error).strip()))
        if frames:
            return frames, True
        assert self._end is not None
        raise self._end

    async def send(self, status: StandbyStatusUpdate) -> None:
        """Tell the server how far we are. Raises `StreamEnded`."""
        try:
            self._pgconn.put_copy_data(status.encode())
            await self._flush()
        except psycopg.OperationalError as error:
            self._listen_no_more()
            # If the server ended the stream with an error of its own, that one tells more.
            result = self._pgconn.get_result()
            if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
                raise self._error(result) from error
            raise StreamEnded(str(error).strip()) from error

    def _noticed(self, notice: pq.abc.PGresult) -> None:
        # From 18 on, a walsender that meets changes of a time when a publication was missing leaves them out, and says
        # so between the frames. Older ones end the stream there, and so do we: what follows does not follow.
        severity = notice.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        sqlstate = notice.error_field(pq.DiagnosticField.SQLSTATE)
        reason = (notice.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
        logger.debug("notice of the server: %s", reason)
        names_ours = any(name in reason for name in self._publications)  # the words depend on lc_messages
        if severity == b"WARNING" and sqlstate == b"55000" and names_ours and self._end is None:
            self._end = PublicationMissing(self._publications, self._pgconn.db.decode(), sqlstate="42704")

    def _ended(self) -> ReplicationError:
        result = self._pgconn.get_result()
        if result is None:
            return StreamEnded("the server closed the stream")
        return self._error(result)

    async def _query(self, command: str) -> dict[str, str]:
        result = await self._execute(command)
        if result.status != pq.ExecStatus.TUPLES_OK or result.ntuples != 1:
            raise self._error(result)
        row = {}
        for column in range(result.nfields):
            name, value = result.fname(column), result.get_value(0, column)
            row[(name or b"").decode()] = (value or b"").decode()
        return row

    async def _execute(self, command: str) -> pq.abc.PGresult:
        logger.debug("> %s", command)
        try:
            self._pgconn.send_query(command.encode())
            await self._flush()
            first: pq.abc.PGresult | None = None
            while True:
                self._pgconn.consume_input()
                while self._pgconn.is_busy():
                    await self._wait(write=False)
                    self._pgconn.consume_input()
                result = self._pgconn.get_result()
                if result is None:
                    break
                first = first or result
                if result.status == pq.ExecStatus.COPY_BOTH:
                    break
        except psycopg.OperationalError as error:
            raise StreamEnded(str(error).strip()) from error
        if first is None:
            raise StreamEnded("the server gave no answer")
        return first

    async def _flush(self) -> None:
        while self._pgconn.flush():
            await self._wait(write=True)

    async def _wait(self, *, write: bool) -> None:
        # A task cancelled inside psycopg's own wait() makes it cancel the statement on the server, and that ends the
        # stream. So we wait for the socket ourselves, and let libpq hand over what has arrived.
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
        descriptor = self._pgconn.socket
        if not write:
            self._reading = ready
        add(descriptor, _resolve, ready)
        try:
            await ready
        finally:
            remove(descriptor)

    def _error(self, result: pq.abc.PGresult) -> ReplicationError:
        sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message or b"no reason given"
        reason = message.decode(errors="replace").strip()
        match sqlstate:
            case "55006":
                return SlotIsActive(self._slot_name, sqlstate=sqlstate)
            case "42704" if "publication" in reason:
                return PublicationMissing(self._publications, self._pgconn.db.decode(), sqlstate=sqlstate)
            case "42704" | "55000" | "58P01":
                return SlotLost(self._slot_name, reason, sqlstate=sqlstate)
        return StreamEnded(reason, sqlstate=sqlstate)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
