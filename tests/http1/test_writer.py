"""The gateway's own answers, byte by byte."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from gateway import errors
from gateway.errors import GatewayError, MethodNotAllowed, RateLimited
from gateway.http1.writer import answer, error_fields, http_date, problem

# Status and code of every error, as INTERFACE's table has them.
TABLE: list[tuple[type[GatewayError], int, str, str]] = [
    (errors.BadRequest, 400, "bad_request", "invalid_request_error"),
    (errors.RequestTimeout, 408, "request_timeout", "invalid_request_error"),
    (errors.BodyTooLarge, 413, "body_too_large", "invalid_request_error"),
    (errors.TargetTooLong, 414, "target_too_long", "invalid_request_error"),
    (errors.FieldsTooLarge, 431, "fields_too_large", "invalid_request_error"),
    (errors.HttpVersionUnsupported, 505, "bad_request", "api_error"),
    (errors.TokenMissing, 401, "token_missing", "authentication_error"),
    (errors.TokenInvalid, 401, "token_invalid", "authentication_error"),
    (errors.TokenExpired, 401, "token_expired", "authentication_error"),
    (errors.NotAllowed, 403, "not_allowed", "permission_error"),
    (errors.NotFound, 404, "not_found", "not_found_error"),
    (errors.NotImplementedHere, 501, "not_implemented", "api_error"),
    (errors.UpstreamUnreachable, 502, "upstream_unreachable", "api_error"),
    (errors.UpstreamProtocolError, 502, "upstream_protocol", "api_error"),
    (errors.UpstreamTimeout, 504, "upstream_timeout", "api_error"),
    (errors.StoreUnavailable, 503, "store_unavailable", "api_error"),
    (errors.Draining, 503, "draining", "api_error"),
]


def fields_of(error: GatewayError) -> dict[str, str]:
    fields = error_fields(error)
    assert len({name.lower() for name, _ in fields}) == len(fields)
    return dict(fields)


def check_problem(error: GatewayError, sdk_type: str) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(problem(error))
    assert members == {
        "type": members["type"],
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "error": {"message": error.detail, "type": sdk_type, "code": error.code, "param": None},
    }
    return members


@pytest.mark.parametrize(("kind", "status", "code", "sdk_type"), TABLE)
def test_every_error_as_the_table_has_it(kind: type[GatewayError], status: int, code: str, sdk_type: str) -> None:
    error = kind("One sentence.")
    assert (error.status, error.code) == (status, code)
    assert check_problem(error, sdk_type)["detail"] == "One sentence."
    fields = fields_of(error)
    assert fields["Content-Type"] == "application/problem+json"
    assert fields["X-Gateway-Error"] == code
    assert ("WWW-Authenticate" in fields) is (status == 401)
    assert ("Retry-After" in fields) is (status == 503)
    whole = answer(status, error_fields(error), problem(error), keep_alive=False)
    assert whole.startswith(b"HTTP/1.1 %d " % status)


def test_an_error_without_a_sentence_says_its_title() -> None:
    assert errors.NotFound().detail == "Not found"


def test_a_401_challenges_as_rfc_6750_has_it() -> None:
    assert fields_of(errors.TokenMissing())["WWW-Authenticate"] == 'Bearer realm="gateway"'
    for kind in (errors.TokenInvalid, errors.TokenExpired):
        assert fields_of(kind())["WWW-Authenticate"].startswith('Bearer realm="gateway", error="invalid_token", ')


def test_a_405_says_what_is_allowed() -> None:
    error = MethodNotAllowed("GET, HEAD")
    assert (error.status, error.code) == (405, "method_not_allowed")
    assert fields_of(error)["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("wait_us", "seconds", "milliseconds", "storm"),
    [
        (1, "1", "1", False),
        (999_999, "1", "1000", False),
        (1_000_000, "1", "1000", False),
        (1_000_001, "2", "1001", False),
        (60_000_000, "60", "60000", False),
        (60_000_001, "61", "60001", True),
        (86_400_000_000, "86400", "86400000", True),
    ],
)
def test_a_429_says_when_to_come_back(wait_us: int, seconds: str, milliseconds: str, *, storm: bool) -> None:
    error = RateLimited("minute", 60, 60, wait_us)
    assert (error.status, error.code) == (429, "rate_limited")
    check_problem(error, "rate_limit_error")
    fields = fields_of(error)
    assert fields["Retry-After"] == fields["X-RateLimit-Reset"] == seconds
    assert fields["retry-after-ms"] == milliseconds
    assert (fields["X-RateLimit-Limit"], fields["X-RateLimit-Remaining"]) == ("60", "0")
    assert fields.get("x-should-retry") == ("false" if storm else None)


def test_an_answer() -> None:
    fields = [("A", "b"), ("C", "d")]
    assert answer(200, fields, b"hi", keep_alive=True) == (
        b"HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi"
    )
    assert answer(404, [], b"", keep_alive=False) == (
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def test_an_answer_to_head_has_the_length_of_the_body_that_it_has_not() -> None:
    whole = answer(200, [], b"hi", keep_alive=True, head_only=True)
    assert whole.endswith(b"\r\n\r\n")
    assert b"Content-Length: 2\r\n" in whole


def test_an_answer_with_limit_lines() -> None:
    whole = answer(429, [], b"", keep_alive=True, limit_lines=b"RateLimit-Policy: x\r\nRateLimit: y")
    assert whole.endswith(b"\r\nRateLimit-Policy: x\r\nRateLimit: y\r\n\r\n")


@pytest.mark.parametrize("moment_s", [0, 951_782_400, 1_709_164_800, 1_735_689_599, 4_102_444_800])
def test_a_date(moment_s: int) -> None:
    text = http_date(time.gmtime(moment_s))
    assert len(text) == 29
    assert text.endswith(" GMT")
    assert parsedate_to_datetime(text).timestamp() == moment_s
    assert text[:3] == parsedate_to_datetime(text).strftime("%a")
