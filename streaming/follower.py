"""The hub's ear in the channel layer: takes envelopes and ticks, pulls what is missing."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from channels.layers import BaseChannelLayer

from replication.changes import Envelope
from replication.errors import EnvelopeError
from replication.publisher import CHAIN_GROUP, ENVELOPE, PULL, PULL_GROUP, TICK, Tick
from streaming.chain import Chain, Deliver, Gap, Pull, Step
from streaming.hub import Hub

logger = logging.getLogger(__name__)

RETRY_S = 1.0
REPEAT_PULL_S = 0.5


class Follower:
    """Keeps one hub level with the chain, for as long as `run` runs. ``ready`` is set once it has been level."""

    def __init__(self, hub: Hub, layer: BaseChannelLayer) -> None:
        self._hub, self._layer = hub, layer
        self._chain = Chain(hub.log)
        self._channel = ""
        self._pulled: tuple[Pull, float] | None = None
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled; a layer that is away is waited for."""
        while True:
            try:
                self._channel = await self._layer.new_channel()
                await self._layer.group_add(CHAIN_GROUP, self._channel)
                while True:
                    await self._take(await self._layer.receive(self._channel))
            except Exception as error:  # whatever a layer's driver raises
                logger.warning("channel layer away", extra={"error": error, "retry_s": RETRY_S})
                await asyncio.sleep(RETRY_S)

    async def _take(self, message: dict[str, Any]) -> None:
        now = time.monotonic()
        tick = None
        try:
            if message.get("type") == ENVELOPE:
                steps = self._chain.offer(Envelope.decode(message["data"]), now)
            elif message.get("type") == TICK:
                tick = Tick.decode(message["data"])
                steps = self._chain.settle(tick, now)
            else:
                return  # not ours: the group is named after a topic, and others may send to it
        except (EnvelopeError, KeyError) as error:
            logger.error("unreadable link of the chain", extra={"error": error})
            return
        self._hub.silent_up_to = self._chain.silent_up_to
        for step in steps:
            await self._perform(step, now)
        self._hub.epoch, self._hub.have = self._chain.epoch, self._chain.have
        if self._chain.level:
            self._pulled = None
            self.ready.set()
            self._hub.ready.set()
        if tick is not None and tick is self._chain.tick:
            self._hub.heard(tick)

    async def _perform(self, step: Step, now: float) -> None:
        hub, chain = self._hub, self._chain
        hub.epoch, hub.have = chain.epoch, chain.have
        match step:
            case Deliver(chunks=chunks):
                hub.deliver(chunks)
            case Gap(have=have, floor=floor, relations=relations):
                logger.error("changes are missing", extra={"have": have, "floor": floor, "epoch": chain.epoch})
                hub.tell_gap(relations)
            case Pull(epoch=epoch, have=have) as pull:
                if self._pulled is not None and self._pulled[0] == pull and now - self._pulled[1] < REPEAT_PULL_S:
                    return  # asked just now
                self._pulled = pull, now
                question = {"type": PULL, "epoch": epoch, "have": list(have), "reply_to": self._channel}
                await self._layer.group_send(PULL_GROUP, question)
