"""Two targets of which one is sick, each in its own way: the other is served all the while, and nothing is sent twice.

No stopwatch: whoever asks the sick target still waits when the healthy one has answered all that it was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Config, Gateway
from gateway.proxy.exchange import Exchange
from gateway.proxy.health import FAILURES
from tests.e2e import AGAIN_S, CUT_SHORT, connected, fetch, request
from tests.e2e.test_process import register
from tests.kit.process import gateway_process, until
from tests.kit.upstream import Call, Upstream, answering, chunk, hang, head, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.e2e import Answer

WAITING, ASKED = 20, 20
"""How many wait for the sick target, and how many requests the healthy one answers meanwhile."""
PACE_S = 0.01
"""Between two bytes of a slow answer: dozens of them fit into the timeout that they must not prolong."""
UNREACHABLE, LATE = "upstream_unreachable", "upstream_timeout"


@pytest.fixture
async def healthy() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        running.default = answering(b"well")
        yield running


@contextlib.asynccontextmanager
async def beside(sick_url: str, healthy: Upstream, **settings: Any) -> AsyncIterator[Gateway]:
    """Run a gateway with a target that is sick, `/sick`, and one that is not, `/api`. Only the first has timeouts."""
    sick = {"url": sick_url, **settings}
    async with Gateway(Config(target_api_url=healthy.url, rate_limit="10000", targets={"sick": sick})) as gateway:
        yield gateway


async def outcome(url: str, data: bytes) -> Answer | None:
    """Ask; None for an answer that was cut short."""
    with contextlib.suppress(*CUT_SHORT):
        return await fetch(url, data)
    return None


async def ask_both(
    gateway: Gateway, healthy: Upstream, is_sick: Callable[[], bool], while_waiting: Callable[[], None] = lambda: None
) -> list[Answer | None]:
    """Let many ask the sick target, and the healthy one be asked meanwhile; return what the former got."""
    token = gateway.issue_token()
    sent = [request("/sick/x", token, f"X-Id: {number}", method="POST", body=b"{}") for number in range(WAITING)]
    waiting = [asyncio.create_task(outcome(gateway.url, data)) for data in sent]
    await until(is_sick)
    async with connected(gateway.url) as client:
        for number in range(ASKED):
            answer = await client.ask(request("/api/x", token, f"X-Id: {number}", method="POST", body=b"{}"))
            assert (answer.status, answer.content) == (200, b"well")
    assert not any(task.done() for task in waiting)
    while_waiting()
    answers = await soon(asyncio.gather(*waiting))
    assert ids(healthy) == Counter(b"%d" % number for number in range(ASKED))
    return answers


def ids(upstream: Upstream) -> Counter[bytes | None]:
    """Count what an upstream was sent, by request."""
    return Counter(received.field(b"x-id") for received in upstream.requests)


def problems(answers: list[Answer | None]) -> Counter[tuple[int, str] | None]:
    return Counter(None if answer is None else (answer.status, answer["x-gateway-error"]) for answer in answers)


ONCE_EACH = Counter(b"%d" % number for number in range(WAITING))


async def test_one_that_accepts_and_never_answers(upstream: Upstream, healthy: Upstream) -> None:
    upstream.default = hang
    async with beside(upstream.url, healthy, response_timeout="2s") as gateway:
        answers = await ask_both(gateway, healthy, lambda: len(upstream.requests) == WAITING)
        assert problems(answers) == {(504, LATE): WAITING}
        for connection in upstream.connections:
            await soon(connection.ended.wait())
        # It can be connected to, so it is asked on.
        assert problems([await outcome(gateway.url, request("/sick/x", gateway.issue_token()))]) == {(504, LATE): 1}
    assert ids(upstream) == ONCE_EACH + Counter([None])


async def test_one_whose_head_comes_byte_by_byte(upstream: Upstream, healthy: Upstream) -> None:
    sent: Counter[bytes | None] = Counter()

    async def dribbling(call: Call) -> None:
        await call.content()
        call.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not call.writer.is_closing():
            call.write(b"x")
            sent[call.received.field(b"x-id")] += 1
            await asyncio.sleep(PACE_S)

    upstream.default = dribbling
    async with beside(upstream.url, healthy, response_timeout="2s") as gateway:
        answers = await ask_both(gateway, healthy, lambda: len(upstream.requests) == WAITING)
        assert problems(answers) == {(504, LATE): WAITING}
    assert min(sent.values()) > 10
    assert ids(upstream) == ONCE_EACH


@pytest.mark.parametrize("then", ["ends", "stalls"])
async def test_one_whose_body_comes_byte_by_byte(upstream: Upstream, healthy: Upstream, then: str) -> None:
    """Each byte buys the next one `IDLE_TIMEOUT`, and all of them together as long as they take."""
    enough = asyncio.Event()

    async def dribbling(call: Call) -> None:
        await call.content()
        call.write(head("200 OK", "Transfer-Encoding: chunked"))
        count = 0
        while count < 100 or not enough.is_set():  # for twice as long as either timeout
            call.write(chunk(b"x"))
            count += 1
            await asyncio.sleep(PACE_S)
        if then == "stalls":
            await call.until_gone()
        else:
            call.write(chunk(b"."))
            call.write(chunk(b""))

    upstream.default = dribbling
    async with beside(upstream.url, healthy, idle_timeout="500ms", response_timeout="500ms") as gateway:
        answers = await ask_both(gateway, healthy, lambda: len(upstream.requests) == WAITING, enough.set)
        if then == "stalls":
            assert answers == [None] * WAITING
        else:
            contents = [answer.content for answer in answers if answer is not None]
            assert len(contents) == WAITING
            assert all(len(content) > 100 and content.endswith(b"x.") for content in contents)
    assert ids(upstream) == ONCE_EACH


async def test_one_that_stalls_in_the_handshake_of_tls(healthy: Upstream) -> None:
    got: list[bytes] = []

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(b"")
        number = len(got) - 1
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                got[number] += piece
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with beside(url, healthy, connect_timeout="2s") as gateway:
            answers = await ask_both(gateway, healthy, lambda: len(got) == WAITING)
            assert problems(answers) == {(504, LATE): WAITING}
            assert problems([await outcome(gateway.url, request("/sick/x", gateway.issue_token()))]) == {
                (503, UNREACHABLE): 1
            }
    assert len(got) == WAITING
    assert all(hello.startswith(b"\x16\x03") and b"POST" not in hello for hello in got)


async def test_one_whose_listen_queue_is_full(healthy: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with beside(url, healthy, connect_timeout="2s") as gateway:
            answers = await ask_both(gateway, healthy, lambda: len(gateway._upstreams) >= WAITING)
            assert problems(answers) == {(504, LATE): WAITING}
            refused = await outcome(gateway.url, request("/sick/x", gateway.issue_token()))
            assert refused is not None
            assert (refused.status, refused["retry-after"]) == (503, "1")
        accepted, _ = full.accept()
        with accepted:
            accepted.setblocking(False)
            with pytest.raises(BlockingIOError):  # what waited in the queue was the test's own
                accepted.recv(1)


async def test_one_that_refuses_connections_costs_no_token_anything_and_is_noticed_when_it_is_back(
    healthy: Upstream,
) -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        async with beside(url, healthy) as gateway, connected(gateway.url) as client:
            token = gateway.issue_token()
            post = request("/sick/x", token, method="POST", body=b"{}")
            statuses = [(await client.ask(post)).status for _ in range(100)]
            assert statuses == [502] * FAILURES + [503] * (100 - FAILURES)
            answer = await client.ask(request("/api/x", token))
            assert (answer.content, answer["ratelimit"].partition(";t=")[0]) == (b"well", '"minute";r=9999')

            got: list[bytes] = []

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                got.append(await reader.readuntil(b"{}"))
                writer.write(head("200 OK", "Content-Length: 4", "Connection: close") + b"back")
                writer.close()

            reserved.listen()
            async with await asyncio.start_server(serve, sock=reserved.dup()):
                answer = await client.ask(post)
                while answer.status == 503:  # for the second that it was told to wait
                    await asyncio.sleep(AGAIN_S)
                    answer = await client.ask(post)
                assert (answer.status, answer.content) == (200, b"back")
                assert (await client.ask(post)).content == b"back"
            assert len(got) == 2


async def test_clients_that_wait_for_a_sick_target_leave_others_their_descriptors(
    upstream: Upstream, healthy: Upstream, tmp_path: Path
) -> None:
    """There are more of them than fit; and who is connected already is served with a new connection each time."""
    upstream.default = hang
    healthy.default = answering(b"well", "200 OK", "Connection: close")
    file = tmp_path / "gateway.toml"
    file.write_text(f'[targets.sick]\nurl = "{upstream.url}"\n', encoding="utf-8")
    settings = {"TARGET_API_URL": healthy.url, "RATE_LIMIT": "10000", "GATEWAY_CONFIG": str(file)}
    async with gateway_process(ulimit="-n 64", **settings) as program, contextlib.AsyncExitStack() as stack:
        token = await register(program.url)
        client = await stack.enter_async_context(connected(program.url))
        assert (await client.ask(request("/healthz"))).status == 200
        others = [await stack.enter_async_context(connected(program.url)) for _ in range(100)]
        for number, other in enumerate(others):
            other.write(request("/sick/x", token, f"X-Id: {number}", method="POST", body=b"{}"))
        await until(lambda: "new connections have to wait" in program.printed)
        for _ in range(ASKED):
            assert (await client.ask(request("/api/x", token, method="POST", body=b"{}"))).content == b"well"
        assert "Too many open files" not in program.printed
    assert len(healthy.connections) == len(healthy.requests) == ASKED
    assert set(ids(upstream).values()) == {1}


async def test_a_refused_connection_leaves_no_exchange_for_the_collector(healthy: Upstream) -> None:
    with socket.socket() as deaf:  # bound, so that nobody else is, and not listening
        deaf.bind(("127.0.0.1", 0))
        async with beside(f"http://127.0.0.1:{deaf.getsockname()[1]}", healthy) as gateway:
            token = gateway.issue_token()
            gc.collect()
            gc.disable()
            try:
                async with connected(gateway.url) as client:
                    for _ in range(FAILURES - 1):
                        assert (await client.ask(request("/sick/x", token)))["x-gateway-error"] == UNREACHABLE
                    assert (await client.ask(request("/api/x", token))).status == 200
                await until(lambda: gateway._context is not None and not gateway._context.connections)
                left = [one for one in gc.get_objects() if isinstance(one, Exchange)]
            finally:
                gc.enable()
            assert left == []
