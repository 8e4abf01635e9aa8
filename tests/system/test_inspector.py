"""The inspector in a browser: joins, shows, searches, sends, comes back, and keeps the token to itself."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from django.test import Client, override_settings
from playwright.sync_api import Locator, Page, expect

from streaming.tokens import sign
from tests.clients.install import NodeClients
from tests.system.browser import OpenPage
from tests.system.cutting_proxy import CuttingProxy
from tests.system.server import RealtimeServer

SECRET = "correct horse battery staple, twice over"
TODOS = "#legacy=realtime:public:todos"
ROOM = {
    "topic": "realtime:room",
    "bindings": [{"event": "*", "schema": "public", "table": "todos", "filter": "done=is.true"}],
    "broadcast": True,
    "ack": True,
    "presence": True,
    "key": "me",
}


@pytest.fixture
def server(realtime_server: RealtimeServer) -> RealtimeServer:
    return realtime_server


def is_joined(page: Page, count: int = 1) -> None:
    expect(page.locator("#status")).to_have_attribute("data-state", "live", timeout=20_000)
    expect(page.locator('#channels li[data-state="joined"]')).to_have_count(count)


def write(server: RealtimeServer, *statements: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rows(page: Page, event: str) -> Locator:
    return page.locator(f'.row:has(.tag[data-event="{event}"])')


def _run_in(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    loop.call_soon_threadsafe(call)


@contextmanager
def proxied(server: RealtimeServer) -> Iterator[tuple[CuttingProxy, Callable[[], None]]]:
    """A proxy in a thread of its own (Playwright's calls do not return to the loop of this one), and what cuts it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    proxy = CuttingProxy(server.port)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
        yield proxy, partial(_run_in, loop, proxy.cut)
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_a_row_that_is_committed_is_shown_with_latency_and_position(
    server: RealtimeServer, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(f"{server.http_url}/inspector")
    expect(page.locator("#empty-words")).to_contain_text("Nothing is joined yet")
    page.get_by_label("Legacy, of 2021").check(force=True)
    page.get_by_label("Topic").fill("realtime:public:todos")
    expect(page.locator("#preview")).to_have_text("Every change of public.todos")
    page.get_by_role("button", name="Join", exact=True).click()
    is_joined(page)
    expect(page.locator("#sentence")).to_have_text("Watching every change of public.todos.")
    write(
        server,
        "INSERT INTO todos (task) VALUES ('<b>Look</b>')",
        "UPDATE todos SET done = true WHERE task = '<b>Look</b>'",
    )
    inserted = rows(page, "INSERT").first
    expect(inserted).to_contain_text("task=<b>Look</b>")
    expect(inserted.locator(".late")).to_have_text(re.compile(r"^≤ [\d.]+ m?s$"))
    expect(inserted.locator(".position")).to_have_text(re.compile(r"^[0-9A-F]+\.[0-9A-F]+$"))
    updated = rows(page, "UPDATE").first
    expect(updated).to_contain_text("done: f → t")
    updated.click()
    detail = page.locator("#detail")
    expect(detail.locator("tr[data-changed]")).to_have_count(1)
    expect(detail.locator("tr[data-changed] .old")).to_have_text("f")
    expect(detail.locator("tr[data-changed] .new")).to_have_text("t")
    expect(detail.locator("pre")).to_contain_text('"table": "todos"')
    assert complaints == []


def test_a_current_channel_hears_changes_broadcasts_and_who_is_present(
    server: RealtimeServer, open_page: OpenPage, complaints: list[str]
) -> None:
    url = f"{server.http_url}/inspector#current={quote(json.dumps(ROOM))}"
    page, other = open_page(url), open_page(url.replace("%22me%22", "%22you%22"))
    for each in (page, other):
        is_joined(each)
    expect(page.locator("#sentence")).to_contain_text(
        "in room every change of public.todos where done is true, broadcasts and who is present."
    )
    write(server, "INSERT INTO todos (task, done) VALUES ('not done', false), ('done', true)")
    expect(rows(page, "INSERT")).to_have_count(1)
    expect(rows(page, "INSERT").locator(".late")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(page.locator("#latency")).to_have_text(re.compile("^p50 .* p99 "))

    page.get_by_label("Payload, JSON").fill("{no json")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#send-note")).to_contain_text("That is no JSON")
    page.get_by_label("Payload, JSON").fill('{"hello": "you"}')
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#send-note")).to_have_text(re.compile(r"^acknowledged in "))
    expect(rows(other, "broadcast")).to_contain_text('{"hello":"you"}')

    other.get_by_label("What others see of me").fill('{"mood": "curious"}')
    other.get_by_role("button", name="Track", exact=True).click()
    expect(page.locator("#people")).to_contain_text('you{"mood":"curious"}')
    expect(page.locator("#presence-count")).to_have_text("1 here")
    other.get_by_role("button", name="Untrack").click()
    expect(page.locator("#people li")).to_have_count(0)
    assert complaints == []


def test_search_kinds_pause_and_clear_say_what_is_shown(server: RealtimeServer, open_page: OpenPage) -> None:
    page = open_page(f"{server.http_url}/inspector{TODOS}")
    is_joined(page)
    write(
        server,
        "INSERT INTO todos (task) VALUES ('Read the log'), ('Write the log'), ('Rest')",
        "DELETE FROM todos WHERE task = 'Rest'",
    )
    expect(rows(page, "DELETE")).to_have_count(1)
    page.keyboard.press("/")
    page.keyboard.type('"the log" -write task~read')
    expect(rows(page, "INSERT")).to_have_count(1)
    expect(rows(page, "INSERT")).to_contain_text("Read the log")
    expect(page.locator("#sentence")).to_contain_text(
        "Showing those with “the log”, without “write” and whose task contains read."
    )
    assert "q=%22the+log%22" in page.url
    page.get_by_role("searchbox").fill("")
    expect(rows(page, "INSERT")).to_have_count(3)
    page.get_by_role("button", name="INSERT 3").click()
    expect(rows(page, "INSERT")).to_have_count(0)
    page.get_by_role("button", name="INSERT 3").click()

    page.get_by_role("button", name="Pause").click()
    write(server, "INSERT INTO todos (task) VALUES ('while paused')")
    expect(page.get_by_role("button", name="Go on (1)")).to_be_visible()
    expect(rows(page, "INSERT")).to_have_count(3)
    page.get_by_role("button", name="Go on (1)").click()
    expect(rows(page, "INSERT")).to_have_count(4)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".row")).to_have_count(0)


def test_the_keyboard_goes_everywhere(server: RealtimeServer, open_page: OpenPage, complaints: list[str]) -> None:
    page = open_page(f"{server.http_url}/inspector{TODOS}")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    is_joined(page)
    write(server, "INSERT INTO todos (task) VALUES ('first')", "INSERT INTO todos (task) VALUES ('second')")
    expect(rows(page, "INSERT")).to_have_count(2)
    page.keyboard.press("j")
    expect(page.locator('.row[aria-selected="true"]')).to_contain_text("second")
    page.keyboard.press("j")
    expect(page.locator('.row[aria-selected="true"]')).to_contain_text("first")
    expect(page.locator("#detail")).to_contain_text("first")
    page.keyboard.press("c")
    expect(page.locator("#announce")).to_have_text("Copied")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["event"], copied["payload"]["record"]["task"]) == ("INSERT", "first")
    assert copied["position"] == copied["payload"]["position"]
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("p")
    page.keyboard.press("x")
    expect(page.locator(".row")).to_have_count(0)
    page.keyboard.press("t")
    expect(page.get_by_label("Topic")).to_be_focused()
    assert complaints == []


def test_a_link_opens_the_same_view_and_an_export_holds_it(server: RealtimeServer, open_page: OpenPage) -> None:
    page = open_page(f"{server.http_url}/inspector{TODOS}")
    is_joined(page)
    page.get_by_role("searchbox").fill("task=shared")
    page.get_by_role("button", name="DELETE").click()
    expect(page).to_have_url(re.compile("hide=protocol%2CDELETE"))
    other = open_page(page.url)
    is_joined(other)
    expect(other.get_by_role("searchbox")).to_have_value("task=shared")
    write(server, "INSERT INTO todos (task) VALUES ('shared'), ('other')", "DELETE FROM todos WHERE task = 'shared'")
    expect(rows(other, "INSERT")).to_have_count(1)
    expect(other.get_by_role("button", name="DELETE 1")).to_have_attribute("aria-pressed", "false")
    other.locator("#take summary").click()
    with other.expect_download() as download:
        other.get_by_role("button", name="NDJSON").click()
    (line,) = Path(download.value.path()).read_text().splitlines()
    assert json.loads(line)["payload"]["record"]["task"] == "shared"
    other.locator("#take summary").click()
    with other.expect_download() as download:
        other.get_by_role("button", name="JSON, one array").click()
    assert len(json.loads(Path(download.value.path()).read_text())) == 1


def test_after_a_cut_it_comes_back_resumes_and_says_so(server: RealtimeServer, open_page: OpenPage) -> None:
    with proxied(server) as (proxy, cut):
        page = open_page(f"http://127.0.0.1:{proxy.port}/inspector{TODOS}")
        is_joined(page)
        write(server, "INSERT INTO todos (task) VALUES ('before')")
        expect(rows(page, "INSERT")).to_have_count(1)
        proxy.is_closed = True
        cut()
        expect(page.locator("#status")).to_have_attribute("data-state", "reconnecting")
        write(server, "INSERT INTO todos (task) VALUES ('missed 1')", "INSERT INTO todos (task) VALUES ('missed 2')")
        proxy.is_closed = False
        page.get_by_role("button", name="Try now").click()
        is_joined(page)
        expect(rows(page, "note-good").first).to_contain_text("2 changes that were missed come now, nothing is missing")
        expect(rows(page, "INSERT")).to_have_count(3)
        expect(rows(page, "INSERT").first).to_contain_text("missed 2")
        expect(rows(page, "INSERT").first.locator(".late")).to_have_text("replayed")


def test_a_change_of_the_past_is_replayed_on_demand(server: RealtimeServer, open_page: OpenPage) -> None:
    page = open_page(f"{server.http_url}/inspector{TODOS}")
    is_joined(page)
    write(server, *(f"INSERT INTO todos (task) VALUES ('past {number}')" for number in range(3)))
    expect(rows(page, "INSERT")).to_have_count(3)
    rows(page, "INSERT").nth(2).click()
    page.get_by_role("button", name="Replay from here").click()
    expect(rows(page, "INSERT")).to_have_count(5)
    expect(rows(page, "INSERT").first).to_contain_text("past 2")


def test_thousands_of_events_leave_the_page_quick_and_the_list_bounded(
    server: RealtimeServer, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(f"{server.http_url}/inspector{TODOS}")
    is_joined(page)
    # The longest that the page did not draw, measured in the page itself.
    page.evaluate(
        """() => {
            window.longest = 0
            let last = performance.now()
            const step = (now) => {
                window.longest = Math.max(window.longest, now - last)
                last = now
                requestAnimationFrame(step)
            }
            requestAnimationFrame(step)
        }"""
    )
    for _ in range(8):
        write(server, "INSERT INTO todos (task) SELECT 'many ' || n FROM generate_series(1, 1000) n")
    expect(page.get_by_role("button", name="INSERT 8,000")).to_be_visible(timeout=30_000)
    expect(page.locator("#foot-count")).to_contain_text("5,000 events; the oldest make room for the newest")
    assert page.locator(".row").count() < 60
    rows_frame = page.locator("#rows")
    rows_frame.evaluate("element => element.scrollTop = element.scrollHeight")
    expect(page.locator('.row[aria-posinset="5000"]')).to_be_visible()
    assert page.evaluate("window.longest") < 1_500  # one slow moment of a busy machine; no freeze
    write(server, "DELETE FROM todos WHERE task LIKE 'many %'")
    assert complaints == []


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1024, True), (1600, False)])
def test_it_fits_and_can_be_used_by_everybody(
    server: RealtimeServer, open_page: OpenPage, node_clients: NodeClients, width: int, dark: bool
) -> None:
    page = open_page(f"{server.http_url}/inspector{TODOS}&current={quote(json.dumps(ROOM))}", width=width, dark=dark)
    is_joined(page, 2)
    task = f"fits {width} {dark}"
    write(server, f"INSERT INTO todos (task) VALUES ('{task}')", f"UPDATE todos SET done = true WHERE task = '{task}'")
    expect(rows(page, "UPDATE")).to_have_count(2)
    page.get_by_role("button", name="Track", exact=True).click()
    expect(page.locator("#people li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    rows(page, "UPDATE").first.click()
    expect(page.locator("#detail")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Through the protocol of the browser's tools: the page's own policy forbids scripts from elsewhere, as it should.
    axe = (node_clients.folder / "node_modules" / "axe-core" / "axe.min.js").read_text()
    page.evaluate(f"{axe}; undefined")
    found = page.evaluate("async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)])")
    assert found == []


def test_a_secured_server_gets_the_token_and_nobody_else(open_page: OpenPage) -> None:
    with RealtimeServer({"SECURE_CHANNELS": "true", "JWT_SECRET": SECRET}) as server:
        page = open_page(f"{server.http_url}/inspector{TODOS}")
        expect(page.locator("#status-text")).to_have_text("token needed")
        token = page.get_by_label("Token", exact=True)
        token.fill("not.a.token")
        token.press("Enter")
        expect(page.locator("#identity")).to_contain_text("The server refused this token")
        secret = sign({"role": "authenticated", "sub": "alice", "exp": int(time.time()) + 600}, SECRET)
        token.fill(secret)
        page.get_by_role("button", name="Use", exact=True).click()
        is_joined(page)
        expect(page.locator("#identity")).to_have_text("sub alice, role authenticated; expires in 10 min.")
        write(server, "INSERT INTO todos (task) VALUES ('seen')")
        expect(rows(page, "INSERT")).to_have_count(1)
        page.get_by_role("button", name="protocol").click()
        renewed = sign({"role": "authenticated", "sub": "alice", "exp": int(time.time()) + 1200}, SECRET)
        token.fill(renewed)
        token.press("Enter")
        pushed = rows(page, "access_token")
        expect(pushed).to_contain_text("(hidden)")
        pushed.click()
        expect(page.locator("#detail pre")).to_contain_text("(hidden)")
        expect(rows(page, "phx_join").first).to_contain_text('"user_token":"(hidden)"')
        assert renewed not in page.content()
        assert secret not in page.url
        assert secret not in page.content()
        assert page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])").count("eyJ") == 0
        # Another server is not talked to: its own inspector is.
        page.get_by_label("Address").fill("wss://elsewhere.example/socket")
        link = page.get_by_role("link", name="Open the inspector there")
        expect(link).to_have_attribute("href", re.compile(r"^https://elsewhere\.example/inspector#legacy="))
        assert secret not in (link.get_attribute("href") or "")


@pytest.mark.parametrize(("is_served", "status"), [(True, 200), (False, 404)])
def test_a_setting_takes_the_page_away(client: Client, is_served: bool, status: int) -> None:
    with override_settings(INSPECTOR=is_served):
        assert client.get("/inspector").status_code == status
        assert client.get("/").status_code == 200


def test_the_policy_lets_the_inspector_talk_to_its_own_server_only(server: RealtimeServer) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/inspector")
    answer = connection.getresponse()
    policy = answer.headers["Content-Security-Policy"]
    connection.close()
    assert answer.status == 200
    assert f"connect-src 'self' ws://127.0.0.1:{server.port} wss://127.0.0.1:{server.port};" in policy
    assert "unsafe" not in policy
