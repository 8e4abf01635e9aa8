"""Which bindings a change is for: one look-up for each column that has `eq` or `in` filters, the others one by one.

A filter that does not match costs nothing if it has an ``eq`` or ``in`` that Python can decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from replication.changes import EVENTS, Relation
from replication.facts import ColumnFacts
from replication.pgoutput import Text
from streaming.bindings import Binding
from streaming.current_payloads import Images, facts_of
from streaming.filter_language import Condition
from streaming.predicates import Asked, Key, Operand, Test, compile_test, equality_key, local_operand

Operands: TypeAlias = Mapping[tuple[Condition, str], Operand]
"""What PostgreSQL made of a binding's conditions, by condition and the ``sql`` of the column's type."""

Alternatives: TypeAlias = tuple[tuple[Asked, ...], ...]
"""Of a binding that only PostgreSQL can judge: it wants the change if in one of these everything comes out as asked."""

_UPDATE, _DELETE, _TRUNCATE = b"UDT"


class _Column(NamedTuple):
    """Where a condition's column stands in the relation, and what is known about it."""

    place: int
    facts: ColumnFacts


class _Entry(NamedTuple):
    """A binding, and the tests that its row has to pass (at an index: the others)."""

    binding: Binding
    tests: tuple[tuple[int, Test], ...]


@dataclass(slots=True)
class _ColumnIndex:
    key: Key
    full: dict[Binding, _Entry] = field(default_factory=dict)
    by_value: dict[Any, dict[Binding, _Entry]] = field(default_factory=dict)


class BindingPlan:
    """For one relation and event: who wants every change, who by the value of a column, who by other tests."""

    __slots__ = (
        "_columns",
        "_has_rows",
        "_indexes",
        "_is_update",
        "_where",
        "always",
        "is_delete",
        "is_secured",
        "tested",
    )

    def __init__(self, relation: Relation, kind: int) -> None:
        facts = facts_of(relation)
        self._columns = {column.name: _Column(index, facts[index]) for index, column in enumerate(relation.columns)}
        self._is_update, self.is_delete, self._has_rows = kind == _UPDATE, kind == _DELETE, kind != _TRUNCATE
        self.is_secured = relation.is_secured
        self.always: dict[Binding, None] = {}
        self.tested: dict[Binding, _Entry] = {}
        self._indexes: dict[int, _ColumnIndex] = {}
        self._where: dict[Binding, tuple[int, tuple[Any, ...]]] = {}
        """Of the indexed bindings, which values of which column they are filed under."""

    @property
    def is_watched(self) -> bool:
        """Somebody may want the change."""
        return bool(self.always or self._indexes or self.tested)

    @property
    def looks_at_rows(self) -> bool:
        """Some bindings have conditions."""
        return bool(self._indexes or self.tested)

    @property
    def everyone(self) -> list[Binding]:
        """All bindings that some row would be for."""
        return [*self.always, *self._where, *self.tested]

    def add(self, binding: Binding, operands: Operands) -> None:
        """File a binding that wants the relation and the event."""
        if not (binding.conditions and self._has_rows):
            self.always[binding] = None
            return
        tests: list[tuple[int, Test]] = []
        indexable = None
        for number, condition in enumerate(binding.conditions):
            if (column := self._columns.get(condition.column)) is None:
                return  # a table without this column has no row that it holds for
            operand = operands.get((condition, column.facts.type.sql)) or local_operand(condition, column.facts.type)
            tests.append((column.place, compile_test(condition, column.facts, operand)))
            if indexable is None and operand is not None and (filed := _filed_under(condition, column.facts, operand)):
                indexable = number, filed
        entry = _Entry(binding, tuple(tests))
        if indexable is None:
            self.tested[binding] = entry
            return
        number, (key, values) = indexable
        column_index = tests[number][0]
        index = self._indexes.setdefault(column_index, _ColumnIndex(key))
        index.full[binding] = entry
        residual = _Entry(binding, tuple(test for other, test in enumerate(tests) if other != number))
        for value in values:
            index.by_value.setdefault(value, {})[binding] = residual
        self._where[binding] = column_index, values

    def discard(self, binding: Binding) -> None:
        """Take a binding out."""
        self.always.pop(binding, None)
        self.tested.pop(binding, None)
        if (where := self._where.pop(binding, None)) is None:
            return
        column_index, values = where
        index = self._indexes[column_index]
        del index.full[binding]
        for value in values:
            entries = index.by_value[value]
            del entries[binding]
            if not entries:
                del index.by_value[value]
        if not index.full:
            del self._indexes[column_index]

    def match(self, images: Images | None) -> tuple[list[Binding], list[tuple[Binding, Alternatives]]]:
        """Who wants the change, and who does as PostgreSQL says. ``images`` `None`: a TRUNCATE has no row.

        An INSERT is judged by its new row, a DELETE by its old one as far as it was sent, an UPDATE by the new row and,
        where the whole old one was sent, by that as well: so a row that leaves a filter is heard of.
        """
        wanted = list(self.always)
        if images is None or not (self._indexes or self.tested):
            return wanted, []
        if self.is_delete:
            assert images.old is not None
            rows = [images.old]
        else:
            assert images.new is not None
            rows = [images.new, images.old] if self._is_update and images.sees_old and images.old else [images.new]
        found: dict[Binding, None] = {}
        asked: dict[Binding, Alternatives] = {}
        for row in rows:
            for entry in self._candidates(row):
                if entry.binding in found:
                    continue
                verdict = _verdict(entry.tests, row)
                if verdict is True:
                    found[entry.binding] = None
                elif verdict is not False:
                    asked[entry.binding] = (*asked.get(entry.binding, ()), verdict)
        wanted += found
        return wanted, [(binding, alternatives) for binding, alternatives in asked.items() if binding not in found]

    def match_rows(self, texts: Sequence[str], width: int) -> dict[int, list[Binding]] | None:
        """Who besides `always` wants which of some new rows, in their order; `None` if one has to be looked at alone.

        The texts of the rows stand one behind the other, each row's behind something else: ``width`` belong to a row.
        """
        if self.tested:
            return None
        wanted: dict[int, list[Binding]] = {}
        for column_index, index in self._indexes.items():
            try:
                values = list(map(index.key, texts[column_index + 1 :: width]))
            except (ValueError, ArithmeticError):
                return None
            for number, value in enumerate(values):
                for entry in index.by_value.get(value, _NOBODY).values():
                    verdict = not entry.tests or _verdict(
                        entry.tests, list(texts[number * width + 1 : (number + 1) * width])
                    )
                    if verdict is True:
                        wanted.setdefault(number, []).append(entry.binding)
                    elif verdict is not False:
                        return None
        return dict(sorted(wanted.items()))

    def _candidates(self, row: list[Text]) -> Iterable[_Entry]:
        for column_index, index in self._indexes.items():
            text = row[column_index]
            if isinstance(text, str):
                try:
                    value = index.key(text)
                except (ValueError, ArithmeticError):
                    yield from index.full.values()  # a text that the key does not know: each is asked for
                else:
                    if (entries := index.by_value.get(value)) is not None:
                        yield from entries.values()
        if self.tested:
            yield from self.tested.values()


_NOBODY: Mapping[Binding, _Entry] = {}


def _filed_under(condition: Condition, facts: ColumnFacts, operand: Operand) -> tuple[Key, tuple[Any, ...]] | None:
    if condition.negated or condition.operator not in ("eq", "in") or not operand.texts:
        return None
    if (key := equality_key(facts)) is None:
        return None
    return key, tuple(dict.fromkeys(key(text) for text in operand.texts))


def _verdict(tests: tuple[tuple[int, Test], ...], row: list[Text]) -> bool | tuple[Asked, ...]:
    asked = []
    for column_index, test in tests:
        verdict = test(row[column_index])
        if verdict is False:
            return False
        if verdict is not True:
            asked.append(verdict)
    return tuple(asked) or True


class BindingIndex:
    """All bindings that somebody has, and for each relation and event the plan that finds those that want a change."""

    def __init__(self) -> None:
        self._bindings: dict[Binding, Operands] = {}
        self._plans: dict[Relation, dict[int, BindingPlan]] = {}

    def __bool__(self) -> bool:
        return bool(self._bindings)

    def __contains__(self, binding: Binding) -> bool:
        return binding in self._bindings

    def add(self, binding: Binding, operands: Operands) -> None:
        """Somebody has a binding that nobody had before; ``operands`` is what PostgreSQL made of its conditions."""
        if binding in self._bindings:
            return
        self._bindings[binding] = operands
        for relation, plans in self._plans.items():
            _file(binding, operands, relation, plans)

    def discard(self, binding: Binding) -> None:
        """Nobody has the binding any more."""
        if self._bindings.pop(binding, None) is not None:
            for plans in self._plans.values():
                for plan in plans.values():
                    plan.discard(binding)

    def plans_of(self, relation: Relation) -> dict[int, BindingPlan]:
        """The plans for all events of ``relation``, by the first byte of a change's data."""
        plans = self._plans.get(relation)
        if plans is None:
            if len(self._plans) >= _MOST_RELATIONS:
                self._plans.clear()
            plans = self._plans[relation] = {kind: BindingPlan(relation, kind) for kind in EVENTS}
            for binding, operands in self._bindings.items():
                _file(binding, operands, relation, plans)
        return plans


_MOST_RELATIONS = 4096
"""Altered tables leave their old relations behind."""


def _file(binding: Binding, operands: Operands, relation: Relation, plans: Mapping[int, BindingPlan]) -> None:
    if binding.wants_table(relation.schema, relation.name):
        for kind, event in EVENTS.items():
            if binding.wants_event(event):
                plans[kind].add(binding, operands)
