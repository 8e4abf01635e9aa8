"""`manage.py slot`: look at replication slots, make ours, give one up."""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import psycopg
from django.conf import settings
from django.core.management import BaseCommand, CommandError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from realtime_project.application import streamed_database
from replication import slots
from replication.connection import with_address
from replication.errors import ReplicationError, SlotIsActive
from replication.findings import size
from replication.slots import SlotStatus
from replication.status import plain

_EPILOG = """
    manage.py slot status            every slot of the server, and what it keeps
    manage.py slot create            the slot of SLOT_NAME: from now on the server keeps what is committed
    manage.py slot drop walcast      give it up: the server forgets what was not read yet
"""

Connection = psycopg.AsyncConnection[Any]
T = TypeVar("T")


class Command(BaseCommand):
    """One action each; what is asked for goes to stdout."""

    help = "Show, create or drop replication slots."
    requires_system_checks: list[str] = []  # noqa: RUF012  (Django's); it is of use before the settings are right

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """Show the examples as they are written."""
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What can be said on the command line."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="status | create | drop")
        status = actions.add_parser("status", help="show every slot of the server")
        status.add_argument("name", nargs="?", help="this one only")
        status.add_argument("--json", action="store_true", help="for programs")
        create = actions.add_parser("create", help="make a permanent slot")
        create.add_argument("name", nargs="?", help="default: SLOT_NAME")
        create.add_argument("--failover", action="store_true", help="standbys keep a copy (PostgreSQL 17)")
        drop = actions.add_parser("drop", help="drop a slot that nobody reads; asks first")
        drop.add_argument("name", help="never taken from the settings: what is dropped is said")
        drop.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *, action: str, **options: Any) -> None:
        """Do it."""
        {"status": self._status, "create": self._create, "drop": self._drop}[action](options)

    def _status(self, options: dict[str, Any]) -> None:
        found = _run(slots.all_slots)
        if name := options["name"]:
            found = [slot for slot in found if slot.name == name]
        if options["json"]:
            told = [{field.name: plain(getattr(slot, field.name)) for field in fields(slot)} for slot in found]
            self.stdout.write(json.dumps(told, indent=2))
        elif found:
            self._show(found)
        if name and not found:
            raise CommandError(f'there is no replication slot "{name}"; see them all with: manage.py slot status')
        if not found and not options["json"]:
            self.stdout.write("there are no replication slots")

    def _create(self, options: dict[str, Any]) -> None:
        name = options["name"] or streamed_database()[1]
        if not name:
            raise CommandError("there is no name for the slot; say one, or set SLOT_NAME")
        name = _valid(name)

        async def create(conn: Connection) -> object:
            return await slots.create_slot(conn, name, failover=options["failover"])

        lsn = _run(create)
        self.stdout.write(f"slot {name} created: what commits after {lsn} is kept until it has been read")

    def _drop(self, options: dict[str, Any]) -> None:
        name = options["name"]
        slot = _run(lambda conn: slots.slot_status(conn, name))
        if slot is None:
            raise CommandError(f'there is no replication slot "{name}"; see them all with: manage.py slot status')
        if slot.active:
            raise CommandError(str(SlotIsActive(name, slot.active_pid)))
        if not options["yes"]:
            kept = size(slot.retained_bytes or 0)
            self.stdout.write(
                f"slot {name} ({slot.plugin or 'physical'}, database {slot.database or '-'}) keeps {kept} of WAL; "
                "what has not been read from it yet is lost"
            )
            try:
                answer = input("drop it? [y/N] ")
            except EOFError:
                answer = ""
            if answer.strip().lower() not in ("y", "yes"):
                raise CommandError("nothing was dropped; --yes does not ask")
        if not _run(lambda conn: slots.drop_slot(conn, name)):
            raise CommandError(f'replication slot "{name}" has gone in the meantime')
        self.stdout.write(f"slot {name} dropped")

    def _show(self, found: Sequence[SlotStatus]) -> None:
        ours = streamed_database()[1]
        table = Table(box=None, padding=(0, 2, 0, 0))
        sizes = ("kept", "lag", "safe", "xmin age")
        for heading in ("slot", "plugin", "database", "read by", *sizes[:2], "wal_status", *sizes[2:], "remark"):
            right = heading in sizes
            table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "remark")
        for slot in found:
            remarks = ["ours"] if slot.name == ours else []
            remarks += ["temporary"] if slot.temporary else []
            remarks += [slot.lost_because] if slot.lost_because else []
            if slot.inactive_since:
                remarks.append(f"not read since {slot.inactive_since:%Y-%m-%d %H:%M}")
            row = (
                slot.name,
                slot.plugin or slot.slot_type,
                slot.database or "-",
                f"pid {slot.active_pid}" if slot.active else "nobody",
                "-" if slot.retained_bytes is None else size(slot.retained_bytes),
                "-" if slot.lag_bytes is None else size(slot.lag_bytes),
                slot.wal_status or "-",
                "-" if slot.safe_wal_size is None else size(max(0, slot.safe_wal_size)),
                "-" if slot.catalog_xmin_age is None else str(slot.catalog_xmin_age),
                ", ".join(remarks),
            )
            table.add_row(*map(escape, row), style="red" if slot.lost_because else None)
        file: Any = self.stdout
        Console(file=file, width=None if file.isatty() else 200, highlight=False).print(table)


def _valid(name: str) -> str:
    try:
        return slots.validate_slot_name(name)
    except ReplicationError as error:
        raise CommandError(str(error)) from error


def _run(action: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
    dsn, _ = streamed_database()
    if dsn is None:
        raise CommandError(
            "no database is configured, and the embedded one does not run; set DATABASE_URL (or DB_*), or start "
            "manage.py realtime"
        )

    async def run() -> T:
        address = await with_address(dsn, settings.DB_IP_VERSION or None)
        async with await psycopg.AsyncConnection.connect(address, autocommit=True) as conn:
            return await action(conn)

    try:
        return asyncio.run(run())
    except (ReplicationError, psycopg.Error, OSError) as error:
        raise CommandError(str(error).strip()) from error
