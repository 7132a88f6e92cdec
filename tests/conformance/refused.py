"""Requests that are refused: nothing of them reaches the upstream, and nothing behind them is read."""

from __future__ import annotations

from typing import Final

from gateway.http1.message import MAX_LINE_BYTES
from gateway.http1.partial import MAX_EMPTY_LINES
from tests.conformance import faults
from tests.conformance.case import CHUNKED, SMUGGLED, START, A, H, Refused, get, post
from tests.conformance.refused_starts import START_LINES

FIRST: Final = b"3\r\nabc\r\n"
REST: Final = b"0\r\n\r\n" + SMUGGLED


def within(lines: faults.Cases) -> faults.Cases:
    """Put each field line behind good ones, and before the end."""
    return {name: post(line, SMUGGLED) for name, line in lines.items()}


def first(lines: faults.Cases) -> faults.Cases:
    """Put each field line before all others."""
    return {f"first-{name}": post(b"").replace(H, line + H, 1) + SMUGGLED for name, line in lines.items()}


def valued(name: bytes, values: faults.Cases) -> faults.Cases:
    return {case: post(name + b": " + value + b"\r\n", b"0\r\n\r\n" + SMUGGLED) for case, value in values.items()}


def chunks(bodies: faults.Cases, before: bytes = FIRST, rest: bytes = REST) -> faults.Cases:
    return {name: post(CHUNKED, before + body + rest) for name, body in bodies.items()}


def hosts(**values: bytes) -> faults.Cases:
    return {name.replace("_", "-"): get(host=b"Host: " + value + b"\r\n") for name, value in values.items()}


FIELDS: Final = (
    Refused("line-ends", "RFC 9112 §2.2", faults.line_ends(START, H + A)),
    Refused(
        "empty-lines",
        "RFC 9112 §2.2",
        {
            "too-many": b"\r\n" * (MAX_EMPTY_LINES + 1) + get(),
            "without-end": b"\r\n" * 1000,
            "of-space": b" \r\n" + get(),
            "of-a-tab": b"\t\r\n" + get(),
        },
    ),
    Refused("fold", "RFC 9112 §5.2", within(faults.FOLDS)),
    Refused(
        "space-before-the-fields",
        "RFC 9112 §2.2",
        first(
            {
                "space": b" A: b\r\n",
                "tab": b"\tA: b\r\n",
                "space-alone": b" \r\n",
                "before-a-coding": b" Transfer-Encoding: chunked\r\n",
                "before-a-length": b"\tContent-Length: 5\r\n",
            }
        ),
    ),
    Refused("colon", "RFC 9112 §5.1", within(faults.COLONS)),
    Refused("field-name", "RFC 9110 §5.1", within(faults.NAMES) | first(faults.NAMES)),
    Refused(
        "field-value", "RFC 9110 §5.5", within(faults.VALUES) | {"nul-in-an-unfinished-line": get(b"A: b\x00")[:-2]}
    ),
    Refused(
        "head-too-large",
        "RFC 6585 §5",
        {
            "fields": get(faults.TOO_MANY_FIELDS),
            "a-line": get(faults.LONG_FIELD),
            "a-line-without-end": get(b"A: " + b"x" * 40_000)[:-2],
            "all-of-it": get(faults.LONG_HEAD),
            "without-end": get(faults.LONG_HEAD)[:-2],
            "a-name": get(b"A" * MAX_LINE_BYTES + b": b\r\n"),
        },
        status=431,
    ),
    Refused(
        "host-missing",
        "RFC 9112 §3.2",
        {
            "alone": get(host=b""),
            "with-a-url": get(start=b"GET http://evil.test/ HTTP/1.1", host=b""),
            "misspelt": get(host=b"X-Host: gateway.test\r\n"),
        },
    ),
    Refused(
        "host-repeated",
        "RFC 9112 §3.2",
        {
            "same": get(host=H + H),
            "different": get(host=H + b"Host: evil.test\r\n"),
            "spelled-differently": get(host=H + b"host:gateway.test\r\n"),
            "apart": get(H),
            "empty": get(host=H + b"Host:\r\n"),
            "in-1-0": get(host=H + H, start=b"GET /api/x HTTP/1.0"),
        },
    ),
    Refused(
        "host-malformed",
        "RFC 9112 §3.2",
        hosts(
            space=b"a b",
            tab=b"a\tb",
            list=b"a.test, b.test",
            path=b"a.test/x",
            query=b"a.test?x",
            fragment=b"a.test#x",
            user=b"user@a.test",
            scheme=b"http://a.test",
            letters_for_port=b"a.test:http",
            signed_port=b"a.test:+80",
            two_ports=b"a.test:80:80",
            long_port=b"a.test:000080",
            bare_ipv6=b"::1",
            open_bracket=b"[::1",
            closed_bracket=b"::1]",
            behind_the_bracket=b"[::1]x",
            nothing_in_brackets=b"[]",
            ipv4_in_brackets=b"[127.0.0.1]",
            no_ipv6=b"[::1::2]",
            nothing_but_colons=b"[:]",
            zone=b"[fe80::1%25eth0]",
            utf_8=b"\xc3\xa4.test",
            percent=b"a%4.test",
            percent_of_no_digits=b"a%zz.test",
            quoted=b'"a.test"',
            backslash=b"a\\b",
            angle=b"<a.test>",
            caret=b"a^b",
            brace=b"{a}",
            no_break_space=b"a.test\xa0",
            next_line=b"\x85a.test",
        ),
    ),
    Refused(
        "credentials-repeated",
        "RFC 9110 §5.3",
        {
            "authorization": get(A),
            "authorization-of-others": get(b"Authorization: Bearer x\r\n"),
            "authorization-spelled-differently": get(b"authorization:Basic eDp5\r\n"),
            "x-api-key": get(b"X-Api-Key: a\r\nX-Api-Key: b\r\n").replace(A, b""),
            "api-key": get(b"Api-Key: a\r\napi-key:a\r\n").replace(A, b""),
            "two-fields": get(b"X-Api-Key: a\r\n"),
            "two-api-keys": get(b"X-Goog-Api-Key: a\r\nApi-Key: b\r\n").replace(A, b""),
        },
        status=401,
        closes=False,
    ),
    Refused(
        "expectation",
        "RFC 9110 §10.1.1",
        {
            name: post(b"Expect: " + value + b"\r\nContent-Length: 5\r\n", b"hello")
            for name, value in {
                "unknown": b"200-ok",
                "list": b"100-continue, x",
                "list-of-one": b"100-continue,",
                "word-before": b"y 100-continue",
                "word-behind": b"100-continue y",
                "value": b"100-continue=1",
                "parameter": b"100-continue;q=1",
                "empty": b"",
                "quoted": b'"100-continue"',
                "number": b"100",
                "high-byte": b"100-continue\xa0",
            }.items()
        }
        | {
            "repeated": post(b"Expect: 100-continue\r\n" * 2 + b"Content-Length: 5\r\n", b"hello"),
            "unknown-in-1-0": post(b"Expect: x\r\nContent-Length: 5\r\n", b"hello", b"1.0"),
        },
    ),
)

FRAMING: Final = (
    Refused("length-and-coding", "RFC 9112 §6.3 rule 3", within(faults.LENGTH_AND_CODING)),
    Refused("length-malformed", "RFC 9112 §6.3 rule 5", valued(b"Content-Length", faults.LENGTHS)),
    Refused("length-list", "RFC 9112 §6.3 rule 5", valued(b"Content-Length", faults.LENGTH_LISTS)),
    Refused("length-repeated", "RFC 9112 §6.3 rule 5", within(faults.LENGTH_LINES)),
    Refused("coding-not-chunked", "RFC 9112 §6.3 rule 4", valued(b"Transfer-Encoding", faults.CODINGS)),
    Refused("coding-repeated", "RFC 9112 §6.1", within(faults.CODING_LINES)),
    Refused("coding-before-chunked", "RFC 9112 §6.1", valued(b"Transfer-Encoding", faults.CODINGS_BEFORE), status=501),
    Refused(
        "coding-in-1-0",
        "RFC 9112 §6.1",
        {
            "chunked": post(CHUNKED, REST, b"1.0"),
            "keep-alive": post(b"Connection: keep-alive\r\n" + CHUNKED, REST, b"1.0"),
            "gzip": post(b"Transfer-Encoding: gzip\r\n", REST, b"1.0"),
            "identity": post(b"Transfer-Encoding: identity\r\n", REST, b"1.0"),
            "with-a-length": post(CHUNKED + b"Content-Length: 5\r\n", REST, b"1.0"),
            "without-space": post(b"transfer-encoding:chunked\r\n", REST, b"1.0"),
        },
    ),
)

BODIES: Final = (
    Refused("chunk-size", "RFC 9112 §7.1", chunks(faults.CHUNK_SIZES), late=True),
    Refused("chunk-line-end", "RFC 9112 §7.1", chunks(faults.CHUNK_LINE_ENDS), late=True),
    Refused("chunk-data-end", "RFC 9112 §7.1", chunks(faults.CHUNK_DATA_ENDS), late=True),
    Refused("chunk-extension", "RFC 9112 §7.1.1", chunks(faults.CHUNK_EXTENSIONS), late=True),
    Refused(
        "trailer-section",
        "RFC 9112 §7.1.2",
        chunks(faults.TRAILERS, FIRST + b"0\r\n", b"\r\n" + SMUGGLED)
        | {"bad-before-the-end": post(CHUNKED, b"0\r\nA : b\r\n")},
        late=True,
    ),
)

PIPELINED: Final = (
    Refused(
        "behind-a-request",
        "RFC 9112 §9.3.2",
        {
            "lf": get() + START + b"\n" + H + A + b"\r\n",
            "no-host": get() + get(host=b""),
            "garbage": get() + b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "behind-a-length": post(b"Content-Length: 5\r\n", b"hello0\r\n\r\n") + SMUGGLED,
            "behind-chunks": post(CHUNKED, b"5\r\nhello\r\n0\r\n\r\n0\r\n\r\n") + SMUGGLED,
            "behind-no-body": post(b"", b"5\r\nhello\r\n0\r\n\r\n") + SMUGGLED,
            "length-and-coding": get() + post(b"Content-Length: 5\r\n" + CHUNKED, REST),
            "cr": get() + b"\rX",
        },
        before=1,
    ),
)

REFUSED: Final = (*START_LINES, *FIELDS, *FRAMING, *BODIES, *PIPELINED)
