"""The loop on real servers: read, decode, log, publish, acknowledge, reconnect."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import OperationalError

from replication import progress, replicator
from replication.changes import Envelope
from replication.lsn import BEGINNING, LSN, Position
from replication.options import ReplicatorSettings
from replication.record import Record
from replication.replicator import Replicator
from tests.replication.corridor import (
    Line,
    MemoryStore,
    Recorder,
    confirmed_lsn,
    execute,
    seen,
    started,
    streaming,
    until,
    value,
)
from tests.servers import PostgresCluster, postgres_versions

_PASSWORD = "only for tests"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps, closer together."""
    monkeypatch.setattr(replicator, "TICK_S", 0.05)
    monkeypatch.setattr(replicator, "BACKOFF_S", (0.05, 0.5))
    monkeypatch.setattr(replicator, "STANDBY_RETRY_S", 0.05)
    monkeypatch.setattr(progress, "STATUS_INTERVAL_S", 0.1)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def _name_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


def _settings(dsn: str, **others: Any) -> ReplicatorSettings:
    """A permanent slot with the name of the database: slots are one name space for the whole server."""
    defaults: dict[str, Any] = {"publications": ["pub"], "slot_name": _name_of(dsn), "create_publication": True}
    return ReplicatorSettings(dsn, **defaults | others)


_TABLE = "CREATE TABLE t (id int PRIMARY KEY, name text)"


@pytest.fixture
async def permanent(database: str) -> ReplicatorSettings:
    await execute(database, _TABLE)
    return _settings(database)


@pytest.fixture
async def permanent18(database18: str) -> ReplicatorSettings:
    await execute(database18, _TABLE)
    return _settings(database18)


# What arrives


async def test_changes_arrive_in_commit_order_as_one_chain(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    dsn = permanent.dsn
    await execute(dsn, "CREATE TABLE other (id int)")
    async with streaming(permanent, recorder, store) as replicator:
        await execute(
            dsn,
            "INSERT INTO t VALUES (1, 'a')",
            "BEGIN; UPDATE t SET name = 'b' WHERE id = 1; INSERT INTO other VALUES (7); COMMIT",
            "DELETE FROM t WHERE id = 1",
            "TRUNCATE t, other",
            "INSERT INTO t VALUES (2, NULL)",
        )
        await recorder.has(7)
        assert recorder.seen == [
            ("INSERT", "t", {"id": "1", "name": "a"}),
            ("UPDATE", "t", {"id": "1", "name": "b"}),
            ("INSERT", "other", {"id": "7"}),
            ("DELETE", "t", {"id": "1", "name": None}),
            ("TRUNCATE", "t", {}),
            ("TRUNCATE", "other", {}),
            ("INSERT", "t", {"id": "2", "name": None}),
        ]
        recorder.assert_one_chain()
        assert {envelope.epoch for envelope in recorder.envelopes} == {replicator.epoch}
        assert replicator.published == recorder.envelopes[-1].last


async def test_who_commits_first_comes_first(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with (
        streaming(permanent, recorder, store),
        await psycopg.AsyncConnection.connect(permanent.dsn) as slow,
        await psycopg.AsyncConnection.connect(permanent.dsn) as quick,
    ):
        await slow.execute("INSERT INTO t VALUES (1, 'began first')")
        await quick.execute("INSERT INTO t VALUES (2, 'committed first')")
        await quick.commit()
        await slow.commit()
        await recorder.has(2)
    assert recorder.ids == [2, 1]
    recorder.assert_one_chain()


async def test_rolled_back_work_never_appears(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent, recorder, store):
        await execute(
            permanent.dsn,
            "BEGIN; INSERT INTO t VALUES (1, 'undone'); ROLLBACK",
            "BEGIN; INSERT INTO t VALUES (2, 'kept'); SAVEPOINT s; INSERT INTO t VALUES (3, 'undone');"
            "ROLLBACK TO s; COMMIT",
            "INSERT INTO t VALUES (4, 'last')",
        )
        await recorder.has(2)
    assert recorder.ids == [2, 4]


async def test_the_xid_and_the_time_of_the_commit_come_along(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent, recorder, store):
        await execute(permanent.dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
    xid = await value(permanent.dsn, "SELECT xmin::text::bigint FROM t")
    now = await value(permanent.dsn, "SELECT clock_timestamp()")
    (chunk,) = recorder.chunks
    assert chunk.xid == xid
    assert 0 <= (now - chunk.committed_at).total_seconds() < 60


async def test_hidden_tables_stay_hidden(permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore) -> None:
    settings = replace(permanent, hidden_tables=frozenset({("public", "secret")}))
    await execute(permanent.dsn, "CREATE TABLE secret (id int)")
    async with streaming(settings, recorder, store):
        await execute(
            permanent.dsn,
            "INSERT INTO secret VALUES (1)",
            "BEGIN; INSERT INTO secret VALUES (2); INSERT INTO t VALUES (3, 'shown'); TRUNCATE secret, t; COMMIT",
        )
        await recorder.has(2)
    assert [(event, table) for event, table, _ in recorder.seen] == [("INSERT", "t"), ("TRUNCATE", "t")]
    recorder.assert_one_chain()


async def test_two_publications_are_one_stream(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    await execute(
        permanent.dsn,
        "CREATE TABLE other (id int)",
        'CREATE PUBLICATION "it\'s ""one""" FOR TABLE t',
        "CREATE PUBLICATION two FOR TABLE t, other",
    )
    async with streaming(replace(permanent, publications=['it\'s "one"', "two"]), recorder, store):
        await execute(permanent.dsn, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO other VALUES (2)")
        await recorder.has(2)
    assert recorder.ids == [1, 2]


async def test_values_are_printed_alike_whatever_the_role_prefers(
    postgres: PostgresCluster, database: str, recorder: Recorder, store: MemoryStore
) -> None:
    role = f"contrary_{_name_of(database)}"
    await execute(
        database,
        "CREATE TABLE odd (id int PRIMARY KEY, at timestamptz, span interval, bytes bytea, ratio float8, cash money,"
        " kind regclass)",
        "CREATE PUBLICATION pub FOR TABLE odd",
        f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{_PASSWORD}'",
        f"ALTER ROLE {role} SET DateStyle = 'German'",
        f"ALTER ROLE {role} SET TimeZone = 'Asia/Kolkata'",
        f"ALTER ROLE {role} SET IntervalStyle = 'iso_8601'",
        f"ALTER ROLE {role} SET bytea_output = 'escape'",
        f"ALTER ROLE {role} SET extra_float_digits = -10",
        f"ALTER ROLE {role} SET search_path = public",
        f"ALTER ROLE {role} SET quote_all_identifiers = on",
        f"ALTER ROLE {role} SET client_encoding = 'LATIN1'",
    )
    insert = (
        "INSERT INTO odd VALUES (1, '2021-02-16 23:47:47.5+00', '1 day 02:03', '\\xdead', 0.1::float8 + 0.2, 1234.5,"
        " 'odd')"
    )
    try:
        settings = _settings(postgres.dsn(_name_of(database), user=role, password=_PASSWORD))
        async with streaming(settings, recorder, store):
            await execute(database, insert)
            await recorder.has(1)
        kolkata = replace(settings, time_zone="Asia/Kolkata")
        async with streaming(kolkata, recorder, store):
            await execute(database, "UPDATE odd SET id = 2")
            await recorder.has(2)
    finally:
        await execute(database, f"DROP ROLE {role}")
    (_, _, row), (_, _, in_kolkata) = recorder.seen
    assert row == {
        "id": "1",
        "at": "2021-02-16 23:47:47.5+00",
        "span": "1 day 02:03:00",
        "bytes": "\\xdead",
        "ratio": "0.30000000000000004",
        "cash": "$1,234.50",
        "kind": "public.odd",
    }
    assert in_kolkata["at"] == "2021-02-17 05:17:47.5+05:30"


async def test_a_change_that_no_one_can_read_as_text_does_not_stop_the_others(
    database18: str, recorder: Recorder, store: MemoryStore
) -> None:
    # In a database of encoding SQL_ASCII the server neither checks nor converts: anything may stand in a text.
    name = f"{_name_of(database18)}_ascii"
    await execute(database18, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII'")
    dsn = psycopg.conninfo.make_conninfo(database18, dbname=name)
    try:
        await execute(dsn, _TABLE)
        async with started(_settings(dsn, slot_name=None), recorder, store) as running:
            await until(running.streaming.is_set, "streaming", limit_s=5)
            await execute(dsn, r"INSERT INTO t VALUES (1, E'\xff')", "INSERT INTO t VALUES (2, 'fine')")
            await until(
                lambda: sum(len(chunk.changes) for chunk in recorder.chunks) == 2, "the arrival of both", limit_s=5
            )
    finally:
        await execute(database18, f"DROP DATABASE {name} WITH (FORCE)")


async def test_the_end_of_a_transaction_is_told_after_all_of_it_is_published(
    permanent18: ReplicatorSettings, store: MemoryStore
) -> None:
    rows = 20_000

    class Watching(Recorder):
        async def committed(self, commit_lsn: int) -> None:
            assert len(self.ids) in (rows, rows + 1)
            await super().committed(commit_lsn)

    watching = Watching()
    async with streaming(permanent18, watching, store):
        await execute(permanent18.dsn, f"INSERT INTO t SELECT n, 'a' FROM generate_series(1, {rows}) AS n")
        await watching.has(rows)
        await execute(permanent18.dsn, "INSERT INTO t VALUES (0, 'b')")
        await until(lambda: len(set(watching.committed_lsns)) >= 2, "the end of both transactions")
    assert watching.committed_lsns == sorted({chunk.commit_lsn for chunk in watching.chunks})


# Large transactions


class _Counter:
    """A publisher that only counts, and looks at the ring while it does."""

    def __init__(self) -> None:
        self.replicator: Replicator | None = None
        self.rows = 0
        self.envelopes = 0
        self.largest_envelope = self.largest_ring = 0
        self.last = BEGINNING
        self.ended = 0

    async def publish(self, envelope: Envelope) -> None:
        assert self.replicator is not None
        assert envelope.prev == self.last or self.last == BEGINNING
        self.last = envelope.last
        self.envelopes += 1
        self.rows += sum(len(chunk.changes) for chunk in envelope.chunks)
        self.ended += sum(chunk.is_last for chunk in envelope.chunks)
        self.largest_envelope = max(self.largest_envelope, sum(chunk.size for chunk in envelope.chunks))
        self.largest_ring = max(self.largest_ring, self.replicator.changelog.size)

    async def committed(self, commit_lsn: int) -> None:
        """Of no interest here."""

    async def tick(self, tick: object) -> None:
        """Of no interest here."""


async def test_a_large_transaction_leaves_in_pieces_and_the_ring_stays_within_its_bound(
    permanent18: ReplicatorSettings, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicator, "TICK_S", 1.0)  # as it is: the bound must not depend on how often somebody looks
    rows, ring_bytes = 200_000, 8 << 20
    counter = _Counter()
    async with streaming(replace(permanent18, ring_bytes=ring_bytes), counter, store) as running:
        counter.replicator = running
        await execute(permanent18.dsn, f"INSERT INTO t SELECT n, 'row ' || n FROM generate_series(1, {rows}) AS n")
        await until(lambda: counter.rows >= rows, f"the arrival of {rows} rows", limit_s=60)
        assert counter.rows == rows
        assert counter.envelopes > 10
        # One reading is at most a mebibyte of frames, that is some 20,000 small rows.
        assert counter.largest_envelope < 8 << 20
        assert counter.largest_ring <= ring_bytes + counter.largest_envelope


# The slot


@pytest.mark.parametrize("slot_name", [None, "permanent"])
async def test_only_a_permanent_slot_stays(
    database: str, recorder: Recorder, store: MemoryStore, slot_name: str | None
) -> None:
    settings = _settings(database, slot_name=slot_name and _name_of(database))
    slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    async with streaming(settings, recorder, store):
        assert await value(database, slots) == 1
        assert await value(database, f"{slots} AND temporary") == (slot_name is None)
    await until(lambda: _is(database, f"{slots} AND active", 0), "the end of the walsender")
    assert await value(database, slots) == (0 if slot_name is None else 1)


async def _is(dsn: str, query: str, expected: object) -> bool:
    return bool(await value(dsn, query) == expected)


async def test_what_was_committed_while_stopped_is_published_once_by_a_fresh_replicator(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent, recorder, store) as first:
        await execute(permanent.dsn, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'b')")
        await recorder.has(2)
        epoch = first.epoch
    await execute(permanent.dsn, "INSERT INTO t VALUES (3, 'while stopped')")
    async with streaming(permanent, recorder, store) as second:
        await recorder.has(3)
        await execute(permanent.dsn, "INSERT INTO t VALUES (4, 'd')")
        await recorder.has(4)
        assert second.epoch == epoch
    assert recorder.ids == [1, 2, 3, 4]
    recorder.assert_one_chain()


async def test_an_unacknowledged_transaction_is_sent_again_after_a_restart_and_fills_the_ring(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent, recorder, store) as first:
        await execute(permanent.dsn, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'b')")
        await recorder.has(2)
        before = recorder.envelopes[0].prev
        kept = first.answer(first.epoch, before, 1 << 20)
        assert kept is not None
    async with streaming(permanent, Recorder(), store) as second:
        await until(lambda: second.changelog.last == kept.last, "the filling of the ring")
        again = second.answer(second.epoch, before, 1 << 20)
        assert again is not None
        # How the changes fall into chunks, and which chunk ends a transaction, depends on how they were read.
        assert (again.epoch, again.prev, again.last) == (kept.epoch, kept.prev, kept.last)
        assert _stands(again) == _stands(kept)


def _stands(envelope: Envelope) -> list[tuple[int, int, int, int, bytes]]:
    return [
        (chunk.commit_lsn, chunk.xid, change.lsn, change.ordinal, change.data)
        for chunk in envelope.chunks
        for change in chunk.changes
    ]


async def test_a_fresh_replicator_with_nothing_new_publishes_nothing(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent, recorder, store):
        await execute(permanent.dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
    again = Recorder()
    async with streaming(permanent, again, store) as second:
        await until(lambda: second.changelog.last == recorder.envelopes[-1].last, "the filling of the ring")
        await until(lambda: len(again.ticks) > 3, "some ticks")
        assert again.envelopes == []
        assert again.ticks[-1].published == recorder.envelopes[-1].last


async def test_without_its_record_a_slot_begins_a_new_generation(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent18, recorder, store) as first:
        await execute(permanent18.dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        epoch = first.epoch
    store.saved.clear()
    await asyncio.sleep(1.0)  # generations count seconds
    async with streaming(permanent18, recorder, store) as second:
        assert second.epoch != epoch


@pytest.mark.parametrize("by_somebody_else", [False, True], ids=["by us", "by somebody else"])
async def test_a_slot_that_was_made_anew_begins_a_new_generation(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore, by_somebody_else: bool
) -> None:
    dsn, slot_name = permanent18.dsn, permanent18.slot_name
    async with streaming(permanent18, recorder, store) as first:
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        epoch = first.epoch
    active = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot_name}' AND active"
    await until(lambda: _is(dsn, active, 0), "the end of the walsender")
    await execute(dsn, f"SELECT pg_drop_replication_slot('{slot_name}')", "INSERT INTO t VALUES (2, 'lost')")
    if by_somebody_else:  # to us it is just a slot, and it knows nothing of what was committed before it was made
        await execute(dsn, f"SELECT pg_create_logical_replication_slot('{slot_name}', 'pgoutput')")
    async with streaming(permanent18, recorder, store) as second:
        await execute(dsn, "INSERT INTO t VALUES (3, 'b')")
        await recorder.has(2)
        assert second.epoch != epoch
        assert second.changelog.floor > recorder.envelopes[0].last
    assert recorder.ids == [1, 3]


async def test_a_server_whose_disk_was_set_back_begins_a_new_generation(
    recorder: Recorder, store: MemoryStore, tmp_path: Path
) -> None:
    # Same system, same timeline, the same LSNs: only the transactions are others.
    with PostgresCluster(postgres_versions()[18]) as cluster:
        dsn = cluster.create_database()
        await execute(dsn, _TABLE)
        async with streaming(_settings(dsn), recorder, store) as first:
            await execute(dsn, "INSERT INTO t VALUES (0, 'before')")
            await recorder.has(1)
            epoch = first.epoch
        cluster.stop()
        copy = shutil.copytree(cluster.data_dir, cluster.folder / "copy")
        cluster.start()
        async with streaming(_settings(dsn), recorder, store):
            await execute(dsn, "INSERT INTO t VALUES (1, 'undone')")
            await recorder.has(2)
        cluster.stop()
        owner = cluster.data_dir.stat()
        shutil.rmtree(cluster.data_dir)
        copy.rename(cluster.data_dir)
        for path in (cluster.data_dir, *cluster.data_dir.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        cluster.start()
        # So much that the end of the WAL shows nothing.
        await execute(dsn, *(f"INSERT INTO t VALUES ({number}, 'another')" for number in range(2, 60)))
        async with streaming(_settings(dsn), recorder, store) as last:
            await until(lambda: last.epoch != epoch, "a new generation")
            await execute(dsn, "INSERT INTO t VALUES (99, 'last')")
            await until(lambda: 99 in recorder.ids, "a change of it")


async def test_a_new_generation_is_recorded_before_anything_of_it_is_published(permanent18: ReplicatorSettings) -> None:
    # Else a crash in between leaves a new slot with the old record, and the changes between the two are a silent hole.
    class Slow(MemoryStore):
        async def save(self, name: str, record: Record) -> None:
            with suppress(TimeoutError):
                await until(lambda: bool(recorder.asked), "a change", limit_s=1)
            await super().save(name, record)

    class Asking(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[bool] = []

        async def publish(self, envelope: Envelope) -> None:
            self.asked.append(bool(slow.saved) and str(slow.saved[-1].epoch) == envelope.epoch)
            await super().publish(envelope)

    slow, recorder = Slow(), Asking()
    async with started(permanent18, recorder, slow):
        exists = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{permanent18.slot_name}'"
        await until(lambda: _is(permanent18.dsn, exists, 1), "the slot")
        await execute(permanent18.dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
    assert recorder.asked == [True]


async def test_the_server_is_never_told_to_forget_what_the_ring_keeps(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    dsn, slot_name = permanent.dsn, str(permanent.slot_name)
    async with streaming(replace(permanent, ring_age_s=0.5), recorder, store) as running:
        moved = set()
        for number in range(40):
            await execute(dsn, f"INSERT INTO t VALUES ({number}, 'a')")
            confirmed = await confirmed_lsn(dsn, slot_name)
            # Looked at afterwards: the ring's oldest only rises.
            oldest = running.changelog.oldest_commit_lsn
            assert oldest is None or confirmed <= oldest
            moved.add(confirmed)
        assert len(moved) > 1
        await recorder.has(40)
        last = recorder.envelopes[-1].last

        async def passed() -> bool:
            confirmed = await confirmed_lsn(dsn, slot_name)
            # The record is written before the server is told.
            assert store.saved[-1].floor >= max(
                (chunk.last for chunk in recorder.chunks if chunk.commit_lsn < confirmed), default=BEGINNING
            )
            return confirmed > last.commit_lsn

        await until(passed, "the acknowledgement of what has left the ring")
        assert running.changelog.floor == last
        assert store.saved[-1].floor == last


async def test_an_idle_slot_moves_on_while_unpublished_tables_are_written(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    dsn = permanent.dsn
    await execute(dsn, "CREATE PUBLICATION quiet FOR TABLE t", "CREATE TABLE busy (id int)")
    async with streaming(replace(permanent, publications=["quiet"]), recorder, store):
        await execute(dsn, *("INSERT INTO busy SELECT generate_series(1, 1000)" for _ in range(10)))
        written = await value(dsn, "SELECT pg_current_wal_lsn() - '0/0'")
        await until(lambda: _has_confirmed(dsn, str(permanent.slot_name), int(written)), "an idle slot's move")
    assert recorder.envelopes == []


@pytest.mark.parametrize("heartbeat_s", [0.0, 0.05])
async def test_a_heartbeat_is_written_where_it_is_wished_for(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore, heartbeat_s: float
) -> None:
    async with streaming(replace(permanent, heartbeat_s=heartbeat_s), recorder, store):
        await until(lambda: len(recorder.ticks) > 2, "the first ticks")
        before = int(await value(permanent.dsn, "SELECT pg_current_wal_insert_lsn() - '0/0'"))
        ticks = len(recorder.ticks)
        await until(lambda: len(recorder.ticks) > ticks + 5, "some ticks")
        written = int(await value(permanent.dsn, "SELECT pg_current_wal_insert_lsn() - '0/0'")) - before
        # One is some 60 bytes; the server itself may write one word of its own now and then.
        assert (written >= 200) == bool(heartbeat_s)
    assert recorder.envelopes == []


async def test_a_failover_slot_is_made_and_an_old_one_becomes_one(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    is_one = f"SELECT failover FROM pg_replication_slots WHERE slot_name = '{permanent18.slot_name}'"
    async with streaming(permanent18, recorder, store):
        assert await value(permanent18.dsn, is_one) is False
    async with streaming(replace(permanent18, slot_failover=True), recorder, store):
        assert await value(permanent18.dsn, is_one) is True
    active = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{permanent18.slot_name}' AND active"
    await until(lambda: _is(permanent18.dsn, active, 0), "the end of the walsender")
    await execute(permanent18.dsn, f"SELECT pg_drop_replication_slot('{permanent18.slot_name}')")
    async with streaming(replace(permanent18, slot_failover=True), recorder, store):
        assert await value(permanent18.dsn, is_one) is True


async def test_what_the_server_is_too_old_for_is_said_before_anything_is_made(
    postgres: PostgresCluster, permanent: ReplicatorSettings, caplog: pytest.LogCaptureFixture
) -> None:
    if await value(permanent.dsn, "SELECT current_setting('server_version_num')::int >= 170000"):
        return
    async with started(replace(permanent, slot_failover=True), Recorder(), MemoryStore()):
        await until(lambda: any("SLOT_FAILOVER" in _reason(said) for said in caplog.records), "a word about it")
    assert (
        await value(permanent.dsn, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 0
    )


async def _has_confirmed(dsn: str, slot_name: str, lsn: int) -> bool:
    return await confirmed_lsn(dsn, slot_name) >= lsn


class Blocked(Recorder):
    """A publisher whose channel layer is away until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.open = asyncio.Event(), asyncio.Event()

    async def publish(self, envelope: Envelope) -> None:
        self.asked.set()
        await self.open.wait()
        await super().publish(envelope)


async def test_the_server_knows_at_once_that_a_transaction_was_read(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STATUS_INTERVAL_S", 3600.0)
    read = "SELECT write_lsn >= %s::pg_lsn FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid"
    async with streaming(permanent18, recorder, store):
        for number in range(1, 4):
            await execute(permanent18.dsn, f"INSERT INTO t VALUES ({number}, 'a')")
            await recorder.has(number)
            lsn = str(LSN(recorder.chunks[-1].commit_lsn))

            async def is_known(lsn: str = lsn) -> bool:
                return bool(await value(permanent18.dsn, f"{read} WHERE slot_name = %s", lsn, permanent18.slot_name))

            await until(is_known, "its word that it was read")
        assert await confirmed_lsn(permanent18.dsn, str(permanent18.slot_name)) <= recorder.chunks[0].commit_lsn


async def test_what_is_not_published_is_not_acknowledged_though_the_server_hears_from_us(
    permanent18: ReplicatorSettings, store: MemoryStore
) -> None:
    dsn, slot_name = permanent18.dsn, str(permanent18.slot_name)

    blocked = Blocked()
    heard = (
        "SELECT reply_time FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid"
        f" WHERE slot_name = '{slot_name}'"
    )
    async with streaming(replace(permanent18, ring_age_s=0.0), blocked, store) as running:
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')")
        await asyncio.wait_for(blocked.asked.wait(), 10)
        commit_lsn = running.changelog.oldest_commit_lsn
        assert commit_lsn is not None
        since = await value(dsn, heard)
        await until(lambda: _is_later(dsn, heard, since), "a status while nothing can be published")
        assert await confirmed_lsn(dsn, slot_name) <= commit_lsn
        assert running.changelog.oldest_commit_lsn == commit_lsn
        blocked.open.set()
        await until(lambda: _has_confirmed(dsn, slot_name, commit_lsn + 1), "the acknowledgement")


async def _is_later(dsn: str, query: str, than: Any) -> bool:
    now = await value(dsn, query)
    return bool(now and now > than)


async def test_a_temporary_slot_is_acknowledged_when_published(
    database: str, recorder: Recorder, store: MemoryStore
) -> None:
    await execute(database, _TABLE)
    slot = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
    async with streaming(_settings(database, slot_name=None), recorder, store):
        await execute(database, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        name = str(await value(database, slot))
        await until(lambda: _has_confirmed(database, name, recorder.chunks[-1].commit_lsn + 1), "its acknowledgement")


# Trouble


def _reason(said: logging.LogRecord) -> str:
    return str(getattr(said, "reason", ""))


async def test_without_its_publication_it_waits_and_the_slot_stays(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    dsn, slot_name = permanent.dsn, str(permanent.slot_name)
    settings = replace(permanent, create_publication=False)
    await execute(dsn, f"SELECT pg_create_logical_replication_slot('{slot_name}', 'pgoutput')")
    confirmed = await confirmed_lsn(dsn, slot_name)
    async with started(settings, recorder, store) as running:
        await until(lambda: any("CREATE PUBLICATION" in _reason(said) for said in caplog.records), "a word about it")
        assert not running.streaming.is_set()
        await execute(dsn, "CREATE PUBLICATION pub FOR ALL TABLES")
        await until(running.streaming.is_set, "streaming")
        assert await confirmed_lsn(dsn, slot_name) >= confirmed
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
    assert recorder.ids == [1]


_TERMINATE = """
    SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
    WHERE database = current_database() AND active
"""


async def test_after_its_walsender_was_ended_it_goes_on_and_nothing_is_lost_or_doubled(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent, recorder, store) as running:
        epoch = running.epoch
        for number in range(20):
            await execute(permanent.dsn, f"INSERT INTO t VALUES ({number}, 'a')")
            if number % 5 == 4:
                await execute(permanent.dsn, _TERMINATE)
        await recorder.has(20)
        assert running.epoch == epoch
    assert recorder.ids == list(range(20))
    recorder.assert_one_chain()


async def test_a_large_transaction_that_was_cut_comes_whole_and_once(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    dsn, rows = permanent18.dsn, 60_000

    class Cutting(Recorder):
        async def publish(self, envelope: Envelope) -> None:
            await super().publish(envelope)
            if len(self.envelopes) == 1:
                assert not self.chunks[-1].is_last
                await execute(dsn, _TERMINATE)

    cutting = Cutting()
    async with streaming(permanent18, cutting, store):
        await execute(dsn, f"INSERT INTO t SELECT n, 'row ' || n FROM generate_series(1, {rows}) AS n")
        await cutting.has(rows)
        await execute(dsn, "INSERT INTO t VALUES (0, 'last')")
        await cutting.has(rows + 1)
    assert cutting.ids == [*range(1, rows + 1), 0]
    cutting.assert_one_chain()


async def test_a_temporary_slot_that_was_cut_begins_a_new_generation(
    database18: str, recorder: Recorder, store: MemoryStore
) -> None:
    await execute(database18, _TABLE)
    async with streaming(_settings(database18, slot_name=None), recorder, store) as running:
        await execute(database18, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        epoch = running.epoch
        await execute(database18, _TERMINATE)
        await until(lambda: running.epoch != epoch and running.streaming.is_set(), "a new generation")
        await execute(database18, "INSERT INTO t VALUES (2, 'b')")
        await recorder.has(2)
    assert recorder.ids == [1, 2]
    recorder.assert_one_chain()


@pytest.mark.parametrize("slot_name", [None, "permanent"])
async def test_a_fast_restart_of_the_server_is_not_held_up_and_streaming_goes_on(
    postgres: PostgresCluster, database: str, recorder: Recorder, store: MemoryStore, slot_name: str | None
) -> None:
    await execute(database, _TABLE)
    settings = _settings(database, slot_name=slot_name and _name_of(database))
    async with streaming(settings, recorder, store) as running:
        await execute(database, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        # It raises if the server has not stopped within its time limit.
        await asyncio.to_thread(postgres.restart, "fast")
        if slot_name is None:
            ticks = len(recorder.ticks)
            await until(lambda: running.streaming.is_set() and len(recorder.ticks) > ticks + 3, "streaming again")
        await execute(database, "INSERT INTO t VALUES (2, 'b')")
        await recorder.has(2)
    assert recorder.ids == [1, 2]
    recorder.assert_one_chain()


async def test_a_crash_of_the_server_brings_nothing_back(
    postgres18: PostgresCluster, permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    # What was acknowledged after the last checkpoint is forgotten in the crash: PostgreSQL sends it again.
    dsn, slot_name = permanent18.dsn, str(permanent18.slot_name)
    settings = replace(permanent18, ring_age_s=0.0)
    async with streaming(settings, recorder, store):
        await execute(dsn, "CHECKPOINT", "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        commit_lsn = recorder.chunks[-1].commit_lsn
        await until(lambda: _has_confirmed(dsn, slot_name, commit_lsn + 1), "its acknowledgement")
    await asyncio.to_thread(postgres18.restart, "immediate")
    again = Recorder()
    async with streaming(settings, again, store):
        await execute(dsn, "INSERT INTO t VALUES (2, 'b')")
        await again.has(1)
    assert again.ids == [2]
    assert again.envelopes[0].prev == recorder.envelopes[-1].last


async def _stands_by(caplog: pytest.LogCaptureFixture) -> None:
    await until(lambda: "standing by" in caplog.text, "the standby's first try")


async def test_a_standby_waits_for_the_slot_and_takes_over(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    second_recorder = Recorder()
    async with AsyncExitStack() as stack:
        async with streaming(permanent, recorder, store) as first:
            second = await stack.enter_async_context(started(permanent, second_recorder, store))
            await _stands_by(caplog)
            assert not second.streaming.is_set()
            await execute(permanent.dsn, "INSERT INTO t VALUES (1, 'a')")
            await recorder.has(1)
        await until(second.streaming.is_set, "the takeover")
        await execute(permanent.dsn, "INSERT INTO t VALUES (2, 'b')")
        await until(lambda: 2 in second_recorder.ids, "a change from the second")
        assert second.epoch == first.epoch
    assert recorder.ids == [1]
    assert second_recorder.ids == [2]
    assert second_recorder.envelopes[0].prev == recorder.envelopes[-1].last


async def test_a_standby_that_takes_over_does_not_claim_to_have_what_left_before_it_came(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings, second_recorder = replace(permanent18, ring_age_s=0.0), Recorder()
    async with AsyncExitStack() as stack:
        async with streaming(settings, recorder, store):
            second = await stack.enter_async_context(started(permanent18, second_recorder, store))
            await _stands_by(caplog)
            await execute(permanent18.dsn, "INSERT INTO t VALUES (1, 'a')")
            await recorder.has(1)
            commit_lsn = recorder.chunks[0].commit_lsn
            await until(
                lambda: _has_confirmed(permanent18.dsn, str(permanent18.slot_name), commit_lsn + 1),
                "its acknowledgement",
            )
        await until(second.streaming.is_set, "the takeover")
        await execute(permanent18.dsn, "INSERT INTO t VALUES (2, 'b')")
        await until(lambda: 2 in second_recorder.ids, "a change from the second")
        # Who has nothing of the first change must not be told that the second one follows.
        assert second.answer(second.epoch, recorder.envelopes[0].prev, 1 << 20) is None
        assert second_recorder.envelopes[0].prev == recorder.envelopes[-1].last


class Moved(MemoryStore):
    """While its record is read, whoever had the slot until now acknowledges what it has published, and goes."""

    def __init__(self, earlier: MemoryStore, settings: ReplicatorSettings) -> None:
        super().__init__()
        self.saved = earlier.saved
        self._settings = settings
        self.lsn = 0

    async def load(self, name: str) -> Record | None:
        record = await super().load(name)
        if not self.lsn and record is not None:
            self.lsn = int(LSN.parse(await value(self._settings.dsn, "SELECT pg_current_wal_lsn()::text")))
            await self.save(name, replace(record, acknowledged_lsn=self.lsn))
            move = "SELECT pg_replication_slot_advance(%s, %s::pg_lsn)"
            await value(self._settings.dsn, move, self._settings.slot_name, str(LSN(self.lsn)))
        return record


async def test_a_slot_that_is_moved_between_the_look_and_the_start_is_no_new_history(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dsn, second_recorder = permanent18.dsn, Recorder()
    async with streaming(permanent18, recorder, store) as first:
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
    assert store.saved[-1].published == recorder.envelopes[-1].last
    moved = Moved(store, permanent18)
    async with streaming(permanent18, second_recorder, moved) as second:
        assert await confirmed_lsn(dsn, str(permanent18.slot_name)) >= moved.lsn > recorder.chunks[-1].commit_lsn
        await execute(dsn, "INSERT INTO t VALUES (2, 'b')")
        await second_recorder.has(1)
        assert second.epoch == first.epoch
    assert second_recorder.ids == [2]
    assert second_recorder.envelopes[0].prev == recorder.envelopes[-1].last
    assert "the slot was moved meanwhile" in caplog.text


async def test_a_standby_that_is_stopped_leaves_the_record_alone(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with streaming(permanent18, recorder, store):
        async with started(permanent18, Recorder(), store):
            await _stands_by(caplog)
            await execute(permanent18.dsn, "INSERT INTO t VALUES (1, 'a')")
            await recorder.has(1)
            await until(lambda: store.saved[-1].published == recorder.envelopes[-1].last, "the saving of the record")
        assert store.saved[-1].published == recorder.envelopes[-1].last


async def test_who_was_cut_off_and_comes_back_goes_on_where_the_other_one_stopped(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    dsn, other_recorder = permanent18.dsn, Recorder()
    async with Line(dsn) as line, streaming(replace(permanent18, dsn=line.dsn), recorder, store) as cut_off:
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        before = recorder.envelopes[0].prev
        await line.cut()
        async with streaming(replace(permanent18, ring_age_s=0.0), other_recorder, store):
            await execute(dsn, "INSERT INTO t VALUES (2, 'b')")
            await other_recorder.has(1)
            commit_lsn = other_recorder.chunks[-1].commit_lsn
            await until(lambda: _has_confirmed(dsn, str(permanent18.slot_name), commit_lsn + 1), "its acknowledgement")
        line.mend()
        await until(cut_off.streaming.is_set, "streaming again")
        await execute(dsn, "INSERT INTO t VALUES (3, 'c')")
        await recorder.has(2)
        assert recorder.ids == [1, 3]
        assert recorder.envelopes[-1].prev == other_recorder.envelopes[-1].last
        # The second change is neither here nor with the server any more.
        assert cut_off.answer(cut_off.epoch, before, 1 << 20) is None


@pytest.mark.parametrize("limits", [{"ring_wal_bytes": 100_000}, {"max_lag_bytes": 200_000}], ids=str)
async def test_the_ring_lets_go_of_what_holds_back_too_much_wal(
    permanent: ReplicatorSettings, recorder: Recorder, store: MemoryStore, limits: dict[str, Any]
) -> None:
    dsn = permanent.dsn
    await execute(dsn, "CREATE TABLE busy (id int)", "CREATE PUBLICATION quiet FOR TABLE t")
    async with streaming(replace(permanent, publications=["quiet"], **limits), recorder, store) as running:
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        for _ in range(3):
            await execute(dsn, "INSERT INTO busy SELECT generate_series(1, 1000)")
        await until(lambda: running.changelog.oldest_commit_lsn is None, "the change's leaving", limit_s=10)
        commit_lsn = recorder.chunks[0].commit_lsn
        await until(lambda: _has_confirmed(dsn, str(permanent.slot_name), commit_lsn + 1), "its acknowledgement")


async def test_a_ring_that_is_shortened_when_asked_lets_the_server_forget(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    dsn = permanent18.dsn
    async with streaming(permanent18, recorder, store) as running:
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (2, 'b')")
        await recorder.has(2)
        assert not running.shorten_ring(1 << 30)
        await until(lambda: running.shorten_ring(0), "something to let go of")
        commit_lsn = recorder.chunks[0].commit_lsn
        await until(lambda: _has_confirmed(dsn, str(permanent18.slot_name), commit_lsn + 1), "its acknowledgement")


async def test_over_the_limit_of_lag_the_slot_is_made_anew_at_the_start(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    dsn = permanent18.dsn
    async with streaming(permanent18, recorder, store) as first:
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        epoch = first.epoch
    await execute(dsn, "INSERT INTO t SELECT n, repeat('lag', 100) FROM generate_series(1001, 6000) AS n")
    async with streaming(replace(permanent18, max_lag_bytes=1 << 20), recorder, store) as second:
        await execute(dsn, "INSERT INTO t VALUES (2, 'b')")
        await until(lambda: 2 in recorder.ids, "a change after the gap")
        assert second.epoch != epoch
    assert recorder.ids == [1, 2]


async def test_over_the_limit_of_lag_the_slot_is_made_anew_although_nothing_can_be_published(
    permanent18: ReplicatorSettings, store: MemoryStore
) -> None:
    dsn, slot_name = permanent18.dsn, str(permanent18.slot_name)
    blocked = Blocked()
    async with streaming(replace(permanent18, max_lag_bytes=1 << 20), blocked, store):
        await execute(dsn, "INSERT INTO t VALUES (1, 'a')")
        await asyncio.wait_for(blocked.asked.wait(), 10)
        await execute(dsn, "INSERT INTO t SELECT n, repeat('lag', 100) FROM generate_series(1001, 6000) AS n")
        written = int(await value(dsn, "SELECT pg_current_wal_lsn() - '0/0'"))

        async def is_let_go() -> bool:
            kept = await value(
                dsn, "SELECT restart_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s", slot_name
            )
            return kept is None or int(kept) > written - (1 << 20)

        await until(is_let_go, "the end of the slot that holds up the WAL", limit_s=10)


async def test_a_record_that_cannot_be_read_for_a_while_does_not_end_the_replicator(
    permanent18: ReplicatorSettings, recorder: Recorder
) -> None:
    class Away(MemoryStore):
        asked = 0

        async def load(self, name: str) -> Record | None:
            self.asked += 1
            if self.asked < 3:
                raise OperationalError("the database is starting up")
            return await super().load(name)

    async with streaming(permanent18, recorder, Away()):
        await execute(permanent18.dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)


async def test_a_record_that_cannot_be_saved_for_a_while_does_not_end_the_replicator(
    permanent18: ReplicatorSettings, recorder: Recorder
) -> None:
    class Unsteady(MemoryStore):
        failures = 0

        async def save(self, name: str, record: Record) -> None:
            if record.published > BEGINNING and self.saved and self.failures < 3:
                self.failures += 1
                raise OperationalError("database is locked")  # as SQLite says it, through Django
            await super().save(name, record)

    store = Unsteady()
    async with streaming(permanent18, recorder, store):
        for number in range(10):
            await execute(permanent18.dsn, f"INSERT INTO t VALUES ({number}, 'a')")
        await recorder.has(10)
        await until(lambda: store.failures == 3, "three failures")
        await until(lambda: store.saved[-1].published == recorder.envelopes[-1].last, "the saving of the record")
    assert recorder.ids == list(range(10))


async def test_a_host_that_is_no_name_is_reported_and_does_not_end_the_replicator(
    recorder: Recorder, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ReplicatorSettings("host=a..b dbname=x", ["pub"], None, ip_version="ipv4")
    async with started(settings, recorder, store):
        await until(lambda: "not streaming" in caplog.text, "a word about it")


async def test_a_server_that_is_away_is_waited_for(
    permanent18: ReplicatorSettings,
    postgres18: PostgresCluster,
    recorder: Recorder,
    store: MemoryStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await asyncio.to_thread(postgres18.stop, "fast")
    try:
        async with started(permanent18, recorder, store) as running:
            await until(lambda: "not streaming" in caplog.text, "a word about it")
            assert running.published is None
            await asyncio.to_thread(postgres18.start)
            await until(running.streaming.is_set, "streaming")
    finally:
        if not postgres18.running:
            postgres18.start()
    # The same trouble is said once.
    said = [record for record in caplog.records if "refused" in _reason(record)]
    assert len(said) == 1


async def test_what_waits_in_the_first_packet_is_not_left_lying(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STATUS_INTERVAL_S", 3.0)  # as it is: an early status makes the server speak again
    # On a slow line the answer to START_REPLICATION and the first changes arrive in one piece, and then it is quiet.
    async with streaming(permanent18, recorder, store):
        await execute(permanent18.dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
    await execute(permanent18.dsn, "INSERT INTO t VALUES (2, 'while stopped')")
    async with (
        Line(permanent18.dsn, lump_at=b"START_REPLICATION") as line,
        streaming(replace(permanent18, dsn=line.dsn), recorder, store),
    ):
        await until(lambda: recorder.ids == [1, 2], "the arrival", limit_s=2)


# For those who ask


async def test_ticks_say_where_the_chain_stands(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent18, recorder, store) as running:
        await execute(permanent18.dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        last = recorder.envelopes[-1].last
        await until(lambda: bool(recorder.ticks) and recorder.ticks[-1].published == last, "a tick that knows it")
        tick = recorder.ticks[-1]
        assert (tick.epoch, tick.floor) == (running.epoch, running.changelog.floor)
        assert tick.floor < last
        assert tick.wal_end >= last.commit_lsn
        assert len({tick.instance for tick in recorder.ticks}) == 1


async def test_a_pull_is_answered_piece_by_piece_until_level(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent18, recorder, store) as running:
        for number in range(10):
            await execute(permanent18.dsn, f"INSERT INTO t VALUES ({number}, 'a')")
        await recorder.has(10)
        have, ids, answers = recorder.envelopes[0].prev, [], 0
        while (answer := running.answer(running.epoch, have, 500)) is not None:
            assert answer.prev == have
            have, answers = answer.last, answers + 1
            ids += [int(seen(change)[2]["id"]) for chunk in answer.chunks for change in chunk.changes]
        assert ids == list(range(10))
        assert answers > 3
        assert have == running.published


async def test_a_pull_for_what_is_not_here_is_not_answered(
    permanent18: ReplicatorSettings, recorder: Recorder, store: MemoryStore
) -> None:
    async with streaming(permanent18, recorder, store) as running:
        await execute(permanent18.dsn, "INSERT INTO t VALUES (1, 'a')")
        await recorder.has(1)
        last = recorder.envelopes[-1].last
        assert running.answer("another epoch", recorder.envelopes[0].prev, 1 << 20) is None
        assert running.answer(running.epoch, BEGINNING, 1 << 20) is None
        assert running.answer(running.epoch, last, 1 << 20) is None
        assert running.answer(running.epoch, Position(last.commit_lsn + 1, 0, 0), 1 << 20) is None
