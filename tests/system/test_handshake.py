"""Who is let in: the handshake byte by byte, and tokens from the URL to the first change."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.clients.install import NodeClients
from tests.system.golden import LIMIT_S, connect_to, fields_of, heartbeat_frame, join, open_socket, until_reply
from tests.system.server import RealtimeServer
from tests.system.wire import RawSocket, Response, upgrade_request

SECRET = "a secret that is longer than sixty-four bytes, for the sake of HS512"
CLAIMS = {"iss": "Issuer", "nbf": 1610078130}
SOCKET = "/socket/websocket"


def token(claims: dict[str, Any] | None = None, *, secret: str = SECRET, alg: str = "HS256", **header: Any) -> str:
    """A signed token; the server's two validators are satisfied unless ``claims`` says otherwise."""
    return jwt.encode(CLAIMS if claims is None else claims, secret, algorithm=alg, headers=header or None)


def ask(server: RealtimeServer, request: str) -> Response:
    """Send one request as it stands, and read the answer."""
    with RawSocket(server.port) as socket:
        socket.send(request)
        return socket.response()


def status(server: RealtimeServer, path: str, *headers: str) -> int:
    """The status of a websocket handshake; a refusal of the 2021 kind has to have an empty body."""
    response = ask(server, upgrade_request(path, *headers))
    if response.status == 403:
        assert response.body == ""
        assert response.headers["content-length"] == "0"
    return response.status


@pytest.fixture(scope="module")
def open_server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        yield server


@pytest.fixture(scope="module")
def secure_server() -> Iterator[RealtimeServer]:
    env = {
        "SECURE_CHANNELS": "true",
        "JWT_SECRET": SECRET,
        "JWT_CLAIM_VALIDATORS": '{"iss": "Issuer", "nbf": 1610078130}',
        "LOG_LEVEL": "debug",
    }
    with RealtimeServer(env) as server:
        server.wait_for_log("replicator streaming")
        yield server


# Open to everybody. The numbers are those of the legacy protocol's cases.


@pytest.mark.parametrize("query", ["", "?vsn=1.0.0", "?vsn=1.0.5", "?vsn=2.0.9", "?vsn=2.0.0%2Bbuild", "?unknown=1"])
def test_g01_g02_the_versions_that_are_spoken(query: str, open_server: RealtimeServer) -> None:
    with connect(open_server.ws_url + query) as socket:
        socket.send(heartbeat_frame("1", query))
        assert fields_of(str(socket.recv(LIMIT_S)))["payload"] == {"status": "ok", "response": {}}
        assert socket.protocol.subprotocol is None


@pytest.mark.parametrize("vsn", ["", "1.0", "abc", "1.1.0", "2.1.0", "3.0.0", "1.0.0-rc.1", "2.0.0-rc.1"])
def test_g03_other_versions_are_refused(vsn: str, open_server: RealtimeServer) -> None:
    assert status(open_server, f"{SOCKET}?vsn={vsn}") == 403


@pytest.mark.parametrize("path", ["/socket//websocket", "/socket/websocket/", "/realtime/v1/websocket"])
def test_g15_empty_parts_of_the_path_do_not_count(path: str, open_server: RealtimeServer) -> None:
    assert status(open_server, path) == 101


@pytest.mark.parametrize(
    "path", ["/", "/websocket", "/socket", "/socket/longpoll", "/socket/websocket/more", "/nope?a=b"]
)
def test_g16_a_websocket_on_an_unknown_path_is_not_found(path: str, open_server: RealtimeServer) -> None:
    response = ask(open_server, upgrade_request(path))
    assert (response.status, response.body) == (404, "Not Found")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "Traceback" not in open_server.log


@pytest.mark.parametrize("path", ["/websocket", "/socket", "/socket/longpoll", "/metric", "/favicon.ico"])
def test_g16_other_pages_are_not_found(path: str, open_server: RealtimeServer) -> None:
    response = ask(open_server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (response.status, response.body) == (404, "Not Found")
    response = ask(open_server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")
    assert (response.status, response.body) == (404, '"Not Found"')


def test_g17_the_socket_path_without_an_upgrade(open_server: RealtimeServer) -> None:
    response = ask(open_server, f"GET {SOCKET} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (response.status, response.body) == (426, "")
    assert (response.headers["connection"].lower(), response.headers["upgrade"]) == ("upgrade", "websocket")
    response = ask(open_server, f"POST {SOCKET} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    assert (response.status, response.body) == (400, "")
    assert ask(open_server, f"GET {SOCKET}?vsn=abc HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 403


@pytest.mark.parametrize("version", ["6", "14", "abc", ""])
def test_g17_a_version_of_websockets_that_is_none_is_a_bad_request(version: str, open_server: RealtimeServer) -> None:
    request = upgrade_request(SOCKET).replace("Sec-WebSocket-Version: 13", f"Sec-WebSocket-Version: {version}")
    response = ask(open_server, request)
    assert (response.status, response.body) == (400, "")


def test_g18_the_page(open_server: RealtimeServer) -> None:
    response = ask(open_server, "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n")
    assert response.status == 200
    assert "Supabase Realtime" in response.body
    response = ask(open_server, "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")
    assert (response.status, response.body) == (406, '"Not Acceptable"')


def test_g19_any_origin_may_connect(open_server: RealtimeServer) -> None:
    assert status(open_server, SOCKET, "Origin: http://evil.example") == 101
    assert status(open_server, SOCKET, "Origin: null") == 101
    assert status(open_server, SOCKET) == 101


def test_an_offered_sub_protocol_is_not_chosen(open_server: RealtimeServer) -> None:
    response = ask(open_server, upgrade_request(SOCKET, "Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.x"))
    assert response.status == 101
    assert "sec-websocket-protocol" not in response.headers


def test_tokens_are_not_looked_at_where_channels_are_not_secured(open_server: RealtimeServer) -> None:
    assert status(open_server, f"{SOCKET}?apikey=nonsense") == 101
    assert status(open_server, SOCKET, "x-api-key: nonsense") == 101


# Secured


def test_g04_without_a_token_there_is_no_socket(secure_server: RealtimeServer) -> None:
    assert status(secure_server, SOCKET) == 403
    assert status(secure_server, f"{SOCKET}?apikey=") == 403
    assert status(secure_server, f"{SOCKET}?vsn=abc") == 403


def test_today_s_clients_are_told_why(secure_server: RealtimeServer) -> None:
    response = ask(secure_server, upgrade_request("/realtime/v1/websocket"))
    assert (response.status, response.body) == (401, '{"error":"API key is missing"}')
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert status(secure_server, f"/realtime/v1/websocket?apikey={token()}") == 101


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("parameter", ["apikey", "token"])
def test_g05_a_good_token_opens_the_socket(parameter: str, alg: str, secure_server: RealtimeServer) -> None:
    assert status(secure_server, f"{SOCKET}?{parameter}={token(alg=alg)}") == 101
    assert status(secure_server, f"{SOCKET}?{parameter}={token(alg=alg, secret=SECRET * 2)}") == 403


@pytest.mark.parametrize(
    "claims",
    [
        CLAIMS | {"exp": 1},
        CLAIMS | {"exp": int(time.time())},
        CLAIMS | {"iss": "Somebody"},
        CLAIMS | {"iss": ["Issuer"]},
        CLAIMS | {"nbf": 1},
        {"exp": 4102444800},
        {},
        CLAIMS | {"exp": "abc"},
        CLAIMS | {"exp": None},
        CLAIMS | {"exp": True},
    ],
    ids=["expired", "expired now", "iss", "iss list", "nbf", "no iss", "nothing", "exp text", "exp null", "exp bool"],
)
def test_g06_g13_claims_that_do_not_open_it(claims: dict[str, Any], secure_server: RealtimeServer) -> None:
    signed = jwt.PyJWS().encode(_json(claims), SECRET, algorithm="HS256")
    assert status(secure_server, f"{SOCKET}?apikey={signed}") == 403


def _json(claims: dict[str, Any]) -> bytes:
    return json.dumps(claims).encode()


def test_g07_a_token_may_be_encoded_twice_and_hold_white_space(secure_server: RealtimeServer) -> None:
    good = token()
    assert status(secure_server, f"{SOCKET}?apikey={quote(good.replace('.', '%2E'))}") == 101
    assert status(secure_server, f"{SOCKET}?apikey=%20{good[:10]}%0A{good[10:]}%20") == 101


@pytest.mark.parametrize("text", ["abc", "a.b.c", "..", "e30.e30.", quote("é"), "%00", "Bearer%20x"])
def test_g08_what_is_no_token_does_not_open_it(text: str, secure_server: RealtimeServer) -> None:
    assert status(secure_server, f"{SOCKET}?apikey={text}") == 403


def test_g08_algorithms_and_payloads_that_do_not_open_it(secure_server: RealtimeServer) -> None:
    unsigned = jwt.PyJWS().encode(_json(CLAIMS), "", algorithm="none")
    no_object = jwt.PyJWS().encode(b"[]", SECRET, algorithm="HS256")
    no_json = jwt.PyJWS().encode(b"{a", SECRET, algorithm="HS256")
    for text in (unsigned, no_object, no_json, token().replace("ey", "fy", 1)):
        assert status(secure_server, f"{SOCKET}?apikey={text}") == 403


def test_g08_the_type_in_the_header_is_not_asked_for(secure_server: RealtimeServer) -> None:
    # The original refuses these; many issuers leave typ out.
    assert status(secure_server, f"{SOCKET}?apikey={token(typ=None)}") == 101
    assert status(secure_server, f"{SOCKET}?apikey={token(typ='jwt')}") == 101


def test_g09_token_counts_before_apikey(secure_server: RealtimeServer) -> None:
    assert status(secure_server, f"{SOCKET}?token=bad&apikey={token()}") == 403
    assert status(secure_server, f"{SOCKET}?apikey=bad&token={token()}") == 101
    assert status(secure_server, f"{SOCKET}?token=&apikey={token()}") == 403


def test_g10_the_headers_that_count(secure_server: RealtimeServer) -> None:
    good = token()
    assert status(secure_server, SOCKET, f"x-api-key: {good}") == 101
    assert status(secure_server, f"{SOCKET}?token=bad&apikey=bad", f"X-Api-Key: {good}") == 101
    assert status(secure_server, f"{SOCKET}?apikey={good}", "x-api-key: bad") == 403
    assert status(secure_server, SOCKET, f"Authorization: Bearer {good}") == 403
    assert status(secure_server, SOCKET, f"apikey: {good}") == 403


def test_g11_g12_numbers_are_compared_as_numbers_and_exp_may_be_missing(secure_server: RealtimeServer) -> None:
    assert status(secure_server, f"{SOCKET}?apikey={token(CLAIMS | {'nbf': 1610078130.0})}") == 101
    assert status(secure_server, f"{SOCKET}?apikey={token(CLAIMS | {'exp': int(time.time()) + 60})}") == 101


def test_g17_a_refusal_comes_before_the_advice_to_upgrade(secure_server: RealtimeServer) -> None:
    for path, wanted in ((SOCKET, 403), (f"{SOCKET}?apikey={token()}", 426)):
        response = ask(secure_server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (response.status, response.body) == (wanted, "")


def test_a_committed_row_reaches_who_has_a_token_and_nobody_else(secure_server: RealtimeServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        open_socket(secure_server.ws_url, f"apikey={token(CLAIMS | {'exp': 1})}")
    assert refused.value.response.status_code == 403
    with (
        open_socket(secure_server.ws_url, f"vsn=2.0.0&apikey={token()}") as socket,
        closing(connect_to(secure_server.dsn)) as connection,
    ):
        join(socket, ["realtime:public:todos"], "vsn=2.0.0")
        connection.execute("INSERT INTO todos (task) VALUES ('For those with a key')")
        change = fields_of(str(socket.recv(LIMIT_S)))
    assert change["payload"]["record"]["task"] == "For those with a key"


async def test_a_stock_client_gets_in_with_its_key(secure_server: RealtimeServer, node_clients: NodeClients) -> None:
    url = f"{secure_server.ws_url}?apikey={token()}"
    async with node_clients.listen("1.7.5", url, "realtime:public:todos", "*", count=1) as listener:
        await listener.expect("joined")
        with closing(connect_to(secure_server.dsn)) as connection:
            connection.execute("INSERT INTO todos (task) VALUES ('For a client with a key')")
        assert (await listener.expect("change"))["payload"]["record"]["task"] == "For a client with a key"
        assert await listener.wait() == 0


def test_no_token_reaches_the_log(secure_server: RealtimeServer) -> None:
    good, bad = token(CLAIMS | {"sub": "canary"}), token(CLAIMS | {"sub": "canary"}, secret="another " + SECRET)
    canaries = [*good.split("."), *bad.split(".")[1:], "bare-canary", SECRET]
    for text in (good, bad, "bare-canary"):
        for parameter in ("apikey", "token"):
            status(secure_server, f"{SOCKET}?{parameter}={text}")
            ask(secure_server, upgrade_request(f"/realtime/v1/websocket?{parameter}={text}"))
            ask(secure_server, upgrade_request(f"/nope?{parameter}={text}"))
            ask(secure_server, f"GET {SOCKET}?{parameter}={text} HTTP/1.1\r\nHost: localhost\r\n\r\n")
            ask(secure_server, f"GET /nope?{parameter}={text} HTTP/1.1\r\nHost: elsewhere\r\n\r\n")
        status(secure_server, SOCKET, f"x-api-key: {text}")
        status(secure_server, SOCKET, f"Authorization: Bearer {text}")
    with open_socket(secure_server.ws_url, f"apikey={good}") as socket:
        socket.send(f'{{"topic":"realtime:*","event":"phx_join","payload":{{"user_token":"{good}"}},"ref":"1"}}')
        socket.send(f'{{"topic":"realtime:*","event":"access_token","payload":{{"access_token":"{bad}"}},"ref":"2"}}')
        socket.send(f'{{"topic":"{bad}","event":"phx_join","payload":{{"user_token":"bare-canary"}},"ref":"3"}}')
        socket.send(heartbeat_frame("end"))
        assert len(list(until_reply(socket, "end"))) == 3
        socket.send(f"{good} is no message")
    # What was done last is in the log once the next socket's handshake is.
    assert status(secure_server, f"{SOCKET}?token=") == 403
    secure_server.wait_for_log("unreadable frame")
    log = secure_server.log
    assert [line for line in log.splitlines() if any(canary in line for canary in canaries)] == []
