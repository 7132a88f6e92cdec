"""The Redis store against a Redis that misbehaves on command."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from gateway.budgets.spending import Ask
from gateway.errors import StoreUnavailable
from gateway.limits import parse_concurrency, parse_limits
from gateway.stores import Verdict, link
from gateway.stores.redis import RedisStore
from gateway.stores.redis_plan import REFUND_SCRIPT
from tests.kit.scripted_redis import ScriptedRedis, admitted, scripted_redis, scripted_redis_over_tls
from tests.kit.spending import reserve
from tests.kit.stores import TIMEOUT_S, Waiting, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MINUTE = parse_limits("60")
KEY = b"gateway:{abc}:limit:minute"
REVOKED = b"gateway:{abc}:revoked"


@contextlib.asynccontextmanager
async def started(timeout_s: float = TIMEOUT_S) -> AsyncIterator[tuple[ScriptedRedis, RedisStore]]:
    async with scripted_redis() as scripted:
        store = RedisStore(scripted.address, timeout_s=timeout_s)
        await store.start()
        try:
            yield scripted, store
        finally:
            await store.close()


async def test_a_check_is_one_command_and_its_reply_the_verdict() -> None:
    async with started() as (scripted, store):
        asked = asyncio.ensure_future(ask(store, store.plan("abc", MINUTE)))
        writer, command = await scripted.commands.get()
        assert command == [b"EVALSHA", store.script_sha.encode(), b"2", REVOKED, KEY, b"w", b"", b"60", b"1000000"]
        writer.write(admitted(77, remaining=3))
        assert tuple(await asked) == (True, 0, 3, 1_000_000, 77, 0, b"")


async def test_a_late_admission_is_given_back_and_a_late_refusal_is_not() -> None:
    async with started(timeout_s=0.01) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="within 10 ms"):
                await ask(store, plan)
        writer, _ = await scripted.commands.get()
        await scripted.commands.get()
        writer.write(b"*5\r\n:0\r\n:0\r\n:0\r\n:9\r\n:76\r\n" + admitted(77))
        _, refund = await scripted.commands.get()
        assert refund == [b"EVAL", REFUND_SCRIPT.encode(), b"1", KEY, b"77", b"w", b"1000000"]
        assert scripted.commands.empty()


async def test_a_late_admission_is_given_back_on_the_old_connection_after_a_new_one_is_up() -> None:
    async with started(timeout_s=0.01) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        old: list[asyncio.StreamWriter] = []
        for _ in range(2):  # it is out again before it has answered on the first connection
            lost = [Waiting() for _ in range(3)]
            for waiting in lost:
                store.check(plan, waiting)
            for waiting in lost:
                with pytest.raises(StoreUnavailable):
                    await waiting.future
            old += {(await scripted.commands.get())[0] for _ in lost}
            await until_back(store)
        for writer in old:
            writer.write(admitted(1) + admitted(2) + admitted(3))
            async with asyncio.timeout(TIMEOUT_S):
                refunds = [await scripted.commands.get() for _ in range(3)]
            assert [command[4] for _, command in refunds] == [b"1", b"2", b"3"]
            assert {at for at, _ in refunds} == {writer}


async def test_what_is_admitted_as_redis_goes_out_and_never_sent_is_given_back_where_it_was_answered() -> None:
    async with started() as (scripted, store):
        scripted.probe_reply = b"-LOADING Redis is loading\r\n"
        plan = store.plan("abc", MINUTE)
        asked = [asyncio.ensure_future(ask(store, plan)) for _ in range(4)]
        old, *_ = [(await scripted.commands.get())[0] for _ in asked]
        old.write(b"-LOADING Redis is loading\r\n" * 3 + admitted(77))
        *lost, admission = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, StoreUnavailable) for one in lost)
        assert isinstance(admission, Verdict)
        store.refund(plan, admission)  # its client had left meanwhile
        async with asyncio.timeout(TIMEOUT_S):
            writer, refund = await scripted.commands.get()
        assert writer is old
        assert refund == [b"EVAL", REFUND_SCRIPT.encode(), b"1", KEY, b"77", b"w", b"1000000"]


async def test_a_script_that_redis_lost_is_sent_along_and_nobody_notices() -> None:
    async with started() as (scripted, store):
        asked = asyncio.ensure_future(ask(store, store.plan("abc", MINUTE)))
        writer, _ = await scripted.commands.get()
        writer.write(b"-NOSCRIPT No matching script. Please use EVAL.\r\n")
        writer, command = await scripted.commands.get()
        assert command == [b"EVAL", store.script.encode(), b"2", REVOKED, KEY, b"w", b"", b"60", b"1000000"]
        writer.write(admitted(77))
        assert (await asked).at_us == 77


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"-WRONGTYPE Operation against a key\r\n", "Redis answered WRONGTYPE to the script."),
        (b"-LOADING Redis is loading\r\n", "Redis answered LOADING to the script (it is still reading its data)."),
        (b"-READONLY You can't write\r\n", "Redis answered READONLY to the script (it is a replica, not the master)."),
        (b"-OOM command not allowed\r\n", "Redis answered OOM to the script (its memory is full: maxmemory)."),
        (
            b"-NOAUTH s3cret\r\n",
            "Redis answered NOAUTH to the script (it asks for a password: redis://:PASSWORD@HOST).",
        ),
        (b"-s3cret is wrong\r\n", "Redis answered an error to the script."),
        (b"+s3cret\r\n", "Redis answered something that is no verdict to the script."),
        (b"*2\r\n:1\r\n:2\r\n", "Redis answered something that is no verdict to the script."),
    ],
)
async def test_any_other_reply_is_a_loss_that_names_its_code_only(reply: bytes, reason: str) -> None:
    async with started() as (scripted, store):
        asked = asyncio.ensure_future(ask(store, store.plan("abc", MINUTE)))
        writer, _ = await scripted.commands.get()
        writer.write(reply)
        with pytest.raises(StoreUnavailable) as caught:
            await asked
        assert caught.value.detail == reason


async def test_after_three_losses_checks_are_not_sent_until_redis_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "BACK_OFF_S", (0.0, 0.01))
    caplog.set_level(logging.INFO, "gateway.store")
    async with started() as (scripted, store):
        scripted.probe_reply = b"-READONLY You can't write against a read only replica.\r\n"
        plan = store.plan("abc", MINUTE)
        for _ in range(3):
            asked = asyncio.ensure_future(ask(store, plan))
            writer, _ = await scripted.commands.get()
            writer.write(b"-READONLY You can't write against a read only replica.\r\n")
            with pytest.raises(StoreUnavailable, match="READONLY"):
                await asked
        waiting = Waiting()
        store.check(plan, waiting)
        assert waiting.future.done()
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await waiting.future
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await store.ping()
        scripted.probe_reply = b"-NOAUTH Authentication required.\r\n"  # out for another reason meanwhile
        while "still out" not in caplog.text:  # noqa: ASYNC110 - found out in the background
            await asyncio.sleep(0.01)
        scripted.probe_reply = admitted(1)
        await until_back(store)
        assert scripted.commands.empty()
        asked = asyncio.ensure_future(ask(store, plan))
        writer, _ = await scripted.commands.get()
        writer.write(admitted(77))
        assert (await asked).at_us == 77
    first, second, third = (record.message for record in caplog.records)
    assert "is out: Redis answered READONLY to the script (it is a replica, not the master). Until" in first
    assert "is still out: Redis answered NOAUTH to the script (it asks for a password" in second
    assert third.endswith("is back.")


async def test_a_connection_that_has_died_in_silence_costs_one_check() -> None:
    async with started(timeout_s=0.01) as (scripted, store):
        del scripted.greetings[b"PING"]  # nothing is answered there any more, unless it is a new connection
        plan = store.plan("abc", MINUTE)
        with pytest.raises(StoreUnavailable, match="within 10 ms"):
            await ask(store, plan)
        async with asyncio.timeout(TIMEOUT_S):
            while store.link._recovery is None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
        await until_back(store)
        dead = {(await scripted.commands.get())[0] for _ in range(scripted.commands.qsize())}
        store.link.live.expect_replies_within(TIMEOUT_S)  # type: ignore[union-attr]  # it is back
        asked = asyncio.ensure_future(ask(store, plan))
        writer, _ = await scripted.commands.get()
        writer.write(admitted(77))
        assert (await asked).at_us == 77
        assert writer not in dead


async def test_one_subjects_broken_key_does_not_stop_the_others() -> None:
    async with started() as (scripted, store):
        plan = store.plan("abc", MINUTE)
        for _ in range(10):
            asked = asyncio.ensure_future(ask(store, plan))
            writer, _ = await scripted.commands.get()
            writer.write(b"-WRONGTYPE Operation against a key\r\n")
            with pytest.raises(StoreUnavailable):
                await asked
        await store.ping()
        assert scripted.connections == 1


@pytest.mark.parametrize("knows_scripts", [True, False])
async def test_a_lost_connection_loses_what_is_in_flight_and_comes_back(*, knows_scripts: bool) -> None:
    async with started() as (scripted, store):
        plan = store.plan("abc", (*MINUTE, parse_concurrency("9")))
        spends = store.spend_plan("abc", plan.policies, ())
        asked: list[asyncio.Future[Verdict]] = [
            asyncio.ensure_future(reserve(store, spends, Ask("1", {}))),
            asyncio.ensure_future(ask(store, plan)),
        ]
        if not knows_scripts:
            for _ in asked:
                (await scripted.commands.get())[0].write(b"-NOSCRIPT No matching script. Please use EVAL.\r\n")
        # Behind the keys and their kinds; a reservation has three keys more.
        leases = [(await scripted.commands.get())[1][7 + more] for more in (3, 0)]
        scripted.drop_all()
        for one in asked:
            with pytest.raises(StoreUnavailable, match=r"connection|closed"):
                await one
        await until_back(store)
        assert scripted.connections == 2
        # It may have been admitted: nobody is to wait until its lease ends.
        async with asyncio.timeout(TIMEOUT_S):
            sent = [(await scripted.commands.get())[1] for _ in range(3)]  # the reservation is given back, too
        assert [command for command in sent if command[0] == b"ZREM"] == [
            [b"ZREM", b"gateway:{abc}:inflight", lease] for lease in leases
        ]


async def test_a_check_without_an_answer_whose_connection_then_breaks_may_have_taken_a_place() -> None:
    async with started(timeout_s=0.01) as (scripted, store):
        plan = store.plan("abc", (*MINUTE, parse_concurrency("9")))
        spends = store.spend_plan("abc", plan.policies, ())
        asked = [reserve(store, spends, Ask("1", {})), ask(store, plan)]
        lost = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, StoreUnavailable) for one in lost)
        leases = [(await scripted.commands.get())[1][7 + more] for more in (3, 0)]  # see above
        scripted.drop_all()
        async with asyncio.timeout(TIMEOUT_S):
            while leases:
                _, command = await scripted.commands.get()
                if command[0] == b"ZREM" and command[2] in leases:
                    leases.remove(command[2])


async def test_a_lease_is_given_back_until_redis_takes_it_or_says_that_it_never_will() -> None:
    async with started() as (scripted, store):
        assert store.link.live is not None
        store.leases.give_back_late(store.link.live, b"lease", ("places",))
        for reply in (b"-LOADING Redis is loading\r\n", b"-NOPERM no permissions to run 'zrem'\r\n"):
            writer, command = await scripted.commands.get()
            assert command == [b"ZREM", b"places", b"lease"]
            writer.write(reply)
            await store.ping()  # which is answered behind that
            store.leases.renew()
        await store.ping()
        assert scripted.commands.empty()


async def test_closing_loses_what_is_in_flight_and_everything_later() -> None:
    async with started() as (scripted, store):
        plan = store.plan("abc", MINUTE)
        asked = asyncio.ensure_future(ask(store, plan))
        await scripted.commands.get()
        await store.close()
        for check in (asked, ask(store, plan)):
            with pytest.raises(StoreUnavailable, match="closed"):
                await check
        store.refund(plan, Verdict(True, 0, 9, 1, 1))


async def test_a_full_buffer_is_a_loss_at_once() -> None:
    async with started() as (scripted, store):
        plan = store.plan("abc", MINUTE)
        assert store.link.live is not None
        store.link.live.pause_writing()
        with pytest.raises(StoreUnavailable, match="does not read"):
            await ask(store, plan)
        store.refund(plan, Verdict(True, 0, 9, 1, 1))
        store.link.live.resume_writing()
        await store.ping()
        assert scripted.commands.empty()


async def test_an_evicting_redis_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_redis() as scripted:
        scripted.greetings[b"CONFIG"] = b"*2\r\n$16\r\nmaxmemory-policy\r\n$11\r\nallkeys-lru\r\n"
        store = RedisStore(scripted.address, timeout_s=TIMEOUT_S)
        await store.start()
        await store.close()
    assert "allkeys-lru" in caplog.text
    assert "noeviction" in caplog.text


@pytest.mark.parametrize(("greeting", "works"), [(b"CONFIG", True), (b"CLIENT", True), (b"SCRIPT", False)])
async def test_a_start_needs_the_script_and_nothing_else(greeting: bytes, *, works: bool) -> None:
    async with scripted_redis() as scripted:
        scripted.greetings[greeting] = b"-NOPERM this user has no permissions\r\n"
        store = RedisStore(scripted.address, timeout_s=TIMEOUT_S)
        if works:
            await store.start()
        else:
            with pytest.raises(StoreUnavailable, match="NOPERM to SCRIPT LOAD"):
                await store.start()
        await store.close()


async def test_a_login_that_is_refused_fails_the_start_without_the_password() -> None:
    async with scripted_redis() as scripted:
        scripted.greetings[b"AUTH"] = b"-WRONGPASS invalid s3cret\r\n"
        address = dataclasses.replace(scripted.address, username="gateway", password="s3cret")
        store = RedisStore(address, timeout_s=TIMEOUT_S)
        with pytest.raises(StoreUnavailable, match="WRONGPASS to AUTH") as caught:
            await store.start()
        assert "s3cret" not in str(caught.value)
        await store.close()


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_is_verified(tmp_path: Path, *, trusted: bool) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    (authority if trusted else stranger).cert_pem.write_to_path(str(ca_file))
    async with scripted_redis_over_tls(context) as scripted:
        address = dataclasses.replace(scripted.address, ca_file=str(ca_file))
        store = RedisStore(address, timeout_s=TIMEOUT_S)
        if trusted:
            await store.start()
            await store.ping()
        else:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await store.start()
        await store.close()


async def until_back(store: RedisStore) -> None:
    """Wait until the store has its new connection."""
    assert store.link._recovery is not None
    await store.link._recovery
