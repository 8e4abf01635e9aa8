"""What people write instead: a trigger that sends NOTIFY, and a server that passes it on. Measured beside Walcast.

    python -m tests.benchmarks.rivals notify PORT DSN             websockets alone, no framework
    python -m tests.benchmarks.rivals channels PORT DSN           Django Channels' groups, in memory, under Daphne
    python -m tests.benchmarks.rivals channels PORT DSN REDIS_URL   the same through Redis

They speak as much of the legacy protocol as the load client needs. None of them keeps Walcast's promises: what is
committed while they are away is lost, and NOTIFY takes no row above 8,000 bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, LiteralString

import psycopg

TRIGGER: LiteralString = """
    CREATE OR REPLACE FUNCTION walcast_benchmark_notify() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('changes', json_build_object(
            'type', TG_OP, 'schema', TG_TABLE_SCHEMA, 'table', TG_TABLE_NAME, 'commit_timestamp', now(),
            'record', row_to_json(NEW))::text);
        RETURN NEW;
    END $$;
    CREATE OR REPLACE TRIGGER notify AFTER INSERT ON public.walcast_benchmark
        FOR EACH ROW EXECUTE FUNCTION walcast_benchmark_notify()
"""


async def changes(dsn: str) -> Any:
    """The payloads of the trigger's notifications, as they come."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("LISTEN changes")
        async for notification in connection.notifies():
            yield json.loads(notification.payload)


def message(topic: str, payload: dict[str, Any]) -> dict[str, Any]:
    """What a client reads of a change."""
    return {"topic": topic, "event": payload["type"], "ref": None, "payload": payload}


def encoded(content: dict[str, Any]) -> str:
    """JSON as the load client reads it: without spaces."""
    return json.dumps(content, separators=(",", ":"))


def reply(join: dict[str, Any]) -> dict[str, Any]:
    """The answer to a join."""
    return {
        "topic": join["topic"],
        "event": "phx_reply",
        "ref": join["ref"],
        "payload": {"status": "ok", "response": {}},
    }


async def serve_notify(port: int, dsn: str) -> None:
    """The `websockets` library and a set of sockets for each topic."""
    from http import HTTPStatus

    from websockets.asyncio.server import ServerConnection, broadcast, serve
    from websockets.http11 import Request, Response

    topics: dict[str, set[ServerConnection]] = {}

    async def handle(socket: ServerConnection) -> None:
        async for text in socket:
            join = json.loads(text)
            topics.setdefault(join["topic"], set()).add(socket)
            await socket.send(encoded(reply(join)))
        for sockets in topics.values():
            sockets.discard(socket)

    def health(socket: ServerConnection, request: Request) -> Response | None:
        return socket.respond(HTTPStatus.OK, "up\n") if request.path == "/" else None

    async with serve(handle, "127.0.0.1", port, compression=None, backlog=4096, process_request=health):
        async for payload in changes(dsn):
            topic = f"realtime:{payload['schema']}:{payload['table']}"
            broadcast(topics.get(topic, ()), encoded(message(topic, payload)))


def serve_channels(port: int, dsn: str, redis_url: str | None) -> None:
    """Daphne, a consumer that joins the group of its topic, and a task that sends into the group."""
    from django.conf import settings

    layer: dict[str, Any] = {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 100_000}}
    if redis_url:
        layer = {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [redis_url]}}
        layer["CONFIG"]["capacity"] = 100_000
    settings.configure(CHANNEL_LAYERS={"default": layer}, INSTALLED_APPS=["channels"], ALLOWED_HOSTS=["*"])

    import django
    from daphne.server import Server

    django.setup()

    from channels.generic.websocket import AsyncJsonWebsocketConsumer
    from channels.layers import get_channel_layer
    from channels.routing import ProtocolTypeRouter

    class Consumer(AsyncJsonWebsocketConsumer):
        async def receive_json(self, content: Any, **kwargs: Any) -> None:
            await self.channel_layer.group_add(content["topic"].replace(":", "."), self.channel_name)
            await self.send_json(reply(content))

        @classmethod
        async def encode_json(cls, content: Any) -> str:
            return encoded(content)

        async def change(self, event: dict[str, Any]) -> None:
            await self.send_json(event["message"])

    async def http(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"up\n"})

    async def publish() -> None:
        layer = get_channel_layer()
        assert layer is not None
        async for payload in changes(dsn):
            topic = f"realtime:{payload['schema']}:{payload['table']}"
            await layer.group_send(topic.replace(":", "."), {"type": "change", "message": message(topic, payload)})

    tasks: list[asyncio.Task[None]] = []
    Server(
        application=ProtocolTypeRouter({"http": http, "websocket": Consumer.as_asgi()}),
        endpoints=[f"tcp:port={port}:interface=127.0.0.1:backlog=4096"],
        ready_callable=lambda: tasks.append(asyncio.get_event_loop().create_task(publish())),
    ).run()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["notify", port, dsn]:
            asyncio.run(serve_notify(int(port), dsn))
        case ["channels", port, dsn, *redis]:
            serve_channels(int(port), dsn, redis[0] if redis else None)
        case _:
            sys.exit(__doc__)
