"""Walcast's own tables in the Django database, there before anything streams."""

from __future__ import annotations

from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

_APPS = ("realtime_project", "replication", "streaming")


def make_tables() -> None:
    """Migrate our database. In somebody's project the database is theirs, and so is the moment: there we only look.

    Raises `CommandError` if our tables are missing there.
    """
    if not getattr(settings, "IS_GUEST", False):
        settings.WALCAST_HOME.mkdir(parents=True, exist_ok=True)
        call_command("migrate", verbosity=0, interactive=False)
        return
    executor = MigrationExecutor(connection)
    ours = [node for node in executor.loader.graph.leaf_nodes() if node[0] in _APPS]
    if missing := [str(migration) for migration, _ in executor.migration_plan(ours)]:
        raise CommandError(
            f"migrations are not applied ({', '.join(missing)}), so Walcast could not keep a record of what it has "
            "published; apply them first: manage.py migrate"
        )
