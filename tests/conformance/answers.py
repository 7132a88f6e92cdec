"""Answers: those of which nothing may be taken for a whole answer, and odd ones that are legal and taken."""

from __future__ import annotations

from typing import Final

from gateway.http1.chunked import MAX_CHUNK_LINE_BYTES
from gateway.http1.message import MAX_FIELDS, MAX_LINE_BYTES
from gateway.proxy.upstream import MAX_INTERIM_ANSWERS
from tests.conformance import faults
from tests.conformance.case import CHUNKED, POISON, BadAnswers, TakenAnswer

OK: Final = b"HTTP/1.1 200 OK"
TWO: Final = b"Content-Length: 2\r\n"
FIRST: Final = b"3\r\nabc\r\n"
REST: Final = b"0\r\n\r\n" + POISON


def answer(lines: bytes = TWO, body: bytes = b"hi", start: bytes = OK) -> bytes:
    return start + b"\r\n" + lines + b"\r\n" + body


def starts(**lines: bytes) -> faults.Cases:
    return {name.replace("_", "-"): answer(start=line) for name, line in lines.items()}


def within(lines: faults.Cases) -> faults.Cases:
    return {name: answer(b"A: b\r\n" + line) + POISON for name, line in lines.items()}


def instead(lines: faults.Cases, body: bytes = REST) -> faults.Cases:
    return {name: answer(line, body) for name, line in lines.items()}


def valued(name: bytes, values: faults.Cases) -> faults.Cases:
    return {case: answer(name + b": " + value + b"\r\n", REST) for case, value in values.items()}


def chunks(bodies: faults.Cases, before: bytes = FIRST, rest: bytes = REST) -> faults.Cases:
    return {name: answer(CHUNKED, before + body + rest) for name, body in bodies.items()}


BAD: Final = (
    BadAnswers(
        "status-line",
        "RFC 9112 §4",
        starts(
            http_0_9=b"<html>hello</html>",
            another_protocol=b"SSH-2.0-OpenSSH",
            http_2=b"HTTP/2 200 OK",
            http_2_0=b"HTTP/2.0 200 OK",
            http_1_2=b"HTTP/1.2 200 OK",
            lower_case=b"http/1.1 200 OK",
            icy=b"ICY 200 OK",
            two_digits=b"HTTP/1.1 20 OK",
            four_digits=b"HTTP/1.1 2000 OK",
            leading_zero=b"HTTP/1.1 099 OK",
            zeros=b"HTTP/1.1 000 OK",
            six_hundred=b"HTTP/1.1 600 OK",
            nine_hundred=b"HTTP/1.1 999 OK",
            plus=b"HTTP/1.1 +20 OK",
            hexadecimal=b"HTTP/1.1 0xc8 OK",
            no_status=b"HTTP/1.1 OK",
            nothing_but_a_version=b"HTTP/1.1",
            no_space=b"HTTP/1.1 200OK",
            two_spaces=b"HTTP/1.1  200 OK",
            tab=b"HTTP/1.1\t200\tOK",
            space_before=b" HTTP/1.1 200 OK",
            nul_in_the_reason=b"HTTP/1.1 200 O\x00K",
            escape_in_the_reason=b"HTTP/1.1 200 \x1b[2J",
            a_request=b"GET / HTTP/1.1",
            arabic_digits=b"HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0 OK",
        )
        | {
            "empty-line-before": b"\r\n" + answer(),
            "two-empty-lines-before": b"\r\n\r\n" + answer(),
            "no-line-end": b"\x15\x03\x03\x00\x02\x02\x28",
            "not-http-from-the-first-byte": b"hello",
        },
    ),
    BadAnswers("answer-line-ends", "RFC 9112 §2.2", faults.line_ends(OK, TWO)),
    BadAnswers("answer-fold", "RFC 9112 §5.2", within(faults.FOLDS)),
    BadAnswers("answer-colon", "RFC 9112 §5.1", within(faults.COLONS)),
    BadAnswers("answer-field-name", "RFC 9110 §5.1", within(faults.NAMES)),
    BadAnswers("answer-field-value", "RFC 9110 §5.5", within(faults.VALUES)),
    BadAnswers(
        "answer-head-too-large",
        "RFC 9110 §5.4",
        {
            "fields": answer(faults.TOO_MANY_FIELDS),
            "a-line": answer(faults.LONG_FIELD),
            "all-of-it": answer(faults.LONG_HEAD),
            "without-end": answer(faults.LONG_HEAD)[:-4],
            "a-line-without-end": OK + b"\r\nA: " + b"x" * 40_000,
        },
    ),
    BadAnswers("answer-length-and-coding", "RFC 9112 §6.3 rule 3", instead(faults.LENGTH_AND_CODING)),
    BadAnswers("answer-length-malformed", "RFC 9112 §6.3 rule 5", valued(b"Content-Length", faults.LENGTHS)),
    BadAnswers("answer-length-list", "RFC 9112 §6.3 rule 5", valued(b"Content-Length", faults.LENGTH_LISTS)),
    BadAnswers("answer-length-repeated", "RFC 9112 §6.3 rule 5", instead(faults.LENGTH_LINES)),
    BadAnswers(
        "answer-coding",
        "RFC 9112 §6.1",
        valued(b"Transfer-Encoding", faults.CODINGS | {f"{k}-before": v for k, v in faults.CODINGS_BEFORE.items()}),
    ),
    BadAnswers("answer-coding-repeated", "RFC 9112 §6.1", instead(faults.CODING_LINES)),
    BadAnswers(
        "answer-coding-in-1-0",
        "RFC 9112 §6.1",
        {
            "chunked": answer(CHUNKED, REST, b"HTTP/1.0 200 OK"),
            "keep-alive": answer(b"Connection: keep-alive\r\n" + CHUNKED, REST, b"HTTP/1.0 200 OK"),
            "gzip": answer(b"Transfer-Encoding: gzip\r\n", REST, b"HTTP/1.0 200 OK"),
        },
    ),
    BadAnswers(
        "answer-interim",
        "RFC 9110 §15.2",
        {
            "without-end": b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM_ANSWERS + 1) + answer(),
            "switch-that-nobody-asked-for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + POISON,
            "switch-that-names-nothing": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + POISON,
            "malformed": b"HTTP/1.1 103 Early Hints\r\nA : b\r\n\r\n" + answer(),
            "then-garbage": b"HTTP/1.1 103 Early Hints\r\n\r\nhello\r\n\r\n",
            "with-a-body": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello" + answer(),
            "with-two-framings": answer(faults.LENGTH_AND_CODING["zero"], b"", b"HTTP/1.1 103 Early Hints") + answer(),
        },
    ),
    BadAnswers("answer-chunk-size", "RFC 9112 §7.1", chunks(faults.CHUNK_SIZES), late=True),
    BadAnswers("answer-chunk-line-end", "RFC 9112 §7.1", chunks(faults.CHUNK_LINE_ENDS), late=True),
    BadAnswers("answer-chunk-data-end", "RFC 9112 §7.1", chunks(faults.CHUNK_DATA_ENDS), late=True),
    BadAnswers("answer-chunk-extension", "RFC 9112 §7.1.1", chunks(faults.CHUNK_EXTENSIONS), late=True),
    BadAnswers(
        "answer-trailer-section",
        "RFC 9112 §7.1.2",
        chunks(faults.TRAILERS, FIRST + b"0\r\n", b"\r\n" + POISON),
        late=True,
    ),
    BadAnswers(
        "answer-head-cut-short",
        "RFC 9112 §8",
        {
            "in-the-status-line": OK[:-3],
            "behind-the-status-line": OK + b"\r\n",
            "in-a-field": OK + b"\r\nContent-Le",
            "before-the-last-line-end": answer()[:-4],
        },
        ends=True,
        code="upstream_unreachable",
    ),
    BadAnswers(
        "answer-body-cut-short",
        "RFC 9112 §8",
        {
            "length": answer(b"Content-Length: 5\r\n", b"hell"),
            "length-before-a-byte": answer(b"Content-Length: 5\r\n", b""),
            "chunk": answer(CHUNKED, b"5\r\nhell"),
            "before-the-last-chunk": answer(CHUNKED, b"5\r\nhello\r\n"),
            "in-the-last-chunk": answer(CHUNKED, b"5\r\nhello\r\n0"),
            "before-the-last-line-end": answer(CHUNKED, b"5\r\nhello\r\n0\r\n"),
            "in-the-trailers": answer(CHUNKED, b"5\r\nhello\r\n0\r\nA: b\r\n"),
        },
        late=True,
        ends=True,
    ),
)

EXTENSION: Final = b";a=" + b"x" * (MAX_CHUNK_LINE_BYTES - len(b"5;a=\r\n"))
LONG: Final = b"x" * (MAX_LINE_BYTES - len(b"A: "))
MANY: Final = tuple((b"A-%d" % number, b"%d" % number) for number in range(MAX_FIELDS - 1))


def status(sent: bytes, written: bytes) -> TakenAnswer:
    return TakenAnswer(answer(start=sent), written, body=b"hi")


def fields(raw: bytes, *passed_on: tuple[bytes, bytes], kept: bool = True) -> TakenAnswer:
    return TakenAnswer(answer(raw + TWO), fields=passed_on, body=b"hi", kept=kept)


def chunked(raw: bytes, body: bytes, *trailers: tuple[bytes, bytes], coding: bytes = CHUNKED) -> TakenAnswer:
    return TakenAnswer(answer(coding, raw), body=body, trailers=trailers)


def extra(
    raw: bytes, behind: bytes = POISON, body: bytes = b"", start: bytes = OK, method: bytes = b"GET"
) -> TakenAnswer:
    return TakenAnswer(raw, start, body=body, method=method, extra=behind, kept=False)


LAST: Final = b"0\r\n\r\n"

TAKEN: Final = {
    "answer-status": {
        "no-reason": status(b"HTTP/1.1 200", b"HTTP/1.1 200 "),
        "empty-reason": status(b"HTTP/1.1 200 ", b"HTTP/1.1 200 "),
        "odd-reason": status(b"HTTP/1.1 200 \xc3\xa4\t:;", b"HTTP/1.1 200 \xc3\xa4\t:;"),
        "reason-like-a-status": status(b"HTTP/1.1 200 404 Not Found", b"HTTP/1.1 200 404 Not Found"),
        "unassigned": status(b"HTTP/1.1 299 Odd", b"HTTP/1.1 299 Odd"),
        "last": status(b"HTTP/1.1 599 Odd", b"HTTP/1.1 599 Odd"),
        "failure": status(b"HTTP/1.1 500 Internal Server Error", b"HTTP/1.1 500 Internal Server Error"),
        "in-1-0": TakenAnswer(answer(start=b"HTTP/1.0 200 OK"), body=b"hi", kept=False),
        "in-1-0-keep-alive": TakenAnswer(
            answer(b"Connection: keep-alive\r\n" + TWO, start=b"HTTP/1.0 200 OK"), body=b"hi"
        ),
    },
    "answer-field": {
        "empty-value": fields(b"A:\r\nB: \r\n", (b"A", b""), (b"B", b"")),
        "white-space-around": fields(b"A:\tb \r\n", (b"A", b"b")),
        "obs-text": fields(b"A: \xa0\xc3\xa4\x85\r\n", (b"A", b"\xa0\xc3\xa4\x85")),
        "repeated": fields(b"Set-Cookie: a\r\nset-cookie: b\r\n", (b"Set-Cookie", b"a"), (b"set-cookie", b"b")),
        "all-that-names-may-have": fields(b"!#$%&'*+-.^_`|~09AZaz: b\r\n", (b"!#$%&'*+-.^_`|~09AZaz", b"b")),
        "underscores": fields(b"Content_Length: 5\r\n", (b"Content_Length", b"5")),
        "long-value": fields(b"A: " + LONG + b"\r\n", (b"A", LONG)),
        "as-many-as-may-be": fields(b"".join(b"%b: %b\r\n" % pair for pair in MANY), *MANY),
        "connection-names-framing": fields(b"Connection: content-length, x\r\nX: y\r\n"),
        "connection-closes": fields(b"Connection: close\r\nA: b\r\n", (b"A", b"b"), kept=False),
        "connection-says-both": fields(b"Connection: keep-alive, close\r\n", kept=False),
        "keep-alive": fields(b"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n"),
    },
    "answer-length": {
        "zero": TakenAnswer(answer(b"Content-Length: 0\r\n", b"")),
        "leading-zeros": TakenAnswer(answer(b"Content-Length: 0002\r\n"), body=b"hi"),
        "upper-case": TakenAnswer(answer(b"CONTENT-LENGTH:2\r\n"), body=b"hi"),
        "looks-like-an-answer": TakenAnswer(answer(b"Content-Length: %d\r\n" % len(POISON), POISON), body=POISON),
        "until-the-end": TakenAnswer(answer(b"", b"hello"), body=b"hello", ends=True, kept=False),
        "until-the-end-and-nothing": TakenAnswer(answer(b"", b""), ends=True, kept=False),
        "until-the-end-in-1-0": TakenAnswer(
            answer(b"", b"hello", b"HTTP/1.0 200 OK"), body=b"hello", ends=True, kept=False
        ),
        "until-the-end-and-looks-like-another": TakenAnswer(
            answer(b"", b"hello" + POISON), body=b"hello" + POISON, ends=True, kept=False
        ),
        "of-head": TakenAnswer(answer(b"Content-Length: 500\r\n", b""), method=b"HEAD"),
        "of-head-in-chunks": TakenAnswer(answer(CHUNKED, b""), method=b"HEAD"),
        "of-304": TakenAnswer(
            answer(b"Content-Length: 500\r\n", b"", b"HTTP/1.1 304 Not Modified"), b"HTTP/1.1 304 Not Modified"
        ),
        "of-204": TakenAnswer(answer(b"", b"", b"HTTP/1.1 204 No Content"), b"HTTP/1.1 204 No Content"),
        "of-204-that-announces": TakenAnswer(
            answer(b"Content-Length: 5\r\n", b"", b"HTTP/1.1 204 No Content"), b"HTTP/1.1 204 No Content", kept=False
        ),
        "of-204-in-chunks": TakenAnswer(
            answer(CHUNKED, b"", b"HTTP/1.1 204 No Content"), b"HTTP/1.1 204 No Content", kept=False
        ),
        "of-205": TakenAnswer(
            answer(b"Content-Length: 0\r\n", b"", b"HTTP/1.1 205 Reset Content"), b"HTTP/1.1 205 Reset Content"
        ),
    },
    "answer-chunks": {
        "plain": chunked(b"5\r\nhello\r\n6\r\n world\r\n" + LAST, b"hello world"),
        "none": chunked(LAST, b""),
        "upper-and-lower-digits": chunked(b"A\r\n0123456789\r\na\r\n0123456789\r\n" + LAST, b"0123456789" * 2),
        "leading-zeros": chunked(b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
        "of-one-byte": chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in range(256)) + LAST, bytes(range(256))),
        "that-look-like-an-answer": chunked(b"%x\r\n%b\r\n" % (len(POISON), POISON) + LAST, POISON),
        "coding-in-upper-case": chunked(b"5\r\nhello\r\n" + LAST, b"hello", coding=b"TRANSFER-ENCODING:CHUNKED\r\n"),
        "extension": chunked(b'5;a="b\\"c" ; d\r\nhello\r\n0;e\r\n\r\n', b"hello"),
        "extension-as-long-as-may-be": chunked(b"5" + EXTENSION + b"\r\nhello\r\n" + LAST, b"hello"),
        "trailers": chunked(b"5\r\nhello\r\n0\r\nX-Sum:1\r\nE:\r\n\r\n", b"hello", (b"X-Sum", b"1"), (b"E", b"")),
        "trailers-that-frame": chunked(
            b"0\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\nX-Sum: 1\r\nConnection: close\r\nTrailer: a\r\n\r\n",
            b"",
            (b"X-Sum", b"1"),
        ),
        "trailers-that-set": chunked(b"0\r\nSet-Cookie: a=b\r\nContent-Type: a/b\r\nWWW-Authenticate: x\r\n\r\n", b""),
    },
    "answer-interims": {
        "hints": TakenAnswer(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(),
            body=b"hi",
            interims=(b"HTTP/1.1 103 Early Hints",),
        ),
        "several": TakenAnswer(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 \r\n\r\nHTTP/1.1 103\r\n\r\n" + answer(),
            body=b"hi",
            interims=(b"HTTP/1.1 100 Continue", b"HTTP/1.1 102 ", b"HTTP/1.1 103 "),
        ),
        "as-many-as-may-be": TakenAnswer(
            b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_INTERIM_ANSWERS + answer(),
            body=b"hi",
            interims=(b"HTTP/1.1 100 Continue",) * MAX_INTERIM_ANSWERS,
        ),
    },
    "answer-extra-bytes": {
        "behind-a-length": extra(answer(), body=b"hi"),
        "behind-a-length-of-zero": extra(answer(b"Content-Length: 0\r\n", b"")),
        "behind-chunks": extra(answer(CHUNKED, b"2\r\nhi\r\n" + LAST), body=b"hi"),
        "behind-trailers": extra(answer(CHUNKED, b"0\r\nContent-Length: 5\r\n\r\n")),
        "behind-head": extra(answer(b"Content-Length: 8\r\n", b""), b"smuggled", method=b"HEAD"),
        "an-answer-behind-head": extra(answer(b"Content-Length: 8\r\n", b""), method=b"HEAD"),
        "behind-204": extra(answer(b"", b"", b"HTTP/1.1 204 No Content"), start=b"HTTP/1.1 204 No Content"),
        "body-of-204": extra(
            answer(b"Content-Length: 8\r\n", b"", b"HTTP/1.1 204 No Content"),
            b"smuggled",
            start=b"HTTP/1.1 204 No Content",
        ),
        "behind-304": extra(
            answer(b"Content-Length: 8\r\n", b"", b"HTTP/1.1 304 Not Modified"),
            b"smuggled",
            start=b"HTTP/1.1 304 Not Modified",
        ),
        "an-empty-line": extra(answer(), b"\r\n", body=b"hi"),
        "one-byte": extra(answer(), b"!", body=b"hi"),
        "an-interim": extra(answer(), b"HTTP/1.1 100 Continue\r\n\r\n", body=b"hi"),
        "half-an-answer": extra(answer(), POISON[:20], body=b"hi"),
    },
}
