"""The program as its operator has it: signals, exit codes, what it prints, how much memory it takes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import signal
import socket
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import pytest

from tests.e2e import CUT_SHORT, PatternCheck, connected, fetch, request
from tests.kit.process import Program, gateway_process, start, until
from tests.kit.redis import running_redis
from tests.kit.upstream import (
    PIECE_BYTES,
    Call,
    Framing,
    Upstream,
    answering,
    broken_off,
    chunk,
    events,
    generated,
    hang,
    head,
    pattern,
    soon,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e import Answer

MIB = 1024 * 1024
GROWTH_BYTES = 16 * MIB
"""What an exchange's buffers, and the allocator's habits, may add to the process whatever the body's size."""


@pytest.fixture
async def program(upstream: Upstream) -> AsyncIterator[Program]:
    async with gateway_process(TARGET_API_URL=upstream.url, RATE_LIMIT="10000") as running:
        yield running


async def register(url: str, admin_key: str | None = None) -> str:
    answer = await fetch(url, request("/register", admin_key, method="POST"))
    assert answer.status == 201
    token: str = json.loads(answer.content)["token"]
    return token


# --- stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_what_is_in_flight_end(
    upstream: Upstream, program: Program, number: signal.Signals
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    got = asyncio.Event()

    async def uploading(call: Call) -> None:
        async for _ in call.pieces():
            got.set()
        await answering(b"uploaded")(call)

    upstream.paths = {b"/v1/stream": events(queue), b"/v1/upload": uploading}
    token = await register(program.url)
    async with connected(program.url) as stream, connected(program.url) as upload, connected(program.url) as idle:
        assert (await idle.ask(request("/api/x", token))).status == 200
        stream.write(request("/api/stream", token))
        queue.put_nowait(b"before")
        assert (await stream.final_head()).status == 200
        assert await stream.chunk() == b"data: before\n\n"
        upload.write(request("/api/upload", token, "Content-Length: 10", method="POST") + b"first")
        await soon(got.wait())

        program.signal(number)
        # First it says so, and serves who comes in spite of that.
        readiness = await until_draining(program.url)
        assert (readiness["connection"], readiness["retry-after"]) == ("close", "1")
        served = await fetch(program.url, request("/api/x", token))
        assert (served.status, served["connection"]) == (200, "close")
        # Then it closes idle connections, and listens no more.
        assert await idle.at_end()
        await not_listening(program.url)
        with pytest.raises(ConnectionError):
            async with connected(program.url):
                pass

        upload.write(b"other")
        answer = await upload.answer()
        assert (answer.status, answer.content, answer["connection"]) == (200, b"uploaded", "close")
        assert await upload.at_end()
        for number_of_event in range(3):
            queue.put_nowait(b"%d" % number_of_event)
            assert await stream.chunk() == b"data: %d\n\n" % number_of_event
        queue.put_nowait(b"")
        assert await stream.chunk() == b""
        assert await stream.at_end()
    assert await program.ended() == 0
    assert "Traceback" not in program.printed


async def until_draining(url: str) -> Answer:
    """Ask whether the gateway is ready, until it says that it is stopping."""
    async with asyncio.timeout(20):
        while (answer := await fetch(url, request("/readyz"))).status == 200:
            pass
    assert (answer.status, answer["x-gateway-error"]) == (503, "draining")
    return answer


async def not_listening(url: str) -> None:
    """Connect again and again, until that is refused."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            while True:
                async with connected(url) as client:
                    assert await client.at_end()


async def test_who_comes_while_it_stops_is_served_as_long_as_others_come(upstream: Upstream) -> None:
    async with gateway_process(TARGET_API_URL=upstream.url, DRAIN_TIMEOUT="12s") as program:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        program.signal(signal.SIGTERM)
        served = 0
        with contextlib.suppress(ConnectionError):
            while True:
                await fetch(program.url, request("/healthz"))
                served += 1
        # A quarter of DRAIN_TIMEOUT: a second alone would be over long before.
        assert loop.time() - began_s > 2.5
        assert served > 10
        assert await program.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_before_it_serves_ends_it_at_once(upstream: Upstream, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as redis:  # it says nothing
        redis.setblocking(False)
        program = await start(TARGET_API_URL=upstream.url, REDIS_URL=f"redis://127.0.0.1:{redis.getsockname()[1]}")
        try:
            waiting, _ = await soon(asyncio.get_running_loop().sock_accept(redis))
            with waiting:
                program.signal(number)
                assert (await program.ended(), program.printed) == (0, "")
        finally:
            await program.kill()


async def test_it_ends_though_a_name_is_still_being_looked_up() -> None:
    settings = {"TARGET_API_URL": "http://api.test", "CONNECT_TIMEOUT": "50ms", "DRAIN_TIMEOUT": "400ms"}
    async with gateway_process(module="tests.e2e.hung_names", **settings) as program:
        token = await register(program.url)
        assert (await fetch(program.url, request("/api/x", token))).status == 504
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0


async def test_a_second_signal_ends_it_at_once(upstream: Upstream, program: Program) -> None:
    upstream.default = hang
    token = await register(program.url)
    async with connected(program.url) as client:
        client.write(request("/api/x", token))
        await upstream.requested()
        program.signal(signal.SIGTERM)
        await until_draining(program.url)
        program.signal(signal.SIGTERM)
        with pytest.raises(CUT_SHORT):
            await client.answer()
    assert await program.ended() == 0
    assert "at once" in program.printed
    await soon(upstream.connections[0].ended.wait())


async def test_a_request_that_comes_on_an_open_connection_meanwhile_is_answered_as_its_last(
    upstream: Upstream, program: Program
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    token = await register(program.url)
    async with connected(program.url) as client:
        client.write(request("/api/stream", token))
        assert (await client.final_head()).status == 200
        program.signal(signal.SIGTERM)
        await until_draining(program.url)
        upstream.default = answering()
        client.write(request("/api/next", token))
        queue.put_nowait(b"")
        assert await client.chunk() == b""
        answer = await client.answer()
        assert (answer.status, answer["connection"]) == (200, "close")
        assert await client.at_end()
    assert await program.ended() == 0
    assert len(upstream.requests) == 2


async def test_what_does_not_end_within_drain_timeout_is_cut_off(upstream: Upstream) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.paths = {b"/v1/stream": events(queue), b"/v1/hang": hang}
    async with gateway_process(TARGET_API_URL=upstream.url, DRAIN_TIMEOUT="200ms") as program:
        token = await register(program.url)
        async with connected(program.url) as stream, connected(program.url) as waiting:
            stream.write(request("/api/stream", token))
            assert (await stream.final_head()).status == 200
            waiting.write(request("/api/hang", token))
            await upstream.requested(2)
            program.signal(signal.SIGTERM)
            with pytest.raises(CUT_SHORT):
                await stream.chunk()
            with pytest.raises(CUT_SHORT):
                await waiting.answer()
        for connection in upstream.connections:
            await soon(connection.ended.wait())
        assert await program.ended() == 0
    assert "DRAIN_TIMEOUT" in program.printed


async def test_it_loads_what_it_needs_as_it_starts_and_nothing_with_a_request(upstream: Upstream) -> None:
    async with gateway_process(TARGET_API_URL=upstream.url, PYTHONVERBOSE="1") as running:
        token = await register(running.url)
        assert (await fetch(running.url, request("/api/x", token, method="POST", body=b"{}"))).status == 200
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
    started, _, served = running.printed.partition("gateway: listening on ")
    served, stopping, _ = served.partition("gateway: stopping")
    at_start, later = (set(re.findall("^import '(.*?)' #", text, re.MULTILINE)) for text in (started, served))
    assert (stopping, later) == ("gateway: stopping", set())
    assert {"asyncio", "gateway.proxy.exchange", "gateway.stores.memory"} <= at_start
    # Each is tenths of a megabyte, for as long as the gateway runs, which a plain one need not have.
    needless = {"argparse", "encodings.idna", "hiredis", "pathlib", "prometheus_client", "rich", "sqlite3"}
    if sys.version_info >= (3, 15):
        needless.remove("pathlib")  # `traceback` loads it there, and asyncio that
    assert not at_start & needless
    others = ("config.costs", "ledger_pages", "prometheus", "proxy.metered", "proxy.pacing", "stores.memory_ledger")
    assert not at_start & {f"gateway.{name}" for name in others}


async def test_readyz_says_that_it_is_ready(program: Program) -> None:
    for path in ("/healthz", "/readyz"):
        assert (await fetch(program.url, request(path))).status == 200


async def test_a_port_in_use_is_one_line_and_exit_code_1(upstream: Upstream, program: Program) -> None:
    address = urlsplit(program.url).netloc
    second = await start(TARGET_API_URL=upstream.url, GATEWAY_LISTEN=address)
    try:
        assert await second.ended() == 1
    finally:
        await second.kill()
    assert re.fullmatch(r"gateway: .+\n", second.printed)
    assert address.rpartition(":")[2] in second.printed
    assert (await fetch(program.url, request("/healthz"))).status == 200


async def test_descriptors_come_back(upstream: Upstream, program: Program) -> None:
    upstream.paths = {b"/v1/hang": hang, b"/v1/cut": broken_off(head("200 OK", "Content-Length: 9") + b"cut")}
    token = await register(program.url)
    assert (await fetch(program.url, request("/api/x", token))).status == 200
    before = program.descriptors()
    for _ in range(10):
        async with connected(program.url) as client:
            asked = len(upstream.requests)
            client.write(request("/api/hang", token))
            await upstream.requested(asked + 1)
        with pytest.raises(CUT_SHORT):
            await fetch(program.url, request("/api/cut", token))
        await fetch(program.url, b"nonsense\r\n\r\n")
    for connection in upstream.connections[1:]:
        await soon(connection.ended.wait())
    assert (await fetch(program.url, request("/api/x", token))).status == 200
    await until(lambda: program.descriptors() <= before + 1)


# --- secrets -------------------------------------------------------------------------------------------------------

# Nothing that any word, path or identifier could hold by chance.
CANARIES = {
    "TARGET_API_KEY": "qZ7vKx2Wp9LmT4yRb6Nc",
    "TOKEN_SECRET": "hJ3dF8sGq5XzV1nBw0MkY7uPt2Ea6RcL,Vx4Tz9Qk1Wj7Hb3Np5Ls8Dg2Fm6Yr0Ce",
    "ADMIN_KEY": "Uq8Zw3Xe5Cr7Vt1By9Nu2Mi4Lo6Kp0Jh",
}
REDIS_PASSWORD = "Gk5Bz1Qx8Wv3Ny7Td2Hs"


def forms(secret: str) -> list[str]:
    """List what of a secret must be nowhere: its pieces of 8 characters, as they are and in disguises."""
    disguised = [secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode(), secret.encode().hex()]
    return [text[start : start + 8] for text in disguised for start in range(len(text) - 7)]


def assert_hidden(secret: str, *texts: str) -> None:
    for form in forms(secret):
        for text in texts:
            assert form not in text, f"{form} of {secret} is in {text}"


async def test_no_secret_is_printed_or_answered(upstream: Upstream) -> None:
    upstream.paths = {
        b"/v1/cut": broken_off(b""),
        b"/v1/garbage": broken_off(b"garbage\r\n\r\n"),
        b"/v1/error": answering(b"{}", "401 Unauthorized"),
    }
    with running_redis("--requirepass", REDIS_PASSWORD) as redis:
        settings = {
            **CANARIES,
            "TARGET_API_URL": upstream.url,
            "REDIS_URL": redis.url.replace("unix://", f"unix://:{REDIS_PASSWORD}@"),
            "RATE_LIMIT": "6/hour",
            "LOG_LEVEL": "debug",
        }
        async with gateway_process(**settings) as program:
            admin_key = CANARIES["ADMIN_KEY"]
            token = await register(program.url, admin_key)
            tampered = f"{token[:-4]}AAAA"
            paths = ("x", "cut", "garbage", "error", "../../x", "x", "x", "x")
            answers: list[Answer] = [await fetch(program.url, request(f"/api/{path}", token)) for path in paths]
            for sent in (tampered, admin_key, f"{admin_key}x", token, None):
                answers.append(await fetch(program.url, request("/api/x", sent)))
                answers.append(await fetch(program.url, request("/register", sent, method="POST", body=b'{"ttl": 1}')))
                answers.append(await fetch(program.url, request(f"/healthz?{sent}", sent)))
                answers.append(await fetch(program.url, request(f"/{sent}", sent, f"X-{sent}: {sent}")))
                answers.append(await fetch(program.url, request("/api/x", sent, method="TRACE")))
            malformed = f"GET /api/{token} HTTP/1.1\r\nHost: x\r\n Authorization: Bearer {token}\r\n\r\n"
            answers.append(await fetch(program.url, malformed.encode()))
            redis.kill()
            answers.append(await fetch(program.url, request("/api/x", token)))
            answers.append(await fetch(program.url, request("/readyz")))
            program.signal(signal.SIGTERM)
            assert await program.ended() == 0
    statuses = {answer.status for answer in answers}
    assert statuses >= {200, 201, 400, 401, 403, 404, 405, 429, 502, 503}
    minted = [answer for answer in answers if answer.status == 201]
    told = str([answer for answer in answers if answer.status != 201])
    for secret in (*CANARIES["TOKEN_SECRET"].split(","), CANARIES["TARGET_API_KEY"], admin_key, REDIS_PASSWORD):
        assert_hidden(secret, program.printed, told, str(minted))
    # Tokens share their beginning with every other; the signature is what makes one worth having.
    assert_hidden(token[-24:], program.printed, told)
    for answer in minted:
        assert_hidden(json.loads(answer.content)["token"][-24:], program.printed)
    for received in upstream.requests:
        assert_hidden(token[-24:], received.head.decode())
        assert_hidden(admin_key, received.head.decode())
    # Six admitted; the GET that a used connection lost was sent twice.
    assert len(upstream.requests) == 7


async def test_a_start_that_fails_tells_no_secret(upstream: Upstream) -> None:
    with running_redis("--requirepass", "another-password") as redis:
        url = redis.url.replace("unix://", f"unix://:{REDIS_PASSWORD}@")
        program = await start(TARGET_API_URL=upstream.url, REDIS_URL=url, LOG_LEVEL="debug", **CANARIES)
        try:
            assert await program.ended() == 1
        finally:
            await program.kill()
    assert_hidden(REDIS_PASSWORD, program.printed)
    assert "Traceback" not in program.printed
    assert len(re.findall("^gateway: .+$", program.printed, re.MULTILINE)) == 1


# --- memory --------------------------------------------------------------------------------------------------------


async def test_a_gibibyte_through_a_reader_that_stalls_leaves_memory_flat(upstream: Upstream, program: Program) -> None:
    await assert_flat_download(upstream, program, 1024 * MIB, "length")


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_other_framings_leave_memory_flat_too(upstream: Upstream, program: Program, framing: Framing) -> None:
    await assert_flat_download(upstream, program, 96 * MIB, framing)


async def assert_flat_download(upstream: Upstream, program: Program, size: int, framing: Framing) -> None:
    sent = 0

    async def counted(call: Call) -> None:
        send = call.send

        async def count(data: bytes) -> None:
            nonlocal sent
            await send(data)
            sent += len(data)

        call.send = count  # type: ignore[method-assign]
        await generated(size, framing)(call)

    upstream.paths = {b"/v1/big": counted, b"/v1/warm-up": generated(4 * MIB)}
    token = await register(program.url)
    assert (await fetch(program.url, request("/api/warm-up", token))).status == 200
    before = program.memory_bytes("VmHWM")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    address = urlsplit(program.url)
    with sock:
        await soon(loop.sock_connect(sock, (address.hostname, address.port)))
        await soon(loop.sock_sendall(sock, request("/api/big", token)))
        received = bytearray()
        while b"\r\n\r\n" not in received:
            received += await soon(loop.sock_recv(sock, 4096))
        answer_head, _, rest = bytes(received).partition(b"\r\n\r\n")
        assert answer_head.startswith(b"HTTP/1.1 200 OK\r\n")
        check = Dechunked(PatternCheck()) if framing == "chunked" else PatternCheck()
        check.feed(rest)
        stalls = [size // 16, size // 2]
        while check.size < size:
            piece = await soon(loop.sock_recv(sock, PIECE_BYTES))
            assert piece, f"the answer ended after {check.size} bytes"
            check.feed(piece)
            if stalls and check.size > stalls[0]:
                del stalls[0]
                await until(program.leaves_unread)
                assert sent < size
        assert not stalls
        if framing == "close":
            assert await soon(loop.sock_recv(sock, 1)) == b""
    assert check.size == size
    assert program.memory_bytes("VmHWM") - before < GROWTH_BYTES


class Dechunked:
    """Passes on the content of chunks that are larger than what is read at once."""

    def __init__(self, check: PatternCheck) -> None:
        self._check = check
        self._line = b""
        self._left = 0

    @property
    def size(self) -> int:
        return self._check.size

    def feed(self, piece: bytes) -> None:
        while piece:
            if self._left > 2:
                content = piece[: self._left - 2]
                self._check.feed(content)
                self._left -= len(content)
                piece = piece[len(content) :]
            elif self._left:
                skipped = min(self._left, len(piece))
                self._left -= skipped
                piece = piece[skipped:]
            else:
                line, end, rest = (self._line + piece).partition(b"\r\n")
                if not end:
                    self._line = line
                    return
                self._line, piece = b"", rest
                self._left = int(line, 16) + 2


@pytest.mark.alone
@pytest.mark.parametrize(("framing", "size"), [("length", 256 * MIB), ("chunked", 64 * MIB)])
async def test_an_upload_to_an_upstream_that_stalls_leaves_memory_flat(
    upstream: Upstream, program: Program, framing: str, size: int
) -> None:
    sent = 0
    check = PatternCheck()
    rested: list[int] = []

    async def stalling(call: Call) -> None:
        stalls = [0, size // 2]
        async for piece in call.pieces():
            check.feed(piece)
            if stalls and check.size > stalls[0]:
                del stalls[0]
                await until(program.leaves_unread)
                rested.append(sent)
        await answering(b"%d" % check.size)(call)

    upstream.paths = {b"/v1/big": stalling, b"/v1/warm-up": answering()}
    token = await register(program.url)
    warm_up = request("/api/warm-up", token, method="POST", body=b"x" * PIECE_BYTES)
    assert (await fetch(program.url, warm_up)).status == 200
    before = program.memory_bytes("VmHWM")
    async with connected(program.url) as client:
        field = f"Content-Length: {size}" if framing == "length" else "Transfer-Encoding: chunked"
        client.write(request("/api/big", token, field, method="POST"))
        for start_of_piece in range(0, size, PIECE_BYTES):
            piece = pattern(start_of_piece, PIECE_BYTES)
            client.write(chunk(piece) if framing == "chunked" else piece)
            await soon(client.writer.drain())
            sent += len(piece)
        if framing == "chunked":
            client.write(chunk(b""))
        answer = await client.answer()
    assert (answer.status, answer.content, check.size) == (200, b"%d" % size, size)
    assert len(rested) == 2
    assert rested[0] < size // 4
    assert program.memory_bytes("VmHWM") - before < GROWTH_BYTES
