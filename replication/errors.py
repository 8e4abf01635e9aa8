"""What can go wrong between PostgreSQL and the envelopes, and what to do about it.

    ReplicationError
    ├── InvalidSlotName                 the setting is no slot name
    ├── InvalidConfiguration            CONFIGURATION_FILE cannot be used (in `replication.configuration`)
    ├── ConnectionFailed                no connection, or it broke: try again
    ├── StreamEnded                     the walsender stopped sending: reconnect
    ├── ServerNotReady                  somebody has to change something on the server
    │   ├── UnsupportedServer
    │   ├── WalLevelTooLow
    │   ├── ReplicationPrivilegeMissing
    │   ├── NoFreeReplicationSlot
    │   ├── NoFreeWalSender
    │   ├── PublicationMissing
    │   ├── SlotWrongPlugin
    │   ├── SlotWrongDatabase
    │   └── SlotReplacedTooOften
    ├── SlotIsActive                    another replicator reads it: wait
    ├── SlotLost                        its changes are gone: a new slot, and a gap to tell of
    ├── BelowFloor                      the ring no longer has what was asked for
    ├── RecordUnavailable               the Django database does not give or take the record: try again
    ├── RecordIsAhead                   another replicator has come further with this record
    └── WireError                       bytes, or their order, are not what they should be
        ├── CopyBothError
        ├── PgOutputError
        ├── ProtocolViolation
        ├── UnknownRelation
        └── EnvelopeError

Where PostgreSQL named an SQLSTATE, `ReplicationError.sqlstate` keeps it
(https://www.postgresql.org/docs/current/errcodes-appendix.html).
"""

from __future__ import annotations

from collections.abc import Sequence

from replication.lsn import LSN, Position

_SHOWN_BYTES = 32


class ReplicationError(Exception):
    """The base of all errors of this app."""

    sqlstate: str | None = None

    def __init__(self, text: str, *, sqlstate: str | None = None) -> None:
        super().__init__(text)
        if sqlstate:
            self.sqlstate = sqlstate


class InvalidSlotName(ReplicationError):
    """PostgreSQL would not take this name for a replication slot."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"{name!r} cannot name a replication slot, so PostgreSQL would refuse to create it; "
            "use 1 to 63 characters out of a-z, 0-9 and _"
        )


class ConnectionFailed(ReplicationError):
    """There is no connection to the database; ``reason`` is what libpq said."""

    def __init__(
        self,
        reason: str,
        *,
        host: str = "",
        port: int | str = "",
        database: str = "",
        user: str = "",
        sqlstate: str | None = None,
    ) -> None:
        self.reason, self.host, self.port, self.database, self.user = reason.strip(), host, port, database, user
        known = {"host": host, "port": port, "dbname": database, "user": user}
        target = " ".join(f"{key}={value}" for key, value in known.items() if value)
        cure = f': psql "{target}"' if target else ""
        super().__init__(
            f"no connection to PostgreSQL{f' ({target})' if target else ''}: {self.reason}; "
            "no change arrives without one; see that the server runs, and that host, port, user and password are right "
            f"and pg_hba.conf lets us in{cure}",
            sqlstate=sqlstate,
        )


class StreamEnded(ReplicationError):
    """The walsender stopped sending; ``lsn`` is the last position heard of, if there was one."""

    def __init__(self, reason: str, *, lsn: int | None = None, sqlstate: str | None = None) -> None:
        self.reason, self.lsn = reason.strip(), lsn
        super().__init__(
            f"the replication stream has ended: {self.reason}; "
            "nothing is lost while the slot keeps its WAL, and reconnecting goes on where it stopped; "
            "if it comes again and again, PostgreSQL's log has the cause",
            sqlstate=sqlstate,
        )


class ServerNotReady(ReplicationError):
    """Something on the server has to be changed before it can stream to us."""


class UnsupportedServer(ServerNotReady):
    """This version of PostgreSQL cannot do what is asked. ``version_num`` counts as in 150018."""

    def __init__(self, version_num: int, missing: str, cure: str) -> None:
        self.version_num, self.missing, self.cure = version_num, missing, cure
        super().__init__(f"PostgreSQL {version_num // 10000} {missing}; {cure}")


class WalLevelTooLow(ServerNotReady):
    """The WAL does not hold enough to decode rows from it."""

    def __init__(self, wal_level: str, *, sqlstate: str | None = None) -> None:
        self.wal_level = wal_level
        super().__init__(
            f"wal_level is {wal_level}, and rows can be decoded from the WAL at level logical only; "
            "run: ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL",
            sqlstate=sqlstate,
        )


class ReplicationPrivilegeMissing(ServerNotReady):
    """The role may not open a replication connection."""

    def __init__(self, role: str, *, sqlstate: str | None = None) -> None:
        self.role = role
        super().__init__(
            f"role {quoted(role)} has no REPLICATION privilege, so it may neither create a slot nor stream; "
            f"run as a superuser: ALTER ROLE {quoted(role)} REPLICATION",
            sqlstate=sqlstate,
        )


class NoFreeReplicationSlot(ServerNotReady):
    """All replication slots are taken; ``inactive`` names those that nobody reads at the moment."""

    def __init__(self, maximum: int, inactive: Sequence[str] = (), *, sqlstate: str | None = None) -> None:
        self.maximum, self.inactive = maximum, tuple(inactive)
        unused = (
            f"drop one that nobody needs (not read now: {', '.join(self.inactive)}): "
            f"SELECT pg_drop_replication_slot({literal(self.inactive[0])}); or "
            if self.inactive
            else ""
        )
        super().__init__(
            f"all {maximum} replication slots are taken, and streaming needs one; "
            f"{unused}run: ALTER SYSTEM SET max_replication_slots = {maximum + 4}; then restart PostgreSQL",
            sqlstate=sqlstate,
        )


class NoFreeWalSender(ServerNotReady):
    """All walsenders are busy."""

    def __init__(self, maximum: int, *, sqlstate: str | None = None) -> None:
        self.maximum = maximum
        super().__init__(
            f"all {maximum} walsenders are busy, and every stream needs one; "
            "end one of those in pg_stat_replication, or run: "
            f"ALTER SYSTEM SET max_wal_senders = {maximum + 4}; then restart PostgreSQL",
            sqlstate=sqlstate,
        )


class PublicationMissing(ServerNotReady):
    """Publications named in the settings are not in the database."""

    def __init__(self, publications: Sequence[str], database: str, *, sqlstate: str | None = None) -> None:
        self.publications, self.database = tuple(publications), database
        names = ", ".join(map(quoted, self.publications))
        several = len(self.publications) > 1
        cure = " ".join(f"CREATE PUBLICATION {quoted(name)} FOR ALL TABLES;" for name in self.publications)
        super().__init__(
            f"{f'publications {names} are' if several else f'publication {names} is'} not in database "
            f"{quoted(database)}, so there is nothing to stream; a superuser creates "
            f"{'them' if several else 'it'} with: {cure}",
            sqlstate=sqlstate,
        )


class SlotWrongPlugin(ServerNotReady):
    """A slot of our name exists, and does not speak pgoutput. ``plugin`` is None for a physical slot."""

    def __init__(self, slot_name: str, plugin: str | None) -> None:
        self.slot_name, self.plugin = slot_name, plugin
        kind = f"made for plugin {plugin}" if plugin else "a physical slot"
        super().__init__(
            f"replication slot {quoted(slot_name)} is {kind}, and we can read pgoutput only; "
            f"set another SLOT_NAME, or if nobody needs it: {drop_sql(slot_name)}"
        )


class SlotWrongDatabase(ServerNotReady):
    """A slot of our name exists, and streams another database."""

    def __init__(self, slot_name: str, slot_database: str, database: str) -> None:
        self.slot_name, self.slot_database, self.database = slot_name, slot_database, database
        super().__init__(
            f"replication slot {quoted(slot_name)} belongs to database {quoted(slot_database)} "
            f"and cannot stream {quoted(database)}; slot names are one for the whole server: "
            f"set another SLOT_NAME, or if nobody needs it: {drop_sql(slot_name)}"
        )


class SlotIsActive(ReplicationError):
    """Another process reads the slot."""

    sqlstate = "55006"

    def __init__(self, slot_name: str, active_pid: int | None = None, *, sqlstate: str | None = None) -> None:
        self.slot_name, self.active_pid = slot_name, active_pid
        who = f"server process {active_pid}" if active_pid else "another connection"
        cure = f": SELECT pg_terminate_backend({active_pid})" if active_pid else ""
        super().__init__(
            f"replication slot {quoted(slot_name)} is being read by {who}, and a slot has one reader at a time; "
            f"wait for it to end, or end it{cure}",
            sqlstate=sqlstate,
        )


class SlotLost(ReplicationError):
    """The slot is gone, or PostgreSQL no longer has the WAL that it would send."""

    def __init__(self, slot_name: str, reason: str, *, sqlstate: str | None = None) -> None:
        self.slot_name, self.reason = slot_name, reason.strip()
        super().__init__(
            f"replication slot {quoted(slot_name)} is lost ({self.reason}), and so are the changes it would have sent; "
            f"it has to be made anew: {drop_sql(slot_name)} "
            "If it fell behind, raise max_slot_wal_keep_size (and idle_replication_slot_timeout, PostgreSQL 18)",
            sqlstate=sqlstate,
        )


class SlotReplacedTooOften(ServerNotReady):
    """The slot was made anew again and again; once more would only lose more changes."""

    def __init__(self, slot_name: str, reason: str, times: int) -> None:
        self.slot_name, self.reason, self.times = slot_name, reason, times
        super().__init__(
            f"replication slot {quoted(slot_name)} was made anew {times} times within an hour, and again it is useless "
            f"({reason}), so it is left alone now; raise MAX_REPLICATION_LAG_MB (ours) or max_slot_wal_keep_size "
            "(PostgreSQL's), or find out why changes come faster than they are read"
        )


class BelowFloor(ReplicationError):
    """The changes above ``position`` cannot be replayed: some of them have left the ring."""

    def __init__(self, position: Position, floor: Position) -> None:
        self.position, self.floor = position, floor
        super().__init__(
            f"the changes after {position} cannot be replayed: those up to {floor} have left the ring; "
            "whoever asked has to read the tables again; a larger or longer ring reaches further back"
        )


class RecordUnavailable(ReplicationError):
    """The Django database does not give or take the record; ``reason`` is what it said."""

    def __init__(self, reason: str) -> None:
        self.reason = reason.strip()
        super().__init__(
            f"the record of what was published cannot be read or saved: {self.reason}; "
            "without it nobody knows where to go on; bring the Django database (DJANGO_DATABASE_URL) back"
        )


class RecordIsAhead(ReplicationError):
    """The stored record tells of more than the one that was to replace it."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"record {name!r} already tells of more than this replicator has published, so it was left as it is: "
            "another replicator has taken over; if none has, see that no two databases share one Django database"
        )


class WireError(ReplicationError):
    """Bytes from outside, or their order, are not what they should be."""


class CopyBothError(WireError):
    """A frame of the walsender cannot be read."""

    def __init__(self, frame: bytes, what: str) -> None:
        self.frame, self.what = frame, what
        super().__init__(
            f"frame {shown(frame)} of the walsender {what}, so the stream cannot be followed past it; "
            "reconnect, and report it if it comes again"
        )


class PgOutputError(WireError):
    """A pgoutput message cannot be read."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what = data, what
        super().__init__(
            f"pgoutput message {shown(data)} {what}, so a change would be missed or misread; "
            "report it, with the version of PostgreSQL"
        )


class ProtocolViolation(WireError):
    """pgoutput messages came in an order that cannot be; ``lsn`` says where."""

    def __init__(self, what: str, lsn: int) -> None:
        self.what, self.lsn = what, LSN(lsn)
        super().__init__(
            f"{what} (at {self.lsn}), so the stream cannot be followed past it; "
            "reconnect, and report it, with the version of PostgreSQL, if it comes again"
        )


class UnknownRelation(WireError):
    """A change names a relation that pgoutput has not announced; ``lsn`` says where."""

    def __init__(self, oid: int, lsn: int) -> None:
        self.oid, self.lsn = oid, LSN(lsn)
        super().__init__(
            f"a change (at {self.lsn}) is in a relation with OID {oid} that was never announced, so it is left out; "
            f"see which table it is: SELECT {oid}::regclass; and report it, with the version of PostgreSQL"
        )


class EnvelopeError(WireError):
    """An envelope from the channel layer cannot be read."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"an envelope from the channel layer {what}, so its changes cannot be delivered from it; "
            "run the same version of Walcast everywhere, and let nothing else use its REDIS_URL"
        )


def quoted(name: str) -> str:
    """An SQL identifier, to be read and pasted."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string, to be read and pasted."""
    return "'" + text.replace("'", "''") + "'"


def drop_sql(slot_name: str) -> str:
    """The statement that drops a slot, to be read and pasted."""
    return f"SELECT pg_drop_replication_slot({literal(slot_name)});"


def shown(data: bytes) -> str:
    """The beginning of some bytes, in hexadecimal."""
    return f"{data[:_SHOWN_BYTES].hex(' ') or '(empty)'}{' …' if len(data) > _SHOWN_BYTES else ''}"
