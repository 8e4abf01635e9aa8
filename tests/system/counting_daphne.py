"""The application without a garbage collector: it tells how much of its sockets, open and gone, is in memory."""

import gc
import json
from collections import Counter
from typing import Any

from realtime_project.asgi import application as served
from streaming.consumers import RealtimeConsumer
from streaming.session import Session
from streaming.short_way import RealtimeProtocol
from streaming.transport import DirectOutlet

gc.disable()

_OF_A_SOCKET = (RealtimeProtocol, RealtimeConsumer, Session, DirectOutlet)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve one connection; ``/alive`` is what is there of each kind."""
    if scope["type"] != "http" or scope["path"] != "/alive":
        await served(scope, receive, send)
        return
    alive = Counter(kind.__name__ for kind in _OF_A_SOCKET for it in gc.get_objects() if isinstance(it, kind))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(alive).encode()})
