"""Who is behind a proxy, told to those who trust it and to nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from streaming.proxies import BehindProxies, TrustedProxies

NGINX, BALANCER, CLIENT, LIAR = "127.0.0.1", "10.1.2.3", "203.0.113.7", "198.51.100.1"


@pytest.fixture
def ours() -> TrustedProxies:
    return TrustedProxies([NGINX, "10.0.0.0/8", "fd00::/8"])


def test_without_a_proxy_the_client_is_who_connected(ours: TrustedProxies) -> None:
    assert ours.client(CLIENT, []) == CLIENT


def test_a_stranger_who_claims_another_address_keeps_its_own(ours: TrustedProxies) -> None:
    assert ours.client(LIAR, [CLIENT]) == LIAR


def test_a_proxy_tells_of_its_client(ours: TrustedProxies) -> None:
    assert ours.client(NGINX, [CLIENT]) == CLIENT


def test_what_a_client_wrote_before_the_proxies_did_is_not_believed(ours: TrustedProxies) -> None:
    assert ours.client(NGINX, [f"1.1.1.1, {CLIENT}, {BALANCER}"]) == CLIENT


def test_lines_of_the_header_are_one_list(ours: TrustedProxies) -> None:
    assert ours.client(NGINX, ["1.1.1.1", CLIENT, BALANCER]) == CLIENT


def test_a_chain_of_nothing_but_proxies_begins_at_its_first(ours: TrustedProxies) -> None:
    assert ours.client(NGINX, ["10.0.0.9, 10.0.0.8"]) == "10.0.0.9"


@pytest.mark.parametrize("nonsense", ["unknown", "", "_hidden", "1.2.3", "<script>", "1.2.3.4.5"])
def test_what_is_no_address_ends_the_list(ours: TrustedProxies, nonsense: str) -> None:
    assert ours.client(NGINX, [f"{CLIENT}, {nonsense}"]) == NGINX


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (f"{CLIENT}:51234", CLIENT),
        ("[2001:db8::7]:51234", "2001:db8::7"),
        ("2001:DB8::7", "2001:db8::7"),
        (f"::ffff:{CLIENT}", CLIENT),
    ],
)
def test_an_address_is_read_in_each_of_its_spellings(ours: TrustedProxies, written: str, read: str) -> None:
    assert ours.client(NGINX, [written]) == read


def test_a_peer_of_a_socket_for_both_families_is_recognised(ours: TrustedProxies) -> None:
    assert ours.client(f"::ffff:{NGINX}", [CLIENT]) == CLIENT


def test_a_unix_socket_is_a_proxy_only_if_it_is_named() -> None:
    assert TrustedProxies(["unix"]).client(None, [CLIENT]) == CLIENT
    assert TrustedProxies([NGINX]).client(None, [CLIENT]) is None


def test_a_name_that_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="nginx"):
        TrustedProxies(["nginx"])


def test_a_network_of_everybody_is_noticed(ours: TrustedProxies) -> None:
    assert TrustedProxies(["0.0.0.0/0"]).everybody
    assert not ours.everybody


async def scope_behind(trusted: TrustedProxies, **scope: Any) -> Any:
    """The scope as the application gets it."""
    got: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        got.append(scope)

    await BehindProxies(application, trusted)(scope, None, None)
    return got[0]


async def test_a_websocket_of_a_proxy_shows_its_client_and_its_scheme(ours: TrustedProxies) -> None:
    headers = [(b"x-forwarded-for", CLIENT.encode()), (b"x-forwarded-proto", b"https")]

    scope = await scope_behind(ours, type="websocket", scheme="ws", client=[NGINX, 5], headers=headers)

    assert scope["client"] == [CLIENT, 0]
    assert scope["scheme"] == "wss"


async def test_a_request_of_a_stranger_is_what_it_is(ours: TrustedProxies) -> None:
    headers = [(b"x-forwarded-for", CLIENT.encode()), (b"x-forwarded-proto", b"https")]

    scope = await scope_behind(ours, type="http", scheme="http", client=[LIAR, 5], headers=headers)

    assert scope["client"] == [LIAR, 5]
    assert scope["scheme"] == "http"


async def test_what_a_client_says_of_its_scheme_is_overruled_by_the_proxy(ours: TrustedProxies) -> None:
    headers = [(b"x-forwarded-proto", b"https, http")]

    scope = await scope_behind(ours, type="http", scheme="http", client=[NGINX, 5], headers=headers)

    assert scope["scheme"] == "http"


async def test_other_scopes_pass(ours: TrustedProxies) -> None:
    assert await scope_behind(ours, type="lifespan") == {"type": "lifespan"}
