"""What is published, judged: is it there, do UPDATE and DELETE go through, does something get out that should not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from replication.errors import quoted
from replication.findings import SHOWN, Finding, Subject, listed
from replication.publications import PublishedTable

DJANGO_TABLES: Final = ("auth_user", "django_session", "django_admin_log")
PRIVATE_COLUMNS: Final = ("password", "passwd", "secret", "token", "api_key", "session_data", "credit_card")


def publications(
    wanted: Sequence[str], rows: Sequence[tuple[dict[str, Any], int]], candidates: Sequence[str], database: str
) -> Iterator[Finding]:
    """Whether the publications are there, and what each holds.

    ``rows`` are those of the wanted ones that exist: the row of ``pg_publication``, and its number of tables.
    ``candidates`` are the tables that a missing one could be made for, as SQL writes them.
    """
    existing = {publication["pubname"] for publication, _ in rows}
    for name in dict.fromkeys(wanted):
        if name not in existing:
            yield Finding(
                f"publication {name}",
                "failure",
                f"it is not in database {quoted(database)}, so there is nothing to stream",
                "name the tables that are for everybody with a token; FOR ALL TABLES takes a superuser, and "
                "publishes every table of the database",
                _creation(name, candidates),
            )
    for publication, tables in rows:
        yield _publication(publication, tables)


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
            f"{count}, but {listed(silent)} is not published, and nobody hears of it",
            "if that is not on purpose, publish everything",
            [f"ALTER PUBLICATION {quoted(name)} SET (publish = 'insert, update, delete, truncate');"],
        )
    return Finding(check, "ok", f"{count}")


def replica_identities(tables: Sequence[PublishedTable]) -> Finding:
    """Whether UPDATE and DELETE go through: PostgreSQL refuses them where it could not say which row it was."""
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


def private_tables(
    tables: Sequence[PublishedTable], columns: Sequence[str], subject: Subject, explicit: str | None
) -> Finding:
    """Whether something is published that should not get out.

    ``columns`` are the published ones among `PRIVATE_COLUMNS`, as schema.table.column. ``explicit`` is the publication
    whose tables were named one by one, if it is the only one.
    """
    of_django = [table for table in tables if table.name in DJANGO_TABLES]
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
            f"columns that sound private are broadcast to everybody who may open a socket: {listed(open_columns)}",
            "leave the table out of the publication, publish some of its columns only (PostgreSQL 15), or name the "
            "table in HIDDEN_TABLES",
        )
    hidden = f"; hidden by HIDDEN_TABLES: {_tables(of_django)}" if of_django else ""
    return Finding("private tables", "ok", f"nothing published sounds private{hidden}")


def row_security(tables: Sequence[PublishedTable], subject: Subject) -> Finding:
    """Who hears of tables with row security."""
    secured = [table for table in tables if table.row_security]
    if not secured:
        return Finding("row security", "ok", "no published table has any")
    if subject.secured_for is not None:
        roles = listed(subject.secured_for) or "no role"
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


def _tables(tables: Sequence[PublishedTable]) -> str:
    return listed(f"{table.schema}.{table.name}" for table in tables)


def _table(table: PublishedTable) -> str:
    return f"{quoted(table.schema)}.{quoted(table.name)}"
