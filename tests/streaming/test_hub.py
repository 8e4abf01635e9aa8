"""The hub: what each socket gets, in which order, and that equal sockets get the same bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from replication.assembler import Assembler
from replication.changes import Change, Chunk, Envelope, Relation
from replication.lsn import BEGINNING, Position
from replication.publisher import Tick
from streaming.frames import Parcel
from streaming.hub import PARCEL_BYTES, SHUTDOWN, Hub
from streaming.phoenix import V1, V2
from streaming.subscriptions import Subscription
from tests.golden import record

_EPOCH, _OTHER_EPOCH = "1-1-1-cafe", "1-1-2-cafe"


class Socket:
    """A way out that keeps what it is given; and the one who owns it."""

    def __init__(self) -> None:
        self.queued_bytes = 0
        self.parcels: list[Parcel] = []
        self.closed: tuple[int, str] | None = None
        self.checked_at: list[float] = []
        self.failed = 0

    def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
        """Keep it."""
        self.parcels.append(parcel)

    def urgent(self, parcel: Parcel) -> None:
        """Not used by the hub."""
        raise AssertionError

    def close(self, code: int, reason: str) -> None:
        """Note it."""
        self.closed = code, reason

    def check(self, now: float) -> None:
        """Note it."""
        self.checked_at.append(now)

    def fail_all(self) -> None:
        """Note it."""
        self.failed += 1

    def tell_gap(self, topics: Any) -> None:
        """Note it."""
        self.failed += 1

    def refuse_changes(self, topic: str, reason: str) -> None:
        """Not used here."""
        raise AssertionError

    @property
    def messages(self) -> list[Any]:
        """What a client would read."""
        return [orjson.loads(message) for parcel in self.parcels for message in parcel.messages]

    @property
    def read(self) -> list[tuple[str, str]]:
        """Topic and event of each message."""
        return [(message["topic"], message["event"]) for message in self.messages]


def _envelope(*names: str, epoch: str = _EPOCH) -> Envelope:
    """Recorded transactions as one link of the chain."""
    assembler, chunks = Assembler({20: "int8", 23: "int4", 25: "text"}), []
    for name in names:
        for lsn, data in record.load(18, name):
            if (chunk := assembler.feed(lsn, data)) is not None and chunk.changes:
                chunks.append(chunk)
    return Envelope(epoch, BEGINNING, chunks[-1].last, chunks)


def _tick(published: Position = BEGINNING, epoch: str = _EPOCH) -> Tick:
    return Tick("instance", epoch, 0.0, BEGINNING, published, 0)


@pytest.fixture
def hub() -> Hub:
    return Hub()


def _joined(hub: Hub, *topics: str, serializer: Any = V1) -> Socket:
    socket = Socket()
    hub.admit(socket, socket)
    for topic in topics:
        hub.join(socket, Subscription(topic), serializer)
    return socket


_WIDE = ("realtime:public", "realtime:*", "realtime:public:users")


# What a socket gets


def test_a_change_reaches_those_who_joined_its_topics_and_nobody_else(hub: Hub) -> None:
    sockets = {
        topic: _joined(hub, topic) for topic in (*_WIDE, "realtime:public:users:id=eq.1", "realtime:public:todos")
    }
    hub.receive(_envelope("insert"))
    assert {topic: socket.read for topic, socket in sockets.items()} == {
        topic: [] if topic == "realtime:public:todos" else [(topic, "INSERT")] for topic in sockets
    }


def test_a_message_is_that_of_the_protocol_that_its_socket_speaks(hub: Hub) -> None:
    old, new = _joined(hub, "realtime:*"), _joined(hub, "realtime:*", serializer=V2)
    hub.receive(_envelope("insert"))
    (message,) = old.messages
    assert set(message) == {"topic", "event", "payload", "ref"}
    assert (message["topic"], message["event"], message["ref"]) == ("realtime:*", "INSERT", None)
    assert message["payload"]["record"] == {"id": "1", "name": "Bob"}
    assert new.messages == [[None, None, "realtime:*", "INSERT", message["payload"]]]


def test_a_socket_gets_a_change_once_for_each_of_its_topics_in_publish_order(hub: Hub) -> None:
    topics = [*_WIDE, "realtime:public:users:id=eq.1", "realtime:public:users:name=eq.a"]
    socket = _joined(hub, *reversed(topics))
    hub.receive(_envelope("several_changes_in_a_transaction"))
    # The insert of (1, a), its update to (1, b), and the delete, which tells of its key only.
    assert socket.read == [
        *((topic, "INSERT") for topic in topics),
        *((topic, "UPDATE") for topic in topics[:4]),
        *((topic, "DELETE") for topic in topics[:4]),
    ]


def test_changes_stay_in_commit_order_across_tables_and_topics(hub: Hub) -> None:
    socket = _joined(hub, "realtime:public:parted_high", "realtime:public:parted_low")
    hub.receive(_envelope("partitions"))
    assert socket.read == [
        ("realtime:public:parted_low", "INSERT"),
        ("realtime:public:parted_high", "INSERT"),
        ("realtime:public:parted_low", "DELETE"),
        ("realtime:public:parted_high", "INSERT"),
        ("realtime:public:parted_high", "DELETE"),
        ("realtime:public:parted_low", "TRUNCATE"),
        ("realtime:public:parted_high", "TRUNCATE"),
    ]


def test_order_holds_from_envelope_to_envelope(hub: Hub) -> None:
    socket = _joined(hub, *reversed(_WIDE))
    for name in ("insert", "update", "delete"):
        hub.receive(_envelope(name))
    assert socket.read == [(topic, event) for event in ("INSERT", "UPDATE", "DELETE") for topic in _WIDE]


def test_a_truncate_reaches_wide_topics_only(hub: Hub) -> None:
    socket = _joined(hub, "realtime:public", "realtime:public:parent", "realtime:public:parent:id=eq.1")
    hub.receive(_envelope("truncate_many"))
    assert socket.read == [
        ("realtime:public", "TRUNCATE"),
        ("realtime:public:parent", "TRUNCATE"),
        *[("realtime:public", "TRUNCATE")] * 3,
    ]


def test_one_envelope_is_one_write_to_a_socket(hub: Hub) -> None:
    one, several = _joined(hub, "realtime:*"), _joined(hub, *_WIDE)
    hub.receive(_envelope("several_changes_in_a_transaction", "partitions"))
    assert len(one.parcels) == len(several.parcels) == 1


def test_the_star_event_comes_before_the_typed_one_where_it_is_asked_for() -> None:
    hub = Hub(star_event=True)
    socket = _joined(hub, "realtime:public:users", "realtime:*")
    hub.receive(_envelope("insert"))
    assert socket.read == [
        ("realtime:*", "*"),
        ("realtime:*", "INSERT"),
        ("realtime:public:users", "*"),
        ("realtime:public:users", "INSERT"),
    ]
    assert socket.messages[0]["payload"] == socket.messages[1]["payload"]


# The same bytes for everybody


def test_equal_sockets_are_handed_the_same_bytes(hub: Hub) -> None:
    sockets = [_joined(hub, "realtime:public", "realtime:*") for _ in range(3)]
    other = _joined(hub, "realtime:*")
    hub.receive(_envelope("insert", "update"))
    parcels = {id(socket.parcels[0]) for socket in sockets}
    assert len(parcels) == 1
    assert len({id(socket.parcels[0].frames) for socket in sockets}) == 1
    # And the messages of one topic are the same objects for those who joined others as well.
    assert other.parcels[0].messages[0] is sockets[0].parcels[0].messages[1]


def test_a_change_is_rendered_once_however_many_read_it(hub: Hub) -> None:
    for _ in range(5):
        _joined(hub, *_WIDE)
        _joined(hub, *_WIDE, serializer=V2)
    hub.receive(_envelope("insert"))
    assert (hub.counters.changes, hub.counters.rendered, hub.counters.messages) == (1, 1, 30)


def test_what_nobody_watches_is_not_read(hub: Hub) -> None:
    socket = _joined(hub, "realtime:public:todos")
    hub.receive(_envelope("insert"))
    assert (hub.counters.changes, hub.counters.rendered) == (1, 0)
    assert socket.parcels == []


def test_a_large_envelope_comes_in_parcels(hub: Hub) -> None:
    socket, other = _joined(hub, "realtime:*"), _joined(hub, "realtime:*")
    (chunk,) = _envelope("insert").chunks
    count = 2000
    changes = [chunk.changes[0]._replace(lsn=lsn) for lsn in range(count)]
    large = Chunk(chunk.commit_lsn, chunk.committed_at, chunk.xid, changes, True)
    hub.receive(Envelope(_EPOCH, BEGINNING, large.last, [large]))
    assert len(socket.messages) == count
    assert len(socket.parcels) > 1
    assert all(0 < parcel.size <= PARCEL_BYTES for parcel in socket.parcels)
    assert [id(parcel) for parcel in socket.parcels] == [id(parcel) for parcel in other.parcels]


def test_a_message_larger_than_a_parcel_is_a_parcel_of_its_own(hub: Hub) -> None:
    socket = _joined(hub, "realtime:*")
    (chunk,) = _envelope("insert").chunks
    small = chunk.changes[0]
    value = b"x" * (2 * PARCEL_BYTES)
    head = small.data[: small.data.index(b"t\0\0\0\3Bob")]
    big = small._replace(data=head + b"t" + len(value).to_bytes(4, "big") + value)
    hub.receive(_changes(small, big, small))
    assert [len(parcel.messages) for parcel in socket.parcels] == [1, 1, 1]
    assert [len(message["payload"]["record"]["name"]) for message in socket.messages] == [3, len(value), 3]


def _changes(*changes: Change) -> Envelope:
    chunk = Chunk(10, datetime(2026, 1, 1, tzinfo=UTC), 1, [c._replace(lsn=lsn) for lsn, c in enumerate(changes)], True)
    return Envelope(_EPOCH, BEGINNING, chunk.last, [chunk])


# Those who come and go


def test_who_joins_twice_gets_a_change_once(hub: Hub) -> None:
    socket = _joined(hub, "realtime:*", "realtime:*")
    hub.receive(_envelope("insert"))
    assert socket.read == [("realtime:*", "INSERT")]


def test_who_has_left_gets_nothing_more_and_the_others_do(hub: Hub) -> None:
    leaving, staying = _joined(hub, "realtime:*", "realtime:public"), _joined(hub, "realtime:*")
    hub.leave(leaving, "realtime:*")
    hub.receive(_envelope("insert"))
    assert leaving.read == [("realtime:public", "INSERT")]
    assert staying.read == [("realtime:*", "INSERT")]


def test_who_is_gone_gets_nothing_more(hub: Hub) -> None:
    gone, staying = _joined(hub, *_WIDE), _joined(hub, "realtime:*")
    assert (hub.topic_count, hub.socket_count) == (3, 2)
    hub.drop(gone)
    hub.receive(_envelope("insert"))
    assert gone.parcels == []
    assert staying.read == [("realtime:*", "INSERT")]
    assert (hub.topic_count, hub.socket_count) == (1, 1)


def test_nothing_is_left_of_those_who_came_and_went(hub: Hub) -> None:
    for number in range(50):
        socket = _joined(hub, "realtime:*", f"realtime:public:users:id=eq.{number}", serializer=(V1, V2)[number % 2])
        if number % 3 == 0:
            hub.leave(socket, "realtime:*")
        hub.drop(socket)
        hub.drop(socket)
        hub.leave(socket, "realtime:*")
    assert (hub.topic_count, hub.socket_count) == (0, 0)
    hub.receive(_envelope("insert"))
    assert hub.counters.rendered == 0


def test_who_joins_between_two_envelopes_gets_the_second(hub: Hub) -> None:
    hub.receive(_envelope("insert"))
    socket = _joined(hub, "realtime:public:users:id=eq.1")
    hub.receive(_envelope("update"))
    assert socket.read == [("realtime:public:users:id=eq.1", "UPDATE")]


def test_a_socket_that_goes_while_it_is_written_to_disturbs_nobody(hub: Hub) -> None:
    class Leaving(Socket):
        def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
            super().write(parcel)
            hub.drop(self)

    sockets = [Leaving() for _ in range(3)]
    for socket in sockets:
        hub.admit(socket, socket)
        hub.join(socket, Subscription("realtime:*"), V1)
    staying = _joined(hub, "realtime:*")
    hub.receive(_envelope("insert"))
    hub.receive(_envelope("update"))
    assert [socket.read for socket in sockets] == [[("realtime:*", "INSERT")]] * 3
    assert staying.read == [("realtime:*", "INSERT"), ("realtime:*", "UPDATE")]


def test_a_socket_that_cannot_be_written_to_is_dropped_and_disturbs_nobody(hub: Hub) -> None:
    class Broken(Socket):
        tries = 0

        def write(self, parcel: Parcel, *, bounded: bool = True) -> None:
            self.tries += 1
            raise RuntimeError("no more")

    broken = Broken()
    hub.admit(broken, broken)
    hub.join(broken, Subscription("realtime:*"), V1)
    staying = _joined(hub, "realtime:*")
    for name in ("insert", "update"):
        hub.receive(_envelope(name))
    assert (broken.tries, hub.socket_count) == (1, 1)
    assert broken.closed is not None
    assert broken.closed[0] == 1011
    assert len(staying.messages) == 2


# Trouble


def test_a_change_that_cannot_be_read_is_left_out_and_the_others_are_not(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    socket, columns = _joined(hub, "realtime:*"), _joined(hub, "realtime:public:users:id=eq.1")
    (good,) = _envelope("insert").chunks[0].changes
    bad = [
        good._replace(data=good.data[:-1]),
        good._replace(data=good.data[:-1] + b"\xff"),
        good._replace(data=b"X"),
        good._replace(data=b"I"),
        good._replace(relation=Relation(1, "public", "users", "d", good.relation.columns[:1])),
    ]
    hub.receive(_changes(good, *bad, good))
    assert [message["payload"]["record"] for message in socket.messages] == [{"id": "1", "name": "Bob"}] * 2
    assert len(columns.messages) == 2
    assert hub.counters.unreadable == len(bad)
    assert [record_.message for record_ in caplog.records] == ["change left out"] * len(bad)


# The chain in one process


def test_who_joined_before_an_older_history_goes_on_has_missed_nothing(hub: Hub) -> None:
    early = _joined(hub, "realtime:*")
    hub.settle(_tick())
    assert early.failed == 0


def test_a_new_history_is_a_gap_for_everybody_who_joined_once(hub: Hub) -> None:
    hub.settle(_tick())
    sockets = [_joined(hub, "realtime:*"), _joined(hub)]
    hub.receive(_envelope("insert"))
    for _ in range(3):
        hub.settle(_tick(epoch=_OTHER_EPOCH))
    assert [socket.failed for socket in sockets] == [1, 0]


def test_a_new_history_that_begins_with_a_change_is_told_before_it(hub: Hub) -> None:
    socket = _joined(hub, "realtime:*")
    order: list[str] = []
    socket.tell_gap = lambda topics: order.append("gap")  # type: ignore[method-assign]
    socket.write = lambda parcel, **_: order.append("change")  # type: ignore[method-assign]
    hub.receive(_envelope("insert"))
    hub.receive(_envelope("update", epoch=_OTHER_EPOCH))
    assert order == ["change", "gap", "change"]


def test_what_was_received_last_is_remembered(hub: Hub) -> None:
    envelope = _envelope("insert")
    hub.receive(envelope)
    assert (hub.epoch, hub.have) == (envelope.epoch, envelope.last)


def test_at_the_end_every_topic_fails_and_every_socket_is_closed(hub: Hub) -> None:
    sockets = [_joined(hub, "realtime:*"), _joined(hub)]
    hub.close_all()
    assert [(socket.failed, socket.closed) for socket in sockets] == [(1, (SHUTDOWN, "shutdown"))] * 2


def test_every_socket_is_looked_after(hub: Hub) -> None:
    sockets = [_joined(hub, "realtime:*"), _joined(hub)]
    hub.check_outlets()
    assert all(len(socket.checked_at) == 1 for socket in sockets)
