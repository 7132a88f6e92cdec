"""What became of requests, as `/usage` and `/admin/usage` tell it: every request is counted, once, as what it was."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gateway import endpoints
from gateway.proxy import events
from gateway.tally import MAX_LISTED
from tests.kit.playbook import Incomplete
from tests.kit.wire import read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook

GET = (b"GET", b"/api/x")
RETRY = b"x-stainless-retry-count: 1"
NOTHING = {"p50": None, "p90": None, "p99": None}
ADMIN_KEY = b"an-admin-key-of-32-characters-ok"


def ask(play: Playbook, target: bytes, *lines: bytes) -> dict[str, Any]:
    client = play.connect()
    client.sends(play.request(b"GET", target, *lines))
    answer = client.answer()
    assert (answer.status, answer.value(b"cache-control")) == (200, b"no-store")
    members: dict[str, Any] = json.loads(answer.body)
    return members


def overview(play: Playbook) -> dict[str, Any]:
    client = play.connect()
    client.sends(b"GET /admin/usage HTTP/1.1\r\nHost: localhost\r\n\r\n")
    members: dict[str, Any] = json.loads(client.answer().body)
    return members


def counts(told: dict[str, Any]) -> dict[str, Any]:
    """Return the counts that are not zero."""
    names = ("requests", "passed", "refused", "upstream_errors", "failed", "retries", "in_flight")
    assert {*names, "bytes_in", "bytes_out", "latency_ms"} <= told.keys()
    over = told["passed"] + sum(told["refused"].values()) + told["upstream_errors"] + told["failed"]
    assert told["requests"] == over + told["in_flight"], told
    return {name: told[name] for name in names if told[name]}


def everywhere(play: Playbook) -> dict[str, Any]:
    """Return what the token is told, and see that the overview says the same of it, of the target and of all."""
    own = counts(ask(play, b"/usage"))
    told = overview(play)
    (token,) = told["tokens"]
    assert counts(token) == counts(told["targets"]["api"]) == counts(told["totals"]) == own
    return own


def passes(play: Playbook, *lines: bytes, body: bytes = b"") -> None:
    play.client.sends(play.request(b"POST", b"/api/x", *lines, body=body))
    play.upstream.request()
    play.upstream.answers(b"hello")
    assert play.client.answer().status == 200


# --- what is counted as what -----------------------------------------------------------------------------------------


def test_nothing_was_asked_yet(play: Playbook) -> None:
    told = ask(play, b"/usage")
    assert counts(told) == {}
    assert told["latency_ms"] == NOTHING
    assert overview(play)["tokens"] == []


def test_an_answered_request_with_its_bytes_and_its_time(play: Playbook) -> None:
    passes(play, body=b"abc")
    assert everywhere(play) == {"requests": 1, "passed": 1}
    told = ask(play, b"/usage")
    assert (told["bytes_in"], told["bytes_out"]) == (3, 5)
    assert all(0 < told["latency_ms"][name] < 1000 for name in ("p50", "p90", "p99"))


def test_many_requests_within_a_second_are_not_all_kept_one_by_one(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1000000/minute")
    requests = 2 * MAX_LISTED + 100
    longest = 0
    for _ in range(requests):
        passes(play, body=b"abc")
        (tally,) = play.metrics.targets["api"].tallies.values()
        longest = max(longest, len(tally.passed), len(tally.own_s), len(play.metrics.targets["api"].own_s))
    assert longest <= MAX_LISTED
    told = overview(play)["totals"]
    assert counts(told) == {"requests": requests, "passed": requests}
    assert (told["bytes_in"], told["bytes_out"]) == (3 * requests, 5 * requests)
    assert sum(told["latency_histogram_ms"]["counts"]) == requests


def test_two_histograms_tell_how_long_it_took_in_between(play: Playbook) -> None:
    passes(play)
    before = overview(play)["totals"]["latency_histogram_ms"]
    assert before["bounds"] == sorted(before["bounds"])
    assert len(before["counts"]) == len(before["bounds"]) + 1
    passes(play)
    now = overview(play)["totals"]["latency_histogram_ms"]
    grew = [new - old for old, new in zip(before["counts"], now["counts"], strict=True)]
    assert (sum(before["counts"]), sorted(set(grew)), sum(grew)) == (1, [0, 1], 1)


def test_an_error_of_the_apis_own_passes(play: Playbook) -> None:
    play.client.sends(play.request(*GET))
    play.upstream.answers(b"oh", b"500 Internal Server Error")
    assert play.client.answer().status == 500
    assert everywhere(play) == {"requests": 1, "passed": 1}


def test_chunked_bodies_are_counted_without_their_framing(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n"))
    play.client.sends(b"2\r\nde\r\n0\r\n\r\n")
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwxyz\r\n")
    play.upstream.sends(b"0\r\n\r\n")
    assert play.client.answer().body == b"wxyz"
    told = ask(play, b"/usage")
    assert (told["bytes_in"], told["bytes_out"]) == (5, 4)


def test_refusals_by_reason_and_the_retries_among_them(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/hour")
    passes(play)
    for lines in ((), (RETRY,), (RETRY,)):
        play.client.sends(play.request(*GET, *lines))
        play.client.problem(429, "rate_limited")
    play.client.sends(play.request(b"TRACE", b"/api/x"))
    play.client.problem(405, "method_not_allowed")
    told = overview(play)
    own = counts(told["tokens"][0])
    assert own == {"requests": 4, "passed": 1, "refused": {"rate_limited": 3}, "retries": 2}
    assert told["totals"]["refused"] == {"rate_limited": 3, "method_not_allowed": 1}
    assert told["targets"]["api"]["refused"] == told["totals"]["refused"]


def test_who_has_no_token_counts_for_the_target_alone(play: Playbook) -> None:
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    play.client.problem(401, "token_missing")
    told = overview(play)
    assert counts(told["targets"]["api"]) == {"requests": 1, "refused": {"token_missing": 1}}
    assert told["tokens"] == []


def test_what_is_for_no_target_is_in_the_totals_alone(play: Playbook) -> None:
    play.client.sends(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
    play.client.problem(404, "not_found")
    play.connect().sends(b"nonsense\r\n\r\n")
    told = overview(play)
    assert counts(told["totals"]) == {"requests": 2, "refused": {"bad_request": 1, "not_found": 1}}
    assert counts(told["targets"]["api"]) == {}


def test_an_upstream_that_cannot_be_reached(play: Playbook) -> None:
    play.dial_error = ConnectionRefusedError()
    play.client.sends(play.request(*GET, RETRY))
    play.client.problem(502, "upstream_unreachable")
    assert everywhere(play) == {"requests": 1, "upstream_errors": 1, "retries": 1}


def test_an_upstream_that_does_not_answer(play: Playbook) -> None:
    play.client.sends(play.request(*GET))
    play.pass_time(25)
    play.client.problem(504, "upstream_timeout")
    assert everywhere(play) == {"requests": 1, "upstream_errors": 1}


@pytest.mark.parametrize("rest", [b"no chunk\r\n", b""])
def test_an_answer_that_the_upstream_cuts_short(play: Playbook, rest: bytes) -> None:
    play.client.sends(play.request(*GET))
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    if rest:
        play.upstream.sends(rest)
    else:
        play.upstream.resets()
    assert play.client.state == "aborted"
    assert everywhere(play) == {"requests": 1, "upstream_errors": 1}


def test_a_client_that_leaves_before_and_one_that_leaves_in_the_middle(play: Playbook) -> None:
    play.client.sends(play.request(*GET))
    play.upstream.request()
    play.client.resets()
    client = play.connect()
    client.sends(play.request(*GET))
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
    client.resets()
    assert everywhere(play) == {"requests": 2, "passed": 1, "failed": 1}
    assert ask(play, b"/usage")["bytes_out"] == 2


def test_a_client_that_reads_no_more_has_left_and_is_no_error_of_the_upstreams(play: Playbook) -> None:
    play.client.sends(play.request(*GET))
    play.client.stops_reading()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"x" * 100_000)
    play.pass_time(35)
    assert (play.client.state, play.upstream.state) == ("aborted", "aborted")
    assert everywhere(play) == {"requests": 1, "passed": 1}


def test_a_client_that_leaves_while_its_limits_are_checked(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(*GET))
    play.client.resets()
    play.store.decide()
    play.store.holds = False
    assert everywhere(play) == {"requests": 1, "failed": 1}


def test_a_tunnel_is_in_flight_to_its_end_and_its_bytes_are_counted(play: Playbook) -> None:
    play.client.sends(play.request(*GET, b"Connection: Upgrade", b"Upgrade: websocket"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc")
    play.client.sends(b"12345")
    play.upstream.sends(b"de")
    assert everywhere(play) == {"requests": 1, "in_flight": 1}
    play.client.resets()
    assert everywhere(play) == {"requests": 1, "passed": 1}
    told = ask(play, b"/usage")
    assert (told["bytes_in"], told["bytes_out"]) == (5, 5)


def test_what_is_in_flight_is_told_of_and_then_is_over(play: Playbook) -> None:
    play.client.sends(play.request(*GET))
    play.upstream.request()
    assert everywhere(play) == {"requests": 1, "in_flight": 1}
    assert everywhere(play) == {"requests": 1, "in_flight": 1}
    play.upstream.answers()
    assert everywhere(play) == {"requests": 1, "passed": 1}


def test_the_gateways_own_endpoints_count_nothing(play: Playbook) -> None:
    for _ in range(3):
        told = overview(play)
    assert counts(told["totals"]) == {}


# --- the overview ----------------------------------------------------------------------------------------------------


def test_the_overview_has_limits_and_names_and_the_busiest_first(make_play: Callable[..., Playbook]) -> None:
    play = make_play(admin_key=ADMIN_KEY.decode(), rate_limit="60/minute")
    ids = []
    for times, limits in ((1, None), (3, ["5/hour", "1000/day"])):
        token, claims = play.admission.issue(time.time(), name=f"worker-{times}", limits=limits, ttl_s=0)
        play.token = token.encode()
        ids.append(claims.id)
        for _ in range(times):
            passes(play)
    parent = play.admission.authenticate(play.token, time.time())
    play.token = play.admission.issue_child(parent, time.time(), limits=["7/day"])[0].encode()
    passes(play)
    client = play.connect()
    client.sends(b"GET /admin/usage HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + ADMIN_KEY + b"\r\n\r\n")
    told = json.loads(client.answer().body)
    assert told["instances"] == 1
    assert told["at"].endswith("Z")
    busiest, *others = told["tokens"]
    assert (busiest["id"], busiest["name"], busiest["requests"]) == (ids[1], "worker-3", 3)
    assert [(one["name"], one["limit"], one["used"]) for one in busiest["limits"]] == [
        ("hour", 5, 4),
        ("day", 1000, 4),
    ]
    by_name = {one["name"]: one for one in others}
    assert [(one["name"], one["used"]) for one in by_name["worker-1"]["limits"]] == [("minute", 1)]
    child = by_name[None]
    assert child["id"].startswith(ids[1] + ".")
    assert [(one["name"], one["used"]) for one in child["limits"]] == [
        ("day", 1),
        ("parent-hour", 4),
        ("parent-day", 4),
    ]


def test_a_revoked_token_says_so(play: Playbook) -> None:
    passes(play)
    token_id = ask(play, b"/usage")["id"]
    assert overview(play)["tokens"][0]["revoked"] is False
    play.connect().sends(b"DELETE /admin/tokens/" + token_id.encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    (token,) = overview(play)["tokens"]
    assert (token["revoked"], token["limits"], token["passed"]) == (True, [], 1)


def test_the_overview_is_for_admins(make_play: Callable[..., Playbook]) -> None:
    play = make_play(admin_key=ADMIN_KEY.decode())
    play.client.sends(play.request(b"GET", b"/admin/usage"))
    play.client.problem(403, "not_allowed")
    play.client.sends(b"POST /admin/usage HTTP/1.1\r\nHost: localhost\r\n\r\n")
    play.client.problem(405, "method_not_allowed")


# --- streams ---------------------------------------------------------------------------------------------------------


def stream(play: Playbook, target: bytes = b"/admin/usage?stream", version: bytes = b"1.1") -> Client:
    client = play.connect()
    client.sends(play.request(b"GET", target, version=version))
    return client


def read_events(client: Client) -> tuple[list[dict[str, Any]], bool]:
    """Read the events that have come; say whether the stream has ended in good order."""
    data = client.unread
    client.got(data)
    try:
        content, _, _ = read_chunks(data)
        ended = True
    except Incomplete:
        content, _, _ = read_chunks(data + b"0\r\n\r\n")
        ended = False
    pieces = content.decode().split("\n\n")
    assert pieces.pop() == ""
    events = [piece.removeprefix("event: usage\ndata: ") for piece in pieces]
    return [json.loads(event) for event in events], ended


@pytest.mark.parametrize("target", [b"/admin/usage?stream", b"/usage?stream"])
def test_a_stream_tells_the_same_every_second(play: Playbook, target: bytes) -> None:
    client = stream(play, target)
    head = client.head()
    assert head.status == 200
    assert head.value(b"content-type") == b"text/event-stream"
    assert head.value(b"cache-control") == b"no-store"
    ((first,), ended) = read_events(client)
    assert first.keys() == ask(play, target.partition(b"?")[0]).keys()
    passes(play)
    play.pass_time(3)
    told, ended = read_events(client)
    assert [one.get("totals", one)["passed"] for one in told] == [1, 1, 1]
    assert not ended
    client.resets()


def test_an_http_1_0_client_gets_a_stream_without_chunks(play: Playbook) -> None:
    client = stream(play, version=b"1.0")
    assert client.head().values(b"transfer-encoding") == []
    assert client.unread.startswith(b"event: usage\ndata: {")
    play.loop.act(play.context.streams.end)
    assert client.state == "closed"


def test_a_stream_ends_in_good_order_when_the_gateway_stops(play: Playbook) -> None:
    client = stream(play)
    client.head()
    play.context.draining = True
    play.loop.act(play.context.streams.end)
    assert read_events(client)[1]
    assert client.state == "closed"


def test_a_client_that_leaves_ends_its_stream(play: Playbook) -> None:
    client = stream(play)
    client.resets()
    play.pass_time(2)
    assert play.context.streams._open.total() == 0


def test_a_slow_reader_misses_events_and_nothing_piles_up(make_play: Callable[..., Playbook]) -> None:
    play = make_play(idle_timeout="1h")
    client = stream(play)
    client.stops_reading()
    play.pass_time(300)
    waiting = client.transport.get_write_buffer_size()
    play.pass_time(10)
    assert client.transport.get_write_buffer_size() == waiting < 80 * 1024
    client.reads_on()
    client.head()
    before = len(read_events(client)[0])
    assert before < 300
    play.pass_time(2)
    assert len(read_events(client)[0]) == 2
    client.resets()


def test_a_reader_that_takes_nothing_for_long_is_cut_off(make_play: Callable[..., Playbook]) -> None:
    play = make_play(idle_timeout="5s")
    client = stream(play)
    client.stops_reading()
    play.pass_time(300)
    assert client.state == "aborted"


def test_there_are_so_many_streams_at_most(play: Playbook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 2)
    clients = [stream(play) for _ in range(2)]
    one_more = stream(play)
    assert one_more.problem(429, "concurrency_limited").value(b"retry-after") == b"10"
    clients[0].resets()
    assert stream(play).head().status == 200
    play.loop.act(play.context.streams.end)


def test_tokens_leave_room_for_the_admins_streams(play: Playbook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 2)
    for _ in range(2):
        assert stream(play, b"/usage?stream").head().status == 200
        play.token = play.admission.issue(time.time())[0].encode()
    stream(play, b"/usage?stream").problem(429, "concurrency_limited")
    assert stream(play).head().status == 200
    play.loop.act(play.context.streams.end)


def test_one_token_leaves_room_for_the_streams_of_others(play: Playbook) -> None:
    parent = play.admission.authenticate(play.token, time.time())
    child = play.admission.issue_child(parent, time.time())[0].encode()
    first = [stream(play, b"/usage?stream") for _ in range(8)]
    assert all(one.head().status == 200 for one in first)
    stream(play, b"/usage?stream").problem(429, "concurrency_limited")
    play.token = child
    stream(play, b"/usage?stream").problem(429, "concurrency_limited")
    play.token = play.admission.issue(time.time())[0].encode()
    assert stream(play, b"/usage?stream").head().status == 200
    first[0].resets()
    play.token = child
    assert stream(play, b"/usage?stream").head().status == 200
    play.loop.act(play.context.streams.end)


def test_a_stream_is_refused_as_its_endpoint_is(play: Playbook) -> None:
    play.client.sends(b"GET /usage?stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    play.client.problem(401, "token_missing")


def test_a_stream_of_a_token_that_is_revoked_ends(play: Playbook) -> None:
    client = stream(play, b"/usage?stream")
    client.head()
    token_id = read_events(client)[0][0]["id"]
    play.connect().sends(b"DELETE /admin/tokens/" + token_id.encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    play.pass_time(2)
    assert read_events(client) == ([], True)


def test_a_stream_of_a_token_that_expires_ends(play: Playbook, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [time.time()]
    monkeypatch.setattr(endpoints, "time", SimpleNamespace(time=lambda: moments[-1]))
    play.token = play.admission.issue(moments[0], ttl_s=60)[0].encode()
    client = stream(play, b"/usage?stream")
    client.head()
    play.pass_time(1)
    (told, is_over) = read_events(client)
    assert (len(told), is_over) == (2, False)
    moments.append(moments[0] + 60)
    play.pass_time(2)
    assert read_events(client) == ([], True)
