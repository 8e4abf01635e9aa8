"""The newest warnings and errors of this process, grouped by what they say: a handler of Python's logging."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from typing import Any, Final

from realtime_project.logs import facts_of

MAX_GROUPS: Final = 50
MAX_TIMES: Final = 60


class Problems(logging.Handler):
    """Keeps one group for each level, logger and message: how often, since when, and the facts of the newest.

    Our messages are constant and their facts stand beside them, so the message is the code of its group. Bounded in
    groups and in what a group keeps; tokens and secrets are in no log, and so not here.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._groups: OrderedDict[tuple[int, str, str], dict[str, Any]] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line of the log."""
        message = record.getMessage()[:300]
        key = record.levelno, record.name, message
        group = self._groups.pop(key, None)
        if group is None:
            group = {"level": record.levelname, "logger": record.name, "message": message, "count": 0}
            group |= {"first_at": record.created, "times": deque(maxlen=MAX_TIMES)}
        self._groups[key] = group  # the newest stands last
        group["count"] += 1
        group["last_at"] = record.created
        group["times"].append(record.created)
        group["facts"] = facts_of(record)
        while len(self._groups) > MAX_GROUPS:
            self._groups.popitem(last=False)

    def report(self, *, within_s: float = 3600.0, limit: int = 20) -> list[dict[str, Any]]:
        """The groups that had a line within the last ``within_s`` seconds, the newest first."""
        since = time.time() - within_s
        recent = [group for group in reversed(self._groups.values()) if group["last_at"] >= since]
        return [{**group, "times": list(group["times"])} for group in recent[:limit]]

    def clear(self) -> None:
        """Forget them all: somebody has read them."""
        self._groups.clear()


def installed() -> Problems:
    """This process's handler, put in place at the first call."""
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, Problems):
            return handler
    problems = Problems()
    root.addHandler(problems)
    return problems
