"""Who hears the same and reads the same bytes, and what waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from streaming.binding_index import Alternatives
from streaming.bindings import Binding, Shape, ids_of
from streaming.phoenix import POSTGRES_CHANGES, Serializer
from streaming.predicates import Question
from streaming.subscriptions import Subscription
from streaming.transport import Outlet

AudienceKey: TypeAlias = tuple[Subscription, str]
"""A subscription and the version of the protocol that it is written in."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """A message that waits for its turn: PostgreSQL has yet to say who wants its change, or that of one before it.

    ``message`` is there if it is only the turn that it waits for. Else ``wanted`` bindings want the change, and
    ``asked`` ones if their alternatives hold; ``data`` has it in their shapes. ``readers`` are those who were in the
    audience then, each with the number of its join.
    """

    readers: Mapping[Outlet, int]
    message: bytes
    wanted: Sequence[Binding] = ()
    asked: Sequence[tuple[Binding, Alternatives]] = ()
    data: Mapping[Shape, bytes] | None = None

    @property
    def size(self) -> int:
        """Bytes in memory, roughly."""
        return 500 + len(self.message) + sum(map(len, (self.data or {}).values()))

    @property
    def questions(self) -> list[Question]:
        """What PostgreSQL is to be asked."""
        return [
            asked.question for _, alternatives in self.asked for alternative in alternatives for asked in alternative
        ]


class Released(NamedTuple):
    """Messages that are due to these of the audience; and why it can hear nothing any more, if so."""

    audience: Audience
    readers: Mapping[Outlet, int]
    messages: list[bytes]
    failure: str | None = None


class Audience:
    """Those whose channels hear the same and read the same bytes: equal subscriptions, one serializer.

    ``outlets`` has for each socket the number of its join. ``waiting`` is what waits for PostgreSQL's word, in order.
    """

    __slots__ = (
        "_around",
        "_envelopes",
        "_ids",
        "_readers",
        "messages",
        "order",
        "outlets",
        "positions",
        "sent",
        "serializer",
        "subscription",
        "topic",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, subscription: Subscription, serializer: Serializer) -> None:
        self.subscription, self.serializer = subscription, serializer
        self.topic, self.positions = subscription.topic, subscription.positions
        self.outlets: dict[Outlet, int] = {}
        self.messages: list[bytes] = []
        self.order: list[int] = []
        """Of the envelope at hand: the messages, and where each stands among those of all audiences."""
        self.sent = 0
        """How many messages have been handed out to its sockets, each counted once, since it is there."""
        self.waiting: deque[Deferred] = deque()
        self.waiting_bytes = 0
        self._readers: dict[Outlet, int] | None = None
        self._envelopes: dict[str, tuple[bytes, bytes]] = {}
        self._around: dict[Binding, tuple[bytes, bytes]] = {}
        bindings = subscription.bindings or ()
        self._ids = {binding: b"%d" % number for binding, number in zip(bindings, ids_of(bindings), strict=True)}

    def add(self, outlet: Outlet, join_number: int) -> None:
        """A socket joins it."""
        self.outlets[outlet] = join_number
        self._readers = None

    def remove(self, outlet: Outlet) -> None:
        """A socket is no longer in it."""
        self.outlets.pop(outlet, None)
        self._readers = None

    @property
    def readers(self) -> Mapping[Outlet, int]:
        """The sockets of this moment: what comes later does not change it."""
        if self._readers is None:
            self._readers = dict(self.outlets)
        return self._readers

    def defer(self, item: Deferred) -> None:
        """Put a message behind those that wait."""
        self.waiting.append(item)
        self.waiting_bytes += item.size

    def take(self) -> Deferred:
        """The first of those that wait."""
        item = self.waiting.popleft()
        self.waiting_bytes -= item.size
        return item

    def encode_change(self, binding: Binding, data: bytes) -> bytes:
        """The message that brings a change to one binding of the channel."""
        around = self._around.get(binding)
        if around is None:
            around = self._around[binding] = self.around_change([binding])
        return around[0] + data + around[1]

    def around_change(self, bindings: Iterable[Binding]) -> tuple[bytes, bytes]:
        """What stands before and behind the data of a change that these bindings want in one shape."""
        head, tail = self.serializer.push(self.topic, POSTGRES_CHANGES)
        ids = b",".join([self._ids[binding] for binding in bindings])
        return head + b'{"ids":[' + ids + b'],"data":', b"}" + tail

    def encode_changes(self, bindings: Iterable[Binding], data: Mapping[Shape, bytes]) -> list[bytes]:
        """The messages that bring one change to some bindings of the channel: one for each shape they want it in."""
        shapes: dict[Shape, list[bytes]] = {}
        for binding in bindings:
            shapes.setdefault(binding.shape, []).append(self._ids[binding])
        return [
            self.encode(POSTGRES_CHANGES, b'{"ids":[%b],"data":%b}' % (b",".join(ids), data[shape]))
            for shape, ids in shapes.items()
        ]

    @property
    def key(self) -> AudienceKey:
        """What it is found by."""
        return self.subscription, self.serializer.vsn

    def encode(self, event: str, payload: bytes) -> bytes:
        """The message text that pushes an already encoded payload."""
        head, tail = self.around(event)
        return head + payload + tail

    def around(self, event: str) -> tuple[bytes, bytes]:
        """What stands before and behind the payload of a push."""
        around = self._envelopes.get(event)
        if around is None:
            around = self._envelopes[event] = self.serializer.push(self.topic, event)
        return around
