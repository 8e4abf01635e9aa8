"""From changes to the messages of those who hear them: each rendered once, and encoded once for equal channels."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from replication.changes import TRUNCATE, Change, Chunk, Relation
from replication.configuration import BROADCAST_EVERYTHING, Configuration
from replication.errors import PgOutputError
from replication.lsn import Position
from replication.pgoutput import decode_row, plain_rows
from streaming.audiences import Audience, AudienceKey, Deferred, Released
from streaming.binding_index import Alternatives, BindingIndex, BindingPlan
from streaming.bindings import Binding, Shape, rejected
from streaming.current_payloads import CurrentRelation, Images, current_commit_timestamp
from streaming.filters import Plan, TopicIndex, topics_of_plain_row, topics_of_plain_rows, topics_of_row
from streaming.knowledge import Answers, Failed, Knowledge
from streaming.payloads import legacy_commit_timestamp
from streaming.phoenix import Serializer
from streaming.predicates import Question
from streaming.subscriptions import Subscription
from streaming.transport import Outlet

logger = logging.getLogger(__name__)

ALL_EVENTS = "*"

MAX_RECORD_BYTES = 1 << 20
"""Of a change whose record and old record are larger, current channels get the short values only."""

_RUN, _BLOCK = 16, 128
"""So many changes of one table and event in a row are worth being taken together; and so many are at a time."""

_TRUNCATE_KIND, _INSERT = TRUNCATE[0], ord("I")

_MOST_RELATIONS = 4096


@dataclass(slots=True)
class MatchCounters:
    """What has been looked at and made."""

    changes: int = 0
    rendered: int = 0
    unreadable: int = 0
    tables: dict[Relation, int] = field(default_factory=lambda: defaultdict(int))
    """Those that were rendered, by table; whoever reads it may clear it."""


class Matcher:
    """The audiences there are, and the way from changes to their messages. Touches no socket.

    ``star_event`` adds the event ``*`` before each typed one, for clients from before realtime-js 1.0.7.
    ``configuration`` says which changes are broadcast at which level. ``knowledge`` is what PostgreSQL has said about
    filters; what is not in it has to be asked (`questions`, `release`). ``max_record_bytes`` is for current channels.
    """

    def __init__(
        self,
        *,
        star_event: bool = False,
        configuration: Configuration = BROADCAST_EVERYTHING,
        counters: MatchCounters | None = None,
        knowledge: Knowledge | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self.configuration, self.star_event = configuration, star_event
        self.counters = counters if counters is not None else MatchCounters()
        self.knowledge = knowledge if knowledge is not None else Knowledge()
        self.max_record_bytes = max_record_bytes
        self.waiting: dict[Audience, None] = {}
        """The audiences of which something waits for PostgreSQL's word."""
        self._bindings = BindingIndex()
        self._holders: dict[Binding, dict[Audience, None]] = {}
        self._current_relations: dict[tuple[Relation, Shape], CurrentRelation] = {}
        self.epoch = ""
        """Of the changes at hand: it is part of the positions that clients see."""
        self._audiences: dict[AudienceKey, Audience] = {}
        self._topics: dict[str, dict[AudienceKey, Audience]] = {}
        self._index = TopicIndex(configuration)
        self._touched: list[Audience] = []
        self._order = 0

    def sibling(self) -> Matcher:
        """Another one with the same rules and counters and no audience: for what is replayed to one channel alone."""
        other = Matcher(
            star_event=self.star_event,
            configuration=self.configuration,
            counters=self.counters,
            knowledge=self.knowledge,
            max_record_bytes=self.max_record_bytes,
        )
        other.epoch = self.epoch
        return other

    @property
    def topic_count(self) -> int:
        """How many topics have somebody who hears changes."""
        return len({audience.topic for audience in self._audiences.values()})

    def audience(self, subscription: Subscription, serializer: Serializer) -> Audience:
        """The audience of a subscription, made if need be; whoever joins it is not asked here."""
        key = subscription, serializer.vsn
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(subscription, serializer)
            if subscription.bindings is None:
                of_topic = self._topics.get(subscription.topic)
                if of_topic is None:
                    of_topic = self._topics[subscription.topic] = {}
                    self._index.add(subscription.topic)
                of_topic[key] = audience
            for binding in subscription.bindings or ():
                holders = self._holders.get(binding)
                if holders is None:
                    holders = self._holders[binding] = {}
                    self._bindings.add(binding, self.knowledge.operands)
                holders[audience] = None
        return audience

    def discard(self, audience: Audience) -> None:
        """Nobody is in it any more."""
        if self._audiences.pop(audience.key, None) is None:
            return
        self.waiting.pop(audience, None)
        for binding in set(audience.subscription.bindings or ()):
            holders = self._holders[binding]
            del holders[audience]
            if not holders:
                del self._holders[binding]
                self._bindings.discard(binding)
        if audience.subscription.bindings is None:
            of_topic = self._topics[audience.topic]
            del of_topic[audience.key]
            if not of_topic:
                del self._topics[audience.topic]
                self._index.discard(audience.topic)

    def match(self, chunks: Sequence[Chunk]) -> list[Audience]:
        """Make the messages of some changes: the audiences that have any, with ``messages`` and ``order`` filled.

        A change that cannot be read is reported; current channels get it with ``errors``, legacy ones do not. Whoever
        takes the messages clears them (`clear`). See also ``waiting``.
        """
        for second in _seconds(chunks):
            if len(second) == 1:
                changes = second[0].changes
                origins = [second[0]] * len(changes)
            else:
                changes = [change for chunk in second for change in chunk.changes]
                origins = [chunk for chunk in second for _ in chunk.changes]
            self.counters.changes += len(changes)
            commit_timestamp = legacy_commit_timestamp(second[0].committed_at)
            if len(changes) < _RUN or self.star_event:
                self._match_each(origins, changes, commit_timestamp)
            else:
                self._match_runs(origins, changes, commit_timestamp)
        touched, self._touched, self._order = self._touched, [], 0
        return touched

    def _match_each(self, origins: Sequence[Chunk], changes: Sequence[Change], commit_timestamp: str) -> None:
        """Put some changes of one second into the messages, one by one; ``origins`` has the chunk of each."""
        plans, has_bindings = self._index.plans, bool(self._bindings)
        for chunk, change in zip(origins, changes, strict=True):
            if has_bindings:
                bound = self._bindings.plans_of(change.relation).get(change.data[0])
                if bound is not None and bound.is_watched:
                    self._match_bindings(chunk, change, bound, current_commit_timestamp(chunk.committed_at))
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
                self._report(chunk, change, error)
                continue
            for topic in topics:
                self._order += 1
                self._put_for_topic(topic, payload, plan, chunk, change)

    def _put_for_topic(self, topic: str, payload: bytes, plan: Plan, chunk: Chunk, change: Change) -> None:
        """Put one change into the messages of those who have joined a topic that it belongs to."""
        order, event, is_secured = self._order, plan.event, plan.is_secured
        positioned: bytes | None = None
        for audience in self._topics[topic].values():
            if is_secured and not audience.subscription.sees_secured:
                continue
            if not audience.messages:
                self._touched.append(audience)
            shown = payload
            if audience.positions:
                if positioned is None:
                    positioned = payload[:-1] + self.position_member(chunk, change) + b"}"
                shown = positioned
            if self.star_event:
                audience.order.append(order)
                audience.messages.append(audience.encode(ALL_EVENTS, shown))
            audience.order.append(order)
            audience.messages.append(audience.encode(event, shown))

    # Runs

    def _match_runs(self, origins: Sequence[Chunk], changes: Sequence[Change], commit_timestamp: str) -> None:
        """The same, but with long runs of one table and event put into the messages together."""
        end = 0
        for relation, group in groupby(changes, _RELATION_OF):
            of_table = list(group)
            start, end = end, end + len(of_table)
            plans, bounds = self._index.plans_of(relation), self._bindings.plans_of(relation) if self._bindings else {}
            if not plans and not any(plan.is_watched for plan in bounds.values()):
                continue
            for kind, same in groupby(of_table, _kind_of):
                run = list(same)
                chunks = origins[start : start + len(run)]
                start += len(run)
                plan, bound = plans.get(kind), bounds.get(kind)
                plan = plan if plan is not None and plan.watched else None
                bound = bound if bound is not None and bound.is_watched else None
                if plan is None and bound is None:
                    continue
                if len(run) < _RUN or not _goes_together(kind, bound):
                    self._match_each(chunks, run, commit_timestamp)
                    continue
                for first in range(0, len(run), _BLOCK):
                    last = first + _BLOCK
                    if not self._match_block(chunks[first:last], run[first:last], plan, bound, commit_timestamp):
                        self._match_each(chunks[first:last], run[first:last], commit_timestamp)

    def _match_block(
        self,
        chunks: Sequence[Chunk],
        changes: Sequence[Change],
        plan: Plan | None,
        bound: BindingPlan | None,
        commit_timestamp: str,
    ) -> bool:
        """Put changes of one table and event into the messages; false if they have to be looked at one by one."""
        rows, relation = [change.data for change in changes], changes[0].relation
        values = plan.shared.plain_values(rows) if plan is not None else []
        of_all: dict[Audience, list[Binding]] | None = {}
        of_some: dict[int, list[Binding]] | None = {}
        if bound is not None and bound.looks_at_rows:
            of_some = _wanted_by_number(bound, relation, rows)
        elif bound is not None:
            of_all = self._concerned_by_all(bound)
        if values is None or of_all is None or of_some is None:
            return False
        shapes = {binding.shape for bindings in (*of_all.values(), *of_some.values()) for binding in bindings}
        numbers = list(of_some) or range(len(changes))
        data: dict[Shape, dict[int, bytes]] = {}
        shown_rows = [rows[number] for number in numbers] if shapes else []
        stamps = [current_commit_timestamp(chunks[number].committed_at) for number in numbers] if shapes else []
        for shape in shapes:
            if (texts := self._in_shape(relation, shape).plain_data_of_all(shown_rows, stamps)) is None:
                return False
            data[shape] = dict(zip(numbers, texts, strict=True))
        # From here on nothing can go wrong.
        count = len(changes) if plan is not None or of_all else len(of_some)
        self.counters.rendered += count
        self.counters.tables[relation] += count
        step = 1 + (len(plan.topics) + len(plan.columns) if plan is not None else 0)
        block = _Block(chunks, changes, self._order + 1, step)
        self._put_for_all(block, [_hearer(audience, bindings, block, data) for audience, bindings in of_all.items()])
        for number, bindings in of_some.items():
            assert bound is not None
            self._order = block.first + step * number
            shown = {shape: texts[number] for shape, texts in data.items()}
            self._hand_to_holders(bindings, shown, bound, chunks[number], changes[number])
        if plan is not None:
            self._put_for_topics(block, plan, values, commit_timestamp)
        self._order = block.first - 1 + step * len(changes)
        return True

    def _put_for_all(self, block: _Block, hearers: Iterable[_Hearer]) -> None:
        """Put all changes of a block into the messages of those who hear each of them."""
        members: list[bytes] = []
        for audience, order, (head, tail), texts in hearers:
            if not audience.messages:
                self._touched.append(audience)
            if audience.positions:
                members = members or list(map(self.position_member, block.chunks, block.changes))
                audience.messages += [
                    head + text + member + b"}" + tail for text, member in zip(texts, members, strict=True)
                ]
            else:
                audience.messages += [head + text + tail for text in texts]
            audience.order += range(order, order + block.step * len(texts), block.step)

    def _put_for_topics(self, block: _Block, plan: Plan, values: list[bytes], commit_timestamp: str) -> None:
        """Put a block into the messages of legacy channels: all of it, or what a column's topic hears."""
        found = topics_of_plain_rows(plan, values, self._topics) if plan.columns else []
        # Without topics that hear every change, only those are rendered that a column's topic hears.
        numbers = range(len(block.changes)) if plan.topics else list(dict.fromkeys(number for number, _, _ in found))
        if not numbers:
            return
        payloads = plan.shared.plain_payloads(block.changes[0].data[0], values, numbers, commit_timestamp)
        if plan.topics:
            self._put_for_all(block, self._hearers(plan, list(payloads.values()), block.first + 1))
        for number, column, topic in found:
            self._order = block.first + block.step * number + 1 + len(plan.topics) + column
            self._put_for_topic(topic, payloads[number], plan, block.chunks[number], block.changes[number])

    def _hearers(self, plan: Plan, payloads: list[bytes], first: int) -> Iterator[_Hearer]:
        """Those who have joined a plan's topics, each with the number of its first message, and what it reads."""
        opened: list[bytes] = []
        for number, topic in enumerate(plan.topics, start=first):
            for audience in self._topics[topic].values():
                if plan.is_secured and not audience.subscription.sees_secured:
                    continue
                if audience.positions:
                    opened = opened or [payload[:-1] for payload in payloads]
                yield audience, number, audience.around(plan.event), opened if audience.positions else payloads

    def _concerned_by_all(self, plan: BindingPlan) -> dict[Audience, list[Binding]] | None:
        """Who hears every change of a plan, by which bindings; `None` if some of them need a closer look."""
        concerned: dict[Audience, list[Binding]] = {}
        for binding in plan.always:
            for audience in self._holders[binding]:
                if not plan.is_secured or audience.subscription.sees_secured:
                    concerned.setdefault(audience, []).append(binding)
        for audience, bindings in concerned.items():
            if audience.waiting or any(binding.shape != bindings[0].shape for binding in bindings):
                return None
        return concerned

    def _report(self, chunk: Chunk, change: Change, error: Exception) -> None:
        self.counters.unreadable += 1
        position = Position(chunk.commit_lsn, change.lsn, change.ordinal)
        facts = {"relation": change.relation, "position": position, "error": error}
        logger.error("change left out", extra=facts)

    # Bindings

    def _match_bindings(self, chunk: Chunk, change: Change, plan: BindingPlan, commit_timestamp: str) -> None:
        """Put one change into the messages of the audiences that have a binding which wants it."""
        kind, relation = change.data[0], change.relation
        asked: list[tuple[Binding, Alternatives]] = []
        try:
            images = Images(relation, decode_row(change.data)) if plan.looks_at_rows else None
            wanted, open_ones = plan.match(images)
            for binding, alternatives in open_ones:
                verdict = self.knowledge.judge(alternatives)
                if verdict is True:
                    wanted.append(binding)
                elif verdict is not False:
                    asked.append((binding, alternatives))
            if not wanted and not asked:
                return
            data = {}
            for shape in (*(binding.shape for binding in wanted), *(binding.shape for binding, _ in asked)):
                if shape in data:
                    continue
                shared = self._in_shape(relation, shape)
                if kind == _INSERT and (plain_data := shared.plain_data(change.data, commit_timestamp)) is not None:
                    data[shape] = plain_data
                    continue
                if images is None and change.data != TRUNCATE:
                    images = Images(relation, decode_row(change.data))
                data[shape] = shared.data(kind, images, commit_timestamp)
        except (PgOutputError, ValueError, LookupError) as error:
            self._report(chunk, change, error)
            wanted, asked = plan.everyone, []
            data = {
                binding.shape: self._in_shape(relation, binding.shape).unreadable(kind, commit_timestamp)
                for binding in wanted
            }
        self.counters.rendered += 1
        self.counters.tables[relation] += 1
        self._order += 1
        self._hand_to_holders(wanted, data, plan, chunk, change, asked=asked)

    def _hand_to_holders(
        self,
        wanted: Sequence[Binding],
        data: Mapping[Shape, bytes],
        plan: BindingPlan,
        chunk: Chunk,
        change: Change,
        *,
        asked: Sequence[tuple[Binding, Alternatives]] = (),
    ) -> None:
        """Put one change into the messages of those whose bindings want it, or do as PostgreSQL says (``asked``)."""
        if len(wanted) == 1 and not asked:
            self._send_to_holders(wanted[0], data, plan, chunk, change)
            return
        concerned: dict[Audience, list[Binding]] = {}
        questions: dict[Audience, list[tuple[Binding, Alternatives]]] = {}
        for binding in wanted:
            for audience in self._holders[binding]:
                concerned.setdefault(audience, []).append(binding)
        for binding, alternatives in asked:
            for audience in self._holders[binding]:
                concerned.setdefault(audience, [])
                questions.setdefault(audience, []).append((binding, alternatives))
        plain: dict[Shape, bytes] | None = None
        positioned: dict[Shape, bytes] | None = None
        for audience, bindings in concerned.items():
            if plan.is_secured and not audience.subscription.sees_secured:
                continue
            if audience.positions:
                if positioned is None:
                    member = self.position_member(chunk, change) + b"}"
                    positioned = {shape: text + member for shape, text in data.items()}
                shown = positioned
            else:
                if plain is None:
                    plain = {shape: text + b"}" for shape, text in data.items()}
                shown = plain
            if (open_here := questions.get(audience)) is not None:
                audience.defer(Deferred(audience.readers, b"", bindings, open_here, shown))
                self.waiting[audience] = None
                continue
            for message in audience.encode_changes(bindings, shown):
                if audience.waiting:
                    audience.defer(Deferred(audience.readers, message))
                    continue
                if not audience.messages:
                    self._touched.append(audience)
                audience.order.append(self._order)
                audience.messages.append(message)

    def _send_to_holders(
        self, binding: Binding, data: Mapping[Shape, bytes], plan: BindingPlan, chunk: Chunk, change: Change
    ) -> None:
        """The usual case: one binding wants the change, and all who hold it get it."""
        shown = data[binding.shape]
        plain = positioned = b""
        for audience in self._holders[binding]:
            if plan.is_secured and not audience.subscription.sees_secured:
                continue
            if audience.positions:
                positioned = positioned or shown + self.position_member(chunk, change) + b"}"
                message = audience.encode_change(binding, positioned)
            else:
                plain = plain or shown + b"}"
                message = audience.encode_change(binding, plain)
            if audience.waiting:
                audience.defer(Deferred(audience.readers, message))
                continue
            if not audience.messages:
                self._touched.append(audience)
            audience.order.append(self._order)
            audience.messages.append(message)

    def _in_shape(self, relation: Relation, shape: Shape) -> CurrentRelation:
        shared = self._current_relations.get((relation, shape))
        if shared is None:
            if len(self._current_relations) >= _MOST_RELATIONS:
                self._current_relations.clear()
            shared = CurrentRelation(relation, shape, self.max_record_bytes)
            self._current_relations[relation, shape] = shared
        return shared

    def questions(self, most: int) -> list[Question]:
        """What PostgreSQL is to be asked next, about ``most`` questions: all of a message, or none."""
        found: dict[Question, None] = {}
        for audience in self.waiting:
            for item in audience.waiting:
                if item.asked:
                    found |= dict.fromkeys(self.knowledge.unknown(item.questions))
                    if len(found) >= most:
                        return list(found)
        return list(found)

    def release(self, answers: Answers) -> Iterator[Released]:
        """Let go of the messages that have waited long enough, in their order; ``answers`` are the newest."""
        for audience in list(self.waiting):
            readers: Mapping[Outlet, int] = {}
            messages: list[bytes] = []
            while audience.waiting:
                item = audience.waiting[0]
                judged = self._judged(item, answers)
                if judged is None:
                    break
                audience.take()
                if item.readers is not readers:
                    if messages:
                        yield Released(audience, readers, messages)
                    readers, messages = item.readers, []
                if isinstance(judged, str):
                    yield Released(audience, item.readers, messages, judged)
                    messages = []
                elif item.message:
                    messages.append(item.message)
                elif judged:
                    messages += audience.encode_changes(judged, item.data or {})
            if messages:
                yield Released(audience, readers, messages)
            if not audience.waiting:
                self.waiting.pop(audience, None)

    def _judged(self, item: Deferred, answers: Answers) -> list[Binding] | str | None:
        """The bindings that want the change; `None` if that is still open, a text if PostgreSQL refuses to say."""
        wanted = list(item.wanted)
        for binding, alternatives in item.asked:
            verdict = self.knowledge.judge(alternatives, answers)
            if verdict is None:
                return None
            if isinstance(verdict, Failed):
                return rejected(binding, verdict.reason)
            if verdict:
                wanted.append(binding)
        return wanted

    @property
    def audiences(self) -> list[Audience]:
        """All of them, the oldest first."""
        return list(self._audiences.values())

    def clear(self, audiences: Iterable[Audience]) -> None:
        """The messages have been taken."""
        for audience in audiences:
            audience.sent += len(audience.messages)
            audience.messages, audience.order = [], []

    def position_member(self, chunk: Chunk, change: Change) -> bytes:
        """``,"position":"…"``: the member of a payload that says where its change stands, for those who asked."""
        return b',"position":"%s.%X.%X.%d"' % (
            self.epoch.encode(),
            chunk.commit_lsn,
            change.lsn,
            change.ordinal,
        )

    def _render(self, change: Change, plan: Plan, commit_timestamp: str) -> tuple[bytes, Sequence[str]]:
        """The payload of a watched change, and the joined topics it belongs to."""
        self.counters.rendered += 1
        self.counters.tables[change.relation] += 1
        if (plain := plan.shared.plain_payload(change.data, commit_timestamp)) is not None:
            payload, values = plain
            if plan.columns:
                return payload, [*plan.topics, *topics_of_plain_row(plan, values, self._topics)]
            return payload, plan.topics
        if change.data == TRUNCATE:
            return plan.shared.truncate(commit_timestamp), plan.topics
        payload, texts = plan.shared.payload(decode_row(change.data), commit_timestamp)
        if plan.columns:
            return payload, [*plan.topics, *topics_of_row(plan, texts, self._topics)]
        return payload, plan.topics


_RELATION_OF = attrgetter("relation")


class _Block(NamedTuple):
    """Changes of one table and event, each with its chunk. ``first`` is the place of the first message that may be made
    of them, and between those of one change and of the next are ``step`` places."""

    chunks: Sequence[Chunk]
    changes: Sequence[Change]
    first: int
    step: int


_Hearer: TypeAlias = tuple[Audience, int, tuple[bytes, bytes], list[bytes]]
"""An audience, the number of its first message, what stands around its texts, and these: without their closing brace
where a position follows."""


def _kind_of(change: Change) -> int:
    return change.data[0]


def _goes_together(kind: int, bound: BindingPlan | None) -> bool:
    """Whether changes can be looked at together."""
    return kind == _INSERT or (kind != _TRUNCATE_KIND and bound is None)


def _hearer(
    audience: Audience, bindings: list[Binding], block: _Block, data: Mapping[Shape, Mapping[int, bytes]]
) -> _Hearer:
    """An audience whose bindings want every change of a block, in one shape."""
    head, tail = audience.around_change(bindings)
    around = (head, tail) if audience.positions else (head, b"}" + tail)
    return audience, block.first, around, list(data[bindings[0].shape].values())


def _wanted_by_number(bound: BindingPlan, relation: Relation, rows: Sequence[bytes]) -> dict[int, list[Binding]] | None:
    """Who wants which of some INSERTs, by their numbers; `None` if one of them has to be looked at alone."""
    values = plain_rows(rows)
    width = 1 + len(relation.columns)
    if values is None or len(values) != width * len(rows):
        return None
    try:
        found = bound.match_rows(list(map(bytes.decode, values)), width)
    except UnicodeDecodeError:
        return None
    if found is not None and bound.always:
        return {number: [*bound.always, *found.get(number, ())] for number in range(len(rows))}
    return found


def _seconds(chunks: Sequence[Chunk]) -> Iterator[Sequence[Chunk]]:
    """The chunks that were committed within the same second: all that legacy payloads tell of the time."""
    start = 0
    while start < len(chunks):
        second, end = chunks[start].committed_at.replace(microsecond=0), start + 1
        while end < len(chunks) and _NO_TIME <= chunks[end].committed_at - second < _SECOND:
            end += 1
        yield chunks[start:end]
        start = end


_NO_TIME, _SECOND = timedelta(0), timedelta(seconds=1)
