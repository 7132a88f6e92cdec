"""Field lines of a head whose form is known say what they say without: the form is a memory, not a judge."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from gateway.http1.fields import without_field
from gateway.http1.message import CRLF
from gateway.metering.fields import IDS, answered, asked, codings_line
from gateway.scope import names_another

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = (
    b"Accept-Encoding: br",
    b"accept-encoding:%b",
    b"Content-Type: application/json",
    b"Content-type: %b",
    b"Content-Encoding: %b",
    b"X-Http-Method: %b",
    b"upgrade: h2c",
    b"X-100%%: 100%%%b",
)
ANSWER = (
    b"content-type: text/event-stream",
    b"Content-Type: %b",
    b"Content-Encoding: %b",
    b"content-encoding: GZIP",
    b"X-Request-Id: %b",
    b"x-request-id: two words",
    b"cf-ray: %b-FRA",
    b"X-Other: 1",
)
VALUES = (b"json;charset=latin1", b"gzip", b"text/event-stream", b"r" * 129, b"")


def heads(lines: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Yield forms of one, two and three lines, each with what is of it."""
    for size in (1, 2, 3):
        for some in permutations(lines, size):
            form = CRLF.join((b"", *some))
            yield from ((form, form % ((value,) * form.count(b"%b"))) for value in VALUES[: 5 if size < 3 else 1])


def test_a_request_of_a_known_form() -> None:
    known = set()
    for form, text in heads(REQUEST):
        is_usual, kept, accepted = asked(text, form)
        truly_usual, truly_kept, truly_accepted = asked(text, b"")
        assert truly_usual or not is_usual
        assert kept == truly_kept == without_field(text, b"\r\naccept-encoding:")
        assert accepted == truly_accepted
        if is_usual:
            assert not names_another((text,))
            known.add(form)
    assert {CRLF.join((b"", *REQUEST[2::-2])), CRLF + REQUEST[7]} <= known


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        (b"gzip", True),
        (b"GZip;q=0.5", True),
        (b"br, gzip, deflate", True),
        (b"br , x-gzip ;q=1.0, identity;q=0", True),
        (b"*", True),
        (b"*;q=0, gzip", True),
        (b"br;q=1\r\naccept-encoding: gzip", True),
        (b"", False),
        (b"identity", False),
        (b"br, zstd", False),
        (b"gzip;q=0", False),
        (b"gzip;q=0.000, *", False),
        (b"*;q=0", False),
        (b"notgzip, gzipped, gzip-2", False),
    ],
)
def test_the_codings_of_an_answer_are_those_that_the_client_takes(accepted: bytes, *, takes: bool) -> None:
    line = codings_line(b"gzip, identity", b"\r\nAccept-Encoding: " + accepted)
    assert line == b"\r\nAccept-Encoding: " + (b"gzip, identity" if takes else b"identity")


def test_an_answer_of_a_known_form() -> None:
    for form, text in heads(ANSWER):
        assert answered((text,), form) == answered((text,), b""), text


@pytest.mark.parametrize("name", IDS)
def test_the_id_of_a_known_form(name: bytes) -> None:
    form = b"\r\nServer: x" + name.upper() + b" %b"
    assert answered((form % b"req_1",), form) == (b"", False, "req_1")
    twice = 2 * (name.upper() + b" %b")
    assert answered((twice % (b"req_1", b"req_2"),), twice) == (b"", False, "req_1")
