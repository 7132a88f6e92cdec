"""What `gateway verify` takes, and what it refuses before anything is sent."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from gateway.errors import ConfigError
from gateway.verify.options import add_options, read_plan
from gateway.verify.plan import Load, Plan, is_loopback

if TYPE_CHECKING:
    from pathlib import Path

URL = "http://127.0.0.1:3000"
KEY = "an-admin-key-of-32-characters-or-more"
REDIS = "redis://user:canary-phrase@127.0.0.1:6379/0"


def plan(*words: str, **environ: str) -> Plan:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_plan(parser.parse_args(words), environ, "GATEWAY_TOKEN")


def test_the_least_that_can_be_said() -> None:
    made = plan(URL)
    assert (made.urls, made.path, made.token, made.admin_key, made.faults) == ((URL,), "/api/", None, None, None)
    assert (made.processes, made.connections, made.seconds, made.most) == (2, 8, 10.0, 100_000)
    (cost,) = made.announce()
    assert "may cost money: at most 100,000 requests, GET /api/" in cost


def test_the_load_is_dealt_out_whole() -> None:
    loads = plan(URL, "http://[::1]:1", "--processes", "3", "--connections", "5", "--most", "11").loads("token")
    assert [load.most for load in loads] == [4, 4, 3]
    assert [load.first for load in loads] == [0, 5, 10]
    assert Load.from_json(loads[1].to_json()) == loads[1]
    assert "token" not in repr(loads[0]).replace("token=", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ftp://127.0.0.1"], "URL: is not an instance's address"),
        ([f"{URL}/api"], "URL: is not an instance's address"),
        (["http://gw_token@127.0.0.1"], "URL: is not an instance's address"),
        ([URL, "--path", "api"], "--path: "),
        ([URL, "--path", "/a b"], "--path: "),
        ([URL, "--path", "/a\r\nHost: x"], "--path: "),
        ([URL, "--processes", "0"], "--processes: "),
        ([URL, "--connections", "many"], "--connections: "),
        ([URL, "--seconds", "soon"], "--seconds: "),
        ([URL, "--most", "0"], "--most: "),
        ([URL, "--limit", "5/second"], "--limit: only an admin may choose"),
        ([URL, "--admin-key-file", "/nowhere"], "--admin-key-file: cannot be read"),
        ([URL, "--pause-redis"], "REDIS_URL: is not set"),
        ([URL, "--pause-redis", "--redis-url", "redis+cluster://127.0.0.1:7000"], "REDIS_URL: names several servers"),
        (
            [URL, "--kill-redis", "--redis-url", "redis://10.0.0.1"],
            "--kill-redis: redis://10.0.0.1:6379/0 is on another",
        ),
        ([URL, "--restart-redis", "redis-server"], "--restart-redis: does nothing by itself"),
        ([URL, "--kill-redis", "--redis-url", REDIS, "--redis-pid", "1"], "--redis-pid: "),
        ([URL, "--pause-redis", "--redis-url", REDIS, "--outage", "0"], "--outage: "),
        ([URL, "--kill-redis", "--redis-url", REDIS, "--restart-redis", "'x"], "--restart-redis: "),
    ],
)
def test_what_cannot_be_done_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(*words)
    assert str(caught.value).startswith(says)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["http://10.0.0.1:3000"],
        [URL, "https://gateway.example.com"],
        [URL, "--pause-redis", "--redis-url", "redis://10.0.0.1"],
        [URL, "--kill-redis", "--redis-url", REDIS],
    ],
)
def test_what_may_cost_others_something_needs_a_yes(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--yes: is missing\. Admitted requests reach the API") as caught:
        plan(*words)
    assert "canary" not in str(caught.value)
    assert plan(*words, "--yes").urls


def test_what_will_be_done_to_redis_is_said_without_its_password() -> None:
    words = (URL, "--pause-redis", "--kill-redis", "--yes", "--outage", "2s", "--restart-redis", "redis-server x.conf")
    made = plan(*words, REDIS_URL=REDIS)
    assert made.faults is not None
    assert made.announce()[1:] == [
        "All clients of redis://127.0.0.1:6379/0 will wait for 2 s (CLIENT PAUSE).",
        (
            "The process of redis://127.0.0.1:6379/0 will be killed (-9) and, 2 s later, started again with: "
            "redis-server x.conf."
        ),
    ]
    assert "canary" not in repr(made)


def test_the_admin_key_and_the_token_come_from_where_nobody_else_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n", encoding="ascii")
    made = plan(URL, "--limit", "5/second", "--limit", "9/minute", "--admin-key-file", str(file))
    assert (made.admin_key, made.limits) == (KEY, ("5/second", "9/minute"))
    assert KEY not in repr(made)
    made = plan(URL, GATEWAY_TOKEN="gw_token", ADMIN_KEY=KEY)
    assert (made.token, made.admin_key) == ("gw_token", KEY)
    assert "gw_token" not in repr(made)
    with pytest.raises(ConfigError, match="has limits of its own"):
        plan(URL, "--limit", "5/second", GATEWAY_TOKEN="gw_token", ADMIN_KEY=KEY)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *((host, True) for host in ("localhost", "127.0.0.1", "127.8.8.8", "::1")),
        *((host, False) for host in ("", "10.0.0.1", "127.example.com", "::", "localhost.example.com")),
    ],
)
def test_what_is_on_this_machine(host: str, is_local: bool) -> None:  # noqa: FBT001
    assert is_loopback(host) is is_local
