"""The dashboard in a browser, on real servers: who gets in, what it shows, and what it does."""

from __future__ import annotations

import http.client
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, Page, StorageState, expect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.clients.install import NodeClients
from tests.servers import ValkeyServer
from tests.system.browser import OpenPage
from tests.system.corridor import DaphneProcess, execute, replicator
from tests.system.dashboard_pictures import password_of, sign_in
from tests.system.server import PROJECT, ManagedProcess, RealtimeServer

USER, PASSWORD = "operator", "correct horse battery staple"
SECTIONS = ("overview", "slots", "clients", "topics", "tables", "processes", "errors")


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer() as server:
        yield server


@pytest.fixture(scope="module")
def session(browser: Browser, server: RealtimeServer) -> StorageState:
    """The cookies of somebody who has signed in."""
    context = browser.new_context()
    sign_in(context.new_page(), server.http_url, password_of(server.log))
    state = context.storage_state()
    context.close()
    return state


OpenSection = Callable[..., Page]


@pytest.fixture
def open_section(server: RealtimeServer, session: StorageState, open_page: OpenPage) -> OpenSection:
    """Open a section of the dashboard, signed in."""

    def open_section(section: str = "overview", *, dark: bool = False, width: int = 1440) -> Page:
        page = open_page(f"{server.http_url}/admin/#{section}", dark=dark, width=width, state=session)
        expect(page.locator("#verdict")).not_to_have_attribute("data-level", "waiting", timeout=15_000)
        return page

    return open_section


@contextmanager
def legacy_client(url: str, *topics: str, agent: str = "test/1.0") -> Iterator[ClientConnection]:
    """A websocket that has joined the topics, and takes what comes."""
    with connect(url, user_agent_header=agent, max_size=None) as socket:
        for number, topic in enumerate(topics):
            socket.send(f'{{"topic": "{topic}", "event": "phx_join", "payload": {{}}, "ref": "{number}"}}')
            socket.recv(timeout=10)
        yield socket


def close_of(socket: ClientConnection) -> tuple[int, str] | None:
    """Take what still comes, and say how the server closed the socket."""
    try:
        while True:
            socket.recv(timeout=10)
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else None


# --------------------------------------------------------------------------------------------------- who gets in


def status_of(server: RealtimeServer, path: str, method: str = "GET", body: str = "") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/x-www-form-urlencoded"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_nobody_sees_or_does_anything_without_signing_in(server: RealtimeServer) -> None:
    assert status_of(server, "/admin/") == 302
    assert status_of(server, "/admin/actions/disconnect", "POST", "process=x&id=y") == 403
    assert status_of(server, "/admin/actions/drop-slot", "POST", "name=walcast") == 403


@pytest.mark.parametrize("origin", [None, "http://evil.example", "same"])
def test_the_live_socket_is_refused_without_a_session(server: RealtimeServer, origin: str | None) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(live_url(server), origin=as_origin(server.http_url if origin == "same" else origin))
    assert refused.value.response.status_code == 403


def as_origin(origin: str | None) -> Origin | None:
    return None if origin is None else Origin(origin)


def live_url(server: RealtimeServer) -> str:
    return server.http_url.replace("http:", "ws:") + "/admin/live"


def cookies_of(session: StorageState) -> str:
    return "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in session["cookies"])


@pytest.mark.parametrize(
    "origin", [None, "http://evil.example", "http://127.0.0.1", "null", "http://127.0.0.1.evil.example"]
)
def test_a_session_opens_the_live_socket_for_our_own_pages_only(
    server: RealtimeServer, session: StorageState, origin: str | None
) -> None:
    headers = {"Cookie": cookies_of(session)}
    with connect(live_url(server), origin=Origin(server.http_url), additional_headers=headers) as ours:
        assert '"history"' in str(ours.recv(timeout=10))[:40]
    with pytest.raises(InvalidStatus) as refused:
        connect(live_url(server), origin=as_origin(origin), additional_headers=headers)
    assert refused.value.response.status_code == 403


def test_a_session_alone_does_nothing_without_a_csrf_token(server: RealtimeServer, session: StorageState) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Cookie": cookies_of(session), "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/admin/actions/drop-slot", "name=walcast", headers)
    assert connection.getresponse().status == 403
    connection.close()


def test_five_wrong_passwords_make_a_pause(browser: Browser, server: RealtimeServer) -> None:
    page = browser.new_page()
    page.goto(f"{server.http_url}/admin/")
    for _ in range(5):
        page.get_by_label("Username").fill("somebody")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Too many wrong passwords")).to_be_visible()
    page.close()


def test_the_password_is_printed_once_and_the_session_outlives_a_restart(browser: Browser) -> None:
    with RealtimeServer() as server:
        password = password_of(server.log)
        page = browser.new_page()
        sign_in(page, server.http_url, password)
        server.stop()
        expect(page.locator("#status")).to_have_attribute("data-state", "reconnecting")
        server.start()
        expect(page.locator("#status")).to_have_attribute("data-state", "live", timeout=15_000)
        assert server.log.count(password) == 1
        page.close()


# --------------------------------------------------------------------------------------------------- what it shows


def test_a_client_appears_and_vanishes_without_a_reload(
    server: RealtimeServer, open_section: OpenSection, complaints: list[str]
) -> None:
    page = open_section("clients")
    expect(page.locator("#view h3", has_text="Nobody is connected")).to_be_visible()
    with legacy_client(server.ws_url, "realtime:public:todos", "realtime:*", agent="Python/3 websockets/15.0"):
        row = page.locator("#view tbody tr")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("websockets (Python) 15.0")
        expect(row).to_contain_text("2 topics")
        expect(row).to_contain_text("legacy")
        execute(server.dsn, "insert into public.todos (task) values ('for the dashboard')")
        expect(row.locator('[data-label="Sent"]')).to_contain_text("4")  # two replies, and one change on two topics
        page.goto(f"{server.http_url}/admin/#topics")
        expect(page.locator("#view tbody tr")).to_have_count(2)
        page.goto(f"{server.http_url}/admin/#clients")
    expect(page.locator("#view h3", has_text="Nobody is connected")).to_be_visible()
    assert complaints == []


def test_clients_are_searched_and_sorted(server: RealtimeServer, open_section: OpenSection) -> None:
    page = open_section("clients")
    with (
        legacy_client(server.ws_url, "realtime:public:todos", agent="apple/1"),
        legacy_client(server.ws_url, "realtime:public", "realtime:*", agent="pear/1"),
    ):
        expect(page.locator("#view tbody tr")).to_have_count(2)
        page.get_by_role("button", name="Topics").click()
        expect(page.locator("#view tbody tr").first).to_contain_text("pear")
        page.get_by_role("button", name="Topics").click()
        expect(page.locator("#view tbody tr").first).to_contain_text("apple")
        page.keyboard.press("/")
        page.keyboard.type("PUBLIC:TOD")
        expect(page.locator("#view tbody tr")).to_have_count(1)
        expect(page.locator("#view")).to_contain_text("1 of 2 clients")
        expect(page.get_by_label("Search clients")).to_be_focused()


def test_the_verdict_and_the_pipeline_follow_what_happens(server: RealtimeServer, open_section: OpenSection) -> None:
    page = open_section()
    expect(page.locator("#verdict h1")).to_have_text("All is well. Nobody is listening yet.")
    ended = threading.Event()

    def write() -> None:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            while not ended.wait(0.05):
                connection.execute("UPDATE public.todos SET done = NOT done WHERE id = 1")

    with legacy_client(server.ws_url, "realtime:public:todos"):
        writer = threading.Thread(target=write)
        writer.start()
        try:
            expect(page.locator("#verdict h1")).to_have_text(
                re.compile(r"^All is well\. One client hears of a change [\d.]+ m?s after its commit\.$")
            )
            rate = page.locator(".pipeline .rate")
            expect(rate.nth(0)).to_have_text(re.compile(r"[1-9]\S* changes/s"))
            expect(rate.nth(2)).to_have_text(re.compile(r"[1-9]\S* messages/s"))
            expect(page.locator(".arrow").nth(2).locator("dd").first).to_have_text(re.compile(r"[\d.]+ m?s"))
        finally:
            ended.set()
            writer.join()


def test_tables_say_what_a_subscriber_gets_and_the_cure(server: RealtimeServer, open_section: OpenSection) -> None:
    execute(server.dsn, "create table public.keyless (a int)", "create unlogged table public.scratch (a int)")
    try:
        page = open_section("tables")
        keyless = page.locator("#view li.table", has_text="public.keyless")
        expect(keyless).to_contain_text("UPDATE and DELETE fail", timeout=20_000)
        keyless.locator("summary").click()
        expect(keyless.locator("pre").last).to_have_text("ALTER TABLE public.keyless REPLICA IDENTITY FULL;")
        expect(page.locator("#view li.table", has_text="public.scratch")).to_contain_text("unlogged")
        expect(page.locator("#view li.table", has_text="public.todos")).to_contain_text("INSERT, UPDATE and DELETE")
    finally:
        execute(server.dsn, "drop table public.keyless", "drop table public.scratch")


def test_a_slot_that_nobody_reads_is_dropped_after_a_question(
    server: RealtimeServer, open_section: OpenSection, complaints: list[str]
) -> None:
    execute(server.dsn, "select pg_create_logical_replication_slot('forgotten', 'pgoutput')")
    page = open_section("slots")
    ours = page.locator("#view li.slot", has_text="walcast")
    expect(ours).to_contain_text("ours")
    expect(ours.get_by_role("button", name="Drop")).to_have_count(0)
    forgotten = page.locator("#view li.slot", has_text="forgotten")
    forgotten.get_by_role("button", name="Drop").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(forgotten).to_be_visible()
    forgotten.get_by_role("button", name="Drop").click()
    page.get_by_role("dialog").get_by_role("button", name="Drop it").click()
    expect(page.locator("#toast")).to_have_text("The slot forgotten is dropped.")
    expect(forgotten).to_have_count(0)
    assert "operator acted" in server.log
    page.goto(f"{server.http_url}/admin/admin/logentry/")
    expect(page.locator("#result_list")).to_contain_text("Dropped the replication slot forgotten.")
    assert complaints == []


def test_a_warning_of_the_log_is_shown_with_its_cure(server: RealtimeServer, open_section: OpenSection) -> None:
    page = open_section("errors")
    execute(server.dsn, "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'walcast'")
    problem = page.locator("#view li.problem", has_text="not streaming").first
    expect(problem).to_be_visible(timeout=15_000)
    expect(problem.locator(".cure")).to_contain_text("What to do:")
    page.goto(f"{server.http_url}/admin/#overview")
    expect(page.locator("#verdict")).to_have_attribute("data-level", "good", timeout=20_000)


def test_a_client_is_disconnected(server: RealtimeServer, open_section: OpenSection) -> None:
    page = open_section("clients")
    with legacy_client(server.ws_url, "realtime:*") as socket:
        page.get_by_role("button", name=re.compile("^Disconnect 127")).click()
        page.get_by_role("dialog").get_by_role("button", name="Disconnect").click()
        assert close_of(socket) == (1008, "disconnected by the operator")
        expect(page.locator("#toast")).to_contain_text("Disconnected.")


# --------------------------------------------------------------------------------------------------- how it looks


@pytest.mark.parametrize(("dark", "width"), [(False, 360), (True, 1600)], ids=["light, narrow", "dark, wide"])
def test_every_section_fits_and_axe_has_nothing_to_say(
    server: RealtimeServer,
    open_section: OpenSection,
    complaints: list[str],
    node_clients: NodeClients,
    dark: bool,
    width: int,
) -> None:
    axe = (node_clients.folder / "node_modules" / "axe-core" / "axe.min.js").read_text()
    with legacy_client(server.ws_url, "realtime:public:todos", "realtime:*"):
        page = open_section(dark=dark, width=width)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(14, 20, 23)" if dark else "rgb(248, 246, 241)"
        )
        page.evaluate(axe)
        for section in SECTIONS:
            page.evaluate("section => { location.hash = section }", section)
            expect(page.locator(f'#view[data-section="{section}"] > *').first).to_be_visible()
            if section in ("clients", "topics"):
                expect(page.locator("#view tbody tr").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") == width, section
            found = page.evaluate("axe.run().then(({ violations }) => violations)")
            told = [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]
            assert told == [], section
    assert complaints == []


def test_the_colours_are_chosen_and_kept_across_pages(server: RealtimeServer, open_section: OpenSection) -> None:
    page = open_section()
    for theme in ("light", "dark"):
        page.locator("[data-theme-toggle]").click()
        assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 20, 23)"
    page.goto(f"{server.http_url}/admin/auth/user/")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 20, 23)"


# --------------------------------------------------------------------------------------------------- several processes


@pytest.fixture
def env(database18: str, valkey: ValkeyServer, tmp_path: Path) -> dict[str, str]:
    execute(
        database18, "create table items (id int primary key)", "create publication supabase_realtime for all tables"
    )
    return {
        "DATABASE_URL": database18,
        "REDIS_URL": valkey.url,
        "REDIS_PREFIX": tmp_path.name[-30:].replace("_", "-"),
        "SECURE_CHANNELS": "false",
        "SLOT_NAME": f"dashboard_{tmp_path.name[-20:].lower().replace('-', '_')}",
        "WALCAST_HOME": str(tmp_path),
    }


def make_user(env: dict[str, str]) -> None:
    asked = ManagedProcess(
        [sys.executable, PROJECT / "manage.py", "createsuperuser", "--noinput", f"--username={USER}", "--email="],
        env | {"DJANGO_SUPERUSER_PASSWORD": PASSWORD},
        lambda process: "created successfully" in process.log,
    )
    with asked:
        asked.wait()


def test_several_processes_are_seen_as_one_and_a_stopped_replicator_is_noticed(
    env: dict[str, str], browser: Browser
) -> None:
    with replicator(env) as reader, DaphneProcess(env) as one, DaphneProcess(env) as two:
        make_user(env)
        page = browser.new_page()
        page.set_default_timeout(15_000)
        url = one.ws_url.replace("ws:", "http:").partition("/socket")[0]
        sign_in(page, url, PASSWORD, USER)
        with legacy_client(one.ws_url, "realtime:public:items"), legacy_client(two.ws_url, "realtime:*") as other:
            page.goto(f"{url}/admin/#clients")
            expect(page.locator("#view tbody tr")).to_have_count(2)

            # Disconnect the one in the other process.
            page.get_by_label("Search clients").fill("realtime:*")
            expect(page.locator("#view tbody tr")).to_have_count(1)
            page.get_by_role("button", name=re.compile("^Disconnect 127")).click()
            page.get_by_role("dialog").get_by_role("button", name="Disconnect").click()
            assert close_of(other) == (1008, "disconnected by the operator")

            # The replicator stops: the database says how the lag grows, and the page how it falls.
            page.goto(f"{url}/admin/#overview")
            expect(page.locator("#verdict")).to_have_attribute("data-level", "good")
            reader.send_signal(signal.SIGSTOP)
            try:
                execute(
                    env["DATABASE_URL"],
                    "insert into items select generate_series(1, 20000)",
                )
                backlog = page.locator('[data-key="arrow-0"] dl div', has_text="backlog").locator("dd")
                expect(backlog).to_have_text(re.compile(r"[\d.]+ MB, \d+ s"))
                expect(page.locator("#verdict")).to_have_attribute("data-level", "bad")
                expect(page.locator("#verdict h1")).to_contain_text("silent")
            finally:
                reader.send_signal(signal.SIGCONT)
            expect(backlog).to_have_text(re.compile(r"^(none|[\d.]+ k?B.*)$"))
            # The latency of what waited is in the figures for ten seconds.
            expect(page.locator("#verdict")).to_have_attribute("data-level", "good", timeout=30_000)
            page.goto(f"{url}/admin/#processes")
            expect(page.locator('#view [data-key^="process-"]')).to_have_count(3)
        page.close()


def test_the_dashboard_can_be_switched_off(env: dict[str, str]) -> None:
    with DaphneProcess(env | {"DASHBOARD": "false"}) as daphne:
        connection = http.client.HTTPConnection("127.0.0.1", daphne.port, timeout=10)
        connection.request("GET", "/admin/")
        assert connection.getresponse().status == 404
        connection.close()


@pytest.mark.parametrize("secret", ["changeme", "django-insecure-0123456789012345678901234567890123456789"])
def test_a_secret_that_can_be_guessed_ends_the_start(env: dict[str, str], secret: str) -> None:
    with pytest.raises(RuntimeError, match="DJANGO_SECRET_KEY"):
        DaphneProcess(env | {"DJANGO_SECRET_KEY": secret}).__enter__()
