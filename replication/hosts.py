"""What the name of a host tells: whether it is an address, and whether it is this machine."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The address that is written there, IPv6 with or without brackets; `None` for a name, or a path."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def is_here(host: str) -> bool:
    """Tell whether the host is this machine: a Unix socket, or a loopback address. Nobody in between can read along."""
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    address = address_of(host)
    return address is not None and address.is_loopback
