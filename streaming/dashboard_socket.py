"""The dashboard's own websocket, for staff who look.

Here, and only here, a cookie opens a websocket: so the Origin has to be ours, and the session that of a staff user.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

import orjson
from channels.auth import AuthMiddlewareStack
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer

from streaming.dashboard import Dashboard
from streaming.denial import deny
from streaming.frames import Parcel
from streaming.transport import Outlet, OutletLimits, outlet_for

logger = logging.getLogger(__name__)

RECHECK_S: Final = 60.0
"""How often it is looked whether the viewers are still staff."""

_MOST_UNSENT_BYTES: Final = 1 << 20
_NO_LONGER_STAFF: Final = 4401


class DashboardConsumer(AsyncWebsocketConsumer):
    """One viewer's websocket. The page says what it looks at; everything it does goes by HTTP, with a CSRF token."""

    channel_layer_alias = ""
    outlet: Outlet

    def __init__(self, *, dashboard: Dashboard) -> None:
        super().__init__()
        self._dashboard = dashboard
        self.wanted: Mapping[str, Any] = {}
        self._checked_at = time.monotonic()
        self._checking: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Let a viewer in; who they are was checked at the door (`StaffOnly`)."""
        self.outlet = outlet_for(cast("dict[str, Any]", self.scope), self.base_send, OutletLimits())
        if not self._dashboard.add(self):
            await self.close(code=1013)
            return
        await self.accept()
        self.show({"type": "history", "rows": await self._dashboard.history()})

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """The page looks at something else."""
        try:
            wanted = orjson.loads(text_data or "")
        except orjson.JSONDecodeError:
            return
        if isinstance(wanted, dict) and len(text_data or "") < 2000:
            self.wanted = wanted
            await self._dashboard.show_section(self)

    async def disconnect(self, code: int) -> None:
        """The viewer has gone."""
        self._dashboard.remove(self)
        if self._checking is not None:
            self._checking.cancel()

    def show(self, message: Mapping[str, Any]) -> None:  # see Viewer
        if self.outlet.queued_bytes < _MOST_UNSENT_BYTES:
            self.outlet.write(Parcel([orjson.dumps(message)]))

    def check(self) -> None:  # see Viewer
        now = time.monotonic()
        self.outlet.check(now)
        if now - self._checked_at >= RECHECK_S:
            self._checked_at = now
            self._checking = asyncio.get_running_loop().create_task(self._recheck())

    async def _recheck(self) -> None:
        scope = cast("dict[str, Any]", self.scope)
        if not await database_sync_to_async(_is_still_staff)(scope["session"].session_key, scope["user"].pk):
            self.outlet.close(_NO_LONGER_STAFF, "signed out")


def _is_still_staff(session_key: str, user_id: int) -> bool:
    from django.contrib.auth import get_user_model
    from django.contrib.sessions.backends.db import SessionStore

    users = get_user_model().objects.filter(pk=user_id, is_active=True, is_staff=True)
    return SessionStore().exists(session_key) and users.exists()


class StaffOnly:
    """ASGI middleware: only staff users, and only from pages of ours. Others are refused with 403 before the upgrade.

    ``trusted_origins`` are origins of ours under another name than the request's host, as CSRF_TRUSTED_ORIGINS has
    them.
    """

    def __init__(self, application: Any, trusted_origins: Collection[str]) -> None:
        self._application, self._trusted = application, frozenset(trusted_origins)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one websocket."""
        user = scope.get("user")
        if _is_ours(scope, self._trusted) and user is not None and user.is_active and user.is_staff:
            await self._application(scope, receive, send)
            return
        client = scope.get("client")
        facts = {"client": client[0] if client else None, "path": scope["path"]}
        logger.info("dashboard refused", extra=facts)
        await receive()
        await deny(scope, send, 403)


def _is_ours(scope: Mapping[str, Any], trusted: Collection[str]) -> bool:
    """Whether a page of ours opens the socket: browsers always say which page it is, and scripts cannot forge it."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    origin = headers.get(b"origin", "")
    return origin in trusted or bool(origin and urlsplit(origin).netloc == headers.get(b"host"))


def live_application(dashboard: Dashboard, trusted_origins: Collection[str]) -> Any:
    """The ASGI application of the dashboard's websocket."""
    consumer = DashboardConsumer.as_asgi(dashboard=dashboard)
    return AuthMiddlewareStack(StaffOnly(consumer, trusted_origins))
