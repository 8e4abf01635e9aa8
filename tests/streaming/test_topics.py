"""The grammar of topics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import InvalidTopic
from streaming.topics import Topic, column_heads, parse


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("realtime:*", Topic()),
        ("realtime:public", Topic("public")),
        ("realtime:public:users", Topic("public", "users")),
        ("realtime:public:users:id=eq.1", Topic("public", "users", "id", "1")),
        ("realtime:public:users:name=eq.", Topic("public", "users", "name", "")),
        ("realtime:public:users:name=eq.a:b=eq.c d%&?#\"'é", Topic("public", "users", "name", "a:b=eq.c d%&?#\"'é")),
        ("realtime:public:Weird Tbl:Col:One=eq.v", Topic("public", "Weird Tbl", "Col:One", "v")),
        ("realtime:*:*", Topic("*", "*")),
    ],
)
def test_a_topic_is_read_and_printed_back(text: str, topic: Topic) -> None:
    assert parse(text) == topic
    assert str(topic) == text


@pytest.mark.parametrize(
    "text",
    ["", "realtime", "realtime:", "room:1", "realtime::t", "realtime:s:", "realtime:s:t:", "realtime:s:t:id=gt.5"],
)
def test_what_names_no_part_of_a_database_is_invalid(text: str) -> None:
    with pytest.raises(InvalidTopic):
        parse(text)


@given(st.text(alphabet="a:=eq.*"))
def test_every_topic_that_is_read_prints_as_it_was(rest: str) -> None:
    text = f"realtime:{rest}"
    try:
        topic = parse(text)
    except InvalidTopic:
        return
    assert str(topic) == text


def test_the_head_of_a_column_topic_is_what_stands_before_its_value() -> None:
    assert column_heads("realtime:public:users:id=eq.5") == ["realtime:public:users:id"]


def test_a_topic_without_a_column_has_no_head() -> None:
    assert column_heads("realtime:public:users") == []
    assert column_heads("realtime:public:users:id=gt.5") == []


def test_every_equals_sign_may_be_the_one_that_counts() -> None:
    assert column_heads("realtime:s:t:a=eq.b=eq.") == ["realtime:s:t:a", "realtime:s:t:a=eq.b"]


@given(st.text(alphabet="a:=eq."), st.text(alphabet="a:=eq."))
def test_the_head_that_a_publisher_builds_is_always_among_them(column: str, value: str) -> None:
    head = f"realtime:s:t:{column}"
    assert head in column_heads(f"{head}=eq.{value}")
