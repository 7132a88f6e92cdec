"""The register of issued tokens, in every store: what is noted is listed once, until it ends, and never too much."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from gateway.stores import lines, register
from gateway.stores.redis import RedisStore

if TYPE_CHECKING:
    from tests.kit.stores import Subject

LATER_S = int(time.time()) + 3600


async def test_what_is_noted_is_listed_once_until_it_ends(under_test: Subject) -> None:
    store = await under_test.fresh()
    assert (await store.noted()).lines == []
    for line, ends_s in (("first", LATER_S), ("last", LATER_S + 5), ("first", LATER_S), ("ended", 1000)):
        store.note(line, ends_s)
    assert (await store.noted()).lines == ["last", "first"]


async def test_who_was_revoked_is_in_it(under_test: Subject) -> None:
    store = await under_test.fresh()
    await store.revoke("abc", 60)
    assert (await store.noted()).revoked == {"abc"}


@pytest.fixture
def room_for_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 8)
    monkeypatch.setattr(register, "MAX_LINES", 8)


@pytest.mark.usefixtures("room_for_eight")
async def test_of_too_many_those_that_end_first_are_forgotten(under_test: Subject) -> None:
    store = await under_test.fresh()
    for number in range(20):
        store.note(str(number), LATER_S + number)
    listed = (await store.noted()).lines
    assert listed == [str(number) for number in reversed(range(20))][: len(listed)]
    assert 6 <= len(listed) <= 8


@pytest.mark.usefixtures("room_for_eight")
async def test_tokens_made_from_others_do_not_fill_the_room_of_those_that_were_issued(under_test: Subject) -> None:
    store = await under_test.fresh()
    store.note("issued", LATER_S)
    for number in range(20):
        store.note(f"made {number}", LATER_S + 1 + number, is_child=True)
    first, *rest = (await store.noted()).lines
    assert first == "issued"
    assert rest == [f"made {number}" for number in reversed(range(20))][: len(rest)]
    assert 6 <= len(rest) <= 8


async def test_nothing_is_noted_while_redis_is_out_and_nobody_waits_for_it(under_test: Subject) -> None:
    store = await under_test.fresh()
    if isinstance(store, RedisStore):
        live, store.link.live = store.link.live, None
        store.note("lost", LATER_S)
        store.link.live = live
        assert (await store.noted()).lines == []
