"""Whole transactions by HTTP, to those whom the configuration names: out of band, so that nobody waits for them.

What was published goes into one bounded queue for each endpoint, and a task for each endpoint posts it, in order. An
endpoint that hangs or fails delays its own posts alone; when its queue is full, the oldest post is dropped, loudly.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2

from replication.changelog import Changelog
from replication.changes import EVENTS, Change, Chunk, Envelope, Relation, change_size
from replication.configuration import Webhook
from replication.errors import BelowFloor, PgOutputError
from replication.lsn import Position, position_token
from replication.publisher import Publisher, Tick, stop_if_cancelled

logger = logging.getLogger(__name__)

POST_MAX_BYTES = 1 << 20
"""A post holds about so much of what PostgreSQL sent, at most; a larger change has a post of its own."""

LONGEST_RETRY_AFTER_S = 300.0
ANSWER_MAX_BYTES = 64 << 10
"""So much of an answer is read, and thrown away, to use the connection again."""

RENDER_TURN = 200
"""After so many changes, rendering lets the others have their turn."""

SAY_EVERY_S = 10.0
"""An endpoint's troubles are logged no more often than this, with their count."""


@dataclass(frozen=True, slots=True)
class Form:
    """How changes are written: the payload of one change, and a commit time, both as JSON shows them."""

    payload: Callable[[Change, datetime], bytes]
    timestamp: Callable[[datetime], str]


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """How endpoints are told. ``attempts`` counts all tries of one post; ``queue_bytes`` bounds what waits for one."""

    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 5.0
    attempts: int = 10
    backoff_s: tuple[float, float] = (0.5, 30.0)
    queue_bytes: int = 16 << 20
    max_rows: int = 1000
    """A transaction of more changes is told in several posts."""
    shutdown_s: float = 2.0
    """How long what still waits is posted after the end has begun."""


@dataclass(frozen=True, slots=True)
class Post:
    """A transaction, or one part of a large one. ``key`` is the same whenever and by whomever it is sent."""

    key: str
    committed_at: datetime
    changes: Sequence[Change]
    size: int
    part: int
    is_last: bool


class Splitter:
    """From chunks to posts: gathers a transaction until it has ended, or until it fills a post.

    Where it is cut depends on its changes alone, not on the chunks they came in: the same transaction makes the same
    posts with the same keys, whoever reads it.
    """

    def __init__(self, max_rows: int, max_bytes: int = POST_MAX_BYTES) -> None:
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._epoch, self._commit_lsn = "", 0
        self._committed_at = datetime.min
        self._changes: list[Change] = []
        self._size, self._part = 0, 1

    @property
    def open_commit_lsn(self) -> int | None:
        """The commit LSN of the transaction of which more may come."""
        return self._commit_lsn if self._changes else None

    def feed(self, epoch: str, chunk: Chunk) -> list[Post]:
        """Take the next chunk; whatever posts are complete come back."""
        posts = []
        if self._changes and (self._epoch, self._commit_lsn) != (epoch, chunk.commit_lsn):
            # Another transaction has begun. In another history, the rest of this one never came.
            posts.append(self._cut(is_last=self._epoch == epoch))
            self._part = 1
        self._epoch, self._commit_lsn, self._committed_at = epoch, chunk.commit_lsn, chunk.committed_at
        for change in chunk.changes:
            size = change_size(change)
            if self._changes and (len(self._changes) >= self._max_rows or self._size + size > self._max_bytes):
                posts.append(self._cut(is_last=False))
            self._changes.append(change)
            self._size += size
        if chunk.is_last:
            posts += self.end(chunk.commit_lsn)
        return posts

    def end(self, commit_lsn: int) -> list[Post]:
        """Nothing more comes of transactions up to ``commit_lsn``."""
        return [self._cut(is_last=True)] if self._changes and self._commit_lsn <= commit_lsn else []

    def _cut(self, *, is_last: bool) -> Post:
        first = self._changes[0]
        key = position_token(self._epoch, Position(self._commit_lsn, first.lsn, first.ordinal))
        post = Post(key, self._committed_at, self._changes, self._size, self._part, is_last)
        self._changes, self._size, self._part = [], 0, 1 if is_last else self._part + 1
        return post


class Webhooks:
    """A `Publisher` that also posts what it published, while `run` runs.

    An endpoint is told of a transaction once, however many of its webhooks match, and hears all of its changes. What
    waits lives in memory: it does not survive the process.
    """

    def __init__(
        self, publisher: Publisher, webhooks: Sequence[Webhook], form: Form, settings: WebhookSettings
    ) -> None:
        self._publisher, self._settings = publisher, settings
        self._splitter = Splitter(settings.max_rows)
        by_url: dict[str, list[tuple[int, Webhook]]] = {}
        for number, webhook in enumerate(webhooks):
            by_url.setdefault(webhook.endpoint, []).append((number, webhook))
        self.endpoints = [Endpoint(url, items, form, settings) for url, items in by_url.items()]
        self.log: Changelog | None = None
        """The replicator's ring: what a predecessor published of a transaction that we go on with is read there."""

    async def publish(self, envelope: Envelope) -> None:
        """Hand on the chain; what is complete now is queued."""
        await self._publisher.publish(envelope)
        for chunk in self._whole(envelope):
            self._queue(self._splitter.feed(envelope.epoch, chunk))

    async def committed(self, commit_lsn: int) -> None:
        """Hand on the end of transactions; the rest of the last one is queued."""
        await self._publisher.committed(commit_lsn)
        self._queue(self._splitter.end(commit_lsn))

    async def tick(self, tick: Tick) -> None:
        """Hand on the tick."""
        await self._publisher.tick(tick)

    def counts(self) -> list[dict[str, str | int]]:
        """How many posts each endpoint was told, failed to be told, and let go; and how many wait."""
        return [
            {
                "name": endpoint.name,
                "delivered": endpoint.delivered,
                "failed": endpoint.failed,
                "dropped": endpoint.dropped,
                "waiting": endpoint.waiting,
            }
            for endpoint in self.endpoints
        ]

    async def run(self) -> None:
        """Post until cancelled; then go on for ``shutdown_s`` with what waits, and say what is lost."""
        async with httpx2.AsyncClient(timeout=None, headers={"user-agent": "walcast"}) as client:
            tasks = [asyncio.create_task(endpoint.run(client), name=endpoint.name) for endpoint in self.endpoints]
            try:
                await asyncio.wait(tasks)  # only their end ends them
            finally:
                for endpoint in self.endpoints:
                    endpoint.close()
                try:
                    await asyncio.wait(tasks, timeout=self._settings.shutdown_s)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    for endpoint in self.endpoints:
                        if endpoint.waiting:
                            logger.error(
                                "webhook posts lost at the end of the process",
                                extra={"webhook": endpoint.name, "lost": endpoint.waiting},
                            )

    def _whole(self, envelope: Envelope) -> Sequence[Chunk]:
        """The envelope's chunks, after those of its first transaction that were published before we were there."""
        chunks = envelope.chunks
        begin = Position(chunks[0].commit_lsn, 0, 0)
        if self.log is None or envelope.prev <= begin or self._splitter.open_commit_lsn == begin.commit_lsn:
            return chunks
        try:
            return list(self.log.since(begin))
        except BelowFloor:
            logger.error("webhooks not told of the beginning of a transaction", extra={"position": chunks[0].first})
            return chunks

    def _queue(self, posts: Sequence[Post]) -> None:
        for post in posts:
            for endpoint in self.endpoints:
                if endpoint.wants(post):
                    endpoint.put(post)


class Endpoint:
    """One URL: its queue, and the task that empties it."""

    def __init__(
        self, url: str, webhooks: Sequence[tuple[int, Webhook]], form: Form, settings: WebhookSettings
    ) -> None:
        parts = urlsplit(url)
        self.name = f"webhooks[{webhooks[0][0]}] {parts.scheme}://{parts.hostname}"
        """For the log: where it stands in the file, and its host; the rest of a URL may be secret."""
        self.delivered, self.dropped, self.failed = 0, 0, 0
        """Posts that were taken, that found the queue full, and that were given up."""
        self._url, self._form, self._settings = url, form, settings
        self._webhooks = [webhook for _, webhook in webhooks]
        self._queue: deque[Post] = deque()
        self._size = 0
        self._sending = False
        self._changed = asyncio.Event()
        self._closing = False
        self._said_at: dict[str, float] = {}
        self._matches = lru_cache(maxsize=4096)(self._find_match)

    @property
    def waiting(self) -> int:
        """How many posts are still to be taken, the one on its way included."""
        return len(self._queue) + self._sending

    def wants(self, post: Post) -> bool:
        """Whether some change of the post is meant."""
        return any(self._matches(change.relation, change.data[0]) for change in post.changes)

    def _find_match(self, relation: Relation, kind: int) -> bool:
        event = EVENTS[kind]
        return any(webhook.matches(event, relation) for webhook in self._webhooks)

    def put(self, post: Post) -> None:
        """Queue a post; when there is more than fits, the oldest are dropped."""
        self._queue.append(post)
        self._size += post.size
        while self._size > self._settings.queue_bytes and len(self._queue) > 1:
            self._size -= self._queue.popleft().size
            self.dropped += 1
            if self._may_say("full"):
                logger.error(
                    "webhook queue full: the oldest posts are dropped",
                    extra={"webhook": self.name, "dropped": self.dropped, "waiting": self.waiting},
                )
        self._changed.set()

    def close(self) -> None:
        """Nothing more is wanted: `run` ends when the queue is empty."""
        self._closing = True
        self._changed.set()

    async def run(self, client: httpx2.AsyncClient) -> None:
        """Post what is queued, in order, until closed and empty."""
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._changed.clear()
                await self._changed.wait()
            post = self._queue.popleft()
            self._size -= post.size
            self._sending = True
            try:
                await self._deliver(client, post)
            except Exception:  # one post's trouble is nobody else's
                self.failed += 1
                logger.exception("webhook given up", extra={"webhook": self.name, "key": post.key})
            self._sending = False

    async def _deliver(self, client: httpx2.AsyncClient, post: Post) -> None:
        body = await self._render(post)
        headers = {"content-type": "application/json"} | dict(self._settings.headers)
        headers |= {
            "idempotency-key": post.key,
            "walcast-part": str(post.part),
            "walcast-last-part": "true" if post.is_last else "false",
        }
        delay_s, longest_s = self._settings.backoff_s
        for attempt in range(1, self._settings.attempts + 1):
            answer = await self._post(client, headers, body)
            stop_if_cancelled()
            if answer.is_taken:
                self.delivered += 1
                return
            if not answer.is_passing or attempt == self._settings.attempts:
                self.failed += 1
                if self._may_say("failed"):
                    facts = {"attempts": attempt, "failed": self.failed, "waiting": self.waiting}
                    logger.error(
                        "webhook given up",
                        extra={"webhook": self.name, "key": post.key, "reason": answer.reason, **facts},
                    )
                return
            wait_s = max(delay_s * random.uniform(0.8, 1.2), answer.retry_after_s)
            if self._may_say("retried"):
                logger.warning(
                    "webhook tried again",
                    extra={"webhook": self.name, "reason": answer.reason, "retry_s": wait_s, "waiting": self.waiting},
                )
            await asyncio.sleep(wait_s)
            delay_s = min(delay_s * 2, longest_s)

    async def _render(self, post: Post) -> bytes:
        payloads = []
        for number, change in enumerate(post.changes, 1):
            try:
                payloads.append(self._form.payload(change, post.committed_at))
            except (PgOutputError, ValueError) as error:
                logger.error("change left out", extra={"relation": change.relation, "key": post.key, "error": error})
            if number % RENDER_TURN == 0:
                await asyncio.sleep(0)
        stamp = self._form.timestamp(post.committed_at).encode()
        return b'{"changes":[' + b",".join(payloads) + b'],"commit_timestamp":"' + stamp + b'"}'

    async def _post(self, client: httpx2.AsyncClient, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            async with (
                asyncio.timeout(self._settings.timeout_s),
                client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                read = 0
                async for data in response.aiter_raw():
                    read += len(data)
                    if read > ANSWER_MAX_BYTES:
                        break
        except TimeoutError:
            return Answer(f"no answer within {self._settings.timeout_s:g} s", is_passing=True)
        except httpx2.TransportError as error:
            return Answer(f"{type(error).__name__}: {error}", is_passing=True)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return Answer(type(error).__name__)  # its text may hold the URL
        status = response.status_code
        return Answer(
            f"status {status}",
            is_taken=response.is_success,
            is_passing=status == httpx2.codes.TOO_MANY_REQUESTS or response.is_server_error,
            retry_after_s=retry_after_s(response.headers.get("retry-after", ""), datetime.now(UTC)),
        )

    def _may_say(self, what: str) -> bool:
        now = time.monotonic()
        if now - self._said_at.get(what, -SAY_EVERY_S) < SAY_EVERY_S:
            return False
        self._said_at[what] = now
        return True


class Answer(NamedTuple):
    """What came of one try. ``is_passing``: another may succeed."""

    reason: str
    is_taken: bool = False
    is_passing: bool = False
    retry_after_s: float = 0.0


def retry_after_s(text: str, now: datetime) -> float:
    """The seconds that a Retry-After header asks for, 0 to `LONGEST_RETRY_AFTER_S`; 0 if it cannot be read.

    Source: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
