"""What PostgreSQL has said about conditions: how it reads their values, and whether rows meet them. Remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from streaming.binding_index import Alternatives
from streaming.filter_language import Condition
from streaming.predicates import Operand, Question

MOST_ANSWERS = 50_000
MOST_ANSWER_BYTES = 16 << 20
MOST_OPERANDS = 100_000


@dataclass(frozen=True, slots=True)
class Failed:
    """A question that PostgreSQL cannot answer; ``reason`` is its error, as clients are told."""

    reason: str


Answer: TypeAlias = bool | Failed | None
Answers: TypeAlias = Mapping[Question, Answer]


class Knowledge:
    """Answers and operands, the least used forgotten first. Forgetting one only means that it is asked again."""

    def __init__(self) -> None:
        self.operands: OrderedDict[tuple[Condition, str], Operand] = OrderedDict()
        """By condition and the ``sql`` of the type that its value was read for."""
        self._answers: OrderedDict[Question, Answer] = OrderedDict()
        self._bytes = 0

    def remember_operand(self, condition: Condition, type_sql: str, operand: Operand) -> None:
        """PostgreSQL reads a condition's value so."""
        self.operands[condition, type_sql] = operand
        self.operands.move_to_end((condition, type_sql))
        if len(self.operands) > MOST_OPERANDS:
            self.operands.popitem(last=False)

    def remember(self, answers: Answers) -> None:
        """PostgreSQL has answered."""
        for question, answer in answers.items():
            if question not in self._answers:
                self._bytes += _size(question)
            self._answers[question] = answer
        while self._answers and (len(self._answers) > MOST_ANSWERS or self._bytes > MOST_ANSWER_BYTES):
            question, _ = self._answers.popitem(last=False)
            self._bytes -= _size(question)

    def judge(self, alternatives: Alternatives, fresh: Answers = {}) -> bool | Failed | None:  # noqa: B006 - not kept
        """Whether one of the alternatives holds; `None` if that is not known. ``fresh`` are the newest answers."""
        failed: Failed | None = None
        is_open = False
        for alternative in alternatives:
            holds: bool | None = True
            for asked in alternative:
                answer = fresh.get(asked.question, _UNKNOWN)
                if answer is _UNKNOWN:
                    answer = self._answers.get(asked.question, _UNKNOWN)
                if answer is _UNKNOWN:
                    holds = None
                elif isinstance(answer, Failed):
                    failed, holds = answer, False
                    break
                elif answer is not asked.wanted:
                    holds = False
                    break
            if holds:
                return True
            is_open = is_open or holds is None
        return None if is_open else failed or False

    def unknown(self, questions: Iterable[Question]) -> list[Question]:
        """Those that have not been answered, or whose answer is forgotten."""
        unknown = []
        for question in dict.fromkeys(questions):
            if question in self._answers:
                self._answers.move_to_end(question)
            else:
                unknown.append(question)
        return unknown


_UNKNOWN = Failed("")


def _size(question: Question) -> int:
    return 200 + len(question.left) + len(question.right)
