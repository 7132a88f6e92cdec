"""Plans of requests that may repeat: one for each, kept for the next one like it, and no more of them than is said."""

from __future__ import annotations

import time

from gateway.admission import Admission
from gateway.limits import Kind, Policy, parse_limits
from gateway.repeated import MAX_REMEMBERED
from gateway.stores.memory import MemoryStore
from gateway.tokens import TokenSigner

GUARD = Policy("loop", 1, 60_000_000, kind=Kind.BUCKET, guard=True)


def test_the_same_request_has_the_same_plan_and_those_of_long_ago_make_room() -> None:
    admission = Admission(MemoryStore(), TokenSigner([b"s" * 32]), parse_limits("9"), (), None)
    subject = admission.authenticate(admission.issue(time.time())[0].encode(), time.time())
    other = admission.authenticate(admission.issue(time.time())[0].encode(), time.time())
    repeated = admission.repeated
    first = repeated.subject(subject, GUARD, "0", spends=False)
    assert repeated.subject(subject, GUARD, "0", spends=False) is first
    assert repeated.subject(other, GUARD, "0", spends=False) is not first
    assert [(one.label, one.counter) for one in first.policies] == [
        ("minute", "limit:minute"),
        ("loop", "limit:loop-0-bucket"),
    ]
    assert len(subject.policies) == 1, "its own are as they were"
    for number in range(MAX_REMEMBERED + 9):
        repeated.subject(subject, GUARD, str(number), spends=True)
        repeated.subject(subject, GUARD, "0", spends=False)
    assert repeated.subject(subject, GUARD, "0", spends=False) is first, "what repeats stays"
    assert len(repeated._known) == MAX_REMEMBERED
