"""Who is concerned by a change: topics in their order, and columns that somebody watches."""

from __future__ import annotations

import pytest

from replication.changes import Column, Relation
from replication.configuration import Broadcast, Configuration
from replication.pgoutput import UNCHANGED_TOAST, Text
from streaming.filters import TopicIndex, has_column_topic, topics_of_row


def _relation(*names: str, schema: str = "public", table: str = "users") -> Relation:
    return Relation(1, schema, table, "d", tuple(Column(name, "text", 25, 0, False) for name in names))


_USERS = _relation("id", "name")


def _topics(joined: list[str], relation: Relation = _USERS, row: list[Text] | None = None) -> list[str]:
    """The joined topics of a row, in the order in which they are published."""
    index = TopicIndex()
    for topic in joined:
        index.add(topic)
    plan = index.plan(relation)
    return [*plan.topics, *topics_of_row(plan, row or ["1", "Bob"], set(joined))]


_ALL = ["realtime:public", "realtime:*", "realtime:public:users", "realtime:public:users:id=eq.1"]


def test_topics_are_published_from_the_schema_to_the_columns_by_name() -> None:
    joined = [*_ALL, "realtime:public:users:name=eq.Bob"]
    assert _topics(list(reversed(joined))) == joined


def test_columns_go_by_the_bytes_of_their_names() -> None:
    relation = _relation("é", "b", "a", "B", "z")
    joined = [f"realtime:public:users:{name}=eq.v" for name in ("a", "b", "z", "B", "é")]
    assert _topics(joined, relation, ["v"] * 5) == [
        f"realtime:public:users:{name}=eq.v" for name in ("B", "a", "b", "z", "é")
    ]


@pytest.mark.parametrize(
    "topic",
    [
        "realtime:auth",
        "realtime:public:todos",
        "realtime:public:users:id=eq.2",
        "realtime:public:users:id=eq.",
        "realtime:public:users:id=neq.1",
        "realtime:public:users:id=gt.0",
        "realtime:public:users:other=eq.1",
        "realtime:public:users:id=eq.1 ",
        "realtime:PUBLIC:users",
        "realtime:",
        "realtime",
        "*",
    ],
)
def test_other_topics_are_not_concerned(topic: str) -> None:
    assert _topics([topic]) == []


def test_nobody_watches_a_relation_without_topics() -> None:
    index = TopicIndex()
    assert not index.plan(_USERS).watched
    index.add("realtime:public:todos")
    assert not index.plan(_USERS).watched
    index.add("realtime:public:users:id=eq.999")
    assert index.plan(_USERS).watched


def test_a_column_that_nobody_filters_by_is_not_looked_at() -> None:
    index = TopicIndex()
    index.add("realtime:public:users:name=eq.Bob")
    plan = index.plan(_USERS)
    assert plan.columns == [(1, "realtime:public:users:name=eq.")]
    assert plan.topics == []


# Values


def test_null_has_no_topic_and_the_empty_text_has_one() -> None:
    joined = ["realtime:public:users:name=eq."]
    assert _topics(joined, row=["1", None]) == []
    assert _topics(joined, row=["1", ""]) == joined


def test_a_value_that_was_not_resent_has_no_topic_and_the_same_text_has_one() -> None:
    joined = ["realtime:public:users:name=eq.unchanged_toast"]
    assert _topics(joined, row=["1", UNCHANGED_TOAST]) == []
    assert _topics(joined, row=["1", "unchanged_toast"]) == joined


@pytest.mark.parametrize("value", ["a:b=eq.c d%&?#\"\\'é", "=eq.", "=eq.=eq.", " ", "\n", "🐘", "x=eq.y:z"])
def test_a_value_stands_in_its_topic_as_it_is(value: str) -> None:
    joined = [f"realtime:public:users:name=eq.{value}"]
    assert _topics(joined, row=["1", value]) == joined


def test_names_with_colons_and_operators_are_compared_as_they_are() -> None:
    relation = _relation("Col:One", "a=eq.b", schema="odd:schema", table="Weird Tbl")
    joined = [
        "realtime:odd:schema",
        "realtime:odd:schema:Weird Tbl",
        "realtime:odd:schema:Weird Tbl:Col:One=eq.1",
        "realtime:odd:schema:Weird Tbl:a=eq.b=eq.2",
    ]
    assert _topics(joined, relation, ["1", "2"]) == joined


_FAMILY = "👨‍👩‍👧"


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("", True),
        ("W" * 99, True),
        ("W" * 100, False),
        ("é" * 99, True),
        ("e\u0301" * 99, True),
        ("e\u0301" * 100, False),
        (_FAMILY * 99, True),
        (_FAMILY * 100, False),
        ("🇩🇪" * 99, True),
        ("🇩🇪" * 100, False),
        ("\r\n" * 99, True),
        ("x" * 1_000_000, False),
    ],
    ids=lambda value: f"{len(value)} code points" if isinstance(value, str) else str(value),
)
def test_values_are_measured_in_characters_as_a_reader_counts_them(text: str, has: bool) -> None:
    assert has_column_topic(text) is has
    assert _topics([f"realtime:public:users:name=eq.{text}"], row=["1", text]) == (
        [f"realtime:public:users:name=eq.{text}"] if has else []
    )


# Those who come and go


def test_the_last_one_to_leave_a_column_takes_it_out_of_the_plan() -> None:
    index = TopicIndex()
    one, other = "realtime:public:users:id=eq.1", "realtime:public:users:id=eq.2"
    index.add(one)
    index.add(other)
    index.discard(one)
    assert index.plan(_USERS).columns == [(0, "realtime:public:users:id=eq.")]
    index.discard(other)
    assert not index.plan(_USERS).watched


def test_leaving_a_wide_topic_takes_it_out_of_the_plan() -> None:
    index = TopicIndex()
    for topic in _ALL:
        index.add(topic)
    index.discard("realtime:*")
    assert index.plan(_USERS).topics == ["realtime:public", "realtime:public:users"]
    assert index.plan(_USERS).columns


def test_a_topic_with_two_readings_leaves_both() -> None:
    index = TopicIndex()
    index.add("realtime:public:users:a=eq.b=eq.c")
    relation = _relation("a", "a=eq.b")
    assert [index_ for index_, _ in index.plan(relation).columns] == [0, 1]
    index.discard("realtime:public:users:a=eq.b=eq.c")
    assert not index.plan(relation).watched


def test_an_altered_table_has_a_plan_of_its_own() -> None:
    index = TopicIndex()
    index.add("realtime:public:users:name=eq.Bob")
    assert index.plan(_USERS).columns[0][0] == 1
    assert index.plan(_relation("name", "id")).columns[0][0] == 0
    assert not index.plan(_relation("id")).watched


# What the configuration leaves of them


def _configured(*items: tuple[str, list[str]]) -> TopicIndex:
    configuration = Configuration(tuple(Broadcast(relation, frozenset(events)) for relation, events in items))
    index = TopicIndex(configuration)
    for topic in [*_ALL, "realtime:public:users:name=eq.Bob"]:
        index.add(topic)
    return index


def _heard_by(index: TopicIndex, event: str) -> list[str]:
    plan = index.plan(_USERS, event)
    return [*plan.topics, *(head for _, head in plan.columns)]


def test_only_what_is_broadcast_of_an_event_is_looked_at() -> None:
    index = _configured(("public", ["INSERT", "UPDATE"]), ("public:users", ["DELETE"]), ("*:*:name", ["INSERT"]))
    assert _heard_by(index, "INSERT") == ["realtime:public", "realtime:public:users:name=eq."]
    assert _heard_by(index, "UPDATE") == ["realtime:public"]
    assert _heard_by(index, "DELETE") == ["realtime:public:users"]
    assert _heard_by(index, "TRUNCATE") == []
    assert {plan.event: plan.watched for plan in index.plans_of(_USERS).values()} == {
        "INSERT": True,
        "UPDATE": True,
        "DELETE": True,
        "TRUNCATE": False,
    }


def test_a_relation_of_which_nothing_is_broadcast_is_not_watched() -> None:
    assert _configured().plans_of(_USERS) == {}
    assert _configured(("auth", ["INSERT"]), ("*:todos", ["INSERT"])).plans_of(_USERS) == {}


def test_a_truncate_has_no_column_topics() -> None:
    index = TopicIndex()
    for topic in _ALL:
        index.add(topic)
    assert index.plan(_USERS, "TRUNCATE").columns == []
    assert index.plan(_USERS, "TRUNCATE").topics == _ALL[:3]
