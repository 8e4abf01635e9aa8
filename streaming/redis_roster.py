"""The roster in Redis or Valkey, by whose clock leases run out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import orjson
import redis.asyncio
from redis.exceptions import RedisError

from streaming.errors import RosterAway

REDIS_TIMEOUT_S: Final = 3.0

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
