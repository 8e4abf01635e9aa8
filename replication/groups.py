"""What a topic is called inside the channel layer."""

from __future__ import annotations

import hashlib
import re

CHAIN_TOPIC = "realtime:*"
"""The topic that every change belongs to; the chain of envelopes travels in its group."""

_READABLE = re.compile(r"[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)*", re.ASCII)
_LONGEST = 80


def group_name(topic: str) -> str:
    """The channel-layer group of a topic.

    Channels allows ASCII letters, digits, ``-``, ``_`` and ``.``, fewer than 100 of them. A plain topic stays readable
    (``realtime:public:users`` becomes ``realtime.public.users``); any other becomes ``topic.`` and a hash, with ``all``
    for the star of `CHAIN_TOPIC`. Equal topics have equal names in every process, different topics different ones.

    Source: https://channels.readthedocs.io/en/stable/topics/channel_layers.html
    """
    if topic == CHAIN_TOPIC:
        return "realtime..all"
    if len(topic) <= _LONGEST and _READABLE.fullmatch(topic) and not topic.startswith("topic:"):
        return topic.replace(":", ".")
    return f"topic.{hashlib.sha256(topic.encode()).hexdigest()[:40]}"
