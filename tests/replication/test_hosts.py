"""Which hosts are this machine."""

from __future__ import annotations

import pytest

from replication.hosts import address_of, is_here


@pytest.mark.parametrize(
    "host", ["", "localhost", "/var/run/postgresql", "@abstract", "127.0.0.1", "127.1.2.3", "::1", "[::1]"]
)
def test_sockets_and_loopback_addresses_are_here(host: str) -> None:
    assert is_here(host)


@pytest.mark.parametrize("host", ["db.example.org", "localhost.example.org", "10.0.0.1", "0.0.0.0", "::", "127.0.0"])
def test_everything_else_is_somewhere_else(host: str) -> None:
    assert not is_here(host)


def test_an_address_is_told_from_a_name() -> None:
    assert [address and address.version for address in map(address_of, ("[2001:db8::1]", "192.0.2.1"))] == [6, 4]
    assert [address_of(host) for host in ("db.example.org", "/run", "")] == [None, None, None]
