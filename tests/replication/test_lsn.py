"""LSNs and positions: printed, read back, ordered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.lsn import BEGINNING, LSN, Position, parse_position_token, position_token

_lsns = st.integers(0, 2**64 - 1)
_positions = st.builds(Position, _lsns, _lsns, st.integers(0, 10**9))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0/0", 0), ("16/B374D848", 0x16B374D848), ("FFFFFFFF/FFFFFFFF", 2**64 - 1), ("1/0", 2**32)],
)
def test_an_lsn_prints_as_postgresql_prints_it(text: str, value: int) -> None:
    assert LSN.parse(text) == value
    assert str(LSN(value)) == f"{LSN(value)}" == text
    assert repr(LSN(value)) == f"LSN('{text}')"


def test_an_lsn_in_lower_case_or_with_zeros_is_read() -> None:
    assert LSN.parse("0016/b374d848") == LSN.parse("16/B374D848")


@pytest.mark.parametrize(
    "text", ["", "0", "/", "1/", "/1", "g/0", "123456789/0", "0/123456789", " 0/0", "0/0\n", "٣/0"]
)
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no LSN"):
        LSN.parse(text)


@given(_lsns)
def test_every_lsn_is_read_back(value: int) -> None:
    assert LSN.parse(str(LSN(value))) == value


@given(_positions)
def test_every_position_is_read_back(position: Position) -> None:
    assert Position.parse(str(position)) == position
    assert parse_position_token(position_token("1a-1-2b-cafe", position)) == ("1a-1-2b-cafe", position)


@given(_positions, _positions)
def test_positions_are_in_the_order_of_commits_then_of_changes(a: Position, b: Position) -> None:
    assert (a < b) == (
        a.commit_lsn < b.commit_lsn
        or (a.commit_lsn == b.commit_lsn and (a.lsn < b.lsn or (a.lsn == b.lsn and a.ordinal < b.ordinal)))
    )
    assert a >= BEGINNING


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2",
        "1.2.3.4",
        "a.2.3",
        "1.2.A",
        "01.2.3",
        "1.2.03",
        "0x1.2.3",
        "1_0.2.3",
        " 1.2.3",
        "1.2.3\n",
        "-1.2.3",
    ],
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Position.parse(text)


@pytest.mark.parametrize(
    "token", ["", "1.2.3", ".1.2.3", "epoch", "epoch.", "epoch.1.2", "epoch.1.2.3.4", "epoch.x.2.3"]
)
def test_what_is_no_position_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError):
        parse_position_token(token)


@given(st.text())
def test_any_text_of_a_client_is_a_position_or_refused(token: str) -> None:
    try:
        epoch, position = parse_position_token(token)
    except ValueError:
        return
    assert position_token(epoch, position) == token
