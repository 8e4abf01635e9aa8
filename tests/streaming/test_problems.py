"""The newest warnings and errors, and what to do about them."""

from __future__ import annotations

import logging

from streaming.cures import cures, parse
from streaming.problems import MAX_GROUPS, Problems


def told(problems: Problems, level: int, message: str, **facts: object) -> None:
    logger = logging.Logger("streaming.test")
    logger.addHandler(problems)
    logger.log(level, message, extra=facts)


def test_one_message_is_one_group_with_the_facts_of_the_newest() -> None:
    problems = Problems()
    told(problems, logging.WARNING, "slow reader closed", queued_bytes=1)
    told(problems, logging.WARNING, "slow reader closed", queued_bytes=2)
    told(problems, logging.ERROR, "stopped")
    told(problems, logging.INFO, "streaming")
    newest, other = problems.report()
    assert (newest["message"], newest["count"]) == ("stopped", 1)
    assert (other["message"], other["count"], other["facts"]) == ("slow reader closed", 2, {"queued_bytes": "2"})
    assert len(other["times"]) == 2


def test_only_so_many_messages_are_kept_the_newest_ones() -> None:
    problems = Problems()
    for number in range(MAX_GROUPS + 5):
        told(problems, logging.WARNING, f"message {number}")
    report = problems.report(limit=1000)
    assert len(report) == MAX_GROUPS
    assert report[0]["message"] == f"message {MAX_GROUPS + 4}"


def test_what_is_old_is_not_reported() -> None:
    problems = Problems()
    told(problems, logging.WARNING, "long ago")
    assert problems.report(within_s=-1) == []


def test_the_table_of_the_readme_gives_the_cure() -> None:
    found = parse(
        "\n## Operations\n\n| message | what it means | what to do |\n|---|---|---|\n"
        "| `one`, `two` (INFO) | it [means](#x) so | do `this` |\n\n## Security\n| `three` | a | b |\n"
    )
    assert found == {"one": ("it means so", "do `this`"), "two": ("it means so", "do `this`")}


def test_our_own_messages_have_cures() -> None:
    assert "slow reader closed" in cures()
    assert parse("nothing of the kind") == {}
