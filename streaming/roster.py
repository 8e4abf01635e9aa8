"""Who is present across processes: records with a lease, which vanish with the process that wrote them.

A record has a kind (``replicator``, ``process``…), a name that is unique within it, and a value: whatever JSON can
hold. It is there until its lease runs out, unless it is put again or renewed. Between processes Redis keeps them, by
its own clock; in one process a dictionary does.
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
import redis.asyncio
from django.conf import settings
from redis.exceptions import RedisError

from streaming.errors import RosterAway

logger = logging.getLogger(__name__)

REDIS_TIMEOUT_S: Final = 3.0


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


# A kind is two keys: when each record ends (a sorted set of names), and what it says (a hash). The server's clock
# decides, so that processes with different ones agree. A key outlives its last record by nothing: what nobody writes
# any more is gone, also if nobody reads it.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function keep(ends)
    for _, key in ipairs(KEYS) do
        if redis.call('PTTL', key) < ends - now then redis.call('PEXPIREAT', key, ends) end
    end
end
"""

_PUT = (
    _NOW
    + """
local ends = now + tonumber(ARGV[1])
for index = 2, #ARGV, 2 do
    redis.call('ZADD', KEYS[1], ends, ARGV[index])
    redis.call('HSET', KEYS[2], ARGV[index], ARGV[index + 1])
end
keep(ends)
"""
)

_RENEW = (
    _NOW
    + """
local ends, missing = now + tonumber(ARGV[1]), {}
for index = 2, #ARGV do
    local score = redis.call('ZSCORE', KEYS[1], ARGV[index])
    if score and tonumber(score) > now then
        redis.call('ZADD', KEYS[1], ends, ARGV[index])
    else
        table.insert(missing, ARGV[index])
    end
end
keep(ends)
return missing
"""
)

_ALL = (
    _NOW
    + """
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
    redis.call('ZREM', KEYS[1], name)
    redis.call('HDEL', KEYS[2], name)
end
return redis.call('HGETALL', KEYS[2])
"""
)

_BATCH = 500
"""So many records go into one call of a script: Redis does nothing else meanwhile."""


class RedisRoster:
    """A `Roster` in Redis or Valkey, seen by every process that has the same ``url`` and ``prefix``."""

    def __init__(self, url: str, *, prefix: str) -> None:
        self._redis: Any = redis.asyncio.from_url(  # its stubs lack types
            url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S, health_check_interval=30
        )
        self._prefix = prefix
        self._put, self._renew, self._all = (self._redis.register_script(script) for script in (_PUT, _RENEW, _ALL))

    async def put(self, kind: str, name: str, value: Any, *, lease_s: float) -> None:  # see Roster
        await self.put_many(kind, {name: value}, lease_s=lease_s)

    async def put_many(self, kind: str, records: Mapping[str, Any], *, lease_s: float) -> None:  # see Roster
        items = [(name, orjson.dumps(value)) for name, value in records.items()]
        for start in range(0, len(items), _BATCH):
            flat = [part for item in items[start : start + _BATCH] for part in item]
            await self._run(self._put, kind, [_milliseconds(lease_s), *flat])

    async def renew(self, kind: str, names: Iterable[str], *, lease_s: float) -> list[str]:  # see Roster
        wanted, missing = list(names), []
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            missing += await self._run(self._renew, kind, [_milliseconds(lease_s), *batch])
        return [name.decode() for name in missing]

    async def remove(self, kind: str, *names: str) -> None:  # see Roster
        if not names:
            return
        ends, values = self._keys(kind)

        async def remove(**_: Any) -> None:
            async with self._redis.pipeline(transaction=True) as pipeline:
                await pipeline.zrem(ends, *names).hdel(values, *names).execute()

        await self._run(remove, kind, [])

    async def all(self, kind: str) -> dict[str, Any]:  # see Roster
        flat = iter(await self._run(self._all, kind, []))
        return {name.decode(): orjson.loads(value) for name, value in zip(flat, flat, strict=True)}

    async def close(self) -> None:  # see Roster
        await self._redis.aclose()

    def _keys(self, kind: str) -> list[str]:
        # The braces keep both in one slot of a Redis cluster.
        base = f"{self._prefix}:roster:{{{kind}}}"
        return [f"{base}:ends", f"{base}:values"]

    async def _run(self, script: Callable[..., Awaitable[Any]], kind: str, arguments: list[Any]) -> Any:
        try:
            return await script(keys=self._keys(kind), args=arguments)
        except (RedisError, OSError) as error:
            raise RosterAway(str(error) or type(error).__name__) from error


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


@lru_cache(maxsize=1)
def configured_roster() -> Roster:
    """This process's roster, as the settings say: in the first of REDIS_URL, or in memory without one.

    It belongs to the event loop that uses it first; a process has one loop.
    """
    if settings.REDIS_URL:
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
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await roster.remove(kind, name)
        except (RosterAway, TimeoutError):
            pass  # the lease ends by itself
