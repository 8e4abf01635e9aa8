"""Rooms: what clients say to each other in a topic, within this process and across all.

In one process nothing lies between those who are in a room. With Redis a broadcast also goes, in one ``group_send``
(under load several in one), into the room's group of the channel layer, in which every process with somebody in the
room is once.

Presence travels in one group of all processes: every process tells its changes under running numbers, and once a second
how far they go; who has missed one asks for the whole state. What is known of a process that has fallen silent is
forgotten. A process that does not hear its own ticks either is deaf, and forgets nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from channels.layers import BaseChannelLayer

from replication.groups import group_name
from replication.publisher import stop_if_cancelled
from streaming.limits import Traffic
from streaming.outbox import Outbox, unpacked
from streaming.phoenix import PRESENCE_DIFF, Serializer, UserBroadcast, Verbatim
from streaming.presence import Diff, Meta, Presences
from streaming.room import Broadcast, Room
from streaming.transport import Outlet

logger = logging.getLogger(__name__)

ROOMS_GROUP: Final = "walcast.rooms"
"""Every process that has rooms is in it, with one channel."""

SAID, PROBE = "room.said", "room.probe"
HELLO, TICK, CHANGED, PULL, STATE, GONE = (
    "rooms.hello",
    "rooms.tick",
    "rooms.changed",
    "rooms.pull",
    "rooms.state",
    "rooms.gone",
)

TICK_S = 1.0
LEASE_S = 4.0
"""A process that has not been heard for so long is gone, and those who were present in it."""

JOIN_WAIT_S = 2.0
"""How long a join waits at most until the room's group is heard. Without a layer it works within this process."""

RETRY_S = 0.5
UNSENT_BROADCASTS_BYTES, UNSENT_PRESENCE_BYTES = 32 << 20, 64 << 20
STATE_METAS = 1_000
"""How many metas one message of a state holds."""

LAST_WORDS_S = 1.0

ANSWERS_WITHIN_S = 0.2
"""How long the others may take to answer a process that has just come."""


def room_group(topic: str) -> str:
    """The channel-layer group of a room.

    It is not the topic's own: what clients say must not reach the consumers of a Django project that listen there for
    changes.
    """
    return f"room.{group_name(topic)}"


@dataclass(slots=True)
class RoomCounters:
    """What this process has done since its start: said and heard, and what went to its sockets."""

    broadcasts: int = 0
    from_elsewhere: int = 0
    presence_changes: int = 0
    messages: int = 0
    bytes: int = 0


class Rooms:
    """The rooms of one process.

    ``process`` is a name that no other process has. ``layer`` leads to the others; `None` if there are none.
    """

    def __init__(self, process: str, layer: BaseChannelLayer | None = None, traffic: Traffic | None = None) -> None:
        self.traffic = traffic if traffic is not None else Traffic()
        self.presences = Presences(hashlib.sha256(process.encode()).digest())
        self.counters = RoomCounters()
        self._process, self._layer = process, layer
        self._rooms: dict[str, Room] = {}
        self._topics: dict[Outlet, dict[str, None]] = {}
        # Towards the others
        self._channel = ""
        self._groups: set[str] = set()
        self._preparing: dict[str, int] = {}
        self._probes: dict[str, asyncio.Event] = {}
        # Two: a flood of broadcasts must not hold back the ticks, or we would be taken for dead.
        self._voice = None if layer is None else Outbox(layer, UNSENT_BROADCASTS_BYTES, self._away)
        self._presence_voice = None if layer is None else Outbox(layer, UNSENT_PRESENCE_BYTES, self._away)
        self._heard: dict[str, float] = {}
        self._heard_myself = 0.0
        self._pulled: dict[str, float] = {}
        self._pages: dict[str, tuple[int, dict[str, list[Meta]]]] = {}
        self._is_away = False
        self._behind: set[str] = set()
        self._has_been_answered = False
        self.ready = asyncio.Event()
        """Set once it is known who is present elsewhere, as far as others have answered."""
        if layer is None:
            self.ready.set()

    # Who is in

    async def prepare(self, topic: str) -> None:
        """Make sure that the topic is heard across processes, as far as it can be: before its first socket enters.

        What others say from now on arrives. Takes `JOIN_WAIT_S` at most, and raises nothing.
        """
        if self._layer is None or self._is_away or (topic in self._groups and topic not in self._probes):
            return
        self._preparing[topic] = self._preparing.get(topic, 0) + 1
        try:
            async with asyncio.timeout(JOIN_WAIT_S):
                await self.ready.wait()
                await self._listen_to(self._layer, topic)
        except TimeoutError:
            if not self._is_away:
                # Nobody else waits for what does not come, until we hear our own ticks again.
                self._is_away = True
                logger.warning("room not heard across processes yet", extra={"waited_s": JOIN_WAIT_S})
        except Exception as error:  # whatever a layer's driver raises
            self._away(error)
        finally:
            self._preparing[topic] -= 1
            if not self._preparing[topic]:
                del self._preparing[topic]

    async def _listen_to(self, layer: BaseChannelLayer, topic: str) -> None:
        """Be in the room's group, and return when our own voice comes back from there."""
        heard = self._probes.get(topic)
        if heard is None:
            heard = self._probes[topic] = asyncio.Event()
            try:
                await layer.group_add(room_group(topic), self._channel)
                self._groups.add(topic)
                await layer.group_send(room_group(topic), {"type": PROBE, "process": self._process, "topic": topic})
                await heard.wait()
            finally:
                heard.set()
                self._probes.pop(topic, None)
        else:
            await heard.wait()

    def enter(self, topic: str, outlet: Outlet, serializer: Serializer) -> None:
        """The socket is in the room from now on."""
        room = self._rooms.get(topic)
        if room is None:
            room = self._rooms[topic] = Room(topic, self.drop)
        room.enter(outlet, serializer)
        topics = self._topics.get(outlet)
        if topics is None:
            topics = self._topics[outlet] = {}
        topics[topic] = None

    def leave(self, topic: str, outlet: Outlet) -> None:
        """The socket is no longer in the room, nor present there."""
        if topic not in (topics := self._topics.get(outlet, {})):
            return
        del topics[topic]
        if not topics:
            del self._topics[outlet]
        room = self._rooms[topic]
        room.leave(outlet)
        # Others may have left while it heard the last words, and may have been the last.
        if not room and self._rooms.get(topic) is room:
            del self._rooms[topic]
            self.counters.messages += room.messages
            self.counters.bytes += room.bytes
        self.untrack(topic, outlet)

    def drop(self, outlet: Outlet) -> None:
        """The socket is gone."""
        for topic in list(self._topics.get(outlet, ())):
            self.leave(topic, outlet)

    @property
    def topics(self) -> dict[str, int]:
        """The rooms of this process, and how many sockets are in each."""
        return {topic: len(room) for topic, room in self._rooms.items()}

    @property
    def handed_out(self) -> tuple[int, int]:
        """Messages and bytes that went to sockets of this process."""
        rooms = self._rooms.values()
        messages = self.counters.messages + sum(room.messages for room in rooms)
        return messages, self.counters.bytes + sum(room.bytes for room in rooms)

    # What is said

    def broadcast(
        self, topic: str, broadcast: Broadcast, *, leave_out: Outlet | None = None, before_reply: bool = False
    ) -> None:
        """Say something in a room, to everybody in every process, but not to ``leave_out``.

        What one sender says arrives in its order. Elsewhere it arrives if the layer can be reached. ``before_reply``:
        here it is not to wait, for a reply follows that comes after it.
        """
        self.counters.broadcasts += 1
        self.traffic.events.add(1, time.time())
        self._hand_on(topic, broadcast, leave_out)
        if before_reply and (room := self._rooms.get(topic)) is not None:
            room.flush()
        if self._voice is not None:
            size = len(broadcast.text if isinstance(broadcast, Verbatim) else broadcast.data)
            self._voice.to_group(room_group(topic), _said(self._process, topic, broadcast), size)

    def _hand_on(self, topic: str, broadcast: Broadcast, leave_out: Outlet | None = None) -> None:
        if (room := self._rooms.get(topic)) is not None:
            self.traffic.events.add(room.broadcast(broadcast, leave_out), time.time())

    # Who is present

    def track(self, topic: str, outlet: Outlet, key: str, payload: Mapping[str, Any]) -> None:
        """The socket shows this in the room; everybody in it is told, unless it does so already."""
        self._changed(self.presences.track(topic, outlet, key, payload, time.time()))

    def untrack(self, topic: str, outlet: Outlet) -> None:
        """The socket shows nothing any more."""
        self._changed(self.presences.untrack(topic, outlet))

    def presence_state(self, topic: str) -> Verbatim:
        """The payload that tells who is present."""
        self.traffic.presence.add(1, time.time())
        return Verbatim(self.presences.state(topic))

    def _changed(self, diff: Diff | None) -> None:
        if diff is None:
            return
        self._show(diff)
        if self._presence_voice is not None:
            message = {
                "type": CHANGED,
                "process": self._process,
                "number": self.presences.number,
                "topic": diff.topic,
                "joins": [list(meta) for meta in diff.joins],
                "leaves": [meta.ref for meta in diff.leaves],
            }
            self._presence_voice.to_group(ROOMS_GROUP, message, sum(len(meta.text) for meta in diff.joins))

    def _show(self, diff: Diff) -> None:
        self.counters.presence_changes += 1
        if (room := self._rooms.get(diff.topic)) is not None:
            self.traffic.presence.add(room.push(PRESENCE_DIFF, diff.payload()), time.time())

    # The other processes

    async def run(self) -> None:
        """Hear and tell the other processes, until cancelled; a layer that is away is waited for."""
        if self._layer is None or self._voice is None or self._presence_voice is None:
            return
        parts = (self._listen(self._layer), self._tick(self._layer), self._voice.run(), self._presence_voice.run())
        tasks = [asyncio.create_task(part, name="rooms") for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._say_goodbye(self._layer)

    async def _say_goodbye(self, layer: BaseChannelLayer) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await layer.group_send(ROOMS_GROUP, {"type": GONE, "process": self._process})
        except Exception as error:  # the others find out by themselves
            logger.debug("no goodbye", extra={"error": error})

    async def _listen(self, layer: BaseChannelLayer) -> None:
        while not self._channel:
            stop_if_cancelled()
            try:
                channel = await layer.new_channel()
                await layer.group_add(ROOMS_GROUP, channel)
                await layer.group_send(ROOMS_GROUP, {"type": HELLO, "process": self._process})
                self._channel = channel
            except Exception as error:  # whatever a layer's driver raises
                self._away(error)
                await asyncio.sleep(RETRY_S)
        while True:
            stop_if_cancelled()
            try:
                message = await layer.receive(self._channel)
            except Exception as error:  # the same; the channel remains ours
                self._away(error)
                await asyncio.sleep(RETRY_S)
            else:
                for part in unpacked(message):
                    self._take(part)

    async def _tick(self, layer: BaseChannelLayer) -> None:
        while True:
            stop_if_cancelled()
            self._say_where_we_are()
            self._forget_the_silent()
            try:
                await self._tend_groups(layer)
            except Exception as error:  # whatever a layer's driver raises
                self._away(error)
            await asyncio.sleep(TICK_S)

    def _say_where_we_are(self) -> None:
        if self._channel and self._presence_voice is not None:
            number = self.presences.number
            tick = {"type": TICK, "process": self._process, "channel": self._channel, "number": number}
            self._presence_voice.to_group(ROOMS_GROUP, tick)

    async def _tend_groups(self, layer: BaseChannelLayer) -> None:
        """Enter the groups of rooms that are not heard yet, and leave those of rooms that are empty."""
        if not self._channel:
            return
        for topic in [topic for topic in self._rooms if topic not in self._groups]:
            await layer.group_add(room_group(topic), self._channel)
            self._groups.add(topic)
        for topic in [topic for topic in self._groups if topic not in self._rooms]:
            if topic not in self._rooms and topic not in self._preparing:
                self._groups.discard(topic)
                await layer.group_discard(room_group(topic), self._channel)

    def _forget_the_silent(self) -> None:
        now = time.monotonic()
        if now - self._heard_myself > LEASE_S / 2:
            return
        for process, heard_at in list(self._heard.items()):
            if now - heard_at > LEASE_S:
                self._forget(process)

    def _forget(self, process: str) -> None:
        self._heard.pop(process, None)
        self._pulled.pop(process, None)
        self._pages.pop(process, None)
        self._behind.discard(process)
        diffs = self.presences.forget(process)
        if diffs:
            logger.info("presences of a process ended", extra={"peer": process, "topics": len(diffs)})
        for diff in diffs:
            self._show(diff)

    def _away(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("rooms are cut off from other processes", extra={"error": error})

    # What the others say

    def _take(self, message: dict[str, Any]) -> None:
        try:
            process = message["process"]
            match message["type"]:
                case "room.said" if process != self._process:
                    self.counters.from_elsewhere += 1
                    self._hand_on(message["topic"], _broadcast(message))
                case "room.probe" if process == self._process:
                    if (heard := self._probes.get(message["topic"])) is not None:
                        heard.set()
                case "rooms.tick" if process == self._process:
                    self._hear_myself()
                case "rooms.tick":
                    self._hear(process)
                    if self.presences.is_level(process, message["number"]):
                        self._behind.discard(process)
                    else:
                        self._behind.add(process)
                        self._pull(process, message["channel"])
                case "rooms.hello" if process == self._process:
                    asyncio.get_running_loop().call_later(ANSWERS_WITHIN_S, self._answered)
                case "rooms.hello":
                    self._say_where_we_are()
                case "rooms.changed" if process != self._process:
                    self._hear(process)
                    joins = tuple(_meta(fields) for fields in message["joins"])
                    leaves = tuple(Meta("", ref, b"") for ref in message["leaves"])
                    diff = self.presences.follow(process, message["number"], Diff(message["topic"], joins, leaves))
                    if diff is not None:
                        self._show(diff)
                    elif not self.presences.is_level(process, message["number"]):
                        self._behind.add(process)  # its next tick says where to ask
                case "rooms.pull" if process != self._process:
                    self._tell_state(message["reply_to"])
                case "rooms.state" if process != self._process:
                    self._take_page(process, message)
                case "rooms.gone" if process != self._process:
                    self._forget(process)
                case _:
                    pass  # our own voice, or somebody else's
        except Exception as error:  # whatever another program sends into the group
            logger.error("unreadable message of a room", extra={"error": error})

    def _answered(self) -> None:
        """Whoever is there has told how far it is; the presences of some may still be on their way."""
        self._has_been_answered = True
        if not self._behind:
            self.ready.set()

    def _hear(self, process: str) -> None:
        self._heard[process] = time.monotonic()

    def _hear_myself(self) -> None:
        now = time.monotonic()
        if now - self._heard_myself > LEASE_S / 2:
            # We were deaf: whoever was alive then may still be.
            self._heard = dict.fromkeys(self._heard, now)
        self._heard_myself = now
        if self._is_away:
            self._is_away = False
            logger.info("rooms hear other processes again")

    def _pull(self, process: str, channel: str) -> None:
        now = time.monotonic()
        if now - self._pulled.get(process, -TICK_S) < TICK_S / 2:
            return  # asked just now
        self._pulled[process] = now
        if self._presence_voice is not None:
            question = {"type": PULL, "process": self._process, "reply_to": self._channel}
            self._presence_voice.to_channel(channel, question)

    def _tell_state(self, channel: str) -> None:
        if self._presence_voice is None:
            return
        metas = [(topic, *meta) for topic, metas in self.presences.own().items() for meta in metas]
        pages = [metas[start : start + STATE_METAS] for start in range(0, len(metas), STATE_METAS)] or [[]]
        for index, page in enumerate(pages):
            message = {
                "type": STATE,
                "process": self._process,
                "number": self.presences.number,
                "first": index == 0,
                "last": index == len(pages) - 1,
                "metas": [list(meta) for meta in page],
            }
            self._presence_voice.to_channel(channel, message, sum(len(meta[3]) for meta in page))

    def _take_page(self, process: str, message: dict[str, Any]) -> None:
        self._hear(process)
        number = message["number"]
        if message["first"]:
            self._pages[process] = number, {}
        known, topics = self._pages.get(process, (None, {}))
        if known != number:
            return  # a page is missing: the next tick asks again
        for topic, *fields in message["metas"]:
            topics.setdefault(topic, []).append(_meta(fields))
        if message["last"]:
            del self._pages[process]
            self._behind.discard(process)
            for diff in self.presences.replace(process, number, topics):
                self._show(diff)
            if self._has_been_answered and not self._behind:
                self.ready.set()


def _said(process: str, topic: str, broadcast: Broadcast) -> dict[str, Any]:
    """A broadcast for the channel layer; `_broadcast` is the reverse."""
    if isinstance(broadcast, Verbatim):
        return {"type": SAID, "process": process, "topic": topic, "text": broadcast.text}
    event, data, is_json = broadcast.event, broadcast.data, broadcast.is_json
    return {"type": SAID, "process": process, "topic": topic, "event": event, "data": data, "is_json": is_json}


def _broadcast(message: Mapping[str, Any]) -> Broadcast:
    if "text" in message:
        return Verbatim(message["text"])
    return UserBroadcast(message["event"], message["data"], message["is_json"])


def _meta(fields: Iterable[Any]) -> Meta:
    key, ref, text = fields
    if not (isinstance(key, str) and isinstance(ref, str) and isinstance(text, bytes)):
        raise TypeError("a field is of the wrong type")
    return Meta(key, ref, text)
