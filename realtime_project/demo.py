"""The demo table: something to change, so that a change can be seen to arrive.

It exists only while `manage.py realtime` runs on its own embedded database; `settings.DEMO_DSN` says so. Everybody who
can open the page may press its buttons: what they write is chosen here, and the table stays small.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from functools import wraps
from http import HTTPStatus
from typing import Any, LiteralString, TypeAlias

import psycopg
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from psycopg.rows import dict_row

from streaming.views import not_found

KEPT_ROWS = 200
SHOWN_ROWS = 8

# Two people may start at once; the lock lets one create the table and the other find it.
CREATE: LiteralString = """
    SELECT pg_advisory_xact_lock(hashtext('walcast demo'));
    CREATE TABLE public.todos (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        task text NOT NULL,
        done boolean NOT NULL DEFAULT false,
        created_at timestamptz DEFAULT now()
    );
    ALTER TABLE public.todos REPLICA IDENTITY FULL;
    INSERT INTO public.todos (task, done) VALUES
        ('Open this page in a second window', false),
        ('Press Insert, and watch the frame arrive', false),
        ('Find the write-ahead log', true);
"""

TASKS = (
    "Water the write-ahead log",
    "Teach the elephant to sing",
    "Ask the replica how it feels",
    "Commit to something",
    "Return the borrowed semicolon",
    "Count the bytes, twice",
    "Tell the browser the good news",
    "Vacuum under the sofa",
    "Leave no tuple behind",
    "Find out who locked the door",
    "Write home from transaction 42",
    "Thank the checkpoint",
    "Put the index back on the shelf",
    "Invite a second reader",
    "Read the log before bed",
    "Celebrate the LSN's birthday",
)

Connection: TypeAlias = psycopg.AsyncConnection[dict[str, object]]
View: TypeAlias = Callable[[HttpRequest], Coroutine[Any, Any, HttpResponse]]
DemoView: TypeAlias = Callable[[HttpRequest, Connection], Coroutine[Any, Any, JsonResponse]]


async def prepare(dsn: str) -> None:
    """Create ``public.todos`` with a few rows, unless it is there; the rows of an existing table are left as they are.

    Raises `psycopg.Error` if the database cannot be reached.
    """
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute("SELECT to_regclass('public.todos') IS NOT NULL")
        if await cursor.fetchone() == (True,):
            return
        try:
            await connection.execute(CREATE)  # several statements at once are one transaction
        except psycopg.errors.DuplicateTable:
            return


def _with_connection(view: DemoView) -> View:
    """Hand the view a connection to the demo database: 404 if there is none, 503 if it does not answer."""

    @wraps(view)
    async def wrapped(request: HttpRequest) -> HttpResponse:
        if settings.DEMO_DSN is None:
            return not_found(request)
        try:
            async with await psycopg.AsyncConnection.connect(
                settings.DEMO_DSN,
                autocommit=True,
                row_factory=dict_row,
                connect_timeout=5,
                options="-c statement_timeout=5000",
            ) as connection:
                return await view(request, connection)
        except psycopg.OperationalError:
            message = "The database does not answer. Try again in a moment."
            return JsonResponse({"message": message}, status=HTTPStatus.SERVICE_UNAVAILABLE)

    return wrapped


async def _change(connection: Connection, statement: LiteralString) -> JsonResponse:
    row = await (await connection.execute(statement, {"task": random.choice(TASKS), "shown": SHOWN_ROWS})).fetchone()
    if row is None:
        message = "The table is empty. Insert a row first."
        return JsonResponse({"message": message}, status=HTTPStatus.CONFLICT)
    return JsonResponse(row)


@require_GET
@_with_connection
async def rows(request: HttpRequest, connection: Connection) -> JsonResponse:
    """``{"rows": [{"id", "task", "done"}, ...]}``: newest first. The page shows the first few and keeps the others."""
    cursor = await connection.execute("SELECT id, task, done FROM public.todos ORDER BY id DESC LIMIT %s", [KEPT_ROWS])
    return JsonResponse({"rows": await cursor.fetchall()})


@require_POST
@_with_connection
async def insert(request: HttpRequest, connection: Connection) -> JsonResponse:
    """Insert a row: ``{"id"}``. Rows beyond the newest `KEPT_ROWS` are deleted."""
    answer = await _change(connection, "INSERT INTO public.todos (task) VALUES (%(task)s) RETURNING id")
    await connection.execute(
        "DELETE FROM public.todos WHERE id <= (SELECT id FROM public.todos ORDER BY id DESC OFFSET %s LIMIT 1)",
        [KEPT_ROWS],
    )
    return answer


@require_POST
@_with_connection
async def update(request: HttpRequest, connection: Connection) -> JsonResponse:
    """Tick or untick one of the newest rows: ``{"id"}``, or 409 with a ``message`` if there is none."""
    return await _change(
        connection,
        "UPDATE public.todos SET done = NOT done WHERE id = ("
        " SELECT id FROM (SELECT id FROM public.todos ORDER BY id DESC LIMIT %(shown)s) AS shown"
        " ORDER BY random() LIMIT 1) RETURNING id",
    )


@require_POST
@_with_connection
async def delete(request: HttpRequest, connection: Connection) -> JsonResponse:
    """Delete the newest row: ``{"id"}``, or 409 with a ``message`` if there is none."""
    return await _change(
        connection,
        "DELETE FROM public.todos WHERE id = (SELECT id FROM public.todos ORDER BY id DESC LIMIT 1) RETURNING id",
    )


urlpatterns = [
    path("demo/rows", rows, name="demo-rows"),
    path("demo/insert", insert, name="demo-insert"),
    path("demo/update", update, name="demo-update"),
    path("demo/delete", delete, name="demo-delete"),
]
