"""What the original server sent for a piece of SQL, and ours sends: the recorded cases, each on top of those before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from tests.system.golden import (
    Answer,
    Case,
    Marker,
    all_cases,
    cases,
    connect_to,
    frames_of,
    hold_against,
    join,
    open_socket,
    run_sql,
)
from tests.system.server import RealtimeServer

# Made before the first case was recorded.
_BEFORE = """
    CREATE TYPE mood AS ENUM ('happy', 'sad');
    CREATE TYPE comp AS (a int, b text);
    CREATE DOMAIN posint AS int CHECK (value > 0);
    CREATE DOMAIN email AS text;
"""

_ROLE_SETTING = "role setting(s) of the replication user: "

_STORY = [case for case in all_cases() if case.kind in ("event", "state")]


class Story:
    """The SQL of all cases in its order: a case finds the tables that those before have left, whoever failed."""

    def __init__(self, server: RealtimeServer, connection: psycopg.Connection[Any]) -> None:
        self._server, self._connection = server, connection
        self._told = 0
        self._role_setting: str | None = None
        self._marker = Marker(connection)
        connection.execute(_BEFORE)

    def tell(self, case: Case) -> Answer:
        """Run what lies before the case, then the case itself with its topics joined."""
        for earlier in _STORY[self._told : (number := _STORY.index(case))]:
            self._prepare(earlier)
            run_sql(self._connection, earlier.facts["sql"])
        self._told = number + 1
        self._prepare(case)
        query = case.facts.get("query")
        with open_socket(self._server.ws_url, query) as socket:
            self._marker.begin(socket, query)
            join(socket, case.facts["topics"], query)
            problems = run_sql(self._connection, case.facts["sql"])
            return {"frames": self._marker.frames_before(socket), "sql_errors": problems}

    def _prepare(self, case: Case) -> None:
        self._set_role(case)
        assert run_sql(self._connection, case.facts.get("setup") or []) == [], f"the setup of {case.name} failed"

    def _set_role(self, case: Case) -> None:
        """Give the role the settings of the case, and have the stream begin anew, as they count for new sessions."""
        if case.kind != "event" or (assignment := _role_setting(case)) == self._role_setting:
            return
        self._role_setting = assignment
        self._connection.execute("ALTER ROLE postgres RESET ALL")
        if assignment is not None:
            self._connection.execute(f"ALTER ROLE postgres SET {assignment}".encode())
        self._connection.execute("SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots")


def _role_setting(case: Case) -> str | None:
    """``name='value'``, from the note of a recorded case."""
    note = str(case.facts.get("note"))
    if case.name == "guc_timezone_offset_with_seconds":
        return "timezone='Europe/Amsterdam'"
    return note.removeprefix(_ROLE_SETTING) if note.startswith(_ROLE_SETTING) else None


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        server.wait_for_log("replicator streaming")
        yield server


@pytest.fixture(scope="module")
def story(server: RealtimeServer) -> Iterator[Story]:
    with closing(connect_to(server.dsn)) as connection:
        yield Story(server, connection)


@cases("event")
def test_recorded_changes(case: Case, story: Story) -> None:
    recorded = {"frames": frames_of(case), "sql_errors": case.facts.get("sql_errors", [])}
    hold_against(case, story.tell(case), recorded)


def test_no_change_of_the_recorded_ones_was_left_out(server: RealtimeServer, story: Story) -> None:
    story.tell(_STORY[-1])
    assert "change left out" not in server.log


# Amsterdam's offset of 1900 is not in newer time zone files, where the city follows Brussels.
@cases("event", only=lambda case: case.name.startswith("guc_timezone_") and "seconds" not in case.name)
def test_a_session_time_zone_does_what_that_of_the_role_did(case: Case, database18: str) -> None:
    zone = (_role_setting(case) or "").removeprefix("timezone=").strip("'")
    env = {"DATABASE_URL": database18, "SESSION_TIMEZONE": zone, "SECURE_CHANNELS": "false"}
    with closing(connect_to(database18)) as connection, RealtimeServer(env, ["--create-publication"]) as server:
        server.wait_for_log("replicator streaming")
        marker = Marker(connection)
        assert run_sql(connection, case.facts["setup"]) == []
        with open_socket(server.ws_url) as socket:
            marker.begin(socket)
            join(socket, case.facts["topics"])
            assert run_sql(connection, case.facts["sql"]) == []
            assert marker.frames_before(socket) == frames_of(case)
