"""Hands the settings to the parts and puts them together: the one place that knows them all."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from channels.layers import get_channel_layer
from django.conf import settings

from replication.configuration import Configuration
from replication.publisher import Publisher
from replication.replicator import ReplicatorSettings
from streaming.hub import Hub
from streaming.payloads import legacy_commit_timestamp, legacy_payload
from streaming.topic_groups import TopicGroups
from streaming.transport import OutletLimits

if TYPE_CHECKING:
    from replication.webhooks import Webhooks

logger = logging.getLogger(__name__)


def tune() -> None:
    """Let the garbage collector look less often: what the ring and the hub keep is many small values, and no cycles."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def make_hub(**more: Any) -> Hub:
    """This process's hub; ``more`` as `Hub` takes it."""
    return Hub(star_event=settings.BROADCAST_STAR_EVENT, configuration=settings.CONFIGURATION, **more)


def make_application(hub: Hub) -> Any:
    """The ASGI application: HTTP by Django, websockets by the hub. Needs `django.setup()`, or does it."""
    from channels.routing import ProtocolTypeRouter
    from django.core.asgi import get_asgi_application

    http = get_asgi_application()

    from streaming import short_way
    from streaming.middleware import configured_verifier
    from streaming.routing import websocket_application

    tune()
    short_way.install(idle_timeout_s=settings.IDLE_TIMEOUT_S or None, pings=settings.WEBSOCKET_PINGS)
    limits = OutletLimits(int(settings.SLOW_READER_MAX_MB * 1e6), settings.SLOW_READER_MAX_WAIT_S)
    websocket = websocket_application(
        hub,
        configured_verifier(),
        limits=limits,
        max_topics=settings.MAX_TOPICS,
        max_topic_length=settings.MAX_TOPIC_LENGTH,
        end_expired=settings.EXPIRED_TOKENS_END_CHANNELS,
    )
    return ProtocolTypeRouter({"http": http, "websocket": websocket})


def make_publisher(chain: Publisher) -> tuple[Publisher, Webhooks | None]:
    """What a replicator publishes into: the chain, and around it who else is told.

    Webhooks, if there are any, post while their `run` runs, and read the replicator's ring as their ``log``.
    """
    configuration: Configuration = settings.CONFIGURATION
    for place, reason in configuration.oddities():
        logger.warning("part of CONFIGURATION_FILE has no effect", extra={"place": place, "reason": reason})
    publisher = chain
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
        max_lag_bytes=int(settings.MAX_REPLICATION_LAG_MB * 1e6),
    )
