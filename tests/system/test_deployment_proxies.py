"""The processes of the systemd units, with the settings of the example, behind the shipped nginx.conf and Caddyfile."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from psycopg.conninfo import conninfo_to_dict
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from streaming.tokens import sign
from tests.servers import PostgresCluster, ValkeyServer, free_port, wait_until
from tests.system.corridor import execute
from tests.system.server import PROJECT, ManagedProcess, http_status

DEPLOY = PROJECT / ".deploy"
NAME = "realtime.example.org"
TOPIC = "realtime:public:items"
SECRET = secrets.token_urlsafe(40)
LIMIT_S = 20


def unit(name: str, instance: str = "") -> list[str]:
    """What a systemd unit starts, with this environment's programs."""
    (line,) = re.findall(r"^ExecStart=(.*)$", (DEPLOY / name).read_text(), re.MULTILINE)
    return shlex.split(line.replace("%i", instance).replace("/opt/walcast/bin", str(Path(sys.executable).parent)))


def example(name: str) -> dict[str, str]:
    """An environment file."""
    lines = (DEPLOY / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@dataclass(frozen=True)
class Installation:
    """A replicator and two Daphnes: what the proxies stand before."""

    dsn: str
    ports: tuple[int, int]
    daphnes: tuple[ManagedProcess, ManagedProcess]


@pytest.fixture(scope="module")
def installation(
    postgres18: PostgresCluster, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("walcast")
    dsn = postgres18.create_database()
    execute(dsn, "create table items(id bigint primary key)", "create publication supabase_realtime for all tables")
    parts = conninfo_to_dict(dsn)
    kept = {"db_password": str(parts["password"]), "jwt_secret": SECRET, "django_secret_key": secrets.token_urlsafe(40)}
    for name, text in kept.items():
        (folder / name).write_text(text + "\n")
    env = example("walcast.env.example") | {
        "DB_HOST": str(parts["host"]),
        "DB_PORT": str(parts["port"]),
        "DB_NAME": str(parts["dbname"]),
        "DB_USER": str(parts["user"]),
        "DB_SSL": "false",
        "DB_PASSWORD_FILE": str(folder / "db_password"),
        "JWT_SECRET_FILE": str(folder / "jwt_secret"),
        "DJANGO_SECRET_KEY_FILE": str(folder / "django_secret_key"),
        "REDIS_URL": valkey.url,
        "REDIS_PREFIX": "deployment",
        "WALCAST_HOME": str(folder),
        "PYTHONPATH": str(PROJECT),
    }
    ports = free_port(), free_port()
    with ExitStack() as stack:
        replicator = ManagedProcess(
            unit("walcast-replicator.service"), env, lambda process: " streaming " in process.log
        )
        stack.enter_context(replicator)
        daphnes = [ManagedProcess(unit("walcast@.service", str(port)), env, partial(_lives, port)) for port in ports]
        for daphne in daphnes:
            stack.enter_context(daphne)
        yield Installation(dsn, ports, (daphnes[0], daphnes[1]))
    postgres18.drop_database(dsn)


def _lives(port: int, _: ManagedProcess) -> bool:
    return http_status(port, "/health/live") is not None


def _is_ready(port: int) -> bool:
    # Asked by its address, it would refuse: that is not among ALLOWED_HOSTS.
    url = f"http://127.0.0.1:{port}/health/ready"
    return httpx2.get(url, headers={"Host": NAME}, trust_env=False).status_code == 200


@dataclass(frozen=True)
class Proxy:
    """A proxy that listens for TLS on ``port``; ``trust`` comes to know its certificate, by the file ``root``."""

    port: int
    root: Path
    trust: ssl.SSLContext
    process: ManagedProcess
    access_log: Path | None

    def get(self, path: str, host: str = NAME) -> httpx2.Response:
        """The answer to a GET, as a browser asks."""
        headers = {"Host": host, "Accept": "text/html"}
        with httpx2.Client(verify=self.trust, trust_env=False, timeout=LIMIT_S) as client:
            url = f"https://127.0.0.1:{self.port}{path}"
            return client.get(url, headers=headers, extensions={"sni_hostname": NAME})

    def post(self, path: str, form: dict[str, str], **headers: str) -> httpx2.Response:
        """The answer to a form."""
        with httpx2.Client(verify=self.trust, trust_env=False, timeout=LIMIT_S) as client:
            url = f"https://127.0.0.1:{self.port}{path}"
            return client.post(url, data=form, headers={"Host": NAME} | headers, extensions={"sni_hostname": NAME})

    def connect(self, token: str, *, source: str = "127.0.0.1") -> connect:
        """A websocket, from that address of this machine."""
        return connect(
            f"wss://{NAME}/socket/websocket?apikey={token}",
            host="127.0.0.1",
            port=self.port,
            ssl=self.trust,
            local_addr=(source, 0),
            proxy=None,
        )


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(
    request: pytest.FixtureRequest, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    program = shutil.which(request.param, path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip(f"{request.param} is not installed; on Debian: apt-get install {request.param}")
    folder = tmp_path_factory.mktemp(request.param)
    started = (
        _nginx(program, folder, installation) if request.param == "nginx" else _caddy(program, folder, installation)
    )
    with started.process:
        started.trust.load_verify_locations(started.root)
        yield started


def _nginx(program: str, folder: Path, installation: Installation) -> Proxy:
    port, plain = free_port(), free_port()
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    argv = ["openssl", "req", *kind, *names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True)
    site = (DEPLOY / "nginx.conf").read_text()
    for theirs, ours in {
        "127.0.0.1:4000": f"127.0.0.1:{installation.ports[0]}",
        "127.0.0.1:4001": f"127.0.0.1:{installation.ports[1]}",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "    listen [::]:80;\n": "",
        "    listen [::]:443 ssl;\n": "",
        f"/etc/ssl/{NAME}.pem": str(certificate),
        f"/etc/ssl/{NAME}.key": str(key),
        "/var/log/nginx/": f"{folder}/",
    }.items():
        assert theirs in site
        site = site.replace(theirs, ours)
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log stderr warn;\n"
        + "events {} http {\n"
        + "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"include {folder}/site.conf; }}\n"
    )
    folder.chmod(0o755)
    process = ManagedProcess(
        [program, "-p", folder, "-c", folder / "nginx.conf"], {}, lambda _: http_status(plain) == 301
    )
    return Proxy(port, certificate, ssl.create_default_context(), process, folder / "walcast.log")


def _caddy(program: str, folder: Path, installation: Installation) -> Proxy:
    port = free_port()
    options = (
        f"{{\n\tadmin off\n\tlocal_certs\n\tskip_install_trust\n\tauto_https disable_redirects\n\thttps_port {port}\n"
    )
    options += f"\tstorage file_system {folder}/storage\n}}\n"
    (folder / "Caddyfile").write_text(options + (DEPLOY / "Caddyfile").read_text())
    env = {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "WALCAST_NAME": f"https://{NAME}:{port}",
        "WALCAST_UPSTREAMS": " ".join(f"127.0.0.1:{upstream}" for upstream in installation.ports),
    }
    argv = [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    root = folder / "storage" / "pki" / "authorities" / "local" / "root.crt"
    process = ManagedProcess(argv, env, lambda process: "certificate obtained successfully" in process.log)
    return Proxy(port, root, ssl.create_default_context(), process, None)


def token(**claims: Any) -> str:
    return sign({"role": "authenticated"} | claims, SECRET)


async def join(client: ClientConnection) -> None:
    await client.send(json.dumps({"topic": TOPIC, "event": "phx_join", "payload": {}, "ref": "1"}))
    assert (await receive(client))["payload"]["status"] == "ok"


async def receive(client: ClientConnection) -> Any:
    async with asyncio.timeout(LIMIT_S):
        return json.loads(await client.recv())


async def test_a_change_reaches_a_client_through_the_proxy(proxy: Proxy, installation: Installation) -> None:
    async with proxy.connect(token()) as client:
        await join(client)
        execute(installation.dsn, "insert into items select coalesce(max(id), 0) + 1 from items")
        message = await receive(client)

    assert (message["topic"], message["event"]) == (TOPIC, "INSERT")


async def test_a_refusal_comes_before_the_upgrade(proxy: Proxy) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with proxy.connect("no-token"):
            pass

    assert refused.value.response.status_code == 403


async def test_the_address_in_the_log_is_the_clients(proxy: Proxy, installation: Installation) -> None:
    def shown() -> bool:
        return any(
            "handshake refused" in line and "client=127.0.0.9" in line for line in log(installation).splitlines()
        )

    with pytest.raises(InvalidStatus):
        async with proxy.connect("no-token", source="127.0.0.9"):
            pass

    wait_until(shown, "a line with the client's own address")


async def test_a_client_that_names_another_address_is_not_believed(proxy: Proxy, installation: Installation) -> None:
    refused = proxy.connect("no-token", source="127.0.0.10")
    refused.additional_headers = {"X-Forwarded-For": "192.0.2.99"}
    with pytest.raises(InvalidStatus):
        async with refused:
            pass

    wait_until(lambda: "client=127.0.0.10" in log(installation), "a line with the client's own address")
    assert "192.0.2.99" not in log(installation)


def test_pages_come_through(proxy: Proxy) -> None:
    page = proxy.get("/")

    assert page.status_code == 200
    assert page.headers["strict-transport-security"]
    assert f"wss://{NAME}" in page.headers["content-security-policy"]


def test_the_dashboards_form_is_taken_over_https_and_its_cookies_are_for_https_alone(proxy: Proxy) -> None:
    page = proxy.get("/admin/login/")
    (field,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    cookie = page.headers["set-cookie"]
    form = {"username": "nobody", "password": "wrong", "csrfmiddlewaretoken": field}

    answers = {
        origin: proxy.post("/admin/login/", form, Cookie=cookie.split(";")[0], Origin=origin).status_code
        for origin in (f"https://{NAME}", "https://evil.example.net")
    }

    assert "Secure" in cookie
    assert answers == {f"https://{NAME}": 200, "https://evil.example.net": 403}


def test_under_another_name_there_is_no_page(proxy: Proxy) -> None:
    assert "Walcast" in proxy.get("/").text
    assert "Walcast" not in proxy.get("/", host="evil.example.net").text


def test_the_health_of_what_is_behind_can_be_asked_for(proxy: Proxy) -> None:
    wait_until(lambda: proxy.get("/health/ready").status_code == 200, "being ready")
    assert proxy.get("/health/live").status_code == 200


def test_metrics_are_not_for_the_world(proxy: Proxy) -> None:
    assert proxy.get("/metrics").status_code == 404


async def test_tokens_stand_in_no_log(proxy: Proxy, installation: Installation) -> None:
    good, bad = token(sub="logged"), token(sub="logged", exp=1)
    async with proxy.connect(good) as client:
        await join(client)
    with pytest.raises(InvalidStatus):
        async with proxy.connect(bad):
            pass
    said = log(installation) + proxy.process.log
    if proxy.access_log is not None:
        wait_until(lambda: "/socket/websocket" in read(proxy.access_log), "a line in the access log")
        said += read(proxy.access_log)

    assert good not in said
    assert bad not in said


async def test_when_one_daphne_ends_its_clients_find_the_other(proxy: Proxy, installation: Installation) -> None:
    one, _ = installation.daphnes
    one.stop()
    try:
        for _ in range(4):
            async with proxy.connect(token()) as client:
                await join(client)
    finally:
        one.start()
        wait_until(lambda: _is_ready(installation.ports[0]), "the one being ready again")


def log(installation: Installation) -> str:
    return "".join(daphne.log for daphne in installation.daphnes)


def read(path: Path | None) -> str:
    return path.read_text() if path is not None and path.exists() else ""
