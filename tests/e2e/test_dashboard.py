"""The dashboard in a browser, Debian's Chromium: what an operator sees and does, with scripted figures behind it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.kit.admin import BOUNDS_MS, Admin, budget, counts, limit, running_admin, token, usage
from tests.kit.browser import cells, confirm, opened, row, running_browser, state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Locator, Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "an-admin-key-of-32-characters-ok"
MOST_BYTES = 150_000
NONE = "\N{EN DASH}"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
DRAWN = "canvas => canvas.toDataURL().length"
"""How much is on a canvas, as the size of its picture."""
BRIGHTNESS = """() => {
    const bright = colour => colour.match(/[0-9.]+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0) / 765;
    const [ground, text] = [document.documentElement, document.body].map(node => getComputedStyle(node));
    return [bright(ground.backgroundColor), bright(text.color)];
}"""
"""Of ground and text, 0 to 1."""
WORKER = token("aB3dE", "worker", limit(used=15), requests=40, in_flight=2, refused={"minute": 3})
NIGHTLY = token(
    "xY9zW",
    "nightly",
    limit("hour", 90, 100),
    limit("global-day", 500, 1000, shared=True),
    budgets=[budget("hour-USD", "1.2", "0.5")],
    requests=90,
    cost={"USD": "1.2", "tokens": "123456"},
)
SPENT = {"USD": "12.345678901", "tokens": "123456"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def admin() -> AsyncIterator[Admin]:
    async with running_admin() as running:
        running.first = usage(0, WORKER, NIGHTLY, totals=counts(130, {"minute": 3}, in_flight=2, cost=SPENT))
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, admin: Admin) -> AsyncIterator[Page]:
    async with opened(browser, admin.url) as watched:
        await expect(state(watched.page)).to_have_text("Live")
        yield watched.page


def number(page: Page, name: str) -> Locator:
    """One of the figures at the top."""
    return page.locator("#now div").filter(has=page.get_by_text(name, exact=True)).locator("dd")


# --- what it shows ---------------------------------------------------------------------------------------------------


async def test_it_loads_what_it_needs_from_the_gateway_alone(browser: Browser, admin: Admin) -> None:
    async with opened(browser, admin.url) as watched:
        page = watched.page
        await expect(state(page)).to_have_text("Live")
        await expect(page).to_have_title("Gateway")
        files = [one for one in watched.answers if urlsplit(one.url).path.startswith("/dashboard")]
        assert {one.status for one in files} == {200}
        sizes = [len(await one.body()) + len(str(await one.all_headers())) for one in files]
        assert len(sizes) == 10
        assert sum(sizes) < MOST_BYTES


async def test_figures_limits_tokens_and_targets_are_shown(page: Page) -> None:
    await expect(number(page, "In flight")).to_have_text("2")
    await expect(page.locator("#as-of")).to_have_text(re.compile(r"\d\d:\d\d:\d\d, 1 instance"))
    worker = ["minute 15 / 60", NONE, "40", "3", "0", "0", "40 ms", "2", NONE, "Revoke"]
    await expect(cells(page, "worker")).to_contain_text(worker)
    meter = row(page, "nightly").get_by_role("meter", name="hour", exact=True)
    await expect(meter).to_have_attribute("aria-valuetext", "90 of 100 used")
    assert await meter.locator("span").evaluate("bar => bar.style.width") == "90%"
    shared = page.get_by_role("region", name="Limits of all tokens together").get_by_role("listitem")
    await expect(shared).to_have_text(re.compile(r"global-day\s+500 / 1,000"))
    reasons = page.get_by_role("region", name="Refused, by reason").get_by_role("listitem")
    await expect(reasons).to_have_text(re.compile(r"minute\s+3"))
    await expect(row(page, "api")).to_be_visible()


async def test_each_event_changes_the_page(page: Page, admin: Admin) -> None:
    busy = {**WORKER, **counts(60, {"minute": 13}), "limits": [limit(used=60)]}
    new = token("nE1wT", "new", requests=2)
    admin.sends(
        usage(1, busy, NIGHTLY, new, totals=counts(152, {"minute": 13}, in_flight=7), targets={"api": counts(152)})
    )
    await expect(number(page, "Requests/s")).to_have_text("22")
    await expect(number(page, "Refused/s")).to_have_text("10")
    await expect(number(page, "In flight")).to_have_text("7")
    full = ["minute 60 / 60 full", "20", "60", "13"]
    await expect(cells(page, "worker")).to_contain_text([*full, "0", "0", "40 ms", "0", "Revoke"])
    words = "60 of 60 used, frees in 13 s"
    await expect(row(page, "worker").get_by_role("meter")).to_have_attribute("aria-valuetext", words)
    await expect(row(page, "new")).to_be_visible()
    label = re.compile(r"^Requests per second, the last five minutes; now: requests 22, refused 10, errors 0$")
    await expect(page.get_by_role("img", name=label)).to_be_visible()
    admin.sends(usage(2, NIGHTLY))
    await expect(row(page, "worker")).to_have_count(0)
    await expect(page.locator("#tokens-count")).to_have_text("1")
    admin.sends(usage(3, *(token(f"t{number}", f"t{number}", requests=number) for number in range(100))))
    await expect(page.locator("#tokens-count")).to_have_text("the 100 busiest")


async def test_budgets_fill_beside_limits_and_what_is_held_is_told_apart(page: Page, admin: Admin) -> None:
    meter = row(page, "nightly").get_by_role("meter", name="hour-USD")
    await expect(meter).to_have_attribute("aria-valuetext", "1.2 of 5 USD spent, 0.5 held")
    assert await meter.locator("span").evaluate("bar => bar.style.width") == "24%"
    assert await meter.evaluate("bar => bar.style.getPropertyValue('--held')") == "10%"
    await expect(cells(page, "nightly").first).to_contain_text(re.compile(r"hour\s+90 / 100\s+hour-USD\s+1.7 / 5"))
    budgets = [
        budget("hour-USD", "4.100000001", "0"),
        budget("day-USD", "4.999999999", "0.000000001", reset=90.0),
        budget("global-month-USD", "3", amount="100"),
    ]
    admin.sends(usage(1, {**NIGHTLY, "budgets": budgets}))
    row_of = row(page, "nightly").get_by_role("listitem")
    await expect(row_of).to_contain_text(["90 / 100", "4.1 / 5", "5 / 5 full"])
    words = "4.999999999 of 5 USD spent, 0.000000001 held, frees in 90 s"
    await expect(row(page, "nightly").get_by_role("meter", name="day-USD")).to_have_attribute("aria-valuetext", words)
    levels = [await row_of.nth(at).get_attribute("data-level") for at in range(3)]
    assert levels == ["near", "near", "full"]
    shared = page.get_by_role("region", name="Limits of all tokens together").get_by_role("listitem")
    await expect(shared).to_contain_text(["global-day", "3 / 100"])


async def test_what_was_spent_is_shown_by_token_and_target_and_in_all(page: Page, admin: Admin) -> None:
    await expect(number(page, "Spent")).to_have_text("12.35 USD")
    await expect(cells(page, "nightly").nth(8)).to_have_text(re.compile(r"1.2 USD\s123.5K tokens"))
    rich = token("rIcH0", "rich", cost={"USD": "11"}, requests=1)
    admin.sends(usage(1, NIGHTLY, WORKER, rich, totals=counts(131, cost=SPENT), targets={"api": counts(cost=SPENT)}))
    await expect(cells(page, "api").last).to_have_text(re.compile(r"12.35 USD\s123.5K tokens"))
    await page.get_by_role("button", name="Spent").click()
    names = page.locator("#tokens .name")
    await expect(names).to_have_text(["rich", "nightly", "worker"])


async def test_where_nothing_costs_there_is_no_money_on_the_page(page: Page, admin: Admin) -> None:
    await expect(page.get_by_role("button", name="Spent")).to_be_visible()
    admin.sends(usage(1, WORKER))
    await expect(page.get_by_role("button", name="Spent")).to_be_hidden()
    await expect(page.get_by_text("Spent", exact=True).first).to_be_hidden()
    assert await cells(page, "worker").count() == 9


async def test_latency_is_that_of_the_last_seconds(page: Page, admin: Admin) -> None:
    def took(second: int, **times: int) -> None:
        numbers = [times.get(f"up_to_{bound:g}_ms", 0) for bound in BOUNDS_MS]
        admin.sends(usage(second, WORKER, totals=counts(sum(numbers)), times=[*numbers, 0]))

    took(10, up_to_500_ms=10**6)
    took(11, up_to_500_ms=10**6, up_to_20_ms=90, up_to_50_ms=10)
    for name, text in (("p50", "18 ms"), ("p90", "20 ms"), ("p99", "48 ms")):
        await expect(number(page, name)).to_have_text(text)
    label = re.compile(r"^Latency, the last five minutes; now: p50 18 ms, p90 20 ms, p99 48 ms$")
    await expect(page.get_by_role("img", name=label)).to_be_visible()
    took(19, up_to_500_ms=10**6, up_to_20_ms=90, up_to_50_ms=10)
    await expect(number(page, "p50")).to_have_text(NONE)


async def test_counters_that_begin_anew_make_no_negative_rates(page: Page, admin: Admin) -> None:
    admin.sends(usage(1, {**WORKER, **counts(1)}, totals=counts(1)))
    await expect(cells(page, "worker").nth(2)).to_have_text("1")
    await expect(cells(page, "worker").nth(1)).to_have_text(NONE)
    await expect(number(page, "Requests/s")).to_have_text(NONE)


async def test_the_chart_draws_lines(page: Page, admin: Admin) -> None:
    chart = page.locator("#rate-chart canvas")
    before = await chart.evaluate(DRAWN)
    for second in range(1, 100):
        admin.sends(usage(second, WORKER, totals=counts(130 + second * second)))
    await expect(number(page, "Requests/s")).to_have_text("193")
    assert await chart.evaluate(DRAWN) > before + 2000


async def test_a_name_with_markup_is_only_text(page: Page, admin: Admin) -> None:
    admin.sends(
        usage(
            1, token("hO5tI", HOSTILE, limit(HOSTILE, 1)), totals=counts(1, {HOSTILE: 1}), targets={HOSTILE: counts()}
        )
    )
    await expect(page.locator("#tokens .name")).to_have_text([HOSTILE])
    await expect(page.locator("#targets .name")).to_have_text([HOSTILE])
    await expect(page.locator("#reasons .what")).to_have_text([HOSTILE])
    await page.get_by_role("button", name="Revoke").click()
    await expect(page.locator("#confirm-who")).to_have_text(f"{HOSTILE}, hO5tI")
    await confirm(page, "Revoke")
    await expect(page.locator("#said")).to_have_text(f"Revoked {HOSTILE}, hO5tI.")
    assert await page.locator("img, body script").count() == 0
    await expect(page).to_have_title("Gateway")


# --- what one does with it -------------------------------------------------------------------------------------------


async def test_a_token_is_revoked_once_that_was_confirmed(page: Page, admin: Admin) -> None:
    button = row(page, "worker").get_by_role("button")
    await button.click()
    await expect(page.get_by_role("dialog", name="Revoke this token?")).to_contain_text("worker, aB3dE")
    await confirm(page, "Cancel")
    assert admin.revoked == []
    await button.click()
    await confirm(page, "Revoke")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert admin.revoked == ["aB3dE"]
    await expect(button).to_have_text("Revoked")
    await expect(button).to_be_focused()
    await expect(page.locator("#said")).to_have_text("Revoked worker, aB3dE.")
    # It stays so with the next event, and another token is none the worse.
    admin.sends(usage(1, WORKER, NIGHTLY, totals=counts(131)))
    await expect(number(page, "Requests/s")).to_have_text("1.0")
    await expect(button).to_have_text("Revoked")
    await expect(row(page, "nightly").get_by_role("button")).to_have_text("Revoke")
    await button.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_a_token_that_somebody_else_revoked_is_shown_so(page: Page, admin: Admin) -> None:
    admin.sends(usage(1, {**WORKER, "revoked": True}, NIGHTLY))
    await expect(row(page, "worker").get_by_role("button")).to_have_text("Revoked")
    await expect(row(page, "nightly").get_by_role("button")).to_have_text("Revoke")


async def test_why_a_token_was_not_revoked_is_said(page: Page, admin: Admin) -> None:
    admin.refuses_revoking = True
    await row(page, "worker").get_by_role("button").click()
    await confirm(page, "Revoke")
    await expect(page.get_by_role("alert")).to_have_text("Redis is out.")
    await confirm(page, "Cancel")
    await expect(row(page, "worker").get_by_role("button")).to_have_text("Revoke")


async def test_tokens_are_sorted_by_the_column_of_choice(page: Page) -> None:
    names = page.locator("#tokens .name")
    await expect(names).to_have_text(["nightly", "worker"])
    await page.get_by_role("button", name="Refused").click()
    await expect(names).to_have_text(["worker", "nightly"])
    await expect(page.get_by_role("columnheader", name="Refused").first).to_have_attribute("aria-sort", "descending")
    await page.get_by_role("button", name="Token").click()
    await expect(names).to_have_text(["nightly", "worker"])


async def test_rows_stay_where_they_are_while_somebody_points_at_them(page: Page, admin: Admin) -> None:
    names = page.locator("#tokens .name")
    await row(page, "nightly").hover()
    admin.sends(usage(1, {**WORKER, **counts(500)}, NIGHTLY, totals=counts(590)))
    await expect(cells(page, "worker").nth(2)).to_have_text("500")
    await expect(names).to_have_text(["nightly", "worker"])
    await page.mouse.move(1, 1)
    admin.sends(usage(2, {**WORKER, **counts(501)}, NIGHTLY, totals=counts(591)))
    await expect(names).to_have_text(["worker", "nightly"])


async def test_a_pause_keeps_what_is_shown(page: Page, admin: Admin) -> None:
    pause = page.get_by_role("button", name="Pause")
    await pause.click()
    await expect(pause).to_have_attribute("aria-pressed", "true")
    admin.sends(usage(1, WORKER, totals=counts(130, in_flight=99)))
    admin.ends_streams()  # that it was opened again shows that the event was read
    await expect(state(page)).to_contain_text("Reconnecting")
    await expect(state(page)).to_have_text("Live")
    await expect(number(page, "In flight")).to_have_text("2")
    await pause.click()
    await expect(number(page, "In flight")).to_have_text("99")


async def test_all_of_it_can_be_done_with_the_keyboard(page: Page, admin: Admin) -> None:
    async def focused() -> str:
        text: str = await page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent")
        return text

    order = []
    for _ in range(13):
        await page.keyboard.press("Tab")
        order.append(await focused())
    heads = ["Token", "Limits", "Requests/s", "Requests", "Refused", "Retries", "Errors", "p90", "In flight", "Spent"]
    assert order == ["Pause", *heads, "Revoke nightly xY9zW", "Revoke worker aB3dE"]
    assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    await page.keyboard.press("Enter")
    assert await focused() == "Cancel"
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert await focused() == "Revoke worker aB3dE"
    await page.keyboard.press("Space")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#said")).to_have_text("Revoked worker, aB3dE.")
    assert admin.revoked == ["aB3dE"]


# --- the key ---------------------------------------------------------------------------------------------------------


async def test_a_key_is_asked_for_and_a_wrong_one_is_said_to_be_wrong(browser: Browser, admin: Admin) -> None:
    admin.key = KEY
    async with opened(browser, admin.url) as watched:
        page = watched.page
        field = page.get_by_label("Key")
        await expect(field).to_be_focused()
        await expect(page.get_by_role("alert")).to_contain_text("takes the admin key")
        await expect(page.locator("#usage")).to_be_hidden()
        await field.fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("This key was refused.")
        await expect(field).to_have_value("")
        await field.fill("schlüssel")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("only letters, digits and signs of ASCII")
        await field.fill(f" {KEY}\t")
        await page.keyboard.press("Enter")
        await expect(state(page)).to_have_text("Live")
        await expect(row(page, "worker")).to_be_visible()
        await expect(field).to_be_hidden()
        await expect(page.get_by_role("main")).to_be_focused()


async def test_the_key_is_kept_in_its_tab_alone_and_forgotten_on_request(browser: Browser, admin: Admin) -> None:
    admin.key = KEY
    async with opened(browser, admin.url) as watched:
        page = watched.page
        await page.get_by_label("Key").fill(KEY)
        await page.get_by_role("button", name="Open").click()
        await expect(row(page, "worker")).to_be_visible()
        await page.reload()
        await expect(row(page, "worker")).to_be_visible()
        assert KEY not in str(await page.context.storage_state())  # cookies and local storage
        assert KEY not in await page.content()
        another = await page.context.new_page()
        await another.goto(admin.url + "/dashboard")
        await expect(another.get_by_label("Key")).to_be_visible()
        await page.get_by_role("button", name="Forget key").click()
        await expect(page.get_by_label("Key")).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
        assert not any(KEY in one.url for one in watched.answers)


async def test_a_key_that_is_changed_meanwhile_is_asked_for_again(page: Page, admin: Admin) -> None:
    admin.key = KEY
    admin.ends_streams()
    await expect(page.get_by_label("Key")).to_be_visible()
    await expect(page.locator("#usage")).to_be_hidden()


# --- the stream ------------------------------------------------------------------------------------------------------


async def test_it_comes_back_after_the_stream_ended(page: Page, admin: Admin) -> None:
    admin.sends(usage(1, WORKER, NIGHTLY, totals=counts(132)))
    await expect(number(page, "Requests/s")).to_have_text("2.0")
    admin.ends_streams()
    await expect(state(page)).to_have_text("Reconnecting. The stream ended.")
    await expect(state(page)).to_have_text("Live")
    admin.sends(usage(2, WORKER, NIGHTLY, totals=counts(142)))
    await expect(number(page, "Requests/s")).to_have_text("6.0")
    assert admin.opened == 2


async def test_a_stream_that_is_silent_is_left_for_another(browser: Browser, admin: Admin) -> None:
    async with opened(browser, admin.url) as watched:
        page = watched.page
        await page.clock.install()
        await page.reload()
        await expect(state(page)).to_have_text("Live")
        opened_before = admin.opened
        await page.clock.fast_forward(3000)
        await expect(state(page)).to_have_text("No news from the gateway")
        await page.clock.fast_forward(7000)
        await expect(state(page)).to_have_text("Reconnecting. Nothing came for ten seconds.")
        await page.clock.fast_forward(1000)
        await expect(state(page)).to_have_text("Live")
        assert admin.opened == opened_before + 1


# --- how it looks ----------------------------------------------------------------------------------------------------


async def test_it_is_light_or_dark_as_the_reader_has_set(browser: Browser, admin: Admin) -> None:
    async with opened(browser, admin.url, color_scheme="dark") as watched:
        ground, text = await watched.page.evaluate(BRIGHTNESS)
        assert (ground < 0.2, text > 0.8) == (True, True)
        await watched.page.emulate_media(color_scheme="light")
        ground, text = await watched.page.evaluate(BRIGHTNESS)
        assert (ground > 0.8, text < 0.2) == (True, True)


async def test_nothing_is_wider_than_the_screen(browser: Browser, admin: Admin) -> None:
    long = token("i" * 60, "n" * 200, limit("parent-parent-minute", 10**7, 10**7), requests=10**9, bytes_out=10**15)
    admin.first = usage(0, long, WORKER, totals=counts(10**9, {"parent-parent-minute": 10**8}))
    async with opened(browser, admin.url) as watched:
        page = watched.page
        for width in (360, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 780})
            await expect(cells(page, "worker").first).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") == width
            boxes = "boxes => boxes.map(box => box.scrollWidth - box.clientWidth)"
            assert await page.locator(".scroll").evaluate_all(boxes) == [0, 0]
            await row(page, "worker").get_by_role("button").click()
            await expect(page.get_by_role("dialog")).to_be_in_viewport(ratio=1)
            await confirm(page, "Cancel")


async def test_nothing_moves_for_who_wants_no_motion(browser: Browser, admin: Admin) -> None:
    moves = "getComputedStyle(document.querySelector('#tokens .bar span')).transitionDuration"
    async with opened(browser, admin.url, reduced_motion="reduce") as watched:
        await expect(row(watched.page, "worker")).to_be_visible()
        assert await watched.page.evaluate(moves) == "0s"
        await watched.page.emulate_media(reduced_motion="no-preference")
        assert await watched.page.evaluate(moves) == "0.4s"
