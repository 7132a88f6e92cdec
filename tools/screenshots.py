"""Makes the README's pictures of the dashboard: `python tools/screenshots.py`, where what the tests need is installed.

The traffic is made up, and the same each time; the page is the real one. It also says what the page weighs and when
Chromium first painted it.
"""

from __future__ import annotations

import asyncio
import io
import math
import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image
from playwright.async_api import async_playwright

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.counts import BUCKETS, bucketed  # noqa: E402 - found only now
from tests.kit.admin import Admin, Usage, budget, counts, limit, running_admin, token, usage  # noqa: E402

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Response

IMAGES: Final = ROOT / "tools" / "images"
SHOTS: Final = {
    "dashboard-light": ("light", 1200, 900),
    "dashboard-dark": ("dark", 1200, 900),
    "dashboard-narrow": ("light", 360, 780),
}
SECONDS: Final = 300
STORM: Final = range(170, 215)
"""When one of the tokens asks for more than it may."""
COLOURS: Final = 128
"""Of the palette: a picture of text needs no more, and is a third as large."""

# Name, id, requests a second, requests a minute that are allowed, US dollars a day, and what a request costs.
TOKENS: Final = (
    ("nightly-batch", "Zk3vQ0aYp8", 34.0, 3000, 100, 0.0021),
    ("support-bot", "b7XwLr2MtE", 22.0, 1500, 120, 0.0012),
    ("search-index", "Qm9dT4sVhA", 15.0, 1200, 10, 0.0001),
    ("eval run 12", "Qm9dT4sVhA.u5Yc", 8.0, 600, 25, 0.0012),
    ("notebook (ana)", "f2GpN6kJwR", 3.0, 600, 5, 0.0014),
    ("ci", "xC8eB1oUzH", 1.4, 120, 2, 0.0002),
)


class Traffic:
    """Made-up traffic, a second at a time."""

    def __init__(self) -> None:
        self._random = random.Random(7)  # noqa: S311 - no secret comes of it
        self._requests = [900 * round(rate) for _, _, rate, *_ in TOKENS]
        self._refused: list[dict[str, int]] = [{} for _ in TOKENS]
        self._errors = 31
        self._times = [0] * BUCKETS

    def at(self, second: int) -> Usage:
        """Return the event of a second; to be asked for in turn."""
        tokens = [self._token(index, second) for index in range(len(TOKENS))]
        self._errors += self._random.random() < (0.6 if 60 <= second < 75 else 0.03)
        refused: dict[str, int] = {"token_expired": 18 + second // 40}
        for token_refused in self._refused:
            for reason, times in token_refused.items():
                refused[reason] = refused.get(reason, 0) + times
        requests = sum(self._requests)
        swell = 1 + 0.15 * math.sin(second / 25) + (0.35 if second in STORM else 0)
        times_s = [self._random.lognormvariate(math.log(0.21 * swell), 0.62) for _ in range(round(80 * swell))]
        for bucket, times in bucketed(times_s):
            self._times[bucket] += times
        latency = {"p50": 208.0, "p90": 464.0, "p99": 985.0}
        spent = sum(map(self._spent, range(len(TOKENS))))
        cost = {"USD": f"{spent:.6f}"}
        common: dict[str, Any] = {"upstream_errors": self._errors, "failed": 4, "latency_ms": latency}
        totals = counts(requests, refused, in_flight=self._random.randint(24, 31), cost=cost, **common)
        api = counts(round(requests * 0.86), refused, in_flight=22, cost=cost, **common)
        maps = counts(round(requests * 0.14), in_flight=3, latency_ms={"p50": 31.0, "p90": 58.0, "p99": 120.0})
        return {
            **usage(second, *tokens, totals=totals, targets={"api": api, "maps": maps}, times=self._times),
            "instances": 3,
        }

    def _spent(self, index: int) -> float:
        return self._requests[index] * float(TOKENS[index][-1])

    def _token(self, index: int, second: int) -> Usage:
        name, token_id, rate, quota, dollars, price = TOKENS[index]
        storm = name == "support-bot" and second in STORM
        load = rate * (1 + 0.2 * math.sin(second / 30 + index)) * (2.6 if storm else 1)
        asked = max(0, round(self._random.gauss(load, math.sqrt(load) / 2)))
        self._requests[index] += asked
        refused = self._refused[index]
        if storm:
            refused["rate_limited"] = refused.get("rate_limited", 0) + asked // 2
        if name == "nightly-batch" and second % 9 == 0:
            refused["concurrency_limited"] = refused.get("concurrency_limited", 0) + 1
        in_flight = min(8, round(load * 0.25) + self._random.randint(0, 1))
        limits = [
            limit("minute", quota if storm else min(quota, round(load * 60)), quota),
            limit("day", self._requests[index], 100_000, window=86400.0),
            limit("concurrency", in_flight, 8, kind="concurrency", window=None, reset=None),
            limit("global-minute", 4630 + 10 * round(10 * math.sin(second / 30)), 6000, shared=True),
        ]
        spent = self._spent(index)
        return token(
            token_id,
            name,
            *limits,
            budgets=[budget("day-USD", f"{spent:.6f}", f"{in_flight * 20 * price:.6f}", str(dollars))],
            cost={"USD": f"{spent:.6f}"},
            requests=self._requests[index],
            refused=dict(refused),
            in_flight=in_flight,
            retries=refused.get("rate_limited", 0) // 3,
            upstream_errors=self._errors if index == 0 else 0,
            latency_ms={"p50": 190.0 + 15 * index, "p90": 420.0 + 35 * index, "p99": 900.0 + 70 * index},
        )


async def shoot(browser: Browser, name: str) -> str:
    """Make one picture; return what there is to say of it."""
    scheme, width, height = SHOTS[name]
    async with running_admin() as admin:
        traffic = Traffic()
        admin.first = traffic.at(0)
        page = await browser.new_page(
            color_scheme="dark" if scheme == "dark" else "light", viewport={"width": width, "height": height}
        )
        sizes: dict[str, int] = {}

        def weigh(answer: Response) -> None:
            sizes[answer.url] = int(answer.headers.get("content-length", "0"))

        page.on("response", weigh)
        await page.goto(admin.url + "/dashboard")
        await page.locator("#state[data-state=live]").wait_for()
        await play(admin, traffic, page)
        picture = Image.open(io.BytesIO(await page.screenshot()))
        paint_ms = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        await page.close()
    path = IMAGES / f"{name}.png"
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return (
        f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB; "
        f"page {sum(sizes.values()) / 1000:.0f} kB in {len(sizes) - 1} files, first painted after {paint_ms:.0f} ms"
    )


async def play(admin: Admin, traffic: Traffic, page: Page) -> None:
    """Send the events of five minutes, and wait until the last is shown."""
    for second in range(1, SECONDS):
        admin.sends(traffic.at(second))
    seen = "last => document.querySelector('#as-of').textContent.startsWith(last)"
    last = await page.evaluate("at => new Date(at).toLocaleTimeString('en-GB')", admin.first["at"])
    await page.wait_for_function(seen, arg=last)
    await page.wait_for_timeout(600)  # the bars move to where they belong for 400 ms


async def main() -> None:
    """Make all of them."""
    IMAGES.mkdir(exist_ok=True)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name in SHOTS:
            print(await shoot(browser, name))
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
