"""The Django app."""

from django.apps import AppConfig


class ReplicationConfig(AppConfig):
    """Walcast replication."""

    name = "replication"
    verbose_name = "Walcast replication"
