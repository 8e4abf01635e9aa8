"""What a topic is called inside the channel layer."""

from __future__ import annotations

import re

import pytest
from channels.layers import BaseChannelLayer
from hypothesis import assume, example, given
from hypothesis import strategies as st

from replication.groups import CHAIN_TOPIC, group_name

_LEGAL = re.compile(r"[A-Za-z0-9_.-]{1,99}", re.ASCII)
_topics = st.text(st.sampled_from("ab:.*_-=é\0 "), max_size=8) | st.text(max_size=120)


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("realtime:public", "realtime.public"),
        ("realtime:public:users", "realtime.public.users"),
        ("realtime:*", "realtime..all"),
        ("room-1", "room-1"),
    ],
)
def test_a_plain_topic_stays_readable(topic: str, name: str) -> None:
    assert group_name(topic) == name


@pytest.mark.parametrize(
    "topic", ["", "realtime:public:users:id=eq.1", "a.b", "ünï", "a b", "a" * 200, "topic:abc", "a:"]
)
def test_any_other_topic_is_hashed(topic: str) -> None:
    assert re.fullmatch(r"topic\.[0-9a-f]{40}", group_name(topic))


@given(_topics)
@example("")
@example("x" * 10_000)
@example("realtime:public:\ud800".encode("utf-8", "replace").decode())
def test_every_name_is_one_that_channels_takes(topic: str) -> None:
    name = group_name(topic)
    assert _LEGAL.fullmatch(name)
    BaseChannelLayer().require_valid_group_name(name)


@given(_topics, _topics)
@example("a.b", "a:b")
@example("realtime:*", "realtime::all")
@example("realtime:*", "realtime..all")
@example("a:", "a")
def test_different_topics_have_different_names(one: str, other: str) -> None:
    assume(one != other)
    assert group_name(one) != group_name(other)


def test_the_name_of_a_hash_is_nobody_elses() -> None:
    hashed = group_name("a b")
    assert group_name(hashed.replace(".", ":")) != hashed
    assert group_name(hashed) != hashed


def test_the_chain_has_a_name_that_stays() -> None:
    # Processes of one deployment meet under it, whatever their version.
    assert group_name(CHAIN_TOPIC) == "realtime..all"
