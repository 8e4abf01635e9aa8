"""Whole transactions by HTTP: what is posted, again and again if need be, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication import progress, replicator
from replication.changelog import Changelog
from replication.changes import Change, Chunk, Column, Envelope, Relation, change_size
from replication.configuration import Webhook
from replication.lsn import BEGINNING, Position
from replication.options import ReplicatorSettings
from replication.record import Record
from replication.webhooks import Form, Post, Splitter, Webhooks, WebhookSettings, retry_after_s
from streaming.payloads import legacy_commit_timestamp, legacy_payload
from tests.replication.corridor import MemoryStore, Recorder, confirmed_lsn, execute, started, streaming, until
from tests.replication.receiver import Received, Receiver

EPOCH = "1-1-1-x"
COMMITTED_AT = datetime(2026, 11, 24, 15, 42, 53, 712345, UTC)
FORM = Form(legacy_payload, legacy_commit_timestamp)
QUICK = WebhookSettings(timeout_s=0.5, backoff_s=(0.02, 0.1), shutdown_s=0.5)

_COLUMNS = (Column("id", "int4", 23, -1, True), Column("name", "text", 25, -1, False))
USERS = Relation(1, "public", "users", "d", _COLUMNS)
TODOS = Relation(2, "public", "todos", "d", _COLUMNS)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def insert(number: int, relation: Relation = USERS, name: str = "Bob") -> Change:
    """The INSERT of one row, as PostgreSQL writes it."""
    values = [str(number).encode(), name.encode()]
    row = b"".join(b"t" + struct.pack("!i", len(value)) + value for value in values)
    return Change(number, 0, relation, b"I" + struct.pack("!i", relation.oid) + b"N" + struct.pack("!h", 2) + row)


def chunk(commit_lsn: int, changes: Sequence[Change], *, is_last: bool = True) -> Chunk:
    """Some changes of one transaction."""
    return Chunk(commit_lsn, COMMITTED_AT, 7, list(changes), is_last, sum(map(change_size, changes)))


def envelope(*chunks: Chunk, prev: Position = BEGINNING, epoch: str = EPOCH) -> Envelope:
    """A link of the chain."""
    return Envelope(epoch, prev, chunks[-1].last, list(chunks))


def transaction(number: int, *changes: Change) -> Envelope:
    """The link that carries one whole transaction, of one row if nothing else is said."""
    return envelope(chunk(number * 100, changes or [insert(number)]), prev=Position((number - 1) * 100, 1, 0))


# From chunks to posts


def _ids(post: Post) -> list[int]:
    return [change.lsn for change in post.changes]


def test_the_chunks_of_a_transaction_make_one_post_when_it_has_ended() -> None:
    splitter = Splitter(100)
    assert splitter.feed(EPOCH, chunk(500, [insert(1)], is_last=False)) == []
    assert splitter.feed(EPOCH, chunk(500, [insert(2)], is_last=False)) == []
    assert splitter.end(499) == []
    (post,) = splitter.end(500)
    assert (_ids(post), post.part, post.is_last) == ([1, 2], 1, True)
    assert post.key == f"{EPOCH}.1F4.1.0"
    assert splitter.end(500) == []


def test_another_transaction_ends_the_one_before() -> None:
    splitter = Splitter(100)
    splitter.feed(EPOCH, chunk(500, [insert(1)], is_last=False))
    first, second = splitter.feed(EPOCH, chunk(600, [insert(2)]))
    assert [(_ids(post), post.part, post.is_last) for post in (first, second)] == [([1], 1, True), ([2], 1, True)]


def test_a_transaction_whose_rest_belongs_to_a_lost_history_is_posted_without_an_end() -> None:
    splitter = Splitter(100)
    splitter.feed(EPOCH, chunk(500, [insert(1)], is_last=False))
    lost, new = splitter.feed("other", chunk(500, [insert(2)]))
    assert (_ids(lost), lost.is_last) == ([1], False)
    assert (_ids(new), new.part, new.is_last) == ([2], 1, True)
    assert lost.key != new.key


def test_a_large_transaction_is_counted_in_parts() -> None:
    posts = Splitter(2).feed(EPOCH, chunk(500, [insert(number) for number in range(1, 6)]))
    assert [(_ids(post), post.part, post.is_last) for post in posts] == [
        ([1, 2], 1, False),
        ([3, 4], 2, False),
        ([5], 3, True),
    ]
    assert len({post.key for post in posts}) == 3


def test_a_transaction_that_just_fits_is_one_post() -> None:
    (post,) = Splitter(2).feed(EPOCH, chunk(500, [insert(1), insert(2)]))
    assert post.is_last


def test_a_change_above_the_bound_has_a_post_of_its_own() -> None:
    changes = [insert(1), insert(2, name="x" * 2000), insert(3)]
    posts = Splitter(100, max_bytes=1000).feed(EPOCH, chunk(500, changes))
    assert [_ids(post) for post in posts] == [[1], [2], [3]]


@given(st.lists(st.integers(1, 12), min_size=1), st.booleans())
def test_where_a_transaction_is_cut_does_not_depend_on_its_chunks(lengths: list[int], last_is_said: bool) -> None:
    changes = [insert(number, name="x" * (number % 7 * 100)) for number in range(1, sum(lengths) + 1)]
    expected = Splitter(5, max_bytes=3000).feed(EPOCH, chunk(500, changes))
    splitter, posts, at = Splitter(5, max_bytes=3000), [], 0
    for number, length in enumerate(lengths, 1):
        is_last = last_is_said and number == len(lengths)
        posts += splitter.feed(EPOCH, chunk(500, changes[at : at + length], is_last=is_last))
        at += length
    assert posts + splitter.end(500) == expected


# Retry-After


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("0", 0),
        (" 7 ", 7),
        ("100000", 300),
        ("-1", 0),
        ("1.5", 0),
        ("soon", 0),
        ("٣", 0),
        ("Tue, 24 Nov 2026 15:43:03 GMT", 10),
        ("Tue, 24 Nov 2026 15:43:03", 10),
        ("Tue, 24 Nov 2020 15:43:03 GMT", 0),
        ("Tue, 24 Nov 2099 15:43:03 GMT", 300),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float) -> None:
    assert retry_after_s(text, datetime(2026, 11, 24, 15, 42, 53, tzinfo=UTC)) == seconds


# Posts


@asynccontextmanager
async def posting(hooks: Sequence[Webhook], settings: WebhookSettings = QUICK) -> AsyncIterator[Webhooks]:
    """Webhooks around a publisher that remembers; stopped afterwards."""
    subject = Webhooks(Recorder(), hooks, FORM, settings)
    task = asyncio.create_task(subject.run())
    try:
        yield subject
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def got(receiver: Receiver, count: int, path: str | None = None) -> list[Received]:
    """Wait for so many requests."""
    return await asyncio.to_thread(receiver.wait_for, count, path)


async def test_a_post_holds_the_changes_of_a_transaction_as_a_socket_sees_them(receiver: Receiver) -> None:
    settings = WebhookSettings(headers={"authorization": "Bearer abc"})
    async with posting([Webhook(receiver.url("/a?b=c"))], settings) as subject:
        await subject.publish(transaction(1, insert(1), insert(2, TODOS, "é")))
        (request,) = await got(receiver, 1)
    assert request.path == "/a?b=c"
    wanted = {
        "content-type": "application/json",
        "authorization": "Bearer abc",
        "user-agent": "walcast",
        "idempotency-key": f"{EPOCH}.64.1.0",
        "walcast-part": "1",
        "walcast-last-part": "true",
    }
    assert wanted.items() <= request.headers.items()
    columns = [
        {"flags": ["key"], "name": "id", "type": "int4", "type_modifier": -1},
        {"flags": [], "name": "name", "type": "text", "type_modifier": -1},
    ]
    common = {"columns": columns, "commit_timestamp": "2026-11-24T15:42:53Z", "schema": "public", "type": "INSERT"}
    assert request.json == {
        "changes": [
            common | {"table": "users", "record": {"id": "1", "name": "Bob"}},
            common | {"table": "todos", "record": {"id": "2", "name": "é"}},
        ],
        "commit_timestamp": "2026-11-24T15:42:53Z",
    }


async def test_the_chain_is_handed_on(receiver: Receiver) -> None:
    recorder = Recorder()
    subject = Webhooks(recorder, [Webhook(receiver.url())], FORM, QUICK)
    link = transaction(1)
    await subject.publish(link)
    assert [envelope.last for envelope in recorder.envelopes] == [link.last]


async def test_a_transaction_whose_commit_comes_later_is_posted_then(receiver: Receiver) -> None:
    async with posting([Webhook(receiver.url())]) as subject:
        await subject.publish(envelope(chunk(100, [insert(1)], is_last=False)))
        await subject.publish(envelope(chunk(100, [insert(2)], is_last=False), prev=Position(100, 1, 0)))
        await asyncio.sleep(0)
        assert subject.endpoints[0].waiting == 0
        await subject.committed(100)
        (request,) = await got(receiver, 1)
    assert request.ids == [1, 2]


async def test_only_webhooks_that_match_a_change_are_told_and_they_hear_the_whole_transaction(
    receiver: Receiver,
) -> None:
    hooks = [
        Webhook(receiver.url("/inserts"), "INSERT"),
        Webhook(receiver.url("/deletes"), "DELETE"),
        Webhook(receiver.url("/todos"), "*", "public:todos"),
        Webhook(receiver.url("/users"), "*", "public:users"),
        Webhook(receiver.url("/other"), "*", "other"),
    ]
    async with posting(hooks) as subject:
        await subject.publish(transaction(1, insert(1), insert(2, TODOS)))
        await subject.publish(transaction(2, insert(3)))
        await until(lambda: not any(endpoint.waiting for endpoint in subject.endpoints), "posting")
    told = {path: [request.ids for request in receiver.of(path)] for path in ("/inserts", "/todos", "/users")}
    assert told == {"/inserts": [[1, 2], [3]], "/todos": [[1, 2]], "/users": [[1, 2], [3]]}
    assert len(receiver.received) == 5


async def test_an_endpoint_is_told_once_however_many_of_its_webhooks_match(receiver: Receiver) -> None:
    hooks = [Webhook(receiver.url(), "INSERT"), Webhook(receiver.url(), "*", "public"), Webhook(receiver.url("/b"))]
    async with posting(hooks) as subject:
        await subject.publish(transaction(1))
        await got(receiver, 2)
    assert sorted(request.path for request in receiver.received) == ["/b", "/hook"]


async def test_a_failed_post_is_tried_again_with_the_same_key_and_body_before_the_next_one(receiver: Receiver) -> None:
    receiver.answers += [(503, {}), (500, {}), (429, {})]
    async with posting([Webhook(receiver.url())]) as subject:
        await subject.publish(transaction(1))
        await subject.publish(transaction(2))
        requests = await got(receiver, 5)
        await until(lambda: subject.endpoints[0].delivered == 2, "delivery")
    assert [request.ids for request in requests] == [[1]] * 4 + [[2]]
    assert len({(request.key, request.body) for request in requests[:4]}) == 1
    assert requests[4].key != requests[0].key


async def test_retry_after_is_waited_for(receiver: Receiver) -> None:
    receiver.answers += [(429, {"retry-after": "1"})]
    async with posting([Webhook(receiver.url())]) as subject:
        await subject.publish(transaction(1))
        first, second = await got(receiver, 2)
    assert second.at - first.at >= 0.99


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410])
async def test_a_refused_post_is_given_up_and_the_next_one_is_not(
    receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers += [(status, {"location": receiver.url("/elsewhere")})]
    async with posting([Webhook(receiver.url())]) as subject:
        await subject.publish(transaction(1))
        await subject.publish(transaction(2))
        requests = await got(receiver, 2)
        await until(lambda: subject.endpoints[0].delivered == 1, "delivery")
        assert subject.endpoints[0].failed == 1
    assert [request.ids for request in requests] == [[1], [2]]
    (said,) = [record for record in caplog.records if record.message == "webhook given up"]
    assert vars(said)["reason"] == f"status {status}"


async def test_a_post_is_given_up_after_its_attempts(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.answers += [(503, {})] * 3
    settings = WebhookSettings(attempts=3, backoff_s=(0.01, 0.02))
    async with posting([Webhook(receiver.url())], settings) as subject:
        await subject.publish(transaction(1))
        await subject.publish(transaction(2))
        requests = await got(receiver, 4)
    assert [request.ids for request in requests] == [[1], [1], [1], [2]]
    assert [record.levelname for record in caplog.records if record.name == "replication.webhooks"] == [
        "WARNING",
        "ERROR",
    ]


async def test_an_endpoint_that_is_away_is_tried_until_it_is_back(receiver: Receiver) -> None:
    receiver.stop()
    settings = WebhookSettings(attempts=100, backoff_s=(0.02, 0.1))
    async with posting([Webhook(receiver.url())], settings) as subject:
        await subject.publish(transaction(1))
        await until(lambda: subject.endpoints[0].waiting == 1, "a try")
        receiver.start()
        (request,) = await got(receiver, 1)
    assert request.ids == [1]


async def test_an_answer_that_does_not_come_in_time_counts_as_none(receiver: Receiver) -> None:
    receiver.may_answer.clear()
    async with posting([Webhook(receiver.url())]) as subject:
        await subject.publish(transaction(1))
        first, second = await got(receiver, 2)
        receiver.may_answer.set()
        await until(lambda: subject.endpoints[0].delivered == 1, "delivery")
    assert second.at - first.at >= QUICK.timeout_s
    assert first.key == second.key


async def test_a_hung_endpoint_keeps_nobody_waiting_but_itself(receiver: Receiver) -> None:
    with Receiver() as hung:
        hung.may_answer.clear()
        hooks = [Webhook(hung.url()), Webhook(receiver.url())]
        async with posting(hooks, WebhookSettings(timeout_s=60, shutdown_s=0.1)) as subject:
            for number in range(1, 51):
                await subject.publish(transaction(number))
            requests = await got(receiver, 50)
    assert [request.ids for request in requests] == [[number] for number in range(1, 51)]
    assert len(hung.received) == 1


async def test_a_full_queue_drops_the_oldest_and_says_so_with_a_count(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.may_answer.clear()
    room_for_three = change_size(insert(1, name="x" * 1000)) * 3 + 10
    settings = WebhookSettings(timeout_s=60, queue_bytes=room_for_three)
    async with posting([Webhook(receiver.url())], settings) as subject:
        endpoint = subject.endpoints[0]
        for number in range(1, 11):
            await subject.publish(transaction(number, insert(number, name="x" * 1000)))
            await got(receiver, 1)
        assert (endpoint.waiting, endpoint.dropped) == (4, 6)
        receiver.may_answer.set()
        requests = await got(receiver, 4)
    assert [request.ids for request in requests] == [[1], [8], [9], [10]]
    said = [record for record in caplog.records if "queue full" in record.message]
    assert len(said) == 1, "it is said once in a while, not for each post"
    assert said[0].levelno == logging.ERROR
    assert vars(said[0])["dropped"] == 1


async def test_the_newest_post_is_kept_however_large(receiver: Receiver) -> None:
    async with posting([Webhook(receiver.url())], WebhookSettings(queue_bytes=10)) as subject:
        await subject.publish(transaction(1))
        (request,) = await got(receiver, 1)
    assert request.ids == [1]


async def test_at_the_end_what_waits_is_still_posted(receiver: Receiver) -> None:
    async with posting([Webhook(receiver.url())]) as subject:
        for number in range(1, 11):
            await subject.publish(transaction(number))
        await asyncio.sleep(0)  # it has begun
    assert [request.ids for request in receiver.received] == [[number] for number in range(1, 11)]


async def test_a_hung_endpoint_delays_the_end_by_a_short_time_and_what_is_lost_is_told(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.may_answer.clear()
    async with posting([Webhook(receiver.url())], WebhookSettings(timeout_s=60, shutdown_s=0.3)) as subject:
        for number in (1, 2, 3):
            await subject.publish(transaction(number))
        await got(receiver, 1)
        before = time.monotonic()
    assert 0.29 < time.monotonic() - before < 10
    (said,) = [record for record in caplog.records if "lost" in record.message]
    assert vars(said)["lost"] == 3


async def test_a_change_that_cannot_be_read_is_left_out(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    broken = insert(2)._replace(data=insert(2).data[:-1])
    async with posting([Webhook(receiver.url())]) as subject:
        await subject.publish(transaction(1, insert(1), broken, insert(3)))
        (request,) = await got(receiver, 1)
    assert request.ids == [1, 3]
    assert "change left out" in [record.message for record in caplog.records]


async def test_the_log_does_not_show_what_may_be_secret_in_an_endpoint(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    receiver.answers += [(503, {}), (404, {})]
    url = receiver.url("/s3cret?key=s3cret").replace("//", "//user:s3cret@")
    async with posting([Webhook(url)]) as subject:
        await subject.publish(transaction(1))
        await until(lambda: subject.endpoints[0].failed == 1, "giving up")
    facts = [str(vars(record)) for record in caplog.records if record.name == "replication.webhooks"]
    assert len(facts) == 2
    assert "s3cret" not in "".join(facts)
    assert "webhooks[0] http://127.0.0.1" in facts[0]


async def test_an_answer_that_never_ends_is_not_read_to_its_end(receiver: Receiver) -> None:
    receiver.answers += [(200, {"content-length": str(10**9)})]
    async with posting([Webhook(receiver.url())]) as subject:
        await subject.publish(transaction(1))
        await subject.publish(transaction(2))
        # Its body does not come: the post counts as unanswered and is repeated.
        requests = await got(receiver, 3)
    assert [request.ids for request in requests] == [[1], [1], [2]]


# With a replicator


@pytest.fixture
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicator, "TICK_S", 0.05)
    monkeypatch.setattr(replicator, "BACKOFF_S", (0.05, 0.5))
    monkeypatch.setattr(replicator, "STANDBY_RETRY_S", 0.05)
    monkeypatch.setattr(progress, "STATUS_INTERVAL_S", 0.1)


@pytest.fixture
async def settings(database: str, _hurry: None) -> ReplicatorSettings:
    await execute(database, "CREATE TABLE users (id int PRIMARY KEY, name text)")
    slot = str(psycopg.conninfo.conninfo_to_dict(database)["dbname"])
    return ReplicatorSettings(database, ["pub"], slot, create_publication=True)


@asynccontextmanager
async def telling(
    settings: ReplicatorSettings, store: MemoryStore, receiver: Receiver, publisher: Any = None, **more: Any
) -> AsyncIterator[Webhooks]:
    """A replicator that streams, with webhooks around its publisher."""
    subject = Webhooks(publisher or Recorder(), [Webhook(receiver.url())], FORM, WebhookSettings(**more))
    async with started(settings, subject, store) as reader:
        subject.log = reader.changelog
        task = asyncio.create_task(subject.run())
        try:
            await until(reader.streaming.is_set, "streaming")
            yield subject
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_each_committed_transaction_is_posted_once_and_whole(
    settings: ReplicatorSettings, receiver: Receiver
) -> None:
    async with telling(settings, MemoryStore(), receiver):
        await execute(
            settings.dsn,
            "INSERT INTO users VALUES (1, 'a')",
            "BEGIN; INSERT INTO users VALUES (2, 'b'); DELETE FROM users WHERE id = 1; COMMIT",
            "BEGIN; INSERT INTO users VALUES (3, 'c'); ROLLBACK",
            "BEGIN; COMMIT",
            "INSERT INTO users SELECT n, 'd' FROM generate_series(10, 909) n",
            "INSERT INTO users VALUES (4, 'e')",
        )
        requests = await got(receiver, 4)
    assert [request.ids for request in requests] == [[1], [2, 1], list(range(10, 910)), [4]]
    assert len(receiver.received) == 4
    assert {request.headers["walcast-last-part"] for request in requests} == {"true"}


async def test_the_last_transaction_is_posted_although_nothing_follows(
    settings: ReplicatorSettings, receiver: Receiver
) -> None:
    async with telling(settings, MemoryStore(), receiver):
        for number in range(1, 21):
            await execute(settings.dsn, f"INSERT INTO users VALUES ({number}, 'x')")
            requests = await got(receiver, number)
            assert requests[-1].ids == [number]


def _parts(requests: Sequence[Received]) -> list[tuple[int, bool]]:
    return [
        (int(request.headers["walcast-part"]), request.headers["walcast-last-part"] == "true") for request in requests
    ]


async def test_a_transaction_that_is_published_again_after_a_crash_has_the_same_keys(
    settings: ReplicatorSettings, receiver: Receiver
) -> None:
    store = MemoryStore()
    async with telling(settings, store, receiver, max_rows=1000):
        before: Record = store.saved[-1]
        await execute(settings.dsn, "INSERT INTO users SELECT n, 'x' FROM generate_series(1, 2500) n")
        first = await got(receiver, 3)
    assert _parts(first) == [(1, False), (2, False), (3, True)]
    # The process was killed before it could write down what it had published. (What was acknowledged, it had.)
    store.saved[:] = [replace(before, acknowledged_lsn=store.saved[-1].acknowledged_lsn)]
    async with telling(settings, store, receiver, max_rows=1000):
        again = (await got(receiver, 6))[3:]
    assert [(request.key, request.body) for request in again] == [(request.key, request.body) for request in first]
    assert len({request.key for request in first}) == 3


class Dying(Recorder):
    """Publishes the first link that does not end its transaction, and nothing after it."""

    async def publish(self, envelope: Envelope) -> None:
        """Keep the first; wait for ever with the others."""
        if self.envelopes:
            await asyncio.Event().wait()
        await super().publish(envelope)


async def test_a_transaction_that_a_predecessor_began_to_publish_is_posted_from_its_beginning(
    settings: ReplicatorSettings, receiver: Receiver
) -> None:
    store, dying = MemoryStore(), Dying()
    async with streaming(settings, dying, store):
        # About two megabytes in the stream, of which one is read at a time.
        await execute(settings.dsn, "INSERT INTO users SELECT n, 'x' FROM generate_series(1, 40000) n")
        await until(lambda: bool(dying.envelopes), "the first link")
    (link,) = dying.envelopes
    assert not link.chunks[-1].is_last
    assert store.saved[-1].published == link.last
    async with telling(settings, store, receiver, max_rows=1000):
        requests = await got(receiver, 40)
    assert [id_ for request in requests for id_ in request.ids] == list(range(1, 40001))
    assert _parts(requests) == [(number, number == 40) for number in range(1, 41)]


async def test_a_beginning_that_is_no_longer_to_be_had_is_told_of(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    async with posting([Webhook(receiver.url())]) as subject:
        subject.log = Changelog()
        subject.log.restart(Position(100, 5, 0))
        await subject.publish(envelope(chunk(100, [insert(6)]), prev=Position(100, 5, 0)))
        (request,) = await got(receiver, 1)
    assert request.ids == [6]
    assert "webhooks not told of the beginning of a transaction" in [record.message for record in caplog.records]


async def test_a_hung_endpoint_delays_no_broadcast_and_no_acknowledgement(
    settings: ReplicatorSettings, receiver: Receiver
) -> None:
    receiver.may_answer.clear()
    recorder = Recorder()
    quick = replace(settings, ring_age_s=0.0)
    async with telling(quick, MemoryStore(), receiver, publisher=recorder, timeout_s=60, shutdown_s=0.1):
        for number in (1, 2, 3):
            await execute(settings.dsn, f"INSERT INTO users VALUES ({number}, 'x')")
            before = time.monotonic()
            await recorder.has(number)
            assert time.monotonic() - before < 10
        commit_lsn = recorder.chunks[-1].commit_lsn
        await until(lambda: _acknowledged(settings, commit_lsn), "the acknowledgement")
    assert [request.ids for request in receiver.received] == [[1]]


async def _acknowledged(settings: ReplicatorSettings, commit_lsn: int) -> bool:
    assert settings.slot_name is not None
    return await confirmed_lsn(settings.dsn, settings.slot_name) > commit_lsn
