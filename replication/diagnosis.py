"""A server and its slots, judged: which conditions of streaming hold, and what cures those that do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from replication.errors import ConnectionFailed, ReplicationError, drop_sql, quoted
from replication.findings import Finding, Level, Subject, listed, size
from replication.guardian import budgets
from replication.headroom import HALF, MOST
from replication.hosts import is_here
from replication.providers import pooler_of, provider_of
from replication.server import DECODES_ON_STANDBY, HAS_PUBLICATIONS, ServerFacts
from replication.slots import PLUGIN, Limits, SlotStatus, unread

CLOCK_SKEW_S: Final = 1.0
LONG_TRANSACTION_S: Final = 600.0
MUCH_WAL: Final = 1 << 30


def host_of(dsn: str) -> str:
    """The host that a connection string names, if it names one."""
    return str(conninfo_to_dict(dsn).get("host") or "")


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


def unreachable(subject: Subject, error: Exception) -> Finding:
    """Why there is no connection at all."""
    if not isinstance(error, ReplicationError):
        parts = conninfo_to_dict(subject.dsn)
        error = ConnectionFailed(
            str(error).strip(),
            host=str(parts.get("host") or ""),
            port=str(parts.get("port") or ""),
            database=str(parts.get("dbname") or ""),
            user=str(parts.get("user") or ""),
        )
    return Finding("connection", "failure", str(error), "set DATABASE_URL, or DB_HOST, DB_PORT, DB_NAME, DB_USER…")


def reachable(host: str, port: int, facts: ServerFacts, *, encrypted: bool | None) -> Finding:
    """Where we are connected to, and whether others can read along. ``encrypted`` `None`: the server does not tell."""
    where = f"{host}:{port}, database {quoted(facts.database)}, role {quoted(facts.role)}"
    if not is_here(host) and encrypted is False:
        return Finding(
            "connection",
            "warning",
            f"{where}, without TLS: rows and the password's proof cross the network readable",
            "let the server offer TLS, and set DB_SSL=verify-full",
        )
    return Finding("connection", "ok", f"{where}{', TLS' if encrypted else ''}")


def direct(pid_at_start: int, pid: int) -> Finding:
    """Whether the server itself answers; the process ids are those told at the start, and by a query."""
    # The number that a server gives for cancelling at the start is its process's; a pooler makes up its own.
    if pid_at_start == pid:
        return Finding("no pooler", "ok", "the server itself answers")
    return Finding(
        "no pooler",
        "failure",
        "a pooler (PgBouncer, Supavisor…) stands between, and replication does not pass through one",
        "connect to the server's own host and port (5432 as a rule)",
    )


def version(facts: ServerFacts) -> Finding:
    """Whether a server of this version can be streamed from."""
    if facts.version_num < HAS_PUBLICATIONS:
        return Finding("version", "failure", f"PostgreSQL {facts.version} has no publications", "use 10 or newer")
    if facts.in_recovery and facts.version_num < DECODES_ON_STANDBY:
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


def wal_level(facts: ServerFacts) -> Finding:
    """Whether the WAL holds enough."""
    if facts.wal_level == "logical":
        return Finding("wal_level", "ok", "logical")
    return Finding(
        "wal_level",
        "failure",
        f"wal_level is {facts.wal_level}, and rows can be decoded from the WAL at level logical only",
        "run it as a superuser, then restart PostgreSQL",
        ["ALTER SYSTEM SET wal_level = logical;"],
    )


def privilege(facts: ServerFacts) -> Finding:
    """Whether our role may replicate."""
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


def free_slots(facts: ServerFacts, all_slots: Sequence[SlotStatus], slot: SlotStatus | None) -> Finding:
    """Whether there is a slot for us; ``slot`` is ours, if it is there already."""
    used, most = len(all_slots), facts.max_replication_slots
    if slot is not None or used < most:
        return Finding("max_replication_slots", "ok", f"{used} of {most} taken")
    return Finding(
        "max_replication_slots",
        "failure",
        f"all {most} replication slots are taken, and streaming needs one",
        f"drop one that nobody needs ({listed(unread(all_slots)) or 'all of them are read now'}), "
        "or raise the limit and restart PostgreSQL",
        [f"ALTER SYSTEM SET max_replication_slots = {most + 4};"],
    )


def free_walsenders(facts: ServerFacts, busy: int, slot: SlotStatus | None) -> Finding:
    """Whether there is a walsender for us, of which ``busy`` serve somebody."""
    most = facts.max_wal_senders
    if (slot is not None and slot.active) or busy < most:
        return Finding("max_wal_senders", "ok", f"{busy} of {most} busy")
    return Finding(
        "max_wal_senders",
        "failure",
        f"all {most} walsenders are busy, and every stream needs one",
        "end one of those in pg_stat_replication, or raise the limit and restart PostgreSQL",
        [f"ALTER SYSTEM SET max_wal_senders = {most + 4};"],
    )


def replication_connection(refused: Exception | None) -> Finding:
    """Whether the role is let in for replication, as it is for queries."""
    if refused is None:
        return Finding("replication connection", "ok", "let in")
    # A server without a free walsender refuses here too, and that has been said.
    first_line = str(refused).strip().partition("\n")[0]
    return Finding(
        "replication connection",
        "failure",
        f"an ordinary connection is let in, one for replication is not: {first_line}",
        "see that pg_hba.conf lets the role into the database, and that no pooler stands between",
    )


def slot(subject: Subject, facts: ServerFacts, slot: SlotStatus | None) -> Finding:
    """Whether our slot can be read, and what it keeps."""
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
    if slot.plugin != PLUGIN:
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


def headroom(subject: Subject, slot: SlotStatus | None, limits: Limits, wal_end: int) -> Finding:
    """How near the slot is to what bounds it. ``wal_end`` is where the server's WAL ends."""
    done_lsn = slot.confirmed_flush_lsn if slot and slot.confirmed_flush_lsn else wal_end
    all_budgets = budgets(slot, limits, max_lag_bytes=subject.max_lag_bytes, lag_bytes=max(0, wal_end - done_lsn))
    tight = [budget for budget in all_budgets if budget.share >= HALF]
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
    said = [f"{round(budget.share * 100)} % of {budget.name}" for budget in all_budgets]
    return Finding("headroom", "ok", f"used: {', '.join(said)}" if said else "bounded")


def other_slots(subject: Subject, all_slots: Sequence[SlotStatus]) -> Iterator[Finding]:
    """Slots that nobody reads, and that keep much WAL."""
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


def transactions(limits: Limits) -> Finding:
    """Whether somebody's transaction holds the slots back."""
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


def clock(server_now: float, asked_at: float, answered_at: float) -> Finding:
    """Whether the server's clock agrees with ours. All times are seconds since 1970."""
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


def settings(*, synchronous_commit: str, idle_slot_timeout: str) -> Iterator[Finding]:
    """Settings of the server that surprise; the values are as SHOW prints them."""
    if synchronous_commit == "off":
        yield Finding(
            "synchronous_commit",
            "warning",
            "it is off by default here: a commit waits up to 200 ms for the WAL writer before anybody hears of it",
            "switch it on where changes are to arrive at once",
            ["ALTER SYSTEM SET synchronous_commit = on;", "SELECT pg_reload_conf();"],
        )
    if idle_slot_timeout not in ("0", "0min", "0s"):
        yield Finding(
            "idle_replication_slot_timeout",
            "warning",
            f"a slot that nobody reads for {idle_slot_timeout} is lost, and with it the changes since",
            "see that it is longer than you may be stopped",
        )
