"""What one channel of one socket hears of the changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replication.changes import Table

if TYPE_CHECKING:
    from streaming.bindings import Binding


@dataclass(frozen=True, slots=True)
class Subscription:
    """A channel's share of the changes. Equal subscriptions of one protocol version read the same bytes.

    A legacy channel (``bindings`` is `None`) hears the changes whose topic equals ``topic``, byte for byte; a current
    one those that its bindings ask for, and its topic is but a name. ``positions``: every payload carries its position.
    ``sees_secured``: the changes of tables with row security are not withheld.
    """

    topic: str
    bindings: tuple[Binding, ...] | None = None
    positions: bool = False
    sees_secured: bool = True

    def concerns(self, table: Table) -> bool:
        """Whether a change of this table can be heard here."""
        if self.bindings is not None:
            return any(binding.wants_table(*table) for binding in self.bindings)
        schema, name = table
        whole = f"realtime:{schema}:{name}"
        topics = (whole, f"realtime:{schema}", "realtime:*")
        return self.topic in topics or self.topic.startswith(whole + ":")


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of a join with ``resume``: ``replayed`` changes follow the reply, and then whatever is new.

    ``recovered``: the client asked to go on from a position, and nothing is missing since. ``position`` is the
    client's from now on, as it is told.
    """

    recovered: bool
    replayed: int
    position: str
