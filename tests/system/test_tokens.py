"""Tokens while a socket lives: they end, they are renewed, and their secrets and keys are replaced."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from streaming.tokens import sign
from tests.clients.install import NodeClients
from tests.servers import wait_until
from tests.streaming.keys import jwks, public_jwk, public_pem, signed_with
from tests.system.golden import LIMIT_S, connect_to, fields_of, heartbeat_frame, join_frame, open_socket, until_reply
from tests.system.server import PROJECT, RealtimeServer
from tests.system.wire import RawSocket, upgrade_request

OLD, NEW = "the secret of yesterday, which is long enough", "the secret of today, which is long enough too"
SOCKET = "/socket/websocket"
TODOS, OTHER = "realtime:public:todos", "realtime:public"


def token(ends_in: float | None = 3600, secret: str = NEW, **claims: object) -> str:
    return sign(claims if ends_in is None else {**claims, "exp": time.time() + ends_in}, secret)


def status(server: RealtimeServer, query: str) -> int:
    with RawSocket(server.port) as socket:
        socket.send(upgrade_request(f"{SOCKET}?{query}"))
        return socket.response().status


def joined(socket: ClientConnection, topic: str, ref: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Join, and return the payload of the reply, which has to come first."""
    socket.send(json.dumps({"topic": topic, "event": "phx_join", "payload": payload or {}, "ref": ref}))
    reply = fields_of(str(socket.recv(LIMIT_S)))
    assert (reply["event"], reply["ref"]) == ("phx_reply", ref)
    return dict(reply["payload"])


def renew(socket: ClientConnection, topic: str, text: str | None) -> None:
    frame = {"topic": topic, "event": "access_token", "payload": {"access_token": text}, "ref": "r"}
    socket.send(json.dumps(frame))


def tasks_until(socket: ClientConnection, last: str) -> list[str]:
    """What the changes on the todos tell, up to the last of them."""
    tasks: list[str] = []
    while last not in tasks:
        frame = fields_of(str(socket.recv(LIMIT_S)))
        assert frame["event"] == "INSERT", frame
        tasks.append(frame["payload"]["record"]["task"])
    return tasks


OK = {"status": "ok", "response": {}}


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    env = {"SECURE_CHANNELS": "true", "JWT_SECRET": NEW, "JWT_PREVIOUS_SECRETS": json.dumps([OLD])}
    with RealtimeServer(env | {"LOG_LEVEL": "debug"}) as server:
        server.wait_for_log("replicator streaming")
        yield server


# The end of a token


def test_a_channel_ends_at_the_moment_of_its_token_and_the_socket_stays(server: RealtimeServer) -> None:
    ends_at = time.time() + 2
    with (
        open_socket(server.ws_url, f"apikey={sign({'exp': ends_at}, NEW)}") as socket,
        closing(connect_to(server.dsn)) as connection,
    ):
        assert joined(socket, TODOS, "1") == OK
        assert joined(socket, OTHER, "2", {"user_token": token()}) == OK
        connection.execute("INSERT INTO todos (task) VALUES ('before')")
        before = [fields_of(str(socket.recv(LIMIT_S)))["topic"] for _ in range(2)]
        assert sorted(before) == [OTHER, TODOS]

        error = socket.recv(LIMIT_S)
        late_s = time.time() - ends_at
        assert json.loads(error) == {"topic": TODOS, "event": "phx_error", "payload": {}, "ref": None}
        assert 0 <= late_s < 0.5

        connection.execute("INSERT INTO todos (task) VALUES ('after')")
        assert fields_of(str(socket.recv(LIMIT_S)))["topic"] == OTHER
        # The newest token of the socket is that of the second join, so a stock client is back at once.
        assert joined(socket, TODOS, "3") == OK
        connection.execute("INSERT INTO todos (task) VALUES ('again')")
        again = [fields_of(str(socket.recv(LIMIT_S)))["topic"] for _ in range(2)]
        assert sorted(again) == [OTHER, TODOS]
    server.wait_for_log("token refused event=expiry code=token_expired topics=1 client=127.0.0.1")


def test_without_a_new_token_nobody_joins_again(server: RealtimeServer) -> None:
    with open_socket(server.ws_url, f"apikey={token(1)}") as socket:
        assert joined(socket, TODOS, "1") == OK
        assert fields_of(str(socket.recv(LIMIT_S)))["event"] == "phx_error"
        reason = f"error occurred when joining {TODOS}: token_expired"
        assert joined(socket, TODOS, "2") == {"status": "error", "response": {"reason": reason}}
        assert joined(socket, TODOS, "3", {"user_token": token(-1)})["status"] == "error"
        assert joined(socket, TODOS, "4", {"user_token": token()}) == OK
    server.wait_for_log("token refused event=phx_join code=token_expired")


def test_a_renewed_token_keeps_the_subscription_and_no_change_is_lost_or_doubled(server: RealtimeServer) -> None:
    with (
        open_socket(server.ws_url, f"apikey={token(2)}") as socket,
        closing(connect_to(server.dsn)) as connection,
    ):
        assert joined(socket, TODOS, "1") == OK
        stop_at = time.monotonic() + 3
        number = 0
        while time.monotonic() < stop_at:  # past the end of the first token, with a new one every tenth change
            if number % 10 == 0:
                renew(socket, TODOS, token(3600, number=number))
            if number % 7 == 0:
                renew(socket, TODOS, None)
            connection.execute("INSERT INTO todos (task) VALUES (%s)", [f"renewed {number}"])
            number += 1
        connection.execute("INSERT INTO todos (task) VALUES ('renewed last')")
        tasks = tasks_until(socket, "renewed last")
        assert tasks == [*(f"renewed {n}" for n in range(number)), "renewed last"]
        socket.send(heartbeat_frame("end"))
        assert list(until_reply(socket, "end")) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [("garbage", "token_malformed"), (token(-1), "token_expired"), (token(secret="another"), "signature_mismatch")],
)
def test_a_bad_new_token_ends_its_channel_and_no_other(text: str, code: str, server: RealtimeServer) -> None:
    with (
        open_socket(server.ws_url, f"apikey={token()}&vsn=2.0.0") as socket,
        closing(connect_to(server.dsn)) as connection,
    ):
        for ref, topic in (("1", TODOS), ("2", OTHER)):
            socket.send(join_frame(topic, ref, "vsn=2"))
            assert list(until_reply(socket, ref)) == []
        socket.send(json.dumps(["1", "3", TODOS, "access_token", {"access_token": text}]))
        assert json.loads(socket.recv(LIMIT_S)) == ["1", "1", TODOS, "phx_error", {}]
        connection.execute("INSERT INTO todos (task) VALUES ('for the other one')")
        assert fields_of(str(socket.recv(LIMIT_S)))["topic"] == OTHER
    server.wait_for_log(f"token refused event=access_token code={code}")


_STOCK_CLIENT = """
const { RealtimeClient } = require('realtime-js-1.7.5')
const [url, first, second] = process.argv.slice(1)
const client = new RealtimeClient(url, { params: { apikey: first } })
client.connect()
const todos = client.channel('realtime:public:todos')
todos.on('*', (change) => {
  console.log(change.record.task)
  if (change.record.task === 'last') process.exit(0)
})
todos.onError(() => console.log('error'))
todos.onClose(() => console.log('close'))
todos.subscribe().receive('ok', () => { console.log('joined'); client.setAuth(second) })
"""


def test_a_stock_client_stays_with_a_new_token(server: RealtimeServer, node_clients: NodeClients) -> None:
    ends_at = time.time() + 4
    url = server.ws_url.removesuffix("/websocket")
    argv = [str(node_clients.node), "-e", _STOCK_CLIENT, url, sign({"exp": ends_at}, NEW), token()]
    with (
        closing(connect_to(server.dsn)) as connection,
        subprocess.Popen(argv, cwd=node_clients.folder, stdout=subprocess.PIPE, text=True) as client,
    ):
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "joined\n"
            wait_until(lambda: time.time() > ends_at + 0.2, "the end of the first token")
            connection.execute("INSERT INTO todos (task) VALUES ('last')")
            assert client.stdout.read() == "last\n"
        finally:
            client.kill()


# Secrets


def test_tokens_of_the_new_and_of_the_old_secret_open_and_others_do_not(server: RealtimeServer) -> None:
    assert status(server, f"apikey={token(secret=NEW)}") == 101
    assert status(server, f"apikey={token(secret=OLD)}") == 101
    assert status(server, f"apikey={token(secret='the secret of last year')}") == 403
    with open_socket(server.ws_url, f"apikey={token(secret=OLD)}") as socket:
        assert joined(socket, TODOS, "1", {"user_token": token(secret=NEW)}) == OK


@pytest.mark.parametrize(
    "env",
    [
        {"JWT_SECRET": public_pem("RS256").decode()},
        {"JWT_SECRET": NEW, "JWT_PREVIOUS_SECRETS": json.dumps([public_pem("RS256").decode()])},
        {"JWT_SECRET": jwks(public_jwk("RS256"))},
    ],
)
def test_a_public_key_as_a_secret_ends_the_start(env: dict[str, str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, PROJECT / "manage.py", "realtime"],
        env={"PATH": "", "SECURE_CHANNELS": "true", "WALCAST_HOME": str(tmp_path), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Walcast cannot start:")
    assert "unusable" in result.stderr
    assert "Traceback" not in result.stderr
    assert "BEGIN PUBLIC KEY" not in result.stderr


# Keys


class Issuer:
    """An HTTP server that publishes keys; it can be made to hang."""

    def __init__(self) -> None:
        self.body = jwks(*(public_jwk(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")))
        self.requests = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                issuer.may_answer.wait(LIMIT_S)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(issuer.body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with closing(Issuer()) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def keys_server(issuer: Issuer) -> Iterator[RealtimeServer]:
    """No secret at all; and tokens are looked at when they come, and never again."""
    env = {
        "SECURE_CHANNELS": "true",
        "JWT_JWKS": f"{issuer.url}?canary=canary",
        "EXPIRED_TOKENS_END_CHANNELS": "false",
        "LOG_LEVEL": "debug",
    }
    with RealtimeServer(env) as server:
        server.wait_for_log("replicator streaming")
        yield server


def claims() -> dict[str, Any]:
    return {"exp": time.time() + 3600, "sub": "canary"}


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_keys_behind_a_url_open(algorithm: str, keys_server: RealtimeServer) -> None:
    good = signed_with(algorithm, claims())
    assert status(keys_server, f"apikey={good}") == 101
    assert status(keys_server, f"apikey={signed_with(algorithm, claims(), 'stranger', kid=algorithm)}") == 403
    with open_socket(keys_server.ws_url, f"apikey={good}") as socket:
        assert joined(socket, TODOS, "1", {"user_token": signed_with(algorithm, {"exp": time.time() + 60})}) == OK


def test_a_public_key_is_no_shared_secret(keys_server: RealtimeServer) -> None:
    # By hand: the libraries of today refuse to sign so.
    parts = [{"alg": "HS256", "typ": "JWT", "kid": "RS256"}, claims()]
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    digest = hmac.new(public_pem("RS256"), text.encode(), hashlib.sha256).digest()
    forged = f"{text}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
    assert status(keys_server, f"apikey={forged}") == 403
    keys_server.wait_for_log("handshake refused code=algorithm_not_allowed")
    with open_socket(keys_server.ws_url, f"apikey={signed_with('RS256', claims())}") as socket:
        assert joined(socket, TODOS, "1", {"user_token": forged})["status"] == "error"


def test_a_new_key_is_found_and_invented_ones_are_not_asked_for_at_any_rate(
    keys_server: RealtimeServer, issuer: Issuer
) -> None:
    new = signed_with("ES256", claims(), "new")
    issuer.body = jwks(public_jwk("RS256"), public_jwk("ES256", "new"))
    wait_until(lambda: status(keys_server, f"apikey={new}") == 101, "the new key", limit_s=15)
    requests = issuer.requests
    for number in range(20):
        assert status(keys_server, f"apikey={signed_with('ES256', claims(), 'new', kid=str(number))}") == 403
    assert issuer.requests <= requests + 1
    keys_server.wait_for_log("handshake refused code=key_unknown")


def test_while_keys_are_fetched_everybody_else_is_served(keys_server: RealtimeServer, issuer: Issuer) -> None:
    with (
        open_socket(keys_server.ws_url, f"apikey={signed_with('RS256', claims())}") as socket,
        closing(connect_to(keys_server.dsn)) as connection,
    ):
        assert joined(socket, TODOS, "1") == OK
        issuer.may_answer.clear()
        requests = issuer.requests
        try:

            def asks() -> bool:  # a fetch a moment ago keeps the next one away
                with RawSocket(keys_server.port) as waiting:
                    waiting.send(upgrade_request(f"{SOCKET}?apikey={signed_with('RS256', claims(), kid='missing')}"))
                    connection.execute("INSERT INTO todos (task) VALUES ('meanwhile')")
                    assert tasks_until(socket, "meanwhile") == ["meanwhile"]
                    socket.send(heartbeat_frame("beat"))
                    assert list(until_reply(socket, "beat")) == []
                    return issuer.requests > requests

            wait_until(asks, "a fetch that hangs", limit_s=15)
        finally:
            issuer.may_answer.set()


def test_expiry_can_be_switched_off(keys_server: RealtimeServer) -> None:
    ends_at = time.time() + 1
    with (
        open_socket(keys_server.ws_url, f"apikey={signed_with('RS256', {'exp': ends_at})}") as socket,
        closing(connect_to(keys_server.dsn)) as connection,
    ):
        assert joined(socket, TODOS, "1") == OK
        wait_until(lambda: time.time() > ends_at + 0.1, "the end of the token")
        connection.execute("INSERT INTO todos (task) VALUES ('after its end')")
        assert tasks_until(socket, "after its end") == ["after its end"]
        assert joined(socket, OTHER, "2") == OK


def test_no_token_reaches_the_log(server: RealtimeServer, keys_server: RealtimeServer) -> None:
    canary = token(3600, sub="canary").split(".")[1]
    for at, good in ((server, token(3600, sub="canary")), (keys_server, signed_with("RS256", claims()))):
        bad = good[:-4] + "AAAA"
        for text in (good, bad, "bare-canary"):
            status(at, f"apikey={text}")
            status(at, f"token={text}&vsn=9")
        with open_socket(at.ws_url, f"apikey={good}") as socket:
            for number, text in enumerate((good, bad, "bare-canary", f"{good}.canary")):
                for payload in ({"user_token": text}, {}):
                    frame = {"topic": f"realtime:{text}", "event": "phx_join", "payload": payload, "ref": str(number)}
                    socket.send(json.dumps(frame))
                renew(socket, f"realtime:{text}", text)
            socket.send(heartbeat_frame("end"))
            list(until_reply(socket, "end"))
        parts = [part for text in (good, bad) for part in text.split(".")[1:]]
        found = [line for line in at.log.splitlines() if any(part in line for part in (*parts, canary, "canary", NEW))]
        assert found == []
        assert "token refused event=access_token code=signature_mismatch" in at.log


# manage.py token


def manage(*arguments: str, **env: str) -> tuple[int, str, str]:
    """Run ``manage.py token`` in an empty environment: exit code, stdout, stderr."""
    result = subprocess.run(
        [sys.executable, PROJECT / "manage.py", "token", *arguments],
        env={"PATH": "", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


def test_a_new_secret_is_made_where_none_is_set_and_can_be_put_into_a_file() -> None:
    code, said, advice = manage("secret")
    name, _, secret = said.strip().partition("=")
    assert (code, name, said.count("\n")) == (0, "JWT_SECRET", 1)
    assert len(secret) == 64
    assert ".env" in advice
    assert manage("secret")[1] != said


def test_a_token_that_is_made_here_opens_the_server(server: RealtimeServer) -> None:
    code, made, words = manage("make", "--role", "anon", "--sub", "u", "--claim", "level=[1]", JWT_SECRET=NEW)
    assert code == 0
    assert "expires in 1 hour" in words
    assert status(server, f"apikey={made.strip()}") == 101
    code, said, _ = manage("check", "--json", made.strip(), JWT_SECRET=NEW)
    answer = json.loads(said)
    assert (code, answer["accepted"], answer["code"]) == (0, True, None)
    assert answer["claims"].items() >= {"role": "anon", "sub": "u", "level": [1]}.items()


def test_a_made_token_has_the_claims_that_the_server_asks_for() -> None:
    env = {"JWT_SECRET": NEW, "JWT_CLAIM_VALIDATORS": '{"iss": "Issuer", "exp": 1}'}
    code, made, words = manage("make", "--expires", "never", "--claim", "name=Bob", **env)
    assert code == 0
    assert "does not expire" in words
    assert "would refuse it" in words  # it has no exp, and one is asked for
    code, made, words = manage("make", "--expires", "30d", **env)
    assert "would refuse it" not in words
    assert manage("check", made.strip(), **env)[0] == 0


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (sign({"exp": 1, "iss": "Issuer"}, NEW), "token_expired", "it expired"),
        (sign({"iss": "Issuer"}, OLD), "signature_mismatch", "it does not expire"),
        (sign({"iss": "Other"}, NEW), "claim_mismatch", 'asks for "Issuer", and it is "Other"'),
        (sign({}, NEW), "claim_missing", "it is missing"),
        (sign({"exp": "soon"}, NEW), "exp_invalid", "not a number"),
        ("garbage", "token_malformed", "no JSON Web Token"),
    ],
)
def test_a_check_says_what_is_wrong(text: str, code: str, words: str) -> None:
    env = {"JWT_SECRET": NEW, "JWT_CLAIM_VALIDATORS": '{"iss": "Issuer"}'}
    exit_code, said, _ = manage("check", text, **env)
    assert exit_code == 1
    assert f"would refuse it ({code})" in said
    assert "bad" in said
    assert words in said
    assert NEW not in said
    answer = json.loads(manage("check", text, "--json", **env)[1])
    assert (answer["accepted"], answer["code"]) == (False, code)


def test_a_check_fetches_keys(issuer: Issuer) -> None:
    issuer.body = jwks(public_jwk("RS256"))
    assert manage("check", signed_with("RS256", claims()), JWT_JWKS=issuer.url)[0] == 0
    assert "key_unknown" in manage("check", signed_with("ES256", claims()), JWT_JWKS=issuer.url)[1]


def test_without_a_secret_it_says_how_to_make_one() -> None:
    for arguments in (["make"], ["check", "x"]):
        code, said, words = manage(*arguments)
        assert (code, said) == (1, "")
        assert "manage.py token secret" in words


@pytest.mark.parametrize("arguments", [["--expires", "soon"], ["--claim", "x"], ["--algorithm", "none"]])
def test_a_bad_argument_is_named(arguments: list[str]) -> None:
    code, _, words = manage("make", *arguments, JWT_SECRET=NEW)
    assert code == 2
    assert arguments[0] in words
