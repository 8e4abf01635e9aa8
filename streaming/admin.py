"""Django's table of admin actions: the audit log, to be read and nothing else."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.http import HttpRequest


@admin.register(LogEntry)
class AuditLog(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic at run time
    """What operators did: to be read, and nothing else."""

    list_display = ("action_time", "user", "object_repr", "change_message")
    list_filter = ("action_time", "user")
    search_fields = ("object_repr", "change_message")
    date_hierarchy = "action_time"

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False
