"""Debian's Chromium, the pages that it shows, and what they do that nobody sees."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from playwright.async_api import async_playwright

from tests.kit.programs import program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, Response


class Watched:
    """A page, and what it did that nobody sees.

    Attributes:
        complaints: Of the browser about the page: errors, and what its policy kept it from.
        answers: All that it was sent.
        hosts: Where its requests went, those that were stopped included.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.answers: list[Response] = []
        self.hosts: set[str] = set()
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("response", self._on_response)
        page.on("request", self._on_request)

    def _on_response(self, response: Response) -> None:
        self.answers.append(response)

    def _on_console(self, message: ConsoleMessage) -> None:
        # That an answer was an error, or that there was none, the browser says by itself; what counts is what is shown.
        if not message.text.startswith("Failed to load resource: "):
            self.complaints.append(f"{message.type}: {message.text}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.hosts.add(urlsplit(request.url).netloc)


@contextlib.asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """Run one until the block ends; skip the test where it is not installed."""
    path = program("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def opened(browser: Browser, url: str, **options: Any) -> AsyncIterator[Watched]:
    """Open the dashboard in a profile of its own until the block ends; nobody may have complained of it by then.

    Args:
        browser: Where.
        url: The gateway's.
        options: Of the profile, as Playwright has them.
    """
    context = await browser.new_context(**options)
    context.set_default_timeout(10_000)
    watched = Watched(await context.new_page())
    try:
        await watched.page.goto(url + "/dashboard")
        yield watched
    finally:
        await context.close()
    assert not watched.complaints, watched.complaints
    assert watched.hosts == {urlsplit(url).netloc}, watched.hosts


# --- the dashboard's parts -------------------------------------------------------------------------------------------


def state(page: Page) -> Locator:
    """Whether it is live, in words."""
    return page.get_by_role("status").first


def row(page: Page, name: str) -> Locator:
    """The row of a token or target."""
    return page.get_by_role("row").filter(has_text=name)


def cells(page: Page, name: str) -> Locator:
    """The cells of that row, less the first, which is its head."""
    return row(page, name).get_by_role("cell")


async def confirm(page: Page, button: str) -> None:
    """Press a button of the dialog's."""
    await page.get_by_role("dialog").get_by_role("button", name=button).click()
