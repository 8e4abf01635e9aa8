"""The landing page: what HTTP answers, and what a browser sees."""

from __future__ import annotations

import http.client
import re
import time
from urllib.parse import urlsplit

import jwt
import psycopg
import pytest
from playwright.sync_api import Page, expect

from tests.servers import wait_until
from tests.system.browser import OpenPage
from tests.system.server import RealtimeServer

SECRET = "correct horse battery staple, twice over"


class Answer:
    """The answer to one request."""

    def __init__(self, url: str, method: str = "GET", path: str = "/", accept: str | None = None) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        try:
            connection.request(method, path, headers={"Accept": accept} if accept else {})
            response = connection.getresponse()
            self.status, self.headers, self.body = response.status, response.headers, response.read().decode()
        finally:
            connection.close()


def is_live(page: Page) -> None:
    expect(page.locator("#status")).to_have_attribute("data-state", "live", timeout=20_000)
    expect(page.locator('#topics li[data-state="joined"]').first).to_be_visible()
    expect(page.locator("#rows-waiting")).to_be_hidden()


def frames(page: Page, event: str) -> int:
    return page.locator(f'#frames .tag[data-event="{event}"]').count()


# --------------------------------------------------------------------------------------------------- HTTP


def test_the_front_door_names_the_protocol_it_speaks(realtime_server: RealtimeServer) -> None:
    answer = Answer(realtime_server.http_url)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Supabase Realtime" in answer.body
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_head_is_answered_like_get_without_the_page(realtime_server: RealtimeServer) -> None:
    answer = Answer(realtime_server.http_url, "HEAD")
    assert (answer.status, answer.body) == (200, "")


@pytest.mark.parametrize(
    ("accept", "body", "content_type"),
    [("application/json", '"Not Acceptable"', "application/json"), ("image/png", "Not Acceptable", "text/html")],
)
def test_who_wants_no_html_gets_406(realtime_server: RealtimeServer, accept: str, body: str, content_type: str) -> None:
    answer = Answer(realtime_server.http_url, accept=accept)
    assert (answer.status, answer.body) == (406, body)
    assert answer.headers.get_content_type() == content_type


@pytest.mark.parametrize("accept", [None, "*/*", "text/html,application/xhtml+xml,*/*;q=0.8", "text/*"])
def test_who_takes_html_among_others_gets_the_page(realtime_server: RealtimeServer, accept: str | None) -> None:
    assert Answer(realtime_server.http_url, accept=accept).status == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/socket"), ("GET", "/favicon.ico"), ("POST", "/"), ("DELETE", "/nothing/here")]
)
def test_everything_else_is_not_found_in_html_and_in_json(
    realtime_server: RealtimeServer, method: str, path: str
) -> None:
    plain = Answer(realtime_server.http_url, method, path)
    assert (plain.status, plain.body, plain.headers.get_content_type()) == (404, "Not Found", "text/html")
    assert plain.headers["X-Frame-Options"] == "SAMEORIGIN"
    json = Answer(realtime_server.http_url, method, path, accept="application/json")
    assert (json.status, json.body, json.headers.get_content_type()) == (404, '"Not Found"', "application/json")


def test_the_policy_lets_a_page_talk_to_this_server_only(realtime_server: RealtimeServer) -> None:
    policy = Answer(realtime_server.http_url).headers["Content-Security-Policy"]
    host = urlsplit(realtime_server.http_url).netloc
    assert "default-src 'none'" in policy
    assert f"connect-src 'self' ws://{host} wss://{host};" in policy
    assert "unsafe" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("name", ["insert", "update", "delete"])
def test_the_demo_changes_nothing_for_a_foreign_form_or_a_get(realtime_server: RealtimeServer, name: str) -> None:
    assert Answer(realtime_server.http_url, "POST", f"/demo/{name}").status == 403
    assert Answer(realtime_server.http_url, "GET", f"/demo/{name}").status == 405


def test_the_password_is_shown_to_nobody_who_comes_under_another_name(realtime_server: RealtimeServer) -> None:
    assert "psql postgresql://" in Answer(realtime_server.http_url).body
    connection = http.client.HTTPConnection(urlsplit(realtime_server.http_url).netloc, timeout=10)
    connection.request("GET", "/", headers={"Host": "walcast.example"})
    assert "postgresql://" not in connection.getresponse().read().decode()
    connection.close()


# --------------------------------------------------------------------------------------------------- a browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_change_appears_after_pressing_insert(
    realtime_server: RealtimeServer, open_page: OpenPage, complaints: list[str], dark: bool
) -> None:
    page = open_page(realtime_server.http_url, dark=dark)
    is_live(page)
    newest = page.locator("#rows tr").first
    before = newest.get_attribute("data-id")
    page.get_by_role("button", name="Insert", exact=True).click()
    expect(page.locator('#frames .tag[data-event="INSERT"]')).to_have_count(1)
    expect(newest).not_to_have_attribute("data-id", before or "")
    expect(newest).to_have_attribute("data-done", "false")
    expect(page.locator("#latest")).to_have_text(re.compile(r"^INSERT: .* in [\d.]+ ms$"))
    expect(page.locator("#frames .frame").first.locator(".when")).to_have_text(re.compile(r"^[\d.]+ ms"))
    assert complaints == []


def test_update_and_delete_move_the_table(
    realtime_server: RealtimeServer, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(realtime_server.http_url)
    is_live(page)
    done = page.locator('#rows tr[data-done="true"]')
    count = done.count()
    page.get_by_role("button", name="Update", exact=True).click()
    expect(page.locator('#frames .tag[data-event="UPDATE"]')).to_have_count(1)
    expect(done).not_to_have_count(count)
    newest = page.locator("#rows tr").first.get_attribute("data-id")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator('#frames .tag[data-event="DELETE"]')).to_have_count(1)
    expect(page.locator(f'#rows tr[data-id="{newest}"]')).to_have_count(0)
    assert complaints == []


def test_a_row_written_elsewhere_arrives_as_well(realtime_server: RealtimeServer, open_page: OpenPage) -> None:
    page = open_page(realtime_server.http_url)
    is_live(page)
    with psycopg.connect(realtime_server.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO public.todos (task) VALUES ('<b>written</b> in psql')")
    expect(page.locator("#rows tr").first).to_contain_text("<b>written</b> in psql")
    expect(page.locator("#latest")).to_have_text("INSERT in public.todos arrived.")


def test_a_frame_opens_into_its_json(realtime_server: RealtimeServer, open_page: OpenPage) -> None:
    page = open_page(realtime_server.http_url)
    is_live(page)
    page.get_by_role("button", name="Insert", exact=True).click()
    frame = page.locator("#frames .frame", has=page.locator('[data-event="INSERT"]'))
    frame.locator("summary").press("Enter")
    expect(frame.locator("pre")).to_contain_text('"topic": "realtime:public:todos"')
    expect(frame.locator("pre")).to_contain_text('"table": "todos"')


def test_topics_are_watched_left_and_refused(
    realtime_server: RealtimeServer, open_page: OpenPage, complaints: list[str]
) -> None:
    page = open_page(realtime_server.http_url)
    is_live(page)
    page.get_by_label("Watch a topic").fill("realtime:public")
    page.get_by_role("button", name="Watch", exact=True).click()
    expect(page.locator("#topics li", has_text="realtime:public").nth(1)).to_have_attribute("data-state", "joined")
    page.get_by_role("button", name="Insert", exact=True).click()
    expect(page.locator('#frames .tag[data-event="INSERT"]')).to_have_count(2)
    page.get_by_role("button", name="Stop watching realtime:public", exact=True).click()
    expect(page.locator("#topics li")).to_have_count(1)
    expect(page.locator('#frames .tag[data-event="phx_close"]')).to_have_count(1)
    page.get_by_label("Watch a topic").fill("room:1")
    page.get_by_label("Watch a topic").press("Enter")
    expect(page.locator('#topics li[data-state="refused"]')).to_contain_text("unmatched topic")
    assert complaints == []


def test_paused_frames_wait_and_cleared_ones_are_gone(realtime_server: RealtimeServer, open_page: OpenPage) -> None:
    page = open_page(realtime_server.http_url)
    is_live(page)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Insert", exact=True).click()
    resume = page.get_by_role("button", name="Resume (1 waiting)")
    expect(resume).to_be_visible()
    assert frames(page, "INSERT") == 0
    resume.click()
    expect(page.locator('#frames .tag[data-event="INSERT"]')).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#frames-empty")).to_be_visible()
    assert frames(page, "INSERT") == 0


@pytest.mark.parametrize("width", [360, 900, 1600])
def test_nothing_sticks_out_of_the_window(realtime_server: RealtimeServer, open_page: OpenPage, width: int) -> None:
    page = open_page(realtime_server.http_url, width=width)
    is_live(page)
    page.get_by_role("button", name="Insert", exact=True).click()
    page.locator('#frames [data-event="INSERT"]').first.click()
    expect(page.locator("#frames pre")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_demo_table_stays_small(realtime_server: RealtimeServer, open_page: OpenPage) -> None:
    with psycopg.connect(realtime_server.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO public.todos (task) SELECT 'one of many' FROM generate_series(1, 250)")
        page = open_page(realtime_server.http_url)
        is_live(page)
        page.get_by_role("button", name="Insert", exact=True).click()
        count = "SELECT count(*) FROM public.todos"
        wait_until(lambda: connection.execute(count).fetchone() == (200,), "200 rows")
        connection.execute("DELETE FROM public.todos WHERE task = 'one of many'")


# --------------------------------------------------------------------------------------------------- trouble


def test_the_page_comes_back_after_a_restart_of_the_server(open_page: OpenPage) -> None:
    with RealtimeServer() as server:
        page = open_page(server.http_url)
        is_live(page)
        server.stop()
        expect(page.locator("#status")).to_have_attribute("data-state", "reconnecting")
        server.start()
        is_live(page)
        page.get_by_role("button", name="Insert", exact=True).click()
        expect(page.locator('#frames .tag[data-event="INSERT"]')).to_have_count(1)


def test_a_secured_server_asks_for_a_token_and_the_page_keeps_it_to_itself(open_page: OpenPage) -> None:
    with RealtimeServer({"SECURE_CHANNELS": "true", "JWT_SECRET": SECRET}) as server:
        page = open_page(server.http_url)
        expect(page.get_by_role("heading", name="This server asks for a token")).to_be_visible()
        token = page.get_by_label("Token (a JSON Web Token)")
        token.fill("not.a.token")
        token.press("Enter")
        expect(page.get_by_role("heading", name="The server refused this token")).to_be_visible()
        secret = jwt.encode({"exp": int(time.time()) + 600}, SECRET)
        token.fill(secret)
        page.get_by_role("button", name="Connect").click()
        is_live(page)
        expect(page.locator("#refusal")).to_be_hidden()
        page.get_by_role("button", name="Insert", exact=True).click()
        expect(page.locator('#frames .tag[data-event="INSERT"]')).to_have_count(1)
        assert secret not in page.url
        assert secret not in page.content()
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
