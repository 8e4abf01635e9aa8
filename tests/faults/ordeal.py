"""One fault under load: writers write, clients listen, something breaks, and the checker says what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.listeners import Listener
from tests.faults.writers import CREATE, NUMBERS, ORDEAL, TABLE, Writer
from tests.model.checker import Gap, Verdict, judge
from tests.servers import PostgresCluster, ValkeyServer
from tests.system.corridor import DaphneProcess, execute
from tests.system.corridor import replicator as replicator_process
from tests.system.server import ManagedProcess

WRITERS = 2
FORGETS = 5
CALM_LIMIT_S = 60.0
LAST_WORDS = 1000

Fault = Callable[["Corridor"], Awaitable[None]]


@dataclass
class Corridor:
    """The whole corridor in its production form. ``env`` are the settings of its processes."""

    cluster: PostgresCluster
    valkey: ValkeyServer
    env: Mapping[str, str]
    replicator: ManagedProcess
    daphnes: list[DaphneProcess]
    dsn: str
    numbers: int = 0
    """How many rows each writer has been given so far: ids are never used twice."""
    listeners: Sequence[Listener] = ()
    """Who listens at this moment."""

    @property
    def slot_name(self) -> str:
        """Of its replicator."""
        return self.env["SLOT_NAME"]

    def urls(self) -> list[str]:
        """Of the Daphnes that run."""
        return [daphne.ws_url for daphne in self.daphnes if daphne.running] or [self.daphnes[0].ws_url]

    async def execute(self, *statements: str) -> None:
        """Run the statements, each in a transaction of its own; a server that is away is waited for."""
        for statement in statements:
            while True:
                with suppress(psycopg.OperationalError):
                    async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
                        await connection.execute(statement.encode())
                        break
                await asyncio.sleep(0.05)

    async def value(self, query: str) -> Any:
        """The first value that a query gives."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            row = await (await connection.execute(query.encode())).fetchone()
            return row[0] if row else None

    async def until(self, query: str, *, limit_s: float = 30.0) -> None:
        """Wait until a query gives true."""
        deadline = time.monotonic() + limit_s
        while True:
            with suppress(psycopg.Error):
                if await self.value(query):
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {limit_s} s: {query}")
            await asyncio.sleep(0.05)

    async def slot_is_read(self) -> None:
        """Wait until the replicator reads its slot."""
        await self.until(f"select active from pg_replication_slots where slot_name = '{self.slot_name}'")


@dataclass
class Report:
    """What came of it."""

    fault: str
    written: int = 0
    verdicts: list[Verdict] = field(default_factory=list)
    twin: Verdict = field(default_factory=Verdict)
    forgotten: int | None = None
    healed_s: float = 0.0
    resumed: int = 0
    undone: int = 0
    """Rows that were committed on a server whose end of history nobody else has."""
    gaps_to_resumers: int = 0
    gaps_to_others: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def delivered(self) -> int:
        """To all clients together."""
        return sum(verdict.delivered for verdict in self.verdicts)

    @property
    def lost(self) -> int:
        """In silence, by all clients together."""
        return sum(len(verdict.lost) for verdict in self.verdicts)

    @property
    def doubled(self) -> int:
        """To all clients together."""
        return sum(len(verdict.doubled) for verdict in self.verdicts)

    def row(self) -> str:
        """A line of the summary."""
        wrong = "; ".join(self.problems) or "-"
        return (
            f"| {self.fault} | {self.written} | {self.delivered} | {self.lost} | {self.doubled} | "
            f"{self.resumed} | {self.gaps_to_resumers} | {self.gaps_to_others} | {self.healed_s:.2f} s | {wrong} |"
        )


HEADER = (
    "| fault | rows written | delivered | lost | doubled | resumed | gaps told to who resumes | to others "
    "| time to heal | wrong |\n|---|---|---|---|---|---|---|---|---|---|"
)


@asynccontextmanager
async def _listening(listeners: Sequence[Listener]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(listener.run()) for listener in listeners]
    test = asyncio.current_task()
    assert test is not None

    def has_ended(task: asyncio.Task[None]) -> None:
        # They end only by an error of their own: then there is no use in waiting for what they hear.
        if not task.cancelled():
            test.cancel(f"a listener has ended: {task.exception()!r}")

    for task in tasks:
        task.add_done_callback(has_ended)
    try:
        async with asyncio.timeout(CALM_LIMIT_S):
            for listener in listeners:
                await listener.joined.wait()
        yield
    finally:
        for task in tasks:
            task.remove_done_callback(has_ended)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def go_through(
    corridor: Corridor,
    name: str,
    fault: Fault,
    *,
    seed: int = 0,
    after_s: float = 0.7,
    patience_s: float = CALM_LIMIT_S,
    resuming: int = 3,
    others: int = 2,
) -> Report:
    """Let the fault happen under load, wait until all is well, and compare what was heard with what was committed.

    ``resuming`` clients resume, and ``others`` do not. One more resumes, and forgets a row: it is the twin that must be
    found.
    """
    report = Report(name)
    listeners = [
        Listener(corridor.urls, resumes=number < resuming, seed=seed * 100 + number)
        for number in range(resuming + others)
    ]
    twin = Listener(corridor.urls, resumes=True, forgets=FORGETS, seed=seed * 100 + 99)
    corridor.listeners = everybody = [*listeners, twin]
    writers = [Writer(corridor.dsn, number + 1, seed=seed, first=corridor.numbers) for number in range(WRITERS)]
    corridor.numbers += ORDEAL
    async with _listening(everybody):
        for writer in writers:
            writer.start()
        await _has_forgotten(twin)
        began = time.monotonic()
        try:
            await fault(corridor)
        finally:
            await asyncio.sleep(after_s)
            for writer in writers:
                await asyncio.to_thread(writer.stop)
        await _have_last_word(corridor, everybody, report, patience_s)
    committed = await _committed(corridor, writers)
    undone = {number for writer in writers for number in writer.committed} - set(committed)
    report.written, report.undone = len(committed), len(undone)
    # A transaction may have been heard of, and have died with a server before its writer was answered.
    undone |= {number for writer in writers for number in writer.doubted} - set(committed)
    for listener in everybody:
        verdict = _judge_each_writer(listener, committed, undone)
        if listener is twin:
            report.twin, report.forgotten = verdict, twin.forgotten
        else:
            report.verdicts.append(verdict)
            report.problems += verdict.faults
    report.resumed = sum(listener.resumed for listener in everybody)
    report.gaps_to_resumers = sum(listener.heard.count(Gap()) for listener in listeners if listener.resumes)
    report.gaps_to_others = sum(listener.heard.count(Gap()) for listener in listeners if not listener.resumes)
    report.healed_s = _healed_after(began, listeners, writers)
    if twin.forgotten is None or (report.twin.lost != [twin.forgotten] and not report.twin.excused):
        report.problems.append(f"the checker did not find that row {twin.forgotten} was dropped: {report.twin}")
    return report


async def _has_forgotten(twin: Listener) -> None:
    """Wait until everything flows, and the twin has lost its row and heard another one."""
    async with asyncio.timeout(CALM_LIMIT_S):
        await twin.has_forgotten.wait()


async def _have_last_word(corridor: Corridor, listeners: Sequence[Listener], report: Report, patience_s: float) -> None:
    """Write a last row for each writer, after which nobody can be waiting for more, and wait until all have heard it.

    Whoever is told of a gap and joins again after it cannot hear it any more: so it is said again now and then.
    """
    deadline, again, words = time.monotonic() + patience_s, 0.0, set[int]()
    while not words or not all(words & listener.heard_at.keys() for listener in listeners):
        now = time.monotonic()
        if now > deadline:
            deaf = [str(listener) for listener in listeners if not words & listener.heard_at.keys()]
            report.problems.append(f"not heard the last word within {patience_s:g} s: {deaf}")
            return
        if now > again:
            again = now + 5.0
            said = [writer * NUMBERS + corridor.numbers - LAST_WORDS for writer in range(1, WRITERS + 1)]
            corridor.numbers += 1
            values = ", ".join(f"({number}, {number // NUMBERS})" for number in said)
            await corridor.execute(f"insert into {TABLE}(id, writer) values {values} on conflict do nothing")
            words.add(said[-1])
        await asyncio.sleep(0.02)


async def _committed(corridor: Corridor, writers: Sequence[Writer]) -> list[int]:
    first = writers[0].first % NUMBERS
    async with await psycopg.AsyncConnection.connect(corridor.dsn, autocommit=True) as connection:
        rows = await connection.execute(
            f"select id from {TABLE} where id %% {NUMBERS} >= %s order by id".encode(), [first]
        )
        return [number for (number,) in await rows.fetchall()]


def _judge_each_writer(listener: Listener, committed: Sequence[int], undone: set[int]) -> Verdict:
    """Each writer's rows are in the order of their numbers; how the writers lie between each other, nobody knows."""
    whole = Verdict()
    for writer in sorted({number // NUMBERS for number in committed}):
        of_writer = [number for number in committed if number // NUMBERS == writer]
        heard = [item for item in listener.heard if isinstance(item, Gap) or item // NUMBERS == writer]
        verdict = judge(heard, of_writer, undone=undone)
        for name in ("delivered", "excused", "lost", "doubled", "disordered", "foreign"):
            setattr(whole, name, getattr(whole, name) + getattr(verdict, name))
        whole.told = verdict.told
    return whole


def _healed_after(began: float, listeners: Sequence[Listener], writers: Sequence[Writer]) -> float:
    """The longest that a row which was committed after the beginning of the fault took to reach everybody it reached.

    So it is the time from the first row that was held up to the moment when all had it; where a gap was told, that
    from the fault to the first row after the gap.
    """
    committed_at = {number: at for writer in writers for number, at in writer.committed_at.items() if at > began}
    waits = [0.0]
    for listener in listeners:
        heard = [(at, committed_at[number]) for number, at in listener.heard_at.items() if number in committed_at]
        waits += [at - committed for at, committed in heard]
        if listener.gap_at > began:
            waits.append(min((at for at in listener.heard_at.values() if at > listener.gap_at), default=began) - began)
    return max(waits)


@contextmanager
def corridor_of(
    cluster: PostgresCluster, dsn: str, home: Path, *, more: Mapping[str, str] | None = None
) -> Iterator[Corridor]:
    """Start everything: a Valkey of its own, a replicator, two Daphnes."""
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer())
        env = {
            "DATABASE_URL": dsn,
            "REDIS_URL": valkey.url,
            "SECURE_CHANNELS": "false",
            "DASHBOARD": "false",
            "SLOT_NAME": "faults",
            "WALCAST_HOME": str(home),
        } | dict(more or {})
        execute(dsn, CREATE, f"create publication supabase_realtime for table {TABLE}")
        replicator = stack.enter_context(replicator_process(env))
        daphnes = [DaphneProcess(env) for _ in range(2)]
        with ThreadPoolExecutor() as pool:
            for daphne in pool.map(DaphneProcess.__enter__, daphnes):
                stack.push(daphne)
        yield Corridor(cluster, valkey, env, replicator, daphnes, dsn)
