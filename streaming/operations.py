"""What an operator's machines ask: is it alive, is it ready, what does it count.

Every process that serves sockets answers, from its own hub and from what the replicators tell through the roster. The
answers are public, but for the metrics (`METRICS_TOKEN`, or this machine only).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from hmac import compare_digest
from http import HTTPStatus
from typing import Any, Final

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_safe

from replication.lsn import Position, position_token
from streaming.errors import RosterAway
from streaming.health import REPLICATORS, Health, Standstill, active_replicator, judge
from streaming.process import this_process
from streaming.roster import configured_roster

_NOT_STORED: Final = {"Cache-Control": "no-store"}

_standstill = Standstill()


@require_safe
async def live(request: HttpRequest) -> HttpResponse:
    """`/health/live`: 200 while the event loop turns, or else nobody answers. Restart what does not."""
    return JsonResponse({"status": "live"}, headers=_NOT_STORED)


@require_safe
async def ready(request: HttpRequest) -> HttpResponse:
    """`/health/ready`: 200 while changes come through, 503 and the reason while not. Send clients elsewhere then."""
    health = await present_health()
    status = HTTPStatus.OK if health.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    response = JsonResponse(health.as_json(), status=status, headers=_NOT_STORED)
    response._has_been_logged = True  # type: ignore[attr-defined]  # Django would log an error for each question
    return response


@require_safe
async def healthcheck(request: HttpRequest) -> HttpResponse:
    """`/healthcheck`: what today's server answers there."""
    return HttpResponse("ok", content_type="text/plain; charset=utf-8", headers=_NOT_STORED)


@require_safe
async def ping(request: HttpRequest) -> HttpResponse:
    """`/api/ping`: what today's server answers there."""
    return JsonResponse({"message": "Success"}, headers=_NOT_STORED)


@require_safe
async def metrics(request: HttpRequest) -> HttpResponse:
    """`/metrics`: what Prometheus scrapes. 403 for who may not."""
    if not _may_read_metrics(request):
        return HttpResponse(status=HTTPStatus.FORBIDDEN)
    from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

    from streaming.metrics import exposition  # late: see there

    try:
        replicators = await configured_roster().all(REPLICATORS)
    except RosterAway:
        replicators = {}
    body = exposition(replicators, time.monotonic())
    return HttpResponse(body, content_type=CONTENT_TYPE_PLAIN_0_0_4, headers=_NOT_STORED)


def _may_read_metrics(request: HttpRequest) -> bool:
    """Who brings METRICS_TOKEN; without one, who asks from this machine and through no proxy."""
    token: str = settings.METRICS_TOKEN
    if token:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and compare_digest(given.strip().encode(), token.encode())
    is_forwarded = any(name in request.headers for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"))
    return not is_forwarded and request.META.get("REMOTE_ADDR") in ("127.0.0.1", "::1", "::ffff:127.0.0.1")


async def present_health() -> Health:
    """The verdict on this process, now."""
    try:
        replicators = await configured_roster().all(REPLICATORS)
    except RosterAway:
        replicators = None
    status, hub = active_replicator(replicators or {}), this_process.hub
    health = judge(replicators, ready_within_s=settings.READY_WITHIN_S, stuck_s=_stuck_s(status))
    if health.reason == "behind" and hub is not None and status is not None:
        have, published = position_token(hub.epoch, hub.have), f"{status['epoch']}.{status['published']}"
        return replace(health, facts=dict(health.facts) | {"have": have, "published": published})
    return health


def _stuck_s(status: Mapping[str, Any] | None) -> float:
    hub = this_process.hub
    if hub is None or status is None or not status.get("published"):
        return 0.0
    is_level = hub.epoch == status["epoch"] and hub.have >= Position.parse(status["published"])
    return _standstill.seconds((hub.epoch, hub.have), is_level=is_level, now=time.monotonic())


urlpatterns = [
    path("health/live", live),
    path("health/ready", ready),
    path("healthcheck", healthcheck),
    path("api/ping", ping),
    path("metrics", metrics),
]
