"""`REDIS_URL`, as a table of what is read and a table of what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.stores.address import RedisAddress, parse_redis_url


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
        ("unix:///run/redis.sock", RedisAddress("", unix_path="/run/redis.sock")),
        ("unix:///run/a%20b.sock?db=4", RedisAddress("", db=4, unix_path="/run/a b.sock")),
        ("unix://me:pw@/run/redis.sock", RedisAddress("", username="me", password="pw", unix_path="/run/redis.sock")),
    ],
)
def test_urls_are_read(url: str, expected: RedisAddress) -> None:
    assert parse_redis_url(url) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "does not begin with"),
        ("localhost:6379", "does not begin with"),
        ("http://:s3cret@h", "does not begin with"),
        ("redis+sentinel://:s3cret@a:1,b:2/mymaster/0", "not available yet"),
        ("redis+cluster://:s3cret@a:1,b:2", "not available yet"),
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
    assert "e.g. redis://" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_neither_repr_nor_str_shows_the_password() -> None:
    for url in ("redis://user:s3cret@h", "unix://user:s3cret@/run/x"):
        address = parse_redis_url(url)
        assert "s3cret" not in repr(address)
        assert "s3cret" not in str(address)
    assert str(parse_redis_url("rediss://:s3cret@[::1]:7/3")) == "rediss://[::1]:7/3"
    assert str(parse_redis_url("unix:///run/x")) == "unix:///run/x"


def test_reading_a_url_imports_nothing_that_connects() -> None:
    code = "import gateway.stores.address, sys; print({'asyncio', 'hiredis', 'redis', 'socket'} & set(sys.modules))"
    # The package's own __init__ may import what it likes; this is about what config has to pay for.
    stub = "import sys, types; p = types.ModuleType('gateway'); p.__path__ = ['gateway']; sys.modules['gateway'] = p; "
    done = subprocess.run([sys.executable, "-c", stub + code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
