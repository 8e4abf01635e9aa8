"""What happens seldom enough to be counted one by one: joins, refusals, closes, replays."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from streaming.phoenix import PHX_REPLY, Message

KNOWN_CLOSES: Final = frozenset((1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013))
"""The close codes that are told apart: a client may send any number."""

REPLAY_BOUNDS: Final = (0, 1, 10, 100, 1_000, 10_000, 100_000)
"""The upper ends of the buckets of how much was replayed, in changes; one more holds what is more."""


class Tally:
    """Counts since the start of the process. The keys are few, whatever clients send."""

    def __init__(self) -> None:
        self.joins: Counter[tuple[str, str]] = Counter()
        """By protocol (legacy, current) and result (ok, refused, token)."""
        self.refusals: Counter[tuple[str, str]] = Counter()
        """Of tokens and handshakes: by where (handshake, or the event) and reason code."""
        self.closes: Counter[tuple[str, str]] = Counter()
        """By who closed (server, client) and code."""
        self.replays = [0] * (len(REPLAY_BOUNDS) + 1)
        self.replayed = 0

    def joined(self, message: Message, reply: Message) -> None:
        """A join was answered."""
        payload: Any = message.payload
        protocol = "current" if isinstance(payload, dict) and isinstance(payload.get("config"), dict) else "legacy"
        answer: Any = reply.payload
        status = answer.get("status") if isinstance(answer, dict) else None
        self.joins[protocol, "ok" if status == "ok" else "refused"] += 1

    def refused(self, where: str, code: str) -> None:
        """A token, or a handshake, was refused; ``code`` is one of ours, never a client's word."""
        self.refusals[where, code] += 1

    def closed(self, by: str, code: int) -> None:
        """A socket was closed."""
        self.closes[by, str(code) if code in KNOWN_CLOSES else "other"] += 1

    def replay(self, changes: int) -> None:
        """A resume was recovered, with so many changes."""
        bucket = next((index for index, bound in enumerate(REPLAY_BOUNDS) if changes <= bound), len(REPLAY_BOUNDS))
        self.replays[bucket] += 1
        self.replayed += changes


def is_answer(message: Message, reply: Message) -> bool:
    """Whether this is the reply to that message."""
    return reply.event == PHX_REPLY and reply.ref == message.ref and reply.topic == message.topic


tally = Tally()
"""This process's."""
