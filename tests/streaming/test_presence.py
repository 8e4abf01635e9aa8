"""Who is present: states, diffs, and replicas that agree."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.presence import Diff, Presences

ROOM = "realtime:room"
NOW = 1_800_000_000.0


def presences(name: str = "abc") -> Presences:
    return Presences(name.encode())


def shown(diff: Diff | None) -> Any:
    """A diff as a client reads it, but for the refs: joins, leaves."""
    assert diff is not None
    payload = json.loads(diff.payload())
    return [_plain(payload["joins"]), _plain(payload["leaves"])]


def state(one: Presences, topic: str = ROOM) -> Any:
    return _plain(json.loads(one.state(topic)))


def _plain(keys: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [
            {name: value for name, value in meta.items() if not name.startswith("phx_ref")} for meta in entry["metas"]
        ]
        for key, entry in keys.items()
    }


def test_the_state_of_an_empty_room_is_an_empty_object() -> None:
    assert presences().state(ROOM) == b"{}"


def test_a_tracked_payload_is_a_join_with_a_ref() -> None:  # P3
    one = presences()
    diff = one.track(ROOM, 1, "key", {"name": "n", "t": 1814.7000000029802}, NOW)
    assert diff is not None
    payload = json.loads(diff.payload())
    [meta] = payload["joins"]["key"]["metas"]
    ref = meta.pop("phx_ref")
    assert (meta, payload["leaves"]) == ({"name": "n", "t": 1814.7000000029802}, {})
    assert (type(ref), len(ref)) == (str, 16)
    assert b"1814.7000000029802" in diff.payload()


def test_the_state_holds_what_was_tracked() -> None:  # P5
    one = presences()
    one.track(ROOM, 1, "a", {"n": 1}, NOW)
    one.track("realtime:other", 1, "a", {"n": 2}, NOW)
    assert state(one) == {"a": [{"n": 1}]}


def test_another_payload_replaces_the_meta_as_a_whole_and_names_the_one_before() -> None:  # P6
    one = presences()
    first = one.track(ROOM, 1, "a", {"a": 1, "b": 1}, NOW)
    second = one.track(ROOM, 1, "a", {"a": 2}, NOW)
    assert first is not None
    assert second is not None
    assert shown(second) == [{"a": [{"a": 2}]}, {"a": [{"a": 1, "b": 1}]}]
    before = json.loads(first.payload())["joins"]["a"]["metas"][0]
    after = json.loads(second.payload())
    assert after["joins"]["a"]["metas"][0]["phx_ref_prev"] == before["phx_ref"]
    assert after["leaves"]["a"]["metas"] == [before]
    assert after["joins"]["a"]["metas"][0]["phx_ref"] != before["phx_ref"]


def test_the_same_payload_again_changes_nothing() -> None:  # P7
    one = presences()
    one.track(ROOM, 1, "a", {"x": 1, "y": [2]}, NOW)
    assert one.track(ROOM, 1, "a", {"y": [2], "x": 1}, NOW) is None


def test_what_was_untracked_can_be_tracked_again() -> None:  # P8
    one = presences()
    diffs = [one.track(ROOM, 1, "a", {}, NOW), one.untrack(ROOM, 1), one.track(ROOM, 1, "a", {}, NOW)]
    assert list(map(shown, diffs)) == [[{"a": [{}]}, {}], [{}, {"a": [{}]}], [{"a": [{}]}, {}]]


def test_untracking_what_was_not_tracked_changes_nothing() -> None:  # P9
    assert presences().untrack(ROOM, 1) is None


def test_one_key_may_have_several_metas() -> None:  # P22
    one = presences()
    one.track(ROOM, 1, "k", {"n": 1}, NOW)
    diff = one.track(ROOM, 2, "k", {"n": 2}, NOW)
    assert shown(diff) == [{"k": [{"n": 2}]}, {}]
    assert state(one) == {"k": [{"n": 1}, {"n": 2}]}
    one.untrack(ROOM, 1)
    assert state(one) == {"k": [{"n": 2}]}


def test_a_client_cannot_choose_its_refs() -> None:
    one = presences()
    diff = one.track(ROOM, 1, "a", {"phx_ref": "mine", "phx_ref_prev": "mine"}, NOW)
    assert diff is not None
    assert b"mine" not in diff.payload()
    assert b"phx_ref_prev" not in diff.payload()


def test_keys_are_text_of_any_kind() -> None:
    one = presences()
    one.track(ROOM, 1, 'é "quoted"\n', {}, NOW)
    assert state(one) == {'é "quoted"\n': [{}]}


def test_refs_are_never_given_twice() -> None:
    ones = [presences("abc"), presences("abd")]
    refs = []
    for index in range(2_000):
        diff = ones[index % 2].track(ROOM, index, "k", {}, NOW)
        assert diff is not None
        refs.append(diff.joins[0].ref)
    assert len(set(refs)) == 2_000


# Replicas


def test_a_change_of_another_process_is_seen_here() -> None:
    here, there = presences("here"), presences("there")
    diff = there.track(ROOM, 1, "a", {"n": 1}, NOW)
    assert diff is not None
    assert shown(here.follow("there", there.number, diff)) == [{"a": [{"n": 1}]}, {}]
    assert here.state(ROOM) == there.state(ROOM)


def test_a_gap_is_noticed_and_filled_with_the_state() -> None:
    here, there = presences("here"), presences("there")
    there.track(ROOM, 1, "a", {"n": 1}, NOW)
    lost = there.track(ROOM, 2, "b", {"n": 2}, NOW)
    last = there.untrack(ROOM, 1)
    assert lost is not None
    assert last is not None
    assert here.follow("there", there.number, last) is None
    assert not here.is_level("there", there.number)
    [diff] = here.replace("there", there.number, there.own())
    assert shown(diff) == [{"b": [{"n": 2}]}, {}]
    assert here.is_level("there", there.number)


def test_an_old_state_brings_nobody_back() -> None:
    here, there = presences("here"), presences("there")
    join = there.track(ROOM, 1, "a", {}, NOW)
    old_number, old = there.number, there.own()
    leave = there.untrack(ROOM, 1)
    assert join is not None
    assert leave is not None
    here.follow("there", 1, join)
    here.follow("there", 2, leave)
    assert here.replace("there", old_number, old) == []
    assert here.state(ROOM) == b"{}"


def test_a_process_that_is_gone_takes_its_presences_along() -> None:
    here, there = presences("here"), presences("there")
    here.track(ROOM, 1, "mine", {}, NOW)
    for member in range(3):
        there.track(ROOM, member, f"k{member}", {}, NOW)
    here.replace("there", there.number, there.own())
    [diff] = here.forget("there")
    assert shown(diff) == [{}, {"k0": [{}], "k1": [{}], "k2": [{}]}]
    assert state(here) == {"mine": [{}]}
    assert here.forget("there") == []


class Client:
    """What a client makes of a state and the diffs after it."""

    def __init__(self, text: bytes) -> None:
        self.refs = {meta["phx_ref"] for entry in json.loads(text).values() for meta in entry["metas"]}

    def hear(self, diff: Diff) -> None:
        payload = json.loads(diff.payload())
        for entry in payload["joins"].values():
            self.refs |= {meta["phx_ref"] for meta in entry["metas"]}
        for entry in payload["leaves"].values():
            self.refs -= {meta["phx_ref"] for meta in entry["metas"]}


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["track", "untrack", "lose", "heal"]), st.integers(0, 3)), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_replicas_and_their_clients_agree_whatever_gets_lost(
    steps: list[tuple[int, str, int]], chance: random.Random
) -> None:
    names = ["p0", "p1", "p2"]
    processes = [presences(name) for name in names]
    clients = [Client(process.state(ROOM)) for process in processes]
    deaf = [False] * 3

    def tell(sender: int, diff: Diff) -> None:
        clients[sender].hear(diff)
        for index, process in enumerate(processes):
            if index == sender or deaf[index]:
                continue
            heard = process.follow(names[sender], processes[sender].number, diff)
            if heard is not None:
                clients[index].hear(heard)

    def heal(index: int) -> None:
        deaf[index] = False
        for other in range(3):
            if other != index and not processes[index].is_level(names[other], processes[other].number):
                for diff in processes[index].replace(names[other], processes[other].number, processes[other].own()):
                    clients[index].hear(diff)

    for index, step, member in steps:
        match step:
            case "track":
                diff = processes[index].track(ROOM, member, f"k{chance.randrange(2)}", {"n": chance.random()}, NOW)
                if diff is not None:
                    tell(index, diff)
            case "untrack":
                if (diff := processes[index].untrack(ROOM, member)) is not None:
                    tell(index, diff)
            case "lose":
                deaf[index] = True
            case _:
                heal(index)
    for index in range(3):
        heal(index)

    wanted = {meta.ref for process in processes for metas in process.own().values() for meta in metas}
    assert [{meta.ref for meta in process.metas(ROOM)} for process in processes] == [wanted] * 3
    assert [client.refs for client in clients] == [wanted] * 3
