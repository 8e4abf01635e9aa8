"""What the original server answered to a client's frames and requests, and ours answers."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.golden.differences import DIFFERENCES, NOT_RUN, Difference
from tests.system.golden import (
    Answer,
    Case,
    all_cases,
    canonical,
    cases,
    close_code,
    closed_with,
    fields_of,
    frames_of,
    heartbeat_frame,
    hold_against,
    join_frame,
    open_socket,
    until_reply,
)
from tests.system.server import RealtimeServer
from tests.system.wire import RawSocket, Response, masked

SECRET = "SOMETHING_SUPER_SECRET"
VALIDATORS = '{"iss":"Issuer","nbf":1610078130,"flag":true,"lst":[1],"obj":{"a":1}}'

_END = "end of case"


def test_every_recorded_case_is_replayed_or_listed() -> None:
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names)) == 376
    assert {case.kind for case in all_cases()} == {"protocol", "http", "ws_raw", "secure", "event", "state", "ops"}
    assert set(DIFFERENCES) <= set(names)
    assert set(NOT_RUN) <= set(names)
    assert not set(DIFFERENCES) & set(NOT_RUN)


def test_only_a_listed_difference_passes_and_only_while_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("a case", "protocol", {})
    hold_against(case, {"close": 1011}, {"close": 1011})
    with pytest.raises(AssertionError, match="ours     1000"):
        hold_against(case, {"close": 1000}, {"close": 1011})
    monkeypatch.setitem(DIFFERENCES, case.name, Difference("because", {"close": 1000}))
    hold_against(case, {"close": 1000}, {"close": 1011})
    with pytest.raises(AssertionError, match="because"):
        hold_against(case, {"close": 1002}, {"close": 1011})
    with pytest.raises(AssertionError, match="what is listed as a difference is what was recorded"):
        hold_against(case, {"close": 1000}, {"close": 1000})


@pytest.fixture(scope="module")
def open_server() -> Iterator[RealtimeServer]:
    with RealtimeServer({"ALLOWED_HOSTS": "*"}) as server:
        yield server


@pytest.fixture(scope="module")
def secure_server() -> Iterator[RealtimeServer]:
    with RealtimeServer({"ALLOWED_HOSTS": "*", "SECURE_CHANNELS": "true", "JWT_SECRET": SECRET}) as server:
        yield server


@pytest.fixture(scope="module")
def validating_server() -> Iterator[RealtimeServer]:
    env = {"SECURE_CHANNELS": "true", "JWT_SECRET": SECRET, "JWT_CLAIM_VALIDATORS": VALIDATORS}
    with RealtimeServer(env) as server:
        yield server


@cases("protocol")
def test_a_recorded_conversation(case: Case, open_server: RealtimeServer) -> None:
    query: str = case.facts["query"]
    frames: list[str] = []
    code = None
    with open_socket(open_server.ws_url, query) as socket:
        with suppress(ConnectionClosed):
            for sent in case.facts["sent"]:
                socket.send(sent if isinstance(sent, str) else b64decode(sent["binary_b64"]))
            # The reply to it comes after everything else.
            socket.send(heartbeat_frame(_END, query))
        try:
            for frame in until_reply(socket, _END):
                frames.append(canonical(frame))
        except ConnectionClosed:
            code = closed_with(socket)
    hold_against(case, {"frames": frames, "close": code}, {"frames": frames_of(case), "close": close_code(case)})


def _recorded_head(case: Case) -> Response:
    status_line, *lines = case.facts["response_head"].split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Response(int(status_line.split(" ")[1]), headers, case.facts.get("response_body", ""))


def _http_answer(response: Response) -> Answer:
    headers = response.headers
    answer: Answer = {"status": response.status, "body": response.body}
    for name in ("upgrade", "sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-extensions"):
        answer[name] = headers.get(name, "").lower()
    if response.body:
        answer["content-type"] = headers.get("content-type")
    if response.status == 200:
        answer["body"] = response.body.lower().startswith("<!doctype html>")  # the page is our own
        answer |= {name: headers.get(name) for name in ("x-frame-options", "x-content-type-options")}
    return answer


def _request(case: Case, server: RealtimeServer) -> Answer:
    with RawSocket(server.port) as socket:
        for sent in case.facts["sent"]:
            socket.send(sent)
        return _http_answer(socket.response())


@cases("http", only=lambda case: not case.name.startswith("secure_"))
def test_a_recorded_request(case: Case, open_server: RealtimeServer) -> None:
    hold_against(case, _request(case, open_server), _http_answer(_recorded_head(case)))


@cases("http", only=lambda case: case.name.startswith("secure_"))
def test_a_recorded_request_of_a_secured_server(case: Case, secure_server: RealtimeServer) -> None:
    hold_against(case, _request(case, secure_server), _http_answer(_recorded_head(case)))


@cases("secure")
def test_a_recorded_token(case: Case, request: pytest.FixtureRequest) -> None:
    name = "validating_server" if case.name.startswith("claims_") else "secure_server"
    server: RealtimeServer = request.getfixturevalue(name)
    frames: list[str] = []
    with RawSocket(server.port) as socket:
        for sent in case.facts["sent"]:
            socket.send(sent)
        response = socket.response()
        if response.status == 101:
            for message in (join_frame("realtime:*", "1"), heartbeat_frame("1")):
                socket.send(masked("text", message.encode()))
            frames = [frame["data"] for frame in _frames_until_the_end(socket) if frame["type"] == "text"]
    recorded = _http_answer(_recorded_head(case)) | {"frames": frames_of(case)}
    hold_against(case, _http_answer(response) | {"frames": frames}, recorded)


def _frames_until_the_end(socket: RawSocket) -> list[dict[str, Any]]:
    """The server's frames before its answer to a last heartbeat, or before it ends the connection."""
    with suppress(ConnectionError):  # what was sent before may have ended it already
        socket.send(masked("text", heartbeat_frame(_END).encode()))
    frames: list[dict[str, Any]] = []
    while (frame := socket.frame()) is not None:
        if frame.type == "text" and fields_of(frame.data.decode())["ref"] == _END:
            return frames
        if frame.type == "close":
            frames.append({"type": "close", "fin": frame.fin, "code": frame.code})
        elif frame.type == "text":
            frames.append({"type": "text", "fin": frame.fin, "data": canonical(frame.data.decode())})
        elif frame.type != "ping":
            frames.append({"type": frame.type, "fin": frame.fin, "data": frame.data.decode()})
    return [*frames, {"type": "end of connection"}]


@cases("ws_raw")
def test_recorded_websocket_bytes(case: Case, open_server: RealtimeServer) -> None:
    handshake, blank, sent = case.facts["sent"][0]["latin1"].partition("\r\n\r\n")
    with RawSocket(open_server.port) as socket:
        # A client waits for the answer to its handshake before it sends more (RFC 6455, section 4.1).
        socket.send(handshake + blank)
        answer = _http_answer(socket.response())
        socket.send(sent)
        frames = _frames_until_the_end(socket)
    recorded_frames = [_canonical_data(frame) for frame in case.facts["ws_frames"]]
    if case.facts["server_closed"]:
        recorded_frames.append({"type": "end of connection"})
    recorded = _http_answer(_recorded_head(case)) | {"ws_frames": recorded_frames}
    hold_against(case, answer | {"ws_frames": frames}, recorded)


def _canonical_data(frame: dict[str, Any]) -> dict[str, Any]:
    # The words that go with a close code are for people.
    known = {key: value for key, value in frame.items() if key != "reason"}
    return known | {"data": canonical(frame["data"])} if frame["type"] == "text" else known
