"""Phoenix's frames, read and written: what clients sent, what they need back, and anything else."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import InvalidFrame, UnsupportedVersion
from streaming.phoenix import (
    BROADCAST,
    V1,
    V2,
    Json,
    Message,
    Serializer,
    UserBroadcast,
    Verbatim,
    read_json,
    serializer_for,
    write_json,
)

HEARTBEAT_V1 = '{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}'
BOTH = pytest.mark.parametrize("serializer", [V1, V2], ids=["V1", "V2"])


def frame_of(serializer: Serializer, message: Message) -> str:
    """What a client sends: 1.0.0 with its join_ref, which the server never writes."""
    if serializer is V1:
        return json.dumps(message._asdict())
    return json.dumps(message)


def test_an_object_is_a_message_of_version_1() -> None:
    assert V1.decode('{"topic":"realtime:*","event":"phx_join","payload":{"a":[1]},"ref":"7"}') == Message(
        None, "7", "realtime:*", "phx_join", {"a": [1]}
    )


def test_version_1_takes_a_join_ref_and_ignores_other_keys() -> None:
    frame = '{"topic":"t","event":"e","payload":null,"ref":null,"join_ref":"3","zzz":1}'
    assert V1.decode(frame) == Message("3", None, "t", "e", None)


def test_a_binary_frame_of_version_1_is_the_same_text() -> None:
    assert V1.decode(HEARTBEAT_V1.encode()) == V1.decode(HEARTBEAT_V1)


def test_an_array_is_a_message_of_version_2_and_elements_after_the_fifth_are_ignored() -> None:
    assert V2.decode('["1","2","realtime:*","phx_join",{},"more"]') == Message("1", "2", "realtime:*", "phx_join", {})


def test_version_1_writes_exactly_four_keys() -> None:
    written = V1.encode(Message("9", "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}))
    assert json.loads(written) == {
        "event": "phx_reply",
        "payload": {"status": "ok", "response": {}},
        "ref": "1",
        "topic": "phoenix",
    }


def test_version_2_writes_five_elements() -> None:
    assert V2.encode(Message("9", "1", "täble", "phx_close", {})) == '["9","1","täble","phx_close",{}]'.encode()


@BOTH
@pytest.mark.parametrize(
    "ref",
    [
        "7",
        7,
        1.5,
        1e3,
        None,
        True,
        "",
        [1],
        {"a": 1},
        123456789012345678901234567890,
        -(2**63) - 1,
        {"a": [2**64]},
        [[[[]]]],
    ],
)
def test_refs_of_any_type_come_back_as_they_came(serializer: Serializer, ref: Json) -> None:
    decoded = serializer.decode(frame_of(serializer, Message(None, ref, ref, "e", {})))
    assert decoded.ref == ref
    assert type(decoded.ref) is type(ref)
    written = json.loads(serializer.encode(decoded))
    assert (written["ref"] if serializer is V1 else written[1]) == ref
    assert (written["topic"] if serializer is V1 else written[2]) == ref


def test_of_equal_keys_the_first_counts() -> None:
    frame = '{"topic":"x","topic":"phoenix","event":"heartbeat","payload":{"ref":1,"a":2},"ref":"1","ref":"2"}'
    assert V1.decode(frame) == Message(None, "1", "x", "heartbeat", {"ref": 1, "a": 2})


@pytest.mark.parametrize("missing", ["topic", "event", "payload", "ref"])
def test_version_1_wants_its_four_keys(missing: str) -> None:
    value = json.loads(HEARTBEAT_V1)
    del value[missing]
    with pytest.raises(InvalidFrame, match=missing):
        V1.decode(json.dumps(value))


@BOTH
@pytest.mark.parametrize(
    "frame",
    [
        "",
        "not json",
        '"x"',
        "5",
        "null",
        "{}",
        "[]",
        '["1","1","realtime:*","phx_join"]',
        "\x00",
        '{"topic":"\x00","event":"heartbeat","payload":{},"ref":"1"}',
        '{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"\\ud800"}',
        '["1","\\ud800","phoenix","heartbeat",{}]',
        '[1,"\ud800","phoenix","heartbeat",{}]',
        '{"topic":"phoenix","event":"heartbeat","payload":{},"ref":1e999}',
        "[NaN,1,2,3,4]",
        "[1,Infinity,2,3,4]",
        "[1,2,3,4,-1e999]",
        f"[{'9' * 5_000},1,2,3,4]",
        "[" * 100_000,
        "[" * 255 + "]" * 255,
        f"[1,2,3,4,{'[' * 254}{']' * 254}]",
        f'{{"topic":{"[" * 254}{"]" * 254},"event":"e","payload":{{}},"ref":"1"}}',
        "\ufeff" + HEARTBEAT_V1,
    ],
)
def test_a_frame_that_is_no_message_is_invalid(serializer: Serializer, frame: str) -> None:
    with pytest.raises(InvalidFrame):
        serializer.decode(frame)


@BOTH
@pytest.mark.parametrize("frame", [b"", b"\xff\xfe", b"\x00\x01\x02", b'{"topic":"\xff"}'])
def test_a_binary_frame_that_is_no_message_is_invalid(serializer: Serializer, frame: bytes) -> None:
    with pytest.raises(InvalidFrame):
        serializer.decode(frame)


def test_each_version_refuses_the_other_ones_frames() -> None:
    with pytest.raises(InvalidFrame, match="wants an object"):
        V1.decode('["1","1","realtime:*","phx_join",{}]')
    with pytest.raises(InvalidFrame, match="wants an array"):
        V2.decode(HEARTBEAT_V1)


def test_the_error_keeps_nothing_of_the_frame() -> None:
    with pytest.raises(InvalidFrame) as caught:
        V1.decode('{"payload":{"access_token":"eyJhbGciOi"')
    assert "eyJ" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def binary(kind: int, *fields: bytes, data: bytes = b"") -> bytes:
    return struct.pack("5B", kind, *map(len, fields)) + b"".join(fields) + data


def test_a_binary_push_of_version_2_is_read() -> None:
    frame = binary(0, b"1", b"22", b"realtime:\xc3\xbc", b"send", data=b"\x00\xff")
    assert V2.decode(frame) == Message("1", "22", "realtime:ü", "send", b"\x00\xff")
    assert V2.decode(binary(0, b"", b"", b"", b"")) == Message("", "", "", "", b"")


def test_every_shorter_header_of_a_binary_push_is_invalid() -> None:
    frame = binary(0, b"1", b"22", b"realtime:*", b"send")
    for end in range(len(frame)):
        with pytest.raises(InvalidFrame):
            V2.decode(frame[:end])


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 91, 255])
def test_an_unreadable_binary_frame_tells_its_kind(kind: int) -> None:
    with pytest.raises(InvalidFrame) as caught:
        V2.decode(binary(kind, b"\xff", b"", b"", b""))
    assert caught.value.binary_kind == kind


def test_an_unreadable_text_frame_has_no_kind() -> None:
    for serializer in (V1, V2):
        with pytest.raises(InvalidFrame) as caught:
            serializer.decode("nope")
        assert caught.value.binary_kind is None


@BOTH
def test_head_payload_and_tail_make_the_frame_of_a_push(serializer: Serializer) -> None:
    topic, event = 'realtime:public:t:name=eq."ü\\', "INSERT"
    payload: Json = {"record": {"id": "1"}}
    head, tail = serializer.push(topic, event)
    spliced = head + json.dumps(payload).encode() + tail
    assert json.loads(spliced) == json.loads(serializer.encode(Message(None, None, topic, event, payload)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from([V1, V2]), st.text() | st.binary())
def test_any_frame_is_a_message_or_invalid(serializer: Serializer, frame: str | bytes) -> None:
    try:
        message = serializer.decode(frame)
    except InvalidFrame:
        return
    assert isinstance(message, Message)


@given(st.sampled_from([V1, V2]), json_values)
def test_any_json_is_a_message_or_invalid(serializer: Serializer, value: Json) -> None:
    try:
        message = serializer.decode(json.dumps(value))
    except InvalidFrame:
        return
    serializer.encode(message)


messages = st.builds(Message, json_values, json_values, json_values, st.text(), json_values)


@given(st.sampled_from([V1, V2]), messages)
def test_a_message_comes_back_as_it_was_sent(serializer: Serializer, message: Message) -> None:
    decoded = serializer.decode(frame_of(serializer, message))
    assert decoded[:4] == message[:4]
    encoded = json.loads(serializer.encode(message))
    if serializer is V1:
        assert encoded == {key: value for key, value in message._asdict().items() if key != "join_ref"}
    else:
        assert encoded == list(message)


@pytest.mark.parametrize(
    ("vsn", "serializer"),
    [
        (None, V1),
        ("1.0.0", V1),
        ("1.0.5", V1),
        ("1.0.10", V1),
        ("2.0.0", V2),
        ("2.0.9", V2),
        ("2.0.0+x", V2),
        ("2.0.0+x.1-y", V2),
    ],
)
def test_vsn_chooses_the_serializer(vsn: str | None, serializer: Serializer) -> None:
    assert serializer_for(vsn) is serializer


@pytest.mark.parametrize(
    "vsn",
    [
        "",
        "1",
        "2",
        "1.0",
        "abc",
        "0.9.0",
        "1.1.0",
        "2.1.0",
        "3.0.0",
        "1.0.0-rc.1",
        "1.0.00",
        "1.0.0\n",
        "1.0.٠",
        "1.0.0+",
    ],
)
def test_another_vsn_is_refused(vsn: str) -> None:
    with pytest.raises(UnsupportedVersion):
        serializer_for(vsn)


def test_a_serializer_knows_its_version() -> None:
    assert (V1.vsn, V2.vsn) == ("1.0.0", "2.0.0")


# Broadcasts


def pushed(
    *fields: str, kind: int = 3, encoding: int = 1, data: bytes = b"{}", lengths: list[int] | None = None
) -> bytes:
    """A binary frame of a client: join_ref, ref, topic, event and metadata, then the payload."""
    encoded = [field.encode() for field in fields]
    sizes = lengths if lengths is not None else list(map(len, encoded))
    return bytes([kind, *sizes, encoding]) + b"".join(encoded) + data


def test_a_binary_broadcast_of_a_client_is_read() -> None:  # F16
    frame = bytes.fromhex("030203050a0000") + b"12123topicuser_event" + b"efg"
    assert V2.decode(frame) == Message(
        "12", "123", "topic", BROADCAST, UserBroadcast("user_event", b"efg", is_json=False)
    )


def test_the_metadata_of_a_binary_broadcast_is_ignored() -> None:  # F17
    frame = pushed("12", "123", "topic", "user_event", '{"store":true}', data=b'{"a":1}')
    assert V2.decode(frame) == Message(
        "12", "123", "topic", BROADCAST, UserBroadcast("user_event", b'{"a":1}', is_json=True)
    )


def test_a_broadcast_of_bytes_is_written_as_kind_4() -> None:
    written = V2.broadcast("topic", UserBroadcast("user_event", b"efg", is_json=False))
    assert written == (bytes.fromhex("04050a0000") + b"topicuser_event" + b"efg", True)
    assert V1.broadcast("topic", UserBroadcast("user_event", b"efg", is_json=False)) is None


def test_a_broadcast_of_json_is_written_as_kind_4_or_as_text() -> None:  # F19, B9
    broadcast = UserBroadcast("e", b'{"a":"b"}', is_json=True)
    assert V2.broadcast("topic", broadcast) == (bytes.fromhex("0405010001") + b'topice{"a":"b"}', True)
    text, is_binary = V1.broadcast("topic", broadcast) or (b"", True)
    assert not is_binary
    assert json.loads(text) == {
        "topic": "topic",
        "event": "broadcast",
        "payload": {"event": "e", "payload": {"a": "b"}, "type": "broadcast"},
        "ref": None,
    }


def test_names_too_long_for_a_binary_header_travel_as_text() -> None:  # F20
    for topic, event in (("t" * 256, "e"), ("t", "e" * 256), ("ä" * 128, "e")):
        text, is_binary = V2.broadcast(topic, UserBroadcast(event, b'{"a":1}', is_json=True)) or (b"", True)
        assert not is_binary
        payload = {"event": event, "payload": {"a": 1}, "type": "broadcast"}
        assert json.loads(text) == [None, None, topic, "broadcast", payload]
        assert V2.broadcast(topic, UserBroadcast(event, b"efg", is_json=False)) is None
    assert V2.broadcast("t" * 255, UserBroadcast("e" * 255, b"efg", is_json=False)) is not None


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        '{"type":"broadcast","event":"e","payload":{"n":12345678901234567890123,"f":1.50,"e":1E+2}}',
        '{ "event" : "e",\n "extra": [1, 2 ,3]  , "payload": {"a": {"payload": "]}"}} }',
        '"text with ] and } and \\" and \\u00e9"',
        "[1, [2], {}]",
        "{}",
        "null",
        "-0.0",
    ],
)
def test_the_payload_of_a_broadcast_is_handed_on_as_it_was_written(serializer: Serializer, text: str) -> None:
    if serializer is V1:
        frames = [
            f'{{"topic":"t","event":"broadcast","payload":{text},"ref":"1"}}',
            f' {{ "payload" : {text} , "ref":null,"x":{{"payload":1}},"event":"broadcast","topic":"t"}} ',
            f'{{"topic":"t","event":"broadcast","payload":{text},"ref":"1","payload":{{"second":true}}}}',
        ]
    else:
        frames = [
            f'["1","2","t","broadcast",{text}]',
            f' [ null , 12345678901234567890123, "t", "broadcast" , {text} ] ',
            f'["1","2","t","broadcast",{text},{{"sixth":"]"}}, 7]',
        ]
    for frame in frames:
        payload = serializer.decode(frame).payload
        assert payload == Verbatim(text.encode())
        for other in (V1, V2):
            written, is_binary = other.broadcast("t", Verbatim(text.encode())) or (b"", True)
            assert not is_binary
            assert text.encode() in written
            json.loads(written)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x03",
        bytes.fromhex("0302030500"),
        pushed("1", "2", "t", "e", "")[:10],
        pushed("1", "2", "t", "e", "", data=b"no json"),
        pushed("1", "2", "t", "e", "", data=b""),
        pushed("1", "2", "t", "e", "{bad"),
        pushed("1", "2", "t", "e", "", lengths=[1, 1, 1, 255, 0]),
        # What realtime-js 2.81 to 2.110.3 makes of a topic that is not ASCII: lengths in UTF-16 units.
        pushed("1", "2", "räume", "e", "", lengths=[1, 1, 5, 1, 0]),
        bytes([3, 0, 0, 1, 0, 0, 1]) + b"\xff{}",
    ],
)
def test_a_broken_broadcast_is_invalid_and_says_its_kind(frame: bytes) -> None:
    with pytest.raises(InvalidFrame) as caught:
        V2.decode(frame)
    assert caught.value.binary_kind == 3


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x00", b"\x03", b"\x04"]))
def test_any_binary_frame_is_a_message_or_invalid(frame: bytes, kind: bytes) -> None:
    try:
        message = V2.decode(kind + frame)
    except InvalidFrame:
        return
    assert message.event == BROADCAST or isinstance(message.payload, bytes)


NAMES = st.text(max_size=60).filter(lambda text: len(text.encode()) <= 255)


@given(NAMES, NAMES, NAMES, NAMES, st.binary(max_size=300))
def test_what_is_broadcast_arrives_as_it_was(join_ref: str, ref: str, topic: str, event: str, data: bytes) -> None:
    message = V2.decode(pushed(join_ref, ref, topic, event, "", encoding=0, data=data))
    assert message[:4] == (join_ref, ref, topic, BROADCAST)
    assert isinstance(message.payload, UserBroadcast)
    written, is_binary = V2.broadcast(topic, message.payload) or (b"", False)
    sizes = bytes([4, len(topic.encode()), len(event.encode()), 0, 0])
    assert (written, is_binary) == (sizes + topic.encode() + event.encode() + data, True)


@pytest.mark.parametrize("text", [b'{"a":12345678901234567890123,"b":[1.5,null]}', b"[]", b'"x"', b"123"])
def test_json_that_is_read_is_written_the_same(text: bytes) -> None:
    assert write_json(read_json(text)) == text


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"NaN", b"[" * 5_000 + b"]" * 5_000, b"{} {}"])
def test_what_is_no_json_is_not_read(text: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON"):
        read_json(text)
