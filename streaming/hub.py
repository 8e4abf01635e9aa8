"""This process's topics and sockets; what the chain brings goes to those who joined.

There is one hub a process. It renders a change at most once, encodes it at most once for a topic and serializer, and
hands every socket the same bytes: one write per socket and envelope. It never waits for a socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import Protocol

from replication.changelog import Changelog
from replication.changes import TRUNCATE, Change, Chunk, Envelope
from replication.configuration import BROADCAST_EVERYTHING, Configuration
from replication.errors import PgOutputError
from replication.lsn import BEGINNING, Position
from replication.pgoutput import decode_row
from replication.publisher import Tick
from streaming.filters import Plan, TopicIndex, topics_of_row
from streaming.frames import Parcel
from streaming.payloads import legacy_commit_timestamp
from streaming.phoenix import Serializer
from streaming.transport import Outlet

logger = logging.getLogger(__name__)

PARCEL_BYTES = 256 << 10
"""About the largest parcel: urgent messages overtake between two of them."""

ALL_EVENTS = "*"
TEND_S = 1.0
SHUTDOWN, UNWRITABLE = 1012, 1011


class Subscriber(Protocol):
    """Who owns a socket: is told when its topics cannot go on."""

    def fail_all(self) -> None:
        """Every joined topic ends with ``phx_error``."""


class Audience:
    """Those who joined one topic with one serializer: they read the same bytes."""

    __slots__ = ("_envelopes", "messages", "order", "outlets", "serializer", "topic")

    def __init__(self, topic: str, serializer: Serializer) -> None:
        self.topic, self.serializer = topic, serializer
        self.outlets: dict[Outlet, None] = {}
        self.messages: list[bytes] = []
        self.order: list[int] = []
        """Of the envelope at hand: the messages, and where each stands among those of all audiences."""
        self._envelopes: dict[str, tuple[bytes, bytes]] = {}

    def encode(self, event: str, payload: bytes) -> bytes:
        """The message text that pushes an already encoded payload."""
        around = self._envelopes.get(event)
        if around is None:
            around = self._envelopes[event] = self.serializer.push(self.topic, event)
        return around[0] + payload + around[1]


@dataclass(slots=True)
class HubCounters:
    """What this process has done since its start."""

    changes: int = 0
    rendered: int = 0
    messages: int = 0
    bytes: int = 0
    unreadable: int = 0
    hub_busy_s: float = field(default=0.0)


class Hub:
    """Topics to audiences, and the way from an envelope to their sockets.

    ``log`` is what can be replayed here: in the replicator's own process its ring, elsewhere the hub's own.
    ``star_event`` adds the event ``*`` before each typed one, for clients from before realtime-js 1.0.7.
    ``configuration`` says which changes are broadcast at which level.
    """

    def __init__(
        self,
        log: Changelog | None = None,
        *,
        star_event: bool = False,
        configuration: Configuration = BROADCAST_EVERYTHING,
    ) -> None:
        self.log = log if log is not None else Changelog()
        self.epoch = ""
        self.have: Position = BEGINNING
        self.counters = HubCounters()
        self._star_event = star_event
        self._topics: dict[str, dict[str, Audience]] = {}
        self._index = TopicIndex(configuration)
        self._touched: list[Audience] = []
        self._order = 0
        self._outlets: dict[Outlet, set[tuple[str, str]]] = {}
        self._subscribers: dict[Outlet, Subscriber] = {}

    # Sockets

    def admit(self, outlet: Outlet, subscriber: Subscriber) -> None:
        """A socket is open; it has joined nothing yet."""
        self._subscribers[outlet] = subscriber

    def join(self, outlet: Outlet, topic: str, serializer: Serializer) -> None:
        """From now on the socket gets the changes of ``topic``, each once, however often it joins."""
        audiences = self._topics.get(topic)
        if audiences is None:
            audiences = self._topics[topic] = {}
            self._index.add(topic)
        audience = audiences.get(serializer.vsn)
        if audience is None:
            audience = audiences[serializer.vsn] = Audience(topic, serializer)
        audience.outlets[outlet] = None
        self._outlets.setdefault(outlet, set()).add((topic, serializer.vsn))

    def leave(self, outlet: Outlet, topic: str, serializer: Serializer) -> None:
        """The socket gets no more of ``topic``."""
        self._outlets.get(outlet, set()).discard((topic, serializer.vsn))
        self._remove(outlet, topic, serializer.vsn)

    def drop(self, outlet: Outlet) -> None:
        """The socket is gone."""
        self._subscribers.pop(outlet, None)
        for topic, vsn in self._outlets.pop(outlet, ()):
            self._remove(outlet, topic, vsn)

    def _remove(self, outlet: Outlet, topic: str, vsn: str) -> None:
        if (audiences := self._topics.get(topic)) is None or (audience := audiences.get(vsn)) is None:
            return
        audience.outlets.pop(outlet, None)
        if not audience.outlets:
            del audiences[vsn]
            if not audiences:
                del self._topics[topic]
                self._index.discard(topic)

    @property
    def topic_count(self) -> int:
        """How many topics have somebody."""
        return len(self._topics)

    @property
    def socket_count(self) -> int:
        """How many sockets are open."""
        return len(self._subscribers)

    def check_outlets(self) -> None:
        """Close the sockets that have been too slow for too long."""
        now = time.monotonic()
        for outlet in list(self._subscribers):
            outlet.check(now)

    # Changes

    def receive(self, envelope: Envelope) -> None:
        """Take the next envelope of the chain, of which nothing is here yet."""
        self._enter(envelope.epoch)
        self.have = envelope.last
        self.deliver(envelope.chunks)

    def settle(self, tick: Tick) -> None:
        """Where the chain stands although nothing was sent: the start of the process, or a new history.

        A new history is a gap: whoever has joined is told so (``phx_error``) and joins again.
        """
        self._enter(tick.epoch)
        self.have = tick.published

    def _enter(self, epoch: str) -> None:
        if epoch != self.epoch:
            is_first, self.epoch = not self.epoch, epoch
            if not is_first:
                self.tell_gap()

    def tell_gap(self) -> None:
        """Changes are missing and cannot be had any more: every topic of every socket fails, and clients join again."""
        logger.warning("gap told to subscribers", extra={"sockets": self.socket_count, "epoch": self.epoch})
        for subscriber in list(self._subscribers.values()):
            subscriber.fail_all()

    def close_all(self) -> None:
        """The process ends: every topic fails (clients join again elsewhere), then every socket is closed with 1012."""
        for outlet, subscriber in list(self._subscribers.items()):
            subscriber.fail_all()
            outlet.close(SHUTDOWN, "shutdown")

    async def tend(self) -> None:
        """Look after slow sockets, until cancelled."""
        while True:
            await asyncio.sleep(TEND_S)
            self.check_outlets()

    def deliver(self, chunks: Iterable[Chunk]) -> None:
        """Send the changes to those who joined their topics. A change that cannot be read is reported and left out."""
        started = time.perf_counter()
        plans, touched = self._index.plans, self._touched
        for chunk in chunks:
            self.counters.changes += len(chunk.changes)
            commit_timestamp = legacy_commit_timestamp(chunk.committed_at)
            for change in chunk.changes:
                try:
                    of_events = plans[change.relation]
                except KeyError:
                    of_events = self._index.plans_of(change.relation)
                if not of_events:
                    continue
                try:
                    plan = of_events[change.data[0]]
                    if not plan.watched:
                        continue
                    payload, topics = self._render(change, plan, commit_timestamp)
                except (PgOutputError, ValueError, LookupError) as error:
                    self.counters.unreadable += 1
                    position = Position(chunk.commit_lsn, change.lsn, change.ordinal)
                    facts = {"relation": change.relation, "position": position, "error": error}
                    logger.error("change left out", extra=facts)
                    continue
                event = plan.event
                for topic in topics:
                    self._order += 1
                    for audience in self._topics[topic].values():
                        if not audience.messages:
                            touched.append(audience)
                        if self._star_event:
                            audience.order.append(self._order)
                            audience.messages.append(audience.encode(ALL_EVENTS, payload))
                        audience.order.append(self._order)
                        audience.messages.append(audience.encode(event, payload))
        if touched:
            self._send()
        self.counters.hub_busy_s += time.perf_counter() - started

    def _render(self, change: Change, plan: Plan, commit_timestamp: str) -> tuple[bytes, Sequence[str]]:
        """The payload of a watched change, and the joined topics it belongs to."""
        self.counters.rendered += 1
        if change.data == TRUNCATE:
            return plan.shared.truncate(commit_timestamp), plan.topics
        payload, texts = plan.shared.payload(decode_row(change.data), commit_timestamp)
        if plan.columns:
            return payload, [*plan.topics, *topics_of_row(plan, texts, self._topics)]
        return payload, plan.topics

    def _send(self) -> None:
        touched, self._order = self._touched, 0
        self._touched = []
        if len(touched) == 1:
            self._hand_out(touched[0].messages, touched[0].outlets)
            touched[0].messages, touched[0].order = [], []
            return
        # A socket that has joined several of the topics gets all in their order; sockets with the same ones share.
        by_outlet: dict[Outlet, list[int]] = {}
        for number, audience in enumerate(touched):
            for outlet in audience.outlets:
                by_outlet.setdefault(outlet, []).append(number)
        by_audiences: dict[tuple[int, ...], list[Outlet]] = {}
        for outlet, numbers in by_outlet.items():
            by_audiences.setdefault(tuple(numbers), []).append(outlet)
        for numbers_key, outlets in by_audiences.items():
            if len(numbers_key) == 1:
                messages = touched[numbers_key[0]].messages
            else:
                several = [touched[number] for number in numbers_key]
                merged = merge(
                    *(zip(audience.order, audience.messages, strict=True) for audience in several), key=_order
                )
                messages = [message for _, message in merged]
            self._hand_out(messages, outlets)
        for audience in touched:
            audience.messages, audience.order = [], []

    def _hand_out(self, messages: Sequence[bytes], outlets: Iterable[Outlet]) -> None:
        # A socket that ends while we write leaves its audience: so the outlets are counted out first.
        readers = list(outlets)
        for parcel in _parcels(messages):
            for outlet in readers:
                try:
                    outlet.write(parcel)
                except Exception:  # one socket's trouble is nobody else's
                    logger.exception("socket dropped: it cannot be written to")
                    self.drop(outlet)
                    outlet.close(UNWRITABLE, "")
            self.counters.messages += len(parcel.messages) * len(readers)
            self.counters.bytes += parcel.size * len(readers)


def _order(item: tuple[int, bytes]) -> int:
    return item[0]


def _parcels(messages: Sequence[bytes]) -> Iterable[Parcel]:
    if sum(map(len, messages)) > PARCEL_BYTES:
        size, start = 0, 0
        for index, message in enumerate(messages):
            if size and size + len(message) > PARCEL_BYTES:
                yield Parcel(messages[start:index])
                size, start = 0, index
            size += len(message)
        messages = messages[start:]
    yield Parcel(messages)
