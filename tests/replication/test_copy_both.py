"""The frames inside COPY BOTH: what the walsender says, and what we answer."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replication.copy_both import (
    XLOG_DATA_HEADER,
    PrimaryKeepalive,
    StandbyStatusUpdate,
    XLogData,
    is_quiet_keepalive,
    parse,
    xlog_kind,
    xlog_payload,
)
from replication.errors import CopyBothError

_int64 = st.integers(0, 2**64 - 1)
_times = st.integers(-(2**63), 2**63 - 1)

_XLOG_DATA = bytes.fromhex("77 0000000002f1d4a8 0000000002f1d518 000304090bcc5422 4900004033")
_KEEPALIVE = bytes.fromhex("6b 0000000002f1d548 000304090bcc5422 01")


def test_the_kind_of_a_piece_is_told_without_reading_it() -> None:
    assert xlog_kind(_XLOG_DATA) == ord("I")
    assert xlog_kind(_XLOG_DATA[:XLOG_DATA_HEADER]) is None
    assert xlog_kind(_KEEPALIVE) is None
    assert xlog_kind(_KEEPALIVE + _XLOG_DATA) is None
    assert xlog_kind(b"") is None


def test_a_piece_of_the_stream_keeps_its_lsn_and_its_bytes() -> None:
    assert parse(_XLOG_DATA) == XLogData(0x2F1D4A8, 0x2F1D518, 0x000304090BCC5422, b"I\0\0\x40\x33")
    assert _XLOG_DATA.index(b"I\0\0\x40\x33") == XLOG_DATA_HEADER


def test_a_piece_of_the_stream_may_be_empty() -> None:
    assert parse(_XLOG_DATA[:XLOG_DATA_HEADER]) == XLogData(0x2F1D4A8, 0x2F1D518, 0x000304090BCC5422, b"")


@pytest.mark.parametrize(("flag", "wanted"), [(0, False), (1, True)])
def test_a_keepalive_says_whether_it_wants_an_answer(flag: int, wanted: bool) -> None:
    assert parse(_KEEPALIVE[:-1] + bytes([flag])) == PrimaryKeepalive(0x2F1D548, 0x000304090BCC5422, wanted)


def test_a_status_says_how_far_we_are() -> None:
    status = StandbyStatusUpdate(0x10, 0x0F, 0x0E, -1, reply_requested=True)
    assert status.encode() == bytes.fromhex("72 0000000000000010 000000000000000f 000000000000000e ffffffffffffffff 01")
    assert StandbyStatusUpdate(1, 1, 1, 0).encode()[-1] == 0


@pytest.mark.parametrize("end", range(XLOG_DATA_HEADER))
def test_a_piece_that_is_cut_short_is_refused(end: int) -> None:
    with pytest.raises(CopyBothError) as caught:
        parse(_XLOG_DATA[:end])
    assert caught.value.frame == _XLOG_DATA[:end]


@pytest.mark.parametrize("frame", [*(_KEEPALIVE[:end] for end in range(len(_KEEPALIVE))), _KEEPALIVE + b"\0"])
def test_a_keepalive_that_is_cut_short_or_goes_on_is_refused(frame: bytes) -> None:
    with pytest.raises(CopyBothError):
        parse(frame)


@pytest.mark.parametrize("kind", [b"r", b"h", b"p", b"\0", b"W", b"K"])
def test_what_a_walsender_does_not_say_is_refused(kind: bytes) -> None:
    with pytest.raises(CopyBothError, match="unknown type"):
        parse(kind + bytes(33))


@given(st.binary(max_size=40))
@example(b"")
@example(b"w" + b"\xff" * 24)
@example(b"k" + b"\xff" * 17)
def test_random_bytes_are_a_frame_or_refused(frame: bytes) -> None:
    with suppress(CopyBothError):
        assert isinstance(parse(frame), XLogData | PrimaryKeepalive)


@given(_int64, _int64, _times, st.binary(max_size=50))
def test_every_piece_is_read(start_lsn: int, wal_end: int, sent_at: int, data: bytes) -> None:
    head = start_lsn.to_bytes(8, "big") + wal_end.to_bytes(8, "big") + sent_at.to_bytes(8, "big", signed=True)
    assert parse(b"w" + head + data) == XLogData(start_lsn, wal_end, sent_at, data)
    assert xlog_payload(b"w" + head + data) == (start_lsn, data)


@given(_int64, _int64, _int64, _times, st.booleans())
def test_every_status_can_be_sent(written: int, flushed: int, applied: int, sent_at: int, reply: bool) -> None:
    data = StandbyStatusUpdate(written, flushed, applied, sent_at, reply).encode()
    assert len(data) == 34
    assert data[0:1] == b"r"
    assert [int.from_bytes(data[at : at + 8], "big") for at in (1, 9, 17)] == [written, flushed, applied]
    assert int.from_bytes(data[25:33], "big", signed=True) == sent_at
    assert data[33] == reply


@given(st.binary(max_size=40))
def test_the_quick_way_takes_exactly_the_frames_that_are_xlog_data(frame: bytes) -> None:
    try:
        message = parse(frame)
    except CopyBothError:
        assert xlog_payload(frame) is None
    else:
        expected = (message.start_lsn, message.data) if isinstance(message, XLogData) else None
        assert xlog_payload(frame) == expected


def test_a_keepalive_is_quiet_if_it_wants_no_answer() -> None:
    quiet, asking = (b"k" + struct.pack("!QqB", 0x16B374D848, 0, asks) for asks in (0, 1))
    assert is_quiet_keepalive(quiet)
    for other in (asking, quiet[:-1], quiet + b"\0", b"w" + quiet[1:], b""):
        assert not is_quiet_keepalive(other)
