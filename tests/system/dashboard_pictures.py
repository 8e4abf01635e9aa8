"""Take the pictures of the dashboard: `python -m tests.system.dashboard_pictures [FOLDER] [--all]`.

Starts a server of its own, with clients that listen and a writer that writes, signs in, and takes the first page wide
and narrow, light and dark; with ``--all`` every section.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from playwright.sync_api import Browser, Page, expect

from tests.system.browser import chromium, for_a_picture
from tests.system.corridor import LegacyClient
from tests.system.server import PROJECT, RealtimeServer

SECTIONS = ("overview", "slots", "clients", "topics", "tables", "processes", "errors")


def password_of(log: str) -> str:
    """What `manage.py realtime` printed at its first start."""
    found = re.search(r"with the password (\S+)", re.sub(r"\x1b\[[0-9;]*m", "", log))
    assert found is not None, log
    return found[1]


def sign_in(page: Page, url: str, password: str, user: str = "admin") -> None:
    """Through the front door, and to the dashboard."""
    page.goto(f"{url}/admin/")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#status")).to_have_attribute("data-state", "live", timeout=20_000)


@contextmanager
def traffic(server: RealtimeServer, clients: int = 12) -> Iterator[None]:
    """Clients that listen, and a row every few milliseconds."""
    ended = threading.Event()
    topics = ("realtime:public:todos", "realtime:*", "realtime:public", "realtime:public:todos:done=eq.t")

    async def listen(number: int) -> None:
        async with LegacyClient(server.ws_url, *topics[: 1 + number % 4]) as client:
            while not ended.is_set():
                try:
                    await asyncio.wait_for(client.socket.recv(), 0.5)
                except TimeoutError:
                    continue

    async def listen_all() -> None:
        await asyncio.gather(*map(listen, range(clients)))

    def write() -> None:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS public.readings (sensor int, value float8)")
            connection.execute("CREATE TABLE IF NOT EXISTS public.orders (id bigint PRIMARY KEY, total numeric)")
            connection.execute("ALTER TABLE public.orders ENABLE ROW LEVEL SECURITY")
            connection.execute("CREATE UNLOGGED TABLE IF NOT EXISTS public.scratch (id int)")
            if not connection.execute("SELECT FROM pg_replication_slots WHERE slot_name = 'old_report'").fetchone():
                connection.execute("SELECT pg_create_logical_replication_slot('old_report', 'pgoutput')")
            number = 0
            while not ended.wait(0.02 + 0.012 * math.sin(time.monotonic() / 9)):  # busy and quiet in turn
                number += 1
                rows = 1 + (number % 7 == 0)
                connection.execute(
                    "INSERT INTO public.todos (task) SELECT 'Water the plants' FROM generate_series(1, %s)", [rows]
                )
                if number % 50 == 0:
                    connection.execute("DELETE FROM public.todos WHERE id > 6")

    threads = [threading.Thread(target=lambda: asyncio.run(listen_all())), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def picture(browser: Browser, server: RealtimeServer, path: Path, *, dark: bool, width: int, section: str) -> None:
    """Sign in, go to the section, and save the page."""
    page = browser.new_page(**for_a_picture(width=width, height=1000, dark=dark))
    sign_in(page, server.http_url, password_of(server.log))
    page.goto(f"{server.http_url}/admin/#{section}")
    expect(page.locator("#view > *").first).to_be_visible()
    page.wait_for_timeout(1500)
    page.screenshot(path=path, full_page=True)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of the dashboard.")
    parser.add_argument("folder", type=Path, nargs="?", default=PROJECT / ".assets")
    parser.add_argument("--all", action="store_true", help="every section, not the first page only")
    parser.add_argument("--seconds", type=float, default=45, help="of traffic before the first picture (default: 45)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with RealtimeServer() as server, traffic(server), chromium() as browser:
        threading.Event().wait(options.seconds)
        for section in SECTIONS if options.all else SECTIONS[:1]:
            for theme in ("light", "dark"):
                for name, width in (("wide", 1600), ("narrow", 360)):
                    file = f"dashboard-{section}-{name}-{theme}.png" if options.all else f"dashboard-{name}-{theme}.png"
                    picture(browser, server, options.folder / file, dark=theme == "dark", width=width, section=section)


if __name__ == "__main__":
    main()
