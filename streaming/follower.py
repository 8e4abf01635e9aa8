"""The hub's ear in the channel layer: takes envelopes and ticks, pulls what is missing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import Any

from channels.layers import BaseChannelLayer

from replication.changes import Chunk, Envelope
from replication.errors import EnvelopeError
from replication.lsn import BEGINNING, Position
from replication.publisher import CHAIN_GROUP, ENVELOPE, PACE, PULL, PULL_GROUP, TICK, Tick, stop_if_cancelled
from streaming.chain import Chain, Deliver, Gap, Pull
from streaming.hub import Hub

logger = logging.getLogger(__name__)

RETRY_S = 1.0
REPEAT_PULL_S = 0.5
REPEAT_PACE_S = 0.3
TOGETHER_BYTES = 1 << 20


class Follower:
    """Keeps one hub level with the chain, for as long as `run` runs. ``ready`` is set once it has been level."""

    def __init__(self, hub: Hub, layer: BaseChannelLayer) -> None:
        self._hub, self._layer = hub, layer
        self._chain = Chain(hub.log)
        self._channel = ""
        self._pulled: tuple[Pull, float] | None = None
        self._holding: asyncio.Task[None] | None = None
        self._inbox: deque[dict[str, Any]] = deque()
        self._arrived = asyncio.Event()
        self._due: list[Chunk] = []
        self._due_bytes = 0
        """New changes that are not delivered yet, and up to where they are."""
        self._due_up_to: tuple[str, Position] = ("", BEGINNING)
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled; a layer that is away is waited for."""
        while True:
            listening: asyncio.Task[None] | None = None
            try:
                self._channel = await self._layer.new_channel()
                await self._layer.group_add(CHAIN_GROUP, self._channel)
                listening = asyncio.create_task(self._listen(self._channel), name="chain inbox")
                while True:
                    stop_if_cancelled()
                    await self._arrived.wait()
                    self._arrived.clear()
                    await self._take_all()
                    if listening.done():
                        listening.result()
            except Exception as error:  # whatever a layer's driver raises
                logger.warning("channel layer away", extra={"error": error, "retry_s": RETRY_S})
                await asyncio.sleep(RETRY_S)
            finally:
                if self._holding is not None:
                    self._holding.cancel()
                if listening is not None:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, channel: str) -> None:
        # What came while sockets were served is here at once, and leaves together.
        try:
            while True:
                stop_if_cancelled()
                self._inbox.append(await self._layer.receive(channel))
                self._arrived.set()
        finally:
            self._arrived.set()

    async def _take_all(self) -> None:
        """Take what has come, as much as is here."""
        while self._inbox:
            await self._take(self._inbox.popleft())
            if not self._inbox:
                self._deliver_due()
            if self._holding is not None:
                # What is on its way already, before the replicator has heard, waits here and in no socket.
                await asyncio.wait([self._holding])
                self._holding = None

    async def _take(self, message: dict[str, Any]) -> None:
        now = time.monotonic()
        tick, knew = None, self._chain.tick is not None
        try:
            if message.get("type") == ENVELOPE:
                steps = self._chain.offer(Envelope.decode(message["data"]), now)
            elif message.get("type") == TICK:
                tick = Tick.decode(message["data"])
                self._deliver_due()
                steps = self._chain.settle(tick, now)
            else:
                return  # not ours: the group is named after a topic, and others may send to it
        except (EnvelopeError, KeyError) as error:
            logger.error("unreadable link of the chain", extra={"error": error})
            return
        self._hub.silent_up_to = self._chain.silent_up_to
        for step in steps:
            if isinstance(step, Deliver):
                self._put_off(step)
            else:
                self._deliver_due()
                await self._perform(step, now)
        if not self._due:
            self._hub.epoch, self._hub.have = self._chain.epoch, self._chain.have
        if self._chain.level:
            self._pulled = None
            if not (self.ready.is_set() and self._hub.ready.is_set()):
                self._deliver_due()
                self.ready.set()
                self._hub.ready.set()
        if tick is not None and tick is self._chain.tick:
            self._hub.heard(tick)
            if not knew and self._hub.audiences:
                # They joined before anybody knew where the chain stood, and may have missed something since.
                self._hub.tell_gap()

    def _put_off(self, step: Deliver) -> None:
        """Changes that follow each other leave together, about `TOGETHER_BYTES` at a time."""
        if self._due_up_to[0] != self._chain.epoch:
            self._deliver_due()
        self._due += step.chunks
        self._due_bytes += sum(chunk.size for chunk in step.chunks)
        self._due_up_to = self._chain.epoch, self._chain.have
        if self._due_bytes >= TOGETHER_BYTES:
            self._deliver_due()

    def _deliver_due(self) -> None:
        if not self._due:
            return
        chunks, self._due, self._due_bytes = self._due, [], 0
        self._hub.epoch, self._hub.have = self._due_up_to
        self._hub.deliver(chunks)
        if self._hub.pace.is_full and (self._holding is None or self._holding.done()):
            self._holding = asyncio.create_task(self._hold_the_replicator(), name="pace")

    async def _perform(self, step: Gap | Pull, now: float) -> None:
        hub, chain = self._hub, self._chain
        hub.epoch, hub.have = chain.epoch, chain.have
        match step:
            case Gap(have=have, floor=floor, relations=relations):
                logger.error("changes are missing", extra={"have": have, "floor": floor, "epoch": chain.epoch})
                hub.tell_gap(relations)
            case Pull(epoch=epoch, have=have) as pull:
                if self._pulled is not None and self._pulled[0] == pull and now - self._pulled[1] < REPEAT_PULL_S:
                    return  # asked just now
                self._pulled = pull, now
                question = {"type": PULL, "epoch": epoch, "have": list(have), "reply_to": self._channel}
                await self._layer.group_send(PULL_GROUP, question)

    async def _hold_the_replicator(self) -> None:
        """Say that our readers are full until they are not."""
        room = asyncio.create_task(self._hub.pace.room(), name="room")
        try:
            while not room.done():
                await self._say_pace(full=True)
                await asyncio.wait([room], timeout=REPEAT_PACE_S)
            await self._say_pace(full=False)
        finally:
            room.cancel()

    async def _say_pace(self, *, full: bool) -> None:
        with suppress(Exception):  # whatever a layer's driver raises: unheard, the replicator simply goes on
            await self._layer.group_send(PULL_GROUP, {"type": PACE, "hub": self._channel, "full": full})
