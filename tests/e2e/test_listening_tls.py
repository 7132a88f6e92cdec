"""The gateway speaks TLS to its clients: handshakes, what ends how, and certificates that change meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from gateway import Config, Gateway
from gateway.admin_client import AdminClient, NoAnswer
from gateway.certificates import LOOK_EVERY_S, ReloadedTls, server_context
from gateway.proxy.clock import Clock
from tests.e2e import CUT_SHORT, KEY, PatternCheck, connected, fetch, request
from tests.kit.process import gateway_process, until
from tests.kit.tls import Pem, client_side, server_side
from tests.kit.upstream import (
    PIECE_BYTES,
    Call,
    Upstream,
    answering,
    broken_off,
    chunk,
    echo,
    generated,
    hang,
    head,
    pattern,
    soon,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from websockets.asyncio.server import ServerConnection


@pytest.fixture
def pem(ca: trustme.CA, tmp_path: Path) -> Pem:
    made = Pem(tmp_path / "cert.pem", tmp_path / "key.pem")
    made.write(ca, "127.0.0.1")
    return made


@pytest.fixture
def tls(ca: trustme.CA) -> ssl.SSLContext:
    return client_side(ca)


def config(upstream_url: str, pem: Pem, **changes: Any) -> Config:
    settings = {
        "target_api_url": upstream_url,
        "target_api_key": KEY,
        "rate_limit": "10000",
        "gateway_tls_cert": str(pem.cert),
        "gateway_tls_key": str(pem.key),
    }
    return Config(**{**settings, **changes})


@pytest.fixture
async def gateway(upstream: Upstream, pem: Pem, mishaps: list[dict[str, Any]]) -> AsyncIterator[Gateway]:
    del mishaps
    async with Gateway(config(upstream.url, pem, header_timeout="500ms", max_body="1MB")) as running:
        yield running


def raw(gateway: Gateway) -> socket.socket:
    """Connect without a word of TLS."""
    address = urlsplit(gateway.url)
    sock = socket.create_connection((str(address.hostname), address.port or 0))
    sock.setblocking(False)
    return sock


async def to_the_end(sock: socket.socket) -> None:
    with sock, contextlib.suppress(ConnectionError):
        while await soon(asyncio.get_running_loop().sock_recv(sock, 65536)):
            pass


def serial(sock: ssl.SSLObject) -> str:
    certificate = sock.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


async def shown(gateway_url: str, tls: ssl.SSLContext) -> str:
    """Return the serial number of the certificate that a new connection sees."""
    async with connected(gateway_url, tls) as client:
        return serial(client.writer.get_extra_info("ssl_object"))


# --- exchanges --------------------------------------------------------------------------------------------------------


async def test_requests_pass_on_one_connection(upstream: Upstream, gateway: Gateway, tls: ssl.SSLContext) -> None:
    upstream.default = echo
    assert gateway.url.startswith("https://127.0.0.1:")
    async with connected(gateway.url, tls) as client:
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        for _ in range(3):
            post = request("/api/x", gateway.issue_token(), method="POST", body=pattern(0, PIECE_BYTES))
            answer = await client.ask(post)
            assert (answer.status, answer.content) == (200, pattern(0, PIECE_BYTES))
    assert len(upstream.connections) == 1


async def test_a_client_over_loopback_is_local(gateway: Gateway, tls: ssl.SSLContext) -> None:
    assert (await fetch(gateway.url, request("/register", method="POST"), tls)).status == 201


async def test_a_large_answer_and_a_large_upload_are_byte_exact(
    upstream: Upstream, pem: Pem, tls: ssl.SSLContext
) -> None:
    size = 64 * PIECE_BYTES
    check = PatternCheck()

    async def take(call: Call) -> None:
        async for piece in call.pieces():
            check.feed(piece)
        await answering(b"taken")(call)

    upstream.paths = {b"/v1/big": generated(size), b"/v1/take": take}
    async with Gateway(config(upstream.url, pem)) as gateway, connected(gateway.url, tls) as client:
        client.write(request("/api/big", gateway.issue_token()))
        assert (await client.final_head())["content-length"] == str(size)
        down = PatternCheck()
        while down.size < size:
            down.feed(await soon(client.reader.read(min(PIECE_BYTES, size - down.size))))
        client.write(request("/api/take", gateway.issue_token(), f"Content-Length: {size}", method="POST"))
        for start in range(0, size, PIECE_BYTES):
            client.write(pattern(start, PIECE_BYTES))
            await soon(client.writer.drain())
        assert (await client.answer()).content == b"taken"
    assert check.size == size


async def test_a_unix_socket_beside_it_stays_plain(upstream: Upstream, pem: Pem, tls: ssl.SSLContext) -> None:
    path = pem.cert.with_name("gateway.sock")
    async with Gateway(config(upstream.url, pem, gateway_listen=f"unix:{path},127.0.0.1:0")) as gateway:
        by_unix, by_tcp = gateway.urls
        assert (await fetch(by_unix, request("/healthz"))).status == 200
        assert (await fetch(by_tcp, request("/healthz"), tls)).status == 200


# --- handshakes -------------------------------------------------------------------------------------------------------


async def test_a_client_that_stalls_in_its_handshake_holds_nobody_up_and_ends(
    gateway: Gateway, tls: ssl.SSLContext
) -> None:
    stalled = [raw(gateway) for _ in range(20)]
    for sock in stalled[:10]:
        sock.send(b"\x16\x03\x01\x02")  # the first bytes of a ClientHello
    assert (await fetch(gateway.url, request("/healthz"), tls)).status == 200
    began_s = asyncio.get_running_loop().time()
    for sock in stalled:
        await to_the_end(sock)
    assert asyncio.get_running_loop().time() - began_s < 10  # HEADER_TIMEOUT, not the loops' own 60 s
    assert (await fetch(gateway.url, request("/healthz"), tls)).status == 200


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 100, b"\x16\x03\x01\x00\x05hello", b""]
)
async def test_what_is_no_handshake_ends_the_connection(
    upstream: Upstream, gateway: Gateway, tls: ssl.SSLContext, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sock = raw(gateway)
    sock.send(sent)
    sock.shutdown(socket.SHUT_WR)
    await to_the_end(sock)
    assert (await fetch(gateway.url, request("/healthz"), tls)).status == 200
    assert upstream.requests == []
    assert caplog.records == []


async def test_a_reload_changes_how_long_a_handshake_may_take(upstream: Upstream, pem: Pem) -> None:
    async with Gateway(config(upstream.url, pem, header_timeout="1h")) as gateway:
        gateway.reload(config(upstream.url, pem, header_timeout="100ms"))
        await to_the_end(raw(gateway))


async def test_old_versions_are_refused(gateway: Gateway, tls: ssl.SSLContext) -> None:
    tls.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        tls.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError, match=r"(?i)ssl|reset"):
        await fetch(gateway.url, request("/healthz"), tls)


async def test_closing_waits_for_no_handshake(upstream: Upstream, pem: Pem) -> None:
    async with Gateway(config(upstream.url, pem, header_timeout="1h")) as gateway:
        stalled = [raw(gateway) for _ in range(3)]
        await until(lambda: gateway._listener is not None and gateway._listener.clients == 3)
        assert await soon(gateway.drain())
        await soon(gateway.close())
    for sock in stalled:
        await to_the_end(sock)


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_hangs_up_ends_its_upstream_connection_at_once(
    upstream: Upstream, gateway: Gateway, tls: ssl.SSLContext, how: str
) -> None:
    upstream.default = hang
    async with connected(gateway.url, tls) as client:
        client.write(request("/api/x", gateway.issue_token()))
        await upstream.requested()
        if how == "reset":
            client.reset()
        else:
            await client.close()
        await soon(upstream.connections[0].ended.wait())


async def test_a_refusal_in_the_middle_of_an_upload_is_read_whole(
    upstream: Upstream, gateway: Gateway, tls: ssl.SSLContext
) -> None:
    async with connected(gateway.url, tls) as client:
        client.write(request("/api/x", gateway.issue_token(), "Content-Length: 2000000", method="POST"))
        client.write(b"x" * 300_000)
        answer = await client.answer()
        client.write(b"x" * 300_000)
        assert (answer.status, answer["connection"]) == (413, "close")
        assert await client.at_end()
    assert upstream.requests == []


@pytest.mark.parametrize("framing", ["Connection: close", "Transfer-Encoding: chunked", "Content-Length: 1000"])
async def test_a_cut_answer_never_looks_whole(
    upstream: Upstream, gateway: Gateway, tls: ssl.SSLContext, framing: str
) -> None:
    cut = asyncio.Event()

    async def cut_later(call: Call) -> None:
        call.write(head("200 OK", framing) + (chunk(b"the first half") if "chunked" in framing else b"the first half"))
        await call.unless_gone(cut.wait())
        call.reset()

    upstream.default = cut_later
    async with connected(gateway.url, tls) as client:
        client.write(request("/api/x", gateway.issue_token()))
        assert (await client.final_head()).status == 200
        await soon(client.reader.readuntil(b"half"))
        cut.set()
        with pytest.raises(CUT_SHORT):
            await soon(client.reader.readexactly(10_000))


async def test_an_answer_until_close_ends_in_good_order(
    upstream: Upstream, gateway: Gateway, tls: ssl.SSLContext
) -> None:
    upstream.default = broken_off(head("200 OK", "Connection: close") + pattern(0, 1000))
    async with connected(gateway.url, tls) as client:
        answer = await client.ask(request("/api/x", gateway.issue_token()))
        assert (answer.status, answer.content) == (200, pattern(0, 1000))


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_websocket_session_and_its_end(pem: Pem, tls: ssl.SSLContext, who: str) -> None:
    ends: asyncio.Queue[int | None] = asyncio.Queue()

    async def talk(session: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in session:
                await session.send(message)
                if message == "leave":
                    await session.close(4001)
        ends.put_nowait(session.close_code)

    async with serve(talk, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with Gateway(config(f"http://127.0.0.1:{port}", pem)) as gateway:
            url = f"{gateway.url.replace('https', 'wss')}/api/x"
            headers = {"Authorization": f"Bearer {gateway.issue_token()}"}
            async with connect(url, ssl=tls, additional_headers=headers) as session:
                await session.send("hello")
                assert await soon(session.recv()) == "hello"
                if who == "client":
                    await soon(session.close(4002))
                else:
                    await session.send("leave")
                    assert await soon(session.recv()) == "leave"
                    await soon(session.wait_closed())
            assert (session.close_code, await soon(ends.get())) == ((4002,) * 2 if who == "client" else (4001,) * 2)


async def test_a_tunnel_that_the_client_ends_has_all_its_bytes(
    upstream: Upstream, gateway: Gateway, tls: ssl.SSLContext
) -> None:
    got = b""
    ended_in_order = asyncio.Event()

    async def collect(call: Call) -> None:
        nonlocal got
        call.write(head("101 Switching Protocols", "Connection: Upgrade", "Upgrade: bytes"))
        while piece := await call.reader.read(PIECE_BYTES):
            got += piece
        ended_in_order.set()
        call.keep_alive = False

    upstream.default = collect
    async with connected(gateway.url, tls) as client:
        wish = ("Connection: Upgrade", "Upgrade: bytes")
        client.write(request("/api/x", gateway.issue_token(), *wish))
        assert (await client.head()).status == 101
        client.write(pattern(0, PIECE_BYTES))
    await soon(ended_in_order.wait())
    assert got == pattern(0, PIECE_BYTES)


async def test_a_tunnel_that_the_upstream_ends_ends_for_the_client(
    upstream: Upstream, gateway: Gateway, tls: ssl.SSLContext
) -> None:
    switch = head("101 Switching Protocols", "Connection: Upgrade", "Upgrade: bytes")
    upstream.default = broken_off(switch + pattern(0, PIECE_BYTES))
    async with connected(gateway.url, tls) as client:
        client.write(request("/api/x", gateway.issue_token(), "Connection: Upgrade", "Upgrade: bytes"))
        assert (await client.head()).status == 101
        assert await soon(client.reader.read()) == pattern(0, PIECE_BYTES)


# --- certificates -----------------------------------------------------------------------------------------------------


async def test_a_new_certificate_is_for_new_connections(
    ca: trustme.CA, pem: Pem, gateway: Gateway, tls: ssl.SSLContext
) -> None:
    before = await shown(gateway.url, tls)
    async with connected(gateway.url, tls) as old:
        pem.write(ca, "127.0.0.1")
        gateway.reload_certificates()
        after = await shown(gateway.url, tls)
        assert after != before
        assert (await old.ask(request("/healthz"))).status == 200
        assert serial(old.writer.get_extra_info("ssl_object")) == before


@pytest.mark.parametrize("wrong", ["another's key", "no PEM", "not there", "encrypted"])
async def test_a_bad_file_leaves_the_old_certificate_standing_and_says_why(
    ca: trustme.CA, pem: Pem, gateway: Gateway, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    before = await shown(gateway.url, tls)
    if wrong == "another's key":
        pem.write(ca, "127.0.0.1", key_of=trustme.CA())
    elif wrong == "no PEM":
        pem.cert.write_text("no certificate", encoding="utf-8")
    elif wrong == "not there":
        pem.key.unlink()
    else:
        encrypt(pem.key)
    gateway.reload_certificates()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert {
        "another's key": "together",
        "no PEM": str(pem.cert),
        "not there": "No such file",
        "encrypted": "encrypted",
    }[wrong] in record.getMessage()
    assert await shown(gateway.url, tls) == before
    pem.write(ca, "127.0.0.1")
    gateway.reload_certificates()
    assert await shown(gateway.url, tls) != before


async def test_what_is_wrong_with_a_certificate_is_said_once(
    ca: trustme.CA, pem: Pem, gateway: Gateway, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    before = await shown(gateway.url, tls)
    pem.write(ca, "127.0.0.1", key_of=trustme.CA())
    for _ in range(2):
        gateway.reload_certificates()
    assert len(caplog.records) == 1
    pem.key.unlink()
    gateway.reload_certificates()
    assert len(caplog.records) == 2
    pem.write(ca, "127.0.0.1")
    gateway.reload_certificates()
    assert await shown(gateway.url, tls) != before


def encrypt(key: Path) -> None:
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    how = serialization.BestAvailableEncryption(b"passphrase")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(plain.private_bytes(pem, pkcs8, how))


async def test_files_are_looked_at_now_and_then(ca: trustme.CA, pem: Pem, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(asyncio.get_running_loop())
    files = [str(pem.cert), str(pem.key)]
    made = ReloadedTls("it", files, lambda: server_context(*files), clock)
    first = made.context

    def later() -> None:
        clock.now_s += LOOK_EVERY_S + 1
        assert made.deadline_s < clock.now_s
        made.on_deadline()

    later()
    assert made.context is first
    pem.write(ca, "127.0.0.1")
    later()
    second = made.context
    assert second is not first
    pem.key.unlink()
    for _ in range(3):
        later()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1  # said once, not each time
    assert made.context is second
    pem.write(ca, "127.0.0.1")
    later()
    assert made.context is not second


async def test_a_key_that_others_may_read_is_warned_of(
    upstream: Upstream, pem: Pem, caplog: pytest.LogCaptureFixture
) -> None:
    pem.key.chmod(0o644)
    async with Gateway(config(upstream.url, pem)):
        pass
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"{pem.key}, a private key, is open to other users")


async def test_the_program_takes_a_new_certificate_at_sighup(
    upstream: Upstream, ca: trustme.CA, pem: Pem, tls: ssl.SSLContext
) -> None:
    settings = {
        "TARGET_API_URL": upstream.url,
        "GATEWAY_TLS_CERT": str(pem.cert),
        "GATEWAY_TLS_KEY": str(pem.key),
    }
    async with gateway_process(**settings) as program:
        before = await shown(program.url, tls)
        pem.write(ca, "127.0.0.1")
        program.signal(signal.SIGHUP)
        await until(lambda: "was read anew" in program.printed)
        assert await shown(program.url, tls) != before
        environ = {**os.environ, **settings, "GATEWAY_LISTEN": urlsplit(program.url).netloc}
        check = [sys.executable, "-m", "gateway", "healthcheck"]
        assert (await asyncio.to_thread(subprocess.run, check, env=environ, check=False)).returncode == 0
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0


async def test_a_command_that_trusts_no_such_certificate_says_what_would_mend_that(gateway: Gateway) -> None:
    with contextlib.closing(AdminClient(gateway.url, None)) as client, pytest.raises(NoAnswer, match="SSL_CERT_FILE"):
        await asyncio.to_thread(client.ask, "GET", "/admin/usage")


# --- the upstream -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shows", ["its own", "none", "another authority's"])
async def test_an_upstream_may_ask_for_a_certificate(ca: trustme.CA, ca_file: str, pem: Pem, shows: str) -> None:
    context = server_side(ca, "localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    pem.write(ca if shows == "its own" else trustme.CA(), "gateway.example")
    cert, key = (None, None) if shows == "none" else (str(pem.cert), str(pem.key))
    async with Upstream(context, "localhost") as upstream:
        made = Config(target_api_url=upstream.url, target_api_key=KEY, target_ca_file=ca_file)
        made = dataclasses.replace(made, target_client_cert=cert, target_client_key=key)
        async with Gateway(made) as gateway:
            answer = await fetch(gateway.url, request("/api/x", gateway.issue_token()))
    if shows == "its own":
        assert answer.status == 200
        assert len(upstream.requests) == 1
    else:
        assert (answer.status, answer["x-gateway-error"]) == (502, "upstream_unreachable")
        assert upstream.requests == []
