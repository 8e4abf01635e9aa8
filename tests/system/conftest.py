"""Pages as a visitor sees them: a browser for each module, and what it had to complain about in a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, StorageState

from tests.system.browser import CHROMIUM, OpenPage, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of the module and not of the session: tests of other modules have event loops of their own."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"the page is looked at with {CHROMIUM}, which is not there (Debian: apt-get install chromium)")
    with chromium() as browser:
        yield browser


@pytest.fixture
def complaints() -> list[str]:
    """What the browser had to say about the pages of this test: errors, refusals by the policy, requests elsewhere."""
    return []


@pytest.fixture
def open_page(browser: Browser, complaints: list[str]) -> Iterator[OpenPage]:
    """Opens pages that are closed with the test, and listens to what the browser has to say about them."""
    pages: list[Page] = []

    def open_page(
        url: str, *, dark: bool = False, width: int = 1440, height: int = 900, state: StorageState | None = None
    ) -> Page:
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            storage_state=state,
        )
        pages.append(page)
        page.set_default_timeout(15_000)
        host = urlsplit(url).netloc

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                complaints.append(message.text)

        def asked(request: Request) -> None:
            if urlsplit(request.url).netloc != host and not request.url.startswith(("data:", "blob:")):
                complaints.append(f"request to {request.url}")

        page.on("console", said)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", asked)
        page.goto(url)
        return page

    yield open_page
    for page in pages:
        page.close()
