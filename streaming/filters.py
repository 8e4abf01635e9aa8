"""Who is concerned by a change: the topics it belongs to, and the index that finds those with subscribers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import regex

from replication.changes import EVENTS, Relation
from replication.configuration import BROADCAST_EVERYTHING, Configuration
from replication.pgoutput import Text
from streaming.payloads import LegacyRelation, legacy_relation
from streaming.topics import column_heads

LONGEST_VALUE = 100
"""Values of so many characters as a reader counts them (grapheme clusters), or more, have no column topic."""

_GRAPHEME = regex.compile(r"\X")


def has_column_topic(text: str) -> bool:
    """Whether a value is short enough for a column topic."""
    if len(text) < LONGEST_VALUE:
        return True
    return sum(1 for _ in _GRAPHEME.finditer(text, concurrent=False)) < LONGEST_VALUE


class Plan:
    """For one relation and event, what there is to look at: wide topics and filtered columns, in publish order.

    ``shared`` is what the payloads of the relation have in common. ``is_secured``: not everybody may hear of it.
    """

    __slots__ = ("columns", "event", "is_secured", "shared", "topics", "watched")

    def __init__(
        self,
        event: str,
        shared: LegacyRelation,
        topics: Sequence[str],
        columns: Sequence[tuple[int, str]],
        *,
        is_secured: bool = False,
    ) -> None:
        self.event = event
        self.is_secured = is_secured
        self.shared = shared
        self.topics = topics
        self.columns = columns
        self.watched = bool(topics or columns)


class TopicIndex:
    """The topics that somebody has joined, and for each relation and event the plan that finds them.

    Topics are matched by equality of strings and never parsed: of a change in table T of schema S they are, in this
    order, ``realtime:S``, ``realtime:*``, ``realtime:S:T`` and for each column C with value V
    ``realtime:S:T:C=eq.V``, columns by name. A column is looked at only if some joined topic begins with its
    ``realtime:S:T:C=eq.``, so filters that cannot match cost nothing.

    ``configuration`` says which of these topics are broadcast at all. That is decided in the plans: a change costs the
    same with and without it.
    """

    def __init__(self, configuration: Configuration = BROADCAST_EVERYTHING) -> None:
        self._configuration = configuration
        self._topics: set[str] = set()
        self._heads: Counter[str] = Counter()
        self.plans: dict[Relation, dict[int, Plan]] = {}
        """The plans that are made already, by the first byte of a change's data; `plans_of` makes the others."""

    def add(self, topic: str) -> None:
        """Somebody has joined ``topic``, which nobody had joined before."""
        self._topics.add(topic)
        self._heads.update(column_heads(topic))
        self.plans.clear()

    def discard(self, topic: str) -> None:
        """The last one has left ``topic``."""
        self._topics.discard(topic)
        heads = column_heads(topic)
        self._heads.subtract(heads)
        for head in heads:
            if self._heads[head] <= 0:
                del self._heads[head]
        self.plans.clear()

    def plans_of(self, relation: Relation) -> dict[int, Plan]:
        """The plans for all events of ``relation``, by the first byte of a change's data; empty if none is watched."""
        plans = self.plans.get(relation)
        if plans is None:
            plans = {kind: self.plan(relation, event) for kind, event in EVENTS.items()}
            if not any(plan.watched for plan in plans.values()):
                plans = {}
            self.plans[relation] = plans
        return plans

    def plan(self, relation: Relation, event: str = "INSERT") -> Plan:
        """What to look at for changes of ``relation`` by ``event``."""
        table = f"realtime:{relation.schema}:{relation.name}"
        levels = self._configuration.levels(event, relation)
        wide = [
            (f"realtime:{relation.schema}", levels.schema),
            ("realtime:*", levels.everything),
            (table, levels.table),
        ]
        columns = [
            (index, f"{table}:{column.name}")
            for index, column in sorted(enumerate(relation.columns), key=lambda item: item[1].name.encode())
            if event != "TRUNCATE" and levels.has_column(column.name)
        ]
        return Plan(
            event,
            legacy_relation(relation),
            [topic for topic, is_broadcast in wide if is_broadcast and topic in self._topics],
            [(index, f"{head}=eq.") for index, head in columns if head in self._heads],
            is_secured=relation.is_secured,
        )


def topics_of_row(plan: Plan, texts: Sequence[Text], joined: Collection[str]) -> list[str]:
    """The joined column topics of a row; ``texts`` are its values as the payload shows them."""
    topics = []
    for index, head in plan.columns:
        text = texts[index]
        if isinstance(text, str) and (topic := head + text) in joined and has_column_topic(text):
            topics.append(topic)
    return topics


def topics_of_plain_row(plan: Plan, values: Sequence[bytes], joined: Collection[str]) -> list[str]:
    """The same for values in UTF-8, behind something else (`LegacyRelation.plain_payload`)."""
    topics = []
    for index, head in plan.columns:
        text = values[index + 1].decode()
        if (topic := head + text) in joined and has_column_topic(text):
            topics.append(topic)
    return topics


def topics_of_plain_rows(plan: Plan, values: Sequence[bytes], joined: Collection[str]) -> list[tuple[int, int, str]]:
    """The same for many rows, one behind the other: which row, the number of the column in the plan, and the topic."""
    found = []
    for number, (index, head) in enumerate(plan.columns):
        for row, value in enumerate(values[index + 1 :: plan.shared.width]):
            text = value.decode()
            if (topic := head + text) in joined and has_column_topic(text):
                found.append((row, number, topic))
    found.sort()
    return found
