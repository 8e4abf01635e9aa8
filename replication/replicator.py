"""The loop: read, decode, log, publish, acknowledge, reconnect."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Protocol

import psycopg

from replication import copy_both, lookup, slots
from replication.assembler import Assembler
from replication.changelog import Changelog
from replication.changes import Chunk, Envelope, Relation
from replication.connection import ReplicationConnection, with_address
from replication.copy_both import PrimaryKeepalive, is_quiet_keepalive, xlog_kind, xlog_payload
from replication.errors import (
    ConnectionFailed,
    PgOutputError,
    PublicationMissing,
    RecordUnavailable,
    ReplicationError,
    ServerNotReady,
    SlotIsActive,
    StreamEnded,
    UnknownRelation,
)
from replication.guardian import Guardian
from replication.history import History
from replication.lsn import LSN, Position
from replication.options import ReplicatorSettings
from replication.pgoutput import POSTGRES_EPOCH, ROW_KINDS
from replication.preflight import preflight
from replication.progress import Progress
from replication.publisher import Publisher, stop_if_cancelled
from replication.record import Identity, Record, source_hash
from replication.slot_keeper import Catalogue, ReadySlot, SlotKeeper
from replication.status import MOST_TABLES, BudgetStatus, Meter, ReplicatorStatus, RingStatus

logger = logging.getLogger(__name__)

TICK_S = 1.0
BACKOFF_S = (0.5, 30.0)
STANDBY_RETRY_S = 1.0
SILENCE_S = 15.0
"""Each of our status updates asks for an answer: a server that is silent for so long is gone."""
GUARD_TURNS = 5
"""How many ticks lie between two looks at the slot's lag."""
LEARN_TURNS = 5
"""How many lie between two looks at what the catalogue says of the tables."""
SOME_ROWS = 8
"""Where the stream has a row so many frames ahead, it is worth looking for a run of them."""


class RecordStore(Protocol):
    """Where the record is kept."""

    async def load(self, name: str) -> Record | None:
        """The record, or `None` if there is none."""

    async def save(self, name: str, record: Record) -> None:
        """Keep the record; it must be safe when this returns."""


class Replicator:
    """Streams one slot into one publisher, for as long as `run` runs; reconnects by itself.

    ``changelog`` is its ring; hubs of the same process read it.
    """

    def __init__(self, settings: ReplicatorSettings, publisher: Publisher, store: RecordStore) -> None:
        self.settings, self._publisher, self._store = settings, publisher, store
        self.changelog = Changelog(
            max_bytes=settings.ring_bytes, max_age_s=settings.ring_age_s, max_wal_bytes=settings.ring_max_wal_bytes
        )
        self.streaming = asyncio.Event()
        """Set while the slot is being read."""
        self.meter = Meter()
        self.guardian = Guardian(
            publications=settings.publications, max_lag_bytes=settings.max_lag_bytes, shorten_ring=self.shorten_ring
        )
        self._instance, self._started = secrets.token_hex(4), time.time()
        self._slot_name = settings.slot_name
        self._server_version: str | None = None
        self._history = History(self.changelog, permanent=settings.slot_name is not None)
        self._keeper = SlotKeeper(settings, self._published_lsn)
        self._told_epoch = ""
        self._beat_at = float("-inf")
        self._unlearned: list[Relation] = []
        """Of the ring, what the catalogue has not yet been asked about; nothing is published before."""
        self._said: str | None = None
        self._moved_on = False
        """Something was published since the last connection: the next one need not wait long."""
        self._waiting_since: float | None = None

    async def run(self) -> None:
        """Stream until cancelled; whatever PostgreSQL does, it reconnects with backoff. Saves the record at the end."""
        delay_s = BACKOFF_S[0]
        try:
            while True:
                stop_if_cancelled()
                try:
                    await self._connect_and_follow()
                except SlotIsActive as error:
                    self.meter.failed(error, time.time())
                    self._say(logging.INFO, "standing by: another replicator reads the slot", error)
                    await asyncio.sleep(STANDBY_RETRY_S)
                    continue
                except (ReplicationError, psycopg.Error, OSError) as error:
                    self.meter.failed(error, time.time())
                    level = logging.ERROR if isinstance(error, ServerNotReady) else logging.WARNING
                    self._say(level, "not streaming", error)
                    if isinstance(error, PublicationMissing) and self.streaming.is_set():
                        self._keeper.undecodable()
                else:
                    continue
                self.streaming.clear()
                if self._moved_on:
                    self._moved_on, delay_s = False, BACKOFF_S[0]
                await asyncio.sleep(delay_s * random.uniform(0.8, 1.2))
                delay_s = min(delay_s * 2, BACKOFF_S[1])
        finally:
            self.streaming.clear()
            # In a task of its own: whatever cancels this one may do so again before the record is safe.
            saving = asyncio.create_task(self._save_last_record(), name="last record")
            while not saving.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([saving])

    @property
    def epoch(self) -> str:
        """The epoch of the stream; empty before the first connection."""
        return str(self._record.epoch) if self._record else ""

    @property
    def published(self) -> Position | None:
        """The position of the newest published change (`None` before the first connection)."""
        return self._record.published if self._record else None

    @property
    def instance(self) -> str:
        """What this replicator is called among others; a new one at each start."""
        return self._instance

    @property
    def _done_lsn(self) -> int:
        """Everything up to here has been published: what was received, unless some of it still waits."""
        record = self._record
        if record is not None and self.changelog.last > record.published:
            return record.published.commit_lsn
        return self._progress.received_lsn

    def status(self) -> ReplicatorStatus:
        """How it is at this moment; to be asked about once a second."""
        now, record, guardian, meter, ring = time.monotonic(), self._record, self.guardian, self.meter, self.changelog
        done_lsn, slot = self._done_lsn, self.guardian.slot(self._slot_name)
        wal_end = guardian.wal_end and LSN(max(guardian.wal_end, self._progress.received_lsn))
        rates = meter.rates(wal_end or 0, now)
        return ReplicatorStatus(
            instance=self._instance,
            role=meter.role,
            started_at=self._started,
            epoch=self.epoch,
            slot_name=self._slot_name,
            temporary=self.settings.slot_name is None,
            publications=self.settings.publications,
            published=self.published,
            published_at=record.committed_at if record else None,
            server_wal_end=wal_end,
            confirmed_flush_lsn=slot.confirmed_flush_lsn if slot else None,
            lag_bytes=guardian.lag_bytes(done_lsn) if meter.role == "active" else None,
            lag_s=guardian.lag_s(done_lsn) if meter.role == "active" else None,
            progress_age_s=None if meter.progress_at is None else now - meter.progress_at,
            ring=RingStatus(
                floor=ring.floor,
                last=ring.last,
                bytes=ring.size,
                chunks=len(ring),
                age_s=ring.age_s(now),
                max_bytes=ring.max_bytes,
                max_age_s=ring.max_age_s,
            ),
            rates=rates,
            changes=meter.changes,
            transactions=meter.transactions,
            unreadable=meter.unreadable,
            changes_by_table=meter.by_table(),
            connections=meter.connections,
            slots_replaced=self._keeper.replaced,
            error=meter.trouble,
            budgets=[
                BudgetStatus(
                    budget.name,
                    budget.limit,
                    budget.used,
                    budget.share,
                    guardian.left_s(budget, rates.wal_bytes_per_s),
                )
                for budget in guardian.budgets(self._slot_name, done_lsn)
            ],
            slots=guardian.slots,
            tables=guardian.tables[:MOST_TABLES],
            table_count=len(guardian.tables),
            server_version=self._server_version,
        )

    def answer(self, epoch: str, position: Position, limit_bytes: int) -> Envelope | None:
        """What follows ``position``, about ``limit_bytes`` of it: the answer to a pull. `None` if unknown here."""
        return self._history.answer(epoch, position, limit_bytes)

    def shorten_ring(self, max_wal_bytes: int) -> bool:
        """Let go of what holds back more WAL than that; whether there was any. The server hears of it within seconds.

        Nothing is lost to those who are level; who has to be sent something again may find it gone.
        """
        return self._history.shorten(max_wal_bytes)

    async def _connect_and_follow(self) -> None:
        """Follow until something goes wrong; it returns if it has to look again, at once."""
        settings = self.settings
        dsn = await with_address(settings.dsn, settings.ip_version)
        try:
            catalogue = await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, application_name="walcast", client_encoding="UTF8"
            )
        except psycopg.OperationalError as error:
            raise ConnectionFailed(str(error).strip()) from error
        async with _closing(catalogue):
            ready = await preflight(
                catalogue,
                publications=settings.publications,
                slot_name=settings.slot_name,
                create_publication=settings.create_publication,
            )
            self._server_version, self.guardian.slots = ready.facts.version, ready.slots
            type_names = await lookup.type_names(catalogue)
            connection = await ReplicationConnection.connect(
                dsn,
                time_zone=settings.time_zone,
                server_version=ready.facts.version_num,
                encoding="SQL_ASCII" if catalogue.info.parameter_status("server_encoding") == "SQL_ASCII" else "UTF8",
            )
            async with connection:
                system = await connection.identify_system()
                slot = await self._keeper.ensure(catalogue, connection, ready)
                identity = Identity(
                    system.system_id,
                    system.timeline,
                    system.wal_lsn,
                    source_hash(system.database, settings.publications),
                    await connection.timeline_history(system.timeline),
                )
                assembler = Assembler(type_names, hidden=settings.hidden_tables)
                await self._enter_history(identity, assembler, slot.lsn, slot_is_new=slot.is_new)
                await connection.start(slot.name, self._history.resume_lsn, settings.publications)
                # It is ours from here on. If its reader until now has moved it since we looked, the stream may begin
                # behind what we expect to meet, and that is no other history.
                if await self._keeper.was_moved(catalogue, slot):
                    logger.info("the slot was moved meanwhile", extra={"slot": slot.name})
                    return
                self._slot_name = slot.name
                self.meter.streams(time.monotonic())
                self._say_streaming(slot)
                await self._follow(catalogue, connection, assembler)

    async def _enter_history(
        self, identity: Identity, assembler: Assembler, slot_lsn: int, *, slot_is_new: bool
    ) -> None:
        history, stored = self._history, await self._load_record()
        entry = history.enter(stored, identity, slot_lsn=slot_lsn, slot_is_new=slot_is_new, now=int(time.time()))
        if entry.was is not None and entry.is_news:
            facts = {"epoch": entry.record.epoch, "was": entry.was.epoch}
            if entry.begins_anew:
                logger.warning("a new history begins: earlier positions no longer hold", extra=facts)
            else:
                logger.warning("another timeline: the history goes on where a standby was promoted", extra=facts)
        if entry.is_news:
            # A new slot with an old record, after a crash in between, would be a silent hole.
            await self._store_record(entry.record)
        history.begin(entry, assembler, slot_lsn=slot_lsn)

    async def _published_lsn(self) -> int:
        record = self._record or await self._load_record()
        return max(record.published.commit_lsn if record else 0, self._progress.received_lsn)

    async def _load_record(self) -> Record | None:
        try:
            return await self._store.load(self.settings.record_name)
        except Exception as error:  # whatever a database raises
            raise RecordUnavailable(str(error)) from error

    async def _store_record(self, record: Record) -> None:
        try:
            await self._store.save(self.settings.record_name, record)
        except ReplicationError:
            raise
        except Exception as error:  # whatever a database raises
            raise RecordUnavailable(str(error)) from error

    @property
    def _record(self) -> Record | None:
        return self._history.record

    @property
    def _progress(self) -> Progress:
        return self._history.progress

    @property
    def _assembler(self) -> Assembler | None:
        return self._history.assembler

    async def _follow(self, catalogue: Catalogue, connection: ReplicationConnection, assembler: Assembler) -> None:
        self._waiting_since = None
        self.streaming.set()
        assert self._slot_name is not None
        # Side by side: a catalogue that answers slowly holds up neither ticks nor status updates.
        chores = [
            asyncio.create_task(self._do_chores(catalogue, connection), name="replicator chores"),
            asyncio.create_task(
                self.guardian.watch(catalogue, self._slot_name, lambda: self._done_lsn), name="slot guardian"
            ),
        ]
        me = asyncio.current_task()
        assert me is not None

        interrupts, following = 0, True

        def interrupt(ended: asyncio.Task[None]) -> None:
            # We may be waiting for the server or for the channel layer, and neither may ever come.
            nonlocal interrupts
            if following and not ended.cancelled():
                interrupts += 1
                me.cancel()

        for chore in chores:
            chore.add_done_callback(interrupt)
        try:
            more = False
            while True:
                stop_if_cancelled()
                _raise_what_ended(chores)
                if not more:
                    self._waiting_since = time.monotonic()
                    await connection.wait_readable()
                    self._waiting_since = None
                frames, more = connection.read_ready()
                self._read(frames, assembler, more=more)
                if assembler.new_relations or self._unlearned:
                    await self._learn(catalogue, assembler)
                await self._publish_waiting()
                self._history.evict(time.monotonic())
                if (ended_lsn := self._history.ended_lsn) is not None:
                    await self._publisher.committed(ended_lsn)
                    self._history.ended_lsn = None
                if self._progress.status_due(now := time.monotonic()):
                    await self._send_status(connection)
                elif ended_lsn is not None and not more and self._progress.report_due(now):
                    await connection.send(self._progress.report(self._history.flushed_lsn, now, _postgres_now()))
                if self._progress.server_waits_for_us:
                    raise StreamEnded("the server is shutting down")
                if more:
                    await asyncio.sleep(0)  # sockets, timers and the chores get their turn
        except asyncio.CancelledError:
            # Whoever else cancelled us counts for more than the chores.
            if me.cancelling() <= interrupts:
                _raise_what_ended(chores)
            raise
        finally:
            following = False  # a callback that is due already comes too late
            for _ in range(interrupts):
                me.uncancel()
            for chore in chores:
                chore.cancel()
            # Why they ended has been said, or nobody asks any more.
            await asyncio.gather(*chores, return_exceptions=True)

    def _read(self, frames: list[bytes], assembler: Assembler, *, more: bool) -> None:
        now, today, number = time.monotonic(), int(time.time()), 0
        if frames:
            self.meter.progress_at = now
        while number < len(frames):
            if is_quiet_keepalive(frames[number]) and number + 1 < len(frames):
                number += 1  # a busy server sends one or two with each transaction
                continue
            if number + 3 <= len(frames) and (chunk := assembler.feed_commit(frames, number)) is not None:
                self._keep(chunk, now, today)
                number += 3
                continue
            chunk, ahead = None, number + SOME_ROWS
            # (Of one-row transactions every third frame is a row, but never two together.)
            if (
                ahead < len(frames)
                and xlog_kind(frames[ahead]) in ROW_KINDS
                and xlog_kind(frames[ahead - 1]) in ROW_KINDS
            ):
                number, chunk = assembler.feed_rows(frames, number)
            if chunk is None and number < len(frames):
                chunk = self._read_one(frames[number], assembler, now, today)
                number += 1
            if chunk is not None:
                self._keep(chunk, now, today)
        if frames and (payload := xlog_payload(frames[-1])) is not None:
            self._progress.received(payload[0])
        if not more and (chunk := assembler.take()) is not None:
            self._keep(chunk, now, today)

    def _read_one(self, frame: bytes, assembler: Assembler, now: float, today: int) -> Chunk | None:
        if (payload := xlog_payload(frame)) is None:
            keepalive = copy_both.parse(frame)
            assert isinstance(keepalive, PrimaryKeepalive)
            self._agree(self._history.heard(keepalive, now, today))
            return None
        try:
            return assembler.feed(*payload)
        except (PgOutputError, UnknownRelation) as error:
            # Contained: one change that cannot be read must not stop the others.
            self.meter.unreadable += 1
            logger.error("change left out", extra={"position": assembler.position, "error": error})
            return None

    def _agree(self, agrees: bool) -> None:
        if not agrees:
            # History went back on the same timeline (a restored backup, say): what was published is not what is there.
            logger.warning("a new history begins: another transaction stands at the published position")

    def _keep(self, chunk: Chunk, now: float, today: int) -> None:
        self._agree(self._history.keep(chunk, now, today))
        self.meter.read(chunk)

    async def _learn(self, catalogue: Catalogue, assembler: Assembler) -> None:
        """Ask the catalogue about the relations that the stream has announced, before anything of them is published."""
        self._unlearned += assembler.new_relations
        assembler.new_relations.clear()
        found = await lookup.table_facts(catalogue, self._unlearned)
        for relation, facts in zip(self._unlearned, found, strict=True):
            relation.learn(facts)
        self._unlearned.clear()

    async def _learn_again(self, catalogue: Catalogue, assembler: Assembler) -> None:
        """Look for what the stream does not announce: a parent's row security, new attributes of a type."""
        relations = [relation for relation in assembler.relations if relation.facts is not None]
        if relations:
            found = await lookup.table_facts(catalogue, relations)
            for relation, facts in zip(relations, found, strict=True):
                if facts != relation.facts:
                    assembler.renew(relation, facts)

    async def _publish_waiting(self) -> None:
        envelope = self._history.waiting()
        if envelope is None:
            return
        if envelope.epoch != self._told_epoch:
            await self._tick()  # the hubs learn what an epoch descends from before they hear anything of it
        await self._publisher.publish(envelope)
        self._history.published(envelope)
        self._moved_on = True
        self._keeper.decoded()
        logger.debug("published", extra={"chunks": len(envelope.chunks), "position": envelope.last})

    async def _tick(self) -> None:
        tick = self._history.tick(self._instance, self._started)
        await self._publisher.tick(tick)
        self._told_epoch = tick.epoch

    async def _do_chores(self, catalogue: Catalogue, connection: ReplicationConnection) -> None:
        for turn in itertools.count(1):
            if turn % GUARD_TURNS == 0 and (reason := await self._keeper.lag_reason(catalogue)):
                raise StreamEnded(reason)
            if turn % LEARN_TURNS == 0 and self._history.assembler is not None:
                await self._learn_again(catalogue, self._history.assembler)
            if self._waiting_since is not None and time.monotonic() - self._waiting_since > SILENCE_S:
                raise StreamEnded(f"the server has not said a word for {SILENCE_S:g} seconds")
            self._history.evict(time.monotonic())
            try:
                await self._save_record()
            except Exception as error:  # whatever a database raises: until it is back, nothing is acknowledged
                logger.warning("record not saved", extra={"error": error})
            if self._progress.status_due(time.monotonic()):
                await self._send_status(connection)
            await self._tick()
            await self._beat(catalogue)
            stop_if_cancelled()
            await asyncio.sleep(TICK_S)

    async def _beat(self, catalogue: Catalogue) -> None:
        if not self.settings.heartbeat_s or time.monotonic() - self._beat_at < self.settings.heartbeat_s:
            return
        self._beat_at = time.monotonic()
        try:
            await slots.emit_heartbeat(catalogue)
        except psycopg.OperationalError:
            raise  # the connection: all begins anew
        except psycopg.Error as error:
            logger.warning("no heartbeat", extra={"error": error})

    async def _save_last_record(self) -> None:
        """Save the record at the end, but never over that of another replicator which has come further."""
        try:
            stored = await self._store.load(self.settings.record_name)
            if self._record is not None and (stored is None or self._record.is_ahead_of(stored)):
                await self._save_record()
        except Exception as error:  # whatever a database raises: PostgreSQL sends again what is not recorded
            logger.warning("record not saved", extra={"error": error})

    async def _save_record(self) -> None:
        """Save the record if it moved, and only then let the server forget what has left the ring."""
        now = time.monotonic()
        if (record := self._history.due_record(now)) is not None:
            await self._store.save(self.settings.record_name, record)
            self._history.recorded(record, now)

    async def _send_status(self, connection: ReplicationConnection) -> None:
        await connection.send(self._progress.status(self._history.flushed_lsn, time.monotonic(), _postgres_now()))

    def _say(self, level: int, what: str, error: Exception) -> None:
        # The same trouble is said once, however often it is met.
        if (text := str(error)) != self._said:
            self._said = text
            logger.log(level, what, extra={"reason": text})

    def _say_streaming(self, slot: ReadySlot) -> None:
        self._said = None
        facts = {"slot": slot.name, "publications": ",".join(self.settings.publications), "epoch": self.epoch}
        logger.info("streaming", extra=facts)
        if self.settings.slot_name is None and slot.is_new:
            logger.info("the slot is temporary: what is committed while nobody reads is lost; set SLOT_NAME to keep it")


@asynccontextmanager
async def _closing(catalogue: Catalogue) -> AsyncIterator[None]:
    # psycopg's own context manager rolls back first, and a task that is cancelled there leaves the connection open.
    try:
        yield
    finally:
        await catalogue.close()


def _raise_what_ended(chores: Sequence[asyncio.Task[None]]) -> None:
    for chore in chores:
        if chore.done() and not chore.cancelled():
            chore.result()  # they end only by an error


_MICROSECOND = POSTGRES_EPOCH.resolution


def _postgres_now() -> int:
    """Microseconds on PostgreSQL's clock."""
    return (datetime.now(UTC) - POSTGRES_EPOCH) // _MICROSECOND
