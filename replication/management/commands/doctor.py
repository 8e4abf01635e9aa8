"""`manage.py doctor`: is everything as streaming needs it, and if not, what cures it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from channels.layers import get_channel_layer
from django.conf import settings
from django.core.management import BaseCommand
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from realtime_project.application import streamed_database
from replication.doctor import examine
from replication.findings import Finding, Subject
from streaming import checkup
from streaming.roster import configured_roster

_EPILOG = """
Looks, and changes nothing: the database (DATABASE_URL or DB_*, or the embedded one while it runs), settings, Redis, and
who is at work.

    manage.py doctor              a table for people
    manage.py doctor --json       for programs
    manage.py doctor --fix        only the SQL that cures what can be cured by SQL, to be read and run with psql

Exit code: 0 if nothing failed (there may be warnings; with --strict there are none), 1 otherwise.
"""
_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failure": ("✗", "red")}


class Command(BaseCommand):
    """The findings go to stdout."""

    help = "Look at everything that streaming depends on, and say what is wrong, why it matters, and what cures it."
    requires_system_checks: list[str] = []  # noqa: RUF012  (Django's); they are among the findings

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """Show the examples as they are written."""
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What can be said on the command line."""
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="one JSON object: verdict and findings")
        form.add_argument("--fix", action="store_true", help="print the SQL that cures, and nothing else; runs none")
        parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")

    def handle(self, *, strict: bool, fix: bool, **options: Any) -> None:
        """Look, tell, and exit with the verdict."""
        findings = asyncio.run(_findings())
        levels = {finding.level for finding in findings}
        is_fine = "failure" not in levels and not (strict and "warning" in levels)
        if options["json"]:
            verdict = "failure" if "failure" in levels else "warning" if "warning" in levels else "ok"
            told = {"verdict": verdict, "findings": [asdict(finding) for finding in findings]}
            self.stdout.write(json.dumps(told, indent=2, ensure_ascii=False))
        elif fix:
            self.stdout.write(_sql(findings))
        else:
            _show(findings, self._console(no_color=bool(options.get("no_color"))))
        if not is_fine:
            sys.exit(1)

    def _console(self, *, no_color: bool) -> Console:
        file: Any = self.stdout
        # rich obeys NO_COLOR by itself. Into a pipe nothing is cut: who reads it has no columns.
        width = None if file.isatty() or "COLUMNS" in os.environ else 160
        return Console(file=file, no_color=no_color or None, width=width, highlight=False)


async def _findings() -> list[Finding]:
    dsn, slot_name = streamed_database()
    if dsn is None:
        findings = [
            Finding(
                "connection",
                "failure",
                "no database is configured, and the embedded one does not run",
                "set DATABASE_URL (or DB_*), or start manage.py realtime",
            )
        ]
    else:
        subject = Subject(
            dsn,
            tuple(settings.PUBLICATIONS),
            slot_name,
            int(settings.MAX_REPLICATION_LAG_MB * 1e6),
            frozenset(settings.HIDDEN_TABLES),
            settings.DB_IP_VERSION or None,
            settings.BYPASS_ROLES if settings.SECURE_CHANNELS and not settings.IGNORE_ROW_SECURITY else None,
        )
        findings = await examine(subject)
    findings += checkup.settings_checked()
    if settings.REDIS_URL:
        findings += await checkup.redis_checked(settings.REDIS_URL)
        if (layer := get_channel_layer()) is not None:
            findings.append(await checkup.layer_checked(layer))
        findings += await checkup.replicators_checked(configured_roster(), ready_within_s=settings.READY_WITHIN_S)
    return findings


def _show(findings: Sequence[Finding], console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column("sign")
    table.add_column("check", no_wrap=True)
    table.add_column("what", overflow="fold")
    for finding in findings:
        sign, color = _SIGNS[finding.level]
        lines = [escape(finding.message)]
        if finding.level != "ok" and finding.cure:
            lines.append(f"[dim]→[/dim] {escape(finding.cure)}")
        lines += [f"[cyan]  {escape(statement)}[/cyan]" for statement in finding.sql]
        table.add_row(f"[{color}]{sign}[/{color}]", f"[bold]{escape(finding.check)}[/bold]", "\n".join(lines))
    console.print(table)
    failures = sum(finding.level == "failure" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if failures:
        console.print(f"\n[red]{_count(failures, 'check')} failed[/red], {_count(warnings, 'warning')}")
    elif warnings:
        console.print(f"\n[green]it can stream[/green], {_count(warnings, 'warning')}")
    else:
        console.print("\n[green]all is well[/green]")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _sql(findings: Sequence[Finding]) -> str:
    lines = []
    for finding in findings:
        if finding.sql:
            lines += [f"-- {finding.check}: {finding.message}"]
            lines += [f"-- {finding.cure}"] if finding.cure else []
            lines += [*finding.sql, ""]
    return "\n".join(lines).rstrip() or "-- nothing that SQL could cure"
