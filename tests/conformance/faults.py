"""What can be wrong with a message, whichever way it goes: lines, field lines, lengths, codings, chunks."""

from __future__ import annotations

from typing import Final

from gateway.http1.chunked import MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES
from gateway.http1.message import MAX_FIELDS, MAX_LINE_BYTES

Cases = dict[str, bytes]

CONTROLS: Final = (0x00, 0x01, 0x07, 0x08, 0x0B, 0x0C, 0x0E, 0x1B, 0x1F, 0x7F)


def line_ends(start: bytes, lines: bytes) -> Cases:
    """Make heads in which some line does not end in CRLF alone.

    Args:
        start: The first line.
        lines: Good field lines, with their ends.
    """
    return {
        "lf-behind-the-start": start + b"\n" + lines + b"\r\n",
        "lf-behind-a-field": start + b"\r\nA: b\n" + lines + b"\r\n",
        "lf-everywhere": (start + b"\r\n" + lines + b"\r\n").replace(b"\r\n", b"\n"),
        "lf-ends-the-head": start + b"\r\n" + lines + b"\n",
        "lf-lf-behind-a-field": start + b"\r\n" + lines[:-2] + b"\n\n",
        "lf-before-the-start": b"\n" + start + b"\r\n" + lines + b"\r\n",
        "lf-in-the-start": start.replace(b" ", b"\n", 1) + b"\r\n" + lines + b"\r\n",
        "lf-hides-a-field": start + b"\r\nA: b\nTransfer-Encoding: chunked\r\n" + lines + b"\r\n",
        "lf-cr-behind-a-field": start + b"\r\nA: b\n\r" + lines + b"\r\n",
        "cr-behind-the-start": start + b"\r" + lines + b"\r\n",
        "cr-behind-a-field": start + b"\r\nA: b\r" + lines + b"\r\n",
        "cr-everywhere": (start + b"\r\n" + lines + b"\r\n").replace(b"\r\n", b"\r"),
        "cr-ends-the-head": start + b"\r\n" + lines + b"\rX",
        "cr-before-the-start": b"\r" + start + b"\r\n" + lines + b"\r\n",
        "cr-in-the-start": start.replace(b" ", b"\r", 1) + b"\r\n" + lines + b"\r\n",
        "cr-before-a-colon": start + b"\r\nA\r: b\r\n" + lines + b"\r\n",
        "cr-before-a-value": start + b"\r\nA:\rb\r\n" + lines + b"\r\n",
        "cr-in-a-value": start + b"\r\nA: b\rc\r\n" + lines + b"\r\n",
        "cr-cr-lf-behind-the-start": start + b"\r\r\n" + lines + b"\r\n",
        "cr-cr-lf-behind-a-field": start + b"\r\nA: b\r\r\n" + lines + b"\r\n",
        "cr-cr-lf-ends-the-head": start + b"\r\n" + lines + b"\r\r\n",
        "cr-hides-a-field": start + b"\r\nA: b\rTransfer-Encoding: chunked\r\n" + lines + b"\r\n",
    }


# From here on, what stands in place of `A: b` CRLF in a section that is otherwise good.

FOLDS: Final[Cases] = {
    "space": b"A: b\r\n c\r\n",
    "tab": b"A: b\r\n\tc\r\n",
    "nothing-but-space": b"A: b\r\n \r\n",
    "nothing-but-tabs": b"A: b\r\n\t\t\r\n",
    "of-an-empty-value": b"A:\r\n b\r\n",
    "hides-a-coding": b"A: b\r\n Transfer-Encoding: chunked\r\n",
    "hides-a-length": b"A: b\r\n\tContent-Length: 5\r\n",
    "of-a-coding": b"Transfer-Encoding:\r\n chunked\r\n",
    "of-a-coding-goes-on": b"Transfer-Encoding: chunked\r\n , identity\r\n",
    "of-a-length": b"Content-Length:\r\n 5\r\n",
    "of-a-length-goes-on": b"Content-Length: 5\r\n 5\r\n",
}

COLONS: Final[Cases] = {
    "space-before-it": b"A : b\r\n",
    "tab-before-it": b"A\t: b\r\n",
    "space-before-it-of-a-coding": b"Transfer-Encoding : chunked\r\n",
    "tab-before-it-of-a-coding": b"Transfer-Encoding\t: chunked\r\n",
    "space-before-it-of-a-length": b"Content-Length : 5\r\n",
    "tab-before-it-of-a-length": b"Content-Length\t: 5\r\n",
    "missing": b"Ab\r\n",
    "missing-in-a-coding": b"Transfer-Encoding chunked\r\n",
    "equals-sign": b"Content-Length=5\r\n",
    "fullwidth": b"Content-Length\xef\xbc\x9a5\r\n",
}

NAMES: Final[Cases] = {
    "none": b": b\r\n",
    "none-before-a-coding": b":Transfer-Encoding: chunked\r\n",
    "nothing-but-space": b" : b\r\n",
    "space-within": b"A B: c\r\n",
    "space-in-a-coding": b"Transfer Encoding: chunked\r\n",
    "space-before-a-length": b" Content-Length: 5\r\n",
    "tab-before-a-coding": b"\tTransfer-Encoding: chunked\r\n",
    "quoted": b'"A": b\r\n',
    "parentheses": b"A(b): c\r\n",
    "slash": b"A/B: c\r\n",
    "at": b"A@B: c\r\n",
    "bracket": b"[A]: b\r\n",
    "braces": b"{A}: b\r\n",
    "backslash": b"A\\B: c\r\n",
    "comma": b"A,B: c\r\n",
    "semicolon": b"A;B: c\r\n",
    "equals": b"A=B: c\r\n",
    "question": b"A?: b\r\n",
    "utf-8": b"\xc3\xa4: b\r\n",
    "no-break-space-behind": b"Content-Length\xa0: 5\r\n",
    "next-line-behind": b"Transfer-Encoding\x85: chunked\r\n",
    "byte-order-mark": b"\xef\xbb\xbfTransfer-Encoding: chunked\r\n",
    "kelvin-sign": b"X-To\xe2\x84\xaaen: b\r\n",
    "ff": b"Transfer-Encoding\xff: chunked\r\n",
    "nul": b"Content-Length\x00: 5\r\n",
    "vertical-tab": b"Transfer-Encoding\x0b: chunked\r\n",
    "control-before": b"\x01Transfer-Encoding: chunked\r\n",
    "delete": b"A\x7f: b\r\n",
}

VALUES: Final[Cases] = {
    **{f"byte-{code:02x}": b"A: b%cc\r\n" % code for code in CONTROLS},
    "nul-begins": b"A: \x00b\r\n",
    "nul-ends": b"A: b\x00\r\n",
    "nul-behind-a-length": b"Content-Length: 5\x00\r\n",
    "nul-behind-a-coding": b"Transfer-Encoding: chunked\x00\r\n",
    "vertical-tab-before-a-coding": b"Transfer-Encoding:\x0bchunked\r\n",
    "form-feed-behind-a-coding": b"Transfer-Encoding: chunked\x0c\r\n",
    "vertical-tab-behind-a-length": b"Content-Length: 5\x0b\r\n",
    "escape-in-a-coding": b"Transfer-Encoding: chunk\x1bed\r\n",
}

# Values of `Content-Length`.
LENGTHS: Final[Cases] = {
    "plus": b"+5",
    "minus": b"-5",
    "minus-nothing": b"-0",
    "underscore": b"5_0",
    "underscore-begins": b"_5",
    "space-within": b"5 0",
    "tab-within": b"5\t0",
    "point": b"5.0",
    "exponent": b"5e0",
    "hexadecimal": b"0x5",
    "octal": b"0o5",
    "binary": b"0b101",
    "letter-behind": b"5L",
    "word": b"five",
    "quoted": b'"5"',
    "single-quoted": b"'5'",
    "semicolon": b"5;",
    "parameter": b"5;q=1",
    "empty": b"",
    "nothing-but-space": b"  ",
    "arabic-digits": b"\xd9\xa5",
    "fullwidth-digit": b"\xef\xbc\x95",
    "superscript": b"\xb2",
    "no-break-space-before": b"\xa05",
    "no-break-space-behind": b"5\xa0",
    "next-line-behind": b"5\x85",
    "nineteen-digits": b"9" * 19,
    "nineteen-digits-with-zeros": b"0" * 18 + b"5",
    "over-64-bits": b"18446744073709551621",
    "minus-in-64-bits": b"18446744073709551611",
    "thousand-digits": b"5" * 1000,
    "infinity": b"inf",
    "nan": b"nan",
    "thousands": b"1'000",
}

LENGTH_LISTS: Final[Cases] = {
    "equal": b"5, 5",
    "equal-without-space": b"5,5",
    "different": b"5, 6",
    "three": b"5, 5, 5",
    "ends-empty": b"5,",
    "begins-empty": b",5",
    "nothing-but-a-comma": b",",
    "zero-and": b"0, 5",
}

# Values of `Transfer-Encoding` that do not end in a single chunked.
CODINGS: Final[Cases] = {
    "identity": b"identity",
    "gzip": b"gzip",
    "x-before": b"xchunked",
    "x-dash-before": b"x-chunked",
    "letter-behind": b"chunkedx",
    "cut": b"chunk",
    "quoted": b'"chunked"',
    "single-quoted": b"'chunked'",
    "parameter": b"chunked;q=1",
    "semicolon": b"chunked;",
    "equals": b"chunked=1",
    "empty": b"",
    "nothing-but-a-comma": b",",
    "ends-empty": b"chunked,",
    "begins-empty": b",chunked",
    "space-for-comma": b"identity chunked",
    "twice-without-comma": b"chunked chunked",
    "twice": b"chunked, chunked",
    "then-identity": b"chunked, identity",
    "then-gzip": b"chunked, gzip",
    "then-unknown": b"chunked, cow",
    "unknown": b"cow",
    "tab-within": b"chunk\ted",
    "no-break-space-before": b"\xa0chunked",
    "no-break-space-behind": b"chunked\xa0",
    "next-line-before": b"\x85chunked",
    "next-line-behind": b"chunked\x85",
    "kelvin-sign": b"chun\xe2\x84\xaaed",
    "dotless": b"chunked\xc4\xb1",
    "colon-before": b": chunked",
    "backslash": b"chun\\ked",
    "percent": b"%63hunked",
    "null-word": b"null",
}

CODINGS_BEFORE: Final[Cases] = {
    "gzip": b"gzip, chunked",
    "without-space": b"deflate,chunked",
    "identity": b"identity, chunked",
    "unknown": b"cow, chunked",
    "two": b"gzip, deflate, chunked",
    "parameter": b"gzip;level=1, chunked",
    "empty-member": b"gzip,, chunked",
}

CODING_LINES: Final[Cases] = {
    "same": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "spelled-differently": b"Transfer-Encoding: chunked\r\ntransfer-encoding:chunked\r\n",
    "gzip-first": b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    "identity-last": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "unknown-first": b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
    "empty-last": b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
    "apart": b"Transfer-Encoding: chunked\r\nA: b\r\nTransfer-Encoding: chunked\r\n",
}

LENGTH_LINES: Final[Cases] = {
    "same": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "different": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "zero-first": b"Content-Length: 0\r\nContent-Length: 5\r\n",
    "zero-last": b"Content-Length: 5\r\nContent-Length: 0\r\n",
    "three": b"Content-Length: 5\r\n" * 3,
    "spelled-differently": b"Content-Length: 5\r\ncontent-length:5\r\n",
    "with-zeros": b"Content-Length: 5\r\nContent-Length: 05\r\n",
    "empty-last": b"Content-Length: 5\r\nContent-Length:\r\n",
    "apart": b"Content-Length: 5\r\nA: b\r\nContent-Length: 5\r\n",
}

LENGTH_AND_CODING: Final[Cases] = {
    "length-first": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "coding-first": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "apart": b"Content-Length: 5\r\nA: b\r\nTransfer-Encoding: chunked\r\n",
    "zero": b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    "that-agree": b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n",
    "upper-case": b"CONTENT-LENGTH: 5\r\nTRANSFER-ENCODING: CHUNKED\r\n",
    "without-spaces": b"content-length:5\r\ntransfer-encoding:chunked\r\n",
    "tabs": b"Content-Length:\t5\r\nTransfer-Encoding:\tchunked\t\r\n",
    "leading-zeros": b"Content-Length: 005\r\nTransfer-Encoding: chunked\r\n",
    "identity": b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
    "empty-coding": b"Content-Length: 5\r\nTransfer-Encoding:\r\n",
    "named-in-connection": b"Connection: content-length\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "coding-in-connection": b"Connection: transfer-encoding\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "hidden-by-a-quote": b'A: "\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nB: "\r\n',
}

# Chunked bodies. A good chunk may come first, so that the head goes on before anything is wrong.

CHUNK_SIZES: Final[Cases] = {
    "hexadecimal-prefix": b"0x5\r\nhello\r\n",
    "upper-hexadecimal-prefix": b"0X5\r\nhello\r\n",
    "plus": b"+5\r\nhello\r\n",
    "minus": b"-5\r\nhello\r\n",
    "minus-nothing": b"-0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n",
    "space-before": b" 5\r\nhello\r\n",
    "tab-before": b"\t5\r\nhello\r\n",
    "space-behind": b"5 \r\nhello\r\n",
    "tab-behind": b"5\t\r\nhello\r\n",
    "space-behind-the-last": b"0 \r\n\r\n",
    "space-within": b"0 5\r\nhello\r\n",
    "none": b"\r\nhello\r\n",
    "none-but-an-extension": b";a=b\r\nhello\r\n",
    "letter": b"g\r\nhello\r\n",
    "letter-behind": b"5h\r\nhello\r\n",
    "word": b"five\r\nhello\r\n",
    "point": b"5.\r\nhello\r\n",
    "comma": b"5,5\r\nhello\r\n",
    "quoted": b'"5"\r\nhello\r\n',
    "arabic-digits": b"\xd9\xa5\r\nhello\r\n",
    "no-break-space-behind": b"5\xa0\r\nhello\r\n",
    "no-break-space-before": b"\xa05\r\nhello\r\n",
    "nul-behind": b"5\x00\r\nhello\r\n",
    "vertical-tab-behind": b"5\x0b\r\nhello\r\n",
    "byte-order-mark": b"\xef\xbb\xbf5\r\nhello\r\n",
    "seventeen-digits": b"0" * 16 + b"5\r\nhello\r\n",
    "over-64-bits": b"10000000000000005\r\nhello\r\n",
    "all-64-bits": b"ffffffffffffffff\r\nhello\r\n",
    "minus-in-64-bits": b"fffffffffffffffb\r\nhello\r\n",
    "over-63-bits": b"8000000000000000\r\nhello\r\n",
    "thousand-digits": b"0" * 1000 + b"5\r\nhello\r\n",
}

CHUNK_LINE_ENDS: Final[Cases] = {
    "lf": b"5\nhello\r\n",
    "cr": b"5\rhello\r\n",
    "cr-cr-lf": b"5\r\r\nhello\r\n",
    "lf-cr-lf": b"5\n\r\nhello\r\n",
    "cr-x": b"5\rXhello\r\n",
    "lf-behind-the-last": b"0\n\r\n",
    "lf-lf-behind-the-last": b"0\n\n",
    "cr-behind-the-last": b"0\rX\r\n",
    "lf-ends-the-body": b"0\r\n\nX",
    "cr-ends-the-body": b"0\r\n\rX",
    "cr-cr-lf-ends-the-body": b"0\r\n\r\r\n",
}

CHUNK_DATA_ENDS: Final[Cases] = {
    "none": b"5\r\nhello0\r\n\r\n",
    "lf": b"5\r\nhello\n0\r\n\r\n",
    "cr": b"5\r\nhello\r0\r\n\r\n",
    "any-two-bytes": b"5\r\nhelloXX0\r\n\r\n",
    "lf-cr": b"5\r\nhello\n\r0\r\n\r\n",
    "cr-cr-lf": b"5\r\nhello\r\r\n0\r\n\r\n",
    "one-byte-too-many": b"5\r\nhello!\r\n0\r\n\r\n",
    "one-byte-too-few": b"5\r\nhell\r\n0\r\n\r\n",
    "space": b"5\r\nhello \r\n0\r\n\r\n",
    "an-empty-line-too-many": b"5\r\nhello\r\n\r\n0\r\n\r\n",
}

CHUNK_EXTENSIONS: Final[Cases] = {
    "lf-within": b"5;a\nb\r\nhello\r\n",
    "lf-ends-it": b"5;a\nhello\r\n",
    "lf-behind-the-semicolon": b"5;\nhello\r\n",
    "lf-in-a-quoted-value": b'5;a="b\nc"\r\nhello\r\n',
    "lf-of-the-last": b"0;a\n\r\n",
    "cr-within": b"5;a\rb\r\nhello\r\n",
    "cr-behind-the-semicolon": b"5;\rX\r\nhello\r\n",
    "cr-cr-lf": b"5;a\r\r\nhello\r\n",
    "nul": b"5;a\x00\r\nhello\r\n",
    "control": b"5;a=\x01\r\nhello\r\n",
    "delete": b"5;a=b\x7f\r\nhello\r\n",
    "no-name": b"5;\r\nhello\r\n",
    "no-name-but-a-value": b"5;=b\r\nhello\r\n",
    "no-name-between": b"5;;a\r\nhello\r\n",
    "no-value": b"5;a=\r\nhello\r\n",
    "no-semicolon": b"5 a=b\r\nhello\r\n",
    "space-in-the-name": b"5;a b=c\r\nhello\r\n",
    "space-at-the-end": b"5;a=b \r\nhello\r\n",
    "quote-never-closed": b'5;a="b\r\nhello\r\n',
    "behind-a-quoted-value": b'5;a="b"c\r\nhello\r\n',
    "quoted-name": b'5;"a"=b\r\nhello\r\n',
    "outside-ascii": b"5;a=\xc3\xa4\r\nhello\r\n",
    "too-long": b"5;a=" + b"x" * MAX_CHUNK_LINE_BYTES + b"\r\nhello\r\n",
    "without-end": b"5;a=" + b"x" * MAX_CHUNK_LINE_BYTES * 2,
}

# Behind the last chunk's line.
TRAILERS: Final[Cases] = {
    **{f"fold-{name}": line for name, line in FOLDS.items()},
    **{f"colon-{name}": line for name, line in COLONS.items()},
    **{f"name-{name}": line for name, line in NAMES.items()},
    **{f"value-{name}": line for name, line in VALUES.items()},
    "fold-before-the-first": b" A: b\r\n",
    "lf": b"A: b\nC: d\r\n",
    "lf-hides-a-coding": b"A: b\nTransfer-Encoding: chunked\r\n",
    "cr": b"A: b\rC: d\r\n",
    "cr-cr-lf": b"A: b\r\r\n",
    "a-request": b"GET /api/smuggled HTTP/1.1\r\n",
    "length-malformed": b"Content-Length: +5\r\n",
    "length-repeated": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "too-many": b"A: b\r\n" * (MAX_FIELDS + 1),
    "too-long": b"A: " + b"x" * MAX_TRAILER_BYTES + b"\r\n",
    "without-end": (b"A: " + b"x" * 1000 + b"\r\n") * 20,
}

TOO_MANY_FIELDS: Final = b"A: b\r\n" * (MAX_FIELDS + 1)
LONG_FIELD: Final = b"A: " + b"x" * MAX_LINE_BYTES + b"\r\n"
LONG_HEAD: Final = (b"A: " + b"x" * 1000 + b"\r\n") * 40
