"""Take the pictures of the inspector: `python -m tests.system.inspector_pictures [FOLDER]`.

Starts a server of its own, opens the inspector with a legacy topic and a current channel joined, changes some rows, and
takes it wide and narrow, light and dark, with one event opened.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from urllib.parse import quote

import psycopg
from playwright.sync_api import Browser, expect

from tests.system.browser import chromium, for_a_picture
from tests.system.server import PROJECT, RealtimeServer

ROOM = {
    "topic": "realtime:room:1",
    "bindings": [{"event": "UPDATE", "schema": "public", "table": "todos", "filter": "done=is.true"}],
    "broadcast": True,
    "self": True,
    "ack": True,
    "presence": True,
    "key": "ada",
}
LINK = f"/inspector#legacy=realtime:public:todos&current={quote(json.dumps(ROOM))}"
TASKS = ("Read the write-ahead log", "Vacuum under the sofa", "Find the missing index", "Commit to something")

PICTURES = {
    "inspector.png": (1440, 900, False),
    "inspector-dark.png": (1440, 900, True),
    "inspector-narrow.png": (390, 844, False),
}
"""Name, width and height of the window, and whether it is dark."""


def take(browser: Browser, server: RealtimeServer, path: Path, width: int, height: int, *, dark: bool) -> None:
    """One picture."""
    page = browser.new_page(**for_a_picture(width=width, height=height, dark=dark))
    page.goto(server.http_url + LINK)
    expect(page.locator('#channels li[data-state="joined"]')).to_have_count(2)
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for task in TASKS:
            connection.execute("INSERT INTO todos (task) VALUES (%s)", [task])
        connection.execute("UPDATE todos SET done = true WHERE task = %s", [TASKS[1]])
        connection.execute("DELETE FROM todos WHERE task = %s", [TASKS[2]])
        page.get_by_role("button", name="Track", exact=True).click()
        expect(page.locator("#people li")).to_have_count(1)
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#send-note")).to_contain_text("acknowledged")
        connection.execute("UPDATE todos SET task = 'Commit, and see it arrive' WHERE task = %s", [TASKS[3]])
    expect(page.locator(".row", has_text="see it arrive")).to_have_count(1)
    page.locator("#rows").evaluate("element => element.scrollTop = 0")
    if width >= 600:
        page.locator(".row", has_text="see it arrive").click()
        page.evaluate("scrollTo(0, 0)")
    else:
        page.locator("#events").scroll_into_view_if_needed()
        page.locator("#events").evaluate("element => element.scrollIntoView()")
    page.screenshot(path=path)
    page.close()
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM todos WHERE task = ANY(%s)", [[*TASKS, "Commit, and see it arrive"]])


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of the inspector.")
    parser.add_argument("folder", nargs="?", type=Path, default=PROJECT / ".assets")
    folder: Path = parser.parse_args().folder
    with RealtimeServer() as server, chromium() as browser:
        server.wait_for_log("replicator streaming")
        for name, (width, height, dark) in PICTURES.items():
            take(browser, server, folder / name, width, height, dark=dark)


if __name__ == "__main__":
    main()
