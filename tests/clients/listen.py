"""A Python client of 2021 or 2022 that joins one topic and says what it hears, one JSON line each.

    python listen.py URL TOPIC EVENTS COUNT

It runs in a virtual environment with one of the old releases of the PyPI package ``realtime``, and uses it as its own
README does. EVENTS has commas between; each is handed to ``on()`` as it stands. It ends with 0 after COUNT changes (0:
never), and when its stdin is closed.

Lines: {"what": "change", "event": the listener's, "payload": …}. These clients do not tell when they have joined.
"""

import asyncio
import json
import os
import sys
import threading
from typing import Any

from realtime.connection import Socket  # type: ignore[import-not-found]


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)  # listen() knows no end


def main(url: str, topic: str, events: str, count: str) -> None:
    remaining = int(count)

    def listener(event: str) -> Any:
        def hear(payload: dict[str, Any]) -> None:
            nonlocal remaining
            print(json.dumps({"what": "change", "event": event, "payload": payload}), flush=True)
            remaining -= 1
            if remaining == 0:
                os._exit(0)

        return hear

    asyncio.set_event_loop(asyncio.new_event_loop())  # they ask for the loop before there is one
    threading.Thread(target=end_with_stdin, daemon=True).start()
    socket = Socket(url)
    socket.connect()
    channel = socket.set_channel(topic)
    channel.join()
    for event in events.split(","):
        channel.on(event, listener(event))
    socket.listen()


main(*sys.argv[1:])
