"""Today's stock clients listen to changes, unpatched: realtime-js old and new, supabase-js, and Python's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import psycopg
import pytest

from tests.clients.install import NodeClients
from tests.clients.python import PythonClient
from tests.clients.talking import NODE_CLIENTS, PYTHON_VERSION, Talker, talking
from tests.system.golden import connect_to
from tests.system.server import RealtimeServer

ALL = [*NODE_CLIENTS, "python"]


@pytest.fixture(scope="module")
def sql(realtime_server: RealtimeServer) -> Iterator[psycopg.Connection[Any]]:
    with closing(connect_to(realtime_server.dsn)) as connection:
        connection.execute(
            """
            CREATE TABLE notes (
                id int PRIMARY KEY, text text, tags text[], big int8, price numeric, done bool, doc jsonb
            )
            """
        )
        yield connection


@pytest.fixture(scope="session")
def python_client() -> PythonClient:
    return PythonClient.install(PYTHON_VERSION)


@pytest.fixture(autouse=True)
def empty_table(sql: psycopg.Connection[Any]) -> None:
    sql.execute("TRUNCATE notes")


@pytest.fixture
def listening(realtime_server: RealtimeServer, node_clients: NodeClients, python_client: PythonClient) -> Any:
    """Start a client that listens to these bindings, and wait until the server says that it does."""

    @asynccontextmanager
    async def listen(version: str, **bindings: dict[str, Any]) -> AsyncIterator[Talker]:
        base = realtime_server.http_url if version == "supabase" else realtime_server.ws_url.removesuffix("/websocket")
        clients = python_client if version == "python" else node_clients
        async with talking(clients, version, f"{base}?apikey=none", "notes", {}) as talker:
            for name, binding in bindings.items():
                await talker.do("listen", name=name, binding=binding)
            await talker.join()
            # Python's client shows an object of its own, of which only the text gets here.
            assert "Subscribed to PostgreSQL" in str((await talker.hear("system"))["payload"])
            yield talker

    return listen


def shown(version: str, change: dict[str, Any]) -> tuple[str, Any, Any]:
    """The event, the new row and the old one, as the client hands them to its application."""
    payload = change["payload"]
    if version == "python":
        data = payload["data"]
        return data["type"], data.get("record") or {}, data.get("old_record") or {}
    return payload["eventType"], payload["new"], payload["old"]


ROW = {"id": 1, "text": "hello", "tags": ["a b", "c"], "big": 5, "price": 1.5, "done": True, "doc": {"a": [1]}}
INSERT = """INSERT INTO notes VALUES (1, 'hello', '{"a b",c}', 5, 1.50, true, '{"a": [1]}')"""


@pytest.mark.parametrize("version", ALL)
async def test_rows_come_and_change_and_go(version: str, listening: Any, sql: psycopg.Connection[Any]) -> None:
    async with listening(version, all={"event": "*", "schema": "public", "table": "notes"}) as talker:
        sql.execute(INSERT)
        assert shown(version, await talker.hear("change")) == ("INSERT", ROW, {})
        sql.execute("UPDATE notes SET text = 'bye'")
        assert shown(version, await talker.hear("change")) == ("UPDATE", {**ROW, "text": "bye"}, {"id": 1})
        sql.execute("DELETE FROM notes")
        assert shown(version, await talker.hear("change")) == ("DELETE", {}, {"id": 1})


@pytest.mark.parametrize("version", ALL)
async def test_each_listener_hears_what_its_filter_picks(
    version: str, listening: Any, sql: psycopg.Connection[Any]
) -> None:
    notes = {"schema": "public", "table": "notes"}
    async with listening(
        version,
        equal={"event": "INSERT", **notes, "filter": "id=eq.2"},
        several={"event": "*", **notes, "filter": "id=in.(3,4)"},
        pattern={"event": "INSERT", **notes, "filter": "text=match.^h.*o$"},
        deleted={"event": "DELETE", **notes, "filter": "id=gt.8"},
    ) as talker:
        sql.execute("INSERT INTO notes (id, text) VALUES (1, 'x'), (2, 'x'), (3, 'x'), (8, 'x'), (9, 'hello')")
        sql.execute("DELETE FROM notes WHERE id >= 8")
        heard = [await talker.hear("change") for _ in range(4)]
    assert sorted((change["name"], shown(version, change)[0]) for change in heard) == [
        ("deleted", "DELETE"),
        ("equal", "INSERT"),
        ("pattern", "INSERT"),
        ("several", "INSERT"),
    ]


async def test_supabase_js_may_choose_columns(listening: Any, sql: psycopg.Connection[Any]) -> None:
    binding = {"event": "*", "schema": "public", "table": "notes", "select": ["text"]}
    async with listening("supabase", chosen=binding) as talker:
        sql.execute(INSERT)
        assert shown("supabase", await talker.hear("change")) == ("INSERT", {"id": 1, "text": "hello"}, {})


async def test_a_truncate_reaches_who_asks_for_it(listening: Any, sql: psycopg.Connection[Any]) -> None:
    async with listening("latest", emptied={"event": "TRUNCATE", "schema": "public", "table": "notes"}) as talker:
        sql.execute("TRUNCATE notes")
        assert shown("latest", await talker.hear("change")) == ("TRUNCATE", {}, {})
