"""The parts of the gateway's work that are measured, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from perf import heads, parts
from perf.bench import EVENT_BODIES, EXCHANGES, LARGE_BODIES, ROUND, SLOW_ROUND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from perf.bench import Bench


@dataclass(frozen=True, slots=True)
class Case:
    """One measured part.

    Args:
        name: For tables and the command line.
        what: One line.
        set_up: Makes all that a measurement needs, the no-op twin included; takes its time, unmeasured.
        operations: How many of `what` a round of `Bench.run` does.
    """

    name: str
    what: str
    set_up: Callable[[], Bench]
    operations: int


def _exchanges(name: str) -> Callable[[], Bench]:
    def set_up() -> Bench:
        # Loads uvloop, hiredis and a whole gateway: under valgrind that takes seconds, so only where it is needed.
        bench: Bench = getattr(import_module("perf.exchanges"), name)()
        return bench

    return set_up


def _metered(name: str) -> Callable[[], Bench]:
    def set_up() -> Bench:
        bench: Bench = getattr(import_module("perf.metered"), name)()
        return bench

    return set_up


CASES: Final = (
    Case("parse-request", "parse a request head, 14 lines of an SDK's", heads.parse_request, ROUND),
    Case("parse-request-again", "the same, the next one on its connection", heads.parse_request_again, ROUND),
    Case(
        "parse-request-h11",
        "the same with one odd spelling, so by h11",
        heads.parse_request_by_h11,
        SLOW_ROUND,
    ),
    Case("parse-answer", "parse an answer head, 12 lines", heads.parse_answer, ROUND),
    Case("write-request", "write the upstream's request head", heads.write_request, ROUND),
    Case("write-answer", "write the client's answer head", heads.write_answer, ROUND),
    Case("chunked-64k", "frame and scan 64 KiB in chunks of 4 KiB", parts.chunked_64k, LARGE_BODIES),
    Case("chunked-tiny", "frame and scan 1000 chunks of 51 bytes, read together", parts.chunked_tiny, EVENT_BODIES),
    Case("chunked-events", "the same 1000 chunks, read one by one", parts.chunked_events, EVENT_BODIES),
    Case("token-seen", "authenticate a token that was seen before", parts.token_seen, ROUND),
    Case("token-unseen", "verify a token that was not", parts.token_unseen, SLOW_ROUND),
    Case("limit-1", "decide one limit, embedded store", parts.limit_1, ROUND),
    Case("limit-3", "decide three limits, embedded store", parts.limit_3, ROUND),
    Case("log-line", "make a line of the access log, both ids in the head", parts.log_line, ROUND),
    Case("log-line-plain", "the same, neither of them", parts.log_line_plain, ROUND),
    Case("counts-gathered", "gather the counts of a request, once a second", parts.counts_gathered, ROUND),
    Case(
        "meter-json",
        "quote a request of a language model, meter its answer, 1.1 kB",
        _metered("meter_json"),
        SLOW_ROUND,
    ),
    Case("meter-event", "meter an event of a stream of chat completions, 0.3 kB", _metered("meter_event"), ROUND),
    Case("meter-event-messages", "the same of Anthropic's messages, 0.1 kB", _metered("meter_event_messages"), ROUND),
    Case("meter-event-responses", "the same of OpenAI's responses, 0.3 kB", _metered("meter_event_responses"), ROUND),
    Case("meter-event-gemini", "the same of Gemini, 0.4 kB, with a usage", _metered("meter_event_gemini"), ROUND),
    Case("meter-event-running", "the same, as BUDGET_CUT=on has it", _metered("meter_event_running"), ROUND),
    Case("redis-check-1", "send a check, read its reply; 1 in flight", _exchanges("redis_check_1"), EXCHANGES),
    Case("redis-check-64", "the same, 64 in flight", _exchanges("redis_check_64"), EXCHANGES),
    Case("exchange-memory", "a whole exchange, embedded store", _exchanges("memory"), EXCHANGES),
    Case("exchange-memory-4", "the same with four limits", _exchanges("memory_4"), EXCHANGES),
    Case(
        "exchange-memory-metered",
        "a whole exchange that has a cost, under a budget, embedded store",
        _exchanges("memory_metered"),
        EXCHANGES,
    ),
    Case("exchange-redis", "a whole exchange, Redis store, 1 in flight", _exchanges("redis"), EXCHANGES),
    Case("exchange-redis-32", "the same, 32 in flight", _exchanges("redis_32"), EXCHANGES),
    Case("exchange-redis-32-wrk", "the same with fields in wrk's order", _exchanges("redis_32_wrk"), EXCHANGES),
    Case("exchange-redis-32-log", "the same with ACCESS_LOG=json", _exchanges("redis_32_logged"), EXCHANGES),
    Case("exchange-refused", "a request refused with 429, embedded store", _exchanges("refused"), EXCHANGES),
)

NAME_WIDTH: Final = max(len(case.name) for case in CASES)
"""For tables."""


def chosen(names: Sequence[str]) -> list[Case]:
    """Return the cases whose names are, or begin with, one of `names`, in the table's order; all if there are none.

    Raises:
        ValueError: A name fits none.
    """
    for name in names:
        if not any(case.name.startswith(name) for case in CASES):
            raise ValueError(f"there is no case {name!r}; micro.py --list names them")
    exact = {case.name for case in CASES}.intersection(names)
    prefixes = tuple(name for name in names if name not in exact)
    return [case for case in CASES if not names or case.name in exact or case.name.startswith(prefixes)]
