"""`REDIS_URL`, as a table of what is read and a table of what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.stores.address import ClusterAddress, RedisAddress, SentinelAddress, StoreAddress, parse_redis_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", RedisAddress("localhost")),
        ("redis://localhost/", RedisAddress("localhost")),
        ("redis://10.0.0.1:7000/5", RedisAddress("10.0.0.1", 7000, 5)),
        ("redis://[::1]:7000", RedisAddress("::1", 7000)),
        ("rediss://r.example.com:6380/0", RedisAddress("r.example.com", 6380, tls=True)),
        ("redis://:p%40ss@h", RedisAddress("h", password="p@ss")),
        ("redis://us%2Fer:p%3Aw@h", RedisAddress("h", username="us/er", password="p:w")),
        ("rediss://h?ca_file=/etc/my%20ca.pem", RedisAddress("h", tls=True, ca_file="/etc/my ca.pem")),
        ("redis://us@er:p@ss@h", RedisAddress("h", username="us@er", password="p@ss")),
        (
            "redis+sentinel://me:pw@a,b:7,[::1]:8/my%2Fmain/3",
            SentinelAddress(
                (
                    RedisAddress("a", 26379, username="me", password="pw"),
                    RedisAddress("b", 7, username="me", password="pw"),
                    RedisAddress("::1", 8, username="me", password="pw"),
                ),
                "my/main",
                3,
            ),
        ),
        ("redis+cluster://a,b:7", ClusterAddress((RedisAddress("a"), RedisAddress("b", 7)))),
        ("redis+cluster://a/0", ClusterAddress((RedisAddress("a"),))),
        (
            "rediss+cluster://:pw@a?ca_file=/ca.pem",
            ClusterAddress((RedisAddress("a", password="pw", tls=True, ca_file="/ca.pem"),)),
        ),
        ("unix:///run/redis.sock", RedisAddress("", unix_path="/run/redis.sock")),
        ("unix:///run/a%20b.sock?db=4", RedisAddress("", db=4, unix_path="/run/a b.sock")),
        ("unix://me:pw@/run/redis.sock", RedisAddress("", username="me", password="pw", unix_path="/run/redis.sock")),
    ],
)
def test_urls_are_read(url: str, expected: StoreAddress) -> None:
    assert parse_redis_url(url) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "does not begin with"),
        ("localhost:6379", "does not begin with"),
        ("http://:s3cret@h", "does not begin with"),
        ("redis+proxy://:s3cret@a:1", "does not begin with"),
        ("unix+sentinel://:s3cret@a:1/x", "does not begin with"),
        ("redis+sentinel://:s3cret@a:1,b:2", "no service"),
        ("redis+sentinel://:s3cret@a:1,b:2/", "no service"),
        ("redis+sentinel://:s3cret@a:1,b:2/main/x", "database"),
        ("redis+sentinel://:s3cret@a:1,,b:2/main", "no host"),
        ("redis+sentinel://:s3cret@a:1,b:x/main", "host or port"),
        ("redis+sentinel://:s3cret@a/main?db=1", "options"),
        ("redis+cluster://:s3cret@a:1,b:2/1", "one database only"),
        ("redis+cluster://:s3cret@", "no host"),
        ("redis+cluster://:s3cret@a?ca_file=/x", "options"),
        ("redis://:s3cret@a:1,b:2", "several hosts"),
        ("rediss://:s3cret@a?ca_file=/x&db=1", "only option"),
        ("rediss://:s3cret@a?tls=0", "only option"),
        ("redis://:s3cret@", "no host"),
        ("redis:///5", "no host"),
        ("redis://a..b:6379", "host"),
        ("redis://:s3cret@.a/0", "host"),
        ("redis://:s3cret@" + "a" * 64, "host"),
        ("rediss://user:s3cret@a..b", "host"),
        ("redis://:s3cret@\u00e9" + "a" * 64, "host"),
        ("redis://:s3cret@h:port", "host or port"),
        ("redis://:s3cret@h:99999", "host or port"),
        ("redis://:s3cret@h:0", "port is not"),
        ("redis://[:s3cret@h", "host or port"),
        ("redis://:s3cret@h/one", "database"),
        ("redis://:s3cret@h/-1", "database"),
        ("redis://:s3cret@h/1/2", "database"),
        ("redis://:s3cret@h?db=1", "options"),
        ("redis://:s3cret#more@h", "'#'|host or port"),
        ("redis://:s3cret @h", "space or control"),
        ("redis://:s3cret@h\n", "space or control"),
        ("unix://:s3cret@host/path", "path that begins"),
        ("unix://", "path that begins"),
        ("unix:///run/redis.sock?pool=3", "only option"),
        ("unix:///run/redis.sock?db=x", "database"),
    ],
)
def test_what_is_refused_says_why_and_never_the_password(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_redis_url(url)
    assert "e.g. redis" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_neither_repr_nor_str_shows_the_password() -> None:
    for url in (
        "redis://user:s3cret@h",
        "unix://user:s3cret@/run/x",
        "redis+sentinel://user:s3cret@h/main",
        "redis+cluster://user:s3cret@h",
    ):
        address = parse_redis_url(url)
        assert "s3cret" not in repr(address)
        assert "s3cret" not in str(address)
    assert str(parse_redis_url("rediss://:s3cret@[::1]:7/3")) == "rediss://[::1]:7/3"
    assert str(parse_redis_url("unix:///run/x")) == "unix:///run/x"
    for url in ("rediss+sentinel://a:1,[::1]:2/main/3", "redis+cluster://a:1,b:2"):
        assert str(parse_redis_url(url)) == url


def test_the_servers_that_others_name_are_reached_as_those_are() -> None:
    sentinels = parse_redis_url("rediss+sentinel://me:pw@a/main/3?ca_file=/ca.pem")
    assert isinstance(sentinels, SentinelAddress)
    assert sentinels.master("m", 9) == RedisAddress("m", 9, 3, "me", "pw", tls=True, ca_file="/ca.pem")
    cluster = parse_redis_url("redis+cluster://me:pw@a")
    assert isinstance(cluster, ClusterAddress)
    assert cluster.node("n", 9) == RedisAddress("n", 9, 0, "me", "pw")


def test_reading_a_url_imports_nothing_that_connects() -> None:
    code = "import gateway.stores.address, sys; print({'asyncio', 'hiredis', 'redis', 'socket'} & set(sys.modules))"
    # The package's own __init__ may import what it likes; this is about what config has to pay for.
    stub = "import sys, types; p = types.ModuleType('gateway'); p.__path__ = ['gateway']; sys.modules['gateway'] = p; "
    done = subprocess.run([sys.executable, "-c", stub + code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
