"""Envelopes and ticks into the channel layer; answers pulls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack
from channels.layers import BaseChannelLayer

from replication.changes import Envelope
from replication.errors import EnvelopeError
from replication.groups import CHAIN_TOPIC, group_name
from replication.lsn import Position

logger = logging.getLogger(__name__)

ENVELOPE, TICK, PULL = "chain.envelope", "chain.tick", "chain.pull"
"""The message types of the chain: from the replicator to all hubs, and a hub's question to the replicator."""

CHAIN_GROUP = group_name(CHAIN_TOPIC)
PULL_GROUP = "walcast.pull"
"""The replicators listen here; whoever publishes answers."""

PULL_LIMIT_BYTES = 1 << 20

PACE = "chain.pace"
"""And what a hub says to the replicators while even the fastest readers of a channel have too much before them."""

PACE_HOLDS_S = 1.0
"""A hub that is full says so again and again; one that has not said it for so long is not waited for."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Where the chain stands: said once a second for ever, so that a lost last envelope is noticed.

    ``instance`` names the replicator process, ``started`` its start in seconds since 1970; above ``floor`` and up to
    ``published`` everything can be pulled. ``wal_end`` is the end of the server's WAL as last heard. ``ancestors`` are
    the epochs of earlier timelines, each with the LSN at which the history left it (a standby was promoted there).
    """

    instance: str
    epoch: str
    started: float
    floor: Position
    published: Position
    wal_end: int
    ancestors: tuple[tuple[str, int], ...] = ()

    def switch_lsn(self, epoch: str) -> int | None:
        """Where this history left that of an earlier ``epoch``; `None` if it does not descend from it."""
        return dict(self.ancestors).get(epoch)

    def holds(self, epoch: str, position: Position) -> bool:
        """Whether a position of ``epoch`` is one of this history, too."""
        switch_lsn = self.switch_lsn(epoch)
        return epoch == self.epoch or (switch_lsn is not None and position <= Position(switch_lsn, 0, 0))

    def encode(self) -> bytes:
        """The bytes for the channel layer."""
        data: bytes = msgpack.packb(
            (self.instance, self.epoch, self.started, self.floor, self.published, self.wal_end, self.ancestors)
        )
        return data

    @classmethod
    def decode(cls, data: bytes) -> Tick:
        """The reverse of `encode`. Raises `EnvelopeError`."""
        try:
            instance, epoch, started, floor, published, wal_end, pairs = msgpack.unpackb(data, use_list=False)
            ancestors = tuple((older, switch_lsn) for older, switch_lsn in pairs)
            tick = cls(instance, epoch, started, Position(*floor), Position(*published), wal_end, ancestors)
            texts = (instance, epoch, *(older for older, _ in ancestors))
            numbers = (started, wal_end, *tick.floor, *tick.published, *(lsn for _, lsn in ancestors))
            if not all(isinstance(text, str) for text in texts) or not all(
                isinstance(number, int | float) for number in numbers
            ):
                raise TypeError("a field is of the wrong type")
            return tick
        except Exception as error:  # whatever the bytes, one family of errors
            raise EnvelopeError(f"cannot be read as a tick ({type(error).__name__}: {error})") from error


def stop_if_cancelled() -> None:
    """Raise `asyncio.CancelledError` in a task that has been cancelled and goes on all the same.

    What a loop awaits may finish its work and swallow the cancellation that came meanwhile (redis-py does under
    Python 3.11, and so does asgiref's sync_to_async): the loop would never end, and whoever waits for it neither.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Publisher(Protocol):
    """Where a replicator's envelopes and ticks go."""

    async def publish(self, envelope: Envelope) -> None:
        """Hand on the next link of the chain; it is published when this returns."""

    async def committed(self, commit_lsn: int) -> None:
        """Every transaction up to this commit LSN has been published whole.

        The chain does not need it, for its changes leave as they are read, before the Commit behind them has arrived.
        Whoever acts on whole transactions learns here that nothing more of one will come.
        """

    async def tick(self, tick: Tick) -> None:
        """Say where the chain stands."""


PullAnswer = Callable[[str, Position, int], Envelope | None]
"""``(epoch, position, limit_bytes)`` to an envelope of what follows the position; `None` if this is unknown here."""


class LayerPublisher:
    """The chain through a channel layer, for hubs in other processes.

    A layer that is away is waited for: what is not published does not leave the ring, and nothing more is read
    meanwhile. So are hubs whose fastest readers cannot take more (`PACE`).
    """

    def __init__(self, layer: BaseChannelLayer, *, retry_s: float = 0.2, longest_s: float = 5.0) -> None:
        self._layer = layer
        self._retry_s, self._longest_s = retry_s, longest_s
        self._full: dict[str, float] = {}
        """The hubs that have said they are full, and when."""
        self._room = asyncio.Event()

    async def publish(self, envelope: Envelope) -> None:
        """Send the envelope to all hubs; tries until the layer takes it."""
        if self._full:
            await self._wait_for_room()
        message = {"type": ENVELOPE, "data": envelope.encode()}
        delay_s = self._retry_s
        while True:
            try:
                await self._layer.group_send(CHAIN_GROUP, message)
                return
            except Exception as error:  # whatever a layer's driver raises
                logger.warning("channel layer away", extra={"error": error, "retry_s": delay_s})
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, self._longest_s)

    async def committed(self, commit_lsn: int) -> None:
        """The hubs take changes as they come."""

    async def tick(self, tick: Tick) -> None:
        """Send the tick; a lost one is made good by the next."""
        try:
            await self._layer.group_send(CHAIN_GROUP, {"type": TICK, "data": tick.encode()})
        except Exception as error:  # whatever a layer's driver raises
            logger.warning("channel layer away", extra={"error": error})

    async def answer_pulls(self, answer: PullAnswer) -> None:
        """Answer the hubs' questions until cancelled; ``answer`` looks up what they ask for."""
        while True:
            try:
                channel = await self._layer.new_channel()
                await self._layer.group_add(PULL_GROUP, channel)
                while True:
                    stop_if_cancelled()
                    await self._reply(await self._layer.receive(channel), answer)
            except Exception as error:  # whatever a layer's driver raises
                logger.warning("channel layer away", extra={"error": error})
                await asyncio.sleep(self._retry_s)

    async def _wait_for_room(self) -> None:
        while True:
            now = time.monotonic()
            self._full = {hub: said_at for hub, said_at in self._full.items() if now - said_at < PACE_HOLDS_S}
            if not self._full:
                return
            self._room.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), PACE_HOLDS_S)
            stop_if_cancelled()

    def _hear_pace(self, message: dict[str, Any]) -> None:
        hub = str(message.get("hub"))
        if message.get("full"):
            self._full[hub] = time.monotonic()
        elif self._full.pop(hub, None) is not None:
            self._room.set()

    async def _reply(self, message: dict[str, Any], answer: PullAnswer) -> None:
        if message.get("type") == PACE:
            self._hear_pace(message)
            return
        try:
            epoch, have, reply_to = message["epoch"], Position(*message["have"]), message["reply_to"]
        except (KeyError, TypeError) as error:
            logger.warning("unreadable pull", extra={"error": error})
            return
        envelope = answer(epoch, have, PULL_LIMIT_BYTES)
        if envelope is not None:
            await self._layer.send(reply_to, {"type": ENVELOPE, "data": envelope.encode()})
