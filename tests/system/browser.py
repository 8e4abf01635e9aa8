"""The Chromium in which pages are looked at, by tests and by the scripts that take pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from playwright.sync_api import Browser, Page, StorageState, sync_playwright

CHROMIUM = "/usr/bin/chromium"
"""Debian's."""


class OpenPage(Protocol):
    """What the fixture `open_page` hands to a test."""

    def __call__(
        self, url: str, *, dark: bool = False, width: int = 1440, height: int = 900, state: StorageState | None = None
    ) -> Page:
        """Open it in a window of its own: of that size, in light or dark colours, with the cookies of ``state``."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A Chromium with no window of its own, ended with the block.

    As long as it runs, Playwright's event loop runs in this thread: nothing else may start one here.
    """
    with sync_playwright() as playwright:
        # Without its sandbox, because it is often root who runs this in a container.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def for_a_picture(*, width: int, height: int, dark: bool) -> dict[str, Any]:
    """What `Browser.new_page` takes for a picture of a window of that size: sharp where it is a phone's."""
    return {
        "viewport": {"width": width, "height": height},
        "color_scheme": "dark" if dark else "light",
        "device_scale_factor": 2 if width < 600 else 1,
    }
