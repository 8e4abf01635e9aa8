"""Looks at every condition of streaming from a database server; `diagnosis` and `exposure` judge what is seen.

Nothing is changed: no slot is made, no publication, and no row is read. One check that fails does not hold up the
others, unless they need what is missing.
"""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row, tuple_row

from replication import diagnosis, exposure, slots
from replication.connection import ReplicationConnection, with_address
from replication.errors import ReplicationError
from replication.findings import Finding, Subject
from replication.publications import publication_tables
from replication.record import OWN_TABLES
from replication.server import ServerFacts, busy_walsenders, server_facts

CONNECT_TIMEOUT_S: Final = 10

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
           coalesce(current_setting('idle_replication_slot_timeout', true), '0') AS idle_slot_timeout
"""


async def examine(subject: Subject) -> list[Finding]:
    """Look at everything that streaming from this server depends on. Raises nothing: what goes wrong is a finding."""
    return diagnosis.in_the_words_of_the_provider(await _examine(subject), diagnosis.host_of(subject.dsn))


async def _examine(subject: Subject) -> list[Finding]:
    findings: list[Finding] = []
    try:
        dsn = await with_address(subject.dsn, subject.ip_version)
        conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
    except (psycopg.Error, ReplicationError, OSError) as error:
        return [diagnosis.unreachable(subject, error)]
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
    facts = await server_facts(conn)
    findings.append(diagnosis.reachable(conn.info.host, conn.info.port, facts, encrypted=server["encrypted"]))
    findings.append(diagnosis.direct(conn.info.backend_pid, server["backend_pid"]))
    findings.append(diagnosis.version(facts))
    findings.append(diagnosis.wal_level(facts))
    findings.append(diagnosis.privilege(facts))
    all_slots = await slots.all_slots(conn)
    limits = await slots.limits(conn)
    slot = next((slot for slot in all_slots if slot.name == subject.slot_name), None)
    findings.append(diagnosis.free_slots(facts, all_slots, slot))
    findings.append(diagnosis.free_walsenders(facts, await busy_walsenders(conn), slot))
    if facts.can_replicate:
        findings.append(diagnosis.replication_connection(await _refusal(dsn, facts)))
    await _look_at_publications(conn, subject, facts, findings)
    findings.append(diagnosis.slot(subject, facts, slot))
    findings.append(diagnosis.headroom(subject, slot, limits, await slots.wal_position(conn)))
    findings += diagnosis.other_slots(subject, all_slots)
    findings.append(diagnosis.transactions(limits))
    findings.append(diagnosis.clock(server["now"], asked_at, answered_at))
    findings += diagnosis.settings(
        synchronous_commit=server["synchronous_commit"], idle_slot_timeout=server["idle_slot_timeout"]
    )


async def _refusal(dsn: str, facts: ServerFacts) -> Exception | None:
    """Why no replication connection is let in; `None` if one is."""
    try:
        connection = await ReplicationConnection.connect(dsn, server_version=facts.version_num)
        async with connection:
            await connection.identify_system()
    except (ReplicationError, psycopg.Error, OSError) as error:
        return error
    return None


async def _look_at_publications(
    conn: psycopg.AsyncConnection[Any], subject: Subject, facts: ServerFacts, findings: list[Finding]
) -> None:
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_PUBLICATIONS, [list(subject.publications)])
        rows = await cursor.fetchall()
    hidden = [*exposure.DJANGO_TABLES, *OWN_TABLES]
    candidates = await _texts(conn, _CANDIDATES, hidden) if len(rows) < len(subject.publications) else []
    findings += exposure.publications(subject.publications, rows, candidates, facts.database)
    if not rows:
        return
    names = [publication["pubname"] for publication, _ in rows]
    tables = await publication_tables(conn, names)
    findings.append(exposure.replica_identities(tables))
    columns = await _texts(conn, _COLUMNS, names, list(exposure.PRIVATE_COLUMNS))
    explicit = names[0] if len(rows) == 1 and not rows[0][0]["puballtables"] else None
    findings.append(exposure.private_tables(tables, columns, subject, explicit))
    findings.append(exposure.row_security(tables, subject))


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
