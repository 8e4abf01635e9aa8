"""The numbered cases G01 to G20: who is let in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.system.legacy import SECRET, exchange, message, ok, signed
from tests.system.server import RealtimeServer
from tests.system.wire import RawSocket, Response, upgrade_request

SOCKET = "/socket/websocket"
CLAIMS = {"iss": "Issuer", "nbf": 1610078130}
GOOD = signed(CLAIMS)
FUTURE = 4102444800


@pytest.fixture(scope="module")
def secure_server() -> Iterator[RealtimeServer]:
    validators = '{"iss": "Issuer", "nbf": 1610078130}'
    with RealtimeServer(
        {"SECURE_CHANNELS": "true", "JWT_SECRET": SECRET, "JWT_CLAIM_VALIDATORS": validators}
    ) as server:
        yield server


def ask(server: RealtimeServer, request: str) -> Response:
    with RawSocket(server.port) as socket:
        socket.send(request)
        return socket.response()


def handshake(server: RealtimeServer, path: str, *headers: str) -> int:
    """The status of a handshake; who is refused is told nothing."""
    response = ask(server, upgrade_request(path, *headers))
    if response.status == 403:
        assert response.body == ""
    return response.status


def page(server: RealtimeServer, request: str, *headers: str) -> Response:
    return ask(server, "\r\n".join([f"{request} HTTP/1.1", "Host: localhost", *headers, "", ""]))


def test_g01_without_parameters_it_speaks_version_1(realtime_server: RealtimeServer) -> None:
    assert exchange(realtime_server.ws_url, message("phoenix", "heartbeat", "1")) == ([ok("phoenix", "1")], None)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        *(pytest.param(f"vsn={quote(vsn)}", 101, id=f"G02-vsn={vsn}") for vsn in ("1.0.5", "2.0.9", "2.0.0+x")),
        *(
            pytest.param(f"vsn={vsn}", 403, id=f"G03-vsn={vsn}")
            for vsn in ("", "1.0", "abc", "1.1.0", "2.1.0", "3.0.0", "1.0.0-rc.1")
        ),
    ],
)
def test_versions(query: str, status: int, realtime_server: RealtimeServer) -> None:
    assert handshake(realtime_server, f"{SOCKET}?{query}") == status


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("", 403, id="G04-no token"),
        pytest.param(f"apikey={GOOD}", 101, id="G05-apikey"),
        pytest.param(f"token={GOOD}", 101, id="G05-token"),
        pytest.param(f"apikey={signed(CLAIMS, alg='HS384')}", 101, id="G05-HS384"),
        pytest.param(f"apikey={signed(CLAIMS, alg='HS512')}", 101, id="G05-HS512"),
        pytest.param(f"apikey={signed(CLAIMS, 'another secret')}", 403, id="G06-bad signature"),
        pytest.param(f"apikey={signed(CLAIMS | {'exp': 1})}", 403, id="G06-expired"),
        pytest.param(f"apikey={signed(CLAIMS | {'iss': 'Somebody'})}", 403, id="G06-wrong iss"),
        pytest.param(f"apikey={signed(CLAIMS | {'iss': ['Issuer']})}", 403, id="G06-iss list"),
        pytest.param(f"apikey={signed(CLAIMS | {'nbf': 1})}", 403, id="G06-wrong nbf"),
        pytest.param(f"apikey=%20{GOOD[:9]}%0A{GOOD[9:]}%20", 101, id="G07-white space"),
        pytest.param(f"apikey={quote(GOOD.replace('.', '%2E'))}", 101, id="G07-encoded twice"),
        # Ours: many issuers leave the type out, so it is not looked at; the original refused both.
        pytest.param(f"apikey={signed(CLAIMS, typ=None)}", 101, id="G08-no typ"),
        pytest.param(f"apikey={signed(CLAIMS, typ='jwt')}", 101, id="G08-typ jwt"),
        pytest.param(f"apikey={signed(CLAIMS, alg='none')}", 403, id="G08-alg none"),
        pytest.param(f"apikey={signed(CLAIMS, alg='none').rpartition('.')[0]}.", 403, id="G08-alg none unsigned"),
        pytest.param(f"apikey={signed(CLAIMS, alg='RS256')}", 403, id="G08-alg RS256"),
        pytest.param(f"apikey={signed([])}", 403, id="G08-payload list"),
        pytest.param("apikey=abc", 403, id="G08-abc"),
        pytest.param("apikey=a.b.c", 403, id="G08-a.b.c"),
        pytest.param("apikey=", 403, id="G08-empty"),
        pytest.param(f"token=bad&apikey={GOOD}", 403, id="G09-token bad"),
        pytest.param(f"token={GOOD}&apikey=bad", 101, id="G09-apikey bad"),
        pytest.param(f"apikey={signed(CLAIMS | {'nbf': 1610078130.0})}", 101, id="G11-float nbf"),
        pytest.param(f"apikey={signed(CLAIMS | {'exp': FUTURE})}", 101, id="G12-with exp"),
        pytest.param(f"apikey={GOOD}", 101, id="G12-no exp"),
        # Ours: every configured claim has to be there, and exp has to be a number; the original let all of them in.
        pytest.param(f"apikey={signed({'exp': FUTURE})}", 403, id="G13-claims missing"),
        pytest.param(f"apikey={signed({})}", 403, id="G13-no claims"),
        pytest.param(f"apikey={signed(CLAIMS | {'exp': 'abc'})}", 403, id="G13-exp text"),
        pytest.param(f"apikey={signed(CLAIMS | {'exp': None})}", 403, id="G13-exp null"),
        # Ours: no crash (500).
        pytest.param(f"apikey={signed('{nonsense')}", 403, id="G14-payload not JSON"),
        pytest.param(f"apikey=bm9uc2Vuc2U.{GOOD.partition('.')[2]}", 403, id="G14-header not JSON"),
    ],
)
def test_tokens(query: str, status: int, secure_server: RealtimeServer) -> None:
    assert handshake(secure_server, f"{SOCKET}?{query}") == status


def test_g06_a_token_ends_at_its_second(secure_server: RealtimeServer) -> None:
    assert handshake(secure_server, f"{SOCKET}?apikey={signed(CLAIMS | {'exp': int(time.time())})}") == 403


@pytest.mark.parametrize(
    ("header", "status"),
    [
        # Ours: it counts, as in the servers of later years.
        pytest.param(f"x-api-key: {GOOD}", 101, id="G10-x-api-key"),
        pytest.param(f"Authorization: Bearer {GOOD}", 403, id="G10-Authorization"),
        pytest.param(f"apikey: {GOOD}", 403, id="G10-apikey"),
    ],
)
def test_headers(header: str, status: int, secure_server: RealtimeServer) -> None:
    assert handshake(secure_server, SOCKET, header) == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(pytest.param(path, 101, id=f"G15-{path}") for path in ("/socket//websocket", "/socket/websocket/")),
        *(pytest.param(path, 404, id=f"G16-{path}") for path in ("/websocket", "/socket", "/socket/longpoll")),
    ],
)
def test_paths(path: str, status: int, realtime_server: RealtimeServer) -> None:
    assert handshake(realtime_server, path) == status
    if status == 404:
        for response in (ask(realtime_server, upgrade_request(path)), page(realtime_server, f"GET {path}")):
            assert (response.status, response.body) == (404, "Not Found")


def test_g17_without_an_upgrade_there_is_nothing_to_see(realtime_server: RealtimeServer) -> None:
    response = page(realtime_server, f"GET {SOCKET}")
    assert (response.status, response.headers["upgrade"], response.body) == (426, "websocket", "")
    assert page(realtime_server, f"POST {SOCKET}", "Content-Length: 0").status == 400


def test_g18_the_page_is_for_browsers(realtime_server: RealtimeServer) -> None:
    response = page(realtime_server, "GET /")
    assert response.status == 200
    assert "Supabase Realtime" in response.body
    response = page(realtime_server, "GET /", "Accept: application/json")
    assert (response.status, response.body) == (406, '"Not Acceptable"')


def test_g19_any_origin_may_connect(realtime_server: RealtimeServer) -> None:
    assert handshake(realtime_server, SOCKET, "Origin: http://evil.example") == 101


@pytest.mark.parametrize(
    ("env", "words"),
    [
        pytest.param({"JWT_SECRET": ""}, "JWT secret is missing", id="G20-secret empty"),
        *(
            pytest.param(
                {"JWT_SECRET": SECRET, "JWT_CLAIM_VALIDATORS": validators},
                "JWT claim validators is not a valid JSON object",
                id=f"G20-validators {validators}",
            )
            for validators in ("[]", "{'iss':'x'}")
        ),
    ],
)
def test_secured_without_what_it_takes_nothing_starts(env: dict[str, str], words: str, tmp_path: Path) -> None:
    settings = env | {"SECURE_CHANNELS": "true", "WALCAST_HOME": str(tmp_path)}
    with pytest.raises(RuntimeError, match=r"ended with [1-9]") as ended, RealtimeServer(settings):
        pass
    assert words in str(ended.value)
