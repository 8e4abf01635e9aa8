"""The Django app."""

from django.apps import AppConfig


class ReplicationConfig(AppConfig):
    """Walcast replication."""

    name = "replication"
    verbose_name = "Walcast replication"

    def ready(self) -> None:
        """Register the system checks."""
        from replication import checks  # noqa: F401
