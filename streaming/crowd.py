"""How many websockets there may be at a time: in this process, and from one address."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from streaming.denial import deny

logger = logging.getLogger(__name__)

_BODY = b'{"error":"Too many connected users"}'


class CrowdLimit:
    """ASGI middleware for websockets: one too many is refused with 429, before its upgrade.

    ``most`` and ``most_per_address`` are numbers of sockets, 0 for any. The address is the one in the scope: behind a
    proxy that of the proxy, unless proxies are trusted (`streaming.proxies`).
    """

    def __init__(self, application: Any, most: int, most_per_address: int) -> None:
        self._application, self._most, self._most_per_address = application, most, most_per_address
        self._by_address: Counter[str] = Counter()
        self._sockets = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one websocket."""
        client = scope.get("client")
        address = str(client[0]) if client else ""
        if (limit := self._limit_reached(address)) is not None:
            logger.warning("too many sockets", extra={"client": address, "limit": limit, "sockets": self._sockets})
            await receive()
            await deny(scope, send, 429, _BODY, "application/json; charset=utf-8")
            return
        self._sockets += 1
        self._by_address[address] += 1
        try:
            await self._application(scope, receive, send)
        finally:
            self._sockets -= 1
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _limit_reached(self, address: str) -> str | None:
        if self._most and self._sockets >= self._most:
            return "MAX_CONNECTIONS"
        if self._most_per_address and self._by_address[address] >= self._most_per_address:
            return "MAX_CONNECTIONS_PER_ADDRESS"
        return None
