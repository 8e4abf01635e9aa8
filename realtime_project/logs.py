"""One event a line: a constant message, then facts, as key=value or as JSON."""

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
        facts = "".join(f" {key}={_quoted(text)}" for key, text in facts_of(record).items())
        line = f"{_moment(record)} {record.levelname} {record.name} {record.getMessage()}{facts}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonFormatter(logging.Formatter):
    """The same as one JSON object a line: ``time``, ``level``, ``logger``, ``message``, the facts, ``traceback``.

    Numbers, booleans and nothing stay what they are; every other fact is text. A fact of the name of one of the
    others stands under its name with an underscore behind.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        line: dict[str, object] = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, text in facts_of(record).items():
            value = getattr(record, key)
            is_json = isinstance(value, bool) or (type(value) in (int, float) and text not in ("nan", "inf", "-inf"))
            line[f"{key}_" if key in line or key == "traceback" else key] = value if is_json else text
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


FORMATTERS = {"keyvalue": KeyValueFormatter, "json": JsonFormatter}
"""By their names in LOG_FORMAT."""


def facts_of(record: logging.LogRecord) -> dict[str, str]:
    """What a call gave as ``extra``, as text."""
    return {
        key: f"{value:.3f}" if isinstance(value, float) else str(value)
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None
    }


def _moment(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _quoted(text: str) -> str:
    return text if text and set(text) <= _PLAIN else json.dumps(text, ensure_ascii=False)


def logging_config(level: str, form: str = "keyvalue") -> dict[str, object]:
    """Django's LOGGING: our apps at ``level``, everybody else's warnings; ``form`` is a key of `FORMATTERS`."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": FORMATTERS[form]}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            **{name: {"level": level} for name in ("realtime_project", "replication", "streaming")},
            "django.request": {"level": "ERROR"},  # a 404 or 426 is nothing to do for an operator
        },
    }
