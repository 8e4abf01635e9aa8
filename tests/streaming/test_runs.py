"""Many changes of one table in a row are taken together, and nobody sees the difference."""

from __future__ import annotations

import random
import struct
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from replication.changes import TRUNCATE, Change, Chunk, Column, Relation
from replication.facts import Collation, ColumnFacts, TableFacts, TypeFacts
from streaming.audiences import Audience
from streaming.bindings import Binding, Shape
from streaming.filter_language import Condition
from streaming.matching import Matcher
from streaming.phoenix import serializer_for
from streaming.subscriptions import Subscription

AT = datetime(2026, 11, 25, 18, 30, 1, 500, tzinfo=UTC)
TOPICS = (
    "realtime:*",
    "realtime:public",
    "realtime:public:users",
    "realtime:public:users:name=eq.plain",
    "realtime:public:users:id=eq.7",
    "realtime:public:orders:id=eq.7",
    "realtime:private:audit:id=eq.3",
)
CHANNELS = {
    "everything": (Binding("*", "*", "*"),),
    "users": (Binding("INSERT", "public", "users"), Binding("*", "public", "users"), Binding("DELETE", "*", "*")),
    "two shapes": (Binding("*", "public", "orders"), Binding("INSERT", "public", "orders", shape=Shape(None, True))),
    "one column": (Binding("INSERT", "public", "users", shape=Shape(frozenset(["id"]))),),
    "filtered": (Binding("INSERT", "private", "audit", (Condition("id", "eq", "7"),)), Binding("UPDATE", "*", "*")),
    "one user": (Binding("*", "public", "users", (Condition("id", "eq", "7"),)),),
    "some users": (
        Binding("INSERT", "public", "users", (Condition("id", "in", "(3,7,9)"), Condition("name", "neq", "schön"))),
        Binding("INSERT", "public", "users", (Condition("name", "eq", "plain"),), Shape(frozenset(["id"]))),
    ),
    "one order and all": (
        Binding("INSERT", "public", "orders", (Condition("id", "eq", "7"),), Shape(None, True)),
        Binding("*", "public", "*"),
    ),
    "small orders": (Binding("INSERT", "public", "orders", (Condition("id", "lt", "4"),)),),
}
_ID = ColumnFacts("int8", TypeFacts("int8", "bigint", "N"))
_NAME = ColumnFacts("text", TypeFacts("text", "text", "S"), Collation(is_deterministic=True, is_utf8=True))
RELATIONS = [
    Relation(
        1,
        "public",
        "users",
        "f",
        (Column("id", "int8", 20, -1, True), Column("name", "text", 25, -1, False)),
        TableFacts((_ID, _NAME), ("id",), row_security=False),
    ),
    Relation(
        2,
        "public",
        "orders",
        "d",
        (Column("id", "int8", 20, -1, True),),
        TableFacts((_ID,), ("id",), row_security=True),
    ),
    Relation(3, "private", "audit", "d", (Column("id", "int8", 20, -1, True),)),
]


def cells(*values: str | None) -> bytes:
    encoded = [
        b"n" if value is None else b"t" + struct.pack("!I", len(value.encode())) + value.encode() for value in values
    ]
    return struct.pack("!H", len(encoded)) + b"".join(encoded)


def data(dice: random.Random, relation: Relation) -> bytes:
    """A row change as PostgreSQL sends it; some are not plain, and some are broken."""
    values = [str(dice.randint(1, 9)), dice.choice(["plain", 'a "quoted" one', None])][: len(relation.columns)]
    head = struct.pack("!I", relation.oid)
    match dice.choice("IIIIIIIIUD-T"):
        case "U":
            return b"U" + head + b"N" + cells(*values)
        case "D":
            return b"D" + head + b"K" + cells(*values)
        case "-":
            return b"I" + head + b"N" + cells(*values, "one too many")
        case "T":
            return TRUNCATE
        case _:
            return b"I" + head + b"N" + cells(*values)


def changes(dice: random.Random) -> list[Change]:
    made: list[Change] = []
    while len(made) < 800:
        relation = dice.choice(RELATIONS)
        if dice.random() < 0.6:
            kind, name = dice.choice(["I", "I", "U"]).encode(), dice.choice(["plain", "schön", None])
            head, is_mixed = kind + struct.pack("!I", relation.oid) + b"N", dice.random() < 0.7
            for _ in range(dice.choice([20, 300])):
                values = [str(dice.randint(1, 9)), dice.choice(["plain", name])] if is_mixed else ["7", name]
                row = head + cells(*values[: len(relation.columns)])
                made.append(Change(1000 + len(made), 0, relation, row))
        for _ in range(dice.choice([1, 3, 40])):
            made.append(Change(1000 + len(made), 0, relation, data(dice, relation)))
    return made


def delivered(
    batches: Sequence[Sequence[Chunk]], channels: Collection[str], *, positions: bool
) -> dict[str, list[tuple[int, int, bytes]]]:
    """For each topic and channel its messages, each behind the number of its batch and its place in that."""
    matcher = Matcher()
    matcher.epoch = "epoch"
    subscriptions = [
        *(Subscription(topic, positions=positions) for topic in TOPICS),
        *(
            Subscription(name, CHANNELS[name], positions=positions, sees_secured=name != "one order and all")
            for name in channels
        ),
    ]
    audiences: list[Audience] = [
        matcher.audience(subscription, serializer_for("1.0.0")) for subscription in subscriptions
    ]
    result: dict[str, list[tuple[int, int, bytes]]] = {audience.topic: [] for audience in audiences}
    for number, chunks in enumerate(batches):
        touched = matcher.match(chunks)
        assert {audience.topic for audience in touched} == {audience.topic for audience in audiences if audience.order}
        for audience in touched:
            assert audience.order == sorted(audience.order)
            result[audience.topic] += [
                (number, order, message) for order, message in zip(audience.order, audience.messages, strict=True)
            ]
        matcher.clear(touched)
    return result


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("channels", [(), *((name,) for name in CHANNELS), tuple(CHANNELS)], ids=" and ".join)
@pytest.mark.parametrize("seed", range(10))
def test_runs_read_as_the_same_changes_one_by_one(seed: int, channels: tuple[str, ...], positions: bool) -> None:
    made = changes(dice := random.Random(seed))
    one_transaction = [Chunk(5000, AT, 7, made)]
    # Commits of one row each, some of them in the same second as the one before, some at another time.
    at, commits = AT, []
    for number, change in enumerate(made):
        at += timedelta(milliseconds=dice.choice([0, 1, 1, 1, 7, 7, 1_500 if dice.random() < 0.1 else 2, -3]))
        commits.append(Chunk(5000 + number, at, 7, [change]))
    for together, apart in (
        ([one_transaction], [[Chunk(5000, AT, 7, [change])] for change in made]),
        ([commits], [[commit] for commit in commits]),
    ):
        one, other = (delivered(batches, channels, positions=positions) for batches in (together, apart))
        for name in (*TOPICS, *channels):
            assert [message for _, _, message in one[name]] == [message for _, _, message in other[name]]
        in_order = [
            [message for _, _, message in sorted(line for lines in result.values() for line in lines)]
            for result in (one, other)
        ]
        assert in_order[0] == in_order[1]
        assert len(in_order[0]) > 300
