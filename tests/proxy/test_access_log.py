"""The access log: one line for each request, whatever became of it, with nothing secret in it."""

from __future__ import annotations

import json
import re
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from gateway import access_lines, access_log
from gateway.http1 import writer
from gateway.http1.message import RequestHead
from gateway.http1.parser import RequestParser
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


@pytest.mark.parametrize("name", [b"X-Request-Id", b"x-request-id", b"X-REQUEST-ID"])
def test_a_request_keeps_the_id_that_its_client_gave_it(logging: Playbook, name: bytes) -> None:
    for number in range(12):  # the later ones are read as the ones before
        passes(logging, name + b": req-%d/a.b:c" % number)
    assert [one["id"] for one in lines(logging)] == [f"req-{number}/a.b:c" for number in range(12)]


@pytest.mark.parametrize("value", [b"", b'a"b', b"a b", b"x" * 129, b"\xe9"])
def test_an_id_that_is_odd_is_not_taken(logging: Playbook, value: bytes) -> None:
    passes(logging, b"X-Request-Id: " + value)
    passes(logging, b"X-Request-Id: good")
    odd, good = lines(logging)
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", odd["id"])
    assert good["id"] == "good"


@pytest.mark.parametrize(
    ("sent", "trace", "logged"),
    [
        (b"good!2", TRACE, (None, TRACE)),
        (b'goo"02', TRACE, (None, TRACE)),
        (b"good\\2", TRACE, (None, TRACE)),
        (b"good\xe92", TRACE, (None, TRACE)),
        (b"good02", TRACE.upper(), (b"good02", TRACE)),
        (b"good02", b"g" + TRACE[1:], (b"good02", None)),
        (b"good02", TRACE[:-1] + b"-", (b"good02", None)),
        (b"good02", b"0" * 32, (b"good02", None)),
        (b"good02", b"0" * 31 + b"1", (b"good02", b"0" * 31 + b"1")),
    ],
)
def test_an_odd_one_among_many_is_told_from_them(
    logging: Playbook, sent: bytes, trace: bytes, logged: tuple[bytes | None, bytes | None]
) -> None:
    traceparent = b"traceparent: 00-%b-%b-01"
    for number in range(10, 18):
        passes(logging, b"X-Request-Id: good%d" % number, traceparent % (TRACE, b"b7ad6b71692033%d" % number))
    passes(logging, b"X-Request-Id: " + sent, traceparent % (trace, b"b7ad6b7169203302"))
    passes(logging, b"X-Request-Id: good03", traceparent % (TRACE, b"0" * 16))
    passes(logging, b"X-Request-Id: good04", traceparent % (TRACE, b"b7ad6b71692033-4"))
    passes(logging, b"X-Request-Id: good05", b"traceparent: ff-" + TRACE + b"-b7ad6b7169203305-01")
    passes(logging, b"X-Request-Id: good06", traceparent % (TRACE, b"b7ad6b7169203306"))
    found = [(one["id"], one["trace"]) for one in lines(logging)]
    told, good = [None if one is None else one.decode() for one in logged], TRACE.decode()
    assert found[:8] == [(f"good{number}", good) for number in range(10, 18)]
    assert [found[8][0] if told[0] else None, found[8][1]] == told
    assert (told[0] or "-") in found[8][0]
    assert found[9:] == [("good03", None), ("good04", None), ("good05", None), ("good06", good)]


@pytest.mark.parametrize(
    ("field", "logged"),
    [
        (b"X-Request-Id: always\r\nX-Other: %02d", "always"),
        (b"X-Request-Id: first%02d\r\nx-request-id: second", "first%02d"),
        (b"X-Request-Id: same\r\nx-request-id: second%02d", "same"),
        (b"X-Request-Id: " + b"x" * 127 + b"%02d", None),
        (b"X-Request-Id: with blank %02d", None),
        (b"X-Request-Id: %02d\r\ntraceparent: 00-" + TRACE + b"-b7ad6b7169203331-01-more", "%02d"),
    ],
)
def test_ids_of_many_are_those_that_one_alone_would_have(logging: Playbook, field: bytes, logged: str | None) -> None:
    for number in range(10):
        passes(logging, field % number)
    for number, one in enumerate(lines(logging)):
        assert one["trace"] is None
        if logged is None:
            assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", one["id"])
        else:
            assert one["id"] == (logged % number if "%" in logged else logged)


def test_requests_alike_are_told_apart_by_all_that_differs(logging: Playbook) -> None:
    for number in range(24):
        body, answer = b"x" * (10 + number % 3), b"y" * (5 + number)
        target = b"/api/a%20%d" if number < 12 else b"/api/b"
        logging.client.sends(logging.request(b"POST", target, b"X-Request-Id: %02d" % number, body=body))
        logging.upstream.request()
        logging.upstream.answers(answer, b"201 Created" if number % 5 == 4 else b"200 OK")
        logging.client.answer()
    found = [(one["path"], one["status"], one["bytes_in"], one["bytes_out"]) for one in lines(logging)]
    assert found == [
        ("/api/a%20%d" if number < 12 else "/api/b", 201 if number % 5 == 4 else 200, 10 + number % 3, 5 + number)
        for number in range(24)
    ]


@pytest.mark.parametrize(("own_ms", "upstream_ms"), [(0.071, 412.771), (9.999, 0), (10, 5), (1234.5, 67890.123)])
def test_times_of_any_length_are_read_alike(own_ms: float, upstream_ms: float) -> None:
    parser, made, head = RequestParser(), access_lines.JsonLines(lambda: 0.0), b"GET /x HTTP/1.1\r\nHost: h\r\nA: %d"
    for number in range(8):
        opening = parser.parse(head % number).opening
    assert opening is not None
    timing = writer.TIMING % (own_ms, upstream_ms)
    taken = []
    for number in range(4):
        found = opening.read(head % number + b"\r\n\r\n")
        assert found is not None
        taken.append(made.again(opening, "api", 200, timing, 0, 0))
        if not taken[-1]:
            made.add(access_lines.Record(found[0], opening, "t", "api", "", 200, 0, 0, timing, None))
    assert taken == [False, False, True, True]
    told = [json.loads(line) for line in made.take()[0].splitlines()]
    assert [(one["gateway_ms"], one["upstream_ms"]) for one in told] == [(own_ms, upstream_ms)] * 4


def test_made_ids_are_all_different(logging: Playbook) -> None:
    for _ in range(20):
        passes(logging)
    assert len({one["id"] for one in lines(logging)}) == 20


def test_the_trace_id_stands_in_the_line_and_traceparent_passes_through(logging: Playbook) -> None:
    for _ in range(10):
        logging.client.sends(logging.request(b"GET", b"/api/x", TRACEPARENT, b"tracestate: a=b"))
        sent = logging.upstream.request()
        assert sent.value(b"traceparent") == TRACEPARENT.removeprefix(b"traceparent: ")
        assert sent.value(b"tracestate") == b"a=b"
        logging.upstream.answers()
        logging.client.answer()
    assert [one["trace"] for one in lines(logging)] == [TRACE.decode()] * 10


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
    traces = [b"%032x" % (number * 2**99 + 7) for number in range(24)]
    for number, trace in enumerate(traces):
        other = b"X-Other: " + b"y" * (number % 4)
        request_id, traceparent = b"X-Request-Id: r%d" % (10 ** (number % 3)), b"traceparent: 00-%b-0000000000000001-01"
        passes(logging, other, request_id, traceparent % trace)
    found = [(one["id"], one["trace"]) for one in lines(logging)]
    assert found == [(f"r{10 ** (number % 3)}", trace.decode()) for number, trace in enumerate(traces)]


def test_a_field_whose_value_looks_like_one_is_none(logging: Playbook) -> None:
    for number in range(10):
        passes(logging, b"X-Note: X-Request-Id: forged%d" % number)
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
    stalled = logging.connect()
    stalled.sends(logging.request(b"GET", b"/api/x"))
    stalled.stops_reading()
    logging.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"x" * 100_000)
    logging.pass_time(35)
    before, amid, unread = lines(logging)
    assert (before["status"], before["error"], before["bytes_out"]) == (499, "client_gone", 0)
    assert (amid["status"], amid["error"], amid["bytes_out"]) == (200, "client_gone", 2)
    assert (unread["status"], unread["error"], unread["bytes_out"]) == (200, "client_gone", 100_000)


def test_who_is_cut_off_by_a_stop_has_not_left(logging: Playbook) -> None:
    logging.client.sends(logging.request(b"GET", b"/api/x"))
    logging.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
    logging.context.closed = True
    for connection in tuple(logging.context.connections):
        connection.abort()
    logging.pass_time(0.25)
    assert (line(logging) | {"time": "", "id": ""})["error"] == "draining"


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


def test_long_paths_are_forgotten_with_their_lines() -> None:
    """Else anybody, with a token or without, could leave a thousand of 16 kB here."""
    made, timing = access_lines.JsonLines(lambda: 0.0), writer.TIMING % (1, 0)
    made.add(access_lines.Record(None, None, None, None, "", 400, 0, 0, timing, "bad_request"))
    made.take()
    tracemalloc.start()
    try:
        for number in range(50):
            head = RequestHead(b"GET", b"/%d/" % number + b"x" * 16_000, 1)
            made.add(access_lines.Record(head, None, None, None, "", 404, 0, 0, timing, "not_found"))
            made.take()
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


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


def test_what_cannot_be_written_is_counted_and_told_of_with_the_cause(
    logging: Playbook, caplog: pytest.LogCaptureFixture
) -> None:
    logging.logged.failed, logging.logged.problem = 7, "No space left on device"
    for _ in range(2):
        passes(logging)
        logging.pass_time(0.25)
    assert logging.metrics.nowhere.totals["log_lines_dropped"] == 7
    said = "7 lines of the access log were dropped: stdout cannot be written to: No space left on device"
    assert caplog.text.count(said) == caplog.text.count("dropped") == 1


def test_a_stop_hands_over_the_rest(logging: Playbook) -> None:
    passes(logging)
    assert logging.context.access_log is not None
    logging.context.access_log.flush()
    assert len(logging.logged.read()) == 1
