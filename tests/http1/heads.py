"""Heads to try a parser with: canonical ones, and what becomes of them when bytes go astray."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Neither a deadline nor a pace: a busy machine is no failure.
MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TOKENS = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=6).map(str.encode)
VALUES = st.one_of(
    st.sampled_from([b"", b"1", b"a", b"a b", b"a\tb", b"text/plain; q=0.5", b"\xc3\xa9", b'"x, y"', b"a: b"]),
    st.text('abc 019,;=:"/\\\t', max_size=12).map(lambda text: text.strip().encode()),
)
FRAMING = st.sampled_from(
    [
        b"Content-Length: 0",
        b"Content-Length: 5",
        b"content-length: 5",
        b"Content-Length: 05",
        b"Content-Length: 123456789012345678",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding: Chunked",
        b"Transfer-Encoding: gzip, chunked",
    ]
)
SPECIAL = st.sampled_from(
    [
        b"Connection: close",
        b"Connection: keep-alive",
        b"connection: Keep-Alive, X-Hop",
        b"Connection: x-hop, close",
        b"X-Hop: 1",
        b"Keep-Alive: timeout=5",
        b"TE: trailers",
        b"te: gzip;q=0.5, Trailers",
        b"TE: gzip",
        b"Trailer: X",
        b"Connection: Upgrade",
        b"connection: keep-alive, upgrade",
        b"Upgrade: h2c",
        b"Upgrade: websocket",
        b"upgrade: HTTP/2.0, foo/1",
        b"Proxy-Connection: keep-alive",
        b"Authorization: Bearer abc",
        b"authorization: basic YTpi",
        b"X-Api-Key: abc",
        b"Api-Key: def",
        b"Expect: 100-continue",
        b"Set-Cookie: a=b",
        b"Host: other.test",
    ]
)
PLAIN = st.tuples(st.one_of(TOKENS, st.sampled_from([b"Accept", b"X-Id"])), VALUES).map(
    lambda pair: pair[0] + (b": " + pair[1] if pair[1] else b":")
)
LINES = st.lists(st.one_of(PLAIN, PLAIN, SPECIAL, FRAMING), max_size=6)
METHODS = st.one_of(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS"]), TOKENS)
TARGETS = st.one_of(
    st.sampled_from([b"/", b"/api/x?y=z", b"/%2e%2E//", b'/"{}|\\^`<>']),
    st.text("/abc?&=%;:@!$'()*+,.~-_09", max_size=10).map(lambda text: b"/" + text.encode()),
)
HOSTS = st.sampled_from([b"a.test", b"a.test:80", b"[::1]:3000", b"127.0.0.1", b""])
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"])


def _request(method: bytes, target: bytes, version: bytes, host: bytes, place: int, lines: list[bytes]) -> bytes:
    place %= len(lines) + 1
    fields = [*lines[:place], b"Host: " + host if host else b"Host:", *lines[place:]]
    return b"\r\n".join((method + b" " + target + b" " + version, *fields))


REQUESTS = st.builds(_request, METHODS, TARGETS, VERSIONS, HOSTS, st.integers(0, 6), LINES)
REASONS = st.sampled_from([b" OK", b"", b" ", b" Not Found", b" \xc3\xa9 \t x"])
STATUSES = st.one_of(
    st.sampled_from([b"200", b"204", b"304", b"101", b"100", b"404"]), st.integers(0, 999).map(lambda n: b"%03d" % n)
)
ANSWERS = st.builds(
    lambda version, status, reason, lines: b"\r\n".join((version + b" " + status + reason, *lines)),
    VERSIONS,
    STATUSES,
    REASONS,
    LINES,
)

ODD = [
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b"\x00",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"\xa0",
    b":",
    b",",
    b"#",
    b"0",
    b"\r\n ",
    b"\r\n\r\n",
]


def _mutate(block: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    for kind, number, odd in steps:
        at = number % (len(block) + 1)
        lines = block.split(b"\r\n")
        line = number % len(lines)
        match kind:
            case "insert":
                block = block[:at] + odd + block[at:]
            case "delete":
                block = block[:at] + block[at + 1 :]
            case "replace":
                block = block[:at] + odd + block[at + 1 :]
            case "flip":
                block = block[:at] + bytes(byte ^ 0x20 for byte in block[at : at + 1]) + block[at + 1 :]
            case "double":
                block = b"\r\n".join((*lines[: line + 1], *lines[line:]))
            case "colon":  # white space around a colon
                block = b"\r\n".join((*lines[:line], lines[line].replace(b":", b" :", 1), *lines[line + 1 :]))
            case "pad":
                block = b"\r\n".join((*lines[:line], lines[line] + odd, *lines[line + 1 :]))
            case "drop":
                block = b"\r\n".join((*lines[:line], *lines[line + 1 :]))
    return block


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "flip", "double", "colon", "pad", "drop"]),
        st.integers(0, 400),
        st.sampled_from(ODD),
    ),
    max_size=3,
)
MUTATED_REQUESTS = st.builds(_mutate, REQUESTS, STEPS)
MUTATED_ANSWERS = st.builds(_mutate, ANSWERS, STEPS)

REQUEST_PAIRS = st.tuples(REQUESTS, STEPS).map(lambda pair: (pair[0], _mutate(*pair)))
ANSWER_PAIRS = st.tuples(ANSWERS, STEPS).map(lambda pair: (pair[0], _mutate(*pair)))
"""A head, and what becomes of it: a parser that has seen the first is tried with the second."""
