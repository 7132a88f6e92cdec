"""The dashboard on a real gateway: its figures are what was asked, and a token that is revoked there is refused."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import expect

from gateway import Config, Gateway
from tests.e2e import connected, fetch, request
from tests.e2e.test_dashboard import KEY as ADMIN_KEY
from tests.e2e.test_dashboard import NIGHTLY, browser
from tests.kit.admin import usage
from tests.kit.browser import cells, confirm, opened, row, state
from tests.kit.upstream import Upstream, soon

if TYPE_CHECKING:
    from playwright.async_api import Browser

pytestmark = pytest.mark.asyncio(loop_scope="module")

__all__ = ["browser"]


def shape(told: Any) -> Any:
    """Which members there are, by the first of each list; what is counted by reason or unit has any names."""
    if isinstance(told, dict):
        return {name: None if name in {"refused", "cost"} else shape(value) for name, value in told.items()}
    return [shape(told[0])] if isinstance(told, list) else None


async def test_a_gateway_is_watched_and_a_token_revoked(browser: Browser) -> None:
    async with (
        Upstream() as upstream,
        Gateway(Config(target_api_url=upstream.url, rate_limit="5")) as gateway,
        opened(browser, gateway.url) as watched,
        connected(gateway.url) as client,
    ):
        page = watched.page
        await expect(state(page)).to_have_text("Live")
        token = gateway.issue_token(name="worker")
        statuses = [(await client.ask(request("/api/x", token))).status for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        await expect(cells(page, "worker").first).to_have_text(re.compile(r"minute\s+5 / 5 full"))
        await expect(cells(page, "worker").nth(2)).to_have_text("7")
        await expect(cells(page, "worker").nth(3)).to_have_text("2")
        await expect(cells(page, "api").nth(1)).to_have_text("7")
        await row(page, "worker").get_by_role("button").click()
        await confirm(page, "Revoke")
        await expect(row(page, "worker").get_by_role("button")).to_have_text("Revoked")
        assert (await client.ask(request("/api/x", token)))["x-gateway-error"] == "token_revoked"


async def test_with_an_admin_key_it_is_asked_for(browser: Browser) -> None:
    config = Config(target_api_url="http://127.0.0.1:1", admin_key=ADMIN_KEY)
    async with Gateway(config) as gateway, opened(browser, gateway.url) as watched:
        page = watched.page
        await page.get_by_label("Key").fill(ADMIN_KEY[::-1])
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("This key was refused.")
        await page.get_by_label("Key").fill(ADMIN_KEY)
        await page.keyboard.press("Enter")
        await expect(state(page)).to_have_text("Live")
        # A gateway that stops ends the stream in good order.
        await soon(gateway.drain())
        await expect(state(page)).to_contain_text("Reconnecting")


async def test_what_the_fake_tells_is_what_a_gateway_tells() -> None:
    async with Upstream() as upstream:
        config = Config(target_api_url=upstream.url, target_cost="0.001 USD", budget="5 USD/60m")
        async with Gateway(config) as gateway:
            await fetch(gateway.url, request("/api/x", gateway.issue_token(name="worker")))
            told = json.loads((await fetch(gateway.url, request("/admin/usage"))).content)
    assert shape(told) == shape(usage(0, NIGHTLY))
