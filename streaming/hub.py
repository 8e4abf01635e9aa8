"""This process's topics and sockets; what the chain brings goes to those who joined.

There is one hub a process. It renders a change at most once, encodes it at most once for equal channels, and hands
every socket the same bytes: one write per socket and envelope. It never waits for a socket.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import merge
from itertools import accumulate
from typing import NamedTuple, Protocol

from replication.changelog import Changelog
from replication.changes import Chunk, Envelope, Table
from replication.configuration import BROADCAST_EVERYTHING, Configuration
from replication.errors import BelowFloor
from replication.lsn import BEGINNING, Position, parse_position_token, position_token
from replication.publisher import Tick
from streaming.asking import Asking
from streaming.audiences import Audience, Deferred
from streaming.bindings import Binding
from streaming.catalogue import Catalogue
from streaming.frames import Parcel
from streaming.latency import CommitClock, Histogram
from streaming.matching import MAX_RECORD_BYTES, MatchCounters, Matcher
from streaming.pacing import Pace
from streaming.phoenix import Serializer
from streaming.subscriptions import Resumed, Subscription
from streaming.transport import Outlet

logger = logging.getLogger(__name__)

PARCEL_BYTES = 256 << 10
"""About the largest parcel: urgent messages overtake between two of them."""

TEND_S = 1.0
RESUME_WAIT_S = 5.0
"""How long a join that resumes waits for a hub that is not yet level with the chain."""

SHUTDOWN, UNWRITABLE = 1012, 1011


class Subscriber(Protocol):
    """Who owns a socket: is told when its topics cannot go on."""

    def fail_all(self) -> None:
        """Every joined topic ends with ``phx_error``."""

    def tell_gap(self, topics: Collection[str]) -> None:
        """Changes of these topics are missing for good: they end in a way that makes the client join again."""

    def refuse_changes(self, topic: str, reason: str) -> None:
        """PostgreSQL objects to what the topic's bindings ask for: it hears no changes any more."""


@dataclass(slots=True)
class HubCounters(MatchCounters):
    """What this process has done since its start."""

    messages: int = 0
    bytes: int = 0
    resumed: int = 0
    replayed: int = 0
    not_recovered: int = 0
    gaps: int = 0


class _Waiting(NamedTuple):
    """A channel whose client has more than we have: it goes on once the chain has come to ``position``."""

    subscription: Subscription
    serializer: Serializer
    position: Position


class _Replay(NamedTuple):
    """What a channel missed: what it is sent at once, and what PostgreSQL is to be asked about before."""

    parcels: list[Parcel]
    deferred: list[Deferred]


class Hub:
    """Subscriptions to audiences, and the way from an envelope to their sockets.

    ``log`` is what can be replayed here: in the replicator's own process its ring, elsewhere the hub's own.
    ``star_event`` adds the event ``*`` before each typed one, for clients from before realtime-js 1.0.7.
    ``configuration`` says which changes are broadcast at which level. ``ready`` is set once it is level with the chain.
    ``pace`` tells whoever reads the log when to wait. ``catalogue`` asks PostgreSQL about filters; without one, those
    that Python cannot judge are refused. ``max_record_bytes`` is for current channels.
    """

    def __init__(
        self,
        log: Changelog | None = None,
        *,
        star_event: bool = False,
        configuration: Configuration = BROADCAST_EVERYTHING,
        pace: Pace | None = None,
        catalogue: Catalogue | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self.pace = pace or Pace()
        self.log = log if log is not None else Changelog()
        self.have: Position = BEGINNING
        self.silent_up_to: Position = BEGINNING
        """While the log is filled at the start of the process, what comes up to here is delivered to nobody."""
        self.last_tick: Tick | None = None
        self.ready = asyncio.Event()
        self.counters = HubCounters()
        self.arrivals, self.latency, self.clock = Histogram(), Histogram(), CommitClock()
        """From a commit to when its changes are here, and to when they were handed to the last of their sockets."""
        self._ticked = asyncio.Event()
        self.catalogue = catalogue
        self._matcher = Matcher(
            star_event=star_event,
            configuration=configuration,
            counters=self.counters,
            knowledge=catalogue.knowledge if catalogue is not None else None,
            max_record_bytes=max_record_bytes,
        )
        self._asking = Asking(self._matcher, catalogue, self)
        self._joins = itertools.count()
        self._subscribers: dict[Outlet, Subscriber] = {}
        self._audiences: dict[Outlet, dict[str, Audience]] = {}
        """Of each socket, by topic."""
        self._waiting: dict[Outlet, dict[str, _Waiting]] = {}
        self._replays: dict[tuple[Subscription, str, Position], _Replay] = {}
        """What was replayed since the last change came: after an outage many ask for the same."""

    @property
    def epoch(self) -> str:
        """The history that the chain tells; empty before the first tick."""
        return self._matcher.epoch

    @epoch.setter
    def epoch(self, epoch: str) -> None:
        self._matcher.epoch = epoch

    # Sockets

    def admit(self, outlet: Outlet, subscriber: Subscriber) -> None:
        """A socket is open; it has joined nothing yet."""
        self._subscribers[outlet] = subscriber

    def join(self, outlet: Outlet, subscription: Subscription, serializer: Serializer) -> None:
        """From now on the socket gets what the subscription hears, each change once, however often it joins.

        A socket has one subscription a topic: another one takes its place.
        """
        self._forget_waiting(outlet, subscription.topic)
        of_socket = self._audiences.setdefault(outlet, {})
        audience = self._matcher.audience(subscription, serializer)
        before = of_socket.get(subscription.topic)
        if before is not audience:
            of_socket[subscription.topic] = audience
            audience.add(outlet, next(self._joins))
            if before is not None:
                self._remove(outlet, before)

    def leave(self, outlet: Outlet, topic: str) -> None:
        """The socket gets no more of ``topic``."""
        self._forget_waiting(outlet, topic)
        audience = self._audiences.get(outlet, {}).pop(topic, None)
        if audience is not None:
            self._remove(outlet, audience)

    def drop(self, outlet: Outlet) -> None:
        """The socket is gone."""
        self._subscribers.pop(outlet, None)
        self._waiting.pop(outlet, None)
        for audience in self._audiences.pop(outlet, {}).values():
            self._remove(outlet, audience)

    def _remove(self, outlet: Outlet, audience: Audience) -> None:
        audience.remove(outlet)
        if not audience.outlets:
            self._matcher.discard(audience)

    def _forget_waiting(self, outlet: Outlet, topic: str) -> None:
        if (waiting := self._waiting.get(outlet)) is not None:
            waiting.pop(topic, None)
            if not waiting:
                del self._waiting[outlet]

    @property
    def topic_count(self) -> int:
        """How many topics have somebody who hears changes."""
        return self._matcher.topic_count

    @property
    def socket_count(self) -> int:
        """How many sockets are open."""
        return len(self._subscribers)

    @property
    def sockets(self) -> list[tuple[Outlet, Subscriber]]:
        """The open sockets, the oldest first."""
        return list(self._subscribers.items())

    @property
    def audiences(self) -> list[Audience]:
        """Who hears changes: one for all channels that hear the same and read the same bytes."""
        return self._matcher.audiences

    def subscriptions(self, outlet: Outlet) -> list[Subscription]:
        """What the channels of one socket hear of the changes."""
        return [audience.subscription for audience in self._audiences.get(outlet, {}).values()]

    def check_outlets(self) -> None:
        """Close the sockets that have been too slow for too long."""
        now = time.monotonic()
        for outlet in list(self._subscribers):
            outlet.check(now)

    # Resume

    async def prepare(self, since: str | None) -> None:
        """Wait, `RESUME_WAIT_S` at most, until `resume` can tell whether ``since`` still holds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RESUME_WAIT_S):
                await self.ready.wait()
                position = _position_of(since)[1]
                if self.last_tick is not None and position.commit_lsn > self.last_tick.wal_end:
                    # Another process may have been quicker than our last tick.
                    await self._ticked.wait()

    def resume(
        self, outlet: Outlet, subscription: Subscription, serializer: Serializer, since: str | None
    ) -> tuple[Resumed, list[Parcel]]:
        """Join like `join`, and go on after the position ``since`` (`None`: from now).

        All or nothing: the parcels hold every change since, to be written to the socket (unbounded) before anything
        else is delivered; or nothing is replayed and it is not ``recovered``.
        """
        if since is None:
            self.join(outlet, subscription, serializer)
            return Resumed(False, 0, self.position), []
        epoch, position = _position_of(since)
        replay: _Replay | None = None
        if self._holds(epoch, position):
            if position > self.have:
                # We are behind. What comes at or below the position, this channel has already.
                self.leave(outlet, subscription.topic)
                waiting = self._waiting.setdefault(outlet, {})
                waiting[subscription.topic] = _Waiting(subscription, serializer, position)
                self.counters.resumed += 1
                return Resumed(True, 0, position_token(self.epoch, position)), []
            with suppress(BelowFloor):
                replay = self._replay(subscription, serializer, position)
        self.join(outlet, subscription, serializer)
        if replay is None:
            self.counters.not_recovered += 1
            return Resumed(False, 0, self.position), []
        self._defer(outlet, subscription.topic, replay.deferred)
        doubled = self._matcher.star_event and subscription.bindings is None
        replayed = sum(len(parcel.messages) for parcel in replay.parcels) // (2 if doubled else 1)
        self.counters.resumed += 1
        self.counters.replayed += replayed
        return Resumed(True, replayed, self.position), replay.parcels

    @property
    def position(self) -> str:
        """What has been delivered, as clients name it."""
        return position_token(self.epoch, max(self.have, self.silent_up_to))

    def settled_position(self, outlet: Outlet) -> str | None:
        """The position with nothing at or below it still due on this socket; `None` while some of it waits."""
        if outlet.queued_bytes or outlet in self._waiting or not self.epoch:
            return None
        if self._matcher.waiting and any(audience.waiting for audience in self._audiences.get(outlet, {}).values()):
            return None
        return self.position

    def _holds(self, epoch: str, position: Position) -> bool:
        """Whether a client's position lies in our history, and not beyond the end of the server's WAL."""
        tick = self.last_tick
        if tick is None or not self.ready.is_set():
            return False
        return tick.holds(epoch, position) and (position <= self.have or position.commit_lsn <= tick.wal_end)

    async def prepare_replay(self, bindings: Collection[Binding], since: str) -> None:
        """Ask PostgreSQL what a replay of these bindings needs to know, so that `resume` can tell what is replayed."""
        epoch, position = _position_of(since)
        if not self._holds(epoch, position) or position > self.have:
            return
        with suppress(BelowFloor, TimeoutError):
            async with asyncio.timeout(RESUME_WAIT_S):
                subscription = Subscription("", tuple(bindings))
                await self._asking.prepare(subscription, self._published_since(position, subscription))

    def _published_since(self, position: Position, subscription: Subscription) -> list[Chunk]:
        """What lies above ``position`` up to ``have``. Raises `BelowFloor` if some that concerns it is gone."""
        published = []
        for chunk in self.log.since(position, needs=subscription.concerns):
            if chunk.first > self.have:
                break  # it is in the ring, and not yet published
            published.append(chunk)
        return published

    def _replay(self, subscription: Subscription, serializer: Serializer, position: Position) -> _Replay:
        """Everything that the subscription hears above ``position`` up to ``have``. Raises `BelowFloor`."""
        key = subscription, serializer.vsn, position
        replay = self._replays.get(key)
        if replay is None:
            matcher = self._matcher.sibling()
            audience = matcher.audience(subscription, serializer)
            matcher.match(self._published_since(position, subscription))
            parcels = list(_parcels(audience.messages)) if audience.messages else []
            replay = self._replays[key] = _Replay(parcels, list(audience.waiting))
        return replay

    def _defer(self, outlet: Outlet, topic: str, items: Collection[Deferred]) -> None:
        """Put what a replay leaves open before what is still to come, for this socket alone."""
        if items:
            audience = self._audiences[outlet][topic]
            readers = {outlet: audience.outlets[outlet]}
            for item in items:
                audience.defer(replace(item, readers=readers))
            self._matcher.waiting[audience] = None
            self._asking.start()

    def _admit_waiting(self) -> None:
        """Set live the channels whose clients were ahead of us and are not any more."""
        for outlet, of_socket in list(self._waiting.items()):
            for topic, waiting in list(of_socket.items()):
                if waiting.position > self.have:
                    continue
                try:
                    replay = self._replay(waiting.subscription, waiting.serializer, waiting.position)
                except BelowFloor:
                    self._subscribers[outlet].tell_gap([topic])
                    continue
                self.join(outlet, waiting.subscription, waiting.serializer)
                for parcel in replay.parcels:
                    outlet.write(parcel, bounded=False)
                self._defer(outlet, topic, replay.deferred)

    # Changes

    def receive(self, envelope: Envelope) -> None:
        """Take the next envelope of the chain, of which nothing is here yet."""
        if envelope.epoch != self.epoch:
            is_gap, self.epoch = bool(self.epoch), envelope.epoch
            if is_gap:
                self.tell_gap()
        self.have = envelope.last
        self.deliver(envelope.chunks)

    def settle(self, tick: Tick) -> None:
        """Take a tick in the replicator's own process: where the chain stands although nothing was sent.

        It is the start of the process, or another history: whoever has joined is told if what they have is not in it.
        """
        is_gap = bool(self.epoch) and not tick.holds(self.epoch, self.have)
        self.epoch, self.have = tick.epoch, tick.published
        self.heard(tick)
        if is_gap:
            self.tell_gap()

    def heard(self, tick: Tick) -> None:
        """Take note of a tick; ``epoch`` and ``have`` say already what follows from it."""
        self.last_tick = tick
        if tick.epoch == self.epoch and self.have >= tick.published:
            self.ready.set()
        self._ticked.set()
        self._ticked = asyncio.Event()
        self._replays.clear()
        if self._waiting:
            self._admit_waiting()

    def tell_gap(self, relations: Collection[Table] | None = None) -> None:
        """Changes are missing and cannot be had any more: clients are told, and join again.

        ``relations`` are the tables they belong to (`None`: any). Only channels that hear some of them are concerned.
        """
        self.counters.gaps += 1
        self._replays.clear()
        logger.warning("gap told to subscribers", extra={"sockets": self.socket_count, "epoch": self.epoch})
        for outlet, subscriber in self.sockets:
            subscriptions = [audience.subscription for audience in self._audiences.get(outlet, {}).values()]
            subscriptions += [waiting.subscription for waiting in self._waiting.get(outlet, {}).values()]
            topics = [
                subscription.topic
                for subscription in subscriptions
                if relations is None or any(map(subscription.concerns, relations))
            ]
            if topics:
                subscriber.tell_gap(topics)

    def close_all(self) -> None:
        """The process ends: every topic fails (clients join again elsewhere), then every socket is closed with 1012."""
        for outlet, subscriber in self.sockets:
            subscriber.fail_all()
            outlet.close(SHUTDOWN, "shutdown")

    async def tend(self) -> None:
        """Look after slow sockets, until cancelled."""
        while True:
            await asyncio.sleep(TEND_S)
            self.check_outlets()

    def deliver(self, chunks: Sequence[Chunk]) -> None:
        """Send the changes to those who hear them. A change that cannot be read is reported and left out."""
        if not chunks:
            return
        self._replays.clear()
        arrived_at = time.time()
        if touched := self._matcher.match(chunks):
            self._send(touched)
        committed_at = chunks[-1].committed_at.timestamp()
        self.arrivals.observe(self.clock.since(committed_at, arrived_at))
        if touched:
            self.latency.observe(self.clock.since(committed_at, time.time()))
        if self._matcher.waiting:
            for audience in self._matcher.waiting:
                self.pace.note(audience)
            self._asking.start()
        if self._waiting:
            self._admit_waiting()

    def hand_to(self, audience: Audience, readers: Mapping[Outlet, int], messages: Sequence[bytes]) -> None:
        """Send these messages to those of ``readers`` who have been in the audience ever since."""
        outlets = audience.outlets
        self._hand_out(messages, [outlet for outlet, number in readers.items() if outlets.get(outlet) == number])

    def fail(self, audience: Audience, reason: str | None = None) -> None:
        """Nobody in the audience can hear what is due: ``reason`` is PostgreSQL's objection, `None` its absence."""
        for outlet in list(audience.outlets):
            subscriber = self._subscribers[outlet]
            if reason is None:
                subscriber.tell_gap([audience.topic])
            else:
                self.leave(outlet, audience.topic)
                subscriber.refuse_changes(audience.topic, reason)

    def _send(self, touched: Sequence[Audience]) -> None:
        if len(touched) == 1:
            self._hand_out(touched[0].messages, touched[0].outlets)
            self.pace.note(touched[0])
            self._matcher.clear(touched)
            return
        # A socket that has joined several of the topics gets all in their order; sockets with the same ones share.
        first: dict[Outlet, int] = {}
        of_several: dict[Outlet, list[int]] = {}
        for number, audience in enumerate(touched):
            for outlet in audience.outlets:
                if (before := first.setdefault(outlet, number)) != number:
                    of_several.setdefault(outlet, [before]).append(number)
        by_audiences: dict[tuple[int, ...], list[Outlet]] = {}
        for outlet, numbers in of_several.items():
            by_audiences.setdefault(tuple(numbers), []).append(outlet)
        for numbers_key, outlets in by_audiences.items():
            several = [touched[number] for number in numbers_key]
            merged = merge(*(zip(audience.order, audience.messages, strict=True) for audience in several), key=_order)
            self._hand_out([message for _, message in merged], outlets)
        for audience in touched:
            self._hand_out(audience.messages, audience.outlets.keys() - of_several if of_several else audience.outlets)
            self.pace.note(audience)
        self._matcher.clear(touched)

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
    whole = Parcel(messages)
    if whole.size <= PARCEL_BYTES:
        return [whole]
    return _several_parcels(messages)


def _several_parcels(messages: Sequence[bytes]) -> Iterable[Parcel]:
    ends, start = list(accumulate(map(len, messages))), 0
    while ends[-1] - (before := ends[start - 1] if start else 0) > PARCEL_BYTES:
        end = max(start + 1, bisect_right(ends, before + PARCEL_BYTES, lo=start))
        if end == len(messages):
            break  # one message that is larger
        yield Parcel(messages[start:end])
        start = end
    yield Parcel(messages[start:] if start else messages)


def _position_of(since: str | None) -> tuple[str, Position]:
    """Epoch and position; of what is no position an epoch that no history has."""
    if since is not None:
        with suppress(ValueError):
            return parse_position_token(since)
    return "", BEGINNING
