"""The records in Django's admin: to be read, and nothing else."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from replication.models import ReplicationRecord


@admin.register(ReplicationRecord)
class Records(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic at run time
    """How far each replicator has published."""

    list_display = ("name", "published", "floor", "updated_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False
