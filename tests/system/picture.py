"""Take a picture of a running landing page: `python -m tests.system.picture URL OUTPUT.png [--dark] [--width N]`.

Presses Insert and Update a few times where the page has these buttons, waits for the frames, opens the newest one, and
saves the whole page. It starts no server.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.system.browser import chromium, for_a_picture


def change_some_rows(page: Page) -> None:
    """Press the demo's buttons, each time waiting until the frame of that change is in the list."""
    for name, event in (("Insert", "INSERT"), ("Update", "UPDATE"), ("Insert", "INSERT"), ("Update", "UPDATE")):
        frames = page.locator(f'#frames .tag[data-event="{event}"]')
        seen = frames.count()
        page.get_by_role("button", name=name, exact=True).click()
        expect(frames).to_have_count(seen + 1)
    page.locator("#frames summary").nth(1).click()


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a running landing page.")
    parser.add_argument("url")
    parser.add_argument("output", type=Path)
    parser.add_argument("--dark", action="store_true", help="as for a visitor who prefers dark colours")
    parser.add_argument("--width", type=int, default=1280, help="of the window, in CSS pixels (default: 1280)")
    options = parser.parse_args()
    with chromium() as browser:
        page = browser.new_page(**for_a_picture(width=options.width, height=900, dark=options.dark))
        page.goto(options.url)
        expect(page.locator("#status")).to_have_attribute("data-state", "live")
        if page.locator("#demo-form").count():
            change_some_rows(page)
        page.screenshot(path=options.output, full_page=True)


if __name__ == "__main__":
    main()
