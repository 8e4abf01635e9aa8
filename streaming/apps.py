"""The Django app."""

from django.apps import AppConfig


class StreamingConfig(AppConfig):
    """Walcast streaming."""

    name = "streaming"
    verbose_name = "Walcast streaming"

    def ready(self) -> None:
        """Register the system checks."""
        from streaming import checks  # noqa: F401
