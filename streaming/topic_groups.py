"""Changes for other consumers and workers of a Django project: ordinary messages in groups named after topics."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

import orjson
from channels.layers import BaseChannelLayer

from replication.changes import Change, Chunk, Envelope, Relation
from replication.configuration import BROADCAST_EVERYTHING, Configuration
from replication.errors import PgOutputError
from replication.groups import group_name
from replication.publisher import Publisher, Tick
from streaming.filters import has_column_topic
from streaming.payloads import legacy_commit_timestamp, legacy_relation

logger = logging.getLogger(__name__)

CHANGE_TYPE = "realtime.change"
"""The message type: a consumer's method ``realtime_change`` takes it."""


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """One entry of TOPIC_GROUPS: ``schema.table`` with ``*`` for any, and ``:column`` to ask for its column topics."""

    schema: str
    table: str
    column: str | None

    @classmethod
    def parse(cls, text: str) -> TopicPattern:
        """Read an entry; a table without a schema is one of ``public``."""
        name, _, column = text.partition(":")
        schema, dot, table = name.partition(".")
        return cls(schema, table, column or None) if dot else cls("public", schema, column or None)

    def matches(self, relation: Relation) -> bool:
        """Whether the table is meant."""
        return fnmatchcase(relation.schema, self.schema) and fnmatchcase(relation.name, self.table)


class TopicGroups:
    """A `Publisher` that also sends each change of the named tables into the groups of its topics.

    The message is ``{"type": "realtime.change", "topic": TOPIC, "payload": PAYLOAD}`` with the legacy payload. It is
    sent once; a layer that is away loses it, and the log says so. The chain itself is handed on first.
    ``configuration`` says which topics are broadcast at all.
    """

    def __init__(
        self,
        publisher: Publisher,
        layer: BaseChannelLayer,
        patterns: Sequence[str],
        configuration: Configuration = BROADCAST_EVERYTHING,
    ) -> None:
        self._publisher, self._layer = publisher, layer
        self._patterns = [TopicPattern.parse(text) for text in patterns]
        self._configuration = configuration
        self._topics_of = lru_cache(maxsize=4096)(self._find_topics)

    async def publish(self, envelope: Envelope) -> None:
        """Hand on the chain, then tell the groups."""
        await self._publisher.publish(envelope)
        try:
            for chunk in envelope.chunks:
                for change in chunk.changes:
                    await self._tell(chunk, change)
        except Exception as error:  # whatever a layer's driver raises
            logger.error("topic groups not told", extra={"position": envelope.last, "error": error})

    async def committed(self, commit_lsn: int) -> None:
        """Hand on the end of transactions."""
        await self._publisher.committed(commit_lsn)

    async def tick(self, tick: Tick) -> None:
        """Hand on the tick."""
        await self._publisher.tick(tick)

    async def _tell(self, chunk: Chunk, change: Change) -> None:
        relation = change.relation
        wide, columns = self._topics_of(relation, change.event)
        if not wide and not columns:
            return
        topics = list(wide)
        stamp, shared = legacy_commit_timestamp(chunk.committed_at), legacy_relation(relation)
        try:
            if (row := change.decode()) is None:
                payload = shared.truncate(stamp)
            else:
                payload, texts = shared.payload(row, stamp)
                topics += [
                    f"realtime:{relation.schema}:{relation.name}:{name}=eq.{text}"
                    for name, text in zip(shared.names, texts, strict=True)
                    if name in columns and isinstance(text, str) and has_column_topic(text)
                ]
        except (PgOutputError, ValueError) as error:
            logger.error("change left out", extra={"relation": relation, "error": error})
            return
        message = {"type": CHANGE_TYPE, "payload": orjson.loads(payload)}
        for topic in topics:
            await self._layer.group_send(group_name(topic), {**message, "topic": topic})

    def _find_topics(self, relation: Relation, event: str) -> tuple[list[str], frozenset[str]]:
        """The wide topics of a table's changes by this event, and the columns whose topics are asked for."""
        wanted = [pattern for pattern in self._patterns if pattern.matches(relation)]
        if not wanted:
            return [], frozenset()
        levels = self._configuration.levels(event, relation)
        wide = [
            (f"realtime:{relation.schema}", levels.schema),
            ("realtime:*", levels.everything),
            (f"realtime:{relation.schema}:{relation.name}", levels.table),
        ]
        asked = {pattern.column for pattern in wanted if pattern.column is not None}
        columns = frozenset(name for name in asked if levels.has_column(name))
        return [topic for topic, is_broadcast in wide if is_broadcast], columns
