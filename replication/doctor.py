"""What a database server would have to say about streaming from it: every condition looked at, with its cure.

Nothing is changed: no slot is made, no publication, and no row is read. One check that fails does not hold up the
others, unless they need what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import psycopg
from psycopg.rows import dict_row, tuple_row

from replication import slots
from replication.connection import ReplicationConnection, with_address
from replication.errors import ConnectionFailed, ReplicationError, drop_sql, quoted
from replication.guardian import Guardian
from replication.headroom import HALF, MOST
from replication.lsn import LSN
from replication.providers import pooler_of, provider_of
from replication.record import OWN_TABLES
from replication.slots import Limits, PublishedTable, ServerFacts, SlotStatus

Level = Literal["ok", "warning", "failure"]

CONNECT_TIMEOUT_S: Final = 10
CLOCK_SKEW_S: Final = 1.0
LONG_TRANSACTION_S: Final = 600.0
MUCH_WAL: Final = 1 << 30
SHOWN: Final = 8

_DJANGO_TABLES: Final = ("auth_user", "django_session", "django_admin_log")
_PRIVATE_COLUMNS: Final = ("password", "passwd", "secret", "token", "api_key", "session_data", "credit_card")

_PUBLICATIONS = """
    SELECT to_jsonb(publication) AS publication,
           (SELECT count(*) FROM pg_publication_tables AS t WHERE t.pubname = publication.pubname) AS tables
    FROM pg_publication AS publication WHERE pubname = ANY (%s::text[]) ORDER BY pubname
"""

_COLUMNS = """
    SELECT DISTINCT published.schemaname || '.' || published.tablename || '.' || attribute.attname
    FROM pg_publication_tables AS published
    JOIN pg_namespace AS namespace ON namespace.nspname = published.schemaname
    JOIN pg_class AS relation ON relation.relnamespace = namespace.oid AND relation.relname = published.tablename
    JOIN pg_attribute AS attribute ON attribute.attrelid = relation.oid AND attnum > 0 AND NOT attisdropped
    WHERE published.pubname = ANY (%s::text[]) AND lower(attribute.attname) = ANY (%s::text[])
      -- A publication may be for some columns only (PostgreSQL 15).
      AND coalesce(to_jsonb(published) -> 'attnames' ? attribute.attname::text, true)
    ORDER BY 1
"""

_CANDIDATES = r"""
    SELECT format('%%I.%%I', nspname, relname)
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('r', 'p') AND relpersistence = 'p' AND NOT relispartition
      AND nspname <> 'information_schema' AND left(nspname, 3) <> 'pg_' AND relname <> ALL (%s::text[])
    ORDER BY 1
"""

_SERVER = """
    SELECT extract(epoch FROM clock_timestamp())::float AS now,
           (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS encrypted,
           pg_backend_pid() AS backend_pid,
           current_setting('synchronous_commit') AS synchronous_commit,
           current_setting('wal_sender_timeout') AS wal_sender_timeout,
           coalesce(current_setting('idle_replication_slot_timeout', true), '0') AS idle_slot_timeout
"""


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


async def examine(subject: Subject) -> list[Finding]:
    """Look at everything that streaming from this server depends on. Raises nothing: what goes wrong is a finding."""
    return in_the_words_of_the_provider(await _examine(subject), host_of(subject.dsn))


def host_of(dsn: str) -> str:
    """The host that a connection string names, if it names one."""
    return str(psycopg.conninfo.conninfo_to_dict(dsn).get("host") or "")


def in_the_words_of_the_provider(findings: Sequence[Finding], host: str) -> list[Finding]:
    """The same findings, with the cures that a managed database at this host has in place of the usual ones."""
    provider, told = provider_of(host), []
    for finding in findings:
        hint, sql = "", finding.sql
        if finding.level == "failure" and finding.check == "no pooler" and (pooler := pooler_of(host)) is not None:
            hint = f"this is {pooler}"
        elif finding.level == "failure" and provider is not None and finding.check in _PROVIDERS_SAY:
            said = getattr(provider, _PROVIDERS_SAY[finding.check])
            hint, sql = f"with {provider.name}: {said}", ()
        told.append(replace(finding, cure=hint, sql=sql) if hint else finding)
    return told


_PROVIDERS_SAY: Final = {
    "connection": "network",
    "replication connection": "network",
    "wal_level": "parameter",
    "privilege": "role",
}
"""Which of a provider's hints cures which check."""


async def _examine(subject: Subject) -> list[Finding]:
    findings: list[Finding] = []
    try:
        dsn = await with_address(subject.dsn, subject.ip_version)
        conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
    except (psycopg.Error, ReplicationError, OSError) as error:
        return [_unreachable(subject, error)]
    async with conn:
        try:
            await _look(conn, dsn, subject, findings)
        except (psycopg.Error, ReplicationError, OSError) as error:
            findings.append(
                Finding(
                    "examination",
                    "failure",
                    f"it could not be finished: {str(error).strip()}",
                    "see the server's log, and try again",
                )
            )
    return findings


async def _look(conn: psycopg.AsyncConnection[Any], dsn: str, subject: Subject, findings: list[Finding]) -> None:
    asked_at = time.time()
    server = await _row(conn, _SERVER)
    answered_at = time.time()
    facts = await slots.server_facts(conn)
    findings.append(_reachable(conn, facts, server))
    findings.append(_direct(conn, server))
    findings.append(_version(facts))
    findings.append(_wal_level(facts))
    findings.append(_privilege(facts))
    all_slots = await slots.all_slots(conn)
    limits = await slots.limits(conn)
    slot = next((slot for slot in all_slots if slot.name == subject.slot_name), None)
    findings.append(_free_slots(facts, all_slots, slot))
    findings.append(await _free_walsenders(conn, facts, slot))
    if facts.can_replicate:
        findings.append(await _replication_connection(dsn, facts))
    existing = await _publications(conn, subject, facts, findings)
    if existing:
        names = list(existing)
        tables = await slots.publication_tables(conn, names)
        findings.append(_identities(tables))
        columns = await _texts(conn, _COLUMNS, names, list(_PRIVATE_COLUMNS))
        explicit = names[0] if len(names) == 1 and not existing[names[0]] else None
        findings.append(_private(tables, columns, subject, explicit))
        findings.append(_row_security(tables, subject))
    findings.append(_slot(subject, facts, slot))
    findings.append(_headroom(subject, slot, limits, await slots.wal_position(conn)))
    findings += _other_slots(subject, all_slots)
    findings.append(_transactions(limits))
    findings.append(_clock(server["now"], asked_at, answered_at))
    findings += _settings(server)


def _unreachable(subject: Subject, error: Exception) -> Finding:
    if not isinstance(error, ReplicationError):
        parts = psycopg.conninfo.conninfo_to_dict(subject.dsn)
        error = ConnectionFailed(
            str(error).strip(),
            host=str(parts.get("host") or ""),
            port=str(parts.get("port") or ""),
            database=str(parts.get("dbname") or ""),
            user=str(parts.get("user") or ""),
        )
    return Finding("connection", "failure", str(error), "set DATABASE_URL, or DB_HOST, DB_PORT, DB_NAME, DB_USER…")


def _reachable(conn: psycopg.AsyncConnection[Any], facts: ServerFacts, server: dict[str, Any]) -> Finding:
    where = f"{conn.info.host}:{conn.info.port}, database {quoted(facts.database)}, role {quoted(facts.role)}"
    is_far = not (conn.info.host.startswith("/") or conn.info.host in ("localhost", "127.0.0.1", "::1"))
    if is_far and server["encrypted"] is False:
        return Finding(
            "connection",
            "warning",
            f"{where}, without TLS: rows and the password's proof cross the network readable",
            "let the server offer TLS, and set DB_SSL=verify-full",
        )
    return Finding("connection", "ok", f"{where}{', TLS' if server['encrypted'] else ''}")


def _direct(conn: psycopg.AsyncConnection[Any], server: dict[str, Any]) -> Finding:
    # The number that a server gives for cancelling at the start is its process's; a pooler makes up its own.
    if conn.info.backend_pid == server["backend_pid"]:
        return Finding("no pooler", "ok", "the server itself answers")
    return Finding(
        "no pooler",
        "failure",
        "a pooler (PgBouncer, Supavisor…) stands between, and replication does not pass through one",
        "connect to the server's own host and port (5432 as a rule)",
    )


def _version(facts: ServerFacts) -> Finding:
    if facts.version_num < 100000:
        return Finding("version", "failure", f"PostgreSQL {facts.version} has no publications", "use 10 or newer")
    if facts.in_recovery and facts.version_num < 160000:
        return Finding(
            "version",
            "failure",
            f"PostgreSQL {facts.version} cannot decode the WAL on a standby",
            "connect to the primary, or use 16 or newer",
        )
    if facts.version_num < 130000:
        return Finding(
            "version",
            "warning",
            f"PostgreSQL {facts.version} cannot bound what a slot keeps (max_slot_wal_keep_size came with 13)",
            "set MAX_REPLICATION_LAG_MB, or use 13 or newer",
        )
    return Finding("version", "ok", f"PostgreSQL {facts.version}{', a standby' if facts.in_recovery else ''}")


def _wal_level(facts: ServerFacts) -> Finding:
    if facts.wal_level == "logical":
        return Finding("wal_level", "ok", "logical")
    return Finding(
        "wal_level",
        "failure",
        f"wal_level is {facts.wal_level}, and rows can be decoded from the WAL at level logical only",
        "run it as a superuser, then restart PostgreSQL",
        ["ALTER SYSTEM SET wal_level = logical;"],
    )


def _privilege(facts: ServerFacts) -> Finding:
    if not facts.can_replicate:
        return Finding(
            "privilege",
            "failure",
            f"role {quoted(facts.role)} has no REPLICATION privilege, so it may neither create a slot nor stream",
            "a superuser runs it",
            [f"ALTER ROLE {quoted(facts.role)} REPLICATION;"],
        )
    if facts.is_superuser:
        return Finding("privilege", "ok", f"role {quoted(facts.role)} is a superuser; REPLICATION would be enough")
    return Finding("privilege", "ok", f"role {quoted(facts.role)} has REPLICATION")


def _free_slots(facts: ServerFacts, all_slots: Sequence[SlotStatus], slot: SlotStatus | None) -> Finding:
    used, most = len(all_slots), facts.max_replication_slots
    if slot is not None or used < most:
        return Finding("max_replication_slots", "ok", f"{used} of {most} taken")
    unused = [other for other in all_slots if not other.active]
    return Finding(
        "max_replication_slots",
        "failure",
        f"all {most} replication slots are taken, and streaming needs one",
        f"drop one that nobody needs ({_names(other.name for other in unused) or 'all of them are read now'}), "
        "or raise the limit and restart PostgreSQL",
        [f"ALTER SYSTEM SET max_replication_slots = {most + 4};"],
    )


async def _free_walsenders(conn: psycopg.AsyncConnection[Any], facts: ServerFacts, slot: SlotStatus | None) -> Finding:
    busy, most = await slots.busy_walsenders(conn), facts.max_wal_senders
    if (slot is not None and slot.active) or busy < most:
        return Finding("max_wal_senders", "ok", f"{busy} of {most} busy")
    return Finding(
        "max_wal_senders",
        "failure",
        f"all {most} walsenders are busy, and every stream needs one",
        "end one of those in pg_stat_replication, or raise the limit and restart PostgreSQL",
        [f"ALTER SYSTEM SET max_wal_senders = {most + 4};"],
    )


async def _replication_connection(dsn: str, facts: ServerFacts) -> Finding:
    try:
        connection = await ReplicationConnection.connect(dsn, server_version=facts.version_num)
        async with connection:
            await connection.identify_system()
    except (ReplicationError, psycopg.Error, OSError) as error:
        # A server without a free walsender refuses here too, and that has been said.
        return Finding(
            "replication connection",
            "failure",
            f"an ordinary connection is let in, one for replication is not: {_first_line(error)}",
            "see that pg_hba.conf lets the role into the database, and that no pooler stands between",
        )
    return Finding("replication connection", "ok", "let in")


async def _publications(
    conn: psycopg.AsyncConnection[Any], subject: Subject, facts: ServerFacts, findings: list[Finding]
) -> dict[str, bool]:
    """Tell of each publication; those that are there, and whether they are FOR ALL TABLES, come back."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_PUBLICATIONS, [list(subject.publications)])
        rows = await cursor.fetchall()
    existing: dict[str, bool] = {publication["pubname"]: publication["puballtables"] for publication, _ in rows}
    hidden = [*_DJANGO_TABLES, *OWN_TABLES]
    candidates = await _texts(conn, _CANDIDATES, hidden) if len(existing) < len(subject.publications) else []
    for name in dict.fromkeys(subject.publications):
        if name not in existing:
            findings.append(
                Finding(
                    f"publication {name}",
                    "failure",
                    f"it is not in database {quoted(facts.database)}, so there is nothing to stream",
                    "name the tables that are for everybody with a token; FOR ALL TABLES takes a superuser, and "
                    "publishes every table of the database",
                    _creation(name, candidates),
                )
            )
    for publication, tables in rows:
        findings.append(_publication(publication, int(tables)))
    return existing


def _creation(name: str, candidates: Sequence[str]) -> Sequence[str]:
    """What makes the publication, for the tables that are there now."""
    if len(candidates) > 4 * SHOWN:
        return ()
    tables = f"TABLE {', '.join(candidates)}" if candidates else "ALL TABLES"
    return [f"CREATE PUBLICATION {quoted(name)} FOR {tables};"]


def _publication(publication: dict[str, Any], tables: int) -> Finding:
    name = publication["pubname"]
    check = f"publication {name}"
    silent = [
        event
        for event in ("insert", "update", "delete", "truncate")
        if publication.get(f"pub{event}") is False  # truncate came with 11
    ]
    if not tables:
        cure = f"add the tables that are for everybody with a token: ALTER PUBLICATION {quoted(name)} ADD TABLE todos"
        return Finding(check, "warning", "it holds no table", cure)
    count = f"{tables} table{'' if tables == 1 else 's'}{' (FOR ALL TABLES)' if publication['puballtables'] else ''}"
    if silent:
        return Finding(
            check,
            "warning",
            f"{count}, but {_names(silent)} is not published, and nobody hears of it",
            "if that is not on purpose, publish everything",
            [f"ALTER PUBLICATION {quoted(name)} SET (publish = 'insert, update, delete, truncate');"],
        )
    return Finding(check, "ok", f"{count}")


def _identities(tables: Sequence[PublishedTable]) -> Finding:
    # DEFAULT is the primary key's columns, and nothing without one.
    bare = [
        table
        for table in tables
        if table.replica_identity == "nothing" or (table.replica_identity == "default" and not table.has_primary_key)
    ]
    if not bare:
        return Finding("replica identity", "ok", "every published table has one")
    return Finding(
        "replica identity",
        "warning",
        f"no primary key, or REPLICA IDENTITY NOTHING: {_tables(bare)}; PostgreSQL refuses every UPDATE and DELETE "
        "there while the table is published",
        "add a primary key, or let PostgreSQL log whole old rows",
        [f"ALTER TABLE {_table(table)} REPLICA IDENTITY FULL;" for table in bare],
    )


def _private(
    tables: Sequence[PublishedTable], columns: Sequence[str], subject: Subject, explicit: str | None
) -> Finding:
    """``explicit`` is the publication whose tables were named one by one, if it is the only one."""
    of_django = [table for table in tables if table.name in _DJANGO_TABLES]
    shown = [table for table in of_django if (table.schema, table.name) not in subject.hidden_tables]
    if shown:
        return Finding(
            "private tables",
            "failure",
            f"published and not hidden: {_tables(shown)}; Django keeps password hashes and sessions there, and every "
            "client would be sent them",
            "name them in HIDDEN_TABLES, or stream a publication that names the tables which are for everybody "
            "(under another name: one that is dropped and made again leaves changes that nobody can decode)",
            [f"ALTER PUBLICATION {quoted(explicit)} DROP TABLE {_table(table)};" for table in shown]
            if explicit
            else [],
        )
    open_columns = [
        name for name in columns if tuple(name.rsplit(".", 1)[0].split(".", 1)) not in set(subject.hidden_tables)
    ]
    if open_columns:
        return Finding(
            "private tables",
            "warning",
            f"columns that sound private are broadcast to everybody who may open a socket: {_names(open_columns)}",
            "leave the table out of the publication, publish some of its columns only (PostgreSQL 15), or name the "
            "table in HIDDEN_TABLES",
        )
    hidden = f"; hidden by HIDDEN_TABLES: {_tables(of_django)}" if of_django else ""
    return Finding("private tables", "ok", f"nothing published sounds private{hidden}")


def _row_security(tables: Sequence[PublishedTable], subject: Subject) -> Finding:
    secured = [table for table in tables if table.row_security]
    if not secured:
        return Finding("row security", "ok", "no published table has any")
    if subject.secured_for is not None:
        roles = _names(subject.secured_for) or "no role"
        return Finding(
            "row security", "ok", f"only {roles} may hear of {_tables(secured)}, whatever their policies say"
        )
    return Finding(
        "row security",
        "warning",
        f"on for {_tables(secured)}, and everybody who may open a socket hears all of their rows: policies are not "
        "evaluated",
        "leave out of the publication what is not for everybody; or secure channels (SECURE_CHANNELS), without "
        "IGNORE_ROW_SECURITY: then only BYPASS_ROLES hear of these tables",
    )


def _slot(subject: Subject, facts: ServerFacts, slot: SlotStatus | None) -> Finding:
    if subject.slot_name is None:
        return Finding(
            "slot",
            "warning",
            "the slot is temporary: what is committed while nobody reads is lost",
            "set SLOT_NAME, to walcast for example",
        )
    if slot is None:
        return Finding("slot", "ok", f"{subject.slot_name} is not there yet, and will be made")
    anew = [drop_sql(slot.name)]
    if slot.plugin != slots.PLUGIN:
        kind = f"made for plugin {slot.plugin}" if slot.plugin else "a physical slot"
        return Finding(
            "slot",
            "failure",
            f"{slot.name} is {kind}, and we can read pgoutput only",
            "set another SLOT_NAME; or if nobody needs it, drop it",
            anew,
        )
    if slot.database != facts.database:
        return Finding(
            "slot",
            "failure",
            f"{slot.name} belongs to database {slot.database}, and slot names are one for the whole server",
            "set another SLOT_NAME; or if nobody needs it, drop it",
            anew,
        )
    if (reason := slot.lost_because) is not None:
        return Finding(
            "slot",
            "warning",
            f"{slot.name} is lost ({reason}): the changes that it would have sent are gone",
            "the replicator makes it anew and tells subscribers of the gap; see the headroom below",
        )
    state = f"read by server process {slot.active_pid}" if slot.active else "nobody reads it now"
    kept = size(slot.retained_bytes or 0)
    if not slot.active and (slot.retained_bytes or 0) >= MUCH_WAL:
        return Finding(
            "slot",
            "warning",
            f"{slot.name}: {state}, and it keeps {kept} of WAL on the database's disk, more with every commit",
            "start manage.py run_replicator; or give the slot up (changes since are lost then): "
            f"manage.py slot drop {slot.name}",
        )
    return Finding(
        "slot", "ok", f"{slot.name}: {state}, keeps {kept} of WAL, wal_status {slot.wal_status or 'unknown'}"
    )


def _headroom(subject: Subject, slot: SlotStatus | None, limits: Limits, wal_end: int) -> Finding:
    guardian = Guardian(publications=subject.publications, max_lag_bytes=subject.max_lag_bytes)
    guardian.slots, guardian.limits, guardian.wal_end = [slot] if slot else [], limits, LSN(wal_end)
    done_lsn = slot.confirmed_flush_lsn if slot and slot.confirmed_flush_lsn else wal_end
    budgets = guardian.budgets(slot.name if slot else None, done_lsn)
    tight = [budget for budget in budgets if budget.share >= HALF]
    if tight:
        budget = max(tight, key=lambda budget: budget.share)
        level: Level = "failure" if budget.share >= MOST else "warning"
        return Finding(
            "headroom",
            level,
            f"{round(budget.share * 100)} % of {budget.name} is used",
            "let the replicator catch up, or raise the limit: over it the slot is lost, and changes are missing",
        )
    if limits.max_slot_wal_keep_bytes is None and not subject.max_lag_bytes:
        return Finding(
            "headroom",
            "warning",
            "nothing bounds what the slot keeps: a replicator that is stopped for long lets the disk fill up",
            "bound it, by MAX_REPLICATION_LAG_MB or in PostgreSQL (13 or newer)",
            ["ALTER SYSTEM SET max_slot_wal_keep_size = '16GB';", "SELECT pg_reload_conf();"],
        )
    said = [f"{round(budget.share * 100)} % of {budget.name}" for budget in budgets]
    return Finding("headroom", "ok", f"used: {', '.join(said)}" if said else "bounded")


def _other_slots(subject: Subject, all_slots: Sequence[SlotStatus]) -> Iterable[Finding]:
    for slot in all_slots:
        if slot.name == subject.slot_name or slot.active or (slot.retained_bytes or 0) < MUCH_WAL:
            continue
        since = f" since {slot.inactive_since:%Y-%m-%d %H:%M}" if slot.inactive_since else ""
        yield Finding(
            "other slots",
            "warning",
            f"{slot.name}: nobody reads it{since}, and it keeps {size(slot.retained_bytes or 0)} of WAL on the disk",
            "find out whose it is; if nobody needs it, drop it",
            [drop_sql(slot.name)],
        )


def _transactions(limits: Limits) -> Finding:
    if limits.held_back_s < LONG_TRANSACTION_S:
        return Finding("open transactions", "ok", "none that is old")
    where = "pg_prepared_xacts" if (limits.prepared_s or 0) > (limits.oldest_write_s or 0) else "pg_stat_activity"
    return Finding(
        "open transactions",
        "warning",
        f"one has been open for {round(limits.held_back_s / 60)} minutes ({where}): no slot lets go of WAL from before "
        "it began, and a new slot waits until it ends",
        f"see {where}, and end it",
    )


def _clock(server_now: float, asked_at: float, answered_at: float) -> Finding:
    # The server looked at its clock somewhere between question and answer.
    skew_s = server_now - asked_at if server_now < asked_at else max(0.0, server_now - answered_at)
    if abs(skew_s) < CLOCK_SKEW_S:
        return Finding("clock", "ok", "agrees with the server's")
    return Finding(
        "clock",
        "warning",
        f"the server's clock is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}: "
        "commit times and tokens' ends look wrong by so much",
        "set both by NTP",
    )


def _settings(server: dict[str, Any]) -> Iterable[Finding]:
    if server["synchronous_commit"] == "off":
        yield Finding(
            "synchronous_commit",
            "warning",
            "it is off by default here: a commit waits up to 200 ms for the WAL writer before anybody hears of it",
            "switch it on where changes are to arrive at once",
            ["ALTER SYSTEM SET synchronous_commit = on;", "SELECT pg_reload_conf();"],
        )
    if server["idle_slot_timeout"] not in ("0", "0min", "0s"):
        yield Finding(
            "idle_replication_slot_timeout",
            "warning",
            f"a slot that nobody reads for {server['idle_slot_timeout']} is lost, and with it the changes since",
            "see that it is longer than you may be stopped",
        )


def _names(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def _tables(tables: Sequence[PublishedTable]) -> str:
    return _names(f"{table.schema}.{table.name}" for table in tables)


def _table(table: PublishedTable) -> str:
    return f"{quoted(table.schema)}.{quoted(table.name)}"


def size(count: float) -> str:
    """A number of bytes, to be read."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


async def _row(conn: psycopg.AsyncConnection[Any], query: str) -> dict[str, Any]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query.encode())
        row = await cursor.fetchone()
        assert row is not None
        return row


async def _texts(conn: psycopg.AsyncConnection[Any], query: str, *parameters: Any) -> list[str]:
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(query.encode(), parameters)
        return [text for (text,) in await cursor.fetchall()]
