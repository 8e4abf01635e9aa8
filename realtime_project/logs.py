"""One event a line: a constant message, then facts as key=value."""

from __future__ import annotations

import json
import logging
import time

# Django adds the request to what it logs, and its text holds the query, where tokens are.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "request", "server_time"}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/,+*<>@%()")


class KeyValueFormatter(logging.Formatter):
    """``2026-11-24T15:42:53.712Z INFO replication.replicator published position=0/1596218 changes=3``.

    The facts are what a call gave as ``extra``. Values with spaces or quotes are written as JSON strings.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one line (more only for a traceback)."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts = "".join(
            f" {key}={_value(value)}"
            for key, value in vars(record).items()
            if key not in _STANDARD and value is not None
        )
        line = f"{moment}.{int(record.msecs):03d}Z {record.levelname} {record.name} {record.getMessage()}{facts}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def _value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text and set(text) <= _PLAIN else json.dumps(text, ensure_ascii=False)


def logging_config(level: str) -> dict[str, object]:
    """Django's LOGGING: our apps at ``level``, everybody else's warnings."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"key_value": {"()": "realtime_project.logs.KeyValueFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "key_value"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            **{name: {"level": level} for name in ("realtime_project", "replication", "streaming")},
            "django.request": {"level": "ERROR"},  # a 404 or 426 is nothing to do for an operator
        },
    }
