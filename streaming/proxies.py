"""Who is behind a proxy: the address and the scheme that it reports, believed of proxies that the settings name.

Anybody can write ``X-Forwarded-For``. Each proxy appends the address that it saw, so the list is read from its end, and
only as far as those who wrote it are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

UNIX: Final = "unix"
"""Stands for whoever connects through a Unix socket, and has no address."""

_SCHEMES: Final = {"http": {"http": "http", "https": "https"}, "websocket": {"http": "ws", "https": "wss"}}


class TrustedProxies:
    """A set of proxies: addresses and networks such as ``10.0.0.0/8``, and ``unix``.

    Raises `ValueError` for a name that is none of these.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._networks: list[Network] = [ip_network(name, strict=False) for name in names if name != UNIX]
        self._unix = UNIX in names

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    @property
    def everybody(self) -> bool:
        """Whether all addresses count as proxies, so that a client may call itself what it likes."""
        return any(network.prefixlen == 0 for network in self._networks)

    def __contains__(self, address: str | None) -> bool:
        """Tell whether this is one of them; `None` is the other end of a Unix socket."""
        if address is None:
            return self._unix
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client(self, peer: str | None, forwarded_for: Sequence[str]) -> str | None:
        """The client's address: ``peer``, who connected, unless it is a proxy that tells of another.

        ``forwarded_for`` are the values of the header's lines, in their order. What is not an address ends the list.
        """
        client = peer
        for entry in reversed([entry for line in forwarded_for for entry in line.split(",")]):
            if client not in self or (parsed := _parsed(entry)) is None:
                break
            client = str(parsed)
        return client


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without a port behind; those of IPv4 in IPv6's clothes are undressed."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class BehindProxies:
    """ASGI middleware: a scope's ``client`` and ``scheme`` are those that a trusted proxy reports."""

    def __init__(self, application: Any, trusted: TrustedProxies) -> None:
        self._application, self._trusted = application, trusted

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] in _SCHEMES:
            scope = self._seen_through(scope)
        await self._application(scope, receive, send)

    def _seen_through(self, scope: Any) -> Any:
        peer = scope["client"][0] if scope.get("client") else None
        if peer not in self._trusted:
            return scope
        more: dict[str, Any] = {}
        client = self._trusted.client(peer, _values(scope, b"x-forwarded-for"))
        if client != peer:
            more["client"] = [client, 0]
        protocols = _values(scope, b"x-forwarded-proto")
        protocol = protocols[-1].rpartition(",")[2].strip().lower() if protocols else ""
        if scheme := _SCHEMES[scope["type"]].get(protocol):
            more["scheme"] = scheme
        return {**scope, **more}


def _values(scope: Any, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]
