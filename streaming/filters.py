"""Who is concerned by a change: the topics it belongs to, and the index that finds those with subscribers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import regex

from replication.changes import Relation
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
    """For one relation, what there is to look at: its wide topics and its filtered columns, in publish order.

    ``shared`` is what its payloads have in common.
    """

    __slots__ = ("columns", "shared", "topics", "watched")

    def __init__(self, shared: LegacyRelation, topics: Sequence[str], columns: Sequence[tuple[int, str]]) -> None:
        self.shared = shared
        self.topics = topics
        self.columns = columns
        self.watched = bool(topics or columns)


class TopicIndex:
    """The topics that somebody has joined, and for each relation the plan that finds them.

    Topics are matched by equality of strings and never parsed: of a change in table T of schema S they are, in this
    order, ``realtime:S``, ``realtime:*``, ``realtime:S:T`` and for each column C with value V
    ``realtime:S:T:C=eq.V``, columns by name. A column is looked at only if some joined topic begins with its
    ``realtime:S:T:C=eq.``, so filters that cannot match cost nothing.
    """

    def __init__(self) -> None:
        self._topics: set[str] = set()
        self._heads: Counter[str] = Counter()
        self.plans: dict[Relation, Plan] = {}
        """The plans that are made already; `plan` makes the others."""

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

    def plan(self, relation: Relation) -> Plan:
        """What to look at for changes of ``relation``."""
        plan = self.plans.get(relation)
        if plan is None:
            plan = self.plans[relation] = self._make_plan(relation)
        return plan

    def _make_plan(self, relation: Relation) -> Plan:
        wide = f"realtime:{relation.schema}", "realtime:*", f"realtime:{relation.schema}:{relation.name}"
        columns = [
            (index, f"{wide[2]}:{column.name}")
            for index, column in sorted(enumerate(relation.columns), key=lambda item: item[1].name.encode())
        ]
        return Plan(
            legacy_relation(relation),
            [topic for topic in wide if topic in self._topics],
            [(index, f"{head}=eq.") for index, head in columns if head in self._heads],
        )


def topics_of_row(plan: Plan, texts: Sequence[Text], joined: Collection[str]) -> list[str]:
    """The joined column topics of a row; ``texts`` are its values as the payload shows them."""
    topics = []
    for index, head in plan.columns:
        text = texts[index]
        if isinstance(text, str) and (topic := head + text) in joined and has_column_topic(text):
            topics.append(topic)
    return topics
