"""Presence: who shows what in a topic, told as Phoenix tells it, and the same in every process.

Each process owns the presences of its own sockets and numbers their changes. The others keep a replica of them and
follow that numbering: a change that follows the last one is applied, a gap is filled with the whole state of its
process, and a process that has fallen silent takes its presences along.

Source: https://hexdocs.pm/phoenix/Phoenix.Presence.html
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

_OURS: Final = ("phx_ref", "phx_ref_prev")


class Meta(NamedTuple):
    """One tracked channel: its presence key, the ``phx_ref`` that names this meta everywhere, and its JSON object."""

    key: str
    ref: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Diff:
    """What changed in one topic. An update has its new meta in ``joins`` and its old one in ``leaves``."""

    topic: str
    joins: tuple[Meta, ...] = ()
    leaves: tuple[Meta, ...] = ()

    def payload(self) -> bytes:
        """The payload of ``presence_diff``; both keys are always there."""
        return b'{"joins":%b,"leaves":%b}' % (_by_key(self.joins), _by_key(self.leaves))


def _by_key(metas: Iterable[Meta]) -> bytes:
    """Presences as clients read them: ``{KEY: {"metas": [META, …]}}``."""
    keys: dict[str, list[bytes]] = {}
    for meta in metas:
        keys.setdefault(meta.key, []).append(meta.text)
    entries = (b'%b:{"metas":[%b]}' % (orjson.dumps(key), b",".join(texts)) for key, texts in keys.items())
    return b"{%b}" % b",".join(entries)


class _Refs:
    """Makes texts that are unique among all processes: 16 characters, of a time, a number of the process, a counter."""

    def __init__(self, process: bytes) -> None:
        self._process, self._count = process[:3].rjust(3, b"\0"), 0

    def next(self, now: float) -> str:
        self._count = (self._count + 1) & 0xFFFFFF
        moment = int(now * 1000) & 0xFFFFFFFFFFFF
        return urlsafe_b64encode(moment.to_bytes(6) + self._process + self._count.to_bytes(3)).decode()


@dataclass(slots=True)
class _Tracked:
    """What one channel of this process shows, and how to tell whether it shows the same again."""

    meta: Meta
    comparable: bytes


@dataclass(slots=True)
class _Replica:
    """The presences of one other process, up to its change ``number``."""

    number: int = 0
    topics: dict[str, dict[str, Meta]] = field(default_factory=dict)


class Presences:
    """Who is present in which topic, of this process and, as far as they are known here, of the others.

    ``process`` is three bytes or more that no other process has. A *member* stands for one channel of this process:
    it shows one meta at most in a topic.
    """

    def __init__(self, process: bytes) -> None:
        self._refs = _Refs(process)
        self._members: dict[str, dict[object, _Tracked]] = {}
        self._replicas: dict[str, _Replica] = {}
        self._topics: dict[str, dict[str, Meta]] = {}
        self._states: dict[str, bytes] = {}
        self.number = 0
        """How often the presences of this process have changed."""

    # Of this process

    def track(self, topic: str, member: object, key: str, payload: Mapping[str, Any], now: float) -> Diff | None:
        """Show ``payload`` for the member; what it showed before goes. `None` if it shows this very payload already.

        ``now`` is in seconds since 1970.
        """
        shown = {name: value for name, value in payload.items() if name not in _OURS}
        comparable = orjson.dumps(shown, option=orjson.OPT_SORT_KEYS)
        members = self._members.setdefault(topic, {})
        before = members.get(member)
        if before is not None and (before.comparable, before.meta.key) == (comparable, key):
            return None
        ref = self._refs.next(now)
        refs = {"phx_ref": ref} if before is None else {"phx_ref": ref, "phx_ref_prev": before.meta.ref}
        meta = Meta(key, ref, orjson.dumps(shown | refs))
        members[member] = _Tracked(meta, comparable)
        return self._own(Diff(topic, (meta,), () if before is None else (before.meta,)))

    def untrack(self, topic: str, member: object) -> Diff | None:
        """Show nothing for the member any more; `None` if it showed nothing."""
        members = self._members.get(topic, {})
        if (before := members.pop(member, None)) is None:
            return None
        if not members:
            del self._members[topic]
        return self._own(Diff(topic, leaves=(before.meta,)))

    def own(self) -> dict[str, list[Meta]]:
        """Everything that this process shows, by topic."""
        return {topic: [tracked.meta for tracked in members.values()] for topic, members in self._members.items()}

    def _own(self, diff: Diff) -> Diff:
        self.number += 1
        self._apply(diff)
        return diff

    # Of all

    def state(self, topic: str) -> bytes:
        """The payload of ``presence_state``: everybody who is present in the topic."""
        state = self._states.get(topic)
        if state is None:
            state = _by_key(self._topics.get(topic, {}).values())
            if topic in self._topics:
                self._states[topic] = state
        return state

    def count(self) -> int:
        """How many metas are shown, in all topics."""
        return sum(map(len, self._topics.values()))

    def metas(self, topic: str) -> list[Meta]:
        """Everybody who is present in the topic."""
        return list(self._topics.get(topic, {}).values())

    def _apply(self, diff: Diff) -> None:
        metas = self._topics.setdefault(diff.topic, {})
        for meta in diff.leaves:
            metas.pop(meta.ref, None)
        for meta in diff.joins:
            metas[meta.ref] = meta
        if not metas:
            del self._topics[diff.topic]
        self._states.pop(diff.topic, None)

    # Of other processes

    def processes(self) -> list[str]:
        """The other processes that are known here."""
        return list(self._replicas)

    def is_level(self, process: str, number: int) -> bool:
        """Whether everything is known that the process has changed up to ``number``; otherwise its state is wanted."""
        replica = self._replicas.get(process)
        return number == 0 if replica is None else replica.number >= number

    def follow(self, process: str, number: int, diff: Diff) -> Diff | None:
        """Apply the change ``number`` of another process; of ``diff``'s leaves the refs are enough.

        Returns what has changed here, `None` if that is nothing. If it does not follow what is known nothing is
        applied, and `is_level` goes on saying so.
        """
        replica = self._replicas.setdefault(process, _Replica())
        if number != replica.number + 1:
            return None
        replica.number = number
        metas = replica.topics.setdefault(diff.topic, {})
        leaves = tuple(metas.pop(meta.ref) for meta in diff.leaves if meta.ref in metas)
        metas.update((meta.ref, meta) for meta in diff.joins)
        if not metas:
            del replica.topics[diff.topic]
        return self._changed(Diff(diff.topic, diff.joins, leaves))

    def replace(self, process: str, number: int, topics: Mapping[str, Iterable[Meta]]) -> list[Diff]:
        """Take the whole state of another process as it stood after its change ``number``.

        Returns what has changed here. An older state than the known one changes nothing.
        """
        replica = self._replicas.setdefault(process, _Replica())
        if number < replica.number:
            return []
        replica.number = number
        wanted = {topic: {meta.ref: meta for meta in metas} for topic, metas in topics.items()}
        diffs = []
        for topic in {**replica.topics, **wanted}:
            before, after = replica.topics.get(topic, {}), wanted.get(topic, {})
            joins = tuple(meta for ref, meta in after.items() if ref not in before)
            leaves = tuple(meta for ref, meta in before.items() if ref not in after)
            diffs.append(self._changed(Diff(topic, joins, leaves)))
        replica.topics = {topic: metas for topic, metas in wanted.items() if metas}
        return [diff for diff in diffs if diff is not None]

    def forget(self, process: str) -> list[Diff]:
        """The process is gone, and its presences with it. Returns what has changed here: one diff for each topic."""
        diffs = self.replace(process, self._replicas[process].number, {}) if process in self._replicas else []
        self._replicas.pop(process, None)
        return diffs

    def _changed(self, diff: Diff) -> Diff | None:
        if not diff.joins and not diff.leaves:
            return None
        self._apply(diff)
        return diff
