"""The grammar of filters."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import InvalidFilter
from streaming.filter_language import Condition, parse


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", []),
        ("  ", []),
        ("id=eq.1", [Condition("id", "eq", "1")]),
        (" id=eq.1 ", [Condition("id", "eq", "1")]),
        ("a=eq.1, b=not.lt.2", [Condition("a", "eq", "1"), Condition("b", "lt", "2", True)]),
        ("a=eq.", [Condition("a", "eq", "")]),
        ("a=eq.b.c=d", [Condition("a", "eq", "b.c=d")]),
        ("a b=eq.x y", [Condition("a b", "eq", "x y")]),
        ("a=in.(1,2)", [Condition("a", "in", "{1,2}")]),
        ("a=in.()", [Condition("a", "in", "{}")]),
        ('a=in.("x,y",z),b=eq.1', [Condition("a", "in", '{"x,y",z}'), Condition("b", "eq", "1")]),
        ('a=in.("x)",z),b=eq.1', [Condition("a", "in", '{"x)",z}'), Condition("b", "eq", "1")]),
        ('a=eq."x,y"', [Condition("a", "eq", "x,y")]),
        (r'a=eq."x\"y\\"', [Condition("a", "eq", 'x"y\\')]),
        ('a=eq."x"y', [Condition("a", "eq", '"x"y')]),
        ('a=eq."x', [Condition("a", "eq", '"x')]),
        ('a=eq."', [Condition("a", "eq", '"')]),
        (r'a=eq."x\"', [Condition("a", "eq", r'"x\"')]),
        ('a=eq.it\'s "x"', [Condition("a", "eq", 'it\'s "x"')]),
        ("a=eq.(x,y)", [Condition("a", "eq", "(x,y)")]),
        ("a=match.^(a|b){1,2}$", None),
        ("a=is.null", [Condition("a", "is", "null")]),
        ("a=not.is.null", [Condition("a", "is", "null", True)]),
        ("a=like.x%", [Condition("a", "like", "x%")]),
        ("=eq.1", [Condition("", "eq", "1")]),
    ],
)
def test_filters_are_read(text: str, conditions: list[Condition] | None) -> None:
    if conditions is None:
        with pytest.raises(InvalidFilter):
            parse(text)  # a comma between braces separates: only parentheses nest
    else:
        assert list(parse(text)) == conditions


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("wrong", '["wrong"]'),
        ("id=eq", '["eq"]'),
        ("id=not", '["not"]'),
        ("subject=foo.hey", '["foo", "hey"]'),
        ("subject=EQ.hey", '["EQ", "hey"]'),
        ('s=foo."x"', r'["foo", "\"x\""]'),
        ("id=in.1,2", "`in` filter value must be wrapped by parentheses"),
        ("id=in.(", "`in` filter value must be wrapped by parentheses"),
        ("a=eq.1,,b=eq.2", "filter must not contain empty segments (check for extra commas)"),
        ("a=eq.1,", "filter must not contain empty segments (check for extra commas)"),
    ],
)
def test_others_are_refused_in_the_words_of_the_protocol(text: str, reason: str) -> None:
    with pytest.raises(InvalidFilter) as refused:
        parse(text)
    assert refused.value.reason == reason


@given(st.text(st.sampled_from('a=.,()"\\ not.eq.in.')))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InvalidFilter):
        parse(text)


@given(st.text(min_size=1))
def test_any_value_can_be_quoted(value: str) -> None:
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse(f"a=eq.{quoted}") == (Condition("a", "eq", value),)
