"""The rules of delivery in a thousand histories: whatever fails, nothing is lost, doubled, or kept silent.

And the reverse: with any one of the rules broken, the checker finds what that rule is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from replication.changelog import Changelog
from replication.changes import Chunk
from replication.progress import Progress
from replication.publisher import Tick
from replication.record import Record, Reunion, continue_history
from streaming.chain import Chain
from tests.model.checker import Verdict, judge
from tests.model.world import Client, Hub, Unsettled, World

HISTORIES, PER_TEST, STEPS = 1000, 100, 250


def run(seed: int) -> list[Verdict]:
    """Let a world live for a while, then calm it, and judge what each client heard."""
    world = World(seed)
    for _ in range(STEPS):
        world.step()
    world.calm()
    rows, undone = world.server.rows, {row.number for row in world.server.undone}
    tables = {row.number: row.table for row in [*rows, *world.server.undone]}
    return [
        judge(
            client.heard,
            [row.number for row in rows if row.table in client.tables],
            tables=tables,
            undone=undone,
            after=client.after,
        )
        for client in world.clients
    ]


@pytest.mark.parametrize("first", range(0, HISTORIES, PER_TEST))
def test_in_any_history_every_row_comes_once_and_in_order_or_a_gap_is_told(first: int) -> None:
    verdicts = []
    for seed in range(first, first + PER_TEST):
        for verdict in run(seed):
            assert verdict.faults == [], f"seed {seed}"
            verdicts.append(verdict)
    # Most of it happens without any word of a gap: the rules are not kept by telling one whenever in doubt.
    assert sum(verdict.told == 0 for verdict in verdicts) > PER_TEST // 4
    assert sum(verdict.delivered for verdict in verdicts) > 50 * PER_TEST


def test_without_disasters_a_gap_is_told_to_those_only_who_were_away_for_long() -> None:
    verdicts = []
    for seed in range(200):
        world = World(seed, disasters=False, spacious=True)
        for _ in range(STEPS):
            world.step()
        world.calm()
        rows = world.server.rows
        verdicts += [
            judge(client.heard, [row.number for row in rows if row.table in client.tables], after=client.after)
            for client in world.clients
        ]
    assert [verdict for verdict in verdicts if verdict.faults] == []
    assert [verdict for verdict in verdicts if verdict.told] == []


# With a rule broken

Patch = Callable[[pytest.MonkeyPatch], None]


def _drop_a_frame(patch: pytest.MonkeyPatch) -> None:
    hear, counter = Client.hear, count(1)

    def hear_but_one(client: Client, hub: Hub, chunks: list[Chunk]) -> None:
        hear(client, hub, chunks)
        if next(counter) % 50 == 0 and client.heard and client.hub is not None:
            client.heard.pop()

    patch.setattr(Client, "hear", hear_but_one)


def _ignore_holes(patch: pytest.MonkeyPatch) -> None:
    offer = Chain.offer
    patch.setattr(
        Chain, "offer", lambda self, link, now: offer(self, replace(link, prev=min(link.prev, self.have)), now)
    )


def _take_what_is_there_already(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chunk, "above", lambda self, position: self)


def _forget_the_floor(patch: pytest.MonkeyPatch) -> None:
    drop = Changelog._drop_oldest

    def drop_in_silence(log: Changelog) -> None:
        floor = log.floor
        drop(log)
        log.floor = floor

    patch.setattr(Changelog, "_drop_oldest", drop_in_silence)


def _bury_in_silence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chain, "_take_missing", lambda self, envelope, now: [])


def _replay_across_tombstones(patch: pytest.MonkeyPatch) -> None:
    since = Changelog.since
    patch.setattr(Changelog, "since", lambda self, position, needs=None: since(self, position, lambda table: False))


def _acknowledge_what_is_kept(patch: pytest.MonkeyPatch) -> None:
    acknowledgeable = Progress.acknowledgeable

    def hasty(progress: Progress, **_: object) -> int:
        progress._idle_wal_end = max(progress._idle_wal_end, progress.received_lsn)
        return acknowledgeable(progress, oldest_kept=None, open_commit_lsn=None, unpublished=False)

    patch.setattr(Progress, "acknowledgeable", hasty)


def _believe_any_slot(patch: pytest.MonkeyPatch) -> None:
    decide = continue_history

    def trusting(record: Record | None, *arguments: Any, **more: Any) -> Record:
        return decide(record and replace(record, acknowledged_lsn=0), *arguments, **more)

    patch.setattr("replication.history.continue_history", trusting)


def _believe_positions_of_the_old_timeline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tick, "switch_lsn", lambda tick, epoch: 2**62 if epoch in dict(tick.ancestors) else None)


def _compare_nothing_with_the_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reunion, "contradicted_by", lambda *_: False)
    patch.setattr(Reunion, "missed_at", lambda *_: False)


def _let_old_replicators_overwrite_the_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Record, "is_ahead_of", lambda *_: False)
    _believe_any_slot(patch)


# Each with the seed from which on it does not take long.
_BROKEN: list[tuple[Patch, int]] = [
    (_drop_a_frame, 0),
    (_ignore_holes, 0),
    (_take_what_is_there_already, 0),
    (_forget_the_floor, 0),
    (_bury_in_silence, 0),
    (_replay_across_tombstones, 80),
    (_acknowledge_what_is_kept, 580),
    (_believe_any_slot, 0),
    (_believe_positions_of_the_old_timeline, 0),
    (_compare_nothing_with_the_record, 900),
    (_let_old_replicators_overwrite_the_record, 0),
]
_LIMIT = 1000


@pytest.mark.parametrize(("broken", "first"), _BROKEN, ids=[patch.__name__.strip("_") for patch, _ in _BROKEN])
def test_the_checker_finds_what_a_broken_rule_does(broken: Patch, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    assert any(_found(first)), f"{_LIMIT} histories, and nobody noticed"


def _found(first: int) -> Iterator[bool]:
    for seed in range(first, first + _LIMIT):
        with suppress(Unsettled):
            yield any(verdict.faults for verdict in run(seed))
