"""The loop: read, decode, log, publish, acknowledge, reconnect."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias

import psycopg

from replication import copy_both, slots
from replication.assembler import Assembler
from replication.changelog import Changelog
from replication.changes import Chunk, Envelope
from replication.connection import ReplicationConnection, with_address
from replication.copy_both import XLogData
from replication.errors import (
    BelowFloor,
    ConnectionFailed,
    PgOutputError,
    PublicationMissing,
    ReplicationError,
    ServerNotReady,
    SlotIsActive,
    SlotReplacedTooOften,
    StreamEnded,
    UnknownRelation,
)
from replication.lsn import LSN, Position
from replication.pgoutput import POSTGRES_EPOCH
from replication.progress import Progress
from replication.publisher import Publisher, Tick, stop_if_cancelled
from replication.record import Identity, Record, continue_history, contradicts, source_hash

logger = logging.getLogger(__name__)

TICK_S = 1.0
BACKOFF_S = (0.5, 30.0)
STANDBY_RETRY_S = 1.0
SILENCE_S = 15.0
"""Each of our status updates asks for an answer: a server that is silent for so long is gone."""
GUARD_TURNS = 5
"""How many ticks lie between two looks at the slot's lag."""
UNDECODABLE_TRIES = 3
REPLACEMENTS, REPLACEMENT_WINDOW_S = 3, 3600.0

Catalogue: TypeAlias = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class ReplicatorSettings:
    """What a replicator needs to know. ``slot_name`` `None` means a temporary slot."""

    dsn: str
    publications: Sequence[str]
    slot_name: str | None
    ip_version: str | None = None
    """``ipv4`` or ``ipv6``: which addresses of the host are used; `None` leaves it to the system."""
    create_publication: bool = False
    time_zone: str = "UTC"
    hidden_tables: frozenset[tuple[str, str]] = frozenset()
    ring_bytes: int = 64 << 20
    ring_age_s: float = 120.0
    exclusive: bool = False
    """With a temporary slot: wait while another replicator reads the same publications for the same hubs."""
    max_lag_bytes: int = 0
    """Over this the slot is made anew; 0 means never."""

    @property
    def record_name(self) -> str:
        """What the record of this replicator is kept under."""
        return self.slot_name or f"temporary:{','.join(self.publications)}"


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
        self.changelog = Changelog(max_bytes=settings.ring_bytes, max_age_s=settings.ring_age_s)
        self.streaming = asyncio.Event()
        """Set while the slot is being read."""
        self._instance, self._started = secrets.token_hex(4), time.time()
        self._record: Record | None = None
        self._saved: Record | None = None
        self._progress = Progress(permanent=settings.slot_name is not None)
        self._flushed_lsn = 0
        self._assembler: Assembler | None = None
        self._resume_lsn = 0
        self._ended_lsn: int | None = None
        """The commit LSN of the newest transaction that has ended, until the publisher has been told."""
        self._said: str | None = None
        self._replaced_at: list[float] = []
        self._moved_on = False
        """Something was published since the last connection: the next one need not wait long."""
        self._waiting_since: float | None = None
        self._undecodable = 0
        """How often in a row the server could not decode a change, although preflight found the publications."""

    async def run(self) -> None:
        """Stream until cancelled; whatever PostgreSQL does, it reconnects with backoff. Saves the record at the end."""
        delay_s = BACKOFF_S[0]
        try:
            while True:
                stop_if_cancelled()
                try:
                    await self._connect_and_follow()
                except SlotIsActive as error:
                    self._say(logging.INFO, "standing by: another replicator reads the slot", error)
                    await asyncio.sleep(STANDBY_RETRY_S)
                    continue
                except (ReplicationError, psycopg.Error, OSError) as error:
                    level = logging.ERROR if isinstance(error, ServerNotReady) else logging.WARNING
                    self._say(level, "not streaming", error)
                    if isinstance(error, PublicationMissing) and self.streaming.is_set():
                        self._undecodable += 1
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

    def answer(self, epoch: str, position: Position, limit_bytes: int) -> Envelope | None:
        """What follows ``position``, about ``limit_bytes`` of it: the answer to a pull. `None` if unknown here."""
        record = self._record
        if record is None or epoch != self.epoch or position >= record.published:
            return None
        chunks: list[Chunk] = []
        size = 0
        try:
            for chunk in self.changelog.since(position):
                if chunk.first > record.published or (size and size + chunk.size > limit_bytes):
                    break
                chunks.append(chunk)
                size += chunk.size
        except BelowFloor:
            return None
        return Envelope(epoch, position, chunks[-1].last, chunks) if chunks else None

    async def _connect_and_follow(self) -> None:
        settings = self.settings
        dsn = await with_address(settings.dsn, settings.ip_version)
        try:
            catalogue = await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, application_name="walcast", client_encoding="UTF8"
            )
        except psycopg.OperationalError as error:
            raise ConnectionFailed(str(error).strip()) from error
        async with catalogue:
            preflight = await slots.preflight(
                catalogue,
                publications=settings.publications,
                slot_name=settings.slot_name,
                create_publication=settings.create_publication,
            )
            type_names = await slots.type_names(catalogue)
            connection = await ReplicationConnection.connect(
                dsn,
                time_zone=settings.time_zone,
                server_version=preflight.facts.version_num,
                encoding="SQL_ASCII" if catalogue.info.parameter_status("server_encoding") == "SQL_ASCII" else "UTF8",
            )
            async with connection:
                system = await connection.identify_system()
                slot_name, slot_lsn, is_new = await self._ensure_slot(catalogue, connection, preflight)
                identity = Identity(
                    system.system_id,
                    system.timeline,
                    system.wal_lsn,
                    source_hash(system.database, settings.publications),
                )
                await self._enter_history(identity, slot_lsn, slot_is_new=is_new)
                self._assembler = Assembler(type_names, hidden=settings.hidden_tables)
                await connection.start(slot_name, self._resume_lsn, settings.publications)
                self._say_streaming(slot_name, is_new)
                await self._follow(catalogue, connection, self._assembler)

    async def _ensure_slot(
        self,
        catalogue: Catalogue,
        connection: ReplicationConnection,
        preflight: slots.Preflight,
    ) -> tuple[str, int, bool]:
        if self.settings.slot_name is None:
            await self._be_the_only_one(catalogue)
            name = f"walcast_{secrets.token_hex(6)}"
            return name, await connection.create_temporary_slot(name), True
        name, slot = self.settings.slot_name, preflight.slot
        if slot is not None and (reason := await self._useless_because(catalogue, slot)):
            await self._give_up_slot(catalogue, name, reason)
            slot = None
        if slot is None:
            lsn = await slots.create_slot(catalogue, name)
            logger.info("slot created", extra={"slot": name, "lsn": LSN(lsn)})
            return name, lsn, True
        return name, slot.confirmed_flush_lsn or 0, False

    async def _be_the_only_one(self, catalogue: Catalogue) -> None:
        # A permanent slot admits one reader; temporary ones have random names, so a lock named after the publications
        # does the same. It goes with the connection.
        if not self.settings.exclusive:
            return
        cursor = await catalogue.execute(
            "SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", ["walcast", self.settings.record_name]
        )
        if await cursor.fetchone() != (True,):
            raise SlotIsActive(self.settings.record_name)

    async def _useless_because(self, catalogue: Catalogue, slot: slots.SlotStatus) -> str | None:
        """Why an existing slot is to be made anew; `None` if it is to be read."""
        if slot.active:
            return None  # whoever reads it is in charge
        if slot.lost_because is not None:
            return slot.lost_because
        if self._undecodable >= UNDECODABLE_TRIES:
            # PostgreSQL reads the publications as they were when the change was made, and then ours was not there: one
            # that was dropped and made again leaves changes that no session can ever decode.
            return "the publication was missing when changes were made that are still to be read"
        return await self._lag_reason(catalogue, slot.confirmed_flush_lsn or 0)

    async def _lag_reason(self, catalogue: Catalogue, known_lsn: int) -> str | None:
        limit = self.settings.max_lag_bytes
        if not limit:
            return None
        # What the ring holds back does not count: the limit is for what is not yet published.
        record = self._record or await self._store.load(self.settings.record_name)
        recorded = record.published.commit_lsn if record else 0
        published = max(recorded, known_lsn, self._progress.received_lsn)
        lag_bytes = await slots.wal_position(catalogue) - published
        return f"lag of {lag_bytes} bytes is over MAX_REPLICATION_LAG_MB" if lag_bytes > limit else None

    async def _give_up_slot(self, catalogue: Catalogue, name: str, reason: str) -> None:
        now = time.monotonic()
        self._replaced_at = [at for at in self._replaced_at if now - at < REPLACEMENT_WINDOW_S]
        if len(self._replaced_at) >= REPLACEMENTS:
            raise SlotReplacedTooOften(name, reason, REPLACEMENTS)
        self._replaced_at.append(now)
        self._undecodable = 0
        logger.error("slot dropped and made anew: changes are missing", extra={"slot": name, "reason": reason})
        await slots.drop_slot(catalogue, name)

    async def _enter_history(self, identity: Identity, slot_lsn: int, *, slot_is_new: bool) -> None:
        known, record = self._record, await self._store.load(self.settings.record_name)
        if known is not None and (record is None or not record.is_ahead_of(known)):
            record = known
        elif known is not None:
            known = None  # another replicator has published more meanwhile: its record counts, and our ring is old
        now = int(time.time())
        entered = continue_history(record, identity, slot_lsn=slot_lsn, slot_is_new=slot_is_new, now=now)
        if known is None or entered.epoch.generation != known.epoch.generation:
            if record is not None and entered.epoch.generation != record.epoch.generation:
                logger.warning(
                    "a new history begins: earlier positions no longer hold",
                    extra={"epoch": entered.epoch, "was": record.epoch},
                )
            self._begin_at(entered)
            if record is None or entered.epoch.generation != record.epoch.generation:
                # A new slot with an old record, after a crash in between, would be a silent hole.
                await self._store.save(self.settings.record_name, entered)
        self._record = entered
        self._progress.reconnected()

    def _begin_at(self, record: Record) -> None:
        self.changelog.restart(record.floor)
        self._resume_lsn = 0
        self._ended_lsn = None
        self._progress = Progress(permanent=self.settings.slot_name is not None)
        self._flushed_lsn = 0

    async def _follow(self, catalogue: Catalogue, connection: ReplicationConnection, assembler: Assembler) -> None:
        self._waiting_since = None
        self.streaming.set()
        chores = asyncio.create_task(self._do_chores(catalogue, connection), name="replicator chores")
        me = asyncio.current_task()
        assert me is not None

        def interrupt(ended: asyncio.Task[None]) -> None:
            # We may be waiting for the server or for the channel layer, and neither may ever come.
            if not ended.cancelled():
                me.cancel()

        chores.add_done_callback(interrupt)
        try:
            more = False
            while True:
                stop_if_cancelled()
                if chores.done():
                    chores.result()  # they end only by an error
                if not more:
                    self._waiting_since = time.monotonic()
                    await connection.wait_readable()
                    self._waiting_since = None
                frames, more = connection.read_ready()
                self._read(frames, assembler, more=more)
                await self._publish_waiting()
                if self._ended_lsn is not None:
                    await self._publisher.committed(self._ended_lsn)
                    self._ended_lsn = None
                if self._progress.status_due(time.monotonic()):
                    await self._send_status(connection)
                if self._progress.server_waits_for_us:
                    raise StreamEnded("the server is shutting down")
                if more:
                    await asyncio.sleep(0)  # sockets, timers and the chores get their turn
        except asyncio.CancelledError:
            if chores.done() and not chores.cancelled():
                me.uncancel()
                chores.result()
            raise
        finally:
            chores.remove_done_callback(interrupt)
            chores.cancel()
            with suppress(asyncio.CancelledError, ReplicationError):
                await chores

    def _read(self, frames: list[bytes], assembler: Assembler, *, more: bool) -> None:
        progress, now = self._progress, time.monotonic()
        for frame in frames:
            message = copy_both.parse(frame)
            if isinstance(message, XLogData):
                try:
                    chunk = assembler.feed(message.start_lsn, message.data)
                except (PgOutputError, UnknownRelation) as error:
                    # Contained: one change that cannot be read must not stop the others.
                    logger.error("change left out", extra={"lsn": LSN(message.start_lsn), "error": error})
                    continue
                if chunk is not None:
                    self._keep(chunk, now)
            else:
                progress.heard(message, idle=assembler.idle, now=now)
        if frames and isinstance(message, XLogData):
            progress.received(message.start_lsn)
        if not more and (chunk := assembler.take()) is not None:
            self._keep(chunk, now)

    def _keep(self, chunk: Chunk, now: float) -> None:
        assert self._record is not None
        if contradicts(self._record, chunk.commit_lsn, chunk.xid, chunk.committed_at):
            # History went back on the same timeline (a restored backup, say): what was published is not what is there.
            logger.warning("a new history begins: another transaction stands at the published position")
            start = Position(chunk.commit_lsn, 0, 0)
            epoch = replace(self._record.epoch, generation=max(int(time.time()), self._record.epoch.generation + 1))
            self._record = Record(epoch, start, start)
            self.changelog.restart(start)
        self.changelog.append(chunk, now)
        if chunk.is_last and self._assembler is not None:
            self._resume_lsn = self._assembler.end_lsn
            self._ended_lsn = chunk.commit_lsn
            self._progress.transaction_published(self._assembler.end_lsn)

    async def _publish_waiting(self) -> None:
        record = self._record
        assert record is not None
        if self.changelog.last <= record.published:
            return  # nothing new, or the ring is being filled again
        chunks = list(self.changelog.since(record.published))
        last = chunks[-1]
        await self._publisher.publish(Envelope(str(record.epoch), record.published, last.last, chunks))
        self._record = Record(record.epoch, last.last, record.floor, last.xid, last.committed_at)
        self._moved_on, self._undecodable = True, 0
        self.changelog.evict(time.monotonic(), keep_above=last.last)
        logger.debug("published", extra={"chunks": len(chunks), "position": last.last})

    async def _do_chores(self, catalogue: Catalogue, connection: ReplicationConnection) -> None:
        for turn in itertools.count(1):
            if turn % GUARD_TURNS == 0 and (reason := await self._lag_reason(catalogue, 0)):
                raise StreamEnded(reason)
            if self._waiting_since is not None and time.monotonic() - self._waiting_since > SILENCE_S:
                raise StreamEnded(f"the server has not said a word for {SILENCE_S:g} seconds")
            record = self._record
            assert record is not None
            self.changelog.evict(time.monotonic(), keep_above=record.published)
            try:
                await self._save_record()
            except Exception as error:  # whatever a database raises: until it is back, nothing is acknowledged
                logger.warning("record not saved", extra={"error": error})
            if self._progress.status_due(time.monotonic()):
                await self._send_status(connection)
            await self._publisher.tick(
                Tick(
                    self._instance,
                    str(record.epoch),
                    self._started,
                    self.changelog.floor,
                    record.published,
                    self._progress.received_lsn,
                )
            )
            stop_if_cancelled()
            await asyncio.sleep(TICK_S)

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
        if self._record is None:
            return
        floor = self.changelog.floor
        record = Record(self._record.epoch, self._record.published, floor, self._record.xid, self._record.committed_at)
        flushed_lsn = self._progress.acknowledgeable(
            oldest_kept=self.changelog.oldest_commit_lsn,
            open_commit_lsn=self._assembler.open_commit_lsn if self._assembler else None,
            unpublished=self.changelog.last > record.published,
        )
        if record != self._saved:
            await self._store.save(self.settings.record_name, record)
            self._saved = record
        self._flushed_lsn = flushed_lsn

    async def _send_status(self, connection: ReplicationConnection) -> None:
        sent_at = (datetime.now(UTC) - POSTGRES_EPOCH) // _MICROSECOND
        await connection.send(self._progress.status(self._flushed_lsn, time.monotonic(), sent_at))

    def _say(self, level: int, what: str, error: Exception) -> None:
        # The same trouble is said once, however often it is met.
        if (text := str(error)) != self._said:
            self._said = text
            logger.log(level, what, extra={"reason": text})

    def _say_streaming(self, slot_name: str, is_new: bool) -> None:
        self._said = None
        temporary = self.settings.slot_name is None
        facts = {"slot": slot_name, "publications": ",".join(self.settings.publications), "epoch": self.epoch}
        logger.info("streaming", extra=facts)
        if temporary and is_new:
            logger.info("the slot is temporary: what is committed while nobody reads is lost; set SLOT_NAME to keep it")


_MICROSECOND = POSTGRES_EPOCH.resolution
