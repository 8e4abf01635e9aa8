"""`manage.py run_replicator`: the replicator alone; the sockets are served by Daphne processes."""

from __future__ import annotations

import asyncio
import signal
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from typing import Any

from channels.layers import get_channel_layer
from django.conf import settings
from django.core.management import BaseCommand, CommandError

from realtime_project import garbage
from realtime_project.application import make_publisher, process_parts, replicator_settings, run_together
from realtime_project.tables import make_tables
from replication.models import DjangoRecordStore
from replication.publisher import LayerPublisher
from replication.replicator import Replicator

_EPILOG = """
Reads the write-ahead log of DATABASE_URL (or DB_*) and pushes every change through REDIS_URL to the Daphne processes:

    manage.py run_replicator
    daphne -e tcp:port=4000:interface=0.0.0.0:backlog=4096 realtime_project.asgi:application

A second one waits, and takes over when the first goes.
"""


class Command(BaseCommand):
    """Stream until SIGINT or SIGTERM."""

    help = "Stream changes from PostgreSQL into the channel layer, for Daphne processes to broadcast."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """Show the examples as they are written."""
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What can be said on the command line."""
        parser.add_argument(
            "--create-publication", action="store_true", help="make a missing publication, FOR ALL TABLES"
        )

    def handle(self, *, create_publication: bool, **options: Any) -> None:
        """Migrate our own tables, then stream."""
        if not settings.REDIS_URL:
            raise CommandError(
                "REDIS_URL is not set, and the sockets are served by other processes, so no change would reach them; "
                "set it to a Redis or Valkey such as redis://localhost:6379/0, or run everything in one process: "
                "manage.py realtime"
            )
        make_tables()
        garbage.tune()
        asyncio.run(_stream(create_publication=create_publication))
        self.stdout.write("stopped")


async def _stream(*, create_publication: bool) -> None:
    layer = get_channel_layer()
    assert layer is not None
    chain = LayerPublisher(layer)
    publisher, webhooks = make_publisher(chain)
    replicator = Replicator(
        replicator_settings(create_publication=create_publication, exclusive=True), publisher, DjangoRecordStore()
    )
    parts = [replicator.run(), chain.answer_pulls(replicator.answer), *process_parts(replicator, webhooks)]
    if webhooks is not None:
        webhooks.log = replicator.changelog
        parts.append(webhooks.run())
    task = asyncio.create_task(run_together(*parts))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task
    await layer.flush()
