"""Several targets behind one gateway: each with its own path, key, fields and limits, and nothing of another's."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import pytest

from gateway import Config, Gateway
from gateway.errors import TokenError
from gateway.tokens import claims_in
from tests.e2e import Answer, connected, fetch, request
from tests.kit.upstream import Upstream, answering

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.kit.upstream import Call

API_KEY, MAPS_KEY, QUERY_KEY = "sk-of-the-api", "sk-of-the-maps", "sk-of-the-query"


@pytest.fixture
async def maps() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest.fixture
async def gateway(upstream: Upstream, maps: Upstream) -> AsyncIterator[Gateway]:
    upstream.default, maps.default = answering(b"api"), answering(b"maps")
    config = Config(
        target_api_url=upstream.url,
        target_api_key=API_KEY,
        rate_limit="100/hour",
        targets={
            "maps": {
                "url": maps.url,
                "key": MAPS_KEY,
                "auth": "header:X-Maps-Key",
                "rate_limit": "2/hour",
                "concurrency_limit": 1,
                "add_headers": {"X-Team": "search"},
                "remove_headers": ["X-Debug"],
            },
            "query": {"url": f"{upstream.url}/deep", "prefix": "/q/deep", "key": QUERY_KEY, "auth": "query:k"},
        },
    )
    async with Gateway(config) as running:
        yield running


async def test_each_has_its_own_path_key_and_fields(upstream: Upstream, maps: Upstream, gateway: Gateway) -> None:
    token = gateway.issue_token()
    contents = [
        (await fetch(gateway.url, request(path, token, "X-Debug: 1", "X-Team: mine", "X-Maps-Key: mine"))).content
        for path in ("/api/x", "/maps/y?z", "/q/deep/w")
    ]
    assert contents == [b"api", b"maps", b"api"]
    first, third = upstream.requests
    (second,) = maps.requests
    assert [one.start_line for one in (first, second, third)] == [
        b"GET /v1/x HTTP/1.1",
        b"GET /v1/y?z HTTP/1.1",
        f"GET /v1/deep/w?k={QUERY_KEY} HTTP/1.1".encode(),
    ]
    assert first.field(b"authorization") == f"Bearer {API_KEY}".encode()
    assert (first.field(b"x-debug"), first.field(b"x-team"), first.field(b"x-maps-key")) == (b"1", b"mine", b"mine")
    assert second.field(b"authorization") is None
    assert second.field(b"x-maps-key") == MAPS_KEY.encode()
    assert (second.field(b"x-debug"), second.field(b"x-team")) == (None, b"search")
    assert third.field(b"authorization") is None
    # Nor does one share the connections of another, though it is the same server.
    assert first.connection != third.connection
    for key, others in ((API_KEY, (second, third)), (MAPS_KEY, (first, third)), (QUERY_KEY, (first, second))):
        assert not any(key.encode() in other.head for other in others)


async def test_a_targets_limits_are_counted_per_token_and_beside_the_others(gateway: Gateway, maps: Upstream) -> None:
    token, other = gateway.issue_token(), gateway.issue_token()
    statuses = [(await fetch(gateway.url, request("/maps/x", token))).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = await fetch(gateway.url, request("/maps/x", token))
    assert refused["ratelimit"].startswith('"maps-hour";r=0;')
    in_flight = '"maps-concurrency";q=1;qu="concurrent-requests"'
    assert refused["ratelimit-policy"] == f'"hour";q=100;w=3600, "maps-hour";q=2;w=3600, {in_flight}'
    assert len(maps.requests) == 2
    # What the target refused was charged to the token's own limits neither.
    answer = await fetch(gateway.url, request("/api/x", token))
    assert (answer.status, answer["ratelimit-policy"]) == (200, '"hour";q=100;w=3600')
    assert answer["ratelimit"].startswith('"hour";r=97;')
    assert (await fetch(gateway.url, request("/maps/x", other))).status == 200


async def test_a_targets_places_in_flight_are_its_own(gateway: Gateway, maps: Upstream, upstream: Upstream) -> None:
    token, go_on = gateway.issue_token(), asyncio.Event()

    async def waiting(call: Call) -> None:
        await go_on.wait()
        await answering(b"late")(call)

    maps.default = waiting
    async with connected(gateway.url) as client:
        client.write(request("/maps/slow", token))
        await maps.requested()
        refused = await fetch(gateway.url, request("/maps/x", token))
        assert (refused.status, refused["x-gateway-error"]) == (429, "concurrency_limited")
        assert json.loads(refused.content)["detail"].count("maps-concurrency")
        assert (await fetch(gateway.url, request("/api/x", token))).status == 200
        assert (await limits_of(gateway, token))["maps-concurrency"] == (1, 0)
        go_on.set()
        assert (await client.answer()).content == b"late"
    assert (await limits_of(gateway, token))["maps-concurrency"] == (0, 1)
    assert (await fetch(gateway.url, request("/maps/x", token))).status == 200
    assert len(maps.requests) == 2


async def limits_of(gateway: Gateway, token: str) -> dict[str, tuple[int, int]]:
    """Ask `/usage`; return what is used and what remains of each limit."""
    members = json.loads((await fetch(gateway.url, request("/usage", token))).content)
    assert all((limit["reset"] is None) is (limit["kind"] == "concurrency") for limit in members["limits"])
    return {limit["name"]: (limit["used"], limit["remaining"]) for limit in members["limits"]}


async def test_usage_shows_the_limits_of_the_targets_that_a_token_is_for(gateway: Gateway) -> None:
    token = gateway.issue_token()
    await fetch(gateway.url, request("/maps/x", token))
    await fetch(gateway.url, request("/api/x", token))
    shown = {"hour": (2, 98), "maps-hour": (1, 1), "maps-concurrency": (0, 1)}
    assert await limits_of(gateway, token) == shown
    made = await fetch(gateway.url, request("/tokens", token, method="POST", body=b'{"limits": ["5/day"]}'))
    child = json.loads(made.content)["token"]
    await fetch(gateway.url, request("/maps/x", child))
    assert await limits_of(gateway, child) == {
        "day": (1, 4),
        "parent-hour": (3, 97),
        "parent-maps-hour": (2, 0),
        "parent-maps-concurrency": (0, 1),
    }
    assert await limits_of(gateway, gateway.issue_token(targets=["api"])) == {"hour": (0, 100)}


async def test_no_token_is_made_that_would_be_under_too_many_limits_at_a_target(
    upstream: Upstream, maps: Upstream
) -> None:
    def limits(count: int) -> list[str]:
        return [f"100/{seconds}h" for seconds in range(1, count + 1)]

    tables = {"maps": {"url": maps.url, "rate_limit": ",".join(limits(12)), "concurrency_limit": 9}}
    config = Config(
        target_api_url=upstream.url,
        rate_limit=",".join(limits(16)),
        global_rate_limit="1000/hour",
        concurrency_limit=10,
        targets=tables,
    )
    async with Gateway(config) as gateway:

        async def made(parent: str, **wishes: object) -> Answer:
            return await fetch(gateway.url, request("/tokens", parent, method="POST", body=json.dumps(wishes).encode()))

        child = json.loads((await made(gateway.issue_token(), limits=limits(16))).content)["token"]  # 47 at maps
        assert (await fetch(gateway.url, request("/maps/x", child))).status == 200
        refused = await made(child, limits=limits(4))
        assert (refused.status, refused["x-gateway-error"]) == (400, "bad_request")
        detail = json.loads(refused.content)["detail"]
        assert all(part in detail for part in ("51 limits", "the target maps", "no more than 50"))
        fits = json.loads((await made(child, limits=limits(3))).content)["token"]
        assert (await fetch(gateway.url, request("/maps/x", fits))).status == 200
        elsewhere = json.loads((await made(child, limits=limits(4), targets=["api"])).content)["token"]
        assert (await fetch(gateway.url, request("/api/x", elsewhere))).status == 200
    assert len(maps.requests) == 2


async def test_a_token_of_the_librarys_is_as_it_was_asked_for(gateway: Gateway) -> None:
    token = gateway.issue_token("n", "1h", ["1/hour"], targets=["maps"], methods=["GET"], paths=["/x"])
    claims = claims_in(token.encode())
    assert (claims.name, claims.limits, claims.targets, claims.methods, claims.paths) == (
        "n",
        ("1/hour",),
        ("maps",),
        ("GET",),
        ("/x",),
    )
    assert claims.expires_at_s == claims.issued_at_s + 3600
    assert claims_in(gateway.issue_token(ttl=0).encode()).expires_at_s is None
    with pytest.raises(ValueError, match="is not a duration"):
        gateway.issue_token(ttl="soon")
    with pytest.raises(ValueError, match="a method is"):
        gateway.issue_token(methods=["get"])


async def test_a_token_of_the_librarys_ends_when_it_says_so(gateway: Gateway) -> None:
    token, other = gateway.issue_token(), gateway.issue_token()
    await gateway.revoke_token(token)
    assert (await fetch(gateway.url, request("/api/x", token)))["x-gateway-error"] == "token_revoked"
    assert (await fetch(gateway.url, request("/api/x", other))).status == 200
    for none in (token, "gw_x.y"):
        with pytest.raises(TokenError):
            await gateway.revoke_token(none)


async def test_a_url_goes_to_the_target_that_it_lies_under(
    gateway: Gateway, upstream: Upstream, maps: Upstream
) -> None:
    token = gateway.issue_token()
    for url in (f"{upstream.url}/x", f"{maps.url}/x", f"{upstream.url}/deep/x"):
        raw = f"GET {url} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        assert (await fetch(gateway.url, raw.encode())).status == 200
    assert [one.start_line for one in upstream.requests] == [
        b"GET /v1/x HTTP/1.1",
        f"GET /v1/deep/x?k={QUERY_KEY} HTTP/1.1".encode(),
    ]
    assert [one.field(b"x-maps-key") for one in maps.requests] == [MAPS_KEY.encode()]


async def test_the_key_of_a_query_is_hidden_in_its_own_answers(gateway: Gateway, upstream: Upstream) -> None:
    upstream.default = answering(b"", "302 Found", f"Location: {upstream.url}/deep/z?k={QUERY_KEY}")
    answer = await fetch(gateway.url, request("/q/deep/w", gateway.issue_token()))
    assert answer["location"] == f"{upstream.url}/deep/z"


async def test_a_revoked_token_ends_at_all_targets(gateway: Gateway, maps: Upstream) -> None:
    token = gateway.issue_token()
    assert (await fetch(gateway.url, request("/maps/x", token))).status == 200
    assert gateway._context is not None
    admission = gateway._context.admission
    now_s = time.time()
    await admission.revoke(admission.authenticate(token.encode(), now_s).id, None, now_s=now_s)
    assert (await fetch(gateway.url, request("/maps/x", token))).status == 401
    assert len(maps.requests) == 1


async def test_a_child_ends_at_all_targets_with_its_parent(gateway: Gateway, maps: Upstream) -> None:
    assert gateway._context is not None
    admission, now_s = gateway._context.admission, time.time()
    parent = admission.authenticate(gateway.issue_token().encode(), now_s)
    child, _ = admission.issue_child(parent, now_s)
    assert (await fetch(gateway.url, request("/maps/x", child))).status == 200
    await admission.revoke(parent.id, None, now_s=now_s)
    assert (await fetch(gateway.url, request("/maps/x", child))).status == 401
    assert len(maps.requests) == 1


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/maps/places", 200),
        ("/maps/places/7?x=1", 200),
        ("http://MAPS/v1/places/7", 200),  # as an HTTP proxy's client asks
        ("/maps/placesx", 403),
        ("/maps/users", 403),
        ("/maps/places/../users", 403),
        ("/maps/places/%2e%2e/users", 403),
        ("http://MAPS/v1/users", 403),
        ("http://MAPS/v1/places/../users", 403),
        ("http://MAPS/v1/places%2f..%2fusers", 403),
        ("/api/places", 403),  # another target
        ("http://API/v1/places", 403),
        ("/q/deep/places", 403),
    ],
)
async def test_a_narrow_token_is_as_narrow_at_every_target_and_in_either_form(
    gateway: Gateway, upstream: Upstream, maps: Upstream, target: str, status: int
) -> None:
    assert gateway._context is not None
    token = gateway.issue_token("narrow", "1h", targets=["maps"], paths=["/places"])
    for name, server in (("MAPS", maps), ("API", upstream)):
        target = target.replace(f"http://{name}/v1", server.url)
    answer = await fetch(gateway.url, request(target, token))
    assert answer.status == status
    assert (len(maps.requests), len(upstream.requests)) == (int(status == 200), 0)
