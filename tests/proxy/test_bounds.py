"""What a client sends ahead of its answers is bounded, and so are the lines of log that an outage costs."""

from __future__ import annotations

import re
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from gateway.proxy.client import MAX_PIPELINED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
READS = [10_000, 256 * 1024]  # the most that one read of a loop's transport brings


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


class Ahead:
    """Sends many requests without a break, and looks in every turn of the loop at how far ahead they were read."""

    def __init__(self, play: Playbook, client: Client, request: bytes, count: int, read_bytes: int) -> None:
        self._play = play
        self._transport = client.transport
        self._request_bytes = len(request)
        self._sent_bytes = 0
        self._turns = 20 * count  # far more than it takes
        self._came: list[bytes] = []
        self._answered = 0
        self.most_bytes = 0
        self.rested = False
        play.loop.act(self._send, cut(request * count, read_bytes))

    def look(self) -> None:
        came = self._transport.take()  # whole answers: each is written in one piece
        self._came.append(came)
        self._answered += came.count(b"HTTP/1.1 200 OK\r\n")
        self.rested = self.rested or not self._transport.is_reading()
        taken_bytes = self._sent_bytes - self._transport.untaken_bytes
        self.most_bytes = max(self.most_bytes, taken_bytes - self._answered * self._request_bytes)

    def answers(self) -> bytes:
        self.look()
        return b"".join(self._came)

    def _send(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._sent_bytes += len(piece)
            self._transport.peer_sends(piece)
            self.look()
        self._look_on()

    def _look_on(self) -> None:
        self.look()
        self._turns -= 1
        if self._transport.untaken_bytes and self._turns:
            self._play.loop.call_soon(self._look_on)


@pytest.mark.parametrize("read_bytes", READS)
def test_requests_to_an_endpoint_are_not_read_far_ahead_of_their_answers(play: Playbook, read_bytes: int) -> None:
    count = 16_000
    ahead = Ahead(play, play.client, HEALTH, count, read_bytes)
    assert ahead.rested
    assert ahead.most_bytes <= MAX_PIPELINED_BYTES + read_bytes + len(HEALTH)
    # And yet each was answered, and the next will be.
    answers = ahead.answers()
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == answers.count(b'{"status": "ok"}\n') == count
    assert play.client.transport.untaken_bytes == 0
    assert play.client.transport.is_reading()
    play.client.sends(HEALTH)
    assert play.client.answer().status == 200


@pytest.mark.parametrize("read_bytes", READS)
def test_requests_to_the_target_are_not_read_far_ahead_of_their_answers(
    make_play: Callable[..., Playbook], read_bytes: int
) -> None:
    play = make_play(rate_limit="100000/minute")
    client = play.client
    requests = [play.request(b"GET", b"/api/%06d" % number) for number in range(4000)]
    total_bytes = sum(map(len, requests))
    client.sends(*cut(b"".join(requests), read_bytes))
    assert not client.transport.is_reading()
    rests = 0
    for number, request in enumerate(requests):
        answered_bytes = number * len(request)
        ahead_bytes = total_bytes - client.transport.untaken_bytes - answered_bytes
        assert ahead_bytes <= MAX_PIPELINED_BYTES + read_bytes + len(request)
        rests += not client.transport.is_reading()
        assert play.upstream.request().start == b"GET /v1/%06d HTTP/1.1" % number
        play.upstream.answers(b"%d" % number)
        assert client.answer().body == b"%d" % number
    assert rests > 10
    assert client.transport.untaken_bytes == 0
    assert client.transport.is_reading()
    assert play.dials == 1


def test_a_full_pipe_behind_an_upload_rests_until_its_answer(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="100000/minute")
    client = play.client
    client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 100000"))
    upstream = play.upstream
    upstream.stops_reading()
    requests = [play.request(b"GET", b"/api/%06d" % number) for number in range(1000)]
    pieces = cut(b"x" * 100_000 + b"".join(requests), 180_000)
    client.sends(*pieces)
    left_bytes = sum(map(len, pieces[1:]))
    assert client.transport.untaken_bytes == left_bytes
    upstream.reads_on()
    assert len(upstream.request().body) == 100_000
    # The upload no longer stands in the way; what is behind it does.
    assert not client.transport.is_reading()
    play.pass_time(1)
    assert client.transport.untaken_bytes == left_bytes
    upstream.answers()
    assert client.answer().status == 200
    for number in range(len(requests)):
        assert upstream.request().start == b"GET /v1/%06d HTTP/1.1" % number
        upstream.answers()
        assert client.answer().status == 200
    assert client.transport.untaken_bytes == 0
    assert client.transport.is_reading()


def test_a_full_pipe_goes_on_when_a_client_that_did_not_read_its_answers_does(play: Playbook) -> None:
    play.client.stops_reading()
    count = 5_000
    for piece in cut(HEALTH * count, 10_000):
        play.client.sends(piece)
    assert not play.client.transport.is_reading()
    assert play.client.transport.get_write_buffer_size() < 500_000
    play.client.reads_on()
    for _ in range(count):
        assert play.client.answer().status == 200
    play.client.got_nothing()
    assert play.client.transport.is_reading()


# --- the log of an outage --------------------------------------------------------------------------------------------

NO_DESCRIPTOR = OSError(24, "Too many open files")
"""No fault of the upstream's, so it is tried on and on."""
OUTAGES = {
    "refused": ConnectionRefusedError(111, "Connection refused"),
    "no TLS": ssl.SSLCertVerificationError(1, "certificate verify failed"),
    "no name": socket.gaierror(-2, "Name or service not known"),
}


def fail(play: Playbook, count: int) -> None:
    for _ in range(count):
        play.client.sends(play.request(b"GET", b"/api/x"))
        play.client.problem(502, "upstream_unreachable")


def test_failures_are_logged_once_a_second_with_a_count(
    make_play: Callable[..., Playbook], caplog: pytest.LogCaptureFixture
) -> None:
    play = make_play(rate_limit="10000/minute")
    play.dial_error = NO_DESCRIPTOR
    said = "Too many open files"
    fail(play, 1)
    (first,) = caplog.records
    assert said in first.getMessage()
    assert first.levelname == "WARNING"
    # The rest of the second is quiet.
    fail(play, 20)
    play.pass_time(0.25)
    fail(play, 21)
    assert caplog.records == [first]
    # Then one line tells of all that were not told, this one's own among them or not.
    play.pass_time(1.5)
    fail(play, 1)
    second = caplog.records[-1]
    assert len(caplog.records) == 2
    assert said in second.getMessage()
    assert re.search(r"\b4[12]\b", second.getMessage()), second.getMessage()
    # The count begins anew.
    play.pass_time(1.5)
    fail(play, 1)
    assert len(caplog.records) == 3
    assert not re.search(r"\b4[0-9]\b", caplog.records[-1].getMessage())


@pytest.mark.parametrize("what", OUTAGES)
def test_an_outage_costs_two_lines_however_long_it_lasts(
    make_play: Callable[..., Playbook], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    play = make_play(rate_limit="10000/minute")
    play.dial_error = OUTAGES[what]
    said = str(play.dial_error).rpartition("] ")[2]
    for _ in range(400):
        play.client.sends(play.request(b"GET", b"/api/x"))
        assert play.client.answer().status in {502, 503}
        play.pass_time(0.25)
    assert [(record.levelname, said in record.getMessage()) for record in caplog.records] == [("WARNING", True)] * 2
    assert "is out" in caplog.records[1].getMessage()
    assert 5 < play.dials < 15
