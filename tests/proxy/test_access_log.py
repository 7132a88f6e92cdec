"""The access log: one line for each request, whatever became of it, with nothing secret in it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from gateway import access_lines, access_log
from tests.kit.playbook import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook

FIELDS = [
    *("time", "id", "token", "target", "method", "path", "status", "gateway_ms", "upstream_ms"),
    *("bytes_in", "bytes_out", "error", "trace"),
]
TRACE = b"0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = b"traceparent: 00-" + TRACE + b"-b7ad6b7169203331-01"


@pytest.fixture
def logging(make_play: Callable[..., Playbook]) -> Playbook:
    return make_play(access_log="json")


def lines(play: Playbook) -> list[dict[str, Any]]:
    play.pass_time(0.25)
    found = [json.loads(line) for line in play.logged.read()]
    for one in found:
        assert list(one) == FIELDS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"])
    return found


def line(play: Playbook) -> dict[str, Any]:
    (one,) = lines(play)
    return one


def passes(play: Playbook, *fields: bytes, target: bytes = b"/api/x", body: bytes = b"abc") -> None:
    play.client.sends(play.request(b"POST", target, *fields, body=body))
    play.upstream.request()
    play.upstream.answers(b"hello")
    assert play.client.answer().status == 200


def test_a_request_that_passed(logging: Playbook) -> None:
    passes(logging, target=b"/api/models?key=secret-in-a-query")
    one = line(logging)
    token_id = logging.admission.authenticate(logging.token, 0).id
    assert (one["token"], one["target"]) == (token_id, "api")
    assert (one["method"], one["path"], one["status"]) == ("POST", "/api/models", 200)
    assert (one["bytes_in"], one["bytes_out"], one["error"], one["trace"]) == (3, 5, None, None)
    assert 0 < one["gateway_ms"] < 1000
    assert 0 <= one["upstream_ms"] < 1000


def test_there_is_none_unless_it_is_asked_for(play: Playbook) -> None:
    passes(play)
    play.pass_time(1)
    assert play.logged.read() == []


def test_lines_leave_together_a_tenth_of_a_second_later(logging: Playbook) -> None:
    for _ in range(3):
        passes(logging)
    assert logging.logged.read() == []
    assert len(lines(logging)) == 3


def test_of_very_many_some_leave_at_once(logging: Playbook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_lines, "MAX_BATCH", 2)
    for _ in range(3):
        passes(logging)
    assert len(logging.logged.read()) == 2


@pytest.mark.parametrize("name", [b"X-Request-Id", b"x-request-id", b"X-REQUEST-ID"])
def test_a_request_keeps_the_id_that_its_client_gave_it(logging: Playbook, name: bytes) -> None:
    for number in range(4):  # the later ones are read by their openings
        passes(logging, name + b": req-%d/a.b:c" % number)
    assert [one["id"] for one in lines(logging)] == [f"req-{number}/a.b:c" for number in range(4)]


@pytest.mark.parametrize("value", [b"", b'a"b', b"a b", b"x" * 129, b"\xe9"])
def test_an_id_that_is_odd_is_not_taken(logging: Playbook, value: bytes) -> None:
    passes(logging, b"X-Request-Id: " + value)
    passes(logging, b"X-Request-Id: good")
    odd, good = lines(logging)
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", odd["id"])
    assert good["id"] == "good"


def test_made_ids_are_all_different(logging: Playbook) -> None:
    for _ in range(20):
        passes(logging)
    assert len({one["id"] for one in lines(logging)}) == 20


def test_the_trace_id_stands_in_the_line_and_traceparent_passes_through(logging: Playbook) -> None:
    for _ in range(3):
        logging.client.sends(logging.request(b"GET", b"/api/x", TRACEPARENT, b"tracestate: a=b"))
        sent = logging.upstream.request()
        assert sent.value(b"traceparent") == TRACEPARENT.removeprefix(b"traceparent: ")
        assert sent.value(b"tracestate") == b"a=b"
        logging.upstream.answers()
        logging.client.answer()
    assert [one["trace"] for one in lines(logging)] == [TRACE.decode()] * 3


@pytest.mark.parametrize(
    "value",
    [
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        b"00-" + TRACE + b"-0000000000000000-01",
        b"ff-" + TRACE + b"-b7ad6b7169203331-01",
        b"00-" + TRACE[1:] + b"-b7ad6b7169203331-01",
        b"00-" + TRACE + b"-b7ad6b7169203331-01-more",
        b"ff-" + TRACE + b"-b7ad6b7169203331-01-more",
        b"01-" + TRACE + b"-b7ad6b7169203331-01more",
        b"00-" + TRACE.replace(b"0", b"-") + b"-b7ad6b7169203331-01",
        b"00-" + b"g" + TRACE[1:] + b"-b7ad6b7169203331-01",
        b"nonsense",
        b"---",
        b"",
    ],
)
def test_a_traceparent_that_is_none_is_not_logged_and_passes_all_the_same(logging: Playbook, value: bytes) -> None:
    logging.client.sends(logging.request(b"GET", b"/api/x", b"traceparent: " + value))
    assert logging.upstream.request().value(b"traceparent") == value
    logging.upstream.answers()
    logging.client.answer()
    assert line(logging)["trace"] is None


def test_a_later_versions_traceparent_may_have_more(logging: Playbook) -> None:
    passes(logging, b"Traceparent: 01-" + TRACE.upper() + b"-b7ad6b7169203331-01-more")
    assert line(logging)["trace"] == TRACE.decode()


def test_ids_are_found_wherever_they_are_and_however_long_what_is_before_them(logging: Playbook) -> None:
    for number in range(12):
        other = b"X-Other: " + b"y" * (number % 4)
        passes(logging, other, b"X-Request-Id: r%d" % (10 ** (number % 3)), TRACEPARENT)
    found = [(one["id"], one["trace"]) for one in lines(logging)]
    assert found == [(f"r{10 ** (number % 3)}", TRACE.decode()) for number in range(12)]


def test_a_field_whose_value_looks_like_one_is_none(logging: Playbook) -> None:
    for _ in range(4):
        passes(logging, b"X-Note: X-Request-Id: forged")
    assert not any("forged" in one["id"] for one in lines(logging))


def test_a_refusal_has_its_code(make_play: Callable[..., Playbook]) -> None:
    play = make_play(access_log="json", rate_limit="1/hour")
    passes(play)
    play.client.sends(play.request(b"GET", b"/api/x", b"X-Request-Id: mine"))
    play.client.problem(429, "rate_limited")
    _, refused = lines(play)
    assert (refused["status"], refused["error"], refused["upstream_ms"]) == (429, "rate_limited", 0)
    assert (refused["id"], refused["token"] is None) == ("mine", False)


def test_who_has_no_token_has_a_line(logging: Playbook) -> None:
    logging.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer not-a-token\r\n\r\n")
    logging.client.problem(401, "token_invalid")
    one = line(logging)
    assert (one["status"], one["error"], one["token"], one["target"]) == (401, "token_invalid", None, "api")


def test_what_cannot_be_read_has_a_line(logging: Playbook) -> None:
    logging.client.sends(b"nonsense\r\n\r\n")
    one = line(logging)
    assert (one["status"], one["error"], one["method"], one["path"]) == (400, "bad_request", None, None)


def test_the_gateways_own_endpoints_have_lines(logging: Playbook) -> None:
    logging.client.sends(logging.request(b"GET", b"/healthz?x"))
    size = len(logging.client.answer().body)
    logging.client.sends(b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n")
    logging.client.problem(404, "not_found")
    fine, missing = lines(logging)
    assert (fine["path"], fine["status"], fine["bytes_out"], fine["target"]) == ("/healthz", 200, size, None)
    assert (missing["path"], missing["status"], missing["error"]) == ("/nowhere", 404, "not_found")


def test_upstream_trouble_has_its_time(logging: Playbook) -> None:
    logging.client.sends(logging.request(b"GET", b"/api/x"))
    logging.pass_time(25)
    logging.client.problem(504, "upstream_timeout")
    one = line(logging)
    assert (one["status"], one["error"]) == (504, "upstream_timeout")
    assert one["upstream_ms"] > 0


def test_a_client_that_left(logging: Playbook) -> None:
    logging.client.sends(logging.request(b"GET", b"/api/x"))
    logging.upstream.request()
    logging.client.resets()
    client = logging.connect()
    client.sends(logging.request(b"GET", b"/api/x"))
    logging.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
    client.resets()
    before, amid = lines(logging)
    assert (before["status"], before["error"], before["bytes_out"]) == (499, "client_gone", 0)
    assert (amid["status"], amid["error"], amid["bytes_out"]) == (200, "client_gone", 2)


def test_an_answer_that_was_cut(logging: Playbook) -> None:
    logging.client.sends(logging.request(b"GET", b"/api/x"))
    logging.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
    logging.upstream.resets()
    assert (line(logging) | {"time": "", "id": ""})["error"] == "upstream_cut"


def test_a_tunnel_has_a_line_at_its_end(logging: Playbook) -> None:
    logging.client.sends(logging.request(b"GET", b"/api/x", b"Connection: Upgrade", b"Upgrade: websocket"))
    logging.upstream.request()
    logging.upstream.sends(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc")
    assert lines(logging) == []
    logging.client.resets()
    one = line(logging)
    assert (one["status"], one["bytes_out"], one["error"]) == (101, 3, None)


def test_odd_bytes_in_a_path_cannot_break_a_line(logging: Playbook) -> None:
    passes(logging, target=b'/api/a"b\\c,"status":200')
    assert line(logging)["path"] == '/api/a"b\\c,"status":200'


def test_a_url_is_logged_by_its_path(logging: Playbook) -> None:
    logging.client.sends(b"GET http://user:pass-word@api.test:8080/v1/x?q HTTP/1.1\r\nHost: api.test:8080\r\n\r\n")
    logging.client.head()
    text = "".join(json.dumps(one) for one in lines(logging))
    assert "pass-word" not in text
    assert "?q" not in text


def test_a_url_within_a_path_is_part_of_it(logging: Playbook) -> None:
    passes(logging, target=b"/api/fetch/https://example.com/page")
    assert line(logging)["path"] == "/api/fetch/https://example.com/page"


@pytest.mark.parametrize(
    ("method", "target"),
    [(b"GET", b"/api/" + b'\\"' * 3000), (b"G" * 6000, b"/api/x"), (b"G" * 3000, b"/" + b'"' * 3000)],
)
def test_a_line_is_never_longer_than_a_pipe_takes_in_one_piece(
    make_play: Callable[..., Playbook], method: bytes, target: bytes
) -> None:
    for style in ("json", "common"):
        play = make_play(access_log=style)
        play.client.sends(play.request(method, target, b"X-Request-Id: " + b"i" * 128, TRACEPARENT))
        play.client.resets()
        play.pass_time(0.25)
        (one,) = play.logged.read()
        assert len(one) < access_log.ATOMIC_BYTES
        assert "..." in one


@pytest.mark.parametrize("place", [b"/admin/tokens/%b", b"/api/%b/x", b"/api/x;key=%b"])
def test_a_token_in_a_path_is_left_out(make_play: Callable[..., Playbook], place: bytes) -> None:
    for style in ("json", "common"):
        play = make_play(access_log=style)
        play.client.sends(play.request(b"DELETE", place % play.token))
        play.pass_time(0.25)
        play.client.resets()
        play.pass_time(0.25)
        (one,) = play.logged.read()
        assert play.token.decode() not in one
        assert (place % b"gw_***").decode() in one


def test_no_secret_is_in_it(make_play: Callable[..., Playbook]) -> None:
    play = make_play(access_log="json", target_api_auth="header:X-Request-Id", admin_key="k" * 32)
    passes(play)
    play.client.sends(b"GET /admin/tokens HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + b"k" * 32 + b"\r\n\r\n")
    play.client.answer()
    text = "".join(json.dumps(one) for one in lines(play))
    for secret in (KEY, play.token.decode(), "k" * 32):
        assert secret not in text


def test_the_common_format(make_play: Callable[..., Playbook]) -> None:
    play = make_play(access_log="common")
    passes(play, target=b'/api/a"b?secret')
    play.connect().sends(b"nonsense\r\n\r\n")
    play.pass_time(0.25)
    first, second = play.logged.read()
    token_id = play.admission.authenticate(play.token, 0).id
    moment = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\]"
    assert re.fullmatch(rf'127\.0\.0\.1 - {token_id} {moment} "POST /api/a\\"b HTTP/1\.1" 200 5', first)
    assert re.fullmatch(rf'127\.0\.0\.1 - - {moment} "-" 400 0', second)


def test_what_nobody_takes_is_dropped_and_counted(logging: Playbook, caplog: pytest.LogCaptureFixture) -> None:
    logging.logged.takes = False
    for _ in range(3):
        passes(logging)
        logging.pass_time(0.25)
    assert logging.metrics.nowhere.totals["log_lines_dropped"] == 3
    assert caplog.text.count("1 lines of the access log were dropped: stdout is not read fast enough") == 1
    logging.logged.takes = True
    passes(logging)
    assert len(lines(logging)) == 1


def test_a_stop_hands_over_the_rest(logging: Playbook) -> None:
    passes(logging)
    assert logging.context.access_log is not None
    logging.context.access_log.flush()
    assert len(logging.logged.read()) == 1
