"""Who is present across processes: records with a lease, which vanish with the process that wrote them.

A record has a kind (``replicator``, ``process``…), a name that is unique within it, and a value: whatever JSON can
hold. It is there until its lease runs out, unless it is put again or renewed. Between processes Redis keeps them
(`streaming.redis_roster`); in one process a dictionary does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, Protocol

import orjson
from django.conf import settings

from streaming.errors import RosterAway

logger = logging.getLogger(__name__)

REMOVAL_S: Final = 3.0
"""How long a record may take to be removed at the end."""


def process_name() -> str:
    """This process, for the others: no other one has this name, be it forked from this one or started in its place."""
    return _name_of(os.getpid())


@lru_cache(maxsize=1)
def _name_of(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-{secrets.token_hex(3)}"


class Roster(Protocol):
    """Records with leases. Each method raises `RosterAway` if they cannot be reached."""

    async def put(self, kind: str, name: str, value: Any, *, lease_s: float) -> None:
        """Write one record; it replaces the one of this name, lease and all."""

    async def put_many(self, kind: str, records: Mapping[str, Any], *, lease_s: float) -> None:
        """Write several records in one go."""

    async def renew(self, kind: str, names: Iterable[str], *, lease_s: float) -> list[str]:
        """Give records a new lease as they stand; returns the names that were not there (any more)."""

    async def remove(self, kind: str, *names: str) -> None:
        """End records before their lease does. Whoever is not there is no error."""

    async def all(self, kind: str) -> dict[str, Any]:
        """Every record of a kind whose lease runs: name to value."""

    async def close(self) -> None:
        """Let go of connections. The records stay until their leases end."""


class MemoryRoster:
    """A `Roster` within one process. Values pass through JSON, so that none is seen here that Redis would not take."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[str, dict[str, tuple[float, bytes]]] = {}

    async def put(self, kind: str, name: str, value: Any, *, lease_s: float) -> None:  # see Roster
        await self.put_many(kind, {name: value}, lease_s=lease_s)

    async def put_many(self, kind: str, records: Mapping[str, Any], *, lease_s: float) -> None:  # see Roster
        ends_at = self._clock() + lease_s
        encoded = {name: (ends_at, orjson.dumps(value)) for name, value in records.items()}
        self._kinds.setdefault(kind, {}).update(encoded)

    async def renew(self, kind: str, names: Iterable[str], *, lease_s: float) -> list[str]:  # see Roster
        alive, ends_at = self._alive(kind), self._clock() + lease_s
        missing = []
        for name in names:
            if name in alive:
                alive[name] = (ends_at, alive[name][1])
            else:
                missing.append(name)
        return missing

    async def remove(self, kind: str, *names: str) -> None:  # see Roster
        for name in names:
            self._kinds.get(kind, {}).pop(name, None)

    async def all(self, kind: str) -> dict[str, Any]:  # see Roster
        return {name: orjson.loads(value) for name, (_, value) in self._alive(kind).items()}

    async def close(self) -> None:  # see Roster
        pass

    def _alive(self, kind: str) -> dict[str, tuple[float, bytes]]:
        records, now = self._kinds.setdefault(kind, {}), self._clock()
        for name in [name for name, (ends_at, _) in records.items() if ends_at <= now]:
            del records[name]
        return records


@lru_cache(maxsize=1)
def configured_roster() -> Roster:
    """This process's roster, as the settings say: in the first of REDIS_URL, or in memory without one.

    It belongs to the event loop that uses it first; a process has one loop.
    """
    if settings.REDIS_URL:
        from streaming.redis_roster import RedisRoster  # its driver takes memory, and many do without

        return RedisRoster(settings.REDIS_URL[0], prefix=settings.REDIS_PREFIX)
    return MemoryRoster()


async def keep(
    roster: Roster, kind: str, name: str, value: Callable[[], Awaitable[Any]], *, every_s: float, lease_s: float
) -> None:
    """Put a record again and again until cancelled, and remove it then; ``value`` is asked each time.

    A roster that is away is said once, and tried again at the next turn.
    """
    away = False
    try:
        while True:
            try:
                await roster.put(kind, name, await value(), lease_s=lease_s)
                away = False
            except RosterAway as error:
                if not away:
                    logger.warning("roster away", extra={"kind": kind, "error": error})
                away = True
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError  # redis-py may finish its work and swallow the cancellation
            await asyncio.sleep(every_s)
    finally:
        try:
            async with asyncio.timeout(REMOVAL_S):
                await roster.remove(kind, name)
        except (RosterAway, TimeoutError):
            pass  # the lease ends by itself
