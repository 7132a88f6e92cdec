"""`gateway token` against running gateways: what it issues passes, what it revokes is refused everywhere."""

from __future__ import annotations

import base64
import json
import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e import KEY, fetch, request
from tests.kit.printed import printed
from tests.kit.process import gateway_process
from tests.kit.programs import run
from tests.kit.redis import running_redis
from tests.kit.upstream import head

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.upstream import Call, Upstream

SECRET = "a-token-secret-of-40-characters-or-so-xx"
ADMIN_KEY = "an-admin-key-of-40-characters-or-so-xxxx"


async def gateway(*arguments: str, given: str = "", **settings: str) -> tuple[int, str, str]:
    """Run `gateway ARGUMENTS` to its end, with no setting but these."""
    printed.keep_settings_secret({name.lower(): value for name, value in settings.items()})
    spelled = [f"{name}={value}" for name, value in settings.items()]
    command = ("env", *spelled, sys.executable, "-m", "gateway", *arguments)
    code, out, err = await run(*command, given=given.encode())
    return code, out.decode().strip(), err.decode().strip()


async def issued(*arguments: str, **settings: str) -> str:
    code, out, err = await gateway("token", "issue", *arguments, **settings)
    assert (code, err) == (0, "")
    return out


async def test_with_the_secret_tokens_are_issued_offline(upstream: Upstream) -> None:
    token = await issued("--name", "worker", "--limit", "7/minute", "--limit", "9/hour", TOKEN_SECRET=SECRET)
    settings = {"TARGET_API_URL": upstream.url, "TARGET_API_KEY": KEY, "ADMIN_KEY": ADMIN_KEY, "TOKEN_SECRET": SECRET}
    async with gateway_process(**settings) as program:
        answer = await fetch(program.url, request("/api/x", token))
        assert (answer.status, answer["ratelimit-policy"]) == (200, '"minute";q=7;w=60, "hour";q=9;w=3600')
        tokens = json.loads((await fetch(program.url, request("/admin/tokens", ADMIN_KEY))).content)["tokens"]
        assert [one["name"] for one in tokens] == ["worker"]

        code, out, err = await gateway("token", "revoke", "-", "--url", program.url, given=token, ADMIN_KEY=ADMIN_KEY)
        assert (code, out, err) == (0, f"revoked {tokens[0]['id']}", "")
        assert (await fetch(program.url, request("/api/x", token))).status == 401
        assert len(upstream.requests) == 1


async def test_a_child_is_made_offline_and_counts_for_its_parent(upstream: Upstream) -> None:
    parent = await issued("--limit", "7/minute", "--path", "/models", TOKEN_SECRET=SECRET)
    child = await issued("--parent", parent, "--limit", "3/minute", "--ttl", "1h", TOKEN_SECRET=SECRET)
    async with gateway_process(TARGET_API_URL=upstream.url, TARGET_API_KEY=KEY, TOKEN_SECRET=SECRET) as program:
        answer = await fetch(program.url, request("/api/models", child))
        assert (answer.status, answer["ratelimit-policy"]) == (200, '"minute";q=3;w=60, "parent-minute";q=7;w=60')
        assert (await fetch(program.url, request("/api/x", child))).status == 403
        answer = await fetch(program.url, request("/api/models", parent))
        assert answer["ratelimit"].startswith('"minute";r=5;')
        # Where no secret is known, the gateway makes it, and no admin key is asked for.
        code, out, err = await gateway("token", "issue", "--parent", "-", "--url", program.url, given=child)
        assert (code, err) == (0, "")
        assert (await fetch(program.url, request("/api/models", out))).status == 200


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        (("--path", "/other"), "allows only /models"),
        (("--ttl", "40d"), "it would last longer"),
        (tuple(f"--limit={n}/{n}s" for n in range(1, 17)), "would be under 51 limits at the target maps"),
    ],
)
async def test_a_child_that_asks_for_more_is_refused_offline(
    wishes: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    limits = ",".join(f"{n}/{n}h" for n in range(1, 17))
    file.write_text(
        f'target_api_url = "https://api.example.com"\nglobal_rate_limit = "{limits}"\nconcurrency_limit = 3\n'
        '[targets.maps]\nurl = "https://maps.example.com"\nrate_limit = "5/second"\nconcurrency_limit = 5\n'
    )
    parent = await issued(*(f"--limit={n}/{n}m" for n in range(1, 17)), "--path", "/models", TOKEN_SECRET=SECRET)
    here = ("--parent", parent, "--config", str(file), *wishes)
    code, out, err = await gateway("token", "issue", *here, TOKEN_SECRET=SECRET)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert parent not in err


@pytest.mark.parametrize("parent", ["gw_made.up", "x", "gw_\u00e4"])
async def test_there_is_no_child_of_what_is_no_token(parent: str) -> None:
    code, out, err = await gateway("token", "issue", "--parent", parent, TOKEN_SECRET=SECRET)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert parent not in err


async def test_a_narrow_token_reaches_what_it_allows_and_nothing_else(upstream: Upstream) -> None:
    lists = ("--target", "api", "--method", "GET", "--method", "HEAD", "--path", "/models")
    token = await issued(*lists, TOKEN_SECRET=SECRET)
    async with gateway_process(TARGET_API_URL=upstream.url, TOKEN_SECRET=SECRET) as program:
        statuses = [
            (await fetch(program.url, request(path, token, method=method))).status
            for method, path in (("GET", "/api/models/x"), ("GET", "/api/modelsx"), ("POST", "/api/models"))
        ]
    assert statuses == [200, 403, 403]
    assert [one.start_line for one in upstream.requests] == [b"GET /v1/models/x HTTP/1.1"]
    _, out, _ = await gateway("token", "inspect", token)
    assert re.findall(r"^(?:targets|methods|paths) +(.*)$", out, re.MULTILINE) == ["api", "GET, HEAD", "/models"]


async def test_without_it_a_running_gateway_is_asked(upstream: Upstream, tmp_path: Path) -> None:
    unix = f"unix:{tmp_path}/gateway.sock"
    addresses = {"GATEWAY_LISTEN": f"127.0.0.1:0,{unix};mode=600"}
    async with gateway_process(TARGET_API_URL=upstream.url, ADMIN_KEY=ADMIN_KEY, **addresses) as program:
        for listen in (program.url.removeprefix("http://"), unix):
            token = await issued("--limit", "7/minute", GATEWAY_LISTEN=listen, ADMIN_KEY=ADMIN_KEY)
            assert (await fetch(program.url, request("/api/x", token)))["ratelimit-policy"] == '"minute";q=7;w=60'
        code, out, err = await gateway("token", "issue", GATEWAY_LISTEN=listen)
        assert (code, out) == (1, "")
        assert err.endswith("'Authorization: Bearer KEY'. (set ADMIN_KEY as the gateway has it)")


async def test_an_answer_that_no_gateway_gives_is_one_line(upstream: Upstream) -> None:
    async def no_token(call: Call) -> None:
        await call.send(head("200 OK", "Content-Length: 14") + b'{"token": [1]}')

    upstream.default = no_token
    site = upstream.url.removesuffix("/v1").removeprefix("http://")
    for arguments in (("issue",), ("issue", "--parent", "gw_a.b"), ("revoke", "abc")):
        code, out, err = await gateway("token", *arguments, "--url", f"http://{site}")
        says = f"what answers at {site} is no gateway: say where one is (--url, GATEWAY_LISTEN)"
        assert (code, out, err) == (1, "", f"gateway: {says}")


async def test_through_redis_what_is_revoked_is_refused_by_every_instance_on_its_next_request(
    upstream: Upstream,
) -> None:
    with running_redis() as redis:
        settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "STORE_TIMEOUT": "10s"}
        async with gateway_process(**settings) as one, gateway_process(**settings) as other:
            token = await issued("--name", "run 7", REDIS_URL=redis.url)
            listed = json.loads((await fetch(other.url, request("/admin/tokens"))).content)["tokens"]
            assert [(item["name"], item["revoked"]) for item in listed] == [("run 7", False)]
            for program in (one, other):
                assert (await fetch(program.url, request("/api/x", token))).status == 200
            assert (await gateway("token", "inspect", token, REDIS_URL=redis.url))[0] == 0
            assert (await gateway("token", "revoke", listed[0]["id"], REDIS_URL=redis.url))[0] == 0
            for program in (one, other):
                answer = await fetch(program.url, request("/api/x", token))
                assert (answer.status, answer["x-gateway-error"]) == (401, "token_revoked")
            assert len(upstream.requests) == 2
            listed = json.loads((await fetch(one.url, request("/admin/tokens"))).content)["tokens"]
            assert [item["revoked"] for item in listed] == [True]
            code, out, _ = await gateway("token", "inspect", token, REDIS_URL=redis.url)
            assert (code, out.splitlines()[-1]) == (1, "verdict   bad: revoked")


async def test_a_revoked_parents_child_is_refused_by_another_instance_on_its_next_request(upstream: Upstream) -> None:
    with running_redis() as redis:
        settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "STORE_TIMEOUT": "10s"}
        async with gateway_process(**settings) as one, gateway_process(**settings) as other:
            parent = await issued("--limit", "3/hour", REDIS_URL=redis.url)
            tokens = [parent]
            for path in ("/a", "/a/b", "/a/b/c"):
                wishes = json.dumps({"paths": [path], "limits": ["2/hour"]}).encode()
                made = await fetch(one.url, request("/tokens", tokens[-1], method="POST", body=wishes))
                assert made.status == 201
                tokens.append(json.loads(made.content)["token"])
            answer = await fetch(other.url, request("/api/a/b/c", tokens[-1]))
            assert answer.status == 200
            assert [item.partition(";")[0] for item in answer["ratelimit-policy"].split(", ")] == [
                '"hour"',
                '"parent-hour"',
                '"parent2-hour"',
                '"parent3-hour"',
            ]
            assert (await gateway("token", "revoke", "-", given=parent, REDIS_URL=redis.url))[0] == 0
            for program, token in ((other, tokens[3]), (one, tokens[2]), (other, tokens[1]), (one, parent)):
                refusal = await fetch(program.url, request("/api/a/b/c", token))
                assert (refusal.status, refusal["x-gateway-error"]) == (401, "token_revoked")
            listed = json.loads((await fetch(one.url, request("/admin/tokens"))).content)["tokens"]
            assert [item["revoked"] for item in listed] == [True] * 4
            assert sorted(item["id"].count(".") for item in listed) == [0, 1, 2, 3]
    assert len(upstream.requests) == 1


async def test_inspect_says_what_a_token_grants_and_whether_it_is_good() -> None:
    wishes = ("--limit", "7/minute", "--ttl", "2h", "--budget", "5 USD/day", "--budget", "9 tokens/minute")
    token = await issued("--name", "\x1b[2J", *wishes, TOKEN_SECRET=SECRET)
    code, out, _ = await gateway("token", "inspect", "-", given=token + "\n", TOKEN_SECRET=SECRET)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (code, lines["verdict"]) == (0, "good: signed here, and not expired")
    assert (lines["name"], lines["limits"]) == (r'"\u001b[2J"', "7/minute")
    assert lines["budgets"] == "5 USD/day, 9 tokens/minute"
    child = await issued("--parent", token, TOKEN_SECRET=SECRET)
    _, out, _ = await gateway("token", "inspect", await issued("--parent", child, TOKEN_SECRET=SECRET))
    assert re.findall(r"^budgets +(.*)$|^above \d +(.*)$", out, re.MULTILINE) == [
        ("none", ""),
        ("", "7/minute; budgets: 5 USD/day, 9 tokens/minute"),
        ("", "none; budgets: none"),
    ]
    code, out, _ = await gateway("token", "inspect", token)
    assert (code, "not checked" in out) == (0, True)
    code, out, _ = await gateway(
        "token", "inspect", token[:-1] + ("A" if token[-1] != "A" else "B"), TOKEN_SECRET=SECRET
    )
    assert (code, "bad: The token was not issued here" in out) == (1, True)
    hostile = {"id": "a.b", "iat": 10**30, "exp": 10**31, "limits": ["\x1b[2J\nverdict   good"], "above": [["\x1b"]]}
    forged = base64.urlsafe_b64encode(json.dumps({**hostile, "budgets": ["\x07"]}).encode()).rstrip(b"=").decode()
    code, out, _ = await gateway("token", "inspect", f"gw_{forged}.{'A' * 43}", TOKEN_SECRET=SECRET)
    assert code == 1
    assert [line for line in out.splitlines() if not line.isprintable() or "verdict" in line] == [
        "limits    ?[2J?verdict   good",
        "verdict   bad: The token was not issued here, or was changed since.",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("issue", "--limit", "many"),
        ("issue", "--budget", "5 EUR/day"),
        ("issue", "--ttl", "soon"),
        ("issue", "--name", "n" * 129),
        ("issue", "--nmae", "x"),
        ("issue", "--method", "get"),
        ("issue", "--path", "/a/../b"),
        ("issue", "--target", "a b"),
        ("inspect", "canary"),
        ("inspect", "-"),
        ("inspect", "gw_é.x"),
        ("revoke", "a canary"),
        ("revoke", "abc", "--url", "ftp://h"),
        (),
    ],
)
async def test_what_it_cannot_do_is_one_line_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    code, out, err = await gateway("token", *arguments, TOKEN_SECRET=SECRET)
    assert (code, out, err.count("\n")) == (2, "", 0)
    assert err.startswith("gateway: ")
    assert "canary" not in err
