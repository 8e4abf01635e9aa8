"""The guardian on slots that are in danger, and what a replicator tells of itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest

from replication import slots
from replication.changes import Envelope
from replication.errors import StreamEnded
from replication.guardian import LOOK_S, Guardian
from replication.lsn import LSN
from replication.options import ReplicatorSettings
from tests.replication.corridor import MemoryStore, Recorder, execute, started, streaming, until, value
from tests.servers import PostgresCluster, postgres_versions

SEGMENT = 16 << 20


@pytest.fixture(scope="module")
def tight() -> Iterator[PostgresCluster]:
    """A server that keeps eight segments of WAL for a slot, and no more."""
    settings = {"max_slot_wal_keep_size": "'128MB'", "min_wal_size": "'32MB'", "max_wal_size": "'1GB'"}
    with PostgresCluster(postgres_versions()[18], settings) as cluster:
        yield cluster


@pytest.fixture
def tight_database(tight: PostgresCluster) -> Iterator[str]:
    dsn = tight.create_database()
    yield dsn
    tight.drop_database(dsn)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guardian looks, and the server hears, more often than in life, so that tests need not wait."""
    monkeypatch.setattr("replication.guardian.LOOK_S", 0.02)
    monkeypatch.setattr("replication.replicator.TICK_S", 0.05)
    monkeypatch.setattr("replication.progress.STATUS_INTERVAL_S", 0.1)
    assert LOOK_S == 1.0


class Stuck(Recorder):
    """A publisher that takes nothing while ``free`` is not set, like a channel layer that is away."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()

    async def publish(self, envelope: Envelope) -> None:
        await self.free.wait()
        await super().publish(envelope)


def settings_for(dsn: str, **more: object) -> ReplicatorSettings:
    name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    return ReplicatorSettings(dsn=dsn, publications=("pub",), slot_name=name, **more)  # type: ignore[arg-type]


async def fill(dsn: str, segments: int) -> None:
    """Make the server go on to other segments of WAL, which costs nothing."""
    for _ in range(segments):
        await execute(dsn, "select pg_logical_emit_message(false, 'fill', 'x')", "select pg_switch_wal()")


async def a_look(guardian: Guardian) -> None:
    """Wait until the guardian has looked at the slots as they are now: a look may be under way already."""
    for _ in range(2):
        before = guardian.slots
        await until(lambda before=before: guardian.slots is not before, "a look")  # type: ignore[misc]


@asynccontextmanager
async def watching(guardian: Guardian, dsn: str, name: str, done_lsn: int = 0) -> AsyncIterator[asyncio.Task[None]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        if await slots.slot_status(conn, name) is None:
            await slots.create_slot(conn, name)
        done = done_lsn or await slots.wal_position(conn)
        task = asyncio.create_task(guardian.watch(conn, name, lambda: done))
        try:
            await until(lambda: bool(guardian.slots) or task.done(), "the first look")
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, StreamEnded):
                await task


async def test_a_slot_that_nobody_reads_is_warned_of_at_half_and_at_four_fifths_and_is_lost_in_the_end(
    tight_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    guardian = Guardian(publications=("pub",), max_lag_bytes=0)
    name = settings_for(tight_database).slot_name
    assert name is not None
    async with watching(guardian, tight_database, name) as task:
        for said in ("used half of its budget", "used four fifths of its budget"):
            for _ in range(6):
                if said in caplog.text:
                    break
                await fill(tight_database, 1)
                await a_look(guardian)
            await until(lambda said=said: said in caplog.text, said, limit_s=5)  # type: ignore[misc]
        await fill(tight_database, 4)
        await execute(tight_database, "checkpoint")
        with pytest.raises(StreamEnded, match=r"wal_removed|lost"):
            await asyncio.wait_for(task, 20)

    half = next(record for record in caplog.records if "half" in record.message)
    assert half.budget == "max_slot_wal_keep_size"  # type: ignore[attr-defined]
    assert half.levelname == "WARNING"
    assert "ALTER SYSTEM SET max_slot_wal_keep_size = '256MB'" in half.cure  # type: ignore[attr-defined]
    assert caplog.text.count("used half of its budget") == 1, "it is said once"
    assert caplog.text.count("used four fifths of its budget") == 1, "it is said once"


async def test_the_ring_is_shortened_before_the_slot_is_lost(
    tight_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def shorten(bytes_: int) -> bool:
        asked.append(bytes_)
        return True

    guardian = Guardian(publications=("pub",), max_lag_bytes=0, shorten_ring=shorten)
    name = settings_for(tight_database).slot_name
    assert name is not None
    async with watching(guardian, tight_database, name):
        await fill(tight_database, 4)
        await a_look(guardian)
        assert asked == []
        await fill(tight_database, 4)
        await until(lambda: bool(asked), "the ring being shortened")
    assert asked[0] <= 32 << 20
    assert asked == sorted(asked, reverse=True), "less and less"
    assert "ring shortened: the slot was about to be lost" in caplog.text


async def test_our_own_limit_counts_what_is_not_published(database18: str, caplog: pytest.LogCaptureFixture) -> None:
    guardian = Guardian(publications=("pub",), max_lag_bytes=100 << 20)
    name = settings_for(database18).slot_name
    assert name is not None
    await fill(database18, 1)  # so that the next four are whole ones, 64 MB
    async with watching(guardian, database18, name):
        await fill(database18, 4)
        await until(lambda: "used half of its budget" in caplog.text, "the warning")
        await fill(database18, 2)
        await until(lambda: "used four fifths of its budget" in caplog.text, "the next warning")
        await fill(database18, 2)
        await until(lambda: "over its budget" in caplog.text, "the last warning")
    assert {record.budget for record in caplog.records} == {"MAX_REPLICATION_LAG_MB"}  # type: ignore[attr-defined]


async def test_what_nothing_bounds_is_told_of(
    database18: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.headroom._UNBOUNDED_FROM", 1)
    guardian = Guardian(publications=("pub",), max_lag_bytes=0)
    name = settings_for(database18).slot_name
    assert name is not None
    async with watching(guardian, database18, name):
        await until(lambda: "keeps much WAL, and nothing bounds it" in caplog.text, "the warning")
    assert "MAX_REPLICATION_LAG_MB" in caplog.records[-1].cure  # type: ignore[attr-defined]


async def test_a_slot_that_is_lost_while_nothing_can_be_published_is_made_anew(
    tight_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(tight_database, "create table items(id bigint primary key)", "create publication pub for all tables")
    stuck = Stuck()
    async with streaming(settings_for(tight_database), stuck, MemoryStore()) as replicator:
        await execute(tight_database, "insert into items values (1)")
        await fill(tight_database, 12)
        await execute(tight_database, "checkpoint")
        await until(lambda: "slot dropped and made anew" in caplog.text, "the new slot")
        await until(replicator.streaming.is_set, "streaming")
        stuck.free.set()
        await execute(tight_database, "insert into items values (2)")
        await until(lambda: 2 in stuck.ids, "the change after the gap")
        status = replicator.status()
    assert 1 not in stuck.ids, "it went with the slot"
    assert status.slots_replaced == 1


async def test_it_tells_how_far_it_is(database18: str) -> None:
    await execute(
        database18,
        "create table items(id bigint primary key)",
        "create table loose(name text)",
        "alter table loose enable row level security",
        "create publication pub for all tables",
    )
    recorder = Recorder()
    async with streaming(settings_for(database18, max_lag_bytes=1 << 30), recorder, MemoryStore()) as replicator:
        await execute(database18, *(f"insert into items values ({number})" for number in range(20)))
        await recorder.has(20)
        await until(lambda: bool(replicator.guardian.tables), "the look at the tables")
        await until(lambda: replicator.status().lag_bytes == 0, "being level")
        status = replicator.status()

    assert (status.role, status.error, status.connections) == ("active", None, 1)
    assert (status.changes, status.transactions, status.unreadable) == (20, 20, 0)
    assert status.published == recorder.chunks[-1].last == status.ring.last
    assert status.ring.chunks
    assert status.ring.bytes
    assert status.lag_s == 0.0
    assert status.progress_age_s is not None
    assert status.progress_age_s < 10
    assert isinstance(status.confirmed_flush_lsn, LSN)
    assert [slot.name for slot in status.slots if slot.name == status.slot_name]
    assert [(table.name, table.has_primary_key, table.row_security) for table in status.tables] == [
        ("items", True, False),
        ("loose", False, True),
    ]
    assert status.rates.changes_per_s >= 0
    budgets = {budget.name for budget in status.budgets}
    assert budgets == {"MAX_REPLICATION_LAG_MB", "autovacuum_freeze_max_age"}
    told = status.as_json()
    assert told["published"] == str(status.published)
    assert told["server_wal_end"] == str(status.server_wal_end)
    assert told["slots"][0]["restart_lsn"].startswith("0/")


async def test_its_lag_grows_while_nothing_can_be_published_and_falls_afterwards(database18: str) -> None:
    await execute(database18, "create table items(id bigint primary key)", "create publication pub for all tables")
    stuck = Stuck()
    async with streaming(settings_for(database18), stuck, MemoryStore()) as replicator:
        await execute(database18, "insert into items select generate_series(1, 1000)")
        await until(lambda: (replicator.status().lag_s or 0) > 0.5, "a lag of half a second")
        assert (replicator.status().lag_bytes or 0) > 10_000
        stuck.free.set()
        await until(lambda: replicator.status().lag_bytes == 0, "being level")
        assert replicator.status().lag_s == 0.0


async def test_a_standby_says_that_it_is_one_and_sees_the_slots(database18: str) -> None:
    await execute(database18, "create publication pub for all tables")
    store = MemoryStore()
    async with (
        streaming(settings_for(database18), Recorder(), store) as first,
        started(settings_for(database18), Recorder(), store) as second,
    ):
        await until(lambda: second.meter.role == "standby", "standing by")
        status = second.status()
        assert status.error is not None
        assert status.error.kind == "SlotIsActive"
        assert status.lag_bytes is None
        assert first.settings.slot_name in {slot.name for slot in status.slots}
        assert first.status().role == "active"


async def test_what_stands_in_the_way_is_told_with_its_cure(database18: str) -> None:
    async with started(settings_for(database18), Recorder(), MemoryStore()) as replicator:
        await until(lambda: replicator.meter.trouble is not None, "the trouble")
        error = replicator.status().error
        assert error is not None
        assert (error.kind, error.needs_somebody) == ("PublicationMissing", True)
        assert 'CREATE PUBLICATION "pub"' in error.message
        await execute(database18, "create publication pub for all tables")
        await until(replicator.streaming.is_set, "streaming")
        assert replicator.status().error is None


async def test_what_the_ring_holds_back_is_let_go_so_that_the_slot_stays(
    tight_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(tight_database, "create table items(id bigint primary key)", "create publication pub for all tables")
    recorder = Recorder()
    wanted = settings_for(tight_database, ring_age_s=3600.0, ring_wal_bytes=1 << 40)

    async def has_room() -> bool:
        # A checkpoint is where PostgreSQL lets go of WAL, and notes what slots may let go of.
        await execute(tight_database, "checkpoint")
        query = "select safe_wal_size > 20 * 1024 * 1024 from pg_replication_slots where slot_name = %s"
        return bool(await value(tight_database, query, wanted.slot_name))

    async with streaming(wanted, recorder, MemoryStore()) as replicator:
        for number in range(1, 25):
            await execute(tight_database, f"insert into items values ({number})", "select pg_switch_wal()")
            await recorder.has(number)
            await until(has_room, f"room for a segment after {number}")
        status = replicator.status()
    assert "ring shortened: the slot was about to be lost" in caplog.text
    assert recorder.ids == list(range(1, 25))
    assert (status.slots_replaced, status.connections) == (0, 1), "24 segments went by, and 8 are kept"
    assert status.ring.chunks < 24
