"""Records with leases: in memory by a clock we turn, in a real Valkey by its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from streaming.errors import RosterAway
from streaming.redis_roster import RedisRoster
from streaming.roster import MemoryRoster, Roster, keep, process_name
from tests.replication.corridor import until
from tests.servers import ValkeyServer, free_port

LONG_S = 60.0


@pytest.fixture(params=["memory", "redis"])
async def roster(request: pytest.FixtureRequest, valkey: ValkeyServer) -> AsyncIterator[Roster]:
    made: Roster = MemoryRoster() if request.param == "memory" else RedisRoster(valkey.url, prefix=secrets.token_hex(4))
    yield made
    await made.close()


async def test_a_record_is_seen_by_kind_and_name(roster: Roster) -> None:
    await roster.put("replicator", "one", {"lag_bytes": 7, "lsn": "0/1596218", "ends": None}, lease_s=LONG_S)
    await roster.put("process", "one", ["Grüße"], lease_s=LONG_S)

    assert await roster.all("replicator") == {"one": {"lag_bytes": 7, "lsn": "0/1596218", "ends": None}}
    assert await roster.all("process") == {"one": ["Grüße"]}
    assert await roster.all("presence") == {}


async def test_a_record_that_is_put_again_is_replaced(roster: Roster) -> None:
    await roster.put("process", "one", {"sockets": 1, "old": True}, lease_s=LONG_S)
    await roster.put("process", "one", {"sockets": 2}, lease_s=LONG_S)

    assert await roster.all("process") == {"one": {"sockets": 2}}


async def test_a_record_ends_with_its_lease(roster: Roster) -> None:
    await roster.put_many("process", {"short": 1}, lease_s=0.15)
    await roster.put_many("process", {"long": 2}, lease_s=LONG_S)
    assert set(await roster.all("process")) == {"short", "long"}

    async def short_has_gone() -> bool:
        return await roster.all("process") == {"long": 2}

    await until(short_has_gone, "the end of the lease", limit_s=5)


async def test_a_renewed_record_stays(roster: Roster) -> None:
    await roster.put_many("presence", {"a": 1, "b": 2}, lease_s=0.2)

    assert await roster.renew("presence", ["a", "c"], lease_s=LONG_S) == ["c"]

    async def only_a() -> bool:
        return await roster.all("presence") == {"a": 1}

    await until(only_a, "the end of the other's lease", limit_s=5)


async def test_an_ended_record_cannot_be_renewed(roster: Roster) -> None:
    await roster.put("presence", "a", 1, lease_s=0.05)
    await asyncio.sleep(0.1)

    assert await roster.renew("presence", ["a"], lease_s=LONG_S) == ["a"]
    assert await roster.all("presence") == {}


async def test_a_removed_record_is_gone_at_once(roster: Roster) -> None:
    await roster.put_many("process", {"one": 1, "two": 2}, lease_s=LONG_S)
    await roster.remove("process", "one", "never there")
    await roster.remove("process")

    assert await roster.all("process") == {"two": 2}


async def test_thousands_of_records_are_put_and_renewed(roster: Roster) -> None:
    records = {f"key {number}": {"number": number} for number in range(5000)}
    await roster.put_many("presence", records, lease_s=LONG_S)

    assert await roster.renew("presence", records, lease_s=LONG_S) == []
    assert await roster.all("presence") == records


async def test_two_prefixes_do_not_see_each_other(valkey: ValkeyServer) -> None:
    one, other = (RedisRoster(valkey.url, prefix=secrets.token_hex(4)) for _ in range(2))
    await one.put("process", "one", 1, lease_s=LONG_S)

    assert await other.all("process") == {}
    await one.close()
    await other.close()


async def test_nothing_stays_in_redis_when_nobody_looks_any_more(valkey: ValkeyServer) -> None:
    prefix = secrets.token_hex(4)
    roster = RedisRoster(valkey.url, prefix=prefix)
    await roster.put("process", "one", 1, lease_s=0.1)

    async def empty() -> bool:
        return not [key async for key in roster._redis.scan_iter(f"{prefix}*")]

    assert not await empty()
    await until(empty, "the end of the keys", limit_s=5)
    await roster.close()


async def test_a_roster_that_is_away_says_so() -> None:
    roster = RedisRoster(f"redis://127.0.0.1:{free_port()}/0", prefix="x")

    with pytest.raises(RosterAway, match="REDIS_URL"):
        await roster.all("process")
    with pytest.raises(RosterAway):
        await roster.remove("process", "one")
    await roster.close()


async def test_a_kept_record_is_renewed_and_goes_when_its_keeper_ends(roster: Roster) -> None:
    turns = 0

    async def value() -> int:
        nonlocal turns
        turns += 1
        return turns

    task = asyncio.create_task(keep(roster, "process", process_name(), value, every_s=0.02, lease_s=LONG_S))

    async def third_turn() -> bool:
        return bool((await roster.all("process")).get(process_name(), 0) >= 3)

    await until(third_turn, "the third value")
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert await roster.all("process") == {}


async def test_a_keeper_says_once_that_the_roster_is_away_and_goes_on_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def value() -> str:
        return "here"

    with ValkeyServer() as server:
        roster = RedisRoster(server.url, prefix="x")
        server.kill()
        task = asyncio.create_task(keep(roster, "process", "one", value, every_s=0.02, lease_s=LONG_S))
        await until(lambda: "roster away" in caplog.text, "word that the roster is away")
        await asyncio.sleep(0.2)
        server.start()

        async def is_here() -> bool:
            try:
                return await roster.all("process") == {"one": "here"}
            except RosterAway:
                return False

        await until(is_here, "the record")
        assert caplog.text.count("roster away") == 1
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await roster.close()


def test_a_forked_process_has_a_name_of_its_own() -> None:
    assert process_name() == process_name()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(process_name) != process_name()
