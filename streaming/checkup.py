"""What the processes beside the database would have to say: settings, Redis, the channel layer, who is at work."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis.asyncio
from channels.layers import BaseChannelLayer
from django.core import checks
from redis.exceptions import RedisError

from replication.findings import Finding, Level
from streaming.errors import RosterAway
from streaming.health import REASONS, REPLICATORS, REPORT_S, active_replicator, judge
from streaming.redis_roster import REDIS_TIMEOUT_S
from streaming.roster import Roster

LAYER_TIMEOUT_S: Final = 5.0


def settings_checked() -> list[Finding]:
    """What ``manage.py check`` says; the names of settings, never what is in them."""
    findings = [
        Finding(
            f"settings ({message.id})",
            "failure" if message.level >= checks.ERROR else "warning",
            " ".join(str(message.msg).split()),
            " ".join(str(message.hint or "").split()),
        )
        for message in checks.run_checks()
        if message.level >= checks.WARNING and not message.is_silenced()
    ]
    return findings or [Finding("settings", "ok", "manage.py check has nothing to say")]


async def redis_checked(urls: Sequence[str]) -> list[Finding]:
    """Each Redis: is it there, does it let us in, would it throw away what we write."""
    return [await _redis(number, url) for number, url in enumerate(urls, start=1)]


async def _redis(number: int, url: str) -> Finding:
    # The URL may hold a password: it is told of by its number.
    name = f"redis {number}"
    client: Any = redis.asyncio.from_url(url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
    try:
        info = await client.info("server")
        memory = await client.info("memory")
    except (RedisError, OSError) as error:
        return Finding(
            name,
            "failure",
            f"no answer: {str(error) or type(error).__name__}; without it no change reaches a Daphne",
            "see that it runs, and that REDIS_URL and its password are right",
        )
    finally:
        await client.aclose()
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version")
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if memory.get("maxmemory") and policy.startswith("allkeys"):
        return Finding(
            name,
            "warning",
            f"{product} {version}; maxmemory-policy {policy} may throw away who is present",
            "use a Redis of its own, or: CONFIG SET maxmemory-policy volatile-lru",
        )
    return Finding(name, "ok", f"{product} {version}")


async def layer_checked(layer: BaseChannelLayer) -> Finding:
    """A message goes through the channel layer, to a group and back."""
    group, word = f"walcast..doctor.{secrets.token_hex(8)}", secrets.token_hex(8)
    try:
        async with asyncio.timeout(LAYER_TIMEOUT_S):
            channel = await layer.new_channel()
            await layer.group_add(group, channel)
            await layer.group_send(group, {"type": "doctor", "word": word})
            message = await layer.receive(channel)
        if message.get("word") != word:
            raise ValueError("another message came back")
    except Exception as error:  # whatever a layer's driver raises
        return Finding(
            "channel layer",
            "failure",
            f"a message did not come back: {str(error) or type(error).__name__}; changes would not arrive either",
            "see that every Redis of REDIS_URL runs",
        )
    finally:
        await layer.flush()
    return Finding("channel layer", "ok", "a message went through")


async def replicators_checked(roster: Roster, *, ready_within_s: float) -> list[Finding]:
    """Who replicates, how far behind, and whether somebody stands by."""
    try:
        replicators = await _settled(roster)
    except RosterAway as error:
        return [Finding("replicator", "failure", str(error))]
    finally:
        await roster.close()
    health = judge(replicators, ready_within_s=ready_within_s)
    status = active_replicator(replicators)
    troubles = [trouble["message"] for other in replicators.values() if (trouble := other.get("error"))]
    if health.reason == "not_streaming" and troubles:
        return [Finding("replicator", "failure", f"it does not stream: {'; '.join(troubles)}")]
    if health.reason is not None:
        level: Level = "warning" if health.reason == "no_replicator" else "failure"
        return [Finding("replicator", level, REASONS[health.reason])]
    assert status is not None
    others = [other for other in replicators.values() if other is not status]
    standby = f", {len(others)} standing by" if others else ", nobody stands by"
    return [Finding("replicator", "ok", f"{_shown(status)}{standby}")]


async def _settled(roster: Roster) -> Mapping[str, Mapping[str, Any]]:
    """The replicators' records; one that has only just begun is given time to tell of itself once more."""
    for _ in range(3):
        replicators = await roster.all(REPLICATORS)
        if not any(status["role"] == "connecting" and not status["error"] for status in replicators.values()):
            break
        await asyncio.sleep(REPORT_S)
    return replicators


def _shown(status: Mapping[str, Any]) -> str:
    lag = f"{status.get('lag_s') or 0:.1f} s behind ({status.get('lag_bytes') or 0} bytes)"
    return f"{status.get('host')} (pid {status.get('pid')}) streams slot {status.get('slot_name')}, {lag}"
