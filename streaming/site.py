"""Django's admin with the dashboard as its first page, and what an operator does there.

Every action is a POST with a CSRF token by a staff user, and leaves an audit line: in the log, and in Django's table of
admin actions, which the admin shows as well.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import psycopg
from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.http import require_POST

from streaming.errors import CommandFailed, ProcessSilent, StreamingError
from streaming.process import this_process

logger = logging.getLogger(__name__)


class WalcastAdminSite(admin.AdminSite):
    """The admin: users, audit log, records; and first of all the dashboard."""

    site_title = "Walcast"
    site_header = "Walcast"
    index_title = "Dashboard"
    site_url = "/"
    enable_nav_sidebar = False
    index_template = "admin/dashboard.html"

    def get_urls(self) -> list[URLResolver | URLPattern]:
        """Django's own, and the dashboard's actions."""
        ours: list[URLResolver | URLPattern] = [
            path("actions/disconnect", self.admin_view(require_POST(disconnect)), name="disconnect"),
            path("actions/drop-slot", self.admin_view(require_POST(drop_slot)), name="drop-slot"),
            path("tables/", self.admin_view(self.models), name="models"),
        ]
        return ours + super().get_urls()

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """The dashboard."""
        context = {**self.each_context(request), "title": self.index_title, "inspector": settings.INSPECTOR}
        context.update(extra_context or {})
        return TemplateResponse(request, self.index_template or "", context)

    def models(self, request: HttpRequest) -> TemplateResponse:
        """What Django's admin has for its first page: the tables."""
        context = {
            **self.each_context(request),
            "title": "Users and records",
            "subtitle": None,
            "app_list": self.get_app_list(request),
        }
        return TemplateResponse(request, "admin/models.html", context)


def disconnect(request: HttpRequest) -> HttpResponse:
    """Close a client's websocket, in whichever process it is. It may come back: only its token can keep it out."""
    process, client = request.POST.get("process", ""), request.POST.get("id", "")
    name = request.POST.get("name", "")[:100]
    if (dashboard := this_process.dashboard) is None or not process or not client:
        return _answer(HTTPStatus.BAD_REQUEST, "Which client? The request names none.")
    try:
        was_there = async_to_sync(dashboard.disconnect)(process, client)
    except (ProcessSilent, CommandFailed) as error:
        return _answer(HTTPStatus.BAD_GATEWAY, str(error))
    if not was_there:
        return _answer(HTTPStatus.NOT_FOUND, "It was gone already.")
    _audit(request, CHANGE, "client", name or client, f"Disconnected the client {name} of the process {process}.")
    return _answer(HTTPStatus.OK, "Disconnected. Clients reconnect by themselves, if their token lets them.")


def drop_slot(request: HttpRequest) -> HttpResponse:
    """Drop a replication slot that nobody reads. Only superusers may: what its reader has not read yet is lost."""
    name = request.POST.get("name", "")
    if not getattr(request.user, "is_superuser", False):
        return _answer(HTTPStatus.FORBIDDEN, "Dropping a slot loses changes for good: it takes a superuser.")
    if (dashboard := this_process.dashboard) is None or not name:
        return _answer(HTTPStatus.BAD_REQUEST, "Which slot? The request names none.")
    try:
        was_there = async_to_sync(dashboard.drop_slot)(name)
    except (psycopg.Error, OSError, TimeoutError, StreamingError) as error:
        return _answer(HTTPStatus.BAD_GATEWAY, str(error) or "The database does not answer.")
    except Exception as error:  # a ReplicationError: the slot is being read, and by whom
        return _answer(HTTPStatus.CONFLICT, str(error))
    if not was_there:
        return _answer(HTTPStatus.NOT_FOUND, "There is no such slot any more.")
    _audit(request, DELETION, "slot", name, f"Dropped the replication slot {name}.")
    return _answer(HTTPStatus.OK, f"The slot {name} is dropped.")


def _answer(status: HTTPStatus, words: str) -> JsonResponse:
    response = JsonResponse({"ok": status == HTTPStatus.OK, "words": words}, status=status)
    response._has_been_logged = True  # type: ignore[attr-defined]  # it is told to the person who asked
    return response


def _audit(request: HttpRequest, flag: int, kind: str, name: str, words: str) -> None:
    facts = {"action": words, "user": str(request.user), "client": request.META.get("REMOTE_ADDR")}
    logger.info("operator acted", extra=facts)
    LogEntry.objects.create(
        user_id=int(request.user.pk or 0),
        content_type=None,
        object_id=name,
        object_repr=f"{kind} {name}"[:200],
        action_flag=flag,
        change_message=words,
    )
