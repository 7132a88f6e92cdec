"""Every case, in every way of sending it: what each side saw, and that whoever comes next is served.

pytest 'tests/conformance/test_conformance.py::test_refused[length-and-coding/zero]'
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.conformance import answers
from tests.conformance.accepted import TAKEN as TAKEN_REQUESTS
from tests.conformance.case import MODES, POISON, TOKEN, pieces
from tests.conformance.refused import REFUSED
from tests.kit.playbook import KEY, Playbook
from tests.kit.wire import Incomplete, read_body, read_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.conformance.case import BadAnswers, Refused, Taken, TakenAnswer
    from tests.kit.playbook import Client
    from tests.kit.wire import Message

T = TypeVar("T")

SMUGGLED = b"smuggled"
FRAMING = {b"content-length", b"transfer-encoding", b"connection"}
OURS = {b"date", b"ratelimit", b"ratelimit-policy", b"server-timing"}
CODES = {
    400: "bad_request",
    401: "token_invalid",
    403: "not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    414: "target_too_long",
    431: "fields_too_large",
    501: "not_implemented",
    505: "bad_request",
}


def by_id(groups: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    return {f"{group}/{case}": value for group, cases in groups.items() for case, value in cases.items()}


REFUSED_CASES = by_id({group.name: {name: (group, raw) for name, raw in group.cases.items()} for group in REFUSED})
TAKEN_CASES = by_id({group: cases for group, (_, cases) in TAKEN_REQUESTS.items()})
BAD_ANSWER_CASES = by_id(
    {group.name: {name: (group, raw) for name, raw in group.cases.items()} for group in answers.BAD}
)
TAKEN_ANSWER_CASES = by_id(answers.TAKEN)


@contextlib.contextmanager
def playing() -> Iterator[Playbook]:
    play = Playbook(rate_limit="1000/minute")
    try:
        yield play
    finally:
        play.close()


def serves_another(play: Playbook, client: Client | None = None) -> None:
    """Let a client ask for something, and get exactly the answer that is made for it."""
    client = client or play.connect()
    client.sends(play.request(b"POST", b"/api/canary", body=b"canary"))
    request = play.upstream.request()
    assert (request.start, request.body) == (b"POST /v1/canary HTTP/1.1", b"canary")
    play.upstream.got_nothing()
    play.upstream.answers(b"for the canary")
    assert client.answer().body == b"for the canary"
    client.got_nothing()


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", REFUSED_CASES)
def test_refused(case: str) -> None:
    group, raw = REFUSED_CASES[case]
    for mode in MODES:
        with playing() as play:
            refuse(play, group, pieces(raw.replace(TOKEN, play.token), mode, case), mode)


def refuse(play: Playbook, group: Refused, sent: list[bytes], mode: str) -> None:
    client = play.client
    client.sends(*sent)
    for _ in range(group.before):
        play.upstream.request()
        client.got_nothing()
        play.upstream.answers(b"good")
        assert client.answer().body == b"good"
    refusal = client.problem(group.status, CODES[group.status])
    assert refusal.value(b"connection") == (b"close" if group.closes else keep_alive(sent))
    assert play.token not in refusal.body
    if refusal.value(b"connection") == b"close":
        assert client.is_ended
        client.sends(play.request(b"GET", b"/api/smuggled"))
        client.got_nothing()
    else:
        assert client.state == "open"
    if group.late and (play.dials or mode == "bytes"):
        assert mode != "whole", "it was known to be bad before a byte went out"
        unfinished(play, b"/v1/x")
    elif group.before:
        play.upstream.got_nothing()
        assert (play.dials, play.used()) == (1, group.before)
    else:
        assert (play.dials, play.used()) == (0, 0)
    dials = play.dials
    serves_another(play)
    assert play.dials == dials + (0 if group.before else 1), "a connection that a bad request was on was kept"


def keep_alive(sent: list[bytes]) -> bytes:
    return b"close" if b"HTTP/1.0" in b"".join(sent) else b"keep-alive"


def unfinished(play: Playbook, path: bytes) -> None:
    """The upstream got a head, maybe some good chunks, and a reset."""
    upstream = play.upstream
    assert upstream.state == "aborted"
    assert SMUGGLED not in upstream.unread
    request, rest = read_head(upstream.unread)
    assert request.start.split(b" ")[1] == path
    with pytest.raises(Incomplete):
        read_body(request, rest, until_close=None)


@pytest.mark.parametrize("case", TAKEN_CASES)
def test_taken(case: str) -> None:
    taken = TAKEN_CASES[case]
    for mode in MODES:
        with playing() as play:
            play.client.sends(*pieces(taken.raw.replace(TOKEN, play.token), mode, case))
            requests = (taken, *taken.behind)
            for number, expected in enumerate(requests):
                check_request(play.upstream.request(), expected)
                play.upstream.got_nothing()
                play.upstream.answers(b"%d" % number)
                answer = play.client.answer(expected.method)
                assert (answer.status, answer.body) == (200, b"" if expected.method == b"HEAD" else b"%d" % number)
            play.client.got_nothing()
            assert (play.dials, play.used()) == (1, len(requests))
            is_1_0 = b"HTTP/1.0\r\n" in taken.raw
            assert play.client.state == ("closed" if is_1_0 else "open")
            serves_another(play, None if is_1_0 else play.client)


def check_request(request: Message, expected: Taken) -> None:
    assert request.start == expected.start
    assert request.values(b"host") == [b"api.test:8080"]
    assert request.values(b"authorization") == [b"Bearer " + KEY.encode()]
    ours = FRAMING | {b"host", b"authorization"}
    assert [field for field in request.fields if field[0].lower() not in ours] == list(expected.fields)
    assert request.body == expected.body
    assert request.trailers == list(expected.trailers)
    assert request.values(b"connection") == []


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BAD_ANSWER_CASES)
def test_bad_answer(case: str) -> None:
    group, raw = BAD_ANSWER_CASES[case]
    for mode in MODES:
        with playing() as play:
            play.client.sends(play.request(b"GET", b"/api/x"))
            play.upstream.request()
            play.upstream.sends(*pieces(raw, mode, case))
            if group.ends:
                play.upstream.ends()
            fail(play, group, whole=mode == "whole")


def fail(play: Playbook, group: BadAnswers, *, whole: bool) -> None:
    client, upstream = play.client, play.upstream
    assert upstream.state == "aborted"
    assert SMUGGLED not in client.unread
    while client.unread.startswith(b"HTTP/1.1 1"):
        client.head()
    if group.late and client.unread.startswith(b"HTTP/1.1 200"):
        assert not whole or group.ends, "it was known to be bad before a byte went out"
        assert client.state == "aborted"
        answer = client.head()
        with pytest.raises(Incomplete):
            read_body(answer, client.unread, until_close=False)
        serves_another(play)
    else:
        client.problem(502, group.code)
        client.got_nothing()
        assert client.state == "open"
        serves_another(play, client)
    assert play.dials == 2


@pytest.mark.parametrize("case", TAKEN_ANSWER_CASES)
def test_taken_answer(case: str) -> None:
    expected = TAKEN_ANSWER_CASES[case]
    for mode in MODES:
        with playing() as play:
            play.client.sends(play.request(expected.method, b"/api/x"))
            play.upstream.request()
            play.upstream.sends(*pieces(expected.raw + expected.extra, mode, case))
            if expected.ends:
                play.upstream.ends()
            answer = play.client.answer(expected.method)
            check_answer(answer, expected)
            play.client.got_nothing()
            # A body that ends with its connection does so on both.
            assert answer.values(b"connection") == ([b"close"] if expected.ends else [])
            assert play.client.state == ("closed" if expected.ends else "open")
            assert play.upstream.state == ("open" if expected.kept else "aborted")
            serves_another(play, None if expected.ends else play.client)
            assert play.dials == (1 if expected.kept else 2)


def check_answer(answer: Message, expected: TakenAnswer) -> None:
    assert answer.start == expected.start
    assert [interim.start for interim in answer.interims] == list(expected.interims)
    assert [field for field in answer.fields if field[0].lower() not in FRAMING | OURS] == list(expected.fields)
    assert answer.body == expected.body
    assert answer.trailers == list(expected.trailers)


# --- when it is too late for an answer -------------------------------------------------------------------------------


def test_a_body_that_turns_bad_behind_the_begin_of_its_answer() -> None:
    with playing() as play:
        play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"))
        play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        play.client.sends(b"5 \r\nhello\r\n0\r\n\r\n" + play.request(b"GET", b"/api/smuggled"))
        unfinished(play, b"/v1/x")
        assert play.client.state == "aborted"
        answer = play.client.head()
        with pytest.raises(Incomplete):
            read_body(answer, play.client.unread, until_close=False)
        serves_another(play)


@pytest.mark.parametrize("poison", [POISON, b"\r\n", b"x"], ids=["an-answer", "an-empty-line", "a-byte"])
def test_bytes_on_an_idle_upstream_connection_reach_nobody(poison: bytes) -> None:
    with playing() as play:
        serves_another(play, play.client)
        idle = play.upstream
        idle.sends(poison)
        assert idle.state == "aborted"
        serves_another(play, play.client)
        assert play.dials == 2
