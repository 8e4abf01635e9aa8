"""Frames that are encoded once and read by everybody, checked by another implementation's reader."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from streaming.frames import BINARY, FRAGMENT_BYTES, TEXT, Parcel, text_frames

# The largest frame that the websocket package takes: https://github.com/theturtle32/WebSocket-Node
_LARGEST_FRAME = 0x100000


def _frames(data: bytes) -> list[Frame]:
    """Read with the `websockets` package; every byte belongs to a frame."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while not _run(reader.at_eof()):
        frames.append(_run(Frame.parse(reader.read_exact, mask=False)))
    return frames


_T = TypeVar("_T")


def _run(steps: Generator[None, None, _T]) -> _T:
    try:
        next(steps)
    except StopIteration as end:
        value: _T = end.value
        return value
    raise AssertionError("a frame without its end")


def _messages(frames: list[Frame]) -> list[bytes]:
    messages: list[bytes] = []
    continues = False
    for frame in frames:
        assert frame.opcode is (Opcode.CONT if continues else Opcode.TEXT)
        assert (frame.rsv1, frame.rsv2, frame.rsv3) == (False, False, False)
        if continues:
            messages[-1] += frame.data
        else:
            messages.append(bytes(frame.data))
        continues = not frame.fin
    assert not continues
    return messages


@given(st.lists(st.text(max_size=300).map(str.encode), max_size=5))
def test_every_message_is_read_back(messages: list[bytes]) -> None:
    assert _messages(_frames(text_frames(messages))) == messages


@pytest.mark.parametrize(
    "size", [0, 1, 125, 126, 127, 2047, 2048, 2049, 65535, 65536, FRAGMENT_BYTES - 1, FRAGMENT_BYTES]
)
def test_a_message_of_any_size_is_one_frame_up_to_the_bound(size: int) -> None:
    for messages in ([b"x" * size], [b"before", b"x" * size, b"", b"after"]):
        frames = _frames(text_frames(messages))
        assert _messages(frames) == messages
        assert len(frames) == len(messages)


@pytest.mark.parametrize("size", [FRAGMENT_BYTES + 1, 2 * FRAGMENT_BYTES, 2 * FRAGMENT_BYTES + 1])
def test_a_larger_message_comes_in_fragments(size: int) -> None:
    message = ("é" * (size // 2) + "x" * (size % 2)).encode()
    frames = _frames(text_frames([b"before", message, b"after"]))
    assert _messages(frames) == [b"before", message, b"after"]
    assert len(frames) == 2 + -(-size // FRAGMENT_BYTES)
    assert all(0 < len(frame.data) <= _LARGEST_FRAME for frame in frames)


def test_headers_are_as_short_as_they_can_be() -> None:
    # A client may refuse longer ones: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
    overheads = {size: len(text_frames([b"x" * size])) - size for size in (0, 125, 126, 65535, 65536)}
    assert overheads == {0: 2, 125: 2, 126: 4, 65535: 4, 65536: 10}


def test_no_messages_are_no_bytes() -> None:
    assert text_frames([]) == b""


@given(st.lists(st.binary(max_size=3000), max_size=4))
@example([])
def test_a_parcel_knows_its_size_and_encodes_once(messages: list[bytes]) -> None:
    parcel = Parcel(messages)
    assert parcel.size == sum(map(len, messages))
    assert parcel.frames == text_frames(messages)
    assert parcel.frames is parcel.frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, FRAGMENT_BYTES, FRAGMENT_BYTES + 1, 3 << 20])
def test_binary_messages_have_binary_frames(size: int) -> None:
    message = bytes(size)
    texts, binaries = Parcel([message]).frames, Parcel([message], BINARY).frames
    assert (texts[0] & 0x0F, binaries[0] & 0x0F) == (TEXT, BINARY)
    assert texts[1:] == binaries[1:]
