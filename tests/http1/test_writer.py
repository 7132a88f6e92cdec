"""The gateway's own answers, byte by byte."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from gateway import errors
from gateway.errors import GatewayError, MethodNotAllowed, RateLimited
from gateway.http1.writer import answer, error_fields, http_date, problem, refusal

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


def test_a_target_that_is_out_is_a_503_with_the_time_to_come_back() -> None:
    for seconds, words in ((1, "a second"), (30, "30 seconds")):
        error = errors.UpstreamShut(seconds)
        assert (error.status, error.code) == (503, "upstream_unreachable")
        assert words in check_problem(error, "api_error")["detail"]
        assert fields_of(error)["Retry-After"] == str(seconds)


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


@pytest.mark.parametrize("wait_us", [-5, 1, 30_500_000, 58_462_001, 60_000_000, 60_000_001, 86_400_000_000])
@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_a_wait_is_stretched_upward_by_a_twentieth_at_most_and_not_beyond_what_sdks_obey(
    wait_us: int, jitter: float
) -> None:
    error = RateLimited("minute", 60, 60, wait_us)
    fields = dict(error_fields(error, jitter=jitter))
    seconds, milliseconds = int(fields["Retry-After"]), int(fields["retry-after-ms"])
    assert wait_us <= milliseconds * 1000 <= max(wait_us, 0) * 1.05 + 1000
    assert 0 <= seconds * 1000 - milliseconds < 1000
    assert int(fields["X-RateLimit-Reset"]) == -(-wait_us // 1_000_000)
    assert (max(seconds * 1000, milliseconds) > 60_000) is ("x-should-retry" in fields) is (wait_us > 60_000_000)


def test_those_who_are_refused_together_do_not_return_together() -> None:
    error = RateLimited("minute", 60, 60, 30_000_000)
    told = {dict(error_fields(error, jitter=part / 10))["retry-after-ms"] for part in range(10)}
    assert len(told) == 10


@pytest.mark.parametrize("kind", [RateLimited, errors.ConcurrencyLimited])
@pytest.mark.parametrize("wait_us", [1_000_000, 61_000_000])
@pytest.mark.parametrize("keep_alive", [True, False])
def test_the_ready_made_refusal_is_the_one_that_would_be_made(
    kind: type[RateLimited], wait_us: int, *, keep_alive: bool
) -> None:
    error = kind("minute", 60, 60, wait_us)
    made = {
        head_only: refusal(
            error, jitter=0.5, date="NOW", limit_lines=b"\r\nA: b\r\nC: d", keep_alive=keep_alive, head_only=head_only
        )
        for head_only in (True, False)
    }
    fields = [*error_fields(error, jitter=0.5), ("Date", "NOW")]
    whole = answer(429, fields, problem(error), keep_alive=keep_alive, limit_lines=b"\r\nA: b\r\nC: d")
    assert made[False].partition(b"\r\n\r\n")[2] == problem(error)
    assert sorted(made[False].split(b"\r\n")) == sorted(whole.split(b"\r\n"))
    assert made[True] == made[False].removesuffix(problem(error))


def test_a_refused_place_in_flight_says_which_limit() -> None:
    error = errors.ConcurrencyLimited("global-concurrency", 5, 0, 1_000_000)
    assert (error.status, error.code) == (429, "concurrency_limited")
    assert check_problem(error, "rate_limit_error")["detail"] == (
        "The limit 'global-concurrency' allows 5 requests in flight, and so many are; ask again in 1.0 seconds."
    )


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
    whole = answer(429, [], b"", keep_alive=True, limit_lines=b"\r\nRateLimit-Policy: x\r\nRateLimit: y")
    assert whole.endswith(b"\r\nRateLimit-Policy: x\r\nRateLimit: y\r\n\r\n")


@pytest.mark.parametrize("moment_s", [0, 951_782_400, 1_709_164_800, 1_735_689_599, 4_102_444_800])
def test_a_date(moment_s: int) -> None:
    text = http_date(time.gmtime(moment_s))
    assert len(text) == 29
    assert text.endswith(" GMT")
    assert parsedate_to_datetime(text).timestamp() == moment_s
    assert text[:3] == parsedate_to_datetime(text).strftime("%a")


def over_budget(wait_us: int | None, reset: str | None = "2026-11-27T00:00:00Z") -> errors.BudgetExceeded:
    return errors.BudgetExceeded(
        "One sentence.", budget="day-USD", unit="USD", used=4.98, limit=5, retry_after_us=wait_us, reset=reset
    )


def test_a_budgets_refusal_in_the_shape_of_openais_api() -> None:
    for target in (b"/api/v1/chat/completions", b"/api/v1/threads/x/messages", b"/api/v1/messages_x", b""):
        assert json.loads(problem(over_budget(1), target)) == {
            "type": "urn:rate-limiting-gateway:budget_exceeded",
            "title": "Budget exceeded",
            "status": 429,
            "detail": "One sentence.",
            "budget": "day-USD",
            "unit": "USD",
            "used": 4.98,
            "limit": 5,
            "reset": "2026-11-27T00:00:00Z",
            "error": {
                "message": "One sentence.",
                "type": "insufficient_quota",
                "code": "budget_exceeded",
                "param": None,
            },
        }


def test_and_of_anthropics_on_its_paths() -> None:
    for target in (b"/api/v1/messages", b"/x/v1/messages?beta=true", b"http://h/v1/messages/batches"):
        members = json.loads(problem(over_budget(None, None), target))
        assert (members["type"], members["error"]["type"]) == ("error", "rate_limit_error")
        assert (members["error"]["message"], members["error"]["code"]) == ("One sentence.", "budget_exceeded")
        assert (members["status"], members["reset"]) == (429, None)


@pytest.mark.parametrize(
    ("wait_us", "jitter", "reset", "told"),
    [
        (1_234_567, 0.0, "2", {"Retry-After": "2", "retry-after-ms": "1235"}),
        (10_000_000, 1.0, "10", {"Retry-After": "11", "retry-after-ms": "10500"}),
        (60_000_000, 1.0, "60", {"Retry-After": "60", "retry-after-ms": "60000"}),
        (60_000_001, 0.0, "61", {"Retry-After": "61", "retry-after-ms": "60001", "x-should-retry": "false"}),
        (
            864_000_000_000,
            1.0,
            "864000",
            {"Retry-After": "864060", "retry-after-ms": "864060000", "x-should-retry": "false"},
        ),
        (None, 1.0, None, {"x-should-retry": "false"}),
    ],
)
def test_a_budgets_refusal_says_when_to_come_back_where_that_is_soon(
    wait_us: int | None, jitter: float, reset: str | None, told: dict[str, str]
) -> None:
    if reset is not None:
        told["X-RateLimit-Reset"] = reset
    assert dict(error_fields(over_budget(wait_us), jitter=jitter)) == {
        "RateLimit": '"day-USD";r=0' + ("" if reset is None else f";t={reset}"),
        "X-RateLimit-Limit": "5",
        "X-RateLimit-Remaining": "0",
        "Content-Type": "application/problem+json",
        "X-Gateway-Error": "budget_exceeded",
        "Cache-Control": "no-store",
        **told,
    }
