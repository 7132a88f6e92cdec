"""A real nginx as the upstream: its ways with connections, files, codings and limits reach the client as they are."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections import Counter
from typing import TYPE_CHECKING, Final

import httpx
import pytest
import trustme

from gateway import Config, Gateway
from tests.e2e import Answer, PatternCheck, connected, fetch, request
from tests.kit.nginx import Nginx, nginx
from tests.kit.programs import program, run
from tests.kit.upstream import PATTERN, PIECE_BYTES, Call, Upstream, chunk, head, pattern, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import Protocol

    class Behind(Protocol):
        """Starts nginx with these directives of its server, and a gateway before it."""

        def __call__(self, server: str = "", *, tls: bool = False) -> AbstractAsyncContextManager[Lab]: ...


FILE_BYTES: Final = 5_000_000
TEXT: Final = b"Rate limits hold. " * 5_000
ECHO: Final = 'location /v1/ { return 200 "$request_method $request_uri"; }'
REFUSING: Final = "location = /v1/x { client_max_body_size 1k; dav_methods PUT; }" + ECHO
TLS = pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])


class Lab:
    """What a test works with."""

    def __init__(self, upstream: Nginx, gateway: Gateway) -> None:
        self.nginx = upstream
        self.url = gateway.url
        self.token = gateway.issue_token()

    def request(self, path: str, *fields: str, method: str = "GET", body: bytes = b"", version: str = "1.1") -> bytes:
        return request(f"/api{path}", self.token, *fields, method=method, body=body, version=version)

    async def fetch(
        self, path: str, *fields: str, method: str = "GET", body: bytes = b"", version: str = "1.1"
    ) -> Answer:
        return await fetch(self.url, self.request(path, *fields, method=method, body=body, version=version))


@pytest.fixture
def behind(tmp_path: Path) -> Behind:
    files = tmp_path / "www" / "v1"
    files.mkdir(parents=True)
    (files / "big").write_bytes((PATTERN * (FILE_BYTES // len(PATTERN) + 1))[:FILE_BYTES])
    (files / "text.txt").write_bytes(TEXT)

    @contextlib.asynccontextmanager
    async def start(server: str = "", *, tls: bool = False) -> AsyncIterator[Lab]:
        ca_file = pem = None
        if tls:
            ca = trustme.CA()
            pem, ca_file = tmp_path / "server.pem", str(tmp_path / "ca.pem")
            ca.cert_pem.write_to_path(ca_file)
            ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
        async with nginx(tmp_path, server, pem=pem) as upstream:
            config = Config(target_api_url=upstream.url, target_ca_file=ca_file, rate_limit="100000/hour")
            async with Gateway(config) as gateway:
                yield Lab(upstream, gateway)

    return start


# --- connections -----------------------------------------------------------------------------------------------------


@TLS
@pytest.mark.parametrize(
    ("directive", "most"),
    [("keepalive_timeout 60s;", 200), ("keepalive_requests 3;", 3), ("keepalive_timeout 0;", 1)],
    ids=["kept", "kept for three", "not kept"],
)
async def test_each_request_runs_once_however_long_connections_are_kept(
    behind: Behind,
    directive: str,
    most: int,
    tls: bool,  # noqa: FBT001
) -> None:
    asked = [("POST" if number % 2 else "GET", f"/{number}") for number in range(200)]
    bodies = {"GET": b"", "POST": b"x" * 1000}
    async with behind(directive + ECHO, tls=tls) as lab:
        requests = [lab.request(path, method=method, body=bodies[method]) for method, path in asked]
        async with connected(lab.url) as client:
            answers = [await client.ask(data) for data in requests[:100]]
        answers += await asyncio.gather(*(fetch(lab.url, data) for data in requests[100:]))
        served = await lab.nginx.quit()
    assert [(answer.status, answer.content.decode()) for answer in answers] == [
        (200, f"{method} /v1{path}") for method, path in asked
    ]
    assert Counter((line.method, line.target) for line in served) == {
        (method, f"/v1{path}"): 1 for method, path in asked
    }
    # The first hundred came one behind the other: each connection was used for as long as it was kept.
    used = Counter(line.connection for line in served if int(line.target[4:]) < 100)
    assert sorted(used.values())[-1] == min(most, 100)
    assert len(used) == -(-100 // most)


@TLS
async def test_a_reload_under_traffic_loses_no_get_and_runs_no_post_twice(
    behind: Behind,
    tls: bool,  # noqa: FBT001
) -> None:
    talks = 8
    under_way, over = asyncio.Barrier(talks + 1), asyncio.Event()
    seen: dict[tuple[str, str], int] = {}

    async def talk(lab: Lab, number: int) -> None:
        async with connected(lab.url) as client:
            for turn in range(100_000):
                for method, body in (("GET", b""), ("POST", b"{}")):
                    answer = await client.ask(lab.request(f"/{number}/{turn}", method=method, body=body))
                    seen[method, f"/v1/{number}/{turn}"] = answer.status
                    assert answer.status == 200 or answer["x-gateway-error"] == "upstream_unreachable"
                if turn == 0:
                    await under_way.wait()
                if over.is_set():
                    return

    async with behind(ECHO, tls=tls) as lab:
        talking = [asyncio.create_task(talk(lab, number)) for number in range(talks)]
        await soon(under_way.wait())
        for _ in range(5):
            await lab.nginx.reload()
        over.set()
        await soon(asyncio.gather(*talking))
        served = Counter((line.method, line.target) for line in await lab.nginx.quit())
    for (method, target), status in seen.items():
        count = served[method, target]
        if method == "GET":
            assert (status, count in {1, 2}) == (200, True), target
        elif status == 200:
            assert count == 1, target
        else:
            assert (status, count in {0, 1}) == (502, True), target
    assert set(served) <= set(seen)


# --- files -----------------------------------------------------------------------------------------------------------


@TLS
async def test_a_file_comes_whole_and_in_ranges(behind: Behind, tls: bool) -> None:  # noqa: FBT001
    async with behind(tls=tls) as lab, connected(lab.url) as client:
        answer = await client.ask(lab.request("/big"))
        assert answer.status == 200
        check = PatternCheck()
        check.feed(answer.content)
        assert check.size == FILE_BYTES
        some = await client.ask(lab.request("/big", "Range: bytes=1000000-1000099"))
        assert (some.status, some["content-range"]) == (206, f"bytes 1000000-1000099/{FILE_BYTES}")
        assert some.content == pattern(1_000_000, 100)
        last = await client.ask(lab.request("/big", "Range: bytes=-7", f"If-Range: {answer['etag']}"))
        assert (last.status, last.content) == (206, pattern(FILE_BYTES - 7, 7))
        several = await client.ask(lab.request("/big", "Range: bytes=0-9,70000-70009"))
        boundary = several["content-type"].removeprefix("multipart/byteranges; boundary=")
        parts = several.content.split(f"\r\n--{boundary}".encode())[1:-1]
        assert [part.partition(b"\r\n\r\n")[2] for part in parts] == [pattern(0, 10), pattern(70_000, 10)]
        beyond = await client.ask(lab.request("/big", f"Range: bytes={FILE_BYTES}-"))
        assert (beyond.status, beyond["content-range"]) == (416, f"bytes */{FILE_BYTES}")
        assert len({line.connection for line in await lab.nginx.quit()}) == 1


async def test_conditions_and_heads_leave_the_connection_in_step(behind: Behind) -> None:
    async with behind() as lab, connected(lab.url) as client:
        for method in ("GET", "HEAD"):
            first = await client.ask(lab.request("/text.txt", method=method))
            assert (first.status, first["content-length"]) == (200, str(len(TEXT)))
            assert first.content == (TEXT if method == "GET" else b"")
            for condition in (f"If-None-Match: {first['etag']}", f"If-Modified-Since: {first['last-modified']}"):
                unchanged = await client.ask(lab.request("/text.txt", condition, method=method))
                assert (unchanged.status, unchanged["etag"]) == (304, first["etag"])
        assert (await client.ask(lab.request("/none"))).status == 404
        served = await lab.nginx.quit()
    assert [line.status for line in served] == [200, 304, 304] * 2 + [404]
    assert len({line.connection for line in served}) == 1


async def test_a_connection_that_nginx_ends_unannounced_is_not_missed(behind: Behind) -> None:
    # It says keep-alive with a 412, and closes.
    async with behind() as lab, connected(lab.url) as client:
        for _ in range(20):
            failed = await client.ask(lab.request("/text.txt", 'If-Match: "another"'))
            assert failed.status == 412
            assert (await client.ask(lab.request("/text.txt"))).content == TEXT
        served = await lab.nginx.quit()
    assert [line.status for line in served] == [412, 200] * 20
    assert len({line.connection for line in served}) == 21


async def test_a_file_is_put_and_got_and_deleted(behind: Behind) -> None:
    content = pattern(0, PIECE_BYTES) * 8
    dav = "location /v1/put/ { dav_methods PUT DELETE; create_full_put_path on; client_max_body_size 10m; }"
    async with behind(dav) as lab, connected(lab.url) as client:
        assert (await client.ask(lab.request("/put/a/b", method="PUT", body=content))).status == 201
        assert (await client.ask(lab.request("/put/a/b"))).content == content
        client.write(lab.request("/put/a/b", "Transfer-Encoding: chunked", method="PUT"))
        for start in range(0, len(content), 100_000):
            client.write(chunk(content[start : start + 100_000]))
        client.write(chunk(b""))
        assert (await client.answer()).status == 204
        assert (await client.ask(lab.request("/put/a/b"))).content == content
        assert (await client.ask(lab.request("/put/a/b", method="DELETE"))).status == 204
        assert (await client.ask(lab.request("/put/a/b"))).status == 404


@pytest.mark.parametrize("code", [204, 301, 302, 307, 308, 404, 503])
async def test_an_answer_without_a_file_passes_as_it_is(behind: Behind, code: int) -> None:
    where = "https://elsewhere.test/x" if 300 <= code < 400 else ""
    async with behind(f"location /v1/ {{ return {code} {where}; }}") as lab, connected(lab.url) as client:
        for _ in range(2):
            answer = await client.ask(lab.request("/x", method="POST", body=b"{}"))
            assert (answer.status, "x-gateway-error" in answer) == (code, False)
            assert ("location" in answer) == bool(where)
            if where:
                assert answer["location"] == where
        assert [line.status for line in await lab.nginx.quit()] == [code] * 2


# --- codings ---------------------------------------------------------------------------------------------------------


async def test_a_gzipped_answer_is_passed_on_and_the_client_decodes_it(behind: Behind) -> None:
    async with behind("gzip on; gzip_vary on; gzip_types text/plain;") as lab:
        directly = await fetch(lab.nginx.url, request("/v1/text.txt", None, "Accept-Encoding: gzip"))
        through = await lab.fetch("/text.txt", "Accept-Encoding: gzip")
        assert (through["content-encoding"], through["vary"]) == ("gzip", "Accept-Encoding")
        assert through.content == directly.content != TEXT
        assert gzip.decompress(through.content) == TEXT
        plain = await lab.fetch("/text.txt")
        assert ("content-encoding" in plain, plain.content) == (False, TEXT)
        # Its body is chunked, which HTTP/1.0 does not know.
        old = await lab.fetch("/text.txt", "Accept-Encoding: gzip", version="1.0")
        assert ("transfer-encoding" in old, gzip.decompress(old.content)) == (False, TEXT)
        async with httpx.AsyncClient(trust_env=False) as client:
            decoded = await client.get(f"{lab.url}/api/text.txt", headers={"Authorization": f"Bearer {lab.token}"})
        assert (decoded.headers["content-encoding"], decoded.content) == ("gzip", TEXT)


@pytest.mark.parametrize("lines", [6, 7])
async def test_a_long_head_is_passed_on_up_to_the_limit(behind: Behind, lines: int) -> None:
    # Each 4 kB; the gateway reads 32 kB.
    fields = " ".join(f"add_header X-Long-{number} {'x' * 4000};" for number in range(lines))
    async with behind(f"location /v1/ {{ {fields} return 200 ok; }}") as lab, connected(lab.url) as client:
        for _ in range(2):
            answer = await client.ask(lab.request("/x"))
            assert (answer.status, answer.content) == (200, b"ok")
            assert [value for name, value in answer.fields if name.startswith("x-long-")] == ["x" * 4000] * lines


async def test_a_head_beyond_the_limit_is_a_502(behind: Behind) -> None:
    fields = " ".join(f"add_header X-Long-{number} {'x' * 4000};" for number in range(9))
    server = f"location = /v1/long {{ {fields} return 200 ok; }} {ECHO}"
    async with behind(server) as lab, connected(lab.url) as client:
        answer = await client.ask(lab.request("/long"))
        assert (answer.status, answer["x-gateway-error"]) == (502, "upstream_protocol")
        assert (await client.ask(lab.request("/x"))).content == b"GET /v1/x"


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked", "expect"])
async def test_an_upload_that_nginx_refuses_is_answered_before_it_is_over(behind: Behind, framing: str) -> None:
    size = 20_000_000
    fields = {
        "length": [f"Content-Length: {size}"],
        "chunked": ["Transfer-Encoding: chunked"],
        "expect": [f"Content-Length: {size}", "Expect: 100-continue"],
    }
    async with behind(REFUSING) as lab:
        async with connected(lab.url) as client:
            client.write(lab.request("/x", *fields[framing], method="PUT"))
            piece = pattern(0, PIECE_BYTES)
            if framing != "expect":
                client.write(chunk(piece) if framing == "chunked" else piece)
            refused = await client.answer()
            assert (refused.status, refused.interim, refused["connection"]) == (413, [], "close")
            assert b"nginx" in refused.content
            assert "x-gateway-error" not in refused
        assert (await lab.fetch("/y")).status == 200
        assert [(line.target, line.status) for line in await lab.nginx.quit()] == [("/v1/x", 413), ("/v1/y", 200)]


@pytest.mark.parametrize("upload", ["--data-binary", "--upload-file"])
async def test_curl_tells_of_a_refused_upload(behind: Behind, tmp_path: Path, upload: str) -> None:
    big = tmp_path / "www" / "v1" / "big"
    put = ("--request", "PUT", "--header", "Transfer-Encoding: chunked", "--header", "Expect:")
    source = f"@{big}" if upload == "--data-binary" else str(big)
    async with behind(REFUSING) as lab:
        code, out, err = await run(
            *(program("curl"), "--silent", "--show-error", "--max-time", "15", "--noproxy", "*"),
            *(*put, upload, source, "--write-out", " %{http_code}"),
            *("--header", f"Authorization: Bearer {lab.token}", f"{lab.url}/api/x"),
        )
        assert (code, out[-4:]) == (0, b" 413"), err
        assert b"nginx" in out


async def test_what_is_chunked_passes_through_nginx_as_it_comes(behind: Behind) -> None:
    """Here nginx is what stands before the API, as one often does."""
    pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def echoing(call: Call) -> None:
        call.write(head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
        async for piece in call.pieces():
            pieces.put_nowait(piece)
            call.write(chunk(b"data: %b\n\n" % piece))
        call.write(chunk(b""))

    async with Upstream() as api:
        api.default = echoing
        onward = (
            f"proxy_pass {api.url}; proxy_http_version 1.1; proxy_set_header Connection '';"
            " proxy_request_buffering off; proxy_buffering off;"
        )
        async with behind(f"location /v1 {{ {onward} }}") as lab, connected(lab.url) as client:
            client.write(lab.request("/x", "Transfer-Encoding: chunked", method="POST"))
            client.write(chunk(b"first"))
            assert await soon(pieces.get()) == b"first"
            assert (await client.final_head())["transfer-encoding"] == "chunked"
            assert await client.chunk() == b"data: first\n\n"
            client.write(chunk(b"second"))
            assert await client.chunk() == b"data: second\n\n"
            client.write(chunk(b""))
            assert await client.chunk() == b""
            assert await client.at_end()
        (received,) = api.requests
        assert received.start_line.startswith(b"POST /v1/x HTTP/1.1")
