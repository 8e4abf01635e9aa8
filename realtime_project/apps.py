"""The Django app."""

from django.apps import AppConfig


class RealtimeProjectConfig(AppConfig):
    """Walcast."""

    name = "realtime_project"
    verbose_name = "Walcast"
