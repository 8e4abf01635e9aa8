"""An application that tries to reach its own server when that is told to stop, and says what came of it."""

import os
import socket
from typing import Any

from streaming.short_way import before_shutdown, install


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with nothing."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def reach_myself() -> None:
    """Connect as a client would that is told to go elsewhere."""
    try:
        socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), 5).close()
        print("let in")
    except ConnectionRefusedError:
        print("refused")


install()
before_shutdown(reach_myself)
