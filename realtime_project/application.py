"""Hands the settings to the parts and puts them together: the one place that knows them all."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from channels.layers import get_channel_layer
from django.conf import settings

from realtime_project import garbage
from replication.configuration import Configuration
from replication.options import ReplicatorSettings
from replication.publisher import Publisher
from replication.replicator import Replicator
from streaming import problems
from streaming.admission import WhenReady
from streaming.catalogue import Catalogue
from streaming.health import REPLICATORS, REPORT_LEASE_S, REPORT_S
from streaming.hub import Hub
from streaming.intercom import configured_intercom
from streaming.knowledge import Knowledge
from streaming.limits import Limits, Traffic
from streaming.observatory import Observatory
from streaming.pacing import BOUND_BYTES, Pace
from streaming.payloads import legacy_commit_timestamp, legacy_payload
from streaming.process import this_process
from streaming.proxies import BehindProxies
from streaming.rooms import Rooms
from streaming.roster import configured_roster, keep, process_name
from streaming.timed import TimedPublisher
from streaming.topic_groups import TopicGroups
from streaming.transport import OutletLimits

if TYPE_CHECKING:
    from replication.webhooks import Webhooks
    from streaming.dashboard import Dashboard

logger = logging.getLogger(__name__)

EMBEDDED_SLOT = "walcast"
"""The slot in the embedded database, unless SLOT_NAME says otherwise."""


def make_hub(dsn: str | None = None, **more: Any) -> Hub:
    """This process's hub; ``dsn`` goes before the configured database, ``more`` is as `Hub` takes it."""
    catalogue = Catalogue(
        dsn or settings.STREAM_DSN,
        Knowledge(),
        publications=settings.PUBLICATIONS,
        hidden=frozenset(settings.HIDDEN_TABLES),
        time_zone=settings.SESSION_TIMEZONE,
        ip_version=settings.DB_IP_VERSION or None,
    )
    # Nobody is cut off for a queue that the log was read into too fast.
    pace = Pace(bound_bytes=min(BOUND_BYTES, int(settings.SLOW_READER_MAX_MB * 1e6) // 4))
    hub = Hub(
        star_event=settings.BROADCAST_STAR_EVENT,
        configuration=settings.CONFIGURATION,
        pace=pace,
        catalogue=catalogue,
        max_record_bytes=settings.MAX_RECORD_BYTES,
        **more,
    )
    this_process.hub = hub
    return hub


def make_rooms() -> Rooms:
    """This process's rooms: what clients say to each other."""
    limits = Limits(
        users=settings.TENANT_MAX_CONCURRENT_USERS,
        joins_per_s=settings.TENANT_MAX_JOINS_PER_SECOND,
        events_per_s=settings.TENANT_MAX_EVENTS_PER_SECOND,
        presence_events_per_s=settings.MAX_PRESENCE_EVENTS_PER_SECOND,
        presence_calls=settings.CLIENT_PRESENCE_MAX_CALLS,
        presence_window_s=settings.CLIENT_PRESENCE_WINDOW_MS / 1000,
        payload_bytes=settings.MAX_PAYLOAD_SIZE_IN_KB * 1000,
    )
    layer = get_channel_layer() if settings.REDIS_URL else None
    this_process.rooms = rooms = Rooms(process_name(), layer, Traffic(limits))
    return rooms


def make_application(hub: Hub) -> Any:
    """The ASGI application: HTTP by Django, websockets by the hub. Needs `django.setup()`, or does it."""
    from channels.routing import ProtocolTypeRouter
    from django.core.asgi import get_asgi_application

    http = get_asgi_application()

    from streaming import short_way
    from streaming.dashboard_socket import live_application
    from streaming.middleware import configured_verifier
    from streaming.routing import websocket_application

    garbage.tune()
    rooms = make_rooms()
    short_way.install(
        idle_timeout_s=settings.IDLE_TIMEOUT_S or None,
        pings=settings.WEBSOCKET_PINGS,
        share_port=settings.REUSE_PORT,
        max_message_bytes=settings.MAX_FRAME_BYTES,
    )
    limits = OutletLimits(int(settings.SLOW_READER_MAX_MB * 1e6), settings.SLOW_READER_MAX_WAIT_S)
    websocket = websocket_application(
        hub,
        configured_verifier(),
        limits=limits,
        max_topics=settings.MAX_TOPICS,
        max_topic_length=settings.MAX_TOPIC_LENGTH,
        end_expired=settings.EXPIRED_TOKENS_END_CHANNELS,
        bypass_roles=(
            frozenset(settings.BYPASS_ROLES) if settings.SECURE_CHANNELS and not settings.IGNORE_ROW_SECURITY else None
        ),
        rooms=rooms,
        presence_enabled=settings.PRESENCE_ENABLED,
        no_channel_timeout_s=settings.NO_CHANNEL_TIMEOUT_S,
        max_sockets=settings.MAX_CONNECTIONS,
        max_sockets_per_address=settings.MAX_CONNECTIONS_PER_ADDRESS,
        live=live_application(make_dashboard(), settings.CSRF_TRUSTED_ORIGINS) if settings.DASHBOARD else None,
    )
    application = ProtocolTypeRouter({"http": http, "websocket": WhenReady(websocket, hub)})
    return BehindProxies(application, settings.TRUSTED_PROXIES) if settings.TRUSTED_PROXIES else application


def make_observatory(kind: str | None = None) -> Observatory:
    """What looks at this process; ``kind`` says what the process is, once somebody knows."""
    if this_process.observatory is None:
        this_process.observatory = Observatory(
            problems.installed(), hub=this_process.hub, rooms=this_process.rooms, timed=this_process.timed
        )
    this_process.observatory.kind = kind or this_process.observatory.kind
    return this_process.observatory


def make_dashboard() -> Dashboard:
    """What staff see and do. The database is asked only while somebody looks."""
    from realtime_project.survey import Survey
    from streaming.dashboard import Dashboard

    survey = Survey(
        lambda: settings.DEMO_DSN or settings.STREAM_DSN,
        publications=settings.PUBLICATIONS,
        hidden=settings.HIDDEN_TABLES,
        withholds_secured=settings.SECURE_CHANNELS and not settings.IGNORE_ROW_SECURITY,
        ip_version=settings.DB_IP_VERSION or None,
    )
    this_process.dashboard = Dashboard(
        make_observatory(),
        configured_intercom(),
        configured_roster(),
        survey,
        our_slot=lambda: settings.SLOT_NAME or None,
    )
    return this_process.dashboard


def make_publisher(chain: Publisher) -> tuple[Publisher, Webhooks | None]:
    """What a replicator publishes into: the chain, and around it who else is told.

    Webhooks, if there are any, post while their `run` runs, and read the replicator's ring as their ``log``.
    """
    configuration: Configuration = settings.CONFIGURATION
    for place, reason in configuration.oddities():
        logger.warning("part of CONFIGURATION_FILE has no effect", extra={"place": place, "reason": reason})
    timed = TimedPublisher(chain)
    this_process.timed = timed
    publisher: Publisher = timed
    if settings.TOPIC_GROUPS and (layer := get_channel_layer()) is not None:
        publisher = TopicGroups(publisher, layer, settings.TOPIC_GROUPS, configuration)
    if not configuration.webhooks:
        return publisher, None
    from replication.webhooks import Form, Webhooks, WebhookSettings  # the HTTP client takes a while

    wanted = WebhookSettings(
        headers=settings.WEBHOOK_HEADERS,
        timeout_s=settings.WEBHOOK_TIMEOUT_S,
        attempts=settings.WEBHOOK_ATTEMPTS,
        queue_bytes=int(settings.WEBHOOK_QUEUE_MAX_MB * 1e6),
        max_rows=settings.WEBHOOK_MAX_ROWS,
    )
    form = Form(legacy_payload, legacy_commit_timestamp)
    webhooks = Webhooks(publisher, configuration.webhooks, form, wanted)
    return webhooks, webhooks


def process_parts(
    replicator: Replicator | None = None, webhooks: Webhooks | None = None
) -> list[Coroutine[Any, Any, None]]:
    """What every process runs beside its own work: it hears commands, and a ``replicator`` tells how it is."""
    intercom, kind = configured_intercom(), "replicator" if this_process.hub is None else "sockets"
    if replicator is not None and this_process.hub is not None:
        kind = "realtime"
    observatory = make_observatory(kind)
    observatory.answer(intercom)
    parts: list[Coroutine[Any, Any, None]] = [intercom.run(), observatory.run(configured_roster()), garbage.tend()]
    if this_process.dashboard is not None:
        parts.append(this_process.dashboard.run())
    if this_process.rooms is not None:
        parts.append(this_process.rooms.run())
    if replicator is not None:
        parts.append(_report(replicator, webhooks))
    if settings.PROMETHEUS_MULTIPROC_DIR and this_process.hub is not None:
        # prometheus-client reads the environment, when it is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = settings.PROMETHEUS_MULTIPROC_DIR
        from streaming.metrics import carry_on

        parts.append(carry_on())
    return parts


async def _report(replicator: Replicator, webhooks: Webhooks | None) -> None:
    where = {"process": process_name(), "host": socket.gethostname(), "pid": os.getpid()}

    async def status() -> dict[str, Any]:
        return where | replicator.status().as_json() | {"webhooks": webhooks.counts() if webhooks else []}

    await keep(configured_roster(), REPLICATORS, replicator.instance, status, every_s=REPORT_S, lease_s=REPORT_LEASE_S)


async def run_together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run the parts until one fails or this is cancelled; all of them have ended when it returns.

    Unlike with `asyncio.gather`, each may take its time to end: the record is saved, what waits is posted.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def streamed_database() -> tuple[str | None, str | None]:
    """The connection string of the database that is streamed, and its slot (`None`: a temporary one).

    Without a configured database that is the embedded one, if it runs; `None` if it does not.
    """
    if settings.DATABASE_IS_CONFIGURED:
        return settings.STREAM_DSN, settings.SLOT_NAME or None
    try:
        return (settings.WALCAST_HOME / "dsn").read_text().strip(), settings.SLOT_NAME or EMBEDDED_SLOT
    except OSError:
        return None, None


def replicator_settings(
    *,
    dsn: str | None = None,
    slot_name: str | None = None,
    create_publication: bool = False,
    exclusive: bool = False,
) -> ReplicatorSettings:
    """What the settings say for a replicator; the arguments go before them."""
    return ReplicatorSettings(
        dsn=dsn or settings.STREAM_DSN,
        ip_version=settings.DB_IP_VERSION or None,
        publications=tuple(settings.PUBLICATIONS),
        slot_name=slot_name or settings.SLOT_NAME or None,
        create_publication=create_publication,
        exclusive=exclusive,
        time_zone=settings.SESSION_TIMEZONE,
        hidden_tables=frozenset(settings.HIDDEN_TABLES),
        ring_bytes=int(settings.RING_MAX_MB * 1e6),
        ring_age_s=settings.RING_MAX_AGE_S,
        ring_wal_bytes=int(settings.RING_MAX_WAL_MB * 1e6),
        slot_failover=settings.SLOT_FAILOVER,
        heartbeat_s=settings.HEARTBEAT_INTERVAL_S,
        max_lag_bytes=int(settings.MAX_REPLICATION_LAG_MB * 1e6),
    )
