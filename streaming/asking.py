"""The task that asks PostgreSQL about filters, while their channels' changes wait in order.

Nothing else waits: neither the hub nor other channels, and of a channel only what comes after an open question.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from replication.changes import Chunk
from streaming.audiences import Audience, Deferred
from streaming.catalogue import Catalogue
from streaming.errors import CatalogueAway
from streaming.knowledge import Answer, Failed
from streaming.matching import Matcher
from streaming.phoenix import V2
from streaming.predicates import Question
from streaming.subscriptions import Subscription
from streaming.transport import Outlet

logger = logging.getLogger(__name__)

ASK_AT_ONCE: Final = 500
RETRY_S: Final = 0.5
ANSWER_S: Final = 15.0
ROUNDS: Final = 50

WAIT_S, WAIT_BYTES = 30.0, 32 << 20
"""A channel of which nothing has moved for so long, or so much waits, fails: its client is told, and joins again."""


class Recipient(Protocol):
    """Who sends what is due (the hub)."""

    def hand_to(self, audience: Audience, readers: Mapping[Outlet, int], messages: Sequence[bytes]) -> None:
        """Send these messages to those of ``readers`` who have been in the audience ever since."""

    def fail(self, audience: Audience, reason: str | None = None) -> None:
        """Nobody in the audience can hear what is due; ``reason`` is PostgreSQL's objection, if it has one."""


class Asking:
    """Asks about what waits in ``matcher``, and lets it go to ``recipient``. It runs while something waits."""

    def __init__(self, matcher: Matcher, catalogue: Catalogue | None, recipient: Recipient) -> None:
        self._matcher, self._catalogue, self._recipient = matcher, catalogue, recipient
        self._task: asyncio.Task[None] | None = None
        self._since: dict[Audience, tuple[Deferred, float]] = {}
        """Of each audience, what is first in its queue, and since when."""
        self._is_away = False

    def start(self) -> None:
        """See to what waits, if anything does."""
        if self._matcher.waiting and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="filters asked of PostgreSQL")

    async def prepare(self, subscription: Subscription, chunks: Sequence[Chunk]) -> None:
        """Ask everything that has to be known to replay some changes. Gives up quietly if that is too much."""
        for _ in range(ROUNDS):
            matcher = self._matcher.sibling()
            matcher.audience(subscription, V2)
            matcher.match(chunks)
            if not (questions := matcher.questions(ASK_AT_ONCE)):
                return
            try:
                matcher.knowledge.remember(await self._answers(questions))
            except CatalogueAway:
                return

    async def _run(self) -> None:
        matcher = self._matcher
        while matcher.waiting:
            answers: dict[Question, Answer] = {}
            if questions := matcher.questions(ASK_AT_ONCE):
                try:
                    answers = await self._answers(questions)
                except CatalogueAway as error:
                    if not self._is_away:
                        logger.warning("filters wait for the database", extra={"error": error.reason})
                    self._is_away = True
                    self._look_after_the_impatient()
                    await asyncio.sleep(RETRY_S)
                    continue
                self._is_away = False
                matcher.knowledge.remember(answers)
            for audience, readers, messages, failure in matcher.release(answers):
                if messages:
                    self._recipient.hand_to(audience, readers, messages)
                if failure is not None:
                    logger.info("filter refused by the database", extra={"topic": audience.topic, "reason": failure})
                    self._recipient.fail(audience, failure)
            self._look_after_the_impatient()
            await asyncio.sleep(0)

    async def _answers(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        if self._catalogue is None:
            return dict.fromkeys(questions, Failed("there is no database to ask"))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._catalogue.ask(questions)
        except TimeoutError:
            raise CatalogueAway(f"no answer within {ANSWER_S:g} s") from None

    def _look_after_the_impatient(self) -> None:
        now = time.monotonic()
        before, self._since = self._since, {}
        for audience in list(self._matcher.waiting):
            first = audience.waiting[0]
            item, since = before.get(audience, (first, now))
            since = since if item is first else now
            self._since[audience] = first, since
            if now - since > WAIT_S or audience.waiting_bytes > WAIT_BYTES:
                logger.warning(
                    "channel failed: its filters could not be asked in time",
                    extra={"topic": audience.topic, "bytes": audience.waiting_bytes, "waited_s": round(now - since, 1)},
                )
                self._recipient.fail(audience)
