"""What can break between a commit and a browser, done to real processes."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from contextlib import suppress

import psycopg
import redis

from tests.faults.fragile_replicator import SLOT_MADE, STAGES
from tests.faults.ordeal import Corridor, Fault
from tests.faults.writers import NUMBERS, ORDEAL, TABLE
from tests.system.corridor import replicator
from tests.system.server import ManagedProcess


async def nothing(corridor: Corridor) -> None:
    """All is well."""


async def replicator_killed(corridor: Corridor) -> None:
    """The replicator crashes, and is started again."""
    corridor.replicator.kill()
    await asyncio.to_thread(corridor.replicator.start)


async def replicator_killed_again_and_again(corridor: Corridor) -> None:
    """The same, at moments nobody chose."""
    for _ in range(3):
        await asyncio.sleep(random.random() * 0.3)
        await replicator_killed(corridor)


async def replicator_killed_between_stages(corridor: Corridor) -> None:
    """The replicator dies at each boundary between two stages of its work, one after the other, and starts again."""
    await asyncio.to_thread(corridor.replicator.stop)
    for stage in STAGES:
        await _die_at(corridor, stage)
    await asyncio.to_thread(corridor.replicator.start)
    await corridor.slot_is_read()


async def replicator_killed_with_a_new_slot(corridor: Corridor) -> None:
    """The slot is dropped, and the replicator dies when it has made another one and not yet recorded that."""
    await asyncio.to_thread(corridor.replicator.stop)
    await _drop_slot(corridor)
    await _die_at(corridor, SLOT_MADE)
    await asyncio.to_thread(corridor.replicator.start)
    await corridor.slot_is_read()


async def _die_at(corridor: Corridor, stage: str) -> None:
    argv = [sys.executable, "-m", "tests.faults.fragile_replicator", stage, "2" if stage != SLOT_MADE else "1"]
    with ManagedProcess(argv, corridor.env) as fragile:
        assert await asyncio.to_thread(fragile.wait, 60) == -signal.SIGKILL, fragile.log


async def standby_takes_over(corridor: Corridor) -> None:
    """A second replicator waits; the first crashes."""
    with replicator(corridor.env) as standby:
        corridor.replicator.kill()
        await asyncio.to_thread(standby.wait_for_log, " streaming ")
        await asyncio.sleep(0.5)
    await asyncio.to_thread(corridor.replicator.start)


async def daphne_killed(corridor: Corridor) -> None:
    """A process of sockets crashes; its clients go elsewhere."""
    daphne = corridor.daphnes[0]
    daphne.kill()
    await asyncio.sleep(0.5)
    await asyncio.to_thread(daphne.start)


async def postgres_crashes(corridor: Corridor) -> None:
    """PostgreSQL is stopped without a word, and recovers."""
    await asyncio.to_thread(corridor.cluster.restart, "immediate")


async def postgres_is_stopped(corridor: Corridor) -> None:
    """PostgreSQL is stopped in order, which nobody may hold up, and started again."""
    began = time.monotonic()
    await asyncio.to_thread(corridor.cluster.stop, "fast")
    took_s = time.monotonic() - began
    await asyncio.to_thread(corridor.cluster.start)
    assert took_s < 3.0, f"a fast shutdown took {took_s:.1f} s"


async def walsender_ended_again_and_again(corridor: Corridor) -> None:
    """Somebody ends our connection in a loop."""
    for _ in range(6):
        await corridor.slot_is_read()
        await corridor.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots "
            f"where slot_name = '{corridor.slot_name}' and active"
        )


async def sockets_cut(corridor: Corridor) -> None:
    """The lines of clients break, one after the other, at moments nobody chose."""
    for _ in range(15):
        await asyncio.sleep(random.random() * 0.15)
        await random.choice(corridor.listeners).cut()


async def valkey_restarted(corridor: Corridor) -> None:
    """Valkey crashes, is away for a moment, and comes back empty."""
    corridor.valkey.kill()
    await asyncio.sleep(0.5)
    await asyncio.to_thread(corridor.valkey.start)


async def redis_connections_cut(corridor: Corridor) -> None:
    """Valkey ends every connection, twice."""

    def cut() -> None:
        with redis.Redis(port=corridor.valkey.port) as client:
            for kind in ("pubsub", "normal"):
                client.client_kill_filter(_type=kind, skipme=True)

    for _ in range(2):
        await asyncio.to_thread(cut)
        await asyncio.sleep(0.3)


async def slot_dropped(corridor: Corridor) -> None:
    """Somebody drops the slot under our feet: what is committed until it is made anew is missing."""
    epoch = await _epoch(corridor)
    await _drop_slot(corridor)
    await _has_new_epoch(corridor, epoch)


async def slot_made_anew_by_hand(corridor: Corridor) -> None:
    """Somebody drops the slot and makes another one of the same name."""
    epoch = await _epoch(corridor)
    await asyncio.to_thread(corridor.replicator.stop)
    await _drop_slot(corridor)
    await asyncio.sleep(0.3)
    await corridor.execute(f"select pg_create_logical_replication_slot('{corridor.slot_name}', 'pgoutput')")
    await asyncio.to_thread(corridor.replicator.start)
    await _has_new_epoch(corridor, epoch)


async def _drop_slot(corridor: Corridor) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(psycopg.Error):
            async with await psycopg.AsyncConnection.connect(corridor.dsn, autocommit=True) as connection:
                await connection.execute(
                    b"select pg_terminate_backend(active_pid, 1000) from pg_replication_slots where slot_name = %s "
                    b"and active",
                    [corridor.slot_name],
                )
                await connection.execute(b"select pg_drop_replication_slot(%s)", [corridor.slot_name])
                return
    raise TimeoutError("the slot cannot be dropped")


async def _epoch(corridor: Corridor) -> int:
    return corridor.replicator.log.count("a new history begins")


async def _has_new_epoch(corridor: Corridor, before: int) -> None:
    deadline = time.monotonic() + 30
    while corridor.replicator.log.count("a new history begins") <= before:
        if time.monotonic() > deadline:
            raise TimeoutError("no new history began")
        await asyncio.sleep(0.05)


async def slot_invalidated(corridor: Corridor) -> None:
    """The replicator hangs while much is written, and PostgreSQL gives up its slot to save its disk."""
    epoch = await _epoch(corridor)
    await corridor.execute("alter system set max_slot_wal_keep_size = '1MB'", "select pg_reload_conf()")
    corridor.replicator.send_signal(signal.SIGSTOP)
    try:
        await corridor.execute(
            "create unlogged table if not exists noise(t text)",
            *(["select pg_switch_wal()", "select pg_logical_emit_message(false, 'noise', repeat('x', 100000))"] * 4),
            "checkpoint",
        )
        await corridor.until(
            f"select wal_status = 'lost' from pg_replication_slots where slot_name = '{corridor.slot_name}'"
        )
    finally:
        await corridor.execute("alter system reset max_slot_wal_keep_size", "select pg_reload_conf()")
        corridor.replicator.send_signal(signal.SIGCONT)
    await _has_new_epoch(corridor, epoch)


async def publication_made_again(corridor: Corridor) -> None:
    """The publication is dropped, rows are written without one, and it is made again."""
    epoch = await _epoch(corridor)
    await corridor.execute("drop publication supabase_realtime")
    await asyncio.sleep(0.3)
    await corridor.execute(f"create publication supabase_realtime for table {TABLE}")
    # What was written meanwhile can be decoded by nobody: three tries, then another slot.
    await _has_new_epoch(corridor, epoch)


async def table_altered(corridor: Corridor) -> None:
    """Columns come and go while rows are written."""
    for number in range(5):
        await corridor.execute(
            f"alter table {TABLE} add column extra_{number} int default {number}",
            f"alter table {TABLE} alter column note type varchar({100 + number})",
            f"alter table {TABLE} drop column extra_{number}",
        )


def large_transaction(rows: int) -> Fault:
    """One transaction of so many rows, while others commit."""

    async def fault(corridor: Corridor) -> None:
        first = WRITER_OF_LARGE_ONES * NUMBERS + corridor.numbers - ORDEAL
        await corridor.execute(
            f"insert into {TABLE}(id, writer) select n, {WRITER_OF_LARGE_ONES} "
            f"from generate_series({first}::bigint, {first + rows - 1}::bigint) n"
        )

    return fault


WRITER_OF_LARGE_ONES = 9


def repeated(fault: Fault, times: int) -> Fault:
    """The same again and again."""

    async def fault_again(corridor: Corridor) -> None:
        for _ in range(times):
            await fault(corridor)

    return fault_again


OF_THE_CORRIDOR: dict[str, Fault] = {
    "nothing": nothing,
    "replicator killed": replicator_killed,
    "replicator killed again and again": replicator_killed_again_and_again,
    "replicator killed between any two stages": replicator_killed_between_stages,
    "standby takes over": standby_takes_over,
    "sockets of clients cut": sockets_cut,
    "Daphne killed": daphne_killed,
    "PostgreSQL crashes": postgres_crashes,
    "PostgreSQL stopped (fast) and started": postgres_is_stopped,
    "walsender ended again and again": walsender_ended_again_and_again,
    "Valkey killed and restarted": valkey_restarted,
    "Redis connections cut": redis_connections_cut,
    "publication dropped and made again": publication_made_again,
    "table altered under load": table_altered,
    "slot dropped": slot_dropped,
    "slot dropped and made anew by hand": slot_made_anew_by_hand,
    "slot invalidated by max_slot_wal_keep_size": slot_invalidated,
    "slot dropped, replicator killed when it made another": replicator_killed_with_a_new_slot,
}
"""By the name in the summary."""

LOSING = {
    "slot dropped, replicator killed when it made another",
    "slot dropped",
    "slot dropped and made anew by hand",
    "slot invalidated by max_slot_wal_keep_size",
    "publication dropped and made again",
}
"""Those after which some rows cannot be had, and everybody is told."""
