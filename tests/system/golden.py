"""What the original server was seen to send, and how ours is held against it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.golden.differences import DIFFERENCES, NOT_RUN
from tests.servers import PostgresCluster
from tests.system.wire import RawSocket, masked, upgrade_request

LEGACY = Path(__file__).resolve().parents[1] / "golden" / "legacy.jsonl"

LIMIT_S = 15.0

Answer: TypeAlias = dict[str, Any]
"""What a server did in one case: frames in canonical JSON, close code, HTTP status…, as far as the case says."""

_COMMIT_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class Case:
    """One line of legacy.jsonl; ``facts`` holds all of it."""

    name: str
    kind: str
    facts: dict[str, Any]


@cache
def all_cases() -> tuple[Case, ...]:
    """Every recorded case, in the order of the file."""
    lines = (json.loads(line) for line in LEGACY.read_text().splitlines())
    return tuple(Case(line["case"], line["kind"], line) for line in lines)


def cases(*kinds: str, only: Callable[[Case], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Parametrize a test with the cases of these kinds, each under its own name."""
    found = [case for case in all_cases() if case.kind in kinds and case.name not in NOT_RUN and only(case)]
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in found])


def the_case(name: str) -> Case:
    """The case of that name."""
    return next(case for case in all_cases() if case.name == name)


def canonical(frame: str) -> str:
    """A frame's JSON with its keys in order; a well-formed commit time, which no two runs share, becomes a word."""

    def forget_time(value: Any) -> Any:
        if isinstance(value, dict) and _COMMIT_TIMESTAMP.fullmatch(str(value.get("commit_timestamp"))):
            return value | {"commit_timestamp": "COMMITTED"}
        return value

    return json.dumps(json.loads(frame, object_hook=forget_time), sort_keys=True, ensure_ascii=False)


def frames_of(case: Case) -> list[str]:
    """The recorded text frames."""
    return [canonical(frame) for frame in case.facts["frames"]]


def close_code(case: Case) -> int | None:
    """The recorded close code."""
    close = case.facts.get("close")
    return close["code"] if close else None


def hold_against(case: Case, ours: Answer, recorded: Answer) -> None:
    """Ours has to be what was recorded, but for what `DIFFERENCES` says; and what is listed there has to differ.

    Raises `AssertionError` that shows the parts that are not as they should be.
    """
    expected, reason = recorded, "as it was recorded"
    if (difference := DIFFERENCES.get(case.name)) is not None:
        expected = recorded | {key: _as_answered(key, value) for key, value in difference.ours.items()}
        for was, now in difference.frames.items():
            expected["frames"] = [frame.replace(was, now) for frame in expected["frames"]]
        reason = f"listed: {difference.reason}"
        if expected == recorded:
            raise AssertionError(f"{case.name}: what is listed as a difference is what was recorded")
    wrong = [key for key in expected | ours if ours.get(key) != expected.get(key)]
    if wrong:
        parts = "".join(f"\n  {key}\n    ours     {ours.get(key)}\n    expected {expected.get(key)}" for key in wrong)
        raise AssertionError(f"{case.name} ({reason}):{parts}")


def _as_answered(key: str, value: Any) -> Any:
    return [canonical(frame) for frame in value] if key == "frames" else value


# Clients


def open_socket(url: str, query: str | None = None) -> ClientConnection:
    """A websocket as the recording client was: no compression, no sub-protocol, no limit, and no pings."""
    address = f"{url}?{query}" if query else url
    return connect(address, compression=None, max_size=None, open_timeout=LIMIT_S, ping_interval=None)


def join_frame(topic: str, ref: str, vsn: str | None = None) -> str:
    """A join, as protocol 1.0.0 or (``vsn`` 2) 2.0.0 writes it."""
    if is_version_2(vsn):
        return json.dumps([ref, ref, topic, "phx_join", {}])
    return json.dumps({"topic": topic, "event": "phx_join", "payload": {}, "ref": ref})


def stopped_reader(port: int, topic: str) -> RawSocket:
    """A client that has joined, and reads no more."""
    reader = RawSocket(port, receive_buffer=4096)
    reader.send(upgrade_request("/socket/websocket"))
    assert reader.response().status == 101
    reader.send(masked("text", join_frame(topic, "1").encode()))
    assert reader.frame() is not None
    return reader


def heartbeat_frame(ref: str, vsn: str | None = None) -> str:
    """A heartbeat, likewise."""
    if is_version_2(vsn):
        return json.dumps([None, ref, "phoenix", "heartbeat", {}])
    return json.dumps({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": ref})


def is_version_2(query: str | None) -> bool:
    """Whether the query asks for arrays."""
    return "vsn=2" in (query or "")


def fields_of(frame: str) -> dict[str, Any]:
    """Topic, event, payload and ref of a frame of either version."""
    parsed = json.loads(frame)
    if isinstance(parsed, list):
        return dict(zip(("join_ref", "ref", "topic", "event", "payload"), parsed, strict=True))
    return dict(parsed)


def until_reply(socket: ClientConnection, ref: str) -> Iterator[str]:
    """The frames that come before the reply to ``ref``."""
    while True:
        frame = socket.recv(LIMIT_S)
        assert isinstance(frame, str)
        fields = fields_of(frame)
        if fields["event"] == "phx_reply" and fields["ref"] == ref:
            return
        yield frame


def join(socket: ClientConnection, topics: Iterable[str], query: str | None = None) -> None:
    """Join the topics, with the refs j0, j1…, as the recording client did; the replies are not kept."""
    for number, topic in enumerate(topics):
        ref = f"j{number}"
        socket.send(join_frame(topic, ref, query))
        assert list(until_reply(socket, ref)) == []


def closed_with(socket: ClientConnection) -> int | None:
    """Wait for the end of the socket, and say its close code (`None`: there was no close frame)."""
    try:
        while True:
            socket.recv(LIMIT_S)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


# Absence

MARKER_SCHEMA = "golden"
_MARKER_TOPIC = f"realtime:{MARKER_SCHEMA}:marker"


class Marker:
    """A row that ends a case: once a socket sees it, whatever was committed before has come, or never will."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {MARKER_SCHEMA}")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {MARKER_SCHEMA}.marker (number serial PRIMARY KEY)")

    def watch(self, socket: ClientConnection, query: str | None = None) -> list[str]:
        """Join the marker's topic, too; returns what came before the reply, in canonical form."""
        socket.send(join_frame(_MARKER_TOPIC, "marker", query))
        return [canonical(frame) for frame in until_reply(socket, "marker")]

    def begin(self, socket: ClientConnection, query: str | None = None) -> None:
        """Watch, before anything else is joined, until what was committed before is no longer on its way."""
        assert self.watch(socket, query) == []
        assert self.frames_before(socket) == []
        socket.send(heartbeat_frame("begin", query))
        for frame in until_reply(socket, "begin"):  # the marker again, where each change comes twice
            assert fields_of(frame)["payload"].get("schema") == MARKER_SCHEMA

    def frames_before(self, socket: ClientConnection) -> list[str]:
        """Write the marker, and read what comes before it: the frames in canonical form."""
        insert = f"INSERT INTO {MARKER_SCHEMA}.marker DEFAULT VALUES RETURNING number::text"
        row = self._connection.execute(insert.encode()).fetchone()
        assert row is not None
        frames = []
        while True:
            frame = socket.recv(LIMIT_S)
            assert isinstance(frame, str)
            fields = fields_of(frame)
            if fields["payload"].get("schema") != MARKER_SCHEMA:
                frames.append(canonical(frame))
            elif fields["topic"] == _MARKER_TOPIC and fields["payload"]["record"] == {"number": row[0]}:
                return frames


def run_sql(connection: psycopg.Connection[Any], statements: Iterable[str]) -> list[str]:
    """Run the statements, each as the simple protocol does, and return the errors, as they were recorded."""
    problems = []
    for statement in statements:
        try:
            connection.execute(statement.encode())
        except psycopg.Error as error:
            problems.append(f"{error.sqlstate}: {error.diag.message_primary}")
    return problems


def connect_to(target: PostgresCluster | str) -> psycopg.Connection[Any]:
    """A session for the recorded SQL: autocommit, UTC."""
    dsn = target if isinstance(target, str) else target.dsn()
    return psycopg.connect(dsn, autocommit=True, options="-c timezone=UTC -c client_min_messages=warning")
