"""Today's Python client in a room: joins it, says what it hears, and does what it is told.

    python talk.py URL TOPIC CONFIG

It runs in a virtual environment with the newest release of the PyPI package ``realtime``. Orders and lines are those of
``talk.mjs``, as far as this client can do the same. TOPIC is without ``realtime:``.
"""

import asyncio
import json
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

from realtime import AsyncRealtimeClient  # type: ignore[import-not-found]


def say(what: str, **facts: Any) -> None:
    print(json.dumps({"what": what, **facts}, default=str), flush=True)


async def main(url: str, topic: str, config: str) -> None:
    parts = urlsplit(url)
    key = parse_qs(parts.query).get("apikey", ["none"])[0]
    client = AsyncRealtimeClient(parts._replace(query="").geturl(), key)
    await client.connect()
    channel = client.channel(topic, {"config": json.loads(config)})

    channel.on_broadcast("TEST", lambda payload: say("broadcast", event=payload["event"], payload=payload["payload"]))
    channel.on_presence_sync(lambda: say("presence", state=channel.presence_state()))
    channel.on_system(lambda payload: say("system", payload=payload))

    def told(status: Any, error: Any) -> None:
        name = getattr(status, "name", str(status))
        if name == "SUBSCRIBED":
            say("joined")
        else:
            say("status", status=name, message=str(error))

    async def follow(order: dict[str, Any]) -> Any:
        match order["do"]:
            case "join":
                await channel.subscribe(told)
            case "listen":
                channel.on_postgres_changes(
                    callback=lambda payload: say("change", name=order["name"], payload=payload), **order["binding"]
                )
            case "send":
                await channel.send_broadcast(order["event"], order["payload"])
            case "track":
                await channel.track(order["payload"])
            case "untrack":
                await channel.untrack()
            case "post":
                await channel.http_send(order["event"], order["payload"])
            case "setAuth":
                await client.set_auth(order["token"])
            case "leave":
                await channel.unsubscribe()
        return "ok"

    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        try:
            say("done", did=order["do"], result=await follow(order))
        except Exception as error:
            say("error", did=order["do"], message=repr(error))


asyncio.run(main(*sys.argv[1:]))
