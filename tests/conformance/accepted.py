"""Requests that are odd, legal and taken: what reaches the upstream reads the same as what was sent."""

from __future__ import annotations

from typing import Final

from gateway.http1.chunked import MAX_CHUNK_LINE_BYTES
from gateway.http1.message import MAX_FIELDS, MAX_LINE_BYTES
from gateway.http1.partial import MAX_EMPTY_LINES
from tests.conformance.case import CHUNKED, POISON, TOKEN, Fields, H, Taken, get, post

POST: Final = b"POST /v1/x HTTP/1.1"
LAST: Final = b"0\r\n\r\n"
LIKE_A_REQUEST: Final = b"GET /api/smuggled HTTP/1.1\r\nHost: gateway.test\r\n\r\n"
CONTENT_BYTES: Final = bytes(range(256))


def method(name: bytes) -> Taken:
    return Taken(get(start=name + b" /api/x HTTP/1.1"), name + b" /v1/x HTTP/1.1")


def target(sent: bytes, upstream: bytes) -> Taken:
    return Taken(get(start=b"GET " + sent + b" HTTP/1.1"), b"GET " + upstream + b" HTTP/1.1")


def below(path: bytes) -> Taken:
    return target(b"/api" + path, b"/v1" + path)


def host(value: bytes) -> Taken:
    return Taken(get(host=b"Host:" + value + b"\r\n"))


def fields(raw: bytes, *passed_on: tuple[bytes, bytes]) -> Taken:
    return Taken(get(raw), fields=passed_on)


def length(raw: bytes, body: bytes) -> Taken:
    return Taken(post(raw, body), POST, body=body)


def chunked(raw: bytes, body: bytes, *trailers: tuple[bytes, bytes], coding: bytes = CHUNKED) -> Taken:
    return Taken(post(coding, raw), POST, body=body, trailers=trailers)


METHODS: Final = {
    name: method(name.encode())
    for name in (
        "get",
        "trace",
        "M-SEARCH",
        "PROPFIND",
        "PRI",
        "X",
        "!#$%&'*+-.^_`|~09AZaz",
        "QUERY",
        "OPTIONS",
        "DELETE",
        "A" * 200,
    )
}

TARGETS: Final = {
    "prefix-alone": target(b"/api", b"/v1"),
    "prefix-and-slash": below(b"/"),
    "prefix-and-query": below(b"?x=y"),
    "two-slashes": below(b"//x"),
    "many-slashes": below(b"/////x//"),
    "slash-percent": below(b"/a%2Fb%2fc"),
    "backslash": below(b"/a\\b"),
    "parameter": below(b"/a;b=c/d;e"),
    "dot-segments-within": below(b"/a/./b/../c"),
    "dot-segments-percent": below(b"/a/%2e%2e/b"),
    "dots-before-a-parameter": below(b"/a..%3bb/...%3b/.%00/b"),
    "three-dots": below(b"/.../x"),
    "dots-in-a-name": below(b"/a..b/..c"),
    "dots-in-the-query": below(b"/x?../../y"),
    "nul-percent": below(b"/a%00b"),
    "crlf-percent": below(b"/a%0d%0aHost:%20evil.test"),
    "request-percent": below(b"/a%20HTTP/1.1%0d%0a%0d%0aGET%20/smuggled"),
    "percent-of-no-digits": below(b"/100%zz%"),
    "percent-lower-and-upper": below(b"/%c3%A4"),
    "what-belongs-percent": below(b'/"<>^`{|}'),
    "sub-delims": below(b"/!$&'()*+,;=:@-._~"),
    "a-url": below(b"/http://evil.test/"),
    "empty-query": below(b"/x?"),
    "two-questions": below(b"/x??y?z"),
    "odd-query": below(b"/x?a&&b=;c&=d&+%20"),
    "asterisk": below(b"/*"),
    "long": below(b"/" + b"x" * (MAX_LINE_BYTES - len(b"GET /api/ HTTP/1.1"))),
}

URLS: Final = {
    "path-and-query": target(b"http://api.test:8080/v1/x?y=z", b"/v1/x?y=z"),
    "base-path": target(b"http://api.test:8080/v1", b"/v1"),
    "query-behind-the-base-path": target(b"http://api.test:8080/v1?y", b"/v1?y"),
    "upper-case-host": target(b"HTTP://API.TEST:8080/v1/X", b"/v1/X"),
    "another-scheme": target(b"https://api.test:8080/v1/x", b"/v1/x"),
    "odd-path": target(b"http://api.test:8080/v1//a%2Fb;c/./d/../%0d%0a", b"/v1//a%2Fb;c/./d/../%0d%0a"),
    "host-field-of-another": Taken(
        get(start=b"GET http://api.test:8080/v1/x HTTP/1.1", host=b"Host: evil.test\r\n"), b"GET /v1/x HTTP/1.1"
    ),
    "token-for-the-proxy": Taken(
        b"GET http://api.test:8080/v1/x HTTP/1.1\r\n"
        + H
        + b"Proxy-Authorization: Bearer "
        + TOKEN
        + b"\r\nAuthorization: Bearer sk-of-the-app\r\n\r\n",
        b"GET /v1/x HTTP/1.1",
    ),
}

HOSTS: Final = {
    "port": host(b" gateway.test:3000"),
    "empty-port": host(b" gateway.test:"),
    "ipv4": host(b" 127.0.0.1:3000"),
    "ipv6": host(b" [::1]"),
    "ipv6-port": host(b" [2001:db8::1]:3000"),
    "ipv6-with-ipv4": host(b" [::ffff:127.0.0.1]"),
    "ip-future": host(b" [v1.a:b]"),
    "upper-case": host(b" GATEWAY.TEST"),
    "trailing-point": host(b" gateway.test."),
    "underscore": host(b" my_gateway"),
    "percent": host(b" %67ateway.test"),
    "sub-delims": host(b" a!b$c'd(e)f"),
    "empty": host(b""),
    "no-space": host(b"gateway.test"),
    "tabs-around": host(b"\tgateway.test\t "),
    "another-name": host(b" evil.test"),
    "none-in-1-0": Taken(get(host=b"", start=b"GET /api/x HTTP/1.0")),
    "behind-the-others": Taken(get(b"A: b\r\n" + H, host=b""), fields=((b"A", b"b"),)),
}

LONG: Final = b"x" * (MAX_LINE_BYTES - len(b"A: "))
MANY: Final[Fields] = tuple((b"A-%d" % number, b"%d" % number) for number in range(MAX_FIELDS - 2))

FIELDS: Final = {
    "empty-value": fields(b"A:\r\nB: \r\nC:\t \r\n", (b"A", b""), (b"B", b""), (b"C", b"")),
    "no-space": fields(b"A:b\r\n", (b"A", b"b")),
    "tabs-around": fields(b"A:\t b\t \r\n", (b"A", b"b")),
    "tab-within": fields(b"A: b\tc\r\n", (b"A", b"b\tc")),
    "obs-text": fields(b"A: \xc3\xa4\xff\x80\r\n", (b"A", b"\xc3\xa4\xff\x80")),
    "obs-text-around": fields(b"A: \xa0b\x85\r\n", (b"A", b"\xa0b\x85")),
    "colons-within": fields(b"A: b:c: d\r\nB::\r\n", (b"A", b"b:c: d"), (b"B", b":")),
    "quotes-and-commas": fields(b'A: "b, c", \\"d\r\n', (b"A", b'"b, c", \\"d')),
    "quote-never-closed": fields(b'A: "b\r\nC: d\r\n', (b"A", b'"b'), (b"C", b"d")),
    "all-that-names-may-have": fields(b"!#$%&'*+-.^_`|~09AZaz: b\r\n", (b"!#$%&'*+-.^_`|~09AZaz", b"b")),
    "name-of-a-digit": fields(b"0: b\r\n", (b"0", b"b")),
    "long-name": fields(b"N" * 300 + b": b\r\n", (b"N" * 300, b"b")),
    "underscores": fields(
        b"Content_Length: 5\r\nTransfer_Encoding: chunked\r\n",
        (b"Content_Length", b"5"),
        (b"Transfer_Encoding", b"chunked"),
    ),
    "names-like-framing": fields(
        b"X-Content-Length: 5\r\nContent-Lengt: 5\r\nContent-Lengths: 5\r\n",
        (b"X-Content-Length", b"5"),
        (b"Content-Lengt", b"5"),
        (b"Content-Lengths", b"5"),
    ),
    "values-like-framing": fields(b"A: X\tTransfer-Encoding: chunked\r\n", (b"A", b"X\tTransfer-Encoding: chunked")),
    "repeated": fields(b"A: b\r\na: c\r\nA: b\r\n", (b"A", b"b"), (b"a", b"c"), (b"A", b"b")),
    "content-type-twice": fields(
        b"Content-Type: a/b\r\nContent-Type: c/d\r\n", (b"Content-Type", b"a/b"), (b"Content-Type", b"c/d")
    ),
    "case-is-kept": fields(b"x-LOUD: b\r\n", (b"x-LOUD", b"b")),
    "long-value": fields(b"A: " + LONG + b"\r\n", (b"A", LONG)),
    "as-many-as-may-be": fields(b"".join(b"%b: %b\r\n" % pair for pair in MANY), *MANY),
    "connection-names-framing": Taken(
        post(b"Connection: content-length, host, authorization, x\r\nContent-Length: 5\r\nX: y\r\n", b"hello"),
        POST,
        body=b"hello",
    ),
    "connection-names-the-coding": chunked(
        b"5\r\nhello\r\n" + LAST, b"hello", coding=b"Connection: transfer-encoding, expect\r\n" + CHUNKED
    ),
    "connection-of-commas": fields(b"Connection: ,, ,\r\nA: b\r\n", (b"A", b"b")),
    "expect": Taken(
        post(b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello"),
        POST,
        ((b"Expect", b"100-continue"),),
        b"hello",
    ),
    "expect-upper-case": Taken(
        post(b"Expect:100-Continue\r\nContent-Length: 5\r\n", b"hello"), POST, ((b"Expect", b"100-Continue"),), b"hello"
    ),
    "expect-without-a-body": fields(b"Expect: 100-continue\r\n", (b"Expect", b"100-continue")),
    "expect-in-1-0": Taken(
        post(b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello", b"1.0"), POST, (), b"hello"
    ),
    "empty-line-before": Taken(b"\r\n" + get()),
    "empty-lines-before": Taken(b"\r\n" * MAX_EMPTY_LINES + get()),
}

LENGTHS: Final = {
    "plain": length(b"Content-Length: 5\r\n", b"hello"),
    "zero": length(b"Content-Length: 0\r\n", b""),
    "leading-zeros": length(b"Content-Length: 000000000000000005\r\n", b"hello"),
    "zeros": length(b"Content-Length: 000\r\n", b""),
    "tabs-around": length(b"Content-Length:\t5 \t\r\n", b"hello"),
    "upper-case": length(b"CONTENT-LENGTH:5\r\n", b"hello"),
    "all-bytes": length(b"Content-Length: 256\r\n", CONTENT_BYTES),
    "looks-like-chunks": length(b"Content-Length: 5\r\n", b"0\r\n\r\n"),
    "looks-like-a-request": length(b"Content-Length: %d\r\n" % len(LIKE_A_REQUEST), LIKE_A_REQUEST),
    "nothing-but-line-ends": length(b"Content-Length: 4\r\n", b"\r\n\r\n"),
    "in-1-0": Taken(post(b"Content-Length: 5\r\n", b"hello", b"1.0"), POST, body=b"hello"),
    "of-get": Taken(get(b"Content-Length: 5\r\n") + b"hello", body=b"hello"),
    "of-head": Taken(
        get(b"Content-Length: 5\r\n", b"HEAD /api/x HTTP/1.1") + b"hello", b"HEAD /v1/x HTTP/1.1", body=b"hello"
    ),
    "none": Taken(post(b""), POST),
    "none-and-a-request-behind": Taken(post(b"") + get(), POST, behind=(Taken(b""),)),
}

EXTENSION: Final = b";a=" + b"x" * (MAX_CHUNK_LINE_BYTES - len(b"5;a=\r\n"))

CHUNKS: Final = {
    "plain": chunked(b"5\r\nhello\r\n6\r\n world\r\n" + LAST, b"hello world"),
    "none": chunked(LAST, b""),
    "upper-and-lower-digits": chunked(b"A\r\n0123456789\r\na\r\n0123456789\r\n" + LAST, b"0123456789" * 2),
    "leading-zeros": chunked(b"0005\r\nhello\r\n" + LAST, b"hello"),
    "sixteen-digits": chunked(b"0000000000000005\r\nhello\r\n" + LAST, b"hello"),
    "last-of-many-zeros": chunked(b"5\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
    "of-one-byte": chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in CONTENT_BYTES) + LAST, CONTENT_BYTES),
    "that-look-like-an-end": chunked(b"a\r\n0\r\n\r\n0\r\n\r\n\r\n" + LAST, b"0\r\n\r\n" * 2),
    "that-look-like-a-request": chunked(b"%x\r\n%b\r\n" % (len(LIKE_A_REQUEST), LIKE_A_REQUEST) + LAST, LIKE_A_REQUEST),
    "coding-in-upper-case": chunked(b"5\r\nhello\r\n" + LAST, b"hello", coding=b"Transfer-Encoding: CHUNKED\r\n"),
    "coding-without-space": chunked(b"5\r\nhello\r\n" + LAST, b"hello", coding=b"transfer-encoding:chunked\r\n"),
    "coding-in-tabs": chunked(b"5\r\nhello\r\n" + LAST, b"hello", coding=b"Transfer-Encoding:\tchunked\t \r\n"),
    "get": Taken(get(CHUNKED) + b"5\r\nhello\r\n" + LAST, body=b"hello"),
    "extension": chunked(b"5;a\r\nhello\r\n0;b\r\n\r\n", b"hello"),
    "extension-of-a-token": chunked(b"5;a=b;c=d\r\nhello\r\n" + LAST, b"hello"),
    "extension-in-quotes": chunked(b'5;a="b;c=\\"d\\"\xc3\xa4\t"\r\nhello\r\n' + LAST, b"hello"),
    "extension-in-white-space": chunked(b"5 ; a = b \t;\tc\r\nhello\r\n" + LAST, b"hello"),
    "extension-as-long-as-may-be": chunked(b"5" + EXTENSION + b"\r\nhello\r\n" + LAST, b"hello"),
    "trailer": chunked(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", b"hello", (b"X-Sum", b"1")),
    "trailers": chunked(
        b"0\r\nX-Sum:1\r\nEmpty:\r\nX-Sum: \xc3\xa4\t2\r\n\r\n",
        b"",
        (b"X-Sum", b"1"),
        (b"Empty", b""),
        (b"X-Sum", b"\xc3\xa4\t2"),
    ),
    "trailers-that-frame": chunked(
        b"0\r\nContent-Length: 99\r\nTransfer-Encoding: gzip\r\nX-Sum: 1\r\nTE: trailers\r\nTrailer: a\r\n\r\n",
        b"",
        (b"X-Sum", b"1"),
    ),
    "trailers-that-route": chunked(
        b"0\r\nX-Sum: 1\r\nhost: evil.test\r\nConnection: close\r\nUpgrade: x\r\nMax-Forwards: 0\r\n\r\n",
        b"",
        (b"X-Sum", b"1"),
    ),
    "trailers-that-authenticate": chunked(
        b"0\r\nAuthorization: Bearer x\r\nCookie: a=b\r\nX-Api-Key: x\r\nProxy-Authorization: x\r\n\r\n", b""
    ),
    "trailers-that-describe": chunked(
        b"0\r\nContent-Type: a/b\r\nContent-Encoding: gzip\r\nContent-Range: x\r\nExpect: 100-continue\r\n\r\n", b""
    ),
}

PIPELINED: Final = {
    "three": Taken(get() * 3, behind=(Taken(b""), Taken(b""))),
    "behind-a-length": Taken(
        post(b"Content-Length: 5\r\n", b"hello") + get(), POST, body=b"hello", behind=(Taken(b""),)
    ),
    "behind-chunks": Taken(post(CHUNKED, b"5\r\nhello\r\n" + LAST) + get(), POST, body=b"hello", behind=(Taken(b""),)),
    "behind-trailers": Taken(
        post(CHUNKED, b"0\r\nA: b\r\n\r\n") + get(b"C: d\r\n"),
        POST,
        trailers=((b"A", b"b"),),
        behind=(Taken(b"", fields=((b"C", b"d"),)),),
    ),
    "behind-an-empty-line": Taken(get() + b"\r\n" + get(), behind=(Taken(b""),)),
    "an-answer-in-the-body": length(b"Content-Length: %d\r\n" % len(POISON), POISON),
}

TAKEN: Final = {
    "method": ("RFC 9110 §9.1", METHODS),
    "target": ("RFC 3986 §3.3", TARGETS),
    "url": ("RFC 9112 §3.2.2", URLS),
    "host": ("RFC 9110 §7.2", HOSTS),
    "field": ("RFC 9110 §5.5", FIELDS),
    "length": ("RFC 9110 §8.6", LENGTHS),
    "chunks": ("RFC 9112 §7.1", CHUNKS),
    "pipelined": ("RFC 9112 §9.3.2", PIPELINED),
}
