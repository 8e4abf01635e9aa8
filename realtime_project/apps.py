"""The Django apps: the project's own, and Django's admin with our site in it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.contrib.admin import apps
from django.core.exceptions import ImproperlyConfigured


class RealtimeProjectConfig(AppConfig):
    """Walcast."""

    name = "realtime_project"
    verbose_name = "Walcast"

    def __init__(self, app_name: str, app_module: ModuleType | None) -> None:
        """Give a project that has Walcast among its apps the settings that Walcast reads; others have them already."""
        super().__init__(app_name, app_module)
        if "realtime_project.settings" not in sys.modules:
            from realtime_project import settings as ours

            adopt(settings, ours)

    def ready(self) -> None:
        """Register the system checks."""
        from realtime_project import checks  # noqa: F401


class AdminConfig(apps.AdminConfig):
    """Django's admin, whose first page is the dashboard."""

    default = False  # in INSTALLED_APPS, "realtime_project" means the other one
    default_site = "streaming.site.WalcastAdminSite"


def adopt(project: Any, ours: ModuleType) -> None:
    """Add our settings to those of a project.

    Raises `ImproperlyConfigured` if it has one with the same name already: Walcast would take it for its own.
    """
    if taken := [name for name in ours.OURS if hasattr(project, name)]:
        raise ImproperlyConfigured(
            f"Walcast cannot start: the project's settings have {', '.join(taken)}, a name that Walcast needs for "
            f"itself; rename it there, and if it was meant for Walcast, say it in WALCAST = {{{taken[0]!r}: …}}"
        )
    for name in (*ours.OURS, "DEMO_DSN", "DEMO_PSQL", "GIVEN"):
        setattr(project, name, getattr(ours, name))
    if not hasattr(project, "CHANNEL_LAYERS"):
        project.CHANNEL_LAYERS = ours.CHANNEL_LAYERS
