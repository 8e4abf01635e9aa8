"""What is counted one by one, under few names, whatever clients send."""

from __future__ import annotations

from streaming.phoenix import PHX_JOIN, PHX_REPLY, Json, Message
from streaming.tally import REPLAY_BOUNDS, Tally, is_answer


def join(payload: Json) -> Message:
    return Message("1", "1", "realtime:a", PHX_JOIN, payload)


def reply(status: str) -> Message:
    return Message("1", "1", "realtime:a", PHX_REPLY, {"status": status, "response": {}})


def test_joins_are_told_apart_by_protocol_and_result() -> None:
    tally = Tally()
    tally.joined(join({}), reply("ok"))
    tally.joined(join({"config": {}}), reply("ok"))
    tally.joined(join({"config": "nonsense"}), reply("error"))
    tally.joined(join(["nonsense"]), reply("error"))
    assert tally.joins == {("legacy", "ok"): 1, ("current", "ok"): 1, ("legacy", "refused"): 2}


def test_a_client_cannot_make_names_of_close_codes() -> None:
    tally = Tally()
    for code in (*range(1000, 5000), 1000):
        tally.closed("client", code)
    assert tally.closes["client", "1000"] == 2
    assert tally.closes["client", "other"] > 3900
    assert len(tally.closes) < 20


def test_replays_are_counted_by_size() -> None:
    tally = Tally()
    for changes in (0, 1, 2, 10, 11, 1_000_000):
        tally.replay(changes)
    assert dict(zip((*REPLAY_BOUNDS, None), tally.replays, strict=True)) == {
        0: 1,
        1: 1,
        10: 2,
        100: 1,
        1_000: 0,
        10_000: 0,
        100_000: 0,
        None: 1,
    }
    assert tally.replayed == 1_000_024


def test_only_the_reply_to_it_answers_a_join() -> None:
    assert is_answer(join({}), reply("ok"))
    assert not is_answer(join({}), reply("ok")._replace(ref="2"))
    assert not is_answer(join({}), reply("ok")._replace(event="system"))
