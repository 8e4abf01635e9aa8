"""Channels whose filters only PostgreSQL can judge: what waits, for whom, and for how long."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from replication.changes import Change, Chunk
from replication.lsn import Position
from replication.publisher import Tick
from streaming import asking
from streaming.bindings import parse_binding
from streaming.catalogue import Catalogue
from streaming.frames import Parcel
from streaming.hub import Hub
from streaming.knowledge import Knowledge
from streaming.phoenix import V2
from streaming.subscriptions import Subscription
from tests.servers import free_port
from tests.streaming.test_binding_index import question, table

TABLE = table()
EPOCH = "1-1-1-cafe"


class Client:
    """A socket that keeps what it is given, and its owner."""

    def __init__(self, hub: Hub) -> None:
        self.queued_bytes = 0
        self.heard: list[tuple[str, Any]] = []
        self.told: list[tuple[str, str | None]] = []
        self.moved = asyncio.Event()
        self._hub = hub
        hub.admit(self, self)

    def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
        """Keep it: topic and id of each change."""
        messages = [orjson.loads(message) for message in parcel.messages]
        self.heard += [(message[2], message[4]["data"]["record"]["id"]) for message in messages]
        self.moved.set()

    def urgent(self, parcel: Parcel) -> None:
        """Not used by the hub."""
        raise AssertionError

    def close(self, code: int, reason: str) -> None:
        """Not expected."""
        raise AssertionError

    def check(self, now: float) -> None:
        """Not used here."""

    def fail_all(self) -> None:
        """Not expected."""
        raise AssertionError

    def tell_gap(self, topics: Collection[str]) -> None:
        """Note it, and leave, as a session does."""
        for topic in topics:
            self.told.append((topic, None))
            self._hub.leave(self, topic)
        self.moved.set()

    def refuse_changes(self, topic: str, reason: str) -> None:
        """Note it."""
        self.told.append((topic, reason))
        self.moved.set()

    async def until(self, count: int) -> None:
        """Wait until so much has been heard or told."""
        async with asyncio.timeout(10):
            while len(self.heard) + len(self.told) < count:
                self.moved.clear()
                await self.moved.wait()

    def join(self, topic: str, filter: str) -> None:
        """Hear of the rows that a filter picks."""
        binding = parse_binding({"event": "*", "schema": "public", "table": "t", "filter": filter})
        self._hub.join(self, Subscription(topic, (binding,)), V2)


def away() -> Catalogue:
    """One whose database is not there."""
    return Catalogue(f"host=127.0.0.1 port={free_port()} connect_timeout=1", Knowledge(), publications=["p"])


def row(number: int, word: str) -> Chunk:
    """A transaction that inserts one row."""
    fields = [str(number).encode(), None, word.encode(), None]
    data = b"".join(b"n" if text is None else b"t" + struct.pack("!I", len(text)) + text for text in fields)
    change = Change(number, 0, TABLE, b"I" + struct.pack("!IcH", 1, b"N", 4) + data)
    return Chunk(number, datetime(2024, 1, 1, tzinfo=UTC), 1, [change], is_last=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(asking, "RETRY_S", 0.02)
    hub = Hub(catalogue=away())
    beginning = Position(0, 0, 0)
    hub.settle(Tick("r", EPOCH, 0.0, beginning, beginning, 100))
    return hub


def know(hub: Hub, **words: bool) -> None:
    """PostgreSQL has said whether these are below m."""
    assert hub.catalogue is not None
    hub.catalogue.knowledge.remember({question("<", word, "m"): answer for word, answer in words.items()})


async def test_only_the_channel_that_asks_waits_and_it_waits_in_order(hub: Hub) -> None:
    client = Client(hub)
    client.join("asks", "word=lt.m")
    client.join("knows", "id=gt.0")
    know(hub, b=True)
    hub.deliver([row(1, "a"), row(2, "b"), row(3, "z")])
    assert client.heard == [("knows", 1), ("knows", 2), ("knows", 3)]
    assert hub.settled_position(client) is None  # some of it is still due
    know(hub, a=True, z=False)
    await client.until(5)
    assert client.heard[3:] == [("asks", 1), ("asks", 2)]
    assert hub.settled_position(client) is not None


async def test_what_is_known_already_does_not_wait(hub: Hub) -> None:
    client = Client(hub)
    client.join("asks", "word=lt.m")
    know(hub, a=True)
    hub.deliver([row(1, "a")])
    assert client.heard == [("asks", 1)]


async def test_who_joins_meanwhile_hears_only_what_comes_then_and_who_left_hears_nothing(hub: Hub) -> None:
    early, late, gone = Client(hub), Client(hub), Client(hub)
    early.join("asks", "word=lt.m")
    gone.join("asks", "word=lt.m")
    hub.deliver([row(1, "a")])
    late.join("asks", "word=lt.m")
    hub.leave(gone, "asks")
    gone.join("asks", "word=lt.m")
    hub.deliver([row(2, "b")])
    know(hub, a=True, b=True)
    await early.until(2)
    assert early.heard == [("asks", 1), ("asks", 2)]
    assert late.heard == gone.heard == [("asks", 2)]


async def test_a_channel_that_waits_too_long_is_told_and_fails(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WAIT_S", 0.1)
    client = Client(hub)
    client.join("asks", "word=lt.m")
    client.join("knows", "id=gt.0")
    hub.deliver([row(1, "a")])
    await client.until(2)
    assert client.told == [("asks", None)]
    hub.deliver([row(2, "a")])
    assert client.heard == [("knows", 1), ("knows", 2)]


async def test_so_does_one_of_which_too_much_waits(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WAIT_BYTES", 1000)
    client = Client(hub)
    client.join("asks", "word=lt.m")
    hub.deliver([row(number, "a" * 100) for number in range(1, 10)])
    await client.until(1)
    assert client.told == [("asks", None)]


async def test_without_a_database_such_a_filter_is_refused() -> None:
    hub = Hub()
    client = Client(hub)
    client.join("asks", "word=lt.m")
    hub.deliver([row(1, "a")])
    await client.until(1)
    [(topic, reason)] = client.told
    assert topic == "asks"
    assert reason is not None
    assert reason.endswith("Exception: ERROR there is no database to ask")
