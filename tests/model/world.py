"""A small world of a database, replicators, hubs and clients, in which anything may fail at any moment.

Everything that decides is what production runs: `History` (with its assembler, ring, progress and record) in the
replicators, `Chain` in the hubs. Only what carries is modelled: a stream, a slot, a row that survives, and messages
that get lost.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from struct import Struct

from replication.assembler import Assembler
from replication.changelog import Changelog
from replication.changes import Chunk, Envelope
from replication.copy_both import PrimaryKeepalive
from replication.errors import BelowFloor
from replication.history import History
from replication.lsn import BEGINNING, Position
from replication.publisher import Tick
from replication.record import Epoch, Identity, Record
from streaming.chain import Chain, Deliver, Pull, Step
from streaming.chain import Gap as ChainGap
from tests.model.checker import Gap, Heard

TABLES = ("a", "b")
_OIDS = {name: 100 + number for number, name in enumerate(TABLES)}
_BEGIN, _COMMIT = Struct("!cQqI"), Struct("!cBQQq")


@dataclass(frozen=True, slots=True)
class Row:
    """An INSERT, by its number."""

    number: int
    table: str
    lsn: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """What one COMMIT makes visible."""

    xid: int
    at_us: int
    commit_lsn: int
    end_lsn: int
    rows: tuple[Row, ...]

    def frames(self, announced: set[str]) -> Iterator[tuple[int, bytes]]:
        """What a walsender sends of it; relations are announced once a session."""
        yield self.rows[0].lsn, _BEGIN.pack(b"B", self.commit_lsn, self.at_us, self.xid)
        for row in self.rows:
            oid = _OIDS[row.table].to_bytes(4)
            if row.table not in announced:
                announced.add(row.table)
                column = b"\x01id\x00" + (23).to_bytes(4) + b"\xff" * 4
                yield 0, b"R" + oid + b"public\x00" + row.table.encode() + b"\x00d\x00\x01" + column
            text = str(row.number).encode()
            yield row.lsn, b"I" + oid + b"N\x00\x01t" + len(text).to_bytes(4) + text
        yield self.end_lsn, _COMMIT.pack(b"C", 0, self.commit_lsn, self.end_lsn, self.at_us)


def number_of(data: bytes) -> int:
    """The number of the row in such an INSERT."""
    return int(data[13:])


@dataclass
class Slot:
    """A replication slot; ``reader`` holds it."""

    confirmed_lsn: int
    flushed_to_disk: int
    reader: Process | None = None


@dataclass
class Snapshot:
    """A moment to which a server can go back: of a standby, or of a disk."""

    lsn: int
    confirmed_lsn: int | None


class Server:
    """A database cluster: what was committed, its WAL, its slot."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.system_id, self.timeline, self.switches = 7, 1, list[tuple[int, int]]()
        self.lsn, self.now_us, self._xid, self._number = 1000, 0, 1, 0
        self.transactions: list[Transaction] = []
        self.undone: list[Row] = []
        self.slot: Slot | None = None

    @property
    def rows(self) -> list[Row]:
        """Everything that is committed, in commit order."""
        return [row for transaction in self.transactions for row in transaction.rows]

    def write(self, *, many: bool = False) -> None:
        """Commit one transaction, or two that were open at the same time."""
        open_rows: list[list[Row]] = [[] for _ in range(self._dice.choice([1, 1, 2]))]
        tables = self._dice.choice([TABLES, TABLES[:1]])
        for _ in range(self._dice.randint(8, 30) if many else self._dice.randint(1, 4)):
            rows, table = self._dice.choice(open_rows), self._dice.choice(tables)
            for _ in range(self._dice.choice([1, 1, 1, 3])):  # several rows of one record: a COPY
                rows.append(Row(0, table, self.lsn))
            self.lsn += self._dice.randint(1, 9)
        for rows in filter(None, self._dice.sample(open_rows, len(open_rows))):
            self._commit(rows)

    def _commit(self, rows: list[Row]) -> None:
        numbered = []
        for row in rows:
            self._number += 1
            numbered.append(Row(self._number, row.table, row.lsn))
        commit_lsn, self.lsn = self.lsn, self.lsn + self._dice.randint(2, 5)
        self._xid, self.now_us = self._xid + 1, self.now_us + 1000
        self.transactions.append(Transaction(self._xid, self.now_us, commit_lsn, self.lsn, tuple(numbered)))

    def snapshot(self) -> Snapshot:
        """This moment."""
        return Snapshot(self.lsn, self.slot.confirmed_lsn if self.slot else None)

    def go_back(self, snapshot: Snapshot) -> None:
        """What was written since is undone; the connection to the reader has broken."""
        kept = [transaction for transaction in self.transactions if transaction.commit_lsn < snapshot.lsn]
        self.undone += [row for transaction in self.transactions[len(kept) :] for row in transaction.rows]
        self.transactions, self.lsn = kept, snapshot.lsn
        confirmed = snapshot.confirmed_lsn
        self.hang_up()
        self.slot = None if confirmed is None else Slot(min(confirmed, snapshot.lsn), min(confirmed, snapshot.lsn))

    def promote(self, snapshot: Snapshot) -> None:
        """A standby that has come as far as the snapshot takes over."""
        self.go_back(snapshot)
        self.switches.append((self.timeline, self.lsn))
        self.timeline += 1
        self.lsn += self._dice.randint(1, 20)

    def crash(self) -> None:
        """Stop and start: what the slot was told since it was last written to disk is forgotten."""
        self.hang_up()
        if self.slot:
            self.slot.confirmed_lsn = self.slot.flushed_to_disk

    def hang_up(self) -> None:
        """End the walsender. Its reader may not notice."""
        if self.slot:
            self.slot.reader = None


@dataclass
class Store:
    """The row that survives."""

    record: Record | None = None

    def save(self, record: Record) -> bool:
        """Keep it, unless what is there is ahead."""
        if self.record is not None and self.record.is_ahead_of(record):
            return False
        self.record = record
        return True


class Killed(Exception):
    """The process has ended in the middle of something."""


class Unsettled(Exception):
    """The world does not come to rest: somebody waits for what never comes."""


@dataclass
class Bounds:
    """Of the rings: in rows, roughly, and seconds."""

    bytes: int
    age_s: float
    wal: int


class Process:
    """A replicator: the shell of a `History`, step by step."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        bounds = world.bounds
        self.ring = Changelog(max_bytes=bounds.bytes, max_age_s=bounds.age_s, max_wal_bytes=bounds.wal)
        self.history = History(self.ring, permanent=True)
        self.connected = False
        """It believes so; the server may know better."""
        self.told_epoch = ""
        self._frames: deque[tuple[int, bytes]] = deque()
        self._next_lsn = 0
        self._announced: set[str] = set()

    def connect(self) -> None:
        """Read the slot, if it is free; make it, if there is none."""
        world, server = self.world, self.world.server
        if server.slot is not None and server.slot.reader is not None:
            return
        slot_is_new = server.slot is None
        slot = server.slot = server.slot or Slot(server.lsn, server.lsn)
        slot.reader = self
        world.may_die(self)
        identity = Identity(server.system_id, server.timeline, server.lsn, "source", tuple(server.switches))
        slot_lsn, history = slot.confirmed_lsn, self.history
        entry = history.enter(world.store.record, identity, slot_lsn=slot_lsn, slot_is_new=slot_is_new, now=world.today)
        if entry.is_news and not world.store.save(entry.record):
            slot.reader = None
            return
        world.may_die(self)
        history.begin(entry, Assembler({23: "int4"}, max_rows=world.dice.choice([2, 5, 100])), slot_lsn=slot_lsn)
        self._next_lsn = max(slot_lsn, history.resume_lsn)
        self._frames.clear()
        self._announced.clear()
        self.connected = True

    def read(self, count: int) -> None:
        """Read some frames, or a keepalive if there is nothing; then publish."""
        server, history, world = self.world.server, self.history, self.world
        if not self.connected or server.slot is None or server.slot.reader is not self:
            return  # nothing comes any more, and nobody has said so
        assembler = history.assembler
        assert assembler is not None
        for _ in range(count):
            if not self._frames:
                following = [one for one in server.transactions if one.commit_lsn >= self._next_lsn]
                if not following:
                    history.heard(PrimaryKeepalive(server.lsn, 0, False), world.now, world.today)
                    break
                self._frames += following[0].frames(self._announced)
                self._next_lsn = following[0].commit_lsn + 1
            lsn, data = self._frames.popleft()
            chunk = assembler.feed(lsn, data)
            history.progress.received(lsn)
            if chunk is not None:
                history.keep(chunk, world.now, world.today)
        if world.dice.random() < 0.8 and (chunk := assembler.take()) is not None:
            history.keep(chunk, world.now, world.today)
        world.may_die(self)
        if (envelope := history.waiting()) is not None:
            if envelope.epoch != self.told_epoch:
                self.tick()
            world.broadcast(envelope)
            world.may_die(self)
            history.published(envelope)
        history.evict(world.now)

    def chores(self) -> None:
        """Save the record, and then tell the server what it may forget."""
        history, world, slot = self.history, self.world, self.world.server.slot
        if not self.connected:
            return
        history.evict(world.now)
        if (record := history.due_record(world.now)) is not None:
            world.may_die(self)
            if world.store.save(record):
                history.recorded(record, world.now)
        world.may_die(self)
        if slot is not None and slot.reader is self and world.dice.random() < 0.9:
            slot.confirmed_lsn = max(slot.confirmed_lsn, history.flushed_lsn)
            if world.dice.random() < 0.5:
                slot.flushed_to_disk = slot.confirmed_lsn
        self.tick()

    def tick(self) -> None:
        """Say where the chain stands."""
        tick = self.history.tick(self.name, 0.0)
        self.told_epoch = tick.epoch
        self.world.broadcast(tick)

    def notice(self) -> None:
        """See that the connection is no more."""
        slot = self.world.server.slot
        if slot is None or slot.reader is not self:
            self.connected = False

    def answer(self, pull: Pull) -> Envelope | None:
        """The answer to a pull; a replicator answers from its ring, connected or not."""
        return self.history.answer(pull.epoch, pull.have, 3 * self.world.row_bytes)


class Hub:
    """A process of sockets: the shell of a `Chain`."""

    def __init__(self, world: World) -> None:
        self.world = world
        bounds = world.bounds
        self.chain = Chain(Changelog(max_bytes=bounds.bytes, max_age_s=bounds.age_s))
        self.inbox: deque[Envelope | Tick] = deque()
        self.clients: list[Client] = []

    def take(self) -> None:
        """Take one message."""
        if not self.inbox:
            return
        message, chain = self.inbox.popleft(), self.chain
        steps = (
            chain.offer(message, self.world.now)
            if isinstance(message, Envelope)
            else chain.settle(message, self.world.now)
        )
        for step in steps:
            self._perform(step)

    def _perform(self, step: Step) -> None:
        match step:
            case Deliver(chunks=chunks):
                for client in self.clients:
                    client.hear(self, chunks)
            case ChainGap(relations=relations):
                tables = None if relations is None else frozenset(name for _, name in relations)
                for client in list(self.clients):
                    client.miss(self, tables)
            case Pull():
                self.world.ask(self, step)


@dataclass(eq=False)
class Client:
    """A subscription to some tables. It keeps the position of what it heard last, and can come back with it."""

    tables: frozenset[str]
    heard: list[Heard] = field(default_factory=list)
    after: int | None = None
    """The row after which it joined first."""
    epoch: str = ""
    position: Position | None = None
    hub: Hub | None = None
    ahead: Position = BEGINNING
    """Where it came back with more than its hub had: what comes up to here it has already."""

    def join(self, hub: Hub) -> None:
        """Join for the first time, or come back."""
        chain = hub.chain
        self.hub = hub
        hub.clients.append(self)
        if self.position is not None and not self._resume(chain):
            self.heard.append(Gap())
            self.position = None
        if self.position is None:
            self.epoch, self.position = chain.epoch, max(chain.have, chain.silent_up_to)
            if not self.heard:
                self.after = hub.world.last_row(self.position, self.tables)

    def _resume(self, chain: Chain) -> bool:
        assert self.position is not None
        tick = chain.tick
        if tick is None or not chain.holds(self.epoch, self.position):
            return False
        if self.position > chain.have and self.position.commit_lsn > tick.wal_end:
            return False
        self.ahead = self.position if self.position > chain.have else BEGINNING
        if self.position < chain.have:
            try:
                chunks = list(chain.log.since(self.position, needs=lambda table: table[1] in self.tables))
            except BelowFloor:
                return False
            self._take(chain, chunks)
        self.epoch = chain.epoch
        return True

    def leave(self) -> None:
        """The socket is cut."""
        if self.hub is not None:
            self.hub.clients.remove(self)
            self.hub = None

    def hear(self, hub: Hub, chunks: list[Chunk]) -> None:
        """Changes have come."""
        self._take(hub.chain, chunks)

    def miss(self, hub: Hub, tables: frozenset[str] | None) -> None:
        """Changes are missing: join again, from here on."""
        if tables is None or tables & self.tables:
            self.heard.append(Gap(tables))
            self.epoch, self.position = hub.chain.epoch, max(hub.chain.have, hub.chain.silent_up_to)

    def _take(self, chain: Chain, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            for change in chunk.changes:
                position = Position(chunk.commit_lsn, change.lsn, change.ordinal)
                if position > self.ahead:
                    self.epoch, self.position = chain.epoch, position
                    if change.relation.name in self.tables:
                        self.heard.append(number_of(change.data))


class World:
    """All of them, and what may happen. Everything is drawn from one seed."""

    def __init__(self, seed: int, *, disasters: bool = True, spacious: bool = False) -> None:
        """``disasters``: history may go back, slots may vanish. ``spacious``: nothing leaves the rings."""
        self.dice = random.Random(seed)
        self.now, self.today = 0.0, 1_000_000
        self.row_bytes = 220
        self.bounds = Bounds(
            self.row_bytes * self.dice.choice([3, 10, 40]),
            self.dice.choice([3.0, 20.0, 1e9]),
            self.dice.choice([50, 300, 1 << 40]),
        )
        if spacious:
            self.bounds = Bounds(1 << 30, 1e9, 1 << 40)
        self.server, self.store = Server(self.dice), Store()
        self.hubs = [Hub(self) for _ in range(2)]
        self.clients: list[Client] = []
        self.processes: list[Process] = []
        self.snapshots: list[Snapshot] = []
        self.loss = self.dice.choice([0.0, 0.1, 0.4])
        self.deaths = self.dice.choice([0.0, 0.01, 0.05])
        self.published = (0, 0), BEGINNING
        """The newest envelope that anybody has sent: in which generation and timeline, and its end."""
        self._count = 0
        self._actions: list[tuple[int, Callable[[], None]]] = [
            (20, self.server.write),
            (4, lambda: self.server.write(many=True)),
            (4, self._unpublished),
            (25, self._read),
            (15, self._chores),
            (50, lambda: self.dice.choice(self.hubs).take()),
            (3, self._cut_off),
            (6, self._notice),
            (10, self._connect),
            (2, self._start),
            (1, self._kill),
            (4, self._join),
            (4, self._leave),
            (1, self._restart_hub),
            (1, self.server.crash),
            (1, self._take_snapshot),
        ]
        # Disasters come in some worlds only: in the others nothing excuses a gap.
        if disasters and self.dice.random() < 0.4:
            possible = [self._promote, self._restore, self._remake_slot, self._drop_slot]
            self._actions += [(1, disaster) for disaster in self.dice.sample(possible, self.dice.randint(1, 4))]
        self._start()

    # What carries

    def broadcast(self, message: Envelope | Tick) -> None:
        """Send a message to every hub: through bytes; it may get lost, or come twice."""
        if isinstance(message, Envelope):
            self.published = max(self.published, (Epoch.parse(message.epoch).order, message.last))
        for hub in self.hubs:
            for _ in range(self.dice.choice([1, 1, 1, 2]) if self.dice.random() >= self.loss else 0):
                copy = type(message).decode(message.encode())
                hub.inbox.append(copy)

    def ask(self, hub: Hub, pull: Pull) -> None:
        """A hub's question goes to every replicator."""
        for process in self.processes:
            if self.dice.random() >= self.loss and (answer := process.answer(pull)) is not None:
                hub.inbox.append(Envelope.decode(answer.encode()))

    def may_die(self, process: Process) -> None:
        """Here a process may be killed."""
        if self.dice.random() < self.deaths:
            self._remove(process)
            raise Killed

    def last_row(self, position: Position, tables: frozenset[str]) -> int | None:
        """The last row of these tables up to a position."""
        return next(
            (
                row.number
                for transaction in reversed(self.server.transactions)
                for row, ordinal in reversed(list(_with_ordinals(transaction.rows)))
                if row.table in tables and Position(transaction.commit_lsn, row.lsn, ordinal) <= position
            ),
            None,
        )

    # What may happen

    def step(self) -> None:
        """Something happens."""
        self.now += self.dice.random()
        weights = [weight for weight, _ in self._actions]
        (action,) = self.dice.choices([action for _, action in self._actions], weights)
        with suppress(Killed):
            action()

    def calm(self) -> None:
        """From now on nothing fails; everybody gets level, and one more row is committed and heard."""
        self.loss = self.deaths = 0.0
        self._actions.clear()
        for process in self.processes:
            process.notice()
        self.today += 1
        self.now += 100  # a replicator that was cut off has noticed
        if not self.processes:
            self._start()
        self._settle()
        self.server.write()
        for client in self.clients:
            if client.hub is None:
                client.join(self.dice.choice(self.hubs))
        self._settle()

    def _settle(self) -> None:
        for round_ in range(1000):
            self.now += 0.01
            for process in self.processes:
                process.notice()
                if not process.connected:
                    process.connect()
                process.read(50)
                if round_ % 5 == 0:
                    process.chores()
            for hub in self.hubs:
                while hub.inbox:
                    hub.take()
            if round_ % 5 == 4 and all(hub.chain.level for hub in self.hubs) and self._is_quiet():
                return
        raise Unsettled

    def _is_quiet(self) -> bool:
        slot = self.server.slot
        reader = slot.reader if slot else None
        if reader is None or reader.history.waiting() is not None:
            return False
        return reader.history.progress.received_lsn == self.server.lsn

    def _pick(self) -> Process | None:
        return self.dice.choice(self.processes) if self.processes else None

    def _unpublished(self) -> None:
        self.server.lsn += self.dice.randint(1, 100)

    def _read(self) -> None:
        if process := self._pick():
            process.read(self.dice.randint(1, 30))

    def _chores(self) -> None:
        if process := self._pick():
            process.chores()

    def _connect(self) -> None:
        if (process := self._pick()) and not process.connected:
            process.connect()

    def _notice(self) -> None:
        if process := self._pick():
            process.notice()

    def _cut_off(self) -> None:
        self.server.hang_up()

    def _start(self) -> None:
        if len(self.processes) < 3:
            self._count += 1
            self.processes.append(Process(self, f"replicator {self._count}"))

    def _kill(self) -> None:
        if process := self._pick():
            self._remove(process)

    def _remove(self, process: Process) -> None:
        self.processes.remove(process)
        if self.server.slot and self.server.slot.reader is process:
            self.server.slot.reader = None

    def _join(self) -> None:
        away = [client for client in self.clients if client.hub is None]
        ready = [hub for hub in self.hubs if hub.chain.epoch and hub.chain.level]
        if not ready:
            return  # joins wait for a hub that is not yet ready
        if len(self.clients) < 4:
            away.append(Client(frozenset(self.dice.choice([TABLES, ("a",), ("b",)]))))
            self.clients.append(away[-1])
        if away:
            client = self.dice.choice(away)
            hub = self.dice.choice(ready)
            if client.position and hub.chain.tick and client.position.commit_lsn > hub.chain.tick.wal_end:
                return  # another hub was quicker than the last tick here: the next one is waited for
            client.join(hub)

    def _leave(self) -> None:
        if self.clients:
            self.dice.choice(self.clients).leave()

    def _restart_hub(self) -> None:
        hub = self.dice.choice(self.hubs)
        for client in list(hub.clients):
            client.leave()
        self.hubs[self.hubs.index(hub)] = Hub(self)

    def _take_snapshot(self) -> None:
        self.snapshots.append(self.server.snapshot())

    def _drop_slot(self) -> None:
        self.server.slot = None

    def _remake_slot(self) -> None:
        self.today += 1
        self.server.slot = Slot(self.server.lsn, self.server.lsn)

    def _promote(self) -> None:
        self._back(self.server.promote)

    def _restore(self) -> None:
        # It takes its time: whoever reads has saved the record meanwhile. (A replicator that dies within the second
        # before it is saved, and then a disk that goes back as well: nobody could know what was published.)
        deaths, self.deaths = self.deaths, 0.0
        for process in self.processes:
            process.chores()
        self.deaths = deaths
        record = self.store.record
        if record is not None and self.published <= (record.epoch.order, record.published):
            self._back(self.server.go_back)

    def _back(self, go: Callable[[Snapshot], None]) -> None:
        self.today += 1
        snapshots = [one for one in self.snapshots if one.lsn <= self.server.lsn]
        if snapshots:
            snapshot = self.dice.choice(snapshots[-3:])
            go(snapshot)
            self.snapshots = [one for one in self.snapshots if one.lsn <= snapshot.lsn]


def _with_ordinals(rows: tuple[Row, ...]) -> Iterator[tuple[Row, int]]:
    lsn, ordinal = -1, 0
    for row in rows:
        ordinal = ordinal + 1 if row.lsn == lsn else 0
        lsn = row.lsn
        yield row, ordinal
