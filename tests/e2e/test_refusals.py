"""Three requests are allowed and ten are asked: each client makes exactly the calls that the refusals intend.

Time is a fake, for the limits and for the clients: who sleeps moves it on. So what is asserted is how long each client
was told to wait, and that a place was there when it came back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio
import pytest
import urllib3

from gateway import Config, Gateway
from gateway.stores.memory import MemoryStore
from tests.kit.sdks import anthropic, openai
from tests.kit.upstream import answering, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.stores import Plan, Verdict, Waiter
    from tests.kit.upstream import Upstream

ALLOWED, ASKED = 3, 10
JITTER: Final = 1.05
"""How much longer than needed a client may be told to wait, so that not all come back at once."""

Outcome = Literal["answered", "refused"]
Asker = Callable[[str, str], Awaitable[list[Outcome]]]

JSON: Final = "Content-Type: application/json"
COMPLETION: Final = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
MESSAGE: Final = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": []}
QUESTION: Final[dict[str, Any]] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


class FakeTime:
    """A clock that only sleepers move."""

    def __init__(self) -> None:
        self.now_us = 10**12
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_us += round(seconds * 1e6)

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)


class Counting(MemoryStore):
    """Notes every verdict: one for each call that reaches the gateway's limits."""

    def __init__(self, clock: FakeTime) -> None:
        super().__init__(lambda: clock.now_us)
        self.verdicts: list[Verdict] = []

    def check(self, plan: Plan, waiter: Waiter) -> None:
        super().check(plan, Noting(waiter, self.verdicts))

    @property
    def refused(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.admitted]


class Noting:
    def __init__(self, waiter: Waiter, verdicts: list[Verdict]) -> None:
        self._waiter = waiter
        self._verdicts = verdicts
        self.on_store_loss = waiter.on_store_loss

    def on_verdict(self, verdict: Verdict) -> None:
        self._verdicts.append(verdict)
        self._waiter.on_verdict(verdict)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(time, "sleep", fake.sleep)
    monkeypatch.setattr(anyio, "sleep", fake.sleep_async)
    return fake


@pytest.fixture
def store(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting(clock)
    monkeypatch.setattr("gateway.server.make_store", lambda *_: counting)
    return counting


@pytest.fixture
async def gateway(upstream: Upstream, store: Counting, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    upstream.paths = {
        b"/v1/chat/completions": answering(json.dumps(COMPLETION).encode(), "200 OK", JSON),
        b"/v1/v1/messages": answering(json.dumps(MESSAGE).encode(), "200 OK", JSON),
    }
    assert store.verdicts == []
    async with Gateway(Config(target_api_url=upstream.url)) as running:
        yield running


def openai_sync(url: str, token: str) -> Awaitable[list[Outcome]]:
    def ask() -> list[Outcome]:
        with openai.OpenAI(base_url=url, api_key=token) as client:
            return [once(client) for _ in range(ASKED)]

    def once(client: openai.OpenAI) -> Outcome:
        try:
            client.chat.completions.create(**QUESTION)
        except openai.RateLimitError:
            return "refused"
        return "answered"

    return asyncio.to_thread(ask)


async def openai_async(url: str, token: str) -> list[Outcome]:
    async def once() -> Outcome:
        try:
            await client.chat.completions.create(**QUESTION)
        except openai.RateLimitError:
            return "refused"
        return "answered"

    async with openai.AsyncOpenAI(base_url=url, api_key=token) as client:
        return [await once() for _ in range(ASKED)]


def anthropic_sync(url: str, token: str) -> Awaitable[list[Outcome]]:
    def ask() -> list[Outcome]:
        with anthropic.Anthropic(base_url=url, api_key=token) as client:
            return [once(client) for _ in range(ASKED)]

    def once(client: anthropic.Anthropic) -> Outcome:
        try:
            client.messages.create(max_tokens=1, **QUESTION)
        except anthropic.RateLimitError:
            return "refused"
        return "answered"

    return asyncio.to_thread(ask)


async def anthropic_async(url: str, token: str) -> list[Outcome]:
    async def once() -> Outcome:
        try:
            await client.messages.create(max_tokens=1, **QUESTION)
        except anthropic.RateLimitError:
            return "refused"
        return "answered"

    async with anthropic.AsyncAnthropic(base_url=url, api_key=token) as client:
        return [await once() for _ in range(ASKED)]


def urllib3_retry(url: str, token: str) -> Awaitable[list[Outcome]]:
    def ask() -> list[Outcome]:
        retry = urllib3.Retry(total=2, status_forcelist=[429])
        fields = {"Authorization": f"Bearer {token}"}
        with urllib3.PoolManager(retries=retry) as pool:
            statuses = [pool.request("GET", f"{url}/x", headers=fields).status for _ in range(ASKED)]
        return ["answered" if status == 200 else "refused" for status in statuses]

    return asyncio.to_thread(ask)


SDKS: Final[dict[str, Asker]] = {
    "openai": openai_sync,
    "openai-async": openai_async,
    "anthropic": anthropic_sync,
    "anthropic-async": anthropic_async,
}
ALL: Final[dict[str, Asker]] = {**SDKS, "urllib3": urllib3_retry}
AFTER: Final = len(range(ALLOWED, ASKED, ALLOWED))
"""How many of the ten find no place and come back: the 4th, the 7th and the 10th."""


@pytest.mark.parametrize("window", ["second", "30s"])
@pytest.mark.parametrize("name", ALL)
async def test_who_is_told_to_wait_waits_once_and_finds_a_place(
    upstream: Upstream, gateway: Gateway, store: Counting, clock: FakeTime, name: str, window: str
) -> None:
    token = gateway.issue_token(limits=[f"{ALLOWED}/{window}"])
    outcomes = await soon(ALL[name](f"{gateway.url}/api", token))
    assert outcomes == ["answered"] * ASKED
    assert len(store.verdicts) == ASKED + AFTER
    assert len(store.refused) == AFTER
    assert len(upstream.requests) == ASKED
    waits_s = [verdict.reset_us / 1e6 for verdict in store.refused]
    for slept_s, wait_s in zip(clock.slept_s, waits_s, strict=True):
        # urllib3 knows whole seconds only; the SDKs read the milliseconds.
        coarse_s = 1.0 if name == "urllib3" else 0.001
        assert wait_s <= slept_s <= wait_s * JITTER + coarse_s
    if name in SDKS:
        tries = [received.field(b"x-stainless-retry-count") for received in upstream.requests]
        assert tries == [b"1" if number and number % ALLOWED == 0 else b"0" for number in range(ASKED)]


@pytest.mark.parametrize("window", ["minute", "hour", "day"])
@pytest.mark.parametrize("name", SDKS)
async def test_an_sdk_is_told_when_waiting_makes_no_sense_and_does_not_come_back(
    upstream: Upstream, gateway: Gateway, store: Counting, clock: FakeTime, name: str, window: str
) -> None:
    token = gateway.issue_token(limits=[f"{ALLOWED}/{window}"])
    outcomes = await soon(SDKS[name](f"{gateway.url}/api", token))
    assert outcomes == ["answered"] * ALLOWED + ["refused"] * (ASKED - ALLOWED)
    assert len(store.verdicts) == ASKED
    assert len(upstream.requests) == ALLOWED
    assert clock.slept_s == []


async def test_urllib3_waits_as_long_as_it_takes(
    upstream: Upstream, gateway: Gateway, store: Counting, clock: FakeTime
) -> None:
    """It knows nothing of `x-should-retry`; so what it is told of has to be right, and it is: one wait each."""
    token = gateway.issue_token(limits=[f"{ALLOWED}/hour"])
    assert await soon(urllib3_retry(f"{gateway.url}/api", token)) == ["answered"] * ASKED
    assert (len(store.verdicts), len(upstream.requests)) == (ASKED + AFTER, ASKED)
    assert all(3600 <= slept_s <= 3660 * JITTER + 1 for slept_s in clock.slept_s)
